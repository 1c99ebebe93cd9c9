"""Generators in their worker: run, and sent item by item as they are made.

One `Run` for each generator that runs here, or that has ended and whose items its caller has not all heard of. What
may be made when is decided in `streams`. User code runs without the lock, and with signals let through.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from lattica.actors import context, values
from lattica.actors.streams import Producer, small_bytes, window_of
from lattica.codec import messages as m
from lattica.errors import TaskCancelledError

if TYPE_CHECKING:
    import asyncio

    from lattica.actors.worker import Caller, Worker

_END = object()
PATIENCE_S = 0.002
"""A user that takes items quickly is waited for so long before the node is told that this worker's CPUs are free."""


class Run:
    """One generator that runs here. wake: to be called, lock held, when its caller has said something."""

    __slots__ = ("call", "client", "ended", "keeps", "producer", "wake")

    def __init__(self, client: int, call: m.Task | m.Call, *, keeps: bool) -> None:
        """keeps: its items may have to be said again."""
        self.client, self.call, self.keeps = client, call, keeps
        self.producer: Producer[m.Value | None] = Producer(call.object, window_of(call.returns))
        self.ended = False
        self.wake: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Run {self.call.seq} of client {self.client}: {self.producer}>"


class Producing:
    """All generators of one worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._runtime = worker, worker.runtime
        self.runs: dict[tuple[int, int], Run] = {}  # by caller and number
        self._early: dict[tuple[int, int], m.Taken] = {}  # what was said of one that has not begun

    def __repr__(self) -> str:
        return f"<Producing: {len(self.runs)} generators>"

    # -- what callers say (lock held)

    def told(self, client: int, message: m.Taken) -> None:
        """A caller has heard some, or taken some, or wants no more."""
        run, early = self.runs.get((client, message.seq)), self._early.get((client, message.seq))
        if run is not None:
            self._tell(run, message)
        elif early is not None and not message.first:
            early.heard, early.taken = max(early.heard, message.heard), max(early.taken, message.taken)
            early.blocks, early.over = early.blocks + message.blocks, early.over or message.over
        elif message.first or (message.over and self._worker.is_to_come(client, message.seq)):
            self._early[client, message.seq] = message

    def _tell(self, run: Run, message: m.Taken) -> None:
        blocks = run.producer.blocks
        if message.first:
            del blocks[1:]
        run.producer.told(message.heard, message.taken, message.blocks, message.over)
        if run.ended:
            self._forget_if_heard(run)
        elif run.wake is not None:
            run.wake()

    def _forget_if_heard(self, run: Run) -> None:
        if not run.keeps or run.producer.over or run.producer.heard >= run.producer.made:
            self.runs.pop((run.client, run.call.seq), None)

    def withdrawn(self, client: int, seq: int) -> None:
        """This one will not begin here."""
        self._early.pop((client, seq), None)

    def caller_gone(self, client: int) -> None:
        """Nobody takes its items any more."""
        for key, run in list(self.runs.items()):
            if key[0] == client:
                run.producer.over = True
                if run.ended:
                    del self.runs[key]
                elif run.wake is not None:
                    run.wake()
        for key in [key for key in self._early if key[0] == client]:
            del self._early[key]

    def say_again(self, caller: Caller, seq: int, *, answered: bool) -> None:
        """A call came again over another connection: so does what its caller has not heard of. answered: it is over."""
        if answered:
            self.withdrawn(caller.client, seq)
        run = self.runs.get((caller.client, seq))
        for at, value in run.producer.unheard() if run is not None else ():
            assert value is not None, "items of tasks are not said again"
            self._runtime.reactor.send(caller.link, m.Item(seq, at, value))

    # -- running one

    def begin(self, client: int, call: m.Task | m.Call, *, keeps: bool) -> Run:
        """One begins here. keeps: see `Run`."""
        run = Run(client, call, keeps=keeps)
        with self._runtime.lock:
            self.runs[client, call.seq] = run
            early = self._early.pop((client, call.seq), None)
            if early is not None:
                self._tell(run, early)
            run.producer.over = run.producer.over or client not in self._worker.callers
        return run

    def end(self, run: Run) -> None:
        """It has ended, whichever way."""
        with self._runtime.lock:
            run.ended, run.wake = True, None
            self._forget_if_heard(run)

    def produce(
        self, client: int, call: m.Task | m.Call, result: Any, name: str, send: Callable[[m.Item], None], *, keeps: bool
    ) -> list[m.Value]:
        """Run what a function returned to its end, in this thread; what is to be replied. send: an item, without the
        lock. Raises what the generator raises, TaskCancelledError."""
        runtime, now = self._runtime, context.running.get()
        iterator = _iterator(result, name)
        run = self.begin(client, call, keeps=keeps)
        mine = runtime.guard.in_main_thread
        try:
            while self._wait(run):
                if now is not None and now.canceled and not mine:
                    raise TaskCancelledError(name=name, task_id=call.object.hex())
                self._worker.guard_items()
                value = self._next(iterator, mine=mine)
                if value is _END:
                    return [self.nothing(call)]
                self.made(run, value, name, send)
                del value
            return [self.nothing(call)]
        finally:
            try:
                self._close(iterator, mine=mine)
            finally:
                self.end(run)

    def _wait(self, run: Run) -> bool:
        """Until the next item may be made; False if nobody wants it."""
        producer = run.producer
        if not producer.may_make:
            self._worker.flush_all()
            patience_s = PATIENCE_S if producer.starved else None
            if not self._runtime.reactor.wait(lambda: producer.may_make, patience_s, spin=producer.starved):
                self._runtime.wait_until(lambda: producer.may_make)
        return not producer.over

    def _next(self, iterator: Iterator[Any], *, mine: bool) -> Any:
        guard = self._runtime.guard
        try:
            if mine:
                guard.open()
            return next(iterator, _END)
        finally:
            if mine:
                guard.on = True
            if self._runtime.forked:
                self._worker.end_child()

    def _close(self, iterator: Iterator[Any], *, mine: bool) -> None:
        """Its `finally` clauses run, if it has not ended by itself."""
        close = getattr(iterator, "close", None)
        if close is None or (isinstance(iterator, GeneratorType) and iterator.gi_frame is None):
            return
        guard = self._runtime.guard
        try:
            if mine:
                guard.open()
            close()
        finally:
            if mine:
                guard.on = True

    def made(self, run: Run, value: Any, name: str, send: Callable[[m.Item], None]) -> None:
        """It has made this; send: an item, without the lock."""
        producer, call = run.producer, run.call
        at = producer.made
        if not producer.wanted:
            producer.skip()
            return
        wire = self._worker.marshal.item(value, producer.next_id, run.client, f"item {at} of {name}", call)
        with self._runtime.lock:
            producer.add(wire if run.keeps else None, small_bytes(wire))
        send(m.Item(call.seq, at, wire))

    def nothing(self, call: m.Task | m.Call) -> m.Value:
        """What is replied when it has come to its end."""
        return values.dumps_data(None).join() if call.data else values.NONE

    # -- as a coroutine

    async def produce_async(
        self, client: int, call: m.Call, result: Any, name: str, send: Callable[[m.Item], None]
    ) -> list[m.Value]:
        """The same on an event loop, also of an async generator."""
        import asyncio

        is_async = hasattr(result, "__anext__")
        iterator: Any = result if is_async else _iterator(result, name)
        run = self.begin(client, call, keeps=True)
        try:
            while await self._may_make(run):
                if is_async:
                    value = await anext(iterator, _END)
                else:
                    value = next(iterator, _END)
                    await asyncio.sleep(0)  # others of this loop have their turn
                if value is _END:
                    break
                self.made(run, value, name, send)
                del value
            return [self.nothing(call)]
        finally:
            try:
                if is_async:
                    await iterator.aclose()
                else:
                    self._close(iterator, mine=False)
            finally:
                self.end(run)

    async def _may_make(self, run: Run) -> bool:
        producer = run.producer
        while not producer.may_make:
            import asyncio

            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = loop.create_future()

            def wake(loop: Any = loop, waiter: Any = waiter) -> None:
                loop.call_soon_threadsafe(_finish, waiter)

            with self._runtime.lock:
                if producer.may_make:
                    break
                run.wake = wake
                self._worker.flush_all()
            await waiter
        return not producer.over

    # -- generators where a number of results was asked for

    def several(self, client: int, call: m.Task | m.Call, result: Any, name: str) -> list[m.Value]:
        """As many values of a generator as its call has refs, in this thread: what it raises is the value of those that
        it did not come to."""
        marshal, mine = self._worker.marshal, self._runtime.guard.in_main_thread
        out: list[m.Value] = []
        try:
            for at in range(call.returns):
                value = self._next(result, mine=mine)
                if value is _END:
                    raise ValueError(f"{name} has num_returns={call.returns}, and yielded {at} values")
                id = call.object[:8] + (int.from_bytes(call.object[8:], "big") + at).to_bytes(8, "big")
                out.append(marshal.item(value, id, client, f"result {at} of {name}", call))
        except Exception as error:
            failed = marshal.failed(error, name, call.data)
            out += [failed] * (call.returns - len(out)) if out else [failed]
        finally:
            self._close(result, mine=mine)
        return out


def is_generator(result: Any) -> bool:
    """Whether a function's result is one to be run."""
    return isinstance(result, GeneratorType)


def _iterator(result: Any, name: str) -> Iterator[Any]:
    """Raises TypeError."""
    if inspect.isasyncgen(result):
        raise TypeError(f"{name} is an async generator: make it a method of an actor, which has an event loop")
    if not hasattr(result, "__next__"):
        raise TypeError(f"{name} was called as a generator, and returned a {type(result).__name__}")
    iterator: Iterator[Any] = result
    return iterator


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
