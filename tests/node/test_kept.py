"""What restarts need, on several nodes: kept under the name of its content, asked for, verified, forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from lattica.codec import far
from lattica.mesh.identity import PeerId
from lattica.mesh.roles import MEMBER, Role
from lattica.node import kept as module
from lattica.node.kept import CONTENT_MAX_BYTES, FORGET_S, PIECE_BYTES, Kept
from lattica.objectstore.cid import cid_named, manifest_of
from lattica.testing.loop import VirtualClockLoop


class Desk:
    """Nodes that answer each other's messages at once, as bytes."""

    def __init__(self, name: str, town: dict[PeerId, Desk], folder: Path, roles: Role = MEMBER) -> None:
        self.me = PeerId(name.encode() * 32)
        self.town, self.roles, self.silent = town, roles, False
        self.detached = self
        self.tasks: set[asyncio.Task[None]] = set()
        town[self.me] = self
        self.kept = Kept(self, str(folder / name))  # type: ignore[arg-type]

    def roles_of(self, peer: PeerId) -> Role:
        return self.town[peer].roles

    def neighbour(self, peer: PeerId) -> Any:
        return Line(self, self.town[peer])


class Line:
    """What one says to another."""

    crowded = False

    def __init__(self, ours: Desk, theirs: Desk) -> None:
        self.peer, self.ours, self.theirs = theirs.me, ours, theirs
        self.link, self.client, self.name = self, self, "the other"

    def send(self, message: Any, size: int = 0) -> None:
        if self.theirs.silent:
            return
        (message,) = far.decode(far.encode([message]))
        back, kept = Line(self.theirs, self.ours), self.theirs.kept
        answer = {far.Keep: kept.keep, far.KeptWanted: kept.wanted, far.NotKept: kept.not_kept}[type(message)]
        answer(back, message)  # type: ignore[operator]


def run(story: Callable[[dict[PeerId, Desk]], Awaitable[None]]) -> None:
    loop = VirtualClockLoop()
    try:
        loop.run_until_complete(story({}))  # type: ignore[arg-type]
    finally:
        loop.close()


def test_what_was_spread_is_got_from_whoever_has_it(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096  # four pieces

    async def story(town: dict[PeerId, Desk]) -> None:
        a, b, c, d = (Desk(name, town, tmp_path) for name in "abcd")
        content = a.kept.put(data)
        await a.kept.spread(content, [b.me])
        town.pop(a.me)
        assert await d.kept.get(content, [c.me, b.me]) == data
        assert await d.kept.get(content, []) == data, "and it has it itself by now"
        assert await c.kept.get(content, [c.me]) is None

    run(story)


def test_a_keeper_that_does_not_answer_is_passed_over(tmp_path: Path) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        a, b, c = (Desk(name, town, tmp_path) for name in "abc")
        content = a.kept.put(b"seed")
        await a.kept.spread(content, [b.me])
        a.silent = True
        assert await c.kept.get(content, [a.me, b.me]) == b"seed"

    run(story)


def test_it_is_there_after_a_restart_and_damage_on_disk_is_noticed(tmp_path: Path) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        content = Desk("a", town, tmp_path).kept.put(b"seed")
        while not [file for file in (tmp_path / "a").iterdir() if file.suffix != ".new"]:
            await asyncio.sleep(0.01)
        again = Desk("a", town, tmp_path)
        assert await again.kept.get(content, []) == b"seed"
        (file,) = (tmp_path / "a").iterdir()
        file.write_bytes(b"seen")
        assert await again.kept.get(content, []) is None

    run(story)


@pytest.mark.parametrize("size", [1, PIECE_BYTES, PIECE_BYTES + 1])
def test_something_else_than_its_name_says_is_not_kept(tmp_path: Path, size: int) -> None:
    content = cid_named(manifest_of(b"seed"))

    async def story(town: dict[PeerId, Desk]) -> None:
        a, b = (Desk(name, town, tmp_path) for name in "ab")
        for offset in range(0, size, PIECE_BYTES):
            piece = bytes(min(PIECE_BYTES, size - offset))
            a.neighbour(b.me).send(far.Keep(content, size, offset, piece))
        assert await b.kept.get(content, []) is None

    run(story)


def test_who_may_not_submit_and_who_sends_too_much_fills_no_disk(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "ALL_MAX_BYTES", 10)

    async def story(town: dict[PeerId, Desk]) -> None:
        a, b = Desk("a", town, tmp_path, Role.EXECUTE), Desk("b", town, tmp_path)
        content = a.kept.put(b"seed")
        await a.kept.spread(content, [b.me])
        assert await b.kept.get(content, []) is None, "it may not submit"
        a.roles = MEMBER
        await a.kept.spread(content, [b.me])
        assert await b.kept.get(content, []) == b"seed"
        more = a.kept.put(b"12345678")
        await a.kept.spread(more, [b.me])
        assert await b.kept.get(more, []) is None, "there is no room"
        a.neighbour(b.me).send(far.Keep(more, CONTENT_MAX_BYTES + 1, 0, b""))
        assert not b.kept._coming

    run(story)


def test_a_member_fills_its_share_and_is_told_so_and_others_have_theirs(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(module, "EACH_MAX_BYTES", 20)
    monkeypatch.setattr(module, "EACH_MAX", 3)

    async def story(town: dict[PeerId, Desk]) -> None:
        keeper, greedy, other = (Desk(name, town, tmp_path) for name in "abc")

        async def gives(giver: Desk, data: bytes) -> bool:
            content = giver.kept.put(data)
            await giver.kept.spread(content, [keeper.me])
            return bool(keeper.kept.size(content))

        assert await gives(greedy, b"12345678901") and not await gives(greedy, b"1234567890")
        assert "keeps 0 MiB in 1 contents for you already" in caplog.text, "and the one who sent it says so in its log"
        assert await gives(greedy, b"2") and await gives(greedy, b"3") and not await gives(greedy, b"4")
        assert await gives(other, b"1234567890"), "its share is its own"
        assert await keeper.kept.get(greedy.kept.put(b"12345678901"), []), "what is kept stays"
        keeper.kept.sweep([])
        await asyncio.sleep(FORGET_S + 1)
        keeper.kept.sweep([])
        assert not keeper.kept._counts and not keeper.kept._for and await gives(greedy, b"1234567890")

    run(story)


def test_what_no_row_names_is_forgotten_after_a_while(tmp_path: Path) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        a = Desk("a", town, tmp_path)
        named, unnamed = a.kept.put(b"named"), a.kept.put(b"unnamed")
        a.kept.sweep([named])
        await asyncio.sleep(FORGET_S + 1)
        a.kept.sweep([named])
        assert await a.kept.get(named, []) == b"named"
        assert await a.kept.get(unnamed, []) is None or unnamed in a.kept._unwritten

    run(story)
