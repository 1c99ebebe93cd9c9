"""Path tables of real peers over real UDP sockets: keys, addresses that change, and what others can do to them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lattica.mesh.nat.datagrams import SIGNED_BYTES
from lattica.mesh.nat.routes import MAIN, Direct
from lattica.mesh.nat_shell.peer_paths import PeerPaths
from lattica.mesh.nat_shell.traversal import Traversal
from lattica.mesh.peer import Peer
from lattica.mesh.transport.path_socket import ROAMING
from lattica.mesh.transport.quic import Quic
from lattica.mesh.transport.ways import Ways
from tests.e2e.test_mesh_refusals import Mesh, eventually, host_port

pytestmark = pytest.mark.e2e


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    made = Mesh(tmp_path)
    yield made
    for peer in made.peers:
        await peer.stop()


def quic_of(peer: Peer) -> Quic:
    assert isinstance(peer._transport, Ways) and peer._transport.quic is not None
    return peer._transport.quic


def traversal_of(peer: Peer) -> Traversal:
    assert peer.traversal is not None
    return peer.traversal


def paths_of(peer: Peer, other: Peer) -> PeerPaths:
    paths = traversal_of(peer).paths_of(other.id)
    assert paths is not None
    return paths


async def pair(mesh: Mesh) -> tuple[Peer, Peer]:
    """Two with a session by QUIC, and a path table of each other."""
    one = await mesh.found(transports=("quic",))
    two = await mesh.join(one.ticket(), transports=("quic",))
    await two.connect(one.id, one.listening, timeout_s=10)
    both = (one, two), (two, one)
    assert await eventually(lambda: all(traversal_of(here).paths_of(there.id) for here, there in both))
    assert await eventually(lambda: all(paths_of(here, there).table.current for here, there in both))
    return one, two


async def test_peers_whose_session_goes_by_quic_have_keys_with_each_other_and_a_path(mesh: Mesh) -> None:
    one, two = await pair(mesh)
    here, there = paths_of(one, two), paths_of(two, one)
    assert here.table.keys.sending == there.table.keys.receiving
    assert here.table.keys.receiving == there.table.keys.sending
    assert isinstance(there.table.current, Direct) and there.table.current.endpoint.port == host_port(one)[1]
    assert {link.guide for link in quic_of(one).links_of(two.id)} == {here}


async def test_a_peer_whose_address_changes_is_followed_within_two_seconds_and_no_call_is_lost(mesh: Mesh) -> None:
    one, two = await pair(mesh)
    before = paths_of(one, two).table.current
    for number in (MAIN, ROAMING):  # its NAT gives it another port: it has a new socket with the next packet
        quic_of(two).socket.close_socket(number)
    assert await asyncio.gather(*(two.call(one.id, "work.submit", n, timeout_s=5) for n in range(100))) == list(
        range(100)
    )
    assert await eventually(lambda: paths_of(one, two).table.current not in (before, None), 2.0)
    assert await one.call(two.id, "work.submit", 7, timeout_s=5) == 7
    assert {link.route for link in quic_of(one).links_of(two.id)} == {paths_of(one, two).table.current}


async def test_forged_probes_make_no_path_and_are_not_answered(mesh: Mesh) -> None:
    one, two = await pair(mesh)
    table = paths_of(one, two).table
    known = len(table.paths)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.setblocking(False)
        stranger.connect(host_port(one))
        for first in (1, 2):
            for key in (table.keys.receiving.id, bytes(8), table.keys.sending.id):
                datagram = (bytes([first]) + key).ljust(SIGNED_BYTES, b"\x01")
                for size in (SIGNED_BYTES, SIGNED_BYTES - 1, 9):
                    stranger.send(datagram[:size])
        assert await one.call(two.id, "work.submit", 1) == 1
        await asyncio.sleep(0.1)
        with pytest.raises(BlockingIOError):
            stranger.recv(100)
    assert len(table.paths) == known


async def test_tables_and_keys_end_with_the_session(mesh: Mesh) -> None:
    one, two = await pair(mesh)
    await two.disconnect(one.id)
    assert await eventually(lambda: not traversal_of(one).paths_of(two.id) and not traversal_of(two).paths_of(one.id))
    assert await eventually(lambda: "keys with 0" in repr(one.traversal) and "keys with 0" in repr(two.traversal))


async def test_a_session_by_tcp_exchanges_no_keys(mesh: Mesh) -> None:
    one = await mesh.found()
    two = await mesh.join(one.ticket())
    await two.connect(one.id, one.listening, timeout_s=10)
    assert await two.call(one.id, "work.submit", 1) == 1
    await asyncio.sleep(0.5)
    assert "not needed yet" in repr(one.traversal) and "not needed yet" in repr(two.traversal)
