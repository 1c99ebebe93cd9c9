"""Who is responsible for a thing: living members in an order that all who know the same members find alike.

Source: Thaler & Ravishankar, "Using name-based mappings to increase hit rates" (1998), highest random weight. Where one
member goes, only what it was first for moves, to whoever was second. xxhash is enough: a member that makes itself first
for a name gains what every member with the role may do anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import xxhash

from lattica.mesh.identity import PeerId
from lattica.mesh.roles import Role


@dataclass(frozen=True, slots=True)
class Standing:
    """What counts of a living member when something is decided. ephemeral: an embedded driver node."""

    peer: PeerId
    roles: Role
    ephemeral: bool = False


def deciders(living: Iterable[Standing], role: Role) -> list[PeerId]:
    """Those of the living who may be responsible: with the role, and there to stay."""
    return [member.peer for member in living if role in member.roles and not member.ephemeral]


def order(thing: bytes, peers: Iterable[PeerId]) -> list[PeerId]:
    """All of them, the one responsible for `thing` first."""
    return [peer for _, peer in sorted(((weight(thing, peer), peer) for peer in peers), reverse=True)]


def first(thing: bytes, peers: Iterable[PeerId]) -> PeerId | None:
    """The one responsible for `thing`; None if there is nobody."""
    return max(peers, key=lambda peer: (weight(thing, peer), peer), default=None)


def rank(thing: bytes, peer: PeerId, peers: Iterable[PeerId]) -> int:
    """How many of them come before this peer."""
    mine = weight(thing, peer), peer
    return sum((weight(thing, other), other) > mine for other in peers)


def weight(thing: bytes, peer: PeerId) -> int:
    """The length is hashed too, so that no two pairs run together into the same bytes."""
    return xxhash.xxh3_64_intdigest(len(thing).to_bytes(2, "big") + thing + peer)
