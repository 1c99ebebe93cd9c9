"""Who the default gateways are. Linux says so in two files; on other systems none is found, and nothing is asked."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import msgspec

_UP, _GATEWAY = 0x1, 0x2  # linux/route.h: RTF_UP, RTF_GATEWAY
LINES_MAX = 4096  # of a routing table: a router's may have a million


class Gateway(msgspec.Struct, frozen=True):
    """host: with its zone where it is link-local ("fe80::1%eth0"). interface: by which it is reached."""

    host: str
    interface: str

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host

    def __str__(self) -> str:
        return self.host


def default_gateways(folder: str | Path = "/proc/net") -> list[Gateway]:
    """At most one of each family, the one that the kernel prefers; IPv4 first."""
    found = [
        gateway_of(_lines(Path(folder, "route"))),
        gateway6_of(_lines(Path(folder, "ipv6_route"))),
    ]
    return [gateway for gateway in found if gateway is not None]


def gateway_of(lines: list[str]) -> Gateway | None:
    """Of lines like `eth0 00000000 0100A8C0 0003 0 0 100 00000000 …`: interface, destination, gateway, flags, -, -,
    metric, mask; addresses are the machine's own integers. A line that is none is passed over."""
    best: tuple[int, Gateway] | None = None
    for line in lines:
        words = line.split()
        try:
            flags, metric = int(words[3], 16), int(words[6])
            is_default = int(words[1], 16) == 0 and int(words[7], 16) == 0 and flags & (_UP | _GATEWAY) == 3
            packed = int(words[2], 16).to_bytes(4, sys.byteorder)
        except (IndexError, ValueError, OverflowError):
            continue
        if is_default and any(packed) and (best is None or metric < best[0]):
            best = metric, Gateway(str(ipaddress.IPv4Address(packed)), words[0])
    return best[1] if best is not None else None


def gateway6_of(lines: list[str]) -> Gateway | None:
    """Of lines of ten words: destination, its length, source, its length, next hop, metric, -, -, flags, interface."""
    best: tuple[int, Gateway] | None = None
    for line in lines:
        words = line.split()
        try:
            metric, flags, interface = int(words[5], 16), int(words[8], 16), words[9]
            is_default = int(words[0], 16) == 0 and int(words[1], 16) == 0 and flags & (_UP | _GATEWAY) == 3
            host = ipaddress.IPv6Address(bytes.fromhex(words[4]))
        except (IndexError, ValueError):
            continue
        if is_default and not host.is_unspecified and (best is None or metric < best[0]):
            text = f"{host}%{interface}" if host.is_link_local else str(host)
            best = metric, Gateway(text, interface)
    return best[1] if best is not None else None


def _lines(path: Path) -> list[str]:
    try:
        with path.open() as file:
            return [line for _, line in zip(range(LINES_MAX), file)]
    except (OSError, UnicodeDecodeError):
        return []
