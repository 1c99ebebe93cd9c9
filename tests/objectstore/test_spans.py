"""The node deals out the arena: every granule has one owner or is free, and memory that is there is used first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lattica.codec.messages import NODE
from lattica.errors import RemoteProtocolError
from lattica.objectstore.spans import Ranges, SpanAllocator
from lattica.objectstore.suballocator import GRANULE_BYTES

UNIT = 64
GRANULES = 40

edges = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted).filter(lambda pair: pair[0] < pair[1])


@given(st.lists(st.tuples(st.booleans(), edges)), edges)
def test_ranges_are_sets_of_integers(changes: list[tuple[bool, list[int]]], window: list[int]) -> None:
    ranges, model = Ranges(), set()
    for put, (start, stop) in changes:
        if put:
            ranges.add(start, stop)
            model |= set(range(start, stop))
        else:
            ranges.remove(start, stop)
            model -= set(range(start, stop))
        assert {number for pair in ranges for number in range(*pair)} == model
        assert ranges.total == len(model)
        flat = [edge for pair in ranges for edge in pair]
        assert flat == sorted(set(flat)), "ranges touch or overlap"
    inside = set(range(*window))
    assert {number for pair in ranges.within(*window) for number in range(*pair)} == model & inside
    assert {number for pair in ranges.outside(*window) for number in range(*pair)} == inside - model


class SpanMachine(RuleBasedStateMachine):
    """Beside the allocator stands an owner per granule and a set of backed granules."""

    def __init__(self) -> None:
        super().__init__()
        self.spans = SpanAllocator(GRANULES * UNIT, UNIT)
        self.owner: list[int | None] = [None] * GRANULES
        self.backed: set[int] = set()
        self.granted: dict[int, tuple[int, int]] = {}
        self.regions: list[tuple[int, int]] = []
        self.freed_at = [0.0] * GRANULES
        self.now = 0.0

    def granules(self, offset: int, size: int) -> range:
        return range(offset // UNIT, -(-(offset + size) // UNIT))

    @rule(seconds=st.floats(0.5, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(size=st.integers(1, 12 * UNIT), owner=st.integers(1, 4), back=st.booleans())
    def allocate(self, size: int, owner: int, back: bool) -> None:
        count = -(-size // UNIT)
        runs = [i for i in range(GRANULES - count + 1) if all(who is None for who in self.owner[i : i + count])]
        offset = self.spans.allocate(size, owner)
        if offset is None:
            assert not runs, "there was room"
            return
        first = offset // UNIT
        assert first in runs
        cold = {i: len(set(range(i, i + count)) - self.backed) for i in runs}
        assert cold[first] == min(cold.values()), "a place with more backed memory was free"
        self.owner[first : first + count] = [owner] * count
        self.granted[offset] = (count * UNIT, owner)
        expected = set(range(first, first + count)) - self.backed
        parts = self.spans.unbacked(offset, count * UNIT)
        assert [i for part in parts for i in self.granules(*part)] == sorted(expected)
        if back:
            for part in parts:
                self.spans.mark_backed(*part)
            self.backed |= expected

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.granted)))
        size, owner = self.granted.pop(offset)
        self.spans.release(offset, size, owner, self.now)
        for i in self.granules(offset, size):
            self.owner[i], self.freed_at[i] = None, self.now

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted({owner for _, owner in self.granted.values()})))
        live = []
        for offset, (size, whose) in list(self.granted.items()):
            if whose == owner:
                del self.granted[offset]
                cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=6, unique=True)))
                live += [(offset + a, b - a) for a, b in zip(cuts[::2], cuts[1::2])]
                for i in self.granules(offset, size):
                    self.owner[i], self.freed_at[i] = None, self.now
        self.spans.adopt(owner, live, self.now)
        self.regions += live
        for region in live:
            for i in self.granules(*region):
                self.owner[i] = NODE

    @precondition(lambda self: self.regions)
    @rule(data=st.data())
    def free_region(self, data: st.DataObject) -> None:
        region = self.regions.pop(data.draw(st.integers(0, len(self.regions) - 1)))
        self.spans.free_region(*region, self.now)
        still = {i for other in self.regions for i in self.granules(*other)}
        for i in self.granules(*region):
            if i not in still:
                self.owner[i], self.freed_at[i] = None, self.now

    @rule(low=st.integers(0, GRANULES).map(lambda n: n * UNIT), idle_s=st.floats(0, 10), punch=st.booleans())
    def punch(self, low: int, idle_s: float, punch: bool) -> None:
        free_backed = [i for i in self.backed if self.owner[i] is None]
        old = {i for i in free_backed if self.freed_at[i] <= self.now - idle_s}
        parts = self.spans.punchable(self.now, low, idle_s)
        found = [i for part in parts for i in self.granules(*part)]
        assert len(found) == len(set(found)) == max(0, min(len(old), len(free_backed) - low // UNIT))
        assert set(found) <= old
        left = old - set(found)
        assert not left or max((self.freed_at[i] for i in found), default=0) <= min(self.freed_at[i] for i in left)
        if punch:
            for part in parts:
                self.spans.mark_punched(*part)
            self.backed -= set(found)

    @invariant()
    def adds_up(self) -> None:
        spans = self.spans
        spans.validate()
        free = [i for i in range(GRANULES) if self.owner[i] is None]
        assert (spans.free_bytes, spans.backed_bytes) == (len(free) * UNIT, len(self.backed) * UNIT)
        assert spans.used_bytes + spans.free_bytes == spans.capacity_bytes
        owned = {who: self.owner.count(who) * UNIT for who in set(self.owner) if who is not None}
        assert spans.owners() == owned
        for offset, (size, owner) in self.granted.items():
            assert spans.owns(owner, offset, size) and spans.owns(owner, offset + size - 1, 1)
            assert not spans.owns(owner, offset, size + 1) and not spans.owns(owner + 1, offset, size)


TestSpanAllocator = SpanMachine.TestCase


def test_a_span_that_comes_back_is_granted_again_before_new_memory_is_taken() -> None:
    spans = SpanAllocator(100 * GRANULE_BYTES)
    first, second = (spans.allocate(8 * GRANULE_BYTES, 1) for _ in range(2))
    spans.mark_backed(second, 8 * GRANULE_BYTES)
    spans.release(first, 8 * GRANULE_BYTES, 1, now=1.0)
    spans.release(second, 8 * GRANULE_BYTES, 1, now=1.0)
    assert spans.allocate(8 * GRANULE_BYTES, 2) == second
    assert spans.unbacked(second, 8 * GRANULE_BYTES) == []


def test_regions_of_the_dead_that_share_a_granule_keep_it_until_both_are_free() -> None:
    spans = SpanAllocator(10 * GRANULE_BYTES)
    assert spans.allocate(4 * GRANULE_BYTES, 7) == 0
    spans.adopt(7, [(100, 50), (200, 50), (3 * GRANULE_BYTES, 10)], now=1.0)
    assert spans.owners() == {NODE: 2 * GRANULE_BYTES}
    spans.free_region(100, 50, now=2.0)
    assert spans.owners() == {NODE: 2 * GRANULE_BYTES}
    spans.free_region(200, 50, now=3.0)
    spans.free_region(3 * GRANULE_BYTES, 10, now=4.0)
    assert spans.owners() == {} and spans.free_bytes == spans.capacity_bytes
    spans.validate()


@pytest.mark.parametrize(("offset", "size", "owner"), [(0, 128, 2), (0, 64, 1), (64, 64, 1), (640, 64, 1)])
def test_returning_what_was_not_granted_is_the_clients_error_and_changes_nothing(
    offset: int, size: int, owner: int
) -> None:
    spans = SpanAllocator(20 * UNIT, UNIT)
    spans.allocate(2 * UNIT, 1)
    with pytest.raises(RemoteProtocolError, match=f"client {owner} returned"):
        spans.release(offset, size, owner, now=0.0)
    spans.validate()
    assert spans.owners() == {1: 2 * UNIT}


def test_regions_that_the_dead_never_owned_are_ignored() -> None:
    spans = SpanAllocator(20 * UNIT, UNIT)
    spans.allocate(2 * UNIT, 1)
    spans.allocate(2 * UNIT, 2)
    spans.adopt(2, [(0, 64), (19 * UNIT, 200)], now=0.0)
    assert spans.owners() == {1: 2 * UNIT}
    spans.validate()


def test_what_is_kept_for_another_is_not_granted() -> None:
    spans = SpanAllocator(8 * GRANULE_BYTES)
    kept = (2 * GRANULE_BYTES, 6 * GRANULE_BYTES)
    found = [spans.allocate(GRANULE_BYTES, 1, kept) for _ in range(5)]
    assert found[4] is None and {at // GRANULE_BYTES for at in found if at is not None} == {0, 1, 6, 7}
    assert spans.allocate(4 * GRANULE_BYTES, 2) == 2 * GRANULE_BYTES
    spans.validate()
