"""Tasks of one process on their way: from `f.remote()` to a worker, and back as values of refs.

Each scheduling class (resources) has a *lane*: the pure core that decides (`submission`) and the requests to the node.
A worker that we lease is a *target*: a connection on which tasks go out and replies come in, without the node. Methods
are called with the reactor's lock held unless they say otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from lattica.actors.records import Record, data_alone, fail, failed_dep, finish
from lattica.actors.refs import Hold, InPlace, ObjectRef
from lattica.actors.submission import LEASE_IDLE_S, REQUESTS_MAX, STALL_S, Lease, Submission
from lattica.codec import messages as m
from lattica.codec.frames import Decoder
from lattica.errors import (
    LatticaError,
    OutOfMemoryError,
    RemoteProtocolError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    TaskPlacementGroupRemovedError,
    TaskUnschedulableError,
    WorkerCrashedError,
)

if TYPE_CHECKING:
    from lattica.actors.runtime import Runtime
    from lattica.local.reactor import Link

SILENCE_S = 3.0
"""How long the node's word is waited for when a connection has ended: a death is told within one and a half."""
NEAR_BYTES = 1 << 20
"""Arguments of a task from this size on make it a task of the place where most of them lie: 8 ms at 1 Gbit/s, and a
lease of its own costs one."""
INPUTS_MAX = 8  # arguments that a node is told of, the largest
LANES_MAX = 1024
"""Lanes of one process; with more, tasks share the lane that goes anywhere. Each has 2 KB, and is looked at when idle
leases are searched."""
HERE, ELSEWHERE = -1, 0
"""Beside the numbers of other machines: where arguments lie."""
LEASE_MARGIN_S = 0.001
"""Timers fire this much late, so that what is due at the same time is done in one go."""


class TaskRecord(Record, eq=False):
    """One task until its refs have values."""

    lane: Lane
    function: bytes
    name: str
    lease: Lease | None = None
    slow: bool = False

    repeatable: ClassVar[bool] = True

    def __repr__(self) -> str:
        where = "waiting for arguments" if self.missing else f"on {self.lease}" if self.lease else "queued"
        return f"<Task {self.name}: {where}, {self.retries_left} retries left>"

    @property
    def data(self) -> bool:
        """See `Record`."""
        return self.lane.data

    def rerun(self) -> bool:
        """Queue it before the others of its class, or once what it needs is made again."""
        if self.lane.tasks.node_died:
            return False
        self.spend_retry()
        if any(ref._value is None for ref in self.deps):
            self.lane.tasks.submit(self)
        else:
            self.lane.core.retry(self)
            self.lane.pump(time.monotonic())
        return True


class Target:
    """A worker that runs tasks for us, now or (its lease returned) perhaps again."""

    __slots__ = ("at", "client", "eof", "exports", "lane", "lease", "link", "pid", "tasks", "via")

    def __init__(self, tasks: Tasks, client: int, pid: int, *, far: bool = False, host: int = 0) -> None:
        """far: it is on another machine, `host`."""
        self.tasks, self.client, self.pid = tasks, client, pid
        self.via = client if far else 0
        self.at = host if far else HERE
        self.link: Link = None  # type: ignore[assignment]
        self.exports: set[bytes] = set()
        self.lane: Lane | None = None
        self.lease: Lease | None = None
        self.eof = False

    def received(self, messages: list[Any]) -> None:
        """Replies and returned tasks, in order."""
        lane, lease = self.lane, self.lease
        if lane is None or lease is None:
            return
        core, now = lane.core, time.monotonic()
        for message in messages:
            if type(message) is m.Reply:
                task: Any = core.replied(lease, message.seq, message.micros, now)  # a record of ours
                if task is not None:
                    values = message.values
                    if lane.data:
                        values = data_alone(self.tasks.runtime, task, values, task.name)
                    finish(self.tasks.runtime, task, values, via=self.via, data=lane.data)
            elif type(message) is m.Item:
                self._item(lease, message)
            else:
                back = [lease.inflight[seq] for seq in message.seqs if seq in lease.inflight]
                core.returned(lease, message.seqs, message.blocked, now)
                self.tasks.forget_canceled(back)
        if not core.settled() or lease.yielding or lease.blocked:
            lane.pump(now)
        elif not lease.inflight:
            lane.arm(now + LEASE_IDLE_S)

    def _item(self, lease: Lease, item: m.Item) -> None:
        record: Any = lease.inflight.get(item.seq)
        if record is not None:
            record.stream.came(item, self.via)

    def ended(self) -> None:
        """End of stream: what it means is the node's to say (`LeaseLost`). If that says nothing the worker lives, and
        only the connection broke, which should not be: then it is of no use to us."""
        self.eof = True
        if self.lease is not None:
            self.doubt(self.lease)

    def doubt(self, lease: Lease) -> None:
        """Have the worker ended if we still hold it by then."""

        def silent() -> None:
            if self.lease is lease:
                why = f"killed by its caller, whose connection to it broke ({self.link.why or 'it ended'})"
                self.tasks.runtime.tell_node(m.WorkerKill(lease.id, 0, why))

        self.tasks.runtime.reactor.call_at(time.monotonic() + SILENCE_S, silent)


class Lane:
    """The shell of one scheduling class. data: of what its tasks make, data is taken and nothing else. near: where most
    of their arguments lie, of tasks with large ones; else None. base: the lane of the others."""

    __slots__ = (
        "_near", "_timer_at", "core", "data", "environment", "given", "near", "requests", "resources", "retryable",
        "tasks",
    )  # fmt: skip

    def __init__(
        self, tasks: Tasks, resources: dict[str, float], retryable: bool, given: bytes = b"", data: bool = False,
        near: int | None = None, base: Lane | None = None, environment: bytes = b"",
    ) -> None:  # fmt: skip
        self.tasks, self.resources, self.retryable, self.given = tasks, resources, retryable, given
        self.data, self.near, self.environment = data, near, environment
        self._near: dict[int, Lane] = {}
        self.core: Submission = Submission(tasks.next_seq, None if base is None else base.core)
        self.requests: list[int] = []
        self._timer_at = float("inf")

    def pump(self, now: float) -> None:
        """Carry out what the core wants."""
        moves = self.core.moves(now)
        tasks = self.tasks
        for lease, task in moves.push:
            tasks.push(task, lease)  # type: ignore[arg-type]
        if moves.requests:
            tasks.relinquish_idle(self, now)
            first = self._first(0)
            name = first.name if first is not None else ""
            work_s = self.core.expected_s(first.function) if first is not None else 0.0
            for _ in range(moves.requests):
                request = tasks.runtime.next_request()
                if self.near is not None:
                    first = self._first(len(self.requests))
                inputs = inputs_of(first.deps, first.args) if self.near is not None and first is not None else []
                self.requests.append(request)
                tasks.lanes_by_request[request] = self
                tasks.runtime.tell_node(
                    m.LeaseRequest(
                        request, self.resources, self.retryable, name, self.given, inputs, work_s, self.environment
                    )
                )
        for _ in range(moves.cancels):
            request = self.requests.pop()
            tasks.lanes_by_request.pop(request, None)
            tasks.runtime.tell_node(m.LeaseCancel(request))
        for lease in moves.reclaim:
            target: Any = lease.worker
            tasks.runtime.reactor.send(target.link, m.Reclaim(len(lease.inflight)))
        for lease in moves.returns:
            tasks.give_back(lease)
        due = self.core.next_deadline()
        if due is not None:
            self.arm(due)

    def _first(self, at: int) -> Any:
        """The task for which a lease is asked, of which `at` are asked for already: one that waits, here or behind
        another."""
        pending = self.core.pending
        if pending:
            return pending[min(at, len(pending) - 1)]
        return next((list(lease.inflight.values())[-1] for lease in self.core.leases.values() if lease.inflight), None)

    def toward(self, near: int) -> Lane:
        """The lane of the tasks of this class whose arguments lie there."""
        lane = self._near.get(near)
        if lane is None:
            if len(self.tasks.lanes) >= LANES_MAX:
                return self
            lane = Lane(self.tasks, self.resources, self.retryable, self.given, self.data, near, self, self.environment)
            self._near[near] = lane
            self.tasks.lanes[len(self.tasks.lanes), near] = lane
        return lane

    def arm(self, due: float) -> None:
        """Pump again at `due`; timers are lazy: one that comes too early sets the next."""
        if due < self._timer_at:
            self._timer_at = due
            self.tasks.runtime.reactor.call_at(due + LEASE_MARGIN_S, self._tick)

    def _tick(self) -> None:
        self._timer_at = float("inf")
        self.pump(time.monotonic())


class Tasks:
    """All tasks that this process submitted and that have not ended."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.next_seq = runtime.next_seq
        self.lanes: dict[tuple[Any, ...], Lane] = {}
        self.lanes_by_request: dict[int, Lane] = {}
        self.targets: dict[int, Target] = {}
        self.leases: dict[int, tuple[Lane, Lease]] = {}
        self.exports: dict[bytes, Any] = {}  # code of functions, as kept values
        self.max_calls: dict[bytes, int] = {}  # of those that have a limit
        self.node_died = False

    def __repr__(self) -> str:
        return f"<Tasks: {len(self.lanes)} classes, {len(self.leases)} leases>"

    @property
    def unfinished(self) -> bool:
        """Whether tasks are queued or run."""
        return any(lane.core.unfinished for lane in self.lanes.values())

    # -- out

    def lane(
        self, resources: dict[str, float], retryable: bool, given: bytes = b"", data: bool = False,
        environment: bytes = b"",
    ) -> Lane:  # fmt: skip
        """The lane of a scheduling class. given: where it may run, encoded. data: see `Lane`. environment: the key of
        what its workers have around them."""
        key = (*sorted(resources.items()), retryable, given, data, environment)
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(self, resources, retryable, given, data, environment=environment)
        return lane

    def submit(self, record: TaskRecord) -> None:
        """Send a task as soon as its arguments are there and a worker is."""
        deps = record.deps
        if deps:
            waiting = [ref for ref in deps if ref._value is None]
            if waiting:
                self.runtime.objects.ask(waiting)
                record.missing = len(waiting)
                self.runtime.waiting.add(record)
                for ref in waiting:
                    self.runtime.when_done(ref, lambda _ref: self._dep_ready(record))
                return
        self._ready(record)

    def _dep_ready(self, record: TaskRecord) -> None:
        record.missing -= 1
        if not record.missing and not record.canceled:
            self.runtime.waiting.discard(record)
            self._ready(record)

    def _ready(self, record: TaskRecord) -> None:
        failed = failed_dep(self.runtime, record) if record.deps else None
        if failed is not None:
            finish(self.runtime, record, [failed], final=True)
            return
        if self.node_died:
            fail(self.runtime, record, self.runtime.node_died_error())
            return
        lane = record.lane
        if record.deps or type(record.args) is Hold:
            near = place_of(record.deps, record.args)
            if near is not None:
                lane = record.lane = lane.toward(near)
        now = time.monotonic()
        lease = lane.core.submit(record, now)
        if lease is not None:
            self.push(record, lease)
            target: Any = lease.worker
            self.runtime.reactor.nudge(target.link, alone=len(lease.inflight) == 1)
            if len(lease.inflight) == 2:
                lane.arm(now + STALL_S)
        core = lane.core
        if core.requested < min(len(core.pending), REQUESTS_MAX) if lease is None else core.crowded(lease):
            lane.pump(now)
            self.runtime.nudge_node()

    def push(self, record: TaskRecord, lease: Lease) -> None:
        """Write the task to its worker's connection; the core has counted it there already."""
        target: Any = lease.worker
        objects = self.runtime.objects
        send = self.runtime.reactor.send
        if record.function not in target.exports:
            target.exports.add(record.function)
            code = objects.to_wire(self.exports[record.function], target.client)
            send(target.link, m.Export(record.function, code, self.max_calls.get(record.function, 0)))
        args = record.args
        wire = args if type(args) is bytes else objects.to_wire(args, target.client)
        if record.returns < 0:
            record.stream.begins(target.link)  # type: ignore[attr-defined]
        if record.deps:
            deps = [objects.dep_to_wire(ref, target.client) for ref in record.deps]
            task = m.Task(
                record.seq,
                record.refs[0].id,
                record.function,
                wire,
                record.returns,
                deps,
                record.at,
                record.name,
                record.attempt,
                record.lane.data,
            )
        else:
            task = m.Task(
                record.seq,
                record.refs[0].id,
                record.function,
                wire,
                record.returns,
                [],
                [],
                record.name,
                record.attempt,
                record.lane.data,
            )
        send(target.link, task)

    # -- leases

    def granted(self, message: m.LeaseGranted, fd: int | None) -> None:
        """A worker is ours; perhaps for the first time, then its connection came along."""
        target = self.targets.get(message.client)
        if fd is not None:
            target = self.targets[message.client] = Target(
                self, message.client, message.pid, far=message.far, host=message.host
            )
            target.link = self.runtime.connect(fd, m.FromWorker, target)
        assert target is not None, "a lease on a worker that we never met"
        lane = self.lanes_by_request.pop(message.request, None)
        if lane is None:  # canceled, too late
            self.runtime.tell_node(m.LeaseReturn(message.lease))
            return
        lane.requests.remove(message.request)
        now = time.monotonic()
        lease = lane.core.granted(message.lease, target, now)
        self.leases[message.lease] = lane, lease
        target.lane, target.lease = lane, lease
        if target.eof:
            target.doubt(lease)
        if message.far:
            self.runtime.objects.hosts[message.client] = message.host
        lane.pump(now)
        if lane.near is not None and lane.near != target.at:  # for one task: the next one is placed anew
            lease.yielding = True
            if not lease.inflight:
                lane.pump(now)

    def denied(self, message: m.LeaseDenied) -> None:
        """No worker like that will ever be had here."""
        lane = self.lanes_by_request.pop(message.request, None)
        if lane is None:
            return
        lane.requests.remove(message.request)
        denied: list[Any] = lane.core.denied()  # records of ours
        for record in denied:
            if message.environment:
                error: LatticaError = RuntimeEnvSetupError(f"task {record.name}: {message.reason}")
            else:
                kind = TaskPlacementGroupRemovedError if message.removed else TaskUnschedulableError
                error = kind(f"task {record.name} can never run here: {message.reason}")
            error.made_at = record.made_at
            fail(self.runtime, record, error)

    def give_back(self, lease: Lease) -> None:
        """Return a lease that holds nothing of ours."""
        target: Any = lease.worker
        target.lane = target.lease = None
        self.leases.pop(lease.id, None)
        self.runtime.tell_node(m.LeaseReturn(lease.id, *lease.ran))

    def relinquish_idle(self, asker: Lane, now: float) -> None:
        """Return idle leases of other lanes: this one is about to ask for the CPUs that they hold."""
        for lane in self.lanes.values():
            if lane is not asker:
                for lease in lane.core.leases.values():
                    lease.yielding = lease.yielding or not lease.inflight
                if any(lease.yielding for lease in lane.core.leases.values()):
                    lane.pump(now)

    def wanted(self) -> None:
        """Others wait for workers: every lane lets one go."""
        now = time.monotonic()
        for lane in self.lanes.values():
            lane.core.wanted(now)
            lane.pump(now)

    def lost(self, message: m.LeaseLost) -> None:
        """The worker died; hear its last words, charge the task that it ran, run the others elsewhere."""
        entry = self.leases.pop(message.lease, None)
        if entry is None:
            return
        lane, lease = entry
        target: Any = lease.worker
        self._hear_out(target)
        if message.replies:
            try:
                target.received(Decoder(m.FromWorker).decode(message.replies))
            except RemoteProtocolError:
                pass  # it died while it wrote
        charged, moved = lane.core.lost(lease, message.started, unknown=message.unknown)
        self.forget_canceled(moved)
        target.lane = target.lease = None
        self.targets.pop(message.client, None)
        for record in reversed(charged):  # each goes before the others
            if message.unknown:
                record.machine_gone(target.at)  # type: ignore[attr-defined]
            self._charge(record, message)  # type: ignore[arg-type]
        lane.pump(time.monotonic())

    def _hear_out(self, target: Any) -> None:
        """Read what the dead worker had sent; then close."""
        if not target.eof:
            target.received(target.link.stream.drain())
            self.runtime.reactor.remove(target.link)

    def _charge(self, record: TaskRecord, message: m.LeaseLost) -> None:
        self.runtime.tell_node(m.Unheard(record.unheard, message.client, record.attempt))
        if record.canceled:
            fail(self.runtime, record, TaskCancelledError(name=record.name, task_id=record.refs[0].hex()))
        elif record.retries_left:
            record.spend_retry()
            record.lane.core.retry(record)
        elif message.out_of_memory:
            fail(self.runtime, record, OutOfMemoryError(f"task {record.name}: {message.how}"))
        else:
            fail(self.runtime, record, crashed(record.name, message.how, message.stderr, record.made_at))

    def gone(self, client: int) -> None:
        """A worker that we knew has ended while we did not lease it."""
        target = self.targets.pop(client, None)
        if target is not None and target.lease is None:
            self.runtime.reactor.remove(target.link)

    def died(self) -> None:
        """The node is gone, and with it every worker."""
        self.node_died = True
        for lane in self.lanes.values():
            for record in lane.core.drop_all():
                fail(self.runtime, record, self.runtime.node_died_error())  # type: ignore[arg-type]
        self.leases.clear()
        self.lanes_by_request.clear()

    # -- cancel

    def cancel(self, record: TaskRecord, *, force: bool, recursive: bool) -> None:
        """Stop a task that has not ended: forget it, or tell its worker."""
        record.canceled = True
        error = TaskCancelledError(name=record.name, task_id=record.refs[0].hex() if record.refs else "")
        lease = record.lease
        if lease is None:
            record.lane.core.withdraw(record)
            self.runtime.waiting.discard(record)
            fail(self.runtime, record, error)
            self.runtime.reactor.changed()
        elif force and next(iter(lease.inflight)) == record.seq:
            self.runtime.tell_node(m.WorkerKill(lease.id, record.seq, "killed by lattica.cancel(force=True)"))
        else:
            target: Any = lease.worker
            self.runtime.reactor.send(target.link, m.Cancel(record.seq, recursive))
        self.runtime.reactor.flush()

    def forget_canceled(self, back: Iterable[Any]) -> None:
        """Tasks have come back unstarted and wait again: not those that were cancelled on their way."""
        for record in back:
            if record.canceled:
                record.lane.core.withdraw(record)
                fail(self.runtime, record, TaskCancelledError(name=record.name, task_id=record.refs[0].hex()))


def place_of(deps: list[ObjectRef], args: Any = b"") -> int | None:
    """Where most of the arguments lie, if they are large: HERE, ELSEWHERE, or the machine's number."""
    sizes: dict[int, int] = {}
    for ref in deps:
        value = ref._value
        if type(value) is InPlace:
            hold = value.hold
            at = HERE if hold.offset >= 0 else hold.at
            sizes[at] = sizes.get(at, 0) + hold.size
    if type(args) is Hold:
        sizes[HERE] = sizes.get(HERE, 0) + args.size
    if sum(sizes.values()) < NEAR_BYTES:
        return None
    return max(sizes, key=lambda at: sizes[at])


def inputs_of(deps: list[ObjectRef], args: Any = b"") -> list[tuple[bytes, int]]:
    """The largest arguments, for the node, which knows where they lie."""
    holds = [ref._value.hold for ref in deps if type(ref._value) is InPlace]
    if type(args) is Hold:
        holds.append(args)
    holds.sort(key=lambda hold: -hold.size)
    return [(hold.id, hold.size) for hold in holds[:INPUTS_MAX]]


def crashed(name: str, how: str, stderr: str, made_at: str = "") -> WorkerCrashedError:
    """The error for a task whose worker died; `how` as the node words it."""
    error = WorkerCrashedError(
        f"task {name} did not finish: its worker {_ended(how)}.", task=name, stderr_tail=stderr, made_at=made_at
    )
    if how.startswith("killed by SIG"):
        error.signal = how.split()[2]
    elif how.startswith("exit code "):
        error.exit_code = int(how.split()[2])
    return error


def _ended(how: str) -> str:
    return (
        f"was {how}" if how.startswith("killed") else f"ended with {how}" if how.startswith("exit") else f"ended: {how}"
    )
