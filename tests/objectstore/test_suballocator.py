"""A process divides its spans: nothing overlaps, nothing is lost, and freed memory is used again."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lattica.objectstore.suballocator import (
    ALIGN_BYTES,
    GRANULE_BYTES,
    LARGE_BYTES,
    SPAN_BYTES_MAX,
    SPAN_BYTES_MIN,
    Suballocator,
    span_bytes_for,
)

MIB = 1 << 20
sizes = st.one_of(
    st.integers(0, 5000),
    st.integers(0, 3 * MIB),
    st.sampled_from([LARGE_BYTES, LARGE_BYTES + 100, 40 * MIB, 100 * MIB, 130 * MIB]),
)


class SuballocatorMachine(RuleBasedStateMachine):
    """Beside the allocator stands a plain list of what was granted and what was handed out."""

    def __init__(self) -> None:
        super().__init__()
        self.heap = Suballocator()
        self.spans: dict[int, int] = {}
        self.objects: dict[int, int] = {}
        self.swept_before: set[int] = set()
        self.used_since: set[int] = set()
        self.top = 0

    @initialize()
    def first_span(self) -> None:
        self.add_span(8 * MIB, gap=False)

    @rule(size=st.sampled_from([8 * MIB, 16 * MIB, 64 * MIB, 66 * MIB, 130 * MIB]), gap=st.booleans())
    def add_span(self, size: int, gap: bool) -> None:
        self.top += GRANULE_BYTES if gap else 0
        self.heap.add_span(self.top, size)
        self.spans[self.top] = size
        self.top += size

    def span_of(self, offset: int) -> int:
        return next(start for start, size in self.spans.items() if start <= offset < start + size)

    def gaps(self, start: int) -> list[int]:
        """Sizes of the free pieces of a span, from the model alone."""
        end, found = start, []
        for at in sorted(offset for offset in self.objects if start <= offset < start + self.spans[start]):
            found.append(at - end)
            end = at + self.objects[at]
        return [*found, start + self.spans[start] - end]

    @rule(size=sizes)
    def allocate(self, size: int) -> None:
        largest = max(
            (
                gap
                for start, length in self.spans.items()
                if size >= LARGE_BYTES or length <= SPAN_BYTES_MAX
                for gap in self.gaps(start)
            ),
            default=0,
        )
        offset = self.heap.allocate(size)
        if offset is None:
            assert largest < max(size, 1), "there was room"
            return
        assert offset % ALIGN_BYTES == 0
        start = self.span_of(offset)
        assert offset + size <= start + self.spans[start], "an object crosses the edge of its span"
        assert size >= LARGE_BYTES or self.spans[start] <= SPAN_BYTES_MAX, "a small object lies in a large span"
        taken = self.heap._used[offset].size
        assert taken >= size
        assert taken - size < (GRANULE_BYTES if size >= LARGE_BYTES else 2 * ALIGN_BYTES)
        for other, length in self.objects.items():
            assert offset + taken <= other or other + length <= offset, "two objects overlap"
        self.objects[offset] = taken
        self.used_since.add(start)

    @precondition(lambda self: self.objects)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.objects)))
        del self.objects[offset]
        self.heap.free(offset)
        self.used_since.add(self.span_of(offset))

    @precondition(lambda self: self.heap.empty_spans())
    @rule(data=st.data())
    def remove_span(self, data: st.DataObject) -> None:
        offset, size = data.draw(st.sampled_from(self.heap.empty_spans()))
        assert self.spans.pop(offset) == size
        self.heap.remove_span(offset)

    @rule()
    def sweep(self) -> None:
        swept = self.heap.sweep()
        assert set(swept) <= set(self.heap.empty_spans())
        assert not {start for start, _ in swept} & self.used_since, "returned a span that was used a moment ago"
        assert {start for start, _ in self.heap.empty_spans()} & self.swept_before - self.used_since <= set(dict(swept))
        self.swept_before, self.used_since = set(self.spans), set()

    @invariant()
    def adds_up(self) -> None:
        self.heap.validate()
        assert self.heap.used_bytes == sum(self.objects.values())
        assert self.heap.span_bytes == sum(self.spans.values())
        assert self.heap.largest_free_bytes == max((max(self.gaps(start)) for start in self.spans), default=0)
        assert sorted(self.heap.empty_spans()) == sorted(
            (start, size) for start, size in self.spans.items() if self.gaps(start) == [size]
        )


TestSuballocator = SuballocatorMachine.TestCase


def heap_with(*spans: int) -> Suballocator:
    heap, top = Suballocator(), 0
    for size in spans:
        heap.add_span(top, size)
        top += size
    return heap


def fill(heap: Suballocator, size: int, count: int) -> list[int]:
    """Allocate as a process does: what does not fit is asked of the node, which has the whole arena."""
    offsets = []
    for _ in range(count):
        offset = heap.allocate(size)
        if offset is None:
            heap.add_span(1 << 40 | heap.span_bytes, span_bytes_for(size, heap.span_bytes))
            offset = heap.allocate(size)
        assert offset is not None
        offsets.append(offset)
    return offsets


@pytest.mark.parametrize(("size", "count"), [(MIB + 200, 200), (100 * MIB + 200, 5), (1 << 30, 1), (LARGE_BYTES, 9)])
def test_a_second_round_of_the_same_objects_needs_no_new_span(size: int, count: int) -> None:
    heap = Suballocator()
    for offset in fill(heap, size, count):
        heap.free(offset)
    granted = heap.span_bytes
    assert granted <= 1.5 * size * count + SPAN_BYTES_MAX
    for _ in range(3):
        offsets = fill(heap, size, count)
        assert heap.span_bytes == granted
        for offset in reversed(offsets):
            heap.free(offset)


def test_what_was_freed_last_is_given_first() -> None:
    heap = heap_with(8 * MIB)
    offsets = [heap.allocate(1000) for _ in range(9)]
    for offset in offsets[1:8:2]:
        heap.free(offset)
    assert heap.allocate(1000) == offsets[7]
    assert heap.allocate(1000) == offsets[5]


def test_small_objects_leave_the_free_span_of_a_large_one_alone() -> None:
    heap = heap_with(1 << 30)
    assert heap.allocate(100_000) is None
    assert heap.allocate(LARGE_BYTES) is not None


def test_a_large_object_takes_the_rest_of_its_last_granule_along() -> None:
    heap = heap_with(102 * MIB)
    heap.allocate(100 * MIB + 300)
    assert heap.largest_free_bytes == 0


def test_every_block_of_the_right_bin_is_tried_before_more_is_asked_for() -> None:
    """Two free blocks share a bin (their sizes differ by less than 1/32); the newer one is too short."""
    heap = heap_with(8 * MIB)
    long, _, short, *_ = [heap.allocate(size) for size in (130 * 64, 64, 128 * 64, 64)]
    filler = heap.allocate(heap.largest_free_bytes)
    assert filler is not None and heap.allocate(64) is None
    heap.free(long)
    heap.free(short)
    assert heap.allocate(129 * 64) == long + ALIGN_BYTES, "an object lies at the end of the block it comes from"


def test_a_span_is_returned_only_after_it_was_empty_for_a_whole_round() -> None:
    heap = heap_with(8 * MIB)
    assert heap.sweep() == []
    assert heap.sweep() == [(0, 8 * MIB)]
    offset = heap.allocate(100)
    assert heap.empty_spans() == heap.sweep() == []
    heap.free(offset)
    assert heap.empty_spans() == [(0, 8 * MIB)]
    assert heap.sweep() == []
    assert heap.sweep() == [(0, 8 * MIB)]


def test_a_process_asks_for_twice_as_much_each_time_up_to_a_bound() -> None:
    held, asked = 0, []
    for _ in range(6):
        asked.append(span_bytes_for(MIB, held))
        held += asked[-1]
    assert [size // MIB for size in asked] == [8, 8, 16, 32, 64, 64]
    assert span_bytes_for(12 * MIB, 0) == 12 * MIB
    assert span_bytes_for(100 * MIB + 1, 0) == 102 * MIB
    assert span_bytes_for(0, 0) == SPAN_BYTES_MIN


def test_freeing_what_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        heap_with(8 * MIB).free(0)
