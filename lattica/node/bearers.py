"""What a name of the mesh stands for: the body of its claim, and of its row."""

from __future__ import annotations

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.mesh.papers import DAMAGED
from lattica.mesh.table.rows import Row
from lattica.scheduler import claims


class Bearer(msgspec.Struct, array_like=True, frozen=True):
    """What a name stands for: the body of its claim."""

    actor: bytes
    class_name: str
    detached: bool


_bearer = msgspec.msgpack.Decoder(Bearer).decode
CLASS_NAME_MAX_CHARS = 100


def write_bearer(actor: bytes, class_name: str, detached: bool) -> bytes:
    """The body of a claim."""
    return msgspec.msgpack.encode(Bearer(actor, class_name[:CLASS_NAME_MAX_CHARS], detached))


def read_bearer(body: bytes) -> Bearer | None:
    """None if it says nothing that this release knows."""
    try:
        return _bearer(body)
    except DAMAGED:
        return None


def holder_of(row: Row) -> claims.Holder | None:
    """Who has the name by this row; None if nobody can read it."""
    try:
        return claims.read_holder(row.body)
    except RemoteProtocolError:
        return None
