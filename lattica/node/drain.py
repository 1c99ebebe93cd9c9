"""A node goes on purpose: what it does for others comes to an end, and what others need of it goes to them.

    drain(grace)   nothing new ─► tasks of others end, at most `grace` ─► leave()
    leave()        workers of others end, and what they gave is held elsewhere ─► borrowers fetch what they hold of ours
                   (Going ─► MayGo) ─► the node ends, and says that it has left

SIGTERM drains, for a spot instance has two minutes; a second one ends the node at once. `lattica stop` only leaves. A
node that nobody borrows from waits for nothing. Scripts of submitted jobs that run here begin again elsewhere as soon
as this node has left; actors of other nodes that have restarts do so before. They end first, since who calls one until
the last moment is given results that nobody can fetch any more.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lattica.codec import far
from lattica.errors import ConfigError, PermissionDeniedError
from lattica.mesh.identity import PeerId, peer_text
from lattica.mesh.roles import Role
from lattica.mesh.services import method, service
from lattica.node.server import TERM_S
from lattica.scheduler.load import encode

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour
    from lattica.node.mesh_desk import MeshDesk
    from lattica.node.server import Node

log = logging.getLogger(__name__)
GRACE_S = 30.0
GRACE_MAX_S = 86400.0
HAND_OVER_S = 20.0  # of a drain: 1 GiB at 400 Mbit/s
STOP_S = 1.5
"""How long `lattica stop` hands over: whoever stops a node waits for that."""
GUEST_S = 3.5
"""The same for the node of a driver that ends; its program gives it five seconds for all."""
LOOK_S = 0.1
CALL_S = 10.0


@service("drain")
class DrainService:
    """For admins elsewhere."""

    def __init__(self, drain: Drain) -> None:
        self._drain = drain

    @method(role=Role.ADMIN, idempotent=True)
    async def begin(self, grace_s: float) -> None:
        """Drain this node."""
        self._drain.begin(grace_s, "an admin said so")


class Drain:
    """See the module."""

    def __init__(self, node: Node, mesh: MeshDesk, desk: FarDesk) -> None:
        self._node, self._mesh, self._desk = node, mesh, desk
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._waits_for: set[PeerId] = set()  # who fetches from us before we go
        self._fetching: dict[asyncio.Task[None], PeerId] = {}  # -> for whom, who goes
        desk.peer.serve(DrainService(self), offered=False)
        mesh.answers("drain", self._drain)

    def __repr__(self) -> str:
        return f"<Drain: {'under way' if self.draining else 'not yet'}>"

    @property
    def draining(self) -> bool:
        """Whether this node is going."""
        return self._task is not None

    # -- going

    def begin(self, grace_s: float, why: str) -> None:
        """Take nothing new, let tasks of others end within `grace_s`, then leave. A second time: end at once."""
        if self._task is not None:
            self._node.close(signal.SIGTERM)
            return
        log.warning("this node drains: %s", why)
        self._task = self._loop.create_task(self._run(min(max(grace_s, 0.0), GRACE_MAX_S), HAND_OVER_S))

    def leave(self, hand_over_s: float) -> None:
        """Hand over what others need, and end."""
        if self._task is None:
            self._task = self._loop.create_task(self._run(0.0, hand_over_s))

    def close(self) -> None:
        """The node ends."""
        for task in (*self._fetching, self._task):
            if task is not None and task is not asyncio.current_task():
                task.cancel()

    async def _run(self, grace_s: float, hand_over_s: float) -> None:
        try:
            self._desk.placer.admission.draining = self._node.draining = True
            if self._node.runs is not None:
                self._node.runs.draining = True
            self._mesh.peer.gossip.say(encode(self._node.load()))
            until = self._loop.time() + grace_s
            asked = False
            while self._works_for_others() and self._loop.time() < until:
                if not asked:
                    asked = True
                    for neighbour in self._desk.neighbours.values():
                        neighbour.link.send(far.Wanted())
                await asyncio.sleep(LOOK_S)
            await self._desk.detached.move_all()
            until = self._loop.time() + hand_over_s
            await self._end_workers_of_others(until)
            await self._hand_over(until)
        finally:
            self._node.close(signal.SIGTERM)

    def _works_for_others(self) -> bool:
        return bool(self._leased() - self._desk.hosting.hosted.keys())

    def _leased(self) -> set[int | None]:
        """Workers of ours that other nodes have; None: one that is not forked yet."""
        clients = {neighbour.client.number for neighbour in self._desk.neighbours.values()}
        return {lease.worker for lease in self._node.book.leases.values() if lease.holder in clients}

    async def _end_workers_of_others(self, until: float) -> None:
        """Those that are left, and wait until the nodes of their callers hold what they were given."""
        hosting, node = self._desk.hosting, self._node
        for worker in self._leased() | hosting.hosted.keys():
            if worker is not None:
                node.pool.ending(worker, node.now())
                node.workers.kill(worker, "its node goes", number=signal.SIGTERM)
                self._loop.call_later(TERM_S, node.workers.kill, worker)
        while (self._leased() or hosting.hosted or self._desk.objects.lending.gives()) and self._loop.time() < until:
            await asyncio.sleep(LOOK_S / 4)

    async def _hand_over(self, until: float) -> None:
        held = {view.client for view in self._node.store.ledger.views() if view.held}
        borrowers = [neighbour for neighbour in self._desk.neighbours.values() if neighbour.client.number in held]
        self._waits_for = {neighbour.peer for neighbour in borrowers}
        for neighbour in borrowers:
            neighbour.link.send(far.Going())
        while self._waits_for & self._desk.neighbours.keys():
            if self._loop.time() > until:
                log.warning("%d nodes had not fetched all that they hold of ours", len(self._waits_for))
                return
            await asyncio.sleep(LOOK_S / 4)

    def may_go(self, neighbour: Neighbour, message: far.MayGo) -> None:
        """They have what they want of ours."""
        self._waits_for.discard(neighbour.peer)

    # -- when another goes

    def going(self, neighbour: Neighbour, message: far.Going) -> None:
        """Fetch what they lend us and we do not have yet."""
        if neighbour.peer in self._fetching.values():
            return
        task = self._loop.create_task(self._fetch(neighbour))
        self._fetching[task] = neighbour.peer
        task.add_done_callback(self._fetching.pop)

    async def _fetch(self, neighbour: Neighbour) -> None:
        objects = self._desk.objects
        until = self._loop.time() + HAND_OVER_S
        before = len(objects.missing_of(neighbour))
        while self._loop.time() < until and neighbour.link.over is None:
            missing = objects.missing_of(neighbour)
            if not missing:
                neighbour.link.send(far.MayGo())
                log.info("%s goes; %d objects of it were fetched", neighbour.client.name, before)
                return
            for object_ in missing:
                objects.fetching.fetch(object_)
            await asyncio.sleep(LOOK_S / 4)

    # -- commands

    async def _drain(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"peer": id or what tells it apart, "" for this node; "grace_s": seconds}."""
        text, grace_s = str(data.get("peer", "")), float(data.get("grace_s", GRACE_S))
        peer = self._mesh.peer_of(text) if text else self._desk.me
        if peer == self._desk.me:
            if self._task is not None:
                raise ConfigError("this node drains already", do_next="wait, or end it now with `lattica stop`")
            self.begin(grace_s, "a command said so")
        else:
            try:
                await self._mesh.peer.call(peer, "drain.begin", grace_s, timeout_s=CALL_S)
            except PermissionDeniedError as error:
                error.do_next = (
                    "run `lattica drain` on that machine, or this on an issuer (`lattica issuer` lists them)"
                )
                raise
        return {"peer_id": peer_text(peer), "this_node": peer == self._desk.me}
