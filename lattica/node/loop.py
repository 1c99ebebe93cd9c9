"""The node's event loop: descriptors, timers and signals on one epoll set.

It has the methods of asyncio's loop that the node uses, and no other, so that a node which speaks to other machines can
run on uvloop instead. A node without a mesh needs neither: importing them takes 50 ms, a fifth of the time from `init`
to the first task, and 7 MiB. The node is not on the path of calls, so the loop's own speed is no matter.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import select
import signal
import threading
from collections import deque
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import Any, Protocol

log = logging.getLogger(__name__)
EVENTS_MAX = 256  # ready descriptors per turn; more simply come with the next one
WAKE_BYTES = 4096
Callback = Callable[..., object]


class Timer(Protocol):
    """What `call_later` gives."""

    def cancel(self) -> None:
        """Do not call."""


class Work(Protocol):
    """What `run_in_executor` gives to those who wait for it."""

    def exception(self) -> BaseException | None:
        """What it raised."""


class Loop(Protocol):
    """As much of an event loop as the node needs; uvloop's is one."""

    def time(self) -> float: ...
    def call_soon(self, callback: Callback, *args: Any) -> object: ...
    def call_later(self, delay: float, callback: Callback, *args: Any) -> Timer: ...
    def call_at(self, when: float, callback: Callback, *args: Any) -> Timer: ...
    def add_reader(self, fd: int, callback: Callback, *args: Any) -> object: ...
    def remove_reader(self, fd: int) -> object: ...
    def add_writer(self, fd: int, callback: Callback, *args: Any) -> object: ...
    def remove_writer(self, fd: int) -> object: ...
    def add_signal_handler(self, sig: int, callback: Callback, *args: Any) -> object: ...
    def run_in_executor(self, executor: None, func: Callback, *args: Any) -> Any: ...
    def run_forever(self) -> None: ...
    def stop(self) -> None: ...


class _Timer:
    __slots__ = ("args", "callback")

    def __init__(self, callback: Callback, args: tuple[Any, ...]) -> None:
        self.callback: Callback | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback, self.args = None, ()


class _Work:
    """A call in a thread of its own; `add_done_callback` is called on the loop."""

    def __init__(self, loop: EpollLoop, call: Callable[[], object]) -> None:
        self._loop, self._call = loop, call
        self._error: BaseException | None = None
        self._done: Callback | None = None
        threading.Thread(target=self._run, name="lattica-work", daemon=True).start()

    def add_done_callback(self, callback: Callback) -> None:
        self._done = callback

    def exception(self) -> BaseException | None:
        return self._error

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._error = error
        self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if self._done is not None:
            self._done(self)


class EpollLoop:
    """One thread's loop. Callbacks that raise are logged; the loop goes on."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, tuple[Callback, tuple[Any, ...]]] = {}
        self._writers: dict[int, tuple[Callback, tuple[Any, ...]]] = {}
        self._fresh: set[int] = set()  # descriptors that came in this turn: events of their number are of earlier ones
        self._ready: deque[tuple[Callback, tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = count()  # equal times never compare timers
        self._signals: dict[int, tuple[Callback, tuple[Any, ...]]] = {}
        self._stopping = False
        self._wake, self._waker = os.pipe()
        self._closing = threading.Lock()  # nobody writes to a descriptor that has become another's
        os.set_blocking(self._wake, False)
        os.set_blocking(self._waker, False)
        self.add_reader(self._wake, self._woken)

    def __repr__(self) -> str:
        return f"<EpollLoop: {len(self._readers)} readers, {len(self._writers)} writers, {len(self._timers)} timers>"

    def time(self) -> float:
        return monotonic()

    def call_soon(self, callback: Callback, *args: Any) -> None:
        self._ready.append((callback, args))

    def call_soon_threadsafe(self, callback: Callback, *args: Any) -> None:
        self._ready.append((callback, args))  # atomic
        with self._closing:  # the loop may take this at once, and be closed before we wake it
            if self._waker >= 0:
                with contextlib.suppress(BlockingIOError):  # full: it will wake up anyway
                    os.write(self._waker, b"\0")

    def call_later(self, delay: float, callback: Callback, *args: Any) -> _Timer:
        return self.call_at(monotonic() + delay, callback, *args)

    def call_at(self, when: float, callback: Callback, *args: Any) -> _Timer:
        timer = _Timer(callback, args)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def add_reader(self, fd: int, callback: Callback, *args: Any) -> None:
        known = fd in self._readers or fd in self._writers
        self._readers[fd] = callback, args
        self._watch(fd, known)

    def remove_reader(self, fd: int) -> bool:
        return self._forget(self._readers, fd)

    def add_writer(self, fd: int, callback: Callback, *args: Any) -> None:
        known = fd in self._readers or fd in self._writers
        self._writers[fd] = callback, args
        self._watch(fd, known)

    def remove_writer(self, fd: int) -> bool:
        return self._forget(self._writers, fd)

    def add_signal_handler(self, sig: int, callback: Callback, *args: Any) -> None:
        self._signals[sig] = callback, args
        signal.signal(sig, lambda *_: None)  # a handler of Python's is what writes to the wake-up descriptor
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)

    def run_in_executor(self, executor: None, func: Callback, *args: Any) -> _Work:
        return _Work(self, lambda: func(*args))

    def stop(self) -> None:
        """Let `run_forever` return at the end of the present turn."""
        self._stopping = True

    def run_forever(self) -> None:
        """Turn until `stop`."""
        self._stopping = False
        while not self._stopping:
            self._turn()

    def close(self) -> None:
        """Close the loop's own descriptors."""
        self._epoll.close()
        with self._closing:
            os.close(self._waker)
            os.close(self._wake)
            self._waker = -1

    def _turn(self) -> None:
        timers = self._timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        wait_s = 0.0 if self._ready else max(timers[0][0] - monotonic(), 0.0) if timers else -1.0
        events = self._epoll.poll(wait_s, EVENTS_MAX)
        self._fresh.clear()
        for fd, event in events:
            # Looked up one by one: a callback may have removed those behind it, and opened others of the same number.
            if event & ~select.EPOLLOUT and fd in self._readers and fd not in self._fresh:
                self._call(*self._readers[fd])
            if event & ~select.EPOLLIN and fd in self._writers and fd not in self._fresh:
                self._call(*self._writers[fd])
        now = monotonic()
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            if timer.callback is not None:
                self._call(timer.callback, timer.args)
        for _ in range(len(self._ready)):  # what is added meanwhile is for the next turn
            self._call(*self._ready.popleft())

    def _call(self, callback: Callback, args: tuple[Any, ...]) -> None:
        try:
            callback(*args)
        except Exception:
            log.exception("%s%s failed", getattr(callback, "__qualname__", callback), args)

    def _watch(self, fd: int, known: bool) -> None:
        events = (select.EPOLLIN if fd in self._readers else 0) | (select.EPOLLOUT if fd in self._writers else 0)
        if not known:
            self._fresh.add(fd)
        (self._epoll.modify if known else self._epoll.register)(fd, events)

    def _forget(self, table: dict[int, tuple[Callback, tuple[Any, ...]]], fd: int) -> bool:
        if table.pop(fd, None) is None:
            return False
        if fd in self._readers or fd in self._writers:
            self._watch(fd, known=True)
        else:
            self._epoll.unregister(fd)
        return True

    def _woken(self) -> None:
        try:
            data = os.read(self._wake, WAKE_BYTES)
        except BlockingIOError:
            return
        for number in data:
            if number in self._signals:
                callback, args = self._signals[number]
                callback(*args)
