"""Actors, carried out: the supervisor decides what becomes of each, this desk finds workers, connects and tells."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

from lattica.actors.supervision import (
    Accept,
    Become,
    CancelNeed,
    Connect,
    Down,
    Effect,
    End,
    EndWorker,
    Forget,
    Found,
    NeedWorker,
    Plan,
    Refuse,
    Release,
    Supervisor,
)  # fmt: skip
from lattica.codec import messages as m
from lattica.errors import ConfigError
from lattica.node.checkpoint_desk import CheckpointDesk
from lattica.node.clients import NODE as ANOTHER
from lattica.node.clients import Client
from lattica.node.loop import Timer
from lattica.node.workers import Death
from lattica.scheduler.leases import Lease
from lattica.scheduler.resources import ResourceSet

if TYPE_CHECKING:
    from lattica.node.server import Node


UNKNOWN_TRIES = 24  # two seconds in all, until who asks for an actor is told that nobody knows it
UNKNOWN_FIRST_S, UNKNOWN_LAST_S = 0.002, 0.1  # before it is looked for again, doubling


class ActorDesk:
    """Carries out what the supervisor decides."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.supervisor = Supervisor()
        self._numbers = count(1)  # lease requests of ours
        self._needs: dict[int, tuple[bytes, int]] = {}  # request -> (actor, incarnation) that waits for a worker
        self._pauses: dict[bytes, Timer] = {}
        self.checkpoints = CheckpointDesk(node)

    # -- told by clients

    def create(self, client: Client, message: m.ActorCreate) -> None:
        """Name it and start it here, or where it fits; refuse what can never run."""
        node = self._node
        if node.job_desk.is_leaving(client):
            return
        try:
            resources = ResourceSet.of(message.resources)
            missing = node.resources.missing(resources) if node.far is None else ""
            reason = f"this machine does not have {missing}" if missing else ""
            if not reason and node.far is None and message.given:
                from lattica.node import alone  # programs on one machine seldom say where

                reason = alone.why_not_here(node, message.given)
        except ConfigError as error:
            reason = str(error)
        if reason:
            client.send(m.ActorRefused(message.request, "infeasible", reason))
            node.store.let_go(message.holds)
            return
        job = node.environments.job_for(client.job, message.environment) if message.environment else client.job
        plan = Plan(
            message.actor, job, message.spec, resources, message.class_name, message.name,
            message.namespace or node.jobs[client.job].namespace, message.detached, message.get_if_exists,
            message.max_restarts, tuple(message.holds), message.meta, message.announced, message.given,
            message.available, tuple(message.inputs),
        )  # fmt: skip
        if node.far is not None and message.detached and (reason := node.far.detached.objection()):
            client.send(m.ActorRefused(message.request, "infeasible", reason))
            node.store.let_go(message.holds)
        elif node.far is not None and plan.name:
            node.far.names.create(client, message.request, plan)  # which goes on with `begin`
        else:
            self.begin(client.number, message.request, plan)

    def begin(self, client: int, request: int, plan: Plan) -> None:
        """Nothing is in its way; in a mesh, its name is its own."""
        if self._node.far is not None and plan.detached:
            plan = self._node.far.detached.of_its_own(plan)
        effects = self.supervisor.create(client, request, plan)
        self._perform(effects)
        if not isinstance(effects[-1], NeedWorker):
            self._node.store.let_go(plan.holds)  # another bears the name, and needs no arguments of ours

    def adopt(self, plan: Plan, incarnation: int) -> None:
        """A detached actor that ran under another node goes on here."""
        self._perform(self.supervisor.adopt(plan, incarnation))

    def fence(self, actor: bytes, how: str, *, goes_on: bool, fenced: bool = True) -> None:
        """Another life of an actor of ours won, or is to begin. goes_on: our callers are connected with that one."""
        before = self.supervisor.actors.get(actor)
        callers = list(before.callers) if before is not None else []
        self._perform(self.supervisor.fence(actor, how, goes_on=goes_on, fenced=fenced))
        for number in callers if goes_on else ():
            client = self._node.clients.get(number)
            if client is not None and client.kind != ANOTHER and self._node.far is not None:
                self._node.far.actors.connect(client, actor)

    def arguments(self, client: Client, message: m.ActorArguments) -> None:
        """What its constructor is given is known by now, or could not be had."""
        if self._node.far is not None and self._node.far.names.arguments(client, message):
            return
        if message.error:
            self._perform(self.supervisor.argument_failed(client.number, message.actor, message.error))
            return
        holds = tuple(message.holds)
        inputs = tuple(message.inputs)
        effects = self.supervisor.arguments(client.number, message.actor, message.spec, holds, inputs)
        self._perform(effects)
        if not effects:
            self._node.store.let_go(holds)

    def connect(self, client: Client, message: m.ActorConnect, tries: int = 0) -> None:
        """A client wants a connection. tries: how often the actor was unknown already.

        A driver has an actor made and gives its handle to a worker at once: this node may read from the worker first.
        """
        node = self._node
        if node.closing or (tries and client.number not in node.clients):
            return
        if message.actor in self.supervisor.actors:
            self._perform(self.supervisor.connect(client.number, message.actor))
        elif node.far is not None and node.far.actors.connect(client, message.actor):
            return
        elif tries < UNKNOWN_TRIES:
            pause_s = min(UNKNOWN_FIRST_S * 2**tries, UNKNOWN_LAST_S)
            node.loop.call_later(pause_s, self.connect, client, message, tries + 1)
        elif node.far is not None:
            client.send(m.ActorDown(message.actor, 0, False, "no node that is connected knows this actor"))
        else:
            self._perform(self.supervisor.connect(client.number, message.actor))

    def lookup(self, client: Client, message: m.ActorLookup) -> None:
        """Find an actor by its name."""
        namespace = message.namespace or self._node.jobs[client.job].namespace
        if self._node.far is not None:
            self._node.far.names.lookup(client, message.request, message.name, namespace)
            return
        self._perform(self.supervisor.lookup(client.number, message.request, message.name, namespace))

    def kill(self, _: Client, message: m.ActorKill) -> None:
        """End it, for good or to be restarted, wherever it is."""
        far = self._node.far
        if far is not None and message.actor not in self.supervisor.actors and far.actors.kill(message):
            return
        self._perform(self.supervisor.kill(message.actor, message.no_restart))

    def ready(self, client: Client, message: m.ActorReady) -> None:
        """Its constructor has returned."""
        if self.forwarded(client, message):
            return
        self._perform(self.supervisor.ready(client.number, message.actor))

    def failed(self, client: Client, message: m.ActorFailed) -> None:
        """Its constructor has raised."""
        if self.forwarded(client, message):
            return
        self._perform(self.supervisor.failed(client.number, message.actor, message.error))

    def leaving(self, client: Client, message: m.ActorExit) -> None:
        """It ends on purpose: it is not restarted, and others may have its name."""
        if self.forwarded(client, message):
            return
        self._perform(self.supervisor.leaving(client.number, message.actor, message.reason))
        self._let_name_go(message.actor)

    def _let_name_go(self, actor: bytes) -> None:
        """Others may have its name, if it does not bear it any more."""
        if self._node.far is not None and not self.supervisor.bears_name(actor):
            self._node.far.names.over(actor)

    def forwarded(
        self, client: Client, message: m.ActorReady | m.ActorFailed | m.ActorExit | m.ActorCheckpoint
    ) -> bool:
        """Whether this worker is an actor of another node's, which is told."""
        return self._node.far is not None and self._node.far.hosting.forwards(client, message)

    # -- told by the other desks

    def granted(self, lease: Lease, worker: int) -> None:
        """A worker with the resources of one of our requests has started."""
        actor, incarnation = self._needs.pop(lease.request.number)
        effects = self.supervisor.assigned(actor, incarnation, worker, self._node.now())
        if not effects:
            self._node.lease_desk.perform(self._node.book.returned(lease.lease, m.NODE, self._node.now()))
            return
        self._node.pool.became_actor(worker, self._node.now())
        self._perform(effects)

    def granted_away(self, number: int, worker: int) -> bool:
        """A worker of another node is to be had for one of our requests; False: nobody wants it any more."""
        need = self._needs.pop(number, None)
        effects = [] if need is None else self.supervisor.assigned(*need, worker, self._node.now())
        self._perform(effects)
        return bool(effects)

    def away_said(
        self, client: Client, message: m.ActorReady | m.ActorFailed | m.ActorExit | m.ActorCheckpoint
    ) -> None:
        """An actor of ours on another node says this."""
        match message:
            case m.ActorReady(actor):
                self._perform(self.supervisor.ready(client.number, actor))
            case m.ActorFailed(actor, error):
                self._perform(self.supervisor.failed(client.number, actor, error))
            case m.ActorExit(actor, reason):
                self._perform(self.supervisor.leaving(client.number, actor, reason))
                self._let_name_go(actor)
            case m.ActorCheckpoint():
                self.checkpoints.far_said(client.number, message)

    def away_died(self, worker: int, how: str, stderr: str, out_of_memory: bool) -> None:
        """A worker of another node is dead, or lost."""
        end = End(how, stderr, out_of_memory=out_of_memory)
        self._perform(self.supervisor.worker_gone(worker, end, self._node.now()))

    def request_of(self, actor: bytes) -> int | None:
        """By which it waits for a worker; None if it does not."""
        return next((number for number, (waits, _) in self._needs.items() if waits == actor), None)

    def detached_for(self, number: int) -> bytes:
        """The detached actor for which a worker is wanted; empty for others."""
        actor, _ = self._needs.get(number, (b"", 0))
        plan = self.supervisor.living(actor)
        return actor if plan is not None and plan.detached else b""

    def restarts_detached(self, number: int) -> bool:
        """Whether this request is for a detached actor that has lived before."""
        _, incarnation = self._needs.get(number, (b"", 0))
        return incarnation > 1 and bool(self.detached_for(number))

    def denied(self, number: int, reason: str, *, removed: bool = False, environment: bool = False) -> None:
        """No worker can be had for one of our requests. removed, environment: as in `messages.LeaseDenied`."""
        actor, _ = self._needs.pop(number)
        self._perform(self.supervisor.infeasible(actor, reason, removed=removed, environment=environment))

    def unreferenced(self, actor: bytes) -> None:
        """Nobody holds this actor any more."""
        self._perform(self.supervisor.unreferenced(actor))

    def job_ended(self, job: int) -> None:
        self._perform(self.supervisor.job_ended(job))

    def client_gone(self, client: int) -> None:
        self._perform(self.supervisor.client_gone(client))

    def died(self, worker: int, death: Death) -> None:
        """A worker has ended; its actor is restarted, if it had one that may be."""
        end = End(death.how, death.stderr, out_of_memory=death.out_of_memory)
        self._perform(self.supervisor.worker_gone(worker, end, self._node.now()))
        self.checkpoints.worker_gone(worker)

    def outlives_its_job(self, worker: int) -> bool:
        """Whether this worker is a detached actor."""
        actor = self.supervisor.actor_of(worker)
        return actor is not None and actor.plan.detached and actor.end is None

    # -- what the supervisor wants

    def _perform(self, effects: list[Effect]) -> None:
        node = self._node
        for effect in effects:
            match effect:
                case Accept(client, request, actor, existing, meta):
                    self._accept(client, actor, existing)
                    node.tell(client, m.ActorAccepted(request, actor, existing, meta))
                case Refuse(client, request, kind, reason):
                    node.tell(client, m.ActorRefused(request, kind, reason))
                case Found(client, request, actor, class_name, meta):
                    node.store.give(actor, client)
                    node.tell(client, m.ActorFound(request, actor, class_name, meta))
                case NeedWorker(actor, incarnation, pause_s):
                    found = self.supervisor.actors.get(actor)
                    if found is None or found.end is not None:
                        continue  # whoever asked for it had dropped it: see `_accept`
                    if found.plan.detached and node.far is not None:
                        node.far.detached.needs_worker(found.plan, incarnation)
                        if self.supervisor.actors.get(actor) is not found:
                            continue  # by its row, which is looked at for that, another life goes on
                    self._need(actor, incarnation, pause_s)
                case CancelNeed(actor, incarnation):
                    self._cancel_need(actor, incarnation)
                case Become(actor, incarnation, worker):
                    self._become(actor, incarnation, worker)
                case Connect(client, actor, incarnation, worker):
                    self._connect(client, actor, incarnation, worker)
                case Down(client, actor, incarnation, restarting, end):
                    node.tell(
                        client,
                        m.ActorDown(
                            actor, incarnation, restarting, end.how, end.stderr, end.error, end.intended,
                            end.out_of_memory, end.fenced, removed=end.removed, environment=end.environment,
                        ),
                    )  # fmt: skip
                case EndWorker(worker, kill):
                    self._end_worker(worker, kill)
                case Release(actor, worker):
                    node.tell(worker, m.ActorRelease(actor))
                    self._let_name_go(actor)
                case Forget(actor, holds, detached, elsewhere):
                    self.checkpoints.forget(actor)
                    if not elsewhere:
                        self._over(actor, detached=detached)
                    node.store.let_go([*holds, actor] if detached else holds)

    def _over(self, actor: bytes, *, detached: bool) -> None:
        """It is dead for good."""
        self._let_name_go(actor)
        known = self.supervisor.actors.get(actor)
        if detached and known is not None and self._node.far is not None:
            self._node.far.detached.ended(known.plan)

    def _accept(self, client: int, actor: bytes, existing: bool) -> None:
        """Count the hold of whoever asked, and the node's own on a detached actor."""
        store = self._node.store
        if existing:
            store.give(actor, client)
            return
        if self.supervisor.actors[actor].plan.detached:
            store.give(actor, m.NODE)
        store.track(client, actor)  # who asked may have dropped it while its name was claimed: then it is over

    def _need(self, actor_id: bytes, incarnation: int, pause_s: float) -> None:
        if pause_s:
            self._pauses[actor_id] = self._node.loop.call_later(pause_s, self._need, actor_id, incarnation, 0.0)
            return
        self._pauses.pop(actor_id, None)
        plan, number = self.supervisor.actors[actor_id].plan, next(self._numbers)
        self._needs[number] = actor_id, incarnation
        self._node.lease_desk.watch()
        resources = plan.resources
        assert isinstance(resources, ResourceSet)
        if plan.given and self._node.groups.wish_for_actor(number, plan.job, resources, plan.class_name, plan.given):
            return
        if self._node.far is not None:
            self._node.far.placing.wish_for_actor(number, plan.job, resources, plan.class_name, plan.given, plan.inputs)
            return
        self._node.lease_desk.perform(
            self._node.book.request(
                m.NODE, number, plan.job, resources, self._node.now(), retryable=False, name=plan.class_name
            )
        )

    def _cancel_need(self, actor: bytes, incarnation: int) -> None:
        if pause := self._pauses.pop(actor, None):
            pause.cancel()
        for number in [number for number, need in self._needs.items() if need == (actor, incarnation)]:
            groups = self._node.group_desk
            if groups is not None and groups.canceled(m.NODE, number):
                del self._needs[number]
                continue
            if self._node.far is not None and self._node.far.placing.canceled(m.NODE, number):
                del self._needs[number]
                continue
            self._node.lease_desk.perform(self._node.book.cancel(m.NODE, number, self._node.now()))
            # A granted one whose worker is being forked stays in `_needs`: `granted` returns it.
            if not any(
                lease.request.number == number and lease.holder == m.NODE for lease in self._node.book.leases.values()
            ):
                del self._needs[number]

    def _become(self, actor_id: bytes, incarnation: int, worker: int) -> None:
        plan = self.supervisor.actors[actor_id].plan
        lease, far = self._node.book.lease_of(worker), self._node.far
        away = far.workers.aways.get(worker) if far is not None else None
        assert lease is not None or away is not None, "an actor without a lease"
        gpus = list(lease.allocation.gpus) if lease is not None else away.gpus if away is not None else []
        for hold in plan.holds:
            self._node.store.give(hold, worker)
        via = far.detached.via(actor_id) if far is not None else 0
        self.checkpoints.become(
            worker,
            m.BecomeActor(actor_id, incarnation, plan.spec, dict(plan.resources), gpus, plan.name, plan.namespace, via),
        )

    def _connect(self, client: int, actor: bytes, incarnation: int, worker: int) -> None:
        """Give the caller its end of a connection of its own with this actor."""
        node = self._node
        caller = node.clients.get(client)
        if caller is None:
            return
        pid, far = node.clients[worker].pid, node.far
        if far is not None and caller.kind == ANOTHER:
            far.actors.tell_where(caller, actor, incarnation, *far.actors.place_of(worker))
            return
        if far is not None and worker in far.workers.aways:
            fd = far.workers.connect(caller, worker, actor, incarnation)
            host = far.workers.aways[worker].neighbour.client.number
            caller.send(m.ActorConnected(actor, incarnation, worker, pid, True, host), fd)
            return
        caller.send(m.ActorConnected(actor, incarnation, worker, pid), node.connect(caller, worker))

    def _end_worker(self, worker: int, kill: bool) -> None:
        node = self._node
        if node.far is not None and worker in node.far.workers.aways:
            node.far.workers.end(worker, kill=kill)
        elif kill:
            node.end_worker(worker, "")
        else:
            node.let_worker_go(worker)
