"""Time as a thing one is given.

Protocol cores take `now: float` with each verb and hold no clock. Shells hold one of these: the real one, or a test's.
Times are seconds from an arbitrary start, never go back, and mean nothing outside their process.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The time, for a shell: the real one or a test's."""

    def now(self) -> float: ...


class MonotonicClock:
    """The machine's monotonic clock, the one that asyncio's and uvloop's `loop.time()` read too."""

    def now(self) -> float:
        return time.monotonic()
