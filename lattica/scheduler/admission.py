"""What a node answers to another's lease request: it takes it now, lets it wait, or refuses, and always says its load.

    answer = admission.ask(resources, limit_s)
    match answer:
        case Admitted():  effects = book.request(holder, number, job, resources, now)   # granted now, or in its turn
        case Refused():   tell the submitter, which asks the next node

Rules of this file. Only the node knows what is free; the submitter says what waiting may cost (`limit_s`), since only
it knows what it would do instead. A refusal costs a round trip, so one that never ends in a lease is said as such.
Requests of this machine's own processes go to the book directly. Neighbour of `leases`, whose book has the queue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lattica.mesh.identity import PeerId
from lattica.scheduler.demand import Demand, NodeView
from lattica.scheduler.given import WORK_S_MAX
from lattica.scheduler.leases import LeaseBook
from lattica.scheduler.load import Load
from lattica.scheduler.pace import Pace
from lattica.scheduler.placement import QUEUE_MAX, wait_s
from lattica.scheduler.resources import UNITS, ResourcePool, ResourceSet


@dataclass(frozen=True, slots=True)
class Admitted:
    """Put it into the book. queued: it will have to wait there. load: with it."""

    queued: bool
    load: Load


@dataclass(frozen=True, slots=True)
class Refused:
    """never: asking again later does not help."""

    reason: str
    load: Load
    never: bool = False


class Admission:
    """The answers of one node."""

    def __init__(self, me: PeerId, pool: ResourcePool, book: LeaseBook) -> None:
        self._me, self._pool, self._book = me, pool, book
        self.pace = Pace()
        self.draining = False
        self.refused = 0  # counts, for views

    def __repr__(self) -> str:
        return f"<Admission: pace {self.pace.pace:.2f}, {self.refused} refused{', draining' if self.draining else ''}>"

    def ask(self, resources: ResourceSet, limit_s: float, each_s: float = 0.0) -> Admitted | Refused:
        """A request of another node. limit_s: the longest wait for which it shall be queued. each_s: how long those
        take that wait for the same input, as far as it knows."""
        load = self.load()
        if lacking := self._pool.missing(resources):
            return self._refuse(f"this node does not have {lacking}", load, never=True)
        if self.draining:
            return self._refuse("this node is going", load, never=True)
        waiting = self._book.waiting
        if not waiting and self._pool.fits(resources):
            return Admitted(False, _with(load, resources))
        if waiting >= QUEUE_MAX:
            return self._refuse(f"{waiting} requests wait here already", load)
        demand = Demand(resources, inputs={self._me: 1}, work_s=each_s) if each_s > 0 else Demand(resources)
        wait = wait_s(demand, NodeView(self._me, self._pool.total), load, waiting)
        if wait > limit_s:
            return self._refuse(f"it would wait {wait:.2f} s here", load)
        return Admitted(True, replace(load, queued=waiting + 1))

    def ran(self, run_s: float, expected_s: float) -> None:
        """A task of whomever ended here. expected_s: the work that its submitter expected; 0 if it did not know."""
        self.pace.ran(run_s, expected_s)

    def reported(self, run_s: float, expected_s: float) -> None:
        """What a submitter says of that; nothing if it cannot be true."""
        if 0 < run_s < WORK_S_MAX and 0 <= expected_s < WORK_S_MAX:
            self.ran(run_s, expected_s)

    def load(self) -> Load:
        """The truth, as told to everybody."""
        total, available = self._pool.total.units, self._pool.available
        taken = {
            name: units - round(available[name] * UNITS)
            for name, units in total.items()
            if round(available[name] * UNITS) < units
        }
        return Load(taken, self._book.waiting, self.pace.task_s, self.pace.pace, self.draining)

    def _refuse(self, reason: str, load: Load, *, never: bool = False) -> Refused:
        self.refused += 1
        return Refused(reason, load, never)


def _with(load: Load, resources: ResourceSet) -> Load:
    taken = {name: load.taken.get(name, 0) + units for name, units in resources.units.items()}
    return replace(load, taken={**load.taken, **taken})
