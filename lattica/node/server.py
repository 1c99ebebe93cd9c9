"""The node of one machine: its clients, its jobs, and the desks that serve them.

    driver, worker, command ──messages──► Node.received ──► lease_desk · actor_desk · store_desk · job_desk · state
                                                              │ effects of pure cores (book, supervisor, ledger, pool)
                                                              ▼
                                            messages to clients · workers forked and ended

This file composes: it admits clients, forwards their messages to the desk that knows, and tells all desks of a death.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from itertools import count
from time import time
from typing import TYPE_CHECKING, Any

import msgspec

from lattica._version import __version__
from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from lattica.node import reasons
from lattica.node.actor_desk import ActorDesk
from lattica.node.clients import AWAY, COMMAND, DRIVER, GUEST, WORKER, Client, Job
from lattica.node.environment_desk import EnvironmentDesk, behind_modules
from lattica.node.history import History
from lattica.node.job_desk import FAREWELL_S, JobDesk
from lattica.node.lease_desk import LeaseDesk
from lattica.node.log_desk import LogDesk
from lattica.node.loop import Loop, Timer
from lattica.node.memory_desk import MemoryDesk
from lattica.node.memory_monitor import THRESHOLD
from lattica.node.memory_readings import MemoryReader
from lattica.node.pool import WorkerPool
from lattica.node.spawn import NOTHING_HIDDEN
from lattica.node.state import StateDesk
from lattica.node.store_desk import StoreDesk
from lattica.node.wires import Wire, Wires
from lattica.node.workers import Death, Process, Workers
from lattica.objectstore.arena import Arena
from lattica.scheduler.environments import NOTHING, at_load
from lattica.scheduler.leases import LeaseBook
from lattica.scheduler.load import Load
from lattica.scheduler.resources import ResourcePool, ResourceSet

if TYPE_CHECKING:
    from lattica.node.drain import Drain
    from lattica.node.far_desk import FarDesk
    from lattica.node.group_desk import GroupDesk
    from lattica.node.job_runs import JobRuns
    from lattica.node.look_here import LookHere
    from lattica.node.mesh_desk import MeshDesk
    from lattica.node.refs_desk import RefsDesk

log = logging.getLogger(__name__)
TOKEN_BYTES = 8
INLINE_MAX_BYTES = 100 << 10
"""Largest value that travels inside a message; larger ones lie in the arena."""
TERM_S = 1.0  # between SIGTERM and SIGKILL when the node ends
LEAVE_S = 2.0
"""How long an actor that said it leaves may take to run its exit handlers after we have closed its connection."""
CLOSE_S = 1.8
"""After which a node that ends is gone, whatever has become of its processes."""
ANYONE = frozenset({DRIVER, WORKER, COMMAND})
RUNNERS = frozenset({DRIVER, WORKER})
WORKERS = frozenset({WORKER})
COMMANDS = frozenset({COMMAND})


class Settings(msgspec.Struct, frozen=True):
    """What the command line decided. `embedded`: serves one driver and ends with it."""

    node: bytes
    session_dir: str
    resources: ResourceSet
    embedded: bool
    paths: str  # JSON list of import paths for zygotes
    data_dir: str = ""  # "": embedded
    memory_threshold: float = THRESHOLD
    hidden: str = NOTHING_HIDDEN  # folders that workers may not see, as of `confine.fingerprints`
    labels: Mapping[str, str] = {}
    spill_to: str = ""  # the folder of folders with what does not fit into memory; "": nowhere
    spill_limit: int = 0  # bytes; 0: what leaves a part of the disk free
    gpus: tuple[str, ...] = ()  # what CUDA_VISIBLE_DEVICES calls them; one beyond is called by its index


class Node:
    """One machine."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        arena: Arena,
        memory: MemoryReader,
        headroom: Callable[[], int],
    ) -> None:
        """headroom: bytes of memory that the machine has left for the object store."""
        self.loop, self.settings, self.now = loop, settings, loop.time
        self.started_at = time()
        self.wires = Wires(loop)
        self.resources = ResourcePool(settings.resources)
        self.book = LeaseBook(self.resources)
        self.pool = WorkerPool(keep=max(1, int(settings.resources.get("CPU", 0))))
        self.logs = LogDesk(self, os.path.join(settings.session_dir, "logs"))
        self.workers = Workers(
            self.wires, settings.paths, self.logs,
            self._worker_said, self._worker_started, self._worker_unborn, self._worker_died, settings.hidden,
        )  # fmt: skip
        self.store = StoreDesk(self, arena, headroom)
        self.store.spill_to, self.store.spill_limit = settings.spill_to, settings.spill_limit
        self.lease_desk = LeaseDesk(self)
        self.environments = EnvironmentDesk(self)
        self.actor_desk = ActorDesk(self)
        self.job_desk = JobDesk(self)
        self.state = StateDesk(self)
        self.history = History(self)
        self.memory = MemoryDesk(self, memory, settings.memory_threshold)
        self.clients: dict[int, Client] = {}
        self.jobs: dict[int, Job] = {}
        self.mesh: MeshDesk | None = None  # of a node that `lattica start` began
        self.far: FarDesk | None = None  # likewise
        self.metrics_at = ""  # their URL, if they are served
        self._refs: RefsDesk | None = None  # once somebody wants to know who holds what
        self._look_here: LookHere | None = None  # once a command asks a node without a mesh
        self.group_desk: GroupDesk | None = None  # once somebody has asked for a place
        self.runs: JobRuns | None = None  # likewise
        self.drain: Drain | None = None  # likewise
        self.draining = False  # it takes nothing new
        self.closing = False
        self._numbers, self._job_numbers = count(1), count(1)
        self._timer: Timer | None = None
        self._handlers = self._table()

    def __repr__(self) -> str:
        return f"<Node {self.settings.node.hex()[:8]}: {len(self.clients)} clients, {self.pool!r}, {self.book!r}>"

    def _table(self) -> dict[type, tuple[frozenset[str], Callable[[Client, Any], None]]]:
        """Message -> who may send it, and the desk that answers."""
        leases, actors, store = self.lease_desk, self.actor_desk, self.store
        return {
            m.Seal: (RUNNERS, store.seal),
            m.Give: (RUNNERS, store.gave),
            m.Hold: (RUNNERS, store.hold),
            m.Drop: (RUNNERS, store.drop),
            m.Promise: (RUNNERS, store.promise),
            m.Resolve: (RUNNERS, store.resolve),
            m.CancelObject: (RUNNERS, store.cancel),
            m.Unheard: (RUNNERS, store.unheard),
            m.FromAfar: (RUNNERS, store.imported),
            m.SpanRequest: (RUNNERS, store.span),
            m.SpanReturn: (RUNNERS, store.span_back),
            m.SpanCancel: (RUNNERS, store.cancel_span),
            m.Evicted: (RUNNERS, store.evicted),
            m.Refs: (RUNNERS, lambda client, message: self.refs.told(client, message)),
            m.LeaseRequest: (RUNNERS, leases.request),
            m.LeaseCancel: (RUNNERS, leases.cancel),
            m.LeaseReturn: (RUNNERS, leases.returned),
            m.WorkerKill: (RUNNERS, leases.kill),
            m.Blocked: (WORKERS, leases.blocked),
            m.Owes: (WORKERS, leases.owes),
            m.ActorCreate: (RUNNERS, actors.create),
            m.ActorArguments: (RUNNERS, actors.arguments),
            m.ActorConnect: (RUNNERS, actors.connect),
            m.ActorLookup: (RUNNERS, actors.lookup),
            m.ActorKill: (ANYONE, actors.kill),
            m.ActorReady: (WORKERS, actors.ready),
            m.ActorFailed: (WORKERS, actors.failed),
            m.ActorExit: (WORKERS, actors.leaving),
            m.ActorCheckpoint: (WORKERS, actors.checkpoints.taken),
            m.GroupCreate: (RUNNERS, lambda client, message: self.groups.create(client, message)),
            m.GroupRemove: (RUNNERS, lambda client, message: self.groups.remove(client, message)),
            m.GroupWanted: (RUNNERS, lambda client, message: self.groups.want(client, message)),
            m.StateRequest: (ANYONE, self.state.request),
            m.EnvironmentIs: (RUNNERS, self.environments.told),
            m.Why: (RUNNERS, lambda client, message: reasons.answer(self, client, message)),
            m.MeshRequest: (COMMANDS, self._mesh_request),
            m.Shutdown: (ANYONE, self.job_desk.shutdown),
        }

    @property
    def refs(self) -> RefsDesk:
        """Who holds which object; for `lattica memory`."""
        if self._refs is None:
            from lattica.node.refs_desk import RefsDesk

            self._refs = RefsDesk(self)
        return self._refs

    @property
    def groups(self) -> GroupDesk:
        """Placement groups. It and what it needs cost a start 20 ms, and most programs have none."""
        if self.group_desk is None:
            from lattica.node.group_desk import GroupDesk

            self.group_desk = GroupDesk(self)
        return self.group_desk

    # -- clients

    def accept_driver(self, sock: socket.socket) -> None:
        """The script of a submitted job has connected: it is a driver, and nothing else."""
        self.accept(sock, frozenset({DRIVER}))

    def accept(self, sock: socket.socket, kinds: frozenset[str] = ANYONE) -> None:
        """Somebody has connected; the first message must be `Hello`. kinds: what it may be."""

        def received(messages: list[Any]) -> None:
            if admitted:
                self.received(admitted[0], messages)
                return
            if not isinstance(messages[0], m.Hello):
                raise RemoteProtocolError(f"the first message was {type(messages[0]).__name__}, not Hello")
            if messages[0].kind not in kinds:
                raise RemoteProtocolError(f"a {messages[0].kind[:40]} may not connect here")
            client = self._admit(wire, messages[0])
            if client is not None:
                admitted.append(client)
                self.received(client, messages[1:])

        def ended(reason: str) -> None:
            if admitted:
                self.client_gone(admitted[0], reason or "it ended")

        admitted: list[Client] = []
        wire = Wire(self.wires, sock, m.FromClient, received, ended, name="a new client")

    def _admit(self, wire: Wire, hello: m.Hello) -> Client | None:
        if reason := self._objection(hello):
            log.warning("%s is refused: %s", wire.name, reason)
            wire.send(m.Refused(reason))
            wire.close()
            return None
        number = next(self._numbers)
        job = self.job_desk.begin(number, hello) if hello.kind == DRIVER else None
        wire.name = f"{hello.kind} {number} (pid {hello.pid})"
        client = Client(number, hello.kind, job.number if job else 0, wire, time(), hello.pid)
        token = self._join(client)
        welcome = m.Welcome(
            number, client.job, self.settings.node, self.settings.session_dir, self.store.arena.size_bytes,
            self.config_for(job.namespace if job else ""), token,
        )  # fmt: skip
        client.send(welcome, [os.dup(self.store.arena.fd)])
        if job:
            wire.last_word = m.Refused
            self._watch(client)
            self.job_desk.prepare(job)
        return client

    def _watch(self, driver: Client) -> None:
        """Hear of a driver's death even while a child that it forked keeps its socket open."""
        try:
            driver.pidfd = os.pidfd_open(driver.wire.stream.peer_credentials()[0])
        except OSError:
            return  # of another pid namespace, or dead: then its socket says so
        self.loop.add_reader(driver.pidfd, driver.wire.close_for, "its process has ended")

    def _objection(self, hello: m.Hello) -> str:
        """Why this client cannot be served; "" if it can."""
        if hello.protocol != m.PROTOCOL:
            side = "this program's lattica" if hello.protocol < m.PROTOCOL else "the node's lattica"
            return f"protocol {hello.protocol} meets protocol {m.PROTOCOL} (lattica {__version__}): update {side}"
        if hello.kind not in (DRIVER, COMMAND):
            return f"a client is a driver or a command, not {hello.kind[:40]!r}"
        if hello.kind == DRIVER and not os.access(hello.python, os.X_OK):
            return f"its interpreter {hello.python!r} cannot be run by the node"
        if hello.kind == DRIVER and self.mesh is not None and (reason := self.mesh.objection_to_programs()):
            return reason
        for place in self.job_desk.places(hello):
            if hider := self.workers.zygotes.hider_of(place):
                return f"{place} lies in {hider}, which tasks see empty: move it, or choose another data directory"
        if self.settings.embedded and self.jobs and hello.kind == DRIVER:
            return "this node belongs to one program and serves no other"
        return ""

    def _join(self, client: Client) -> bytes:
        """Make it one of ours; the token that its ids begin with."""
        token = os.urandom(TOKEN_BYTES)
        self.clients[client.number] = client
        self.store.joined(client.number, token)
        return token

    def config_for(self, namespace: str) -> dict[str, object]:
        """What a driver or worker is told when it has joined."""
        return {
            "inline_max": INLINE_MAX_BYTES,
            "num_cpus": self.settings.resources.get("CPU", 0),
            "embedded": self.settings.embedded,
            "gpus": self.settings.gpus,
            "namespace": namespace,
            "version": __version__,
        }

    def received(self, client: Client, messages: list[Any]) -> None:
        """Each message to its desk. Raises RemoteProtocolError for one that this kind of client may not send."""
        if self.closing:
            return
        for message in messages:
            allowed, handle = self._handlers.get(type(message), (frozenset(), None))
            if handle is None or client.kind not in allowed:
                raise RemoteProtocolError(f"a {client.kind} may not send {type(message).__name__}")
            try:
                handle(client, message)
            except RemoteProtocolError:
                raise
            except Exception as error:  # a bug of ours, or a message that nobody foresaw: it ends one client, not all
                log.exception("%s of %r", type(message).__name__, client)
                raise RemoteProtocolError(f"its {type(message).__name__} could not be handled: {error!r}") from error

    def _mesh_request(self, client: Client, message: m.MeshRequest) -> None:
        if self.mesh is not None:
            return self.mesh.request(client, message)
        if self._look_here is None:
            from lattica.node.look_here import LookHere

            self._look_here = LookHere(self)
        return self._look_here.request(client, message)

    def tell(self, client: int, message: msgspec.Struct) -> None:
        """Send to a client by number, if it still lives."""
        entry = self.clients.get(client)
        if entry is not None:
            entry.send(message)

    def new_number(self) -> int:
        """For a client that is no connection here."""
        return next(self._numbers)

    def connect(self, caller: Client, worker: int) -> list[int]:
        """Connect the two: the caller's end, as a list of one descriptor; the worker is told and gets the other."""
        entry = self.clients[worker]
        theirs, ours = self.wires.pairs()
        entry.send(m.NewCaller(caller.number), [theirs])
        caller.peers.add(worker)
        caller.callees.add(worker)
        entry.peers.add(caller.number)
        return [ours]

    def client_gone(self, client: Client, how: str) -> None:
        """A driver or command has ended, or was dropped; or a worker has died."""
        if self.closing or self.clients.pop(client.number, None) is None:
            return
        client.wire.close()
        if client.pidfd >= 0:
            self.loop.remove_reader(client.pidfd)
            os.close(client.pidfd)
        for peer in client.peers:
            if peer in self.clients:
                self.clients[peer].peers.discard(client.number)
                self.clients[peer].callees.discard(client.number)
                self.tell(peer, m.ClientGone(client.number))
        if client.kind == DRIVER:
            self.job_desk.end(self.jobs[client.job], farewell=False)
        self.lease_desk.perform(self.book.holder_gone(client.number, self.now()))
        self.actor_desk.client_gone(client.number)
        if self.far is not None:
            self.far.client_gone(client)
        if self.group_desk is not None:
            self.group_desk.client_gone(client, job_ended=client.kind == DRIVER)
        if client.kind not in (GUEST, AWAY):
            self.store.gone(client, f"{client.kind} {client.name or client.number} (pid {client.pid}): {how}")
        if client.kind == DRIVER:
            self.logs.collector.job_ended(client.job)
            self.job_desk.forget(self.jobs[client.job])
            if self.settings.embedded:
                self.end()

    # -- workers

    def fork(self, job_number: int, *, free: bool) -> int:
        """Fork a worker for this job; its client number. free: it waits for work, else it is leased already."""
        job, number = self.jobs[job_number], next(self._numbers)
        environment, venv, sys_path = job.environment, job.venv, job.sys_path
        python = job.python if venv is None else venv.python
        wire = self.workers.fork(number, job_number, python, sys_path, at_load(environment.env_vars, os.environ))
        token = self._join(Client(number, WORKER, job_number, wire, time()))
        self.pool.added(number, job_number, self.now(), free=free)
        self.memory.watch()
        settings = self.settings
        config = self.config_for(job.namespace)
        if environment != NOTHING:
            config["environment"] = environment
        if venv is not None:
            config["venv"], sys_path = venv.folder, behind_modules(sys_path, venv.site)
        setup = m.JobSetup(
            number, job.family, settings.node, settings.session_dir, self.store.arena.size_bytes,
            [*environment.paths(), *sys_path], environment.cwd() or job.cwd, job.script, job.namespace, config, token,
        )  # fmt: skip
        wire.send(setup, [os.dup(self.store.arena.fd)])
        return number

    def end_worker(self, worker: int, reason: str, *, out_of_memory: bool = False) -> None:
        """Kill it and what it started."""
        self.pool.ending(worker, self.now())
        self.workers.kill(worker, reason, out_of_memory=out_of_memory)

    def let_worker_go(self, worker: int) -> None:
        """It said that it leaves: it ends when it reads the end of its connection."""
        self.pool.ending(worker, self.now())
        self.workers.let_go(worker, LEAVE_S)

    def _worker_said(self, worker: int, messages: list[Any]) -> None:
        client = self.clients.get(worker)
        if client is not None:
            self.received(client, messages)

    def _worker_started(self, worker: int) -> None:
        process, client = self.workers.processes[worker], self.clients[worker]
        client.pid = process.pid
        process.wire.name = f"worker {worker} (pid {process.pid})"
        self.logs.started(client, self.jobs[client.job])
        self.lease_desk.started(worker)

    def _worker_unborn(self, worker: int, reason: str) -> None:
        if self.closing:
            self._close_if_empty()
            return
        log.error("worker %d could not be forked: %s", worker, reason)
        self.pool.gone(worker)
        self.client_gone(self.clients[worker], reason)
        self.lease_desk.unborn(worker, reason)

    def _worker_died(self, process: Process, death: Death) -> None:
        if self.closing:
            self._close_if_empty()
            return
        worker = process.client
        log.info("worker %d (pid %d) ended: %s", worker, process.pid, death.how)
        self.history.ended(process)
        self.pool.gone(worker)
        if self.far is not None:
            self.far.hosting.worker_died(process, death)
        self.lease_desk.died(process, death)
        self.actor_desk.died(worker, death)
        client = self.clients.get(worker)
        if client is not None:
            self.client_gone(client, death.how)
        job = self.jobs.get(process.job)
        if job is not None and job.ended:
            self.job_desk.lost_a_worker(job)

    # -- time

    def set_timers(self) -> None:
        """Arm the one timer of the book and the pool for whichever is due first."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = [at for at in (self.book.next_deadline(), self.pool.next_deadline()) if at is not None]
        if due and not self.closing:
            self._timer = self.loop.call_at(min(due), self._tick)

    def _tick(self) -> None:
        self._timer = None
        for worker in self.pool.tick(self.now()):
            self.tell(worker, m.Exit())
            self.loop.call_later(FAREWELL_S, self.workers.kill, worker)
        self.lease_desk.perform(self.book.tick(self.now()))

    def load(self) -> Load:
        """What of it is taken, for other nodes."""
        return Load(self.resources.taken, self.book.waiting, draining=self.closing or self.draining)

    # -- the end

    def end(self, last_signal: int = signal.SIGKILL) -> None:
        """Hand over what other nodes need, for a moment, and close."""
        if self.drain is None or self.closing or self.drain.draining:
            self.close(last_signal)
            return
        from lattica.node import drain

        self.drain.leave(drain.GUEST_S if self.settings.embedded else drain.STOP_S)

    def close(self, last_signal: int = signal.SIGKILL) -> None:
        """End every connection and every process of ours; the loop stops when they are gone. last_signal: SIGTERM lets
        workers run their handlers for TERM_S."""
        if self.closing:
            return
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
        if self.drain is not None:
            self.drain.close()
        if self.runs is not None:
            self.runs.close()
        if self.far is not None:
            self.far.close()
        self.memory.close()
        self.environments.close()
        self.actor_desk.checkpoints.close()
        if self.store.spill is not None:
            self.store.spill.close()
        for client in self.clients.values():
            if client.kind == DRIVER and last_signal == signal.SIGTERM:
                client.send(m.Refused("it was told to end, by `lattica stop` or SIGTERM"))
            if client.kind != WORKER:
                client.wire.close()  # first: whose worker dies next shall blame the node
        for worker in list(self.workers.processes):
            self.workers.kill(worker, number=last_signal)
        for worker in self.workers.processes:
            self.loop.call_later(TERM_S, self.workers.kill, worker)
        self.loop.call_later(CLOSE_S, self.loop.stop)
        self._close_if_empty()

    def _close_if_empty(self) -> None:
        if not self.workers.processes:
            self.logs.close()
            self.job_desk.close()
            self.workers.zygotes.close(self.loop.stop)
