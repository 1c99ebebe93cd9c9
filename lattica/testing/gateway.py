"""A simulated gateway: netlab's NAT types as a value, with the tables that the Linux kernel would keep.

    outer = gateway.outbound("udp", inner, remote, now)      an Endpoint, or None: dropped
    inner = gateway.inbound("udp", port, remote, now)        an Endpoint, or a Stop

A *mapping* is an outer port; which packets share one is the mapping behaviour (RFC 4787 §4.1). A *flow* is a mapping
and one remote endpoint: one-way for `udp_timeout`, two-way for `udp_stream`. What the filtering lets in rests on flows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from random import Random

from lattica.mesh.nat.routes import Endpoint
from lattica.testing.netlab.topology import Nat

SEQUENTIAL_PORTS = range(20000, 24096)
OTHER_PORTS = (20000, 59999)  # where the inner port is taken
ANY_PORTS = (1024, 65535)
TCP_S = 7440.0


class Stop(Enum):
    """What became of a packet that was not let in."""

    DROPPED = "dropped"
    REJECTED = "rejected"  # its sender is told


@dataclass(slots=True)
class _Flow:
    expires: float
    two_way: bool = False


@dataclass(slots=True)
class _Mapping:
    inner: Endpoint
    port: int
    expires: float
    flows: dict[Endpoint, _Flow] = field(default_factory=dict)


class Gateway:
    """nat: as netlab has it; `none` maps nothing and only filters. outer: its address; changes when it roams."""

    def __init__(self, nat: Nat, outer: str, rng: Random) -> None:
        self.nat, self.outer, self._rng = nat, outer, rng
        self._next_port = rng.randrange(len(SEQUENTIAL_PORTS))
        self._mappings: dict[tuple[object, ...], _Mapping] = {}  # by what shares a mapping
        self._by_port: dict[tuple[str, int], _Mapping] = {}
        self._open_flows: dict[tuple[str, Endpoint, Endpoint], _Flow] = {}  # where nothing is mapped
        self._taken: dict[
            tuple[str, int, Endpoint], float
        ] = {}  # flows with strangers that the gateway answered itself
        self._static: dict[tuple[str, int], Endpoint] = {}

    def __repr__(self) -> str:
        return f"<Gateway {self.outer}: {self.nat.mapping} {self.nat.filtering}, {len(self._by_port)} mappings>"

    def forget(self) -> None:
        """It was started again, or its connection tracking was flushed."""
        self._mappings.clear()
        self._by_port.clear()
        self._open_flows.clear()
        self._taken.clear()

    def map_port(self, proto: str, inner: Endpoint) -> Endpoint | None:
        """What NAT-PMP does: a port that anybody may send to; None if it is not offered."""
        if not self.nat.portmap:
            return None
        self._static[proto, inner.port] = inner
        return Endpoint(self.outer, inner.port)

    def outbound(self, proto: str, inner: Endpoint, remote: Endpoint, now: float) -> Endpoint | None:
        """As what a packet leaves; None: it does not."""
        if (proto == "udp" and not self.nat.udp) or not self._lets_out(proto, remote):
            return None
        if self.nat.mapping == "none":
            self._open(proto, inner, remote, now)
            return inner
        port = next((port for (kind, port), to in self._static.items() if to == inner and kind == proto), None)
        if port is not None:
            return Endpoint(self.outer, port)
        mapping = self._mapping(proto, inner, remote, now)
        if self._taken.get((proto, mapping.port, remote), 0.0) > now:
            return None  # the kernel holds that flow for its own, and cannot make another of the same five
        flow = mapping.flows.setdefault(remote, _Flow(now))
        if flow.expires < now:
            flow.two_way = False
        flow.expires = now + self._flow_s(proto, flow)
        mapping.expires = max(mapping.expires, flow.expires, now + self._idle_s(proto))
        return Endpoint(self.outer, mapping.port)

    def inbound(
        self, proto: str, port: int, remote: Endpoint, now: float, inner: Endpoint | None = None
    ) -> Endpoint | Stop:
        """To whom a packet from outside goes. inner: to whom it is addressed, where nothing is mapped."""
        if proto == "udp" and not self.nat.udp:
            return Stop.DROPPED
        if self.nat.mapping == "none":
            assert inner is not None
            return inner if self._is_open(proto, inner, remote, now) else self._stop()
        if (proto, port) in self._static:
            return self._static[proto, port]
        mapping = self._by_port.get((proto, port))
        if mapping is not None and mapping.expires > now and self._passes(mapping, remote, now):
            flow = mapping.flows.setdefault(remote, _Flow(now))
            flow.two_way = True
            flow.expires = now + self._flow_s(proto, flow)
            mapping.expires = max(mapping.expires, flow.expires)
            return mapping.inner
        if self.nat.unsolicited == "accept":
            self._taken[proto, port, remote] = now + self.nat.udp_timeout
        return self._stop()

    def hairpin(self, proto: str, port: int, now: float) -> Endpoint | None:
        """To whom a packet from the LAN to the outer address goes back; hairpins are not filtered."""
        if not self.nat.hairpin:
            return None
        mapping = self._by_port.get((proto, port))
        found = mapping.inner if mapping is not None and mapping.expires > now else None
        return self._static.get((proto, port), found)

    def _lets_out(self, proto: str, remote: Endpoint) -> bool:
        return self.nat.egress != "tcp443" or (proto == "tcp" and remote.port == 443)

    def _mapping(self, proto: str, inner: Endpoint, remote: Endpoint, now: float) -> _Mapping:
        """The one that this packet shares, or a new one."""
        shared: dict[str, tuple[object, ...]] = {"eim": (), "adm": (remote.host,)}
        key = (proto, inner, *shared.get(self.nat.mapping, (remote,)))
        mapping = self._mappings.get(key)
        if mapping is None or mapping.expires <= now:
            if mapping is not None and self._by_port.get((proto, mapping.port)) is mapping:
                del self._by_port[proto, mapping.port]
            mapping = _Mapping(inner, self._free_port(proto, inner, now), now)
            self._mappings[key] = self._by_port[proto, mapping.port] = mapping
        return mapping

    def _free_port(self, proto: str, inner: Endpoint, now: float) -> int:
        def is_free(port: int) -> bool:
            taken = self._by_port.get((proto, port))
            return (taken is None or taken.expires <= now) and (proto, port) not in self._static

        if self.nat.mapping == "apdm-seq":
            while True:
                self._next_port = (self._next_port + 1) % len(SEQUENTIAL_PORTS)
                if is_free(port := SEQUENTIAL_PORTS[self._next_port]):
                    return port
        low, high = ANY_PORTS
        if self.nat.mapping == "eim" and self.nat.ports == "preserve":
            if is_free(inner.port):
                return inner.port
            low, high = OTHER_PORTS
        while not is_free(port := self._rng.randint(low, high)):
            pass
        return port

    def _passes(self, mapping: _Mapping, remote: Endpoint, now: float) -> bool:
        flow = mapping.flows.get(remote)
        if flow is not None and flow.expires > now:
            return True
        if self.nat.mapping != "eim" or self.nat.filtering == "apdf":
            return False
        if self.nat.filtering == "eif":
            return True
        return any(to.host == remote.host and flow.expires > now for to, flow in mapping.flows.items())

    def _open(self, proto: str, inner: Endpoint, remote: Endpoint, now: float) -> None:
        flow = self._open_flows.setdefault((proto, inner, remote), _Flow(now))
        flow.two_way = flow.two_way and flow.expires > now
        flow.expires = now + self._flow_s(proto, flow)

    def _is_open(self, proto: str, inner: Endpoint, remote: Endpoint, now: float) -> bool:
        flow = self._open_flows.get((proto, inner, remote))
        if flow is not None and flow.expires > now:
            flow.two_way = True
            flow.expires = now + self._flow_s(proto, flow)
            return True
        return self.nat.filtering == "eif"

    def _flow_s(self, proto: str, flow: _Flow) -> float:
        if proto == "tcp":
            return TCP_S
        return float(self.nat.udp_stream if flow.two_way else self.nat.udp_timeout)

    def _idle_s(self, proto: str) -> float:
        """How long a mapping that is shared by many flows outlives them."""
        if self.nat.mapping in ("eim", "adm"):
            return TCP_S if proto == "tcp" else float(self.nat.udp_stream)
        return 0.0

    def _stop(self) -> Stop:
        return Stop.REJECTED if self.nat.unsolicited == "reject" else Stop.DROPPED
