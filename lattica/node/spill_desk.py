"""A full store goes on: objects go to disk and come back. `objectstore.spill` decides which, this desk carries out.

    a span request waits ─► census: processes seal what only they know ─► Evict to holders ─► written in a thread
                                                                         └─► freed at its maker ─► the span comes back
    somebody wants bytes ─► room in the arena (by spilling others, if need be) ─► read in a thread, verified ─► Located

It is made when the store is full for the first time: until then nothing of it costs anything. The file of what came
back stays as long as the object, so that it need not be written again; such files go first when the disk is full.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.codec import messages as m
from lattica.errors import LatticaError, OutOfDiskError
from lattica.node import paths
from lattica.node.clients import DRIVER, WORKER, Client
from lattica.node.loop import Timer, Work
from lattica.node.proxies import Proxy
from lattica.node.room import Room
from lattica.objectstore.spill import Ask, Effect, Forget, Out, Region, Spiller, Write
from lattica.objectstore.spill_files import DiskFiles, Part, Record, SpillFileError, SpillFolder

if TYPE_CHECKING:
    from lattica.node.server import Node

log = logging.getLogger(__name__)
MIB = 1 << 20
CENSUS = -1  # in place of a round
CENSUS_S = 0.3  # for all processes to seal what they have: who is slower is not waited for
GOAL_SHARE, GOAL_SHARE_BACK, GOAL_MAX_BYTES = 4, 8, 256 * MIB
"""A request that waits has a quarter of the store made free, at most so much: the next ones then find room while the
disk is still writing. For what comes back from disk an eighth: more would push out what is read next."""
READS_MAX = 2  # files at once
PROGRESS_S = 1.0  # since something last went to disk, for who waits to wait on
FULL_S = 2.0  # after which a disk that was full is tried again
AGAIN_S = 1.0  # before what another machine waits for is tried to be brought back again


class Restore(msgspec.Struct, eq=False):
    """An object on its way back. then: whom of this process to tell, whether it is here."""

    id: bytes
    then: list[Callable[[bool], object]] = []


class SpillDesk:
    """See the module."""

    def __init__(self, node: Node, parent: str, limit_bytes: int) -> None:
        """parent: where the folder goes; limit_bytes: 0: what leaves a part of the disk free."""
        self._node, self._store, self._parent, self._limit_bytes = node, node.store, parent, limit_bytes
        self._core = Spiller(self._holders, self._store.pins)
        self._session: paths.Session | None = None
        self._folder: SpillFolder | None = None
        self._records: dict[bytes, Record] = {}  # what is on disk, and perhaps in memory as well
        self._room = Room(node, "values that were on disk")
        self._restores: dict[bytes, Restore] = {}
        self._queue: deque[Restore] = deque()
        self._reads = 0
        self._census: set[int] = set()  # who has not answered
        self._census_timer: Timer | None = None
        self._dropped: list[Record] = []  # for a thread
        self._dropping = False
        self._full_until = 0.0
        self.trouble = ""  # of the disk, while it lasts
        self.progress_at = node.now()  # when something last went to disk
        self.numbers = {"spilled": 0, "spilled_bytes": 0, "restored": 0, "restored_bytes": 0}  # ever written and read
        for object_, offset, size in self._store.ledger.sealed():
            self._core.sealed(object_, offset, size, node.now())

    def __repr__(self) -> str:
        return f"<SpillDesk {self._core!r}, {len(self._records)} on disk, {len(self._restores)} on their way back>"

    # -- what the store desk tells

    def sealed(self, object_: bytes) -> None:
        """A process, or the node, has sealed it. What a second attempt has made stays in memory with the first."""
        found = self._store.ledger.place(object_)
        if object_ in self._records or object_ in self._core.regions or found is None or found[2]:
            self._keep_here(object_)
        elif found[1]:
            self._core.sealed(object_, found[0], found[1], self._node.now())

    def _keep_here(self, object_: bytes) -> None:
        self._core.regions.pop(object_, None)
        if (record := self._records.pop(object_, None)) is not None:
            self._drop(record)

    def touched(self, object_: bytes, client: int) -> None:
        """The count of a client has changed."""
        if self._is_process(client):
            self._core.touched(object_, client)

    def told(self, client: int, message: m.Located) -> None:
        """This client is about to hear where it lies."""
        if message.offset >= 0:
            self._core.used(message.object, self._node.now())
        elif self._is_process(client):
            self._core.knows_of(message.object, client)

    def given(self, object_: bytes, client: int) -> None:
        """The node has given it to a client, who is about to hear what somebody has once written of it."""
        if self._is_process(client):
            self._core.touched(object_, client)
            self._perform(self._core.given(object_, client))

    def freed(self, object_: bytes) -> None:
        """Nobody holds it any more."""
        self._perform(self._core.freed(object_))
        if (record := self._records.pop(object_, None)) is not None:
            self._drop(record)

    def used(self, object_: bytes) -> None:
        """The node begins to read it."""
        self._core.used(object_, self._node.now())

    def client_gone(self, client: int) -> None:
        """It has ended."""
        self._census.discard(client)
        self._perform(self._core.client_gone(client))

    # -- making room

    def press(self) -> None:
        """Requests wait for room."""
        if self._census_timer is not None or self._node.closing:
            return
        asked = [
            number
            for number, client in self._node.clients.items()
            if client.pid and self._is_process(number) and number not in self._census  # who is being forked has nothing
        ]
        for number in asked:
            self._node.tell(number, m.Evict(CENSUS, [], True))
        self._census.update(asked)
        self._census_timer = self._node.loop.call_later(CENSUS_S if asked else 0.0, self._counted)

    def evicted(self, client: Client, message: m.Evicted) -> None:
        """A process has answered."""
        if message.round == CENSUS:
            self._census.discard(client.number)
            if not self._census and self._census_timer is not None:
                self._census_timer.cancel()
                self._counted()
            return
        now = self._node.now()
        self._perform(self._core.answered(client.number, message.round, message.objects, message.kept, now))

    def _counted(self) -> None:
        """All that processes have is known."""
        self._census_timer = None
        now, store = self._node.now(), self._store
        wanted = [(waiting, store.spans.rounded(waiting.size)) for waiting in store.waiting]
        demand = sum(size for _, size in wanted)
        urgent = any(waiting.client is self._room.client for waiting, _ in wanted)
        if not wanted or (now < self._full_until and not urgent):
            return
        leaving = self._core.leaving_bytes(now)
        if leaving >= demand:
            return
        share = min(store.spans.capacity_bytes // (GOAL_SHARE_BACK if urgent else GOAL_SHARE), GOAL_MAX_BYTES)
        goal = (demand if self.trouble else max(demand, share)) - leaving
        for waiting, size in wanted:
            pieces = store.spans.pieces(cold_is_free=store.headroom() >= size)
            effects = self._core.make_room(size, goal, pieces, waiting.client.number, now)
            window = self._core.window
            store.reserved = (waiting, window) if window is not None else None
            self._perform(effects)
            if effects or window is not None:
                return

    def may_yet_fit(self, client: int, size: int) -> bool:
        """Whether something is on its way to disk, so that who waits for so long need not be refused yet."""
        now, spans = self._node.now(), self._store.spans
        if not self._core.writing_bytes and now - self.progress_at > PROGRESS_S:
            return False
        return self._core.could_fit(spans.rounded(size), spans.pieces(), client, now)

    def _is_process(self, client: int) -> bool:
        found = self._node.clients.get(client)
        return found is not None and found.kind in (DRIVER, WORKER) and not isinstance(found.wire, Proxy)

    def _holders(self, object_: bytes) -> list[int]:
        return [client for client in self._store.ledger.holders(object_) if self._is_process(client)]

    def _perform(self, effects: Sequence[Effect]) -> None:
        makers = set()
        for effect in effects:
            match effect:
                case Ask(client, objects, round):
                    self._node.tell(client, m.Evict(round, objects))
                case Forget(client, object_):
                    self._node.tell(client, m.Forget([object_]))
                case Write():
                    self._write(effect)
                case Out(region):
                    makers.add(self._out(region))
        for maker in makers - {None}:
            assert maker is not None
            self._node.tell(maker, m.SpanWanted())
        if makers:
            self._store.memory_came_free()

    def _out(self, region: Region) -> int | None:
        """It is on disk alone from now on: whose span its region was in."""
        object_ = region.object
        freed = self._store.ledger.evict(object_, region.offset)
        if freed is None or object_ not in self._records:
            log.error("object %s is on disk, and not where it was thought to be", object_.hex()[:8])
            self._keep_here(object_)
            return None
        maker, size = freed
        self.progress_at = self._node.now()
        if self._node.far is not None:
            self._node.far.objects.blocks.went_to_disk(object_)
        if maker == m.NODE:
            self._store.spans.free_region(region.offset, size, self._node.now())
            return None
        self._node.tell(maker, m.Freed(object_))
        return maker

    # -- writing

    def _write(self, write: Write) -> None:
        found: list[Record] = []
        arena = self._store.arena

        def part(region: Region) -> Part:
            return Part(region.object, region.size, lambda at, size: arena.copy_out(region.offset + at, size))

        urgent = any(waiting.client is self._room.client for waiting in self._store.waiting)

        def work() -> None:
            found.extend(self._open().write([part(region) for region in write.regions], urgent=urgent))

        def done(work: Work) -> None:
            error = work.exception()
            if error is None:
                self.trouble = ""
                self._written(write, found)
            else:
                self._refused(write, error)

        self._node.loop.run_in_executor(None, work).add_done_callback(done)

    def _open(self) -> SpillFolder:
        """In a thread: the folder, made when it is first needed. Raises SpillFileError."""
        if self._folder is None:
            try:
                os.makedirs(self._parent, mode=0o700, exist_ok=True)
                self._session = paths.open_session(self._parent, keep=0, inside=())
            except (OSError, LatticaError) as error:
                raise SpillFileError(f"{self._parent} cannot be used to spill: {error}") from error
            self._folder = SpillFolder(self._session.path, DiskFiles(), self._limit_bytes)
        return self._folder

    def _written(self, write: Write, records: Sequence[Record]) -> None:
        if self._node.closing:
            return
        for region, record in zip(write.regions, records, strict=True):
            self.numbers["spilled"] += 1
            self.numbers["spilled_bytes"] += record.size
            if self._core.regions.get(region.object) is region:
                self._records[region.object] = record
            else:  # it was freed meanwhile
                self._drop(record)
        self._perform(self._core.written(write, well=True))
        self._store.press()

    def _refused(self, write: Write, error: BaseException) -> None:
        """The disk is full or broken: the objects stay in memory."""
        if self._node.closing:
            return
        self.trouble = error.message if isinstance(error, LatticaError) else f"{type(error).__name__}: {error}"
        log.warning("%d objects could not be spilled: %s", len(write.regions), self.trouble)
        clean = [object_ for object_ in self._records if object_ in self._core.regions]
        for object_ in clean if isinstance(error, OutOfDiskError) else ():
            self._drop(self._records.pop(object_))  # they are in memory as well
            self._core.regions[object_].filed = False
        if not clean and len(write.regions) == 1:
            self._full_until = self._node.now() + FULL_S
        self._perform(self._core.written(write, well=False))

    def _drop(self, record: Record) -> None:
        """Its file is no longer needed for it; a thread deletes, with all that go in the meantime."""
        self._dropped.append(record)
        if not self._dropping and not self._node.closing:
            self._dropping = True
            self._node.loop.call_soon(self._drop_all)

    def _drop_all(self) -> None:
        dropped, self._dropped, folder = self._dropped, [], self._folder

        def done(work: Work) -> None:
            self._dropping = False
            if (error := work.exception()) is not None:
                log.error("files of spilled objects", exc_info=error)
            elif self._dropped and not self._node.closing:
                self._dropping = True
                self._drop_all()

        assert folder is not None, "there are files"
        self._node.loop.run_in_executor(None, folder.drop, dropped).add_done_callback(done)

    # -- coming back

    def wanted(self, object_: bytes, then: Callable[[bool], object] | None = None) -> None:
        """Somebody needs its bytes. then: is told whether they are here."""
        restore = self._restores.get(object_)
        if restore is None:
            restore = self._restores[object_] = Restore(object_, [])
            self._queue.append(restore)
        if then is not None:
            restore.then.append(then)
        self._read_next()

    def _read_next(self) -> None:
        while self._queue and self._reads < READS_MAX and not self._node.closing:
            restore = self._queue.popleft()
            record = self._records.get(restore.id)
            if not self._store.ledger.is_spilled(restore.id):
                self._end(restore, here=self._store.ledger.place(restore.id) is not None)
                continue
            if record is None:
                self._spoiled(restore, "its file is gone")
                continue
            self._reads += 1
            self._room.allocate(record.size, partial(self._found, restore, record))

    def _found(self, restore: Restore, record: Record, offset: int | None, denial: m.SpanDenied | None) -> None:
        if offset is None:
            assert denial is not None, "there is room, or there is none"
            self._reads -= 1
            self._no_room(restore, denial)
            self._read_next()
            return
        arena, folder, at = self._store.arena, self._folder, offset
        assert folder is not None, "there are files"

        def work() -> None:
            folder.read(record, lambda begin, data: arena.write(at + begin, [data]))

        def done(work: Work) -> None:
            self._reads -= 1
            if not self._node.closing:
                self._came(restore, record, at, work.exception())
                self._read_next()

        self._node.loop.run_in_executor(None, work).add_done_callback(done)

    def _came(self, restore: Restore, record: Record, offset: int, error: BaseException | None) -> None:
        object_, ledger = restore.id, self._store.ledger
        if self._records.get(object_) is not record or not ledger.is_spilled(object_):  # it was freed, or made anew
            self._room.free(offset)
            self._end(restore, here=ledger.place(object_) is not None)
            return
        if error is not None:
            self._room.free(offset)
            how = error.message if isinstance(error, LatticaError) else f"{type(error).__name__}: {error}"
            log.error("object %s is lost: %s", object_.hex()[:8], how)
            del self._records[object_]
            self._drop(record)
            self._spoiled(restore, how)
            return
        self._room.sealed(object_, offset)
        self._core.sealed(object_, offset, record.size, self._node.now(), restored=True)
        self.numbers["restored"] += 1
        self.numbers["restored_bytes"] += record.size
        self._store.perform(ledger.restored(object_, self._room.client.number, offset))
        self._end(restore, here=True)

    def _spoiled(self, restore: Restore, how: str) -> None:
        self._store.perform(self._store.ledger.spoiled(restore.id, f"it was on disk, and {how}"))
        if self._node.far is not None:
            self._node.far.objects.fetching.resolve([restore.id])  # another machine lends it, perhaps
        self._end(restore, here=False)

    def _no_room(self, restore: Restore, denial: m.SpanDenied) -> None:
        """Whoever waits hears so; another machine's node waits on."""
        object_, ledger = restore.id, self._store.ledger
        for client in ledger.waiters(object_):
            if self._is_process(client):
                self._store.perform(ledger.unwait(client, object_))
                self._node.tell(client, m.NoRoom(object_, denial.detail, denial.disk))
        self._end(restore, here=False, refused=True)
        if ledger.awaited(object_):
            self._node.loop.call_later(AGAIN_S, self._again, object_)

    def _again(self, object_: bytes) -> None:
        if self._store.ledger.awaited(object_) and not self._node.closing:
            self.wanted(object_)

    def _end(self, restore: Restore, *, here: bool, refused: bool = False) -> None:
        del self._restores[restore.id]
        for then in restore.then:
            then(here)
        if not refused and self._store.ledger.is_spilled(restore.id) and self._store.ledger.awaited(restore.id):
            self.wanted(restore.id)  # what was read was of an earlier life of it

    # -- looking

    def view(self) -> dict[str, Any]:
        """For `lattica status` and metrics."""
        only_there = [record for object_, record in self._records.items() if object_ not in self._core.regions]
        return {
            "spilled_objects": len(only_there),
            "spilled_bytes": sum(record.size for record in only_there),
            "spill_file_bytes": self._folder.bytes if self._folder is not None else 0,
            "spill_dir": self._session.path if self._session is not None else self._parent,
            "spill_trouble": self.trouble,
            "spilled_total": self.numbers["spilled"],
            "spilled_total_bytes": self.numbers["spilled_bytes"],
            "restored_total": self.numbers["restored"],
            "restored_total_bytes": self.numbers["restored_bytes"],
        }

    @property
    def writing_bytes(self) -> int:
        """On their way to disk."""
        return self._core.writing_bytes

    def kept(self) -> tuple[dict[int, int], int]:
        """(bytes under arrays, by client; bytes that the node reads)."""
        return self._core.kept_bytes()

    def close(self) -> None:
        """The node ends: so does the folder."""
        if self._session is not None:
            self._session.close(remove=True)
            self._session = None
