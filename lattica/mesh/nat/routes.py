"""What a datagram can go by, and what the cores of this room ask of their shell.

    core -> shell   SendOver · OpenSocket · CloseSocket, and events, which are whatever is none of these
    shell -> core   received(route, data) · opened(socket, local) · tick        (verbs; each returns effects)

Sockets are numbered: 0 is the one on which the node listens, all others were asked for with `OpenSocket` by a core that
chose the number. A route that proves good may lie on any of them, and then its socket stays open.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

import msgspec

from lattica.mesh.identity import PeerId

MAIN = 0
"""The socket on which the node listens."""
ENDPOINT_BYTES = 18
_MAPPED = bytes(10) + b"\xff\xff"
_SHARED = ipaddress.ip_network("100.64.0.0/10")
_LOCAL_6 = ipaddress.ip_network("fc00::/7")


class Endpoint(NamedTuple):
    """An address and a port, as sockets have them. host: canonical text ("192.0.2.7", "2001:db8::7"), no zone."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host


NOWHERE = Endpoint("::", 0)
"""What an answer says was seen of a probe that came through a relay."""


class Direct(msgspec.Struct, frozen=True):
    """Straight to an endpoint, from one of our sockets."""

    endpoint: Endpoint
    socket: int = MAIN

    def __str__(self) -> str:
        return str(self.endpoint) + (f" from socket {self.socket}" if self.socket else "")


class ViaRelay(msgspec.Struct, frozen=True):
    """By a channel of a relay: the shell wraps what is sent into RELAYED, and unwraps what comes."""

    relay: PeerId
    channel: int

    def __str__(self) -> str:
        return f"channel {self.channel:x} of relay {self.relay.hex()[:8]}"


Route = Direct | ViaRelay


class SendOver(msgspec.Struct, frozen=True):
    """Send this datagram. ttl: hops after which routers drop it; 0: as usual."""

    route: Route
    data: bytes
    ttl: int = 0


class OpenSocket(msgspec.Struct, frozen=True):
    """Bind a fresh UDP socket to a port of the system's choice; answered by `opened(socket, local endpoint)`."""

    socket: int


class CloseSocket(msgspec.Struct, frozen=True):
    """This socket is of no use any more."""

    socket: int


class ConnectTcp(msgspec.Struct, frozen=True):
    """Connect from this local port, on which we listen as well (SO_REUSEPORT); answered by `connected(attempt, remote)`
    or `refused(attempt)`. A connection that the other side began meanwhile is as good."""

    attempt: int
    port: int
    to: Endpoint


def pack(endpoint: Endpoint) -> bytes:
    """16 bytes of IPv6, IPv4 mapped into it (RFC 4291 §2.5.5.2), and the port. Raises ValueError for a host name."""
    address = ipaddress.ip_address(endpoint.host)
    host = address.packed if address.version == 6 else _MAPPED + address.packed
    return host + endpoint.port.to_bytes(2, "big")


def unpack(data: bytes) -> Endpoint:
    """What `pack` wrote; any ENDPOINT_BYTES are an endpoint."""
    host = data[12:16] if data[:12] == _MAPPED else data[:16]
    return Endpoint(str(ipaddress.ip_address(host)), int.from_bytes(data[16:18], "big"))


def is_sendable(endpoint: Endpoint) -> bool:
    """Whether a datagram of one peer to another may go there: what others tell may be anything."""
    try:
        address = ipaddress.ip_address(endpoint.host)
    except ValueError:
        return False
    is_one = not (address.is_multicast or address.is_unspecified or address.is_loopback or address.is_reserved)
    return is_one and endpoint.host != "255.255.255.255" and "%" not in endpoint.host and 0 < endpoint.port < 65536


def is_private(host: str) -> bool:
    """Whether this address means something only behind some NAT, or on some link: RFC 1918, 6598, 4193, 3927.

    Not by `ipaddress.is_private`, which counts the documentation's networks, and so netlab's public ones, as private.
    """
    address = ipaddress.ip_address(host)
    if isinstance(address, ipaddress.IPv6Address):
        return address.is_link_local or address.is_loopback or address in _LOCAL_6
    first, second = address.packed[:2]
    return (
        first in (10, 127)
        or (first == 172 and 16 <= second < 32)
        or (first, second) in ((192, 168), (169, 254))
        or address in _SHARED
    )


def is_public(endpoint: Endpoint) -> bool:
    """Whether everybody means the same by it."""
    return is_sendable(endpoint) and not is_private(endpoint.host)


def route_text(route: Route | None) -> str:
    """For people: `direct 192.0.2.7:7411`, `relayed by 3ab7c0de`."""
    match route:
        case Direct(endpoint):
            return f"direct {endpoint}"
        case ViaRelay(relay):
            return f"relayed by {relay.hex()[:8]}"
    return "no path"
