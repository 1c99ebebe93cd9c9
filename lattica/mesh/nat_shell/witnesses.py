"""Who is asked what we are behind: peers with a session that can be seen from everywhere; pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import Random

import msgspec

from lattica.mesh.identity import PeerId
from lattica.mesh.nat.measuring import WITNESSES_MAX
from lattica.mesh.nat.routes import Endpoint, is_public

TOLD_MAX = 32  # addresses of one peer that are looked at


class Candidate(msgspec.Struct, frozen=True):
    """A peer that may be asked. endpoint, six: of its UDP socket, in IPv4 and in IPv6."""

    peer: PeerId
    endpoint: Endpoint
    six: Endpoint | None = None


def candidate_of(peer: PeerId, told: Sequence[Endpoint], own: Collection[str]) -> Candidate | None:
    """told: where it may be, the likeliest first. own: addresses of this machine, which proves nothing to itself."""
    usable = [endpoint for endpoint in told[:TOLD_MAX] if is_public(endpoint) and endpoint.host not in own]
    four = next((endpoint for endpoint in usable if not endpoint.is_ipv6), None)
    six = next((endpoint for endpoint in usable if endpoint.is_ipv6), None)
    return Candidate(peer, four, six) if four is not None else None


def pick(
    candidates: Sequence[Candidate], now: Sequence[PeerId], rng: Random, most: int = WITNESSES_MAX
) -> tuple[Candidate, ...]:
    """Some at different addresses; those that are asked now stay. Others by chance, so that a mesh shares the work."""
    others = [candidate for candidate in candidates if candidate.peer not in now]
    rng.shuffle(others)
    first = sorted((each for each in candidates if each.peer in now), key=lambda each: now.index(each.peer))
    hosts: dict[str, Candidate] = {}
    for candidate in (*first, *others):
        hosts.setdefault(candidate.endpoint.host, candidate)
    return tuple(list(hosts.values())[:most])
