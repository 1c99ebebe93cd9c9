"""Questions, asked again until they are answered or given up."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from lattica.mesh.dht.asks import ASKS_MAX, FIRST_TIMEOUT_S, SILENT_ASKS, SILENT_S, TIMEOUT_S, Asks, RoundTrips
from lattica.mesh.dht.messages import Contact, Find, Send
from tests.mesh.dht.examples import ANN, BOB, CONTENT

TO_BOB = Contact(BOB.peer, ("bob:1",))


@pytest.fixture
def asks() -> Asks[str]:
    return Asks(Random(1))


def ask(asks: Asks[str], now: float) -> Send:
    return asks.ask(TO_BOB, Find(asks.next_number(), CONTENT), "wish", now)


def wait(asks: Asks[str]) -> tuple[list[float], float]:
    """(when it was asked again, when it was given up)"""
    again: list[float] = []
    while (due := asks.next_deadline()) is not None:
        resent, given_up = asks.overdue(due)
        asks.validate()
        again += [due] * len(resent)
        if given_up:
            return again, due
    raise AssertionError("it is never given up")


def test_a_silent_peer_is_asked_five_times_and_waited_for_longer_each_time(asks: Asks[str]) -> None:
    ask(asks, 0.0)
    again, given_up = wait(asks)
    assert len(again) == ASKS_MAX - 1 and again[0] == FIRST_TIMEOUT_S
    waits = [after - before for before, after in pairwise([0.0, *again, given_up])]
    assert waits == sorted(waits) and len(asks) == 0


def test_a_late_answer_counts_while_it_is_still_asked_and_never_after(asks: Asks[str]) -> None:
    number = ask(asks, 0.0).message.ask
    asks.overdue(FIRST_TIMEOUT_S)
    found = asks.answered(number, BOB.peer, 1.1)
    assert found is not None and found.times == 2
    assert asks.answered(number, BOB.peer, 1.2) is None


def test_an_answer_of_another_peer_is_none(asks: Asks[str]) -> None:
    number = ask(asks, 0.0).message.ask
    assert asks.answered(number, ANN.peer, 0.1) is None
    assert asks.answered(number, BOB.peer, 0.1) is not None


def test_a_peer_that_was_given_up_is_asked_less_for_a_while(asks: Asks[str]) -> None:
    ask(asks, 0.0)
    _, silent = wait(asks)
    ask(asks, silent + 1)
    assert len(wait(asks)[0]) == SILENT_ASKS - 1
    ask(asks, silent + SILENT_S + 1)
    assert len(wait(asks)[0]) == ASKS_MAX - 1


def test_a_peer_that_was_given_up_and_answers_is_as_good_as_before(asks: Asks[str]) -> None:
    ask(asks, 0.0)
    _, silent = wait(asks)
    asks.answered(ask(asks, silent + 1).message.ask, BOB.peer, silent + 1.1)
    ask(asks, silent + 2)
    assert len(wait(asks)[0]) == ASKS_MAX - 1


def test_the_timeout_follows_the_round_trips() -> None:
    trips = RoundTrips()
    for _ in range(50):
        trips.took(0.3)
    assert trips.timeout_s == pytest.approx(0.3, abs=0.01)
    for seconds in (0.2, 0.9) * 20:
        trips.took(seconds)
    assert 1.0 < trips.timeout_s < TIMEOUT_S[1]


def test_the_timeout_has_a_floor_and_a_ceiling() -> None:
    near, far = RoundTrips(), RoundTrips()
    near.took(0.0001)
    far.took(60.0)
    assert (near.timeout_s, far.timeout_s) == TIMEOUT_S


def test_an_answer_to_what_was_asked_twice_tells_nothing_of_round_trips(asks: Asks[str]) -> None:
    number = ask(asks, 0.0).message.ask
    asks.overdue(FIRST_TIMEOUT_S)
    asks.answered(number, BOB.peer, 1.001)
    assert asks.round_trips.timeout_s == FIRST_TIMEOUT_S


def test_a_restarted_peer_does_not_use_the_numbers_of_its_former_process() -> None:
    assert abs(Asks[str](Random(1)).next_number() - Asks[str](Random(2)).next_number()) > 1 << 20
