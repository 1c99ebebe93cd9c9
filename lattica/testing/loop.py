"""An asyncio loop whose time jumps to the next timer when nothing is ready: an hour's timeout takes a millisecond.

    run_virtually(main())          # as asyncio.run, on virtual time

When nothing is ready and no timer is left, nobody can ever wake anybody: the run ends with Deadlock, which lists who
waits where. Work in threads (`asyncio.to_thread`) takes real time, and virtual time stands still meanwhile. Sockets
whose two ends live in the loop work; the world outside is not waited for.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

LIMIT_S = 86_400.0  # a day of virtual time: only a periodic timer that serves nobody runs that long in a test
THREAD_WAIT_S = 30.0  # real time; a thread that takes longer waits for the loop, which waits for it
RESOLUTION_S = 1e-9  # timers this close fire together; asyncio's own resolution is the real clock's


class Deadlock(AssertionError):
    """Nothing can happen any more, and somebody still waits."""


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0. limit_s: virtual seconds after which the run ends as a Deadlock that kept its timers."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._virtual_now = 0.0
        self._limit_s = limit_s
        self._in_threads = 0
        super().__init__(_JumpingSelector(self))
        self._clock_resolution = RESOLUTION_S

    def time(self) -> float:
        return self._virtual_now

    def run_in_executor(self, executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        future = super().run_in_executor(executor, func, *args)
        self._in_threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _: object) -> None:
        self._in_threads -= 1

    async def shutdown_default_executor(self, *timeout: Any) -> None:
        self._in_threads += 1  # it joins them from a thread of its own
        try:
            await super().shutdown_default_executor(*timeout)
        finally:
            self._in_threads -= 1

    def _nothing_ready(self, timeout: float | None) -> float:
        """Called in place of sleeping `timeout` seconds (None: for ever); how long to sleep in truth."""
        if self._in_threads:
            return THREAD_WAIT_S
        if timeout is None:
            self._stuck("nothing is ready, no timer is left")
        elif self._virtual_now + timeout > self._limit_s:
            self._stuck("its limit of time is reached, and timers still run")
        else:
            self._virtual_now += timeout
        return 0.0

    def _stuck(self, why: str) -> NoReturn:
        raise Deadlock(f"deadlock at {self._virtual_now:g} s: {why}\n{self.waiting()}")

    def waiting(self) -> str:
        """Who waits, a line per task: its name, the line of its innermost await, and what it awaits."""
        lines = sorted(_where(task) for task in asyncio.all_tasks(self))
        return "\n".join(f"  {line}" for line in lines) or "  (no task)"


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualClockLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        sleep_s = self._loop._nothing_ready(timeout)
        if not sleep_s:
            return []  # time has jumped to a timer
        ready = super().select(sleep_s)
        if not ready:
            self._loop._stuck(f"a thread has not come back for {sleep_s:g} s of real time")
        return ready


def _where(task: asyncio.Task[Any]) -> str:
    awaited: Any = task.get_coro()
    place = "?"
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is not None:
            place = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    on = getattr(task, "_fut_waiter", None)
    return f"{task.get_name()} at {place}, on {on!r:.120}"


def run_virtually(main: Coroutine[Any, Any, T], *, limit_s: float = LIMIT_S) -> T:
    """Run a coroutine to its end on a fresh VirtualClockLoop, as `asyncio.run` does on a real one."""
    with asyncio.Runner(loop_factory=lambda: VirtualClockLoop(limit_s)) as runner:
        return runner.run(main)
