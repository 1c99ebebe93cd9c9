"""What is due when: each thing once, whenever it was last put off to."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

K = TypeVar("K")
STALE_MAX = 64  # entries of the heap beyond twice what is due: then it is made anew


class Agenda(Generic[K]):
    """A heap whose entries count only if they are the last word; `now` and dues are seconds of one clock."""

    __slots__ = ("_due", "_heap", "_order")

    def __init__(self) -> None:
        self._due: dict[K, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = count()  # breaks ties, so that things are never compared

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, what: K) -> bool:
        return what in self._due

    def put(self, what: K, due: float) -> None:
        """It is due then, and not when it was before."""
        order = next(self._order)
        self._due[what] = due, order
        heappush(self._heap, (due, order, what))
        if len(self._heap) > 2 * len(self._due) + STALE_MAX:
            self._heap = [(due, order, what) for what, (due, order) in self._due.items()]
            heapify(self._heap)

    def drop(self, what: K) -> None:
        """It is not due any more."""
        self._due.pop(what, None)

    def next(self) -> float | None:
        """When the first thing is due; None: never."""
        heap, last = self._heap, self._due
        while heap:
            due, order, what = heap[0]
            if what in last and last[what][1] == order:
                return due
            heappop(heap)
        return None

    def take(self, now: float) -> list[K]:
        """What is due by now, the earliest first; it is dropped."""
        taken: list[K] = []
        while (due := self.next()) is not None and due <= now:
            what = heappop(self._heap)[2]
            del self._due[what]
            taken.append(what)
        return taken

    def validate(self) -> None:
        """Assert what always holds."""
        assert len(self._heap) <= 2 * len(self._due) + STALE_MAX or not self._due, "an agenda grows without bound"
