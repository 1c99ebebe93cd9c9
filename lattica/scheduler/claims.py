"""Claims of names: what members send each other, what a name's row says, what `names` asks of its shell.

    [1, claim, name, body] · [2, claim, row] · [3, claim, reason, held] · [4, claim, home]   row: [claim, claimer, body]

Numbers are only ever appended, and unknown fields at the ends of messages are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.mesh.identity import PEER_ID_BYTES, PeerId
from lattica.mesh.papers import DAMAGED
from lattica.mesh.table.kinds import KEY_MAX_BYTES
from lattica.mesh.table.rows import ROW_MAX_BYTES

CLAIM_BYTES = 16
BODY_MAX_BYTES = 512
"""Of what a name stands for: an actor's id, class and options. With the claim it fits into a name's row of 1 KiB."""
REASON_MAX_CHARS = 300


class Claim(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """May I have this name? claim: 16 random bytes, the same each time that it is asked."""

    claim: bytes
    name: bytes
    body: bytes


class Claimed(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """You have it. row: as it travels, so that it outlives the home."""

    claim: bytes
    row: bytes


class Refused(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """You have it not. held: what the name stands for, if another claim has it; else the reason says why."""

    claim: bytes
    reason: str
    held: bytes | None = None


class Elsewhere(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """As I see the members, this one is the name's home."""

    claim: bytes
    home: PeerId


class Holder(msgspec.Struct, array_like=True, frozen=True):
    """The body of a name's row; of a tombstone: whom it ended."""

    claim: bytes
    claimer: PeerId
    body: bytes


Message = Claim | Claimed | Refused | Elsewhere
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode
_holder = msgspec.msgpack.Decoder(Holder).decode


def encode(message: Message) -> bytes:
    """For a notice."""
    return _encode(message)


def decode(data: bytes) -> Message:
    """Raises RemoteProtocolError for whatever is no message within the limits above."""
    try:
        message: Message = _decode(data)
    except DAMAGED as error:
        raise RemoteProtocolError(f"a message about a name cannot be read: {error}") from error
    if len(message.claim) != CLAIM_BYTES or not _holds(message):
        raise RemoteProtocolError(f"a {type(message).__name__} of a name is beyond its limits")
    return message


def write_holder(holder: Holder) -> bytes:
    """The body of a name's row."""
    return _encode(holder)


def read_holder(body: bytes) -> Holder:
    """Raises RemoteProtocolError."""
    try:
        holder = _holder(body)
    except DAMAGED as error:
        raise RemoteProtocolError(f"the row of a name cannot be read: {error}") from error
    sizes = len(holder.claim), len(holder.claimer)
    if sizes != (CLAIM_BYTES, PEER_ID_BYTES) or len(holder.body) > BODY_MAX_BYTES:
        raise RemoteProtocolError("the row of a name is beyond its limits")
    return holder


def _holds(message: Message) -> bool:
    match message:
        case Claim(_, name, body):
            return 0 < len(name) <= KEY_MAX_BYTES and len(body) <= BODY_MAX_BYTES
        case Claimed(_, row):
            return 0 < len(row) <= ROW_MAX_BYTES
        case Refused(_, reason, held):
            return len(reason) <= REASON_MAX_CHARS and len(held or b"") <= BODY_MAX_BYTES
        case Elsewhere(_, home):
            return len(home) == PEER_ID_BYTES


# -- what the core asks of its shell -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """To this peer; it may be lost."""

    to: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Write:
    """As the home: write this row of a name, then call `written`. Its heir is the claimer."""

    name: bytes
    holder: Holder


@dataclass(frozen=True, slots=True)
class Merge:
    """Take in this row as if it had been flooded by the home."""

    home: PeerId
    row: bytes


@dataclass(frozen=True, slots=True)
class Release:
    """Write the name's tombstone, which says whom it ends."""

    name: bytes
    holder: Holder


@dataclass(frozen=True, slots=True)
class NameClaimed:
    """It is ours: start the constructor."""

    claim: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class NameTaken:
    """Another claim has it. held: what it stands for."""

    claim: bytes
    name: bytes
    held: bytes


@dataclass(frozen=True, slots=True)
class NameFailed:
    """Nobody has decided. What may yet be decided in our favour is released when it is seen."""

    claim: bytes
    name: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class NameLost:
    """It was ours, and after a partition it is another's: fence what we run under it. by: None if somebody else has
    released it."""

    claim: bytes
    name: bytes
    by: Holder | None


Effect = Send | Write | Merge | Release | NameClaimed | NameTaken | NameFailed | NameLost
