"""Real peers whose session is relayed become direct, over real sockets of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lattica.mesh import peer as peer_module
from lattica.mesh.identity import PeerId
from lattica.mesh.nat.behaviour import Behaviour, Dependence
from lattica.mesh.nat.methods import Method
from lattica.mesh.nat.routes import Direct, Endpoint
from lattica.mesh.nat_shell import crossing
from lattica.mesh.nat_shell.network import own_hosts
from lattica.mesh.nat_shell.peer_paths import PeerPaths
from lattica.mesh.peer import Peer
from lattica.mesh.wire import PLANES
from tests.e2e.relayed import FakeRelay, quic_of
from tests.e2e.test_mesh_refusals import Mesh, eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        all(host.startswith("127.") or ":" in host for host in own_hosts()), reason="this machine has loopback alone"
    ),
]


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    made = Mesh(tmp_path)
    yield made
    for peer in made.peers:
        await peer.stop()


def paths_of(peer: Peer, other: Peer) -> PeerPaths | None:
    return peer.traversal.paths_of(other.id) if peer.traversal is not None else None


def is_direct(peer: Peer, other: Peer) -> bool:
    paths = paths_of(peer, other)
    return paths is not None and isinstance(paths.table.current, Direct)


async def relayed(mesh: Mesh, **options: object) -> tuple[Peer, Peer, FakeRelay]:
    """Two that only dial, so that neither is reached but by the relay, with a session between them."""
    founder = await mesh.found()
    one, two = [await mesh.join(founder.ticket(), transports=("quic",), **options) for _ in range(2)]
    relay = FakeRelay(founder.id, one, two)
    await one.connect(two.id, [relay.address], timeout_s=10)
    return one, two, relay


async def test_a_relayed_session_becomes_direct_and_calls_flow_meanwhile(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossing, "UNMEASURED_S", 1.0)
    one, two, relay = await relayed(mesh)
    assert await one.call(two.id, "work.submit", 1, timeout_s=5) == 1 and relay.carried
    calls = asyncio.ensure_future(asyncio.wait_for(_call_until(one, two), 20))
    assert await eventually(lambda: is_direct(one, two) and is_direct(two, one), 8.0)
    assert await calls > 10
    assert {link.route for link in quic_of(one).links_of(two.id)} == {paths_of(one, two).table.current}  # type: ignore[union-attr]
    for here, there in ((one, two), (two, one)):
        assert here.traversal is not None
        (record,) = [record for record in here.traversal.records if record.direct]
        assert record.peer == there.id and record.method == Method.SIMULTANEOUS.value
        (told,) = here.traversal.status()["peers"].values()
        assert (
            told["path"].startswith("direct ") and told["method"] == "simultaneous send" and not told["stays_relayed"]
        )
    before = relay.carried
    for number in range(50):
        assert await two.call(one.id, "work.submit", number, timeout_s=5) == number
    assert relay.carried - before < 20, "but for probes, nothing goes by the relay any more"


async def _call_until(one: Peer, two: Peer) -> int:
    number = 0
    while not (is_direct(one, two) and is_direct(two, one)):
        number += 1
        assert await one.call(two.id, "work.submit", number, timeout_s=3) == number
        await asyncio.sleep(0.005)
    return number


async def test_a_direct_path_that_dies_gives_way_to_the_relay_and_no_call_is_lost(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossing, "UNMEASURED_S", 0.5)
    one, two, _ = await relayed(mesh)
    assert await eventually(lambda: is_direct(one, two) and is_direct(two, one), 8.0)
    sockets = [quic_of(peer).socket for peer in (one, two)]
    for socket in sockets:  # what goes straight is lost from now on
        monkeypatch.setattr(socket, "_readable", lambda number, sock: sock.recv(65536))
        for (number, _), sock in list(socket._sockets.items()):
            socket._loop.remove_reader(sock.fileno())
            socket._loop.add_reader(sock.fileno(), socket._readable, number, sock)
    began = asyncio.get_running_loop().time()
    assert await one.call(two.id, "work.submit", 5, timeout_s=10) == 5
    assert asyncio.get_running_loop().time() - began < 2.0
    assert not is_direct(one, two)


def knows_itself(peer: Peer, behaviour: Behaviour) -> None:
    """As if witnesses had told it."""
    assert peer.traversal is not None
    work = peer.traversal.crossing
    host = next(host for host in own_hosts() if ":" not in host and not host.startswith("127."))
    work._tcp_seen = (Endpoint(host, quic_of(peer).socket.port),)
    work.measured(behaviour, ())


async def hidden(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> tuple[Peer, Peer, FakeRelay]:
    """Two that listen, and nobody knows where; without a session yet."""
    founder = await mesh.found()
    monkeypatch.setattr(peer_module, "reachable", lambda bound: [])
    host = next(host for host in own_hosts() if ":" not in host and not host.startswith("127."))
    monkeypatch.setattr(crossing, "own_hosts", lambda: [host])
    one, two = [await mesh.join(founder.ticket(), listen="0.0.0.0:0") for _ in range(2)]
    return one, two, FakeRelay(founder.id, one, two)


def transports_of(peer: Peer, other: Peer) -> tuple[str, str]:
    """Of the control plane and of bulk."""
    numbers = [peer.sessions.connection(other.id, plane) for plane in PLANES]
    found = [peer._transport.path(number)[0] if number is not None else "" for number in numbers]
    return found[0], found[1]


async def test_two_whose_udp_is_blocked_are_joined_by_tcp_from_their_listening_ports(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, relay = await hidden(mesh, monkeypatch)
    for peer in (one, two):
        knows_itself(peer, Behaviour(udp=False))
    await one.connect(two.id, [relay.address], timeout_s=10)
    assert await one.call(two.id, "work.submit", 1, timeout_s=5) == 1
    assert await eventually(lambda: transports_of(one, two)[0] == "tcp+tls", 12.0)
    assert await eventually(lambda: transports_of(two, one)[0] == "tcp+tls")
    assert await two.call(one.id, "work.submit", 2, timeout_s=5) == 2
    for here, there in ((one, two), (two, one)):
        assert await eventually(lambda here=here, there=there: records_of(here) == [(there.id, Method.TCP.value)])


def records_of(peer: Peer) -> list[tuple[PeerId, str]]:
    """What went well."""
    assert peer.traversal is not None
    return [(record.peer, record.method) for record in peer.traversal.records if record.direct]


async def test_bulk_over_a_punched_path_moves_to_tcp_and_control_stays(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, relay = await hidden(mesh, monkeypatch)
    for peer in (one, two):
        knows_itself(peer, Behaviour(udp=True, mapping=Dependence.INDEPENDENT))
    await one.connect(two.id, [relay.address], timeout_s=10)
    assert await eventually(lambda: is_direct(one, two) and is_direct(two, one), 8.0)
    payload = bytes(1 << 20)
    for _ in range(60):
        assert await one.call(two.id, "work.submit", payload, timeout_s=10) == payload
        if transports_of(one, two) == ("quic", "tcp+tls"):
            break
        await asyncio.sleep(0.1)
    assert transports_of(one, two) == transports_of(two, one) == ("quic", "tcp+tls")
    assert await one.call(two.id, "work.submit", payload, timeout_s=10) == payload
