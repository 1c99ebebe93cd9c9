"""Where things stand, and how far apart."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.dht.keys import KEY_BITS, content_key, distance, random_key, shared_bits, topic_key, value_key
from tests.mesh.dht.examples import ANN, BOB

keys = st.binary(min_size=32, max_size=32)


def test_a_topic_and_a_content_of_one_name_stand_apart() -> None:
    assert len({topic_key("x"), content_key(b"x"), value_key(ANN.peer, "x"), value_key(BOB.peer, "x")}) == 4


@given(keys, keys, keys)
def test_the_distance_is_a_metric_and_symmetric(one: bytes, other: bytes, third: bytes) -> None:
    assert (distance(one, other) == 0) == (one == other)
    assert distance(one, other) == distance(other, one)
    assert distance(one, third) <= distance(one, other) + distance(other, third)


@given(keys, st.integers(0, KEY_BITS - 1), st.integers())
def test_a_random_key_shares_exactly_as_many_bits_as_wished(near: bytes, shared: int, seed: int) -> None:
    assert shared_bits(random_key(near, shared, Random(seed)), near) == shared


def test_a_key_shares_all_its_bits_with_itself() -> None:
    assert shared_bits(ANN.peer, ANN.peer) == KEY_BITS
