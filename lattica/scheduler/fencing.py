"""Which life of an actor counts: receivers keep the latest that they have met and refuse earlier ones.

A life is one run of an actor's constructor. Its token travels with every call, publish and lease, both of the actor and
for it. A restart by the larger side has a higher epoch; one in a smaller side (`partition="available"`) keeps the epoch
and is `minority`: it comes after the original, for those whom the original cannot reach, and ends as soon as they hear
the original again.

Rules of this file. What is refused stays refused. An actor that is forgotten for want of room is met anew, so the table
tells the latest lives again (`met`). It cannot stop what a refused life does outside the mesh.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from lattica.ids import ActorId

ACTORS_MAX = 65_536
"""Whose lives are remembered, the latest used: 20 MB when full."""


class Life(msgspec.Struct, array_like=True, frozen=True, order=True):
    """Of an actor: lives compare by (epoch, incarnation). incarnation: unix milliseconds above 16 bits of the host, so
    no two hosts begin the same one."""

    epoch: int
    incarnation: int
    minority: bool = False

    def number(self) -> tuple[int, int]:
        """By which receivers order lives of one standing."""
        return self.epoch, self.incarnation

    def standing(self) -> tuple[int, bool, int]:
        """By which one of two lives ends when they meet: the greater one goes on. A minority life comes after the one
        whose epoch it has, and before all that this one had superseded."""
        return self.epoch, not self.minority, self.incarnation


@dataclass(slots=True)
class _Met:
    regular: Life | None = None
    minority: Life | None = None
    over: tuple[int, int] = (0, 0)  # minority lives up to this one have ended


class Fencing:
    """One receiver's memory."""

    def __init__(self, actors_max: int = ACTORS_MAX) -> None:
        self._actors_max = actors_max
        self._met: OrderedDict[ActorId, _Met] = OrderedDict()
        self._is_island = False

    def __repr__(self) -> str:
        return f"<Fencing: {len(self._met)} actors{', on an island' if self._is_island else ''}>"

    def island(self, is_island: bool) -> None:
        """Whether this peer is on a smaller side: elsewhere minority lives do not count beside an original."""
        self._is_island = is_island

    def met(self, actor: ActorId, life: Life) -> None:
        """The table says so: calls of earlier lives are refused from now on."""
        self.admit(actor, life)

    def admit(self, actor: ActorId, life: Life) -> Life | None:
        """None if it counts; else the life because of which it is refused."""
        met = self._met.get(actor)
        if met is None:
            met = self._met[actor] = _Met()
            if len(self._met) > self._actors_max:
                self._met.popitem(last=False)
        self._met.move_to_end(actor)
        return self._minority(met, life) if life.minority else self._regular(met, life)

    def latest(self, actor: ActorId) -> Life | None:
        """The life that counts, as far as is known here."""
        met = self._met.get(actor)
        if met is None:
            return None
        other = met.minority
        return other if other is not None and other.number() > met.over else met.regular

    def validate(self) -> None:
        """Assert what always holds."""
        assert len(self._met) <= self._actors_max, "more actors are remembered than may be"

    def _regular(self, met: _Met, life: Life) -> Life | None:
        other = met.minority
        if met.regular is not None and life < met.regular:
            return met.regular
        if other is not None and life.epoch < other.epoch:  # it went on from one that had superseded this
            return other
        met.regular = life
        if other is not None:  # whom we hear again is not cut off any more
            met.over = max(met.over, other.number())
        return None

    def _minority(self, met: _Met, life: Life) -> Life | None:
        regular, other = met.regular, met.minority
        if regular is not None:
            beside = life.epoch == regular.epoch and self._is_island
            if not (life.epoch > regular.epoch or beside) or life.number() <= max(regular.number(), met.over):
                return regular
        if other is not None and life.number() < other.number():
            return other
        met.minority = life
        return None
