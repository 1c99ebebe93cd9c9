"""Real peers tell a real peer what it is behind, over real sockets: on loopback that is nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lattica.mesh.identity import peer_text
from lattica.mesh.nat.behaviour import Behaviour, Dependence
from lattica.mesh.nat.routes import Endpoint
from lattica.mesh.nat_shell import crossing, measuring, traversal, witnesses
from lattica.mesh.nat_shell.exchange import read_behaviour
from lattica.mesh.nat_shell.traversal import Traversal
from lattica.mesh.peer import Peer
from tests.e2e.test_mesh_refusals import Mesh, eventually

pytestmark = pytest.mark.e2e


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    made = Mesh(tmp_path)
    yield made
    for peer in made.peers:
        await peer.stop()


@pytest.fixture
def loopback_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.2 and 127.0.0.3 are machines of their own."""
    for module in (witnesses, measuring, traversal):
        monkeypatch.setattr(module, "is_public", lambda endpoint: True)
    monkeypatch.setattr(measuring, "is_sendable", lambda endpoint: True)
    monkeypatch.setattr(crossing, "own_hosts", lambda: ["127.0.0.1"])
    monkeypatch.setattr(Traversal, "is_exposed", True)


def traversal_of(peer: Peer) -> Traversal:
    assert peer.traversal is not None
    return peer.traversal


async def test_a_peer_that_joins_learns_what_it_is_behind_and_tells_it_in_its_row(
    mesh: Mesh, loopback_is_public: None
) -> None:
    founder = await mesh.found("127.0.0.2:0")
    other = await mesh.join(founder.ticket(), listen="127.0.0.3:0")
    await other.connect(founder.id, founder.listening, timeout_s=10)
    asker = await mesh.join(founder.ticket())
    heard: list[Behaviour] = []
    traversal_of(asker).on_behaviour.append(heard.append)
    await asker.connect(founder.id, founder.listening, timeout_s=10)
    await asker.connect(other.id, other.listening, timeout_s=10)
    assert await eventually(lambda: traversal_of(asker).behaviour.udp is not None, 8.0)
    assert await eventually(lambda: len(traversal_of(asker).crossing.measuring.witnesses) == 2)
    found = traversal_of(asker).behaviour
    assert found.words == "public address" and found.filtering is Dependence.INDEPENDENT
    assert heard[-1] == found and traversal_of(asker).observed[0].host == "127.0.0.1"
    assert await eventually(
        lambda: (row := founder.gossip.community.node(asker.id)) and read_behaviour(row.nat) == found
    )
    told = traversal_of(asker).status()
    assert told["words"] == "public address" and set(told["witnesses"]) == {peer_text(founder.id), peer_text(other.id)}
    work = traversal_of(asker).crossing
    assert await eventually(lambda: work._tcp_seen == (Endpoint("127.0.0.1", work._quic.socket.port),)), "over TCP too"
    assert "0 beside" in repr(traversal_of(asker).crossing.sockets), "every socket is closed"


async def test_peers_within_one_machine_ask_nobody(mesh: Mesh) -> None:
    founder = await mesh.found()
    others = [await mesh.join(founder.ticket(), listen=listen) for listen in ("127.0.0.1:0", None)]
    for peer in others:
        await peer.connect(founder.id, founder.listening, timeout_s=10)
    await asyncio.sleep(1.5)
    for peer in mesh.peers:
        assert traversal_of(peer).behaviour == Behaviour() and "not needed yet" in repr(peer.traversal)
