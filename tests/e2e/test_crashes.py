"""Workers die, drivers die, the node dies: what is charged to whom, what goes on, and what is left behind."""

from __future__ import annotations

import asyncio
import glob
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.actors import current
from lattica.exceptions import NodeDiedError, OwnerDiedError, RayActorError, WorkerCrashedError
from tests.e2e.chaos import note, storm_of_calls, storm_of_tasks
from tests.e2e.conftest import eventually, processes_of
from tests.e2e.footprint import books
from tests.e2e.sample_actors import Counter, Gate, Notes


def alive(pid: int) -> bool:
    """Whether the process lives. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- workers killed at random ----------------------------------------------------------------------------------------


@pytest.mark.chaos
def test_tasks_under_fire_are_not_lost_and_run_no_more_often_than_deaths_explain(
    fresh: Callable[..., Any], tmp_path: Path
) -> None:
    fresh(num_cpus=2)
    print(storm_of_tasks(tmp_path / "runs", tasks=400, seconds=0.01, kill_every_s=0.1, kills=20))


@pytest.mark.chaos
def test_tiny_tasks_in_deep_queues_under_fire_are_not_lost(fresh: Callable[..., Any], tmp_path: Path) -> None:
    fresh(num_cpus=2)
    # a new worker begins with the task that was charged last, and on a busy machine lives no longer than that
    print(storm_of_tasks(tmp_path / "runs", tasks=2_500, seconds=0.0, kill_every_s=0.05, max_retries=25, kills=25))


@pytest.mark.chaos
def test_calls_under_fire_are_all_answered_in_order(fresh: Callable[..., Any], tmp_path: Path) -> None:
    fresh(num_cpus=2)
    print(storm_of_calls(tmp_path, actors=3, calls=150, seconds=0.005, kill_every_s=0.15, kills=6))


def test_what_had_finished_before_its_worker_died_is_not_run_again(fresh: Callable[..., Any], tmp_path: Path) -> None:
    """Quick tasks are answered in batches. The worker dies in the midst of one: those that had finished are in the page
    that outlives it."""
    fresh(num_cpus=1)
    path = str(tmp_path / "runs")

    @lattica.remote
    def tick(number: int, deadly: bool = False) -> int:
        note(path, str(number))
        if deadly and Path(path).read_text().split().count(str(number)) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    lattica.get([tick.remote(-1) for _ in range(200)])
    refs = [tick.remote(number, number % 37 == 36) for number in range(300)]
    assert lattica.get(refs, timeout=20) == list(range(300))
    runs = [int(line) for line in Path(path).read_text().split() if line != "-1"]
    assert sorted(runs) == sorted([*range(300), *range(36, 300, 37)]), "only those that died ran twice"


def test_a_killed_workers_subprocesses_die_with_it(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=2)

    @lattica.remote(max_retries=0)
    def begin(die: bool) -> Any:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        lattica.get(notes.add.remote((os.getpid(), child.pid, pid)))
        if die:
            os._exit(1)
        time.sleep(600)

    notes = Notes.remote()
    begin.remote(True)
    running = begin.remote(False)
    assert eventually(lambda: len(lattica.get(notes.all.remote())) == 2)
    _, (worker, *children) = sorted(lattica.get(notes.all.remote()), key=lambda pids: alive(pids[0]))
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(WorkerCrashedError, match="SIGKILL"):
        lattica.get(running, timeout=5)
    everybody = [pid for pids in lattica.get(notes.all.remote()) for pid in pids]
    assert eventually(lambda: not any(map(alive, everybody))), children


def test_values_outlive_the_worker_that_made_them(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=2)
    gate = Gate.remote()

    @lattica.remote
    def wait_for(gate: Any) -> bool:
        return lattica.get(gate.pass_through.remote())

    @lattica.remote
    class Maker:
        def make(self) -> Any:
            return np.arange(100_000)

        def put(self) -> Any:
            return [lattica.put(np.arange(100_000)), lattica.put("small")]

        def owe(self) -> Any:
            return [wait_for.remote(gate)]

        def pid(self) -> int:
            return os.getpid()

    maker = Maker.remote()
    made, (put, small) = maker.make.remote(), lattica.get(maker.put.remote())
    (owed,) = lattica.get(maker.owe.remote())
    lattica.wait([made])
    os.kill(lattica.get(maker.pid.remote()), signal.SIGKILL)
    assert eventually(lambda: _dies(maker))
    for ref in (made, put):
        assert np.array_equal(lattica.get(ref, timeout=5), np.arange(100_000))
    assert lattica.get(small, timeout=5) == "small"
    with pytest.raises(OwnerDiedError):
        lattica.get(owed, timeout=5)


def _dies(handle: Any) -> bool:
    try:
        lattica.get(handle.pid.remote(), timeout=5)
    except RayActorError:
        return True
    return False


def test_a_dead_workers_claims_on_objects_die_with_it(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=2)
    keeper = Notes.remote()
    ref = lattica.put(np.ones(1_000_000))
    lattica.get(keeper.add.remote([ref]))
    del ref
    used = lambda: current.get().state("memory")["objects"]  # noqa: E731
    assert used() == 1
    lattica.kill(keeper)
    assert eventually(lambda: used() == 0)


# -- the driver ------------------------------------------------------------------------------------------------------

ARENA = "/memfd:lattica-arena"
BUSY_DRIVER = """
import os, subprocess, sys, threading, time
import numpy as np
import lattica

lattica.init(num_cpus=2)

@lattica.remote
class Actor:
    def begin(self):
        self.child = subprocess.Popen(["sleep", "600"])
        self.kept = lattica.put(np.ones(3_000_000))
    async def wait(self):
        import asyncio
        await asyncio.sleep(600)

@lattica.remote
def task(ref):
    subprocess.Popen(["sleep", "600"])
    time.sleep(600)

actors = [Actor.options(name=f"a{n}").remote() for n in range(3)]
lattica.get([actor.begin.remote() for actor in actors])
large = lattica.put(np.ones(10_000_000))
waiting = [task.remote(large) for _ in range(4)] + [actor.wait.remote() for actor in actors]
time.sleep(0.5)
print("ready", flush=True)
lattica.get(waiting)
"""


def holders_of(arena: str) -> list[str]:
    """Processes that have this memory mapped: while there is one, the kernel keeps it."""
    holders = []
    for maps in glob.glob("/proc/[0-9]*/maps"):
        try:
            if any(line.split()[4] == arena for line in Path(maps).read_text().splitlines() if ARENA in line):
                holders.append(maps.split("/")[2])
        except OSError:  # it ended meanwhile
            continue
    return holders


def test_a_killed_driver_leaves_no_process_and_no_memory(script: Any, sessions: Any) -> None:
    sessions.end()
    before = set(processes_of(os.environ["LATTICA_TEST_RUN"]))
    driver = script.start(BUSY_DRIVER)
    assert driver.stdout.readline() == "ready\n", driver.communicate()
    (arena,) = {line.split()[4] for line in Path(f"/proc/{driver.pid}/maps").read_text().splitlines() if ARENA in line}
    assert len(holders_of(arena)) >= 5
    assert len(processes_of(os.environ["LATTICA_TEST_RUN"])) - len(before) >= 12
    driver.kill()
    driver.wait()
    began = time.monotonic()
    assert eventually(lambda: set(processes_of(os.environ["LATTICA_TEST_RUN"])) <= before)
    assert holders_of(arena) == []
    assert time.monotonic() - began < 5


# -- the node --------------------------------------------------------------------------------------------------------


def test_every_way_of_waiting_ends_within_a_second_of_the_nodes_death(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=2)
    gate = Gate.options(max_concurrency=10).remote()
    boxed = lattica.get(lattica.put([gate.pass_through.remote()]))[0]
    refs = [gate.pass_through.remote() for _ in range(4)]
    future, ended = refs[0].future(), {}

    @lattica.remote
    def hand_on(ref: Any) -> Any:
        return ref

    after = hand_on.remote(refs[3])

    async def awaits() -> Any:
        return await refs[1]

    ways: dict[str, Callable[[], Any]] = {
        "wait": lambda: lattica.get(lattica.wait([refs[2]], timeout=20)[0]),
        "await": lambda: asyncio.run(awaits()),
        "future": lambda: future.result(timeout=20),
        "get": lambda: lattica.get(refs, timeout=20),
        "dependent": lambda: lattica.get(after, timeout=20),
        "boxed": lambda: lattica.get(boxed, timeout=20),
    }

    def wait(name: str, way: Callable[[], Any]) -> None:
        try:
            way()
        except BaseException as error:
            ended[name] = time.monotonic(), error

    threads = [threading.Thread(target=wait, args=item) for item in ways.items()]
    for thread in threads:
        thread.start()
    lattica.get(gate.inside.remote())
    node = current.get().state("status")["node"]["pid"]
    began = time.monotonic()
    os.kill(node, signal.SIGKILL)
    for thread in threads:
        thread.join(20)
    assert {name: type(error).__mro__[1] for name, (_, error) in ended.items()} == dict.fromkeys(ways, NodeDiedError)
    late = {name: at - began for name, (at, _) in ended.items() if at - began > 1}
    assert not late


def test_after_the_nodes_death_every_new_wish_fails_at_once(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=2)
    counter, kept = Counter.remote(), lattica.put(np.ones(1_000_000))
    box = lattica.put([lattica.put("inner"), counter])
    lattica.get(counter.add.remote())
    node = current.get().state("status")["node"]["pid"]
    os.kill(node, signal.SIGKILL)
    assert eventually(lambda: current.get().node_died_at is not None)
    wishes: list[Callable[[], Any]] = [
        lambda: lattica.get(counter.add.remote()),
        lambda: lattica.get(Counter.remote().add.remote()),
        lambda: lattica.get(lattica.get(Counter.options(name="x").remote().add.remote())),
        lambda: lattica.get_actor("x"),
        lambda: lattica.available_resources(),
        lambda: lattica.put(np.ones(10_000_000)),
        lambda: lattica.get(counter.add.remote(lattica.put(1))),
    ]
    for wish in wishes:
        began = time.monotonic()
        with pytest.raises(NodeDiedError):
            wish()
        assert time.monotonic() - began < 5
    lattica.kill(counter)
    lattica.cancel(counter.add.remote())
    assert lattica.get(kept).sum() == 1_000_000, "what is mapped stays readable"
    assert lattica.get(lattica.get(box)[0]) == "inner"
    fresh(num_cpus=1)  # sweeps away the folder that the dead node left


# -- results that nobody hears of


def die_between_seal_and_reply() -> None:
    """In a worker: the next large result lies in the arena, the node knows whose it is, and then nothing more comes."""
    runtime = current.get()
    hand_over = runtime.objects.hand_over

    def and_die(*args: Any) -> Any:
        hand_over(*args)
        runtime.reactor.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    runtime.objects.hand_over = and_die  # type: ignore[method-assign]


def objects_at_the_node() -> int:
    count: int = current.get().state("status")["memory"]["objects"]
    return count


@lattica.remote
def large_then_small(path: str, then: Any) -> Any:
    """`then`: what the second attempt makes."""
    if os.path.exists(path):
        return then
    Path(path).touch()
    die_between_seal_and_reply()
    return bytes(1 << 20)


@lattica.remote(num_cpus=0)
def await_it(refs: list[Any]) -> Any:
    return lattica.get(refs[0])


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("then", [7, bytes(1 << 20)], ids=["small", "large"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_result_whose_maker_died_before_it_replied_is_not_kept(tmp_path: Path, then: Any, shared: bool) -> None:
    before = objects_at_the_node()
    made = large_then_small.remote(str(tmp_path / "ran"), then)
    waiter = await_it.remote([made]) if shared else None
    assert lattica.get(made, timeout=10) == then
    if waiter is not None:
        assert lattica.get(waiter, timeout=10) in (then, bytes(1 << 20)), "it may have read the first attempt's"
    del made, waiter
    assert eventually(lambda: objects_at_the_node() <= before), f"{objects_at_the_node()} objects, {before} before"


@lattica.remote(max_retries=0)
def large_or_dead(number: int) -> Any:
    """In one lease one after the other, since they are quick."""
    if number < 0:
        os._exit(1)
    return np.full(200_000, number, np.uint8)


def test_large_results_that_had_finished_when_their_worker_died_are_held_as_any(fresh: Callable[..., Any]) -> None:
    """Their replies were on its page, and nobody had told the node of the bytes: they were read, and held by nobody."""
    fresh(num_cpus=1)
    for _ in range(3):
        lattica.get([large_or_dead.remote(0) for _ in range(30)])
        refs = [large_or_dead.remote(number) for number in (1, 2, 3, 4, -1)]
        assert [int(lattica.get(ref)[-1]) for ref in refs[:4]] == [1, 2, 3, 4]
        with pytest.raises(WorkerCrashedError):
            lattica.get(refs[4])
    del refs
    assert eventually(lambda: not books()), books()


@pytest.mark.usefixtures("two_cpus")
def test_a_failed_task_or_call_leaves_nothing_of_what_it_made(tmp_path: Path) -> None:
    @lattica.remote
    class Maker:
        def make(self, die: bool) -> bytes:
            if die:
                die_between_seal_and_reply()
            return bytes(1 << 20)

    before = objects_at_the_node()
    with pytest.raises(WorkerCrashedError):
        lattica.get(large_then_small.options(max_retries=0).remote(str(tmp_path / "ran"), None), timeout=10)
    maker = Maker.remote()
    kept = lattica.get(maker.make.remote(False), timeout=10)
    with pytest.raises(RayActorError):
        lattica.get(maker.make.remote(True), timeout=10)
    assert kept == bytes(1 << 20)
    del maker, kept
    assert eventually(lambda: objects_at_the_node() <= before), f"{objects_at_the_node()} objects, {before} before"
