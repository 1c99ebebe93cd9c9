"""Two peers that can dial only relays, over real sockets: they talk by way of one, and of the other when it dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from lattica.mesh import credentials
from lattica.mesh.identity import PeerId, parse_peer
from lattica.mesh.nat.routes import ViaRelay
from lattica.mesh.peer import Peer
from lattica.mesh.relay.framed import Framed
from lattica.mesh.services import method, service
from lattica.mesh.tickets import parse_ticket
from lattica.mesh.transport import proxy as proxies
from lattica.mesh.transport.tcp import Tcp
from tests.e2e.conftest import eventually as eventually_now
from tests.e2e.machines import LIGHT, Machine
from tests.e2e.test_mesh_refusals import eventually

pytestmark = pytest.mark.e2e
PATIENCE_S = 30.0
"""However busy this machine is. 3 s are promised; `lattica.testing.nat_matrix.moves` measures how long calls wait."""


@service("work")
class Work:
    def __init__(self) -> None:
        self.ran: list[int] = []

    @method()
    def echo(self, number: int) -> int:
        self.ran.append(number)
        return number

    @method(takes_stream=True)
    async def sink(self, *, incoming: AsyncIterator[bytes]) -> int:
        expected = total = 0
        async for item in incoming:
            assert int.from_bytes(item[:8], "little") == expected, f"item {expected} is missing"
            expected, total = expected + 1, total + len(item)
        return total


class RelayProcess:
    """A relay that can be killed."""

    def __init__(self, folder: Path, ticket: str = "") -> None:
        folder.mkdir(mode=0o700)
        command = [sys.executable, "-m", "tests.e2e.relay_process", str(folder), "127.0.0.1:0", *filter(None, [ticket])]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.ticket = self.process.stdout.readline().strip()

    def end(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Site:
    """Two relays, and peers that listen nowhere."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.first = RelayProcess(folder / "r1")
        self.second = RelayProcess(folder / "r2", self.first.ticket)
        self.peers: list[Peer] = []

    @property
    def relays(self) -> list[RelayProcess]:
        return [self.first, self.second]

    async def peer(self, *, udp: bool = True) -> Peer:
        folder = self._folder / f"p{len(self.peers)}"
        folder.mkdir(mode=0o700)
        ticket = parse_ticket(self.first.ticket)
        peer = Peer(credentials.join(str(folder), ticket, time.time()))
        peer._first = ticket.peers
        peer.serve(Work())
        await peer.start()
        assert peer.relays is not None and peer.traversal is not None
        peer.relays.client._udp = udp
        stay_relayed(peer)
        self.peers.append(peer)
        return peer

    async def pair(self, *, udp: bool = True) -> tuple[Peer, Peer]:
        """Two that know of each other, and have both relays."""
        a, b = await self.peer(udp=udp), await self.peer(udp=udp)
        for peer in (a, b):
            assert peer.relays is not None
            relays = peer.relays
            assert await eventually(lambda relays=relays: len(relays.reserved) == 2, PATIENCE_S), relays.status()
        assert await eventually(lambda: len(a.addresses_of(b.id)) == 2 and len(b.addresses_of(a.id)) == 2, PATIENCE_S)
        return a, b

    async def stop(self) -> None:
        for peer in self.peers:
            await peer.stop()
        for relay in self.relays:
            relay.end()

    def process_of(self, relay: PeerId) -> RelayProcess:
        (founder, _), *_ = parse_ticket(self.first.ticket).peers
        return self.first if relay == founder else self.second


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    yield made
    await made.stop()


def stay_relayed(peer: Peer) -> None:
    """Nothing is known of where it is, so no way to become direct is tried: here all are within one machine."""
    assert peer.traversal is not None
    peer.traversal.crossing._situation = lambda *, anyway=False: None  # type: ignore[method-assign]


def path_to(peer: Peer, other: Peer) -> dict[str, Any]:
    found = [each for each in peer.peers() if parse_peer(each["peer_id"]) == other.id]
    return found[0] if found else {}


def relay_between(a: Peer, b: Peer) -> PeerId | None:
    """By which the connection between the two goes, as the first of them sends; None while there is none."""
    assert a.relays is not None
    for link in a.relays.client._quic.links_of(b.id):
        if isinstance(link.route, ViaRelay) and not link.over:
            return link.route.relay
    return None


class Callers:
    """Calls without end, each of which must succeed, once."""

    def __init__(self, peer: Peer, other: Peer) -> None:
        self._peer, self._other = peer, other
        self._over = False
        self._count = 0
        self._tasks = [asyncio.ensure_future(self._call()) for _ in range(4)]

    async def _call(self) -> None:
        while not self._over:
            self._count += 1
            number = self._count
            assert await self._peer.call(self._other.id, "work.echo", number, timeout_s=PATIENCE_S) == number
            await asyncio.sleep(0.01)

    async def end(self) -> int:
        """How many calls were made."""
        self._over = True
        await asyncio.gather(*self._tasks)
        return self._count


async def send(peer: Peer, other: Peer, total: int) -> int:
    piece = os.urandom(64 << 10)  # that nobody compresses
    async with await peer.stream(other.id, "work.sink", sends=True, receives=False) as stream:
        for number in range(total // len(piece)):
            await stream.send(number.to_bytes(8, "little") + piece[8:])
        await stream.finish()
        return int(await stream.result())


async def test_two_peers_that_can_dial_only_relays_call_each_other_and_move_bulk(site: Site) -> None:
    a, b = await site.pair()
    assert await a.call(b.id, "work.echo", 7, timeout_s=PATIENCE_S) == 7
    assert await send(b, a, 2 << 20) == 2 << 20
    for one, other in ((a, b), (b, a)):
        assert path_to(one, other)["path"].startswith("relay/"), "there is no other way"
    assert a.relays is not None and b.relays is not None
    assert not a.relays.offering and not b.relays.offering


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_when_a_relay_dies_in_the_midst_of_work_the_other_takes_over_and_no_call_is_lost_or_made_twice(
    site: Site, how: signal.Signals
) -> None:
    a, b = await site.pair()
    assert await a.call(b.id, "work.echo", 0, timeout_s=PATIENCE_S) == 0
    callers, bulk = Callers(a, b), asyncio.ensure_future(send(a, b, 8 << 20))
    await asyncio.sleep(0.5)
    dead = relay_between(a, b)
    assert dead is not None
    os.kill(site.process_of(dead).process.pid, how)
    assert await eventually(lambda: relay_between(a, b) not in (dead, None), PATIENCE_S)
    await asyncio.sleep(0.7)
    count = await callers.end()
    assert await bulk == 8 << 20
    work = b._methods["work.echo"].function.__self__  # type: ignore[attr-defined]
    assert sorted(work.ran) == list(range(count + 1)), "each call ran once"


async def test_peers_whose_udp_is_blocked_talk_over_tls_to_the_same_port_of_the_relay(site: Site) -> None:
    a, b = await site.pair(udp=False)
    assert await a.call(b.id, "work.echo", 7, timeout_s=PATIENCE_S) == 7
    assert await send(a, b, 2 << 20) == 2 << 20
    assert a.relays is not None
    ways = [channel.binding.way for channel in a.relays.client.channels if channel.binding.way is not None]
    assert ways and all(isinstance(way, Framed) for way in ways)


def block_udp(peer: Peer) -> None:
    """A firewall that lets no datagram pass; what goes by a relay's channel is for the relay's own way to carry."""
    assert peer.relays is not None
    sock = peer.relays.client.socket
    send, sort = sock.send, sock._sort

    def let_through(route: Any, datagrams: Any, ttl: int = 0) -> None:
        if isinstance(route, ViaRelay):
            send(route, datagrams, ttl)

    def let_in(route: Any, *rest: Any) -> None:
        if isinstance(route, ViaRelay):
            sort(route, *rest)

    sock.send, sock._sort = let_through, let_in  # type: ignore[method-assign]


async def test_a_firewall_that_shuts_udp_in_the_midst_of_work_is_got_round_by_tls(site: Site) -> None:
    a, b = await site.pair()
    assert await a.call(b.id, "work.echo", 0, timeout_s=PATIENCE_S) == 0
    callers = Callers(a, b)
    await asyncio.sleep(0.5)
    block_udp(a)
    assert a.relays is not None
    client = a.relays.client
    assert await eventually(lambda: any(isinstance(one.binding.way, Framed) for one in client.channels), PATIENCE_S)
    await asyncio.sleep(1.0)
    await callers.end()


class SmallProxy:
    """Carries what is asked of it by CONNECT, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        where = head.split()[1]
        self.asked.append(where)
        host, _, port = where.rpartition(":")
        there, back = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.ensure_future(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_a_peer_whose_network_has_only_an_http_proxy_is_called_by_way_of_a_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sessions with the relay and its channels go through the proxy to the relay's port for TLS; nothing else can:
    no UDP, and no TCP but to the proxy."""
    proxy = SmallProxy()
    address = await proxy.start()
    relay = await Peer.found(
        str(folder(tmp_path)), listen="127.0.0.1:0", listen_tls="127.0.0.1:0", relaying="always"
    ).start()
    door = relay.listening[-1]
    ticket = parse_ticket(relay.ticket())
    inside, outside = (Peer(credentials.join(str(folder(tmp_path)), ticket, time.time())) for _ in range(2))
    try:
        for peer in (inside, outside):
            peer.serve(Work())
            await peer.start()
            stay_relayed(peer)
        block_udp(inside)
        monkeypatch.setattr(proxies, "_is_near", lambda host: False)
        monkeypatch.setenv("https_proxy", address)
        directly = Tcp._directly

        async def only_for_others(self: Tcp, host: str, port: int) -> socket.socket:
            if self is inside._transport.tcp:  # type: ignore[attr-defined]
                raise OSError("no route to host")
            return await directly(self, host, port)

        monkeypatch.setattr(Tcp, "_directly", only_for_others)
        for peer in (inside, outside):
            await peer.connect(relay.id, [door], timeout_s=PATIENCE_S)
            assert peer.relays is not None
            assert await eventually(lambda peer=peer: len(peer.relays.reserved) == 1, PATIENCE_S)
        assert await eventually(lambda: inside.addresses_of(outside.id) and outside.addresses_of(inside.id), PATIENCE_S)
        for one, other in ((inside, outside), (outside, inside)):
            assert await one.call(other.id, "work.echo", 7, timeout_s=PATIENCE_S) == 7
        assert await send(outside, inside, 2 << 20) == 2 << 20
        assert proxy.asked and door in proxy.asked
        assert path_to(inside, relay)["path"] == f"direct {door} through proxy {address.removeprefix('http://')}"
        assert inside.relays is not None
        assert all(isinstance(channel.binding.way, Framed) for channel in inside.relays.client.channels)
    finally:
        for peer in (inside, outside, relay):
            await peer.stop()
        await proxy.stop()


def folder(under: Path) -> Path:
    """A new one."""
    made = under / f"f{len(list(under.iterdir()))}"
    made.mkdir(mode=0o700)
    return made


def test_a_relay_begun_by_the_command_carries_calls_and_no_node_runs_code_there(
    machine: Callable[[str], Machine],
) -> None:
    founder, relay = machine("founder"), machine("relay")
    founder.start("start", "--listen", "127.0.0.1:0", *LIGHT)
    begun = json.loads(
        relay.ok(
            "relay", founder.ticket(), "--listen", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0",
            "--metrics-port", "0", "--name", "relay", "--json",
        )
    )  # fmt: skip
    assert begun["mesh"]["roles"] == "relay" and len(begun["mesh"]["addresses"]) == 2
    assert eventually_now(lambda: founder.ask("summary")["relays"]["reservations"], PATIENCE_S)
    assert any(address.startswith("relay/") for address in founder.ask("summary")["addresses"])
    told = relay.ask("summary")
    assert told["relays"]["offering"] and told["relays"]["serves"]["reservations"] == 1
    metrics = urllib.request.urlopen(told["metrics"], timeout=5).read().decode()
    assert "lattica_relay_reservations 1" in metrics and "lattica_relay_forwarded_datagrams_total" in metrics
    relay.ok("stop")
    assert relay.run("relay").returncode == 0, "later starts return to the mesh"
    assert relay.whoami()["roles"] == "relay"
