"""Signals in the main thread wait while the runtime's own code runs there.

The thread that waits in `get` reads and dispatches messages itself. A `KeyboardInterrupt` between two bytecodes of that
work would lose a reply or leave a queue half changed, so our handler only notes the signal while `on` is set, and the
outermost `leave` delivers it. A blocking system call runs with the guard open, so Ctrl-C is as prompt as ever.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


class Guard:
    """Defers the handlers of chosen signals while runtime code runs in the main thread."""

    __slots__ = ("_bound", "_inner", "_main", "_pending", "on")

    def __init__(self) -> None:
        self.on = False
        self._main = threading.main_thread().ident
        self._pending: deque[int] = deque()
        self._inner: dict[int, Handler] = {}
        self._bound = self._handle

    def wrap(self, signum: int) -> None:
        """Put the guard in front of the present Python handler of `signum`; does nothing where it already stands.

        Called again before each wait, since notebooks set their own handler for each cell. Main thread only.
        """
        present = signal.getsignal(signum)
        if present is self._bound or not callable(present):
            return
        self._inner[signum] = present
        signal.signal(signum, self._bound)

    def install(self, signum: int, handler: Handler) -> None:
        """Handle `signum` with `handler`, deferred. Main thread only."""
        self._inner[signum] = handler
        signal.signal(signum, self._bound)

    def remove(self) -> None:
        """Give the signals back to the handlers found. Main thread only."""
        for signum, inner in self._inner.items():
            if signal.getsignal(signum) is self._bound:
                signal.signal(signum, inner)
        self._inner.clear()

    def enter(self) -> bool:
        """Defer from here; True if the caller must `leave` (it is in the main thread and was not inside already)."""
        if self.on or threading.get_ident() != self._main:
            return False
        self.on = True
        return True

    def leave(self) -> None:
        """Deliver what came meanwhile; may raise what a handler raises, such as KeyboardInterrupt."""
        self.on = False
        while self._pending:
            signum = self._pending.popleft()
            self._inner[signum](signum, None)

    @property
    def in_main_thread(self) -> bool:
        """Whether the caller runs in the thread that receives signals."""
        return threading.get_ident() == self._main

    def open(self) -> bool:
        """Let signals through for a blocking call; True if `shut` must follow. Delivers what is pending first."""
        if not self.on or threading.get_ident() != self._main:
            return False
        self.on = False
        while self._pending:
            signum = self._pending.popleft()
            self._inner[signum](signum, None)
        return True

    def shut(self) -> None:
        """Defer again, after a blocking call."""
        self.on = True

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.on:
            self._pending.append(signum)
        else:
            self._inner[signum](signum, frame)
