"""The wire between processes: every message has golden bytes, a number of its own, and room to grow."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from lattica.codec import frames
from lattica.codec import messages as m
from tests.codec.examples import CONVERSATIONS, EXAMPLES, GOLDEN, all_types, encoded, members

golden = json.loads(GOLDEN.read_text())
one_of_each = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
messages_only = pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if type(e) not in members(m.Value)], ids=lambda example: type(example).__name__
)


def types_of(message: Any) -> Any:
    return next(union for union in CONVERSATIONS.values() if type(message) in members(union))


def test_every_message_has_one_example_and_golden_bytes() -> None:
    names = sorted(kind.__name__ for kind in all_types())
    assert sorted(type(example).__name__ for example in EXAMPLES) == names, "add the new message to EXAMPLES"
    assert sorted(golden) == names, "write the golden bytes: python -m tests.codec.examples"


@one_of_each
def test_an_example_sets_every_field_to_something_else_than_its_default(example: msgspec.Struct) -> None:
    for field in msgspec.structs.fields(type(example)):
        value = getattr(example, field.name)
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        assert value != default, f"{type(example).__name__}.{field.name} is not exercised"


@one_of_each
def test_a_message_has_its_golden_bytes(example: msgspec.Struct) -> None:
    name = type(example).__name__
    assert encoded()[name] == golden[name], f"the wire format of {name} changed; older releases cannot read it"


@messages_only
def test_golden_bytes_are_read_as_the_message_they_were(example: msgspec.Struct) -> None:
    body = b"\x91" + bytes.fromhex(golden[type(example).__name__])
    assert frames.Decoder(types_of(example)).decode(body) == [example]


@messages_only
def test_a_field_that_a_later_release_appended_is_ignored(example: msgspec.Struct) -> None:
    longer = msgspec.msgpack.encode([*msgspec.msgpack.decode(frames.encode_one(example)), {"new": [1, 2]}])
    assert frames.Decoder(types_of(example)).decode(b"\x91" + longer) == [example]


@messages_only
def test_fields_that_an_earlier_release_did_not_send_have_their_defaults(example: msgspec.Struct) -> None:
    kind = type(example)
    required = [field.name for field in msgspec.structs.fields(kind) if field.required]
    assert required == list(kind.__struct_fields__[: len(required)]), "a field without default after one with"
    shorter = msgspec.msgpack.encode(msgspec.msgpack.decode(frames.encode_one(example))[: 1 + len(required)])
    (read,) = frames.Decoder(types_of(example)).decode(b"\x91" + shorter)
    assert read == kind(*(getattr(example, name) for name in required))


def test_no_two_messages_share_a_number() -> None:
    numbers = [kind.__struct_config__.tag for kind in all_types() if kind not in members(m.Value)]
    assert len(set(numbers)) == len(numbers)
    values = [kind.__struct_config__.tag for kind in members(m.Value) if kind is not bytes]
    assert sorted(values) == [1, 2, 3]


def test_every_message_belongs_to_exactly_one_conversation_or_is_a_value() -> None:
    placed = [kind for union in (*CONVERSATIONS.values(), m.Value) for kind in members(union) if kind is not bytes]
    assert sorted(map(repr, placed)) == sorted(map(repr, all_types()))
