"""How often a member may ask for what this node does not know: guesses of ids are answered no more than slowly.

An id is 8 random bytes of a process and a number that grows by unforeseeable steps (`actors.serials`). Whoever was lent
an object knows the former, so it could try numbers. Each question for something that nobody here holds costs one of
MISSES_MAX, of which MISSES_PER_S come back. Who has none left is answered for what this node has lent it, and hears of
everything else what it would hear of an unknown object.

To say that one was given it (`Took`) is such a question, too. It slows guessing down and does not prove that somebody
was lent what it asks for: a borrower is sent on to others by the id alone, and seeks it everywhere if its lender dies.

Rules of this file: no IO; the caller says what is known, and the time.
"""

from __future__ import annotations

from lattica.mesh.identity import PeerId

MISSES_MAX = 16_384
"""At once. Honest ones come in bursts: when a node dies, what it had lent is sought at all that are known."""
MISSES_PER_S = 32.0  # an object that follows a known one is found by 33,000 questions on average: 17 minutes
MEMBERS_MAX = 4096


class Guesses:
    """See the module."""

    def __init__(self) -> None:
        self._left: dict[PeerId, tuple[float, float]] = {}  # how many, at what time

    def __repr__(self) -> str:
        return f"<Guesses: {sum(left < 1 for left, _ in self._left.values())} members have none left>"

    def missed(self, peer: PeerId, now: float) -> None:
        """It has asked for something that is not known here."""
        left = self._now(peer, now)
        self._left.pop(peer, None)
        if len(self._left) >= MEMBERS_MAX:
            del self._left[next(iter(self._left))]
        self._left[peer] = max(left - 1.0, 0.0), now

    def may_guess(self, peer: PeerId, now: float) -> bool:
        """Whether it is answered for what it was not lent."""
        return self._now(peer, now) >= 1.0

    def _now(self, peer: PeerId, now: float) -> float:
        left, at = self._left.get(peer, (float(MISSES_MAX), now))
        return min(left + (now - at) * MISSES_PER_S, float(MISSES_MAX))
