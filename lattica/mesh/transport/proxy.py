"""Connections by way of an HTTP proxy (`CONNECT`, RFC 9110 §9.3.6), where a network lets out nothing else.

The proxy is that of the environment, as other programs have it: `https_proxy` or `HTTPS_PROXY`, like
http://user:password@proxy.example:3128, and `no_proxy`, which names hosts and their domains. It carries TLS between the
two peers, and sees the address and ciphertext.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import socket
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

import msgspec

from lattica.mesh.addresses import host_text
from lattica.mesh.nat.routes import is_private

HEAD_MAX_BYTES = 8 << 10  # of the proxy's answer
DEFAULT_PORT = 3128


class Proxy(msgspec.Struct, frozen=True):
    """authorization: the value of its header, "" for none."""

    host: str
    port: int
    authorization: str = ""

    def __str__(self) -> str:
        return host_text(self.host, self.port)

    __repr__ = __str__  # no log holds the password


def proxy_for(host: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy by which this host is to be tried; None without one, and for addresses that mean nothing to it."""
    text = environment.get("https_proxy") or environment.get("HTTPS_PROXY") or ""
    if not text or _is_near(host) or _is_excepted(host, environment.get("no_proxy") or environment.get("NO_PROXY", "")):
        return None
    try:
        parts = urlsplit(text if "//" in text else f"//{text}")
        port = parts.port or DEFAULT_PORT
    except ValueError:
        return None
    if not parts.hostname or parts.scheme not in ("", "http"):
        return None
    authorization = ""
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return Proxy(parts.hostname, port, authorization)


async def connect(loop: asyncio.AbstractEventLoop, proxy: Proxy, host: str, port: int) -> socket.socket:
    """A socket that the proxy has connected to this address. Raises OSError."""
    from aiohappyeyeballs import start_connection

    infos = await loop.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM)
    sock = await start_connection(infos, happy_eyeballs_delay=0.25, loop=loop)
    try:
        where = host_text(host, port)
        lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
        if proxy.authorization:
            lines.append(f"Proxy-Authorization: {proxy.authorization}")
        await loop.sock_sendall(sock, ("\r\n".join(lines) + "\r\n\r\n").encode())
        status = await _status(loop, sock)
        if not 200 <= status < 300:
            raise ConnectionError(f"the proxy {proxy} answers {status}")
    except BaseException:
        sock.close()
        raise
    return sock


async def _status(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> int:
    """Of the proxy's answer, whose head is read to its end and not a byte further: what follows is the peer's."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = await loop.sock_recv(sock, 1)
        if not byte or len(head) >= HEAD_MAX_BYTES:
            raise ConnectionError("the proxy did not answer as one")
        head += byte
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ConnectionError("the proxy did not answer as one")
    return int(words[1])


def _is_near(host: str) -> bool:
    """Whether a proxy would be in the way: addresses of this machine and its networks."""
    try:
        return is_private(host.partition("%")[0])
    except ValueError:
        return host == "localhost"


def _is_excepted(host: str, names: str) -> bool:
    """Whether `no_proxy` says so: "*", a host, a domain with or without a dot before it, or a network."""
    for name in filter(None, (part.strip() for part in names.split(","))):
        domain = name.lstrip(".").lower()
        if name == "*" or host.lower() == domain or host.lower().endswith("." + domain):
            return True
        try:
            if "/" in name and ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False):
                return True
        except ValueError:
            continue
    return False
