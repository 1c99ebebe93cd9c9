"""A lab: a topology that `with` builds and ends, and what tests do in it."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket as sockets  # Lab.socket takes the name
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from . import state
from .faults import Faults
from .layout import PROBE
from .namespaces import in_netns
from .probe import ProbeServer, measure
from .topology import Host, LinkSpec, Nat, NatSpec, Site, host_of, site_of

_numbers = itertools.count()


class Lab(Faults):
    """Node names: public hosts by their own, "a1" for the first host of site a, "a" for its gateway.

    public: names, or name -> Host, its link, or a table. sites: name -> Site, its NAT, or a table. There is a public
    host `probe` unless probe=False. name: by default of this process and unique in it. seed: of the emulators' dice;
    it repeats the sequence of draws, not the packets' timing.
    """

    def __init__(
        self,
        public: Mapping[str, Host | LinkSpec] | Iterable[str] = (),
        sites: Mapping[str, Site | NatSpec] | None = None,
        name: str | None = None,
        probe: bool = True,
        seed: int = 1,
    ) -> None:
        number = next(_numbers)
        name = name or (f"{os.getpid():x}-{number}" if number else f"{os.getpid():x}")
        hosts: Mapping[str, Host | LinkSpec] = public if isinstance(public, Mapping) else dict.fromkeys(public)
        planned = {host: host_of(spec) for host, spec in hosts.items()}
        if probe:
            planned.setdefault(PROBE, Host())
        super().__init__(name, planned, {site: site_of(spec) for site, spec in (sites or {}).items()}, seed)
        self._probe_server: ProbeServer | None = None

    @classmethod
    def attach(cls, name: str) -> Lab:
        """A running lab of another process. It is not ended with this object."""
        found = state.state_of(name)
        lab = cls(found.public, found.sites, name, probe=False, seed=found.seed)
        for node, address in found.ips.items():
            lab.nodes[node].ip = address
        lab.nats = {site: Nat(**fields) for site, fields in found.nats.items()}
        lab.owner, lab.detached, lab.helpers = found.owner, found.detached, found.helpers
        lab.partitions, lab.interfaces_down = found.partitions, set(found.down)
        return lab

    @classmethod
    def from_toml(cls, path: str | Path, name: str | None = None) -> Lab:
        """A lab from a file with `[public.NAME]` and `[site.NAME]` tables; `name`, `probe` and `seed` at its top."""
        import tomllib

        plan = tomllib.loads(Path(path).read_text())
        chosen = name or plan.get("name")
        return cls(plan.get("public", {}), plan.get("site", {}), chosen, plan.get("probe", True), plan.get("seed", 1))

    def up(self) -> Lab:
        self.build()
        return self

    def down(self) -> None:
        """End it; safe to call again."""
        self.close_probe()
        self.end()

    def __enter__(self) -> Lab:
        return self.up()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def __repr__(self) -> str:
        return f"<Lab {self.name}: {len(self.nodes)} namespaces, {len(self.sites)} sites>"

    # ---- who is where -------------------------------------------------------------------------------------------

    def ip(self, name: str, v6: bool = False) -> str:
        node = self.node(name)
        return node.ip6 if v6 else node.ip

    def public_ip(self, name: str) -> str:
        """The IPv4 address that the public segment sees for this node."""
        node = self.node(name)
        while node.parent != "core":
            if node.kind == "host" and self.nats[node.parent].mapping == "none":
                break
            node = self.nodes[node.parent]
        return node.ip

    def hosts(self, site: str | None = None) -> list[str]:
        """Names of all hosts, the public ones too, or of one site's."""
        nodes = (node for node in self.nodes.values() if node.kind in ("host", "public"))
        return [node.name for node in nodes if site is None or node.site == site]

    # ---- running things there -----------------------------------------------------------------------------------

    def popen(self, host: str, command: Sequence[str] | str, **options: Any) -> subprocess.Popen[Any]:
        """subprocess.Popen in the host's network. The process ends with the lab at the latest."""
        with in_netns(self.node(host).ns):
            return subprocess.Popen(command, **options)

    def run(
        self, host: str, command: Sequence[str] | str, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """subprocess.run in the host's network; text and captured unless told otherwise."""
        options.setdefault("text", True)
        options.setdefault("capture_output", "stdout" not in options and "stderr" not in options)
        with in_netns(self.node(host).ns):
            return subprocess.run(command, check=check, **options)

    def socket(
        self, host: str, family: int = sockets.AF_INET, type: int = sockets.SOCK_DGRAM, proto: int = 0
    ) -> sockets.socket:
        """A socket of this process that belongs to the host's network for good; fine for asyncio."""
        with in_netns(self.node(host).ns):
            return sockets.socket(family, type, proto)

    def netns(self, host: str) -> contextlib.AbstractContextManager[None]:
        """The calling thread is in the host's network for the block. Never await inside it."""
        return in_netns(self.node(host).ns)

    # ---- looking ------------------------------------------------------------------------------------------------

    def probe(self, host: str, tcp: bool = True) -> dict[str, Any]:
        """What the NAT in front of this host does, measured against the lab's probe host; see `probe.measure`."""
        if self._probe_server is None:
            self._probe_server = ProbeServer(lambda kind: self.socket(PROBE, type=kind))
        return measure(lambda kind: self.socket(host, type=kind), tcp=tcp)

    def close_probe(self) -> None:
        """End the probe's server, which `probe` starts in this process. `down` does it too."""
        if self._probe_server:
            self._probe_server.close()
            self._probe_server = None

    def conntrack(self, site: str) -> list[str]:
        """The flows that a gateway knows, a line each."""
        with in_netns(self.gateway(site).ns):
            return Path("/proc/thread-self/net/nf_conntrack").read_text().splitlines()
