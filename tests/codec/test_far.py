"""The wire between nodes: every message has golden bytes, a number of its own and room to grow, and noise is refused.

python -m tests.codec.test_far      write tests/golden/far.json anew: the diff is the change of the wire
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.codec import far
from lattica.errors import RemoteProtocolError
from tests.conftest import examples

GOLDEN = Path(__file__).parents[1] / "golden" / "far.json"
OBJECT, ACTOR, JOB, PEER = bytes(range(16)), b"a" * 12, b"j" * 16, b"p" * 32
CPU = {"CPU": 1.5}
LIFE = (2, 1_700_000_000_000 << 16, True)

EXAMPLES: list[Any] = [
    far.JobIs(
        JOB,
        b"token",
        PEER,
        "/usr/bin/python3",
        "3.11",
        ["/lib"],
        "/home/u",
        "train.py",
        "space",
        False,
        ["torch"],
        {"A": "b"},
        [("working_dir", "bafk")],
        b"r" * 16,
        b"installs",
        60.0,
    ),
    far.Begins(4, 3),
    far.JobOver(JOB, True),
    far.AskLease(7, JOB, CPU, 2.5, False, "step", True, b"within", 0.5, ACTOR, LIFE),
    far.DropAsk(7),
    far.LeaseIs(7, 9, 3, 4711, [0, 1], b"load"),
    far.LeaseNot(7, "no GPU here", True, b"load", True),
    far.GiveBack(9, 0.25, 0.5),
    far.KillWorker(9, 12, "its connection broke", 5),
    far.Wanted(),
    far.WorkerOver(3, 9, 12, b"\xdd\x00\x00\x00\x00", "killed by SIGKILL", "last words", True),
    far.ToWorker(3, 5, b"message", LIFE, b"key"),
    far.FromWorker(3, b"message"),
    far.EndWorker(3, True),
    far.Output(JOB, "step", 4711, 2, ["one", "two"]),
    far.JobGone(JOB),
    far.Open(2, 3, 5, JOB, 8, ACTOR, 2, LIFE, ACTOR, LIFE, b"key"),
    far.Opened(2, 5),
    far.Carry(2, b"bytes"),
    far.Taken(2, 65536),
    far.Closed(2, "the process has ended it", True),
    far.Took(5, OBJECT, 1, True),
    far.Returned(OBJECT),
    far.Want(OBJECT, True, True),
    far.Here(OBJECT, 5, True, [OBJECT, ACTOR], b"bytes", [PEER], b"cid", True, 2),
    far.Nowhere(OBJECT, "worker 3, killed by SIGKILL", "train.py:48"),
    far.Has(OBJECT, b"cid"),
    far.Stop(OBJECT, True, False),
    far.Going(),
    far.MayGo(),
    far.ActorWanted(ACTOR),
    far.ActorAt(ACTOR, 2, PEER, 3, LIFE, b"key"),
    far.ActorIsDown(b"message"),
    far.ActorEnd(ACTOR, False),
    far.Claiming(b"claim"),
    far.WhoHas(7, b"space\0name"),
    far.NameRow(7, b"row"),
    far.HoldActor(7, ACTOR),
    far.ActorHeld(7, "Counter", b"meta", "it has just ended"),
    far.Keep(b"cid", 700_000, 262_144, b"piece"),
    far.KeptWanted(b"cid", 1_048_576),
    far.NotKept(b"cid", "full"),
    far.Kept(b"cid"),
    far.Unkeep(b"cid"),
    far.GroupReserve(OBJECT, 2, JOB, [(1, CPU)]),
    far.GroupCommit(OBJECT, 2, 9),
    far.GroupAbort(OBJECT, 2),
    far.GroupReserved(OBJECT, 2, 9),
    far.GroupDenied(OBJECT, 2, "no GPU here"),
    far.GroupCommitted(OBJECT, 2),
    far.GroupExpired(OBJECT, 2),
    far.GroupWatch(OBJECT),
    far.GroupIs(OBJECT, "CREATED", "a node has gone", "trial", "PACK", [CPU], [PEER]),
    far.GroupEnd(OBJECT),
    far.GroupNamed(7, "space", "trial"),
    far.GroupFound(7, OBJECT),
]
golden: dict[str, str] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
one_of_each = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)


def encoded() -> dict[str, str]:
    return {type(example).__name__: far.encode([example]).hex() for example in EXAMPLES}


def test_every_message_has_one_example_and_golden_bytes() -> None:
    names = sorted(kind.__name__ for kind in get_args(far.FarMessage))
    assert sorted(type(example).__name__ for example in EXAMPLES) == names, "add the new message to EXAMPLES"
    assert sorted(golden) == names, "write the golden bytes: python -m tests.codec.test_far"
    structs = [thing for thing in vars(far).values() if isinstance(thing, type) and issubclass(thing, msgspec.Struct)]
    assert sorted(kind.__name__ for kind in structs) == names, "it is in no union"


def test_no_two_messages_share_a_number() -> None:
    numbers = [kind.__struct_config__.tag for kind in get_args(far.FarMessage)]
    assert len(set(numbers)) == len(numbers)


@one_of_each
def test_an_example_sets_every_field_to_something_else_than_its_default(example: msgspec.Struct) -> None:
    for field in msgspec.structs.fields(type(example)):
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        assert getattr(example, field.name) != default, f"{type(example).__name__}.{field.name} is not exercised"


@one_of_each
def test_a_message_has_its_golden_bytes_and_is_read_from_them(example: msgspec.Struct) -> None:
    name = type(example).__name__
    assert encoded()[name] == golden[name], f"the wire format of {name} changed; older releases cannot read it"
    assert far.decode(bytes.fromhex(golden[name])) == [example]


@one_of_each
def test_a_field_that_a_later_release_appended_is_ignored(example: msgspec.Struct) -> None:
    (fields,) = msgspec.msgpack.decode(far.encode([example]))
    assert far.decode(msgspec.msgpack.encode([[*fields, {"new": [1, 2]}]])) == [example]


@one_of_each
def test_fields_that_an_earlier_release_did_not_send_have_their_defaults(example: msgspec.Struct) -> None:
    required = [field.name for field in msgspec.structs.fields(type(example)) if field.required]
    assert required == list(example.__struct_fields__[: len(required)]), "a field without default after one with"
    (fields,) = msgspec.msgpack.decode(far.encode([example]))
    assert far.decode(msgspec.msgpack.encode([fields[: 1 + len(required)]])) == [
        type(example)(*(getattr(example, name) for name in required))
    ]


@examples(100)
@given(st.binary(max_size=300))
def test_noise_is_a_protocol_error_or_messages(noise: bytes) -> None:
    read_distrustfully(noise)


bends = st.lists(
    st.tuples(st.sampled_from(["set", "insert", "delete", "double"]), st.integers(0, 1 << 16), st.integers(0, 255)),
    min_size=1,
    max_size=6,
)


@examples(100)
@given(st.lists(st.sampled_from(EXAMPLES), min_size=1, max_size=3), bends)
def test_valid_bytes_bent_are_a_protocol_error_or_messages(examples: list[Any], bent: list[Any]) -> None:
    item = bytearray(far.encode(examples))
    for how, where, byte in bent:
        at = where % (len(item) + 1)
        if how == "set" and at < len(item):
            item[at] = byte
        elif how == "insert":
            item.insert(at, byte)
        elif how == "delete":
            del item[at : at + 1 + byte % 4]
        else:
            item[at:at] = item[: 1 + byte % 16]
    read_distrustfully(bytes(item))


def read_distrustfully(item: bytes) -> None:
    try:
        messages = far.decode(item)
    except RemoteProtocolError:
        return
    assert all(isinstance(message, get_args(far.FarMessage)) for message in messages)


def test_an_item_that_is_too_long_is_a_protocol_error() -> None:
    with pytest.raises(RemoteProtocolError, match="an item of"):
        far.decode(memoryview(bytearray(far.ITEM_MAX_BYTES + 1)))


def test_deep_nesting_is_a_protocol_error() -> None:
    with pytest.raises(RemoteProtocolError):
        far.decode(b"\x91" * 100_000)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(encoded(), indent=1) + "\n")
    print(f"{len(EXAMPLES)} messages are in {GOLDEN}")
