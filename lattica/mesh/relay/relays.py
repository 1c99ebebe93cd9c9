"""Relaying as one peer has it: it serves others if it may and can be reached, else it has reservations at such peers.

Who offers to relay stands in the table, as any service does. This node does when it has the role, and found that others
reach it: a connection from a public address has come in, and was no punch. Of those who offer, up to CANDIDATES_MAX
are asked, and the RESERVATIONS with the shortest round trip stand in this node's addresses as `relay/PEER`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from lattica.errors import LatticaError
from lattica.mesh import tls
from lattica.mesh.addresses import split_host
from lattica.mesh.identity import PeerId, peer_text, short_peer
from lattica.mesh.nat.behaviour import Dependence
from lattica.mesh.nat.datagrams import BIND, BOUND, RELAYED, SIGNED_BYTES
from lattica.mesh.nat.routes import Direct, Route, is_private
from lattica.mesh.relay.client import RENEW_S, RelayClient
from lattica.mesh.relay.framed import Framed
from lattica.mesh.relay.service import OFFER, RelayService
from lattica.mesh.roles import Role
from lattica.mesh.table.kinds import SERVICE
from lattica.mesh.transport.quic import RELAY

if TYPE_CHECKING:
    from lattica.mesh.links import Member
    from lattica.mesh.nat_shell.dispatch import Datagrams
    from lattica.mesh.peer import Peer
    from lattica.mesh.table.rows import Row
    from lattica.mesh.transport.quic import Quic
    from lattica.mesh.transport.tcp import Tcp
    from lattica.mesh.transport.tls_connection import TlsConnection

log = logging.getLogger(__name__)
RESERVATIONS = 2
"""When one relay dies, others still reach us by way of the other."""
CANDIDATES_MAX = 6  # asked for a reservation, to find the nearest
FIRST_LOOK_S = 0.3
LOOK_S = (2.0, 60.0)  # between looks for relays while there are too few, and else; the first one doubles
RESERVE_S = 5.0  # for a relay to answer
NEARER_SHARE, NEARER_S = 0.25, 0.005  # of a round trip, by which another relay must be better than one that we have
SHUN_S = 60.0  # for which one that did not is left alone
ALWAYS, AUTO, NEVER = "always", "auto", "never"
SOURCE = "relays"  # of addresses, for `Peer.advertise`


class Relays:
    """See the module. Made when the peer's transport is; it begins with `start`."""

    def __init__(self, peer: Peer, quic: Quic, tcp: Tcp | None, datagrams: Datagrams, offers: str = AUTO) -> None:
        """offers: ALWAYS to relay for others, whatever was found; NEVER; or AUTO."""
        self.service = RelayService(peer, quic.socket)
        self.client = RelayClient(peer, quic, tcp)
        self.offering = False
        self._offers = offers
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._reserved: dict[PeerId, float] = {}  # relay -> round trip, nearest first
        self._shunned: dict[PeerId, float] = {}  # that could not be reached -> until when
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._renewed_at = self._loop.time()
        self._pause_s = LOOK_S[0]
        self._was_reached = self._stopped = False
        self._news = False  # another relay was heard of while we looked
        # Whoever comes from this host may have been let in by packets of ours.
        self.is_punched: Callable[[str], bool] = lambda host: False
        peer.serve(self.service, offered=False)
        peer.serve(self.client, offered=False)
        self.client.ours = lambda: tuple(self._reserved)
        self.client.on_lost.append(self._doubt)
        for byte, serve in ((BIND, self._bind), (BOUND, self._bound), (RELAYED, self._relayed)):
            datagrams.on(byte, serve)
        if tcp is not None:
            tcp.doors[tls.RELAY_ALPN] = self._accept

    def __repr__(self) -> str:
        return f"<Relays: {'offering' if self.offering else f'{len(self._reserved)} reservations'}, {self.service!r}>"

    def start(self) -> None:
        """The peer's gossip is there."""
        self._peer.on_falter.append(lambda peer, reason: self._faltered(peer))
        if self._offers == ALWAYS:
            self.offer()
        self._peer.gossip.watch(SERVICE, self._heard_of)
        self._timer = self._loop.call_later(FIRST_LOOK_S, self._look)

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            self._looking.cancel()
        self.client.stop()
        self.service.stop()

    @property
    def reserved(self) -> list[PeerId]:
        """Relays that tell us when we are called, nearest first."""
        return list(self._reserved)

    def holds(self, peer: PeerId) -> bool:
        """Whether the session with this peer is needed, although nobody calls over it."""
        return peer in self._reserved or self.service.channels.is_reserved(peer)

    # -- serving

    def offer(self) -> None:
        """Relay for others from now on. Nothing happens without the role."""
        if self.offering or not self._peer.credentials.member.roles & Role.RELAY:
            return
        self.offering = True
        self._peer.gossip.offer(OFFER)
        log.info("this node relays for others")

    def reached(self, address: str) -> None:
        """Somebody has connected from there."""
        if self._was_reached or not _is_public(address) or self.is_punched(split_host(address)[0]):
            return
        self._was_reached = True
        if self._may_offer() and not self._stopped:
            self.offer()

    def _may_offer(self) -> bool:
        """Whether others reach us, as far as is known; whoever wants to use us sees for itself. That we listen at a
        public address is not enough: behind a firewall we would give up our own reservations, and nobody reached us."""
        if self._offers != AUTO or self._peer.gossip.community.info.ephemeral or not self._peer.listening:
            return False
        traversal = self._peer.traversal
        if traversal is not None and traversal.behaviour.udp is not None and not self._was_reached:
            known = traversal.behaviour
            return known.mapped or (known.translated is False and known.filtering is Dependence.INDEPENDENT)
        return self._was_reached

    def network_changed(self) -> None:
        """An address of this machine has changed."""
        self.client.network_changed()

    # -- datagrams

    def _bind(self, route: Route, data: bytes) -> None:
        if isinstance(route, Direct) and len(data) == SIGNED_BYTES:
            self.service.bind(route, route.endpoint, data)

    def _bound(self, route: Route, data: bytes) -> None:
        if isinstance(route, Direct) and len(data) == SIGNED_BYTES:
            self.client.bound_came(route, data)

    def _relayed(self, route: Route, data: bytes) -> None:
        if not isinstance(route, Direct):
            return  # what came by a channel is not passed on by another
        if not self.client.relayed_came(route, data):
            self.service.relayed(route, data)

    def _accept(self, connection: TlsConnection, member: Member) -> None:
        def arrived(framed: Framed, data: bytes) -> None:
            self.service.heard(framed, member)
            where: Hashable = framed
            if data[0] == RELAYED:
                self.service.relayed(where, data)
            elif data[0] == BIND and len(data) == SIGNED_BYTES:
                self.service.bind(where, framed.remote, data)

        self.service.accept(Framed(connection, arrived), member)

    # -- reservations

    def _heard_of(self, row: Row | None, before: Row | None) -> None:
        """Of a service: just after a join, the first relays come so, and nobody reaches us before we have reserved."""
        if row is None or before is not None or not row.key.endswith(OFFER.encode()) or self.offering:
            return
        if len(self._reserved) < RESERVATIONS:
            self._news = self._looking is not None
            if not self._news:
                self._look_in(0.0)  # what else came with it is taken in by then

    def _look(self) -> None:
        self._timer = None
        if not self.offering and self._may_offer():
            self.offer()
        if self._looking is None:
            self._looking = self._loop.create_task(self._reserve())
            self._looking.add_done_callback(self._looked)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if self._stopped:
            return
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("looking for relays", exc_info=error)
        enough = self.offering or len(self._reserved) >= RESERVATIONS
        self._pause_s = LOOK_S[1] if enough else min(self._pause_s * 2, LOOK_S[1])
        news, self._news = self._news and not enough, False
        self._look_in(0.0 if news else self._pause_s)

    def _look_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._stopped:
            self._timer = self._loop.call_later(seconds, self._look)

    async def _reserve(self) -> None:
        """Renew what is due, and have as many reservations as there should be."""
        others = 0
        if self._loop.time() - self._renewed_at >= RENEW_S:
            self._renewed_at = self._loop.time()
            await self.client.renew()
            for relay in list(self._reserved):
                await self._ask(relay)
            others = 1  # there may be a nearer one by now
        if self.offering:
            for relay in list(self._reserved):
                self._drop(relay)
        else:
            others = CANDIDATES_MAX if len(self._reserved) < RESERVATIONS else others
            before = set(self._reserved)
            await asyncio.gather(*(self._ask(relay) for relay in self._others()[:others]))
            self._keep_the_nearest(before)
        self._advertise()

    def _others(self) -> list[PeerId]:
        """Relays at which we have no reservation, in no order."""
        now = self._loop.time()
        self._shunned = {relay: until for relay, until in self._shunned.items() if until > now}
        known = self._peer.gossip.known_providers(OFFER)
        found = [relay for relay in known if relay not in self._reserved and relay not in self._shunned]
        self._peer.rng.shuffle(found)
        return found

    def _keep_the_nearest(self, before: set[PeerId]) -> None:
        """Of more relays than we need those stay at which we reserved before, unless another is nearer by far: others
        have our addresses."""

        def distance(item: tuple[PeerId, float]) -> float:
            relay, rtt_s = item
            return rtt_s if relay in before else max(rtt_s / (1 - NEARER_SHARE), rtt_s + NEARER_S)

        for relay, _ in sorted(self._reserved.items(), key=distance)[RESERVATIONS:]:
            self._drop(relay)

    async def _ask(self, relay: PeerId) -> None:
        """Reserve there, and see whether it can be reached, and how quickly; forget it if not: a firewall may keep out
        datagrams of ours, and let it dial us. One that we have dialed counts meanwhile: just after a join, others wait
        to hear by which relays we are reached."""
        sessions = self._peer.sessions
        try:
            await self._peer.call(relay, "relay.reserve", timeout_s=RESERVE_S, idempotent=True)
            rtt_s = self._reserved.get(relay)
            if rtt_s is None and sessions.is_dialed(relay):
                self._add(relay, sessions.rtt_s(relay) or RESERVE_S)
            rtt_s = rtt_s or await self.client.reach(relay)
        except (LatticaError, OSError) as error:
            log.info("relay %s: %s", short_peer(relay), tls.words(error))
            self._shunned[relay] = self._loop.time() + SHUN_S
            if self._reserved.pop(relay, None) is not None:
                self._advertise()
            return
        self._add(relay, rtt_s)

    def _add(self, relay: PeerId, rtt_s: float) -> None:
        """We are reached by way of this one, too."""
        self._reserved[relay] = rtt_s
        self._reserved = dict(sorted(self._reserved.items(), key=lambda item: item[1]))
        if len(self._reserved) <= RESERVATIONS:
            self._advertise()  # at once: another one that is asked may be dead

    def _drop(self, relay: PeerId) -> None:
        """It is not needed any more."""
        self._reserved.pop(relay, None)
        if self._peer.has_session(relay):
            task = self._loop.create_task(self._release(relay))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _release(self, relay: PeerId) -> None:
        await self._peer.call(relay, "relay.release", timeout_s=RESERVE_S, idempotent=True)

    def _advertise(self) -> None:
        self._peer.advertise(SOURCE, [RELAY + peer_text(relay) for relay in self._reserved])

    # -- what the peer and the client tell

    def _faltered(self, peer: PeerId) -> None:
        """Its session has no connection, and dialing failed."""
        self.client.doubt(peer)
        self._doubt(peer)

    def disconnected(self, peer: PeerId) -> None:
        """The session with it is over, and with it what we had there: reserve anew."""
        if not self._stopped:
            self.client.doubt(peer)
            self._doubt(peer)

    def _doubt(self, relay: PeerId) -> None:
        """Whether this relay still has our reservation must be asked; others are told of another one meanwhile."""
        if self._reserved.pop(relay, None) is not None:
            self._pause_s = LOOK_S[0] / 2
            if self._looking is None:
                self._look_in(0.0)

    # -- for people

    def numbers(self) -> dict[str, tuple[str, str, float]]:
        """What there is to count, for metrics: name -> (kind, what it is, how much)."""
        told = self.service.numbers() | {"forwarding_seconds_total": self.service.seconds}
        mine = {"reservations_elsewhere": len(self._reserved), "channels_own": len(self.client.channels)}
        return {
            f"relay_{name}": ("counter" if name.endswith("_total") else "gauge", _WORDS[name], float(value))
            for name, value in (told | mine).items()
        }

    def status(self) -> dict[str, Any]:
        """What there is to say, as plain data."""
        return {
            "offering": self.offering,
            "reservations": [
                {"relay": peer_text(relay), "rtt_ms": round(rtt_s * 1e3, 2)} for relay, rtt_s in self._reserved.items()
            ],
            "channels": [
                {
                    "peer_id": peer_text(channel.peer),
                    "relay": peer_text(channel.relay),
                    "way": str(channel.binding.way) if channel.binding.way is not None else "",
                    "rtt_ms": round(channel.binding.rtt_s * 1e3, 2),
                }
                for channel in self.client.channels
            ],
            "serves": self.service.numbers(),
        }


_WORDS = {
    "channels": "Channels between other members that this node carries.",
    "reservations": "Members that are told here when they are called.",
    "queued_bytes": "That wait to be passed on.",
    "forwarded_datagrams_total": "Datagrams passed on.",
    "forwarded_bytes_total": "Bytes passed on.",
    "dropped_datagrams_total": "Datagrams dropped, since too much waited.",
    "refused_datagrams_total": "Datagrams of no channel, from the wrong place, or forged.",
    "channels_opened_total": "Channels that members opened.",
    "forwarding_seconds_total": "Spent in sending datagrams on.",
    "reservations_elsewhere": "Relays by way of which others reach this node.",
    "channels_own": "Channels by which this node talks.",
}


def _is_public(address: str) -> bool:
    """Whether an address of this text means the same everywhere."""
    try:
        return not is_private(split_host(address)[0].partition("%")[0])
    except (LatticaError, ValueError):
        return False  # a name, or by way of a relay
