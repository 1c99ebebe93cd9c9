"""Tasks inside tasks: whoever waits gives its place to those it waits for, at any depth and in any shape."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.exceptions import WorkerCrashedError
from tests.e2e.conftest import eventually


@lattica.remote
def add(a: int, b: int) -> int:
    return a + b


@lattica.remote
def tree(depth: int, width: int) -> int:
    return 1 + sum(lattica.get([tree.remote(depth - 1, width) for _ in range(width)])) if depth else 1


@lattica.remote
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self, k: int = 1) -> int:
        self.count += k
        return self.count


@pytest.mark.usefixtures("two_cpus")
def test_a_tree_of_tasks_ends_on_two_cpus() -> None:
    assert lattica.get(tree.remote(3, 3), timeout=30) == 1 + 3 + 9 + 27


@pytest.mark.usefixtures("two_cpus")
def test_thirty_parents_wait_for_their_children_at_once() -> None:
    @lattica.remote
    def parent(k: int) -> int:
        return sum(lattica.get([add.remote(k, j) for j in range(3)]))

    assert lattica.get([parent.remote(k) for k in range(30)], timeout=30) == [3 * k + 3 for k in range(30)]


@pytest.mark.usefixtures("two_cpus")
def test_a_task_takes_results_as_they_come() -> None:
    @lattica.remote
    def collect() -> list[int]:
        refs, order = [add.remote(k, 0) for k in range(20)], []
        while refs:
            ready, refs = lattica.wait(refs, timeout=10)
            order += lattica.get(ready)
        return order

    assert sorted(lattica.get(collect.remote(), timeout=20)) == list(range(20))


@pytest.mark.usefixtures("two_cpus")
def test_refs_travel_through_tasks_before_they_have_values() -> None:
    @lattica.remote
    def late(k: int) -> np.ndarray:
        time.sleep(0.1)
        return np.full(50_000, k)

    @lattica.remote
    def make(k: int) -> list[Any]:
        return [late.remote(k)]

    @lattica.remote
    def use(boxes: list[Any]) -> int:
        return sum(int(lattica.get(lattica.get(box)[0])[-1]) for box in boxes)

    assert lattica.get(use.remote([make.remote(k) for k in range(4)]), timeout=20) == 6


@pytest.mark.usefixtures("two_cpus")
def test_tasks_and_actors_call_each_other() -> None:
    @lattica.remote
    class Manager:
        def run(self, counter: Any, n: int) -> int:
            lattica.get([bump.remote(counter) for _ in range(n)])
            return lattica.get(counter.add.remote(0))

    @lattica.remote
    def bump(counter: Any) -> int:
        return lattica.get(counter.add.remote())

    assert lattica.get(Manager.remote().run.remote(Counter.remote(), 20), timeout=20) == 20


@pytest.mark.usefixtures("two_cpus")
def test_an_actor_made_in_a_task_lives_as_long_as_its_handle() -> None:
    @lattica.remote
    def make() -> Any:
        counter = Counter.remote()
        lattica.get(counter.add.remote(5))
        return counter

    counter = lattica.get(make.remote())
    time.sleep(0.2)
    assert lattica.get(counter.add.remote(1)) == 6


@pytest.mark.usefixtures("two_cpus")
def test_threads_and_coroutines_inside_a_task_submit_and_wait() -> None:
    @lattica.remote
    def threads() -> int:
        sums: list[int] = []
        workers = [
            threading.Thread(target=lambda k=k: sums.append(lattica.get(add.options(num_cpus=0).remote(k, 1))))
            for k in range(5)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(sums)

    @lattica.remote
    def coroutines() -> int:
        async def both() -> int:
            return sum(await asyncio.gather(*[add.options(num_cpus=0).remote(k, 1) for k in range(5)]))

        return asyncio.run(both())

    assert lattica.get([threads.remote(), coroutines.remote()], timeout=20) == [15, 15]


@pytest.mark.usefixtures("two_cpus")
def test_what_a_task_submits_and_does_not_wait_for_runs_after_it_has_ended(tmp_path: Path) -> None:
    @lattica.remote
    def touch(path: str) -> None:
        time.sleep(0.1)
        Path(path).touch()

    @lattica.remote
    def start(folder: str) -> None:
        for k in range(4):
            touch.remote(f"{folder}/{k}")

    lattica.get(start.remote(str(tmp_path)))
    assert eventually(lambda: len(list(tmp_path.iterdir())) == 4)


def test_a_worker_is_not_recycled_while_what_its_tasks_submitted_goes_on(fresh: Callable[..., Any]) -> None:
    """It would become an actor, and end with it, and its children's results would have no owner any more."""
    fresh(num_cpus=1)

    @lattica.remote(num_cpus=0)
    def late(gate: Any) -> str:
        time.sleep(0.3)
        return "late"

    @lattica.remote
    def start(box: list[Any]) -> list[Any]:
        return [late.remote(None), late.remote(box[0]), os.getpid()]

    gate = lattica.remote(num_cpus=0)(time.sleep).remote(0.3)
    running, waiting, pid = lattica.get(start.remote([gate]))
    for _ in range(3):
        lattica.get(Counter.remote().add.remote())  # whose worker ends with its handle
    time.sleep(0.1)
    assert os.path.exists(f"/proc/{pid}")
    assert lattica.get([running, waiting], timeout=5) == ["late", "late"]
    time.sleep(0.1)
    actors = [Counter.remote() for _ in range(3)]
    lattica.get([actor.add.remote() for actor in actors])


@pytest.mark.usefixtures("two_cpus")
def test_a_parent_that_dies_waiting_is_run_again_and_its_result_comes_once(tmp_path: Path) -> None:
    @lattica.remote
    def parent(path: str) -> int:
        first = not Path(path).exists()
        Path(path).touch()
        total = lattica.get(add.remote(1, 2))
        if first:
            os.kill(os.getpid(), signal.SIGKILL)
        return total

    assert lattica.get(parent.remote(str(tmp_path / "ran")), timeout=20) == 3
    with pytest.raises(WorkerCrashedError):
        lattica.get(parent.options(max_retries=0).remote(str(tmp_path / "once")), timeout=20)


@pytest.mark.usefixtures("two_cpus")
def test_a_ref_whose_owner_died_says_so_and_a_value_that_exists_is_still_there() -> None:
    @lattica.remote
    class Owner:
        def make(self) -> list[Any]:
            return [lattica.put(np.full(100_000, 7)), lattica.remote(time.sleep).options(num_cpus=0).remote(60)]

        def die(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    owner = Owner.remote()
    kept, pending = lattica.get(owner.make.remote())
    with pytest.raises(lattica.exceptions.RayActorError):
        lattica.get(owner.die.remote(), timeout=5)
    assert (lattica.get(kept, timeout=5) == 7).all()
    with pytest.raises(lattica.exceptions.OwnerDiedError):
        lattica.get(pending, timeout=5)


def test_a_waiting_parent_keeps_its_gpus_and_custom_resources_and_lends_its_cpu(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=1, num_gpus=1, resources={"slot": 1})

    @lattica.remote
    def free() -> dict[str, float]:
        return lattica.available_resources()

    @lattica.remote(num_cpus=1, num_gpus=1, resources={"slot": 1})
    def parent() -> dict[str, float]:
        return lattica.get(free.remote())

    while_it_waits = lattica.get(parent.remote(), timeout=10)
    assert while_it_waits.get("GPU", 0) == 0 and while_it_waits.get("slot", 0) == 0
    assert while_it_waits.get("CPU", 0) == 0, "the child has it"


def test_a_task_that_blocks_again_and_again_gets_its_cpu_back_each_time(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=1)

    @lattica.remote
    def often(n: int) -> int:
        return sum(lattica.get(add.remote(k, 0)) for k in range(n))

    assert lattica.get([often.remote(30) for _ in range(4)], timeout=30) == [435] * 4
    assert eventually(lambda: lattica.available_resources().get("CPU") == 1)
