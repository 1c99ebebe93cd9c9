"""Who is relayed: opens channels and is told of those that others open, binds both, and gets round relays that died.

    Quic.relayed(peer, relay) ──► relay.open over our session with the relay ──► OwnChannel, bound ──► a ViaRelay route
    relayed.opened, from a relay ──────────────────────────────────────────────► OwnChannel, told to the traversal
    PathSocket.to_relay ──► RELAYED by UDP or TLS              RELAYED ──► PathSocket.arrived_together

A relay is reached directly, never by way of another. When one does not answer any more, whoever notices opens a channel
by way of another to each peer whose connection went by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from lattica.errors import LatticaError, PeerUnreachableError, PermissionDeniedError, RemoteProtocolError
from lattica.mesh import tls
from lattica.mesh.addresses import resolve, split_host
from lattica.mesh.identity import PEER_ID_BYTES, PeerId, parse_peer, peer_text, short_peer
from lattica.mesh.nat.datagrams import BOUND, CHANNEL_MAX, RELAYED, SECRET_BYTES
from lattica.mesh.nat.routes import Direct, Endpoint, Route, ViaRelay
from lattica.mesh.relay.channel import OwnChannel
from lattica.mesh.relay.channels import LEASE_S
from lattica.mesh.relay.framed import Framed
from lattica.mesh.roles import Role
from lattica.mesh.services import caller, method, service
from lattica.mesh.transport.quic import RELAY
from lattica.mesh.transport.tcp import Failures

if TYPE_CHECKING:
    from lattica.mesh.nat_shell.traversal import Traversal
    from lattica.mesh.peer import Peer
    from lattica.mesh.transport.path_socket import PathSocket
    from lattica.mesh.transport.quic import Quic
    from lattica.mesh.transport.tcp import Tcp

log = logging.getLogger(__name__)
OPEN_S = 5.0  # for a relay to answer, a session with it included
CONNECT_S = 6.0  # for a TLS connection to it
CHANNELS_MAX = 1024
OF_RELAY_MAX = 512  # channels of which one relay may tell us
WAYS_MAX = 4  # addresses of a relay that are tried by UDP
RESOLVE_S = 2.0  # for names among them: a relay may tell of many that nobody knows
FRESH_S = 20.0  # a channel that brought something so lately is used again for the same peer
YOUNG_S = 2.0  # after it was opened, for which the same is true
IDLE_S = 120.0  # a channel that carried nothing for so long is closed
STALE_S = 0.5  # of silence, although BINDs went by it, after which a TLS connection is made anew
RELAYS_TRIED = 4  # when one died
Ways = Sequence[Hashable]


@service("relayed")
class RelayClient:
    """See the module."""

    def __init__(self, peer: Peer, quic: Quic, tcp: Tcp | None = None, *, udp: bool = True) -> None:
        """tcp: dials TLS connections to relays; None: there is only UDP. udp: False: as if it was blocked."""
        self.socket: PathSocket = quic.socket
        self.on_lost: list[Callable[[PeerId], None]] = []  # hear of relays that do not answer any more
        self._peer, self._quic, self._tcp, self._udp = peer, quic, tcp, udp
        self._loop = asyncio.get_running_loop()
        self._channels: dict[int, OwnChannel] = {}
        self._by_other: dict[bytes, OwnChannel] = {}
        self._framed: dict[PeerId, Framed] = {}
        self._connecting: dict[PeerId, asyncio.Task[None]] = {}
        self._expected: dict[PeerId, float] = {}  # relays that may tell us of channels -> until when
        self._asking: Counter[PeerId] = Counter()  # relays that are asked for a channel now
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        quic.relayed = self.relayed
        quic.socket.to_relay = self._to_relay
        quic.socket.is_proven = lambda route: isinstance(route, ViaRelay)  # the relay has both ends' word

    def __repr__(self) -> str:
        return f"<RelayClient: {len(self._channels)} channels, {len(self._framed)} TLS connections>"

    @property
    def channels(self) -> list[OwnChannel]:
        return list(self._channels.values())

    @property
    def _traversal(self) -> Traversal | None:
        return self._peer.traversal

    def stop(self) -> None:
        self._stopped = True
        for task in [*self._tasks, *self._connecting.values()]:
            task.cancel()
        for channel in self.channels:
            self._forget(channel, "it was stopped")
        for framed in list(self._framed.values()):
            framed.close(within_s=0.0)

    # -- opening

    async def relayed(self, peer: PeerId, relay: PeerId) -> Route:
        """A channel to this peer by way of this relay: the one that there is, if it is used, else a new one. Raises
        ConnectionError or LatticaError."""
        if peer in self._asking and not self._peer.has_session(peer):
            raise ConnectionError("a relay is reached directly")
        if relay in (self._peer.id, peer):
            raise ConnectionError("it is no relay for this")
        channel = self._usable(peer, relay)
        if channel is not None:
            return await asyncio.shield(channel.up)
        channel = await self._open(peer, relay)
        try:
            return await asyncio.shield(channel.up)
        except asyncio.CancelledError:
            if not channel.up.done():
                self._close(channel, "another way was faster")
            raise

    def _usable(self, peer: PeerId, relay: PeerId) -> OwnChannel | None:
        """A channel that was just opened, by whichever of the two, or that carries something."""
        now = self._loop.time()
        for channel in self.channels:
            fresh = channel.came_at + FRESH_S > now or channel.began_at + YOUNG_S > now
            if channel.relay == relay and channel.peer == peer and fresh:
                return channel
        return None

    async def reach(self, relay: PeerId) -> float:
        """See whether datagrams get to this relay, by whichever way; the round trip in seconds. Raises ConnectionError
        or LatticaError."""
        channel = await self._open(relay, relay)
        try:
            await asyncio.shield(channel.up)
            return channel.binding.rtt_s
        finally:
            self._close(channel, "it was only to see whether it can be reached")

    async def _open(self, peer: PeerId, relay: PeerId) -> OwnChannel:
        self._asking[relay] += 1
        try:
            answer = await self._peer.call(relay, "relay.open", bytes(peer), timeout_s=OPEN_S)
        finally:
            self._asking[relay] -= 1
            self._asking += Counter()  # without those that nobody asks any more
        self.admit(relay)
        number, secret = _grant(answer)
        return await self._made(relay, peer, number, secret)

    def admit(self, relay: PeerId) -> None:
        """Raises PermissionDeniedError if this member, with whom there is a session, may not relay: whatever it says,
        it shall not learn who talks to whom."""
        member: Any = self._peer.sessions.member(relay)
        if member is None or not member.roles & Role.RELAY:
            raise PermissionDeniedError(role="relay", peer=peer_text(relay), action="carry what others send")

    def expect(self, relay: PeerId) -> None:
        """This relay was asked to tell us of channels, for the time of its lease. Others could fill our memory."""
        now = self._loop.time()
        self._expected = {each: until for each, until in self._expected.items() if until >= now}
        self._expected[relay] = now + LEASE_S

    @method(role=Role.RELAY, idempotent=True)
    async def opened(self, who: bytes, number: int, secret: bytes, lease_s: float) -> None:
        """The relay that calls has a channel for us, which that peer has opened."""
        relay = caller.get().peer
        if self._expected.get(relay, 0.0) < self._loop.time():
            raise PeerUnreachableError(f"this node has no reservation at relay {short_peer(relay)}")
        number, secret = _grant((number, secret, lease_s))
        if not isinstance(who, bytes | memoryview) or len(who) != PEER_ID_BYTES:
            raise RemoteProtocolError("a channel of nobody")
        if sum(channel.relay == relay for channel in self.channels) >= OF_RELAY_MAX:
            raise PeerUnreachableError(f"this node has {OF_RELAY_MAX} channels by way of that relay")
        await self._made(relay, PeerId(bytes(who)), number, secret)

    async def _made(self, relay: PeerId, peer: PeerId, number: int, secret: bytes) -> OwnChannel:
        ways = await self._ways(relay)
        if self._stopped or number in self._channels or len(self._channels) >= CHANNELS_MAX:
            raise PeerUnreachableError(f"no channel more can be had here, of {len(self._channels)}")
        rtt_s = self._peer.sessions.rtt_s(relay)
        channel = OwnChannel(self, relay, peer, number, secret, ways, self._peer.rng, rtt_s)
        self._channels[number] = self._by_other[channel.other] = channel
        if not ways:
            self.another_way(relay)
        return channel

    async def _ways(self, relay: PeerId) -> Ways:
        """How the relay may be reached: as a connection to it is, at its addresses, by the TLS connection there is."""
        ways: dict[Hashable, None] = {}
        if self._udp:
            for link in self._quic.links_of(relay):
                if isinstance(link.route, Direct):
                    ways[link.route] = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESOLVE_S):
                    await self._resolved(self._addresses(relay)[: 2 * WAYS_MAX], ways)
        found = list(ways)[:WAYS_MAX]
        return [*found, framed] if (framed := self._framed.get(relay)) is not None else found

    async def _resolved(self, addresses: Sequence[str], ways: dict[Hashable, None]) -> None:
        """Add where these lead."""
        for address in addresses:
            try:
                for _, where in await resolve(self._loop, *split_host(address)):
                    ways[Direct(Endpoint(where[0], where[1]))] = None
            except (OSError, LatticaError):
                continue

    def _addresses(self, relay: PeerId) -> list[str]:
        """Those of its own; the one first by which the session goes."""
        known = [each for each in self._peer.addresses_of(relay) if not each.startswith(RELAY)]
        used = self._peer.path_of(relay).partition(" ")[0]  # without the proxy that it goes through
        return sorted(known, key=lambda address: address != used)

    def _close(self, channel: OwnChannel, reason: str) -> None:
        """It is not needed, and its relay should know."""
        if self._forget(channel, reason):
            self._spawn(self._told_closed(channel))

    async def _told_closed(self, channel: OwnChannel) -> None:
        if self._peer.has_session(channel.relay):
            await self._peer.call(channel.relay, "relay.close", channel.number, timeout_s=OPEN_S)

    def _forget(self, channel: OwnChannel, reason: str) -> bool:
        """Whether it was known."""
        if self._channels.pop(channel.number, None) is None:
            return False
        del self._by_other[channel.other]
        channel.close(reason)
        if self._traversal is not None:
            self._traversal.remove_route(channel.peer, channel.route)
        return True

    # -- datagrams

    def _to_relay(self, route: ViaRelay, datagrams: Sequence[bytes]) -> None:
        channel = self._channels.get(route.channel)
        if channel is not None and channel.relay == route.relay:
            channel.send(datagrams)

    def relayed_came(self, where: Hashable, data: bytes) -> bool:
        """A RELAYED came from there. Whether it is of one of our channels."""
        channel = self._by_other.get(data[1:9])
        if channel is None or not (where == channel.binding.way or channel.binding.knows(where)):
            return False
        channel.arrived(data[9:])
        return True

    def bound_came(self, where: Hashable, data: bytes) -> None:
        """A BOUND came from there."""
        channel = self._channels.get(int.from_bytes(data[1:9], "big"))
        if channel is not None and channel.bound(data) and channel.peer != channel.relay:
            log.info("%s can be reached by way of relay %s", short_peer(channel.peer), short_peer(channel.relay))
            if self._traversal is not None:
                self._traversal.add_route(channel.peer, channel.route)

    # -- TLS connections

    def another_way(self, relay: PeerId) -> None:
        """UDP may be blocked on the way to this relay: connect to it by TLS, too."""
        if self._tcp is None or relay in self._connecting or self._stopped:
            return
        if (framed := self._framed.get(relay)) is not None:
            if framed.heard_at + STALE_S > self._loop.time():
                return
            self._framed_lost(relay, framed)  # this machine may have moved, and left it behind
            framed.close()
        task = self._connecting[relay] = self._loop.create_task(self._connect(self._tcp, relay))
        task.add_done_callback(lambda _: self._connecting.pop(relay, None))

    async def _connect(self, tcp: Tcp, relay: PeerId) -> None:
        failed = Failures()
        try:
            async with asyncio.timeout(CONNECT_S):
                context = self._peer.steward.contexts.relay_client()
                found = await tcp.race(relay, self._addresses(relay), context, failed)
        except TimeoutError:
            found = None
            failed.reasons.append(f"no answer within {CONNECT_S:g} s")
        if found is None:
            log.info("relay %s is not reached by TLS: %s", short_peer(relay), "; ".join(failed.reasons))
            return
        connection, _ = found
        if connection.alpn != tls.RELAY_ALPN:
            connection.finish()
            return
        framed = self._framed[relay] = Framed(connection, self._framed_brought)
        framed.ended = lambda framed: self._framed_lost(relay, framed)
        connection.release()
        for channel in self._of(relay):
            channel.perform(channel.binding.add(framed, self._loop.time()))

    def _framed_brought(self, framed: Framed, data: bytes) -> None:
        if data[0] == RELAYED:
            self.relayed_came(framed, data)
        elif data[0] == BOUND:
            self.bound_came(framed, data)

    def _framed_lost(self, relay: PeerId, framed: Framed) -> None:
        if self._framed.get(relay) is not framed:
            return
        del self._framed[relay]
        for channel in self._of(relay):
            channel.perform(channel.binding.remove(framed, self._loop.time()))

    def _of(self, relay: PeerId) -> list[OwnChannel]:
        return [channel for channel in self.channels if channel.relay == relay]

    # -- relays that die, networks that change

    def doubt(self, relay: PeerId) -> None:
        """It may be gone: ask it, by each of its channels."""
        for channel in self._of(relay):
            channel.perform(channel.binding.doubt(self._loop.time()))

    def network_changed(self) -> None:
        """An address of this machine has changed: relays must know from where we speak now."""
        for channel in self.channels:
            channel.perform(channel.binding.moved(self._loop.time()))

    def channel_lost(self, channel: OwnChannel, reason: str) -> None:
        """The relay of this channel does not answer: its connections go by another one."""
        was_up = channel.up.done()
        if not self._forget(channel, reason) or self._stopped:
            return
        log.info("%r is lost: %s", channel, reason)
        for hear in self.on_lost:
            hear(channel.relay)
        if was_up and any(link.route == channel.route for link in self._quic.links):
            self._spawn(self._go_round(channel))
        self.doubt(channel.relay)

    async def _go_round(self, lost: OwnChannel) -> None:
        """Have the connection that went by this channel go by way of another relay; end it if there is none."""
        peer = lost.peer
        for relay in self.relays_of(peer, lost.relay)[:RELAYS_TRIED]:
            try:
                route = await self.relayed(peer, relay)
            except (OSError, LatticaError) as error:
                log.info("nor by way of %s: %s", short_peer(relay), tls.words(error))
                continue
            for link in list(self._quic.links):
                if link.route == lost.route and not link.over:
                    link.take(route)
                    link.pump(self._loop.time())
            return
        for link in list(self._quic.links):
            if link.route == lost.route:
                link.end("the relay does not answer any more")

    def relays_of(self, peer: PeerId, but: PeerId) -> list[PeerId]:
        """By which it may be reached, as it tells; others would not tell it."""
        found: dict[PeerId, None] = {}
        for address in self._peer.addresses_of(peer):
            if address.startswith(RELAY):
                try:
                    found[parse_peer(address.removeprefix(RELAY))] = None
                except LatticaError:
                    continue
        return [relay for relay in found if relay not in (but, peer, self._peer.id)]

    # -- time

    async def renew(self) -> None:
        """Renew the leases of all channels, and close those that nobody uses; called well before LEASE_S is over."""
        now = self._loop.time()
        for channel in self.channels:
            if channel.up.done() and channel.used_at + IDLE_S <= now:
                self._close(channel, "nobody uses it")
        for relay in {channel.relay for channel in self.channels}:
            numbers = [channel.number for channel in self._of(relay)]
            try:
                answer = await self._peer.call(relay, "relay.keep", numbers, timeout_s=OPEN_S, idempotent=True)
                kept = {each for each in answer if isinstance(each, int)} if isinstance(answer, list) else set()
            except LatticaError as error:
                log.info("relay %s: %s", peer_text(relay)[:8], str(error).partition("\n")[0])
                kept = set(numbers)
                until = now
            else:
                until = self._loop.time() + LEASE_S
            for channel in self._of(relay):
                channel.leased_until = max(channel.leased_until, until)
                if channel.number in numbers and (channel.number not in kept or channel.leased_until <= now):
                    self.channel_lost(channel, "its relay does not know it any more")

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            level = logging.INFO if isinstance(error, LatticaError) else logging.ERROR
            log.log(level, "a channel: %s", tls.words(error), exc_info=None if level == logging.INFO else error)


RENEW_S = LEASE_S / 3


def _grant(answer: object) -> tuple[int, bytes]:
    """(number, secret) of what a relay says. Raises RemoteProtocolError."""
    match answer:
        case [int(number), bytes() | memoryview() as secret, *_] if (
            0 <= number <= CHANNEL_MAX and len(secret) == SECRET_BYTES
        ):
            return number, bytes(secret)
    raise RemoteProtocolError("a relay gave a channel that is none")
