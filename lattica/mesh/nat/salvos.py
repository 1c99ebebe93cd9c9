"""What one round of a method sends: when, from which socket, to where. Times are seconds after the round's beginning.

All bounds on what is sent to strangers stand here. A shot is a PROBE of 64 bytes, or, with a small TTL, a PUNCH that
opens our own NAT and dies before it reaches theirs: a gateway that answers or notes an early packet would be spoilt.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from lattica.mesh.nat.routes import Direct, Endpoint

ROUND_S = 1.5
SPACING_S = 0.025
PUNCHES = 4  # the first shots, with TTL: the two sides never begin at the same moment
TTL = 2  # past our own gateway, and no further
QUICK_S = 0.5  # so long with SPACING_S between shots, then with SLOW_S
SLOW_S = 0.1
DIAL_S = (0.0, 0.05, 0.15, 0.3, 0.6, 1.0)
WINDOW = 24  # ports beyond the last that was seen
PASSES_S = (0.0, 0.1, 0.25, 0.5, 0.9)  # over the window, the first with TTL
FAN = 256  # sockets of the side that maps per destination
GUESSES = 1_400  # ports; 1 - (1 - 256/64512)^1400 = 99.6 %
RATE = 400  # shots a second, of both
FAN_AGAIN_S = GUESSES / RATE  # all is guessed by then
BIRTHDAY_S = FAN_AGAIN_S + FAN / RATE + 0.3
PORTS = range(1024, 65536)


class Shot(NamedTuple):
    """A probe to send: seconds after the round began, by which route, and how many hops it may live (0: as usual)."""

    at_s: float
    route: Direct
    ttl: int = 0


def simultaneous(targets: Sequence[Endpoint], socket: int) -> list[Shot]:
    """Both sides at once, to all targets."""
    shots, at_s, number = [], 0.0, 0
    while at_s < ROUND_S:
        shots += [Shot(at_s, Direct(target, socket), TTL if number < PUNCHES else 0) for target in targets]
        at_s, number = at_s + (SPACING_S if at_s < QUICK_S else SLOW_S), number + 1
    return shots


def dial(targets: Sequence[Endpoint], socket: int) -> list[Shot]:
    """To one that can be reached as it is."""
    return [Shot(at_s, Direct(target, socket)) for at_s in DIAL_S for target in targets]


def predicted(host: str, ports: Sequence[int], socket: int) -> list[Shot]:
    """In the order of the ports: if our own mappings follow each other too, each meets its counterpart."""
    routes = [Direct(Endpoint(host, port), socket) for port in ports[:WINDOW]]
    return [Shot(at_s, route, 0 if at_s else TTL) for at_s in PASSES_S for route in routes]


def next_ports(seen: Sequence[int], step: int) -> tuple[int, ...]:
    """The ports that follow those that were seen."""
    last, low = max(seen), PORTS.start
    size = len(PORTS)
    return tuple(low + (last - low + (step or 1) * number) % size for number in range(1, WINDOW + 1))


def spray(host: str, socket: int, rng: Random) -> list[Shot]:
    """Guess ports, none twice."""
    ports = rng.sample(PORTS, GUESSES)
    return [Shot(number / RATE, Direct(Endpoint(host, port), socket)) for number, port in enumerate(ports)]


def fan(sockets: Sequence[int], target: Endpoint, *, double: bool) -> list[Shot]:
    """From each of many sockets to one endpoint.

    First with TTL: what arrived there before it is guessed would spoil a gateway without a firewall. Then, when all is
    guessed, as usual: what is mapped by a second gateway of ours is let in by what the other side has sent. double: we
    know of a second gateway, to which the TTL does not reach.
    """
    routes = [Direct(target, socket) for socket in sockets]
    first = [Shot(number / RATE, route, 0 if double else TTL) for number, route in enumerate(routes)]
    return first + [Shot(FAN_AGAIN_S + number / RATE, route) for number, route in enumerate(routes)]
