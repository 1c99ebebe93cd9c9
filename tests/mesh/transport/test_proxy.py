"""Connections by way of an HTTP proxy: whose, for which hosts, and what a proxy may say."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from lattica.mesh.transport.proxy import Proxy, connect, proxy_for

FAR = "203.0.113.7"


def proxy_of(host: str = FAR, **environment: str) -> Proxy | None:
    return proxy_for(host, environment)


def test_the_proxy_is_the_one_that_other_programs_use() -> None:
    for text in ("http://proxy.example:8080", "proxy.example:8080", "http://proxy.example:8080/"):
        assert proxy_of(https_proxy=text) == proxy_of(HTTPS_PROXY=text) == Proxy("proxy.example", 8080)
    assert proxy_of(https_proxy="http://proxy.example") == Proxy("proxy.example", 3128)
    assert proxy_of() is None and proxy_of(https_proxy="") is None


def test_a_user_and_a_password_are_told_to_the_proxy() -> None:
    found = proxy_of(https_proxy="http://me:p%40ss@proxy.example:1")
    assert found is not None
    assert base64.b64decode(found.authorization.removeprefix("Basic ")) == b"me:p@ss"
    assert "ss" not in str(found)


def test_hosts_near_by_and_those_of_no_proxy_are_dialed_without_it() -> None:
    for near in ("127.0.0.1", "::1", "10.1.2.3", "192.168.0.7", "localhost", "fe80::1%eth0"):
        assert proxy_of(near, https_proxy="http://p:1") is None
    for names in ("*", "relay.example.org", ".example.org", "a.test, example.org"):
        assert proxy_of("relay.example.org", https_proxy="http://p:1", no_proxy=names) is None
    assert proxy_of(FAR, https_proxy="http://p:1", no_proxy="203.0.113.0/24") is None
    assert proxy_of("relay.example.org", https_proxy="http://p:1", no_proxy="other.org,ample.org") is not None


def test_what_is_no_proxy_is_none() -> None:
    for text in ("socks5://p:1", "http://", "http://p:notaport", "https://p:1"):
        assert proxy_of(https_proxy=text) is None


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[tuple[Proxy, list[bytes]]]:
    """A proxy that says this to whatever it is asked."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Proxy("127.0.0.1", server.sockets[0].getsockname()[1], "Basic eDp5"), asked
    finally:
        server.close()


async def test_what_comes_behind_the_answer_of_the_proxy_is_left_for_who_reads_next() -> None:
    async with answering(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nfrom the peer") as (proxy, asked):
        loop = asyncio.get_running_loop()
        sock = await connect(loop, proxy, "2001:db8::7", 443)
        assert await loop.sock_recv(sock, 100) == b"from the peer"
        sock.close()
        assert asked[0].startswith(b"CONNECT [2001:db8::7]:443 HTTP/1.1\r\nHost: [2001:db8::7]:443\r\n")
        assert b"Proxy-Authorization: Basic eDp5\r\n" in asked[0]


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 403 Forbidden\r\n\r\n", b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"x" * 10_000, b"HTTP/1.1 200"],
)
async def test_a_proxy_that_refuses_or_speaks_something_else_is_an_error(answer: bytes) -> None:
    async with answering(answer) as (proxy, _):
        with pytest.raises(ConnectionError):
            await connect(asyncio.get_running_loop(), proxy, FAR, 443)


def test_a_proxy_is_shown_without_its_password() -> None:
    proxy = proxy_of(https_proxy="http://user:secret@proxy.example:3128")
    assert proxy is not None and proxy.authorization and f"{proxy} {proxy!r}" == "proxy.example:3128 proxy.example:3128"
