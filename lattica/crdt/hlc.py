"""Hybrid logical clocks: near the wall clock, and never behind anything that was heard.

A stamp is one integer, milliseconds since 1970 above 16 bits of a counter, so stamps compare as integers.

Source: Kulkarni, Demirbas et al., "Logical Physical Clocks" (2014).
"""

from __future__ import annotations

COUNTER_BITS = 16
AHEAD_MAX_S = 60.0
"""A stamp further ahead of our clock is refused for now: it would win every tie until our clocks are there."""


class HybridClock:
    """One writer's clock."""

    def __init__(self) -> None:
        self._last = 0

    def __repr__(self) -> str:
        return f"<HybridClock at {seconds_of(self._last):.3f}>"

    def stamp(self, unix_s: float) -> int:
        """A stamp later than any that was given or heard before."""
        self._last = max(int(unix_s * 1000) << COUNTER_BITS, self._last + 1)
        return self._last

    def heard(self, stamp: int) -> None:
        """Somebody else has given this stamp, which is not too far ahead."""
        self._last = max(self._last, stamp)


def seconds_of(stamp: int) -> float:
    """The wall clock's part of it: seconds since 1970."""
    return (stamp >> COUNTER_BITS) / 1000


def is_ahead(stamp: int, unix_s: float) -> bool:
    """Whether it is too far ahead of this wall clock to be taken in now."""
    return seconds_of(stamp) > unix_s + AHEAD_MAX_S
