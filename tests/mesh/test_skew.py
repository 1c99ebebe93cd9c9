"""Whose clock is wrong: the median knows, and no single peer moves it far."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.identity import PeerId
from lattica.mesh.skew import CORRECTION_MAX_S, NOTICED_FROM_S, PEERS_MAX, Skew

offsets = st.floats(-1e6, 1e6)


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


def skew_of(samples: list[float]) -> Skew:
    skew = Skew()
    for number, offset_s in enumerate(samples):
        skew.sample(peer(number), offset_s)
    return skew


def test_nobody_heard_is_no_correction() -> None:
    assert Skew().measured_s == Skew().correction_s == 0.0 and "+0.0 s by 0 peers" in repr(Skew())


def test_of_two_clocks_each_goes_half_the_way() -> None:
    assert skew_of([120.0]).correction_s == 60.0


def test_a_home_pc_two_minutes_off_follows_the_others() -> None:
    assert skew_of([120.0, 119.5, 120.4]).correction_s == (119.5 + 120.0) / 2
    assert skew_of([120.0, 119.5]).correction_s == 119.5


def test_seconds_are_latency_and_change_nothing() -> None:
    assert skew_of([1.9, 1.8, 1.7, 1.9]).correction_s == 0.0


def test_more_than_a_quarter_of_an_hour_is_for_the_owner_to_set() -> None:
    far = skew_of([7200.0, 7200.0, 7200.0])
    assert far.correction_s == CORRECTION_MAX_S and far.measured_s == 7200.0
    assert skew_of([-7200.0] * 3).correction_s == -CORRECTION_MAX_S


def test_a_later_sample_of_a_peer_replaces_its_earlier_one() -> None:
    skew = skew_of([100.0, 100.0])
    skew.sample(peer(0), 0.0)
    skew.sample(peer(1), 0.0)
    assert skew.measured_s == 0.0


@given(st.lists(offsets, min_size=2, max_size=20), offsets)
def test_one_liar_among_honest_clocks_stays_between_them(honest: list[float], lie: float) -> None:
    """Ours is one of the honest ones."""
    skew = skew_of([*honest, lie])
    assert min(0.0, *honest) <= skew.measured_s <= max(0.0, *honest)


@given(st.lists(offsets, max_size=20))
def test_the_correction_is_bounded_and_as_of_the_measured(samples: list[float]) -> None:
    skew = skew_of(samples)
    assert abs(skew.correction_s) <= CORRECTION_MAX_S
    assert skew.correction_s * skew.measured_s >= 0
    assert skew.correction_s == 0 or abs(skew.measured_s) >= NOTICED_FROM_S


def test_samples_of_many_peers_take_bounded_memory() -> None:
    skew = skew_of([1000.0] * 10 + [5.0] * PEERS_MAX)
    assert "64 peers" in repr(skew) and skew.measured_s == 5.0, "the latest of each are kept"
