"""Sums over sets: they depend on the set alone, and a change costs a few additions."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.crdt.ranges import ALL, DEPTH_MAX, EMPTY, Ranges, children_of, depth_of, is_prefix, span

LAST = (1 << 64) - 1
# Places that crowd in a few corners, so that small examples share prefixes of every length.
places = st.one_of(
    st.integers(0, LAST), st.integers(0, 40), st.integers(LAST - 20, LAST), st.integers(0, 40).map(lambda n: n << 52)
)
hashes = st.integers(0, 3).map(lambda n: bytes([n]) * 16)
items = st.tuples(places, hashes)
prefixes = st.builds(lambda place, depth: 1 << 4 * depth | place >> 64 - 4 * depth, places, st.integers(0, DEPTH_MAX))


def filled(*sets: object) -> Ranges:
    ranges = Ranges()
    for each in sets:
        for place, hash in each:  # type: ignore[attr-defined]
            ranges.add(place, hash)
    return ranges


def scattered(count: int, seed: int) -> list[tuple[int, bytes]]:
    rng = Random(seed)
    return [(rng.getrandbits(64), rng.randbytes(16)) for _ in range(count)]


@given(st.sets(items, max_size=60), st.sets(items, max_size=60), st.randoms(use_true_random=False))
def test_sums_are_those_of_the_set_whatever_was_done_in_whatever_order(
    kept: set[tuple[int, bytes]], removed: set[tuple[int, bytes]], rng: Random
) -> None:
    removed -= kept
    one = filled(sorted(kept))
    both = [*kept, *removed]
    rng.shuffle(both)
    other = filled(both, kept)
    for item in removed:
        other.remove(*item)
    one.validate()
    other.validate()
    assert one.items(ALL) == other.items(ALL) == sorted(kept)
    assert one.root() == other.root()
    assert one.children(ALL) == other.children(ALL)


@given(st.sets(items, max_size=60), prefixes, st.one_of(st.just(0), places))
def test_a_prefix_has_the_items_whose_places_begin_with_it(
    known: set[tuple[int, bytes]], prefix: int, since: int
) -> None:
    ranges, depth = filled(known), depth_of(prefix)
    expected = sorted(item for item in known if item[0] >= since and f"1{item[0]:016x}"[: depth + 1] == f"{prefix:x}")
    assert ranges.items(prefix, since) == expected
    assert ranges.count(prefix, since) == len(expected)
    if not since:
        assert (ranges.fingerprint(prefix) == EMPTY) == (not expected)


def test_large_sets_have_the_sums_of_small_ones() -> None:
    """The same range in a set of 5,000, where sums are kept, and alone, where they are made when asked for."""
    items = scattered(5_000, seed=1)
    crowd = [(0xABC << 52 | place >> 12, hash) for place, hash in scattered(3_000, seed=2)]
    large = filled(items, crowd)
    large.validate()
    for prefix in (0x1A, 0x1AB, 0x1ABC, 0x1ABC7, 0x10, 0x1FFF):
        alone = filled(large.items(prefix))
        assert alone.fingerprint(prefix) == large.fingerprint(prefix)
        assert alone.children(prefix) == large.children(prefix)
        assert alone.root() != large.root()
    for item in crowd:
        large.remove(*item)
    large.validate()
    assert large.root() == filled(items).root()


@given(st.sets(items, min_size=1, max_size=40), items)
def test_sets_that_differ_by_one_item_differ_in_its_prefixes_alone(
    known: set[tuple[int, bytes]], item: tuple[int, bytes]
) -> None:
    one, other = filled(known - {item}), filled(known | {item})
    assert one.root() != other.root()
    for depth in range(DEPTH_MAX):
        prefix = 1 << 4 * depth | item[0] >> 64 - 4 * depth
        differing = [a for a, b in zip(one.children(prefix), other.children(prefix)) if a != b]
        assert len(differing) == 1


def test_a_replaced_item_is_as_if_the_new_one_had_been_there_first() -> None:
    ranges = filled([(5, b"a" * 16), (6, b"b" * 16)])
    ranges.replace(5, b"a" * 16, b"c" * 16)
    assert ranges.root() == filled([(5, b"c" * 16), (6, b"b" * 16)]).root()
    with pytest.raises(KeyError):
        ranges.replace(5, b"a" * 16, b"d" * 16)
    with pytest.raises(KeyError):
        ranges.remove(7, b"a" * 16)
    ranges.validate()
    assert len(ranges) == 2


def test_a_thousand_items_at_one_place_are_kept_apart() -> None:
    ranges = filled([(7, number.to_bytes(16, "big")) for number in range(1_000)], scattered(100, seed=3))
    ranges.validate()
    for number in range(1_000):
        ranges.remove(7, number.to_bytes(16, "big"))
    ranges.validate()
    assert ranges.root() == filled(scattered(100, seed=3)).root()


def test_a_prefix_covers_what_its_children_cover() -> None:
    assert span(ALL) == (0, LAST)
    assert span(0x1A3) == (0xA3 << 56, (0xA4 << 56) - 1)
    for prefix in (ALL, 0x1A3, 0x1FFFF):
        spans = [span(child) for child in children_of(prefix)]
        assert (spans[0][0], spans[-1][1]) == span(prefix)
        assert all(before[1] + 1 == after[0] for before, after in pairwise(spans))
    known = [number for number in range(-5, 300) if is_prefix(number)]
    assert known == [1, *range(16, 32), *range(256, 300)]
    assert is_prefix(1 << 60) and not is_prefix(1 << 64)


def test_small_sets_keep_one_sum() -> None:
    assert len(filled(scattered(64, seed=4))._sums) == 1
    assert len(filled(scattered(65, seed=4))._sums) == 17
