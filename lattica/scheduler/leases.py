"""Who may use which of the machine's resources now: one book of requests and leases.

    told     request · cancel · returned · placed · blocked · worker_gone · holder_gone · tick
    answers  Granted · Denied · Asked · WorkerFreed · Orphaned

Rules of this file. A lease is resources lent to a *holder* (a client, or the node itself for an actor) together with a
worker, which the shell finds and names by `placed`. A worker that waits for others lends its CPUs back (`blocked`) and
takes them again without asking: the machine is then overdrawn, and nothing is granted until it is not. `now` is the
only time.

Whose turn it is:
1. A holder that is itself blocked comes before all others: its worker is held captive until it is served, and serving
   the outermost first would pile up captives. One turn in URGENT_RUN goes to somebody else who has waited for
   OVERDUE_S.
2. Then who holds least, then who came first.
3. A request that does not fit keeps the resources it lacks from those behind it, or a large one would never be served;
   but only where returned leases could make room: what actors hold for life is not waited for, nor what bundles have.
4. So does a bundle that is to be kept here (`press`), for as long as it is asked for; but not from a holder that is
   blocked, whose worker would never end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.scheduler.resources import Allocation, ResourcePool, ResourceSet

NODE = 0
"""Holder of the leases of actors; it is never asked to give one back."""
REQUESTS_MAX = 100_000
"""Waiting requests of one holder; a driver that creates that many actors at once has made a mistake (300 B each)."""
URGENT_RUN = 8
OVERDUE_S = 1.0
ASK_FIRST_S = 0.020
"""Pause before a holder is asked again while others wait; it doubles up to ASK_LAST_S. Shorter pauses wake busy holders
for nothing, longer ones leave the waiting idle after the holder has submitted anew."""
ASK_LAST_S = 0.640


class Request(msgspec.Struct, frozen=True):
    """Somebody wants a worker with these resources. `number` is the holder's own."""

    holder: int
    number: int
    job: int
    resources: ResourceSet
    retryable: bool = True
    name: str = ""
    arrived: float = 0.0
    order: int = 0
    within: bytes = b""  # the placement group that it is in, as the shell says it to the worker
    lasting: bool = False  # for an actor of another node's: it is never given back for others


class Lease(msgspec.Struct):
    """Resources lent, and the worker that has them once it is placed."""

    lease: int
    request: Request
    allocation: Allocation
    since: float
    holder: int
    worker: int | None = None
    blocked: bool = False


class Granted(msgspec.Struct, frozen=True):
    """Find a worker of the request's job for this lease, say `placed`, and tell the holder."""

    lease: Lease


class Denied(msgspec.Struct, frozen=True):
    """This can never be granted here."""

    holder: int
    number: int
    reason: str


class Asked(msgspec.Struct, frozen=True):
    """Others wait: the holder shall return what it can."""

    holder: int


class WorkerFreed(msgspec.Struct, frozen=True):
    """This worker is leased to nobody now."""

    worker: int


class Orphaned(msgspec.Struct, frozen=True):
    """The lease's holder is gone while its worker may still run: end that worker; `worker_gone` frees the resources."""

    lease: Lease


Effect = Granted | Denied | Asked | WorkerFreed | Orphaned
_Bucket = tuple[int, ResourceSet]  # requests of one holder for the same amounts wait in one line


class _Asking(msgspec.Struct):
    next_at: float
    pause_s: float


class LeaseBook:
    """Every request and every lease of one machine."""

    def __init__(self, pool: ResourcePool) -> None:
        self._pool = pool
        self.leases: dict[int, Lease] = {}
        self._waiting: dict[_Bucket, deque[Request]] = {}
        self._by_worker: dict[int, Lease] = {}
        self._held: dict[int, int] = {}  # holder -> its leases whose workers run, that is, are not blocked
        self._asking: dict[int, _Asking] = {}
        self._pressing: dict[object, tuple[ResourceSet, float]] = {}  # who wants to keep what, until when
        self._urgent_run = 0
        self._numbers = count(1)
        self._orders = count()

    def __repr__(self) -> str:
        blocked = sum(lease.blocked for lease in self.leases.values())
        return f"<LeaseBook: {len(self.leases)} leases ({blocked} blocked), {self.waiting} waiting>"

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(map(len, self._waiting.values()))

    def queued(self) -> list[Request]:
        """Those that wait, in the order in which they came."""
        return sorted((request for line in self._waiting.values() for request in line), key=lambda one: one.order)

    def lease_of(self, worker: int) -> Lease | None:
        """The lease that this worker serves."""
        return self._by_worker.get(worker)

    def ahead_of(self, holder: int, number: int) -> tuple[Request, int] | None:
        """(a request that waits, how many came before it); None if it does not wait. For people: it looks at all."""
        waiting = [request for line in self._waiting.values() for request in line]
        for request in waiting:
            if (request.holder, request.number) == (holder, number):
                return request, sum(other.order < request.order for other in waiting)
        return None

    def waiting_for(self, name: str) -> list[Request]:
        """Requests that wait and ask for this resource."""
        return [request for (_, wanted), line in self._waiting.items() if name in wanted for request in line]

    def leases_of(self, name: str) -> list[Lease]:
        """Leases that have some of this resource."""
        return [lease for lease in self.leases.values() if name in lease.request.resources]

    # -- what the shell tells

    def request(
        self,
        holder: int,
        number: int,
        job: int,
        resources: ResourceSet,
        now: float,
        *,
        retryable: bool = True,
        name: str = "",
        within: bytes = b"",
        lasting: bool = False,
    ) -> list[Effect]:
        """`holder` wants a worker. Raises RemoteProtocolError if it has REQUESTS_MAX waiting."""
        if missing := self._pool.missing(resources):
            return [Denied(holder, number, f"this machine does not have {missing}")]
        bucket = holder, resources
        line = self._waiting.setdefault(bucket, deque())
        if len(line) >= REQUESTS_MAX:
            raise RemoteProtocolError(f"client {holder} has {REQUESTS_MAX} lease requests waiting")
        line.append(Request(holder, number, job, resources, retryable, name, now, next(self._orders), within, lasting))
        return self._serve(now)

    def cancel(self, holder: int, number: int, now: float) -> list[Effect]:
        """`holder` no longer wants what it asked for with `number`; it returns a grant that was faster."""
        for bucket in [bucket for bucket in self._waiting if bucket[0] == holder]:
            left = deque(request for request in self._waiting[bucket] if request.number != number)
            self._waiting[bucket] = left
            if not left:
                del self._waiting[bucket]
        return self._serve(now)

    def placed(self, lease: int, worker: int) -> None:
        """The shell found this worker for the lease."""
        entry = self.leases[lease]
        if entry.worker is not None:  # that one could not be forked
            del self._by_worker[entry.worker]
        entry.worker = worker
        self._by_worker[worker] = entry

    def returned(self, lease: int, holder: int, now: float) -> list[Effect]:
        """`holder` is done with the worker. What it does not hold is ignored: the worker may have died meanwhile."""
        entry = self.leases.get(lease)
        if entry is None or entry.holder != holder:
            return []
        self._asking.pop(holder, None)
        freed: list[Effect] = [] if entry.worker is None else [WorkerFreed(entry.worker)]
        self._end(entry)
        return freed + self._serve(now)

    def blocked(self, worker: int, blocked: bool, now: float) -> list[Effect]:
        """The worker waits for others, or runs again."""
        entry = self._by_worker.get(worker)
        if entry is None or entry.blocked == blocked:
            return []
        entry.blocked = blocked
        self._count(entry.holder, -1 if blocked else 1)
        if not blocked:
            self._pool.force_acquire(entry.request.resources.cpus())
            return []
        self._pool.release(entry.allocation.cpus())
        return self._serve(now)

    def worker_gone(self, worker: int, now: float) -> list[Effect]:
        """The process has ended; look at `lease_of` before. Its resources are free."""
        entry = self._by_worker.get(worker)
        if entry is None:
            return []
        self._end(entry)
        return self._serve(now)

    def retire(self, holders: Sequence[int], now: float) -> list[Effect]:
        """These are about to end: their requests are void."""
        for bucket in [bucket for bucket in self._waiting if bucket[0] in holders]:
            del self._waiting[bucket]
        return self._serve(now)

    def holder_gone(self, holder: int, now: float) -> list[Effect]:
        """A client has ended: its requests are void, and its leases are the node's until their workers are gone."""
        for bucket in [bucket for bucket in self._waiting if bucket[0] == holder]:
            del self._waiting[bucket]
        self._asking.pop(holder, None)
        orphaned: list[Effect] = []
        for entry in [entry for entry in self.leases.values() if entry.holder == holder]:
            if entry.worker is None:
                self._end(entry)
                continue
            if not entry.blocked:
                self._count(holder, -1)
                self._count(NODE, 1)
            entry.holder = NODE
            orphaned.append(Orphaned(entry))
        return orphaned + self._serve(now)

    def press(self, key: object, resources: ResourceSet, until: float, now: float) -> list[Effect]:
        """Whoever keeps bundles lacks these, and will look again: nobody else gets them before, if they can be had."""
        self._pressing[key] = resources, until
        return self._serve(now)

    def relent(self, key: object) -> None:
        """It has them."""
        self._pressing.pop(key, None)

    def tick(self, now: float) -> list[Effect]:
        """Serve what became overdue, and ask holders again."""
        return self._serve(now)

    def next_deadline(self) -> float | None:
        """When to call `tick`; None while nobody waits for what others could return."""
        asked = self._askable() if self._asking else []
        due = [self._asking[holder].next_at for holder in asked if holder in self._asking]
        return min([*due, *(until for _, until in self._pressing.values())], default=None)

    # -- whose turn it is

    def _serve(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while (request := self._next(now)) is not None:
            allocation = self._pool.acquire(request.resources)
            assert allocation is not None, "a request that fits was refused"
            lease = Lease(next(self._numbers), request, allocation, now, request.holder)
            self.leases[lease.lease] = lease
            self._count(request.holder, 1)
            effects.append(Granted(lease))
        return effects + self._ask(now)

    def _next(self, now: float) -> Request | None:
        """The request to grant now, taken out of its line; None if none can be."""
        reserved: set[str] = set()
        pressed = self._pressed(now)
        for bucket, request in self._by_turn(now):
            fits = reserved.isdisjoint(request.resources) and self._pool.fits(request.resources)
            if fits and pressed and not self._is_urgent(request) and not request.resources.keys().isdisjoint(pressed):
                fits = self._pool.fits(request.resources + pressed)
            if fits:
                self._remember_turn(request)
                self._waiting[bucket].popleft()
                if not self._waiting[bucket]:
                    del self._waiting[bucket]
                return request
            reserved |= self._lacking(request.resources)
        return None

    def _pressed(self, now: float) -> ResourceSet:
        """What is to be left for bundles, as far as they can have it."""
        for key in [key for key, (_, until) in self._pressing.items() if until <= now]:
            del self._pressing[key]
        wanted = [resources for resources, _ in self._pressing.values()]
        return sum((one for one in wanted if self._pool.fits(one) or self._lacking(one)), ResourceSet({}))

    def _by_turn(self, now: float) -> list[tuple[_Bucket, Request]]:
        """The heads of all lines, whose turn it is first."""
        if not self._waiting:
            return []
        heads = [(bucket, line[0]) for bucket, line in self._waiting.items()]
        patient = self._urgent_run >= URGENT_RUN  # then the overdue go first, once

        def turn(head: tuple[_Bucket, Request]) -> tuple[int, int, int]:
            request = head[1]
            first = request.arrived + OVERDUE_S <= now if patient else self._is_urgent(request)
            return 0 if first else 1, self._held.get(request.holder, 0), request.order

        return sorted(heads, key=turn)

    def _is_urgent(self, request: Request) -> bool:
        own = self._by_worker.get(request.holder)
        return own is not None and own.blocked

    def _remember_turn(self, request: Request) -> None:
        self._urgent_run = self._urgent_run + 1 if self._is_urgent(request) else 0

    def _lacking(self, wanted: ResourceSet) -> set[str]:
        """Names of what is not free of this, if it would fit once every task's lease was returned; else empty."""
        pool = self._pool
        lacking = pool.lacking(wanted)
        if not lacking:
            return lacking
        kept = [
            lease.request.resources.but_cpus() if lease.blocked else lease.request.resources
            for lease in self.leases.values()
            if lease.holder == NODE or lease.request.lasting
        ]
        for name in lacking:
            kept_units = sum([resources.units.get(name, 0) for resources in kept])
            if pool.size(name) - pool.in_bundles(name) - kept_units < wanted.units[name]:
                return set()
        return lacking

    # -- asking for leases back

    def _ask(self, now: float) -> list[Effect]:
        asked: list[Effect] = []
        askable = self._askable()
        for holder in askable:
            asking = self._asking.get(holder)
            if asking is None:
                self._asking[holder] = _Asking(now + ASK_FIRST_S, ASK_FIRST_S)
            elif asking.next_at <= now:
                asking.pause_s = min(2 * asking.pause_s, ASK_LAST_S)
                asking.next_at = now + asking.pause_s
            else:
                continue
            asked.append(Asked(holder))
        for holder in [holder for holder in self._asking if holder not in askable]:
            del self._asking[holder]
        return asked

    def _askable(self) -> list[int]:
        """Holders with leases that somebody waits for who has fewer: none at all, or at least two fewer.

        (With a difference of one, two holders would hand the same lease to and fro for ever.)
        """
        if not self._waiting and not self._pressing:
            return []
        wants = [(line[0].holder, line[0].resources) for line in self._waiting.values()]
        wants += [(NODE, resources) for resources, _ in self._pressing.values()]
        lacking_of = {resources: self._lacking(resources) for resources in {wanted for _, wanted in wants}}
        waiters = [(holder, lacking) for holder, wanted in wants if (lacking := lacking_of[wanted])]
        if not waiters:
            return []
        found: dict[int, None] = {}
        for lease in self.leases.values():
            holder = lease.holder
            if holder == NODE or lease.request.lasting or lease.blocked or holder in found:
                continue
            for waiter, lacking in waiters:
                has = self._held.get(waiter, 0) if waiter != NODE else 0
                fewer = has == 0 or has + 1 < self._held[holder]
                if waiter != holder and fewer and not lacking.isdisjoint(lease.request.resources):
                    found[holder] = None
                    break
        return list(found)

    # -- bookkeeping

    def _end(self, entry: Lease) -> None:
        del self.leases[entry.lease]
        if entry.worker is not None:
            del self._by_worker[entry.worker]
        if entry.blocked:
            self._pool.release(entry.allocation.but_cpus())
        else:
            self._count(entry.holder, -1)
            self._pool.release(entry.allocation)

    def _count(self, holder: int, change: int) -> None:
        held = self._held.get(holder, 0) + change
        if held:
            self._held[holder] = held
        else:
            del self._held[holder]

    def validate(self) -> None:
        """Assert what always holds."""
        placed = {lease.worker: lease for lease in self.leases.values() if lease.worker is not None}
        assert placed == self._by_worker, "a worker serves a lease that the book does not have"
        held: dict[int, int] = {}
        for lease in self.leases.values():
            if not lease.blocked:
                held[lease.holder] = held.get(lease.holder, 0) + 1
        assert held == self._held, "the counts of running leases differ from the leases"
        assert all(self._waiting.values()), "an empty line was kept"
