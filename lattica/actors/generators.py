"""Generators as their callers have them: refs that come while the task or call still makes more.

`f.remote()` of a generator function answers with an `ObjectRefGenerator`: its items are refs, each ready as soon as the
worker has made it. What is decided is decided in `streams`; here are the refs, the messages and who waits. Methods are
called with the reactor's lock held unless they say otherwise.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from lattica.actors import values
from lattica.actors.calls import CallRecord
from lattica.actors.lineage import NO_RETRIES, SPENT, Lineage
from lattica.actors.refs import Hold, InPlace, ObjectRef
from lattica.actors.streams import NEW, OLD, STRANGE, Consumer, item_id, item_number, small_bytes, window_of
from lattica.actors.tasks import TaskRecord
from lattica.codec import messages as m
from lattica.errors import LatticaError, SerializationError, StreamReplayError

if TYPE_CHECKING:
    import asyncio

    from lattica.actors.runtime import Runtime
    from lattica.local.reactor import Link


class Stream:
    """One generator in its caller's process: its items, and who waits for the next."""

    __slots__ = ("consumer", "dropped", "lineage", "lost", "outer", "record", "renewed", "runtime", "waiters")

    def __init__(self, runtime: Runtime, record: StreamTask | StreamCall, inner: ObjectRef) -> None:
        """inner: what the record gives a value to when the generator ends. The user sees another ref of this id, which
        is not a failure where the user's code raised: that is the last item."""
        self.runtime = runtime
        self.record: Any = record  # None when it has ended
        self.consumer: Consumer[ObjectRef] = Consumer(inner.id, window_of(record.returns))
        self.outer = ObjectRef(runtime, inner._serial)
        self.outer._task = record
        self.dropped = False  # nobody can take its items any more
        self.lost: dict[int, ObjectRef] = {}  # items that had come, and that a run is to make again
        self.renewed: list[int] = []  # items that lie on a machine that is gone: the next run makes them again, too
        self.lineage: weakref.ref[StreamLineage] | None = None
        self.waiters: list[Callable[[], None]] = []
        inner._callbacks = [self._ended]

    def __repr__(self) -> str:
        return f"<Stream {self.outer.hex()[:8]}: {self.consumer}>"

    @property
    def has_news(self) -> bool:
        """Whether `next` answers at once."""
        return bool(self.consumer.ready) or self.consumer.ended

    # -- what comes

    def came(self, message: m.Item, via: int) -> None:
        """An item. via: of whom, if that one is on another machine."""
        runtime, consumer, value = self.runtime, self.consumer, message.value
        size = small_bytes(value)
        verdict = consumer.came(message.at, size)
        if verdict == STRANGE:
            return  # said twice, over two connections: what it gave came with the first
        data = self.record.data
        id = item_id(consumer.blocks, message.at)
        if data and not (value.object == id if isinstance(value, m.InArena) else values.is_data(_bytes_of(value))):
            value = runtime.failure(values.not_data(f"item {message.at} of a generator"))
        kept = value if type(value) is bytes else runtime.objects.from_wire(value, via, data, self.record.attempt)
        if verdict == OLD:
            if message.at in self.lost:
                runtime.objects.settle(self.lost.pop(message.at), kept)
            if self.over:
                self._tell()
        elif verdict == NEW and not self.dropped and not consumer.ended:
            ref = ObjectRef(runtime, int.from_bytes(id[8:], "big"))
            ref._value = kept
            consumer.ready.append(ref)
            if type(kept) is InPlace and self.record.repeatable:
                self._remember(message.at, ref)
            if self.waiters:
                self._wake()
        if consumer.owes or consumer.short_of_ids:
            self._tell()

    def _remember(self, at: int, ref: ObjectRef) -> None:
        """An item lies in a store; should it be lost, the task makes it again."""
        lineages, record = self.runtime.objects.lineage, self.record
        if not record.retries_left:
            lineages.cannot(ref.id, SPENT if record.attempt else NO_RETRIES)
            return
        lineage = self.lineage() if self.lineage is not None else None
        if lineage is None or not lineage.users:
            lineage = StreamLineage(record, [lineages.kept_as(dep) for dep in record.deps])
            self.lineage = weakref.ref(lineage)
        lineage.has_ref(at, ref)
        lineages.keep_item(lineage, ref.id)

    def runs_again(self, record: StreamTask, lost: dict[int, ObjectRef]) -> None:
        """It had ended, and these are to be made again."""
        self.record, self.lost = record, lost
        for host in {ref._hold.at for ref in lost.values() if ref._hold is not None}:
            self.machine_gone(host)
        inner = ObjectRef(self.runtime, self.outer._serial)
        inner._task, inner._callbacks = record, [self._ended]
        record.refs = [inner]

    def _ended(self, inner: ObjectRef) -> None:
        """The task or call is over, whichever way."""
        runtime, consumer, record = self.runtime, self.consumer, self.record
        failed, value = runtime.objects.failure_of(inner._value), inner._value
        self._give_up_lost(failed)
        if consumer.ended:
            self.record = None  # that run was for what was lost
            return
        consumer.ended = True
        if failed is not None and not failed.system and not record.canceled:  # the user's code raised: one item more
            last = ObjectRef(runtime, int.from_bytes(item_id(consumer.blocks, consumer.have)[8:], "big"))
            last._value, failed, value = failed, None, values.NONE
            consumer.ready.append(last)
        elif failed is not None and not record.dynamic:
            consumer.ready.append(self.outer)
        if record.dynamic and failed is None:
            runtime.reactor.after_dispatch.append(self._gather)
        else:
            runtime.objects.settle(self.outer, value)
        heard, taken = consumer.tells()
        if heard and (link := record.link) is not None:  # so that an actor forgets what it kept
            runtime.reactor.send(link, m.Taken(record.seq, heard, taken))
        if self.dropped:
            consumer.ready.clear()
        self.record = None
        self._wake()

    def machine_gone(self, host: int) -> None:
        """What lies there is made again by the run that is about to begin: else each item would be a run of its own,
        since one after the other is found to be lost. host: 0 for ours, which is not gone."""
        lineage = self.lineage() if self.lineage is not None else None
        if lineage is not None and host > 0:
            self.renewed = lineage.lying_on(host)

    def _give_up_lost(self, failed: m.Failed | None) -> None:
        """A run is over, and these have not come: another one, if they were lost in the middle of it, or that error."""
        lost, self.lost, self.renewed = self.lost, {}, []
        for at, ref in lost.items():
            if failed is None and at < self.consumer.heard:
                again = functools.partial(self._make_again, ref)
                self.runtime.reactor.after_dispatch.append(again)
            else:
                error = failed or self.runtime.failure(StreamReplayError())
                self.runtime.objects.settle(ref, error)

    def _make_again(self, ref: ObjectRef) -> None:
        """Without the lock."""
        runtime = self.runtime
        with runtime.lock:
            if ref._value is None:
                runtime.objects.lost_elsewhere(m.Lost(ref.id, "it was lost while its generator ran again"))
            runtime.reactor.flush()
            runtime.reactor.changed()

    def _gather(self) -> None:
        """All items of a dynamic one are there: they are the value of its one ref. Without the lock."""
        runtime, consumer = self.runtime, self.consumer
        kept: Any
        try:
            kept = runtime.objects.small_or_stored(values.dumps(DynamicObjectRefGenerator(consumer.ready)))
        except LatticaError as error:  # the store is full
            kept = runtime.failure(error)
        consumer.ready.clear()
        with runtime.lock:
            runtime.objects.settle(self.outer, InPlace(kept) if type(kept) is Hold else kept)
            self.outer = ObjectRef(runtime, self.outer._serial)  # else who remembers us would keep all items
            runtime.reactor.changed()

    def _wake(self) -> None:
        waiters, self.waiters = self.waiters, []
        for wake in waiters:
            wake()

    # -- what is said

    @property
    def over(self) -> bool:
        """Whether nobody wants more of it. What was lost after it had come in this run, another one makes again."""
        wanted = max([*self.lost, *self.renewed], default=-1) >= self.consumer.heard
        return (self.dropped or self.consumer.ended) and not wanted

    def begins(self, link: Link) -> None:
        """It is about to be sent over `link`, for the first time, again, or to another worker."""
        consumer = self.consumer
        heard, taken = consumer.begins(min([*self.lost, *self.renewed], default=None))
        self._say(link, heard, taken, consumer.blocks[1:], first=True)

    def goes_on(self, link: Link) -> None:
        """It is about to be sent again to the same life of its actor, over another connection."""
        self._say(link, *self.consumer.tells(), self.consumer.blocks[1:], first=True)

    def _say(self, link: Link, heard: int, taken: int, blocks: list[bytes], *, first: bool = False) -> None:
        if heard or taken or blocks or self.over or not first:
            message = m.Taken(self.record.seq, heard, taken, blocks, self.over, first)
            self.runtime.reactor.send(link, message)

    def _tell(self) -> None:
        consumer, blocks = self.consumer, []
        if consumer.short_of_ids and not consumer.ended:
            blocks = [self.runtime.new_id()]
            consumer.blocks += blocks
        link = self.record.link
        if link is not None:
            self._say(link, *consumer.tells(), blocks)
            self.runtime.reactor.nudge(link, alone=consumer.window > 0 and not consumer.ready)

    # -- what the user does

    def take(self) -> ObjectRef | None:
        """The next ref; None where there are no more."""
        consumer = self.consumer
        if not consumer.ready:
            return None
        ref = consumer.take()
        if consumer.owes and not consumer.ended:
            self._tell()
        return ref

    def let_go(self) -> None:
        """Its generator object is gone: whoever makes it may stop, and what has come is freed."""
        self.dropped = True
        self.consumer.ready.clear()
        if not self.consumer.ended:
            self._tell()


def _bytes_of(value: Any) -> bytes:
    data: bytes = value if type(value) is bytes else value.data
    return data


class StreamTask(TaskRecord, eq=False):
    """A task that is a generator. Its items are remembered one by one: see `Stream._remember`."""

    stream: Stream = None  # type: ignore[assignment]  # until it begins
    dynamic: ClassVar[bool] = False

    def begin(self, runtime: Runtime, caller: FrameType, returns: int) -> Any:
        """See `Record`: the user gets a generator."""
        super().begin(runtime, caller, 1)
        return _begin(self, runtime, returns)

    @property
    def unheard(self) -> list[bytes]:
        """See `Record`."""
        return super().unheard + self.stream.consumer.unheard

    def machine_gone(self, host: int) -> None:
        """See `Record`."""
        self.stream.machine_gone(host)

    @property
    def link(self) -> Link | None:
        """To the worker that has it, if one has."""
        lease: Any = self.lease
        return None if lease is None else lease.worker.link


class StreamLineage(Lineage):
    """How the items of a generator are made again: those in a store that have refs here."""

    __slots__ = ("__weakref__", "_items", "_stream")
    record: StreamTask

    def __init__(self, record: StreamTask, deps: list[Any]) -> None:
        super().__init__(record, deps)
        self._stream = record.stream
        self._items: dict[int, weakref.ref[ObjectRef]] = {}

    def place(self, id: bytes) -> int:
        """See `Lineage`: the item's number."""
        return item_number(self._stream.consumer.blocks, id)

    def id_at(self, at: int) -> bytes:
        """See `Lineage`."""
        return item_id(self._stream.consumer.blocks, at)

    def ref(self, at: int) -> ObjectRef | None:
        """See `Lineage`."""
        ref = self._items.get(at)
        return None if ref is None else ref()

    def has_ref(self, at: int, ref: ObjectRef) -> None:
        """See `Lineage`."""
        self._items[at] = weakref.ref(ref)

    def lying_on(self, host: int) -> list[int]:
        """The items that lie on that machine, and have not come here."""
        found = []
        for at in self._items:
            ref = self.ref(at)
            if ref is not None and type(ref._value) is InPlace:
                hold = ref._value.hold
                if hold.offset < 0 and hold.at == host:
                    found.append(at)
        return found

    def forgets(self, at: int) -> None:
        """See `Lineage`."""
        self._items.pop(at, None)

    def awaits(self, at: int, ref: ObjectRef) -> None:
        """See `Lineage`."""
        self._stream.lost[at] = ref

    def begins(self, runtime: Runtime) -> None:
        """See `Lineage`."""
        refs = ((at, self.ref(at)) for at in self._items)
        self._stream.runs_again(self.record, {at: ref for at, ref in refs if ref is not None and ref._value is None})


class DynamicTask(StreamTask, eq=False):
    """One whose items are all together the value of one ref."""

    dynamic: ClassVar[bool] = True


class StreamCall(CallRecord, eq=False):
    """A call that is a generator."""

    stream: Stream = None  # type: ignore[assignment]  # until it begins
    dynamic: ClassVar[bool] = False

    def begin(self, runtime: Runtime, caller: FrameType, returns: int) -> Any:
        """See `Record`: the user gets a generator."""
        super().begin(runtime, caller, 1)
        return _begin(self, runtime, returns)

    @property
    def unheard(self) -> list[bytes]:
        """See `Record`."""
        return super().unheard + self.stream.consumer.unheard

    @property
    def link(self) -> Link | None:
        """To the actor, if it has been sent."""
        return self.peer.link if self.seq else None


class DynamicCall(StreamCall, eq=False):
    """One whose items are all together the value of one ref."""

    dynamic: ClassVar[bool] = True


def task_kind(returns: int, *, dynamic: bool) -> type[TaskRecord]:
    """The record of a task with so many results (`options.num_returns`)."""
    return TaskRecord if returns >= 0 else DynamicTask if dynamic else StreamTask


def call_kind(returns: int, *, dynamic: bool) -> type[CallRecord]:
    """The record of a call with so many results."""
    return CallRecord if returns >= 0 else DynamicCall if dynamic else StreamCall


def _begin(record: StreamTask | StreamCall, runtime: Runtime, returns: int) -> Any:
    record.returns = returns
    stream = record.stream = Stream(runtime, record, record.refs[0])
    if record.dynamic:
        return stream.outer
    return ObjectRefGenerator(stream)


class ObjectRefGenerator:
    """Refs of what a generator makes: iterate over it, with `for` or `async for`. Not for several threads at once.

    An exception of the generator is its last item: `lattica.get` of that ref raises it. When this object is gone the
    generator is closed at its next `yield`.
    """

    __slots__ = ("__weakref__", "_stream")
    _flags = 0

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        stream.runtime.objects.streams[b"s" + stream.outer.id] = stream

    def __del__(self) -> None:
        stream = self._stream
        releases = stream.runtime.objects.releases
        releases.append((b"s" + stream.outer.id, -1, 0, True))
        if releases.poke is not None:
            releases.poke()

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._stream.outer.hex()})"

    def __iter__(self) -> ObjectRefGenerator:
        return self

    def __next__(self) -> ObjectRef:
        """The next ref, as soon as it has a value. Raises StopIteration after the last."""
        stream = self._stream
        if not stream.has_news:
            stream.runtime.wait_until(lambda: stream.has_news, spin=True)
        ref = self._take()
        if ref is None:
            raise StopIteration
        return ref

    def __aiter__(self) -> ObjectRefGenerator:
        return self

    async def __anext__(self) -> ObjectRef:
        """The same, for coroutines. Raises StopAsyncIteration after the last."""
        stream = self._stream
        while not stream.has_news:
            import asyncio

            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = loop.create_future()

            def wake(loop: Any = loop, waiter: Any = waiter) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(_finish, waiter)

            with stream.runtime.lock:
                if stream.has_news:
                    break
                stream.waiters.append(wake)
                stream.runtime.reactor.flush()
            await waiter
        ref = self._take()
        if ref is None:
            raise StopAsyncIteration
        return ref

    def _take(self) -> ObjectRef | None:
        runtime = self._stream.runtime
        mine = runtime.guard.enter()
        try:
            with runtime.lock:
                return self._stream.take()
        finally:
            if mine:
                runtime.guard.leave()

    def completed(self) -> ObjectRef:
        """A ref that has a value, None, when the generator has ended. It is an error if its worker died, or it was
        cancelled; not where the generator raised, which its last item tells."""
        return self._stream.outer

    def next_ready(self) -> bool:
        """Whether there is a next item, and it is there."""
        return bool(self._stream.consumer.ready)

    def is_finished(self) -> bool:
        """Whether it has ended, and all items were taken."""
        return self._stream.consumer.ended and not self._stream.consumer.ready

    @property
    def _generator_ref(self) -> ObjectRef:
        return self._stream.outer

    @property
    def _value(self) -> bool | None:
        """As of a ref, for `lattica.wait`: not None if `next` answers at once."""
        return True if self._stream.has_news else None

    def __reduce__(self) -> NoReturn:
        raise SerializationError(
            "a generator of refs cannot be passed, returned or put: it belongs to the process that called it",
            do_next="pass the refs that it yields",
        )

    def send(self, value: Any) -> NoReturn:
        """Not supported, as in Ray."""
        raise NotImplementedError("`gen.send` is not supported.")

    def throw(self, value: Any) -> NoReturn:
        """Not supported, as in Ray."""
        raise NotImplementedError("`gen.throw` is not supported.")

    def close(self) -> NoReturn:
        """Not supported, as in Ray: drop the generator, or `lattica.cancel` it."""
        raise NotImplementedError("`gen.close` is not supported.")

    async def asend(self, value: Any) -> NoReturn:
        """Not supported, as in Ray."""
        raise NotImplementedError("`gen.asend` is not supported.")

    async def athrow(self, value: Any) -> NoReturn:
        """Not supported, as in Ray."""
        raise NotImplementedError("`gen.athrow` is not supported.")

    async def aclose(self) -> NoReturn:
        """Not supported, as in Ray."""
        raise NotImplementedError("`gen.aclose` is not supported.")


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class DynamicObjectRefGenerator:
    """What `lattica.get` answers for a generator with num_returns="dynamic": its refs, each of them once."""

    def __init__(self, refs: Iterable[ObjectRef]) -> None:
        self._refs = deque(refs)

    def __iter__(self) -> Iterator[ObjectRef]:
        while self._refs:
            yield self._refs.popleft()

    def __len__(self) -> int:
        return len(self._refs)
