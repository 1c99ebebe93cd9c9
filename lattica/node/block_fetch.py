"""One object on its way to this machine: read block by block from those that have it, checked, written into the arena.

A `Fetching` is begun by `blocks`, which serves what is here so far to others meanwhile. Rules of this file: a region
that was allocated belongs to the fetch until that returns it: if it fails, nobody writes there any more when it is
freed. Nothing counts before the manifest is here and the block is what it says.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lattica.errors import (
    GetTimeoutError,
    InternalError,
    LatticaError,
    ObjectFetchTimedOutError,
    ObjectLostError,
    ObjectNotAvailableError,
    PeerUnreachableError,
    RemoteProtocolError,
)
from lattica.ids import SHORT_ID_DIGITS
from lattica.mesh.calls import Stream
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.peer import Peer
from lattica.mesh.wire import Buffer
from lattica.objectstore.arena import Arena
from lattica.objectstore.cid import BLOCK_BYTES, Manifest, cid_named
from lattica.objectstore.transfer import AHEAD_BLOCKS, Transfer, matches, read_manifest

if TYPE_CHECKING:
    from lattica.node.blocks import Blocks

log = logging.getLogger(__name__)

SOURCES_MAX = 8  # at once: two keep a link busy, eight even out slow ones
CANDIDATES_MAX = 64  # sources that one fetch hears of
READERS_MAX = 4  # whom a reader is told of: others that read the same
AGAIN_S, AGAIN_MAX = 0.1, 6
"""After which one that reads the same is asked again if it has not begun, and how often: it hears of the object when we
do, and looks for room (64 MiB: 10 ms) while the source hashes for others."""
HURRY_S = 1.0  # for the manifest, before the next source is asked for it too
ANSWER_S = 10.0  # for any answer
HASH_BYTES_PER_S = 500e6  # a source may have to hash the object first; with other work beside it, at this rate
STALL_S = 20.0  # a source that sends nothing for so long is lost: 512 KiB in this time are 26 KB/s
WAIT_S = 10.0  # for a block that is still fetched; and for news of which are here
CHECKS_MAX = 2  # of one source's blocks at once: while one is hashed and written, the next one comes
FAILURES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Fetched:
    """Where the bytes lie in our arena. failed: they are an error. cid: in its binary form."""

    offset: int
    size: int
    failed: bool
    cid: bytes


class Bell:
    """Wakes all who wait for anything to change."""

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake all who wait."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
        self._future = None

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it rang."""
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait((self._future,), timeout=timeout_s)  # which leaves it alone if we are cancelled
        return bool(done)


class Held:
    """An object that lies here, or a part of it."""

    def __init__(self, object_id: bytes, offset: int, size: int, failed: bool) -> None:
        self.object_id, self.offset, self.size, self.failed = object_id, offset, size, failed
        self.manifest: Manifest | None = None
        self.cid = b""
        self.hashing: asyncio.Future[Manifest] | None = None
        self.transfer: Transfer | None = None  # while it is fetched
        self.offered = False  # `pin` knows it; before, copies are sent
        self.lent = 0  # views of all of it
        self.gone = False
        self.on_disk = False  # and not where it lay
        self.news = Bell()
        self.readers: dict[PeerId, int] = {}  # -> streams
        self.read_bytes = 0  # of it, by others
        self.askers: dict[PeerId, None] = {}  # who began to read it, the latest last

    def at(self, block: int) -> int:
        """Where in the object it begins."""
        return block * BLOCK_BYTES


class Fetching:
    """One object on its way here."""

    def __init__(
        self,
        blocks: Blocks,
        peer: Peer,
        arena: Arena,
        object_id: bytes,
        size_hint: int,
        allocate: Callable[[int], Awaitable[int]],
        cid: bytes | None,
    ) -> None:
        self.object_id, self.waiters = object_id, 0
        self.taken = False  # somebody knows where it is
        self.task: asyncio.Task[Fetched]
        self._blocks, self._peer, self._arena, self._allocate, self._cid = blocks, peer, arena, allocate, cid
        self._answer_s = ANSWER_S + size_hint / HASH_BYTES_PER_S
        self._size_hint = size_hint
        self._begun = False  # somebody was asked
        self._candidates: deque[tuple[PeerId, bytes]] = deque()  # and by which name to ask
        self._known: set[tuple[PeerId, bytes]] = set()
        self._fellows: dict[PeerId, int] = {}  # who reads the same -> how often it had not begun
        self._patient = 0  # of those, who will be asked again
        self._drawing: dict[PeerId, asyncio.Task[None]] = {}
        self._failures: dict[PeerId, str] = {}
        self._silent: set[PeerId] = set()  # they do not answer: under another name neither
        self._asked_dht = False
        self._manifest: Manifest | None = None
        self._failed = False
        self._held: Held | None = None
        self._transfer: Transfer | None = None
        self._error: Exception | None = None  # of ours: no other source helps
        self._bell = Bell()
        self._jobs: set[asyncio.Future[Any]] = set()
        self._region: tuple[int, int] | None = None

    def start(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        self._loop = loop
        self.task = loop.create_task(self._run(), context=context)

    def add(self, sources: Sequence[PeerId], what: bytes, *, reads: bool = False) -> None:
        """Others that may have it, under this name. reads: or soon some of it."""
        for source in sources:
            if reads:
                self._fellows.setdefault(source, 0)
            if source != self._peer.id and (source, what) not in self._known and len(self._known) < CANDIDATES_MAX:
                self._known.add((source, what))
                self._candidates.append((source, what))
        self._bell.ring()

    # -- as a whole

    async def _run(self) -> Fetched:
        in_a_hurry = 0
        try:
            while self._transfer is None or not self._transfer.done:
                if self._error is not None:
                    raise self._error
                if self._manifest is not None and self._transfer is None:
                    size = self._manifest.total_bytes
                    self._region = await self._allocate(size), size
                    self._begin(self._region[0], self._manifest)
                elif self._candidates and len(self._drawing) < (SOURCES_MAX if self._transfer else 1 + in_a_hurry):
                    self._draw_from(*self._candidates.popleft())
                elif not self._drawing and not self._patient:
                    if not await self._find_providers():
                        raise self._lost()
                else:
                    waits = self._candidates and self._transfer is None
                    in_a_hurry += not await self._bell.wait(HURRY_S if waits else None)
            return self._finish()
        except BaseException:
            self._error = self._error or InternalError("the fetch has failed")
            raise
        finally:
            await self._settle()
            if self._error is not None or not self.waiters:
                self.abandon()

    def abandon(self) -> None:
        """Nobody will know where it is, so its region is free. Once nobody writes there any more."""
        if self._drawing or self._jobs:
            return
        if self._held is not None:
            self._held.transfer = None
            self._blocks.forget(self._held)
        if self._region is not None:
            self._blocks.free(*self._region)
            self._region = None

    @property
    def _own(self) -> int:
        """Where to begin, so that of several readers each soon has something for the others."""
        return int.from_bytes(self._peer.id[:4], "little")

    def _begin(self, offset: int, manifest: Manifest) -> None:
        held = self._held = Held(self.object_id, offset, manifest.total_bytes, self._failed)
        self._transfer = held.transfer = Transfer(manifest, self._own)
        self._blocks.name(held, manifest)
        self._blocks.begin(held)
        self._bell.ring()

    def _finish(self) -> Fetched:
        held = self._held
        assert held is not None
        held.transfer = None
        held.news.ring()
        self._blocks.announce(held)
        return Fetched(held.offset, held.size, held.failed, held.cid)

    async def _settle(self) -> None:
        """Nobody asks or writes any more, threads included, whoever cancels us meanwhile."""
        for task in self._drawing.values():
            task.cancel()
        while waited := [*self._drawing.values(), *self._jobs]:
            with suppress(asyncio.CancelledError):
                await asyncio.wait(waited)

    async def _find_providers(self) -> bool:
        """Whether there are sources that were not asked yet."""
        if self._asked_dht or self._cid is None:
            return False
        self._asked_dht = True
        try:
            async with asyncio.timeout(ANSWER_S):
                found = await self._peer.find_providers(self._cid)
        except (LatticaError, TimeoutError) as error:
            log.info("providers of %s: %s", self._cid.hex()[:16], str(error).partition("\n")[0])
            return False
        for provider, addresses in found.items():
            if not self._peer.has_session(provider):
                self._peer.know(provider, addresses)
        self.add([provider for provider in found if provider not in self._silent], self._cid)
        return bool(self._candidates)

    def _lost(self) -> ObjectLostError:
        failures = self._failures | (self._transfer.failures if self._transfer is not None else {})
        each = [f"peer {short_peer(PeerId(source))}: {why}" for source, why in failures.items()]
        more = f"; and {len(each) - FAILURES_SHOWN} more" if len(each) > FAILURES_SHOWN else ""
        words = "; ".join(each[:FAILURES_SHOWN]) + more if each else "no source is known"
        dht = "" if not self._asked_dht else "; the DHT knows no other"
        kind = ObjectFetchTimedOutError if self._silent else ObjectLostError
        name = self.object_id.hex()[:SHORT_ID_DIGITS]
        return kind(f"object {name} could not be fetched: {words}{dht}", object_id=self.object_id)

    # -- from one source

    def _draw_from(self, source: PeerId, what: bytes) -> None:
        if source not in self._drawing and not (self._transfer and source in self._transfer.liars):
            task = self._drawing[source] = self._loop.create_task(self._draw(source, what))
            task.add_done_callback(lambda _: self._drawn(source))

    def _drawn(self, source: PeerId) -> None:
        self._drawing.pop(source, None)
        self._bell.ring()

    async def _draw(self, source: PeerId, what: bytes) -> None:
        """Take from this source what it has, as long as anything is missing."""
        first, self._begun = not self._begun, True
        try:
            if first and self._size_hint > BLOCK_BYTES:
                await self._draw_while_hashing(source, what)
            else:
                await self._meet(source, what)
                await self._read(source, what)
        except RemoteProtocolError as error:
            self._part(source, str(error).partition("\n")[0], lied=True)
        except (PeerUnreachableError, GetTimeoutError, TimeoutError) as error:
            self._silent.add(source)
            self._part(source, str(error).partition("\n")[0] or f"it sent nothing for {STALL_S:g} s")
        except LatticaError as error:
            self._part(source, str(error).partition("\n")[0])
            if isinstance(error, ObjectNotAvailableError) and self._fellows.get(source, AGAIN_MAX) < AGAIN_MAX:
                self._fellows[source] += 1
                self._patient += 1
                self._loop.call_later(AGAIN_S, self._again, source, what)
        except Exception as error:  # a bug, or memory that cannot be written
            self._error = error
            self._bell.ring()

    def _again(self, source: PeerId, what: bytes) -> None:
        self._patient -= 1
        self._candidates.append((source, what))
        self._bell.ring()

    def _part(self, source: PeerId, why: str, *, lied: bool = False) -> None:
        self._failures[source] = why
        if self._transfer is not None:
            (self._transfer.lied if lied else self._transfer.lost)(source, why)

    async def _meet(self, source: PeerId, what: bytes) -> None:
        """Hear what the object is, and what of it is there."""
        answer = await self._peer.call(source, "blocks.manifest", what, timeout_s=self._answer_s, idempotent=True)
        if not isinstance(answer, list) or len(answer) < 5 or not isinstance(answer[4], list):
            raise RemoteProtocolError("it answered what is no manifest")
        fields, failed, here, data, readers = answer[:5]
        manifest = read_manifest(fields, self._cid)
        if self._manifest is None:
            self._manifest, self._cid, self._failed = manifest, cid_named(manifest), failed is True
            self._bell.ring()
        while self._transfer is None:
            await self._bell.wait()
        transfer = self._transfer
        transfer.source_has(source, _bytes_like(here))
        if manifest.total_bytes <= BLOCK_BYTES and not transfer.done:
            await self._checked(source, self._check(source, 0, [_bytes_like(data)]))
        others = [PeerId(each) for each in readers[:READERS_MAX] if isinstance(each, bytes) and self._reaches(each)]
        self.add(others, self._cid or b"", reads=True)

    def _reaches(self, reader: bytes) -> bool:
        return len(reader) == len(self._peer.id) and self._peer.has_session(PeerId(reader))

    async def _draw_while_hashing(self, source: PeerId, what: bytes) -> None:
        """As `_draw`, but let blocks come while the source may still hash, and check them when the manifest is here.

        A source that lacks some would wait for those, and of another size than was hinted at an object has other
        blocks: then what came is thrown away.
        """
        async with await self._peer.stream(source, "blocks.read", what, sends=True) as stream:
            reading = Reading(stream)
            coming = self._loop.create_task(reading.collect(self._own, self._size_hint))
            try:
                await self._meet(source, what)
            finally:
                coming.cancel()
                await asyncio.wait((coming,))
            transfer = self._transfer
            assert transfer is not None
            has_all = source in transfer.sources and transfer.known_of(source) is None
            came = coming.cancelled() or coming.exception() is None
            if came and has_all and transfer.manifest.total_bytes == self._size_hint:
                transfer.expect(source, reading.asked)
                await self._read_on(source, what, transfer, reading)
                return
        await self._read(source, what)

    async def _read(self, source: PeerId, what: bytes) -> None:
        if (transfer := self._transfer) is None or transfer.done:
            return
        async with await self._peer.stream(source, "blocks.read", what, sends=True) as stream:
            await self._read_on(source, what, transfer, Reading(stream))

    async def _read_on(self, source: PeerId, what: bytes, transfer: Transfer, reading: Reading) -> None:
        checks: deque[asyncio.Future[bool]] = deque()
        while not transfer.done:
            while (run := transfer.ask(source)) is not None:
                await reading.ask(run)
            if len(checks) >= CHECKS_MAX or (checks and not reading.owes):
                await self._checked(source, checks.popleft())
            elif reading.owes:
                block, parts = await reading.next(transfer.manifest.total_bytes)
                if not transfer.held[block]:
                    checks.append(self._check(source, block, parts))
            elif (known := transfer.known_of(source)) is None:
                await self._bell.wait()
            else:
                here = await self._peer.call(source, "blocks.held", what, known, timeout_s=WAIT_S + ANSWER_S)
                transfer.source_has(source, _bytes_like(here))

    def _check(self, source: PeerId, block: int, parts: list[Buffer]) -> asyncio.Future[bool]:
        """Begin to verify and write a block, in a thread: the loop has the next one to decrypt."""
        job = self._loop.run_in_executor(None, self._check_and_write, block, parts)
        self._jobs.add(job)
        job.add_done_callback(lambda job: self._arrived(source, block, job))
        return job

    def _arrived(self, source: PeerId, block: int, job: asyncio.Future[bool]) -> None:
        self._jobs.discard(job)
        transfer, held = self._transfer, self._held
        assert transfer is not None and held is not None
        if job.exception() is None and transfer.arrived(source, block, job.result()):
            held.news.ring()
            if transfer.done:
                self._bell.ring()

    async def _checked(self, source: PeerId, job: asyncio.Future[bool]) -> None:
        """Wait for one check. Raises RemoteProtocolError if the block is another than it says."""
        if not await asyncio.shield(job):  # the thread goes on when whoever waits for it does not
            assert self._transfer is not None
            raise RemoteProtocolError(self._transfer.failures.get(source, "it sent a wrong block"))

    def _check_and_write(self, block: int, parts: list[Buffer]) -> bool:
        """In a thread. Nothing is written that was not verified: others may read what is there already."""
        assert self._manifest is not None and self._held is not None
        if not matches(self._manifest, block, parts):
            return False
        self._arena.write(self._held.offset + self._held.at(block), parts)
        return True


class Reading:
    """A stream of blocks from one source. Whoever waits for the next one may give up, and another go on."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._due: deque[int] = deque()  # asked for, in order
        self._parts: list[Buffer] = []  # of the first of them
        self._came: deque[tuple[int, list[Buffer]]] = deque()  # before it was known what they should be

    @property
    def asked(self) -> list[int]:
        """The blocks that `next` will give."""
        return [*(block for block, _ in self._came), *self._due]

    @property
    def owes(self) -> bool:
        """Whether there are any."""
        return bool(self._came or self._due)

    async def ask(self, run: range) -> None:
        """Ask for these blocks too."""
        self._due.extend(run)
        await self._stream.send([run.start, len(run)])

    async def collect(self, own: int, total: int) -> None:
        """Ask for as many blocks as one source may owe, and keep them. own: where to begin."""
        count = blocks_of(total)
        start, ahead = own % count, min(AHEAD_BLOCKS, count)
        await self.ask(range(start, min(start + ahead, count)))
        if start + ahead > count:
            await self.ask(range(start + ahead - count))
        while self._due:
            self._came.append(await self._next(total))

    async def next(self, total: int) -> tuple[int, list[Buffer]]:
        """The next block, and its pieces. total: bytes of the object. Raises LatticaError, TimeoutError."""
        return self._came.popleft() if self._came else await self._next(total)

    async def _next(self, total: int) -> tuple[int, list[Buffer]]:
        block = self._due[0]
        left = min(BLOCK_BYTES, total - block * BLOCK_BYTES) - sum(map(len, self._parts))
        while left > 0:
            item = await self._stream.take(STALL_S)
            if item is None:
                raise ObjectNotAvailableError("it ended before it had sent what it was asked for")
            part = _bytes_like(item)
            if not 0 < len(part) <= left:
                raise RemoteProtocolError("it sent a piece that fits into no block")
            self._parts.append(part)
            left -= len(part)
        parts, self._parts = self._parts, []
        self._due.popleft()
        return block, parts


def blocks_of(size: int) -> int:
    """How many blocks an object of so many bytes has."""
    return -(-size // BLOCK_BYTES)


def _bytes_like(item: Any) -> Buffer:
    if not isinstance(item, bytes | memoryview):
        raise RemoteProtocolError(f"it sent a {type(item).__name__} in place of bytes")
    return item
