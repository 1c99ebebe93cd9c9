"""The judges find what they are there to find, and are content with what is right."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lattica.testing import Agreement, Bounded, Calls, Streams, World, attach
from lattica.testing.checkers import (
    Answered,
    Asked,
    Checker,
    Ran,
    Read,
    ReadEnd,
    SessionBegan,
    SessionEnded,
    Wrote,
    WroteEnd,
)
from lattica.testing.world import Gone


def tell(checker: Checker, *story: tuple[str, object]) -> None:
    for who, event in story:
        checker.saw(who, event)


# -- calls


def test_calls_that_run_once_in_order_and_are_answered_once_are_right() -> None:
    calls = Calls()
    tell(calls, ("ann", Asked(1, "bob")), ("ann", Asked(2, "bob")), ("cid", Asked(3, "bob")))
    tell(calls, ("bob", Ran(3, "c")), ("bob", Ran(1, "a")), ("ann", Answered(1, "a")), ("bob", Ran(2, "b")))
    assert calls.unanswered() == [2, 3]
    tell(calls, ("cid", Answered(3, "c")), ("ann", Answered(2, failed="the way back was lost")))
    calls.finish()
    assert calls.outcomes() == {"answered": 2, "failed: the way back was lost": 1}


ASKED = [("ann", Asked(1, "bob")), ("ann", Asked(2, "bob"))]


@pytest.mark.parametrize(
    ("story", "complaint"),
    [
        ([*ASKED, ("ann", Asked(1, "bob"))], "ann asks call 1 again"),
        ([*ASKED, ("bob", Ran(3))], "bob runs call 3, which nobody asked"),
        ([*ASKED, ("cid", Ran(1))], "cid runs call 1, which was for bob"),
        ([*ASKED, ("bob", Ran(1)), ("bob", Ran(1))], "call 1 of ann ran 2 times"),
        ([*ASKED, ("bob", Ran(2)), ("bob", Ran(1))], "call 1 of ann runs after one that was asked later"),
        ([*ASKED, ("ann", Answered(3))], "ann has an answer to call 3, which nobody asked"),
        ([*ASKED, ("bob", Ran(1)), ("cid", Answered(1))], "cid has the answer to call 1 of ann"),
        ([*ASKED, ("ann", Answered(1))], "call 1 of ann is answered, and never ran"),
        ([*ASKED, ("bob", Ran(1, "a")), ("ann", Answered(1, "b"))], "call 1 of ann gets 'b', it ran with ['a']"),
        (
            [*ASKED, ("ann", Answered(1, failed="lost")), ("bob", Ran(1)), ("ann", Answered(1))],
            "call 1 of ann is answered, and was before: failed: lost",
        ),
    ],
)
def test_each_thing_that_may_not_happen_to_a_call_is_found(story: list[tuple[str, object]], complaint: str) -> None:
    calls = Calls()
    tell(calls, *story[:-1])
    with pytest.raises(AssertionError) as found:
        tell(calls, story[-1])
    assert str(found.value) == complaint


def test_calls_may_overtake_one_another_in_different_lanes_or_where_order_is_not_promised() -> None:
    tell(Calls(), ("ann", Asked(1, "bob", "slow")), ("ann", Asked(2, "bob", "fast")), ("bob", Ran(2)), ("bob", Ran(1)))
    tell(Calls(ordered=False), *ASKED, ("bob", Ran(2)), ("bob", Ran(1)))


def test_calls_may_run_again_where_that_is_promised_and_then_any_run_answers() -> None:
    calls = Calls(runs_max=None)
    tell(calls, *ASKED, ("bob", Ran(1, "a")), ("bob", Ran(2, "b")), ("bob", Ran(1, "c")), ("ann", Answered(1, "a")))
    with pytest.raises(AssertionError, match="ran 3 times"):
        tell(Calls(runs_max=2), *ASKED, *[("bob", Ran(1))] * 3)


def test_a_caller_that_is_gone_is_owed_nothing_and_gets_nothing() -> None:
    calls = Calls()
    tell(calls, *ASKED, ("cid", Asked(3, "bob")), ("ann", Gone()))
    assert calls.unanswered() == [3]
    tell(calls, ("bob", Ran(1)))  # it was asked, so it may still run
    with pytest.raises(AssertionError, match="was before: its caller is gone"):
        tell(calls, ("ann", Answered(1)))


def test_calls_that_nobody_answers_are_named_in_the_end() -> None:
    calls = Calls()
    tell(calls, *ASKED)
    with pytest.raises(AssertionError, match=r"2 calls were never answered: .*caller='ann', callee='bob'"):
        calls.finish()
    assert repr(calls) == "<Calls: 2 asked, 2 not answered>"


# -- streams


def test_a_stream_that_is_read_whole_or_to_its_error_is_right() -> None:
    streams = Streams()
    tell(streams, ("ann", Wrote("s", 1)), ("bob", Read("s", 1)), ("ann", Wrote("s", 2)), ("ann", WroteEnd("s")))
    assert streams.unfinished() == ["s"]
    tell(streams, ("bob", Read("s", 2)), ("bob", ReadEnd("s")))
    tell(streams, ("ann", Wrote("t", 1)), ("ann", Wrote("t", 2)), ("bob", Read("t", 1)), ("bob", ReadEnd("t", "lost")))
    streams.finish()
    assert repr(streams) == "<Streams: 2, 3 items read, 0 without an end>"


WROTE: list[tuple[str, object]] = [("ann", Wrote("s", n)) for n in (1, 2, 3)]
WHOLE: list[tuple[str, object]] = [*WROTE, ("ann", WroteEnd("s"))]


@pytest.mark.parametrize(
    ("story", "complaint"),
    [
        ([*WROTE, ("bob", Read("s", 2))], "bob reads 2 as item 0 of stream 's', where 1 was written"),
        ([*WROTE, ("bob", Read("s", 1)), ("bob", Read("s", 1))], "reads 1 as item 1 of stream 's', where 2 was"),
        ([*WROTE[:1], ("bob", Read("s", 1)), ("bob", Read("s", 2))], "of which all 1 items were read"),
        ([("bob", Read("s", 1))], "of which all 0 items were read"),
        ([*WHOLE, ("ann", Wrote("s", 4))], "ann writes to stream 's' after its end"),
        ([*WHOLE, ("ann", WroteEnd("s"))], "ann ends stream 's' twice"),
        ([*WROTE, ("bob", ReadEnd("s"))], "bob sees the end of stream 's', which goes on"),
        ([*WHOLE, ("bob", Read("s", 1)), ("bob", ReadEnd("s"))], "and 2 items never came"),
        ([*WROTE, ("bob", ReadEnd("s", "x")), ("bob", Read("s", 1))], "bob reads 1 from stream 's' after its end"),
        ([*WROTE, ("bob", ReadEnd("s", "x")), ("bob", ReadEnd("s", "x"))], "bob sees the end of stream 's' twice"),
    ],
)
def test_each_thing_that_may_not_happen_to_a_stream_is_found(story: list[tuple[str, object]], complaint: str) -> None:
    streams = Streams()
    tell(streams, *story[:-1])
    with pytest.raises(AssertionError) as found:
        tell(streams, story[-1])
    assert complaint in str(found.value)


def test_streams_without_an_end_are_named() -> None:
    streams = Streams()
    tell(streams, *WHOLE)
    with pytest.raises(AssertionError, match="1 streams never ended: \\['s'\\]"):
        streams.finish()


# -- sessions


def test_sessions_that_both_ends_have_are_right() -> None:
    agreement = Agreement()
    tell(agreement, ("ann", SessionBegan("bob", 1)))
    assert agreement.disagreements() == ["ann has session 1 with bob, who has None"]
    tell(agreement, ("bob", SessionBegan("ann", 1)))
    agreement.finish()
    tell(agreement, ("ann", SessionEnded("bob", 1)), ("ann", SessionBegan("bob", 2)))
    with pytest.raises(AssertionError, match="bob has session 1 with ann, who has 2; ann has session 2"):
        agreement.finish()
    tell(agreement, ("bob", Gone()), ("bob", SessionBegan("ann", 2)))
    agreement.finish()


@pytest.mark.parametrize(
    ("story", "complaint"),
    [
        (
            [("ann", SessionBegan("bob", 1)), ("ann", SessionBegan("bob", 2))],
            "begins session 2 with bob while it has 1",
        ),
        ([("ann", SessionEnded("bob", 1))], "ends session 1 with bob, and had None"),
        (
            [("ann", SessionBegan("bob", 1)), ("ann", SessionEnded("bob", 1)), ("ann", SessionBegan("bob", 1))],
            "ann takes up ended session 1 with bob",
        ),
        (
            [("ann", SessionBegan("bob", 1)), ("ann", Gone()), ("ann", SessionBegan("bob", 1))],
            "ann takes up ended session 1 with bob",
        ),
    ],
)
def test_each_thing_that_may_not_happen_to_a_session_is_found(story: list[tuple[str, object]], complaint: str) -> None:
    agreement = Agreement()
    tell(agreement, *story[:-1])
    with pytest.raises(AssertionError) as found:
        tell(agreement, story[-1])
    assert complaint in str(found.value)


# -- in a world


class Reporter:
    """Reports what it is told to."""

    def report(self, event: object, now: float) -> Sequence[object]:
        return [event]

    def tick(self, now: float) -> Sequence[object]:
        return []

    def next_deadline(self) -> float | None:
        return None

    def validate(self) -> None:
        pass


def test_checkers_hear_each_event_once_in_the_step_in_which_it_happens() -> None:
    world, calls, streams = World(7), Calls(), Streams()
    for name in ("ann", "bob"):
        world.add(name, Reporter)
    attach(world, calls, streams)
    world.tell("ann", "report", Asked(1, "bob"))
    world.tell("ann", "report", Wrote("s", 1))
    world.after(1, world.tell, "bob", "report", Ran(1))
    world.after(2, world.tell, "bob", "report", Ran(1))
    with pytest.raises(AssertionError, match="call 1 of ann ran 2 times") as found:
        world.run(until=10)
    assert world.now == 2 and "bob.report(Ran(call=1" in found.value.__notes__[0].splitlines()[-1]


def test_a_crash_tells_the_checkers_that_nobody_waits_any_more() -> None:
    world, calls = World(7), Calls()
    world.add("ann", Reporter)
    attach(world, calls)
    world.tell("ann", "report", Asked(1, "bob"))
    world.after(1, world.crash, "ann")
    world.run(until=2)
    calls.finish()


def test_a_bound_fails_in_the_step_that_passes_it_and_knows_its_peak() -> None:
    world = World(7)
    world.add("ann", Reporter)
    kept: list[int] = []
    bound = Bounded("what ann keeps", lambda: len(kept), 3)
    world.watch(bound)
    for n in range(5):
        world.after(n, kept.append, n)
    world.run(until=2)
    assert bound.peak == 3 and repr(bound) == "<Bounded: what ann keeps, at most 3 of 3>"
    with pytest.raises(AssertionError, match="what ann keeps: 4, and 3 is the limit"):
        world.run(until=10)
