"""Which process may write where in the arena: the node deals out spans, and each process divides its own.

    process -> node   SpanRequest, SpanReturn
    node -> process   SpanGrant, after it has backed what was not

Rules of this file: offsets and sizes are bytes, and `now` is the only time. A span belongs to one process until that
gives it back or dies; what others still hold of the dead is then the node's, granule by granule. "Backed" means that
the kernel has given memory for a range: new memory costs seven times a copy, so used memory comes first.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

from lattica.codec.messages import NODE
from lattica.errors import RemoteProtocolError
from lattica.objectstore.suballocator import GRANULE_BYTES, rounded


class Ranges:
    """Disjoint half-open ranges of integers, sorted; touching ones are joined."""

    __slots__ = ("_starts", "_stops", "total")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.total = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._stops)

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, stop: int) -> None:
        """Put everything from `start` to `stop` in; what is in already stays in."""
        i, j = bisect_left(self._stops, start), bisect_right(self._starts, stop)
        if i < j:
            start, stop = min(start, self._starts[i]), max(stop, self._stops[j - 1])
        self._replace(i, j, [(start, stop)])

    def remove(self, start: int, stop: int) -> None:
        """Take everything from `start` to `stop` out; what is not in is no matter."""
        i, j = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        if i < j:
            rest = [(self._starts[i], start), (stop, self._stops[j - 1])]
            self._replace(i, j, [(a, b) for a, b in rest if a < b])

    def within(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of `start`..`stop` that are in."""
        i, j = bisect_right(self._stops, start), bisect_left(self._starts, stop)
        return [(max(start, self._starts[k]), min(stop, self._stops[k])) for k in range(i, j)]

    def outside(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of `start`..`stop` that are not in."""
        gaps = []
        for a, b in self.within(start, stop):
            if start < a:
                gaps.append((start, a))
            start = b
        return [*gaps, (start, stop)] if start < stop else gaps

    def _replace(self, i: int, j: int, ranges: list[tuple[int, int]]) -> None:
        self.total += sum(b - a for a, b in ranges) - sum(self._stops[i:j]) + sum(self._starts[i:j])
        self._starts[i:j] = [a for a, _ in ranges]
        self._stops[i:j] = [b for _, b in ranges]


class SpanAllocator:
    """The node's: which part of the arena belongs to whom, and which is backed by memory.

    Ranges are few (a process has some spans), so lists and scans do; per-object work is the Suballocator's.
    capacity_bytes: size of the arena, a multiple of `granularity`.
    """

    def __init__(self, capacity_bytes: int, granularity: int = GRANULE_BYTES) -> None:
        assert capacity_bytes > 0 and capacity_bytes % granularity == 0, "the arena is a number of whole granules"
        self.capacity_bytes, self.granularity = capacity_bytes, granularity
        self._spans: dict[int, tuple[int, int]] = {}  # offset -> size, owner
        self._starts: list[int] = []  # sorted keys of _spans
        self._adopted: dict[int, int] = {}  # granule -> live regions of dead owners that lie in it
        self._backed = Ranges()
        self._free = Ranges()
        self._free.add(0, capacity_bytes)
        self._idle: list[tuple[int, int, float]] = [(0, capacity_bytes, 0.0)]  # _free again, by time of becoming free

    def __repr__(self) -> str:
        used, of = self.used_bytes >> 20, self.capacity_bytes >> 20
        return (
            f"<SpanAllocator {len(self._spans)} spans, {used} of {of} MiB used, {self.backed_bytes >> 20} MiB backed>"
        )

    @property
    def used_bytes(self) -> int:
        """Bytes that belong to somebody."""
        return self.capacity_bytes - self._free.total

    @property
    def free_bytes(self) -> int:
        """Bytes that can be granted, though perhaps not in one piece."""
        return self._free.total

    @property
    def backed_bytes(self) -> int:
        """Bytes of memory that the arena takes."""
        return self._backed.total

    @property
    def largest_free_bytes(self) -> int:
        """The largest span that can be granted."""
        return max((stop - start for start, stop in self._free), default=0)

    def rounded(self, size: int) -> int:
        """Length of the span that a request for `size` bytes gets."""
        return rounded(size, self.granularity)

    def owners(self) -> dict[int, int]:
        """Owner -> bytes of spans; what dead owners left to others is under NODE."""
        owned: dict[int, int] = {}
        for size, owner in self._spans.values():
            owned[owner] = owned.get(owner, 0) + size
        if self._adopted:
            owned[NODE] = owned.get(NODE, 0) + len(self._adopted) * self.granularity
        return owned

    def pieces(self, *, cold_is_free: bool = True) -> list[tuple[int, int, int | None]]:
        """(start, stop, owner) of the whole arena in order; owner None: free. cold_is_free: else what is free and not
        backed counts as the node's, since memory is what is short."""
        found: list[tuple[int, int, int | None]] = [
            (start, start + size, owner) for start, (size, owner) in self._spans.items()
        ]
        found += [(at * self.granularity, (at + 1) * self.granularity, NODE) for at in self._adopted]
        for start, stop in self._free:
            found += [(a, b, None) for a, b in self._backed.within(start, stop)]
            found += [(a, b, None if cold_is_free else NODE) for a, b in self._backed.outside(start, stop)]
        return sorted(found, key=lambda piece: piece[0])

    def allocate(self, size: int, owner: int, avoid: tuple[int, int] = (0, 0)) -> int | None:
        """Offset of a span of `size` bytes, rounded up to granules, now `owner`'s; None if no free range is that long.

        The span with the least memory yet to be backed wins, then the one from the tightest range. The caller backs
        what is `unbacked` before it lets anyone write there. avoid: (start, stop) of what is kept for another.
        """
        size = self.rounded(size)
        best: tuple[int, int, int] | None = None
        free = ((a, b) for start, stop in self._free for a, b in _outside(start, stop, *avoid))
        for start, stop in free:
            if stop - start >= size:
                for at in self._places(start, stop, size):
                    cold = size - sum(b - a for a, b in self._backed.within(at, at + size))
                    if best is None or (cold, stop - start, at) < best:
                        best = (cold, stop - start, at)
        if best is None:
            return None
        offset = best[2]
        self._free.remove(offset, offset + size)
        self._idle = list(_without(self._idle, offset, offset + size))
        self._spans[offset] = (size, owner)
        insort(self._starts, offset)
        return offset

    def _places(self, start: int, stop: int, size: int) -> set[int]:
        """Where in a free range a span may begin; the one that meets the most backed memory is among them."""
        edges = [edge for backed in self._backed.within(start, stop) for edge in backed]
        places = {start, stop - size, *edges, *(edge - size for edge in edges)}
        return {at for at in places if start <= at <= stop - size}

    def owns(self, owner: int, offset: int, size: int) -> bool:
        """Whether these bytes lie in one span of `owner`: what a process says of its objects is checked with this."""
        i = bisect_right(self._starts, offset) - 1
        if i < 0 or size <= 0:
            return size == 0  # no bytes lie everywhere
        start = self._starts[i]
        length, whose = self._spans[start]
        return whose == owner and offset + size <= start + length

    def release(self, offset: int, size: int, owner: int, now: float) -> None:
        """`owner` gives a span back. Raises RemoteProtocolError if it was not granted this very span."""
        if self._spans.get(offset) != (size, owner):
            raise RemoteProtocolError(f"client {owner} returned {size} bytes at {offset}, which are no span of its own")
        self._forget(offset)
        self._let_go(offset, offset + size, now)

    def adopt(self, owner: int, live: Iterable[tuple[int, int]], now: float) -> None:
        """`owner` has died: its spans are free, but for the granules with `live` regions, which are the node's now.

        live: (offset, size) of each sealed object of the dead that others hold; each ends with `free_region`. Regions
        outside of the owner's spans are ignored, for the dead cannot be asked.
        """
        for offset, size in live:
            if self.owns(owner, offset, size):
                for granule in self._granules(offset, size):
                    self._adopted[granule] = self._adopted.get(granule, 0) + 1
        for start in [start for start, (_, whose) in self._spans.items() if whose == owner]:
            size, _ = self._spans[start]
            self._forget(start)
            for granule in self._granules(start, size):
                if granule not in self._adopted:
                    self._let_go(granule * self.granularity, (granule + 1) * self.granularity, now)

    def free_region(self, offset: int, size: int, now: float) -> None:
        """Nobody holds this adopted region any more."""
        for granule in self._granules(offset, size):
            regions = self._adopted.get(granule, 0)
            if regions > 1:
                self._adopted[granule] = regions - 1
            elif regions:
                del self._adopted[granule]
                self._let_go(granule * self.granularity, (granule + 1) * self.granularity, now)

    def unbacked(self, offset: int, size: int) -> list[tuple[int, int]]:
        """(offset, size) of each part that the kernel has given no memory for."""
        return [(start, stop - start) for start, stop in self._backed.outside(offset, offset + size)]

    def mark_backed(self, offset: int, size: int) -> None:
        """The kernel has given memory for this."""
        self._backed.add(offset, offset + size)

    def punchable(self, now: float, low_water_bytes: int, idle_s: float) -> list[tuple[int, int]]:
        """(offset, size) of backed memory that nobody has wanted for `idle_s`, the longest unused first.

        So much free memory as `low_water_bytes` stays backed, ready for the next request.
        """
        pieces = sorted((since, start, stop) for start, stop, since in self._idle if since <= now - idle_s)
        spare = sum(b - a for start, stop in self._free for a, b in self._backed.within(start, stop)) - low_water_bytes
        found = []
        for _, start, stop in pieces:
            for a, b in self._backed.within(start, stop):
                size = min(b - a, spare // self.granularity * self.granularity)
                if size > 0:
                    found.append((a, size))
                    spare -= size
        return found

    def mark_punched(self, offset: int, size: int) -> None:
        """The kernel has taken this memory back."""
        self._backed.remove(offset, offset + size)

    def validate(self) -> None:
        """Assert that every byte of the arena has one owner or is free."""
        spans = sorted((start, start + size) for start, (size, _) in self._spans.items())
        assert [start for start, _ in spans] == self._starts, "the sorted list of spans lists other spans"
        assert all(count > 0 for count in self._adopted.values()), "an adopted granule holds nothing"
        unit = self.granularity
        adopted = [(granule * unit, (granule + 1) * unit) for granule in self._adopted]
        parts = sorted([*spans, *adopted, *self._free])
        assert [start for start, _ in parts] == [0, *(stop for _, stop in parts)][:-1], "parts overlap or leave gaps"
        assert parts[-1][1] == self.capacity_bytes, "parts end elsewhere than the arena"
        idle = Ranges()
        for start, stop, _ in self._idle:
            idle.add(start, stop)
        assert list(idle) == list(self._free) and idle.total == self._free.total, "the idle list forgot a free range"
        assert sum(stop - start for start, stop, _ in self._idle) == self._free.total, "idle pieces overlap"

    def _granules(self, offset: int, size: int) -> range:
        return range(offset // self.granularity, -(-(offset + size) // self.granularity))

    def _forget(self, offset: int) -> None:
        del self._spans[offset]
        del self._starts[bisect_left(self._starts, offset)]

    def _let_go(self, start: int, stop: int, now: float) -> None:
        self._free.add(start, stop)
        if self._idle and self._idle[-1][1:] == (start, now):  # granules of one dead owner, one after another
            start = self._idle.pop()[0]
        self._idle.append((start, stop, now))


def _outside(start: int, stop: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """What of `start`..`stop` is not in `first`..`last`."""
    if first >= stop or last <= start:
        yield start, stop
        return
    if start < first:
        yield start, first
    if last < stop:
        yield last, stop


def _without(pieces: Iterable[tuple[int, int, float]], start: int, stop: int) -> Iterator[tuple[int, int, float]]:
    """The pieces, less everything from `start` to `stop`."""
    for a, b, since in pieces:
        if a < start:
            yield a, min(b, start), since
        if b > stop:
            yield max(a, stop), b, since
