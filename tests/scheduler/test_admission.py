"""What a node answers to a lease request of another, and that its load is true."""

from __future__ import annotations

from lattica.mesh.identity import PeerId
from lattica.scheduler import admission as module
from lattica.scheduler.admission import Admission, Admitted, Refused
from lattica.scheduler.leases import Granted, LeaseBook
from lattica.scheduler.load import Load
from lattica.scheduler.resources import UNITS, ResourcePool, ResourceSet

ME = PeerId(b"\x3a" * 32)
ONE = ResourceSet.of({"CPU": 1})


class Machine:
    def __init__(self, **total: float) -> None:
        self.pool = ResourcePool(ResourceSet.of(total))
        self.book = LeaseBook(self.pool)
        self.admission = Admission(ME, self.pool, self.book)
        self.leases: list[int] = []

    def ask(self, resources: ResourceSet = ONE, limit_s: float = 0.0) -> Admitted | Refused:
        answer = self.admission.ask(resources, limit_s)
        if isinstance(answer, Admitted):
            effects = self.book.request(1 + len(self.leases), 0, 1, resources, 0.0)
            self.leases += [effect.lease.lease for effect in effects if isinstance(effect, Granted)]
        return answer


def test_what_fits_is_taken_at_once_and_the_load_that_comes_with_it_counts_it() -> None:
    machine = Machine(CPU=2)
    assert machine.ask() == Admitted(False, Load({"CPU": UNITS}))
    assert machine.ask() == Admitted(False, Load({"CPU": 2 * UNITS}))
    assert machine.admission.load() == Load({"CPU": 2 * UNITS})


def test_a_request_is_queued_only_if_it_would_not_wait_longer_than_its_submitter_wants() -> None:
    machine = Machine(CPU=2)
    machine.admission.ran(1.0, 0)
    machine.ask(), machine.ask()
    refused = machine.ask(limit_s=0.4)
    assert isinstance(refused, Refused) and refused.reason == "it would wait 0.50 s here" and not refused.never
    assert refused.load == machine.admission.load()
    admitted = machine.ask(limit_s=0.6)
    assert isinstance(admitted, Admitted) and admitted.queued and admitted.load.queued == 1
    assert isinstance(machine.ask(limit_s=0.6), Refused)  # behind that one it would be a second


def test_the_queue_is_bounded_even_for_who_would_wait_for_ever(monkeypatch) -> None:
    monkeypatch.setattr(module, "QUEUE_MAX", 3)
    machine = Machine(CPU=1)
    answers = [machine.ask(limit_s=float("inf")) for _ in range(6)]
    assert [isinstance(answer, Admitted) for answer in answers] == [True] * 4 + [False] * 2
    assert isinstance(answers[-1], Refused) and answers[-1].reason == "3 requests wait here already"
    assert answers[-1].load.queued == 3


def test_what_a_node_can_never_have_is_refused_for_good() -> None:
    answer = Machine(CPU=1).ask(ResourceSet.of({"GPU": 2}), float("inf"))
    assert isinstance(answer, Refused) and answer.never
    assert answer.reason == "this node does not have 2 GPU (of 0)"


def test_a_draining_node_takes_nothing_and_says_so_to_all() -> None:
    machine = Machine(CPU=1)
    machine.admission.draining = True
    answer = machine.ask(limit_s=float("inf"))
    assert isinstance(answer, Refused) and answer.never and answer.load.draining


def test_nobody_overtakes_those_who_wait_though_it_would_fit() -> None:
    """The book keeps CPUs for a large request that waits; a small one that comes later would not get them either."""
    machine = Machine(CPU=2)
    machine.ask()
    assert isinstance(machine.ask(ResourceSet.of({"CPU": 2}), float("inf")), Admitted)
    answer = machine.ask(limit_s=1.0)
    assert isinstance(answer, Refused) or answer.queued


def test_who_knows_how_long_those_before_it_run_is_queued_accordingly() -> None:
    machine = Machine(CPU=1)
    machine.admission.ran(1.0, 0)
    machine.ask()
    assert isinstance(machine.admission.ask(ONE, 0.1), Refused)
    assert isinstance(machine.admission.ask(ONE, 0.1, 0.05), Admitted)


def test_what_submitters_say_of_run_times_is_taken_if_it_can_be_true() -> None:
    machine = Machine(CPU=1)
    for ran_s, expected_s in ((0.0, 1.0), (-1.0, 0.0), (float("nan"), 0.0), (1.0, float("inf")), (1e12, 0.0)):
        machine.admission.reported(ran_s, expected_s)
    assert machine.admission.load() == Load()
    machine.admission.reported(2.0, 1.0)
    assert machine.admission.load().task_s == 2.0
    assert machine.admission.load().pace > 1
