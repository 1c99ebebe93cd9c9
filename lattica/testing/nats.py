"""A simulated internet of NATs on a world's heap: netlab's words for gateways, without kernels or root.

    nats = Nats(world)
    nats.public("relay", delay_s=0.005)
    nats.site("a", "port-restricted hairpin", hosts=2, wan_s=0.02, loss=0.01)
    nats.site("isp", "cgn", hosts=0); nats.site("c", "full-cone", upstream="isp")          # double NAT
    nats.start("a1", lambda: Node(...))

A participant is a core with the verbs of `lattica.mesh.nat.routes`: `received(route, data)`, `opened(socket, local)`,
and `connected(attempt, remote)`, `accepted(local port, remote)`, `refused(attempt)` if it opens TCP connections. It
asks with `SendOver`, `OpenSocket`, `CloseSocket`, `ConnectTcp`, and with `Say` for what goes over a session, which
arrives at `said(sender, message)`. Hosts of site `a` are `a1`, `a2`, ...; each has socket 0 on PORT, for UDP and TCP.

Sessions and channels of relays are there, whatever is between the two, at the price of the way by a public host.
Faults: `flush`, `roam`, `change`, `cut`, `set_loss`; a relay is killed by `world.crash`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

import msgspec

from lattica.mesh.identity import PeerId
from lattica.mesh.nat.routes import MAIN, CloseSocket, ConnectTcp, Direct, Endpoint, OpenSocket, SendOver, ViaRelay
from lattica.testing.gateway import Gateway, Stop
from lattica.testing.netlab.topology import Nat, NatSpec, nat_of
from lattica.testing.world import Core, World

PORT = 7411
TTL = 64
LAN_S = 0.0002
EPHEMERAL = (32768, 60999)
SYN_AGAIN_S = (1.0, 2.0, 4.0)  # RFC 6298 §2
SESSION_AGAIN_S = 0.2  # a retransmission of what a session carries


class Say(msgspec.Struct, frozen=True):
    """Effect: tell another participant over a session, in order and without loss."""

    to: str
    message: object


class _Packet(msgspec.Struct):
    proto: str
    source: Endpoint
    to: Endpoint
    payload: object
    ttl: int


@dataclass(slots=True)
class Host:
    """A machine. site: None if it is public."""

    name: str
    ip: str
    ip6: str
    site: Site | None
    delay_s: float
    loss: float
    sockets: dict[int, int] = field(default_factory=lambda: {MAIN: PORT})
    connecting: dict[tuple[int, Endpoint], int] = field(default_factory=dict)  # (local port, remote) -> attempt


@dataclass(slots=True)
class Site:
    """A gateway and what is behind it. wan_s: one way from it to the core."""

    name: str
    gateway: Gateway
    firewall6: Gateway | None
    upstream: Site | None
    wan_s: float
    loss: float
    number: int
    inside: dict[str, Host | Site] = field(default_factory=dict)  # by address
    cut: bool = False


class Nats:
    """See the module."""

    def __init__(self, world: World) -> None:
        self.world, self._rng = world, Random(f"nats {world.seed}")
        self.hosts: dict[str, Host] = {}
        self.sites: dict[str, Site] = {}
        self.packets: dict[str, int] = {}  # datagrams that each participant has sent
        self._outside: dict[str, Host | Site] = {}  # public addresses
        self._numbers, self._channels = count(1), count(1)
        self._channel_ends: dict[int, tuple[str, str]] = {}
        self._relay_names: dict[PeerId, str] = {}
        self._said_until: dict[tuple[str, str], float] = {}
        world.perform_by(SendOver, self._send_over)
        world.perform_by(OpenSocket, self._open_socket)
        world.perform_by(CloseSocket, self._close_socket)
        world.perform_by(ConnectTcp, self._connect)
        world.perform_by(Say, self._say)

    # ---- building -----------------------------------------------------------------------------------------------

    def public(self, name: str, *, delay_s: float = 0.01, loss: float = 0.0, ipv6: bool = True) -> Host:
        """A host with a public address and no firewall. delay_s: one way to the core."""
        number = next(self._numbers)
        ip6 = f"2001:db8:{number:x}::1" if ipv6 else ""
        host = Host(name, f"198.18.{number >> 8}.{number & 255}", ip6, None, delay_s, loss)
        self.hosts[name] = self._outside[host.ip] = host
        if ip6:
            self._outside[ip6] = host
        return host

    def site(
        self,
        name: str,
        nat: NatSpec = "port-restricted",
        *,
        hosts: int = 1,
        wan_s: float = 0.02,
        loss: float = 0.0,
        upstream: str | None = None,
        ipv6: str = "none",
    ) -> Site:
        """As netlab's `Site`. Public and firewalled hosts have routed addresses; LANs all look alike, as at homes."""
        number, made = next(self._numbers), nat_of(nat)
        above = self.sites[upstream] if upstream else None
        outer = (
            f"100.64.{number >> 8}.{number & 255}"
            if above
            else f"203.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        )
        six = Gateway(Nat("none", "apdf" if ipv6 == "stateful" else "eif"), "", self._rng) if ipv6 != "none" else None
        site = Site(name, Gateway(made, outer, self._rng), six, above, wan_s, loss, number)
        self.sites[name] = site
        (above.inside if above else self._outside)[outer] = site
        for index in range(1, hosts + 1):
            routed = made.mapping == "none"
            ip = f"198.19.{number & 255}.{index + (number >> 8) * 32}" if routed else f"192.168.1.{index + 1}"
            ip6 = f"2001:db8:{number:x}::{index + 1:x}" if six else ""
            host = Host(f"{name}{index}", ip, ip6, site, LAN_S, 0.0)
            self.hosts[host.name] = site.inside[ip] = host
            if routed:
                self._outside[ip] = site
            if ip6:
                site.inside[ip6] = host
                self._outside[ip6] = site
        return site

    def start(self, name: str, factory: Callable[[], Core]) -> None:
        """Whose core runs on this host."""
        self.world.add(name, factory)

    def relay(self, name: str, peer: PeerId) -> None:
        """This public host forwards channels; peer: by what id others know it."""
        self._relay_names[peer] = name

    def channel(self, relay: PeerId, one: str, other: str) -> ViaRelay:
        """A channel between the two, by this relay."""
        number = next(self._channels)
        self._channel_ends[number] = (one, other)
        return ViaRelay(relay, number)

    def local(self, name: str, socket: int = MAIN) -> Endpoint:
        """What the host itself knows of a socket."""
        return Endpoint(self.hosts[name].ip, self.hosts[name].sockets[socket])

    def locals(self, name: str) -> list[Endpoint]:
        """Of all families."""
        host = self.hosts[name]
        return [Endpoint(ip, host.sockets[MAIN]) for ip in (host.ip, host.ip6) if ip]

    def tcp_seen(self, name: str, by: str) -> tuple[Endpoint, ...]:
        """How the host's listening port looks to a public host to which it has a connection over TCP, if it can have
        one."""
        host = self.hosts[name]
        source: Endpoint | None = Endpoint(host.ip, PORT)
        site, to = host.site, Endpoint(self.hosts[by].ip, PORT)
        while site is not None and source is not None:
            source, site = site.gateway.outbound("tcp", source, to, self.world.now), site.upstream
        return () if source is None else (source,)

    # ---- faults -------------------------------------------------------------------------------------------------

    def flush(self, site: str) -> None:
        """Its gateway forgets every mapping."""
        self.sites[site].gateway.forget()
        self.world.note(site, "forgets its mappings")

    def roam(self, name: str) -> None:
        """The site's public address changes, and its mappings are gone."""
        site = self.sites[name]
        assert site.gateway.nat.mapping != "none", "a routed site keeps its hosts' addresses"
        around = site.upstream.inside if site.upstream else self._outside
        del around[site.gateway.outer]
        number = next(self._numbers)
        first = "100.64" if site.upstream else f"203.{number >> 16}"
        site.gateway.outer = f"{first}.{number >> 8 & 255}.{number & 255}"
        around[site.gateway.outer] = site
        site.gateway.forget()
        self.world.note(name, f"is {site.gateway.outer} now")

    def change(self, site: str, **changes: object) -> None:
        """Other fields of its NAT, from now on: `udp=False`, `udp_stream=5`."""
        self.sites[site].gateway.nat = replace(self.sites[site].gateway.nat, **changes)  # type: ignore[arg-type]
        self.world.note(site, f"changes {changes}")

    def cut(self, site: str, *, cut: bool = True) -> None:
        """Nothing goes in or out (datagrams are lost; sessions and channels stand still), or again it does."""
        self.sites[site].cut = cut
        self.world.note(site, "is cut off" if cut else "is back")

    def set_loss(self, site: str, loss: float) -> None:
        self.sites[site].loss = loss

    # ---- UDP, and what looks like it ----------------------------------------------------------------------------

    def _send_over(self, name: str, effect: SendOver) -> None:
        self.packets[name] = self.packets.get(name, 0) + 1
        if isinstance(effect.route, ViaRelay):
            self._by_relay(name, effect.route, effect.data)
            return
        host, to = self.hosts[name], effect.route.endpoint
        port = host.sockets.get(effect.route.socket)
        ip = host.ip6 if to.is_ipv6 else host.ip
        if port is not None and ip:
            self._from_host(host, _Packet("udp", Endpoint(ip, port), to, effect.data, effect.ttl or TTL))

    def _from_host(self, host: Host, packet: _Packet) -> None:
        if host.site is None:
            self._later(host.delay_s, host.loss, self._core, packet)
        else:
            self._out(host.site, packet)

    def _out(self, site: Site, packet: _Packet) -> None:
        """A packet comes from inside to a gateway."""
        now, to = self.world.now, packet.to
        if to.host in site.inside:
            self._later(LAN_S, 0.0, self._inside, site, packet)
            return
        gateway = (site.firewall6 if to.is_ipv6 else site.gateway) or site.gateway
        if packet.ttl <= 1 or (to.is_ipv6 and site.firewall6 is None):
            return
        source = gateway.outbound(packet.proto, packet.source, to, now)
        if source is None:
            return
        packet = _Packet(packet.proto, source, to, packet.payload, packet.ttl - 1)
        if to.host == site.gateway.outer:
            inner = site.gateway.hairpin(packet.proto, to.port, now)
            if inner is not None:
                self._later(
                    LAN_S, 0.0, self._inside, site, _Packet(packet.proto, source, inner, packet.payload, packet.ttl)
                )
            return
        if not site.cut:
            self._later(site.wan_s, site.loss, self._above, site, packet)

    def _above(self, site: Site, packet: _Packet) -> None:
        if site.upstream is not None and not packet.to.is_ipv6:
            self._out(site.upstream, packet)
        else:
            self._core(packet)

    def _core(self, packet: _Packet) -> None:
        """In the middle of the internet."""
        if packet.ttl <= 1:
            return
        target = self._outside.get(packet.to.host)
        packet.ttl -= 1
        if isinstance(target, Host):
            self._later(target.delay_s, target.loss, self._arrive, target, packet)
        elif target is not None and not target.cut:
            self._later(target.wan_s, target.loss, self._in, target, packet)

    def _in(self, site: Site, packet: _Packet) -> None:
        """A packet comes from outside to a gateway."""
        gateway = (site.firewall6 if packet.to.is_ipv6 else site.gateway) or site.gateway
        found = gateway.inbound(packet.proto, packet.to.port, packet.source, self.world.now, packet.to)
        if isinstance(found, Stop):
            if found is Stop.REJECTED and packet.proto == "tcp" and packet.payload == "SYN":
                back = _Packet("tcp", packet.to, packet.source, "RST", TTL)
                self._later(site.wan_s, site.loss, self._above, site, back)
            return
        if packet.ttl > 1:
            self._inside(site, _Packet(packet.proto, packet.source, found, packet.payload, packet.ttl - 1))

    def _inside(self, site: Site, packet: _Packet) -> None:
        target = site.inside.get(packet.to.host)
        if isinstance(target, Host):
            self._later(target.delay_s, 0.0, self._arrive, target, packet)
        elif target is not None and not target.cut:
            self._later(target.wan_s, target.loss, self._in, target, packet)

    def _later(self, delay_s: float, loss: float, do: Callable[..., None], *args: object) -> None:
        self.world.count("sent")
        if loss and self._rng.random() < loss:
            self.world.count("lost")
            return
        self.world.at(self.world.now + delay_s, do, *args)

    def _arrive(self, host: Host, packet: _Packet) -> None:
        if not self.world.has(host.name):
            return
        if packet.proto == "tcp":
            self._tcp_arrives(host, packet)
            return
        socket = next((number for number, port in host.sockets.items() if port == packet.to.port), None)
        if socket is not None:
            route = Direct(packet.source, socket)
            self.world.deliver(host.name, self.world.boot_of(host.name), "received", (route, packet.payload))

    def _open_socket(self, name: str, effect: OpenSocket) -> None:
        host = self.hosts[name]
        port = self._rng.randint(*EPHEMERAL)
        while port in host.sockets.values():
            port = self._rng.randint(*EPHEMERAL)
        host.sockets[effect.socket] = port
        args = (effect.socket, Endpoint(host.ip, port))
        self.world.at(self.world.now, self.world.deliver, name, self.world.boot_of(name), "opened", args)

    def _close_socket(self, name: str, effect: CloseSocket) -> None:
        self.hosts[name].sockets.pop(effect.socket, None)

    # ---- relays and sessions ------------------------------------------------------------------------------------

    def one_way_s(self, name: str) -> float:
        """From a host to the core."""
        host, site = self.hosts[name], self.hosts[name].site
        total = host.delay_s
        while site is not None:
            total, site = total + site.wan_s, site.upstream
        return total

    def loss_of(self, name: str) -> float:
        """On that way; 1 if it is cut off."""
        host, site = self.hosts[name], self.hosts[name].site
        kept = 1 - host.loss
        while site is not None:
            kept, site = 0.0 if site.cut else kept * (1 - site.loss), site.upstream
        return 1 - kept

    def _by_relay(self, name: str, route: ViaRelay, data: bytes) -> None:
        relay, ends = self._relay_names[route.relay], self._channel_ends[route.channel]
        other = ends[1] if ends[0] == name else ends[0]
        loss = 1 - (1 - self.loss_of(name)) * (1 - self.loss_of(other)) * (1 - self.loss_of(relay)) ** 2
        self._later(self.one_way_s(name) + self.one_way_s(relay), loss, self._forward, relay, other, route, data)

    def _forward(self, relay: str, other: str, route: ViaRelay, data: bytes) -> None:
        if not self.world.is_alive(relay) or not self.world.has(other):
            return
        args = (route, data)
        due = self.world.now + self.one_way_s(relay) + self.one_way_s(other)
        self.world.at(due, self.world.deliver, other, self.world.boot_of(other), "received", args)

    def _say(self, name: str, effect: Say) -> None:
        due = self.world.now + self.one_way_s(name) + self.one_way_s(effect.to)
        for end in (name, effect.to):
            while self._rng.random() < min(self.loss_of(end), 0.9):
                due += SESSION_AGAIN_S
        due = self._said_until[name, effect.to] = max(due, self._said_until.get((name, effect.to), 0.0))
        boot = self.world.boot_of(effect.to)
        self.world.at(due, self.world.deliver, effect.to, boot, "said", (name, effect.message))

    # ---- TCP: the first packets of a connection -----------------------------------------------------------------

    def _connect(self, name: str, effect: ConnectTcp) -> None:
        host = self.hosts[name]
        host.connecting[effect.port, effect.to] = effect.attempt
        self._syn(host, effect, 0)

    def _syn(self, host: Host, effect: ConnectTcp, tries: int) -> None:
        if host.connecting.get((effect.port, effect.to)) != effect.attempt:
            return
        ip = host.ip6 if effect.to.is_ipv6 else host.ip
        if ip:
            self._from_host(host, _Packet("tcp", Endpoint(ip, effect.port), effect.to, "SYN", TTL))
        if tries < len(SYN_AGAIN_S):
            self.world.at(self.world.now + SYN_AGAIN_S[tries], self._syn, host, effect, tries + 1)

    def _tcp_arrives(self, host: Host, packet: _Packet) -> None:
        """RFC 9293 §3.5: a SYN, also one that crosses ours, the answer to ours, or a refusal."""
        key, boot = (packet.to.port, packet.source), self.world.boot_of(host.name)
        attempt = host.connecting.get(key)
        if packet.payload == "SYN":
            answer = "SYN ACK" if attempt is not None or packet.to.port == PORT else "RST"
            self._from_host(host, _Packet("tcp", packet.to, packet.source, answer, TTL))
            if attempt is None and answer != "RST":
                self.world.deliver(host.name, boot, "accepted", (packet.to.port, packet.source))
        if attempt is None:
            return
        del host.connecting[key]
        if packet.payload == "RST":
            self.world.deliver(host.name, boot, "refused", (attempt,))
        else:
            self.world.deliver(host.name, boot, "connected", (attempt, packet.source))
