"""Ends: of drivers, of nodes that run others' tasks, of what these left behind."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from tests.e2e.conftest import Script, Sessions, eventually
from tests.e2e.far import Mesh, far_mesh, node_id, traces_of
from tests.e2e.machines import Machine

STALL_MAX_S = 5.0


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("far"), a=1, b=1, c=1) as mesh:
        yield mesh


@lattica.remote
def step(number: int, seconds: float) -> tuple[int, str]:
    time.sleep(seconds)
    return number, node_id()


@lattica.remote
def total(value: Any) -> Any:
    return value + 1


def longest_stall(refs: list[Any]) -> tuple[list[Any], float]:
    """All results, and the longest time in which none came."""
    left, last, longest, found = list(refs), time.monotonic(), 0.0, []
    while left:
        ready, left = lattica.wait(left, num_returns=1, timeout=30)
        assert ready, f"{len(left)} have not come"
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        found += lattica.get(ready)
    return found, longest


def test_2000_far_tasks_leave_nothing(mesh: Mesh) -> None:
    value = np.zeros(200 << 10, np.uint8)
    lattica.get([total.options(scheduling_strategy=mesh.on(name)).remote(value) for name in "bc"], timeout=20)
    nodes = mesh.nodes.values()

    def empty() -> bool:
        return all((busy, held, used) == (0, 0, 0) for _, busy, _, held, used in traces_of(nodes).values())

    assert eventually(empty, 12, 0.5), traces_of(nodes)
    before = traces_of(nodes)
    start = time.monotonic()
    for _ in range(20):
        refs = [total.options(scheduling_strategy=mesh.on("bc"[k % 2])).remote(value) for k in range(100)]
        for one in lattica.get(refs, timeout=60):
            assert one[0] == 1
        del one, refs
    began = time.monotonic()
    assert eventually(lambda: traces_of(nodes) == before, 12, 0.2), (before, traces_of(nodes))
    print(f"\n  2,000 tasks took {began - start:.1f} s, and nothing was left {time.monotonic() - began:.1f} s later")


def test_driver_end_leaves_nothing(mesh: Mesh, script: Script, tmp_path: Path) -> None:
    text = f"""
import lattica, numpy as np, os, time, sys
lattica.init(address="auto")
from lattica.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

@lattica.remote(num_cpus=0.1)
def say(value):
    return value

@lattica.remote(num_cpus=0.1)
def forever():
    time.sleep(600)

@lattica.remote(num_cpus=0.1)
class Actor:
    def keep(self, value):
        self.value = value
        return lattica.put(value)

there = {[mesh.ids["b"], mesh.ids["c"]]!r}
value = np.zeros(5 << 20, np.uint8)
refs = [say.options(scheduling_strategy=On(one, False)).remote(value) for one in there]
actors = [Actor.options(scheduling_strategy=On(one, False)).remote() for one in there]
kept = lattica.get([actor.keep.remote(value) for actor in actors])
lattica.get(refs)
more = [forever.options(scheduling_strategy=On(one, False)).remote() for one in there]
time.sleep(0.5)
print("ready", flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), 9)
"""
    nodes = mesh.nodes.values()
    before = work_of(nodes)
    for how in ("end", "kill"):
        process = script.start(text, how, env={"LATTICA_DATA_DIR": str(mesh.nodes["a"].data_dir)})
        out, err = process.communicate(timeout=40)
        assert "ready" in out, err
        began = time.monotonic()
        assert eventually(lambda: work_of(nodes) == before, 5, 0.1), (before, work_of(nodes))
        print(f"\n  {how}: nothing is left {time.monotonic() - began:.1f} s after it")


def work_of(nodes: Iterable[Machine]) -> dict[str, tuple[int, int, int, int]]:
    """Traces, but for what stands for processes that may be heard of yet."""
    return {name: (*trace[:2], *trace[3:]) for name, trace in traces_of(nodes).items()}


def test_two_drivers_share(mesh: Mesh, script: Script) -> None:
    text = """
import lattica, time
lattica.init(address="auto")
@lattica.remote
def step(k):
    time.sleep(0.1)
    return k, lattica.get_runtime_context().get_node_id()
found = lattica.get([step.remote(k) for k in range(30)], timeout=60)
assert [k for k, _ in found] == list(range(30))
print(len({n for _, n in found}))
"""
    process = script.start(text, env={"LATTICA_DATA_DIR": str(mesh.nodes["b"].data_dir)})
    found = lattica.get([step.remote(k, 0.1) for k in range(30)], timeout=60)
    assert [k for k, _ in found] == list(range(30))
    out, err = process.communicate(timeout=40)
    assert process.returncode == 0, err
    print(out, Counter(mesh.name_of(n) for _, n in found))


def test_stop_moves_tasks(mesh: Mesh) -> None:
    refs = [step.remote(k, 0.2) for k in range(40)]
    threading.Timer(1.0, lambda: mesh.nodes["c"].run("stop", "--force")).start()
    found, stall = longest_stall(refs)
    assert sorted(k for k, _ in found) == list(range(40))
    print("stall", stall, Counter(mesh.name_of(n) for _, n in found))
    print(mesh.nodes["a"].states())
    assert stall < STALL_MAX_S
    mesh.nodes.pop("c")
    assert eventually(lambda: mesh.nodes["a"].states().get("c") in (None, "left"), 10), mesh.nodes["a"].states()


def test_60_tasks_while_a_node_is_killed(mesh: Mesh) -> None:
    mesh.begin("d", 1)
    mesh.all_see()
    refs = [step.remote(k, 0.2) for k in range(60)]
    timer = threading.Timer(1.5, mesh.kill, ["d"])
    timer.start()
    found, stall = longest_stall(refs)
    timer.join()
    assert sorted(k for k, _ in found) == list(range(60))
    print("stall", stall, Counter(mesh.name_of(n) for _, n in found))
    assert stall < STALL_MAX_S
