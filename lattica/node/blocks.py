"""Objects on their way between machines: a node reads the blocks of an object from those that hold it, into its arena.

    fetch(object) ─► manifest ─► allocate ─► read, from one source or several ─► check, write ─► Fetched
                  └─ the first source is read from at once: it sends while it hashes, and that is checked afterwards
                        │                      ▲
                        └─ offer(object) at every holder; one that still fetches serves what it has so far

    blocks.manifest(what)        what it consists of; the bytes too, if that is one block
    blocks.read(what)            a stream both ways: runs of blocks are asked for, and their bytes come in order
    blocks.held(what, known)     which blocks are here, as soon as they are more than `known`

`what` is an object's id, or a CID. Which block is to be had from whom is decided in `objectstore.transfer`; here are
calls, memory and threads. Rules of this file: bytes are read in place and sent uncopied, so a region stays pinned until
the last view of it is gone, which is when the other side has acknowledged it; of what is not pinned yet, copies are
sent. How one object is fetched is in `block_fetch`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from lattica.errors import (
    LatticaError,
    ObjectNotAvailableError,
    RemoteProtocolError,
)
from lattica.ids import OBJECT_ID_BYTES, SHORT_ID_DIGITS
from lattica.mesh.bodies import CHUNK_BYTES
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.peer import Peer
from lattica.mesh.roles import Role
from lattica.mesh.services import caller, method, service
from lattica.mesh.values import ALIGN
from lattica.mesh.wire import Buffer
from lattica.node.block_fetch import READERS_MAX, WAIT_S, Fetched, Fetching, Held, blocks_of
from lattica.objectstore.arena import Arena
from lattica.objectstore.cid import BLOCK_BYTES, Manifest, cid_named, manifest_of

log = logging.getLogger(__name__)
Pin = Callable[[bytes], Callable[[], object] | None]

FETCHES = Role.EXECUTE | Role.SUBMIT | Role.STORE
"""Who runs tasks, or submits them, needs their arguments and results."""
CID_BYTES_MAX = 37
PIECE_BYTES = CHUNK_BYTES - ALIGN
"""Of an item: with its head it is one chunk of bulk, which arrives in memory of its own and is never put together."""
ASKERS_MAX = 16  # of whom it is remembered that they began to read: they have it, or soon some of it
IDLE_S = 60.0  # a reader who asks for nothing lets its stream go: it pins the object
PROVIDE_AFTER_S = 2.0  # objects that live shorter than this are nobody's to find
UNMAP_AFTER_S = 1.0  # what was hashed is read next: mapping 100 MiB again costs 5 ms of the event loop, and its faults


@service("blocks")
class Blocks:
    """See the module. One per node; `pin(object_id)` keeps an object where it is until what it returns is called."""

    def __init__(
        self,
        peer: Peer,
        arena: Arena,
        loop: asyncio.AbstractEventLoop,
        pin: Pin,
        free: Callable[[int, int], object] = lambda offset, size: None,
    ) -> None:
        """pin: None if the object is gone. free(offset, size): what was allocated for a fetch that came to nothing."""
        self._peer, self._arena, self._loop, self._pin, self.free = peer, arena, loop, pin, free
        self._objects: dict[bytes, Held] = {}
        self._named: dict[bytes, list[Held]] = {}  # CID -> those of this content
        self._fetching: dict[bytes, Fetching] = {}
        self._to_provide: dict[bytes, float] = {}  # CID -> not before
        self._provided: set[bytes] = set()
        self._providing: asyncio.Task[None] | None = None
        self.stopping = False
        self._context = copy_context()  # no caller's deadline: others may share what one began
        self.bring_back: Callable[[bytes], Awaitable[int | None]] | None = None  # from disk: where it then lies
        self.may_know: Callable[[PeerId, bytes], bool] | None = None  # who has guessed too many ids may not
        peer.serve(self, offered=False)

    def __repr__(self) -> str:
        return f"<Blocks: {len(self._objects)} objects, {len(self._fetching)} fetched>"

    # -- doors

    def offer(self, object_id: bytes, offset: int, size: int, failed: bool) -> None:
        """Others may read this object from now on. It is hashed when the first of them does."""
        held = self._objects.get(object_id)
        if held is not None and held.size == size and held.on_disk:
            held.offset, held.on_disk = offset, False  # it is back
        if held is None or (held.offset, held.size) != (offset, size):
            self.withdraw(object_id)
            held = self._objects[object_id] = Held(object_id, offset, size, failed)
        held.offered = True

    def cid_of(self, object_id: bytes) -> bytes:
        """Its CID in binary form, if it is here, or on its way, and somebody has wanted to know."""
        held = self._objects.get(object_id)
        return b"" if held is None else held.cid

    def went_to_disk(self, object_id: bytes) -> None:
        """It lies where it lay no more, and comes back when somebody reads it."""
        held = self._objects.get(object_id)
        if held is not None and held.transfer is None:
            held.on_disk = True

    def withdraw(self, object_id: bytes) -> None:
        """Nobody begins to read this object any more, and who reads it is told. It may be unknown; if it is still
        fetched, it goes on."""
        held = self._objects.get(object_id)
        if held is not None and held.transfer is None:
            self.forget(held)

    async def fetch(
        self,
        object_id: bytes,
        sources: Sequence[PeerId],
        size_hint: int,
        allocate: Callable[[int], Awaitable[int]],
        *,
        cid: bytes | None = None,
    ) -> Fetched:
        """Bring an object here. Whoever wants the same one meanwhile shares the transfer, and adds its sources.

        sources: who may hold it, the best first; then the providers of `cid` are asked. size_hint: bytes, for timeouts.
        allocate(size): where it goes, in backed memory; if the fetch fails, `free` has it back. cid: the content that
        it must have; None: what the first source says. The object is served to others at once, by copies: `offer` it
        when `pin` knows it, or `withdraw` it before its region is freed.
        Raises ObjectLostError or ObjectFetchTimedOutError, which name the sources and why each failed; whatever
        `allocate` raises.
        """
        held = self._objects.get(object_id)
        if held is not None and held.transfer is None:
            await self._from_disk(held)
            await self._hashed(held)
            return Fetched(held.offset, held.size, held.failed, held.cid)
        fetching = self._fetching.get(object_id)
        if fetching is None:
            fetching = Fetching(self, self._peer, self._arena, object_id, size_hint, allocate, cid)
            self._fetching[object_id] = fetching
            fetching.add(sources, object_id)
            fetching.start(self._loop, self._context.copy())
            fetching.task.add_done_callback(lambda _: self._ended(fetching))
        else:
            fetching.add(sources, object_id)
        fetching.waiters += 1
        try:
            fetched = await asyncio.shield(fetching.task)
            fetching.taken = True
            return fetched
        finally:
            fetching.waiters -= 1
            if not fetching.waiters and not fetching.taken:
                fetching.task.cancel("nobody waits for it any more")
                self._ended(fetching)
                fetching.abandon()

    async def close(self) -> None:
        """End all transfers: nobody reads or writes the arena for us any more, but for what waits to be sent."""
        self.stopping = True
        tasks: list[asyncio.Task[Any]] = [fetching.task for fetching in self._fetching.values()]
        if self._providing is not None:
            tasks.append(self._providing)
        for task in tasks:
            task.cancel()
        hashing = [held.hashing for held in self._objects.values() if held.hashing is not None]
        await asyncio.gather(*tasks, *hashing, return_exceptions=True)
        for held in list(self._objects.values()):
            self.forget(held)

    # -- what others call

    @method(role=FETCHES, idempotent=True)
    async def manifest(self, what: Any) -> list[Any]:
        """[manifest, failed, blocks that are here (a byte each; nothing: all), the bytes of an object of one block,
        others that read it]. Raises ObjectNotAvailableError."""
        held = await self._find_here(what)
        who = caller.get().peer
        if held.size > BLOCK_BYTES:
            self._asked_by(held, who)
        manifest = await self._hashed(held)
        fields = [manifest.version, manifest.total_bytes, manifest.block_bytes, manifest.digests]
        here = b"" if held.transfer is None else bytes(held.transfer.held)
        data: Buffer = b""
        if 0 < held.size <= BLOCK_BYTES:
            await self._until_here(held, 0)
            await self._from_disk(held)
            data = self._lend(held) if held.offered else self._copy(held, 0, held.size)
        others = [reader for reader in reversed(held.askers) if reader != who][:READERS_MAX]
        return [fields, held.failed, here, data, others]

    @method(role=FETCHES)
    async def held(self, what: Any, known: int) -> bytes:
        """Which blocks are here, a byte each, nothing for all: once they are more than `known`, or after WAIT_S."""
        held = self._find(what)
        latest = self._loop.time() + WAIT_S
        while held.transfer is not None and sum(held.transfer.held) <= known:
            if not await held.news.wait(max(latest - self._loop.time(), 0.0)):
                break
        self._check(held)
        return b"" if held.transfer is None else bytes(held.transfer.held)

    @method(role=FETCHES, takes_stream=True)
    async def read(self, what: Any, *, incoming: AsyncIterator[Any]) -> AsyncIterator[Buffer]:
        """[first block, count] comes, the bytes of these blocks go, in pieces that end where a block does.

        A block that is still fetched is waited for, WAIT_S. Raises ObjectNotAvailableError.
        """
        held = await self._find_here(what)
        lent: memoryview | None = None
        who = caller.get().peer
        held.readers[who] = held.readers.get(who, 0) + 1
        try:
            while (run := await _run_of(incoming, blocks_of(held.size))) is not None:
                for block in run:
                    await self._until_here(held, block)
                    if lent is None and held.on_disk:
                        await self._from_disk(held)
                    if lent is None and held.offered:
                        lent = self._lend(held)
                    begin = held.at(block)
                    size = min(BLOCK_BYTES, held.size - begin)
                    view = lent[begin : begin + size] if lent is not None else self._copy(held, begin, size)
                    held.read_bytes += size
                    for at in range(0, size, PIECE_BYTES):
                        yield view[at : at + PIECE_BYTES]
        finally:
            held.readers[who] -= 1
            if not held.readers[who]:
                del held.readers[who]

    # -- serving

    def _asked_by(self, held: Held, who: PeerId) -> None:
        """It begins to read: others that do hear of it, though it has nothing yet."""
        held.askers.pop(who, None)
        held.askers[who] = None
        if len(held.askers) > ASKERS_MAX:
            del held.askers[next(iter(held.askers))]

    def _find(self, what: Any) -> Held:
        if not isinstance(what, bytes) or not OBJECT_ID_BYTES <= len(what) <= CID_BYTES_MAX:
            raise RemoteProtocolError("it asked for an object by a name that is none")
        if len(what) == OBJECT_ID_BYTES and self.may_know is not None and not self.may_know(caller.get().peer, what):
            raise self._not_here(what)
        held = self._objects.get(what) if len(what) == OBJECT_ID_BYTES else next(iter(self._named.get(what, ())), None)
        if held is None:
            raise self._not_here(what)
        return held

    async def _find_here(self, what: Any) -> Held:
        held = self._find(what)
        if held.on_disk:
            await self._from_disk(held)
        return held

    async def _from_disk(self, held: Held) -> None:
        """Have it in memory, where it may lie elsewhere than before. Raises ObjectNotAvailableError."""
        while held.on_disk:
            assert self.bring_back is not None, "only who can bring it back says that it went"
            offset = await self.bring_back(held.object_id)
            self._check(held)
            if offset is None:
                raise self._not_here(held.object_id)
            held.offset, held.on_disk = offset, False

    def _not_here(self, what: bytes) -> ObjectNotAvailableError:
        return ObjectNotAvailableError(
            f"object {what.hex()[:SHORT_ID_DIGITS]} is not, or no longer, at peer {short_peer(self._peer.id)}",
            object_id=what,
        )

    def _check(self, held: Held) -> None:
        if held.gone:
            raise self._not_here(held.object_id)

    async def _until_here(self, held: Held, block: int) -> None:
        latest = self._loop.time() + WAIT_S
        while held.transfer is not None and not held.transfer.held[block] and not held.gone:
            if not await held.news.wait(max(latest - self._loop.time(), 0.0)):
                raise self._not_here(held.object_id)
        self._check(held)

    def _lend(self, held: Held) -> memoryview:
        """All of its bytes, in place; it is pinned while there is a view of them. It has at least one."""
        self._check(held)
        unpin = self._pin(held.object_id)
        if unpin is None:
            self.forget(held)
            raise self._not_here(held.object_id)

        def back() -> None:  # by any thread
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._came_back, held, unpin)

        held.lent += 1
        return self._arena.lend(held.offset, held.size, back)

    def _came_back(self, held: Held, unpin: Callable[[], object]) -> None:
        held.lent -= 1
        self._loop.call_later(UNMAP_AFTER_S, self._unmap, held)
        unpin()

    def _unmap(self, held: Held) -> None:
        """Whatever lies there by now: what is needed of it is mapped again."""
        if not held.lent:
            with suppress(ValueError):  # the arena is closed
                self._arena.unmap(held.offset, held.size)

    def _copy(self, held: Held, begin: int, size: int) -> memoryview:
        return memoryview(self._arena.copy_out(held.offset + begin, size))

    async def _hashed(self, held: Held) -> Manifest:
        """What it consists of; found out once."""
        if held.manifest is None and held.size <= BLOCK_BYTES:
            self.name(held, manifest_of(self._lend(held) if held.size else b""))
        elif held.manifest is None:
            if held.hashing is None:
                held.hashing = self._loop.run_in_executor(None, _hash, self._lend(held))
            manifest = await asyncio.shield(held.hashing)
            self._check(held)
            if held.manifest is None:
                held.hashing = None
                self.name(held, manifest)
                self.announce(held)
        assert held.manifest is not None
        return held.manifest

    # -- names

    def begin(self, held: Held) -> None:
        """Blocks of this object come in, and are served."""
        self._objects[held.object_id] = held

    def name(self, held: Held, manifest: Manifest) -> None:
        """It is found by its CID from now on."""
        held.manifest, held.cid = manifest, cid_named(manifest)
        self._named.setdefault(held.cid, []).append(held)

    def forget(self, held: Held) -> None:
        """It is not here any more."""
        held.gone = True
        held.news.ring()
        if self._objects.get(held.object_id) is held:
            del self._objects[held.object_id]
            if held.read_bytes:
                name = held.object_id.hex()[:SHORT_ID_DIGITS]
                log.info("object %s of %d bytes: others have read %d here", name, held.size, held.read_bytes)
        named = self._named.get(held.cid, [])
        if held in named:
            named.remove(held)
            if not named:
                del self._named[held.cid]
                self._to_provide.pop(held.cid, None)
                if held.cid in self._provided:
                    self._provided.discard(held.cid)
                    self._peer.gossip.directory.withdraw(held.cid)

    def announce(self, held: Held) -> None:
        """Be found as a provider of this content soon, if it is large."""
        if held.size <= BLOCK_BYTES or held.cid in self._provided or self.stopping:
            return
        self._to_provide.setdefault(held.cid, self._loop.time() + PROVIDE_AFTER_S)
        if self._providing is None:
            self._providing = self._loop.create_task(self._provide())
            self._providing.add_done_callback(self._provision_ended)

    async def _provide(self) -> None:
        while self._to_provide:
            cid, due = next(iter(self._to_provide.items()))
            await asyncio.sleep(max(due - self._loop.time(), 0.0))
            if self._to_provide.pop(cid, None) is None:
                continue
            try:
                await self._peer.provide(cid)
            except LatticaError as error:
                log.info("a provider of %s was not announced: %s", cid.hex()[:16], str(error).partition("\n")[0])
            self._provided.add(cid)  # also then: it is renewed
            if cid not in self._named:
                self._provided.discard(cid)
                self._peer.gossip.directory.withdraw(cid)

    def _provision_ended(self, task: asyncio.Task[None]) -> None:
        self._providing = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("what is here is not announced", exc_info=error)
        elif self._to_provide and not self.stopping:  # it came after the last look
            self._providing = self._loop.create_task(self._provide())
            self._providing.add_done_callback(self._provision_ended)

    def _ended(self, fetching: Fetching) -> None:
        if self._fetching.get(fetching.object_id) is fetching:
            del self._fetching[fetching.object_id]
        if fetching.task.done() and not fetching.task.cancelled():
            fetching.task.exception()  # seen: whoever waited has it too


def _hash(lent: memoryview) -> Manifest:
    """In a thread, which gives the bytes back before it says that it is done."""
    with lent:
        return manifest_of(lent)


async def _run_of(incoming: AsyncIterator[Any], blocks: int) -> range | None:
    """The next run that a reader asks for; None: it has enough."""
    try:
        async with asyncio.timeout(IDLE_S):
            item = await anext(incoming, None)
    except TimeoutError:
        return None
    if item is None:
        return None
    if not isinstance(item, list) or [type(each) for each in item] != [int, int]:
        raise RemoteProtocolError("it asked for a run of blocks that is none")
    first, count = item
    if not 0 <= first < first + count <= blocks:
        raise RemoteProtocolError(f"it asked for {count} blocks from {first}, of {blocks}")
    return range(first, first + count)
