"""Publications that a peer misses: who said that they have them, who was asked, and who is asked next.

What one peer announces can make this one wait for so many and no more, so that a liar fills its own share only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lattica.mesh.identity import PeerId
from lattica.mesh.publications import Id

WANT_S = 0.5  # for an answer, before others that have it are asked: the longest round trip of a world is 0.4 s
ASKS_MAX = 6  # then the next announcement begins anew
SOURCES_MAX = 4
"""That are remembered for one. The n-th time the latest n are asked: at 30 % loss one arrival of a long publication in
a thousand took 3.7 s; with one asked each time it took 6.3 s."""
WANTED_OF_ONE_MAX = 256  # publications that one peer can make this one wait for


@dataclass(slots=True)
class _Want:
    """first: who announced it first. sources: who can be asked."""

    first: PeerId
    sources: list[PeerId]
    at: float  # when the next one is asked
    asks: int = 1


class Wants:
    """See the module."""

    def __init__(self) -> None:
        self._wants: dict[Id, _Want] = {}  # by `at`, for all wait equally long
        self._made_by: Counter[PeerId] = Counter()  # how many each announced first

    def __len__(self) -> int:
        return len(self._wants)

    def announced(self, source: PeerId, ids: Iterable[Id], now: float) -> list[Id]:
        """This peer has these, which were not seen here. Returns what to ask it for now."""
        asked: list[Id] = []
        for id in ids:
            want = self._wants.get(id)
            if want is None:
                if self._made_by[source] < WANTED_OF_ONE_MAX:
                    self._wants[id] = _Want(source, [source], now + WANT_S)
                    self._made_by[source] += 1
                    asked.append(id)
            elif source not in want.sources and len(want.sources) < SOURCES_MAX:
                want.sources.append(source)
        return asked

    def came(self, id: Id) -> None:
        """It is here, or nobody has it."""
        want = self._wants.pop(id, None)
        if want is not None:
            self._made_by[want.first] -= 1
            if not self._made_by[want.first]:
                del self._made_by[want.first]

    def disconnected(self, peer: PeerId) -> None:
        """It cannot be asked any more."""
        for id, want in list(self._wants.items()):
            if peer in want.sources:
                want.sources.remove(peer)
                if not want.sources:
                    self.came(id)

    def due(self, now: float) -> dict[PeerId, list[Id]]:
        """Whom to ask for what, since those asked before have not answered."""
        asked: dict[PeerId, list[Id]] = {}
        for id, want in list(self._wants.items()):
            if want.at > now:
                break
            if want.asks >= ASKS_MAX:
                self.came(id)
                continue
            want.asks, want.at = want.asks + 1, now + WANT_S
            for source in want.sources[-want.asks :]:
                asked.setdefault(source, []).append(id)
            self._wants[id] = self._wants.pop(id)  # now the last one
        return asked

    def next_deadline(self) -> float | None:
        """When something is due."""
        first = next(iter(self._wants.values()), None)
        return None if first is None else first.at

    def validate(self) -> None:
        """Assert what always holds."""
        assert len(self._wants) <= len(self._made_by) * WANTED_OF_ONE_MAX, "somebody makes this peer wait for too much"
