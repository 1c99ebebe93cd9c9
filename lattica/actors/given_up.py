"""What a process may still be given by those whose calls it has given up.

Rules of this file. An actor is said to be gone when its process has died, and also when its node is silent or another
life of it has won: then its process may live, and answer. What it seals for us meanwhile holds what nobody waits for,
until we have heard of it, and let go, or say after the end of that process that we never will (`messages.Unheard`).
"""

from __future__ import annotations

from collections.abc import Iterable


class GivenUp:
    """Calls that nobody here waits for any more, by the process that has them: what they make, as far as unheard of."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: dict[int, dict[int, tuple[int, dict[bytes, None]]]] = {}  # client -> number -> (attempt, objects)

    def __repr__(self) -> str:
        return f"<GivenUp: {sum(map(len, self._of.values()))} calls>"

    def add(self, client: int, seq: int, attempt: int, objects: Iterable[bytes]) -> None:
        """This call of ours has begun there, perhaps, and makes these."""
        self._of.setdefault(client, {})[seq] = attempt, dict.fromkeys(objects)

    def awaits(self, client: int) -> bool:
        """Whether this one may still give us something."""
        return client in self._of

    def replied(self, client: int, seq: int) -> None:
        """It gives us no more for this call."""
        calls = self._of.get(client, {})
        if calls.pop(seq, None) is not None and not calls:
            del self._of[client]

    def heard(self, client: int, seq: int, object: bytes) -> None:
        """An item of a generator has come."""
        call = self._of.get(client, {}).get(seq)
        if call is not None:
            call[1].pop(object, None)

    def gone(self, client: int) -> list[tuple[int, list[bytes]]]:
        """Its process has ended: (attempt, objects) of which we shall never hear."""
        found: dict[int, list[bytes]] = {}
        for attempt, objects in self._of.pop(client, {}).values():
            found.setdefault(attempt, []).extend(objects)
        return list(found.items())
