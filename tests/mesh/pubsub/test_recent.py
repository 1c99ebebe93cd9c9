"""What a peer remembers of publications stays bounded, and forgets nothing that could come again."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh import recent as r
from lattica.mesh.identity import PeerId
from lattica.mesh.publications import Publication
from lattica.mesh.recent import Recent, Seen
from tests.mesh.pubsub.examples import ANN, BOB


def of(number: int, size: int = 0, publisher: PeerId = ANN.peer, age_ms: int = 0) -> Publication:
    return Publication(publisher, 1, number, "steps", bytes(size), bytes(64), age_ms)


@given(st.lists(st.integers(1, 60), unique=True))
def test_within_the_window_a_number_is_seen_if_it_was(numbers: list[int]) -> None:
    seen = Seen()
    for number in numbers:
        assert not seen.has((ANN.peer, 1, number))
        seen.add((ANN.peer, 1, number), 0.0)
    assert [number for number in range(1, 61) if seen.has((ANN.peer, 1, number))] == sorted(numbers)


@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0, 50)), max_size=80))
def test_what_was_seen_once_is_seen_for_ever(steps: list[tuple[int, float]]) -> None:
    seen, now, known = Seen(), 0.0, set()
    for number, pause_s in steps:
        now += pause_s
        id = ANN.peer, 1, number
        assert seen.has(id) or id not in known
        if not seen.has(id):
            seen.add(id, now)
        known.add(id)
        assert all(map(seen.has, known))


def test_a_gap_is_given_up_after_a_while() -> None:
    seen = Seen()
    seen.add((ANN.peer, 1, 7), 0.0)
    seen.add((ANN.peer, 1, 9), 1.0)
    assert not seen.has((ANN.peer, 1, 6))
    seen.add((ANN.peer, 1, 10), r.SEEN_S)
    assert seen.has((ANN.peer, 1, 6)) and not seen.has((ANN.peer, 1, 8)) and seen.has((ANN.peer, 1, 9))


def test_of_a_publisher_that_leaves_gaps_no_more_than_so_many_numbers_are_kept() -> None:
    seen = Seen()
    for number in range(1, 6 * r.ABOVE_MAX, 2):
        seen.add((ANN.peer, 1, number), 0.0)
    assert len(seen._publishers[ANN.peer][1].above) <= r.ABOVE_MAX
    assert all(seen.has((ANN.peer, 1, number)) for number in range(1, 6 * r.ABOVE_MAX, 2))


def test_an_old_boot_of_a_publisher_with_many_is_taken_for_seen() -> None:
    seen = Seen()
    for boot in range(10, 10 + r.BOOTS_MAX):
        assert not seen.has((ANN.peer, boot, 1))
        seen.add((ANN.peer, boot, 1), 0.0)
    assert seen.has((ANN.peer, 9, 1)) and not seen.has((ANN.peer, 20, 1))
    seen.add((ANN.peer, 20, 1), 0.0)
    assert seen.has((ANN.peer, 10, 1)) and seen.has((ANN.peer, 10, 99)), "what that process said is gone with it"


def test_beyond_so_many_publishers_the_one_that_was_silent_for_longest_is_forgotten() -> None:
    seen = Seen()
    seen.add((ANN.peer, 1, 1), 0.0)
    seen.add((BOB.peer, 1, 1), 0.0)
    seen.add((ANN.peer, 1, 2), 0.0)
    for number in range(r.PUBLISHERS_MAX - 1):
        seen.add((PeerId(number.to_bytes(32, "big")), 1, 1), 0.0)
    assert len(seen) == r.PUBLISHERS_MAX
    assert seen.has((ANN.peer, 1, 1)) and not seen.has((BOB.peer, 1, 1))


@pytest.mark.parametrize("size", [0, 60_000])
def test_a_publisher_that_publishes_too_much_fills_its_own_share_only(size: int) -> None:
    recent = Recent()
    assert recent.add(of(1, publisher=BOB.peer), 0.0)
    taken = sum(recent.add(of(number, size), 0.0) for number in range(1, 3000))
    assert taken == min(r.LATE * r.PUBLISHED_MAX, r.LATE * r.PUBLISHED_MAX_BYTES // (size + r.OVERHEAD_BYTES))
    assert recent.get((BOB.peer, 1, 1), 0.0) is not None
    recent.validate()


def test_when_all_together_publish_too_much_the_first_that_came_goes() -> None:
    recent = Recent()
    publishers = [PeerId(Random(number).randbytes(32)) for number in range(20)]
    for publisher in publishers:
        for number in range(1, 33):
            assert recent.add(of(number, 60_000, publisher), 0.0)
            recent.validate()
    assert recent.get((publishers[0], 1, 1), 0.0) is None and recent.get((publishers[-1], 1, 1), 0.0) is not None
    recent.expire(r.REPAIR_S)
    recent.validate()
    assert not len(recent) and not recent.size_bytes


def test_what_is_kept_is_passed_on_with_its_age_until_it_is_too_old() -> None:
    recent = Recent()
    recent.add(of(1, age_ms=2000), 100.0)
    found = recent.get((ANN.peer, 1, 1), 103.0)
    assert found is not None and found.age_ms == 5000
    assert recent.get((ANN.peer, 1, 1), 98.0 + r.REPAIR_S) is None
