"""Whose turn it is, who is asked to give back, and that nothing is lent twice."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lattica.errors import RemoteProtocolError
from lattica.scheduler import leases
from lattica.scheduler.leases import (
    ASK_FIRST_S,
    ASK_LAST_S,
    NODE,
    OVERDUE_S,
    URGENT_RUN,
    Asked,
    Denied,
    Granted,
    Lease,
    LeaseBook,
    Orphaned,
    WorkerFreed,
)
from lattica.scheduler.resources import ResourcePool, ResourceSet

ONE = {"CPU": 1}
DRIVER, OTHER, THIRD = 1, 2, 3


class Machine:
    """A book on a machine of so many CPUs; workers get numbers from 100 on, one per lease."""

    def __init__(self, **total: float) -> None:
        self.pool = ResourcePool(ResourceSet.of(total))
        self.book = LeaseBook(self.pool)
        self.now = 0.0
        self.workers = 99
        self.asked: list[int] = []

    def request(self, holder: int, number: int = 0, amounts: dict[str, float] | None = None) -> list[Lease]:
        amounts = ONE if amounts is None else amounts
        return self.told(self.book.request(holder, number, 1, ResourceSet.of(amounts), self.now))

    def told(self, effects: Iterable[Any]) -> list[Lease]:
        """Place what was granted; the new leases."""
        granted = []
        for effect in effects:
            if isinstance(effect, Granted):
                self.workers += 1
                self.book.placed(effect.lease.lease, self.workers)
                granted.append(effect.lease)
            elif isinstance(effect, Asked):
                self.asked.append(effect.holder)
        self.book.validate()
        self.pool.validate()
        return granted

    def give_back(self, lease: Lease) -> list[Lease]:
        return self.told(self.book.returned(lease.lease, lease.holder, self.now))

    def block(self, lease: Lease, blocked: bool = True) -> list[Lease]:
        assert lease.worker is not None
        return self.told(self.book.blocked(lease.worker, blocked, self.now))

    def tick_at(self, now: float) -> list[Lease]:
        self.now = now
        return self.told(self.book.tick(now))


def holders(granted: Iterable[Lease]) -> list[int]:
    return [lease.holder for lease in granted]


def test_what_fits_is_granted_at_once_and_the_next_gets_what_comes_back() -> None:
    machine = Machine(CPU=1)
    (lease,) = machine.request(DRIVER, 7)
    assert lease.request.number == 7 and not machine.request(DRIVER, 8)
    assert machine.book.returned(lease.lease, DRIVER, 1.0)[0] == WorkerFreed(100)
    assert machine.book.waiting == 0 and len(machine.book.leases) == 1


def test_what_no_machine_state_could_satisfy_is_denied_with_what_is_missing() -> None:
    machine = Machine(CPU=2)
    assert machine.book.request(DRIVER, 5, 1, ResourceSet.of({"GPU": 1, "CPU": 1}), 0.0) == [
        Denied(DRIVER, 5, "this machine does not have 1 GPU (of 0)")
    ]


def test_who_waits_is_told_how_many_came_before() -> None:
    machine = Machine(CPU=1)
    machine.request(DRIVER, 1)
    machine.request(OTHER, 1)
    machine.request(DRIVER, 2, {"CPU": 0.5})
    found = machine.book.ahead_of(DRIVER, 2)
    assert found is not None and found[0].resources == ResourceSet.of({"CPU": 0.5}) and found[1] == 1
    assert machine.book.ahead_of(DRIVER, 1) is None, "it has a worker"


def test_a_cancelled_request_is_never_granted() -> None:
    machine = Machine(CPU=1)
    (lease,) = machine.request(DRIVER)
    machine.request(OTHER, 3)
    machine.book.cancel(OTHER, 3, 0.0)
    assert machine.give_back(lease) == [] and machine.book.waiting == 0


def test_cancelling_the_large_request_in_front_serves_those_behind_it() -> None:
    machine = Machine(CPU=2)
    (_,) = machine.request(DRIVER)
    assert not machine.request(OTHER, 3, {"CPU": 2}) and not machine.request(THIRD)
    assert holders(machine.told(machine.book.cancel(OTHER, 3, 0.0))) == [THIRD]


def test_only_the_holder_can_return_a_lease() -> None:
    machine = Machine(CPU=1)
    (lease,) = machine.request(DRIVER)
    assert machine.book.returned(lease.lease, OTHER, 0.0) == [] and lease.lease in machine.book.leases


def test_who_holds_least_is_next_whoever_came_first() -> None:
    machine = Machine(CPU=3)
    first, *_ = [machine.request(DRIVER)[0] for _ in range(2)]
    machine.request(OTHER)
    for number in range(3):
        machine.request(DRIVER, number)
    machine.request(THIRD)
    assert holders(machine.give_back(first)) == [THIRD]


def test_a_large_request_is_not_starved_by_small_ones_behind_it() -> None:
    machine = Machine(CPU=2)
    one, two = (machine.request(DRIVER)[0] for _ in range(2))
    machine.request(OTHER, 1, {"CPU": 2})
    machine.request(THIRD)
    machine.request(THIRD)
    assert machine.give_back(one) == []  # one CPU is free, and kept for OTHER
    assert holders(machine.give_back(two)) == [OTHER]


def test_a_large_request_that_actors_make_impossible_holds_nobody_up() -> None:
    """An actor keeps one of two CPUs for life: who asks for both waits, and others run meanwhile."""
    machine = Machine(CPU=2)
    machine.request(NODE, 1)
    machine.request(OTHER, 1, {"CPU": 2})
    assert holders(machine.request(THIRD)) == [THIRD]


def test_who_waits_for_a_gpu_does_not_keep_cpus_from_others() -> None:
    machine = Machine(CPU=2, GPU=1)
    machine.request(DRIVER, 1, {"CPU": 1, "GPU": 1})
    assert not machine.request(OTHER, 1, {"GPU": 1})
    assert holders(machine.request(THIRD)) == [THIRD]


def test_a_large_request_that_bundles_make_impossible_holds_nobody_up() -> None:
    """A placement group has one of two CPUs for as long as its program likes."""
    machine = Machine(CPU=2)
    bundle = machine.pool.acquire(ResourceSet.of(ONE))
    assert bundle is not None
    machine.pool.grow(1, bundle)
    machine.request(OTHER, 1, {"CPU": 2})
    assert holders(machine.request(THIRD)) == [THIRD]


def test_leases_in_a_bundle_wait_for_each_other_and_not_for_the_machine() -> None:
    machine = Machine(CPU=2)
    bundle = machine.pool.acquire(ResourceSet.of(ONE))
    assert bundle is not None
    machine.pool.grow(1, bundle)
    inside = ResourceSet.of(ONE).in_bundle(1)
    (first,) = machine.told(machine.book.request(DRIVER, 1, 1, inside, 0.0, within=b"group"))
    assert first.request.within == b"group" and machine.book.leases_of("pg/1/") == [first]
    assert not machine.told(machine.book.request(OTHER, 1, 1, inside, 0.0))
    assert [request.holder for request in machine.book.waiting_for("pg/1/")] == [OTHER]
    assert machine.asked == [DRIVER] and holders(machine.request(THIRD)) == [THIRD]
    machine.block(first)
    assert [lease.holder for lease in machine.book.leases_of("pg/1/")] == [DRIVER, OTHER]
    machine.pool.release(bundle)
    machine.pool.shrink(1)
    machine.block(first, False)
    for lease in machine.book.leases_of("pg/1/"):
        assert lease.worker is not None
        machine.told(machine.book.worker_gone(lease.worker, 1.0))
    assert machine.pool.available == {"CPU": 1}


def test_what_becomes_free_is_left_for_a_bundle_that_is_to_be_kept() -> None:
    """A driver with tasks without end has both CPUs, and a placement group wants them: it gets one after the other."""
    machine = Machine(CPU=2)
    leases_ = [*machine.request(DRIVER), *machine.request(DRIVER, 2)]
    machine.request(DRIVER, 3)
    two = ResourceSet.of({"CPU": 2})
    machine.told(machine.book.press("group", two, 2.0, 0.0))
    assert machine.asked == [DRIVER]
    assert not machine.give_back(leases_[0]) and machine.pool.available == {"CPU": 1}
    assert not machine.give_back(leases_[1])
    assert machine.pool.acquire(two) is not None
    machine.book.relent("group")
    assert not machine.tick_at(1.0)


def test_room_is_made_for_as_long_as_the_bundle_is_asked_for() -> None:
    machine = Machine(CPU=2)
    (lease,) = machine.request(DRIVER)
    machine.told(machine.book.press("group", ResourceSet.of({"CPU": 2}), 2.0, 0.0))
    assert not machine.request(OTHER) and machine.book.next_deadline() is not None
    assert holders(machine.tick_at(2.0)) == [OTHER]
    machine.give_back(lease)


def test_room_beside_a_bundle_is_anybodys_and_actors_for_life_are_not_waited_for() -> None:
    machine = Machine(CPU=4)
    machine.told(machine.book.press("group", ResourceSet.of({"CPU": 2}), 9.0, 0.0))
    assert len([*machine.request(DRIVER), *machine.request(DRIVER, 2), *machine.request(DRIVER, 3)]) == 2
    machine = Machine(CPU=2)
    machine.request(NODE)
    machine.told(machine.book.press("group", ResourceSet.of({"CPU": 2}), 9.0, 0.0))
    assert holders(machine.request(DRIVER)) == [DRIVER]


def test_actors_of_other_nodes_are_for_life_too() -> None:
    """Their node holds the lease, as it holds those of tasks."""
    machine = Machine(CPU=2)
    (lease,) = machine.told(machine.book.request(OTHER, 1, 1, ResourceSet.of(ONE), 0.0, lasting=True))
    machine.told(machine.book.press("group", ResourceSet.of({"CPU": 2}), 9.0, 0.0))
    machine.request(DRIVER, 1, {"CPU": 2})
    assert machine.asked == [] and holders(machine.request(THIRD)) == [THIRD]
    machine.give_back(lease)


def test_the_child_of_a_task_that_waits_goes_before_a_bundle() -> None:
    machine = Machine(CPU=1)
    (parent,) = machine.request(DRIVER)
    machine.told(machine.book.press("group", ResourceSet.of(ONE), 9.0, 0.0))
    assert parent.worker is not None
    machine.request(parent.worker)
    assert holders(machine.block(parent)) == [parent.worker]


# ---- blocked workers ----------------------------------------------------------------------------------------------


def test_a_task_that_gets_its_child_on_one_cpu_finishes() -> None:
    """On one CPU a task asks for a worker for its child, and waits for it: its own CPU is what the child runs on."""
    machine = Machine(CPU=1)
    (parent,) = machine.request(DRIVER)
    assert parent.worker is not None and not machine.request(parent.worker)
    (child,) = machine.block(parent)
    assert child.holder == parent.worker
    machine.give_back(child)
    assert machine.block(parent, False) == [] and machine.pool.available == {"CPU": 0}


def test_a_worker_that_wakes_up_overdraws_and_nothing_is_granted_until_the_debt_is_paid() -> None:
    machine = Machine(CPU=1)
    (parent,) = machine.request(DRIVER)
    machine.block(parent)
    (other,) = machine.request(OTHER)
    machine.block(parent, False)
    assert not machine.request(THIRD)
    assert machine.give_back(other) == []
    assert holders(machine.give_back(parent)) == [THIRD]


def test_a_blocked_worker_keeps_its_gpu() -> None:
    machine = Machine(CPU=1, GPU=1)
    (lease,) = machine.request(DRIVER, 0, {"CPU": 1, "GPU": 1})
    machine.block(lease)
    assert machine.pool.available == {"CPU": 1, "GPU": 0}


def test_saying_blocked_twice_lends_once() -> None:
    machine = Machine(CPU=1)
    (lease,) = machine.request(DRIVER)
    machine.block(lease)
    machine.block(lease)
    assert machine.pool.available == {"CPU": 1}
    machine.give_back(lease)
    assert machine.pool.available == {"CPU": 1}


def test_the_innermost_of_waiting_tasks_is_served_before_more_outermost_ones() -> None:
    """A driver has a thousand tasks that each wait for a child. Were the next outer task served first, a thousand
    workers would sit there and wait."""
    machine = Machine(CPU=1)
    (outer,) = machine.request(DRIVER)
    for number in range(5):
        machine.request(DRIVER, number)
    assert outer.worker is not None
    machine.request(outer.worker)
    assert holders(machine.block(outer)) == [outer.worker]


def test_blocked_holders_do_not_starve_a_driver_for_ever() -> None:
    machine = Machine(CPU=1)
    (parent,) = machine.request(DRIVER)
    assert parent.worker is not None
    machine.request(parent.worker)
    (child,) = machine.block(parent)
    machine.request(OTHER, 9)
    machine.now = 2 * OVERDUE_S
    turns = []
    for _ in range(2 * URGENT_RUN):
        machine.request(parent.worker)
        (child,) = machine.give_back(child)
        turns.append(child.holder)
    assert turns.count(OTHER) == 1 and turns.index(OTHER) <= URGENT_RUN


# ---- asking for leases back ---------------------------------------------------------------------------------------


def test_a_holder_is_asked_when_somebody_waits_who_has_none() -> None:
    machine = Machine(CPU=2)
    machine.request(DRIVER)
    machine.request(DRIVER)
    machine.request(OTHER)
    assert machine.asked == [DRIVER]


def test_nobody_is_asked_on_his_own_behalf() -> None:
    machine = Machine(CPU=1)
    machine.request(DRIVER)
    machine.request(DRIVER)
    assert machine.asked == [] and machine.book.next_deadline() is None


def test_two_holders_do_not_hand_one_lease_to_and_fro() -> None:
    machine = Machine(CPU=3)
    for holder in (DRIVER, DRIVER, OTHER):
        machine.request(holder)
    machine.request(OTHER)
    machine.request(DRIVER)
    assert machine.asked == []


def test_a_holder_is_not_asked_for_what_would_not_help() -> None:
    machine = Machine(CPU=2, GPU=1)
    machine.request(DRIVER)
    machine.request(OTHER, 1, {"GPU": 1})
    machine.request(THIRD, 1, {"GPU": 1})
    assert machine.asked == [OTHER]


def test_a_holder_is_asked_again_ever_more_rarely_until_it_returns_something() -> None:
    machine = Machine(CPU=2)
    kept, returned = (machine.request(DRIVER)[0] for _ in range(2))
    machine.request(OTHER, 1, {"CPU": 2})
    times = []
    while (due := machine.book.next_deadline()) is not None and due < 5:
        machine.tick_at(due)
        times.append(due)
    pauses = [b - a for a, b in pairwise(times)]
    assert times[0] == ASK_FIRST_S
    assert [pauses[0], pauses[-1]] == pytest.approx([2 * ASK_FIRST_S, ASK_LAST_S])
    before = len(machine.asked)
    machine.give_back(returned)
    assert len(machine.asked) == before + 1 and kept.holder == DRIVER


def test_an_actor_is_never_asked_to_give_its_lease_back() -> None:
    machine = Machine(CPU=1)
    machine.request(NODE, 1)
    machine.request(DRIVER)
    assert machine.asked == []


# ---- the dead -----------------------------------------------------------------------------------------------------


def test_a_dead_workers_resources_go_to_the_next() -> None:
    machine = Machine(CPU=1)
    (lease,) = machine.request(DRIVER)
    machine.request(OTHER)
    assert lease.worker is not None and machine.book.lease_of(lease.worker) is lease
    assert holders(machine.told(machine.book.worker_gone(lease.worker, 0.0))) == [OTHER]
    assert machine.book.worker_gone(lease.worker, 0.0) == []


def test_a_blocked_worker_that_dies_gives_back_no_more_than_it_had() -> None:
    machine = Machine(CPU=2, GPU=1)
    (lease,) = machine.request(DRIVER, 0, {"CPU": 1, "GPU": 1})
    machine.block(lease)
    assert lease.worker is not None
    machine.told(machine.book.worker_gone(lease.worker, 0.0))
    assert machine.pool.available == {"CPU": 2, "GPU": 1}


def test_a_dead_holders_worker_keeps_the_resources_until_it_is_dead_too() -> None:
    machine = Machine(CPU=1)
    (lease,) = machine.request(DRIVER)
    machine.request(DRIVER, 2)
    assert machine.book.holder_gone(DRIVER, 0.0) == [Orphaned(lease)]
    assert lease.worker is not None and not machine.request(OTHER)
    assert holders(machine.told(machine.book.worker_gone(lease.worker, 0.0))) == [OTHER]
    assert machine.book.waiting == 0


def test_a_lease_that_has_no_worker_yet_ends_with_its_holder() -> None:
    machine = Machine(CPU=1)
    machine.book.request(DRIVER, 1, 1, ResourceSet.of(ONE), 0.0)
    assert machine.book.holder_gone(DRIVER, 0.0) == [] and machine.pool.available == {"CPU": 1}


def test_a_holder_that_retires_gets_no_more_but_keeps_what_it_has() -> None:
    machine = Machine(CPU=1)
    (lease,) = machine.request(DRIVER)
    machine.request(DRIVER, 2)
    machine.book.retire([DRIVER], 0.0)
    assert machine.give_back(lease) == [] and machine.book.waiting == 0


def test_one_holder_may_not_queue_requests_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "REQUESTS_MAX", 3)
    machine = Machine(CPU=1)
    for number in range(4):
        machine.request(DRIVER, number)
    with pytest.raises(RemoteProtocolError, match="3 lease requests waiting"):
        machine.request(DRIVER, 5)


class BookOfAMachine(RuleBasedStateMachine):
    """Any order of events keeps the books, and what fits is never left waiting while nothing runs."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(CPU=4, GPU=2)
        self.number, self.until = 0, 0.0

    def running(self) -> list[Lease]:
        return sorted(self.machine.book.leases.values(), key=lambda lease: lease.lease)

    @rule(
        holder=st.sampled_from([NODE, DRIVER, OTHER, 100, 101, 102]),
        cpus=st.sampled_from([0, 0.5, 1, 2, 4]),
        gpus=st.sampled_from([0, 0, 0.5, 1, 2]),
    )
    def ask(self, holder: int, cpus: float, gpus: float) -> None:
        self.number += 1
        self.machine.request(holder, self.number, {"CPU": cpus, "GPU": gpus})

    @rule(holder=st.sampled_from([DRIVER, OTHER, 100]), back=st.integers(0, 5))
    def cancel(self, holder: int, back: int) -> None:
        self.machine.told(self.machine.book.cancel(holder, self.number - back, self.machine.now))

    @precondition(lambda self: self.machine.book.leases)
    @rule(data=st.data(), what=st.sampled_from(["return", "block", "wake", "die"]))
    def change(self, data: st.DataObject, what: str) -> None:
        lease = data.draw(st.sampled_from(self.running()))
        assert lease.worker is not None
        match what:
            case "return":
                self.machine.give_back(lease)
            case "block" | "wake":
                self.machine.block(lease, what == "block")
            case _:
                self.machine.told(self.machine.book.worker_gone(lease.worker, self.machine.now))

    @rule(holder=st.sampled_from([DRIVER, OTHER, 100, 101]))
    def holder_dies(self, holder: int) -> None:
        self.machine.told(self.machine.book.holder_gone(holder, self.machine.now))

    @rule(cpus=st.sampled_from([1, 3, 5]), gpus=st.sampled_from([0, 0.5, 1]))
    def press(self, cpus: float, gpus: float) -> None:
        wanted = ResourceSet.of({"CPU": cpus, "GPU": gpus})
        self.until = self.machine.now + 1.0
        self.machine.told(self.machine.book.press("group", wanted, self.until, self.machine.now))

    @rule(after=st.floats(0, 2))
    def time_passes(self, after: float) -> None:
        due = self.machine.book.next_deadline()
        pressed = self.machine.now < self.until
        assert due is None or self.machine.book.waiting or pressed, "a timer runs, and nobody waits"
        self.machine.tick_at(self.machine.now + after)

    @invariant()
    def an_idle_machine_keeps_nobody_waiting(self) -> None:
        assert self.machine.book.leases or not self.machine.book.waiting or self.machine.now < self.until

    def teardown(self) -> None:
        self.machine.tick_at(self.machine.now + 2.0)
        for lease in self.running():
            assert lease.worker is not None
            self.machine.told(self.machine.book.worker_gone(lease.worker, self.machine.now))
            while self.machine.book.leases and self.machine.book.waiting:
                for more in self.running():
                    assert more.worker is not None
                    self.machine.told(self.machine.book.worker_gone(more.worker, self.machine.now))
        for lease in self.running():
            assert lease.worker is not None
            self.machine.told(self.machine.book.worker_gone(lease.worker, self.machine.now))
        assert self.machine.pool.available == {"CPU": 4, "GPU": 2}


TestBookOfAMachine = BookOfAMachine.TestCase
