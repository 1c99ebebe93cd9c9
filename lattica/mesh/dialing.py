"""Whether and when to dial one other peer."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from lattica.mesh.wire import BULK, CONTROL, PLANES

BACKOFF_S = (0.2, 30.0)  # first and longest pause between dials
BREACH_FAILURES = 5  # a peer that broke a rule is dialed as after so many failures, and later each time: 6 s first
AGAIN_S = 0.1  # after a connection died: at once, but not in step with the other side
ASK_AGAIN_S = 10.0  # for a connection that only the other side can dial
UNREACHABLE_S = 10.0  # after which those who wait for a peer are told so; dialing goes on


class Dialing:
    """What is wished of one other peer, and the pauses between attempts. `now` is monotonic seconds."""

    __slots__ = (
        "_breaches", "_failures", "_pauses", "_rng", "_told", "addresses", "attempts", "bulk_asked", "wanted_since",
    )  # fmt: skip

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.addresses: tuple[str, ...] = ()
        self.wanted_since: float | None = None  # somebody here wants a session
        self.attempts: dict[int, int] = {}  # plane -> number of the dial under way
        self.bulk_asked = False  # the other side needs the bulk plane, and cannot dial
        self._pauses: dict[int, float] = {}  # plane -> when to dial it
        self._failures = self._breaches = 0
        self._told = False  # those who wait know that it is unreachable

    def __repr__(self) -> str:
        return f"<Dialing: {len(self.addresses)} addresses, {self._failures} failures, pauses until {self._pauses}>"

    def wish(self, addresses: Sequence[str], now: float) -> None:
        """A session is wanted."""
        if addresses:
            self.addresses = tuple(dict.fromkeys(addresses))
        if self.wanted_since is None:
            self.wanted_since, self._told, self._failures = now, False, 0
            if not self._breaches:
                self._pauses.pop(CONTROL, None)

    def may(self, plane: int) -> bool:
        """Whether this plane may be dialed now."""
        return bool(self.addresses) and plane not in self.attempts and plane not in self._pauses

    def pauses(self, plane: int) -> bool:
        """Whether nothing is to be done about this plane for now."""
        return plane in self.attempts or plane in self._pauses

    def failed(self, plane: int, now: float) -> None:
        """An attempt came to nothing: pause, longer each time, and not in step with others."""
        first, longest = BACKOFF_S
        pause_s = min(first * 2 ** min(self._failures, 16), longest)
        self._failures += 1
        self._pauses[plane] = now + pause_s * self._rng.uniform(0.5, 1.5)

    def broke(self, now: float) -> None:
        """The other side broke a rule: it will again."""
        self._breaches = min(self._breaches + 1, 16)
        self._failures = max(self._failures, BREACH_FAILURES - 1 + self._breaches)
        self.failed(CONTROL, now)

    def died(self, plane: int, now: float) -> None:
        """A connection that carried this plane is gone."""
        self._pauses[plane] = now + self._rng.uniform(0, AGAIN_S)

    def moved(self) -> None:
        """It may be reached elsewhere: do not pause for what failed, unless it broke rules."""
        if not self._breaches:
            self._failures = 0
            self._pauses.pop(CONTROL, None)

    def asked(self, now: float) -> None:
        """The other side was asked to dial bulk."""
        self._pauses[BULK] = now + ASK_AGAIN_S

    def carried(self, plane: int) -> None:
        """A connection carries this plane."""
        self._failures = 0
        self._pauses.pop(plane, None)
        if plane == BULK:
            self.bulk_asked = False

    def not_needed(self, plane: int) -> None:
        """There is no hurry: whoever needs it dials."""
        self._pauses.pop(plane, None)

    def refused(self) -> bool:
        """Dialing again changes nothing. Whether somebody waits to hear that."""
        self._pauses.clear()
        wanted, self.wanted_since = self.wanted_since is not None, None
        return wanted

    def wait_anew(self, now: float) -> None:
        """A session has begun or ended: who waits for the next one waits from now on."""
        self._told = False
        if self.wanted_since is not None:
            self.wanted_since = now

    def tick(self, now: float, *, up: bool) -> bool:
        """Pauses that are over are over. Whether it is time to say that nobody answers. up: there is a session."""
        for plane in PLANES:
            if (at := self._pauses.get(plane)) is not None and at <= now:
                del self._pauses[plane]
        if (at := self._words_due(up)) is None or at > now:
            return False
        self._told = True
        return True

    def next_deadline(self, *, up: bool) -> float | None:
        """When to call `tick`."""
        first = self._words_due(up)
        for at in self._pauses.values():
            if first is None or at < first:
                first = at
        return first

    def _words_due(self, up: bool) -> float | None:
        return None if self.wanted_since is None or self._told or up else self.wanted_since + UNREACHABLE_S
