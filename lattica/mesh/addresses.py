"""Where a peer can be reached: texts like "192.0.2.7:7411", "[2001:db8::7]:7411", "gpu.example.org:7411"."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lattica.errors import ConfigError

if TYPE_CHECKING:
    import asyncio  # 30 ms that a command with --listen need not wait for

DEFAULT_PORT = 7411
"""For TCP and UDP alike. Unassigned by IANA; a node takes a free one where it is taken."""
TEXT_MAX_CHARS = 256


def split_host(address: str) -> tuple[str, int]:
    """(host, port) of an address; "" for all interfaces. Raises ConfigError, also for a host with spaces or control
    characters: a peer's address goes into logs, and into what a proxy is asked."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    is_text = host.isprintable() and " " not in host
    if not colon or not is_text or not 0 <= number <= 65535 or len(address) > TEXT_MAX_CHARS:
        raise ConfigError(f"{address!r:.80} is no address", do_next='write it as HOST:PORT, like "192.0.2.7:7411"')
    return host, number


def host_text(host: str, port: int) -> str:
    """The address as text."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def resolve(
    loop: asyncio.AbstractEventLoop, host: str, port: int, *, passive: bool = False
) -> list[tuple[int, tuple[Any, ...]]]:
    """(family, socket address) of each way there is, best first. Raises OSError if the name is not known."""
    flags = socket.AI_PASSIVE if passive else 0
    try:
        ipaddress.ip_address(host.partition("%")[0])
        flags |= socket.AI_NUMERICHOST
    except ValueError:
        pass
    try:
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    except ValueError as error:  # a label of more than 63 characters, or a zero byte
        raise socket.gaierror(socket.EAI_NONAME, f"{host!r:.80} is no name of a host") from error
    return [(family, where) for family, _, _, _, where in found]


def ranked(addresses: Sequence[str]) -> list[str]:
    """What to tell others of ourselves, each once: global addresses first, those by way of others after our own,
    loopback last, since another process of this machine may ask."""

    def rank(text: str) -> int:
        if "/" in text:
            return 2  # by way of a relay
        try:
            address = ipaddress.ip_address(split_host(text)[0].partition("%")[0])
        except ValueError:
            return 0  # a name: somebody chose it
        return 4 if address.is_loopback else 3 if address.is_link_local else 1 if address.is_private else 0

    return sorted(dict.fromkeys(addresses), key=rank)


def reachable(bound: Sequence[str]) -> list[str]:
    """What to tell others, of the addresses that were bound: those of all interfaces in place of the wildcard."""
    found: list[str] = []
    for address in bound:
        host, port = split_host(address)
        hosts = _interface_hosts(6 if host == "::" else 4) if host in ("0.0.0.0", "::") else [host]
        found += [host_text(each, port) for each in hosts]
    return ranked(found)


def _interface_hosts(version: int) -> list[str]:
    """Addresses of this machine's interfaces, without link-local ones, which mean nothing elsewhere."""
    import psutil

    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    return [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == family and "%" not in address.address and not address.address.startswith("fe80")
    ]
