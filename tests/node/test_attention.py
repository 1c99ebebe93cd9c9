"""Attention: which waits are spent looking, and which asleep."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from lattica.node.attention import BUSY_PENALTY, SHORT_S, SPIN_PENALTY, SPIN_S, Attention

TURN_S = 5e-6
QUICK_S, MIDDLE_S, LONG_S = SPIN_S / 2, (SPIN_S + SHORT_S) / 2, SHORT_S * 2


class Turns:
    """A loop whose turns take TURN_S while somebody looks, and a core that others may want."""

    def __init__(self) -> None:
        self.now = 100.0
        self.taken_s = 0.0  # by others, whenever it is left to them
        self.turns = 0
        self._soon: deque[Callable[[], object]] = deque()

    def call_soon(self, callback: Callable[[], object]) -> None:
        self._soon.append(callback)

    def rest(self) -> None:
        self.now += self.taken_s

    def run(self, for_s: float) -> None:
        """So long; asleep if nobody looks."""
        until = self.now + for_s
        while self._soon and self.now < until:
            self.now += TURN_S
            self.turns += 1
            self._soon.popleft()()
        self.now = max(self.now, until)

    @property
    def asleep(self) -> bool:
        return not self._soon


@pytest.fixture
def turns() -> Turns:
    return Turns()


@pytest.fixture
def attention(turns: Turns) -> Attention:
    return Attention(turns, spins=True, clock=lambda: turns.now, rest=turns.rest)  # type: ignore[arg-type]


def wait(turns: Turns, attention: Attention, answered_after_s: float) -> int:
    """How many turns were spent looking until the answer came."""
    before = turns.turns
    attention.expect()
    turns.run(answered_after_s)
    attention.came()
    turns.run(1.0)
    assert turns.asleep, "it goes on looking for what has come"
    return turns.turns - before


def earn(turns: Turns, attention: Attention, penalty: int) -> None:
    for _ in range(penalty):
        assert wait(turns, attention, QUICK_S) == 0


def test_after_some_short_waits_the_next_ones_are_spent_looking(turns: Turns, attention: Attention) -> None:
    earn(turns, attention, SPIN_PENALTY)
    for _ in range(100):
        assert wait(turns, attention, QUICK_S) == pytest.approx(QUICK_S / TURN_S, rel=0.1)


def test_a_wait_that_is_long_is_slept_through_after_a_moment_and_paid_for(turns: Turns, attention: Attention) -> None:
    earn(turns, attention, SPIN_PENALTY)
    assert wait(turns, attention, LONG_S) == pytest.approx(SPIN_S / TURN_S, rel=0.1)
    earn(turns, attention, SPIN_PENALTY)
    assert wait(turns, attention, QUICK_S) > 0


def test_waits_that_are_short_enough_asleep_are_looked_for_once_and_then_paid_for(
    turns: Turns, attention: Attention
) -> None:
    looked = [wait(turns, attention, MIDDLE_S) > 0 for _ in range(3 * (SPIN_PENALTY + 1))]
    assert looked == 3 * [*[False] * SPIN_PENALTY, True]


def test_answers_from_far_away_are_never_looked_for(turns: Turns, attention: Attention) -> None:
    for _ in range(100):
        assert wait(turns, attention, LONG_S) == 0


def test_what_comes_unasked_earns_nothing(turns: Turns, attention: Attention) -> None:
    for _ in range(100):
        attention.came()
    assert wait(turns, attention, QUICK_S) == 0


def test_a_core_that_somebody_else_wants_is_left_alone_for_long(turns: Turns, attention: Attention) -> None:
    earn(turns, attention, SPIN_PENALTY)
    turns.taken_s = LONG_S
    assert wait(turns, attention, QUICK_S) == 1
    turns.taken_s = 0.0
    earn(turns, attention, BUSY_PENALTY)
    assert wait(turns, attention, QUICK_S) > 0


def test_answers_to_many_messages_under_way_are_not_looked_for(turns: Turns, attention: Attention) -> None:
    earn(turns, attention, SPIN_PENALTY)
    attention.expect()
    attention.expect()
    turns.run(1.0)
    assert turns.asleep and turns.turns == 1
    attention.came()
    assert wait(turns, attention, QUICK_S) > 0


def test_where_no_core_is_to_spare_all_waits_are_slept_through(turns: Turns) -> None:
    attention = Attention(turns, spins=False, clock=lambda: turns.now, rest=turns.rest)  # type: ignore[arg-type]
    for _ in range(100):
        assert wait(turns, attention, QUICK_S) == 0
