"""Where a peer may be reached, and which of that is worth a datagram to whom.

What both tell each other over their session is a short list of endpoints, best first. An address that means something
only behind a NAT is tried by those alone who are behind the same one: they share an outer address.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

import msgspec

from lattica.mesh.nat.routes import Endpoint, is_private

CANDIDATES_MAX = 16  # that a peer tells of itself; what is more is cut off, worst first
TARGETS_MAX = 6  # to which one round sends: each gets some thirty datagrams of 64 bytes
FAMILY_MAX = 6  # of one source: a host with a hundred addresses tells of a few


class Source(Enum):
    """How an endpoint was learned; best first."""

    CONFIGURED = "configured"  # somebody said so
    MAPPED = "mapped"  # a port of the gateway, by PCP, NAT-PMP or UPnP
    HOST = "host"  # of an interface, and public
    OBSERVED = "observed"  # what others see
    LAN = "lan"  # of an interface, and private


RANKS = {source: rank for rank, source in enumerate(Source)}


class Candidate(msgspec.Struct, frozen=True):
    """An endpoint by which a peer may be reached, and how it is known."""

    source: Source
    endpoint: Endpoint

    def __str__(self) -> str:
        return f"{self.endpoint} ({self.source.value})"


def gather(
    local: Sequence[Endpoint],
    observed: Sequence[Endpoint] = (),
    mapped: Sequence[Endpoint] = (),
    configured: Sequence[Endpoint] = (),
) -> tuple[Candidate, ...]:
    """What to tell of ourselves: each endpoint once, by its best source, best first; IPv6 before IPv4 of a kind."""
    found: dict[Endpoint, Source] = {}
    told = [*((Source.CONFIGURED, each) for each in configured), *((Source.MAPPED, each) for each in mapped)]
    told += [(Source.LAN if is_private(each.host) else Source.HOST, each) for each in local if _is_usable(each)]
    told += [(Source.OBSERVED, each) for each in observed]
    for source, endpoint in sorted(told, key=lambda each: (RANKS[each[0]], not each[1].is_ipv6)):
        if endpoint not in found and sum(other is source for other in found.values()) < FAMILY_MAX:
            found[endpoint] = source
    return tuple(Candidate(source, endpoint) for endpoint, source in list(found.items())[:CANDIDATES_MAX])


def outer_hosts(candidates: Iterable[Candidate]) -> set[str]:
    """Under which public addresses a peer is known."""
    return {each.endpoint.host for each in candidates if each.source is not Source.LAN}


def are_near(ours: Sequence[Candidate], theirs: Sequence[Candidate]) -> bool:
    """Whether both are behind the same NAT, so that inner addresses may mean something."""
    lan = any(each.source is Source.LAN for each in ours) and any(each.source is Source.LAN for each in theirs)
    return lan and bool(outer_hosts(ours) & outer_hosts(theirs))


def share_ipv6(ours: Sequence[Candidate], theirs: Sequence[Candidate]) -> bool:
    """Whether both have public addresses of IPv6."""
    return all(any(_is_global_6(each) for each in side) for side in (ours, theirs))


def targets(ours: Sequence[Candidate], theirs: Sequence[Candidate]) -> tuple[Endpoint, ...]:
    """Where a round of ours sends to, best first: LAN addresses where both are near, IPv6 where both have it."""
    near, six = are_near(ours, theirs), any(each.endpoint.is_ipv6 for each in ours)
    own = {each.endpoint for each in ours if each.source is Source.LAN}
    usable = [
        each
        for each in theirs[:CANDIDATES_MAX]
        if (near or each.source is not Source.LAN)
        and (six or not each.endpoint.is_ipv6)
        and each.endpoint not in own
        and each.endpoint.port
    ]
    usable.sort(key=lambda each: (each.source is not Source.LAN, not each.endpoint.is_ipv6, RANKS[each.source]))
    return tuple(dict.fromkeys(each.endpoint for each in usable))[:TARGETS_MAX]


def observed_of(candidates: Sequence[Candidate]) -> Endpoint | None:
    """The IPv4 endpoint at which others see a peer, for methods that guess ports."""
    four = [each for each in candidates if not each.endpoint.is_ipv6 and each.source is not Source.LAN]
    return min(four, key=lambda each: each.source is not Source.OBSERVED).endpoint if four else None


def _is_usable(endpoint: Endpoint) -> bool:
    return not endpoint.host.startswith(("127.", "fe80:", "169.254.")) and endpoint.host != "::1"


def _is_global_6(candidate: Candidate) -> bool:
    return candidate.endpoint.is_ipv6 and candidate.source is not Source.LAN
