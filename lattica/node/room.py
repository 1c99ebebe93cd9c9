"""Spans of the arena for what the node itself writes there: it asks for them as any process does, and waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import time
from typing import TYPE_CHECKING, Any

from lattica.codec import messages as m
from lattica.node.clients import STORE
from lattica.node.proxies import proxy
from lattica.objectstore.suballocator import Suballocator, span_bytes_for

if TYPE_CHECKING:
    from lattica.node.server import Node

SPAN_ROUND_S = 2.0
"""As in the processes: a span that was empty for a whole round goes back."""
Found = Callable[[int | None, m.SpanDenied | None], object]


class Room:
    """See the module. `client` is who has the spans."""

    def __init__(self, node: Node, name: str, going: Callable[[bytes], object] = lambda object_: None) -> None:
        """going(object): nobody holds what was `sealed` any more; its place is given away next."""
        self._node, self._going, number = node, going, node.new_number()
        self.client = proxy(number, STORE, 0, time(), name, self._told)
        node.clients[number] = self.client
        node.store.joined(number, b"")
        self._regions = Suballocator()
        self._sealed: dict[bytes, int] = {}
        self._waiting: dict[int, tuple[int, Found]] = {}  # request -> bytes, whom to tell
        self._requests = 0
        self._sweeping = False

    def __repr__(self) -> str:
        return f"<Room: {self._regions!r}, {len(self._waiting)} wait>"

    def allocate(self, size: int, found: Found) -> None:
        """Have `found(offset, None)` called, now or later; `found(None, denial)` if there is no room."""
        offset = self._regions.allocate(size)
        if offset is not None:
            found(offset, None)
            return
        self._requests += 1
        self._waiting[self._requests] = size, found
        wish = span_bytes_for(size, self._regions.span_bytes)
        self._node.store.span(self.client, m.SpanRequest(self._requests, size, wish))

    def sealed(self, object_: bytes, offset: int) -> None:
        """The ledger knows what lies there, and says when it is free."""
        self._sealed[object_] = offset

    def free(self, offset: int) -> None:
        """Nothing is there any more."""
        self._regions.free(offset)
        self._sweep_soon()

    def _told(self, message: Any) -> None:
        match message:
            case m.SpanGrant():
                self._regions.add_span(message.offset, message.size)
                wanted = self._waiting.pop(message.request, None)
                if wanted is not None:
                    self.allocate(*wanted)
                else:
                    self._sweep_soon()
            case m.SpanDenied():
                wanted = self._waiting.pop(message.request, None)
                if wanted is not None:
                    wanted[1](None, message)
            case m.Freed(object_):
                offset = self._sealed.pop(object_, None)
                if offset is not None:
                    self._going(object_)
                    self.free(offset)
                    self._use()
            case m.SpanWanted():
                self._return(self._regions.empty_spans())

    def _use(self) -> None:
        """Something went: who waits may fit now."""
        for request, (size, found) in list(self._waiting.items()):
            offset = self._regions.allocate(size)
            if offset is not None:
                del self._waiting[request]
                self._node.store.cancel_span(self.client, m.SpanCancel(request))
                found(offset, None)

    def _sweep(self) -> None:
        self._sweeping = False
        if not self._node.closing:
            self._return(self._regions.sweep())
            if self._regions.empty_spans():
                self._sweep_soon()

    def _sweep_soon(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._node.loop.call_later(SPAN_ROUND_S, self._sweep)

    def _return(self, spans: Sequence[tuple[int, int]]) -> None:
        for offset, size in list(spans):
            if (offset, size) not in self._regions.empty_spans():
                continue  # the one before was granted to somebody, whose like asked us for this one meanwhile
            self._regions.remove_span(offset)
            self._node.store.span_back(self.client, m.SpanReturn(offset, size))
