"""Where everything in a lab is: nodes, the cables between them, addresses and routes. Nothing here touches the machine.

    core (a router, connected to nothing outside)            192.0.2.1       2001:db8::1
     ├── public hosts                                        198.51.100.x    2001:db8:0:ff::x
     └── gateways of the sites                               203.0.113.x
          └── hosts on the gateway's LAN                     10.i.0.x, behind `public` and `firewall` 192.0.2.x

All are documentation ranges (RFC 5737, RFC 3849), but for the LANs. A site named as `upstream` has a LAN of
100.64.i.0/24 (RFC 6598), on which the gateways of other sites hang. Every node but the core has one cable towards it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Literal

from lattica.errors import ConfigError

from .errors import LabError
from .topology import Host, Link, LinkSpec, Nat, Site, nat_of

PREFIX = "nl-"
CORE_IP, CORE_IP6 = "192.0.2.1", "2001:db8::1"
PROBE = "probe"
PROBE_IPS = ("198.51.100.2", "198.51.100.3")
"""The public host `probe` has two addresses, for telling address- from port-dependent NATs (RFC 4787 §4.1)."""

Kind = Literal["core", "public", "gateway", "host"]


@dataclass(slots=True)
class Node:
    """One namespace. ip: its address on the cable towards the core. parent: the node that this cable hangs on."""

    name: str
    kind: Kind
    ns: str
    ip: str = ""
    ip6: str = ""
    parent: str = "core"
    site: str = ""

    @property
    def routes(self) -> bool:
        return self.kind in ("core", "gateway")


@dataclass(slots=True)
class Cable:
    """outer: the end at the router, gateway or bridge; inner: the end at the leaf, the node it is there for."""

    leaf: str
    outer_ns: str
    outer_dev: str
    inner_ns: str
    inner_dev: str
    link: Link
    number: int

    def mac(self, *, inner: bool) -> str:
        return f"02:4c:00:{self.number >> 8:02x}:{self.number & 255:02x}:0{int(inner)}"

    @property
    def ends(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """(namespace, device) of the outer and of the inner end."""
        return (self.outer_ns, self.outer_dev), (self.inner_ns, self.inner_dev)

    def end(self, *, up: bool) -> tuple[str, str]:
        """The end whose queue shapes this direction: what leaves the leaf is shaped at the leaf."""
        return self.ends[1] if up else self.ends[0]


class Layout:
    """The plan of one lab. Raises ConfigError for a topology that cannot be."""

    def __init__(self, name: str, public: Mapping[str, Host], sites: Mapping[str, Site]) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,19}", name):
            raise ConfigError(f"{name!r} is no name for a lab", do_next="take up to 20 of a-z 0-9 -")
        self.name = name
        self.public, self.sites = dict(public), dict(sites)
        self.nodes: dict[str, Node] = {}
        self.cables: dict[str, Cable] = {}
        self.nats: dict[str, Nat] = {}
        self.lans: dict[str, IPv4Network] = {}
        self._add(Node("core", "core", self._ns("core")))
        for i, (public_name, host) in enumerate(self.public.items()):
            ip = PROBE_IPS[0] if public_name == PROBE else f"198.51.100.{10 + i}"
            node = Node(public_name, "public", self._ns(public_name), ip, f"2001:db8:0:ff::{10 + i:x}")
            self._hang(node, host.link)
        gateways: dict[str, int] = {}
        for site_name in self._upstream_first():
            self._add_site(site_name, gateways)

    # ---- planning -----------------------------------------------------------------------------------------------

    def _ns(self, node: str) -> str:
        return f"{PREFIX}{self.name}-{node}"

    def _add(self, node: Node) -> None:
        if node.name in self.nodes:
            raise ConfigError(f"two nodes are called {node.name!r}")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,20}", node.name):
            raise ConfigError(f"{node.name!r} is no name for a node", do_next="take up to 20 letters, digits, _ and -")
        self.nodes[node.name] = node

    def _hang(self, node: Node, link: LinkSpec) -> None:
        """Add a node, and its cable."""
        self._add(node)
        parent, number = self.nodes[node.parent], len(self.cables) + 1
        outer = f"{'p' if parent.kind == 'gateway' else 'c'}{number}"
        inner = "wan" if node.kind == "gateway" else "eth0"
        self.cables[node.name] = Cable(node.name, parent.ns, outer, node.ns, inner, Link.of(link), number)

    def _upstream_first(self) -> list[str]:
        """The sites, each after the one that its gateway hangs on."""
        order: list[str] = []

        def visit(name: str, trail: tuple[str, ...]) -> None:
            if name in trail:
                raise ConfigError(f"sites hang on each other in a circle: {' on '.join([*trail, name])}")
            if name not in self.sites:
                raise ConfigError(f"site {trail[-1]!r} names {name!r} as upstream, which is no site")
            if name in order:
                return
            if upstream := self.sites[name].upstream:
                visit(upstream, (*trail, name))
            order.append(name)

        for name in self.sites:
            visit(name, ())
        return order

    def _number(self, site: str) -> int:
        return 1 + list(self.sites).index(site)

    def _lan(self, name: str, nat: Nat) -> IPv4Network:
        number = self._number(name)
        if lan := self.sites[name].lan:
            return IPv4Network(lan)
        if nat.mapping == "none":
            routed = sum(each.mapping == "none" for each in self.nats.values())
            return IPv4Network(f"192.0.2.{16 * (1 + routed)}/28")
        is_upstream = any(site.upstream == name for site in self.sites.values())
        return IPv4Network(f"100.64.{number}.0/24" if is_upstream else f"10.{number}.0.0/24")

    def _add_site(self, name: str, gateways: dict[str, int]) -> None:
        """The gateway of a site and its hosts. gateways: upstream site -> how many hang on it so far."""
        site, nat, number = self.sites[name], nat_of(self.sites[name].nat), self._number(name)
        lan = self.lans[name] = self._lan(name, nat)
        self.nats[name] = nat
        gateway = Node(name, "gateway", self._ns(name), f"203.0.113.{9 + number}", site=name)
        if up := site.upstream:
            if self.nats[up].mapping == "none" or (self.sites[up].ipv6 != "none" and site.ipv6 != "none"):
                raise ConfigError(
                    f"site {name!r} cannot hang on {up!r}: that must do NAT, and IPv6 is not delegated through it"
                )
            gateway.parent, gateway.ip = up, str(self.lans[up][100 + gateways.get(up, 0)])
            gateways[up] = gateways.get(up, 0) + 1
        self._hang(gateway, site.wan)
        names = [f"{name}{i + 1}" for i in range(site.hosts)] if isinstance(site.hosts, int) else site.hosts
        first = 2 if lan.prefixlen > 24 else 10
        for i, host in enumerate(names):
            ip6 = "" if site.ipv6 == "none" else f"{self.prefix6(name)}{10 + i:x}"
            self._hang(Node(host, "host", self._ns(host), str(lan[first + i]), ip6, name, name), site.link)

    # ---- questions ----------------------------------------------------------------------------------------------

    def node(self, name: str) -> Node:
        if name not in self.nodes:
            raise LabError(f"no node {name!r} in this lab", do_next=f"its nodes are {', '.join(self.nodes)}")
        return self.nodes[name]

    def cable(self, leaf: str) -> Cable:
        if leaf not in self.cables:
            raise LabError(f"no link of {leaf!r} in this lab", do_next=f"its leaves are {', '.join(self.cables)}")
        return self.cables[leaf]

    def gateway(self, site: str) -> Node:
        if site not in self.sites:
            raise LabError(f"no site {site!r} in this lab", do_next=f"its sites are {', '.join(self.sites) or 'none'}")
        return self.nodes[site]

    def prefix6(self, site: str) -> str:
        return f"2001:db8:0:{self._number(site):x}::"

    def path(self, name: str) -> list[tuple[str, str, str]]:
        """(router, its port towards the node, the node's or gateway's address there), from the core down."""
        path, node = [], self.node(name)
        while node.kind != "core":
            path.append((node.parent, self.cables[node.name].outer_dev, node.ip))
            node = self.nodes[node.parent]
        return path[::-1]

    def cables_of(self, node: Node) -> Iterator[Cable]:
        """Those that hang on this node."""
        return (cable for cable in self.cables.values() if cable.outer_ns == node.ns)

    # ---- lines for `ip -batch` ----------------------------------------------------------------------------------

    def lines_of(self, node: Node) -> list[str]:
        """Addresses, neighbours and routes of one namespace, and what hangs on it."""
        lines = ["link set lo up"]
        if node.kind == "core":
            lines += [f"addr add {CORE_IP}/32 dev lo", f"addr add {CORE_IP6}/128 dev lo nodad"]
            for cable in self.cables_of(node):
                lines += [
                    f"link set {cable.outer_dev} mtu {cable.link.mtu} address {cable.mac(inner=False)} up",
                    f"addr add fe80::1/64 dev {cable.outer_dev} nodad",
                    *self.core_routes(self.nodes[cable.leaf]),
                ]
            return lines
        if node.kind == "gateway":
            lan = self.lans[node.site]
            lines += [
                "link add lan type bridge forward_delay 0 mcast_snooping 0",
                "link set lan up",
                f"addr add {lan[1]}/{lan.prefixlen} dev lan",
            ]
            if self.sites[node.site].ipv6 != "none":
                lines.append(f"addr add {self.prefix6(node.site)}1/64 dev lan nodad")
            lines += [f"link set {c.outer_dev} mtu {c.link.mtu} master lan up" for c in self.cables_of(node)]
        return lines + self.leaf_lines(node)

    def leaf_lines(self, node: Node) -> list[str]:
        """The inner end of a node's cable: its addresses and the way to everywhere."""
        cable = self.cables[node.name]
        dev = cable.inner_dev
        lines = [f"link set {dev} mtu {cable.link.mtu} address {cable.mac(inner=True)} up"]
        if node.parent != "core":
            lan = self.lans[node.parent]
            lines += [f"addr add {node.ip}/{lan.prefixlen} dev {dev}", f"route add default via {lan[1]} dev {dev}"]
            if node.ip6:
                lines += [
                    f"addr add {node.ip6}/64 dev {dev} nodad",
                    f"route add default via {self.prefix6(node.parent)}1 dev {dev}",
                ]
            return lines
        outer = cable.mac(inner=False)
        lines += [f"neigh replace {ip} lladdr {outer} nud permanent dev {dev}" for ip in (CORE_IP, "fe80::1")]
        lines += [f"addr add {node.ip}/32 dev {dev}"]
        if node.name == PROBE:
            lines.append(f"addr add {PROBE_IPS[1]}/32 dev {dev}")
        lines += [
            f"route add {CORE_IP} dev {dev} scope link src {node.ip}",
            f"route add default via {CORE_IP} dev {dev} src {node.ip}",
            f"addr add fe80::2/64 dev {dev} nodad",
            f"route add default via fe80::1 dev {dev}",
        ]
        if node.ip6:
            lines.append(f"addr add {node.ip6}/128 dev {dev} nodad")
        return lines

    def core_routes(self, node: Node, verb: str = "add") -> list[str]:
        """The core's way to a node on it. Neighbours are known: on a link with delay no first packet waits for ARP."""
        cable = self.cables[node.name]
        dev = cable.outer_dev
        lines = [f"route {verb} {node.ip}/32 dev {dev} scope link"]
        ips = [node.ip, "fe80::2"] + ([PROBE_IPS[1]] if node.name == PROBE else [])
        lines += [f"neigh replace {ip} lladdr {cable.mac(inner=True)} nud permanent dev {dev}" for ip in ips]
        if node.name == PROBE:
            lines.append(f"route {verb} {PROBE_IPS[1]}/32 dev {dev} scope link")
        if node.ip6:
            lines.append(f"route {verb} {node.ip6}/128 via fe80::2 dev {dev}")
        if node.kind == "gateway":
            if self.nats[node.site].mapping == "none":
                lines.append(f"route {verb} {self.lans[node.site]} via {node.ip} dev {dev} onlink")
            if self.sites[node.site].ipv6 != "none":
                lines.append(f"route {verb} {self.prefix6(node.site)}/64 via fe80::2 dev {dev}")
        return lines
