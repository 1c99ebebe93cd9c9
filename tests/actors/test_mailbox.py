"""An actor's queue: in order, no more at a time than allowed, nothing twice, nothing for those who are gone; and what
its callers and it say again when a connection between them was cut."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lattica.actors.mailbox import (
    ACKED_EACH,
    BREAKS_MAX,
    KEPT_BYTES_MAX,
    PAST_MAX,
    PAUSE_FIRST_S,
    PAUSE_LAST_S,
    STEADY_S,
    Mailbox,
    Past,
    Unanswered,
)
from tests.conftest import examples

ANN, BOB, BACK = 3, 4, 5


@dataclass(frozen=True)
class Call:
    seq: int
    acked: int = 0
    object: bytes = b""
    group: str = ""


@dataclass(frozen=True)
class Reply:
    seq: int
    size_bytes: int = 0


def size_of(reply: Reply) -> int:
    return reply.size_bytes


def started(mailbox: Mailbox[Call, Reply]) -> list[tuple[int, int]]:
    """Everything that may start now, started: (caller, number)."""
    found = []
    while entry := mailbox.next():
        found.append((entry[0], entry[1].seq))
    mailbox.validate()
    return found


@pytest.fixture
def mailbox() -> Mailbox[Call, Reply]:
    return Mailbox(1, size_of)


def test_calls_start_in_the_order_of_their_arrival(mailbox: Mailbox[Call, Reply]) -> None:
    for caller, seq in ((ANN, 1), (BOB, 1), (ANN, 2)):
        assert mailbox.arrived(caller, Call(seq))
    order = []
    while entry := mailbox.next():
        order.append((entry[0], entry[1].seq))
        mailbox.finished(*order[-1])
    assert order == [(ANN, 1), (BOB, 1), (ANN, 2)]


def test_groups_have_limits_of_their_own_and_do_not_wait_for_each_other() -> None:
    mailbox: Mailbox[Call, Reply] = Mailbox(1, size_of, {"io": 2})
    for seq, group in enumerate(("", "", "io", "io", "io"), start=1):
        mailbox.arrived(ANN, Call(seq, group=group))
    io = mailbox.lines["io"]
    assert started(mailbox) == [(ANN, 1)]
    assert [entry[1].seq for entry in (mailbox.next(io), mailbox.next(io)) if entry] == [3, 4]
    assert mailbox.next(io) is None and mailbox.line_of(ANN, 4) is io
    mailbox.finished(ANN, 4)
    assert mailbox.next() is None, "the end of a call of a group makes no room for one of none"
    assert mailbox.next(io) == (ANN, Call(5, group="io"))


def test_a_call_of_a_group_that_is_not_known_runs_with_those_of_none() -> None:
    mailbox: Mailbox[Call, Reply] = Mailbox(1, size_of, {"io": 2})
    mailbox.arrived(ANN, Call(1, group="compute"))
    assert started(mailbox) == [(ANN, 1)]


def test_no_more_calls_run_than_the_limit_allows_and_the_next_when_one_ends() -> None:
    mailbox: Mailbox[Call, Reply] = Mailbox(2, size_of)
    for seq in (1, 2, 3):
        mailbox.arrived(ANN, Call(seq))
    assert started(mailbox) == [(ANN, 1), (ANN, 2)]
    mailbox.finished(ANN, 2)
    assert started(mailbox) == [(ANN, 3)]
    assert len(mailbox) == 0 and not mailbox.drained


def test_a_call_that_arrives_twice_runs_once(mailbox: Mailbox[Call, Reply]) -> None:
    assert mailbox.arrived(ANN, Call(1)) and not mailbox.arrived(ANN, Call(1))
    assert started(mailbox) == [(ANN, 1)]
    assert not mailbox.arrived(ANN, Call(1)), "while it runs"
    mailbox.finished(ANN, 1)
    assert not mailbox.arrived(ANN, Call(1)), "after it has ended"
    assert mailbox.arrived(BOB, Call(1)), "each caller counts for itself"


def test_a_queued_call_can_be_taken_out_and_does_not_come_back(mailbox: Mailbox[Call, Reply]) -> None:
    mailbox.arrived(ANN, Call(1))
    mailbox.arrived(ANN, Call(2))
    assert mailbox.cancel(ANN, 2) == Call(2)
    assert mailbox.cancel(ANN, 2) is None and not mailbox.arrived(ANN, Call(2))
    assert started(mailbox) == [(ANN, 1)]


def test_a_call_that_runs_or_never_came_or_is_anothers_cannot_be_taken_out(mailbox: Mailbox[Call, Reply]) -> None:
    mailbox.arrived(ANN, Call(1))
    mailbox.arrived(ANN, Call(2))
    mailbox.next()
    assert mailbox.cancel(ANN, 1) is None and mailbox.cancel(ANN, 9) is None and mailbox.cancel(BOB, 2) is None
    assert len(mailbox) == 1


def test_the_calls_of_a_caller_that_ended_are_dropped_and_what_runs_runs_on(mailbox: Mailbox[Call, Reply]) -> None:
    for caller, seq in ((ANN, 1), (BOB, 1), (ANN, 2), (ANN, 3)):
        mailbox.arrived(caller, Call(seq))
    mailbox.next()
    assert mailbox.forget(ANN) == [Call(2), Call(3)]
    assert mailbox.running == {(ANN, 1)} and not mailbox.drained
    mailbox.finished(ANN, 1)
    assert started(mailbox) == [(BOB, 1)]


def test_forgetting_somebody_unknown_drops_nothing(mailbox: Mailbox[Call, Reply]) -> None:
    assert mailbox.forget(ANN) == []


def test_an_end_that_is_told_twice_frees_one_place(mailbox: Mailbox[Call, Reply]) -> None:
    for seq in (1, 2, 3):
        mailbox.arrived(ANN, Call(seq))
    mailbox.next()
    mailbox.finished(ANN, 1)
    mailbox.finished(ANN, 1)
    assert started(mailbox) == [(ANN, 2)]


def test_a_mailbox_without_work_is_drained(mailbox: Mailbox[Call, Reply]) -> None:
    assert mailbox.drained and mailbox.next() is None
    mailbox.arrived(ANN, Call(1))
    assert not mailbox.drained and "1 queued, 0 of 1 running" in repr(mailbox)


# -- said again


def answer(mailbox: Mailbox[Call, Reply], caller: int, seq: int, size_bytes: int = 0) -> list[Reply]:
    mailbox.finished(caller, seq)
    dropped = [reply for _, reply in mailbox.replied(caller, seq, Reply(seq, size_bytes))]
    mailbox.validate()
    return dropped


def test_a_reply_that_was_made_before_the_reconnect_is_said_again_and_one_that_is_owed_is_not() -> None:
    """Ann's calls 1 to 3 are sent. 1 is answered, 2 runs, 3 waits when her connection ends; she has heard nothing."""
    mailbox: Mailbox[Call, Reply] = Mailbox(1, size_of)
    for seq in (1, 2, 3):
        mailbox.arrived(ANN, Call(seq))
    mailbox.next()
    answer(mailbox, ANN, 1)
    mailbox.next()
    mailbox.reconnected(ANN)
    assert not any(mailbox.arrived(ANN, Call(seq)) for seq in (1, 2, 3))
    assert mailbox.repeat(ANN, 1) == (True, Reply(1))
    assert mailbox.repeat(ANN, 2) == mailbox.repeat(ANN, 3) == (False, None)
    answer(mailbox, ANN, 2)
    assert mailbox.repeat(ANN, 2) == (False, None), "it went over the new connection"
    assert mailbox.arrived(ANN, Call(4)) and started(mailbox) == [(ANN, 3)]


def test_a_call_of_who_was_believed_dead_and_is_back_as_another_is_known_by_its_result(
    mailbox: Mailbox[Call, Reply],
) -> None:
    """Ann's calls 1 to 3 are sent: 1 is answered, 2 runs, 3 waits when her machine is believed dead."""
    mailbox.far.add(ANN)
    for seq in (1, 2, 3):
        mailbox.arrived(ANN, Call(seq, object=b"%d" % seq))
    mailbox.next()
    answer(mailbox, ANN, 1)
    mailbox.next()
    mailbox.forget(ANN)
    again = [Call(seq, object=b"%d" % seq) for seq in (1, 2, 3)]
    assert [mailbox.came_back(BACK, call) for call in again] == [True, True, False]
    assert mailbox.past.again(b"1", BACK, 1) == (True, Reply(1))
    assert mailbox.past.again(b"2", BACK, 2) == (False, None)
    assert mailbox.arrived(BACK, again[2]), "it had not begun"
    mailbox.reconnected(BACK)
    assert not mailbox.came_back(BACK, again[1]) and not mailbox.arrived(BACK, again[1])
    assert mailbox.repeat(BACK, 2) == (False, None), "it runs still, for her"
    mailbox.finished(ANN, 2)
    assert mailbox.past.finished(ANN, 2, Reply(2)) == (BACK, 2)
    assert mailbox.past.again(b"2", BACK, 4) == (True, Reply(2))
    assert started(mailbox) == [(BACK, 3)]


def test_nothing_is_remembered_of_callers_of_this_machine_and_of_what_others_have_acknowledged(
    mailbox: Mailbox[Call, Reply],
) -> None:
    mailbox.far.add(BOB)
    for caller in (ANN, BOB):
        for seq in (1, 2):
            mailbox.arrived(caller, Call(seq, object=b"%d of %d" % (seq, caller)))
            mailbox.next()
            answer(mailbox, caller, seq)
        mailbox.arrived(caller, Call(3, acked=1))
        mailbox.forget(caller)
    assert list(mailbox.past.calls) == [b"2 of 4"]


def test_of_too_many_calls_of_those_who_are_gone_the_oldest_are_forgotten() -> None:
    past: Past[Reply] = Past(size_of)
    for number in range(PAST_MAX + 1):
        past.ended(b"%d" % number, None)
    assert len(past.calls) == PAST_MAX and b"0" not in past.calls
    for number in range(2):
        past.ended(b"large %d" % number, Reply(number, KEPT_BYTES_MAX - 1))
    assert list(past.calls) == [b"large 1"]


def test_what_is_acknowledged_is_not_kept(mailbox: Mailbox[Call, Reply]) -> None:
    for seq in (1, 2, 3):
        mailbox.arrived(ANN, Call(seq))
        mailbox.next()
        answer(mailbox, ANN, seq)
    mailbox.arrived(ANN, Call(4, acked=2))
    mailbox.reconnected(ANN)
    assert [mailbox.repeat(ANN, seq) for seq in (1, 2, 3)] == [(True, None), (True, None), (True, Reply(3))]


def test_replies_out_of_order_are_kept_until_each_is_acknowledged() -> None:
    mailbox: Mailbox[Call, Reply] = Mailbox(4, size_of)
    for seq in (1, 2, 3, 4):
        mailbox.arrived(ANN, Call(seq))
        mailbox.next()
    for seq in (1, 4, 2):
        answer(mailbox, ANN, seq)
    mailbox.arrived(ANN, Call(5, acked=2))
    mailbox.reconnected(ANN)
    assert mailbox.repeat(ANN, 4) == (True, Reply(4)) and mailbox.repeat(ANN, 3) == (False, None)


def test_of_too_many_replies_the_newest_are_kept_and_the_others_named(mailbox: Mailbox[Call, Reply]) -> None:
    half = KEPT_BYTES_MAX // 2
    dropped = []
    for seq in (1, 2, 3):
        mailbox.arrived(ANN, Call(seq))
        mailbox.next()
        dropped.append(answer(mailbox, ANN, seq, half))
    assert dropped == [[], [], [Reply(1, half)]]
    mailbox.reconnected(ANN)
    assert mailbox.repeat(ANN, 1) == (True, None) and mailbox.repeat(ANN, 2) == (True, Reply(2, half))


def test_a_single_reply_is_kept_whatever_its_size(mailbox: Mailbox[Call, Reply]) -> None:
    mailbox.arrived(ANN, Call(1))
    mailbox.next()
    assert not answer(mailbox, ANN, 1, 2 * KEPT_BYTES_MAX)
    mailbox.reconnected(ANN)
    assert mailbox.repeat(ANN, 1) == (True, Reply(1, 2 * KEPT_BYTES_MAX))


def test_nothing_is_kept_for_a_caller_that_ended(mailbox: Mailbox[Call, Reply]) -> None:
    mailbox.arrived(ANN, Call(1))
    mailbox.next()
    mailbox.forget(ANN)
    assert not answer(mailbox, ANN, 1)
    mailbox.reconnected(ANN)
    assert mailbox.arrived(ANN, Call(1)), "its number is unknown"


def test_an_acknowledgement_goes_as_far_as_every_earlier_reply_has_come() -> None:
    unanswered: Unanswered[str] = Unanswered()
    unanswered.calls.update({2: "", 5: "", 7: ""})
    for seq, acked in ((5, 1), (2, 6)):
        del unanswered.calls[seq]
        unanswered.heard(2 * ACKED_EACH)
        unanswered.validate()
        assert unanswered.acked == acked


def test_a_call_whose_reply_could_not_be_read_is_owed_at_its_place() -> None:
    unanswered: Unanswered[str] = Unanswered()
    unanswered.calls.update({2: "a", 5: "b", 7: "c"})
    unanswered.put_back(5, unanswered.calls.pop(5))
    unanswered.validate()
    assert unanswered.take_all() == ["a", "b", "c"] and not unanswered.calls


def test_connections_that_break_in_a_row_are_asked_for_less_and_less_often_and_end_what_is_owed() -> None:
    unanswered: Unanswered[str] = Unanswered()
    pauses, now = [], 100.0
    for _ in range(BREAKS_MAX):
        unanswered.connected(now)
        pauses.append(unanswered.broke(now + 1))
    assert pauses[:3] == [PAUSE_FIRST_S, 2 * PAUSE_FIRST_S, 4 * PAUSE_FIRST_S] and not unanswered.hopeless
    assert unanswered.broke(now) <= PAUSE_LAST_S and unanswered.hopeless


@pytest.mark.parametrize("by", ["a reply", "time"])
def test_a_connection_that_was_good_for_something_begins_a_new_row(by: str) -> None:
    unanswered: Unanswered[str] = Unanswered()
    for _ in range(BREAKS_MAX + 1):
        unanswered.connected(0.0)
        unanswered.broke(0.0)
    if by == "a reply":
        unanswered.heard(1)
    assert unanswered.broke(0.0 if by == "a reply" else STEADY_S) == PAUSE_FIRST_S and not unanswered.hopeless


class CutConnections(RuleBasedStateMachine):
    """A caller and an actor with two pipes between them. A cut swallows whatever is in the pipes; over the next
    connection the caller sends again what it has no reply to. In the end every call has run once, in order."""

    @initialize(
        limit=st.integers(1, 3), size_bytes=st.sampled_from([0, KEPT_BYTES_MAX // 3]), each=st.sampled_from([1, 99])
    )
    def begin(self, limit: int, size_bytes: int, each: int) -> None:
        self.each = each  # replies that one counts for: many, so that acknowledgements are looked up often
        self.mailbox: Mailbox[Call, Reply] = Mailbox(limit, size_of)
        self.unanswered: Unanswered[Call] = Unanswered()
        self.size_bytes = size_bytes
        self.calls: deque[Call] = deque()
        self.replies: deque[tuple[int, bool]] = deque()  # (number, whether it is there)
        self.seq = 0
        self.ran: list[int] = []
        self.heard: dict[int, bool] = {}

    @rule(skip=st.integers(1, 3))
    def call(self, skip: int) -> None:
        self.seq += skip  # the numbers are the process's: others' calls lie between
        call = Call(self.seq, self.unanswered.acked if self.unanswered.calls else self.seq - 1)
        self.unanswered.calls[self.seq] = call
        self.calls.append(call)

    @rule()
    def arrives(self) -> None:
        if not self.calls:
            return
        call = self.calls.popleft()
        if not self.mailbox.arrived(ANN, call):
            answered, reply = self.mailbox.repeat(ANN, call.seq)
            if answered:
                self.replies.append((call.seq, reply is not None))

    @rule()
    def starts(self) -> None:
        entry = self.mailbox.next()
        if entry is not None:
            self.ran.append(entry[1].seq)

    @precondition(lambda self: hasattr(self, "mailbox") and self.mailbox.running)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        _, seq = data.draw(st.sampled_from(sorted(self.mailbox.running)))
        self.mailbox.finished(ANN, seq)
        self.mailbox.replied(ANN, seq, Reply(seq, self.size_bytes))
        self.replies.append((seq, True))

    @rule()
    def hears(self) -> None:
        if not self.replies:
            return
        seq, there = self.replies.popleft()
        assert seq not in self.heard, "a reply comes twice"
        assert there or self.size_bytes, "a reply was dropped, and none was large"
        self.heard[seq] = there
        del self.unanswered.calls[seq]
        self.unanswered.heard(self.each)

    @rule(calls=st.integers(0, 8), replies=st.integers(0, 8))
    def cut(self, calls: int, replies: int) -> None:
        for _ in range(calls):  # what the actor still reads before it hears of the new connection
            self.arrives()
        for _ in range(replies):
            self.hears()
        self.mailbox.reconnected(ANN)
        self.calls, self.replies = deque(self.unanswered.calls.values()), deque()

    @invariant()
    def nothing_runs_twice_or_out_of_order(self) -> None:
        if hasattr(self, "mailbox"):
            self.mailbox.validate()
            self.unanswered.validate()
            assert self.ran == sorted(set(self.ran))

    def teardown(self) -> None:
        if not hasattr(self, "mailbox"):
            return
        sent = set(self.unanswered.calls) | self.heard.keys()
        while self.unanswered.calls:
            self.arrives()
            self.starts()
            for caller, seq in sorted(self.mailbox.running):
                self.mailbox.finished(caller, seq)
                self.mailbox.replied(caller, seq, Reply(seq, self.size_bytes))
                self.replies.append((seq, True))
            self.hears()
            self.nothing_runs_twice_or_out_of_order()
        assert set(self.ran) == sent == self.heard.keys(), "a call was lost"


CutConnections.TestCase.settings = examples(50, stateful_step_count=50)
test_whatever_is_cut_every_call_runs_once_in_order_and_is_answered_once = CutConnections.TestCase


GROUPS = ("", "io", "unheard of")


def of_some_group(seq: int) -> Call:
    return Call(seq, group=GROUPS[seq % 3])


class AnyCalls(RuleBasedStateMachine):
    """A model beside it: lists, searched from end to end."""

    @initialize(limit=st.integers(1, 4), of_io=st.integers(1, 2))
    def begin(self, limit: int, of_io: int) -> None:
        self.mailbox: Mailbox[Call, Reply] = Mailbox(limit, size_of, {"io": of_io})
        self.limits = {False: limit, True: of_io}
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
        assert self.mailbox.arrived(caller, of_some_group(seq)) is new
        if new:
            self.highest[caller] = seq
            self.queue.append((caller, seq))

    @rule(io=st.booleans())
    def next(self, io: bool) -> None:
        entry = self.mailbox.next(self.mailbox.lines["io"] if io else None)
        queue = [key for key in self.queue if (key[1] % 3 == 1) is io]
        if sum((seq % 3 == 1) is io for _, seq in self.running) < self.limits[io] and queue:
            self.queue.remove(queue[0])
            self.running.append(queue[0])
            assert entry is not None and (entry[0], entry[1].seq) == queue[0]
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
        assert (self.mailbox.cancel(caller, seq) == of_some_group(seq)) is queued
        if queued:
            self.queue.remove((caller, seq))

    @rule(caller=callers)
    def forget(self, caller: int) -> None:
        dropped = {of_some_group(seq) for who, seq in self.queue if who == caller}
        assert set(self.mailbox.forget(caller)) == dropped
        self.queue = deque(entry for entry in self.queue if entry[0] != caller)
        self.gone.add(caller)

    @invariant()
    def it_is_as_the_model(self) -> None:
        if hasattr(self, "mailbox"):
            self.mailbox.validate()
            assert len(self.mailbox) == len(self.queue) and self.mailbox.running == set(self.running)
            assert self.mailbox.drained == (not self.queue and not self.running)


AnyCalls.TestCase.settings = examples(30, stateful_step_count=40)
test_any_calls_run_once_in_order_and_within_the_limit = AnyCalls.TestCase
