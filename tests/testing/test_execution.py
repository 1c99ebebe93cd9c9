"""A universe's units, pipes and loops: what the world `execution` stands on."""

from __future__ import annotations

import asyncio
import logging
import os
import time

import msgspec
import pytest

from lattica.actors.tasks import TaskRecord, Tasks
from lattica.codec import messages as m
from lattica.node import far_desk
from lattica.node.detached_desk import DetachedDesk
from lattica.node.drain import Drain
from lattica.node.group_desk import GroupDesk
from lattica.scheduler.resources import Allocation, ResourcePool, in_bundle
from lattica.testing.execution import PIPE_BYTES, End, NodeLoop, Unit, Universe
from lattica.testing.execution_processes import SimWorker
from lattica.testing.scenarios import execution

SEED = 1  # of worlds that are broken on purpose: each of them shows it early


def read(end: End) -> bytes:
    space = memoryview(bytearray(PIPE_BYTES))
    return bytes(space[: end.recv_into(space)])


def test_a_pipe_keeps_order_and_ends_after_what_was_written() -> None:
    with Universe(1) as universe:
        writer, reader = Unit(universe, "writer"), Unit(universe, "reader")
        ours, theirs = universe.pipe()
        ours.belongs(writer)
        theirs.belongs(reader)
        for piece in (b"one", b"two"):
            ours.put(piece)
        writer.end()
        universe.run(until=1)
        assert [read(theirs), read(theirs), read(theirs)] == [b"one", b"two", b""]


def test_a_full_pipe_takes_more_when_its_reader_has_read() -> None:
    with Universe(1) as universe:
        ours, theirs = universe.pipe()
        room: list[float] = []
        ours.writable = lambda: room.append(universe.now)
        assert ours.send(bytes(PIPE_BYTES + 7)) == PIPE_BYTES
        universe.run(until=1)
        with pytest.raises(BlockingIOError):
            ours.send(b"x")
        assert not room and len(read(theirs)) == PIPE_BYTES
        universe.run(until=2)
        assert room and ours.send(b"x") == 1


def test_what_comes_for_a_stalled_unit_waits_and_what_comes_for_a_dead_one_is_lost() -> None:
    with Universe(1) as universe:
        one, other = Unit(universe, "one"), Unit(universe, "other")
        heard: list[tuple[str, float]] = []
        one.stall(5.0)
        other.end()
        for unit in (one, other):
            universe.at(1.0, unit, lambda name=unit.name: heard.append((name, universe.now)))
        universe.run(until=10)
        assert heard == [("one", 5.0)]


def test_a_node_loop_sleeps_in_the_universes_time_and_stands_still_when_its_node_is_dead() -> None:
    with Universe(1) as universe:
        units = [Unit(universe, name) for name in ("lives", "dies")]
        woken: list[tuple[str, float]] = []

        async def main(name: str) -> None:
            async with asyncio.timeout(100):
                await asyncio.sleep(30)
            woken.append((name, asyncio.get_running_loop().time()))

        for unit in units:
            NodeLoop(unit).begin(main(unit.name))
        universe.run(until=10)
        units[1].end()
        universe.run(until=60)
        assert woken == [("lives", 30.0)]


def test_lattica_has_the_universes_time_and_dice_and_gets_the_true_ones_back() -> None:
    with Universe(1) as universe:
        universe.run(until=100)
        drawn, told = os.urandom(8), far_desk.time()
    with Universe(1):
        assert os.urandom(8) == drawn
    assert told == universe.unix_s() and abs(far_desk.time() - time.time()) < 60


def test_what_a_process_calls_its_objects_follows_from_the_seed() -> None:
    def first_id() -> bytes:
        with Universe(1) as universe:
            act = execution.Play(universe, long=False)
            act.land.start("n0")
            universe.run(until=1)
            act.drive("n0")
            universe.run(until=2)
            id: bytes = act.scripts["n0"].driver.runtime.new_refs(1)[0].id
            return id

    assert first_id() == first_id()


def test_an_exception_that_is_only_logged_fails_the_universe_with_its_seed() -> None:
    with Universe(7) as universe, pytest.raises(AssertionError, match="the roof is gone") as failed:
        universe.after(1.0, _log)
        universe.run(until=2)
    assert "seed 7, at 1.000000 s" in failed.value.__notes__[0]


def _log() -> None:
    try:
        raise ValueError("the roof is gone")
    except ValueError:
        logging.getLogger("lattica.node").exception("a message could not be handled")


# -- the world sees what is broken on purpose


def test_a_cancel_that_is_forgotten_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tasks, "cancel", lambda *_, **__: None)
    with pytest.raises(AssertionError, match="was cancelled, not yet handed out, and goes on"):
        execution.play(SEED)


def test_a_task_that_begins_although_it_was_withdrawn_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    cancel = Tasks.cancel

    def cancel_and_submit_again(self: Tasks, record: TaskRecord, *, force: bool, recursive: bool) -> None:
        withdrawn = record.lease is None
        again = TaskRecord(
            record.args, record.deps, record.at, self.runtime.new_refs(1), 1, 0, False,
            record.lane, record.function, record.name,
        )  # fmt: skip
        cancel(self, record, force=force, recursive=recursive)
        if withdrawn:
            self.submit(again)

    monkeypatch.setattr(Tasks, "cancel", cancel_and_submit_again)
    with pytest.raises(AssertionError, match="begins, and was cancelled before it was handed out"):
        execution.play(SEED)


def test_a_node_that_goes_without_handing_over_what_others_hold_of_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object) -> None: ...

    monkeypatch.setattr(Drain, "_hand_over", nothing)
    with pytest.raises(AssertionError, match=r"Object(Lost|ReconstructionFailed)Error\)?>, and nothing was broken"):
        for seed in (4, *range(1, 9)):  # one in two has somebody who holds what a node that goes has made; 4 is short
            execution.play(seed, happens="drains")


def test_a_node_that_never_goes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drain, "_works_for_others", lambda _: True)
    monkeypatch.setattr(Drain, "_hand_over", lambda *_: asyncio.sleep(1000))
    with pytest.raises(AssertionError, match=r"was told to go.*, and is still here"):
        execution.play(2, happens="drains")


def test_a_bundle_that_holds_more_than_it_has_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    grow = ResourcePool.grow

    def grow_too_much(self: ResourcePool, bundle: int, allocation: Allocation) -> None:
        grow(self, bundle, allocation)
        name = in_bundle(bundle, "CPU")
        self._sizes[name] = self._free[name] = 2 * self._sizes[name]

    monkeypatch.setattr(ResourcePool, "grow", grow_too_much)
    with pytest.raises(AssertionError, match=r"begins in bundle \d of one CPU, where .* runs"):
        for seed in (3, 4, 5, 6):  # one in two has two tasks that want the same bundle at a time
            execution.play(seed)


def test_a_group_that_is_removed_and_keeps_its_bundles_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GroupDesk, "remove", lambda *_: None)
    with pytest.raises(AssertionError, match=r"keeps bundle \d of a group"):
        execution.play(3)


def test_two_workers_that_are_one_life_of_an_actor_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    become = SimWorker._become_actor

    def become_the_first(self: SimWorker, message: m.BecomeActor) -> None:
        become(self, msgspec.structs.replace(message, incarnation=1))

    monkeypatch.setattr(SimWorker, "_become_actor", become_the_first)
    with pytest.raises(AssertionError, match=r"was life \(.*, 1\) before"):
        execution.play(3, happens="faults")


def test_what_is_kept_of_a_detached_actor_that_has_ended_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DetachedDesk, "_forget_job", lambda *_: None)
    with pytest.raises(AssertionError, match=r"jobs \["):
        execution.play(2, happens="nothing")
