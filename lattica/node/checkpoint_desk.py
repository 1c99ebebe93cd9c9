"""The last checkpoint of each actor that this node restarts: taken from its worker, kept twice, given to its next life.

    small    worker ── ActorCheckpoint(state) ──► its node ──► the owner's node       in messages, and in memory here
    large    worker ── a value in the arena ──► its node, which copies it to its disk (`Kept`) and names it ──► the
             owner's node brings it from there; a worker that grows from it gets a descriptor

Of each actor one is saved at a time; of those that come meanwhile the newest is next. A plain actor's is kept by its
owner's node and one more; where a detached actor's goes is `detached_desk`'s matter. A node without a mesh has neither
a disk for it nor anybody else: it keeps large ones in memory.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.codec import messages as m
from lattica.ids import short
from lattica.mesh.identity import PeerId
from lattica.node.contents import Draft
from lattica.objectstore.arena import Arena

if TYPE_CHECKING:
    from lattica.node.clients import Client
    from lattica.node.far_desk import FarDesk
    from lattica.node.loop import Timer
    from lattica.node.server import Node

log = logging.getLogger(__name__)
STATE_MAX_BYTES = 256 << 20
"""Of a checkpoint, as in the worker."""
SMALL_MAX_BYTES = 8 << 20  # of one in a message; workers send larger ones otherwise from 100 KiB on
STEP_BYTES = 8 << 20  # copied at once
RENEW_S = 200.0
"""So often a keeper hears that a plain actor's checkpoint is still needed: it forgets after 600 s (`kept.FORGET_S`)."""
TRIES = 3  # of other nodes that are asked to keep a plain actor's checkpoint


class State(msgspec.Struct, eq=False):
    """A checkpoint: its bytes, if they are few; else its CID and size, or in a node without a mesh a descriptor."""

    data: bytes = b""
    content: bytes = b""
    size: int = 0
    fd: int = -1
    host: PeerId | None = None  # another node that has it on its disk

    def close(self) -> None:
        """Nobody needs it any more."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class CheckpointDesk:
    """See the module."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.states: dict[bytes, State] = {}  # actor of ours -> its last checkpoint
        self._next: dict[int, tuple[Client, m.ActorCheckpoint] | None] = {}  # workers whose large one is being copied
        self._fetching: dict[bytes, State | None] = {}  # actors whose large one comes from its host -> the next
        self._saving: set[bytes] = set()
        self._told: dict[bytes, tuple[bytes, tuple[PeerId, ...]]] = {}  # plain actor -> (content, who keeps it)
        self._hosted: dict[int, bytes] = {}  # worker that is an actor of others -> its last content on our disk
        self._renewing: Timer | None = None

    def __repr__(self) -> str:
        return f"<CheckpointDesk: {len(self.states)} states, {len(self._saving)} being saved>"

    @property
    def _far(self) -> FarDesk:
        assert self._node.far is not None
        return self._node.far

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._far.detached.begin(work)

    def contents(self) -> Iterable[bytes]:
        """What this node must keep on its disk for them."""
        yield from [state.content for state in self.states.values() if state.content]
        yield from self._hosted.values()

    # -- taken

    def taken(self, client: Client, message: m.ActorCheckpoint) -> None:
        """A worker of ours has taken one: of an actor of ours, or of another node's."""
        if not message.object:
            if len(message.state) <= SMALL_MAX_BYTES and not self._node.actor_desk.forwarded(client, message):
                self.came(client.number, message.actor, State(message.state))
            return
        store = self._node.store
        if not store.ledger.holds(m.NODE, message.object):
            return
        if client.number in self._next:
            if (before := self._next[client.number]) is not None:
                store.let_go([before[1].object])
            self._next[client.number] = client, message
            return
        size = store.ledger.size_here(message.object)
        if size is None or size > STATE_MAX_BYTES:
            store.let_go([message.object])
            return
        self._next[client.number] = None
        store.bring_back(message.object, lambda _: self._copy(client, message))

    def _copy(self, client: Client, message: m.ActorCheckpoint) -> None:
        """Of one that lies in memory, where it stays until it is `_copied`; or it could not come back from disk."""
        store = self._node.store
        place = store.ledger.place(message.object)
        store.pin(message.object)
        if place is None:
            self._copied(client, message)
        elif self._node.far is not None:
            self._begin(self._to_disk(client, message, place[0], place[1]))
        else:
            self._to_memory(client, message, place[0], place[1])

    def _copied(self, client: Client, message: m.ActorCheckpoint) -> None:
        self._node.store.unpin(message.object)
        self._node.store.let_go([message.object])
        following = self._next.pop(client.number, None)
        if following is not None:
            self.taken(*following)

    def _to_memory(self, client: Client, message: m.ActorCheckpoint, offset: int, size: int) -> None:
        """Of a node without a mesh."""
        state, arena, life = State(size=size), self._node.store.arena, self._life(message.actor)

        def copy() -> None:
            state.fd = os.memfd_create("lattica-checkpoint", os.MFD_CLOEXEC)
            _copy(arena, offset, size, lambda piece: _write_all(state.fd, piece))

        def done(work: Any) -> None:
            if (error := work.exception()) is not None:
                log.warning("a checkpoint of actor %s cannot be kept: %s", short(message.actor), error)
                state.close()
            else:
                self._late(message.actor, life, state)
            self._copied(client, message)

        self._node.loop.run_in_executor(None, copy).add_done_callback(done)

    async def _to_disk(self, client: Client, message: m.ActorCheckpoint, offset: int, size: int) -> None:
        """Of a node in a mesh: then it has a name that other nodes can ask for."""
        arena, disk, life, draft = self._node.store.arena, self._far.kept.disk, self._life(message.actor), None
        run = self._node.loop.run_in_executor
        try:
            draft = await run(None, Draft, disk.folder, size)
            await run(None, _copy, arena, offset, size, lambda piece: draft.write([piece]))
            content = await run(None, draft.named)
            await disk.take(draft, content, size)
        except OSError as error:
            log.warning("a checkpoint of actor %s cannot be kept: %s", short(message.actor), error)
            return
        finally:
            if draft is not None:
                draft.drop()
            self._copied(client, message)
        if self._node.actor_desk.forwarded(client, m.ActorCheckpoint(message.actor, b"", b"", content, size)):
            self._replace_hosted(client.number, content)
        else:
            self._late(message.actor, life, State(content=content, size=size))

    def _replace_hosted(self, worker: int, content: bytes) -> None:
        before = self._hosted.pop(worker, None)
        if before is not None and before != content:
            self._far.kept.forget_soon(before)
        self._hosted[worker] = content

    def worker_gone(self, worker: int) -> None:
        """It was perhaps an actor of another node's: whoever restarts that has its checkpoint by now, or asks soon."""
        if (content := self._hosted.pop(worker, None)) is not None:
            self._far.kept.forget_soon(content)

    def _life(self, actor: bytes) -> int:
        entry = self._node.actor_desk.supervisor.actors.get(actor)
        return entry.incarnation if entry is not None else 0

    def _late(self, actor: bytes, life: int, state: State) -> None:
        """It took a while: its actor may have died since, and have begun again without it."""
        entry = self._node.actor_desk.supervisor.actors.get(actor)
        if entry is not None and entry.end is None and (entry.incarnation == life or entry.worker is None):
            self._stored(actor, state)
        else:
            state.close()

    # -- told by the actor's worker, or its host

    def far_said(self, worker: int, message: m.ActorCheckpoint) -> None:
        """An actor of ours on another node has taken one."""
        if not message.content:
            if len(message.state) <= SMALL_MAX_BYTES:
                self.came(worker, message.actor, State(message.state))
            return
        away = self._far.workers.aways.get(worker)
        if away is None or not 0 < message.size <= STATE_MAX_BYTES or not self._is_of(worker, message.actor):
            return
        state = State(content=message.content, size=message.size, host=away.neighbour.peer)
        if message.actor in self._fetching:
            self._fetching[message.actor] = state
            return
        self._fetching[message.actor] = None
        self._begin(self._fetch(message.actor, state))

    async def _fetch(self, actor: bytes, first: State) -> None:
        state: State | None = first
        try:
            while state is not None:
                life, host = self._life(actor), state.host
                if host is not None and await self._far.kept.bring(state.content, [host]):
                    state.size = self._far.kept.size(state.content)
                    self._late(actor, life, state)
                state, self._fetching[actor] = self._fetching[actor], None
        finally:
            del self._fetching[actor]

    def came(self, worker: int, actor: bytes, state: State) -> None:
        """It is here, for the next life."""
        if self._is_of(worker, actor):
            self._stored(actor, state)

    def _is_of(self, worker: int, actor: bytes) -> bool:
        entry = self._node.actor_desk.supervisor.actor_of(worker)
        return entry is not None and entry.plan.actor == actor and entry.end is None

    def _stored(self, actor: bytes, state: State) -> None:
        if (before := self.states.get(actor)) is not None:
            before.close()
        self.states[actor] = state
        self.save(actor)

    # -- kept elsewhere, too

    def save(self, actor: bytes) -> None:
        """Have others keep the last one of this actor, if there is any."""
        if self._node.far is not None and actor in self.states and actor not in self._saving:
            self._saving.add(actor)
            self._begin(self._save(actor))

    def is_saving(self, actor: bytes) -> bool:
        """Whether its last one is still on its way to others."""
        return actor in self._saving

    async def _save(self, actor: bytes) -> None:
        """The newest, until there is no newer one."""
        saved = None
        try:
            while (state := self.states.get(actor)) is not None and state is not saved:
                saved = state
                if not state.content:
                    state.content, state.size = self._far.kept.put(state.data), len(state.data)
                plan = self._node.actor_desk.supervisor.living(actor)
                if plan is not None and plan.detached:
                    await self._far.detached.keep_state(actor, state)
                elif plan is not None:
                    await self._spread(actor, state)
        finally:
            self._saving.discard(actor)

    async def _spread(self, actor: bytes, state: State) -> None:
        """A plain actor's: one more node has it, if there is any that takes it."""
        others = self._far.deciding.in_order(actor)
        if state.host in others:  # it has it already, and need only be told to keep it
            others = [state.host, *[peer for peer in others if peer != state.host]]
        keepers: tuple[PeerId, ...] = ()
        for peer in others[:TRIES]:
            if await self._far.kept.spread(state.content, [peer], enough=1):
                keepers = (peer,)
                break
        if actor not in self.states:
            self._far.kept.unkeep(state.content, keepers)
            return
        content, peers = self._told.get(actor, (b"", ()))
        self._told[actor] = state.content, keepers
        if content:
            self._let_go(content, [peer for peer in peers if content != state.content or peer not in keepers])
        if self._renewing is None:
            self._renewing = self._node.loop.call_later(RENEW_S, self._renew)

    def _let_go(self, content: bytes, peers: Iterable[PeerId]) -> None:
        if content not in set(self.contents()):
            self._far.kept.unkeep(content, peers)
            self._far.kept.forget_soon(content)

    def _renew(self) -> None:
        self._renewing = None
        for actor in list(self._told):
            self.save(actor)

    def members_changed(self) -> None:
        """Who keeps one may be gone."""
        for actor, (_, peers) in list(self._told.items()):
            here = self._far.deciding.in_order(actor)
            if not peers or peers[0] not in here:
                self.save(actor)

    def close(self) -> None:
        """The node ends."""
        if self._renewing is not None:
            self._renewing.cancel()

    # -- given

    def become(self, worker: int, message: m.BecomeActor) -> None:
        """A worker shall be an actor of ours: it gets the last checkpoint, too."""
        node, state = self._node, self.states.get(message.actor)
        if state is None or state.data:
            node.tell(worker, msgspec.structs.replace(message, state=state.data) if state is not None else message)
            return
        message = msgspec.structs.replace(message, content=state.content, size=state.size)
        if state.fd >= 0:
            node.clients[worker].send(message, [os.dup(state.fd)])
        elif (away := self._far.workers.aways.get(worker)) is not None:
            self._far.kept.may_have(away.neighbour.peer, state.content)
            node.tell(worker, message)
        else:
            self._grow(worker, message, self._far.deciding.in_order(message.actor), anew=True)

    def become_anothers(self, worker: int, message: m.BecomeActor, owner: PeerId) -> None:
        """A worker shall be an actor of that node's, and grow from a large checkpoint."""
        self._grow(worker, message, [owner], anew=False)

    def _grow(self, worker: int, message: m.BecomeActor, keepers: list[PeerId], *, anew: bool) -> None:
        client = self._node.clients.get(worker)
        if client is not None:
            client.wire.hold()  # its callers, and whoever wants it to end, come after
            self._begin(self._become(client, message, keepers, anew=anew))

    async def _become(self, client: Client, message: m.BecomeActor, keepers: list[PeerId], *, anew: bool) -> None:
        """anew: without a checkpoint, if it cannot be had."""
        kept = self._far.kept
        try:
            fd = kept.disk.open(message.content) if await kept.bring(message.content, keepers) else -1
        except OSError:
            fd = -1
        if fd >= 0:
            client.wire.release(message, [fd])
        elif anew:
            log.warning("actor %s begins anew: its checkpoint is nowhere whole", short(message.actor))
            client.wire.release(msgspec.structs.replace(message, content=b"", size=0))
        else:
            self._node.end_worker(
                client.number, "the checkpoint that it was to grow from could not be had from its owner"
            )

    # -- the end

    def forget(self, actor: bytes) -> None:
        """It is over, or another node's."""
        state = self.states.pop(actor, None)
        if state is not None:
            state.close()
        content, peers = self._told.pop(actor, (b"", ()))
        if content and self._node.far is not None:
            self._let_go(content, peers)


def _copy(arena: Arena, offset: int, size: int, write: Callable[[bytes], object]) -> None:
    """Bytes of the arena, in steps; in a thread."""
    for at in range(offset, offset + size, STEP_BYTES):
        write(arena.copy_out(at, min(STEP_BYTES, offset + size - at)))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
