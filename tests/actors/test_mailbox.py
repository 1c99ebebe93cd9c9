"""An actor's queue: in order, no more at a time than allowed, nothing twice, nothing for those who are gone."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lattica.actors.mailbox import Mailbox

ANN, BOB = 3, 4


@dataclass(frozen=True)
class Call:
    seq: int


def started(mailbox: Mailbox[Call]) -> list[tuple[int, int]]:
    """Everything that may start now, started: (caller, number)."""
    found = []
    while entry := mailbox.next():
        found.append((entry[0], entry[1].seq))
    mailbox.validate()
    return found


@pytest.fixture
def mailbox() -> Mailbox[Call]:
    return Mailbox(1)


def test_calls_start_in_the_order_of_their_arrival(mailbox: Mailbox[Call]) -> None:
    for caller, seq in ((ANN, 1), (BOB, 1), (ANN, 2)):
        assert mailbox.arrived(caller, Call(seq))
    order = []
    while entry := mailbox.next():
        order.append((entry[0], entry[1].seq))
        mailbox.finished(*order[-1])
    assert order == [(ANN, 1), (BOB, 1), (ANN, 2)]


def test_no_more_calls_run_than_the_limit_allows_and_the_next_when_one_ends() -> None:
    mailbox: Mailbox[Call] = Mailbox(2)
    for seq in (1, 2, 3):
        mailbox.arrived(ANN, Call(seq))
    assert started(mailbox) == [(ANN, 1), (ANN, 2)]
    mailbox.finished(ANN, 2)
    assert started(mailbox) == [(ANN, 3)]
    assert len(mailbox) == 0 and not mailbox.drained


def test_a_call_that_arrives_twice_runs_once(mailbox: Mailbox[Call]) -> None:
    assert mailbox.arrived(ANN, Call(1)) and not mailbox.arrived(ANN, Call(1))
    assert started(mailbox) == [(ANN, 1)]
    assert not mailbox.arrived(ANN, Call(1)), "while it runs"
    mailbox.finished(ANN, 1)
    assert not mailbox.arrived(ANN, Call(1)), "after it has ended"
    assert mailbox.arrived(BOB, Call(1)), "each caller counts for itself"


def test_a_queued_call_can_be_taken_out_and_does_not_come_back(mailbox: Mailbox[Call]) -> None:
    mailbox.arrived(ANN, Call(1))
    mailbox.arrived(ANN, Call(2))
    assert mailbox.cancel(ANN, 2) == Call(2)
    assert mailbox.cancel(ANN, 2) is None and not mailbox.arrived(ANN, Call(2))
    assert started(mailbox) == [(ANN, 1)]


def test_a_call_that_runs_or_never_came_or_is_anothers_cannot_be_taken_out(mailbox: Mailbox[Call]) -> None:
    mailbox.arrived(ANN, Call(1))
    mailbox.arrived(ANN, Call(2))
    mailbox.next()
    assert mailbox.cancel(ANN, 1) is None and mailbox.cancel(ANN, 9) is None and mailbox.cancel(BOB, 2) is None
    assert len(mailbox) == 1


def test_the_calls_of_a_caller_that_ended_are_dropped_and_what_runs_runs_on(mailbox: Mailbox[Call]) -> None:
    for caller, seq in ((ANN, 1), (BOB, 1), (ANN, 2), (ANN, 3)):
        mailbox.arrived(caller, Call(seq))
    mailbox.next()
    assert mailbox.forget(ANN) == [Call(2), Call(3)]
    assert mailbox.running == {(ANN, 1)} and not mailbox.drained
    mailbox.finished(ANN, 1)
    assert started(mailbox) == [(BOB, 1)]


def test_forgetting_somebody_unknown_drops_nothing(mailbox: Mailbox[Call]) -> None:
    assert mailbox.forget(ANN) == []


def test_an_end_that_is_told_twice_frees_one_place(mailbox: Mailbox[Call]) -> None:
    for seq in (1, 2, 3):
        mailbox.arrived(ANN, Call(seq))
    mailbox.next()
    mailbox.finished(ANN, 1)
    mailbox.finished(ANN, 1)
    assert started(mailbox) == [(ANN, 2)]


def test_a_mailbox_without_work_is_drained(mailbox: Mailbox[Call]) -> None:
    assert mailbox.drained and mailbox.next() is None
    mailbox.arrived(ANN, Call(1))
    assert not mailbox.drained and "1 queued, 0 of 1 running" in repr(mailbox)


class AnyCalls(RuleBasedStateMachine):
    """A model beside it: lists, searched from end to end."""

    @initialize(limit=st.integers(1, 4))
    def begin(self, limit: int) -> None:
        self.mailbox: Mailbox[Call] = Mailbox(limit)
        self.queue: deque[tuple[int, int]] = deque()
        self.running: list[tuple[int, int]] = []
        self.highest: dict[int, int] = {}
        self.gone: set[int] = set()  # a caller's number is never given out again

    callers = st.integers(1, 5)
    seqs = st.integers(1, 12)

    @rule(caller=callers, seq=seqs)
    def arrived(self, caller: int, seq: int) -> None:
        if caller in self.gone:
            return
        new = seq > self.highest.get(caller, 0)
        assert self.mailbox.arrived(caller, Call(seq)) is new
        if new:
            self.highest[caller] = seq
            self.queue.append((caller, seq))

    @rule()
    def next(self) -> None:
        entry = self.mailbox.next()
        if len(self.running) < self.mailbox.limit and self.queue:
            self.running.append(self.queue.popleft())
            assert entry is not None and (entry[0], entry[1].seq) == self.running[-1]
        else:
            assert entry is None

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finished(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.running))
        self.running.remove(key)
        self.mailbox.finished(*key)

    @rule(caller=callers, seq=seqs)
    def cancel(self, caller: int, seq: int) -> None:
        queued = (caller, seq) in self.queue
        assert (self.mailbox.cancel(caller, seq) == Call(seq)) is queued
        if queued:
            self.queue.remove((caller, seq))

    @rule(caller=callers)
    def forget(self, caller: int) -> None:
        dropped = [entry for entry in self.queue if entry[0] == caller]
        assert self.mailbox.forget(caller) == [Call(seq) for _, seq in dropped]
        self.queue = deque(entry for entry in self.queue if entry[0] != caller)
        self.gone.add(caller)

    @invariant()
    def it_is_as_the_model(self) -> None:
        if hasattr(self, "mailbox"):
            self.mailbox.validate()
            assert len(self.mailbox) == len(self.queue) and self.mailbox.running == set(self.running)
            assert self.mailbox.drained == (not self.queue and not self.running)


AnyCalls.TestCase.settings = settings(max_examples=50, stateful_step_count=40)
test_any_calls_run_once_in_order_and_within_the_limit = AnyCalls.TestCase
