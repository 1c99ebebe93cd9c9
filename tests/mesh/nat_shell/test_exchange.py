"""Cards and messages about NATs as bytes: golden ones, and a reader that trusts nobody."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import RemoteProtocolError
from lattica.mesh.nat import attempts
from lattica.mesh.nat.behaviour import Behaviour
from lattica.mesh.nat.datagrams import SECRET_BYTES, Kind, Probe, read_probe, write_probe
from lattica.mesh.nat_shell.exchange import (
    CARD_MAX_BYTES,
    MESSAGE_MAX_BYTES,
    Card,
    keys_of,
    read_behaviour,
    read_card,
    read_message,
    write_behaviour,
    write_card,
)
from tests.mesh.nat_shell.exchange_examples import CARD, GOLDEN, MESSAGES, encoded

golden = json.loads(GOLDEN.read_text())


def test_what_is_written_has_its_golden_bytes_and_is_read_as_what_it_was() -> None:
    assert {type(message).__name__ for message in MESSAGES} == {kind.__name__ for kind in get_args(attempts.Message)}
    assert encoded() == golden, "older releases cannot read it; python -m tests.mesh.nat_shell.exchange_examples"
    assert [read_message(bytes.fromhex(golden[type(message).__name__])) for message in MESSAGES] == MESSAGES
    assert read_card(bytes.fromhex(golden["Card"])) == CARD


@given(st.binary(max_size=CARD_MAX_BYTES + 8))
def test_noise_is_no_card_and_no_message(data: bytes) -> None:
    for read in (read_card, read_message):
        with pytest.raises(RemoteProtocolError):
            read(data)


@pytest.mark.parametrize(
    "card", [Card(bytes(31)), Card(bytes(33)), Card(bytes(32), port=-1), Card(bytes(32), port=65536)]
)
def test_a_card_that_holds_what_none_does_is_refused(card: Card) -> None:
    with pytest.raises(RemoteProtocolError):
        read_card(write_card(card))


@pytest.mark.parametrize("card", [10**12, -1, "a card", [1] * 32, None])
def test_a_card_that_is_no_bytes_is_refused_before_memory_is_taken_for_it(card: object) -> None:
    with pytest.raises(RemoteProtocolError, match="no bytes"):
        read_card(card)


@pytest.mark.parametrize("lifetime_s", [float("nan"), float("inf"), float("-inf"), 0.0, -5.0])
def test_a_row_tells_no_lifetime_that_is_none_for_timers_are_set_by_it(lifetime_s: float) -> None:
    read = read_behaviour(write_behaviour(Behaviour(udp=True, lifetime_s=lifetime_s)))
    assert read == Behaviour(udp=True)


def test_what_is_too_long_is_not_decoded() -> None:
    with pytest.raises(RemoteProtocolError, match="may have 256"):
        read_card(write_card(Card(bytes(CARD_MAX_BYTES))))
    with pytest.raises(RemoteProtocolError, match="may have 4096"):
        read_message(bytes(MESSAGE_MAX_BYTES + 1))


def test_both_sides_derive_the_same_keys_from_both_halves_and_others_from_other_halves() -> None:
    one, two = b"1" * SECRET_BYTES, b"2" * SECRET_BYTES
    lower, higher = keys_of(one, two, lower=True), keys_of(two, one, lower=False)
    assert (lower.sending, lower.receiving) == (higher.receiving, higher.sending)
    probe = Probe(b"8 bytes.", Kind.PATH, 7)
    assert read_probe(higher.receiving, write_probe(lower.sending, probe)) == probe
    assert keys_of(two, one, lower=True) != lower and keys_of(one, one, lower=True) != lower
