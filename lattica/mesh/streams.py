"""The streams of a conversation's calls: items in their order, and who may write."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from lattica.mesh.credit import Inflow, Inflows, Outflow, Outflows
from lattica.mesh.messages import Came, Ended, Event, Item, Writable
from lattica.mesh.wire import Buffer


class Reading:
    """A stream of a call, as its reader sees it. flow: None once the call is over by its writer's books."""

    __slots__ = ("_told", "ended", "flow", "slots")

    def __init__(self, flow: Inflow) -> None:
        self.flow: Inflow | None = flow
        self.ended = self._told = False  # its end came, and the shell knows
        self.slots: deque[tuple[Item, list[Buffer]]] = deque()
        """Items that wait for one before them, in order, and their bodies as far as they came."""

    def keep_place(self, item: Item) -> None:
        """An item's body may come later than those of its successors."""
        self.slots.append((item, []))

    def fill(self, item: Item, body: Buffer) -> None:
        """The body of an item that has a place."""
        next(bodies for kept, bodies in self.slots if kept is item).append(body)

    def pump(self, id: int, side: int, events: list[Event]) -> bool:
        """Tell of what is here. Whether that is all so far."""
        while self.slots and self.slots[0][1]:
            events.append(Came(id, side, self.slots.popleft()[1][0]))
        if self.slots:
            return False
        if self.ended and not self._told:
            self._told = True
            events.append(Ended(id, side))
        return True


class Writing:
    """A stream of a call, as its writer sees it."""

    __slots__ = ("ended", "flow")

    def __init__(self, flow: Outflow) -> None:
        self.flow = flow
        self.ended = False


class Streams:
    """All of one side of a session."""

    __slots__ = ("inflows", "outflows", "owing", "stalled")

    def __init__(self, window_bytes: tuple[int, int], together: int) -> None:
        """See `credit.Inflows`."""
        self.outflows = Outflows(window_bytes[0])
        self.inflows = Inflows(window_bytes, together)
        self.owing: dict[Inflow, tuple[int, int]] = {}  # its writer is to be given credit -> (call, our side)
        self.stalled: dict[Outflow, None] = {}  # wait for `less_waits`

    # -- reading

    def read(self) -> Reading:
        """A stream of theirs begins."""
        return Reading(self.inflows.open())

    def consumed(self, reading: Reading, id: int, side: int, size: int) -> None:
        """Its reader, on this side of the call, has taken an item."""
        if reading.flow is not None and self.inflows.taken(reading.flow, size):
            self.owing[reading.flow] = id, side

    def credits(self) -> Iterator[tuple[int, int, int]]:
        """(call, our side, bytes) to be given now."""
        for flow, (id, side) in self.owing.items():
            yield id, side, self.inflows.credit(flow)
        self.owing.clear()

    def stop_reading(self, reading: Reading) -> None:
        """The call is over, by its writer's books."""
        if reading.flow is not None:
            self.owing.pop(reading.flow, None)
            self.inflows.close(reading.flow)
            reading.flow = None

    # -- writing

    def write(self, id: int) -> Writing:
        """A stream of ours begins."""
        return Writing(self.outflows.open(id))

    def may_write(self, writing: Writing, size: int, *, stall: bool) -> bool:
        """Whether an item may be sent. stall: not now, since much waits; `less_waits` will wake its writer."""
        if stall:
            self.stalled[writing.flow] = None
            return False
        return self.outflows.may(writing.flow, size)

    def spend(self, writing: Writing, size: int) -> None:
        """An item is sent."""
        self.outflows.spend(writing.flow, size)

    def give(self, writing: Writing, count: int, events: list[Event]) -> None:
        """Its reader gives credit. Raises RemoteProtocolError."""
        events += (Writable(flow.id) for flow in self.outflows.give(writing.flow, count))

    def less_waits(self, events: list[Event]) -> None:
        """What waited has been sent."""
        events += (Writable(flow.id) for flow in self.stalled)
        self.stalled.clear()

    def stop_writing(self, writing: Writing, events: list[Event]) -> None:
        """The call is over; who waits to write finds out when it is woken."""
        flow = writing.flow
        events += (Writable(other.id) for other in self.outflows.close(flow))
        if flow.waits or flow in self.stalled:
            self.stalled.pop(flow, None)
            events.append(Writable(flow.id))

    def validate(self, readings: list[Reading], writings: list[Writing]) -> None:
        self.inflows.validate([reading.flow for reading in readings if reading.flow is not None])
        self.outflows.validate([writing.flow for writing in writings])
