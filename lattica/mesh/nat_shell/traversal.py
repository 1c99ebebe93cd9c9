"""One peer's traversal of NATs: what joins the cores of `mesh/nat` to its sessions, services and sockets.

    Peer ── sessions begin and end ──► Traversal ──┬── PeerPaths, one per peer with a QUIC connection
    Quic ── connections, packets ────►             └── Sockets
    PathSocket ── PROBE, ANSWER ─────►

It decides nothing. Where no session goes by QUIC it does nothing at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.errors import ConfigError, LatticaError, RemoteProtocolError
from lattica.mesh import notices
from lattica.mesh.addresses import split_host
from lattica.mesh.identity import PeerId, peer_text, short_peer
from lattica.mesh.nat import datagrams
from lattica.mesh.nat.answering import KINDS
from lattica.mesh.nat.behaviour import Behaviour
from lattica.mesh.nat.datagrams import ANSWER, PROBE, SECRET_BYTES, Keys
from lattica.mesh.nat.paths import route_text
from lattica.mesh.nat.punching import BecameDirect, Budget, Message
from lattica.mesh.nat.routes import ConnectTcp, Direct, Endpoint, Route, is_private, is_sendable
from lattica.mesh.nat_shell.dispatch import Datagrams
from lattica.mesh.nat_shell.exchange import Card, keys_of, read_card, read_message, write_card, write_message
from lattica.mesh.nat_shell.peer_paths import PeerPaths
from lattica.mesh.nat_shell.records import Records
from lattica.mesh.nat_shell.service import NatService
from lattica.mesh.nat_shell.sockets import Sockets
from lattica.mesh.transport.quic import RELAY

if TYPE_CHECKING:
    from lattica.mesh.peer import Peer
    from lattica.mesh.transport.quic import Quic
    from lattica.mesh.transport.quic_link import QuicLink

log = logging.getLogger(__name__)
KEY_S = 5.0  # for a peer to answer `nat.key`
ASKS_FIRST_S = 1.0
"""So much later the higher PeerId asks as well: the lower one's question was enough, nearly always."""
ADDRESSES_MAX = 6  # of a peer's addresses are tried, as paths
ROUTES_MAX = 8  # by way of relays, of one peer


class Known(msgspec.Struct):
    """With whom we have keys, for as long as the session lives."""

    mine: bytes
    theirs: bytes
    keys: Keys
    card: Card  # theirs, the latest


class Traversal:
    """See the module. Made when the peer's transport is; it begins with `start`."""

    def __init__(self, peer: Peer, quic: Quic) -> None:
        self.behaviour = Behaviour()
        self.mapped: tuple[Endpoint, ...] = ()
        self.on_behaviour: list[Callable[[Behaviour], None]] = []
        self.records = Records()
        self.budget = Budget()
        self.datagrams = Datagrams()
        self.sockets = Sockets(quic.socket)
        self._peer, self._quic = peer, quic
        self._loop = asyncio.get_running_loop()
        self._halves: dict[PeerId, bytes] = {}
        self._known: dict[PeerId, Known] = {}
        self._owners: dict[bytes, PeerId] = {}  # key id -> whose it is
        self._asking: dict[PeerId, asyncio.Task[Known | None]] = {}
        self._paths: dict[PeerId, PeerPaths] = {}
        self._routes: dict[PeerId, dict[Route, None]] = {}  # by way of relays
        self._stopped = False
        quic.socket.on_datagram = self.datagrams.arrived
        quic.guide_of, quic.route_of = self._guide_of, self._route_of
        self.datagrams.on(PROBE, self._arrived)
        self.datagrams.on(ANSWER, self._arrived)
        peer.serve(NatService(self), offered=False)

    def __repr__(self) -> str:
        return f"<Traversal: {self.behaviour.words}, keys with {len(self._known)}, {len(self._paths)} path tables>"

    def start(self) -> None:
        """The peer's gossip is there."""
        self._peer.gossip.listen(notices.NAT, self._told)

    def stop(self) -> None:
        self._stopped = True
        for task in self._asking.values():
            task.cancel()
        for paths in list(self._paths.values()):
            self.unused(paths)
        self.sockets.close_all()

    # -- doors

    def add_route(self, peer: PeerId, route: Route) -> None:
        """This peer may be reached so: a relay's channel was opened."""
        routes = self._routes.setdefault(peer, {})
        if len(routes) >= ROUTES_MAX and route not in routes:
            return
        routes[route] = None
        if (paths := self._paths.get(peer)) is not None:
            paths.add((route,))

    def remove_route(self, peer: PeerId, route: Route) -> None:
        """Nothing can be sent to this peer by this route any more."""
        routes = self._routes.get(peer, {})
        routes.pop(route, None)
        if not routes:
            self._routes.pop(peer, None)
        if (paths := self._paths.get(peer)) is not None:
            paths.step(paths.table.remove, route)

    def paths_of(self, peer: PeerId) -> PeerPaths | None:
        """Its paths, if there is a QUIC connection."""
        return self._paths.get(peer)

    def status(self) -> dict[str, Any]:
        """What there is to say, as plain data."""
        return {
            "behaviour": msgspec.to_builtins(self.behaviour),
            "words": self.behaviour.words,
            "mapped": [str(each) for each in self.mapped],
            "peers": {peer_text(peer): _plain(paths) for peer, paths in self._paths.items()},
            "records": [record.plain() for record in self.records],
        }

    # -- what the peer tells

    def connected(self, peer: PeerId) -> None:
        """A session began."""
        if self._quic.links_of(peer):
            self._begin(peer)

    def disconnected(self, peer: PeerId) -> None:
        """It is over, and so are the keys that were exchanged in it."""
        self._halves.pop(peer, None)
        if (known := self._known.pop(peer, None)) is not None:
            self._owners.pop(known.keys.receiving.id, None)
        if (task := self._asking.pop(peer, None)) is not None:
            task.cancel()
        if (paths := self._paths.get(peer)) is not None:
            self.unused(paths)

    # -- keys

    async def key(self, peer: PeerId, *, asks: bool = False) -> Known | None:
        """Keys with this peer, with whom there is a session; None: it has none for us. asks: its services too."""
        known = self._known.get(peer)
        if known is not None and (known.card.port or not asks):
            return known
        task = self._asking.get(peer)
        if task is None or asks:
            task = self._loop.create_task(self._exchange(peer, asks))
            self._asking[peer] = task
            task.add_done_callback(lambda done: self._asked(peer, done))
        return await asyncio.shield(task)

    def _asked(self, peer: PeerId, task: asyncio.Task[Known | None]) -> None:
        if self._asking.get(peer) is task:
            del self._asking[peer]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("keys with %s", short_peer(peer), exc_info=error)

    async def _exchange(self, peer: PeerId, asks: bool) -> Known | None:
        mine = write_card(self._card(peer, asks=asks))
        try:
            answer = await self._peer.call(peer, "nat.key", mine, timeout_s=KEY_S, idempotent=True)
            return self._agreed(peer, read_card(bytes(answer)))
        except (LatticaError, TypeError) as error:  # it runs a release that knows nothing of this, or is gone
            log.info("no keys with %s: %s", short_peer(peer), str(error).partition("\n")[0])
            return None

    def asked_for_key(self, peer: PeerId, card: bytes) -> bytes:
        """The peer has sent its card; ours. Raises RemoteProtocolError."""
        theirs = read_card(card)
        self._agreed(peer, theirs)
        return write_card(self._card(peer, serves=theirs.asks))

    def _card(self, peer: PeerId, *, asks: bool = False, serves: bool = False) -> Card:
        half = self._halves.get(peer)
        if half is None:
            half = self._halves[peer] = self._peer.rng.randbytes(SECRET_BYTES)
        return Card(half, asks)

    def _agreed(self, peer: PeerId, card: Card) -> Known | None:
        """Both halves are known. Raises RemoteProtocolError if theirs was another one before."""
        known = self._known.get(peer)
        if known is not None:
            if known.theirs != card.half:
                raise RemoteProtocolError("it changed its half of a secret within one session")
            if card.port:
                known.card = card
            return known
        if not self._peer.has_session(peer) or self._stopped:
            return None
        mine = self._card(peer).half
        keys = keys_of(mine, card.half, lower=self._peer.id < peer)
        known = self._known[peer] = Known(mine, card.half, keys, card)
        self._owners[keys.receiving.id] = peer
        self._begin(peer)
        return known

    # -- paths

    def links_of(self, peer: PeerId) -> Sequence[QuicLink]:
        return self._quic.links_of(peer)

    def _guide_of(self, peer: PeerId) -> PeerPaths | None:
        """A QUIC connection to this peer is up."""
        paths = self._paths.get(peer)
        if paths is None:
            self._loop.call_soon(self._begin, peer)
        return paths

    def _route_of(self, peer: PeerId) -> Route | None:
        """By which it answers."""
        paths = self._paths.get(peer)
        return paths.table.current if paths is not None else None

    def _begin(self, peer: PeerId, *, late: bool = False) -> None:
        """Have a path table, if there is a connection that needs one; first have keys."""
        if self._stopped or peer in self._paths or not self._peer.has_session(peer) or not self.links_of(peer):
            return
        known = self._known.get(peer)
        if known is not None:
            self._join(peer, known.keys)
        elif self._peer.id < peer or late:
            if peer not in self._asking:
                task = self._loop.create_task(self._exchange(peer, False))
                self._asking[peer] = task
                task.add_done_callback(lambda done: self._asked(peer, done))
        else:
            self._loop.call_later(ASKS_FIRST_S, self._begin_late, peer)

    def _begin_late(self, peer: PeerId) -> None:
        self._begin(peer, late=True)

    def _join(self, peer: PeerId, keys: Keys) -> None:
        paths = self._paths[peer] = PeerPaths(self, peer, keys, self._peer.rng, lower=self._peer.id < peer)
        links = self.links_of(peer)
        for link in links:
            link.guide = paths
        paths.add(dict.fromkeys([*(link.route for link in links), *self._routes.get(peer, ()), *self._direct(peer)]))

    def _direct(self, peer: PeerId) -> Iterable[Route]:
        """The addresses that the peer tells of itself, those that mean something everywhere first."""
        found: list[Endpoint] = []
        ours = set(self._peer.listening)
        for address in self._peer.addresses_of(peer):
            if address.startswith(RELAY) or address in ours:
                continue
            try:
                endpoint = Endpoint(*split_host(address))
            except ConfigError:
                continue
            if is_sendable(endpoint):
                found.append(endpoint)
        found.sort(key=lambda endpoint: is_private(endpoint.host))
        return [Direct(endpoint) for endpoint in found[:ADDRESSES_MAX]]

    def unused(self, paths: PeerPaths) -> None:
        """The session, or the last connection, is over."""
        if self._paths.get(paths.peer) is paths:
            del self._paths[paths.peer]
        for link in self.links_of(paths.peer):
            link.guide = None
        paths.close()

    # -- what comes

    def _arrived(self, route: Route, data: bytes) -> None:
        """A PROBE or an ANSWER, by whomever: one whose key nobody has costs a look-up."""
        peer = self._owners.get(datagrams.key_id(data))
        if peer is None or datagrams.kind_of(data) in KINDS:
            return
        if (paths := self._paths.get(peer)) is not None:
            paths.step(paths.table.received, route, data)

    def _told(self, peer: PeerId, body: bytes) -> None:
        """A message of the puncher's other side. Raises RemoteProtocolError."""
        message = read_message(body)
        if (paths := self._paths.get(peer)) is not None:
            paths.step(paths.puncher.said, message)

    def asked_to_answer(self, data: bytes, to: Endpoint) -> None:
        """See `NatService.answer_from`."""

    # -- for paths

    def tell(self, peer: PeerId, message: Message) -> None:
        self._peer.send_notice(peer, notices.NAT, write_message(message))

    def seen_as(self, route: Direct, endpoint: Endpoint) -> None:
        """A peer tells where what we send by this route comes from."""

    def connect_tcp(self, paths: PeerPaths, effect: ConnectTcp) -> None:
        paths.step(paths.puncher.refused, effect.attempt)

    def became_direct(self, paths: PeerPaths, effect: BecameDirect) -> None:
        log.info("%s is direct now, by %s, after %.2f s", short_peer(paths.peer), effect.method.value, effect.took_s)


def _plain(paths: PeerPaths) -> dict[str, Any]:
    return {
        "path": route_text(paths.table.current),
        "method": paths.method.value if paths.method is not None else "",
        "stays_relayed": paths.stays,
        "relayed_rtt_ms": None if paths.relayed_s is None else round(paths.relayed_s * 1e3, 2),
        "paths": [
            {
                "path": route_text(path.route),
                "state": "proven" if path.proven else "silent" if path.silences else "new",
                "rtt_ms": round(path.rtt_s * 1e3, 2) if path.rtt_s else None,
                "loss": round(path.loss, 2),
            }
            for path in paths.table.paths
        ],
    }
