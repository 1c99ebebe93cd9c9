"""Clocks of writers: near the wall clock, and later than whatever was given or heard."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lattica.crdt.hlc import AHEAD_MAX_S, COUNTER_BITS, HybridClock, is_ahead, seconds_of

NOW = 1_800_000_000.0
times = st.floats(NOW, NOW + 100)
events = st.lists(st.tuples(st.sampled_from(("stamp", "heard")), times), max_size=30)


def stamp_at(unix_s: float, counter: int = 0) -> int:
    return (int(unix_s * 1000) << COUNTER_BITS) + counter


@given(events)
def test_a_stamp_is_later_than_all_that_were_given_or_heard_whatever_the_wall_clock_does(
    story: list[tuple[str, float]],
) -> None:
    clock, latest = HybridClock(), 0
    for verb, unix_s in story:
        if verb == "stamp":
            given_now = clock.stamp(unix_s)
            assert given_now > latest
            latest = given_now
        else:
            clock.heard(stamp_at(unix_s))
            latest = max(latest, stamp_at(unix_s))


@given(events, times)
def test_a_stamp_is_never_ahead_of_the_latest_wall_clock_by_more_than_its_counter(
    story: list[tuple[str, float]], last: float
) -> None:
    """Who hears nothing from ahead does not run ahead."""
    clock = HybridClock()
    for verb, unix_s in story:
        if verb == "stamp":
            clock.stamp(unix_s)
        else:
            clock.heard(stamp_at(unix_s))
    latest = max([last, *(unix_s for _, unix_s in story)])
    assert clock.stamp(last) <= stamp_at(latest, len(story) + 1)


def test_many_stamps_of_one_millisecond_are_told_apart_by_the_counter() -> None:
    clock = HybridClock()
    stamps = [clock.stamp(NOW) for _ in range(1000)]
    assert stamps == list(range(stamp_at(NOW), stamp_at(NOW) + 1000))
    assert {seconds_of(stamp) for stamp in stamps} == {NOW}


def test_a_counter_that_is_full_goes_on_in_the_next_millisecond() -> None:
    clock = HybridClock()
    clock.heard(stamp_at(NOW, (1 << COUNTER_BITS) - 1))
    assert clock.stamp(NOW) == stamp_at(NOW + 0.001)


def test_an_answer_is_later_than_what_it_answers_though_its_writer_s_clock_is_behind() -> None:
    """Ann's clock is 20 s ahead of Bob's. She writes, Bob reads that and writes over it: his row must win."""
    ann, bob = HybridClock(), HybridClock()
    question = ann.stamp(NOW + 20)
    bob.heard(question)
    assert bob.stamp(NOW) == question + 1


def test_a_stamp_is_too_far_ahead_after_a_minute_and_not_before() -> None:
    assert not is_ahead(stamp_at(NOW + AHEAD_MAX_S), NOW)
    assert is_ahead(stamp_at(NOW + AHEAD_MAX_S + 0.001), NOW)
    assert not is_ahead(0, NOW)


def test_a_clock_says_what_it_shows() -> None:
    clock = HybridClock()
    clock.stamp(NOW)
    assert repr(clock) == "<HybridClock at 1800000000.000>"
