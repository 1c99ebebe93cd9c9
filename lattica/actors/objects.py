"""What one process has of objects: its refs, its spans of the arena, and what it tells the node about who holds what.

Values up to `INLINE_MAX` stay in refs and messages. Larger ones lie in the arena, in spans that the node granted to
this process. Nobody else needs to know of a region until it is shared: then it is sealed, and from then on the node
says when it is free. Methods are called with the reactor's lock held unless they say otherwise.

When memory is short the node has us seal what nobody else knows, and forget where objects lie (`evict`): these may then
go to disk. `moved` has what we know of such ones, whatever the holds say: so `away` is asked before an offset is used.
"""

from __future__ import annotations

import contextlib
import functools
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from lattica.actors import values
from lattica.actors.lineage import LINEAGE_MAX_BYTES, LINEAGE_SHARE, Lineages
from lattica.actors.refs import (
    ASKED,
    BORROWED,
    PROMISED,
    SHARED,
    STREAM_ID_BYTES,
    ActorHold,
    Hold,
    InPlace,
    Nested,
    ObjectRef,
    Releases,
)
from lattica.codec import messages as m
from lattica.errors import (
    ActorHandleNotFoundError,
    ObjectReconstructionFailedError,
    ObjectStoreFullError,
    OutOfDiskError,
)
from lattica.ids import ACTOR_ID_BYTES
from lattica.objectstore.arena import ArenaMap
from lattica.objectstore.suballocator import Suballocator, span_bytes_for

if TYPE_CHECKING:
    from lattica.actors.runtime import Runtime

INLINE_MAX = 100 << 10
"""Serialized values up to this size travel inside messages (Ray's figure too): copying 100 KiB costs 10 us, about what
the arena's bookkeeping does."""
STORE_S = 1.0  # as in `runtime`
SPAN_ROUND_S = 2.0
"""A span that was empty for a whole round goes back to the node: within two rounds, or 4 s. Taking it out again costs
0.25 s per GiB."""


class Objects:
    """The refs, regions and holds of one process."""

    def __init__(self, runtime: Runtime, releases: Releases) -> None:
        self._runtime = runtime
        self.releases = releases
        self.table: WeakValueDictionary[bytes, ObjectRef] = WeakValueDictionary()
        self._regions = Suballocator()
        self._sealed: dict[bytes, int] = {}  # regions of ours that the node knows: id -> offset
        self._private: dict[int, weakref.ref[Hold]] = {}  # offset -> one that the node does not know, and may
        self.failures = 0  # values that have turned out to be failures
        self.moved: dict[bytes, int] = {}  # what the node had us forget -> where it has said since that it lies, or -1
        self.reading: list[Hold] = []  # what threads of ours read this moment
        self._promotions: list[ObjectRef] = []  # shared before they had a value, and waiting for room
        self._promotion_request = 0  # for a span with that room
        self._spans_asked: dict[int, int] = {}  # request -> bytes, 0: room was found elsewhere
        self._denied: dict[int, ObjectStoreFullError] = {}
        self._coming: dict[bytes, list[Hold]] = {}  # to be fetched from other machines, and still held
        self._lost: dict[bytes, m.Lost | m.Failed] = {}
        self._arrivals: dict[bytes, list[Callable[[], None]]] = {}  # to be called when it has come, or is lost
        self.lineage = Lineages(lambda: min(LINEAGE_MAX_BYTES, self.arena.size_bytes // LINEAGE_SHARE))
        self.streams: dict[bytes, Any] = {}  # generators whose items this process takes, by the id of their release
        self.hosts: dict[int, int] = {}  # processes on other machines -> the machine, by the node's number
        self._span_timer = False
        self.arena: ArenaMap = None  # type: ignore[assignment]  # set by the first message of the node

    def __repr__(self) -> str:
        return f"<Objects: {len(self.table)} shared refs, {self._regions.used_bytes} bytes of ours in the arena>"

    @property
    def promising(self) -> bool:
        """Whether values that were promised to others wait for room."""
        return bool(self._promotions)

    # -- storing

    def small_or_stored(self, value: values.Serialized) -> bytes | Nested | Hold:
        """A value as refs and records keep it. Without the lock; may wait for room. Raises ObjectStoreFullError."""
        for ref in value.refs:
            self.prepare(ref)
        if value.size <= INLINE_MAX:
            data = value.join()
            return Nested(data, value.refs) if value.refs else data
        hold = self.store(value, self._runtime.new_id())
        if not value.refs:
            self.keep(hold)
        else:  # the region holds them at the node, for nobody else will remember that they are inside
            with self._runtime.lock:
                self.seal(hold, contains=[inner.id for inner in value.refs])
        return hold

    def store(self, value: values.Serialized, id: bytes) -> Hold:
        """Copy a value into the arena. Without the lock. Raises ObjectStoreFullError."""
        offset = self.allocate(value.size)
        for at, part in zip(value.offsets, value.parts, strict=True):
            self.arena.copy_in(offset + at, [part])
        return Hold(self.releases, id, offset, value.size, 0, sealed=False)

    def keep(self, hold: Hold) -> Hold:
        """A fresh region without refs inside, which stays with us: should memory be short, the node may know of it.
        Without the lock."""
        self._private[hold.offset] = weakref.ref(hold)
        return hold

    def allocate(self, size: int) -> int:
        """Room for `size` bytes in a span of ours. Without the lock; waits for a span.

        Raises ObjectStoreFullError; NodeDiedError if nobody is left who could grant one.
        """
        runtime = self._runtime
        with runtime.lock:
            runtime.housekeep()
            offset = self._regions.allocate(size)
            if offset is not None:
                return offset
            request = self._ask_span(size)
        while True:
            runtime.wait_until(functools.partial(self._may_fit, request, size), quiet_s=STORE_S)
            with runtime.lock:
                if request in self._denied:
                    raise self._denied.pop(request)
                offset = self._regions.allocate(size)
                if offset is not None:
                    if request in self._spans_asked:
                        self._spans_asked[request] = 0
                        runtime.tell_node(m.SpanCancel(request))
                    return offset
                if runtime.node_died_at is not None:
                    raise runtime.node_died_error()
                request = self._ask_span(size)  # another thread of ours was quicker

    def _may_fit(self, request: int, size: int) -> bool:
        """Whether the node has answered, or objects of ours have gone and left room."""
        answered = request not in self._spans_asked or self._runtime.node_died_at is not None
        return answered or self._regions.fits(size)

    def _ask_span(self, size: int) -> int:
        request = self._runtime.next_request()
        self._spans_asked[request] = size
        self._runtime.tell_node(m.SpanRequest(request, size, span_bytes_for(size, self._regions.span_bytes)))
        return request

    def span_granted(self, message: m.SpanGrant) -> None:
        """A span is ours; values that waited for it move in."""
        try:
            self.arena.open_span(message.offset, message.size)
        except OSError as error:  # no page tables to be had, or the like: that is no end of the session
            self.arena.close_span(message.offset)
            self._runtime.tell_node(m.SpanReturn(message.offset, message.size))
            self.span_denied(m.SpanDenied(message.request, f"{message.size} bytes cannot be mapped here: {error}"))
            return
        self._spans_asked.pop(message.request, None)
        self._regions.add_span(message.offset, message.size)
        waiting, self._promotions = self._promotions, []
        for ref in waiting:
            self.promote(ref)

    def span_denied(self, message: m.SpanDenied) -> None:
        """The store is full."""
        if self._spans_asked.pop(message.request, None) == 0:
            return
        kind = OutOfDiskError if message.disk else ObjectStoreFullError
        self._denied[message.request] = kind(message.detail)
        if message.request != self._promotion_request:
            return  # some larger value found no room
        self._denied.pop(message.request)
        waiting, self._promotions = self._promotions, []
        for ref in waiting:  # whoever asks for them hears that the store was full: size 0
            self._runtime.tell_node(m.Seal(ref.id, 0, 0, failed=True))
            self._runtime.tell_node(m.Drop(ref.id))

    def return_spans(self) -> None:
        """Give back every span that holds nothing."""
        for offset, size in self._regions.empty_spans():
            self._return_span(offset, size)

    def freed(self, id: bytes) -> None:
        """Nobody holds a sealed region of ours any more."""
        offset = self._sealed.pop(id, None)
        if offset is not None:
            self._free(offset)

    def _free(self, offset: int) -> None:
        self._regions.free(offset)
        self._private.pop(offset, None)
        if not self._span_timer:
            self._span_timer = True
            self._runtime.reactor.call_at(time.monotonic() + SPAN_ROUND_S, self._spans_idle)

    def _spans_idle(self) -> None:
        """Spans that were empty for a whole round go back; one that was emptied just now may be filled again."""
        for offset, size in self._regions.sweep():
            self._return_span(offset, size)
        self._span_timer = bool(self._regions.empty_spans())
        if self._span_timer:
            self._runtime.reactor.call_at(time.monotonic() + SPAN_ROUND_S, self._spans_idle)

    def _return_span(self, offset: int, size: int) -> None:
        self._regions.remove_span(offset)
        self.arena.close_span(offset)
        self._runtime.tell_node(m.SpanReturn(offset, size))

    # -- sharing

    def prepare(self, ref: Any) -> None:
        """A ref or actor hold is about to leave inside a value: let the node know the object. Without the lock.

        A small value moves to the arena, so that whoever gets the ref can read it there without asking us.
        Raises ConfigError for what belongs to a session that has ended.
        """
        if isinstance(ref, ActorHold):
            if ref._releases is not self.releases:
                raise ActorHandleNotFoundError()
            return
        ref.check_session(self._runtime)
        if ref._flags & (SHARED | BORROWED):
            return
        while True:
            value = ref._value
            offset = -1
            if value is not None and not isinstance(value, InPlace):
                data = _data_of(value)
                offset = self.allocate(len(data))
                self.arena.copy_in(offset, [data])
            with self._runtime.lock:
                if ref._flags & SHARED:  # another thread was quicker
                    if offset >= 0:
                        self._free(offset)
                    return
                if value is None and ref._value is not None:
                    continue  # it came just now: promised, it would never be sealed
                if offset >= 0:
                    ref._hold = Hold(self.releases, ref.id, offset, len(data), 0, sealed=False)
                self._share(ref)
                return

    def _share(self, ref: ObjectRef) -> None:
        if ref._flags & SHARED:
            return
        ref._flags |= SHARED
        self.table[ref.id] = ref
        value = ref._value
        if isinstance(value, InPlace):
            ref._hold = value.hold
            self.seal(value.hold, failed=value.failed)
        elif ref._hold is not None:  # moved to the arena by `prepare`, and small enough to stay here too
            self.seal(ref._hold, failed=isinstance(value, m.Failed), contains=_inside(value))
        else:
            ref._flags |= PROMISED
            ref._hold = Hold(self.releases, ref.id, count=1)
            ref._hold.data = ref._task is not None and ref._task.data
            self._runtime.tell_node(m.Promise(ref.id, ref._task.made_at if ref._task is not None else ""))

    def promote(self, ref: ObjectRef) -> None:
        """A promised object has its value now: seal it, for those who wait for it elsewhere."""
        value = ref._value
        data = _data_of(value)
        offset = self._regions.allocate(len(data))
        if offset is None:
            if not self._promotions:
                self._promotion_request = self._ask_span(len(data))
            self._promotions.append(ref)
            return
        self.arena.copy_in(offset, [data])
        self._sealed[ref.id] = offset
        for inner in value.refs if isinstance(value, Nested) else []:
            self.prepare(inner)
        failed = isinstance(value, m.Failed)
        self._runtime.tell_node(m.Seal(ref.id, offset, len(data), failed=failed, contains=_inside(value)))
        self._runtime.tell_node(m.Drop(ref.id))  # the seal added one; our promise's count goes on

    def seal(self, hold: Hold, *, failed: bool = False, contains: list[bytes] | None = None) -> None:
        """Tell the node of a region of ours, once."""
        if hold.sealed:
            return
        hold.sealed = True
        hold.count += 1
        self._private.pop(hold.offset, None)
        self._sealed[hold.id] = hold.offset
        self._runtime.tell_node(m.Seal(hold.id, hold.offset, hold.size, failed=failed, contains=contains or []))

    def hand_over(self, hold: Hold, to: int, contains: list[bytes], attempt: int = 0) -> m.InArena:
        """Seal a fresh region for client `to`, who holds it from now on; we keep nothing but its bytes until
        `Freed`."""
        self._sealed[hold.id] = hold.offset
        hold.sealed = True  # with count 0: the end of this hold says nothing
        self._runtime.tell_node(m.Seal(hold.id, hold.offset, hold.size, to, False, contains, attempt))
        return m.InArena(hold.id, hold.offset, hold.size)

    def give(self, thing: Any, to: int) -> bytes:
        """Give client `to` a hold on a prepared ref, an actor or a region; its id."""
        if isinstance(thing, ObjectRef):
            self._share(thing)
            id = thing.id
        else:
            if isinstance(thing, Hold):
                self.seal(thing)
            id = thing.id
        self._runtime.tell_node(m.Give(id, to))
        return id

    def to_wire(self, value: Any, to: int) -> m.Value:
        """A kept value as it travels to client `to`."""
        if type(value) is bytes:
            return value
        if isinstance(value, Nested):
            return m.WithRefs(value.data, [self.give(ref, to) for ref in value.refs])
        if isinstance(value, m.Failed):
            return value
        hold = value.hold if isinstance(value, InPlace) else value
        self.away(hold)
        return m.InArena(self.give(hold, to), hold.offset, hold.size, hold.data)

    # -- receiving

    def from_wire(
        self, value: m.Value, via: int = 0, data: bool = False, attempt: int = 0
    ) -> bytes | Nested | InPlace | m.Failed:
        """A value that came with a message; the sender gave us what is inside. via: it is on another machine, and this
        is its number. data: we take it as data or not at all. attempt: which run of our task has made it."""
        if type(value) is bytes:
            return value
        if isinstance(value, m.WithRefs):
            for id in value.refs if via else ():
                self._runtime.tell_node(m.FromAfar(id, via))
            return Nested(value.data, [self._adopt_data(id) if data else self.adopt(id) for id in value.refs])
        if isinstance(value, m.InArena):
            if via:
                self._runtime.tell_node(m.FromAfar(value.object, via, True, attempt))
                hold = Hold(self.releases, value.object, -1, value.size, 1, data=data or value.data)
                hold.at = self.hosts.get(via, 0)
                return InPlace(hold)
            hold = self.adopt_region(value)
            hold.data = data or value.data
            return InPlace(hold)
        assert isinstance(value, m.Failed)
        return value

    def adopt_region(self, value: m.InArena) -> Hold:
        """A region of another process that we were given a hold on."""
        offset = self.moved.get(value.object, value.offset) if self.moved else value.offset
        return Hold(self.releases, value.object, offset, value.size, count=1)

    def adopt(self, id: bytes, count: int = 1) -> Any:
        """The ref or actor hold with this id, on which we were given `count` holds."""
        if len(id) == ACTOR_ID_BYTES:
            return self._runtime.calls.adopt(id, count)
        ref = self.table.get(id)
        if ref is None:
            ref = ObjectRef(self._runtime, id=id)
            ref._flags = BORROWED | SHARED
            ref._hold = Hold(self.releases, id, count=count)
            self.table[id] = ref
        else:
            assert ref._hold is not None
            ref._hold.count += count
        return ref

    def _adopt_data(self, id: bytes) -> Any:
        """As `adopt`, of whom we take data alone: so we do of what it tells us of, where we have not met that."""
        peers = self._runtime.calls.peers
        known, found = id in peers, self.adopt(id)
        if isinstance(found, ActorHold):
            peers[id].data = peers[id].data or not known
        elif found._flags & BORROWED:
            found._hold.data = True
        return found

    def load_ref(self, id: bytes) -> ObjectRef:
        """The ref with this id, met while a value is unpickled. Takes the lock itself.

        A small value's refs were adopted with it. One in the arena holds its inner refs at the node; we take our own.
        """
        with self._runtime.lock:
            ref = self.table.get(id)
            if ref is not None:
                return ref
            self._runtime.tell_node(m.Hold(id))
            found: ObjectRef = self.adopt(id)
            return found

    def load_data_ref(self, id: bytes) -> ObjectRef:
        """The same, met while data is read: what it refers to is data, if it is not our own."""
        ref = self.load_ref(id)
        if ref._flags & BORROWED and ref._hold is not None:
            ref._hold.data = True
        return ref

    def ask(self, refs: list[ObjectRef]) -> None:
        """Have the node tell us where borrowed objects lie."""
        unknown = [ref for ref in refs if ref._value is None and ref._flags & (BORROWED | ASKED) == BORROWED]
        if unknown:
            for ref in unknown:
                ref._flags |= ASKED
            self._runtime.tell_node(m.Resolve([ref.id for ref in unknown]))

    def dep_to_wire(self, ref: ObjectRef, to: int) -> m.Value:
        """The value of a ref that had one, as it travels; if that was lost meanwhile and is being made again, whoever
        gets it asks for it as for one on another machine."""
        if ref._value is None:
            return m.InArena(self.give(ref, to), -1, 0, ref.is_data)
        return self.to_wire(ref._value, to)

    def bring(self, holds: list[Hold]) -> None:
        """Have the node fetch values that lie on other machines."""
        asked = []
        for hold in holds:
            self._lost.pop(hold.id, None)
            waiting = self._coming.get(hold.id)
            if waiting is None:
                self._coming[hold.id] = [hold]
                asked.append(hold.id)
            elif hold not in waiting:
                waiting.append(hold)
        if asked:
            self._runtime.tell_node(m.Resolve(asked, here=True))

    def away(self, hold: Hold) -> bool:
        """Whether its bytes lie on another machine, or on disk; else they lie at its offset. Any thread may ask, but
        what it then reads must be in `reading` by that time."""
        if self.moved and (at := self.moved.get(hold.id)) is not None:
            hold.offset = at
        return hold.offset < 0

    def fetch(self, holds: list[Hold], then: Callable[[], None]) -> None:
        """Have the node fetch values that lie on other machines, and call `then` at the next word of the first."""
        self._arrivals.setdefault(holds[0].id, []).append(then)
        self.bring(holds)

    def when_here(self, ref: ObjectRef, then: Callable[[], None]) -> None:
        """Call `then` when the value of a ref that has one, or had one, can be read here, or is known to be lost."""
        value = ref._value
        if value is None:
            self._runtime.when_done(ref, lambda ref: self.when_here(ref, then))
        elif type(value) is InPlace and self.away(value.hold):
            self._arrivals.setdefault(value.hold.id, []).append(functools.partial(self._came, ref, then))
            self.bring([value.hold])
            self._runtime.nudge_node()
        else:
            then()

    def _came(self, ref: ObjectRef, then: Callable[[], None]) -> None:
        if ref._value is None:
            self.when_here(ref, then)
        else:
            then()

    def _arrived(self, object: bytes) -> None:
        for then in self._arrivals.pop(object, ()):
            then()

    def is_coming(self, hold: Hold) -> bool:
        """Whether the node still owes word of it."""
        return hold.id in self._coming and self.away(hold)

    def lost(self, object: bytes) -> m.Lost | m.Failed | None:
        """Why a value that lies on another machine will never come."""
        return self._lost.get(object)

    def not_coming(self, message: m.Lost) -> None:
        """It was to be fetched, and cannot be."""
        if self._coming.pop(message.object, None) is not None:
            self._lost[message.object] = message
        self._arrived(message.object)

    def lost_elsewhere(self, message: m.Lost) -> None:
        """What we own, lay on another machine and is lost: the node leaves it to us to make it again, or to say that it
        cannot be."""
        id = message.object
        if message.doubtful and not self.lineage.has(id):
            return
        self._coming.pop(id, None)
        ref = self.table.get(id)
        if ref is not None and isinstance(ref._value, bytes | Nested):  # it was moved to the arena for others
            self.promote(ref)
        elif why := self.lineage.make_again(self._runtime, id):
            error = ObjectReconstructionFailedError(
                object_id=id.hex(), owner=message.owner, reason_message=why, made_at=message.made_at
            )
            failed = self._lost[id] = self._runtime.failure(error)
            if ref is not None and ref._value is None:
                self.settle(ref, failed)
            else:
                word = ObjectRef(self._runtime, id=id)
                word._value = failed
                self.promote(word)
        self._arrived(id)

    def located(self, message: m.Located) -> None:
        """A borrowed object lies in the arena; or on disk (offset -1), and comes when it is read."""
        holds = self._coming.pop(message.object, ()) if message.offset >= 0 else ()
        instead = message.failed and holds  # it was lost: what whoever owns it says of that came in place of the value
        if message.offset < 0 or message.object in self.moved:
            self.moved[message.object] = -1 if instead else message.offset
        if instead:
            failed = m.Failed(bytes(self.arena.read(message.offset, message.size)))
            self._lost[message.object] = self._believed(failed, any(hold.data for hold in holds))
            holds = ()
        for hold in holds:
            hold.offset, hold.size = message.offset, message.size
        self._arrived(message.object)
        ref = self.table.get(message.object)
        if ref is None or ref._value is not None or ref._hold is None:
            return
        if message.size == 0:
            self.settle(
                ref, self._runtime.failure(ObjectStoreFullError("the store was full when this object was shared"))
            )
            return
        ref._hold.offset, ref._hold.size = message.offset, message.size
        self.settle(ref, InPlace(ref._hold, message.failed))

    # -- when memory is short

    def evict(self, message: m.Evict) -> None:
        """Forget where these lie, but for what arrays of ours lie over, or threads read."""
        if message.seal:
            for private in list(self._private.values()):
                hold = private()
                if hold is not None:
                    self.seal(hold)
        before = [(id, self.moved.get(id)) for id in message.objects]
        self.moved.update(dict.fromkeys(message.objects, -1))  # first: who looks now, asks
        used = values.viewed() | {hold.id for hold in self.reading.copy()} if before else set()
        gone, kept = list[bytes](), list[bytes]()
        for id, at in before:
            if id not in used:
                gone.append(id)
                continue
            kept.append(id)
            if at is None:
                del self.moved[id]
            else:
                self.moved[id] = at
        self._runtime.tell_node(m.Evicted(message.round, gone, kept))
        self._runtime.nudge_node()

    def forget(self, message: m.Forget) -> None:
        """Nobody has these any more."""
        for id in message.objects:
            self.moved.pop(id, None)
            self._coming.pop(id, None)

    def no_room(self, message: m.NoRoom) -> None:
        """It lies on disk, and cannot be read into memory."""
        kind = OutOfDiskError if message.disk else ObjectStoreFullError
        if self._coming.pop(message.object, None) is not None:
            self._lost[message.object] = self._runtime.failure(kind(message.detail))
        self._arrived(message.object)

    # -- values

    def settle(self, ref: ObjectRef, value: Any) -> None:
        """A ref has its value."""
        if ref._value is not None:
            return
        promised = ref._flags & PROMISED
        if promised and isinstance(value, InPlace) and value.hold is not ref._hold:
            hold = ref._hold  # both stand for this object: one hold with both counts
            assert hold is not None and hold.id == value.hold.id
            hold.offset, hold.size, hold.count = value.hold.offset, value.hold.size, hold.count + value.hold.count
            hold.data, hold.at = hold.data or value.hold.data, value.hold.at
            value.hold.count = 0
            value = InPlace(hold, value.failed)
        ref._value = value
        ref._task = None
        if type(value) is m.Failed:
            self.failures += 1
        if promised and not isinstance(value, InPlace):
            self.promote(ref)
        if ref._callbacks is not None:
            callbacks, ref._callbacks = ref._callbacks, None
            for callback in callbacks:
                callback(ref)

    def failure_of(self, value: Any) -> m.Failed | None:
        """The failure that a settled value is, if it is one."""
        if type(value) is m.Failed:
            return value
        if isinstance(value, InPlace) and value.failed and value.hold.offset >= 0:
            failed = m.Failed(bytes(self.arena.read(value.hold.offset, value.hold.size)))
            return self._believed(failed, value.hold.data)
        return None

    def _believed(self, failed: m.Failed, data: bool) -> m.Failed:
        """A failure that somebody else wrote. data: we take data alone."""
        if data and not values.is_data(failed.data):
            return self._runtime.failure(values.not_data("what a task raised"))
        return failed

    def cid_of(self, value: Any) -> str:
        """The content id of a kept value's bytes. Without the lock."""
        from lattica.objectstore.cid import cid_of

        if not isinstance(value, InPlace):
            return cid_of(_data_of(value))
        with self.read(value.hold) as data:
            return cid_of(data)

    @contextlib.contextmanager
    def read(self, hold: Hold) -> Iterator[memoryview]:
        """Its bytes in place, which are brought here first and stay for so long. Without the lock; raises as
        `Runtime.bring`."""
        self.reading.append(hold)
        try:
            if self.away(hold):
                self._runtime.bring([hold], None)
                assert not self.away(hold), "who has the ref asks for it again, see `get`"
            yield self.arena.read(hold.offset, hold.size)
        finally:
            self.reading.remove(hold)

    def process_releases(self) -> None:
        """Do what finalizers left: free our unshared regions, drop our counts on the rest."""
        releases = self.releases
        while releases:
            id, offset, count, sealed = releases.popleft()
            if not sealed and self._sealed.get(id) != offset:
                self._free(offset)
            elif not sealed:  # it was sealed for the node while its last ref went
                self._runtime.tell_node(m.Drop(id))
            elif len(id) == ACTOR_ID_BYTES:
                self._runtime.calls.released(id)
            elif len(id) == STREAM_ID_BYTES:
                self.streams.pop(id).let_go()
            elif count:
                self.lineage.released(id)
                self._lost.pop(id, None)
                self._runtime.tell_node(m.Drop(id, count))


def _data_of(value: Any) -> bytes:
    return value if type(value) is bytes else value.data


def _inside(value: Any) -> list[bytes]:
    return [ref.id for ref in value.refs] if isinstance(value, Nested) else []
