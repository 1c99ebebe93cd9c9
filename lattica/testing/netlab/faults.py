"""What can go wrong with a network, done to one that is up. A leaf is a host, or a site's name for its uplink."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, replace
from ipaddress import IPv4Network
from typing import Any, Literal

from . import links
from .errors import LabError
from .layout import CORE_IP, Node
from .namespaces import flush_conntrack, ip, kill, nft, processes_in
from .network import Network
from .topology import Link, LinkSpec

SPARE_FROM = 130
"""Those who roam get host numbers from here on; the plan uses lower ones."""


class Faults(Network):
    """The faults of a lab. All hold until they are undone, and for whoever attaches to the lab as well."""

    _spare = itertools.count(SPARE_FROM)

    # ---- links --------------------------------------------------------------------------------------------------

    def shape(self, leaf: str, spec: LinkSpec) -> None:
        """Change a leaf's link while it runs, as a new one: what `spec` does not name is back at its default."""
        cable, link = self.cable(leaf), Link.of(spec)
        if cable.link.needs_linkem:
            links.ask_linkem(self.folder, leaf, f"ab {link.params(up=False)}")
            links.ask_linkem(self.folder, leaf, f"ba {link.params(up=True)}")
            link = replace(link, emulated=True)
        elif link.needs_linkem:
            raise LabError(
                f"the link of {leaf} is a plain cable and knows no delay or loss",
                do_next='let the topology ask for an emulated one, e.g. Host("emulated")',
            )
        else:
            for up in (False, True):
                links.limit_rate(cable, link, up=up)
        cable.link = link
        if leaf in self.sites:
            self.sites[leaf] = replace(self.sites[leaf], wan=asdict(link))
        elif leaf in self.public:
            self.public[leaf] = replace(self.public[leaf], link=asdict(link))
        self.save()

    def link_stats(self, leaf: str) -> dict[str, Any]:
        """linkem's counters of packets: `ab` is towards the leaf, `ba` away from it."""
        if not self.cable(leaf).link.needs_linkem:
            raise LabError(f"the link of {leaf} is a plain cable, which counts nothing", do_next="make it `emulated`")
        stats: dict[str, Any] = json.loads(links.ask_linkem(self.folder, leaf, "stat"))
        return stats

    def cut(self, leaf: str, mode: Literal["blackhole", "down"] = "blackhole") -> None:
        """blackhole: packets vanish silently, both ways. down: the leaf's interface goes down, which programs see."""
        cable = self.cable(leaf)
        if mode == "down":
            ip(cable.inner_ns, [f"link set {cable.inner_dev} down"])
            self.interfaces_down.add(leaf)
        elif cable.link.needs_linkem:
            links.ask_linkem(self.folder, leaf, "both cut=1")
        else:
            for ns, dev in cable.ends:
                hook = f'type filter hook ingress device "{dev}" priority -500; policy drop;'
                nft(ns, f"table netdev cut_{dev} {{\nchain in {{\n{hook}\n}}\n}}\n")
        self.save()

    def heal(self, leaf: str) -> None:
        """Undo every cut of this leaf."""
        cable = self.cable(leaf)
        if leaf in self.interfaces_down:
            self.interfaces_down.discard(leaf)
            lines = [f"addr flush dev {cable.inner_dev}", *self.leaf_lines(self.nodes[leaf])]
            ip(cable.inner_ns, lines, check=False)
        if cable.link.needs_linkem:
            links.ask_linkem(self.folder, leaf, "both cut=0")
        else:
            for ns, dev in cable.ends:
                nft(ns, f"delete table netdev cut_{dev}\n", check=False)
        self.save()

    # ---- partitions ---------------------------------------------------------------------------------------------

    def partition(self, left: Sequence[str], right: Sequence[str], name: str = "part") -> None:
        """Nothing passes directly between the nodes of left and those of right (hosts or sites); others, relays among
        them, still reach both. It is blocked where two ways meet: on the core that means whole uplinks, so hosts of
        one site are on one side."""
        meetings: dict[str, set[tuple[str, str, str, str]]] = {}
        for one, other in itertools.product(left, right):
            router, *meeting = self._meeting(one, other)
            meetings.setdefault(router, set()).add((meeting[0], meeting[1], meeting[2], meeting[3]))
        for router, pairs in meetings.items():
            both = [(p, q, s, t) for p, q, s, t in pairs] + [(q, p, t, s) for p, q, s, t in pairs]
            ports = "\n".join(f'iifname "{p}" oifname "{q}" drop' for p, q, _, _ in both)
            rules = _forward_chain("inet", name, -10, ports)
            if router != "core":  # on a LAN packets pass the bridge, or the gateway's stack if they are hairpinned
                addresses = "\n".join(f"ip saddr {s} ip daddr {t} drop" for _, _, s, t in both)
                rules = _forward_chain("bridge", name, 0, ports) + _forward_chain("inet", name, -10, addresses)
            nft(self.nodes[router].ns, rules)
        self.partitions[name] = sorted(meetings)
        self.save()

    def _meeting(self, one: str, other: str) -> tuple[str, str, str, str, str]:
        """(router, ports towards one and the other, their addresses there) where the ways from the core part."""
        for (router, port, address), (_, other_port, other_address) in zip(self.path(one), self.path(other)):
            if port != other_port:
                return router, port, other_port, address, other_address
        raise LabError(
            f"{one} and {other} are not apart anywhere", do_next="put hosts, or sites beside each other, apart"
        )

    def unpartition(self, name: str = "part") -> None:
        for router in self.partitions.pop(name, []):
            for family in ("inet", "bridge"):
                nft(self.nodes[router].ns, f"delete table {family} {name}\n", check=False)
        self.save()

    # ---- hosts and gateways -------------------------------------------------------------------------------------

    def kill(self, host: str, sig: int = signal.SIGKILL) -> list[int]:
        """Send a signal to every process in the host; their pids. The host's network stays."""
        processes = [process for process in processes_in([self.node(host).ns]) if process not in self.helpers]
        if sig == signal.SIGKILL:
            kill(processes)
        else:
            for pid, _ in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sig)
        return [pid for pid, _ in processes]

    def roam(self, leaf: str, address: str | None = None, *, forget: bool = True) -> str:
        """A new IPv4 address for a host, or for a site's uplink, whose mappings end; the address. forget: False: a
        gateway that goes on sending the flows that it has from the old one, to which nobody can answer."""
        node, dev = self.node(leaf), self.cable(leaf).inner_dev
        core = self.nodes["core"].ns
        on_core = node.parent == "core"
        address = address or self._spare_address(node)
        length = 32 if on_core else self.lans[node.parent].prefixlen
        if on_core:
            ip(core, [f"route del {node.ip}/32 dev {self.cables[leaf].outer_dev} scope link"])
        old, node.ip = node.ip, address
        ip(node.ns, [f"addr del {old}/{length} dev {dev}", f"addr add {address}/{length} dev {dev}"])
        if on_core:
            to_core = f"route replace {CORE_IP} dev {dev} scope link src {address}"
            ip(node.ns, [to_core, f"route replace default via {CORE_IP} dev {dev} src {address}"])
            ip(core, self.core_routes(node, "replace"))
        else:
            ip(node.ns, [f"route replace default via {self.lans[node.parent][1]} dev {dev}"])
        if node.kind == "gateway":
            self.nat_reboot(leaf, flows=forget)
        self.save()
        return address

    def _spare_address(self, node: Node) -> str:
        number = next(self._spare)
        if node.parent == "core":
            network = IPv4Network("198.51.100.0/24" if node.kind == "public" else "203.0.113.0/24")
        else:
            network = self.lans[node.parent]
        size = network.num_addresses
        return str(network[number if size > number else size - 2 - number % 4])

    def nat_reboot(self, site: str, *, flows: bool = True) -> None:
        """The gateway forgets every mapping and flow, port maps as well. flows: False: they go on as they are."""
        self.set_rules(site)
        if flows:
            flush_conntrack(self.gateway(site).ns)
        if self.nats[site].portmap:
            self.tell_outer_address(site)

    def nat_set(self, site: str, **changes: Any) -> None:
        """Change fields of a gateway's Nat while it runs, e.g. nat_set("a", udp_timeout=5, udp_stream=5) or
        nat_set("a", udp=False). Its mappings are forgotten."""
        self.gateway(site)
        self.nats[site] = self.nats[site].changed(changes)
        self.set_timeouts(site)
        self.set_rules(site)
        self.save()


def _forward_chain(family: str, table: str, priority: int, rules: str) -> str:
    hook = f"type filter hook forward priority {priority}; policy accept;"
    return f"table {family} {table} {{\nchain f {{\n{hook}\n{rules}\n}}\n}}\n"
