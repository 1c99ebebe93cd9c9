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
from typing import TYPE_CHECKING, Any

from lattica.errors import LatticaError
from lattica.mesh import tls
from lattica.mesh.addresses import resolve, split_host
from lattica.mesh.effects import Dial
from lattica.mesh.identity import PeerId, parse_peer, short_peer
from lattica.mesh.links import Member
from lattica.mesh.nat.routes import MAIN, Direct, Endpoint, Route, ViaRelay
from lattica.mesh.transport.interface import Owner
from lattica.mesh.transport.path_socket import Connected, PathSocket
from lattica.mesh.transport.quic_link import FASTER, Guide, QuicLink, QuicStream
from lattica.mesh.transport.quic_packets import Initial, Resets
from lattica.mesh.transport.tls_connection import QUEUE_MAX_BYTES
from lattica.mesh.wire import BULK, CONTROL, Frame, Hello, Received

if TYPE_CHECKING:
    from lattica.mesh.transport.quic_engine import Configurations

log = logging.getLogger(__name__)
DIAL_S = 6.0  # as over TCP
NEXT_ROUTE_S = 0.25  # RFC 8305 §8: the pause between attempts at different addresses
ROUTES_MAX = 8  # tried in one dial: each costs a handshake's beginning, 2 ms
RELAYS_MAX = 2  # of a peer, asked for a channel at once
PENDING_MAX = 128
"""Handshakes at once: each costs 5 ms of CPU, and is made with somebody who has proved no more than an address."""
PENDING_OF_PLACE_MAX = 32
"""Of them from one host, or by one channel of a relay: who begins some and ends none keeps out its own site only."""
RELAY = "relay/"  # an address by way of another peer: "relay/PEER"


class Quic:
    """See the module; a `Transport`."""

    def __init__(self, owner: Owner, keys: tls.Keys) -> None:
        """keys: our certificates and root, asked for at each handshake, since they are renewed."""
        self.owner = owner
        self.loop = asyncio.get_running_loop()
        self.socket = PathSocket(self._stranger)
        self.socket.resets = Resets(keys.private_key_pem)
        self.links: set[QuicLink] = set()
        self.pending: set[QuicLink] = set()  # accepted, and not proved
        self.streams: dict[int, QuicStream] = {}
        self.guide_of: Callable[[PeerId], Guide | None] = lambda peer: None
        self.route_of: Callable[[PeerId], Route | None] = lambda peer: None  # by which it answered lately
        self.bulk_began: Callable[[PeerId], None] = lambda peer: None  # a stream for it was opened
        self.relayed: Callable[[PeerId, PeerId], Awaitable[Route]] = _no_relay  # (peer, relay): a channel to it
        self._keys = keys
        self._configurations: Configurations | None = None
        self._numbers = count(1)
        self.dirty: set[QuicLink] = set()
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
            self.dirty.add(stream.link)

    def flush(self) -> None:
        if not self.dirty:
            return
        dirty, self.dirty = self.dirty, set()
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
            self.dirty.add(stream.link)

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

    def links_of(self, peer: PeerId) -> list[QuicLink]:
        """Its connections that are up."""
        return [link for link in self.links if link.member is not None and link.member.peer == peer]

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
                if stream.plane == BULK and stream.link.member is not None:
                    self.bulk_began(stream.link.member.peer)
            stream.decoder.trust()
            self.owner.received(stream.number, frames)

    def broken(self, stream: QuicStream, reason: str) -> None:
        if stream.number in self.streams:
            self.owner.broken(stream.number, reason)

    def ended(self, stream: QuicStream, reason: str) -> None:
        """The other side writes no more on it, or it has no connection any more."""
        stream.ending = True
        self._clear(stream)
        self.dirty.add(stream.link)
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
                if dial.plane == BULK:
                    self.bulk_began(dial.peer)
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
        """A connection to that peer, by whichever route proves to be its. Channels of relays are opened meanwhile; the
        first of them is taken at once, the second one if that does not answer soon, for a handshake is dear."""
        relayed_at = float("-inf")
        waiting: dict[asyncio.Future[Member], QuicLink] = {}
        relays = [address for address in dial.addresses if address.startswith(RELAY)][:RELAYS_MAX]
        opening = {self.loop.create_task(self._opened(dial.peer, address, failed)) for address in relays}
        try:
            routes = await self._routes(dial, failed)
            while routes or waiting or opening:
                now, pause_s = self.loop.time(), None
                if routes and isinstance(routes[0], ViaRelay) and relayed_at + NEXT_ROUTE_S > now:
                    pause_s = relayed_at + NEXT_ROUTE_S - now
                elif routes:
                    link = self._begin(routes.popleft())
                    waiting[link.up] = link
                    relayed_at = now if isinstance(link.route, ViaRelay) else relayed_at
                    pause_s = NEXT_ROUTE_S if routes else None
                both: set[asyncio.Future[Any]] = {*waiting, *opening}
                if not both:
                    await asyncio.sleep(pause_s or 0.0)
                    continue
                done, _ = await asyncio.wait(both, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
                for task in opening & done:
                    opening.discard(task)
                    if (route := task.result()) is not None:
                        routes.appendleft(route)
                for future in waiting.keys() & done:
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
            for task in opening:
                task.cancel()
            for link in waiting.values():
                link.end(FASTER)

    async def _opened(self, peer: PeerId, address: str, failed: _Failures) -> Route | None:
        """A channel to the peer, by way of the relay of this address; None if there is none to be had."""
        try:
            return await self.relayed(peer, parse_peer(address.removeprefix(RELAY)))
        except (OSError, LatticaError) as error:
            failed.reasons.append(f"{address}: {tls.words(error)}")
        return None

    def _begin(self, route: Route) -> QuicLink:
        from lattica.mesh.transport import quic_engine

        link = QuicLink(self, quic_engine.dial(self._made(), self.loop.time()), route, dialed=True)
        self.links.add(link)
        link.pump(self.loop.time())
        return link

    async def _routes(self, dial: Dial, failed: _Failures) -> deque[Route]:
        found: dict[Route, None] = {}
        if (known := self.route_of(dial.peer)) is not None:
            found[known] = None
        for address in dial.addresses:
            if address.startswith(RELAY):
                continue
            try:
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
        place = _place(route)
        if sum(_place(link.route) == place for link in self.pending) >= PENDING_OF_PLACE_MAX:
            return None
        from lattica.mesh.transport import quic_engine

        retried = initial.destination if initial.destination != original else None
        link = QuicLink(self, quic_engine.accept(self._made(), original, retried), route, dialed=False)
        link.also_known_as(initial.destination)
        self.links.add(link)
        self.pending.add(link)
        return link


def _place(route: Route) -> object:
    return route.endpoint.host if isinstance(route, Direct) else route


class _Failures:
    """What went wrong in one dial. final: one side does not accept the other's certificates."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.final = False


async def _no_relay(peer: PeerId, relay: PeerId) -> Route:
    raise ConnectionError("this node uses no relays")
