"""The timer of a shell around a pure core."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """A shell's one timer: it rings when the core wants it, or sooner. uvloop's handles do not say when they ring."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._due = 0.0

    def set(self, due: float | None) -> None:
        """Ring at this time of the loop's clock, if not before."""
        if due is None or (self._handle is not None and self._due <= due):
            return
        self.cancel()
        self._due, self._handle = due, self._loop.call_at(due, self._rings)

    def cancel(self) -> None:
        """Do not ring."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _rings(self) -> None:
        self._handle = None
        self._ring()
