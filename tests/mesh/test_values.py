"""Values as bytes: what comes back is what was sent, and noise is refused with words."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import RemoteProtocolError, SerializationError
from lattica.mesh import values
from lattica.mesh.values import ALIGN, BESIDE_FROM_BYTES, BUFFERS_MAX, PLAIN_MAX_BYTES, decode, encode

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(max_size=50),
    st.integers(BESIDE_FROM_BYTES - 2, BESIDE_FROM_BYTES + 2).map(bytes),
)
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=12,
)
kinds = st.sampled_from(["?", "i1", "u2", "<i4", ">i8", "f2", "f4", ">f8", "c8", "c16"])
shapes = st.lists(st.integers(0, 4), max_size=4)


def joined(value: Any) -> bytes:
    parts, size = encode(value)
    body = b"".join(parts)
    assert len(body) == size
    return body


def same(got: Any, sent: Any) -> bool:
    if isinstance(sent, np.ndarray):
        return got.dtype == sent.dtype and got.shape == sent.shape and got.tobytes() == sent.tobytes()
    if isinstance(sent, list | tuple):
        return isinstance(got, list) and len(got) == len(sent) and all(map(same, got, sent))
    if isinstance(sent, dict):
        return isinstance(got, dict) and got.keys() == sent.keys() and all(same(got[key], sent[key]) for key in sent)
    if isinstance(sent, bytes):
        return bytes(got) == sent
    return type(got) is type(sent) and got == sent


@given(plain)
def test_a_plain_value_comes_back_as_it_was(value: Any) -> None:
    assert same(decode(joined(value)), value)


@given(st.lists(st.tuples(kinds, shapes, st.booleans()), max_size=4), st.integers(0, 3))
def test_arrays_come_back_with_their_type_and_shape(arrays: list[Any], depth: int) -> None:
    made = []
    for kind, shape, fortran in arrays:
        array = np.arange(int(np.prod(shape)), dtype="i4").astype(kind).reshape(shape)
        made.append(np.asfortranarray(array) if fortran else array)
    value: Any = {"arrays": made, "more": 1}
    for _ in range(depth):
        value = [value]
    assert same(decode(joined(value)), value)


@given(st.lists(st.integers(BESIDE_FROM_BYTES, 3 * BESIDE_FROM_BYTES), min_size=1, max_size=5))
def test_long_buffers_are_aligned_and_views_of_what_came(sizes: list[int]) -> None:
    sent = [bytes([index]) * size for index, size in enumerate(sizes)]
    body = bytearray(joined(sent))
    got = decode(body)
    for view in got:
        assert isinstance(view, memoryview) and view.readonly
    assert list(map(bytes, got)) == sent
    whole, start = np.frombuffer(body, "u1"), None
    for view in got:
        start = np.frombuffer(view, "u1").__array_interface__["data"][0] - whole.__array_interface__["data"][0]
        assert start % ALIGN == 0, "as the sender laid it out"
    assert start is not None


def test_buffers_are_not_copied_on_their_way_out() -> None:
    array = np.zeros(100_000)
    parts, size = encode(([b"x" * BESIDE_FROM_BYTES, array], {"more": bytearray(BESIDE_FROM_BYTES)}))
    longest = max(parts, key=len)
    assert np.shares_memory(np.frombuffer(longest, "u1"), array)
    assert len(parts[0]) < 200 and size > 800_000, "the message itself is short: arguments by name lie beside it too"


def test_views_and_slices_can_be_sent_if_they_have_no_gaps() -> None:
    array = np.arange(24, dtype="f8").reshape(4, 6)[::2, ::3]
    assert same(decode(joined([array])), [np.ascontiguousarray(array)])
    view = memoryview(bytes(range(256)) * 32)
    assert bytes(decode(joined(view))) == bytes(view) and bytes(decode(joined([view[:10]]))[0]) == bytes(view[:10])
    assert bytes(decode(joined(memoryview(np.zeros((100, 100)))))) == bytes(80_000)
    with pytest.raises(SerializationError, match="a view with gaps"):
        encode(view[::2])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "a object cannot be sent"),
        ([{1, 2}.__iter__()], "cannot be sent"),
        (1 << 70, "cannot be sent"),
        (np.array([object()]), "an array of object cannot be sent"),
        (np.array(["text"]), "an array of <U4 cannot be sent"),
        ([bytes(BESIDE_FROM_BYTES)] * (BUFFERS_MAX + 1), "more than 255 large buffers"),
        (["x" * 1000] * (PLAIN_MAX_BYTES // 1000), "besides its arrays"),
        ("\ud800", "cannot be sent"),
    ],
    ids=["object", "iterator", "long", "objects", "texts", "buffers", "plain", "surrogate"],
)
def test_what_cannot_be_sent_is_refused_here_and_says_what_can(value: Any, words: str) -> None:
    with pytest.raises(SerializationError, match=words) as caught:
        encode(value)
    assert "do next" in str(caught.value)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(SerializationError):
        encode(value)


def ext(code: int, data: bytes, buffers: list[bytes] | None = None) -> bytes:
    """A value of one extension, with buffers that may be named."""
    body = msgspec.msgpack.encode(msgspec.msgpack.Ext(code, data))
    return with_buffers(body, buffers or [])


def with_buffers(body: bytes, buffers: list[bytes]) -> bytes:
    head = bytes([len(buffers)]) + len(body).to_bytes(4, "little")
    data = head + b"".join(len(buffer).to_bytes(8, "little") for buffer in buffers) + body
    for buffer in buffers:
        data += bytes(-len(data) % ALIGN) + buffer
    return data


def array(index: int, kind: str, shape: list[int], buffers: list[bytes] | None = None) -> bytes:
    about = msgspec.msgpack.encode([index, kind, shape])
    return ext(2, about, [bytes(16)] if buffers is None else buffers)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\0\0\0\0", b"\0\x05\0\0\0x", b"\0\0\0\0\0", b"\x02\0\0\0\0" + bytes(15),
        b"\x01\0\0\0\0" + (1 << 63).to_bytes(8, "little"), b"\0\x02\0\0\0\xa1\xff", b"\0\x01\0\0\0\xc1",
        with_buffers(b"\xc0\xc0", []), b"\0" + (5000).to_bytes(4, "little") + b"\x91" * 5000,
        ext(1, b""), ext(1, b"\0"), ext(1, b"\x01", [b"x"]), ext(1, b"\0\0", [b"x"]), ext(3, b"x", [b"x"]),
        ext(2, b"\xff", [b"x"]), array(1, "<i4", [4]), array(-1, "<i4", [4]), array(0, "<i4", [5]),
        array(0, "<i4", [-1]), array(0, "O", [2]), array(0, "|O8", [2]), array(0, ">i4,O", [1]), array(0, "<M8", [2]),
        array(0, "<i3", [2]), array(0, "<f4", [1] * 33), array(0, "<i4", [1 << 62, 4]), array(0, "V16", [1]),
        with_buffers(b"\x92" + msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"\0")) * 2, [b"x"]),
        b"\0" + (PLAIN_MAX_BYTES + 1).to_bytes(4, "little") + bytes(10),
    ],
    ids=range(30),
)  # fmt: skip
def test_a_body_that_is_no_value_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(body)


def test_more_arguments_than_buffers_stay_in_the_message() -> None:
    assert values.decode(joined([b"x" * 100] * 1000)) == [b"x" * 100] * 1000
