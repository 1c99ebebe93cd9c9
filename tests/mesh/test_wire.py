"""Frames between two peers: golden bytes, and a decoder that trusts nobody."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import RemoteProtocolError
from lattica.mesh import messages as m
from lattica.mesh import wire
from lattica.mesh.wire import Ack, Bye, Data, Decoder, Hello, Ping, Pong, Proof, Prove, Want, data_head, encode
from tests.mesh.wire_examples import DATA, FRAMES, GOLDEN, MESSAGES, encoded, join, members

golden = json.loads(GOLDEN.read_text())
HELLO = Hello(boot=1, instance=b"12345678")

u64 = st.integers(0, (1 << 64) - 1)
frames = st.one_of(
    st.builds(Ack, u64),
    st.builds(Ping, u64),
    st.builds(Pong, u64),
    st.builds(Want, st.sampled_from((0, 1))),
    st.builds(Bye, st.text(max_size=20), st.text(max_size=99), u64, st.binary(max_size=32), st.binary(max_size=64)),
    st.builds(Prove, st.binary(max_size=32)),
    st.builds(Proof, st.binary(max_size=64)),
    st.builds(Data, u64, u64, st.one_of(st.binary(max_size=99), st.integers(30_000, 300_000).map(bytes))),
)


def written(frame: Any) -> bytes:
    if isinstance(frame, Data):
        return data_head(len(frame.payload), frame.seq, frame.ack) + bytes(frame.payload)
    return join(encode(frame))


def plain(found: list[Any]) -> list[Any]:
    """Frames that compare: payloads as bytes."""
    return [Data(f.seq, f.ack, bytes(f.payload)) if isinstance(f, Data) else f for f in found]


def raw(kind: int, body: bytes) -> bytes:
    return (len(body) + 1).to_bytes(4, "little") + bytes([kind]) + body


def trusting() -> Decoder:
    decoder = Decoder()
    decoder.feed(join(encode(HELLO)))
    return decoder


def test_every_frame_and_message_has_golden_bytes() -> None:
    assert {type(frame).__name__ for frame in FRAMES} | {"Data"} == members(wire.Received), "add it to FRAMES"
    assert {type(message).__name__ for message in MESSAGES} == members(m.Message), "add the new message to MESSAGES"
    assert encoded().keys() == golden.keys(), "write the golden bytes: python -m tests.mesh.wire_examples"


@pytest.mark.parametrize("name", sorted(golden))
def test_what_two_peers_say_has_its_golden_bytes(name: str) -> None:
    assert encoded()[name] == golden[name], f"the wire format of {name} changed; older releases cannot read it"


@pytest.mark.parametrize("example", [*FRAMES, *MESSAGES], ids=lambda example: type(example).__name__)
def test_an_example_sets_every_field_to_something_else_than_its_default(example: msgspec.Struct) -> None:
    for field in msgspec.structs.fields(type(example)):
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        assert getattr(example, field.name) != default, f"{type(example).__name__}.{field.name} is not exercised"


def test_golden_bytes_are_read_as_what_they_were() -> None:
    for example in [*FRAMES, DATA]:
        data = bytes.fromhex(golden[f"frame {type(example).__name__}"])
        assert plain(Decoder().feed(data)) == [example]
    for example in MESSAGES:
        assert m.decode(bytes.fromhex(golden[f"message {type(example).__name__}"])) == [example]


def test_fields_of_a_later_release_are_ignored() -> None:
    fields = msgspec.to_builtins(HELLO, builtin_types=(bytes,)) | {"color": "blue"}
    assert Decoder().feed(raw(wire.HELLO, msgspec.msgpack.encode(fields))) == [HELLO]
    longer = [*msgspec.msgpack.decode(m.encode(MESSAGES[-1])), {"new": 1}]
    assert m.decode(msgspec.msgpack.encode([longer])) == [MESSAGES[-1]]


@given(st.lists(frames, max_size=12), st.data())
def test_the_decoder_gives_the_same_frames_however_the_bytes_are_cut(sent: list[Any], data: st.DataObject) -> None:
    stream = b"".join(map(written, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    decoder, found = trusting(), list[Any]()
    for start, stop in zip([0, *cuts], [*cuts, len(stream)]):
        found += decoder.feed(stream[start:stop])
    assert plain(found) == sent
    assert repr(decoder) == "<Decoder: 0 bytes wait, 0 of a long frame>"


@given(st.lists(frames, min_size=1, max_size=12), st.integers(1, 5000))
def test_reading_into_the_window_gives_the_same_as_feeding(sent: list[Any], step: int) -> None:
    stream = memoryview(b"".join(map(written, sent)))
    decoder, found, at = trusting(), list[Any](), 0
    while at < len(stream):
        window = decoder.window()
        assert len(window) > 0, "a window is never empty"
        count = min(len(window), step, len(stream) - at)
        window[:count] = stream[at : at + count]
        found += decoder.advance(count)
        at += count
    assert plain(found) == sent


def test_a_payload_is_not_touched_by_what_is_read_after_it() -> None:
    decoder = trusting()
    first = decoder.feed(written(Data(1, 0, b"first" * 100)))[0]
    long = decoder.feed(written(Data(2, 0, b"long!" * 20_000)))[0]
    for number in range(50):
        decoder.feed(written(Data(number, 0, bytes([number]) * 20_000)))
    assert bytes(first.payload) == b"first" * 100 and bytes(long.payload) == b"long!" * 20_000


def test_memory_of_a_long_frame_is_used_again_once_nobody_looks_at_any_part_of_it() -> None:
    decoder = trusting()

    def chunk(number: int) -> memoryview:
        return decoder.feed(written(Data(number, 0, bytes([number]) * 300_000)))[0].payload

    kept = chunk(1)[1000:1001]
    first, memory = chunk(2), set[int]()
    memory.add(id(first.obj))
    del first
    for number in range(3, 20):
        payload = chunk(number)
        assert bytes(payload) == bytes([number]) * 300_000
        memory.add(id(payload.obj))
    assert bytes(kept) == b"\x01" and id(kept.obj) not in memory
    assert len(memory) <= 2, "the one before is looked at while the next is read"
    many = [chunk(number) for number in range(100)]
    assert [payload[0] for payload in many] == list(range(100)) and len({id(payload.obj) for payload in many}) == 100


def test_before_the_hello_nothing_longer_than_a_hello_is_taken() -> None:
    long = written(Data(1, 0, bytes(100_000)))
    with pytest.raises(RemoteProtocolError, match=r"100017 bytes was announced; 1 to 16384"):
        Decoder().feed(long[:5])
    assert len(Decoder().feed(join(encode(HELLO)) + long)) == 2, "right behind the hello it is allowed"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\0\0\x01", "a frame of 0 bytes"),
        ((wire.FRAME_MAX_BYTES + 1).to_bytes(4, "little") + b"\x02", "was announced; 1 to"),
        ((40_000).to_bytes(4, "little") + b"\x07", "a frame of kind 7 has 40000 bytes"),
        (raw(0, b""), "kind 0, which does not exist"),
        (raw(10, b"xx"), "kind 10, which does not exist"),
        (raw(wire.DATA, bytes(15)), "shorter than its numbers"),
        (raw(wire.ACK, bytes(7)), "7 bytes instead of 8"),
        (raw(wire.PING, bytes(9)), "9 bytes instead of 8"),
        (raw(wire.WANT, b"\x02"), "a plane that does not exist"),
        (raw(wire.WANT, b""), "a plane that does not exist"),
        (raw(wire.PROVE, bytes(33)), "has 33 bytes"),
        (raw(wire.PROOF, bytes(65)), "has 65 bytes"),
        (raw(wire.HELLO, b"\xc1"), "hello is undecodable"),
        (raw(wire.HELLO, b"\x80"), "hello is undecodable"),
        (raw(wire.BYE, b"\x81\xa4code\xa1\xff"), "farewell is undecodable"),
        (raw(wire.BYE, b"\x91" * 5000), "farewell is undecodable"),
        (join(encode(Bye("twin", boot=1, instance=bytes(33)))), "a process that cannot be"),
    ],
)
def test_a_frame_that_breaks_a_rule_is_refused_with_words(data: bytes, words: str) -> None:
    with pytest.raises(RemoteProtocolError, match=words):
        trusting().feed(data)


@pytest.mark.parametrize(
    "change",
    [
        {"boot": -1}, {"plane": 2}, {"session": -1}, {"received": -1}, {"instance": bytes(33)},
        {"unix_s": float("nan")}, {"unix_s": 1e13}, {"name": "n" * 257}, {"version": "v" * 257},
        {"addresses": ["a" * 257]},
    ],
    ids=str,
)  # fmt: skip
def test_a_hello_with_a_field_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="its hello has a"):
        Decoder().feed(join(encode(msgspec.structs.replace(HELLO, **change))))


def test_long_words_of_a_farewell_are_cut() -> None:
    assert Decoder().feed(join(encode(Bye("c" * 999, "t" * 999)))) == [Bye("c" * 256, "t" * 256)]
