"""Frames: `u32 length | msgpack array of messages`, little-endian length, one frame per flush of a connection.

The decoder distrusts: a length is checked before it is used, and whatever does not decode is a `RemoteProtocolError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lattica.errors import RemoteProtocolError

FRAME_BYTES_MAX = 256 << 20
"""Longest frame. Values over 100 KiB travel through the arena, so a frame is long only because many messages share
it."""

_HEADER = 4
_encoder = msgspec.msgpack.Encoder()


def encode(messages: Sequence[msgspec.Struct]) -> bytearray:
    """One frame with these messages, in order."""
    frame = bytearray(_HEADER)
    _encoder.encode_into(messages, frame, _HEADER)
    frame[:_HEADER] = (len(frame) - _HEADER).to_bytes(_HEADER, "little")
    return frame


def encode_one(message: msgspec.Struct) -> bytes:
    """The bytes of one message, for a log of messages that `join` makes into a frame."""
    return _encoder.encode(message)


def join(count: int, items: bytes | memoryview) -> bytes:
    """The frame header of `count` messages whose bytes (`encode_one` each) are `items`; send it before them."""
    return (5 + len(items)).to_bytes(_HEADER, "little") + b"\xdd" + count.to_bytes(4, "big")


class Decoder:
    """Bytes in, messages out; keeps the incomplete tail. `types` is a union of the messages that may come this way."""

    __slots__ = ("_decode", "_need", "_tail")

    def __init__(self, types: Any) -> None:
        self._decode = msgspec.msgpack.Decoder(list[types]).decode
        self._tail = bytearray()
        self._need = _HEADER

    def feed(self, data: bytes | memoryview) -> list[Any]:
        """Every message completed by `data`. Raises RemoteProtocolError on a frame that is too long or not a
        message."""
        if not self._tail:
            if int.from_bytes(data[:_HEADER], "little") == len(data) - _HEADER:  # one frame, as nearly always
                return self.decode(memoryview(data)[_HEADER:])
        else:
            self._tail += data
            if len(self._tail) < self._need:
                return []
            data = bytes(self._tail)
            self._tail.clear()
        end = len(data)
        start, messages = 0, None
        while end - start >= _HEADER:
            size = int.from_bytes(data[start : start + _HEADER], "little")
            if size > FRAME_BYTES_MAX:
                raise RemoteProtocolError(
                    f"a frame of {size} bytes was announced; at most {FRAME_BYTES_MAX} are allowed"
                )
            stop = start + _HEADER + size
            if stop > end:
                self._need = _HEADER + size
                break
            got = self.decode(memoryview(data)[start + _HEADER : stop])
            messages = got if messages is None else messages + got
            start = stop
        else:
            self._need = _HEADER
        if start < end:
            self._tail += data[start:]
        return messages or []

    def decode(self, body: bytes | memoryview) -> list[Any]:
        """The messages of one frame body. Raises RemoteProtocolError if they are not of this conversation."""
        try:
            return self._decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RemoteProtocolError(f"undecodable frame of {len(body)} bytes: {error}") from error
