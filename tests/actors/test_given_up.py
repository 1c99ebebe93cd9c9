"""What may still come of calls that nobody waits for."""

from lattica.actors.given_up import GivenUp

X, Y, Z = b"x", b"y", b"z"


def test_what_came_is_not_unheard_of() -> None:
    given_up = GivenUp()
    given_up.add(1, 10, 0, [X])
    given_up.add(1, 11, 0, [Y])
    given_up.add(1, 12, 2, [X, Z])
    given_up.add(2, 13, 0, [X])
    given_up.replied(1, 10)
    given_up.replied(2, 10)
    given_up.heard(1, 12, X)
    given_up.heard(1, 10, Y)
    assert given_up.awaits(1) and given_up.gone(1) == [(0, [Y]), (2, [Z])]
    assert not given_up.awaits(1) and given_up.gone(1) == []


def test_of_a_process_that_has_answered_all_nothing_is_kept() -> None:
    given_up = GivenUp()
    given_up.add(1, 10, 0, [X])
    given_up.replied(1, 10)
    assert not given_up.awaits(1)
