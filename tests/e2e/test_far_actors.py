"""Actors on other nodes: calls, errors, handles that travel, restarts and ends."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.errors import ActorDiedError, ActorError
from tests.e2e.conftest import Sessions, eventually
from tests.e2e.far import Mesh, far_mesh, node_id


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("far"), a=2, b=2, c=2) as mesh:
        yield mesh


@lattica.remote
class Counter:
    def __init__(self, start: Any = 0) -> None:
        self.n = int(np.sum(start))
        self.seen: list[int] = []

    def add(self, k: int) -> int:
        self.n += k
        self.seen.append(k)
        return self.n

    def order(self) -> list[int]:
        return self.seen

    def where(self) -> str:
        return node_id()

    def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise KeyError("x")

    def leave(self) -> None:
        lattica.actor.exit_actor()

    def crash(self) -> None:
        os._exit(4)

    def big(self, value: Any) -> Any:
        return value

    def get(self, refs: Any) -> Any:
        return lattica.get(refs[0])

    def make(self, there: Any) -> Any:
        self.child = Counter.options(scheduling_strategy=there, num_cpus=0.1).remote(5)
        return self.child


@lattica.remote
class Many:
    def nap(self, seconds: float) -> int:
        time.sleep(seconds)
        return threading.get_ident()


@lattica.remote(concurrency_groups={"io": 2})
class Grouped:
    def __init__(self) -> None:
        self.opened = threading.Event()

    def wait(self) -> bool:
        return self.opened.wait(20)

    @lattica.method(concurrency_group="io")
    def take(self, value: Any) -> int:
        return len(value)

    @lattica.method(concurrency_group="io")
    def open(self) -> None:
        self.opened.set()


@lattica.remote
class Loop:
    async def nap(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds


@lattica.remote
def use(handle: Any, k: int) -> int:
    return lattica.get(handle.add.remote(k))


@lattica.remote
def list_names() -> list[str]:
    names: list[str] = lattica.util.list_named_actors()
    return names


@lattica.remote(max_calls=1, max_retries=0)
def once() -> int:
    return os.getpid()


def at(mesh: Mesh, name: str, **more: Any) -> dict[str, Any]:
    return {"scheduling_strategy": mesh.on(name), "num_cpus": 0.1, **more}


def test_calls_run_in_order_and_values_of_any_size_go_and_come(mesh: Mesh) -> None:
    counter = Counter.options(**at(mesh, "b")).remote(3)
    assert mesh.name_of(lattica.get(counter.where.remote(), timeout=20)) == "b"
    assert lattica.get([counter.add.remote(1) for _ in range(500)], timeout=20) == [4 + k for k in range(500)]
    with pytest.raises(KeyError):
        lattica.get(counter.fail.remote(), timeout=20)
    for size in (100, 200 << 10, 20 << 20):
        value = np.full(size, 7, np.uint8)
        assert lattica.get(counter.big.remote(value), timeout=20).sum() == 7 * size
        assert lattica.get(counter.get.remote([lattica.put(value)]), timeout=20).sum() == 7 * size
        assert lattica.get(counter.big.remote(lattica.put(value)), timeout=20).sum() == 7 * size
    big = Counter.options(**at(mesh, "b")).remote(np.ones(1 << 20, np.uint8))
    assert lattica.get(big.add.remote(1), timeout=20) == (1 << 20) + 1
    big = Counter.options(**at(mesh, "b")).remote(lattica.put(np.ones(1 << 20, np.uint8)))
    assert lattica.get(big.add.remote(1), timeout=20) == (1 << 20) + 1


def test_handles_are_used_on_any_node(mesh: Mesh) -> None:
    counter = Counter.options(**at(mesh, "b")).remote()
    refs = [use.options(scheduling_strategy=mesh.on(name), num_cpus=0.1).remote(counter, 1) for name in "abc"]
    assert sorted(lattica.get(refs, timeout=20)) == [1, 2, 3]
    other = Counter.options(**at(mesh, "c")).remote()
    child = lattica.get(other.make.remote(mesh.on("b")), timeout=20)
    assert lattica.get(child.add.remote(1), timeout=20) == 6
    assert lattica.get(use.options(scheduling_strategy=mesh.on("b"), num_cpus=0.1).remote(child, 1), timeout=20) == 7
    local = Counter.options(**at(mesh, "a")).remote()
    refs = [use.options(scheduling_strategy=mesh.on(name), num_cpus=0.1).remote(local, 1) for name in "abc"]
    assert sorted(lattica.get(refs, timeout=20)) == [1, 2, 3]


def test_threads_and_coroutines_run_side_by_side(mesh: Mesh) -> None:
    many = Many.options(max_concurrency=4, **at(mesh, "b")).remote()
    lattica.get(many.nap.remote(0), timeout=20)
    began = time.monotonic()
    assert len(set(lattica.get([many.nap.remote(1.0) for _ in range(4)], timeout=20))) == 4
    assert time.monotonic() - began < 3
    loop = Loop.options(**at(mesh, "c")).remote()
    lattica.get(loop.nap.remote(0), timeout=20)
    began = time.monotonic()
    assert lattica.get([loop.nap.remote(0.5) for _ in range(50)], timeout=20) == [0.5] * 50
    assert time.monotonic() - began < 10


def test_groups_names_and_arguments_fetched_ahead_work_from_afar(mesh: Mesh) -> None:
    grouped = Grouped.options(name="grouped", **at(mesh, "b")).remote()
    waits = grouped.wait.remote()
    value = lattica.put(np.ones(1 << 20, np.uint8))
    takes = [grouped.take.remote(value), grouped.take.remote(np.ones(1 << 20, np.uint8)), grouped.take.remote(b"small")]
    assert lattica.get(takes, timeout=20) == [1 << 20, 1 << 20, 5]
    assert lattica.wait([waits], timeout=0)[0] == []
    late = [grouped.take.options(concurrency_group="").remote(value), grouped.wait.remote()]
    elsewhere = list_names.options(scheduling_strategy=mesh.on("c"), num_cpus=0.1)
    assert eventually(lambda: "grouped" in lattica.get(elsewhere.remote(), timeout=20))
    assert "grouped" in lattica.util.list_named_actors()
    lattica.get(lattica.get_actor("grouped").open.remote(), timeout=20)
    assert lattica.get([waits, *late], timeout=20) == [True, 1 << 20, True]


def test_a_worker_elsewhere_ends_after_its_max_calls(mesh: Mesh) -> None:
    there = once.options(scheduling_strategy=mesh.on("b"), num_cpus=0.1)
    pids = lattica.get([there.remote() for _ in range(6)], timeout=30)
    assert len(set(pids)) == 6


def test_an_actor_ends_when_it_leaves_is_killed_or_forgotten(mesh: Mesh) -> None:
    counter = Counter.options(**at(mesh, "b")).remote()
    pid = lattica.get(counter.pid.remote(), timeout=20)
    counter.leave.remote()
    with pytest.raises(ActorDiedError):
        lattica.get(counter.add.remote(1), timeout=20)
    counter = Counter.options(**at(mesh, "b")).remote()
    pid = lattica.get(counter.pid.remote(), timeout=20)
    lattica.kill(counter)
    with pytest.raises(ActorDiedError):
        lattica.get(counter.add.remote(1), timeout=20)
    assert eventually(lambda: not os.path.exists(f"/proc/{pid}"), 5)
    counter = Counter.options(**at(mesh, "b")).remote()
    pid = lattica.get(counter.pid.remote(), timeout=20)
    ref = counter.add.remote(1)
    del counter
    assert lattica.get(ref, timeout=20) == 1
    assert eventually(lambda: not os.path.exists(f"/proc/{pid}"), 5)


def test_a_crashed_actor_is_restarted_as_often_as_said(mesh: Mesh) -> None:
    counter = Counter.options(max_restarts=1, max_task_retries=0, **at(mesh, "b")).remote(2)
    assert lattica.get(counter.add.remote(1), timeout=20) == 3
    with pytest.raises(ActorError):
        lattica.get(counter.crash.remote(), timeout=20)
    assert lattica.get(counter.add.remote(1), timeout=20) == 3
    with pytest.raises(ActorDiedError) as caught:
        lattica.get(counter.crash.remote(), timeout=20)
    assert "exit code 4" in str(caught.value)


def test_a_holder_on_a_third_node_meets_the_next_incarnation(mesh: Mesh) -> None:
    counter = Counter.options(max_restarts=2, **at(mesh, "b")).remote(2)
    holder = Counter.options(**at(mesh, "c")).remote()

    @lattica.remote
    class Keeper:
        def __init__(self, handle: Any) -> None:
            self.handle = handle

        def add(self, k: int) -> int:
            """A call on its way to a life that has just ended has no retries: it fails, and the next one meets the
            new life."""
            while True:
                try:
                    return lattica.get(self.handle.add.remote(k))
                except lattica.exceptions.ActorUnavailableError:
                    time.sleep(0.05)

    keeper = Keeper.options(**at(mesh, "c")).remote(counter)
    assert lattica.get(keeper.add.remote(1), timeout=20) == 3
    with pytest.raises(ActorError):
        lattica.get(counter.crash.remote(), timeout=20)
    assert lattica.get(keeper.add.remote(1), timeout=20) == 3
    del holder


def test_an_actor_is_restarted_elsewhere_when_its_node_is_killed(mesh: Mesh) -> None:
    mesh.begin("d", 1)
    mesh.all_see()
    counter = Counter.options(
        max_restarts=1, max_task_retries=3, num_cpus=0.1, scheduling_strategy=mesh.on("d", soft=True)
    ).remote(2)
    doomed = Counter.options(max_restarts=0, num_cpus=0.1, scheduling_strategy=mesh.on("d", soft=True)).remote(2)
    assert mesh.name_of(lattica.get(counter.where.remote(), timeout=20)) == "d"
    assert mesh.name_of(lattica.get(doomed.where.remote(), timeout=20)) == "d"
    mesh.kill("d")
    began = time.monotonic()
    assert lattica.get(counter.add.remote(1), timeout=40) == 3
    print(f"\n  restarted after {time.monotonic() - began:.1f} s")
    with pytest.raises(ActorDiedError, match="the connection with node"):
        lattica.get(doomed.add.remote(1), timeout=20)
    assert lattica.get(counter.where.remote(), timeout=20) != mesh.ids["d"]
