"""The trace reads well, and its hash is equal for equal runs, in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum

import msgspec
import pytest

from lattica.testing.trace import Trace

PROGRAM = """
from tests.testing.test_trace import Opaque, digest_of
print(digest_of({"b", "a", "c"}, {b"x", b"y", 1}, {"k": frozenset({"p", "q"})}, Opaque(), hash))
"""


class Colour(Enum):
    RED = object()


class Opaque:
    """Its repr is an address."""


class Frame(msgspec.Struct):
    number: int
    payload: memoryview


@dataclass(eq=False)
class Node:
    name: str
    other: object = None
    tags: set[str] = field(default_factory=set)


def digest_of(*args: object, now: float = 1.0, what: str = "receive") -> str:
    trace = Trace()
    trace.note((now, "ann", what, args))
    return trace.digest()


def test_a_digest_is_the_same_in_two_processes_that_hash_strings_differently() -> None:
    def digest(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.check_output([sys.executable, "-c", PROGRAM], env=environment, text=True)

    assert digest("1") == digest("2")


@pytest.mark.parametrize(
    "args",
    [
        ("a",),
        (1, 2.5, None, b"x", [1, 2]),
        ({"b", "a", "c"},),
        ({1: "a", b"k": "b"},),  # msgpack's deterministic order knows only keys of text
        ({"a", 1, b"x"},),
        (1 << 70,),
        (Opaque(),),
        (Colour.RED,),
        (Frame(1, memoryview(b"abc")),),
        (print, ValueError("x"), Node),
    ],
)
def test_equal_steps_have_equal_digests_and_every_value_has_one(args: tuple[object, ...]) -> None:
    assert digest_of(*args) == digest_of(*args) != digest_of(*args, "more")


def test_objects_that_hold_themselves_have_a_digest() -> None:
    def ring() -> Node:
        node = Node("a", tags={"x", "y"})
        node.other = node
        return node

    assert digest_of(ring()) == digest_of(ring())


def test_time_verb_and_content_each_change_the_digest() -> None:
    digests = {digest_of(Node("a")), digest_of(Node("b")), digest_of(Node("a"), now=2.0), digest_of(what="tick")}
    assert len(digests) == 4


def test_the_digest_covers_all_steps_and_goes_on() -> None:
    one, other = Trace(shown=2), Trace(shown=2)
    for trace in (one, other):
        for n in range(10_000):
            trace.note((float(n), "ann", "receive", (b"x" * 20,)))
    other.digest()  # looking does not change it
    for trace in (one, other):
        trace.note((10_000.0, "ann", "tick", ()))
    assert one.digest() == other.digest() and len(one.digest()) == 16
    assert len(one.steps) == 2


def test_a_line_says_when_who_and_what_and_shows_the_content_of_buffers() -> None:
    trace = Trace()
    trace.note((0.25, "bob", "received", (7, [Frame(1, memoryview(b"abc"))])))
    trace.note((0.5, "bob", "crashed", None))
    trace.note((0.75, "bob", "receive", ("x" * 500,)))
    lines = trace.lines()
    assert lines[0] == "    0.250000  bob.received(7, [Frame(number=1, payload=<3 bytes: b'abc'>)])"
    assert lines[1] == "    0.500000  bob crashed"
    assert len(lines[2]) < 220
