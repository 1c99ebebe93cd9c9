"""Which call of an actor starts next while the arguments of some are still on their way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lattica.actors.lines import AHEAD_BYTES, Lines

ANN, BOB = 3, 4


@dataclass(frozen=True)
class Call:
    seq: int
    group: str = ""


@pytest.fixture
def lines() -> Lines[Call]:
    return Lines(2, {"io": 1})


def put(lines: Lines[Call], caller: int, seq: int, size: int = 0, group: str = "") -> None:
    """size: bytes of arguments that are not here."""
    lines.put(caller, Call(seq, group))
    if size:
        lines.wait_for_arguments(caller, Call(seq, group), size)


def started(lines: Lines[Call], group: str = "") -> list[tuple[int, int]]:
    found = []
    while entry := lines.next(lines.lines[group]):
        found.append((entry[0], entry[1].seq))
    lines.validate()
    return found


def asked(lines: Lines[Call]) -> list[tuple[int, int]]:
    found = [(caller, call.seq) for caller, call in lines.to_fetch()]
    lines.validate()
    return found


def test_a_call_without_its_arguments_holds_up_only_later_ones_of_its_caller_and_group(lines: Lines[Call]) -> None:
    """Ann's first call waits for a value that is lost; what makes it again calls the actor as Bob, and is let in."""
    put(lines, ANN, 1, 100)
    put(lines, ANN, 2)
    put(lines, BOB, 1)
    put(lines, ANN, 3, group="io")
    assert started(lines) == [(BOB, 1)] and started(lines, "io") == [(ANN, 3)]
    assert asked(lines) == [(ANN, 1)] and len(lines) == 2 and not lines.drained
    lines.finished(BOB, 1)
    lines.fetched(ANN, 1)
    assert started(lines) == [(ANN, 1), (ANN, 2)]


def test_arguments_that_come_early_wait_for_those_before_them(lines: Lines[Call]) -> None:
    put(lines, ANN, 1, 100)
    put(lines, ANN, 2, 100)
    assert asked(lines) == [(ANN, 1), (ANN, 2)] and asked(lines) == []
    lines.fetched(ANN, 2)
    assert started(lines) == []
    lines.fetched(ANN, 1)
    assert started(lines) == [(ANN, 1), (ANN, 2)]


def test_the_first_of_each_caller_is_fetched_and_more_within_a_bound(lines: Lines[Call]) -> None:
    large = AHEAD_BYTES - 1
    for caller in (ANN, BOB):
        put(lines, caller, 1, large)
        put(lines, caller, 2, large)
    assert asked(lines) == [(ANN, 1), (BOB, 1)]
    lines.fetched(ANN, 1)
    assert asked(lines) == [], "the first lies here and has not begun"
    assert started(lines) == [(ANN, 1)]
    assert asked(lines) == [(ANN, 2)]


def test_a_cancelled_call_holds_up_nobody(lines: Lines[Call]) -> None:
    put(lines, ANN, 1, AHEAD_BYTES)
    put(lines, ANN, 2)
    put(lines, ANN, 3, AHEAD_BYTES)
    assert asked(lines) == [(ANN, 1)]
    assert lines.cancel(ANN, 1) == Call(1)
    assert started(lines) == [(ANN, 2)] and asked(lines) == [(ANN, 3)]
    lines.fetched(ANN, 1)  # too late: nobody waits for that
    assert lines.cancel(ANN, 3) == Call(3) and lines.cancel(ANN, 3) is None


def test_who_is_gone_waits_for_nothing(lines: Lines[Call]) -> None:
    put(lines, ANN, 1)
    put(lines, ANN, 2, 100)
    put(lines, BOB, 1, 100)
    assert lines.drop(ANN) == [Call(1), Call(2)]
    assert asked(lines) == [(BOB, 1)] and len(lines) == 1
    lines.fetched(BOB, 1)
    assert started(lines) == [(BOB, 1)]


class AnyArguments(RuleBasedStateMachine):
    """A model beside it: a list of calls, and the set of those whose arguments are here."""

    @initialize(limit=st.integers(1, 3))
    def begin(self, limit: int) -> None:
        self.lines: Lines[Call] = Lines(limit, {"io": 1})
        self.limits = {"": limit, "io": 1}
        self.queue: list[tuple[int, Call]] = []
        self.here: set[tuple[int, int]] = set()
        self.asked: set[tuple[int, int]] = set()
        self.running: list[tuple[int, Call]] = []
        self.seq = 0

    @rule(caller=st.integers(1, 3), group=st.sampled_from(["", "io"]), size=st.sampled_from([0, 0, 1, AHEAD_BYTES]))
    def puts(self, caller: int, group: str, size: int) -> None:
        self.seq += 1
        put(self.lines, caller, self.seq, size, group)
        self.queue.append((caller, Call(self.seq, group)))
        if not size:
            self.here.add((caller, self.seq))

    @rule()
    def asks(self) -> None:
        for caller, call in self.lines.to_fetch():
            assert (caller, call.seq) not in self.asked | self.here
            self.asked.add((caller, call.seq))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def comes(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.asked)))
        self.asked.remove(key)
        self.here.add(key)
        self.lines.fetched(*key)

    def may_start(self, group: str) -> list[tuple[int, Call]]:
        blocked: set[int] = set()
        found = []
        for caller, call in self.queue:
            if call.group != group:
                continue
            if (caller, call.seq) not in self.here:
                blocked.add(caller)
            elif caller not in blocked:
                found.append((caller, call))
        return found

    @rule(group=st.sampled_from(["", "io"]))
    def starts(self, group: str) -> None:
        entry = self.lines.next(self.lines.lines[group])
        ready = self.may_start(group)
        if sum(call.group == group for _, call in self.running) >= self.limits[group] or not ready:
            assert entry is None
            return
        assert entry in ready
        assert not [call for caller, call in ready if caller == entry[0] and call.seq < entry[1].seq], "out of order"
        self.queue.remove(entry)
        self.running.append(entry)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        caller, call = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.lines.finished(caller, call.seq)

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def cancels(self, data: st.DataObject) -> None:
        caller, call = self.queue.pop(data.draw(st.integers(0, len(self.queue) - 1)))
        assert self.lines.cancel(caller, call.seq) == call
        self.asked.discard((caller, call.seq))

    @rule(caller=st.integers(1, 3))
    def goes(self, caller: int) -> None:
        mine = {call for who, call in self.queue if who == caller}
        assert set(self.lines.drop(caller)) == mine
        self.queue = [entry for entry in self.queue if entry[0] != caller]
        self.asked = {key for key in self.asked if key[0] != caller}

    @invariant()
    def it_is_as_the_model(self) -> None:
        if hasattr(self, "lines"):
            self.lines.validate()
            assert len(self.lines) == len(self.queue)

    def teardown(self) -> None:
        """When all arguments come, every call starts."""
        while hasattr(self, "lines") and not self.lines.drained:
            self.asks()
            for key in sorted(self.asked):
                self.lines.fetched(*key)
            self.here |= self.asked
            self.asked.clear()
            for group in self.limits:
                self.starts(group)
            for caller, call in self.running:
                self.lines.finished(caller, call.seq)
            self.running.clear()


AnyArguments.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_whatever_comes_when_calls_of_one_caller_keep_their_order_and_none_is_left: Any = AnyArguments.TestCase
