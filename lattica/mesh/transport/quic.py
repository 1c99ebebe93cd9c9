"""QUIC as a transport: a connection of the interface is one stream, and streams to one peer share a QUIC connection.

    Quic ──┬── PathSocket            datagrams in and out, connection ids, strangers
           └── QuicLink, one a peer  an engine, a route, a timer, and streams

Bytes wait here, by reference, and only as many lie in the engine as keep the path busy; those of the control plane go
first. A dial of the control plane makes a QUIC connection of its own, since the one there is may be dead or show old
certificates; a dial of bulk joins the one that carries the control plane.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from lattica.errors import LatticaError, RemoteProtocolError
from lattica.mesh import tls
from lattica.mesh.addresses import resolve, split_host
from lattica.mesh.effects import Dial
from lattica.mesh.identity import PeerId, parse_peer, short_peer
from lattica.mesh.links import Member
from lattica.mesh.nat.routes import MAIN, Direct, Endpoint, Route, ViaRelay
from lattica.mesh.transport.interface import Owner
from lattica.mesh.transport.path_socket import Connected, PathSocket, datagram_bytes
from lattica.mesh.transport.quic_packets import Initial
from lattica.mesh.transport.tls_connection import CLOSED, QUEUE_MAX_BYTES
from lattica.mesh.wire import BULK, CONTROL, Buffer, Decoder, Frame, Hello, Received

if TYPE_CHECKING:
    from lattica.mesh.transport.quic_engine import Configurations, Engine, Event

log = logging.getLogger(__name__)
DIAL_S = 6.0  # as over TCP
NEXT_ROUTE_S = 0.25  # RFC 8305 §8: the pause between attempts at different addresses
ROUTES_MAX = 8  # tried in one dial: each costs a handshake's beginning, 2 ms
ACCEPT_S = 10.0  # from the Retry's return to a verified chain
PENDING_MAX = 128
"""Handshakes at once: each costs 5 ms of CPU, and is made with somebody who has proved no more than an address."""
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
FASTER = "another way was faster"  # says who dialed several at once; nobody was refused
RELAY = "relay/"  # an address by way of another peer: "relay/PEER"
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

    # -- packets

    def also_known_as(self, id: bytes) -> None:
        """Packets with this connection id are ours, too."""
        self._ids.add(id)
        self._quic.socket.ids[id] = self

    def arrived(self, route: Route, datagrams: list[bytes]) -> None:
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
                self.take(route)
        self.handle(events)
        if self._waiting() or self.engine.in_a_hurry(now):
            self.pump(now)
        elif not self.over:
            self._arm(now)

    def take(self, route: Route) -> None:
        """Send by this route from now on."""
        if route != self.route:
            log.debug("%r goes on by %s", self, route)
            self.route, self._heard_at = route, self._quic.loop.time()
            self.engine.path_changed(datagram_bytes(route))

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
        self._quic.loop.call_later(HANG_UP_S, self._forgotten)

    def _say_farewell_again(self) -> None:
        if self._last and self._farewells < FAREWELLS_MAX:
            self._farewells += 1
            self._quic.socket.send(self.route, self._last)

    def _forgotten(self) -> None:
        for id in self._ids:
            self._quic.socket.ids.pop(id, None)


class Quic:
    """See the module; a `Transport`."""

    def __init__(self, owner: Owner, keys: tls.Keys) -> None:
        """keys: our certificates and root, asked for at each handshake, since they are renewed."""
        self.owner = owner
        self.loop = asyncio.get_running_loop()
        self.socket = PathSocket(self._stranger)
        self.links: set[QuicLink] = set()
        self.pending: set[QuicLink] = set()  # accepted, and not proved
        self.streams: dict[int, QuicStream] = {}
        self.guide_of: Callable[[PeerId], Guide | None] = lambda peer: None
        self.relayed: Callable[[PeerId, PeerId], Awaitable[Route]] = _no_relay  # (peer, relay): a channel to it
        self._keys = keys
        self._configurations: Configurations | None = None
        self._numbers = count(1)
        self._dirty: set[QuicLink] = set()
        self._dials: dict[int, asyncio.Task[None]] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<Quic: {len(self.links)} connections, {len(self.streams)} streams, {self.socket!r}>"

    # -- the interface

    async def listen(self, address: str) -> Sequence[str]:
        return await self.socket.listen(address)

    def stop_listening(self) -> None:
        """Be at that port no more."""
        self.socket.close_socket(MAIN)

    def dial(self, dial: Dial) -> None:
        task = self.loop.create_task(self._dial(dial))
        self._dials[dial.attempt] = task
        task.add_done_callback(lambda _: self._dials.pop(dial.attempt, None))

    def give_up(self, attempt: int) -> None:
        """This dial is not wanted any more, and the owner hears nothing of it."""
        if (task := self._dials.get(attempt)) is not None:
            task.cancel()

    def write(self, number: int, frame: Frame) -> None:
        stream = self.streams.get(number)
        if stream is not None and not stream.ending:
            for buffer in frame:
                if buffer:
                    stream.queue.append(buffer)
                    stream.queued += len(buffer)
            self._dirty.add(stream.link)

    def flush(self) -> None:
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, set()
        now = self.loop.time()
        for link in dirty:
            link.pump(now)
            for stream in list(link.streams.values()):
                if stream.queued > QUEUE_MAX_BYTES:
                    stream.ending = True
                    self._clear(stream)
                    self.broken(stream, f"it did not read {QUEUE_MAX_BYTES} bytes that it was sent")

    def hang_up(self, number: int) -> None:
        stream = self.streams.pop(number, None)
        if stream is not None:
            stream.ending = True
            stream.link.hung_up()
            self._dirty.add(stream.link)

    def path(self, number: int) -> tuple[str, str]:
        stream = self.streams.get(number)
        if stream is None:
            return "", ""
        route = stream.link.route
        return "quic", f"{RELAY}{short_peer(route.relay)}" if isinstance(route, ViaRelay) else str(route)

    async def close(self) -> None:
        self._closed = True
        dials = list(self._dials.values())
        for task in dials:
            task.cancel()
        await asyncio.gather(*dials, return_exceptions=True)
        for number in list(self.streams):
            self.hang_up(number)
        self.flush()
        for _ in range(20):  # let the last words arrive, as far as the other side takes them
            if not any(link.streams for link in self.links):
                break
            await asyncio.sleep(0.01)
        for link in list(self.links):
            link.end("it leaves")
        self.socket.close()

    # -- for those who know more of paths

    def carries(self, peer: PeerId) -> QuicLink | None:
        """The connection that carries this peer's control plane, if our certificates are still those that it shows."""
        for link in self.links:
            ours = link.member is not None and link.member.peer == peer and link.engine.made_with == self._keys.chain
            if ours and any(s.plane == CONTROL and s.number in self.streams for s in link.streams.values()):
                return link
        return None

    # -- what links say

    def add(self, link: QuicLink, id: int, plane: int) -> QuicStream:
        """A new connection of the interface. The owner hears of it in this same turn."""
        stream = QuicStream(link, id, next(self._numbers), plane)
        link.streams[id] = self.streams[stream.number] = stream
        link._ends_at = None
        return stream

    def received(self, stream: QuicStream, frames: list[Received]) -> None:
        if stream.number in self.streams:
            if isinstance(frames[0], Hello):
                stream.plane = frames[0].plane
            stream.decoder.trust()
            self.owner.received(stream.number, frames)

    def broken(self, stream: QuicStream, reason: str) -> None:
        if stream.number in self.streams:
            self.owner.broken(stream.number, reason)

    def ended(self, stream: QuicStream, reason: str) -> None:
        """The other side writes no more on it, or it has no connection any more."""
        stream.ending = True
        self._clear(stream)
        self._dirty.add(stream.link)
        if self.streams.pop(stream.number, None) is not None:
            stream.link.hung_up()
            self.owner.closed(stream.number, reason)

    def _clear(self, stream: QuicStream) -> None:
        stream.queue.clear()
        stream.queued = 0

    # -- dialing

    def _made(self) -> Configurations:
        if self._configurations is None:
            from lattica.mesh.transport.quic_engine import Configurations

            self._configurations = Configurations(self._keys)
        return self._configurations

    async def _dial(self, dial: Dial) -> None:
        failed = _Failures()
        try:
            link = self.carries(dial.peer) if dial.plane == BULK else None
            if link is not None:
                await asyncio.sleep(0)  # the owner is told in a turn of its own
            if link is None or link.over:
                async with asyncio.timeout(DIAL_S):
                    link = await self._race(dial, failed)
            if link is not None:
                assert link.member is not None, "a link that is up has proved whose it is"
                stream = link.open(dial.plane)
                stream.decoder.trust()  # behind its hello may come what we lack
                self.owner.dialed(dial.attempt, stream.number, link.member)
                return
        except TimeoutError:
            failed.reasons.append(f"no answer within {DIAL_S:g} s")
        except Exception as error:  # a bug of ours: the owner must hear that this dial is over all the same
            log.exception("dialing %s by QUIC", ", ".join(dial.addresses))
            failed.reasons.append(repr(error))
        if not self._closed:
            self.owner.dial_failed(dial.attempt, "; ".join(failed.reasons) or "no address is known", failed.final)

    async def _race(self, dial: Dial, failed: _Failures) -> QuicLink | None:
        """A connection to that peer, by whichever route proves to be its."""
        waiting: dict[asyncio.Future[Member], QuicLink] = {}
        routes = await self._routes(dial, failed)
        try:
            while routes or waiting:
                if routes:
                    link = self._begin(routes.popleft())
                    waiting[link.up] = link
                done, _ = await asyncio.wait(
                    waiting, timeout=NEXT_ROUTE_S if routes else None, return_when=asyncio.FIRST_COMPLETED
                )
                for future in done:
                    link = waiting.pop(future)
                    if future.exception() is not None:
                        failed.reasons.append(f"{link.route}: {future.exception()}")
                        failed.final = failed.final or link.refused
                    elif future.result().peer != dial.peer:
                        found = short_peer(future.result().peer)
                        failed.reasons.append(f"{link.route}: it is {found}, not {short_peer(dial.peer)}")
                        link.end("another peer was called")
                    elif not link.over:
                        return link
            return None
        finally:
            for link in waiting.values():
                link.end(FASTER)

    def _begin(self, route: Route) -> QuicLink:
        from lattica.mesh.transport import quic_engine

        link = QuicLink(self, quic_engine.dial(self._made(), self.loop.time()), route, dialed=True)
        self.links.add(link)
        link.pump(self.loop.time())
        return link

    async def _routes(self, dial: Dial, failed: _Failures) -> deque[Route]:
        found: dict[Route, None] = {}
        for address in dial.addresses:
            try:
                if address.startswith(RELAY):
                    found[await self.relayed(dial.peer, parse_peer(address.removeprefix(RELAY)))] = None
                    continue
                host, port = split_host(address)
                for _, where in await resolve(self.loop, host, port):
                    found[Direct(Endpoint(where[0], where[1]))] = None
            except (OSError, LatticaError, ValueError) as error:
                failed.reasons.append(f"{address}: {tls.words(error)}")
        return deque(list(found)[:ROUTES_MAX])

    # -- accepting

    def _stranger(self, initial: Initial, original: bytes, route: Route) -> Connected | None:
        """Somebody begins a connection, from where it says it is."""
        if len(self.pending) >= PENDING_MAX or self._closed:
            return None
        from lattica.mesh.transport import quic_engine

        link = QuicLink(self, quic_engine.accept(self._made(), original, initial.destination), route, dialed=False)
        link.also_known_as(initial.destination)
        self.links.add(link)
        self.pending.add(link)
        return link


class _Failures:
    """What went wrong in one dial. final: one side does not accept the other's certificates."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.final = False


async def _no_relay(peer: PeerId, relay: PeerId) -> Route:
    raise ConnectionError("this node uses no relays")


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
