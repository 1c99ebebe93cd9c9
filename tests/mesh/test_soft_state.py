"""What changes every second: the highest number counts, a change is passed on a few times, silence is forgetting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh import soft_state
from lattica.mesh.identity import PeerId
from lattica.mesh.soft_state import (
    DATA_MAX_BYTES,
    EXPIRE_S,
    FORGOTTEN_S,
    ID_BYTES,
    PASSED_ON,
    SAYINGS_MAX,
    Saying,
    SoftState,
)


def peer(number: int) -> PeerId:
    return PeerId(bytes([number]) * 32)


ME, ANN, BOB = peer(0), peer(1), peer(2)


def saying(of: PeerId = ANN, number: int = 1, data: bytes = b"8 free", age_s: float = 0.0) -> Saying:
    return Saying(of[:ID_BYTES], number, int(age_s * 1e3), data)


def told(*sayings: Saying, now: float = 100.0) -> SoftState:
    state = SoftState(ME, 0)
    state.hear(sayings, now)
    return state


def test_what_a_peer_says_is_known_with_its_age_until_it_says_something_else() -> None:
    state = told(saying(data=b"8 free", age_s=2.0))
    assert state.get(ANN, 101.0) == (b"8 free", 3.0)
    state.hear([saying(number=2, data=b"7 free")], 101.0)
    assert state.get(ANN, 101.0) == (b"7 free", 0.0)
    assert state.get(BOB, 101.0) is None


def test_who_said_something_new_is_told_once_and_what_was_known_is_nothing_new() -> None:
    state = told(saying(), saying(BOB))
    assert state.heard() == [ANN[:ID_BYTES], BOB[:ID_BYTES]] and state.heard() == []
    state.hear([saying(), saying(BOB, number=2), saying(BOB, number=3)], 101.0)
    state.say(b"mine", 101.0)
    assert state.heard() == [BOB[:ID_BYTES]]


def test_of_two_sayings_the_higher_number_counts_in_whatever_order_they_come() -> None:
    for order in ((1, 2), (2, 1)):
        state = SoftState(ME, 0)
        for number in order:
            state.hear([saying(number=number, data=b"%d free" % number)], 100.0)
        assert state.get(ANN, 100.0) == (b"2 free", 0.0)


def test_what_was_not_renewed_for_thirty_seconds_counts_no_more() -> None:
    state = told(saying(age_s=10.0))
    assert state.get(ANN, 100.0 + EXPIRE_S - 10.1) is not None
    assert state.get(ANN, 100.0 + EXPIRE_S - 10.0) is None


def test_a_saying_is_passed_on_three_times_by_each_that_heard_it() -> None:
    state = told(saying(age_s=1.0))
    picked = [state.pick(101.0) for _ in range(PASSED_ON + 1)]
    assert picked == [(saying(age_s=2.0),)] * PASSED_ON + [()]
    assert not state.has_news
    state.hear([saying()], 102.0)
    assert not state.has_news, "an echo is no news"


def test_the_newest_go_first_and_no_more_than_fit_into_a_message() -> None:
    state = told(*(saying(peer(number)) for number in range(1, 31)))
    state.hear([saying(peer(number)) for number in range(31, 61)], 100.0)
    found = [each.peer[0] for each in state.pick(100.0)]
    assert found == list(range(60, 60 - SAYINGS_MAX, -1))


def test_more_than_one_message_may_have_is_not_heard() -> None:
    state = told(*(saying(peer(number)) for number in range(1, SAYINGS_MAX + 20)))
    assert len(state._entries) == SAYINGS_MAX


def test_what_expired_while_it_waited_is_not_passed_on() -> None:
    state = told(saying())
    assert state.pick(100.0 + EXPIRE_S) == () and not state.has_news


@pytest.mark.parametrize(
    "wrong",
    [
        Saying(b"short", 1, 0, b"x"),
        Saying(bytes(32), 1, 0, b"x"),
        saying(data=bytes(DATA_MAX_BYTES + 1)),
        saying(age_s=EXPIRE_S),
        Saying(ANN[:ID_BYTES], 1, -1, b"x"),
        saying(ME, number=1 << 60),
    ],
    ids=["short id", "long id", "long", "old", "from the future", "of ourselves"],
)
def test_what_cannot_be_a_saying_is_not_heard(wrong: Saying) -> None:
    state = told(wrong)
    assert not state._entries and not state.has_news


# -- what this peer says itself -------------------------------------------------------------------------------------


def test_the_same_thing_said_again_is_news_after_half_its_life() -> None:
    state = SoftState(ME, 7)
    state.say(b"8 free", 0.0)
    assert [each.number for _ in range(5) for each in state.pick(0.0)] == [8] * PASSED_ON
    state.say(b"8 free", EXPIRE_S / 2 - 0.1)
    assert not state.has_news
    state.say(b"8 free", EXPIRE_S / 2)
    assert [each.number for each in state.pick(EXPIRE_S / 2)] == [9]


def test_what_is_said_once_is_said_anew_while_it_holds() -> None:
    """Nobody asks the application again: messages that go out anyhow renew it."""
    state, other = SoftState(ME, 0), SoftState(BOB, 0)
    state.say(b"8 free", 0.0)
    for second in range(100):
        other.hear(state.pick(float(second)), float(second))
        assert other.get(ME, float(second)) is not None


def test_who_has_nothing_to_say_any_more_is_known_to_have_nothing() -> None:
    state, other = SoftState(ME, 0), SoftState(BOB, 0)
    state.say(b"", 0.0)
    assert not state.has_news, "nothing was never said"
    for data in (b"8 free", b""):
        state.say(data, 1.0)
        other.hear(state.pick(1.0), 1.0)
    assert other.get(ME, 1.0) is None
    for second in range(2, 100):
        assert not state.pick(float(second)) or second < 5, "and nothing is not renewed"


def test_a_restarted_peer_is_believed_since_its_numbers_begin_above_the_old_ones() -> None:
    other = SoftState(BOB, 0)
    for boot, data in ((1 << 40, b"8 free"), (2 << 40, b"2 free")):
        state = SoftState(ME, boot)
        state.say(data, 0.0)
        other.hear(state.pick(0.0), 0.0)
    assert other.get(ME, 0.0) == (b"2 free", 0.0)


# -- bounds ---------------------------------------------------------------------------------------------------------


def test_who_is_gone_is_forgotten_at_once() -> None:
    state = told(saying())
    state.forget(ANN)
    state.forget(BOB)
    assert state.get(ANN, 100.0) is None and not state.has_news and state.pick(100.0) == ()


def test_a_number_that_somebody_else_made_up_is_not_for_ever() -> None:
    """Mallory says in Ann's name what she never said, under a number that she will never reach."""
    state = told(saying(number=1 << 62, data=b"nothing free"))
    state.hear([saying(number=5)], 100.0 + FORGOTTEN_S - 1)
    assert state.get(ANN, 100.0 + FORGOTTEN_S - 1) is None
    state.hear([saying(number=5)], 100.0 + FORGOTTEN_S)
    assert state.get(ANN, 100.0 + FORGOTTEN_S) == (b"8 free", 0.0)


def test_an_echo_does_not_bring_back_what_has_expired() -> None:
    """Each that passes it on forgets how long it travelled, so a saying could go round for ever as 29.9 s old."""
    state = told(saying())
    while state.has_news:
        state.pick(100.0)
    later = 100.0 + EXPIRE_S + 1
    state.hear([saying(age_s=EXPIRE_S - 0.1)], later)
    assert state.get(ANN, later) is None and not state.has_news


def test_peers_that_somebody_makes_up_fill_a_bounded_place_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_state, "PEERS_MAX", 100)
    state = SoftState(ME, 0)
    for number in range(1000):
        state.hear([Saying(number.to_bytes(ID_BYTES, "big"), 1, 0, b"x")], 100.0)
    assert len(state._entries) == 100 and len(state._fresh) <= 100
    state.hear([saying()], 100.0 + FORGOTTEN_S)
    assert state.get(ANN, 100.0 + FORGOTTEN_S) is not None and len(state._entries) == 1


sayings = st.builds(
    Saying,
    st.sampled_from([bytes([number]) * ID_BYTES for number in range(4)] + [b"", b"x" * 9]),
    st.integers(0, 5),
    st.integers(-10, 40_000),
    st.sampled_from((b"", b"a", b"b", bytes(DATA_MAX_BYTES + 1))),
)


@given(st.lists(st.tuples(st.lists(sayings, max_size=4), st.sampled_from((0.0, 0.5, 20.0, 70.0))), max_size=20))
def test_whatever_is_heard_numbers_never_go_back_and_what_is_passed_on_is_young(
    story: list[tuple[list[Saying], float]],
) -> None:
    state, now = SoftState(ME, 0), 100.0
    highest: dict[bytes, tuple[int, float]] = {}
    for heard, later in story:
        now += later
        state.hear(heard, now)
        for name, entry in state._entries.items():
            number, said_at = highest.get(name, (-1, now))
            assert entry.number >= number or now - said_at >= FORGOTTEN_S
            highest[name] = entry.number, entry.said_at
        picked = state.pick(now)
        assert len(picked) <= SAYINGS_MAX and all(0 <= each.age_ms < EXPIRE_S * 1e3 for each in picked)
        assert state.get(ME, now) is None


def test_soft_state_says_how_much_it_knows() -> None:
    assert repr(told(saying(), saying(BOB))) == "<SoftState: 2 peers, 2 to pass on>"
