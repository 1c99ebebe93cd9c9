"""The look-ups that run, and those that wait for their turn."""

from __future__ import annotations

from lattica.errors import LocalProtocolError
from lattica.mesh.dht.keys import Key
from lattica.mesh.dht.lookup import Lookup, Wish
from lattica.mesh.identity import PeerId

LOOKUPS_MAX = 32
"""At once, each with ALPHA open asks; what is renewed after a start or a move takes turns so."""
WAITING_MAX = 4096
"""Wishes of this machine that wait: some minutes' work."""


class Lookups:
    """One for each wish and key at most: who wishes the same gets the same answer."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._running: dict[tuple[Wish, Key], Lookup] = {}
        self._waiting: dict[tuple[Wish, Key], None] = {}  # in order

    def __len__(self) -> int:
        return len(self._running)

    def want(self, wish: Wish, key: Key) -> None:
        """Let it run when it may."""
        self._waiting[wish, key] = None

    def require_room(self) -> None:
        """For one more wish of this machine. Raises LocalProtocolError: whoever lets wishes in must hold some back."""
        if len(self._waiting) >= WAITING_MAX:
            raise LocalProtocolError(f"{WAITING_MAX} look-ups wait already")

    def begin(self) -> Lookup | None:
        """The next that may run now."""
        while self._waiting and len(self._running) < LOOKUPS_MAX:
            what = next(iter(self._waiting))
            del self._waiting[what]
            if what not in self._running:
                lookup = self._running[what] = Lookup(*what, self._me)
                return lookup
        return None

    def end(self, lookup: Lookup) -> None:
        """It is over."""
        lookup.is_over = True
        del self._running[lookup.wish, lookup.target]

    def validate(self) -> None:
        """Assert what always holds."""
        assert len(self._running) <= LOOKUPS_MAX, "more look-ups at once than may be"
        assert not self._waiting or len(self._running) == LOOKUPS_MAX, "a look-up waits for nothing"
