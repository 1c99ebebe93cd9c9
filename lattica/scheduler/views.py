"""Stable views as bytes: on the wire between members, and on disk. What they mean, see `islands`.

    [1, number, digest] · [2] · [3, number, members]        members: ids, in order        on disk: [version, view, gone]

Numbers are only ever appended.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.mesh.identity import PEER_ID_BYTES, PeerId
from lattica.mesh.papers import DAMAGED

MEMBERS_MAX = 2048
"""Of a view: what fits into a notice of 66 KiB. Larger meshes need views in parts."""
NUMBER_MAX = (1 << 63) - 1
DIGEST_BYTES = 16
VERSION = 1


class Viewed(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """The sender's view has this number and digest."""

    number: int
    digest: bytes


class Ask(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """Send me your view."""


class View(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """The sender's view. members: in order; none only with number 0, before any is known."""

    number: int
    members: tuple[PeerId, ...]


class _Kept(msgspec.Struct, array_like=True, frozen=True):
    version: int
    view: View
    gone: tuple[PeerId, ...]


Message = Viewed | Ask | View
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode
_kept = msgspec.msgpack.Decoder(_Kept).decode


def digest_of(members: Iterable[PeerId]) -> bytes:
    """Names a set of members."""
    from blake3 import blake3

    return blake3(b"".join(sorted(members))).digest(DIGEST_BYTES)


def encode(message: Message) -> bytes:
    """For a notice."""
    return _encode(message)


def decode(data: bytes) -> Message:
    """Raises RemoteProtocolError for whatever is no message within the limits above."""
    try:
        message: Message = _decode(data)
    except DAMAGED as error:
        raise RemoteProtocolError(f"a message about the stable view cannot be read: {error}") from error
    _check(message)
    return message


def write_state(view: View, gone: Iterable[PeerId]) -> bytes:
    """For the disk. gone: members that said they left, or were revoked."""
    return _encode(_Kept(VERSION, view, tuple(sorted(gone))))


def read_state(data: bytes) -> tuple[View, frozenset[PeerId]]:
    """(view, gone), as written by `write_state`. Raises RemoteProtocolError."""
    try:
        kept = _kept(data)
    except DAMAGED as error:
        raise RemoteProtocolError(f"the stable view on disk cannot be read: {error}") from error
    _check(kept.view)
    gone = frozenset(kept.gone)
    if kept.version != VERSION or not gone <= set(kept.view.members):
        raise RemoteProtocolError("the stable view on disk is not written as this release writes it")
    return kept.view, gone


def _check(message: Message) -> None:
    match message:
        case Viewed(number, digest):
            holds = 0 <= number <= NUMBER_MAX and len(digest) == DIGEST_BYTES
        case View(number, members):
            sizes = len(members) <= MEMBERS_MAX and all(len(peer) == PEER_ID_BYTES for peer in members)
            in_order = sizes and list(members) == sorted(set(members))
            holds = in_order and 0 <= number <= NUMBER_MAX and bool(number) == bool(members)
        case Ask():
            holds = True
    if not holds:
        raise RemoteProtocolError(f"a {type(message).__name__} of the stable view is beyond its limits")
