"""The actors of one machine: who bears which name, which are alive, and what happens when one ends.

    told     create · arguments · argument_failed · assigned · connect · lookup · ready · failed · leaving · worker_gone
             kill · unreferenced · job_ended · client_gone · adopt and fence, from and to another machine
    answers  Accept · Refuse · Found · NeedWorker · CancelNeed · Become · Connect · Down · EndWorker · Release · Forget

    PENDING ──worker assigned, constructor ran──► ALIVE ──► DEAD
       ▲                                            │ its process ended and restarts are left
       └──────────────── RESTARTING ◄───────────────┘

Rules of this file. Each process that an actor runs in is an *incarnation*, counted from 1. Callers are connected as
soon as a worker is assigned, before the constructor has run, so that their calls are under way. An actor that is asked
to end, or ends on purpose, is *leaving*: it bears no name, gets no new callers and does not restart. Who asked for an
actor is told of every end (`Down`); the dead are kept while somebody holds them, so that late askers hear how it ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

import msgspec

RESTART_PAUSE_FIRST_S = 0.1
RESTART_PAUSE_LAST_S = 5.0
"""An incarnation that ended within SHORT_LIFE_S is followed after a pause, doubled each time: an actor whose
constructor crashes must not fork without end at full speed."""
NAMESPACES_SAID = 3  # where somebody bears a name that nobody bears here
SHORT_LIFE_S = 1.0
UNKNOWN = "no actor with this id is known here; it ended, and nobody held it any more"


class State(Enum):
    """As `lattica status` says it."""

    PENDING = "PENDING"
    ALIVE = "ALIVE"
    RESTARTING = "RESTARTING"
    DEAD = "DEAD"


class Plan(msgspec.Struct, frozen=True):
    """What its creator decided about an actor."""

    actor: bytes
    job: int
    spec: bytes
    resources: Mapping[str, float]
    class_name: str
    name: str = ""  # "": anonymous
    namespace: str = ""
    detached: bool = False
    get_if_exists: bool = False
    max_restarts: int = 0  # -1: without end
    holds: tuple[bytes, ...] = ()
    meta: bytes = b""
    announced: bool = False  # its spec and holds are told later, by `arguments`
    given: bytes = b""  # where it may live, as its creator said: for the placer
    available: bool = False  # a smaller side of a mesh may restart it, too
    inputs: tuple[tuple[bytes, int], ...] = ()  # its largest arguments: (object, bytes)


class End(msgspec.Struct, frozen=True):
    """How an incarnation, or an actor, came to its end."""

    how: str
    stderr: str = ""
    error: bytes = b""
    intended: bool = False
    out_of_memory: bool = False
    fenced: bool = False  # a newer life of it won
    removed: bool = False  # its placement group was
    environment: bool = False  # what it needs around it could not be made


class Actor(msgspec.Struct):
    """One actor, over all its incarnations."""

    plan: Plan
    creator: int = 0  # client
    state: State = State.PENDING
    incarnation: int = 1
    restarts: int = 0
    worker: int | None = None
    assigned_at: float = 0.0
    pause_s: float = 0.0
    callers: dict[int, bool] = {}  # client -> whether connected to this incarnation
    leaving: End | None = None
    end: End | None = None
    unreferenced: bool = False


# -- effects: what the node does --------------------------------------------------------------------------------------


class Accept(msgspec.Struct, frozen=True):
    """Tell `client` that its actor is `actor`; `existing`: it bore the name before, and the client is given a hold."""

    client: int
    request: int
    actor: bytes
    existing: bool = False
    meta: bytes = b""


class Refuse(msgspec.Struct, frozen=True):
    """kind: "name-taken" or "not-found"."""

    client: int
    request: int
    kind: str
    reason: str


class Found(msgspec.Struct, frozen=True):
    """The bearer of the name; the client gets a hold on it."""

    client: int
    request: int
    actor: bytes
    class_name: str
    meta: bytes


class NeedWorker(msgspec.Struct, frozen=True):
    """Find a worker with the plan's resources, after `pause_s`, and say `assigned`."""

    actor: bytes
    incarnation: int
    pause_s: float = 0.0


class CancelNeed(msgspec.Struct, frozen=True):
    """No worker is needed any more."""

    actor: bytes
    incarnation: int


class Become(msgspec.Struct, frozen=True):
    """This worker is the actor from now on."""

    actor: bytes
    incarnation: int
    worker: int


class Connect(msgspec.Struct, frozen=True):
    """Connect `client` with the worker that is incarnation `incarnation`."""

    client: int
    actor: bytes
    incarnation: int
    worker: int


class Down(msgspec.Struct, frozen=True):
    """Tell `client` that this incarnation ended."""

    client: int
    actor: bytes
    incarnation: int
    restarting: bool
    end: End


class EndWorker(msgspec.Struct, frozen=True):
    """End this process: at once (`kill`), or by closing its connection, when it has said that it leaves."""

    worker: int
    kill: bool


class Release(msgspec.Struct, frozen=True):
    """Ask the worker to finish its queue and end."""

    actor: bytes
    worker: int


class Forget(msgspec.Struct, frozen=True):
    """The actor is dead for good: let go what the node holds for it. elsewhere: but goes on there."""

    actor: bytes
    holds: tuple[bytes, ...]
    detached: bool
    elsewhere: bool = False


Effect = (
    Accept | Refuse | Found | NeedWorker | CancelNeed | Become | Connect | Down | EndWorker | Release | Forget
)  # fmt: skip


def no_bearer(name: str, namespace: str, names: Iterable[tuple[str, str]]) -> str:
    """That nobody bears this name, in words; and where somebody does. names: (namespace, name) of living actors."""
    others = sorted(space for space, borne in names if borne == name and space != namespace)[:NAMESPACES_SAID]
    also = f", but in {' and '.join(map(repr, others))}" if others else ""
    return f"no living actor is named {name!r} in namespace {namespace!r}{also}"


class Supervisor:
    """All actors of one machine."""

    def __init__(self) -> None:
        self.actors: dict[bytes, Actor] = {}
        self._names: dict[tuple[str, str], bytes] = {}  # (namespace, name) -> its living bearer
        self._by_worker: dict[int, Actor] = {}

    def __repr__(self) -> str:
        states = [actor.state.value for actor in self.actors.values()]
        return f"<Supervisor: {', '.join(f'{states.count(s)} {s}' for s in sorted(set(states))) or 'no actors'}>"

    def actor_of(self, worker: int) -> Actor | None:
        """The actor that this worker is."""
        return self._by_worker.get(worker)

    def living(self, actor_id: bytes) -> Plan | None:
        """Its plan, unless it is dead, ends, or is not known."""
        actor = self.actors.get(actor_id)
        return None if actor is None or actor.end is not None or actor.leaving is not None else actor.plan

    @property
    def names(self) -> list[tuple[str, str]]:
        """(namespace, name) of its actors that have one."""
        return list(self._names)

    def bears_name(self, actor_id: bytes) -> bool:
        """Whether it has its name still."""
        actor = self.actors.get(actor_id)
        return actor is not None and self._names.get((actor.plan.namespace, actor.plan.name)) == actor_id

    def living_in(self, job: int) -> list[Actor]:
        """The job's actors that are not dead."""
        return [actor for actor in self.actors.values() if actor.plan.job == job and actor.state is not State.DEAD]

    # -- wishes of clients

    def create(self, client: int, request: int, plan: Plan) -> list[Effect]:
        """`client` wants this actor and will be connected to it, or, by its plan, the one that bears its name now."""
        key = plan.namespace, plan.name
        bearer = self._names.get(key) if plan.name else None
        if bearer is not None and plan.get_if_exists:
            return [Accept(client, request, bearer, True, self.actors[bearer].plan.meta)]
        if bearer is not None:
            reason = f"an actor named {plan.name!r} lives in namespace {plan.namespace!r} already"
            return [Refuse(client, request, "name-taken", reason)]
        if plan.actor in self.actors:
            return [Refuse(client, request, "name-taken", f"actor id {plan.actor.hex()} is in use")]
        self.actors[plan.actor] = Actor(plan, client, callers={client: False})
        if plan.name:
            self._names[key] = plan.actor
        accepted: list[Effect] = [Accept(client, request, plan.actor, meta=plan.meta)]
        return accepted if plan.announced else [*accepted, NeedWorker(plan.actor, 1)]

    def arguments(
        self, client: int, actor_id: bytes, spec: bytes, holds: tuple[bytes, ...],
        inputs: tuple[tuple[bytes, int], ...] = (),
    ) -> list[Effect]:  # fmt: skip
        """What an announced actor waited for is there. Empty if the actor has ended meanwhile, or is not `client`'s."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.creator != client or not actor.plan.announced or actor.end is not None:
            return []
        actor.plan = msgspec.structs.replace(actor.plan, spec=spec, holds=holds, announced=False, inputs=inputs)
        return [NeedWorker(actor_id, 1)]

    def argument_failed(self, client: int, actor_id: bytes, error: bytes) -> list[Effect]:
        """What an announced actor waited for will never be there."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.creator != client or not actor.plan.announced or actor.end is not None:
            return []
        return self._end_for_good(actor, End("an argument of its constructor failed", error=error))

    def lookup(self, client: int, request: int, name: str, namespace: str) -> list[Effect]:
        """`client` asks for the living bearer of a name."""
        bearer = self._names.get((namespace, name))
        if bearer is None:
            return [Refuse(client, request, "not-found", no_bearer(name, namespace, self._names))]
        plan = self.actors[bearer].plan
        return [Found(client, request, bearer, plan.class_name, plan.meta)]

    def connect(self, client: int, actor_id: bytes) -> list[Effect]:
        """`client` has no connection to this actor (any more) and wants one, now and after each restart."""
        actor = self.actors.get(actor_id)
        if actor is None:
            return [Down(client, actor_id, 0, False, End(UNKNOWN))]
        if actor.end is not None:
            return [Down(client, actor_id, actor.incarnation, False, actor.end)]
        actor.callers[client] = False
        return self._connect_callers(actor)

    def kill(self, actor_id: bytes, no_restart: bool) -> list[Effect]:
        """End the actor's process now; with `no_restart` for good."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.end is not None:
            return []
        if no_restart:
            return self._end_for_good(actor, End("killed by lattica.kill(actor)", intended=True))
        if actor.worker is None:
            return []  # between two incarnations there is no process to end
        return [EndWorker(actor.worker, kill=True)]

    # -- from and to other machines

    def adopt(self, plan: Plan, incarnation: int) -> list[Effect]:
        """An actor that lived under another supervisor goes on here. Empty if it is here already."""
        if plan.actor in self.actors:
            return []
        self.actors[plan.actor] = Actor(plan, state=State.RESTARTING, incarnation=incarnation)
        if plan.name:
            self._names[plan.namespace, plan.name] = plan.actor
        return [NeedWorker(plan.actor, incarnation)]

    def fence(self, actor_id: bytes, how: str, *, goes_on: bool, fenced: bool = True) -> list[Effect]:
        """Another life of this actor won: forget it and end its process. goes_on: callers are to look for it there.
        fenced: else it was handed over."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.end is not None:
            return []
        del self.actors[actor_id]
        self._free_name(actor)
        actor.state, actor.end = State.DEAD, End(how, intended=not goes_on, fenced=fenced)
        effects: list[Effect] = [CancelNeed(actor_id, actor.incarnation)]
        if actor.worker is not None:
            effects = [EndWorker(actor.worker, kill=True)]
        effects += [Down(client, actor_id, actor.incarnation, goes_on, actor.end) for client in actor.callers]
        return [*effects, Forget(actor_id, actor.plan.holds, actor.plan.detached, elsewhere=True)]

    # -- what became of workers

    def assigned(self, actor_id: bytes, incarnation: int, worker: int, now: float) -> list[Effect]:
        """A worker with the resources is there. Empty if the actor does not want it any more: then it is free again."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.end is not None or actor.incarnation != incarnation or actor.worker is not None:
            return []
        actor.worker, actor.assigned_at = worker, now
        self._by_worker[worker] = actor
        return [Become(actor_id, incarnation, worker), *self._connect_callers(actor)]

    def ready(self, worker: int, actor_id: bytes) -> list[Effect]:
        """The constructor has run."""
        actor = self._by_worker.get(worker)
        if actor is not None and actor.plan.actor == actor_id and actor.end is None:
            actor.state = State.ALIVE
        return []

    def failed(self, worker: int, actor_id: bytes, error: bytes) -> list[Effect]:
        """The constructor raised: the actor is dead, whatever restarts it has."""
        actor = self._by_worker.get(worker)
        if actor is None or actor.plan.actor != actor_id or actor.end is not None:
            return []
        return self._end_for_good(actor, End("its constructor raised", error=error))

    def leaving(self, worker: int, actor_id: bytes, reason: str) -> list[Effect]:
        """The actor ends on purpose and waits for us to close its connection."""
        actor = self._by_worker.get(worker)
        if actor is None or actor.plan.actor != actor_id or actor.end is not None:
            return []
        self._leave(actor, End(reason or "it called exit_actor()", intended=True))
        return [EndWorker(worker, kill=False)]

    def worker_gone(self, worker: int, end: End, now: float) -> list[Effect]:
        """The process has ended."""
        actor = self._by_worker.pop(worker, None)
        if actor is None:
            return []
        actor.worker = None
        if actor.end is not None:
            return self._forget_if_unheld(actor)
        if actor.leaving is not None:
            return self._end_for_good(actor, actor.leaving)
        left = actor.plan.max_restarts - actor.restarts
        if actor.plan.max_restarts >= 0 and left <= 0:
            if actor.restarts:
                end = msgspec.structs.replace(end, how=f"{end.how}; its restarts are spent")
            return self._end_for_good(actor, end)
        short = now - actor.assigned_at < SHORT_LIFE_S
        actor.pause_s = min(max(2 * actor.pause_s, RESTART_PAUSE_FIRST_S), RESTART_PAUSE_LAST_S) if short else 0.0
        pause_s = actor.pause_s if actor.restarts else 0.0  # the first restart of all is at once
        told: list[Effect] = [
            Down(client, actor.plan.actor, actor.incarnation, True, end)
            for client, heard in actor.callers.items()
            if heard
        ]
        actor.callers = dict.fromkeys(actor.callers, False)
        actor.state = State.RESTARTING
        actor.restarts += 1
        actor.incarnation += 1
        return [*told, NeedWorker(actor.plan.actor, actor.incarnation, pause_s)]

    def infeasible(
        self, actor_id: bytes, reason: str, *, removed: bool = False, environment: bool = False
    ) -> list[Effect]:
        """No worker with these resources can ever be had. removed: for its placement group was removed. environment:
        for what it needs around it could not be made."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.end is not None:
            return []
        return self._end_for_good(actor, End(reason, removed=removed, environment=environment))

    # -- what became of holders

    def unreferenced(self, actor_id: bytes) -> list[Effect]:
        """Nobody holds the actor any more: it ends after what it was asked already."""
        actor = self.actors.get(actor_id)
        if actor is None or actor.unreferenced:
            return []
        actor.unreferenced = True
        if actor.end is not None:
            return self._forget_if_unheld(actor)
        end = End("its last handle went out of scope", intended=True)
        if actor.worker is None:
            return self._end_for_good(actor, end)
        if actor.leaving is not None:
            return []
        self._leave(actor, end)
        return [Release(actor_id, actor.worker)]

    def job_ended(self, job: int) -> list[Effect]:
        """The job's driver is gone, and its actors with it, but for the detached."""
        end = End("the job that created it ended", intended=True)
        doomed = [actor for actor in self.living_in(job) if not actor.plan.detached]
        return [effect for actor in doomed for effect in self._end_for_good(actor, end)]

    def client_gone(self, client: int) -> list[Effect]:
        """A caller has ended, and with it what it had only announced."""
        orphans = []
        for actor in self.actors.values():
            actor.callers.pop(client, None)
            if actor.creator == client and actor.plan.announced and actor.end is None:
                orphans.append(actor)
        end = End("its creator ended before its arguments were there")
        return [effect for actor in orphans for effect in self._end_for_good(actor, end)]

    # -- within

    def _connect_callers(self, actor: Actor) -> list[Effect]:
        if actor.worker is None or actor.leaving is not None:
            return []
        new = [client for client, connected in actor.callers.items() if not connected]
        actor.callers.update(dict.fromkeys(new, True))
        return [Connect(client, actor.plan.actor, actor.incarnation, actor.worker) for client in new]

    def _leave(self, actor: Actor, end: End) -> None:
        actor.leaving = actor.leaving or end
        self._free_name(actor)

    def _free_name(self, actor: Actor) -> None:
        key = actor.plan.namespace, actor.plan.name
        if self._names.get(key) == actor.plan.actor:
            del self._names[key]

    def _end_for_good(self, actor: Actor, end: End) -> list[Effect]:
        plan = actor.plan
        effects: list[Effect] = []
        if actor.worker is not None:
            effects.append(EndWorker(actor.worker, kill=True))
        elif actor.state is not State.ALIVE:
            effects.append(CancelNeed(plan.actor, actor.incarnation))
        self._free_name(actor)
        actor.state, actor.end = State.DEAD, end
        effects += [Down(client, plan.actor, actor.incarnation, False, end) for client in actor.callers]
        actor.callers.clear()
        effects.append(Forget(plan.actor, plan.holds, plan.detached))
        return effects + self._forget_if_unheld(actor)

    def _forget_if_unheld(self, actor: Actor) -> list[Effect]:
        if actor.unreferenced and actor.worker is None:
            self.actors.pop(actor.plan.actor, None)
        return []

    def validate(self) -> None:
        """Assert what always holds."""
        for key, bearer in self._names.items():
            actor = self.actors[bearer]
            assert actor.end is None and actor.leaving is None, f"{key} is borne by an actor that has ended"
        for worker, actor in self._by_worker.items():
            assert actor.worker == worker, "a worker is an actor that runs elsewhere"
        for actor in self.actors.values():
            assert (actor.state is State.DEAD) == (actor.end is not None), "dead, and no reason known"
            assert actor.worker is not None or not any(actor.callers.values()), "connected to nobody"
            assert actor.worker is None or not actor.plan.announced, "it runs, and nobody told how to begin"
            if actor.plan.max_restarts >= 0:
                assert actor.restarts <= actor.plan.max_restarts, "restarted more often than allowed"
