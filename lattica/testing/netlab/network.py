"""A layout made real, and ended again: namespaces, cables, addresses, gateways."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from . import links, state
from .errors import LabError
from .layout import Cable, Layout, Node
from .machine import check
from .namespaces import NETNS, Process, in_netns, ip, nft, start_time, sysctl
from .natrules import gateway_rules
from .topology import Host, Site

NATPMP = Path(__file__).with_name("natpmp.py")


class Network(Layout):
    """A layout that can be up. Whatever of it changes is saved, for other processes."""

    def __init__(self, name: str, public: Mapping[str, Host], sites: Mapping[str, Site], seed: int) -> None:
        super().__init__(name, public, sites)
        self.seed = seed
        self.folder = state.STATE / name
        self.owner: Process = (0, None)  # until it is up
        self.detached = False
        self.up_seconds = 0.0
        self.helpers: list[Process] = []  # emulators and NAT-PMP servers
        self.partitions: dict[str, list[str]] = {}  # name -> the routers that keep it up
        self.interfaces_down: set[str] = set()  # leaves

    # ---- up and down --------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Make it; on failure nothing is left. Raises Unavailable or LabError."""
        check()
        began = time.monotonic()
        state.end_stale()
        if self.folder.exists() or (NETNS / self.nodes["core"].ns).exists():
            raise LabError(
                f"a lab {self.name!r} is up already", do_next="end it: python -m lattica.testing.netlab down"
            )
        emulated = [cable for cable in self.cables.values() if cable.link.needs_linkem]
        program = links.linkem(state.STATE) if emulated else None
        self.owner = (os.getpid(), start_time(os.getpid()))
        self.folder.mkdir(parents=True)
        self.save()
        atexit.register(self._end_with_owner)
        try:
            self._make_namespaces()
            ip(None, [links.veth_line(cable) for cable in self.cables.values() if not cable.link.needs_linkem])
            for i, cable in enumerate(emulated):
                assert program is not None
                control = self.folder / f"{cable.leaf}.ctl"
                core = self.nodes["core"].ns
                self._keep(links.start_linkem(program, cable, core, control, self.seed * 1000 + i))
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(self._configure, self.nodes.values()))
            for cable in self.cables.values():
                links.wait_until_running(cable)
            self.save()
        except BaseException:
            self.end()
            raise
        self.up_seconds = time.monotonic() - began

    def end(self) -> None:
        """End every process in its namespaces, and the namespaces; safe to call again."""
        atexit.unregister(self._end_with_owner)
        state.tear_down(self.folder)

    def _end_with_owner(self) -> None:
        """At exit: a fork of the owner ends too, but not the lab."""
        if self.owner[0] == os.getpid() and not self.detached:
            self.end()

    def save(self) -> None:
        if not self.folder.is_dir():
            return
        state.State(
            name=self.name,
            owner=self.owner,
            detached=self.detached,
            seed=self.seed,
            namespaces=[node.ns for node in self.nodes.values()],
            helpers=self.helpers,
            public={name: asdict(host) for name, host in self.public.items()},
            sites={name: asdict(site) for name, site in self.sites.items()},
            ips={node.name: node.ip for node in self.nodes.values()},
            nats={name: asdict(nat) for name, nat in self.nats.items()},
            partitions=self.partitions,
            down=sorted(self.interfaces_down),
        ).write(self.folder)

    # ---- the steps of building ----------------------------------------------------------------------------------

    def _make_namespaces(self) -> None:
        ip(None, [f"netns add {node.ns}" for node in self.nodes.values()])
        for node in self.nodes.values():
            settings = {
                "ipv4/ip_forward": int(node.routes),
                "ipv6/conf/all/forwarding": int(node.routes),
                "ipv4/conf/all/rp_filter": 0,
                "ipv4/conf/default/rp_filter": 0,
                "ipv6/conf/default/accept_dad": 0,
                "ipv6/conf/default/dad_transmits": 0,
                "ipv6/conf/default/accept_ra": 0,
                "ipv6/conf/default/router_solicitations": 0,
                "ipv6/conf/default/disable_ipv6": int(not (node.routes or node.ip6)),
            }
            sysctl(node.ns, settings)

    def _configure(self, node: Node) -> None:
        """Everything in one namespace: addresses, routes, rules, shaping of the cable ends in it."""
        if node.kind == "gateway":
            # bridged packets are not the NAT's business, and hairpins must not be short-cut
            sysctl(node.ns, {f"bridge/bridge-nf-call-{table}tables": 0 for table in ("ip", "ip6", "arp")})
        ip(node.ns, self.lines_of(node))
        if node.kind == "gateway":
            self.set_rules(node.site)
            self.set_timeouts(node.site)
            if self.nats[node.site].portmap:
                self._start_natpmp(node.site)
        for cable in self.cables.values():
            self._shape_ends_in(node, cable)

    def _shape_ends_in(self, node: Node, cable: Cable) -> None:
        for up in (False, True):
            if not cable.link.needs_linkem and cable.end(up=up)[0] == node.ns and cable.link.rate_of(up=up):
                links.limit_rate(cable, cable.link, up=up)

    def set_rules(self, site: str) -> None:
        """Replace a gateway's rules and maps by fresh ones."""
        gateway = self.gateway(site)
        nft(gateway.ns, gateway_rules(self.nats[site], gateway.ip, self.sites[site].ipv6))

    def set_timeouts(self, site: str) -> None:
        nat = self.nats[site]
        settings = {"udp_timeout": nat.udp_timeout, "udp_timeout_stream": nat.udp_stream}
        sysctl(self.nodes[site].ns, {f"netfilter/nf_conntrack_{name}": value for name, value in settings.items()})

    def tell_outer_address(self, site: str) -> None:
        """To the gateway's NAT-PMP server."""
        (self.folder / f"{site}.outer").write_text(self.nodes[site].ip)

    def _start_natpmp(self, site: str) -> None:
        self.tell_outer_address(site)
        words = [sys.executable, "-I", str(NATPMP), str(self.lans[site][1]), str(self.folder / f"{site}.outer")]
        with in_netns(self.nodes[site].ns):
            server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        assert server.stdout
        with server.stdout:
            ready = server.stdout.readline()
        self._keep(server)
        if not ready:
            raise LabError(f"the NAT-PMP server of {site} did not start")

    def _keep(self, process: subprocess.Popen[bytes]) -> None:
        self.helpers.append((process.pid, start_time(process.pid)))
        process.returncode = 0  # tear_down ends it and waits: the object must not warn of a child that runs
