"""What peers say about topics: golden bytes, and a decoder that trusts nobody."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import RemoteProtocolError
from lattica.mesh import publications as p
from lattica.mesh.publications import Have, Id, Message, Publication, Run, Want
from tests.mesh.pubsub.examples import ANN, BOB, GOLDEN, MESSAGES, core, encoded, publication

golden = json.loads(GOLDEN.read_text())
peers = st.sampled_from((ANN.peer, BOB.peer)) | st.binary(min_size=32, max_size=32)
boots = st.integers(0, 3) | st.integers(0, p.NUMBER_MAX)
numbers = st.integers(1, 40) | st.integers(1, p.NUMBER_MAX)
runs = st.builds(
    lambda publisher, boot, first, more: Run(publisher, boot, first, min(first + more, p.NUMBER_MAX)),
    peers, boots, numbers, st.integers(0, 20),
)  # fmt: skip
some_runs = st.lists(runs, min_size=1, max_size=8).map(tuple)
messages = st.one_of(
    st.builds(
        Publication, peers, boots, numbers, st.text(min_size=1, max_size=p.TOPIC_MAX_CHARS), st.binary(max_size=300),
        st.binary(min_size=64, max_size=64), st.integers(0, p.AGE_MAX_MS),
    ),
    st.builds(Have, some_runs),
    st.builds(Want, some_runs),
)  # fmt: skip


def changed(**changes: Any) -> Publication:
    return msgspec.structs.replace(publication(), **changes)


def test_every_message_has_its_golden_bytes() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(Message)), "add the new message to MESSAGES"
    assert encoded() == golden, "older releases cannot read this; new ones: python -m tests.mesh.pubsub.examples"


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_golden_bytes_are_read_as_what_they_were(message: Message) -> None:
    assert p.decode(bytes.fromhex(golden[type(message).__name__])) == message


@given(messages)
def test_a_message_is_read_as_it_was_written(message: Message) -> None:
    assert p.decode(p.encode(message)) == message


def test_fields_that_a_later_release_appends_are_ignored() -> None:
    later = msgspec.msgpack.encode([3, [[ANN.peer, 1, 2, 3, "later"]], "later"])
    assert p.decode(later) == Want((Run(ANN.peer, 1, 2, 3),))


@pytest.mark.parametrize(
    "message",
    [
        changed(publisher=b"short"),
        changed(boot=-1),
        changed(boot=1 << 63),
        changed(number=0),
        changed(number=1 << 63),
        changed(topic=""),
        changed(topic="a" * (p.TOPIC_MAX_CHARS + 1)),
        changed(body=bytes(p.BODY_MAX_BYTES + 1)),
        changed(body=bytes(p.MESSAGE_MAX_BYTES)),
        changed(signature=b""),
        changed(age_ms=-1),
        changed(age_ms=p.AGE_MAX_MS + 1),
        Have(()),
        Have((Run(ANN.peer, 1, 1, 1),) * (p.RUNS_MAX + 1)),
        Have((Run(ANN.peer, 1, 1, p.HAVE_MAX + 1),)),
        Have((Run(ANN.peer, 1, 1, p.NUMBER_MAX),)),
        Have((Run(ANN.peer, 1, 2, 1),)),
        Have((Run(ANN.peer, 1, 0, 1),)),
        Have((Run(b"short", 1, 1, 1),)),  # type: ignore[arg-type]
        Want((Run(ANN.peer, 1, 1, p.WANT_MAX + 1),)),
        Want((Run(ANN.peer, 1, 1, p.WANT_MAX), Run(BOB.peer, 1, 1, 1))),
    ],
    ids=lambda message: repr(message)[:60],
)
def test_a_message_beyond_its_limits_is_refused(message: Message) -> None:
    with pytest.raises(RemoteProtocolError):
        p.decode(p.encode(message))


def test_the_longest_messages_within_the_limits_are_read() -> None:
    longest = changed(topic="\U0001f600" * p.TOPIC_MAX_CHARS, body=bytes(p.BODY_MAX_BYTES), boot=p.NUMBER_MAX)
    many = Have(tuple(Run(ANN.peer, p.NUMBER_MAX, p.NUMBER_MAX - at, p.NUMBER_MAX - at) for at in range(p.RUNS_MAX)))
    assert p.decode(p.encode(longest)) == longest and p.decode(p.encode(many)) == many


@given(st.lists(st.tuples(st.sampled_from((ANN.peer, BOB.peer)), st.integers(0, 2), st.integers(1, 20)), unique=True))
def test_runs_name_what_they_were_made_of(ids: list[Id]) -> None:
    found = p.runs_of(ids)
    assert list(p.ids_of(found)) == sorted(ids)
    assert all(
        (one.publisher, one.boot, one.last + 1) != (two.publisher, two.boot, two.first) for one, two in pairwise(found)
    ), "two runs could be one"


def test_what_is_wanted_is_asked_for_in_messages_that_can_be_read() -> None:
    scattered = [(ANN.peer, 1, 2 * number + 1) for number in range(p.WANT_MAX + 10)]
    asked = list(p.wants_of(scattered))
    assert [id for want in asked for id in p.ids_of(want.runs)] == scattered
    assert all(p.decode(p.encode(want)) == want for want in asked)


@given(st.binary(max_size=200))
def test_noise_is_a_message_or_a_remote_protocol_error(data: bytes) -> None:
    try:
        p.decode(data)
    except RemoteProtocolError:
        pass


@given(messages, st.data())
def test_a_bent_message_is_a_message_or_a_remote_protocol_error(message: Message, data: Any) -> None:
    bent = bytearray(p.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        bent[data.draw(st.integers(0, len(bent) - 1))] = data.draw(st.integers(0, 255))
    try:
        p.decode(bytes(bent))
    except RemoteProtocolError:
        pass


@given(st.lists(messages | st.builds(publication, st.integers(1, 9)), max_size=20), st.floats(0.1, 9.0))
def test_whatever_a_peer_says_a_core_goes_on_and_gives_out_only_what_is_signed(
    said: list[Message], step: float
) -> None:
    one = core(BOB, ANN.peer)
    one.subscribe("steps", 0.0)
    for at, message in enumerate(said):
        for effect in one.receive(ANN.peer, message, at * step):
            assert not hasattr(effect, "body") or effect.publisher == ANN.peer
        one.validate()
        one.tick(at * step)
        one.validate()
