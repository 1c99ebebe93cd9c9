"""What traverses NATs once somebody needs it: it joins path tables, punchers and measurements to one peer's sessions,
services and sockets. It decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.mesh import notices
from lattica.mesh.identity import PeerId, peer_text, short_peer
from lattica.mesh.nat import datagrams
from lattica.mesh.nat.answering import KINDS
from lattica.mesh.nat.attempts import BecameDirect, Introduction, Message, Situation
from lattica.mesh.nat.behaviour import Behaviour
from lattica.mesh.nat.candidates import gather
from lattica.mesh.nat.datagrams import ANSWER, PROBE, Keys
from lattica.mesh.nat.rounds import Budget
from lattica.mesh.nat.routes import MAIN, ConnectTcp, Direct, Endpoint, Route, is_private, is_sendable, route_text
from lattica.mesh.nat_shell.exchange import read_behaviour, read_message, write_behaviour, write_message
from lattica.mesh.nat_shell.keyring import Keyring
from lattica.mesh.nat_shell.measuring import Measuring
from lattica.mesh.nat_shell.network import own_hosts
from lattica.mesh.nat_shell.peer_paths import PeerPaths
from lattica.mesh.nat_shell.sockets import Sockets
from lattica.mesh.nat_shell.tcp_punches import TcpPunches
from lattica.mesh.wire import PLANES

if TYPE_CHECKING:
    from lattica.mesh.nat_shell.traversal import Traversal
    from lattica.mesh.peer import Peer
    from lattica.mesh.transport.quic import Quic
    from lattica.mesh.transport.quic_link import QuicLink
    from lattica.mesh.transport.tcp import Tcp

log = logging.getLogger(__name__)
ASKS_FIRST_S = 1.0
"""So much later the higher PeerId asks for keys as well: the lower one's question was enough, nearly always."""
ADDRESSES_MAX = 6  # of a peer's addresses are tried, as paths
UNMEASURED_S = 4.0  # then we punch without knowing what we are behind
DOUBTED_AGAIN_S = 30.0
"""Between measurements that a peer's word brings about: one that tells of another address each second would keep us
from ever finding out. `Measurement` asks by itself every 20 s."""


class Crossing:
    """See the module."""

    def __init__(self, door: Traversal, peer: Peer, quic: Quic, tcp: Tcp | None) -> None:
        self.door, self.rng, self.call = door, peer.rng, peer.call
        self.records = door.records
        self.budget = Budget()
        self.sockets = Sockets(quic.socket)
        self.tcp = TcpPunches(tcp, lambda: self.paths.values(), self._remotes)
        self.paths: dict[PeerId, PeerPaths] = {}
        self._peer, self._quic = peer, quic
        self._loop = asyncio.get_running_loop()
        self._watches = False  # this machine's addresses
        self._measured_at: float | None = None
        self._glimpse: Behaviour | None = None  # what the first measurement has found so far
        self._outer = ""  # the address at which somebody saw us, and nobody had before
        self._doubted_at = float("-inf")  # when we measured because of that
        self._tcp_seen: tuple[Endpoint, ...] = ()
        self._seeing: asyncio.Task[None] | None = None
        self._stopped = False
        self.measuring = Measuring(self, self.sockets)
        self.keyring = Keyring(peer, self._begin, self.measuring.serve)
        door.datagrams.on(PROBE, self._arrived)
        door.datagrams.on(ANSWER, self._arrived)
        peer.gossip.listen(notices.NAT, self._told)

    def __repr__(self) -> str:
        return f"<Crossing: keys with {len(self.keyring)}, {len(self.paths)} path tables>"

    def stop(self) -> None:
        self._stopped = True
        self.measuring.stop()
        self.keyring.stop()
        self.tcp.stop()
        if self._seeing is not None:
            self._seeing.cancel()
        for paths in list(self.paths.values()):
            self.unused(paths)
        self.sockets.close_all()

    def status(self) -> dict[str, Any]:
        """What there is to say, as plain data."""
        measured_at = self._measured_at
        return {
            "measured_s": None if measured_at is None else round(self._loop.time() - measured_at, 1),
            "witnesses": [peer_text(witness.peer) for witness in self.measuring.witnesses],
            "peers": {peer_text(peer): _plain(paths) for peer, paths in self.paths.items()},
        }

    # -- what the peer tells

    def connected(self, peer: PeerId) -> None:
        """A session began."""
        self._begin(peer)
        self.measuring.sessions_changed()

    def found(self, peer: PeerId) -> None:
        """It tells of other addresses than before."""
        if (paths := self.paths.get(peer)) is not None:
            paths.add(self._direct(peer))

    def disconnected(self, peer: PeerId) -> None:
        """It is over, and so are the keys that were exchanged in it."""
        self.keyring.forget(peer)
        self.tcp.punched.pop(peer, None)
        if (paths := self.paths.get(peer)) is not None:
            self.unused(paths)
        self.measuring.sessions_changed(peer)

    # -- paths

    def links_of(self, peer: PeerId) -> Sequence[QuicLink]:
        """QUIC connections with this peer, by whatever path."""
        return self._quic.links_of(peer)

    def guide_of(self, peer: PeerId) -> PeerPaths | None:
        """A QUIC connection to this peer is up."""
        paths = self.paths.get(peer)
        if paths is None:
            self._loop.call_soon(self._begin, peer)
        return paths

    def _begin(self, peer: PeerId, *, late: bool = False) -> None:
        """Have a path table, if there is a connection that needs one; first have keys."""
        if self._stopped or peer in self.paths or not self._peer.has_session(peer) or not self.links_of(peer):
            return
        known = self.keyring.get(peer)
        if known is not None:
            self._join(peer, known.keys)
        elif self._peer.id < peer or late:
            self.keyring.ask_soon(peer)
        else:
            self._loop.call_later(ASKS_FIRST_S, self._begin_late, peer)

    def _begin_late(self, peer: PeerId) -> None:
        self._begin(peer, late=True)

    def _join(self, peer: PeerId, keys: Keys) -> None:
        paths = self.paths[peer] = PeerPaths(self, peer, keys, self._peer.rng, lower=self._peer.id < peer)
        links = self.links_of(peer)
        for link in links:
            link.guide = paths
        self._keep_alive(paths)
        if (situation := self._situation()) is not None:
            paths.situate(situation)
        else:
            self._loop.call_later(UNMEASURED_S, self._situate_anyway, paths)
        self.watch_network()
        paths.add(
            dict.fromkeys([*(link.route for link in links), *self.door.routes.get(peer, ()), *self._direct(peer)])
        )

    def _direct(self, peer: PeerId) -> Iterable[Route]:
        """The addresses that the peer tells of itself, those that mean something everywhere first."""
        ours = set(self._peer.listening)
        found = [each for each in self.door.told_of(peer) if is_sendable(each) and str(each) not in ours]
        found.sort(key=lambda endpoint: is_private(endpoint.host))
        return [Direct(endpoint) for endpoint in found[:ADDRESSES_MAX]]

    def unused(self, paths: PeerPaths) -> None:
        """The session, or the last connection, is over."""
        if self.paths.get(paths.peer) is paths:
            del self.paths[paths.peer]
        for link in self.links_of(paths.peer):
            link.guide = None
        paths.close()

    # -- what is known of this machine

    @property
    def own_hosts(self) -> list[str]:
        """Addresses of this machine."""
        known = self.door.hosts if self._watches else None
        return known if known is not None else own_hosts()

    def sessions(self) -> Iterable[PeerId]:
        """With whom there is one."""
        return self._peer.sessions.peers()

    def mapped(self) -> None:
        """A port of the gateway was mapped to our main socket, or is not any more."""
        core, mapped = self.measuring.core, bool(self.door.mapped)
        core.mapped, core.told_outer = mapped, self.door.told_outer
        core.behaviour = msgspec.structs.replace(core.behaviour, mapped=mapped)
        self._know(msgspec.structs.replace(self.door.behaviour, mapped=mapped))

    def watch_network(self) -> None:
        """From now on it matters when this machine gets another address."""
        self._watches = True
        self.door.watch_network()

    def see_tcp(self) -> None:
        """Ask the witnesses how our listening port is seen."""
        if self._seeing is None or self._seeing.done():
            self._seeing = self._loop.create_task(self._see_tcp())

    async def _see_tcp(self) -> None:
        seen = await self.tcp.seen(self.measuring.witnesses, self._quic.socket.port)
        if seen is not None and (seen,) != self._tcp_seen:
            self._tcp_seen = (seen,)
            self._situate()

    def network_changed(self, hosts: list[str]) -> None:
        """This machine has these addresses now."""
        self.measuring.network_changed(hosts)
        for paths in self.paths.values():
            paths.step(paths.table.network_changed)
        self._situate()

    def glimpsed(self, behaviour: Behaviour, observed: tuple[Endpoint, ...]) -> None:
        """What is known so far."""
        if self.door.behaviour.udp is None:
            self._glimpse, self.door.observed = behaviour, observed
            self._situate()

    def measured(self, behaviour: Behaviour, observed: tuple[Endpoint, ...]) -> None:
        """What this machine is behind, and where it is seen."""
        moved = {each.host for each in observed} != {each.host for each in self.door.observed}
        if self._measured_at is not None and (moved or behaviour.udp != self.door.behaviour.udp):
            self.see_tcp()
        self._measured_at = self._loop.time()
        self.door.observed = observed
        if behaviour.udp is not None and behaviour != self.door.behaviour:
            log.info("this machine is behind: %s", behaviour.words)
        self._know(behaviour)
        for paths in self.paths.values():
            self._keep_alive(paths)

    def _keep_alive(self, paths: PeerPaths) -> None:
        """By the shorter-lived mapping of both sides, as far as they are known."""
        row = self._peer.gossip.community.node(paths.peer)
        theirs = read_behaviour(row.nat).lifetime_s if row is not None else None
        known = [lifetime_s for lifetime_s in (self.door.behaviour.lifetime_s, theirs) if lifetime_s is not None]
        if known:
            paths.table.keep_alive(min(known))

    def _know(self, behaviour: Behaviour) -> None:
        if behaviour != self.door.behaviour:
            self.door.behaviour = behaviour
            self._peer.gossip.describe(nat=write_behaviour(behaviour))
            for hear in self.door.on_behaviour:
                hear(behaviour)
        self._situate()

    def _situation(self, *, anyway: bool = False) -> Situation | None:
        """What to tell others of ourselves; None while nothing is known. anyway: that too."""
        known = self.door.behaviour
        if known.udp is None and self._glimpse is not None:
            known = msgspec.structs.replace(self._glimpse, mapped=known.mapped)
        if known == Behaviour() and not anyway:
            return None
        port = self._quic.socket.port
        local = [Endpoint(host, port) for host in self.own_hosts] if port else []
        candidates = gather(local, self.door.observed, self.door.mapped, self.door.configured)
        introduction = Introduction(known, candidates, self._tcp_seen, self.door.birthday)
        return Situation(introduction, self.measuring.witnesses, port)

    def _situate(self) -> None:
        situation = self._situation() if self.paths else None
        if situation is not None:
            for paths in list(self.paths.values()):
                paths.situate(situation)

    def _situate_anyway(self, paths: PeerPaths) -> None:
        """Nobody could tell what we are behind: what is not known is hoped for."""
        situation = self._situation(anyway=True)
        if paths.puncher.situation is None and situation is not None:
            paths.situate(situation)

    # -- what comes

    def _arrived(self, route: Route, data: bytes) -> None:
        """A PROBE or an ANSWER, by whomever: one whose key nobody has costs a look-up."""
        who = datagrams.key_id(data)
        peer = self.keyring.owner_of(who)
        if peer is None:
            if who and who == self.measuring.core.hairpin_id:
                self.measuring.step(self.measuring.core.received, route, data)
            return
        if datagrams.kind_of(data) not in KINDS:
            if (paths := self.paths.get(peer)) is not None:
                paths.step(paths.table.received, route, data)
            return
        known = self.keyring.get(peer)
        assert known is not None, "a key id has an owner while its key is known"
        self.measuring.received(peer, known.keys, route, data)
        if data[0] == ANSWER:
            for paths in list(self.paths.values()):
                if paths.puncher.observes:
                    paths.step(paths.puncher.received, route, data)

    def _told(self, peer: PeerId, body: bytes) -> None:
        """A message of the puncher's other side. Raises RemoteProtocolError."""
        message = read_message(body)
        if (paths := self.paths.get(peer)) is not None:
            paths.step(paths.puncher.said, message)

    # -- for paths

    def _remotes(self, peer: PeerId) -> set[str]:
        """Where the TCP connections of this peer's session lead."""
        paths = [self._peer.way_of(peer, plane) for plane in PLANES]
        return {path for transport, path in paths if transport != "quic"}

    def tell(self, peer: PeerId, message: Message) -> None:
        """Say this to the peer's puncher, over the session."""
        self._peer.send_notice(peer, notices.NAT, write_message(message))

    def doubt(self, relay: PeerId) -> None:
        """A path is silent: it may be we who have moved, and then this relay must hear of it."""
        if self._peer.relays is not None:
            self._peer.relays.client.doubt(relay)

    def path_died(self, paths: PeerPaths) -> None:
        """What went straight to a peer goes no more: nor does a punched connection, which would not notice for long."""
        self.tcp.drop(paths.peer)

    def seen_as(self, route: Direct, endpoint: Endpoint) -> None:
        """A peer tells where what we send by this route comes from: have we moved?"""
        known = {each.host for each in self.door.observed}
        if route.socket != MAIN or not known or endpoint.host in known or endpoint.host == self._outer:
            return
        now = self._loop.time()
        if endpoint.host not in self.own_hosts and now >= self._doubted_at + DOUBTED_AGAIN_S:
            self._outer, self._doubted_at = endpoint.host, now
            self.measuring.network_changed()

    def connect_tcp(self, paths: PeerPaths, effect: ConnectTcp) -> None:
        """What the puncher asks for."""
        self.tcp.connect(paths, effect)

    def became_direct(self, paths: PeerPaths, effect: BecameDirect) -> None:
        """An attempt has ended well."""
        log.info("%s is direct now, by %s, after %.2f s", short_peer(paths.peer), effect.method.value, effect.took_s)
        if isinstance(effect.over, Endpoint):
            self.tcp.became_direct(paths, effect.over, bulk=not paths.is_relayed)


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
