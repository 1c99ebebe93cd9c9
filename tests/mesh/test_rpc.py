"""Calls, streams and credit of one session, without a network."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lattica.mesh import rpc
from lattica.mesh.messages import FAILURE_MAX_BYTES, INLINE_MAX_BYTES, Call, encode
from lattica.mesh.rpc import (
    BACKLOG_MAX_BYTES,
    CALLS_MAX,
    FROM_CALLEE,
    FROM_CALLER,
    STREAMS_IN,
    STREAMS_OUT,
    Conversation,
)
from lattica.mesh.wire import BULK, CONTROL, FRAME_MAX_BYTES
from tests.mesh.pairs import Pair, Small, body_of, finish, play
from tests.mesh.wire_examples import Always


def compressing() -> Conversation:
    return Small(Always(lambda: 0.0))


@given(st.integers(0, 1 << 32), st.booleans())
@example(0, True)
def test_whatever_comes_between_every_call_and_item_arrives_once_in_order_and_no_credit_leaks(
    seed: int, packs: bool
) -> None:
    """Two conversations joined by lossless queues, whose planes are delivered in any order and stall at any time."""
    pair = Pair(Random(seed), compressing if packs else Small)
    play(pair, 250)
    finish(pair)


def test_inline_calls_start_in_the_order_in_which_they_were_made() -> None:
    pair = Pair(Random(1))
    for size in (8, INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1, 8, 50):
        pair.call(0, size)
    pair.flush(0)
    pair.deliver(0, CONTROL)
    assert pair.sides[1].started == [1, 2, 4, 5], "a long argument delays nobody"
    pair.deliver(0, BULK)
    assert pair.sides[1].started == [1, 2, 4, 5, 3]


def test_chunks_may_overtake_what_announces_them() -> None:
    pair = Pair(Random(1))
    pair.call(0, 600_000)
    pair.flush(0)
    pair.deliver(0, BULK)
    assert pair.sides[1].started == []
    pair.deliver(0, CONTROL)
    assert pair.sides[1].started == [1]


def test_items_wait_for_the_call_whose_argument_is_still_on_its_way() -> None:
    """A stream begins with a long argument: its first items come by the quicker plane, and must not be lost."""
    pair = Pair(Random(1))
    id = pair.call(0, 100_000, STREAMS_IN)
    for _ in range(5):
        assert pair.item(0, id, FROM_CALLER, 20)
    pair.end(0, id, FROM_CALLER)
    pair.flush(0)
    pair.deliver(0, CONTROL)
    assert not pair.sides[1].got and not pair.sides[1].ended
    pair.deliver(0, BULK)
    assert len(pair.sides[1].got[id, FROM_CALLER]) == 5 and (id, FROM_CALLER) in pair.sides[1].ended


@pytest.mark.parametrize("size", [0, 40])
def test_an_answer_or_an_error_waits_for_the_items_before_it(size: int) -> None:
    pair = Pair(Random(1))
    id = pair.call(0, 8, STREAMS_OUT)
    pair.settle()
    pair.item(1, id, FROM_CALLEE, 50_000)
    pair.answer(1, id, size)
    pair.flush(1)
    pair.deliver(1, CONTROL)
    assert id not in pair.sides[0].answered
    pair.deliver(1, BULK)
    assert id in pair.sides[0].answered and (id, FROM_CALLEE) in pair.sides[0].ended
    finish(pair)


def test_long_bodies_take_turns() -> None:
    pair = Pair(Random(1), Conversation)
    pair.call(0, 4 << 20)
    pair.call(0, 300_000)
    pair.flush(0)
    pair.deliver(0, CONTROL)
    pair.deliver(0, BULK, 4)
    assert pair.sides[1].started == [2], "the short one did not wait for the long one"


def test_calls_wait_for_credit_and_answers_do_not_wait_for_calls() -> None:
    """One side's calls have used up their credit; its answers to the other side's calls go all the same."""
    pair = Pair(Random(1))
    theirs = pair.call(1, 8)
    pair.flush(1), pair.deliver(1, CONTROL)
    for _ in range(20):
        pair.call(0, 30_000)
    pair.answer(0, theirs, 20_000)
    pair.flush(0)
    pair.deliver(0, CONTROL), pair.deliver(0, BULK)
    assert theirs in pair.sides[1].answered and len(pair.sides[1].started) == 3, "64 KiB of credit, overdrawn by one"
    pair.settle()
    assert len(pair.sides[1].started) == 11, "arguments of running calls are held: 256 KiB, and the window"
    for id in list(pair.sides[1].running):
        pair.answer(1, id, 8)
        pair.settle()
    finish(pair)


def test_a_slow_reader_stops_its_writer_and_no_other() -> None:
    pair = Pair(Random(1))
    slow, quick = pair.call(0, 8, STREAMS_OUT), pair.call(0, 8, STREAMS_OUT)
    pair.settle()
    while pair.item(1, slow, FROM_CALLEE, 1000):
        pass
    held = sum(map(len, pair.sides[1].sent[slow, FROM_CALLEE]))
    assert 8 * 1000 <= held < 10_000
    pair.flush(1), pair.deliver(1, CONTROL)
    for _ in range(100):
        assert pair.item(1, quick, FROM_CALLEE, 1000)
        pair.flush(1), pair.deliver(1, CONTROL)
        assert pair.sides[0].untaken[-1][0] == quick
        pair.sides[0].conversation.consumed(*pair.sides[0].untaken.pop())
        pair.flush(0), pair.deliver(0, CONTROL)
    assert not pair.item(1, slow, FROM_CALLEE, 1000)
    pair.settle()
    assert pair.item(1, slow, FROM_CALLEE, 1000)
    pair.settle()
    pair.assert_streams_whole(slow, 0), pair.assert_streams_whole(quick, 0)
    finish(pair)


def test_a_stream_grows_while_its_reader_waits_for_its_writer_and_all_together_are_bounded() -> None:
    pair = Pair(Random(1))
    ids = [pair.call(0, 8, STREAMS_OUT) for _ in range(4)]
    pair.settle()
    for _ in range(40):
        for id in ids:
            while pair.item(1, id, FROM_CALLEE, 2000):
                pass
        pair.settle()
    theirs: Any = pair.sides[0].conversation
    windows = [theirs._mine[id].reading.flow.window for id in ids]
    assert windows == [32 << 10] * 4, "96 KiB more than at first, all together"
    for id in ids:
        pair.assert_streams_whole(id, 0)
    finish(pair)


def test_one_item_may_be_of_any_size_and_all_streams_share_that_overdraft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lattica.mesh.credit.OVERDRAFT_MAX_BYTES", 300_000)
    pair = Pair(Random(1))
    first, second = pair.call(0, 8, STREAMS_OUT), pair.call(0, 8, STREAMS_OUT)
    pair.settle()
    assert pair.item(1, first, FROM_CALLEE, 300_000) and not pair.item(1, second, FROM_CALLEE, 300_000)
    assert pair.item(1, second, FROM_CALLEE, 3000), "what it has credit for may go"
    pair.flush(1), pair.deliver(1, CONTROL), pair.deliver(1, BULK)
    pair.take(0, 9)
    pair.flush(0)
    events = pair.sides[1].conversation.receive(CONTROL, pair.queues[0, CONTROL].popleft(), 0.0)
    assert rpc.Writable(second) in events, "it is told that it may try again"
    assert pair.item(1, second, FROM_CALLEE, 250_000)
    finish(pair)


def test_an_overdraft_is_free_again_only_when_its_reader_has_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method gives a long item and returns, but its answer waits for credit: its caller still counts the item when
    another stream's long item comes, and would drop an honest peer."""
    monkeypatch.setattr("lattica.mesh.credit.OVERDRAFT_MAX_BYTES", 310_000)
    pair = Pair(Random(1))
    first, second, unary = pair.call(0, 8, STREAMS_OUT), pair.call(0, 8, STREAMS_OUT), pair.call(0, 8)
    pair.settle()
    pair.answer(1, unary, 70_000)
    assert pair.item(1, first, FROM_CALLEE, 300_000)
    pair.answer(1, first, 8)
    assert not pair.item(1, second, FROM_CALLEE, 300_000)
    pair.flush(1), pair.deliver(1, CONTROL), pair.deliver(1, BULK)
    pair.flush(0), pair.deliver(0, CONTROL)
    assert pair.item(1, second, FROM_CALLEE, 300_000), "the answer went when there was credit"
    pair.flush(1), pair.deliver(1, CONTROL)
    finish(pair)


def test_nothing_is_taken_from_a_writer_while_much_waits_to_be_sent() -> None:
    """A reader that gives credit and acknowledges nothing must not fill its writer's memory."""
    pair = Pair(Random(1), Conversation)
    ids = [pair.call(0, 8, STREAMS_OUT) for _ in range(300)]
    pair.settle()
    sent = 0
    for id in ids:
        while pair.item(1, id, FROM_CALLEE, 60_000):
            sent += 60_000
    assert BACKLOG_MAX_BYTES < sent < BACKLOG_MAX_BYTES + 100_000
    pair.flush(1)
    assert pair.sides[1].conversation.next_deadline() == 0.0, "to be asked at once"
    assert {event.id for event in pair.sides[1].conversation.tick(0.0)} > set(ids[150:])
    finish(pair)


def test_a_call_that_was_never_sent_is_not_sent_after_it_is_canceled() -> None:
    pair = Pair(Random(1))
    ids = [pair.call(0, size, STREAMS_IN) for size in (8, 20_000, 8)]
    pair.item(0, ids[1], FROM_CALLER, 20_000)
    for id in ids[:2]:
        pair.cancel(0, id)
    pair.settle()
    assert pair.sides[1].started == [3]
    finish(pair)


def test_calling_and_giving_up_without_an_acknowledgement_fills_no_memory() -> None:
    """The connection is gone for a minute, and a thousand calls a second time out meanwhile."""
    pair = Pair(Random(1), Conversation)
    mine: Any = pair.sides[0].conversation
    for _ in range(3000):
        pair.cancel(0, pair.call(0, 5000))
    assert mine._outbox.bytes < 300 * 6000
    assert len(mine._outbox.messages) < 300 and mine._calls_out.credit == mine.window_bytes
    finish(pair)


def test_a_caller_that_takes_no_answers_may_not_ask_forever() -> None:
    pair = Pair(Random(1), Conversation)
    for _ in range(CALLS_MAX):
        pair.call(0, 8)
    pair.flush(0), pair.deliver(0, CONTROL)
    for id in list(pair.sides[1].running):
        pair.answer(1, id, 0)  # and they are not flushed: there is no room
    pair.sides[0].conversation._mine.clear()  # it breaks the rules
    pair.call(0, 8)
    pair.flush(0)
    with pytest.raises(rpc.RemoteProtocolError, match="while 4096 are unanswered"):
        pair.deliver(0, CONTROL)


def test_canceled_calls_make_room_for_others_and_say_so() -> None:
    pair = Pair(Random(1))
    for _ in range(CALLS_MAX):
        pair.call(0, 8)
    mine = pair.sides[0].conversation
    assert mine.full
    pair.cancel(0, 17)
    assert mine.next_deadline() == 0.0 and mine.tick(0.0) == [rpc.Writable(0)] and not mine.full


def test_who_waits_to_write_is_told_when_the_call_is_over() -> None:
    """A method answers before its stream has ended: its caller waits for credit that will never come."""
    pair = Pair(Random(1))
    id = pair.call(0, 8, STREAMS_IN)
    while pair.item(0, id, FROM_CALLER, 1000):
        pass
    pair.flush(0), pair.deliver(0, CONTROL)
    pair.answer(1, id, 8)
    pair.flush(1)
    events = pair.sides[0].conversation.receive(CONTROL, pair.queues[1, CONTROL].popleft(), 0.0)
    assert rpc.Writable(id) in events
    assert pair.sides[0].conversation.may_send(id, FROM_CALLER, 10)
    assert not pair.sides[0].conversation.item(id, FROM_CALLER, [b"x"], 1)


def test_deadlines_pass_on_both_sides_and_the_caller_hears_of_it_once() -> None:
    pair = Pair(Random(1))
    pair.call(0, 8, 0, 2.0)
    pair.flush(0), pair.deliver(0, CONTROL)
    assert [side.conversation.next_deadline() for side in pair.sides] == [2.0, 2.0]
    pair.now = 2.0
    pair.tick(1)
    assert not pair.sides[1].running
    pair.tick(0)
    assert pair.sides[0].answered == {1: rpc.TIMED_OUT}
    pair.settle()
    assert [side.conversation.next_deadline() for side in pair.sides] == [None, None]


def test_a_caller_with_a_slower_clock_is_told_that_the_deadline_has_passed() -> None:
    pair = Pair(Random(1))
    pair.call(0, 8, 0, 2.0)
    pair.flush(0), pair.deliver(0, CONTROL)
    pair.hear(1, pair.sides[1].conversation.tick(9.0))
    pair.flush(1), pair.deliver(1, CONTROL)
    assert pair.sides[0].answered == {1: rpc.TIMED_OUT}


def test_deadlines_of_calls_that_are_over_take_no_memory() -> None:
    pair = Pair(Random(1))
    for _ in range(2000):
        id = pair.call(0, 8, 0, 3600.0)
        pair.flush(0), pair.deliver(0, CONTROL)
        pair.answer(1, id, 8)
        pair.flush(1), pair.deliver(1, CONTROL)
    for side in pair.sides:
        conversation: Any = side.conversation
        assert len(conversation._deadlines._heap) < 100


def test_many_long_errors_and_names_fit_into_frames() -> None:
    """4,096 methods raise at once, each with a traceback: together that is 30 times what a frame may have."""
    pair = Pair(Random(1), Conversation)
    for _ in range(CALLS_MAX):
        id = pair.sides[0].conversation.call("n" * 256, [b"12345678"], 8, None, 0, 0.0)
        pair.sides[0].open[id], pair.sides[0].flags[True, id] = 8, 0
    sizes = [size for _, _, size in pair.sides[0].conversation.flush(lambda plane: 1 << 40)]
    assert len(sizes) > 1 and max(sizes) < FRAME_MAX_BYTES
    other = Conversation()
    for id in range(1, CALLS_MAX + 1):
        other.receive(CONTROL, rpc_call(id), 0.0)
        other.fail(id, {"error": "CallFailedError", "remote_traceback": "line\n" * 1600})
    sizes = [size for _, _, size in other.flush(lambda plane: 1 << 40)]
    assert len(sizes) > 30 and max(sizes) < FRAME_MAX_BYTES


def rpc_call(id: int) -> bytes:
    return encode([Call(id, "m", 0, 0, b"12345678")])


@pytest.mark.parametrize(
    "error",
    [
        {"error": "ConfigError", "message": "x" * 10_000_000},
        {"error": "ConfigError", "message": "words", "n": 1 << 80},
        {"error": "ConfigError", "message": "words", "more": {"deep": object()}},
        {"error": "ConfigError", "message": "\ud800"},
        {"error": "ConfigError"} | {f"fact_{number}": "y" * 1000 for number in range(1000)},
    ],
    ids=["long", "number", "object", "surrogate", "many"],
)
def test_an_error_of_any_kind_is_cut_until_it_can_be_sent(error: dict[str, Any]) -> None:
    one, two = Conversation(), Conversation()
    id = one.call("m", [b"x"], 1, None, 0, 0.0)
    for _, frame, _ in one.flush(lambda plane: 1 << 40):
        two.receive(CONTROL, b"".join(frame), 0.0)
    two.fail(id, error)
    ((_, frame, size),) = two.flush(lambda plane: 1 << 40)
    assert size <= FAILURE_MAX_BYTES + 100
    (failed,) = one.receive(CONTROL, b"".join(frame), 0.0)
    assert isinstance(failed, rpc.Failed) and failed.error["error"] in ("ConfigError", "LatticaError")
    assert error["error"] != "ConfigError" or "x" not in str(error.get("message"))[:1] or "x" in failed.error["message"]


def test_a_conversation_says_how_much_is_going_on() -> None:
    pair = Pair(Random(1))
    pair.call(0, 50_000)
    assert repr(pair.sides[0].conversation) == "<Conversation: 1 calls out, 0 in, 1 bodies going>"
    assert not pair.sides[1].conversation.dirty and pair.sides[0].conversation.dirty
    assert body_of(3, 9) == b"\3" + bytes(7) + b"\3"
