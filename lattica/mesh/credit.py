"""Credit for bodies: what a sender may send, and what a receiver lets come.

Two kinds. All calls of one side share an account, and so do all answers, apart from the calls: an answer never waits
for a call. Each stream has one of its own in each direction, which grows while its reader waits for its writer.

An account with anything left may be overdrawn by one body of any size up to BODY_MAX_BYTES, so nothing is too long to
ever be sent; all streams together by as much. So a receiver holds at most `held_max_bytes` of one session, and that is
what it enforces: it sees what was sent and what it gave back in order, so a sender that keeps to the rules never has
more under way by its receiver's books than by its own.
Source: RFC 9113 §5.2 and §6.9 (HTTP/2), where nothing may be overdrawn, and long messages are cut.
"""

from __future__ import annotations

from lattica.errors import RemoteProtocolError
from lattica.mesh.messages import BODY_MAX_BYTES

CALLS_WINDOW_BYTES = 16 << 20  # of calls, and of answers: bandwidth x delay of 100 MB/s over 150 ms
STREAM_WINDOW_BYTES = (64 << 10, 16 << 20)
"""Of a stream at first (RFC 9113 §6.9.2 has as much), and of one whose reader keeps up: four round trips later."""
GROWTH = 4  # by which a window is multiplied while its reader waits: with 2, half of a short transfer is over before
STREAMS_WINDOW_BYTES = 48 << 20  # by which all streams of a session together may grow
ITEM_COST_BYTES = 64  # what an item costs besides its bytes, so that empty ones have a bound as well
OVERDRAFT_MAX_BYTES = BODY_MAX_BYTES + ITEM_COST_BYTES  # of all streams together
RUNNING_MAX_BYTES = 256 << 20
"""Arguments of calls that run, with which credit is still given back when they begin; beyond it, when they end."""
CREDIT_MAX_BYTES = 64 << 20
"""Of one account: four times what this release gives. A later one may give more; without a bound its reader could
have us make items faster than we can send them."""


def held_max_bytes(calls_max: int, calls_window: int, stream_window: int, streams_window: int) -> int:
    """What one side of a session can have sent and not been given back: the receiver's memory, in the worst case."""
    unary = 2 * (calls_window + BODY_MAX_BYTES)
    return unary + calls_max * stream_window + streams_window + OVERDRAFT_MAX_BYTES


class Account:
    """What a sender may spend on calls, or on answers."""

    __slots__ = ("credit",)

    def __init__(self, window_bytes: int) -> None:
        self.credit = window_bytes

    def give(self, count: int) -> None:
        """The other side gives some back. Raises RemoteProtocolError if it cannot have that much to give."""
        if count <= 0 or self.credit + count > CREDIT_MAX_BYTES:
            raise RemoteProtocolError(f"a grant of {count} bytes on top of {self.credit}")
        self.credit += count


class Tally:
    """What a receiver knows of the other side's account."""

    __slots__ = ("least", "out", "owed", "window")

    def __init__(self, window_bytes: int) -> None:
        self.window = window_bytes
        self.least = window_bytes // 16  # to be given back at once: more often costs messages
        self.out = 0  # came, and was not given back
        self.owed = 0  # of it: was taken, and is to be given back

    def came(self, size: int) -> None:
        """A body is here, or announced. Raises RemoteProtocolError if there was no credit left for it."""
        if self.out >= self.window:
            raise RemoteProtocolError(f"a body of {size} bytes came without credit")
        self.out += size

    def due(self, withheld: int = 0) -> bool:
        """Whether there is enough to give back for a message."""
        return self.owed - withheld >= self.least

    def grant(self, withheld: int = 0) -> int:
        """How much to give back now."""
        count = self.owed - withheld
        self.owed -= count
        self.out -= count
        return count


class Outflow:
    """One stream, as its sender sees it."""

    __slots__ = ("credit", "id", "waits")

    def __init__(self, id: int, credit: int) -> None:
        self.id, self.credit = id, credit
        self.waits = False  # somebody wants to send

    @property
    def overdrawn(self) -> int:
        """Bytes beyond its credit."""
        return max(-self.credit, 0)


class Outflows:
    """All streams that one side sends."""

    __slots__ = ("_overdrawn", "_poor", "window")

    def __init__(self, window_bytes: int) -> None:
        self.window = window_bytes
        self._overdrawn = 0
        self._poor: dict[Outflow, None] = {}  # would overdraw more than is allowed, and wait for others

    def open(self, id: int) -> Outflow:
        """A stream begins."""
        return Outflow(id, self.window)

    def may(self, flow: Outflow, size: int) -> bool:
        """Whether an item of `size` bytes may be sent; if not, `give` or `close` will say when it is worth asking."""
        missing = size + ITEM_COST_BYTES - flow.credit
        if flow.credit > 0 and (missing <= 0 or self._overdrawn + missing <= OVERDRAFT_MAX_BYTES):
            return True
        flow.waits = True
        if flow.credit > 0:
            self._poor[flow] = None
        return False

    def try_spend(self, flow: Outflow, size: int) -> bool:
        """`spend` if `may`, in one."""
        if flow.credit < size + ITEM_COST_BYTES:
            if not self.may(flow, size):
                return False
            self.spend(flow, size)
        else:
            flow.credit -= size + ITEM_COST_BYTES
        return True

    def spend(self, flow: Outflow, size: int) -> None:
        """An item is sent. Look at `may` first."""
        assert flow.credit > 0, f"stream {flow.id} has no credit"
        flow.credit -= size + ITEM_COST_BYTES
        if flow.credit < 0:  # and was not before
            self._overdrawn += flow.overdrawn

    def give(self, flow: Outflow, count: int) -> list[Outflow]:
        """The reader gives credit; which streams may be written to now. Raises RemoteProtocolError."""
        if count <= 0 or flow.credit + count > CREDIT_MAX_BYTES:
            raise RemoteProtocolError(f"a credit of {count} bytes on top of {flow.credit}")
        self._overdrawn -= flow.overdrawn
        flow.credit += count
        self._overdrawn += flow.overdrawn
        woken = self._rich()
        if flow.waits and flow.credit > 0:
            flow.waits = False
            woken.append(flow)
        return woken

    def close(self, flow: Outflow) -> list[Outflow]:
        """The stream is over; which others may be written to now."""
        self._poor.pop(flow, None)
        self._overdrawn -= flow.overdrawn
        return self._rich()

    def validate(self, flows: list[Outflow]) -> None:
        assert self._overdrawn == sum([flow.overdrawn for flow in flows]), "overdrafts of streams do not add up"

    def _rich(self) -> list[Outflow]:
        woken = [flow for flow in self._poor if flow.waits]
        self._poor.clear()
        for flow in woken:
            flow.waits = False
        return woken


class Inflow:
    """One stream, as its receiver sees it."""

    __slots__ = ("held", "returned", "window")

    def __init__(self, window_bytes: int) -> None:
        self.window = window_bytes
        self.held = 0  # bytes that came and were not taken
        self.returned = 0  # taken, and not given back yet

    @property
    def overdrawn(self) -> int:
        """Bytes beyond its window."""
        return max(self.held + self.returned - self.window, 0)


class Inflows:
    """All streams that one side receives."""

    __slots__ = ("_grown", "_overdrawn", "longest", "together", "window")

    def __init__(self, window_bytes: tuple[int, int], together: int) -> None:
        """window_bytes: of a stream, at first and at most; together: by which all may grow."""
        self.window, self.longest = window_bytes
        self.together = together
        self._grown = self._overdrawn = 0

    def open(self) -> Inflow:
        """A stream begins."""
        return Inflow(self.window)

    def came(self, flow: Inflow, size: int) -> None:
        """An item is here, or announced. Raises RemoteProtocolError if there was no credit left for it."""
        if flow.held + flow.returned >= flow.window:
            raise RemoteProtocolError(f"an item of {size} bytes came without credit")
        flow.held += size + ITEM_COST_BYTES
        if flow.held + flow.returned > flow.window:  # and was not before
            self._overdrawn += flow.overdrawn
        if self._overdrawn > OVERDRAFT_MAX_BYTES:
            raise RemoteProtocolError(f"its streams are overdrawn by {self._overdrawn} bytes together")

    def taken(self, flow: Inflow, size: int) -> bool:
        """The reader has taken an item; whether it is time to give credit."""
        flow.held -= size + ITEM_COST_BYTES
        flow.returned += size + ITEM_COST_BYTES
        return flow.returned >= flow.window // 4 or (flow.held <= 0 and flow.returned >= flow.window // 8)

    def credit(self, flow: Inflow) -> int:
        """How much to give now: what was taken, and more if the reader waits for the writer."""
        self._overdrawn -= flow.overdrawn
        grown = 0
        if flow.held <= 0:
            grown = max(min((GROWTH - 1) * flow.window, self.longest - flow.window, self.together - self._grown), 0)
            flow.window += grown
            self._grown += grown
        count, flow.returned = flow.returned + grown, 0
        self._overdrawn += flow.overdrawn
        return count

    def close(self, flow: Inflow) -> None:
        """The stream is over, by the sender's books."""
        self._grown -= flow.window - self.window
        self._overdrawn -= flow.overdrawn

    def validate(self, flows: list[Inflow]) -> None:
        assert self._overdrawn == sum([flow.overdrawn for flow in flows]), "overdrafts of streams do not add up"
        assert self._grown == sum([flow.window - self.window for flow in flows]), "windows of streams do not add up"
