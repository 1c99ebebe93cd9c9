"""Arguments and results of services as bytes: msgpack, with large buffers beside it, and no pickle.

    u8 count of buffers | u32 length of the msgpack | u64 size of each buffer | msgpack | padding | buffer | ...

None, bool, int, float, str, bytes, lists, dicts and numpy arrays may be sent. Arrays, and bytes of BESIDE_FROM_BYTES or
more at the top of a value (an argument, an item of a list or dict), travel beside the msgpack, uncopied, and arrive as
read-only views of what was received; each begins at a multiple of 64 bytes. What was sent must not be changed until
the call has been answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from lattica.errors import RemoteProtocolError, SerializationError
from lattica.mesh.wire import Buffer

BESIDE_FROM_BYTES = 4096
BUFFERS_MAX = 255
DEPTH_NOTE = "numbers, strings, bytes, lists, dicts and numpy arrays can be sent to a service"
ALIGN = 64
PLAIN_MAX_BYTES = 16 << 20
"""Of the msgpack of a value: an empty list of one byte takes 64 in memory. Long bytes and arrays do not count."""
_BYTES, _ARRAY = 1, 2
_HEAD = 5
_KINDS = "biufc"  # numpy's booleans, integers, floats and complex numbers
_DTYPE = re.compile(r"[<>|=][biufc][0-9]{1,2}")


class _Beside:
    """Stands for a buffer while its value is encoded."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def encode(value: Any) -> tuple[list[Buffer], int]:
    """(buffers in order, bytes in all). Raises SerializationError for what cannot be sent."""
    buffers: list[memoryview] = []

    def beside(data: Any) -> _Beside:
        if len(buffers) >= BUFFERS_MAX:
            raise SerializationError(
                f"a value holds more than {BUFFERS_MAX} large buffers", do_next="send them as a stream"
            )
        try:
            buffers.append(memoryview(data).cast("B"))
        except TypeError as error:
            raise SerializationError("a view with gaps cannot be sent", do_next="send bytes(view)") from error
        return _Beside(len(buffers) - 1)

    def hook(item: Any) -> Any:
        if type(item) is _Beside:
            return msgspec.msgpack.Ext(_BYTES, bytes([item.index]))
        if hasattr(item, "__array_interface__") and hasattr(item, "dtype"):
            if item.dtype.kind not in _KINDS:
                raise SerializationError(f"an array of {item.dtype} cannot be sent", do_next=DEPTH_NOTE)
            flat = item if item.flags.c_contiguous else item.copy(order="C")
            index = beside(flat.reshape(-1).view("u1") if flat.size else b"").index
            about = msgspec.msgpack.encode([index, item.dtype.str, list(item.shape)])
            return msgspec.msgpack.Ext(_ARRAY, about)
        raise SerializationError(f"a {type(item).__name__} cannot be sent", do_next=DEPTH_NOTE)

    def lift(item: Any) -> Any:
        kind = type(item)
        if kind is bytes or kind is bytearray or kind is memoryview:
            size = item.nbytes if kind is memoryview else len(item)
            return beside(item) if size >= BESIDE_FROM_BYTES else bytes(item)
        return item

    def inside(item: Any) -> Any:
        if type(item) in (list, tuple):
            return [lift(inner) for inner in item]
        return {key: lift(inner) for key, inner in item.items()} if type(item) is dict else lift(item)

    if type(value) in (list, tuple):
        value = [inside(item) for item in value]  # arguments by position and by name, or a plain list
    else:
        value = inside(value)
    try:
        data = msgspec.msgpack.encode(value, enc_hook=hook)
    except (TypeError, ValueError, OverflowError, RecursionError, BufferError) as error:
        if isinstance(error, SerializationError):
            raise
        raise SerializationError(f"a value cannot be sent: {error}", do_next=DEPTH_NOTE) from error
    if len(data) > PLAIN_MAX_BYTES:
        raise SerializationError(
            f"a value of {len(data)} bytes besides its arrays; {PLAIN_MAX_BYTES} can be sent",
            do_next="put its numbers into numpy arrays, or send it in parts, as a stream",
        )
    if not buffers:
        return [b"\0" + len(data).to_bytes(4, "little") + data], _HEAD + len(data)
    sizes = b"".join(len(buffer).to_bytes(8, "little") for buffer in buffers)
    head = bytes([len(buffers)]) + len(data).to_bytes(4, "little") + sizes + data
    parts: list[Buffer] = [head]
    total = len(head)
    for buffer in buffers:
        if total % ALIGN:
            parts.append(bytes(-total % ALIGN))
            total += len(parts[-1])
        parts.append(buffer)
        total += len(buffer)
    return parts, total


def decode(body: Buffer) -> Any:
    """The value. Raises RemoteProtocolError. Large buffers are read-only views of `body`."""
    view = memoryview(body)
    if len(view) < _HEAD:
        raise RemoteProtocolError(f"a value of {len(view)} bytes")
    count, length = view[0], int.from_bytes(view[1:_HEAD], "little")
    start = _HEAD + 8 * count
    at = start + length
    if length > PLAIN_MAX_BYTES:
        raise RemoteProtocolError(f"a value of {length} bytes besides its arrays; {PLAIN_MAX_BYTES} are allowed")
    if at > len(view):
        raise RemoteProtocolError(f"a value of {len(view)} bytes announced {at}")
    buffers: list[memoryview] = []
    for index in range(count):
        size = int.from_bytes(view[_HEAD + 8 * index : _HEAD + 8 * index + 8], "little")
        at += -at % ALIGN
        if at + size > len(view):
            raise RemoteProtocolError(f"a value of {len(view)} bytes announced a buffer that ends at {at + size}")
        buffers.append(view[at : at + size].toreadonly())
        at += size
    try:
        return msgspec.msgpack.decode(view[start : start + length], ext_hook=_hook(buffers))
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise RemoteProtocolError(f"a value is undecodable: {error}") from error


def _hook(buffers: Sequence[memoryview]) -> Callable[[int, memoryview], Any]:
    left = len(buffers)  # each is named once

    def hook(code: int, data: memoryview) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise RemoteProtocolError("a value names more buffers than it has")
        if code == _BYTES:
            if len(data) != 1 or data[0] >= len(buffers):
                raise RemoteProtocolError("a value names a buffer that it does not have")
            return buffers[data[0]]
        if code == _ARRAY:
            index, kind, shape = msgspec.msgpack.decode(data, type=tuple[int, str, list[int]])
            if (
                not 0 <= index < len(buffers)
                or not _DTYPE.fullmatch(kind)
                or len(shape) > 32
                or min(shape, default=0) < 0
            ):
                raise RemoteProtocolError("a value holds an array that is none")
            return _array(buffers[index], kind, shape)
        raise RemoteProtocolError(f"a value holds an extension {code}, which does not exist")

    return hook


def _array(buffer: memoryview, kind: str, shape: list[int]) -> Any:
    try:
        import numpy as np
    except ImportError as error:
        raise RemoteProtocolError("an array came, and numpy is not installed here") from error
    return np.frombuffer(buffer, dtype=np.dtype(kind)).reshape(shape)
