"""What a machine is behind, in RFC 5780's terms, and how that follows from what peers saw.

A peer that sees our datagrams tells from which endpoint they seem to come (`Sighting`). Two peers at different
addresses, one of them on two ports, are enough for the mapping; the filtering follows from who was able to answer. See
`measuring` for the questions, RFC 4787 for the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import pairwise
from math import gcd

import msgspec

from lattica.mesh.nat.routes import Endpoint, is_private

SEQUENTIAL_GAP = 16  # ports between two of our mappings that others may have taken meanwhile
SEQUENTIAL_LEAST = 3  # ports: that so many at random lie so close together happens once in a million measurements


ONLY_6 = "IPv6 alone"  # answers came over nothing else


class Dependence(Enum):
    """On what of the other end a mapping or a filter depends (RFC 4787 §4.1, §5)."""

    INDEPENDENT = "endpoint-independent"
    ADDRESS = "address-dependent"
    ADDRESS_AND_PORT = "address-and-port-dependent"


class Allocation(Enum):
    """Which outer port a new mapping gets."""

    KEPT = "kept"  # the inner one
    SEQUENTIAL = "sequential"
    RANDOM = "random"


class Behaviour(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is between this machine and others; None: not known. It stands in the node's row.

    udp: False if no datagram came back. translated: others see another address than any of ours. step: between two
    sequential ports. lifetime_s: an idle mapping lives at least so long. hairpin: hosts behind one gateway reach each
    other by their outer addresses. double: the gateway's own outer address is another one's inner. mapped: a port of
    the gateway was mapped to ours, so that anybody reaches it. ipv6: a peer answered over it.
    """

    udp: bool | None = None
    translated: bool | None = None
    mapping: Dependence | None = None
    filtering: Dependence | None = None
    allocation: Allocation | None = None
    step: int = 0
    lifetime_s: float | None = None
    hairpin: bool | None = None
    double: bool | None = None
    mapped: bool = False
    ipv6: bool = False

    @property
    def words(self) -> str:
        """As people call it: `port-restricted cone NAT`."""
        if self.udp is None:
            return "not measured"
        if not self.udp:
            return "UDP is blocked"
        if self.ipv6 and self.translated is None:
            return ONLY_6
        if self.translated is False:
            filtered = self.filtering in (Dependence.ADDRESS, Dependence.ADDRESS_AND_PORT)
            return "public address behind a firewall" if filtered else "public address"
        if self.mapping in (Dependence.ADDRESS, Dependence.ADDRESS_AND_PORT):
            ports = {Allocation.SEQUENTIAL: ", sequential ports", Allocation.RANDOM: ", random ports"}
            return "symmetric NAT" + (ports.get(self.allocation, "") if self.allocation else "")
        cones = {
            Dependence.INDEPENDENT: "full cone NAT",
            Dependence.ADDRESS: "restricted cone NAT",
            Dependence.ADDRESS_AND_PORT: "port-restricted cone NAT",
        }
        return cones[self.filtering] if self.filtering else "NAT"


class Sighting(msgspec.Struct, frozen=True):
    """A peer on `by` saw what we sent from `local` come from `seen`."""

    socket: int
    local: Endpoint
    by: Endpoint
    seen: Endpoint


def mapping_of(sightings: Sequence[Sighting]) -> Dependence | None:
    """From what several peers saw of one socket."""
    seen = {sighting.seen for sighting in sightings}
    hosts = {sighting.by.host for sighting in sightings}
    if len(seen) <= 1:
        return Dependence.INDEPENDENT if len(hosts) > 1 else None
    by_host: dict[str, list[Endpoint]] = {}
    for sighting in sightings:
        by_host.setdefault(sighting.by.host, []).append(sighting.seen)
    several = [endpoints for endpoints in by_host.values() if len(endpoints) > 1]
    if several and all(len(set(endpoints)) == 1 for endpoints in several):
        return Dependence.ADDRESS
    return Dependence.ADDRESS_AND_PORT


def filtering_of(*, other_peer: bool | None, other_port: bool | None) -> Dependence | None:
    """From who was able to answer a socket that had sent to one endpoint only; None: it was not asked, or is dead."""
    if other_peer:
        return Dependence.INDEPENDENT
    if other_port:
        return Dependence.ADDRESS
    return Dependence.ADDRESS_AND_PORT if other_port is False else None


def allocation_of(sightings: Sequence[Sighting]) -> tuple[Allocation | None, int]:
    """From new mappings, each seen once; with the step if they are sequential."""
    if not sightings:
        return None, 0
    if all(sighting.seen.port == sighting.local.port for sighting in sightings):
        return Allocation.KEPT, 0
    ports = sorted({sighting.seen.port for sighting in sightings})
    gaps = [later - sooner for sooner, later in pairwise(ports)]
    if len(ports) >= SEQUENTIAL_LEAST and ports[-1] - ports[0] <= SEQUENTIAL_GAP * len(gaps):
        return Allocation.SEQUENTIAL, gcd(*gaps)
    return (Allocation.RANDOM, 0) if len(ports) >= SEQUENTIAL_LEAST else (None, 0)


def is_translated(sightings: Sequence[Sighting], own: Sequence[str]) -> bool | None:
    """own: the addresses of this machine's interfaces."""
    return all(sighting.seen.host not in own for sighting in sightings) if sightings else None


def is_double(told: str, seen: Sequence[str]) -> bool | None:
    """told: the outer address that the gateway itself tells (by PCP, NAT-PMP or UPnP), "" if it does not; seen: by
    peers."""
    return None if not told or not seen else is_private(told) or told not in seen
