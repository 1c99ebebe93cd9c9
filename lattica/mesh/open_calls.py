"""Calls that are not over, and when they are due."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush

from lattica.mesh.messages import Answered, End, Failed, Item
from lattica.mesh.streams import Reading, Writing
from lattica.mesh.wire import Buffer


class OpenCall:
    """A call, on either side."""

    __slots__ = ("answer", "behind", "reading", "running", "size", "started", "writing")

    def __init__(self, size: int) -> None:
        """size: of its body."""
        self.size = size
        self.behind: list[tuple[Item | End, Sequence[Buffer], int]] | None = None  # follow a call that waits for credit
        self.answer: Answered | Failed | None = None  # came, while items before it are still on their way
        self.started = True  # False: a call of the other side whose own body is still on its way
        self.running = 0  # bytes of a call of the other side, while it runs
        self.reading: Reading | None = None
        self.writing: Writing | None = None


class Deadlines:
    """Of calls of both sides. Those of calls that are over stay until they are in the way."""

    __slots__ = ("_heap", "_sides")

    def __init__(self, theirs: Mapping[int, OpenCall], mine: Mapping[int, OpenCall]) -> None:
        self._sides = theirs, mine
        self._heap: list[tuple[float, bool, int]] = []

    def add(self, deadline: float, mine: bool, id: int) -> None:
        """Remember it."""
        heappush(self._heap, (deadline, mine, id))
        if len(self._heap) > 64 + 2 * sum(map(len, self._sides)):
            self._heap = [entry for entry in self._heap if self._is_open(entry)]
            heapify(self._heap)

    def passed(self, now: float) -> Iterator[tuple[bool, int]]:
        """(whether it is ours, number) of each call whose deadline has passed."""
        while self._heap and self._heap[0][0] <= now:
            entry = heappop(self._heap)
            if self._is_open(entry):
                yield entry[1:]

    def next(self) -> float | None:
        """The next one."""
        while self._heap and not self._is_open(self._heap[0]):
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _is_open(self, entry: tuple[float, bool, int]) -> bool:
        return entry[2] in self._sides[entry[1]]
