"""Waits that are often short, and are spent looking instead of sleeping.

A node that waits for an answer sleeps, and so does the core below it: waking both takes 15-50 us, and what runs then
finds its code in no cache. In a call to an actor on the next machine that happens six times, and looking in the four
that are nodes' saves a third of the call. So a node that was answered within SHORT_S again and again looks for the next
answer for SPIN_S, turn after turn of its event loop: all else is served as ever, and whoever wants the core gets it.

A wait that was longer after all is paid for by SPIN_PENALTY short ones before the next one is spent like this, and by
BUSY_PENALTY if somebody else had the core meanwhile: whoever slept is let in before others, whoever looked is not. So
nothing is looked for where answers come from far away, or now and then, or many are under way. `local.reactor` does the
same in processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic

from lattica.node.loop import Loop

SPIN_S = 500e-6
"""Twice what an answer takes from one node to another on one machine, when both look for what comes."""
SHORT_S = 1e-3
"""A wait slept through counts as short up to here: more than the same answer takes when everybody sleeps (300-700 us).
Less, and a machine that once missed would never look again."""
SPIN_PENALTY, BUSY_PENALTY = 8, 128
NEVER = -(1 << 60)


class Attention:
    """One wait at a time, for what answers the last message in one direction."""

    __slots__ = ("_alone", "_clock", "_credit", "_looking", "_loop", "_rest", "_since")

    def __init__(
        self,
        loop: Loop,
        *,
        spins: bool,
        clock: Callable[[], float] = monotonic,
        rest: Callable[[], object] = os.sched_yield,
    ) -> None:
        """spins: there is a core for it. clock: exact, which the loop's is not. rest: let others have the core."""
        self._loop, self._clock, self._rest = loop, clock, rest
        self._credit = -SPIN_PENALTY if spins else NEVER
        self._since = 0.0  # 0: nothing is expected
        self._alone = self._looking = False

    def __repr__(self) -> str:
        return f"<Attention: {'looking' if self._looking else 'asleep'}, credit {self._credit}>"

    def expect(self) -> None:
        """Something was sent that is answered, as a rule."""
        self._alone = not self._since  # else the last one is not: many are under way, and nobody waits for this one
        self._since = self._clock()
        if self._alone and self._credit >= 0 and not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)

    def came(self) -> None:
        """Something came from there."""
        since, self._since = self._since, 0.0
        if since and self._credit < 0 and self._clock() - since < SHORT_S:
            self._credit += 1

    def _look(self) -> None:
        now = self._clock()
        if self._since and self._alone and now - self._since <= SPIN_S:
            self._rest()
            if self._clock() - now <= SPIN_S:
                self._loop.call_soon(self._look)
                return
            self._since, self._credit = 0.0, -BUSY_PENALTY
        elif self._since and self._alone:
            self._since, self._credit = 0.0, -SPIN_PENALTY
        self._looking = False
