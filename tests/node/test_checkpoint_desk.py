"""Checkpoints of actors: on two nodes where there are two, the newest first, large ones through the arena and disks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from lattica.codec import messages as m
from lattica.mesh.identity import PeerId
from lattica.node.checkpoint_desk import RENEW_S, CheckpointDesk, State
from lattica.node.detached_desk import DetachedDesk
from lattica.node.kept import FORGET_S, SOON_S, SWEEP_S, WINDOW_BYTES
from lattica.node.loop import EpollLoop
from lattica.node.seeds import VERSION, Paper, read_paper, write
from lattica.objectstore.arena import Arena
from lattica.scheduler.fencing import Life
from lattica.scheduler.restarts import Record
from tests.node.test_kept import Desk, run

ACTOR, OBJECT, WORKER = b"a" * 12, b"o" * 16, 7
LARGE = bytes(range(256)) * (2 * WINDOW_BYTES // 256)


class Actors:
    """One actor, in its worker."""

    def __init__(self, detached: bool = False) -> None:
        self.plan = SimpleNamespace(actor=ACTOR, detached=detached)
        self.entry = SimpleNamespace(plan=self.plan, incarnation=1, worker=WORKER, end=None)
        self.supervisor, self.actors = self, {ACTOR: self.entry}
        self.sent: list[m.ActorCheckpoint] = []
        self.is_anothers = False

    def actor_of(self, worker: int) -> Any:
        return self.entry if worker == self.entry.worker else None

    def living(self, _: bytes) -> Any:
        return self.plan if self.entry.end is None else None

    def forwarded(self, _: Any, message: m.ActorCheckpoint) -> bool:
        if self.is_anothers:
            self.sent.append(message)
        return self.is_anothers


class Store:
    """The arena with one value."""

    def __init__(self, data: bytes) -> None:
        self.arena = Arena(64 << 20)
        self.arena.back(0, 1 << 22)
        self.arena.write(0, [data])
        self.ledger, self.size, self.let = self, len(data), list[bytes]()
        self.pinned: list[bytes] = []  # while it is copied

    def holds(self, client: int, object_: bytes) -> bool:
        return client == m.NODE

    def size_here(self, object_: bytes) -> int:
        return self.size

    def bring_back(self, object_: bytes, then: Callable[[bool], object]) -> None:
        then(True)

    def pin(self, object_: bytes) -> None:
        self.pinned.append(object_)

    def unpin(self, object_: bytes) -> None:
        self.pinned.remove(object_)

    def place(self, object_: bytes) -> tuple[int, int, bool, tuple[bytes, ...]]:
        return 0, self.size, False, ()

    def let_go(self, objects: list[bytes]) -> None:
        self.let += objects


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store(LARGE)
    yield made
    made.arena.close()


class Machine:
    """A node: its contents, its desk, and whom it sees."""

    def __init__(
        self, name: str, town: dict[PeerId, Desk], folder: Path, store: Any = None, *, detached: bool = False
    ) -> None:
        self.desk = Desk(name, town, folder)
        self.town, self.kept, self.me = town, self.desk.kept, self.desk.me
        self.actor_desk, self.store = Actors(detached), store
        self.loop = asyncio.get_running_loop()
        self.told: list[tuple[int, Any]] = []
        self.clients: dict[int, Any] = {}
        self.far, self.workers, self.aways = self, self, dict[int, Any]()
        self.deciding, self.detached = self, self
        self.tasks: list[Any] = []
        self.checkpoints = CheckpointDesk(self)  # type: ignore[arg-type]
        self.kept.named = self.checkpoints.contents

    def in_order(self, _: bytes) -> list[PeerId]:
        return [peer for peer in self.town if peer != self.me]

    def begin(self, work: Any) -> None:
        self.tasks.append(self.loop.create_task(work))

    def tell(self, worker: int, message: Any) -> None:
        self.told.append((worker, message))

    def end_worker(self, worker: int, why: str) -> None:
        self.told.append((worker, why))

    def client(self, number: int) -> list[Any]:
        """A worker, and what it is sent."""
        sent: list[Any] = []
        wire = SimpleNamespace(
            hold=lambda: sent.append("hold"), release=lambda message, fds=(): sent.append((message, fds))
        )
        self.clients[number] = SimpleNamespace(number=number, wire=wire)
        return sent

    def has(self, data: bytes) -> bool:
        return any(Path(self.kept.folder, name).read_bytes() == data for name in self.kept.disk.sizes)


def test_a_plain_actors_checkpoint_lies_on_one_more_node_and_the_old_one_goes(tmp_path: Path) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        owner, other, third = (Machine(name, town, tmp_path) for name in "abc")
        owner.checkpoints.came(WORKER, ACTOR, State(b"one"))
        await asyncio.sleep(1.0)
        assert owner.has(b"one") and other.has(b"one") and not third.has(b"one")
        owner.checkpoints.came(WORKER, ACTOR, State(b"two"))
        await asyncio.sleep(SOON_S + 2 * SWEEP_S)
        for machine in (owner, other):
            assert machine.has(b"two") and not machine.has(b"one")
        await asyncio.sleep(2 * FORGET_S)
        assert other.has(b"two"), "no row names it, and it is needed"
        del town[other.me]
        owner.checkpoints.members_changed()
        await asyncio.sleep(1.0)
        assert third.has(b"two"), "who kept it is gone"
        owner.checkpoints.forget(ACTOR)
        await asyncio.sleep(RENEW_S + SOON_S + SWEEP_S)
        assert not third.has(b"two") and not owner.has(b"two"), "its actor is over"

    run(story)


def test_of_many_that_come_at_once_the_newest_is_kept(tmp_path: Path) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        owner, other = (Machine(name, town, tmp_path) for name in "ab")
        for number in range(100):
            owner.checkpoints.came(WORKER, ACTOR, State(b"%d" % number))
        owner.checkpoints.came(WORKER + 1, ACTOR, State(b"of a worker that is not it"))
        await asyncio.sleep(1.0)
        assert other.has(b"99") and len(other.kept.disk.sizes) <= 2

    run(story)


def test_a_large_one_goes_from_the_arena_to_two_disks_and_a_worker_reads_it(tmp_path: Path, store: Store) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        owner, other = Machine("a", town, tmp_path, store), Machine("b", town, tmp_path)
        client = SimpleNamespace(number=WORKER)
        owner.checkpoints.taken(client, m.ActorCheckpoint(ACTOR, b"", OBJECT, b"", len(LARGE)))  # type: ignore[arg-type]
        assert not store.let and store.pinned == [OBJECT], "it is being read"
        await asyncio.sleep(1.0)
        assert store.let == [OBJECT] and not store.pinned and owner.has(LARGE) and other.has(LARGE)
        sent = owner.client(9)
        owner.checkpoints.become(9, m.BecomeActor(ACTOR, 2, b"spec", {}))
        await asyncio.sleep(1.0)
        hold, (message, [fd]) = sent
        assert hold == "hold", "who calls it comes after"
        assert message.size == len(LARGE) and os.pread(fd, message.size, 0) == LARGE
        os.close(fd)

    run(story)


def test_an_actor_of_another_node_has_its_large_ones_at_both(tmp_path: Path, store: Store) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        owner, host = Machine("a", town, tmp_path), Machine("b", town, tmp_path, store)
        host.actor_desk.is_anothers = True
        client = SimpleNamespace(number=3)
        host.checkpoints.taken(client, m.ActorCheckpoint(ACTOR, b"", OBJECT, b"", len(LARGE)))  # type: ignore[arg-type]
        await asyncio.sleep(1.0)
        [said] = host.actor_desk.sent
        assert said.content and said.size == len(LARGE) and not said.state
        owner.aways[WORKER] = SimpleNamespace(neighbour=SimpleNamespace(peer=host.me))
        owner.checkpoints.far_said(WORKER, said)
        await asyncio.sleep(1.0)
        assert owner.has(LARGE) and owner.checkpoints.states[ACTOR].content == said.content
        # the next life is at the host again, whose disk has lost it
        owner.checkpoints.become(WORKER, m.BecomeActor(ACTOR, 2, b"spec", {}))
        [(_, become)] = owner.told
        host.kept.disk.forget(next(iter(host.kept.disk.sizes)))
        sent = host.client(4)
        host.checkpoints.become_anothers(4, become, owner.me)
        await asyncio.sleep(1.0)
        _, (_, [fd]) = sent
        assert os.pread(fd, len(LARGE), 0) == LARGE
        os.close(fd)
        host.checkpoints.become_anothers(4, msgspec.structs.replace(become, content=b"c" * 37), owner.me)
        await asyncio.sleep(1.0)
        assert "could not be had from its owner" in host.told[-1][1], "it does not begin without what it knew"

    run(story)


def test_what_comes_late_does_not_replace_what_the_next_life_has_said(tmp_path: Path) -> None:
    async def story(town: dict[PeerId, Desk]) -> None:
        owner = Machine("a", town, tmp_path)
        owner.actor_desk.entry.incarnation = 2
        owner.checkpoints._late(ACTOR, 1, State(content=b"c"))
        assert not owner.checkpoints.states
        owner.actor_desk.entry.worker = None
        owner.checkpoints._late(ACTOR, 1, State(content=b"c"))
        assert owner.checkpoints.states[ACTOR].content == b"c", "it has not begun again yet"

    run(story)


def test_a_machine_alone_keeps_large_ones_in_memory(store: Store) -> None:
    loop = EpollLoop()
    actors = Actors()
    node: Any = SimpleNamespace(loop=loop, store=store, far=None, actor_desk=actors, clients={})
    desk = CheckpointDesk(node)
    client: Any = SimpleNamespace(number=WORKER)
    desk.taken(client, m.ActorCheckpoint(ACTOR, b"", OBJECT, b"", len(LARGE)))
    desk.taken(client, m.ActorCheckpoint(ACTOR, b"", b"2" * 16, b"", len(LARGE)))
    desk.taken(client, m.ActorCheckpoint(ACTOR, b"", b"3" * 16, b"", len(LARGE)))

    def look() -> None:
        if len(store.let) == 3:
            loop.stop()
        else:
            loop.call_later(0.005, look)

    look()
    loop.run_forever()
    assert store.let == [b"2" * 16, OBJECT, b"3" * 16], "while one is copied the newest waits"
    sent: list[tuple[Any, list[int]]] = []
    node.clients[9] = SimpleNamespace(send=lambda message, fds: sent.append((message, fds)))
    for _ in range(2):
        desk.become(9, m.BecomeActor(ACTOR, 2, b"spec", {}))
    for message, [fd] in sent:
        assert os.pread(fd, message.size, 0) == LARGE
        os.close(fd)
    fd = desk.states[ACTOR].fd
    desk.forget(ACTOR)
    with pytest.raises(OSError):
        os.fstat(fd)
    loop.close()


def test_a_row_names_a_checkpoint_once_another_node_has_it_and_the_one_before_it_too(tmp_path: Path) -> None:
    """Else a machine that is lost midway would leave a row that names what nobody has."""

    async def story(town: dict[PeerId, Desk]) -> None:
        machine, other = Machine("a", town, tmp_path, detached=True), Machine("b", town, tmp_path)
        paper = Paper(VERSION, b"seed", "Counter", "c", "space", b"", 1)
        record = Record(Life(1, 100), machine.me, False, 1, write(paper))
        running = {ACTOR: record}
        deciding: Any = SimpleNamespace(
            restarts=SimpleNamespace(running=running), in_order=machine.in_order, records=running,
            do=lambda writes: [running.update({each.actor: each.record}) for each in writes],
        )  # fmt: skip
        machine.deciding = deciding
        detached = DetachedDesk(_desk_of(machine))
        machine.detached = detached  # type: ignore[assignment]

        def named() -> tuple[bytes, bytes]:
            now = read_paper(running[ACTOR].spec)
            assert now is not None
            return now.state, now.before

        machine.checkpoints.came(WORKER, ACTOR, State(b"one"))
        await asyncio.sleep(1.0)
        one = machine.checkpoints.states[ACTOR].content
        assert named() == (one, b"") and other.has(b"one")
        other.desk.silent = True
        machine.checkpoints.came(WORKER, ACTOR, State(b"two"))
        await asyncio.sleep(60.0)
        two = machine.checkpoints.states[ACTOR].content
        assert named() == (one, b"") and one != two, "nobody else has the second"
        other.desk.silent = False
        machine.checkpoints.save(ACTOR)
        await asyncio.sleep(1.0)
        assert named() == (two, one) and other.has(b"two")
        assert {one, two} <= set(detached.named()), "both stay"
        state = await detached._state(ACTOR, Paper(VERSION, b"", "", "", "", b"", 1, b"c" * 36, one))
        assert state is not None and state.data == b"one", "whoever cannot have the last goes on from the one before"

    run(story)


def _desk_of(machine: Machine) -> Any:
    return SimpleNamespace(
        node=SimpleNamespace(actor_desk=SimpleNamespace(checkpoints=machine.checkpoints)),
        kept=machine.kept, new_number=lambda: 1, jobs=SimpleNamespace(unix=lambda: 0.0), deciding=machine.deciding,
    )  # fmt: skip
