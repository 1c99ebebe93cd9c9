"""A thread that hears of results: what is to be done with a value once it is there, one after the other.

Callbacks of a library's users may block, call lattica, or raise; they do not belong in the thread that reads sockets.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import lattica

log = logging.getLogger("lattica")

LINGER_S = 0.05
"""How long the thread waits for more when nothing is on its way. A program ends that much later; a loop that submits
one by one starts no thread each time."""

Do = Callable[[Any, BaseException | None], None]
"""(value, None) or (None, error)"""


def send_now(ref: lattica.ObjectRef) -> None:
    """Let the call that makes this ref go out. What is submitted by a thread that then waits for something else is sent
    half a millisecond later, together with what may follow; a pool's next call would lose that time again and again."""
    lattica.wait([ref], timeout=0)


class Completions:
    """Runs what waits for refs, in the order in which they are done, in one thread that lives while any is not.

    daemon: whether the program may end before they are.
    """

    def __init__(self, name: str, *, daemon: bool) -> None:
        self._name, self._daemon = name, daemon
        self._done: queue.SimpleQueue[tuple[Do, Future[Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._awaited = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def when_done(self, ref: lattica.ObjectRef, do: Do) -> None:
        """Call `do` in the thread when the ref has its value."""
        with self._lock:
            self._awaited += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=self._daemon)
                self._thread.start()
        ref.future().add_done_callback(lambda future: self._done.put((do, future)))

    def close(self) -> None:
        """End the thread as soon as nothing is awaited; without lingering."""
        self._closed = True
        self._done.put(None)

    def join(self) -> None:
        """Wait until it has ended."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            try:
                item = self._done.get(timeout=None if self._awaited else 0 if self._closed else LINGER_S)
            except queue.Empty:
                with self._lock:
                    if not self._awaited:
                        self._thread = None
                        return
                continue
            if item is not None:
                self._settle(*item)
                with self._lock:
                    self._awaited -= 1
            del item  # or its value would stay until the next one comes

    def _settle(self, do: Do, future: Future[Any]) -> None:
        error = future.exception()
        try:
            do(None if error else future.result(), error)
        except Exception:
            log.exception("a callback raised")
