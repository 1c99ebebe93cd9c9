"""Detached actors of a mesh: they outlive the program that made them, and the node that supervises them.

    created    a job of its own ─► its constructor and arguments, as one content, on KEEPERS more nodes ─► its row
    its node is gone    the restarter writes the row (`scheduler.restarts`) ─► fetches the content ─► supervises it
    superseded          what runs here is ended; callers here are connected with the one that goes on

The restarter's node submits it anew: it makes a job of its own, under its own role, since the first submitter's token
ends after a day and with its node. Where an actor's worker lives is the placer's matter, as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Iterable
from time import time
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.actors.supervision import Plan
from lattica.codec import messages as m
from lattica.errors import LatticaError
from lattica.ids import ACTOR_ID_BYTES, ActorId, short
from lattica.mesh.identity import PeerId, peer_text, short_peer
from lattica.mesh.papers import DAMAGED
from lattica.mesh.roles import Role
from lattica.node.checkpoint_desk import State
from lattica.node.clients import Job
from lattica.node.fenced import Fenced, Offer
from lattica.node.names_desk import name_key
from lattica.node.seeds import VERSION, Held, Paper, Seed, read_paper, read_seed, write
from lattica.node.surroundings import Surroundings
from lattica.objectstore.cid import cid_text
from lattica.scheduler import restarts
from lattica.scheduler.environments import Environment, encode
from lattica.scheduler.fencing import Life
from lattica.scheduler.resources import ResourceSet

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk

log = logging.getLogger(__name__)
KEEPERS = 2
"""Nodes besides the owner that keep what a restart needs: those that would do it. Less: one more death loses it."""
SMALL_BYTES = 64 << 10
KEEPERS_MAX = 16
"""Of a seed of SMALL_BYTES: so many that with the owner they are more than half, so that any larger side has one."""
SEED_MAX_BYTES = 8 << 20  # of what a constructor is given: it travels in the memory of nodes
CHECKPOINT_S = 2.0  # for actors that move to take one more
SAVED_S = 10.0  # for those to be kept by another node
MOVE_S = 5.0  # for a node that goes to tell where its actors go on
GATHER_S = 10.0  # for what the arguments refer to, to come here from other nodes
LOOK_S = 0.2
NOT_KEPT = "it cannot be restarted on another node"


_MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"


class DetachedDesk:
    """See the module."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk, self._node = desk, desk.node
        self._loop = asyncio.get_running_loop()
        self.tasks: set[asyncio.Task[None]] = set()
        self._seeds: dict[bytes, bytes] = {}  # actor of ours -> its content
        self._told: dict[bytes, tuple[PeerId, ...]] = {}  # actor of ours -> who was asked to keep it
        self._states_told: dict[bytes, tuple[PeerId, ...]] = {}  # actor of ours -> who was asked to keep its checkpoint
        self._unkept: set[bytes] = set()  # actors whose last checkpoint no other node has
        self._packages: dict[bytes, list[bytes]] = {}  # actor of ours -> the contents of its packages
        self._packages_told: set[tuple[bytes, PeerId]] = set()  # who was asked to keep one
        self._surroundings = Surroundings(desk)
        self._growing: set[bytes] = set()  # actors that are being restarted here
        self._adopted: set[bytes] = set()  # actors of ours that began elsewhere
        self._giver = desk.new_number()
        self.superseded_states = Fenced(desk.kept.folder, desk.jobs.unix)
        desk.kept.named = self.named

    def __repr__(self) -> str:
        return f"<DetachedDesk: {len(self._seeds)} here, {len(self._growing)} being restarted>"

    def close(self) -> None:
        """The node ends."""
        for task in list(self.tasks):
            task.cancel()

    def begin(self, work: Any) -> None:
        """Work that ends with the node."""
        task = self._loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def via(self, actor: bytes) -> int:
        """Who stands for the giver of what its spec holds: nothing lies where it says, if it began elsewhere."""
        return self._giver if actor in self._adopted else 0

    # -- made here

    def objection(self) -> str:
        """Why none can be made here; "" if one can."""
        if Role.SUBMIT not in self._desk.roles_of(self._desk.me):
            return "a detached actor outlives its job, so the node that makes it needs the role `submit`"
        return ""

    def of_its_own(self, plan: Plan) -> Plan:
        """The same plan, in a job that does not end with its driver."""
        job = self._node.jobs[plan.job]
        own = self._job(job.driver, job.python, job, job.environment)
        if job.environment.shelf:
            with contextlib.suppress(OSError):  # its driver has just ended
                self._node.job_desk.hold_folder(own.number, job.environment.shelf)
        return msgspec.structs.replace(plan, job=own.number)

    def _job(self, driver: int, python: str, like: Job | Seed, environment: Environment) -> Job:
        number = self._node.job_desk.next_number()
        job = self._node.jobs[number] = Job(
            number, driver, 0, python, like.sys_path, like.cwd, like.script, like.namespace,
            like.log_to_driver, time(), like.preload, ended=True, minor=like.minor, environment=environment,
        )  # fmt: skip
        return job

    def needs_worker(self, plan: Plan, incarnation: int) -> None:
        """A detached actor of ours starts, for the first time here or again."""
        actor, deciding = ActorId(plan.actor), self._desk.deciding
        record = deciding.restarts.running.get(actor)
        if record is None and plan.actor not in self._seeds:
            self._seeds[plan.actor] = b""
            self.begin(self._announce(plan))
        elif record is not None:
            paper = read_paper(record.spec)
            if paper is None or paper.incarnation >= incarnation:
                return
            spec = write(msgspec.structs.replace(paper, incarnation=incarnation))
            left = (
                record.restarts_left if record.restarts_left == restarts.ENDLESS else max(record.restarts_left - 1, 0)
            )
            deciding.do([restarts.Write(actor, msgspec.structs.replace(record, spec=spec, restarts_left=left))])

    async def _announce(self, plan: Plan) -> None:
        """Write its row, with what a restart needs at hand on other nodes."""
        desk, node, actor = self._desk, self._node, plan.actor
        job = node.jobs.get(plan.job)
        if job is None:
            return
        deadline, objects, missing = self._loop.time() + GATHER_S, list[Held](), list[bytes]()
        while (missing := self._gather(plan.holds, objects)) and self._loop.time() < deadline:
            await asyncio.sleep(LOOK_S)
        if missing:
            log.warning(
                "actor %s: %d of what its constructor is given is not here: %s", short(actor), len(missing), NOT_KEPT
            )
        packages, lost = await self._surroundings.packed(job)
        missing += lost
        seed = Seed(
            plan.spec, dict(plan.resources), plan.class_name, plan.name, plan.namespace, plan.meta, plan.given,
            job.python, job.minor or _MINOR, job.sys_path, job.cwd, job.script, job.log_to_driver, job.preload,
            list(plan.holds), objects, job.environment.env_vars, packages,
            b"" if job.environment.installs is None else encode(job.environment.installs), job.environment.timeout_s,
        )  # fmt: skip
        data, content = write(seed), b""
        if len(data) > SEED_MAX_BYTES:
            words = f"{plan.class_name}: what its constructor is given has {len(data) >> 20} MiB: {NOT_KEPT}"
            log.warning("%s", words)
            node.tell(job.driver, m.LogLines("lattica", os.getpid(), 2, [words]))
        elif not missing:
            content = desk.kept.put(data)
        if node.actor_desk.supervisor.living(actor) is None:
            return  # it has ended meanwhile
        self._seeds[actor] = content
        self._packages[actor] = [each.content for each in packages]
        await self._spread(actor)
        if actor not in self._seeds or node.actor_desk.supervisor.living(actor) is None:
            return  # or its row would stay for ever
        paper = Paper(
            VERSION, content, plan.class_name, plan.name, plan.namespace, desk.names.claim_of(actor),
            node.actor_desk.supervisor.actors[actor].incarnation, packages=[each.content for each in packages],
        )  # fmt: skip
        deciding = desk.deciding
        deciding.do(
            deciding.restarts.begin(
                ActorId(actor), write(paper), deciding.now(), available=plan.available, restarts=plan.max_restarts
            )
        )
        node.actor_desk.checkpoints.save(actor)  # if it has taken one before it had a row

    def _gather(self, holds: tuple[bytes, ...], into: list[Held]) -> list[bytes]:
        """What the arguments refer to, and what that refers to; those that are not here yet, and are asked for."""
        into.clear()
        objects, left, missing, size = self._desk.objects, list(holds), list[bytes](), 0
        seen: set[bytes] = set()
        while left and size <= SEED_MAX_BYTES:
            object_ = left.pop()
            if object_ in seen or len(object_) == ACTOR_ID_BYTES:
                continue  # a handle holds its actor by itself
            seen.add(object_)
            found = objects.bytes_of(object_)
            if found is None:
                missing.append(object_)
                objects.fetching.fetch(object_)
                continue
            data, failed, contains = found
            size += len(data)
            into.append(Held(object_, failed, list(contains), data))
            left += contains
        return missing

    def _keepers(self, actor: bytes, content: bytes) -> tuple[PeerId, ...]:
        """Who shall have it, too."""
        others = self._desk.deciding.in_order(actor)
        is_small = self._desk.kept.size(content) <= SMALL_BYTES
        count = min(max(KEEPERS, (len(others) + 1) // 2), KEEPERS_MAX) if is_small else KEEPERS
        return tuple(others[:count])

    async def _spread(self, actor: bytes) -> None:
        content = self._seeds.get(actor, b"")
        keepers = self._keepers(actor, content)
        if content and keepers != self._told.get(actor):
            new = [peer for peer in keepers if peer not in self._told.get(actor, ())]
            self._told[actor] = keepers
            await self._desk.kept.spread(content, new)
        await self._spread_packages(actor, keepers[:KEEPERS])

    async def _spread_packages(self, actor: bytes, keepers: tuple[PeerId, ...]) -> None:
        for package in self._packages.get(actor, ()):
            new = [peer for peer in keepers if (package, peer) not in self._packages_told]
            self._packages_told |= {(package, peer) for peer in new}
            await self._desk.kept.spread(package, new)

    def _spread_state(self, actor: bytes) -> None:
        """Its last checkpoint has other keepers now, perhaps."""
        state = self._node.actor_desk.checkpoints.states.get(actor)
        if state is None or not state.content or actor not in self._states_told:
            return
        keepers, told = self._keepers(actor, state.content), self._states_told[actor]
        self._states_told[actor] = keepers
        record = self._desk.deciding.records.get(actor)
        paper = read_paper(record.spec) if record is not None else None
        if paper is not None and paper.state != state.content:
            self._node.actor_desk.checkpoints.save(actor)  # nobody would have it, then
        elif new := [peer for peer in keepers if peer not in told]:
            self.begin(self._desk.kept.spread(state.content, new))

    async def keep_state(self, actor: bytes, state: State) -> None:
        """Have its keepers keep it, then name it in its row: not before one of them says that it has it on its disk, so
        that what the row names outlives this machine. Until then the row names the one before."""
        desk, deciding = self._desk, self._desk.deciding
        keepers = self._states_told[actor] = self._keepers(actor, state.content)
        if not await desk.kept.spread(state.content, keepers, enough=1) and keepers:
            if actor not in self._unkept:  # once, not after each call
                self._unkept.add(actor)
                log.warning("no other node keeps the last checkpoint of actor %s: the one before counts", short(actor))
            return
        self._unkept.discard(actor)
        record = deciding.restarts.running.get(ActorId(actor))
        paper = read_paper(record.spec) if record is not None else None
        if record is None or paper is None or paper.state == state.content:
            return
        spec = write(msgspec.structs.replace(paper, state=state.content, before=paper.state))
        deciding.do([restarts.Write(ActorId(actor), msgspec.structs.replace(record, spec=spec))])

    def superseded(self, before: restarts.Record, now: restarts.Record | None) -> None:
        """A row names other checkpoints than it did."""
        old, new = read_paper(before.spec), read_paper(now.spec) if now is not None else None
        named = {new.state, new.before} if new is not None else set()
        for content in sorted({old.state, old.before} - named - {b""}) if old is not None else ():
            if content not in self.superseded_states.contents():
                self._desk.kept.forget_soon(content)

    def named(self) -> Iterable[bytes]:
        """Contents that this node must not delete."""
        papers = [read_paper(record.spec) for record in self._desk.deciding.records.values()]
        for paper in papers:
            if paper is not None:
                yield from filter(None, (paper.content, paper.state, paper.before, *paper.packages))
        yield from filter(None, self._seeds.values())
        for packages in self._packages.values():
            yield from packages
        yield from self.superseded_states.contents()
        yield from self._node.actor_desk.checkpoints.contents()

    def members_changed(self) -> None:
        """Others may be the ones to keep what ours need; and what no row names any more may go."""
        for actor in list(self._seeds):
            self.begin(self._spread(actor))
            self._spread_state(actor)
        self._node.actor_desk.checkpoints.members_changed()
        self._desk.kept.sweep()

    # -- restarted here

    def restart(self, actor: bytes, record: restarts.Record) -> None:
        """It is this node's turn. Its row is written once what it grows from is here, so that no restart is spent in
        vain, and the next in order may be luckier."""
        if actor not in self._growing:
            self._growing.add(actor)
            self.begin(self._grow(actor, record))

    async def _grow(self, actor: bytes, record: restarts.Record) -> None:
        desk, deciding, paper = self._desk, self._desk.deciding, read_paper(record.spec)
        try:
            data = None
            if paper is not None and paper.content:
                data = await desk.kept.get(paper.content, deciding.in_order(actor))
            if paper is None or data is None:
                why = "no node that answers keeps what it grows from" if paper is not None else "its row is unreadable"
                log.warning("actor %s cannot be restarted: %s", short(actor), why)
                deciding.do(deciding.restarts.failed(ActorId(actor), deciding.now()))
                return
            state = await self._state(actor, paper)
            if state is not None:
                self._node.actor_desk.checkpoints.states[actor] = state
            elif paper.state:
                log.warning("actor %s begins anew: no node that answers has its checkpoint", short(actor))
            if state is not None and state.content != paper.state:
                paper = msgspec.structs.replace(paper, state=state.content, before=b"")
            seed, running = read_seed(data), deciding.restarts.running.get(ActorId(actor))
            if running is None or running.life != record.life:
                return  # somebody else was first
            paper = msgspec.structs.replace(paper, incarnation=paper.incarnation + 1)
            record = msgspec.structs.replace(record, spec=write(paper))
            if not deciding.supersede(actor, record):
                deciding.do(deciding.restarts.failed(ActorId(actor), deciding.now()))
                return
            await self._supervise(actor, record, paper, seed)
        except (LatticaError, *DAMAGED) as error:
            log.warning("actor %s cannot be restarted: %s", short(actor), error)
            deciding.do(deciding.restarts.failed(ActorId(actor), deciding.now()))
        finally:
            self._growing.discard(actor)

    async def _state(self, actor: bytes, paper: Paper) -> State | None:
        """What it goes on from: the last checkpoint that is to be had."""
        kept, others = self._desk.kept, self._desk.deciding.in_order(actor)
        for content in filter(None, (paper.state, paper.before)):
            if await kept.bring(content, others):
                size = kept.size(content)
                data = await kept.get(content, ()) if size <= SMALL_BYTES else b""
                return State(data or b"", content, size)
            log.warning("actor %s: no node that answers has checkpoint %s", short(actor), cid_text(content))
        return None

    async def _supervise(self, actor: bytes, record: restarts.Record, paper: Paper, seed: Seed) -> None:
        node, desk, deciding = self._node, self._desk, self._desk.deciding
        environment, using = await self._surroundings.unpacked(seed, deciding.in_order(actor))
        for held in seed.objects:
            await desk.objects.take_in(held.object, held.data, held.failed, held.contains)
        if deciding.restarts.running.get(ActorId(actor)) is None or actor in node.actor_desk.supervisor.actors:
            node.store.let_go([held.object for held in seed.objects])
            self._surroundings.let_go(using)
            return
        for hold in seed.holds:
            node.store.give(hold, m.NODE)
        node.store.let_go([held.object for held in seed.objects])  # `take_in` holds each once
        python = seed.python if seed.minor == _MINOR and os.access(seed.python, os.X_OK) else sys.executable
        job = self._job(0, python, seed, environment)
        self._surroundings.using[job.number] = using
        plan = Plan(
            actor, job.number, seed.spec, ResourceSet.of(seed.resources), seed.class_name, seed.name, seed.namespace,
            True, False, record.restarts_left, tuple(seed.holds), seed.meta, False, seed.given, record.available,
        )  # fmt: skip
        self._seeds[actor], self._packages[actor] = paper.content, list(paper.packages)
        self._adopted.add(actor)
        log.info("actor %s (%s) goes on here, in life %s", short(actor), seed.class_name, record.life.number())
        node.store.track(m.NODE, actor)
        if paper.claim:
            desk.names.adopted(actor, paper.claim, plan)
        node.actor_desk.adopt(plan, paper.incarnation)
        desk.actors.moved(actor, record)
        await self._spread(actor)

    def is_it_here(self, actor: bytes) -> None:
        """Its row says that it runs here, and that nobody restarts it. It may be of an earlier run of this node."""
        here = actor in self._node.actor_desk.supervisor.actors or actor in self._growing or actor in self._seeds
        if not here:
            self._desk.deciding.bury(actor)

    # -- the end

    def ended(self, plan: Plan) -> None:
        """One of ours is dead for good."""
        if plan.actor not in self._seeds:
            return
        self._forget(plan.actor)
        self._desk.deciding.bury(plan.actor)
        self._forget_job(plan.job)

    def end_everywhere(self, actor: bytes) -> None:
        """Somebody here wants one ended whose node is gone."""
        deciding = self._desk.deciding
        record = deciding.records.get(actor)
        paper = read_paper(record.spec) if record is not None else None
        deciding.bury(actor)
        if paper is not None and paper.claim:
            key = name_key(paper.namespace, paper.name)
            deciding.do(deciding.names.release(key, paper.claim, deciding.now()))

    def fenced(self, actor: bytes, life: Life, by: restarts.Record | None) -> None:
        """What runs here was superseded, or ended by somebody."""
        self._forget(actor)
        known = self._node.actor_desk.supervisor.actors.get(actor)
        self._desk.names.gone_on(actor)
        how = (
            f"a newer life of it runs on {short_peer(PeerId(by.host))}" if by is not None else "it was ended elsewhere"
        )
        log.warning("actor %s, life %s, ends here: %s", short(actor), life.number(), how)
        if by is not None:
            self.offer_state(actor, life, how)
        self._node.actor_desk.fence(actor, how, goes_on=by is not None)
        if known is not None:
            self._forget_job(known.plan.job)

    def let_go(self, plan: Plan) -> None:
        """One of ours was fenced by somebody else."""
        self._forget(plan.actor)
        self._forget_job(plan.job)

    def offer_state(self, actor: bytes, life: Life, how: str) -> None:
        """A life of an actor ends here though it could go on: what it knew is kept, if its class has checkpoints."""
        state = self._node.actor_desk.checkpoints.states.get(actor)
        plan = self._node.actor_desk.supervisor.living(actor)
        if state is not None and plan is not None:
            content, now = state.content or self._desk.kept.put(state.data), self._desk.jobs.unix()
            self._desk.kept.stays(content)  # its row names another one by now
            numbers = life.epoch, life.incarnation, life.minority
            self.superseded_states.add(
                Offer(actor, plan.class_name, plan.name, plan.namespace, numbers, how, now, content)
            )

    def _forget_job(self, number: int) -> None:
        job = self._node.jobs.get(number)
        self._surroundings.forgotten(number)
        if job is not None:
            self._desk.jobs.ended(job, farewell=False)
            self._loop.call_soon(self._node.job_desk.forget, job)

    async def move_all(self) -> None:
        """This node goes: others run what it runs, from the constructor."""
        handed: dict[bytes, int] = {}  # actor -> epoch
        await self._last_checkpoints()
        for actor in list(self._seeds):
            content, others = self._seeds[actor], self._desk.deciding.in_order(actor)
            if not content or not others:
                continue
            if others[0] not in self._told.get(actor, ()):
                await self._desk.kept.spread(content, others[:1])
            await self._spread_packages(actor, tuple(others[:1]))
            plan = self._node.actor_desk.supervisor.living(actor)
            if plan is not None and self._desk.deciding.hand_over(actor, others[0]):
                self._forget(actor)
                self._desk.names.gone_on(actor)
                how = f"its node goes, and it goes on under node {short_peer(others[0])}"
                self._node.actor_desk.fence(actor, how, goes_on=True, fenced=False)
                self._forget_job(plan.job)
                handed[actor] = self._desk.deciding.records[actor].life.epoch
        until, records = self._loop.time() + MOVE_S, self._desk.deciding.records
        while self._loop.time() < until and any(
            actor in records and records[actor].life.epoch == epoch for actor, epoch in handed.items()
        ):
            await asyncio.sleep(LOOK_S)

    async def _last_checkpoints(self) -> None:
        """Of those whose classes offer any: they have taken one before."""
        desk, checkpoints = self._node.actor_desk, self._node.actor_desk.checkpoints
        states = checkpoints.states
        before = {actor: state for actor in self._seeds if (state := states.get(actor)) is not None}
        for actor in before:
            entry = desk.supervisor.actors.get(actor)
            if entry is not None and entry.worker is not None:
                self._node.tell(entry.worker, m.CheckpointWanted(actor))
        until = self._loop.time() + CHECKPOINT_S
        while self._loop.time() < until and any(states.get(actor) is state for actor, state in before.items()):
            await asyncio.sleep(LOOK_S / 4)
        until = self._loop.time() + SAVED_S
        while self._loop.time() < until and any(map(checkpoints.is_saving, before)):
            await asyncio.sleep(LOOK_S / 4)

    def _forget(self, actor: bytes) -> None:
        """It is not this node's any more."""
        self._seeds.pop(actor, None)
        self._told.pop(actor, None)
        self._states_told.pop(actor, None)
        self._unkept.discard(actor)
        gone = self._packages.pop(actor, [])
        self._packages_told = {each for each in self._packages_told if each[0] not in gone}
        self._adopted.discard(actor)

    # -- for people

    def view(self) -> list[dict[str, Any]]:
        """All detached actors, as the table has them: the same on every node whose table is equal."""
        found = []
        for actor, record in sorted(self._desk.deciding.records.items()):
            paper = read_paper(record.spec)
            over = self._desk.deciding.is_over(record)
            alive = record.host in self._desk.deciding.living
            found.append(
                {
                    "actor": actor.hex(),
                    "class_name": paper.class_name if paper is not None else "",
                    "name": paper.name if paper is not None else "",
                    "namespace": paper.namespace if paper is not None else "",
                    "state": "DEAD" if over else "ALIVE" if alive else "RESTARTING",
                    "host": peer_text(PeerId(record.host)),
                    "epoch": record.life.epoch,
                    "incarnation": paper.incarnation if paper is not None else 0,
                    "minority": record.life.minority,
                    "partition": "available" if record.available else "consistent",
                    "restarts_left": record.restarts_left,
                }
            )
        return found
