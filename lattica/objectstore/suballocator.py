"""How a process divides the spans it was granted, without asking anybody.

Two-level segregated fit: free blocks lie in bins by size, 32 bins to each power of two, and a bitmap tells which bins
are not empty, so `allocate` and `free` take constant time. Within a bin the last freed block comes first: its bytes
are the likeliest to be in a cache. Blocks are at most 1/32 larger than a best fit.
Source: Masmano, Ripoll, Crespo, Real, "TLSF: a new dynamic memory allocator for real-time systems" (2004), §3.

Rules of this file: a block never crosses the edge of a span. Spans longer than SPAN_BYTES_MAX were granted for large
objects, and only large ones enter them: 100 KiB in the span of a dead 1 GiB would keep the whole from being used again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

GRANULE_BYTES = 2 << 20
"""Spans are multiples of this. Larger: more waste per worker; smaller: more system calls per byte, and more ranges."""

ALIGN_BYTES = 64
"""A cache line, and the widest vector load (AVX-512): objects and their buffers begin at multiples of it."""

SPAN_BYTES_MIN = 8 << 20
"""First span of a process: 80 of the smallest values that do not travel inside messages."""

SPAN_BYTES_MAX = 64 << 20
"""Spans for small objects double up to this: 200 values of 1 MiB take 7 requests, and little memory lies idle."""

LARGE_BYTES = 16 << 20
"""Objects from here on get spans of their own, with whatever the rounding to granules leaves over."""

_UNIT_BITS = 6  # sizes are counted in units of ALIGN_BYTES
_STEP_BITS = 5  # 2^5 bins to a power of two; below 2 * 2^5 units each size has a bin of its own
_USED = -1


def rounded(size: int, unit: int) -> int:
    """`size` rounded up to a positive multiple of `unit`."""
    return -(-size // unit) * unit or unit


def span_bytes_for(size: int, held_bytes: int) -> int:
    """How much to ask the node for when `size` bytes do not fit into the `held_bytes` of spans that the process has."""
    if size >= LARGE_BYTES:
        return rounded(size, GRANULE_BYTES)
    return max(rounded(size, GRANULE_BYTES), SPAN_BYTES_MIN, min(rounded(held_bytes, GRANULE_BYTES), SPAN_BYTES_MAX))


class _Block:
    """A piece of a span, free or one object; its neighbours in the span are `before` and `after`."""

    __slots__ = ("after", "before", "bin", "bins", "size", "start")

    def __init__(self, start: int, size: int, bins: _Bins, before: _Block | None, after: _Block | None) -> None:
        self.start, self.size, self.bins, self.before, self.after = start, size, bins, before, after
        self.bin = _USED  # where it lies while it is free


class _Bins:
    """Free blocks by size."""

    __slots__ = ("bitmap", "blocks")

    def __init__(self) -> None:
        self.blocks: dict[int, dict[_Block, None]] = {}  # bin -> its blocks, the last freed one last
        self.bitmap = 0  # bit b: bin b is not empty

    def put(self, block: _Block) -> None:
        units = block.size >> _UNIT_BITS
        shift = units.bit_length() - _STEP_BITS - 1
        block.bin = bin = units if shift <= 0 else (shift << _STEP_BITS) + (units >> shift)
        blocks = self.blocks.get(bin)
        if blocks:
            blocks[block] = None
            return
        self.bitmap |= 1 << bin
        if blocks is None:
            self.blocks[bin] = {block: None}
        else:
            blocks[block] = None

    def remove(self, block: _Block) -> None:
        bin, block.bin = block.bin, _USED
        blocks = self.blocks[bin]
        del blocks[block]
        if not blocks:
            self.bitmap ^= 1 << bin

    def resize(self, block: _Block, size: int) -> None:
        block.size = size
        units = size >> _UNIT_BITS
        shift = units.bit_length() - _STEP_BITS - 1
        if block.bin != (units if shift <= 0 else (shift << _STEP_BITS) + (units >> shift)):
            self.remove(block)
            self.put(block)

    def find(self, size: int) -> _Block | None:
        """A block of at least `size`: the newest of its own bin if that is long enough, else of the next larger one."""
        units = size >> _UNIT_BITS
        shift = units.bit_length() - _STEP_BITS - 1
        bin = units if shift <= 0 else (shift << _STEP_BITS) + (units >> shift)
        own = self.blocks.get(bin)
        if own:
            block = next(reversed(own))
            if block.size >= size:
                return block
        larger = self.bitmap >> bin + 1
        if larger:
            return next(reversed(self.blocks[bin + (larger & -larger).bit_length()]))
        if own:  # all others of the own bin, before the process has to ask for more
            return next((block for block in reversed(own) if block.size >= size), None)
        return None

    def largest(self) -> int:
        return max(block.size for block in self.blocks[self.bitmap.bit_length() - 1]) if self.bitmap else 0


class Suballocator:
    """Divides the spans of one process. Not thread-safe. Sizes are rounded up to ALIGN_BYTES."""

    def __init__(self) -> None:
        self._small, self._large = _Bins(), _Bins()
        self._spans: dict[int, _Block] = {}  # offset -> first block
        self._sizes: dict[int, int] = {}  # offset of a span -> its size
        self._used: dict[int, _Block] = {}
        self._empty: dict[int, int] = {}  # offset of an empty span -> round of `sweep` in which it became so
        self._round = 0
        self.used_bytes = 0
        self.span_bytes = 0

    def __repr__(self) -> str:
        used, of = self.used_bytes >> 20, self.span_bytes >> 20
        return f"<Suballocator {len(self._used)} objects, {used} of {of} MiB in {len(self._spans)} spans>"

    @property
    def largest_free_bytes(self) -> int:
        """The largest object that can be allocated now."""
        return max(self._small.largest(), self._large.largest())

    def fits(self, size: int) -> bool:
        """Whether `allocate` would find room."""
        size = (size + ALIGN_BYTES - 1) & -ALIGN_BYTES or ALIGN_BYTES
        return self._small.find(size) is not None or (size >= LARGE_BYTES and self._large.find(size) is not None)

    def add_span(self, offset: int, size: int) -> None:
        """The node has granted this span."""
        assert offset % ALIGN_BYTES == 0 and size % ALIGN_BYTES == 0 and size > 0, "spans are aligned"
        block = _Block(offset, size, self._large if size > SPAN_BYTES_MAX else self._small, None, None)
        self._spans[offset], self._sizes[offset] = block, size
        self._empty[offset] = self._round
        self.span_bytes += size
        block.bins.put(block)

    def remove_span(self, offset: int) -> None:
        """The span, which holds nothing, goes back to the node."""
        del self._empty[offset]
        block = self._spans.pop(offset)
        self.span_bytes -= self._sizes.pop(offset)
        block.bins.remove(block)

    def empty_spans(self) -> list[tuple[int, int]]:
        """(offset, size) of each span that holds nothing."""
        return [(offset, self._sizes[offset]) for offset in self._empty]

    def sweep(self) -> list[tuple[int, int]]:
        """(offset, size) of each span that has held nothing since the last sweep: called every few seconds by the
        process, these are what it returns. Sooner would cost the next large object its populated memory."""
        self._round += 1
        return [(offset, self._sizes[offset]) for offset, since in self._empty.items() if since < self._round - 1]

    def allocate(self, size: int) -> int | None:
        """Offset of `size` bytes; None if no span has room: ask the node for a span of `span_bytes_for(...)`."""
        size = (size + ALIGN_BYTES - 1) & -ALIGN_BYTES or ALIGN_BYTES
        block = self._small.find(size)
        if block is None and (size < LARGE_BYTES or (block := self._large.find(size)) is None):
            return None
        bins, after = block.bins, block.after
        if after is None and block.before is None:
            del self._empty[block.start]
        rest = block.size - size
        if rest >= (GRANULE_BYTES if size >= LARGE_BYTES else ALIGN_BYTES):
            bins.resize(block, rest)  # it gives from its end, so that mostly it stays in its bin
            block.after = taken = _Block(block.start + rest, size, bins, block, after)
            if after is not None:
                after.before = taken
            block = taken
        else:
            bins.remove(block)
        self._used[block.start] = block
        self.used_bytes += block.size
        return block.start

    def free(self, offset: int) -> None:
        """The object at `offset` is gone. Raises KeyError if there is none."""
        block = self._used.pop(offset)
        bins, before, after, size = block.bins, block.before, block.after, block.size
        self.used_bytes -= size
        if after is not None and after.bin != _USED:
            bins.remove(after)
            size += after.size
            after = after.after
        if before is not None and before.bin != _USED:
            block = before
            bins.resize(block, block.size + size)
        else:
            block.size = size
            bins.put(block)
        block.after = after
        if after is not None:
            after.before = block
        elif block.before is None:
            self._empty[block.start] = self._round

    def validate(self) -> None:
        """Assert that the blocks of each span follow one another, no two free ones touch, and all are known."""
        found: list[_Block] = []
        for start, size in self._sizes.items():
            blocks = list(_chain(self._spans[start]))
            found += blocks
            edges = [start, *(block.start + block.size for block in blocks)]
            assert [block.start for block in blocks] == edges[:-1] and edges[-1] == start + size, "gaps in a span"
            assert [block.before for block in blocks] == [None, *blocks[:-1]], "a block has forgotten its neighbour"
            free = [block.bin != _USED for block in blocks]
            assert not any(a and b for a, b in pairwise(free)), "two free blocks touch"
            assert (start in self._empty) == (free == [True]), "an empty span is not known as such"
        used = {block.start: block for block in found if block.bin == _USED}
        assert used == self._used and sum(block.size for block in used.values()) == self.used_bytes, "objects are lost"
        for bins in (self._small, self._large):
            binned = {block for blocks in bins.blocks.values() for block in blocks}
            assert binned == {block for block in found if block.bin != _USED and block.bins is bins}, "blocks are lost"
            assert sum(1 << bin for bin, blocks in bins.blocks.items() if blocks) == bins.bitmap, (
                "the bitmap knows other bins"
            )
            assert all(block.bin == bin for bin, blocks in bins.blocks.items() for block in blocks), "a wrong bin"


def _chain(block: _Block | None) -> Iterator[_Block]:
    while block is not None:
        yield block
        block = block.after
