"""Packages between nodes: fetched once, from whoever has them, verified; folders that nobody uses go in the end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lattica.errors import ObjectLostError, PeerUnreachableError
from lattica.mesh.identity import PeerId
from lattica.node import package_desk
from lattica.node.package_desk import PackageDesk
from lattica.node.packages import Packed, pack

PEERS = [PeerId(bytes([number]) * 32) for number in range(4)]


class Net:
    """Nodes that call each other directly; who is in `down` does not answer, who is in `liars` sends other bytes."""

    def __init__(self, folder: Path) -> None:
        self.desks: dict[PeerId, PackageDesk] = {}
        for peer in PEERS:
            self.desks[peer] = PackageDesk(Node(self, peer), str(folder / peer.hex()[:4]))  # type: ignore[arg-type]
        self.down: set[PeerId] = set()
        self.liars: set[PeerId] = set()
        self.calls: list[PeerId] = []


class Node:
    def __init__(self, net: Net, id: PeerId) -> None:
        self.net, self.id = net, id

    def serve(self, service: Any, *, offered: bool) -> None: ...

    async def call(self, peer: PeerId, method: str, cid: str, offset: int, **_: Any) -> bytes:
        await asyncio.sleep(0)
        self.net.calls.append(peer)
        if peer in self.net.down:
            raise PeerUnreachableError("it is down")
        data = await self.net.desks[peer].piece(cid, offset)
        return b"x" + data[1:] if peer in self.net.liars else data


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Net:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(package_desk, "PIECE_BYTES", 1000)
    return Net(tmp_path)


@pytest.fixture
def made(tmp_path: Path) -> Callable[[int], Packed]:
    def make(number: int) -> Packed:
        folder = tmp_path / "project"
        folder.mkdir(exist_ok=True)
        (folder / "data.bin").write_bytes(bytes([number]) + os.urandom(2500))
        return pack(str(folder))

    return make


async def test_a_package_comes_in_pieces_once_and_past_those_who_are_down_or_lie(
    net: Net, made: Callable[[int], Packed]
) -> None:
    packed = made(1)
    for peer in PEERS[:3]:
        net.desks[peer].shelf.put(packed)
    net.down, net.liars = {PEERS[0]}, {PEERS[1]}
    mine = net.desks[PEERS[3]]
    both = await asyncio.gather(mine.bring(packed.cid, PEERS), mine.bring(packed.cid, PEERS))
    assert both == [packed.data, packed.data] and net.calls.count(PEERS[2]) == len(packed.data) // 1000 + 1
    net.calls.clear()
    assert await mine.bring(packed.cid, PEERS) == packed.data and not net.calls, "it is here now"
    with pytest.raises(ObjectLostError, match=r"to be had from nobody.*it is down"):
        await mine.bring(made(2).cid, PEERS)


async def test_folders_that_no_job_uses_stay_for_a_while(
    net: Net, made: Callable[[int], Packed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_desk, "UNUSED_MAX", 1)
    desk, places = net.desks[PEERS[0]], []
    for number in range(3):
        packed = made(number)
        desk.shelf.put(packed)
        places.append(await desk.unpacked(packed.cid, [], f"{number}.files"))
    assert await desk.unpacked(packed.cid, [], "2.files") == places[2]
    for number in range(3):
        desk.release(f"{number}.files")
    await asyncio.gather(*desk._deleting)
    assert there(places) == [False, True, True], "the third is still used by one"
    desk.close()
    assert there(places) == [False, False, False]


def there(places: list[str]) -> list[bool]:
    return [os.path.isdir(place) for place in places]
