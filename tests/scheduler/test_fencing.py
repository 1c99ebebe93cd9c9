"""Receivers keep the latest life of an actor and refuse earlier ones."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lattica.ids import ActorId
from lattica.scheduler.fencing import Fencing, Life

ACTOR, OTHER = ActorId(b"a" * 16), ActorId(b"b" * 16)
FIRST, AGAIN, THIRD = Life(1, 10), Life(2, 20), Life(3, 30)
MINORITY = Life(1, 20, minority=True)


def on_an_island() -> Fencing:
    fencing = Fencing()
    fencing.island(True)
    return fencing


def test_a_life_is_accepted_until_a_later_one_was_met() -> None:
    fencing = Fencing()
    assert fencing.admit(ACTOR, FIRST) is None
    assert fencing.admit(ACTOR, FIRST) is None
    assert fencing.admit(ACTOR, AGAIN) is None
    assert fencing.admit(ACTOR, FIRST) == AGAIN
    assert fencing.admit(OTHER, FIRST) is None, "actors have lives of their own"


def test_what_the_table_says_refuses_earlier_lives_before_the_later_one_calls() -> None:
    fencing = Fencing()
    fencing.met(ACTOR, AGAIN)
    assert fencing.admit(ACTOR, FIRST) == AGAIN


def test_on_an_island_a_minority_life_comes_after_the_original() -> None:
    fencing = on_an_island()
    assert fencing.admit(ACTOR, FIRST) is None
    assert fencing.admit(ACTOR, MINORITY) is None
    assert fencing.latest(ACTOR) == MINORITY


def test_a_minority_life_is_over_when_the_original_is_heard_again() -> None:
    """The cut heals: the original calls, and a late call of the minority life comes after it."""
    fencing = on_an_island()
    fencing.admit(ACTOR, MINORITY)
    assert fencing.admit(ACTOR, FIRST) is None
    assert fencing.admit(ACTOR, MINORITY) == FIRST
    assert fencing.latest(ACTOR) == FIRST


def test_a_second_cut_may_have_a_minority_life_again() -> None:
    fencing = on_an_island()
    for life in (MINORITY, FIRST):
        fencing.admit(ACTOR, life)
    assert fencing.admit(ACTOR, Life(1, 50, minority=True)) is None


def test_the_larger_side_does_not_listen_to_a_minority_life_beside_an_original() -> None:
    fencing = Fencing()
    fencing.admit(ACTOR, FIRST)
    assert fencing.admit(ACTOR, MINORITY) == FIRST
    assert Fencing().admit(ACTOR, MINORITY) is None, "without an original it is all there is"


def test_a_restart_of_the_larger_side_ends_both_the_original_and_the_minority_life() -> None:
    fencing = on_an_island()
    for life in (FIRST, MINORITY, AGAIN):
        assert fencing.admit(ACTOR, life) is None
    assert fencing.admit(ACTOR, FIRST) == AGAIN
    assert fencing.admit(ACTOR, MINORITY) == AGAIN


def test_a_minority_life_ends_what_the_life_before_it_had_superseded() -> None:
    """The larger side restarts the actor and is cut in two itself: its smaller part goes on from that restart."""
    fencing = Fencing()
    fencing.admit(ACTOR, FIRST)
    after = Life(2, 40, minority=True)
    assert after.standing() > FIRST.standing() and after.standing() < AGAIN.standing()
    assert fencing.admit(ACTOR, after) is None
    assert fencing.admit(ACTOR, FIRST) == after


def test_the_longest_unused_is_forgotten_when_there_are_too_many() -> None:
    fencing = Fencing(actors_max=2)
    third = ActorId(b"c" * 16)
    for actor in (ACTOR, OTHER, ACTOR, third):
        fencing.admit(actor, AGAIN)
    fencing.validate()
    assert fencing.admit(ACTOR, FIRST) == AGAIN and fencing.latest(OTHER) is None


@given(st.lists(st.builds(Life, st.integers(1, 3), st.integers(1, 9), st.booleans()), max_size=30), st.booleans())
def test_no_regular_life_is_accepted_after_a_later_one(lives: list[Life], is_island: bool) -> None:
    fencing, highest = Fencing(), Life(0, 0)
    fencing.island(is_island)
    for life in lives:
        if fencing.admit(ACTOR, life) is None and not life.minority:
            assert life >= highest
            highest = life
