"""What two conversations say to each other, and what they tell their shells: see `rpc`.

Messages travel in arrays of them on the control plane; their numbers are only ever appended, and unknown fields at
their ends are ignored. A body is msgpack's `bin` in its message, or compressed, or announced to come over bulk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.mesh.wire import Buffer

INLINE_MAX_BYTES = 16 << 10
"""Longest body inside a control message: the most that one call can delay the next one by."""
BODY_MAX_BYTES = 256 << 20
"""Longest body of a call or item; longer values belong into a stream or the object store."""
METHOD_MAX_CHARS = 256
FAILURE_MAX_BYTES = 32 << 10
"""Longest error: a traceback of 8,192 characters and as much of words. Beyond it, texts are cut."""
CUT_CHARS = 2000
NOTICE_MAX_BYTES = 66 << 10
"""Longest notice: a publication of 64 KiB."""
FROM_CALLER, FROM_CALLEE = 0, 1
TIMED_OUT = {"error": "GetTimeoutError", "message": "the call's deadline has passed"}
STREAMS_IN, STREAMS_OUT = 1, 2  # flags of a call: the caller sends items, the callee does


class Packed(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """A compressed body. size: of the original."""

    data: bytes
    size: int


class Large(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """A body that comes on the bulk plane under this number."""

    body: int
    size: int


Body = bytes | Packed | Large


class Call(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """Run this method. flags: STREAMS_IN, STREAMS_OUT."""

    id: int
    method: str
    timeout_ms: int  # 0: none
    flags: int
    body: Body


class Result(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """What a call has returned."""

    id: int
    body: Body


class Failure(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """What a call has raised, as its error's fields."""

    id: int
    error: dict[str, Any]


class Cancel(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """The caller no longer wants this call."""

    id: int


class Item(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """The next item of a call's stream. side: FROM_CALLER or FROM_CALLEE."""

    id: int
    side: int
    body: Body


class End(msgspec.Struct, array_like=True, tag=6, frozen=True):
    """A call's stream has no more items."""

    id: int
    side: int


class Credit(msgspec.Struct, array_like=True, tag=7, frozen=True):
    """So many bytes more of this stream may be sent."""

    id: int
    side: int  # of who gives it
    bytes: int


class Grant(msgspec.Struct, array_like=True, tag=8, frozen=True):
    """So many bytes more of bodies may be sent: of all calls, or of all answers."""

    bytes: int
    side: int  # of who gives it: the callee for calls, the caller for answers


class Notice(msgspec.Struct, array_like=True, tag=9, frozen=True):
    """A message of another protocol, that nobody answers and that may be left out. protocol: see `notices`."""

    protocol: int
    body: bytes


Message = Call | Result | Failure | Cancel | Item | End | Credit | Grant | Notice
encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Message]).decode


def decode(payload: Buffer) -> list[Message]:
    """The messages of one frame. Raises RemoteProtocolError."""
    try:
        return _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"undecodable messages of {len(payload)} bytes: {error}") from error


def checked(side: int) -> int:
    """The side that a message names. Raises RemoteProtocolError if there is none."""
    if side not in (FROM_CALLER, FROM_CALLEE):
        raise RemoteProtocolError(f"a stream of side {side}")
    return side


def fitting(error: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """An error that fits into a message, and its size: what is too long is cut, what cannot be sent is left out."""
    data = dict(error)
    try:
        if (size := len(encode(data))) <= FAILURE_MAX_BYTES:
            return data, size
    except (TypeError, ValueError, OverflowError, RecursionError):
        pass
    cut = {name: value[:CUT_CHARS] for name, value in data.items() if type(value) is str and name.isidentifier()}
    data = {name: cut[name] for name in ("error", "message") if name in cut} | dict(list(cut.items())[:2])
    try:
        return data, len(encode(data))
    except ValueError:  # half a surrogate pair
        return {"error": "LatticaError", "message": "an error that cannot be sent"}, FAILURE_MAX_BYTES


# -- events ------------------------------------------------------------------------------------------------------------


class Started(msgspec.Struct, frozen=True):
    """A call of the other side is here with its arguments: run it, then `result` or `fail`."""

    id: int
    method: str
    timeout_s: float | None
    flags: int
    body: Buffer


class Answered(msgspec.Struct, frozen=True):
    """A call of ours has returned this."""

    id: int
    body: Buffer


class Failed(msgspec.Struct, frozen=True):
    """A call of ours has raised this, or cannot be answered."""

    id: int
    error: Mapping[str, Any]


class Came(msgspec.Struct, frozen=True):
    """An item of a stream. side: who sent it. Say `consumed` when its reader has taken it."""

    id: int
    side: int
    body: Buffer


class Ended(msgspec.Struct, frozen=True):
    """That side of a stream has no more items."""

    id: int
    side: int


class Canceled(msgspec.Struct, frozen=True):
    """The other side no longer wants this call of its own, or its deadline has passed: stop it; do not answer."""

    id: int
    reason: str


class Writable(msgspec.Struct, frozen=True):
    """The stream has credit again, or there is room for another call (id 0)."""

    id: int


class Noticed(msgspec.Struct, frozen=True):
    """A notice of the other side, for who hears this protocol."""

    protocol: int
    body: bytes


Event = Started | Answered | Failed | Came | Ended | Canceled | Writable | Noticed
