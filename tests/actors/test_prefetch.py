"""Arguments of actor calls that lie elsewhere, fetched before the call starts: over objects that are models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lattica.actors.lines import Lines
from lattica.actors.prefetch import Prefetch
from lattica.actors.refs import Hold, InPlace, Releases
from lattica.codec import messages as m

ANN = 3


class FakeObjects:
    """As far as `Prefetch` looks at them; `word` is what a node says."""

    def __init__(self) -> None:
        self.gone: dict[bytes, m.Lost] = {}
        self.asked: list[bytes] = []
        self.then: dict[bytes, list[Callable[[], None]]] = {}
        self.holds: list[Hold] = []

    def from_wire(self, value: Any, via: int) -> Any:
        if type(value) is not m.InArena:
            return value
        self.holds.append(Hold(Releases(), value.object, -1 if via else value.offset, value.size))
        return InPlace(self.holds[-1])

    def away(self, hold: Hold) -> bool:
        return hold.offset < 0

    def lost(self, id: bytes) -> m.Lost | None:
        return self.gone.get(id)

    def fetch(self, holds: list[Hold], then: Callable[[], None]) -> None:
        self.asked += [hold.id for hold in holds]
        self.then.setdefault(holds[0].id, []).append(then)

    def word(self, id: bytes, *, here: bool = True, lost: bool = False) -> None:
        for hold in self.holds:
            if hold.id == id and here and not lost:
                hold.offset = 64
        if lost:
            self.gone[id] = m.Lost(id, "nobody")
        for then in self.then.pop(id, []):
            then()


class FakeRuntime:
    def __init__(self) -> None:
        self.objects = FakeObjects()

    def nudge_node(self) -> None: ...


@pytest.fixture
def world() -> tuple[Lines[m.Call], FakeObjects, Prefetch, list[int]]:
    runtime, lines, changes = FakeRuntime(), Lines[m.Call](1), []
    prefetch = Prefetch(runtime, lines, lambda: changes.append(1))  # type: ignore[arg-type]
    return lines, runtime.objects, prefetch, changes


def call(seq: int, *objects: bytes, args: m.Value = b"") -> m.Call:
    return m.Call(seq, b"r" * 16, "step", args, 1, [m.InArena(each, 64, 200) for each in objects], list(range(9)))


def arrives(lines: Lines[m.Call], prefetch: Prefetch, message: m.Call, via: int = ANN) -> None:
    lines.put(ANN, message)
    prefetch.arrived(ANN, via, message)
    prefetch.go_on()


def test_a_call_starts_when_all_that_it_needs_has_come(world: Any) -> None:
    lines, objects, prefetch, changes = world
    arrives(lines, prefetch, call(1, b"x", b"y", args=m.WithRefs(b"args", [])))
    assert objects.asked == [b"x", b"y"] and lines.next() is None
    objects.word(b"x")
    assert lines.next() is None and not changes
    objects.word(b"y")
    assert changes and lines.next() == (ANN, call(1, b"x", b"y", args=m.WithRefs(b"args", [])))
    kept = prefetch.take(ANN, 1)
    assert kept[0] == m.WithRefs(b"args", []) and [value.hold.id for value in kept[1:]] == [b"x", b"y"]
    assert prefetch.take(ANN, 1) is None


def test_what_lies_here_is_not_waited_for_and_stays_in_the_message(world: Any) -> None:
    lines, objects, prefetch, _ = world
    arrives(lines, prefetch, call(1, b"x"), via=0)
    assert lines.next() == (ANN, call(1, b"x")) and prefetch.take(ANN, 1) is None and not objects.asked


def test_a_call_whose_argument_is_lost_starts_too_and_hears_of_that_then(world: Any) -> None:
    lines, objects, prefetch, _ = world
    arrives(lines, prefetch, call(1, b"x"))
    objects.word(b"x", lost=True)
    assert lines.next() is not None
    assert prefetch.take(ANN, 1)[1].hold.offset < 0


def test_what_is_being_made_again_is_asked_for_once_more(world: Any) -> None:
    """Its own process owned it and has lost it: the word is that it will have another value."""
    lines, objects, prefetch, _ = world
    arrives(lines, prefetch, call(1, b"x"))
    objects.word(b"x", here=False)
    assert objects.asked == [b"x", b"x"] and lines.next() is None
    objects.word(b"x")
    assert lines.next() is not None


def test_word_of_a_call_that_was_cancelled_meanwhile_is_nobody_s(world: Any) -> None:
    lines, objects, prefetch, changes = world
    arrives(lines, prefetch, call(1, b"x"))
    assert lines.cancel(ANN, 1) is not None and prefetch.take(ANN, 1) is not None
    objects.word(b"x")
    assert not changes and lines.drained
