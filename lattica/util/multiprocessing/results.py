"""What a pool answers with at once, and what comes later: `AsyncResult` and the iterators of `imap`."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from multiprocessing import TimeoutError
from typing import TYPE_CHECKING, Any

from lattica.util.batches import Arguments, Outcome

if TYPE_CHECKING:
    from lattica.util.multiprocessing.pool import Pool


class AsyncResult:
    """Results of a call, or of a map, that come later."""

    def __init__(
        self,
        pool: Pool,
        batches: int,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        single: bool,
    ) -> None:
        self._pool = pool
        self._outcomes: list[list[Outcome] | None] = [None] * batches
        self._missing = batches
        self._callback, self._error_callback, self._single = callback, error_callback, single
        self._failed = False
        self._lock = threading.Lock()  # a batch that could not be sent is settled by who called
        self._event = threading.Event()
        if not batches:
            self._end()

    def wait(self, timeout: float | None = None) -> None:
        """Until it is ready, or for `timeout` seconds."""
        if not self._event.is_set():
            self._pool.send()
            self._event.wait(timeout)

    def ready(self) -> bool:
        """Whether all results are there, or errors in their place."""
        return self._event.is_set()

    def successful(self) -> bool:
        """Whether nothing was raised. Raises ValueError if it is not ready."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return not self._failed

    def get(self, timeout: float | None = None) -> Any:
        """The result; of a map a list. Raises multiprocessing.TimeoutError; and what the first call that failed, in
        the order of the arguments, has raised."""
        self.wait(timeout)
        if not self.ready():
            raise TimeoutError
        values = self._values()
        return values[0] if self._single else values

    def settled(self, batch: int, outcomes: list[Outcome]) -> None:
        """A batch is done. In the pool's thread."""
        error = next((error for _, error in outcomes if error is not None), None)
        with self._lock:
            self._outcomes[batch] = outcomes
            first, self._failed = error is not None and not self._failed, self._failed or error is not None
        if first and error is not None and self._error_callback is not None:
            self._guarded(self._error_callback, error)
        with self._lock:
            self._missing -= 1
            last = not self._missing
        if last:
            self._end()

    def _end(self) -> None:
        try:
            if not self._failed and self._callback is not None:
                values = self._values()
                self._guarded(self._callback, values[0] if self._single else values)
        finally:
            self._event.set()

    def _guarded(self, callback: Callable[[Any], object], value: Any) -> None:
        try:
            callback(value)
        except Exception:  # the pool's thread goes on, as in the standard library
            import logging

            logging.getLogger("lattica").exception("a callback of a pool raised")

    def _values(self) -> list[Any]:
        values = []
        for outcomes in self._outcomes:
            for value, error in outcomes or ():
                if error is not None:
                    raise error
                values.append(value)
        return values


class IMapIterator:
    """Results of `imap`. No more batches are on their way, or unread, than twice the number of processes: the rest of
    the arguments is taken as results are read."""

    def __init__(self, pool: Pool, func: Any, arguments: Iterator[Arguments], chunksize: int, *, ordered: bool) -> None:
        self._pool, self._func, self._arguments, self._chunksize = pool, func, arguments, chunksize
        self._ordered = ordered
        self._changed = threading.Condition()
        self._done: dict[int, list[Outcome]] = {}  # batches that nobody has read, those done first in front
        self._ready: deque[Outcome] = deque()  # of the batch that is being read
        self._submitted = self._read = 0
        self._exhausted = False
        self._feeding = threading.Lock()
        self.feed(2 * pool.processes)

    def __iter__(self) -> IMapIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result. Raises StopIteration after the last, multiprocessing.TimeoutError; and what a call has
        raised: the results after it can still be read."""
        if not self._ready:
            self._ready.extend(self._take_batch(timeout))
        value, error = self._ready.popleft()
        if error is not None:
            raise error
        return value

    def feed(self, most: int | None) -> None:
        """Submit batches until `most` are unread; None: all there are."""
        with self._feeding:
            while not self._exhausted and (most is None or self._submitted - self._read < most):
                number = self._submitted
                try:
                    batch = list(islice(self._arguments, self._chunksize))
                except Exception as error:  # the iterable's own: it is raised in its place
                    self._submitted, self._exhausted = number + 1, True
                    self._settled(number, [(None, error)])
                    break
                if not batch:
                    self._exhausted = True
                    break
                self._submitted += 1
                self._pool.run(self._func, batch, partial(self._settled, number))

    def _settled(self, number: int, outcomes: list[Outcome]) -> None:
        with self._changed:
            self._done[number] = outcomes
            self._changed.notify_all()

    def _take_batch(self, timeout: float | None) -> list[Outcome]:
        deadline = None if timeout is None else time.monotonic() + timeout
        self._pool.send()
        with self._changed:
            while (number := self._next_number()) is None:
                if self._exhausted and self._read == self._submitted:
                    raise StopIteration
                left = None if deadline is None else deadline - time.monotonic()
                if not self._changed.wait(left) and left is not None:
                    raise TimeoutError
            outcomes = self._done.pop(number)
            self._read += 1
        self.feed(2 * self._pool.processes)
        return outcomes

    def _next_number(self) -> int | None:
        if self._ordered:
            return self._read if self._read in self._done else None
        return next(iter(self._done), None)
