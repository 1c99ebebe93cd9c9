"""The node's own spans: asked for like any process's, and given back when others want them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from lattica.codec import messages as m
from lattica.node.room import Room

MIB = 1 << 20


class Store:
    """Grants spans one after another while there are any; `on_return` is what a returned one sets off."""

    def __init__(self, spans: int) -> None:
        self.left, self.waiting, self.returned = spans, list[m.SpanRequest](), list[int]()
        self.client: Any = None
        self.on_return: Callable[[], object] = lambda: None

    def joined(self, client: int, token: bytes) -> None:
        pass

    def span(self, client: Any, message: m.SpanRequest) -> None:
        self.client = client
        if self.left:
            self.left -= 1
            client.send(m.SpanGrant(message.request, self.left * 8 * MIB, 8 * MIB))
        else:
            self.waiting.append(message)

    def cancel_span(self, client: Any, message: m.SpanCancel) -> None:
        self.waiting = [each for each in self.waiting if each.request != message.request]

    def span_back(self, client: Any, message: m.SpanReturn) -> None:
        self.returned.append(message.offset)
        self.on_return()


def room(spans: int) -> tuple[Room, Store, list[Any]]:
    store, later = Store(spans), list[Any]()
    node: Any = SimpleNamespace(
        clients={}, new_number=lambda: 1, store=store, closing=False,
        loop=SimpleNamespace(call_later=lambda _, call, *args: later.append((call, args))),
    )  # fmt: skip
    return Room(node, "values"), store, later


def test_who_waits_gets_the_room_that_another_object_leaves_and_the_request_is_taken_back() -> None:
    mine, store, _ = room(1)
    found: list[Any] = []
    mine.allocate(7 * MIB, lambda offset, denial: found.append(offset))
    mine.allocate(7 * MIB, lambda offset, denial: found.append(offset))
    assert len(found) == 1 and len(store.waiting) == 1
    mine.sealed(b"x", found[0])
    store.client.send(m.Freed(b"x"))
    assert len(found) == 2 and not store.waiting


def test_what_goes_is_named_before_its_place_is_given_away() -> None:
    mine, store, _ = room(1)
    told: list[Any] = []
    mine._going = told.append
    mine.allocate(7 * MIB, lambda offset, _: mine.sealed(b"x", offset or 0))
    mine.allocate(7 * MIB, lambda *_: told.append("its place"))
    store.client.send(m.Freed(b"x"))
    assert told == [b"x", "its place"]


def test_a_denial_reaches_who_asked() -> None:
    mine, store, _ = room(0)
    told: list[Any] = []
    mine.allocate(MIB, lambda offset, denial: told.append(denial))
    store.client.send(m.SpanDenied(store.waiting[0].request, "it is full"))
    assert told[0].detail == "it is full"


def test_spans_that_are_wanted_back_while_they_go_back_go_once() -> None:
    mine, store, _ = room(3)
    offsets: list[Any] = []
    for _ in range(3):
        mine.allocate(7 * MIB, lambda offset, denial: offsets.append(offset))
    for offset in offsets:
        mine.free(offset)
    store.on_return = lambda: store.client.send(m.SpanWanted())
    store.client.send(m.SpanWanted())
    assert sorted(store.returned) == [0, 8 * MIB, 16 * MIB]
