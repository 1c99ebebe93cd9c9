"""Which of a peer's addresses a dial by TCP takes, and when it goes through a proxy."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from lattica.mesh.identity import PeerId
from lattica.mesh.transport import tcp as module
from lattica.mesh.transport.proxy import Proxy
from lattica.mesh.transport.tcp import NEXT_ADDRESS_S, PROXY_AFTER_S, Failures, Tcp
from tests.mesh.conftest import PlainMember
from tests.mesh.transport.test_quic import virtual

PEER, OTHER = PeerId(b"p" * 32), PeerId(b"o" * 32)


class Scripted:
    """What answers at an address: after so many seconds, as this peer, or not at all."""

    def __init__(self, after_s: float, peer: PeerId | None = PEER) -> None:
        self.after_s, self.peer = after_s, peer
        self.begun_at: float | None = None
        self.aborted = self.cancelled = False

    def abort(self) -> None:
        self.aborted = True


class Stage(Tcp):
    """Connections that are scripted by their address."""

    def __init__(self, **addresses: Scripted) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]
        self.script = addresses

    async def _connect(self, address: str, context: Any) -> Any:
        found = self.script[address]
        found.begun_at = self._loop.time()
        try:
            await asyncio.sleep(found.after_s)
        except asyncio.CancelledError:
            found.cancelled = True
            raise
        if found.peer is None:
            raise ConnectionRefusedError
        return found, PlainMember(found.peer)

    async def dialed(self) -> tuple[Any, Failures]:
        failed = Failures()
        found = await self.race(PEER, list(self.script), None, failed)  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        return (found[0] if found is not None else None), failed


@virtual
async def test_the_first_address_is_taken_alone_if_it_answers_soon() -> None:
    stage = Stage(a=Scripted(NEXT_ADDRESS_S / 2), b=Scripted(0.0))
    found, _ = await stage.dialed()
    assert found is stage.script["a"] and stage.script["b"].begun_at is None


@virtual
async def test_an_address_that_a_firewall_drops_does_not_keep_the_next_one_waiting() -> None:
    stage = Stage(a=Scripted(60.0), b=Scripted(60.0), c=Scripted(0.1))
    began = asyncio.get_running_loop().time()
    found, _ = await stage.dialed()
    assert found is stage.script["c"] and stage.script["a"].cancelled and stage.script["b"].cancelled
    assert asyncio.get_running_loop().time() - began < 2 * NEXT_ADDRESS_S + 0.2


@virtual
async def test_an_address_that_refuses_is_followed_by_the_next_at_once_and_all_are_named_in_the_end() -> None:
    stage = Stage(a=Scripted(0.0, None), b=Scripted(0.0, OTHER), c=Scripted(0.0, None))
    found, failed = await stage.dialed()
    assert found is None and [reason[:2] for reason in failed.reasons] == ["a:", "b:", "c:"]
    assert stage.script["b"].aborted and stage.script["c"].begun_at == 0.0


@virtual
async def test_connections_that_no_dial_has_taken_yet_end_with_the_transport() -> None:
    stage, waits = Stage(), Scripted(0.0)
    stage._ready[PEER, 0] = waits, PlainMember(PEER)  # type: ignore[assignment]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
    stage._contexts = None  # type: ignore[assignment]
    stage.adopt(ours, PEER, 0, client=True)
    await stage.close()
    assert waits.aborted and ours.fileno() == -1
    stage.adopt(ended := socket.socket(), PEER, 0, client=True)
    assert ended.fileno() == -1 and not stage._tasks, "one that nobody is at is closed at once"


@virtual
async def test_a_slow_address_that_answers_after_all_is_taken_before_a_slower_one() -> None:
    stage = Stage(a=Scripted(NEXT_ADDRESS_S * 1.5), b=Scripted(10.0))
    found, _ = await stage.dialed()
    assert found is stage.script["a"] and stage.script["b"].cancelled


class ProxyStage(Tcp):
    """Sockets that come after so many seconds, or fail; of a proxy likewise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, direct_s: float | None, proxy_s: float | None) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]
        self.asked: list[tuple[str, float]] = []
        self.direct_s = direct_s

        async def connect(loop: Any, proxy: Proxy, host: str, port: int) -> socket.socket:
            return await self._after("proxy", proxy_s)

        monkeypatch.setenv("https_proxy", "http://proxy.example:1")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setattr(module.proxies, "connect", connect)

    async def _directly(self, host: str, port: int) -> socket.socket:
        return await self._after("direct", self.direct_s)

    async def _after(self, way: str, seconds: float | None) -> Any:
        self.asked.append((way, self._loop.time()))
        await asyncio.sleep(seconds or 0.0)
        if seconds is None:
            raise OSError(f"no route by {way}")
        return way


@pytest.mark.parametrize(
    ("direct_s", "proxy_s", "taken", "proxy_at"),
    [
        (0.1, 0.0, "direct", None),
        (60.0, 0.2, "proxy", PROXY_AFTER_S),
        (None, 0.2, "proxy", 0.0),
        (0.7, 9.0, "direct", 0.5),
    ],
)
def test_a_proxy_is_asked_when_nobody_answers_without_it(
    monkeypatch: pytest.MonkeyPatch, direct_s: float | None, proxy_s: float, taken: str, proxy_at: float | None
) -> None:
    @virtual
    async def story() -> None:
        stage = ProxyStage(monkeypatch, direct_s, proxy_s)
        way, through = await stage._socket_to("203.0.113.7", 443)
        assert way == taken and (through is not None) == (taken == "proxy")  # type: ignore[comparison-overlap]
        assert dict(stage.asked).get("proxy") == proxy_at

    story()


def test_what_failed_with_and_without_a_proxy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual
    async def story() -> None:
        with pytest.raises(OSError, match=r"no route by direct; by way of proxy proxy\.example:1: no route by proxy"):
            await ProxyStage(monkeypatch, None, None)._socket_to("203.0.113.7", 443)

    story()


def test_a_host_near_by_is_dialed_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual
    async def story() -> None:
        stage = ProxyStage(monkeypatch, None, 0.0)
        with pytest.raises(OSError, match="no route by direct"):
            await stage._socket_to("10.0.0.7", 443)
        assert [way for way, _ in stage.asked] == ["direct"]

    story()
