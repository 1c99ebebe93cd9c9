"""Whole nodes in one process: the real desks, peers and runtimes of many machines, from one seed on one clock.

    with Universe(seed) as universe:
        machine = universe.add("n0", Machine)
        universe.run(until=60)

A *unit* is what lives, stalls and dies at once: a node (its event loop, with all that runs on it) or a process. What is
I/O in truth is a value here: a node's loop is turned by the universe (`NodeLoop`), sockets between processes of one
machine are `pipe`s of bytes, connections between machines are `execution_mesh`. Everything above is the product's.

While a universe is entered, `time`, `monotonic` and `urandom` of lattica's modules are its own, and the garbage
collector runs when it says so: what finalizers do would otherwise be no function of the seed.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import logging
import os
import sys
import time
from asyncio import events
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import Context, copy_context
from functools import cache
from importlib import import_module
from itertools import count
from pkgutil import walk_packages
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, TypeVar, TypeVarTuple

from lattica.mesh import peer, session
from lattica.testing.host import EPOCH_S
from lattica.testing.trace import Trace

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

FIRST_FD = 1 << 20  # descriptors of ours: no real one is so high
PIPE_S = (0.000_03, 0.000_4)  # through a unix socket, with the wake-up of who reads
PIPE_BYTES = 200 << 10  # that a socket takes before its reader has read
LOOK_S = 10.0  # between two looks at the invariants
COLLECT_S = 30.0  # between two collections of garbage; LOOK_S while something is waited for: much hangs on garbage
STEPS_HASHED = 1024  # at once
TIMER_SLACK_S = 0.1  # of peers: fewer wake-ups
ACK_DELAY_S = 0.25  # of sessions: fewer frames that carry nothing else; more are sent again after a cut
TURNS_MAX = 10_000  # of one loop at one moment


class Unit:
    """What is alive or not as a whole."""

    def __init__(self, universe: Universe, name: str) -> None:
        self.universe, self.name = universe, name
        self.alive = True
        self.stalled = False
        self.mail: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()  # while it is stalled
        self.ends: dict[End, None] = {}

    def __repr__(self) -> str:
        return f"<{self.name}{'' if self.alive else ', dead'}>"

    def end(self) -> None:
        """It is killed: its connections end after what it had written."""
        self.alive = False
        self.mail.clear()
        for end in list(self.ends):
            end.close()

    def stall(self, for_s: float) -> None:
        """It does nothing for a while; what comes for it waits."""
        if self.alive and not self.stalled:
            self.stalled = True
            self.universe.note(self.name, "stalls")
            self.universe.at(self.universe.now + for_s, None, self._go_on)

    def _go_on(self) -> None:
        self.stalled = False
        if self.alive:
            self.universe.note(self.name, "goes on")
            while self.mail and self.alive and not self.stalled:
                do, args = self.mail.popleft()
                do(*args)


class Universe:
    """One heap of events, one clock, one seed."""

    def __init__(self, seed: int) -> None:
        self.seed, self.rng, self.now = seed, Random(seed), 0.0
        self.tally: dict[str, int] = {"steps": 0}
        self.troubles: list[str] = []  # what nobody foresaw: exceptions that were only logged
        self.invariants: list[Callable[[], None]] = []
        self._trace = Trace()
        self._steps: list[tuple[float, str, str]] = []  # that are not in the hash yet
        self._queue: list[tuple[float, int, Unit | None, Callable[..., object], tuple[Any, ...]]] = []
        self._order = count()
        self._fds = count(FIRST_FD)
        self.handed: dict[int, End] = {}  # descriptors on their way, or not taken yet
        self._dice = Random(f"bytes {seed}")
        self._stack = ExitStack()
        self._loops: list[NodeLoop] = []  # all that ever were: what hangs on dead ones goes with the universe
        self._look_at, self._collect_at, self._waits = LOOK_S, COLLECT_S, False
        self.folder = ""  # a real one, for what is kept on disk; gone with the universe
        self.null = -1  # a descriptor of /dev/null

    def __repr__(self) -> str:
        return f"<Universe {self.seed}: {self.now:.3f} s, {len(self._queue)} due>"

    def __enter__(self) -> Universe:
        self._stack.enter_context(_clocked(self))
        self._stack.enter_context(_heard(self))
        self._stack.enter_context(_collected())
        self.folder = self._stack.enter_context(TemporaryDirectory(prefix="lattica-universe-"))
        self.null = os.open(os.devnull, os.O_RDWR)
        self._stack.callback(os.close, self.null)
        return self

    def __exit__(self, *_: object) -> None:
        for loop in self._loops:
            loop.discard()
        self._queue.clear()
        self.handed.clear()
        self._stack.close()

    # -- time

    def at(self, when: float, unit: Unit | None, do: Callable[..., object], *args: Any) -> None:
        """Call it then, in this unit if it lives; one that is stalled does it later."""
        heapq.heappush(self._queue, (when, next(self._order), unit, do, args))

    def after(self, delay_s: float, do: Callable[..., object], *args: Any) -> None:
        """Workload and faults."""
        self.at(self.now + delay_s, None, do, *args)

    def run(self, until: float) -> None:
        """Let it go on until then."""
        queue, steps, troubles, pop = self._queue, self._steps, self.troubles, heapq.heappop
        try:
            while queue and queue[0][0] <= until:
                self.now, _, unit, do, args = pop(queue)
                if unit is not None:
                    if not unit.alive:
                        continue
                    if unit.stalled:
                        unit.mail.append((do, args))
                        continue
                steps.append((self.now, "" if unit is None else unit.name, do.__name__))
                do(*args)
                if troubles:
                    raise AssertionError(troubles[0])
                if len(steps) >= STEPS_HASHED:
                    self._hash()
                if self.now >= self._look_at:
                    self._look()
            self.now = until
            self._hash()
        except Exception as error:
            self._explain(error)
            raise

    def _hash(self) -> None:
        self.tally["steps"] += len(self._steps)
        self._trace.count(tuple(self._steps))
        self._steps.clear()

    def _look(self) -> None:
        self._look_at = self.now + LOOK_S
        for invariant in self.invariants:
            invariant()
        if self._waits or self.now >= self._collect_at:
            self._collect_at = self.now + COLLECT_S
            gc.collect()

    def run_until(self, condition: Callable[[], object], *, within_s: float, missing: Callable[[], str]) -> None:
        """Let it go on until something holds: liveness."""
        limit, self._waits = self.now + within_s, True
        while not condition():
            if self.now >= limit:
                self.fail(f"not there {within_s:g} s after {limit - within_s:g} s: {missing()}")
            self.run(min(self.now + 0.25, limit))
        self._waits = False

    def fail(self, why: str) -> NoReturn:
        """It does not hold."""
        error = AssertionError(why)
        self._explain(error)
        raise error

    def _explain(self, error: Exception) -> None:
        if not getattr(error, "__notes__", None):
            error.add_note("\n".join([f"seed {self.seed}, at {self.now:.6f} s, after", *self._trace.lines()]))

    def note(self, who: str, what: str) -> None:
        """A step worth showing."""
        self._trace.note((self.now, who, what, None))

    def count(self, what: str, by: int = 1) -> None:
        self.tally[what] = self.tally.get(what, 0) + by

    def trace_hash(self) -> str:
        """Equal for equal seeds, in every process."""
        return self._trace.digest()

    # -- what lattica's modules take for the world

    def unix_s(self) -> float:
        return EPOCH_S + self.now

    def monotonic(self) -> float:
        return self.now

    def urandom(self, size: int) -> bytes:
        return self._dice.randbytes(size)

    # -- pipes

    def pipe(self) -> tuple[End, End]:
        """Two connected ends, of nobody yet."""
        one, other = End(self, next(self._fds)), End(self, next(self._fds))
        one.other, other.other = other, one
        return one, other

    def handing(self, end: End) -> int:
        """A descriptor by which somebody else will `take` this end."""
        self.handed[end.fd] = end
        return end.fd

    def take(self, fd: int, unit: Unit) -> End:
        """The end that was handed over is this unit's."""
        end = self.handed.pop(fd)
        end.belongs(unit)
        return end

    def let_go(self, fd: int) -> None:
        """Close a descriptor that came to nothing."""
        end = self.handed.pop(fd, None)
        if end is not None:
            end.close()
        elif fd < FIRST_FD:
            _close(fd)


class End:
    """One end of a unix socket, as far as lattica uses it: bytes in order, descriptors beside them."""

    def __init__(self, universe: Universe, fd: int) -> None:
        self.universe, self.fd = universe, fd
        self.other: End = self
        self.unit: Unit | None = None
        self.closed = False
        self.inbox: deque[tuple[bytes, list[int]]] = deque()
        self.unread = 0  # bytes in the inbox or under way
        self.over = False  # the end of the stream has come
        self.readable: Callable[[], None] | None = None
        self.writable: Callable[[], None] | None = None
        self._arrives_at = 0.0

    def __repr__(self) -> str:
        return f"<End {self.fd} of {self.unit}: {self.unread} bytes unread>"

    def belongs(self, unit: Unit) -> None:
        self.unit = unit
        unit.ends[self] = None

    # -- as a socket

    def fileno(self) -> int:
        return self.fd

    def setblocking(self, _: bool) -> None: ...

    def recv_into(self, view: memoryview) -> int:
        """The next piece; 0 bytes at the end."""
        if not self.inbox:
            if self.over or self.closed:
                return 0
            raise BlockingIOError
        data, _fds = self.inbox.popleft()
        view[: len(data)] = data
        self._took(len(data))
        return len(data)

    def send(self, data: bytes | memoryview) -> int:
        """As much as there is room for."""
        if self.closed or self.other.closed:
            raise BrokenPipeError
        room = PIPE_BYTES - self.other.unread
        if room <= 0:
            raise BlockingIOError
        part = bytes(data[:room])
        self.put(part)
        return len(part)

    def close(self) -> None:
        """This end is gone; the other one reads what was written, and then the end."""
        if self.closed:
            return
        self.closed = True
        self.readable = self.writable = None
        for _, fds in self.inbox:
            for fd in fds:
                self.universe.let_go(fd)
        self.inbox.clear()
        if self.unit is not None:
            self.unit.ends.pop(self, None)
        self._later(self.other._ended)

    # -- ours

    def put(self, data: bytes, fds: list[int] | None = None) -> None:
        """Write it all."""
        if self.closed or self.other.closed:
            for fd in fds or ():
                self.universe.let_go(fd)
            return
        self.other.unread += len(data)
        self._later(self.other._came, data, fds or [])

    def shut(self) -> None:
        """End this direction: what comes is still read."""
        self._later(self.other._ended)

    def has_news(self) -> bool:
        return bool(self.inbox) or self.over

    def read(self) -> Iterator[tuple[bytes, list[int]]]:
        """Everything that is here."""
        while self.inbox:
            data, fds = self.inbox.popleft()
            self._took(len(data))
            yield data, fds

    def _took(self, size: int) -> None:
        was_full = self.unread >= PIPE_BYTES
        self.unread -= size
        if was_full and self.other.writable is not None:
            self._later(self.other._room)

    def _later(self, do: Callable[..., object], *args: Any) -> None:
        universe = self.universe
        at = universe.now + PIPE_S[0] + (PIPE_S[1] - PIPE_S[0]) * universe.rng.random()
        if at > self._arrives_at:
            self._arrives_at = at
        universe.at(self._arrives_at, None, self._arrive, do, args)

    def _arrive(self, do: Callable[..., object], args: tuple[Any, ...]) -> None:
        """At the other end, whoever has it by now."""
        unit = self.other.unit
        if unit is not None and unit.stalled:
            unit.mail.append((self._arrive, (do, args)))
        else:
            do(*args)

    def _came(self, data: bytes, fds: list[int]) -> None:
        if self.closed:
            for fd in fds:
                self.universe.let_go(fd)
            return
        self.inbox.append((data, fds))
        self._tell()

    def _ended(self) -> None:
        if not self.over and not self.closed:
            self.over = True
            self._tell()

    def _room(self) -> None:
        if self.writable is not None and not self.closed:
            self.writable()

    def _tell(self) -> None:
        if self.readable is not None and (self.unit is None or self.unit.alive):
            self.readable()


class _Call(asyncio.TimerHandle):
    """A callback of a node's loop."""

    __slots__ = ()

    def __init__(self, loop: NodeLoop, when: float, callback: Any, args: Any, context: Context | None) -> None:
        self._loop, self._when, self._callback, self._args = loop, when, callback, args
        self._context = copy_context() if context is None else context
        self._cancelled = self._scheduled = False
        self._repr = self._source_traceback = None


class NodeLoop(asyncio.BaseEventLoop):
    """The event loop of one node, turned by the universe."""

    def __init__(self, unit: Unit) -> None:
        super().__init__()
        self.unit, self.universe = unit, unit.universe
        self.universe._loops.append(self)
        self._armed = float("inf")
        self._turning = False
        self._calls: deque[_Call] = deque()  # that are ready
        self._timers: list[tuple[float, int, _Call]] = []
        self._ends: dict[int, End] = {}
        self.on_stop: Callable[[], object] = lambda: None
        self.set_debug(False)

    def time(self) -> float:
        return self.universe.now

    # -- calls: as asyncio has them, without what its debug mode needs

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        call = _Call(self, 0.0, callback, args, context)
        self._calls.append(call)
        return call

    call_soon_threadsafe = call_soon  # there is one thread

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        when = self.universe.now + delay
        call = _Call(self, when, callback, args, context)
        heapq.heappush(self._timers, (when, next(self.universe._order), call))
        return call

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        call = _Call(self, when, callback, args, context)
        heapq.heappush(self._timers, (when, next(self.universe._order), call))
        return call

    # -- turning

    def wake(self) -> None:
        """Turn until nothing is ready."""
        if self._turning or not self.unit.alive:
            return
        if self.unit.stalled:
            self.unit.mail.append((self.wake, ()))
            return
        self._turning = True
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            self._turn()
        finally:
            events._set_running_loop(before)
            self._turning = False
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if timers and timers[0][0] < self._armed and self.unit.alive:
            self._armed = max(timers[0][0], self.universe.now)
            self.universe.at(self._armed, self.unit, self._due, self._armed)

    def do(self, call: Callable[..., object], *args: Any) -> None:
        """Something of the world outside has happened."""
        self.call_soon(call, *args)
        self.wake()

    def _turn(self) -> None:
        calls, timers, unit, now = self._calls, self._timers, self.unit, self.universe.now
        for _ in range(TURNS_MAX):
            while timers and (timers[0][0] <= now or timers[0][2]._cancelled):
                calls.append(heapq.heappop(timers)[2])
            if not calls:
                return
            for _ in range(len(calls)):
                call = calls.popleft()
                if not call._cancelled and unit.alive:
                    try:
                        call._context.run(call._callback, *call._args)
                    except Exception as error:
                        self.call_exception_handler({"exception": error, "message": f"in {call._callback}"})
        raise AssertionError(f"{self.unit.name} turns without end")

    def _due(self, at: float) -> None:
        if at == self._armed:
            self._armed = float("inf")
            self.wake()

    def begin(self, main: Any) -> asyncio.Task[Any]:
        """Start a coroutine on it."""
        task = self.create_task(main)
        self.wake()
        return task

    # -- what BaseEventLoop leaves to its heirs

    def _timer_handle_cancelled(self, handle: Any) -> None: ...

    def _write_to_self(self) -> None: ...

    def run_in_executor(self, executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """At once: a thread takes no time here."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if self.unit.alive and error is not None:
            self.universe.troubles.append(f"{self.unit.name}: {context.get('message')}: {_words(error)}")

    def stop(self) -> None:
        on_stop, self.on_stop = self.on_stop, lambda: None  # once
        on_stop()

    def add_signal_handler(self, sig: int, callback: Callable[[*Ts], object], *args: *Ts) -> None: ...

    def discard(self) -> None:
        """The universe ends: tasks that wait are closed without a word."""
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            try:
                coroutine: Any = task.get_coro()
                coroutine.close()
            except BaseException:
                pass
        self._calls.clear()
        self._timers.clear()
        if not self.is_closed():
            self.close()

    # -- descriptors

    def watch(self, end: End) -> None:
        """This end is the node's, and may be given to `add_reader`."""
        self._ends[end.fd] = end
        end.belongs(self.unit)

    def add_reader(self, fd: Any, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        end = self._ends[fd]

        def look() -> None:
            if end.readable is news and end.has_news():
                callback(*args)
                if end.readable is news and end.has_news():
                    self.call_soon(look)

        def news() -> None:
            self.call_soon(look)
            self.wake()

        end.readable = news
        if end.has_news():
            self.call_soon(look)

    def remove_reader(self, fd: Any) -> bool:
        end = self._ends.get(fd)
        if end is None or end.readable is None:
            return False
        end.readable = None
        return True

    def add_writer(self, fd: Any, callback: Callable[[*Ts], Any], *args: *Ts) -> None:
        end = self._ends[fd]

        def room() -> None:
            self.call_soon(callback, *args)
            self.wake()

        end.writable = room

    def remove_writer(self, fd: Any) -> bool:
        end = self._ends.get(fd)
        if end is None or end.writable is None:
            return False
        end.writable = None
        return True


# -- time, dice and garbage of lattica's modules

ROOMS = ("actors", "codec", "local", "mesh", "node", "objectstore", "scheduler")


@cache
def _import_all() -> None:
    """Now: a module that is imported while a universe runs would have the true time."""
    for room in ROOMS:
        package = import_module(f"lattica.{room}")
        for module in walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                import_module(module.name)


class _Time:
    """Stands for the module `time`."""

    def __init__(self, universe: Universe) -> None:
        self.time, self.monotonic, self.perf_counter = universe.unix_s, universe.monotonic, universe.monotonic


@contextmanager
def _clocked(universe: Universe) -> Iterator[None]:
    _import_all()
    ours = _Time(universe)
    real = {time.time: ours.time, time.monotonic: ours.monotonic, time.perf_counter: ours.perf_counter}
    put: list[tuple[Any, str, Any]] = [(peer, "TIMER_SLACK_S", peer.TIMER_SLACK_S)]
    put.append((session, "ACK_DELAY_S", session.ACK_DELAY_S))
    peer.TIMER_SLACK_S, session.ACK_DELAY_S = TIMER_SLACK_S, ACK_DELAY_S
    for name, module in list(sys.modules.items()):
        if not name.startswith("lattica.") or name.startswith("lattica.testing"):
            continue
        for attribute, value in list(vars(module).items()):
            instead: Any = ours if value is time else None
            if instead is None and callable(value) and getattr(value, "__module__", None) == "time":
                instead = real.get(value)
            if instead is not None:
                put.append((module, attribute, value))
                setattr(module, attribute, instead)
    urandom, fsync = os.urandom, os.fsync
    os.urandom, os.fsync = universe.urandom, lambda fd: None  # the true machine loses no power
    try:
        yield
    finally:
        os.urandom, os.fsync = urandom, fsync
        for module, attribute, value in put:
            setattr(module, attribute, value)


class _Ear(logging.Handler):
    def __init__(self, universe: Universe) -> None:
        super().__init__(logging.ERROR)
        self.universe = universe

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self.universe.troubles.append(f"{record.name}: {record.getMessage()}: {_words(error)}")


@contextmanager
def _heard(universe: Universe) -> Iterator[None]:
    """An exception that lattica only logs fails the universe."""
    log, ear = logging.getLogger("lattica"), _Ear(universe)
    level, propagate = log.level, log.propagate
    log.addHandler(ear)
    if "LATTICA_SIM_LOG" not in os.environ:
        log.setLevel(logging.ERROR)
        log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(ear)
        log.setLevel(level)
        log.propagate = propagate


@contextmanager
def _collected() -> Iterator[None]:
    was = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if was:
            gc.enable()


def _words(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))


def _close(fd: int) -> None:
    os.close(fd)
