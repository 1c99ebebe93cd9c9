"""The community's messages as bytes: golden ones, and a reader that trusts nobody."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import RemoteProtocolError
from lattica.mesh import community, notices
from lattica.mesh.letters import SUMMON_HOPS, News, Probe, Rows
from lattica.mesh.notices import COMMUNITY, COMPARISON, ROOT_MAX_BYTES, ROWS_MAX, decode, encode
from lattica.mesh.soft_state import SAYINGS_MAX, Saying
from tests.mesh.notice_examples import GOLDEN, MESSAGES, PEER, SAYINGS, encoded
from tests.mesh.table.row_examples import ROWS

golden = json.loads(GOLDEN.read_text())


def plain(message: Any) -> Any:
    """Messages that compare: rows by their bytes."""
    return Rows(tuple(row.data for row in message.rows), message.flood) if isinstance(message, Rows) else message


def raw(*fields: Any) -> bytes:
    return msgspec.msgpack.encode(list(fields))


def test_every_message_has_golden_bytes() -> None:
    names = {kind.__name__ for kind in get_args(community.Message)}
    assert {type(message).__name__ for message in MESSAGES} == names, "add the new message to MESSAGES"
    assert golden.keys() == names, "write the golden bytes: python -m tests.mesh.notice_examples"


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_has_its_golden_bytes_and_is_read_as_what_it_was(message: Any) -> None:
    name = type(message).__name__
    assert encoded()[name] == golden[name], f"the wire format of {name} changed; older releases cannot read it"
    protocol, body = golden[name].split()
    assert plain(decode(int(protocol), bytes.fromhex(body))) == plain(message)


def test_protocols_have_the_numbers_that_they_always_had() -> None:
    numbers = notices.COMMUNITY, notices.COMPARISON, notices.PUBSUB, notices.DHT, notices.VIEWS
    assert numbers == (1, 2, 3, 4, 5)


def test_a_probe_without_sayings_has_a_few_bytes() -> None:
    assert len(encode(Probe(1 << 31, False, b"r" * 16))[1]) <= 28


def test_fields_that_a_later_release_appends_are_ignored() -> None:
    for message in MESSAGES[:6]:
        fields = msgspec.msgpack.decode(encode(message)[1])
        assert plain(decode(COMMUNITY, raw(*fields, "new"))) == plain(message)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "cannot be read"),
        (b"\xc1", "cannot be read"),
        (raw(), "cannot be read"),
        (raw(99, 1), "cannot be read"),
        (raw(1, 1, True), "cannot be read"),
        (b"\x91" * 2000, "cannot be read"),
        (raw(1, -1, True, b""), "a field out of range"),
        (raw(1, 1 << 32, True, b""), "a field out of range"),
        (raw(1, 1, True, bytes(ROOT_MAX_BYTES + 1)), "a field out of range"),
        (raw(5, [[b"p", 1 << 63, 0, b""]]), "a number out of range"),
        (raw(5, [[b"p", -1, 0, b""]]), "a number out of range"),
        (raw(5, [[b"p", 1, 0, b""]] * (SAYINGS_MAX + 1)), "too much"),
        (raw(1, 1, True, b"", [[b"p", 1, 0, b""]] * (SAYINGS_MAX + 1)), "too much"),
        (raw(3, b"short"), "a peer id of 5 bytes"),
        (raw(4, bytes(33)), "a peer id of 33 bytes"),
        (raw(6, bytes(PEER), b"", 1), "a peer id of 0 bytes"),
        (raw(6, bytes(PEER), bytes(PEER), -1), "a summons over -1 more peers"),
        (raw(6, bytes(PEER), bytes(PEER), SUMMON_HOPS + 1), "a summons over"),
        (raw(2, True, [b""] * (ROWS_MAX + 1)), "rows came at once"),
        (raw(2, True, [b"noise"]), "a row cannot be read"),
    ],
)  # fmt: skip
def test_a_message_that_breaks_a_rule_is_refused_with_words(body: bytes, words: str) -> None:
    with pytest.raises(RemoteProtocolError, match=words):
        decode(COMMUNITY, body)


def test_a_message_with_one_row_that_is_none_is_refused_whole() -> None:
    with pytest.raises(RemoteProtocolError):
        decode(COMMUNITY, raw(2, True, [ROWS["service"].data, ROWS["service"].data[:-1]]))


sayings = st.builds(Saying, st.binary(max_size=9), st.integers(0, (1 << 63) - 1), st.integers(), st.binary(max_size=9))
messages = st.one_of(
    st.builds(
        Probe,
        st.integers(0, (1 << 32) - 1),
        st.booleans(),
        st.binary(max_size=ROOT_MAX_BYTES),
        st.lists(sayings.filter(lambda each: -(1 << 63) <= each.age_ms < 1 << 63), max_size=3).map(tuple),
    ),
    st.builds(Rows, st.lists(st.sampled_from(list(ROWS.values())), max_size=4).map(tuple), st.booleans()),
    st.builds(News, st.just(SAYINGS)),
)


@given(messages)
def test_what_is_said_is_heard(message: Any) -> None:
    assert plain(decode(*encode(message))) == plain(message)


@given(st.sampled_from((COMMUNITY, COMPARISON)), st.binary(max_size=200))
def test_noise_is_a_message_or_refused(protocol: int, noise: bytes) -> None:
    try:
        decode(protocol, noise)
    except RemoteProtocolError:
        pass


@given(st.sampled_from(MESSAGES), st.data())
def test_a_bent_message_is_another_one_or_refused(message: Any, data: st.DataObject) -> None:
    protocol, body = encode(message)
    bent = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        bent[data.draw(st.integers(0, len(bent) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(protocol, bytes(bent))
    except RemoteProtocolError:
        pass
