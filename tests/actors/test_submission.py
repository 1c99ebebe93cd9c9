"""Which task goes to which worker: short stories of one scheduling class, and any story at all under `validate`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lattica.actors.submission import (
    DEPTH_MAX,
    ESTIMATES_MAX,
    LEASE_IDLE_S,
    NEAR_PATIENCE_S,
    NEAR_REQUESTS,
    QUICK_S,
    REQUESTS_MAX,
    STALL_S,
    Lease,
    Moves,
    Submission,
)
from tests.conftest import examples

QUICK_US = 20
LONG_US = 1_000_000


@dataclass(eq=False)
class Job:
    """A task, as far as the core looks at it."""

    function: bytes = b"f"
    seq: int = 0
    lease: Lease | None = None
    slow: bool = False

    def __repr__(self) -> str:
        return f"<{self.function.decode()} {self.seq}>"


class Story:
    """A submission, its clock, and leases by number."""

    def __init__(self, near_to: Submission | None = None) -> None:
        self.core = Submission(count(1).__next__, near_to)
        self.now = 100.0
        self._leases = count(1)

    def submit(self, function: bytes = b"f", times: int = 1) -> list[Job]:
        jobs = [Job(function) for _ in range(times)]
        for job in jobs:
            self.core.submit(job, self.now)
        return jobs

    def moves(self) -> Moves:
        moves = self.core.moves(self.now)
        self.core.validate()
        return moves

    def grant(self) -> Lease:
        return self.core.granted(next(self._leases), None, self.now)

    def reply(self, job: Job, micros: int = QUICK_US) -> None:
        assert job.lease is not None
        assert self.core.replied(job.lease, job.seq, micros, self.now) is job

    def lease_after(self, function: bytes, micros: int) -> Lease:
        """A lease on which the function has just run once, so long."""
        (job,) = self.submit(function)
        self.moves()
        lease = self.grant()
        self.moves()
        self.reply(job, micros)
        self.moves()
        return lease


@pytest.fixture
def story() -> Story:
    return Story()


# -- leases are asked for and given back


def test_the_first_task_asks_for_a_lease_and_goes_out_when_it_comes(story: Story) -> None:
    (job,) = story.submit()
    moves = story.moves()
    assert (moves.requests, moves.push) == (1, [])
    lease = story.grant()
    assert story.moves().push == [(lease, job)]


def test_a_task_for_an_idle_lease_goes_out_at_once(story: Story) -> None:
    lease = story.lease_after(b"f", QUICK_US)
    job = Job()
    assert story.core.submit(job, story.now) is lease
    assert story.moves().requests == 0


def test_wishes_are_bounded_however_many_tasks_wait(story: Story) -> None:
    story.submit(times=10_000)
    assert story.moves().requests == REQUESTS_MAX
    assert story.moves().requests == 0


def test_wishes_are_taken_back_when_nothing_waits_any_more(story: Story) -> None:
    jobs = story.submit(times=3)
    assert story.moves().requests == 3
    for job in jobs:
        assert story.core.withdraw(job)
    assert story.moves().cancels == 3


def test_an_idle_lease_is_kept_for_the_next_task_and_then_returned(story: Story) -> None:
    lease = story.lease_after(b"f", QUICK_US)
    assert story.core.next_deadline() == pytest.approx(story.now + LEASE_IDLE_S)
    story.now += 0.9 * LEASE_IDLE_S
    assert story.moves().returns == []
    story.now += 0.2 * LEASE_IDLE_S
    assert story.moves().returns == [lease]
    assert story.core.next_deadline() is None and not story.core.leases


def test_a_lease_that_comes_too_late_is_returned_like_any_idle_one(story: Story) -> None:
    (job,) = story.submit()
    story.moves()
    story.core.withdraw(job)
    lease = story.grant()
    story.now += 2 * LEASE_IDLE_S
    assert story.moves().returns == [lease]


def test_when_no_lease_can_ever_come_every_waiting_task_hears_it(story: Story) -> None:
    jobs = story.submit(times=3)
    story.moves()
    assert story.core.denied() == jobs
    assert story.moves().cancels == 2


# -- how much goes to one worker


def test_a_function_whose_run_time_is_unknown_gets_one_lease_per_task(story: Story) -> None:
    jobs = story.submit(times=4)
    assert story.moves().requests == 4
    lease = story.grant()
    assert story.moves().push == [(lease, jobs[0])]


def test_quick_tasks_queue_in_one_worker_up_to_ten_milliseconds_of_work(story: Story) -> None:
    lease = story.lease_after(b"f", 100)
    story.submit(times=500)
    assert len(lease.inflight) == 2 + 100


def test_a_queue_is_bounded_for_functions_that_take_no_time_at_all(story: Story) -> None:
    lease = story.lease_after(b"f", 0)
    story.submit(times=2 * DEPTH_MAX)
    assert len(lease.inflight) == DEPTH_MAX


def test_at_most_one_task_waits_behind_a_slow_one(story: Story) -> None:
    lease = story.lease_after(b"f", LONG_US)
    story.submit(times=5)
    assert len(lease.inflight) == 2 and len(story.core.pending) == 3


def test_at_most_one_quick_task_waits_behind_a_function_nobody_knows(story: Story) -> None:
    lease = story.lease_after(b"quick", QUICK_US)
    (unknown,) = story.submit(b"unknown")
    assert unknown.lease is lease
    story.submit(b"quick", times=5)
    assert len(lease.inflight) == 2 and len(story.core.pending) == 4


def test_the_least_filled_lease_takes_the_next_task(story: Story) -> None:
    jobs = story.submit(times=2)
    story.moves()
    leases = [story.grant(), story.grant()]
    story.moves()
    for job in jobs:
        story.reply(job)
    story.submit(times=20)
    assert [len(lease.inflight) for lease in leases] == [10, 10]


def test_tasks_keep_their_order_when_some_must_wait(story: Story) -> None:
    jobs = story.submit(times=3)
    story.moves()
    for job in jobs:
        story.grant()
        assert [each for _, each in story.moves().push] == [job]


def test_run_times_of_the_newest_functions_are_remembered_however_many_there_were(story: Story) -> None:
    lease = story.lease_after(b"f", LONG_US)
    for number in range(ESTIMATES_MAX + 5):
        (job,) = story.submit(b"%d" % number)
        story.reply(job)
    assert len(story.core._estimates) <= ESTIMATES_MAX
    story.submit(b"%d" % (ESTIMATES_MAX + 4), times=20)
    assert len(lease.inflight) == 20


# -- a quick queue that turns out to be slow


def test_a_stalled_queue_asks_for_leases_and_moves_to_the_one_that_comes(story: Story) -> None:
    """Four calls of a function that was quick a thousand times; the first one sleeps now."""
    lease = story.lease_after(b"f", QUICK_US)
    running, *others = story.submit(times=4)
    assert story.moves().requests == 0  # 80 us of work is not worth a trip
    assert story.core.next_deadline() == pytest.approx(story.now + STALL_S)
    story.now += 1.1 * STALL_S
    assert story.moves().requests == 3
    free = story.grant()
    assert story.moves().reclaim == [lease]
    assert story.moves().reclaim == [], "asked once"
    story.core.returned(lease, [job.seq for job in others], False, story.now)
    assert story.moves().push[0] == (free, others[0])
    assert next(iter(lease.inflight.values())) is running


def test_a_long_task_with_an_empty_queue_never_stalls(story: Story) -> None:
    story.lease_after(b"f", QUICK_US)
    story.submit()
    assert story.core.next_deadline() is None
    story.now += 10
    moves = story.moves()
    assert (moves.requests, moves.reclaim, moves.returns) == (0, [], [])


def test_replies_keep_a_deep_queue_from_stalling(story: Story) -> None:
    story.lease_after(b"f", 900)
    jobs = story.submit(times=5)
    for job in jobs[:4]:
        story.now += 0.9 * STALL_S
        assert story.moves().reclaim == []
        story.reply(job, 900)


def test_two_slow_tasks_ask_for_a_second_lease_at_once(story: Story) -> None:
    """The second waits behind the first, as the one task that may, and must not wait there while CPUs are free."""
    lease = story.lease_after(b"f", LONG_US)
    first, second = story.submit(times=2)
    assert story.core.crowded(lease)
    assert story.moves().requests == 1
    story.grant()
    assert story.moves().reclaim == [lease], "before any stall: it is known to be slow"
    story.core.returned(lease, [second.seq], False, story.now)
    assert [job for _, job in story.moves().push] == [second]
    assert first.lease is lease and second.lease is not lease


def test_a_quick_task_behind_one_that_nobody_knows_moves_to_the_next_lease(story: Story) -> None:
    """`train.remote()` for the first time, then `get(quick.remote())`: it must not last as long as the training."""
    lease = story.lease_after(b"quick", QUICK_US)
    story.submit(b"train")
    (quick,) = story.submit(b"quick")
    assert quick.lease is lease and story.core.crowded(lease)
    assert story.moves().requests == 1
    story.grant()
    assert story.moves().reclaim == [lease]


def test_a_lone_task_crowds_nobody(story: Story) -> None:
    lease = story.lease_after(b"f", LONG_US)
    story.submit()
    assert not story.core.crowded(lease)


def test_a_queue_of_quick_tasks_is_no_crowd(story: Story) -> None:
    lease = story.lease_after(b"f", QUICK_US)
    story.submit(times=100)
    assert not story.core.crowded(lease)


def test_an_empty_answer_to_a_reclaim_is_no_answer_for_ever(story: Story) -> None:
    lease = story.lease_after(b"f", QUICK_US)
    jobs = story.submit(times=3)
    story.now += 1.1 * STALL_S
    story.moves()
    story.grant()
    assert story.moves().reclaim == [lease]
    story.core.returned(lease, [], False, story.now)  # the first had ended and the others with it, nearly
    story.now += 1.1 * STALL_S
    assert story.moves().reclaim == [lease]
    assert all(job.lease is lease for job in jobs)


# -- a worker that waits for others


def test_a_blocked_worker_gets_nothing_until_it_has_replied(story: Story) -> None:
    """A task gets a sibling submitted after it; there is one CPU. The worker sends the sibling back as it blocks."""
    lease = story.lease_after(b"f", QUICK_US)
    waits, sibling = story.submit(times=2)
    assert sibling.lease is lease
    story.core.returned(lease, [sibling.seq], True, story.now)
    moves = story.moves()
    assert moves.requests == 1 and moves.push == []
    other = story.grant()
    assert story.moves().push == [(other, sibling)]
    story.reply(sibling)
    story.reply(waits)
    story.submit(times=20)
    assert [len(each.inflight) for each in (lease, other)] == [10, 10], "it is like any other again"


def test_a_worker_that_takes_no_more_goes_back_at_once(story: Story) -> None:
    """It has run a function as often as `max_calls` allows."""
    lease = story.lease_after(b"f", QUICK_US)
    story.core.returned(lease, [], blocked=True, now=story.now)
    story.submit()
    moves = story.moves()
    assert moves.returns == [lease] and not moves.push and moves.requests == 1


def test_what_a_blocked_worker_sends_back_does_not_end_a_reclaim_under_way(story: Story) -> None:
    lease = story.lease_after(b"f", QUICK_US)
    _, two, three = story.submit(times=3)
    story.now += 1.1 * STALL_S
    story.moves()
    story.grant()
    assert story.moves().reclaim == [lease]
    story.core.returned(lease, [three.seq], True, story.now)
    assert lease.reclaiming
    story.core.returned(lease, [two.seq], False, story.now)
    assert not lease.reclaiming


# -- others want workers


def test_the_lease_held_longest_yields_when_others_wait(story: Story) -> None:
    story.submit(b"slow", times=3)
    story.moves()
    leases = []
    for _ in range(3):
        story.now += 1
        leases.append(story.grant())
    story.moves()
    story.core.wanted(story.now)
    assert [lease.yielding for lease in leases] == [True, False, False]


def test_an_idle_lease_yields_before_busy_ones_and_goes_back_at_once(story: Story) -> None:
    busy = story.lease_after(b"slow", LONG_US)
    story.submit(b"slow", times=2)
    story.moves()
    idle = story.grant()
    assert idle.inflight == {}
    story.core.wanted(story.now)
    assert story.moves().returns == [idle] and not busy.yielding


def test_a_yielding_lease_gives_its_queue_back_and_goes_when_its_task_ends(story: Story) -> None:
    lease = story.lease_after(b"f", QUICK_US)
    running, *others = story.submit(times=3)
    story.core.wanted(story.now)
    moves = story.moves()
    assert moves.reclaim == [lease] and moves.returns == []
    story.core.returned(lease, [job.seq for job in others], False, story.now)
    moves = story.moves()
    assert moves.push == [] and moves.requests == 2, "it takes no more"
    story.reply(running)
    assert story.moves().returns == [lease]


def test_with_no_lease_to_spare_being_wanted_changes_nothing(story: Story) -> None:
    story.core.wanted(story.now)
    story.submit()
    assert story.moves().requests == 1


# -- deaths


def test_a_death_is_charged_to_the_started_task_alone_and_the_others_are_next(story: Story) -> None:
    lease = story.lease_after(b"f", QUICK_US)
    jobs = story.submit(times=4)
    later = Job(b"later")
    story.core.pending.append(later)
    charged, moved = story.core.lost(lease, jobs[0].seq)
    assert charged == jobs[:1] and moved == jobs[1:]
    assert list(story.core.pending) == [*jobs[1:], later]
    story.core.retry(charged[0])
    assert story.core.pending[0] is jobs[0]
    story.moves()


def test_a_death_before_the_first_task_began_charges_nobody(story: Story) -> None:
    lease = story.lease_after(b"f", QUICK_US)
    jobs = story.submit(times=2)
    assert story.core.lost(lease, 0) == ([], jobs)


def test_a_death_after_the_started_task_had_replied_charges_nobody(story: Story) -> None:
    lease = story.lease_after(b"f", QUICK_US)
    one, two = story.submit(times=2)
    story.reply(one)
    assert story.core.lost(lease, one.seq) == ([], [two])


def test_where_nobody_knows_what_had_begun_every_task_that_was_sent_is_charged(story: Story) -> None:
    lease = story.lease_after(b"f", QUICK_US)
    jobs = story.submit(times=3)
    assert story.core.lost(lease, 0, unknown=True) == (jobs, [])
    assert not story.core.pending and all(job.lease is None for job in jobs)


def test_a_reply_that_comes_twice_is_heard_once(story: Story) -> None:
    lease = story.lease_after(b"f", QUICK_US)
    (job,) = story.submit()
    seq = job.seq
    story.reply(job)
    assert story.core.replied(lease, seq, QUICK_US, story.now) is None


def test_a_task_that_moved_has_another_number(story: Story) -> None:
    lease = story.lease_after(b"f", QUICK_US)
    (job,) = story.submit()
    before = job.seq
    story.core.lost(lease, 0)
    story.moves()
    story.grant()
    story.moves()
    assert job.seq > before


def test_when_the_node_dies_every_task_is_given_up_once(story: Story) -> None:
    story.lease_after(b"f", LONG_US)
    jobs = story.submit(times=5)
    story.moves()
    assert sorted(map(id, story.core.drop_all())) == sorted(map(id, jobs))
    assert all(job.lease is None for job in jobs)
    assert story.moves().requests == 0 and story.core.next_deadline() is None


# -- withdrawing


def test_a_task_that_waits_can_be_withdrawn_and_one_that_was_sent_cannot(story: Story) -> None:
    story.lease_after(b"f", LONG_US)
    sent, waiting = story.submit(times=3)[1:]
    assert story.core.withdraw(waiting) and not story.core.withdraw(sent)
    assert not story.core.withdraw(waiting), "it is gone already"
    assert not story.core.withdraw(Job()), "it was never here"


# -- any story


class AnyStory(RuleBasedStateMachine):
    """Workers, a node and a user who do whatever the rules of the conversation allow, in any order and at any time.

    The shell asks `moves` after each event, as the real one does or earlier. Each job is checked to be in one place,
    to run in at most one worker at a time, to be charged only if it ran, and to end once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.story = Story()
        self.core = self.story.core
        self.jobs: list[Job] = []
        self.ended: set[Job] = set()
        self.workers: dict[int, list[Job]] = {}  # lease -> what the worker has; the first one runs
        self.reclaims: dict[int, int] = {}  # lease -> reclaims on their way to it
        self.asked = 0

    def pump(self) -> None:
        moves = self.story.moves()
        for lease, job in moves.push:
            self.push(lease, job)  # type: ignore[arg-type]
        for lease in moves.returns:
            assert not self.workers.pop(lease.id), f"{lease} goes back with tasks in it"
            self.reclaims.pop(lease.id, None)
        for lease in moves.reclaim:
            self.reclaims[lease.id] = self.reclaims.get(lease.id, 0) + 1
            assert self.reclaims[lease.id] == 1, "a second reclaim before the answer to the first"
        self.asked += moves.requests - moves.cancels
        assert 0 <= self.asked == self.core.requested <= REQUESTS_MAX

    def push(self, lease: Lease, job: Job) -> None:
        assert job not in self.ended, f"{job} is sent although it has ended"
        assert all(job not in queue for queue in self.workers.values()), f"two workers have {job}"
        self.workers[lease.id].append(job)

    def lease(self, data: st.DataObject, *, busy: bool = False) -> Lease:
        ids = [id for id, queue in self.workers.items() if queue or not busy]
        return self.core.leases[data.draw(st.sampled_from(ids))]

    @rule(function=st.sampled_from([b"a", b"b", b"c"]), times=st.integers(1, 30))
    def submit(self, function: bytes, times: int) -> None:
        for _ in range(times):
            job = Job(function)
            self.jobs.append(job)
            lease = self.core.submit(job, self.story.now)
            if lease is not None:
                self.push(lease, job)
        self.pump()

    @precondition(lambda self: self.asked)
    @rule()
    def granted(self) -> None:
        self.asked -= 1
        self.workers[self.story.grant().id] = []
        self.pump()

    @precondition(lambda self: any(self.workers.values()))
    @rule(data=st.data(), micros=st.sampled_from([0, 20, 900, 2_000, LONG_US]), many=st.integers(1, 20))
    def replied(self, data: st.DataObject, micros: int, many: int) -> None:
        lease = self.lease(data, busy=True)
        queue = self.workers[lease.id]
        for _ in range(min(many, len(queue))):
            job = queue.pop(0)
            assert self.core.replied(lease, job.seq, micros, self.story.now) is job
            assert job not in self.ended
            self.ended.add(job)
        self.pump()

    @precondition(lambda self: any(self.reclaims.values()))
    @rule(data=st.data(), kept=st.integers(1, 3))
    def gave_back_what_was_asked(self, data: st.DataObject, kept: int) -> None:
        lease_id = data.draw(st.sampled_from([id for id, count in self.reclaims.items() if count]))
        self.reclaims[lease_id] -= 1
        self.give_back(self.core.leases[lease_id], kept, blocked=False)

    @precondition(lambda self: any(self.workers.values()))
    @rule(data=st.data())
    def began_to_wait(self, data: st.DataObject) -> None:
        self.give_back(self.lease(data, busy=True), 1, blocked=True)

    def give_back(self, lease: Lease, kept: int, *, blocked: bool) -> None:
        queue = self.workers[lease.id]
        back, queue[kept:] = queue[kept:], []
        self.core.returned(lease, [job.seq for job in back], blocked, self.story.now)
        assert list(self.core.pending)[: len(back)] == back, "what comes back is next"
        self.pump()

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), began=st.booleans(), retry=st.booleans())
    def died(self, data: st.DataObject, began: bool, retry: bool) -> None:
        lease = self.lease(data)
        queue = self.workers.pop(lease.id)
        self.reclaims.pop(lease.id, None)
        started = queue[0] if queue and began else None
        charged, moved = self.core.lost(lease, started.seq if started else 0)
        assert charged == [job for job in queue if job is started]
        assert moved == [job for job in queue if job is not started]
        if started is not None and retry:
            self.core.retry(started)
        elif started is not None:
            self.ended.add(started)
        self.pump()

    @precondition(lambda self: any(self.jobs))
    @rule(data=st.data())
    def withdrawn(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        waits = job in self.core.pending
        assert self.core.withdraw(job) is waits
        if waits:
            self.ended.add(job)
        self.pump()

    @rule()
    def wanted(self) -> None:
        self.core.wanted(self.story.now)
        self.pump()

    @rule(seconds=st.sampled_from([0.0001, STALL_S, LEASE_IDLE_S, 3.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.story.now += seconds
        self.pump()

    @invariant()
    def every_job_is_in_one_place(self) -> None:
        sent = [job for queue in self.workers.values() for job in queue]
        places = [*sent, *self.core.pending, *self.ended]
        assert len(places) == len(self.jobs) == len(set(places)), "a job is lost, or in two places"
        for id, queue in self.workers.items():
            assert list(self.core.leases[id].inflight.values()) == queue

    @invariant()
    def who_waits_is_waited_for(self) -> None:
        if self.core.pending:
            assert self.asked or self.core.leases, "tasks wait, and nothing will come"
        for lease in self.core.leases.values():
            quick = (
                self.core._estimates.get(next((j.function for j in lease.inflight.values()), b""), QUICK_S) < QUICK_S
            )
            due = self.core.next_deadline()
            assert len(lease.inflight) < 2 or not quick or lease.slow or due is not None, "a stall would not be seen"

    def teardown(self) -> None:
        """Everybody does their part from now on: every job ends, and every lease goes back."""
        for _ in range(10 * len(self.jobs) + 100):
            if self.asked:
                self.granted()
            for id in list(self.workers):
                queue = self.workers.get(id)
                if queue:
                    self.core.replied(self.core.leases[id], queue[0].seq, QUICK_US, self.story.now)
                    self.ended.add(queue.pop(0))
                if self.reclaims.get(id):
                    self.reclaims[id] -= 1
                    self.give_back(self.core.leases[id], 1, blocked=False)
            self.story.now += 0.01
            self.pump()
            if len(self.ended) == len(self.jobs) and not self.core.leases and not self.asked:
                return
        raise AssertionError(f"{self.core!r} does not come to rest")


AnyStory.TestCase.settings = examples(40, stateful_step_count=40)
test_in_any_story_no_job_is_lost_or_run_by_two_at_once = AnyStory.TestCase


# -- near the arguments


def near() -> Story:
    return Story(Submission(count(1).__next__))


def test_of_a_function_that_nobody_knows_one_lease_at_its_arguments_is_asked_for_at_first() -> None:
    story = near()
    jobs = story.submit(times=10)
    assert story.moves().requests == 1
    story.grant()
    assert [job for _, job in story.moves().push] == jobs[:1]
    assert story.moves().requests == 0
    assert story.core.next_deadline() == story.now + NEAR_PATIENCE_S
    story.now += NEAR_PATIENCE_S
    assert story.moves().requests == NEAR_REQUESTS  # it is no short one
    assert story.core.next_deadline() is None


def test_leases_at_the_arguments_are_asked_for_as_many_as_there_are() -> None:
    story = near()
    story.core._estimates[b"f"] = 1.0
    story.submit(times=50)
    counts = []
    for _ in range(5):
        requests = story.moves().requests
        counts.append(requests)
        for _ in range(requests):
            story.grant()
    assert counts == [2, 2, 4, 8, 16]
    for lease in story.core.leases.values():
        lease.yielding = True  # all of them are elsewhere
    assert story.moves().requests == NEAR_REQUESTS


def test_what_runs_elsewhere_waits_for_its_input_and_says_nothing_of_the_function() -> None:
    base = Submission(count(1).__next__)
    story = Story(base)
    base._estimates[b"f"] = 0.01
    (job,) = story.submit()
    story.core.requested = 1
    lease = story.grant()
    story.moves()
    lease.yielding = True
    story.reply(job, LONG_US)
    assert base.expected_s(b"f") == pytest.approx(0.01)
    assert lease.ran == (0.0, 0.0)


def test_a_lease_says_how_long_its_last_long_task_took_and_what_was_expected() -> None:
    story = Story()
    lease = story.lease_after(b"f", LONG_US)
    assert lease.ran == (1.0, 0.0)
    (job,) = story.submit()
    story.reply(job, 3 * LONG_US)
    assert lease.ran == (3.0, 1.0)
    assert story.core.expected_s(b"f") == pytest.approx(1.5)
