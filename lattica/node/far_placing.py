"""What our processes and actors want a worker for, until they have one: here, or at a node that the placer names.

    wish ──► placer ──► our own book, which grants it
                   └──► AskLease ──► their book ──► LeaseIs, which `far_workers` goes on with, or LeaseNot ──► placer

Rules of this file. A wish waits in one place at a time. What waits here is looked at again twice a second, and whenever
something may have made room; what waits elsewhere moves to a third node only if that one is idle.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.codec import far
from lattica.codec import messages as m
from lattica.mesh.identity import PeerId
from lattica.scheduler import load as loads
from lattica.scheduler.demand import Affinity, Demand
from lattica.scheduler.given import WORK_S_MAX
from lattica.scheduler.placement import Choice, Infeasible
from lattica.scheduler.resources import ResourceSet

if TYPE_CHECKING:
    from lattica.node.clients import Client
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour
    from lattica.scheduler.leases import Lease

log = logging.getLogger(__name__)
AGAIN_S = 0.5  # between two looks for a place for what waits
SHORT_S = 0.05  # after something has changed that may make room
ELSEWHERE_S = 1.0
"""What waits in another node's queue is asked of a third one that is idle, after this. Those before it there may be
actors, whose turn never ends. Shorter: a queue that moves is left for one that is no shorter when the request comes."""
LEAVES_MAX = 64  # looked at at once
NO_RESOURCES = ResourceSet({})
SETUP_S = 10.0
"""What a node without a task's packages is thought to take to install them: a longer queue where they are is left."""
WAITING_SAID_S = 5.0  # after which a driver is told that nothing in the mesh can run its task


class Wish(msgspec.Struct, eq=False):
    """A request of a client of ours for a worker, until it has one. where: whom we asked, None: nobody now.
    within: the bundle of a placement group that it is for, as `node.group_desk` says it."""

    client: int
    request: int
    job: int
    demand: Demand
    retryable: bool
    name: str
    actor: bool
    since: float
    local: bool = False  # it waits in our own book
    where: Neighbour | None = None
    number: int = 0  # of the question
    asked_at: float = 0.0
    moved_at: float = 0.0  # when it is seen whether it waits there in vain
    tried: list[PeerId] = []
    again_at: float = 0.0
    trouble: str = ""  # why nothing can run it
    said: bool = False
    within: bytes = b""


class FarPlacing:
    """See the module."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk, self._node = desk, desk.node
        self.wishes: dict[tuple[int, int], Wish] = {}
        self._prepared: dict[int, set[PeerId]] = {}  # job -> nodes that have installed what it needs
        self._questions = count(1)
        self._looking: Any = None

    def __repr__(self) -> str:
        return f"<FarPlacing: {len(self.wishes)} wishes>"

    def close(self) -> None:
        """The node ends."""
        if self._looking is not None:
            self._looking[0].cancel()

    # -- what is wanted

    def wish(self, client: Client, message: m.LeaseRequest, resources: ResourceSet, job: int) -> None:
        """A process of ours wants a worker of this job. Raises ConfigError if what it wants cannot be understood."""
        demand = self._desk.placer.demand(message.given, resources, self._python(client.job))
        if message.inputs or message.work_s:
            demand = self._knowing(demand, message.inputs, message.work_s)
        now = self._node.now()
        self.place(Wish(client.number, message.request, job, demand, message.retryable, message.name, False, now))

    def _python(self, job: int) -> str:
        """The version of a program: its functions are bytecode, which no other version can run."""
        entry = self._node.jobs.get(job)
        return entry.minor if entry is not None else ""

    def _knowing(self, demand: Demand, inputs: Sequence[tuple[bytes, int]], work_s: float = 0.0) -> Demand:
        """With where these objects lie, as far as is known here."""
        lies, size = self._desk.objects.serving.lies(inputs)
        return replace(demand, inputs=lies, input_bytes=size, work_s=min(max(work_s, 0.0), WORK_S_MAX))

    def wish_for_actor(
        self, number: int, job: int, resources: ResourceSet, name: str, given: bytes,
        inputs: Sequence[tuple[bytes, int]] = (),
    ) -> None:  # fmt: skip
        """The actor desk wants one. given: what its creator said of the place."""
        demand = self._desk.placer.demand(given, resources, self._python(job))
        if inputs:
            demand = self._knowing(demand, inputs)
        self.place(Wish(m.NODE, number, job, demand, False, name, True, self._node.now()))

    def place(self, wish: Wish) -> None:
        """A client wants a worker: here, or wherever the placer says."""
        self.wishes[wish.client, wish.request] = wish
        self._look_who_is_prepared(wish)
        if self._desk.placer.stays(wish.demand):
            self._queue_here(wish)
        else:
            self._try(wish)

    def _look_who_is_prepared(self, wish: Wish) -> None:
        """Which nodes have installed what its worker needs, if it needs anything of the kind."""
        entry = self._node.jobs.get(wish.job)
        if entry is None or entry.environment.installs is None:
            return
        prepared = self._prepared.setdefault(wish.job, set())
        if entry.venv is not None:
            prepared.add(self._desk.me)
        wish.demand = replace(wish.demand, setup_s=SETUP_S, prepared=frozenset(prepared))

    def forgotten(self, job: int) -> None:
        """Nothing is left of it."""
        self._prepared.pop(job, None)

    # -- where it is asked for

    def _try(self, wish: Wish) -> None:
        """Find the node to ask. What stays here waits in our book, and is looked at again."""
        if wish.where is not None:
            return
        if wish.within:
            del self.wishes[wish.client, wish.request]
            self._node.groups.came_back(wish.client, wish.request)
            return
        now = self._node.now()
        self._look_who_is_prepared(wish)
        choice = self._desk.placer.choose(wish.demand, tuple(wish.tried))
        wish.trouble = ""
        match choice:
            case Choice(peer, _) if peer == self._desk.me:
                self._queue_here(wish)
            case Choice(peer, limit_s):
                self._leave_book(wish)
                self._ask(wish, self._desk.neighbour(peer), limit_s)
                return
            case Infeasible(reason, final) if final and not self._outwaits(wish):
                self._drop(wish)
                self._denied(wish, reason)
                return
            case Infeasible(reason):
                wish.trouble = reason
                self._leave_book(wish)
                self._say_trouble(wish, now)
            case _:
                if self._node.resources.missing(wish.demand.resources):
                    self._leave_book(wish)
                elif self._desk.placer.possible_here(wish.demand):
                    self._queue_here(wish)
        wish.tried.clear()
        wish.again_at = now + AGAIN_S
        if (wish.client, wish.request) in self.wishes:
            self._look_at(wish.again_at)

    def why(self, client: int, request: int) -> str:
        """Why one waits, in words; "" if it is no wish, or waits in our own book."""
        wish = self.wishes.get((client, request))
        if wish is None:
            return ""
        if wish.where is not None:
            so_long = self._node.now() - wish.asked_at
            return f"it has been queued on {wish.where.client.name} for {so_long:.1f} s"
        return f"no node can run it: {wish.trouble}" if wish.trouble else ""

    def _outwaits(self, wish: Wish) -> bool:
        """Whether it waits for a node that is dead: a detached actor to be restarted, which may live nowhere else."""
        match wish.demand.strategy:
            case Affinity(peer) if wish.client == m.NODE:
                return self._node.actor_desk.restarts_detached(wish.request) and self._desk.placer.may_return(peer)
        return False

    def _say_trouble(self, wish: Wish, now: float) -> None:
        if not wish.said and now - wish.since > WAITING_SAID_S:
            wish.said = True
            text = f"{wish.name or 'a task'} waits for a node that can run it: {wish.trouble}"
            log.warning("%s", text)
            job = self._node.jobs.get(wish.job)
            if job is not None:
                self._node.tell(job.driver, m.LogLines("lattica", os.getpid(), 2, [text]))

    def _queue_here(self, wish: Wish) -> None:
        if not wish.local:
            wish.local, wish.moved_at = True, self._node.now() + ELSEWHERE_S
            self._node.lease_desk.perform(
                self._node.book.request(
                    wish.client, wish.request, wish.job, wish.demand.resources, self._node.now(),
                    retryable=wish.retryable, name=wish.name,
                )
            )  # fmt: skip

    def _leave_book(self, wish: Wish) -> None:
        if wish.local:
            wish.local = False
            self._node.lease_desk.perform(self._node.book.cancel(wish.client, wish.request, self._node.now()))

    def _ask(self, wish: Wish, neighbour: Neighbour, limit_s: float) -> None:
        job = self._desk.jobs.introduce(neighbour, wish.job)
        if job is None:
            self._drop(wish)
            return
        wish.where, wish.number, wish.asked_at = neighbour, next(self._questions), self._node.now()
        wish.moved_at = wish.asked_at + ELSEWHERE_S
        self._look_at(wish.moved_at)
        neighbour.asks[wish.number] = wish
        neighbour.link.send(
            far.AskLease(
                wish.number, job, wish.demand.resources.to_dict(), min(limit_s, 1e9), wish.retryable, wish.name,
                wish.actor, wish.within, wish.demand.work_s if wish.demand.inputs else 0.0, *self._token(wish),
            )
        )  # fmt: skip

    def _token(self, wish: Wish) -> tuple[bytes, far.Life | None]:
        """Of the detached actor that it is for, or that wants it."""
        deciding = self._desk.deciding
        if wish.client != m.NODE:
            return deciding.token_of(wish.client)
        actor = self._node.actor_desk.detached_for(wish.request)
        return deciding.token(actor) if actor else (b"", None)

    def _unask(self, wish: Wish) -> None:
        if wish.where is not None:
            wish.where.asks.pop(wish.number, None)
            wish.where = None

    def _drop(self, wish: Wish) -> None:
        """It is no wish any more."""
        if self.wishes.pop((wish.client, wish.request), None) is None:
            return
        if wish.where is not None:
            self._drop_question(wish, wish.where)
        self._leave_book(wish)

    def _drop_question(self, wish: Wish, where: Neighbour) -> None:
        """It does not wait there any more."""
        where.link.send(far.DropAsk(wish.number))
        if not wish.within:
            self._desk.placer.dropped(where.peer, wish.asked_at)
        self._desk.placer.ended(where.peer, NO_RESOURCES)  # it was ahead of others there, perhaps
        self._unask(wish)

    def canceled(self, client: int, request: int) -> bool:
        """The client wants it no more. Whether that was a wish of ours that is not in the book."""
        wish = self.wishes.get((client, request))
        if wish is None:
            return False
        self._drop(wish)
        return True

    # -- what is wanted no more

    def holder_gone(self, client: int) -> None:
        """One of our processes has ended: it wants nothing any more."""
        for wish in [wish for wish in self.wishes.values() if wish.client == client]:
            self._drop(wish)

    def job_ended(self, job: int) -> None:
        """Its tasks are wanted no more; actors are the supervisor's."""
        for wish in [wish for wish in self.wishes.values() if wish.job == job and not wish.actor]:
            self._drop(wish)

    def take_back(self, neighbour: Neighbour) -> None:
        """It is silent: what waits there is asked of others."""
        for wish in list(neighbour.asks.values()):
            neighbour.link.send(far.DropAsk(wish.number))
            self._unask(wish)
            wish.tried.append(neighbour.peer)

    def granted_here(self, lease: Lease) -> None:
        """Our own book has served it."""
        self.wishes.pop((lease.holder, lease.request.number), None)

    def denied_here(self, client: int, number: int) -> None:
        """Our own book never will."""
        self.wishes.pop((client, number), None)

    def _denied(self, wish: Wish, reason: str, *, environment: bool = False) -> None:
        if wish.client == m.NODE:
            self._node.actor_desk.denied(wish.request, reason, environment=environment)
        else:
            self._node.tell(wish.client, m.LeaseDenied(wish.request, reason, environment=environment))

    # -- while it waits

    def look_soon(self) -> None:
        """Something has changed: what waits may find a place."""
        for wish in self.wishes.values():
            wish.again_at = 0.0
        if self.wishes:
            self._look_at(self._node.now() + SHORT_S)

    def _look_at(self, at: float) -> None:
        if self._desk.closing or (self._looking is not None and self._looking[1] <= at):
            return
        if self._looking is not None:
            self._looking[0].cancel()
        self._looking = self._node.loop.call_at(at, self._look), at

    def _look(self) -> None:
        self._looking = None
        now = self._node.now()
        self._leave_queues(now)
        for wish in list(self.wishes.values()):
            due = wish.where is None and wish.again_at <= now and (wish.client, wish.request) in self.wishes
            if due and not self._leave_here(wish, now):
                self._try(wish)
        waiting = [wish.again_at for wish in self.wishes.values() if wish.where is None]
        if waiting:
            self._look_at(max(min(waiting), now + SHORT_S))
        elif self.wishes:
            self._look_at(now + ELSEWHERE_S)

    def _leave_here(self, wish: Wish, now: float) -> bool:
        """What waits in our own book, and would begin at once at another node, is asked of that one: what fills us may
        last, like actors and bundles, and then no estimate of ours comes true."""
        if not wish.local or wish.moved_at > now:
            return False
        wish.moved_at = now + ELSEWHERE_S
        choice = self._desk.placer.idle_for(wish.demand, self._desk.me, now - wish.since)
        if choice is None or choice.peer == self._desk.me:
            return False
        self._leave_book(wish)
        wish.tried.clear()
        self._ask(wish, self._desk.neighbour(choice.peer), choice.limit_s)
        return True

    def _leave_queues(self, now: float) -> None:
        """What waits at another node, and would begin at once at a third, is asked of that one."""
        late = [wish for wish in self.wishes.values() if wish.where and not wish.within and wish.moved_at <= now]
        for wish in sorted(late, key=lambda wish: wish.moved_at)[:LEAVES_MAX]:
            where = wish.where
            wish.moved_at = now + ELSEWHERE_S
            if where is None or wish.number not in where.asks:
                continue
            choice = self._desk.placer.idle_for(wish.demand, where.peer, now - wish.asked_at)
            if choice is None:
                continue
            self._drop_question(wish, where)
            wish.tried.clear()
            if choice.peer == self._desk.me:
                self._queue_here(wish)
            else:
                self._ask(wish, self._desk.neighbour(choice.peer), choice.limit_s)

    # -- in a bundle of a placement group

    def ask_of_bundle(
        self, peer: PeerId, client: int, request: int, job: int, demand: Demand, within: bytes, *,
        retryable: bool, name: str, actor: bool,
    ) -> None:  # fmt: skip
        """Ask the node of a bundle for a worker in it. What it does not lend comes back to the desk of groups."""
        wish = Wish(client, request, job, demand, retryable, name, actor, self._node.now(), within=within)
        self.wishes[client, request] = wish
        self._ask(wish, self._desk.neighbour(peer), 0.0)

    # -- answers

    def lease_is(self, neighbour: Neighbour, message: far.LeaseIs) -> None:
        """They lend us a worker."""
        wish = neighbour.asks.pop(message.number, None)
        if wish is None:
            neighbour.link.send(far.GiveBack(message.lease))
            return
        self._heard_load(neighbour, message.load, wish.asked_at)
        wish.where = None
        self.wishes.pop((wish.client, wish.request), None)
        if wish.demand.setup_s:
            self._prepared.setdefault(wish.job, set()).add(neighbour.peer)
        self._desk.workers.granted(neighbour, message, wish)

    def lease_not(self, neighbour: Neighbour, message: far.LeaseNot) -> None:
        """They do not: it is asked of others."""
        wish = neighbour.asks.pop(message.number, None)
        if wish is None:
            return
        self._heard_load(neighbour, message.load, wish.asked_at)
        wish.where = None
        if message.environment:
            self._unprepared(wish, f"on {neighbour.client.name}: {message.reason}")
            return
        wish.tried.append(neighbour.peer)
        self._try(wish)

    def _unprepared(self, wish: Wish, reason: str) -> None:
        """What its worker needs could not be made there. It is not tried elsewhere, as in Ray: a wrong name is wrong
        on every node, and would be looked for on each."""
        self.wishes.pop((wish.client, wish.request), None)
        if wish.within:
            self._node.groups.granted(wish.client, wish.request)
        self._denied(wish, reason, environment=True)

    def _heard_load(self, neighbour: Neighbour, data: bytes, asked_at: float) -> None:
        if data and (load := loads.decode(data)) is not None:
            self._desk.placer.told(neighbour.peer, load, asked_at)
