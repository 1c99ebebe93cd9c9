"""One peer's traversal of NATs: the door to it, and what it has found out.

    Peer ── sessions begin and end ──► Traversal ──► Crossing ──┬── PeerPaths, one per peer with a QUIC connection
    Quic ── connections, packets ────►                          ├── Measuring   what this machine is behind
    PathSocket ── PROBE, ANSWER ─────►                          └── Keyring     keys with others

Until a session goes by QUIC, or is with a peer that has a public address, there is no `Crossing`, and its modules are
not even loaded: on a machine that works alone nothing of this takes time or memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lattica.errors import ConfigError
from lattica.mesh.addresses import split_host
from lattica.mesh.identity import PeerId, peer_text
from lattica.mesh.nat.behaviour import Behaviour
from lattica.mesh.nat.routes import Endpoint, Route, is_public, is_sendable
from lattica.mesh.nat_shell.dispatch import Datagrams
from lattica.mesh.nat_shell.records import Records
from lattica.mesh.nat_shell.service import NatService
from lattica.mesh.transport.quic import RELAY

if TYPE_CHECKING:
    from lattica.mesh.nat_shell.crossing import Crossing
    from lattica.mesh.nat_shell.network import NetworkWatch
    from lattica.mesh.nat_shell.peer_paths import PeerPaths
    from lattica.mesh.peer import Peer
    from lattica.mesh.transport.quic import Quic
    from lattica.mesh.transport.tcp import Tcp

log = logging.getLogger(__name__)
ROUTES_MAX = 8  # by way of relays, of one peer


class Traversal:
    """See the module. Made when the peer's transport is; it begins with `start`."""

    def __init__(self, peer: Peer, quic: Quic, tcp: Tcp | None = None, *, birthday: bool = True) -> None:
        """tcp: None where only UDP is spoken. birthday: whether we take part in rounds that send by the hundred."""
        self.behaviour = Behaviour()
        self.observed: tuple[Endpoint, ...] = ()  # where others see our main socket
        self.mapped: tuple[Endpoint, ...] = ()
        self.configured: tuple[Endpoint, ...] = ()
        self.told_outer = ""
        self.birthday = birthday
        self.on_behaviour: list[Callable[[Behaviour], None]] = []
        self.on_network: list[Callable[[], None]] = []  # hear when this machine has other addresses
        self.records = Records()
        self.datagrams = Datagrams()
        self.routes: dict[PeerId, dict[Route, None]] = {}  # by way of relays
        self._peer, self._quic, self._tcp = peer, quic, tcp
        self._crossing: Crossing | None = None
        self._watch: NetworkWatch | None = None
        self._stopped = False
        quic.socket.on_datagram = self.datagrams.arrived
        quic.guide_of, quic.route_of, quic.bulk_began = self._guide_of, self._route_of, self._bulk_began
        peer.serve(NatService(self), offered=False)

    def __repr__(self) -> str:
        return f"<Traversal: {self.behaviour.words}, {self._crossing or 'not needed yet'}>"

    def stop(self) -> None:
        self._stopped = True
        if self._watch is not None:
            self._watch.stop()
        if self._crossing is not None:
            self._crossing.stop()

    # -- doors

    def is_punched(self, host: str) -> bool:
        """Whether a TCP connection from there may be one that both sides began at once."""
        return self._crossing is not None and self._crossing.tcp.expects(host)

    @property
    def crossing(self) -> Crossing:
        """What does the work, from now on."""
        if self._crossing is None:
            from lattica.mesh.nat_shell.crossing import Crossing

            self._crossing = Crossing(self, self._peer, self._quic, self._tcp)
        return self._crossing

    def add_route(self, peer: PeerId, route: Route) -> None:
        """This peer may be reached so: a relay's channel was opened."""
        routes = self.routes.setdefault(peer, {})
        if len(routes) >= ROUTES_MAX and route not in routes:
            return
        routes[route] = None
        if (paths := self.paths_of(peer)) is not None:
            paths.add((route,))

    def remove_route(self, peer: PeerId, route: Route) -> None:
        """Nothing can be sent to this peer by this route any more."""
        routes = self.routes.get(peer, {})
        routes.pop(route, None)
        if not routes:
            self.routes.pop(peer, None)
        if (paths := self.paths_of(peer)) is not None:
            paths.step(paths.table.remove, route)

    def set_mapped(self, endpoints: Sequence[Endpoint]) -> None:
        """Ports of the gateway that are mapped to our main socket, as it tells: behind another NAT they lead there
        only."""
        self.mapped = tuple(endpoint for endpoint in endpoints if is_public(endpoint))
        self.told_outer = next((endpoint.host for endpoint in endpoints if not endpoint.is_ipv6), self.told_outer)
        if self.mapped or self._crossing is not None:
            self.crossing.mapped()

    def configure(self, addresses: Sequence[str]) -> None:
        """These lead to our main socket, as the user says. Names are not looked up: who dials us does."""
        found = [Endpoint(*split_host(address)) for address in addresses]
        self.configured = tuple(endpoint for endpoint in found if is_sendable(endpoint))
        if self._crossing is not None:
            self._crossing.mapped()

    def paths_of(self, peer: PeerId) -> PeerPaths | None:
        """Its paths, if there is a QUIC connection and both have keys."""
        return self._crossing.paths.get(peer) if self._crossing is not None else None

    def method_of(self, peer: PeerId, transport: str, path: str) -> str:
        """How the connection by this path came to be: "" if it was simply dialed, or goes by a relay."""
        if self._crossing is None:
            return ""
        if transport != "quic":
            punched = self._crossing.tcp.punched.get(peer)
            return "TCP simultaneous open" if punched is not None and str(punched) == path else ""
        paths = self._crossing.paths.get(peer)
        return paths.method.value if paths is not None and paths.method is not None else ""

    def status(self) -> dict[str, Any]:
        """What there is to say, as plain data."""
        import msgspec

        found: dict[str, Any] = {
            "behaviour": msgspec.to_builtins(self.behaviour),
            "words": self.behaviour.words,
            "observed": [str(each) for each in self.observed],
            "mapped": [str(each) for each in self.mapped],
            "reached": self._peer.relays is not None and self._peer.relays.is_reached,
            "others": {peer_text(peer): msgspec.to_builtins(theirs) for peer, theirs in self._others()},
            "birthday": self.birthday,
            "peers": {},
            "records": [record.plain() for record in self.records],
        }
        return found | (self._crossing.status() if self._crossing is not None else {})

    def _others(self) -> Iterator[tuple[PeerId, Behaviour]]:
        """What those with whom there is a session are behind, as they say."""
        from lattica.mesh.nat_shell.exchange import read_behaviour

        for peer in self._peer.sessions.peers():
            if (row := self._peer.gossip.community.node(peer)) is not None:
                yield peer, read_behaviour(row.nat)

    # -- what the peer tells

    def connected(self, peer: PeerId) -> None:
        """A session began."""
        self.watch_network()
        if self._crossing is not None or self._quic.links_of(peer) or self._is_worth_asking(peer):
            self.crossing.connected(peer)

    def disconnected(self, peer: PeerId) -> None:
        """It is over."""
        if self._crossing is not None:
            self._crossing.disconnected(peer)

    def found(self, peer: PeerId) -> None:
        """It tells of other addresses than before."""
        if self._crossing is not None:
            self._crossing.found(peer)

    # -- this machine's addresses

    @property
    def hosts(self) -> list[str] | None:
        """Of its interfaces; None: they are not watched."""
        return self._watch.hosts if self._watch is not None else None

    def watch_network(self) -> None:
        """From now on others must hear when this machine gets another address."""
        if self._watch is None and not self._stopped and (self.is_exposed or self._peer.listens_everywhere):
            from lattica.mesh.nat_shell.network import NetworkWatch

            self._watch = NetworkWatch(self._network_changed)
            self._peer.look_around()

    def _network_changed(self, hosts: list[str]) -> None:
        log.info("this machine has other addresses now: %s", ", ".join(hosts) or "none")
        self._peer.rebound()
        for hear in self.on_network:
            hear()
        if self._crossing is not None:
            self._crossing.network_changed(hosts)

    # -- what is asked

    def _is_worth_asking(self, peer: PeerId) -> bool:
        """Whether it may tell us what we are behind."""
        if not self.is_exposed:
            return False
        ours = set(self._hosts())
        return any(is_public(endpoint) and endpoint.host not in ours for endpoint in self.told_of(peer))

    def _hosts(self) -> list[str]:
        """At which we listen."""
        return [split_host(address)[0] for address in self._peer.listening if not address.startswith(RELAY)]

    @property
    def is_exposed(self) -> bool:
        """Whether others than processes of this machine may reach us, or we them."""
        listening = self._hosts()
        return not listening or not all(host.startswith("127.") or host == "::1" for host in listening)

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

    # -- what connections tell

    def _guide_of(self, peer: PeerId) -> PeerPaths | None:
        return self.crossing.guide_of(peer) if not self._stopped else None

    def _bulk_began(self, peer: PeerId) -> None:
        if self._crossing is not None and (paths := self._crossing.paths.get(peer)) is not None:
            paths.bulk_began()

    def _route_of(self, peer: PeerId) -> Route | None:
        paths = self.paths_of(peer)
        return paths.table.current if paths is not None else None
