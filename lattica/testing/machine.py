"""The processes of one machine as participants of a world: node, drivers and workers around their real cores.

`LeaseBook`, `WorkerPool` and `ResourcePool` decide in the node, `Submission` in every process that submits. The shells
here carry their messages, as `node.lease_desk`, `actors.tasks` and `actors.worker` do between processes; they assert
what only they can see: no task starts more often than its retries allow, none is charged that had not started, none
runs after its result has arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from lattica.actors.submission import Lease, Submission
from lattica.node.pool import WorkerPool
from lattica.scheduler.leases import Asked, Denied, Effect, Granted, LeaseBook, Orphaned, WorkerFreed
from lattica.scheduler.resources import ResourcePool, ResourceSet
from lattica.testing.world import Closed, Send, World

ONE_CPU = ResourceSet.of({"CPU": 1})
FORK_S = (0.002, 0.006)  # as measured, from a warm zygote
NODE = "node"


@dataclass(frozen=True, slots=True)
class Plan:
    """A function and what it will do: run, get its children, run again. Several plans may be one function's."""

    function: bytes
    run_s: float
    children: tuple[Plan, ...] = ()
    resources: ResourceSet = ONE_CPU
    retries: int = 3

    def __len__(self) -> int:
        return 1 + sum(map(len, self.children))


@dataclass(eq=False, slots=True)
class Task:
    """One submission of a plan; the first four fields are those that `Submission` wants."""

    function: bytes
    seq: int = 0
    lease: Lease | None = None
    slow: bool = False
    plan: Plan = field(default_factory=lambda: Plan(b"", 0))
    starts: int = 0
    charged: int = 0
    result: str = ""  # "", "done", "crashed", "denied"

    def __repr__(self) -> str:
        return f"<{self.function.decode()} #{self.seq}>"


@dataclass(frozen=True, slots=True)
class Request:
    """From a submitter to the node: a worker with these resources is wanted."""

    number: int
    resources: ResourceSet


@dataclass(frozen=True, slots=True)
class Cancel:
    """From a submitter to the node: that request is void."""

    number: int


@dataclass(frozen=True, slots=True)
class Grant:
    """From the node to a submitter: this worker is its own until it returns the lease."""

    number: int
    lease: int
    worker: str


@dataclass(frozen=True, slots=True)
class Deny:
    """From the node to a submitter: no worker can ever have that much."""

    number: int


@dataclass(frozen=True, slots=True)
class Return:
    """From a submitter to the node: it has no more tasks for that worker."""

    lease: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """From the node to submitters: others wait, so give back what is idle."""


@dataclass(frozen=True, slots=True)
class Lost:
    """`started`: what the page of the dead worker says it ran for this holder, 0 for nothing."""

    lease: int
    worker: str
    started: int


@dataclass(frozen=True, slots=True)
class Blocked:
    """From a worker to the node: its task waits for others, or goes on."""

    blocked: bool


@dataclass(frozen=True, slots=True)
class Run:
    """From a submitter to a worker. seq: counts up over this lease."""

    seq: int
    task: Task


@dataclass(frozen=True, slots=True)
class Reply:
    """From a worker to a submitter. micros: how long the function ran."""

    seq: int
    micros: int


@dataclass(frozen=True, slots=True)
class Reclaim:
    """From a submitter to a worker: give back so many tasks that have not begun."""

    count: int


@dataclass(frozen=True, slots=True)
class Returned:
    """From a worker to a submitter: these have not begun. blocked: because the one before them waits."""

    seqs: tuple[int, ...]
    blocked: bool = False


class Node:
    """The desk of leases: the book says who may, the pool which worker."""

    def __init__(self, world: World, total: ResourceSet) -> None:
        self.world = world
        self.resources = ResourcePool(total)
        self.book = LeaseBook(self.resources)
        self.pool = WorkerPool(keep=int(total["CPU"]))
        self.numbers: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.jobs: dict[int, int] = {}  # client -> job
        self.doomed: set[int] = set()  # workers to end, perhaps as soon as they have been forked

    def join(self, name: str, job: int) -> int:
        number = len(self.numbers) + 1
        self.numbers[name], self.names[number] = number, name
        self.jobs[number] = job or number
        return number

    def receive(self, sender: str, message: object, now: float) -> Sequence[object]:
        client = self.numbers[sender]
        match message:
            case Request(number, resources):
                effects = self.book.request(client, number, self.jobs[client], resources, now)
            case Cancel(number):
                effects = self.book.cancel(client, number, now)
            case Return(lease):
                effects = self.book.returned(lease, client, now)
            case Blocked(blocked):
                effects = self.book.blocked(client, blocked, now)
            case Closed():
                return self._gone(sender, client, now)
            case _:
                raise AssertionError(f"the node does not expect {message}")
        return self._perform(effects, now)

    def tick(self, now: float) -> Sequence[object]:
        for client in self.pool.tick(now):
            self.world.after(0, self.world.crash, self.names[client])
        return self._perform(self.book.tick(now), now)

    def next_deadline(self) -> float | None:
        return min((due for due in (self.book.next_deadline(), self.pool.next_deadline()) if due), default=None)

    def validate(self) -> None:
        self.book.validate()
        self.pool.validate()
        self.resources.validate()

    def _perform(self, effects: list[Effect], now: float) -> list[object]:
        sends: list[object] = []
        for effect in effects:
            match effect:
                case Granted(lease):
                    job = lease.request.job
                    worker = self.pool.take(job, now)
                    if worker is None:
                        worker = self.join(f"worker {len(self.numbers) + 1}", job)
                        self.pool.added(worker, job, now, free=False)
                        self._fork(worker, lease.holder, Grant(lease.request.number, lease.lease, self.names[worker]))
                    else:
                        grant = Grant(lease.request.number, lease.lease, self.names[worker])
                        sends.append(self._introduce(lease.holder, grant))
                    self.book.placed(lease.lease, worker)
                case Denied(holder, number, _):
                    sends.append(Send(self.names[holder], Deny(number)))
                case Asked(holder):
                    sends.append(Send(self.names[holder], Wanted()))
                case WorkerFreed(worker):
                    self.pool.idle(worker, now)
                case Orphaned(lease):
                    self._end(lease.worker or 0, now)  # placed at once, so never 0
        return sends

    def _fork(self, worker: int, holder: int, grant: Grant) -> None:
        name = self.names[worker]

        def started() -> None:
            self.world.add(name, Worker)
            self.world.connect(name, NODE)
            if worker in self.doomed:
                self.world.crash(name)
            else:
                self.world.tell(NODE, "forked", holder, grant)

        self.world.after(self.world.rng.uniform(*FORK_S), started)

    def forked(self, holder: int, grant: Grant, now: float) -> Sequence[object]:
        return [self._introduce(holder, grant)]

    def _introduce(self, holder: int, grant: Grant) -> Send:
        self.world.connect(grant.worker, self.names[holder])
        return Send(self.names[holder], grant)

    def _end(self, worker: int, now: float) -> None:
        self.pool.ending(worker, now)
        self.doomed.add(worker)
        if self.world.is_alive(self.names[worker]):
            self.world.after(0, self.world.crash, self.names[worker])

    def _gone(self, name: str, client: int, now: float) -> list[object]:
        sends: list[object] = []
        effects: list[Effect] = []
        lease = self.book.lease_of(client)
        if lease is not None:
            if lease.holder:
                holder = self.names[lease.holder]
                started = self.world.core(name).page if self.world.core(name).page_for == holder else 0
                sends.append(Send(holder, Lost(lease.lease, name, started)))
            effects += self.book.worker_gone(client, now)
        self.pool.gone(client)
        effects += self.book.holder_gone(client, now)
        if client == self.jobs[client]:
            for worker in self.pool.of_job(client):
                self._end(worker, now)
        return sends + self._perform(effects, now)


class Submitter:
    """A process that submits tasks: one lane per scheduling class, as in `actors.tasks`."""

    def __init__(self) -> None:
        self._seqs = count(1)
        self._numbers = count(1)
        self.lanes: dict[ResourceSet, Submission] = {}
        self.requests: dict[int, ResourceSet] = {}
        self.targets: dict[str, tuple[ResourceSet, Lease]] = {}
        self.timers: dict[ResourceSet, float] = {}
        self.closed: set[str] = set()
        self.lost: dict[str, Lost] = {}  # deaths told by the node while the worker's last words are still to be read

    def submit(self, task: Task, now: float) -> list[object]:
        lane = self.lanes.setdefault(task.plan.resources, Submission(lambda: next(self._seqs)))
        lease = lane.submit(task, now)
        pushed: list[object] = [] if lease is None else [Send(str(lease.worker), Run(task.seq, task))]
        return pushed + self._pump(task.plan.resources, now)

    def receive(self, sender: str, message: object, now: float) -> Sequence[object]:
        match message:
            case Grant(number, lease_id, worker):
                if number not in self.requests:
                    return [Send(NODE, Return(lease_id))]
                key = self.requests.pop(number)
                self.targets[worker] = key, self.lanes[key].granted(lease_id, worker, now)
                return self._pump(key, now)
            case Deny(number):
                if number not in self.requests:
                    return []
                key = self.requests.pop(number)
                denied = [self._ended(task, "denied", now) for task in self._denied(key)]
                return [effect for effects in denied for effect in effects]
            case Wanted():
                for lane in self.lanes.values():
                    lane.wanted(now)
                return [move for key in list(self.lanes) for move in self._pump(key, now)]
            case Reply(seq, micros) if sender in self.targets:
                key, lease = self.targets[sender]
                task = self.lanes[key].replied(lease, seq, micros, now)
                assert task is not None, f"{sender} answered {seq}, which is not its to answer"
                return [*self._ended(task, "done", now), *self._pump(key, now)]  # type: ignore[arg-type]
            case Returned(seqs, blocked) if sender in self.targets:
                key, lease = self.targets[sender]
                self.lanes[key].returned(lease, list(seqs), blocked, now)
                return self._pump(key, now)
            case Lost(_, worker, _):
                self.lost[worker] = message
                return self._bury(worker, now)
            case Closed():
                self.closed.add(sender)
                return self._bury(sender, now)
        return []

    def _denied(self, key: ResourceSet) -> list[Task]:
        return self.lanes[key].denied()  # type: ignore[return-value]

    def _bury(self, worker: str, now: float) -> list[object]:
        """Once its last words are read, and the node has said what it ran: charge that one, the others move."""
        if worker not in self.closed or worker not in self.lost or worker not in self.targets:
            return []
        key, lease = self.targets[worker]
        told = self.lost.pop(worker)
        if told.lease != lease.id:
            return []
        del self.targets[worker]
        began, _ = self.lanes[key].lost(lease, told.started)
        effects: list[object] = []
        for charged in began:
            assert isinstance(charged, Task)
            charged.charged += 1
            assert charged.starts >= charged.charged, f"{charged} was charged for what it did not run"
            if charged.charged <= charged.plan.retries:
                self.lanes[key].retry(charged)
            else:
                effects += self._ended(charged, "crashed", now)
        return effects + self._pump(key, now)

    def _pump(self, key: ResourceSet, now: float) -> list[object]:
        lane = self.lanes[key]
        moves = lane.moves(now)
        effects: list[object] = [Send(str(lease.worker), Run(task.seq, task)) for lease, task in moves.push]  # type: ignore[arg-type]
        if moves.requests:
            effects += self._relinquish_idle(key, now)
        for _ in range(moves.requests):
            number = next(self._numbers)
            self.requests[number] = key
            effects.append(Send(NODE, Request(number, key)))
        mine = [number for number, other in self.requests.items() if other == key]
        for number in mine[len(mine) - moves.cancels :]:
            del self.requests[number]
            effects.append(Send(NODE, Cancel(number)))
        effects += [Send(str(lease.worker), Reclaim(len(lease.inflight))) for lease in moves.reclaim]
        for lease in moves.returns:
            del self.targets[str(lease.worker)]
            effects.append(Send(NODE, Return(lease.id)))
        due = lane.next_deadline()
        if due is not None:
            self.timers[key] = min(due + 0.001, self.timers.get(key, float("inf")))
        return effects

    def _relinquish_idle(self, asker: ResourceSet, now: float) -> list[object]:
        effects: list[object] = []
        for key, lane in self.lanes.items():
            if key != asker:
                for lease in lane.leases.values():
                    lease.yielding = lease.yielding or not lease.inflight
                effects += self._pump(key, now) if any(lease.yielding for lease in lane.leases.values()) else []
        return effects

    def tick(self, now: float) -> list[object]:
        due = [key for key, when in self.timers.items() if when <= now]
        for key in due:
            del self.timers[key]
        return [move for key in due for move in self._pump(key, now)]

    def next_deadline(self) -> float | None:
        return min(self.timers.values(), default=None)

    def validate(self) -> None:
        for lane in self.lanes.values():
            lane.validate()

    def _ended(self, task: Task, result: str, now: float) -> list[object]:
        assert not task.result, f"{task} ended twice: {task.result}, then {result}"
        task.result = result
        return []


class Worker(Submitter):
    """Runs one task at a time. Its queue goes back when the task that runs waits for its children."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: deque[tuple[str, Run]] = deque()
        self.page, self.page_for = 0, ""  # what it runs and for whom; read by the node after its death
        self.running: tuple[str, Run] | None = None
        self.since = 0.0
        self.wakes_at: float | None = None
        self.waits_for: list[Task] | None = None  # the children of the running task, while it blocks

    def receive(self, sender: str, message: object, now: float) -> Sequence[object]:
        match message:
            case Run():
                self.queue.append((sender, message))
                if self.waits_for is not None:
                    return self._give_back(sender, len(self.queue), blocked=True)
                return self._start(now)
            case Reclaim(wanted):
                return self._give_back(sender, wanted, blocked=False)
            case Closed():
                self.queue = deque(entry for entry in self.queue if entry[0] != sender)
        return super().receive(sender, message, now)

    def _give_back(self, holder: str, wanted: int, *, blocked: bool) -> list[object]:
        seqs: list[int] = []
        while self.queue and len(seqs) < wanted and self.queue[-1][0] == holder:
            seqs.insert(0, self.queue.pop()[1].seq)
        return [Send(holder, Returned(tuple(seqs), blocked))]

    def _start(self, now: float) -> list[object]:
        if self.running is not None or not self.queue:
            return []
        self.running = holder, run = self.queue.popleft()
        self.page, self.page_for = run.seq, holder
        run.task.starts += 1
        assert not run.task.result, f"{run.task} runs although it has ended: {run.task.result}"
        assert run.task.starts <= 1 + run.task.plan.retries, f"{run.task} started {run.task.starts} times"
        self.since, self.wakes_at = now, now + run.task.plan.run_s
        return []

    def tick(self, now: float) -> list[object]:
        effects = super().tick(now)
        if self.wakes_at is None or self.wakes_at > now:
            return effects
        assert self.running is not None
        holder, run = self.running
        self.wakes_at = None
        if run.task.plan.children and self.waits_for is None:
            self.waits_for = [Task(plan.function, plan=plan) for plan in run.task.plan.children]
            effects += [Send(NODE, Blocked(True)), *self._give_back(holder, len(self.queue), blocked=True)]
            for child in self.waits_for:
                effects += self.submit(child, now)
            return effects
        self.waits_for = self.running = None
        self.page, self.page_for = 0, ""
        return [*effects, Send(holder, Reply(run.seq, int((now - self.since) * 1e6))), *self._start(now)]

    def _ended(self, task: Task, result: str, now: float) -> list[object]:
        super()._ended(task, result, now)
        if self.waits_for is None or not all(child.result for child in self.waits_for):
            return []
        self.wakes_at = now + 1e-6
        return [Send(NODE, Blocked(False))]

    def next_deadline(self) -> float | None:
        return min((due for due in (super().next_deadline(), self.wakes_at) if due is not None), default=None)
