"""Relaying as one peer has it: it serves others if it may and can be reached, else it has reservations at such peers.

This node offers to relay when it has the role, and found that others reach it: a connection from a public address has
come in, and was no punch. Who offers needs no relay; all others have `reservations`. An offer is taken back where
nobody reaches this node any more, as after a move.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from lattica.errors import LatticaError
from lattica.mesh import tls
from lattica.mesh.addresses import split_host
from lattica.mesh.identity import PeerId, peer_text
from lattica.mesh.nat.behaviour import Dependence
from lattica.mesh.nat.datagrams import BIND, BOUND, RELAYED, SIGNED_BYTES
from lattica.mesh.nat.routes import Direct, Route, is_private
from lattica.mesh.relay.client import RelayClient
from lattica.mesh.relay.framed import Framed
from lattica.mesh.relay.reservations import Reservations
from lattica.mesh.relay.service import OFFER, RelayService
from lattica.mesh.roles import Role
from lattica.mesh.transport.quic import RELAY

if TYPE_CHECKING:
    from lattica.mesh.links import Member
    from lattica.mesh.nat_shell.dispatch import Datagrams
    from lattica.mesh.peer import Peer
    from lattica.mesh.transport.quic import Quic
    from lattica.mesh.transport.tcp import Tcp
    from lattica.mesh.transport.tls_connection import TlsConnection

log = logging.getLogger(__name__)
ALWAYS, AUTO, NEVER = "always", "auto", "never"
WITHDRAWN_AFTER_S = 60.0
"""For which nobody has reached this node; whoever asks it in vain leaves it alone as long."""


class Relays:
    """See the module. Made when the peer's transport is; it begins with `start`."""

    def __init__(self, peer: Peer, quic: Quic, tcp: Tcp | None, datagrams: Datagrams, offers: str = AUTO) -> None:
        """offers: ALWAYS to relay for others, whatever was found; NEVER; or AUTO."""
        self.service = RelayService(peer, quic.socket)
        self.client = RelayClient(peer, quic, tcp)
        self.offering = False
        self._offers = offers
        self._peer = peer
        self._reservations = Reservations(peer, self.client, self._needs_relays)
        self._reached_by: set[int] = set()  # versions of IP by which somebody has come from outside
        self._unreached_since: float | None = None  # as far as is known; None: it is reached
        self._stopped = False
        # Whoever comes from this host may have been let in by packets of ours.
        self.is_punched: Callable[[str], bool] = lambda host: False
        peer.serve(self.service, offered=False)
        peer.serve(self.client, offered=False)
        self.client.on_lost.append(self._reservations.doubt)
        for byte, serve in ((BIND, self._bind), (BOUND, self._bound), (RELAYED, self._relayed)):
            datagrams.on(byte, serve)
        if tcp is not None:
            tcp.doors[tls.RELAY_ALPN] = self._accept

    def __repr__(self) -> str:
        return f"<Relays: {'offering' if self.offering else repr(self._reservations)}, {self.service!r}>"

    def start(self) -> None:
        """The peer's gossip is there."""
        self._peer.on_falter.append(lambda peer, reason: self._faltered(peer))
        if self._offers == ALWAYS:
            self.offer()
        self._reservations.start()

    def stop(self) -> None:
        self._stopped = True
        self._reservations.stop()
        self.client.stop()
        self.service.stop()

    @property
    def reserved(self) -> list[PeerId]:
        """Relays that tell us when we are called, nearest first."""
        return list(self._reservations.round_trips)

    @property
    def is_reached(self) -> bool:
        """Whether somebody has connected from a public address, and by no punch."""
        return bool(self._reached_by)

    def holds(self, peer: PeerId) -> bool:
        """Whether the session with this peer is needed, although nobody calls over it."""
        return peer in self._reservations or self.service.channels.is_reserved(peer)

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
        version = 6 if address.startswith("[") else 4
        if version in self._reached_by or not _is_public(address) or self.is_punched(split_host(address)[0]):
            return
        self._reached_by.add(version)
        if self._may_offer() and not self._stopped:
            self.offer()

    def _may_offer(self) -> bool:
        """Whether others reach us, as far as is known; whoever wants to use us sees for itself. That we listen at a
        public address is not enough: behind a firewall we would give up our own reservations, and nobody reached us."""
        listens = any(not address.startswith(RELAY) for address in self._peer.listening)
        if self._offers != AUTO or self._peer.gossip.community.info.ephemeral or not listens:
            return False
        return bool(self._reached_by) or self._is_open

    @property
    def _is_open(self) -> bool:
        """Whether anybody reaches our UDP socket over IPv4, as was measured."""
        traversal = self._peer.traversal
        if traversal is None or traversal.behaviour.udp is None:
            return False
        known = traversal.behaviour
        return known.mapped or (known.translated is False and known.filtering is Dependence.INDEPENDENT)

    def _needs_relays(self) -> bool:
        """Whether others can call us only by way of a relay, for all that is known now: one that was reached in another
        network, or over IPv6 alone, offers and needs them, too."""
        may = self._may_offer()
        if may and not self.offering:
            self.offer()
        self._withdraw_unreached(may)
        reached = self._offers == ALWAYS or (may and (4 in self._reached_by or self._is_open))
        return not (self.offering and reached)

    def _withdraw_unreached(self, may: bool) -> None:
        """Take the offer back, be it of an earlier life, once nobody has reached this node for long enough."""
        now = asyncio.get_running_loop().time()
        if may or self._offers == ALWAYS:
            self._unreached_since = None
        elif self._unreached_since is None:
            self._unreached_since = now
        elif now - self._unreached_since >= WITHDRAWN_AFTER_S and self._peer.gossip.is_offered(OFFER):
            self.offering = False
            self._peer.gossip.withdraw(OFFER)
            log.info("nobody reaches this node any more: it does not relay for others")

    def network_changed(self) -> None:
        """An address of this machine has changed: whether others reach it here is not known yet."""
        self._reached_by.clear()
        self.client.network_changed()
        self._reservations.look_soon()

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

    # -- what the peer and the client tell

    def _faltered(self, peer: PeerId) -> None:
        """Its session has no connection, and dialing failed."""
        self.client.doubt(peer)
        self._reservations.doubt(peer)

    def disconnected(self, peer: PeerId) -> None:
        """The session with it is over, and with it what we had there: reserve anew."""
        if not self._stopped:
            self.client.doubt(peer)
            self._reservations.doubt(peer)

    # -- for people

    def numbers(self) -> dict[str, tuple[str, str, float]]:
        """What there is to count, for metrics: name -> (kind, what it is, how much)."""
        told = self.service.numbers() | {"forwarding_seconds_total": self.service.seconds}
        mine = {
            "reservations_elsewhere": len(self._reservations.round_trips),
            "channels_own": len(self.client.channels),
        }
        return {
            f"relay_{name}": ("counter" if name.endswith("_total") else "gauge", _WORDS[name], float(value))
            for name, value in (told | mine).items()
        }

    def status(self) -> dict[str, Any]:
        """What there is to say, as plain data."""
        return {
            "offering": self.offering,
            "reservations": [
                {"relay": peer_text(relay), "rtt_ms": round(rtt_s * 1e3, 2)}
                for relay, rtt_s in self._reservations.round_trips.items()
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
