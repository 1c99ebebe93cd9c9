"""Leases, carried out: the book decides who may, the pool which worker, this desk connects the two."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from lattica.codec import frames
from lattica.codec.messages import (
    NODE,
    Blocked,
    InGroup,
    LeaseCancel,
    Leased,
    LeaseDenied,
    LeaseGranted,
    LeaseLost,
    LeaseRequest,
    LeaseReturn,
    LeaseWanted,
    Owes,
    WorkerKill,
)  # fmt: skip
from lattica.errors import ConfigError
from lattica.node.clients import NODE as ANOTHER
from lattica.node.clients import Client
from lattica.node.workers import Death, Process
from lattica.scheduler.leases import Asked, Denied, Effect, Granted, Lease, Orphaned, WorkerFreed
from lattica.scheduler.resources import ResourceSet

if TYPE_CHECKING:
    from lattica.node.held_up import HeldUp
    from lattica.node.server import Node

HELD_UP_S = 5.0  # after which a driver is told that its tasks wait for actors, once for each program
FORKS_PER_LEASE_MAX = 3
"""Workers tried for one lease when forks fail; then it is denied, with the reason."""
FAR_LEASE = 1 << 40
"""Numbers of leases on other nodes begin here: those of our own book never come so far."""
NO_ROOM = "the node has too many files open for one more worker; raise its limit (`ulimit -Hn`), or have fewer actors"


class LeaseDesk:
    """Finds workers for leases, tells both sides, and tells holders of dead workers what they need to go on."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._unborn: dict[int, Lease] = {}  # worker whose fork is under way -> the lease that waits for it
        self._tries: dict[int, int] = {}  # lease -> forks that failed
        self._within: dict[int, bytes] = {}  # worker -> the bundle of a placement group that it was told of
        self._held_up: HeldUp | None = None  # once somebody has waited
        self._watching = False

    # -- told by clients

    def request(self, client: Client, message: LeaseRequest) -> None:
        """Grant a worker, here or elsewhere, now or later; deny what can never be had."""
        if self._node.job_desk.is_leaving(client):
            return
        try:
            resources = ResourceSet.of(message.resources)
        except ConfigError as error:
            client.send(LeaseDenied(message.request, str(error)))
            return
        self.watch()
        book, now, far = self._node.book, self._node.now(), self._node.far
        job = self._node.environments.job_for(client.job, message.environment) if message.environment else client.job
        try:
            if message.given and self._node.groups.wish(client, message, resources, job):
                return
            if far is not None:
                far.placing.wish(client, message, resources, job)
                return
            if message.given and (reason := self._why_not_here(message.given)):
                client.send(LeaseDenied(message.request, reason))
                return
        except ConfigError as error:
            client.send(LeaseDenied(message.request, str(error)))
            return
        self.perform(
            book.request(
                client.number, message.request, job, resources, now,
                retryable=message.retryable, name=message.name,
            )
        )  # fmt: skip

    def watch(self) -> None:
        """Somebody may have to wait: look whether it is for actors."""
        if not self._watching:
            self._watching = True
            self._node.loop.call_later(HELD_UP_S, self._look_who_waits)

    def _look_who_waits(self) -> None:
        self._watching = False
        if not self._node.book.waiting or self._node.closing:
            return
        if self._held_up is None:
            from lattica.node.held_up import HeldUp

            self._held_up = HeldUp(self._node)
        self._held_up.look(HELD_UP_S)
        self.watch()

    def _why_not_here(self, given: bytes) -> str:
        from lattica.node import alone  # programs on one machine seldom say where

        return alone.why_not_here(self._node, given)

    def cancel(self, client: Client, message: LeaseCancel) -> None:
        """It wants no worker any more."""
        groups = self._node.group_desk
        if groups is not None and groups.canceled(client.number, message.request):
            return
        if self._node.far is not None and self._node.far.placing.canceled(client.number, message.request):
            return
        self.perform(self._node.book.cancel(client.number, message.request, self._node.now()))

    def returned(self, client: Client, message: LeaseReturn) -> None:
        """It has no more tasks for this worker."""
        if self._node.far is not None and message.lease >= FAR_LEASE:
            self._node.far.workers.returned(client.number, message)
            return
        if self._node.far is not None:
            self._node.far.placer.admission.reported(message.ran_s, message.expected_s)
        self.perform(self._node.book.returned(message.lease, client.number, self._node.now()))

    def kill(self, client: Client, message: WorkerKill) -> None:
        """Kill the worker that runs this task of the client, unless that has ended."""
        if self._node.far is not None and message.lease >= FAR_LEASE:
            self._node.far.workers.kill(client.number, message)
            return
        lease = self._node.book.leases.get(message.lease)
        if lease is not None and lease.holder == client.number and lease.worker is not None:
            started, _, _ = self._node.workers.processes[lease.worker].page.post_mortem(client.number)
            if message.seq and started > message.seq:
                return  # that task has ended, its reply is on the way, and another one would be killed
            self._node.end_worker(lease.worker, message.why or "killed by its caller")

    def blocked(self, client: Client, message: Blocked) -> None:
        """It waits for others, and its CPUs are lent out; or it goes on."""
        self.perform(self._node.book.blocked(client.number, message.blocked, self._node.now()))

    def owes(self, client: Client, message: Owes) -> None:
        """What a worker has submitted goes on after its own task, or has ended; or it takes no more tasks."""
        self._node.pool.owes(client.number, message.owes, retires=message.retires)
        self._node.set_timers()

    # -- what the book wants

    def perform(self, effects: list[Effect]) -> None:
        """Carry out what the book decided."""
        left = deque(effects)
        while left:
            match left.popleft():
                case Granted(lease):
                    left.extend(self._place(lease))
                case Denied(holder, number, reason):
                    self._deny(holder, number, reason)
                case Asked(holder):
                    self._node.tell(holder, LeaseWanted())
                case WorkerFreed(worker):
                    self._unborn.pop(worker, None)
                    self._node.pool.idle(worker, self._node.now())
                    self._node.job_desk.freed(worker)
                case Orphaned(lease):
                    assert lease.worker is not None
                    self._unborn.pop(lease.worker, None)
                    self._node.end_worker(lease.worker, "its caller ended")
        self._node.set_timers()

    def _place(self, lease: Lease) -> list[Effect]:
        """Find it a worker; what the book wants after that."""
        job, now, far = lease.request.job, self._node.now(), self._node.far
        if far is not None:
            far.placing.granted_here(lease)
        if self._node.group_desk is not None:
            self._node.group_desk.granted(lease.holder, lease.request.number)
        entry = self._node.jobs.get(job)
        if entry is None:
            return self._node.book.returned(lease.lease, lease.holder, now)
        if entry.environment.installs is not None and self._node.environments.wait(lease, entry):
            return []
        for_actor = lease.holder == NODE or (far is not None and far.hosting.is_for_actor(lease))
        worker = self._node.pool.take(job, now, for_actor=for_actor)
        if worker is None and not self._node.workers.room():
            self._deny(lease.holder, lease.request.number, NO_ROOM)
            return self._node.book.returned(lease.lease, lease.holder, now)
        if worker is None:
            worker = self._node.fork(job, free=False)
        self._node.book.placed(lease.lease, worker)
        if self._node.workers.processes[worker].pid:
            self._tell(lease, worker)
        else:
            self._unborn[worker] = lease
        return []

    def _tell(self, lease: Lease, worker: int) -> None:
        node, request = self._node, lease.request
        node.clients[worker].name = request.name
        node.logs.collector.named(worker, request.name or "task")
        if request.within != self._within.get(worker, b""):
            self._within[worker] = request.within
            node.tell(worker, InGroup(request.within))
        if lease.holder == NODE:
            node.actor_desk.granted(lease, worker)
            return
        holder = node.clients[lease.holder]
        if holder.kind == ANOTHER:
            assert node.far is not None
            node.far.hosting.lent(lease, worker)
            return
        fd = [] if worker in holder.callees else node.connect(holder, worker)
        pid = node.workers.processes[worker].pid
        gpus = list(lease.allocation.gpus)
        node.tell(worker, Leased(lease.lease, holder.number, request.resources.plain().to_dict(), gpus))
        holder.send(LeaseGranted(request.number, lease.lease, worker, pid, bool(fd), gpus), fd)

    def prepared(self, lease: Lease, reason: str) -> None:
        """What its worker needs is installed; or not, for this reason."""
        if self._node.book.leases.get(lease.lease) is not lease:
            return  # nobody wants it any more
        if not reason:
            self.perform([Granted(lease)])
            return
        self._deny(lease.holder, lease.request.number, reason, environment=True)
        self.perform(self._node.book.returned(lease.lease, lease.holder, self._node.now()))

    def is_unborn(self, lease: Lease) -> bool:
        """Whether its worker is being forked, or waits for what must be installed first."""
        return lease.worker in self._unborn or (lease.worker is None and self._node.environments.awaits(lease))

    def _deny(self, holder: int, number: int, reason: str, *, environment: bool = False) -> None:
        if self._node.far is not None:
            self._node.far.placing.denied_here(holder, number)
        if self._node.group_desk is not None:
            self._node.group_desk.granted(holder, number)
        if holder == NODE:
            self._node.actor_desk.denied(number, reason, environment=environment)
        else:
            self._node.tell(holder, LeaseDenied(number, reason, environment=environment))

    # -- what became of workers

    def started(self, worker: int) -> None:
        """Its fork has come about."""
        lease = self._unborn.pop(worker, None)
        if lease is not None:
            self._tries.pop(lease.lease, None)
            self._tell(lease, worker)

    def unborn(self, worker: int, reason: str) -> None:
        """Its fork has not: another one is tried, for a while."""
        lease = self._unborn.pop(worker, None)
        if lease is None:
            return
        tries = self._tries[lease.lease] = self._tries.get(lease.lease, 0) + 1
        if tries < FORKS_PER_LEASE_MAX:
            self.perform([Granted(lease)])
            return
        del self._tries[lease.lease]
        job = self._node.jobs.get(lease.request.job)
        installed = job is not None and job.venv is not None  # what that has, perhaps, is not what a worker needs
        reason = f"no worker could be started for it: {reason}"
        self._deny(lease.holder, lease.request.number, reason, environment=installed)
        self.perform(self._node.book.worker_gone(worker, self._node.now()))

    def died(self, process: Process, death: Death) -> None:
        """The worker is dead: its lease's holder hears what had begun and what was finished; it is itself no holder any
        more."""
        book, now, worker = self._node.book, self._node.now(), process.client
        self._unborn.pop(worker, None)
        self._within.pop(worker, None)
        self.perform(book.holder_gone(worker, now))
        lease = book.lease_of(worker)
        if lease is not None and lease.holder != NODE:
            started, count, items = process.page.post_mortem(lease.holder)
            replies = frames.join(count, items)[4:] + items if count else b""
            self._node.tell(
                lease.holder,
                LeaseLost(lease.lease, worker, started, replies, death.how, death.stderr, death.out_of_memory),
            )
        self.perform(book.worker_gone(worker, now))
