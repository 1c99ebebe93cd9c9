"""Signals in the main thread wait while the runtime's own code runs there.

The thread that waits in `get` reads and dispatches messages itself. A `KeyboardInterrupt` between two bytecodes of that
work would lose a reply or leave a queue half changed, so our handler only notes the signal while `on` is set, and the
outermost `leave` delivers it. A blocking system call runs with the guard open, so Ctrl-C is as prompt as ever.

A *front* stands before one handler that it found. Handlers that users put before a front, and which call it in turn,
get a front of their own: each one has its own inner handler, so a chain of them ends.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]

_handler_of: Callable[[int], Any] = _signal.getsignal
"""`signal.getsignal` would look whether the handler is one of its enum's, which takes 2 us, in each `get`."""


class _Front:
    """The handler that Python calls: passes the signal on to `inner`, now or when the guard opens."""

    __slots__ = ("guard", "inner")

    def __init__(self, guard: Guard, inner: Handler) -> None:
        self.guard, self.inner = guard, inner

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.guard.on:
            self.guard._pending.setdefault(signum, self.inner)
        else:
            self.inner(signum, frame)


class Guard:
    """Defers the handlers of chosen signals while runtime code runs in the main thread."""

    __slots__ = ("_fronted", "_main", "_pending", "on")

    def __init__(self) -> None:
        self.on = False
        self._main = threading.main_thread().ident
        self._pending: dict[int, Handler] = {}  # each signal once, as the kernel does it
        self._fronted: set[int] = set()

    def wrap(self, signum: int) -> None:
        """Put the guard in front of the present Python handler of `signum`; does nothing where it already stands.

        Called again before each wait, since notebooks set their own handler for each cell. Main thread only.
        """
        present = _handler_of(signum)
        if not (type(present) is _Front and present.guard is self) and callable(present):
            self.install(signum, present)

    def install(self, signum: int, handler: Handler) -> None:
        """Handle `signum` with `handler`, deferred. Main thread only."""
        self._fronted.add(signum)
        signal.signal(signum, _Front(self, handler))

    def remove(self) -> None:
        """Give the signals back to the handlers found. Main thread only."""
        for signum in self._fronted:
            present = signal.getsignal(signum)
            if isinstance(present, _Front) and present.guard is self:
                signal.signal(signum, present.inner)
        self._fronted.clear()

    def enter(self) -> bool:
        """Defer from here; True if the caller must `leave` (it is in the main thread and was not inside already)."""
        if self.on or threading.get_ident() != self._main:
            return False
        self.on = True
        return True

    def leave(self) -> None:
        """Deliver what came meanwhile; may raise what a handler raises, such as KeyboardInterrupt."""
        self.on = False
        if self._pending:
            self._deliver()

    @property
    def in_main_thread(self) -> bool:
        """Whether the caller runs in the thread that receives signals."""
        return threading.get_ident() == self._main

    @property
    def defers_here(self) -> bool:
        """Whether the caller runs guarded, and should `open` the guard around a blocking call."""
        return self.on and threading.get_ident() == self._main

    def open(self) -> None:
        """Let signals through for a blocking call; delivers what is pending first.

        Wrap it and the call in `try: ... finally: guard.on = True`: a store, for a call could be interrupted itself.
        """
        self.on = False  # first: a signal between the look at `_pending` and this would wait for the call to end
        if self._pending:
            self._deliver()

    def _deliver(self) -> None:
        pending = self._pending
        while pending:
            signum = next(iter(pending))
            pending.pop(signum)(signum, None)
