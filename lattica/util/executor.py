"""`concurrent.futures` over lattica's tasks: programs that take an executor run on all machines.

    with LatticaExecutor() as executor:
        futures = [executor.submit(score, text) for text in texts]
        for future in concurrent.futures.as_completed(futures): ...
        list(executor.map(score, texts, chunksize=16))

What is submitted is a task with a task's promises: it is retried after its machine's death (so it may run twice; say
remote_args={"max_retries": 0} where it must not), and refs among its arguments arrive as values.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future
from itertools import islice
from typing import Any

import lattica
from lattica.util.completions import Completions, send_now
from lattica.util.initializing import Initialized
from lattica.util.raised import plain

log = logging.getLogger("concurrent.futures")

AHEAD = 4
"""Calls per CPU that are given to lattica at once where max_workers says nothing: short ones then follow each other
without a round trip. What is not given yet can be cancelled, and counts as pending."""
CPUS_KNOWN_S = 5.0
"""So long the number of CPUs is believed; machines come and go."""
NAMES_MAX = 256
"""Functions whose tasks have their name; those beyond are told apart by no one."""

_exiting = False


def _at_exit() -> None:
    global _exiting
    _exiting = True


atexit.register(_at_exit)


class BrokenLatticaExecutor(BrokenExecutor):
    """The initializer failed: nothing can run."""


class LatticaExecutor(Executor):
    """Runs calls as tasks of the current session, which it begins if there is none.

    max_workers: how many run at a time; None for as many as the machines have CPUs.
    initializer, initargs: called in each worker process before its first call; if it raises, the executor is broken.
    remote_args: options of the tasks, such as {"num_cpus": 0.5, "scheduling_strategy": "SPREAD"}.

    A call that has begun cannot be cancelled by its future; `terminate_workers` ends them all. In a task, wait for
    nested calls with `future.result()`: it lends the task's CPU to them.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        remote_args: Mapping[str, Any] | None = None,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if not lattica.is_initialized():
            lattica.init()
        self._max_workers = max_workers
        self._initializer = (initializer, tuple(initargs)) if initializer else None
        self._setup: tuple[bytes, list[lattica.ObjectRef]] | None = None
        self._remote_args = dict(remote_args or {})
        self._functions: dict[Any, Any] = {}  # (what runs in the worker, name) -> remote function
        self._completions = Completions("lattica-executor", daemon=False)
        self._idle = threading.Condition(threading.Lock())
        self._pending: deque[tuple[LatticaFuture, Callable[[], lattica.ObjectRef]]] = deque()
        self._running: dict[LatticaFuture, lattica.ObjectRef | None] = {}  # oldest first; None until it is given
        self._limit, self._limit_at = max_workers or 0, float("-inf")
        self._closed = False
        self._broken: str | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future of `fn(*args, **kwargs)`.

        Raises RuntimeError after `shutdown`, BrokenExecutor after the initializer failed.
        """
        return self._submit(fn, lambda: self._remote(_call, fn).remote(self._worker_setup(), fn, *args, **kwargs))

    def map(
        self,
        fn: Callable[..., Any],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """`fn` of the items of these iterables, side by side; the results in order.

        timeout: seconds from now in which a result must be there, else TimeoutError. chunksize: how many calls make one
        task. buffersize: how many results may be unread before no more is taken from the iterables; None for all.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        deadline = None if timeout is None else time.monotonic() + timeout
        items = zip(*iterables)
        chunks = iter(lambda: list(islice(items, chunksize)), [])
        shared: list[lattica.ObjectRef] = []  # the function travels once

        def run(chunk: list[tuple[Any, ...]]) -> Future[Any]:
            def give() -> lattica.ObjectRef:
                if not shared:
                    shared.append(lattica.put(fn))
                ref: lattica.ObjectRef = self._remote(_call_all, fn).remote(self._worker_setup(), shared[0], chunk)
                return ref

            return self._submit(fn, give)

        ahead = None if buffersize is None else max(1, buffersize // chunksize)
        futures = deque(run(chunk) for chunk in islice(chunks, ahead))
        return _mapped(futures, chunks, run, deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. wait: until those that were taken are done. cancel_futures: not those that wait."""
        with self._idle:
            self._closed = True
            if cancel_futures:
                while self._pending:
                    future, _ = self._pending.popleft()
                    future.cancel()
                    future.set_running_or_notify_cancel()
        self._completions.close()
        if wait:
            with self._idle:
                self._idle.wait_for(lambda: not self._pending and not self._running)
            self._completions.join()

    def terminate_workers(self) -> None:
        """Shut down, and interrupt what runs: its futures end in TaskCancelledError."""
        self._end(force=False)

    def kill_workers(self) -> None:
        """The same by killing the processes."""
        self._end(force=True)

    # -- inside

    def _end(self, *, force: bool) -> None:
        self.shutdown(wait=False, cancel_futures=True)
        for ref in list(self._running.values()):
            if ref is not None:
                lattica.cancel(ref, force=force)

    def _submit(self, fn: Callable[..., Any], give: Callable[[], lattica.ObjectRef]) -> LatticaFuture:
        with self._idle:
            if self._broken is not None:
                raise BrokenLatticaExecutor(self._broken)
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if _exiting:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            future = LatticaFuture(self)
            self._pending.append((future, give))
        self._fill()
        return future

    def _fill(self) -> lattica.ObjectRef | None:
        """Give lattica what it may have; the ref of the last call that was given."""
        if self._max_workers is None and time.monotonic() - self._limit_at > CPUS_KNOWN_S:
            self._limit = AHEAD * max(1, int(lattica.cluster_resources().get("CPU", 1)))
            self._limit_at = time.monotonic()
        last = None
        while True:
            with self._idle:
                if not self._pending or len(self._running) >= self._limit:
                    return last
                future, give = self._pending.popleft()
                if not future.set_running_or_notify_cancel():
                    continue
                self._running[future] = None
            last = self._give(future, give) or last
            del future, give

    def _give(self, future: LatticaFuture, give: Callable[[], lattica.ObjectRef]) -> lattica.ObjectRef | None:
        try:
            if not lattica.is_initialized():  # a call would begin a new session
                raise RuntimeError("lattica was shut down before this call could begin")
            ref = give()
        except Exception as error:  # an argument that cannot travel
            self._settled(future, None, error, fill=False)  # who called us goes on filling
            return None
        future.ref = ref
        with self._idle:
            self._running[future] = ref
        self._completions.when_done(ref, lambda value, error: self._settled(future, value, error))
        return ref

    def _settled(self, future: LatticaFuture, value: Any, error: BaseException | None, *, fill: bool = True) -> None:
        if isinstance(error, _InitializerFailed):
            error = self._break(error)
        with self._idle:
            self._running.pop(future, None)
        if (
            fill and (given := self._fill()) is not None
        ):  # so that whoever waits for this one finds the next one running
            send_now(given)
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(plain(error))
        with self._idle:
            self._idle.notify_all()

    def _break(self, error: _InitializerFailed) -> BrokenLatticaExecutor:
        with self._idle:
            first = self._broken is None
            self._broken = "A process initializer failed, the executor is not usable anymore"
            waiting = list(self._pending)
            self._pending.clear()
        if first:
            log.critical("Exception in initializer:\n%s", error.args[0])
        for future, _ in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(BrokenLatticaExecutor(self._broken))
        broken = BrokenLatticaExecutor(self._broken)
        broken.__cause__ = error
        return broken

    def _worker_setup(self) -> tuple[bytes, list[lattica.ObjectRef]] | None:
        """What a worker does before its first call; in a list, so that it is read only there."""
        if self._initializer is not None and self._setup is None:
            self._setup = os.urandom(16), [lattica.put(self._initializer)]
        return self._setup

    def _remote(self, runs: Callable[..., Any], fn: Callable[..., Any]) -> Any:
        """`runs` as a remote function with the name of `fn`."""
        name = str(getattr(fn, "__qualname__", None) or type(fn).__qualname__)
        found = self._functions.get((runs, name))
        if found is None:
            named = len(self._functions) < NAMES_MAX
            found = lattica.remote(**{"name": name if named else "LatticaExecutor", **self._remote_args})(runs)
            if named:
                self._functions[runs, name] = found
        return found


class LatticaFuture(Future[Any]):
    """A future whose waiter lends its CPU. ref: of the result, once the call was given to lattica."""

    ref: lattica.ObjectRef | None = None

    def __init__(self, executor: LatticaExecutor) -> None:
        super().__init__()
        self._executor = executor

    def result(self, timeout: float | None = None) -> Any:
        """What the call returned; raises what it raised, TimeoutError, CancelledError."""
        return super().result(self._follow(timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or None. Raises TimeoutError, CancelledError."""
        return super().exception(self._follow(timeout))

    def _follow(self, timeout: float | None) -> float | None:
        """Wait for our ref as lattica does, or for that of a call before us; the seconds that are left."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.done():
            ahead, ref = self, self.ref
            if ref is None:
                ahead, ref = next(iter(list(self._executor._running.items())), (self, None))
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if ref is None or not lattica.wait([ref], timeout=left)[0] or ahead is self:
                break
            try:  # its thread tells the next call's ref before it tells the result
                Future.exception(ahead, left)
            except TimeoutError:
                break
        return None if deadline is None else max(0.0, deadline - time.monotonic())


def _mapped(
    futures: deque[Future[Any]],
    chunks: Iterator[list[tuple[Any, ...]]],
    run: Callable[[list[tuple[Any, ...]]], Future[Any]],
    deadline: float | None,
) -> Iterator[Any]:
    try:
        while futures:
            values = futures.popleft().result(None if deadline is None else deadline - time.monotonic())
            futures.extend(map(run, islice(chunks, 1)))
            values.reverse()
            while values:
                yield values.pop()  # and keep none
    finally:
        for future in futures:
            future.cancel()


# -- in the worker


class _InitializerFailed(Exception):
    """args: the traceback's text."""


_initialized: dict[bytes, Initialized] = {}
"""By executor: those whose initializer has run in this process."""


def _prepare(setup: tuple[bytes, list[lattica.ObjectRef]] | None, fn: Callable[..., Any]) -> None:
    if setup is None:
        return
    known = _initialized.get(setup[0])
    if known is None:
        try:
            known = Initialized(*lattica.get(setup[1][0]))
        except Exception:
            raise _InitializerFailed(traceback.format_exc()) from None
        _initialized[setup[0]] = known
    known.lend(fn)


def _call(setup: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    _prepare(setup, fn)
    return fn(*args, **kwargs)


def _call_all(setup: Any, fn: Callable[..., Any], chunk: list[tuple[Any, ...]], /) -> list[Any]:
    _prepare(setup, fn)
    return [fn(*args) for args in chunk]


__all__ = ["BrokenLatticaExecutor", "LatticaExecutor", "LatticaFuture"]
