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
from lattica.mesh.nat.candidates import gather
from lattica.mesh.nat.datagrams import ANSWER, PROBE, SECRET_BYTES, Keys
from lattica.mesh.nat.paths import route_text
from lattica.mesh.nat.punching import BecameDirect, Budget, Introduction, Message, Situation
from lattica.mesh.nat.routes import MAIN, ConnectTcp, Direct, Endpoint, Route, is_private, is_sendable
from lattica.mesh.nat_shell.dispatch import Datagrams
from lattica.mesh.nat_shell.exchange import (
    Card,
    keys_of,
    read_card,
    read_message,
    write_behaviour,
    write_card,
    write_message,
)
from lattica.mesh.nat_shell.measuring import Measuring
from lattica.mesh.nat_shell.network import NetworkWatch, own_hosts
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
UNMEASURED_S = 4.0  # then we punch without knowing what we are behind


class Known(msgspec.Struct):
    """With whom we have keys, for as long as the session lives."""

    mine: bytes
    theirs: bytes
    keys: Keys
    card: Card  # theirs, the latest


class Traversal:
    """See the module. Made when the peer's transport is; it begins with `start`."""

    def __init__(self, peer: Peer, quic: Quic, *, birthday: bool = True) -> None:
        """birthday: whether we take part in rounds that send by the hundred."""
        self.behaviour = Behaviour()
        self.observed: tuple[Endpoint, ...] = ()  # where others see our main socket
        self.mapped: tuple[Endpoint, ...] = ()
        self.birthday = birthday
        self.rng = peer.rng
        self.call = peer.call
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
        self._watch: NetworkWatch | None = None
        self._measured_at: float | None = None
        self._outer = ""  # the address at which somebody saw us, and nobody had before
        self._tcp_seen: tuple[Endpoint, ...] = ()
        self.measuring = Measuring(self, self.sockets)
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
        self.measuring.stop()
        if self._watch is not None:
            self._watch.stop()
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

    def set_mapped(self, endpoints: Sequence[Endpoint], told_outer: str | None = None) -> None:
        """Ports of the gateway that are mapped to our main socket. told_outer: the gateway's outer address, as it
        tells it; None: it does not."""
        core = self.measuring.core
        self.mapped, core.mapped = tuple(endpoints), bool(endpoints)
        if told_outer is not None:
            core.told_outer = told_outer
        core.behaviour = msgspec.structs.replace(core.behaviour, mapped=bool(endpoints))
        self._know(msgspec.structs.replace(self.behaviour, mapped=bool(endpoints)))

    def paths_of(self, peer: PeerId) -> PeerPaths | None:
        """Its paths, if there is a QUIC connection."""
        return self._paths.get(peer)

    def status(self) -> dict[str, Any]:
        """What there is to say, as plain data."""
        return {
            "behaviour": msgspec.to_builtins(self.behaviour),
            "words": self.behaviour.words,
            "measured_s": None if self._measured_at is None else round(self._loop.time() - self._measured_at, 1),
            "observed": [str(each) for each in self.observed],
            "witnesses": [peer_text(witness.peer) for witness in self.measuring.witnesses],
            "birthday": self.birthday,
            "mapped": [str(each) for each in self.mapped],
            "peers": {peer_text(peer): _plain(paths) for peer, paths in self._paths.items()},
            "records": [record.plain() for record in self.records],
        }

    # -- what the peer tells

    def connected(self, peer: PeerId) -> None:
        """A session began."""
        if self._quic.links_of(peer):
            self._begin(peer)
        self.measuring.sessions_changed()

    def disconnected(self, peer: PeerId) -> None:
        """It is over, and so are the keys that were exchanged in it."""
        self._halves.pop(peer, None)
        if (known := self._known.pop(peer, None)) is not None:
            self._owners.pop(known.keys.receiving.id, None)
        if (task := self._asking.pop(peer, None)) is not None:
            task.cancel()
        if (paths := self._paths.get(peer)) is not None:
            self.unused(paths)
        self.measuring.sessions_changed(peer)

    # -- keys

    async def key(self, peer: PeerId, *, asks: bool = False) -> Known | None:
        """Keys with this peer, with whom there is a session; None: it has none for us. asks: its services too."""
        known = self._known.get(peer)
        if known is not None and not asks:
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
        port, has_others = self.measuring.serve(peer) if serves else (0, False)
        return Card(half, asks, port, has_others)

    def _agreed(self, peer: PeerId, card: Card) -> Known | None:
        """Both halves are known. Raises RemoteProtocolError if theirs was another one before."""
        known = self._known.get(peer)
        if known is not None:
            if known.theirs != card.half:
                raise RemoteProtocolError("it changed its half of a secret within one session")
            if card.port or card.has_others:
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
        if (situation := self._situation()) is not None:
            paths.situate(situation)
        else:
            self._loop.call_later(UNMEASURED_S, self._situate_anyway, paths)
        self.watch_network()
        paths.add(dict.fromkeys([*(link.route for link in links), *self._routes.get(peer, ()), *self._direct(peer)]))

    def _direct(self, peer: PeerId) -> Iterable[Route]:
        """The addresses that the peer tells of itself, those that mean something everywhere first."""
        ours = set(self._peer.listening)
        found = [each for each in self.told_of(peer) if is_sendable(each) and str(each) not in ours]
        found.sort(key=lambda endpoint: is_private(endpoint.host))
        return [Direct(endpoint) for endpoint in found[:ADDRESSES_MAX]]

    def unused(self, paths: PeerPaths) -> None:
        """The session, or the last connection, is over."""
        if self._paths.get(paths.peer) is paths:
            del self._paths[paths.peer]
        for link in self.links_of(paths.peer):
            link.guide = None
        paths.close()

    # -- what is known of this machine

    @property
    def is_exposed(self) -> bool:
        """Whether others than processes of this machine may reach us, or we them."""
        listening = [split_host(address)[0] for address in self._peer.listening if not address.startswith(RELAY)]
        return not listening or not all(host.startswith("127.") or host == "::1" for host in listening)

    @property
    def own_hosts(self) -> list[str]:
        return self._watch.hosts if self._watch is not None else own_hosts()

    def sessions(self) -> Iterable[PeerId]:
        """With whom there is one."""
        return self._peer.sessions.peers()

    def told_of(self, peer: PeerId) -> list[Endpoint]:
        """Where this peer's UDP socket may be: there where we have reached it, and where it says it is."""
        found: dict[Endpoint, None] = {}
        reached = self._peer.path_of(peer) if self._peer.sessions.is_dialed(peer) else ""
        for address in (reached, *self._peer.addresses_of(peer)):
            try:
                host, port = split_host(address)
            except ConfigError:  # by way of a relay, or nothing
                continue
            found[Endpoint(host, port)] = None
        return list(found)

    def watch_network(self) -> None:
        """From now on it matters when this machine gets another address."""
        if self._watch is None and not self._stopped:
            self._watch = NetworkWatch(self._network_changed)

    def _network_changed(self, hosts: list[str]) -> None:
        log.info("this machine has other addresses now: %s", ", ".join(hosts))
        self._peer.rebound()
        self.measuring.network_changed(hosts)
        for paths in self._paths.values():
            paths.step(paths.table.network_changed)
        self._situate()

    def glimpsed(self, behaviour: Behaviour, observed: tuple[Endpoint, ...]) -> None:
        """What is known so far."""
        if self.behaviour.udp is None:
            self.observed = observed
            self._situate(behaviour)

    def measured(self, behaviour: Behaviour, observed: tuple[Endpoint, ...]) -> None:
        """What this machine is behind, and where it is seen."""
        self._measured_at = self._loop.time()
        self.observed = observed
        if behaviour.udp is not None and behaviour != self.behaviour:
            log.info("this machine is behind: %s", behaviour.words)
        self._know(behaviour)
        if behaviour.lifetime_s is not None:
            for paths in self._paths.values():
                paths.table.keep_alive(behaviour.lifetime_s)

    def _know(self, behaviour: Behaviour) -> None:
        if behaviour != self.behaviour:
            self.behaviour = behaviour
            self._peer.gossip.describe(nat=write_behaviour(behaviour))
            for hear in self.on_behaviour:
                hear(behaviour)
        self._situate()

    def _situation(self, behaviour: Behaviour | None = None) -> Situation | None:
        """What to tell others of ourselves; None while nothing is known."""
        known = behaviour or self.behaviour
        if known == Behaviour() and behaviour is None:
            return None
        port = self._quic.socket.port
        local = [Endpoint(host, port) for host in self.own_hosts] if port else []
        candidates = gather(local, self.observed, self.mapped)
        introduction = Introduction(known, candidates, self._tcp_seen, self.birthday)
        return Situation(introduction, self.measuring.witnesses, port)

    def _situate(self, behaviour: Behaviour | None = None) -> None:
        situation = self._situation(behaviour) if self._paths else None
        if situation is not None:
            for paths in list(self._paths.values()):
                paths.situate(situation)

    def _situate_anyway(self, paths: PeerPaths) -> None:
        """Nobody could tell what we are behind: what is not known is hoped for."""
        situation = self._situation(self.behaviour)
        if paths.puncher.situation is None and situation is not None:
            paths.situate(situation)

    # -- what comes

    def _arrived(self, route: Route, data: bytes) -> None:
        """A PROBE or an ANSWER, by whomever: one whose key nobody has costs a look-up."""
        who = datagrams.key_id(data)
        peer = self._owners.get(who)
        if peer is None:
            if who and who == self.measuring.core.hairpin_id:
                self.measuring.step(self.measuring.core.received, route, data)
            return
        if datagrams.kind_of(data) not in KINDS:
            if (paths := self._paths.get(peer)) is not None:
                paths.step(paths.table.received, route, data)
            return
        self.measuring.received(peer, self._known[peer].keys, route, data)
        if data[0] == ANSWER:
            for paths in list(self._paths.values()):
                if paths.puncher.sockets:
                    paths.step(paths.puncher.received, route, data)

    def _told(self, peer: PeerId, body: bytes) -> None:
        """A message of the puncher's other side. Raises RemoteProtocolError."""
        message = read_message(body)
        if (paths := self._paths.get(peer)) is not None:
            paths.step(paths.puncher.said, message)

    def asked_to_answer(self, data: bytes, to: Endpoint) -> None:
        """See `NatService.answer_from`."""
        self.measuring.asked_to_answer(data, to)

    # -- for paths

    def tell(self, peer: PeerId, message: Message) -> None:
        self._peer.send_notice(peer, notices.NAT, write_message(message))

    def seen_as(self, route: Direct, endpoint: Endpoint) -> None:
        """A peer tells where what we send by this route comes from: have we moved?"""
        known = {each.host for each in self.observed}
        if route.socket != MAIN or not known or endpoint.host in known or endpoint.host == self._outer:
            return
        if endpoint.host not in self.own_hosts:
            self._outer = endpoint.host
            self.measuring.network_changed()

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
