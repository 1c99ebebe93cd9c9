"""What two processes of two peers have in common, whatever carries it: nothing sent is lost or comes twice.

Each direction of each plane numbers its frames from 1. The receiver delivers them in order and keeps one integer; it
acknowledges cumulatively, on frames that go the other way or by itself. The sender keeps what is not acknowledged and
sends it again over the next connection when one dies.

Rules of this file: a session knows no time but `now`, and no connection but its number. A frame's buffers belong to
the session until they are acknowledged. `room` is what back-pressure is made of: who sends more than it fills memory.
Source: the sequence numbers of RFC 9293 §3.4, counted in frames; connections that come and go under a session as in
RFC 8684 (Multipath TCP) §3.3, one at a time.
"""

from __future__ import annotations

from collections import deque

from lattica.errors import RemoteProtocolError
from lattica.mesh.effects import Transmit
from lattica.mesh.wire import CONTROL, PLANES, Ack, Data, Frame, data_head, encode

UNACKED_MAX_BYTES = 16 << 20
"""Of each direction of a plane. Covers bandwidth x delay of 100 MB/s over 150 ms; more is memory that a dead peer
holds, less throttles far peers."""
FRAME_COST_BYTES = 256  # that a frame takes besides its payload, while it is kept: tiny ones have a bound as well
ACK_EVERY_BYTES = 1 << 20  # 1/16 of the window: the sender never waits for an acknowledgement that waits for it
ACK_DELAY_S = 0.02
"""How long a frame may be unacknowledged while nothing goes the other way; answers mostly do, and carry it."""


class _Plane:
    __slots__ = (
        "ack_due", "acked", "acked_bytes", "connection", "received", "sent", "told", "unacked", "unacked_bytes",
        "unsaid_bytes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.sent = self.acked = 0  # numbers of ours: the last one sent, the last one that they have
        self.received = self.told = 0  # numbers of theirs: the last one delivered, the last that we acknowledged
        self.unacked: deque[tuple[Frame, int]] = deque()
        self.unacked_bytes = self.unsaid_bytes = self.acked_bytes = 0
        self.ack_due: float | None = None
        self.connection: int | None = None


class Session:
    """One session. Every verb returns what to write, in order."""

    __slots__ = ("_planes", "id")

    def __init__(self, id: int) -> None:
        self.id = id
        self._planes = tuple(_Plane() for _ in PLANES)

    def __repr__(self) -> str:
        control = self._planes[CONTROL]
        return (
            f"<Session {self.id:x}: {control.sent} sent, {control.received} received, {len(control.unacked)} unacked>"
        )

    # -- what is known

    def received(self, plane: int) -> int:
        """The number of the last frame delivered: what a hello says."""
        return self._planes[plane].received

    def connection(self, plane: int) -> int | None:
        """The connection that frames of this plane are written to."""
        return self._planes[plane].connection

    def room(self, plane: int) -> int:
        """Bytes that may be sent before the other side must acknowledge some."""
        flow = self._planes[plane]
        return UNACKED_MAX_BYTES - flow.unacked_bytes - FRAME_COST_BYTES * len(flow.unacked)

    def unacked_bytes(self, plane: int) -> int:
        """Bytes sent that the other side has not acknowledged."""
        return self._planes[plane].unacked_bytes

    def acked_bytes(self, plane: int) -> int:
        """Bytes that the other side has acknowledged, since the session began."""
        return self._planes[plane].acked_bytes

    @property
    def begun(self) -> bool:
        """The other side has been heard in this session, so it knows it."""
        return any(plane.received or plane.acked for plane in self._planes)

    # -- verbs

    def send(self, plane: int, payload: Frame, size: int) -> list[Transmit]:
        """Send `size` bytes, as buffers in order; kept until acknowledged. While nothing is attached they wait."""
        flow = self._planes[plane]
        flow.sent += 1
        frame = (data_head(size, flow.sent, flow.received), *payload)
        flow.unacked.append((frame, size))
        flow.unacked_bytes += size
        if flow.connection is None:
            return []
        flow.told, flow.unsaid_bytes, flow.ack_due = flow.received, 0, None
        return [Transmit(flow.connection, frame)]

    def receive(self, plane: int, data: Data, now: float) -> bool:
        """Whether this frame is new and to be delivered. Raises RemoteProtocolError for one that breaks the order."""
        flow = self._planes[plane]
        if data.ack != flow.acked:
            self.acknowledged(plane, data.ack)
        if not 0 < data.seq <= flow.received + 1:
            raise RemoteProtocolError(f"frame {data.seq} came after frame {flow.received}")
        if flow.ack_due is None:
            flow.ack_due = now + ACK_DELAY_S
        if data.seq <= flow.received:
            return False  # sent again by one that did not know
        flow.received = data.seq
        flow.unsaid_bytes += len(data.payload)
        if flow.unsaid_bytes >= ACK_EVERY_BYTES:
            flow.ack_due = now
        return True

    def acknowledged(self, plane: int, number: int) -> None:
        """The other side has everything up to `number`. Raises RemoteProtocolError if that was never sent."""
        flow = self._planes[plane]
        if number > flow.sent:
            raise RemoteProtocolError(f"frame {number} was acknowledged, the last one sent is {flow.sent}")
        while flow.acked < number:
            _, size = flow.unacked.popleft()
            flow.unacked_bytes -= size
            flow.acked_bytes += size
            flow.acked += 1

    def attach(self, plane: int, connection: int, received: int) -> list[Transmit]:
        """From now on this connection carries the plane. received: the last frame that the other side had when it said
        so, which may be a while ago; what it lacked is sent again. Raises RemoteProtocolError if we never sent it."""
        flow = self._planes[plane]
        self.acknowledged(plane, received)
        flow.connection = connection
        return [Transmit(connection, frame) for frame, _ in flow.unacked]

    def detach(self, connection: int) -> None:
        """This connection is no more; what it carried waits for the next one."""
        for flow in self._planes:
            if flow.connection == connection:
                flow.connection = None

    def tick(self, now: float) -> list[Transmit]:
        """Acknowledge what has waited long enough for a frame that goes the other way."""
        effects = []
        for flow in self._planes:
            if flow.ack_due is not None and flow.ack_due <= now and flow.connection is not None:
                flow.told, flow.unsaid_bytes, flow.ack_due = flow.received, 0, None
                effects.append(Transmit(flow.connection, encode(Ack(flow.received))))
        return effects

    def next_deadline(self) -> float | None:
        """When to call `tick`."""
        first: float | None = None
        for flow in self._planes:
            due = flow.ack_due
            if due is not None and flow.connection is not None and (first is None or due < first):
                first = due
        return first

    def validate(self) -> None:
        for flow in self._planes:
            assert flow.acked + len(flow.unacked) == flow.sent, f"{self!r}: frames are neither acked nor kept"
            unacked_bytes = sum([size for _, size in flow.unacked]) if flow.unacked else 0
            assert flow.unacked_bytes == unacked_bytes, f"{self!r}: bytes do not add up"
            assert flow.told <= flow.received, f"{self!r}: acknowledged what never came"
