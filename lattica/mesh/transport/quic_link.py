"""One QUIC connection to a peer: its engine, its route, its timer and its streams. See `quic` for the whole."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lattica.errors import RemoteProtocolError
from lattica.mesh.links import Member
from lattica.mesh.nat.routes import Route
from lattica.mesh.transport.path_socket import datagram_bytes
from lattica.mesh.transport.tls_connection import CLOSED
from lattica.mesh.wire import BULK, CONTROL, Buffer, Decoder, Received

if TYPE_CHECKING:
    from lattica.mesh.transport.quic import Quic
    from lattica.mesh.transport.quic_engine import Engine, Event

log = logging.getLogger(__name__)
ACCEPT_S = 10.0  # from the Retry's return to a verified chain
HANG_UP_S = 3.0  # for the other side to acknowledge the last words
BUFFERED_MAX_BYTES = 1 << 20
"""In the engine, unacknowledged: 10 MB/s over 100 ms, about what it does. Control may use all of it."""
BULK_UNSENT_MAX_BYTES = 128 << 10
"""Of bulk, in the engine and never sent: what a word of the control plane shares its packets with."""
CHUNK_BYTES = 64 << 10  # given to the engine at once
SILENT_S = 1.0
"""Without an authentic packet by the current route, after which one by another is followed: a NAT that forgot us, and
not somebody on the way who was quicker."""
SOON_S = 0.0005  # half of what uvloop's timers resolve: how early or late they are
STREAMS_EVER_MAX = 4096  # of one side; then it dials again
RESTARTED = "the other side was started again"
FASTER = "another way was faster"  # says who dialed several at once; nobody was refused
FAREWELLS_MAX = 3  # answers to what still comes after the end


class QuicStream:
    """One connection of the interface."""

    __slots__ = ("decoder", "ending", "id", "link", "number", "plane", "queue", "queued", "told")

    def __init__(self, link: QuicLink, id: int, number: int, plane: int) -> None:
        self.link, self.id, self.number, self.plane = link, id, number, plane
        self.decoder = Decoder()
        self.queue: deque[Buffer] = deque()
        self.queued = 0
        self.ending = False  # nothing is written after what is queued
        self.told = False  # ... and the engine knows

    def __repr__(self) -> str:
        return f"<QuicStream {self.number}: {self.queued} bytes wait>"


class Guide(Protocol):
    """Who knows by which routes a peer can be reached: its path table. It says `QuicLink.take` when it knows better."""

    def heard(self, link: QuicLink, route: Route) -> None:
        """An authentic packet, newer than all before, came by this route."""

    def sent(self, link: QuicLink) -> None:
        """Packets were sent by `link.route`."""

    def gone(self, link: QuicLink) -> None:
        """This connection is over."""


class QuicLink:
    """One QUIC connection: its engine, its route, its timer and its streams."""

    def __init__(self, quic: Quic, engine: Engine, route: Route, *, dialed: bool) -> None:
        self.engine, self.route, self.dialed = engine, route, dialed
        self.member: Member | None = None
        self.up: asyncio.Future[Member] = quic.loop.create_future()
        self.refused = False  # finally, if `up` failed
        self.streams: dict[int, QuicStream] = {}
        self.over = False
        self.guide: Guide | None = None  # without one, it follows the other side when its route has fallen silent
        self._quic = quic
        self._ids: set[bytes] = {engine.id}
        self._reset_token = b""  # of the other side
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0.0
        self._ends_at: float | None = quic.loop.time() + ACCEPT_S  # without a stream by then
        self._last: list[bytes] = []
        self._farewells = 0
        self._largest = -1  # number of the latest authentic packet
        self._heard_at = quic.loop.time()  # by the current route
        self._seen: set[int] = set()  # streams that the other side has opened
        self._hung_up = 0  # streams that nobody here uses, and whose end is on its way
        quic.socket.ids[engine.id] = self

    def __repr__(self) -> str:
        return f"<QuicLink by {self.route}: {self.engine!r}, {len(self.streams)} streams>"

    @property
    def carries_bulk(self) -> bool:
        return any(stream.plane == BULK for stream in self.streams.values())

    # -- packets

    def also_known_as(self, id: bytes) -> None:
        """Packets with this connection id are ours, too."""
        self._ids.add(id)
        self._quic.socket.ids[id] = self

    def arrived(self, route: Route, datagrams: list[bytes]) -> None:
        """Datagrams of this connection came together, by this route."""
        if self.over:
            self._say_farewell_again()
            return
        now = self._quic.loop.time()
        events = self.engine.receive(datagrams, now)
        if (latest := self.engine.largest) > self._largest:
            self._largest = latest
            if self.guide is not None:
                self.guide.heard(self, route)
            elif route == self.route:
                self._heard_at = now
            elif self._heard_at + SILENT_S <= now:  # a NAT gave the other side another address
                self.take(route, lost=True)
        self.handle(events)
        if self._waiting() or self.engine.in_a_hurry(now):
            self.pump(now)
        elif not self.over:
            self._arm(now)

    def take(self, route: Route, *, lost: bool = False) -> None:
        """Send by this route from now on. lost: what was sent by the former one, and is not acknowledged, is."""
        if route == self.route or self.over:
            return
        log.debug("%r goes on by %s", self, route)
        now = self._quic.loop.time()
        self.route, self._heard_at = route, now
        if lost:
            self.engine.path_died(now)
        self.engine.path_changed(datagram_bytes(route))
        self.pump(now)

    def pump(self, now: float) -> None:
        """Give the engine what it has room for, send what it makes of it, and wait for the next occasion."""
        if self.over:
            return
        engine, send = self.engine, self._quic.socket.send
        while True:
            waiting = self._waiting()
            if waiting:
                self._fill(waiting)
            datagrams = engine.datagrams(now)
            if datagrams:
                send(self.route, datagrams)
                if self.guide is not None:
                    self.guide.sent(self)
            if not datagrams or not any(stream.queued for stream in waiting):
                break
        self._arm(now)

    def _waiting(self) -> list[QuicStream]:
        """Streams that have something for the engine."""
        return [s for s in self.streams.values() if s.queued or (s.ending and not s.told)]

    def _fill(self, waiting: list[QuicStream]) -> None:
        """Move what there is room for from our queues to the engine's, which knows no bound."""
        streams, engine = self.streams, self.engine
        room = BUFFERED_MAX_BYTES - sum(engine.unacked(id) for id in streams)
        for stream in sorted(waiting, key=_plane):
            limit = room
            if stream.plane == BULK:
                limit = min(room, BULK_UNSENT_MAX_BYTES - engine.unsent(stream.id))
            while stream.queue and limit > 0:
                data = _taken(stream.queue, min(limit, CHUNK_BYTES))
                engine.write(stream.id, data)
                stream.queued -= len(data)
                limit -= len(data)
                room -= len(data)
            if stream.ending and not stream.queue and not stream.told:
                engine.write(stream.id, b"", ends=True)
                stream.told = True

    def _arm(self, now: float) -> None:
        """Be woken when the engine, or the end of an unused connection, is due. A timer that comes too early costs less
        than setting one anew for each packet, and one that comes soon asks again."""
        if self._timer is not None and self._armed_for <= now + SOON_S:
            return
        due = self.engine.deadline()
        if self._ends_at is not None and (due is None or self._ends_at < due):
            due = self._ends_at
        if self._timer is not None:
            if due is not None and self._armed_for <= due:
                return
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._armed_for = due
            self._timer = self._quic.loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._quic.loop.time()
        if self._ends_at is not None and self._ends_at <= now:
            self.end("it is not used" if self.member is not None else "it did not finish the handshake in time")
            return
        due = self.engine.deadline()
        if due is not None and due <= now + SOON_S:  # loops round their timers, to either side
            now = max(now, due)
            self.handle(self.engine.tick(now))
            self.pump(now)
        elif not self.over:
            self._arm(now)

    # -- events

    def handle(self, events: Sequence[Event]) -> None:
        """Carry out what the engine says; all that came for one stream is told at once."""
        from lattica.mesh.transport.quic_engine import Data, Gone, Ids, Up

        frames: dict[QuicStream, list[Received]] = {}
        ended: list[QuicStream] = []
        for event in events:
            if isinstance(event, Data):
                stream = self.streams.get(event.stream)
                if stream is None:
                    stream = self._accepted(event)
                if stream is None or stream.number not in self._quic.streams:
                    continue  # hung up: what still comes is nobody's
                if event.data and not self._decode(stream, event.data, frames):
                    continue
                if event.ended:
                    ended.append(stream)
            elif isinstance(event, Ids):
                if event.valid:
                    self.also_known_as(event.id)
                else:
                    self._ids.discard(event.id)
                    self._quic.socket.ids.pop(event.id, None)
            elif isinstance(event, Up):
                self._proved(event.member)
            elif isinstance(event, Gone):
                self._tell(frames)
                frames = {}
                self._gone(event.reason, event.final)
        self._tell(frames)
        for stream in ended:
            self._quic.ended(stream, CLOSED)
        if self._hung_up and not self.over:
            self._look_whether_used()

    def _decode(self, stream: QuicStream, data: bytes, frames: dict[QuicStream, list[Received]]) -> bool:
        """Whether its frames are in order; they are added to `frames`."""
        try:
            frames.setdefault(stream, []).extend(stream.decoder.feed(data))
        except RemoteProtocolError as error:
            self._tell(frames)
            frames.clear()
            self._quic.broken(stream, str(error).partition("\n")[0])
            return False
        return True

    def _tell(self, frames: dict[QuicStream, list[Received]]) -> None:
        for stream, received in frames.items():
            if received:
                self._quic.received(stream, received)

    def _accepted(self, event: Any) -> QuicStream | None:
        """The other side has opened a stream."""
        ours = (event.stream & 1 == 0) == self.dialed  # RFC 9000 §2.1
        if self.member is None or ours or event.ended or event.stream in self._seen:
            return None
        self._seen.add(event.stream)
        if len(self._seen) > STREAMS_EVER_MAX:
            self.end("it has opened streams enough")
            return None
        stream = self._quic.add(self, event.stream, CONTROL)
        self._quic.owner.accepted(stream.number, self.member)
        return stream

    def _proved(self, member: Member) -> None:
        self.member = member
        self.engine.path_changed(datagram_bytes(self.route))
        if self.engine.reset_token:
            self._reset_token = self.engine.reset_token
            self._quic.socket.tokens[self._reset_token] = self
        self.guide = self._quic.guide_of(member.peer)
        if not self.up.done():
            self.up.set_result(member)
        self._quic.pending.discard(self)

    def open(self, plane: int) -> QuicStream:
        """A stream of ours; what is written to it opens it there."""
        stream = self._quic.add(self, self.engine.open(), plane)
        self.engine.write(stream.id, b"")
        return stream

    # -- ends

    def hung_up(self) -> None:
        """Nobody here uses one of its streams any more."""
        self._hung_up += 1
        if self._hung_up == len(self.streams) and self._ends_at is None:
            self._ends_at = self._quic.loop.time() + HANG_UP_S

    def _look_whether_used(self) -> None:
        """Forget streams that were hung up, and whose end is known to the other side; without any, it is over."""
        for stream in list(self.streams.values()):
            if stream.told and stream.number not in self._quic.streams and self.engine.sent(stream.id):
                del self.streams[stream.id]
                self._hung_up -= 1
        if not self.streams:
            self.end("")

    def end(self, reason: str) -> None:
        """Close the connection, and all that it carries."""
        if self.over:
            return
        self.engine.close(reason)
        self._gone(reason or CLOSED, False)

    def _gone(self, reason: str, final: bool) -> None:
        """It is over; who still sends is told so a few times."""
        if self.over:
            return
        self._last = self.engine.datagrams(self._quic.loop.time())
        if self._last:
            self._quic.socket.send(self.route, self._last)
        self.over, self.refused = True, final
        self._quic.socket.tokens.pop(self._reset_token, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._quic.pending.discard(self)
        if not self.up.done():
            self.up.set_exception(ConnectionError(reason))
            self.up.exception()
            if not self.dialed and reason != FASTER:
                self._quic.owner.refused(str(self.route), reason)
        for stream in list(self.streams.values()):
            self._quic.ended(stream, reason)
        self.streams.clear()
        self._quic.links.discard(self)
        if self.guide is not None:
            self.guide.gone(self)
        self._quic.loop.call_later(HANG_UP_S, self._forgotten)

    def was_reset(self) -> None:
        """The other side was started again."""
        self.engine.abandon()
        self._gone(RESTARTED, False)

    def _say_farewell_again(self) -> None:
        if self._last and self._farewells < FAREWELLS_MAX:
            self._farewells += 1
            self._quic.socket.send(self.route, self._last)

    def _forgotten(self) -> None:
        for id in self._ids:
            self._quic.socket.ids.pop(id, None)


def _plane(stream: QuicStream) -> int:
    return stream.plane


def _taken(queue: deque[Buffer], most: int) -> bytes:
    """Up to `most` bytes from the front of the queue, joined."""
    parts: list[Buffer] = []
    size = 0
    while queue and size < most:
        buffer = queue[0]
        if size + len(buffer) <= most:
            parts.append(queue.popleft())
            size += len(buffer)
        else:
            view = memoryview(buffer)
            parts.append(view[: most - size])
            queue[0] = view[most - size :]
            break
    return b"".join(parts)
