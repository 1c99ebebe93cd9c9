"""How messages travel between two participants, and what is in their way."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import permutations, product


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two participants. Probabilities are per message, delays uniform in seconds.

    loss up: retries are exercised; above 0.5 most protocols only retry. delay_s wide: reorders. Dialed connections keep
    order and lose nothing, so both show as delay there. late: this share of datagrams takes `late_s` more, so that many
    others overtake it. bytes_per_s: of all dialed connections together; 0 is no limit.

    connection=True makes `Send` a socket between two processes of one machine: in order, nothing lost while both live,
    what a dead process had written still arrives and then `Closed` does, and a restarted process gets nothing meant
    for its predecessor.
    """

    delay_s: tuple[float, float] = (0.000_05, 0.001)
    loss: float = 0.0
    duplicates: float = 0.0
    connection: bool = False
    late: float = 0.0
    late_s: tuple[float, float] = (0.5, 5.0)
    bytes_per_s: float = 0.0

    def healed(self) -> Link:
        """The same distance and width, without faults."""
        return replace(self, loss=0.0, duplicates=0.0, late=0.0)


SOCKET = Link(connection=True)
DATAGRAMS = Link(delay_s=(0.01, 0.2), loss=0.1, duplicates=0.05)

Ends = tuple[str, str]
"""Sender, receiver."""


class Obstacles:
    """Which directions are cut, where what is sent is lost, or clogged, where it waits and then arrives all at once."""

    def __init__(self) -> None:
        self.cut_since: dict[Ends, float] = {}
        self.clogged_until: dict[Ends, float] = {}

    def __repr__(self) -> str:
        return f"<Obstacles: {len(self.cut_since)} directions cut, {len(self.clogged_until)} clogged>"

    def cut(self, directions: Iterable[Ends], now: float) -> None:
        for ends in directions:
            self.cut_since.setdefault(ends, now)

    def clear(self) -> list[Ends]:
        """No obstacle is left. Returns the directions that were clogged."""
        clogged = list(self.clogged_until)
        self.cut_since.clear()
        self.clogged_until.clear()
        return clogged


def directions(one: str, other: str, *, both: bool) -> list[Ends]:
    """From one to the other, and back if both."""
    return [(one, other), (other, one)] if both else [(one, other)]


def across(groups: Iterable[Iterable[str]], *, both: bool) -> list[Ends]:
    """Every direction between members of different groups; not both: only from each group to those after it."""
    sides = [list(group) for group in groups]
    pairs = permutations(sides, 2) if both else ((a, b) for n, a in enumerate(sides) for b in sides[n + 1 :])
    return [ends for a, b in pairs for ends in product(a, b)]


FOREVER = math.inf
"""Until `heal`."""
