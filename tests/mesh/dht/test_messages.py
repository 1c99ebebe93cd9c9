"""What peers say about the DHT: golden bytes, and a decoder that trusts nobody."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import RemoteProtocolError
from lattica.mesh.dht import messages as m
from lattica.mesh.dht.messages import Contact, Find, Found, Kept, Message, Store
from lattica.mesh.dht.records import read_record
from tests.mesh.dht.examples import BOB, CONTENT, GOLDEN, MESSAGES, contents, core, encoded, record

golden = json.loads(GOLDEN.read_text())
asks = st.integers(0, m.ASK_MAX)
places = st.binary(min_size=32, max_size=32)
addresses = st.lists(st.text(st.characters(max_codepoint=127), max_size=20), max_size=m.ADDRESSES_MAX).map(tuple)
contacts = st.lists(st.builds(Contact, places, addresses), max_size=m.CONTACTS_MAX).map(tuple)
records = st.lists(st.binary(max_size=300), max_size=m.RECORDS_MAX).map(tuple)
messages = st.one_of(
    st.builds(Find, asks, places, st.integers(0, 9), addresses),
    st.builds(Found, asks, contacts, records, addresses),
    st.builds(Store, asks, st.binary(max_size=m.RECORD_MAX_BYTES)),
    st.builds(Kept, asks, st.booleans()),
)


def test_every_message_record_and_key_has_its_golden_bytes() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(Message)), "add the new message to MESSAGES"
    assert encoded() == golden, "older releases cannot read this; new ones: python -m tests.mesh.dht.examples"


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_golden_bytes_are_read_as_what_they_were(message: Message) -> None:
    assert m.decode(bytes.fromhex(golden[f"message {type(message).__name__}"])) == message


@pytest.mark.parametrize("kind", contents())
def test_golden_records_are_read_as_what_they_were(kind: str) -> None:
    assert read_record(bytes.fromhex(golden[f"record {kind}"])).content == contents()[kind]


@given(messages)
def test_a_message_is_read_as_it_was_written(message: Message) -> None:
    assert m.decode(m.encode(message)) == message


def test_fields_that_a_later_release_appends_are_ignored() -> None:
    later = msgspec.msgpack.encode([2, 7, [[BOB.peer, ["a"], "later"]], [], [], "later"])
    assert m.decode(later) == Found(7, (Contact(BOB.peer, ("a",)),))


@pytest.mark.parametrize(
    "message",
    [
        Find(-1, CONTENT),
        Find(1 << 63, CONTENT),
        Find(1, CONTENT[:-1]),
        Find(1, CONTENT, 0, ("a",) * (m.ADDRESSES_MAX + 1)),
        Find(1, CONTENT, 0, ("a" * (m.ADDRESS_MAX_CHARS + 1),)),
        Find(1, CONTENT, 0, ("ä",)),
        Found(1, (Contact(BOB.peer, ()),) * (m.CONTACTS_MAX + 1)),
        Found(1, (Contact(b"short", ()),)),  # type: ignore[arg-type]
        Found(1, (Contact(BOB.peer, ("a" * 300,)),)),
        Found(1, (), (b"",) * (m.RECORDS_MAX + 1)),
        Found(1, (), (b"x" * (m.RECORDS_MAX_BYTES + 1),)),
        Store(1, b"x" * (m.RECORD_MAX_BYTES + 1)),
        Store(1, b"x" * m.MESSAGE_MAX_BYTES),
    ],
    ids=str,
)
def test_a_message_beyond_its_limits_is_refused(message: Message) -> None:
    with pytest.raises(RemoteProtocolError):
        m.decode(m.encode(message))


def test_the_longest_answer_within_the_limits_is_read() -> None:
    far = Contact(BOB.peer, ("a" * m.ADDRESS_MAX_CHARS,) * m.ADDRESSES_MAX)
    longest = Found(1, (far,) * m.CONTACTS_MAX, (b"x" * (m.RECORDS_MAX_BYTES // 4),) * 4, far.addresses)
    assert m.decode(m.encode(longest)) == longest


def test_of_many_addresses_those_that_others_will_read_are_told() -> None:
    addresses = ("a" * 300, "ä", "a", "b", "c", "d", "e")
    assert m.fitting(addresses) == ("a", "b", "c", "d") and m.are_addresses(m.fitting(addresses))


@given(st.binary(max_size=200))
def test_noise_is_a_message_or_a_remote_protocol_error(data: bytes) -> None:
    try:
        m.decode(data)
    except RemoteProtocolError:
        pass


@given(messages, st.data())
def test_a_bent_message_is_a_message_or_a_remote_protocol_error(message: Message, data: Any) -> None:
    bent = bytearray(m.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        bent[data.draw(st.integers(0, len(bent) - 1))] = data.draw(st.integers(0, 255))
    try:
        m.decode(bytes(bent))
    except RemoteProtocolError:
        pass


@given(st.lists(messages | st.sampled_from(MESSAGES), max_size=20), st.binary(max_size=40))
def test_whatever_a_peer_says_a_core_answers_or_refuses_it(said: list[Message], noise: bytes) -> None:
    one = core(BOB)
    for now, message in enumerate([*said, Store(1, noise), Found(2, (), (noise, record().data))]):
        try:
            one.receive(BOB.peer if now % 3 else record().writer, message, float(now))
        except RemoteProtocolError:
            pass
        one.tick(float(now))
        one.validate()
