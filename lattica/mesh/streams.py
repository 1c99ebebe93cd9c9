"""The streams of a conversation's calls: items in their order, and who may write."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from lattica.errors import RemoteProtocolError
from lattica.mesh.credit import Inflow, Inflows, Outflow, Outflows
from lattica.mesh.messages import Came, Ended, Event, Item, Writable
from lattica.mesh.wire import Buffer


class Reading:
    """A stream of a call, as its reader sees it. flow: None once the call is over by its writer's books."""

    __slots__ = ("_slots", "_told", "ended", "flow")

    def __init__(self, flow: Inflow) -> None:
        self.flow: Inflow | None = flow
        self.ended = self._told = False  # its end came, and the shell knows
        self._slots: deque[tuple[Item, list[Buffer]]] = deque()  # items in order, and their bodies as far as they came

    def keep_place(self, item: Item) -> None:
        """An item's body may come later than those of its successors."""
        self._slots.append((item, []))

    def fill(self, item: Item, body: Buffer) -> None:
        """The body of an item that has a place."""
        next(bodies for kept, bodies in self._slots if kept is item).append(body)

    @property
    def behind(self) -> bool:
        """Items wait here for one before them."""
        return bool(self._slots)

    def pump(self, id: int, side: int, events: list[Event]) -> bool:
        """Tell of what is here. Whether that is all so far."""
        while self._slots and self._slots[0][1]:
            events.append(Came(id, side, self._slots.popleft()[1][0]))
        if self._slots:
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

    __slots__ = ("_inflows", "_outflows", "_owing", "_stalled")

    def __init__(self, window_bytes: tuple[int, int], together: int) -> None:
        """See `credit.Inflows`."""
        self._outflows = Outflows(window_bytes[0])
        self._inflows = Inflows(window_bytes, together)
        self._owing: dict[Inflow, tuple[int, int]] = {}  # its writer is to be given credit -> (call, our side)
        self._stalled: dict[Outflow, None] = {}  # wait until less is to be sent

    # -- reading

    def read(self) -> Reading:
        """A stream of theirs begins."""
        return Reading(self._inflows.open())

    def came(self, reading: Reading, size: int) -> None:
        """An item is here or announced. Raises RemoteProtocolError if it had no credit, or the stream has ended."""
        if reading.flow is None or reading.ended:
            raise RemoteProtocolError("an item of a stream that has ended")
        self._inflows.came(reading.flow, size)

    def consumed(self, reading: Reading, id: int, side: int, size: int) -> None:
        """Its reader, on this side of the call, has taken an item."""
        if reading.flow is not None and self._inflows.taken(reading.flow, size):
            self._owing[reading.flow] = id, side

    @property
    def stalled(self) -> bool:
        """Whether somebody waits for `less_waits`."""
        return bool(self._stalled)

    @property
    def owing(self) -> bool:
        """Whether `credits` has any."""
        return bool(self._owing)

    def credits(self) -> Iterator[tuple[int, int, int]]:
        """(call, our side, bytes) to be given now."""
        for flow, (id, side) in self._owing.items():
            yield id, side, self._inflows.credit(flow)
        self._owing.clear()

    def stop_reading(self, reading: Reading) -> None:
        """The call is over, by its writer's books."""
        if reading.flow is not None:
            self._owing.pop(reading.flow, None)
            self._inflows.close(reading.flow)
            reading.flow = None

    # -- writing

    def write(self, id: int) -> Writing:
        """A stream of ours begins."""
        return Writing(self._outflows.open(id))

    def may_write(self, writing: Writing, size: int, *, stall: bool) -> bool:
        """Whether an item may be sent. stall: not now, since much waits; `less_waits` will wake its writer."""
        if stall:
            self._stalled[writing.flow] = None
            return False
        return self._outflows.may(writing.flow, size)

    def spend(self, writing: Writing, size: int) -> None:
        """An item is sent."""
        self._outflows.spend(writing.flow, size)

    def give(self, writing: Writing, count: int, events: list[Event]) -> None:
        """Its reader gives credit. Raises RemoteProtocolError."""
        events += (Writable(flow.id) for flow in self._outflows.give(writing.flow, count))

    def less_waits(self, events: list[Event]) -> None:
        """What waited has been sent."""
        events += (Writable(flow.id) for flow in self._stalled)
        self._stalled.clear()

    def stop_writing(self, writing: Writing, events: list[Event]) -> None:
        """The call is over; who waits to write finds out when it is woken."""
        flow = writing.flow
        events += (Writable(other.id) for other in self._outflows.close(flow))
        if flow.waits or flow in self._stalled:
            self._stalled.pop(flow, None)
            events.append(Writable(flow.id))

    def validate(self, readings: list[Reading], writings: list[Writing]) -> None:
        self._inflows.validate([reading.flow for reading in readings if reading.flow is not None])
        self._outflows.validate([writing.flow for writing in writings])
