"""Frames: the same messages however the bytes are cut, and nothing but RemoteProtocolError from bytes that are none."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.codec import frames
from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from tests.codec.examples import CONVERSATIONS, EXAMPLES, members
from tests.conftest import examples

STATE = b"\x91\x93\x39\x01"
"""A frame body that begins a `State` message; its data, which may be anything, is to follow."""

# -- messages with any fields

numbers = st.integers(-(1 << 63), (1 << 64) - 1)
texts = st.text(max_size=20)
plain = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | texts | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
values = st.one_of(
    st.binary(max_size=40),
    st.builds(m.WithRefs, st.binary(max_size=40), st.lists(st.binary(max_size=16), max_size=3)),
    st.builds(m.InArena, st.binary(max_size=16), numbers, numbers, st.booleans()),
    st.builds(m.Failed, st.binary(max_size=40), st.lists(st.binary(max_size=16), max_size=3), st.booleans()),
)
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    int: numbers,
    str: texts,
    bytes: st.binary(max_size=40),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    object: plain,
    m.Value: values,
    list[int]: st.lists(numbers, max_size=4),
    list[str]: st.lists(texts, max_size=4),
    list[bytes]: st.lists(st.binary(max_size=16), max_size=4),
    list[tuple[bytes, int]]: st.lists(st.tuples(st.binary(max_size=16), numbers), max_size=4),
    list[int | str]: st.lists(numbers | texts, max_size=4),
    list[m.Value]: st.lists(values, max_size=4),
    list[dict[str, float]]: st.lists(st.dictionaries(texts, st.floats(allow_nan=False), max_size=4), max_size=3),
    list[dict[str, str]]: st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2), max_size=3),
    dict[str, float]: st.dictionaries(texts, st.floats(allow_nan=False), max_size=4),
    dict[str, object]: st.dictionaries(texts, plain, max_size=4),
}


def any_message(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{name: BY_TYPE[hint] for name, hint in get_type_hints(kind).items()})


conversations = st.sampled_from(sorted(CONVERSATIONS))
BATCHES = {
    name: st.lists(st.lists(st.one_of(*map(any_message, members(union))), max_size=5), max_size=4)
    for name, union in CONVERSATIONS.items()
}


@st.composite
def talks(draw: st.DrawFn) -> tuple[Any, list[list[Any]]]:
    """(types, the messages of each frame) of one conversation."""
    name = draw(conversations)
    return CONVERSATIONS[name], draw(BATCHES[name])


def chunks(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    at = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:stop] for start, stop in pairwise(at)]


def read_all(decoder: frames.Decoder, parts: Sequence[bytes]) -> list[Any]:
    return [message for part in parts for message in decoder.feed(part)]


# -- laws


@examples(75)
@given(talks(), st.lists(st.integers(0, 1 << 16), max_size=12))
def test_however_the_bytes_are_cut_the_messages_are_the_same(
    talk: tuple[Any, list[list[Any]]], cuts: list[int]
) -> None:
    types, batches = talk
    data = b"".join(bytes(frames.encode(batch)) for batch in batches)
    assert read_all(frames.Decoder(types), chunks(data, cuts)) == [message for batch in batches for message in batch]


def test_bytes_that_come_one_by_one_make_the_same_messages() -> None:
    data = bytes(frames.encode([m.Reply(1, [b"one"]), m.Reply(2, [b"two"])]) + frames.encode([m.Returned([3])]))
    single = [data[at : at + 1] for at in range(len(data))]
    assert read_all(frames.Decoder(m.FromWorker), single) == frames.Decoder(m.FromWorker).feed(data)


def test_a_log_of_encoded_messages_and_a_joined_header_are_a_frame() -> None:
    replies = [m.Reply(seq, [b"x" * seq], seq) for seq in range(100)]
    items = b"".join(map(frames.encode_one, replies))
    assert frames.Decoder(m.FromWorker).feed(frames.join(100, items) + items) == replies


def test_a_frame_without_messages_is_read_as_none() -> None:
    assert frames.Decoder(m.FromWorker).feed(bytes(frames.encode([]))) == []


@examples(100)
@given(conversations, st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
def test_noise_is_a_protocol_error_or_waits_for_more(name: str, noise: bytes, cuts: list[int]) -> None:
    hear_distrustfully(CONVERSATIONS[name], chunks(noise, cuts))


@examples(100)
@given(conversations, st.binary(max_size=300))
def test_noise_of_the_announced_length_is_a_protocol_error_or_messages(name: str, noise: bytes) -> None:
    hear_distrustfully(CONVERSATIONS[name], [len(noise).to_bytes(4, "little") + noise])


bends = st.lists(
    st.tuples(st.sampled_from(["set", "insert", "delete", "double"]), st.integers(0, 1 << 16), st.integers(0, 255)),
    min_size=1,
    max_size=6,
)


@examples(100)
@given(st.sampled_from(EXAMPLES), bends, st.lists(st.integers(0, 1 << 10), max_size=3))
def test_valid_bytes_bent_are_a_protocol_error_or_messages(example: Any, bent: list[Any], cuts: list[int]) -> None:
    body = bytearray(b"\x91" + frames.encode_one(example))
    for how, where, byte in bent:
        at = where % (len(body) + 1)
        if how == "set" and at < len(body):
            body[at] = byte
        elif how == "insert":
            body.insert(at, byte)
        elif how == "delete":
            del body[at : at + 1 + byte % 4]
        else:
            body[at:at] = body[: 1 + byte % 16]
    data = len(body).to_bytes(4, "little") + bytes(body)
    for types in CONVERSATIONS.values():
        hear_distrustfully(types, chunks(data, cuts))


def hear_distrustfully(types: Any, parts: Sequence[bytes]) -> None:
    try:
        messages = read_all(frames.Decoder(types), parts)
    except RemoteProtocolError:
        return
    assert all(isinstance(message, members(types)) for message in messages)


# -- single traps


def test_a_frame_longer_than_allowed_is_refused_from_its_header_alone() -> None:
    with pytest.raises(RemoteProtocolError, match="at most"):
        frames.Decoder(m.FromClient).feed((frames.FRAME_BYTES_MAX + 1).to_bytes(4, "little"))


def test_a_frame_of_the_greatest_length_is_waited_for() -> None:
    decoder = frames.Decoder(m.FromClient)
    assert decoder.feed(frames.FRAME_BYTES_MAX.to_bytes(4, "little")) == []


@pytest.mark.parametrize(
    "data",
    [
        b"\x91" * 100_000 + b"\xc0",  # lists in lists
        b"\x81\xc0" * 100_000 + b"\xc0",  # maps in maps
        b"\x81\x80\x01",  # a map as key of a map
        b"\x81\x91\x80\x01",  # a list that holds a map, as key
        b"\xa1\xff",  # no UTF-8
        b"\xa3\xed\xa0\x80",  # half a surrogate pair
        b"\xd7\xff" + b"\xff" * 8,  # a moment with more nanoseconds than a second has
        b"\xc7\x0c\xff" + b"\x00" * 4 + b"\x7f" + b"\xff" * 7,  # a moment after the end of time
        b"\xdd\xff\xff\xff\xff",  # four billion items announced
        b"\xdf\xff\xff\xff\xff",  # four billion entries
        b"\xc6\xff\xff\xff\xff",  # four billion bytes
        b"\xc1",  # never used
        b"\x01\x01",  # something behind the end
    ],
    ids=lambda data: data[:6].hex(),
)
def test_data_made_to_break_a_decoder_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="undecodable"):
        frames.Decoder(m.FromNode).decode(STATE + data)


def test_a_message_of_another_conversation_is_a_protocol_error() -> None:
    with pytest.raises(RemoteProtocolError):
        frames.Decoder(m.ToZygote).feed(bytes(frames.encode([m.Hello(1, 2, "driver")])))
