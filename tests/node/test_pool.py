"""Which worker is handed out, and which are spare."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lattica.node.pool import IDLE_S, PRESTART_MAX, Use, WorkerPool

JOB, OTHER = 1, 2


def pool_of(free: int, keep: int = 2) -> WorkerPool:
    pool = WorkerPool(keep)
    for client in range(1, free + 1):
        pool.added(client, JOB, float(client), free=True)
    return pool


def test_the_most_recently_used_worker_is_taken_first() -> None:
    pool = pool_of(3)
    assert [pool.take(JOB, 9.0) for _ in range(4)] == [3, 2, 1, None]
    pool.idle(2, 10.0)
    assert pool.take(JOB, 11.0) == 2


def test_a_worker_serves_no_other_job_than_its_own() -> None:
    assert pool_of(1).take(OTHER, 0.0) is None


def test_workers_beyond_what_a_job_keeps_are_ended_after_their_rest_the_longest_unused_first() -> None:
    pool = pool_of(4, keep=2)
    assert pool.next_deadline() == 1.0 + IDLE_S
    assert pool.tick(1.0 + IDLE_S) == [1] and pool.tick(2.0 + IDLE_S) == [2]
    assert pool.next_deadline() is None and pool.tick(1e9) == []


def test_each_job_keeps_workers_of_its_own() -> None:
    pool = pool_of(2, keep=2)
    pool.added(7, OTHER, 0.0, free=True)
    assert pool.next_deadline() is None


def test_nothing_is_asked_of_a_worker_that_is_ending() -> None:
    pool = pool_of(1)
    pool.ending(1, 2.0)
    assert pool.take(JOB, 3.0) is None and pool.of_job(JOB) == [1]
    pool.idle(1, 4.0)
    assert pool.take(JOB, 5.0) is None
    pool.gone(1)
    assert not pool.workers


def test_an_actor_is_never_handed_out_again() -> None:
    pool = pool_of(1)
    pool.take(JOB, 1.0)
    pool.became_actor(1, 1.0)
    pool.idle(1, 2.0)
    assert pool.take(JOB, 3.0) is None and pool.workers[1].use is Use.ACTOR


def test_a_worker_whose_own_tasks_go_on_is_not_spare_and_becomes_no_actor() -> None:
    pool = pool_of(3, keep=1)
    pool.owes(1, True)
    pool.owes(3, True)
    assert pool.take(JOB, 4.0, for_actor=True) == 2 and pool.take(JOB, 4.0, for_actor=True) is None
    assert pool.next_deadline() is None and pool.tick(1e9) == []
    pool.owes(1, False)
    assert pool.tick(1.0 + IDLE_S) == [1]
    assert pool.take(JOB, 9.0) == 3, "it may run other tasks"


def test_a_worker_that_retires_is_handed_out_to_nobody_and_ends_when_it_is_free_and_owes_nothing() -> None:
    pool = pool_of(1)
    assert pool.take(JOB, 2.0) == 1
    pool.owes(1, True, retires=True)
    pool.idle(1, 3.0)
    assert pool.take(JOB, 3.0) is None and pool.next_deadline() is None
    pool.owes(1, False)
    assert pool.next_deadline() == 3.0 and pool.tick(3.0) == [1]
    assert pool.workers[1].use is Use.ENDING


def test_a_worker_that_retires_is_none_of_those_that_its_job_keeps() -> None:
    pool = pool_of(3, keep=2)
    pool.owes(3, False, retires=True)
    assert pool.tick(3.0) == [3] and pool.tick(99.0) == []


def test_a_job_begins_with_a_worker_per_cpu_but_few() -> None:
    assert WorkerPool(2).prestart() == 2 and WorkerPool(64).prestart() == PRESTART_MAX


class PoolOfWorkers(RuleBasedStateMachine):
    """Any order of events keeps the lists."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = WorkerPool(keep=1)
        self.now, self.clients = 0.0, 0

    @rule(job=st.sampled_from([JOB, OTHER]), free=st.booleans())
    def fork(self, job: int, free: bool) -> None:
        self.clients += 1
        self.pool.added(self.clients, job, self.now, free=free)

    @rule(job=st.sampled_from([JOB, OTHER]), for_actor=st.booleans())
    def take(self, job: int, for_actor: bool) -> None:
        taken = self.pool.take(job, self.now, for_actor=for_actor)
        assert taken is None or self.pool.workers[taken].use is Use.LEASED
        assert taken is None or not (for_actor and self.pool.workers[taken].owes)

    @rule(client=st.integers(1, 12), owes=st.booleans())
    def owes(self, client: int, owes: bool) -> None:
        self.pool.owes(client, owes)

    @rule(client=st.integers(1, 12), what=st.sampled_from(["idle", "ending", "gone"]))
    def change(self, client: int, what: str) -> None:
        if what == "gone":
            self.pool.gone(client)
        elif client in self.pool.workers:
            (self.pool.idle if what == "idle" else self.pool.ending)(client, self.now)

    @rule(after=st.floats(0, 10))
    def time_passes(self, after: float) -> None:
        self.now += after
        for client in self.pool.tick(self.now):
            assert self.pool.workers[client].use is Use.ENDING and not self.pool.workers[client].owes
        due = self.pool.next_deadline()
        assert due is None or due > self.now

    @invariant()
    def lists_are_kept(self) -> None:
        self.pool.validate()


TestPoolOfWorkers = PoolOfWorkers.TestCase
