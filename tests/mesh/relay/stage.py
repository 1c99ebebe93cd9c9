"""Peers with relays on a network in memory, on a virtual clock: no sockets, no sessions, no certificates."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

from lattica.errors import PeerUnreachableError
from lattica.mesh.identity import PeerId
from lattica.mesh.nat.routes import Direct, Endpoint, Route, ViaRelay
from lattica.mesh.nat_shell.dispatch import Datagrams
from lattica.mesh.relay.relays import ALWAYS, NEVER, Relays
from lattica.mesh.roles import MEMBER, Role
from lattica.mesh.services import Caller, Method, caller, methods_of
from tests.mesh.conftest import PlainMember

LATENCY_S = 0.01


class Network:
    """Carries datagrams between endpoints, and calls between peers."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.peers: dict[PeerId, StagePeer] = {}
        self.offering: list[PeerId] = []
        self.sent: list[tuple[Endpoint, Endpoint, bytes]] = []
        self.far: dict[Endpoint, float] = {}  # seconds more, to it and from it

    def carry(self, source: Endpoint, to: Endpoint, datagram: bytes) -> None:
        self.sent.append((source, to, datagram))
        after_s = (
            LATENCY_S + self.far.get(to, 0.0) + self.far.get(source, 0.0) + len(self.sent) * 1e-7
        )  # equal timers fire in no order
        self.loop.call_later(after_s, self._deliver, source, to, datagram)

    def _deliver(self, source: Endpoint, to: Endpoint, datagram: bytes) -> None:
        for peer in self.peers.values():
            if peer.at == to and peer.lives:
                peer.datagrams.arrived(Direct(source), datagram)


class StageSocket:
    """As much of a path socket as relaying needs. room: datagrams that the kernel takes until it is full."""

    def __init__(self, peer: StagePeer) -> None:
        self._peer = peer
        self.room: int | None = None
        self.to_relay: Any = None
        self.got: list[tuple[Route, bytes]] = []
        self.waits: list[Any] = []

    def send(self, route: Route, datagrams: Sequence[bytes], ttl: int = 0) -> None:
        if isinstance(route, ViaRelay):
            self.to_relay(route, datagrams)
        elif self._peer.lives and self._peer.udp:
            for datagram in datagrams:
                self._peer.network.carry(self._peer.at, route.endpoint, datagram)

    def offer(self, route: Direct, datagrams: Sequence[bytes]) -> int:
        count = len(datagrams) if self.room is None else min(self.room, len(datagrams))
        if self.room is not None:
            self.room -= count
        self.send(route, datagrams[:count])
        return count

    def when_writable(self, route: Direct, call: Any) -> None:
        self.waits.append(call)

    def arrived_together(self, route: Route, datagrams: Sequence[bytes]) -> None:
        self.got += [(route, datagram) for datagram in datagrams]


class StagePeer:
    """As much of a peer."""

    def __init__(self, network: Network, number: int, *, offers: str = NEVER, roles: Role = MEMBER) -> None:
        self.network, self.lives, self.udp = network, True, True
        self.id = PeerId(bytes([number]) * 32)
        self.at = Endpoint(f"192.0.2.{number}", 7411)
        self.rng = Random(number)
        self.listening: list[str] = []
        self.roles, self.offers = roles, offers
        self.advertised: dict[str, list[str]] = {}
        self.known: dict[PeerId, list[str]] = {}
        self.objections: dict[PeerId, str] = {}
        self.on_falter: list[Any] = []
        self.datagrams = Datagrams()
        self.socket = StageSocket(self)
        self.links: set[Any] = set()
        self.routes: list[tuple[PeerId, Route]] = []
        self.calls: list[tuple[PeerId, str]] = []
        self._methods: dict[str, Method] = {}
        self.credentials = SimpleNamespace(member=PlainMember(self.id, roles))
        self.steward = SimpleNamespace(
            unix_s=network.loop.time, objection=lambda m, at: self.objections.get(m.peer, "")
        )
        self.dialed: set[PeerId] = set()  # by TCP, to whom a connection of ours leads
        self.sessions = SimpleNamespace(
            member=lambda peer: PlainMember(peer, network.peers[peer].roles),
            is_dialed=lambda peer: peer in self.dialed,
            rtt_s=lambda peer: 2 * LATENCY_S,
        )
        self.gossip = SimpleNamespace(
            offer=lambda name: network.offering.append(self.id),
            withdraw=lambda name: network.offering.remove(self.id),
            is_offered=lambda name: self.id in network.offering,
            known_providers=lambda name: [peer for peer in network.offering if peer != self.id],
            watch=lambda kind, watcher: None,
            community=SimpleNamespace(info=SimpleNamespace(ephemeral=False)),
        )
        self.traversal = SimpleNamespace(
            behaviour=SimpleNamespace(udp=None),
            add_route=lambda peer, route: self.routes.append((peer, route)),
            remove_route=lambda peer, route: (
                self.routes.remove((peer, route)) if (peer, route) in self.routes else None
            ),
        )
        self.quic = SimpleNamespace(socket=self.socket, links=self.links, links_of=lambda peer: [], relayed=None)
        network.peers[self.id] = self
        self.relays = Relays(self, self.quic, None, self.datagrams, offers)  # type: ignore[arg-type]

    def serve(self, instance: object, *, offered: bool = True) -> None:
        self._methods.update({found.name: found for found in methods_of(instance)})

    def has_session(self, peer: PeerId) -> bool:
        return self.network.peers[peer].lives

    def addresses_of(self, peer: PeerId) -> list[str]:
        other = self.network.peers[peer]
        own = [str(other.at)] if other.offers == ALWAYS else []
        return [*own, *(each for found in other.advertised.values() for each in found)]

    def path_of(self, peer: PeerId) -> str:
        return ""

    def advertise(self, source: str, addresses: Sequence[str]) -> None:
        self.advertised[source] = list(addresses)

    async def call(self, target: PeerId, method: str, *args: Any, **options: Any) -> Any:
        """After a round trip; of the roles of who calls nothing is checked but what the method declares."""
        self.calls.append((target, method))
        other = self.network.peers[target]
        await asyncio.sleep(2 * LATENCY_S)
        if not (other.lives and self.lives):
            await asyncio.sleep(options.get("timeout_s", 5.0))
            raise PeerUnreachableError("it does not answer")
        found = other._methods[method]
        assert found.declared.role is None or found.declared.role & self.roles, f"{method} is not for these roles"
        token = caller.set(Caller(self.id, self.roles, None))
        try:
            answer = found.function(*args)
            return await answer if found.is_async else answer
        finally:
            caller.reset(token)

    def stop(self) -> None:
        self.relays.stop()


class Link:
    """A QUIC connection that sends by some route."""

    def __init__(self, peer: PeerId, route: Route) -> None:
        self.member, self.route, self.over, self.ended = PlainMember(peer), route, False, ""

    def take(self, route: Route) -> None:
        self.route = route

    def pump(self, now: float) -> None: ...

    def end(self, reason: str) -> None:
        self.over, self.ended = True, reason
