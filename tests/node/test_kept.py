"""What restarts need, on several nodes: kept under the name of its content, asked for, verified, forgotten."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lattica.codec import far
from lattica.mesh.identity import PeerId
from lattica.mesh.roles import MEMBER, Role
from lattica.node import kept as module
from lattica.node.kept import ASK_S, CONTENT_MAX_BYTES, FORGET_S, PIECE_BYTES, SOON_S, SWEEP_S, WINDOW_BYTES, Kept
from lattica.objectstore.cid import cid_named, manifest_of
from lattica.testing.loop import VirtualClockLoop


class Desk:
    """Nodes that answer each other's messages in the next turn of the loop, as bytes."""

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
        answer = {
            far.Keep: kept.keep, far.KeptWanted: kept.wanted, far.NotKept: kept.not_kept, far.Kept: kept.kept,
            far.Unkeep: kept.unkeep_here,
        }[type(message)]  # fmt: skip
        asyncio.get_running_loop().call_soon(answer, back, message)  # type: ignore[arg-type]


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
        assert await a.kept.spread(content, [b.me], enough=1) == 1
        town.pop(a.me)
        assert await d.kept.get(content, [c.me, b.me]) == data
        assert await d.kept.get(content, []) == data, "and it has it itself by now"
        assert await c.kept.get(content, [c.me]) is None

    run(story)


def test_a_keeper_that_does_not_answer_is_passed_over(tmp_path: Path) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        a, b, c = (Desk(name, town, tmp_path) for name in "abc")
        content = a.kept.put(b"seed")
        await a.kept.spread(content, [b.me], enough=1)
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
        await asyncio.sleep(1.0)
        assert await b.kept.get(content, []) is None and not b.kept._coming
        assert not list((tmp_path / "b").iterdir()), "nothing of it is left"

    run(story)


def test_who_may_not_submit_and_who_sends_too_much_fills_no_disk(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "ALL_MAX_BYTES", 10)

    async def story(town: dict[PeerId, Desk]) -> None:
        a, b = Desk("a", town, tmp_path, Role.EXECUTE), Desk("b", town, tmp_path)
        content = a.kept.put(b"seed")
        assert not await a.kept.spread(content, [b.me], enough=1)
        assert await b.kept.get(content, []) is None, "it may not submit"
        a.roles = MEMBER
        assert await a.kept.spread(content, [b.me], enough=1)
        assert await b.kept.get(content, []) == b"seed"
        more = a.kept.put(b"12345678")
        assert not await a.kept.spread(more, [b.me], enough=1)
        assert await b.kept.get(more, []) is None, "there is no room"
        a.neighbour(b.me).send(far.Keep(more, CONTENT_MAX_BYTES + 1, 0, b""))
        await asyncio.sleep(1.0)
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
            told = await giver.kept.spread(content, [keeper.me], enough=1)
            assert told == bool(keeper.kept.size(content))
            return bool(told)

        assert await gives(greedy, b"12345678901") and not await gives(greedy, b"1234567890")
        assert "keeps 0 MiB in 1 contents for you already" in caplog.text, "and the one who sent it says so in its log"
        assert await gives(greedy, b"2") and await gives(greedy, b"3") and not await gives(greedy, b"4")
        assert await gives(other, b"1234567890"), "its share is its own"
        assert await keeper.kept.get(greedy.kept.put(b"12345678901"), []), "what is kept stays"
        await asyncio.sleep(FORGET_S + SWEEP_S + 1)
        assert not keeper.kept._counts and not keeper.kept._for and await gives(greedy, b"1234567890")

    run(story)


def test_what_no_row_names_is_forgotten_after_a_while(tmp_path: Path) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        a = Desk("a", town, tmp_path)
        named, unnamed = a.kept.put(b"named"), a.kept.put(b"unnamed")
        a.kept.named = lambda: [named]
        a.kept.sweep()
        await asyncio.sleep(FORGET_S + SWEEP_S + 1)
        assert await a.kept.get(named, []) == b"named"
        assert await a.kept.get(unnamed, []) is None

    run(story)


def test_what_is_large_is_asked_for_in_windows_and_written_as_it_comes(tmp_path: Path) -> None:
    data = bytes(range(256)) * (3 * WINDOW_BYTES // 256) + b"end"
    asked: list[int] = []

    async def story(town: dict[PeerId, Desk]) -> None:
        a, b, c = (Desk(name, town, tmp_path) for name in "abc")
        content, wanted = a.kept.put(data), a.kept.wanted

        def note(neighbour: Any, message: far.KeptWanted) -> None:
            asked.append(message.offset)
            wanted(neighbour, message)

        a.kept.wanted = note  # type: ignore[method-assign]
        twice = [a.kept.spread(content, [b.me], enough=1) for _ in range(2)]
        assert await asyncio.gather(*twice) == [1, 1], "what is on its way is not begun anew"
        assert asked == [PIECE_BYTES + WINDOW_BYTES * window for window in range(3)], (
            "the rest of it, and nothing twice"
        )
        town.pop(a.me)
        assert await c.kept.bring(content, [b.me])
        assert await c.kept.disk.read(content) == data

    run(story)


def test_a_keeper_that_is_lost_midway_has_kept_nothing_and_is_not_waited_for(tmp_path: Path) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        a, b, c = (Desk(name, town, tmp_path) for name in "abc")
        content = a.kept.put(bytes(3 * WINDOW_BYTES))
        b.kept._desk.neighbour = lambda peer: Line(Desk("x", town, tmp_path), Desk("y", town, tmp_path))  # type: ignore[method-assign]
        before = asyncio.get_running_loop().time()
        assert await a.kept.spread(content, [b.me], enough=1) == 0
        assert asyncio.get_running_loop().time() - before <= 2 * ASK_S
        assert await a.kept.spread(content, [b.me, c.me], enough=1) == 1, "one is enough"

    run(story)


def test_two_that_have_the_same_checkpoint_lose_it_only_when_neither_names_it(tmp_path: Path) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        a = Desk("a", town, tmp_path)
        content = a.kept.put(b"both of them have counted to five")
        a.kept.named = lambda: [content]
        a.kept.forget_soon(content)  # the row of one names a newer one
        await asyncio.sleep(SOON_S + SWEEP_S + 1)
        assert await a.kept.get(content, [])
        a.kept.named = tuple
        a.kept.forget_soon(content)
        await asyncio.sleep(SOON_S + SWEEP_S + 1)
        assert await a.kept.get(content, []) is None

    run(story)


def test_what_no_row_names_is_kept_as_long_as_its_owner_says_that_it_is_needed(tmp_path: Path) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        a, b, c = (Desk(name, town, tmp_path) for name in "abc")
        content = a.kept.put(b"a plain actor's")
        for _ in range(5):
            assert await a.kept.spread(content, [b.me], enough=1)
            await asyncio.sleep(FORGET_S / 2)
        assert b.kept.size(content)
        c.kept.unkeep(content, [b.me])
        await asyncio.sleep(SOON_S + SWEEP_S + 1)
        assert b.kept.size(content), "that was not its to say"
        a.kept.unkeep(content, [b.me])
        await asyncio.sleep(SOON_S + SWEEP_S + 1)
        assert not b.kept.size(content)

    run(story)


def test_who_runs_an_actor_of_ours_may_have_its_checkpoint_though_it_may_not_submit(tmp_path: Path) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        owner, host = Desk("a", town, tmp_path), Desk("b", town, tmp_path, Role.EXECUTE)
        content = owner.kept.put(bytes(2 * WINDOW_BYTES))
        assert not await host.kept.bring(content, [owner.me])
        owner.kept.may_have(host.me, content)
        assert await host.kept.bring(content, [owner.me])

    run(story)


def test_a_disk_that_is_nearly_full_takes_no_more(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("lattica.node.contents.DISK_LEFT_BYTES", 1 << 62)

    async def story(town: dict[PeerId, Desk]) -> None:
        a, b = Desk("a", town, tmp_path), Desk("b", town, tmp_path)
        for size in (10, 2 * WINDOW_BYTES):
            content = a.kept.put(bytes(size))
            assert await a.kept.spread(content, [b.me], enough=1) == 0
            assert not b.kept.size(content) and not await a.kept.disk.written(content)

    run(story)


def test_who_is_cancelled_while_a_file_is_opened_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, dropped = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, *_: object) -> None:
            gate.wait(10)

        def drop(self) -> None:
            dropped.set()

    async def story() -> None:
        keeper: Any = SimpleNamespace(_loop=asyncio.get_running_loop(), folder="")
        opening = asyncio.ensure_future(Kept._open_draft(keeper, 1))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        gate.set()
        while not dropped.is_set():
            await asyncio.sleep(0)

    monkeypatch.setattr(module, "Draft", Slow)
    asyncio.run(asyncio.wait_for(story(), 10))
