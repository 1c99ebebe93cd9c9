"""What callers say of generators reaches the run that it is meant for, whenever it comes."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from lattica.actors.producing import Producing
from lattica.actors.streams import to_wire
from lattica.codec import messages as m

CALLER, SEQ = 3, 7
FIRST, MORE = b"t" * 8 + bytes(8), b"t" * 8 + (9 << 16).to_bytes(8, "big")


@pytest.fixture
def worker() -> Any:
    """A worker in which call SEQ of CALLER waits."""
    runtime = SimpleNamespace(lock=contextlib.nullcontext())
    callers = {CALLER: object()}
    return SimpleNamespace(runtime=runtime, callers=callers, is_to_come=lambda *key: key == (CALLER, SEQ))


def call() -> m.Call:
    return m.Call(SEQ, FIRST, "make", b"", to_wire(1))


def test_what_is_said_of_a_run_before_it_begins_is_known_to_it(worker: Any) -> None:
    """A second life of an actor has the call, and before its event loop begins it the user takes what has come."""
    producing = Producing(worker)
    producing.told(CALLER, m.Taken(SEQ, 1, 0, [MORE], first=True))
    producing.told(CALLER, m.Taken(SEQ, 1, 1))
    producer = producing.begin(CALLER, call(), keeps=True).producer
    assert (producer.heard, producer.taken, producer.blocks) == (1, 1, [FIRST, MORE])
    producer.skip()
    assert producer.may_make, "the user has that one"


def test_one_that_nobody_wants_before_it_begins_stops_at_once(worker: Any) -> None:
    producing = Producing(worker)
    producing.told(CALLER, m.Taken(SEQ, 0, 0, over=True))
    assert producing.begin(CALLER, call(), keeps=True).producer.over


def test_what_is_said_of_one_that_has_ended_is_not_kept(worker: Any) -> None:
    producing = Producing(worker)
    run = producing.begin(CALLER, call(), keeps=True)
    producing.end(run)
    assert not producing.runs
    worker.is_to_come = lambda *_: False
    producing.told(CALLER, m.Taken(SEQ, 5, 5, over=True))
    assert not producing._early


def test_an_ended_run_is_kept_until_all_of_it_is_heard(worker: Any) -> None:
    producing = Producing(worker)
    run = producing.begin(CALLER, call(), keeps=True)
    run.producer.add(b"item", 4)
    producing.end(run)
    assert producing.runs
    producing.told(CALLER, m.Taken(SEQ, 1, 0))
    assert not producing.runs


def test_when_its_caller_is_gone_a_run_stops_and_what_was_said_early_is_forgotten(worker: Any) -> None:
    producing = Producing(worker)
    run = producing.begin(CALLER, call(), keeps=True)
    run.producer.add(b"item", 4)
    producing.told(CALLER, m.Taken(SEQ + 1, 2, 0, first=True))
    woken: list[bool] = []
    run.wake = lambda: woken.append(True)
    producing.caller_gone(CALLER)
    assert run.producer.over and woken and not producing._early
    del worker.callers[CALLER]
    assert producing.begin(CALLER, call(), keeps=True).producer.over, "it was queued when its caller went"
