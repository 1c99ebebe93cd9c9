"""QUIC over real UDP sockets, between two processes: calls, streams, refusals, and sessions that change the way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lattica.errors import ConfigError, PeerUnreachableError
from lattica.mesh import credentials
from lattica.mesh.addresses import split_host
from lattica.mesh.identity import PeerId
from lattica.mesh.peer import Peer
from lattica.mesh.tickets import parse_ticket
from lattica.mesh.transport.ways import Ways
from tests.e2e.test_mesh_refusals import Mesh, eventually
from tests.e2e.test_mesh_sessions import Far, send_all

pytestmark = pytest.mark.e2e


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    made = Mesh(tmp_path)
    yield made
    for peer in made.peers:
        await peer.stop()


@pytest.fixture
def far(tmp_path: Path) -> Any:
    folder = tmp_path / "far"
    folder.mkdir(mode=0o700)
    process = Far(folder)
    yield process
    process.kill()


@contextlib.asynccontextmanager
async def near(folder: Path, ticket: str, transports: Collection[str]) -> AsyncIterator[tuple[Peer, PeerId]]:
    parsed = parse_ticket(ticket)
    async with Peer(credentials.join(str(folder), parsed, time.time()), transports=transports) as peer:
        other, addresses = parsed.peers[0]
        await peer.connect(other, addresses, timeout_s=10)
        yield peer, other


def transport_of(peer: Peer) -> str:
    return str(peer.peers()[0]["transport"])


async def test_calls_and_a_stream_go_by_quic_to_a_node_that_listens_on_tcp_and_udp(far: Far, tmp_path: Path) -> None:
    async with near(tmp_path / "near", far.start(), ("quic",)) as (peer, other):
        assert transport_of(peer) == "quic"
        assert await asyncio.gather(*(peer.call(other, "far.echo", n) for n in range(500))) == list(range(500))
        assert (await send_all(peer, other, 16 << 20))[0] == 16 << 20


async def test_a_session_moves_from_quic_to_tcp_and_back_and_nothing_is_lost_or_done_twice(
    far: Far, tmp_path: Path
) -> None:
    async with near(tmp_path / "near", far.start(), ("tcp", "quic")) as (peer, other):
        ways = peer._transport
        assert isinstance(ways, Ways) and ways.tcp is not None
        stream = asyncio.ensure_future(send_all(peer, other, 24 << 20))
        tcp, numbers = ways.tcp, iter(range(10**9))

        async def calls() -> None:
            while not stream.done():
                number = next(numbers)
                assert await peer.call(other, "far.echo", number, timeout_s=10) == number

        callers = [asyncio.ensure_future(calls()) for _ in range(4)]
        assert await eventually(lambda: transport_of(peer) == "tcp+tls", 10)  # on a busy machine QUIC may be first

        def cut() -> bool:
            """No TCP gets through, also what was being dialed. Whether there is QUIC in its place."""
            for connection in list(tcp._connections.values()):
                connection.abort()
            return transport_of(peer) == "quic"

        async def upgraded() -> bool:
            """One upgrade may find a dial under way that began while there was no TCP: then the next one counts."""
            for _ in range(10):
                peer.verb(peer.sessions.upgrade(other))
                if await eventually(lambda: transport_of(peer) == "tcp+tls", 1):
                    return True
            return False

        for _ in range(3):
            tcp_dial, tcp.dial = tcp.dial, lambda dial: None  # type: ignore[method-assign]
            assert await eventually(cut, 10)
            tcp.dial = tcp_dial  # type: ignore[method-assign]
            assert await upgraded()
        assert (await stream)[0] == 24 << 20
        await asyncio.gather(*callers)
        ran = await peer.call(other, "far.order")
        assert sorted(ran) == list(range(len(ran))), "each call ran once"


async def test_a_certificate_of_another_mesh_is_refused_over_quic_in_both_directions(mesh: Mesh) -> None:
    ours, theirs = await mesh.found(transports=("quic",)), await mesh.found(transports=("quic",))
    for one, other in ((ours, theirs), (theirs, ours)):
        with pytest.raises(PeerUnreachableError, match="mesh"):
            await one.connect(other.id, other.listening, timeout_s=10)
    assert await eventually(lambda: ours.refusals or theirs.refusals)
    assert not ours.peers() and not theirs.peers()


async def test_a_revoked_member_is_refused_over_quic(mesh: Mesh) -> None:
    founder = await mesh.found(transports=("quic",))
    member = await mesh.join(founder.ticket(), transports=("quic",))
    await member.connect(founder.id, founder.listening, timeout_s=10)
    await founder.steward.revoke(member.id, "lost")
    assert await eventually(lambda: not founder.peers())
    with pytest.raises(PeerUnreachableError):
        await member.call(founder.id, "nothing.there", timeout_s=5)


async def test_both_families_and_one_port_and_noise_on_it_does_no_harm(mesh: Mesh) -> None:
    founder = await mesh.found(listen=":0")
    ports = {split_host(address)[1] for address in founder.listening}
    assert len(ports) == 1
    (port,) = ports
    rng = Random(7)
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            for _ in range(2000):
                sock.sendto(rng.randbytes(rng.choice((1, 20, 64, 1200, 1400))), (host, port))
            await asyncio.sleep(0)
    ways = founder._transport
    assert isinstance(ways, Ways) and ways.quic is not None
    assert not ways.quic.links and not ways.quic.socket.ids
    for transports in (("tcp",), ("quic",)):
        member = await mesh.join(founder.ticket(), transports=transports)
        await member.connect(founder.id, [f"[::1]:{port}", f"127.0.0.1:{port}"], timeout_s=10)
        assert transport_of(member) == ("quic" if "quic" in transports else "tcp+tls")


async def test_a_peer_that_cannot_listen_leaves_no_timers_behind(mesh: Mesh, tmp_path: Path) -> None:
    founder = await mesh.found(listen="127.0.0.1:0")
    mine = credentials.join(str(tmp_path / "mine"), parse_ticket(founder.ticket()), time.time())
    peer = Peer(mine, listen=founder.listening[0])
    with pytest.raises(ConfigError, match="cannot listen on UDP"):
        await peer.start()
    assert peer.relays is not None and peer.relays.service._timer.cancelled()
