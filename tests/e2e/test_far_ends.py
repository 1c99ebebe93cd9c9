"""Ends: of drivers, of nodes that run others' tasks, of what these left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import lattica
from tests.e2e.churn import STALL_MAX_S, longest_stall, step
from tests.e2e.conftest import Script, Sessions, eventually
from tests.e2e.far import Mesh, far_mesh, traces_of
from tests.e2e.machines import Machine


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("far"), a=1, b=1, c=1) as mesh:
        yield mesh


def test_a_drivers_end_leaves_nothing_on_any_node(mesh: Mesh, script: Script, tmp_path: Path) -> None:
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


def test_drivers_on_two_nodes_share_the_mesh(mesh: Mesh, script: Script) -> None:
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
    assert [k for k, _, _ in found] == list(range(30))
    out, err = process.communicate(timeout=40)
    assert process.returncode == 0, err
    assert int(out) > 1 and len({where for _, where, _ in found}) > 1, "each had but its own node"


def test_the_tasks_of_a_stopped_node_move(mesh: Mesh) -> None:
    refs = [step.remote(k, 0.2) for k in range(40)]
    threading.Timer(1.0, lambda: mesh.nodes["c"].run("stop", "--force")).start()
    found, stall = longest_stall(refs)
    assert sorted(k for k, _, _ in found) == list(range(40))
    print(f"\n  longest stall {stall:.2f} s")
    assert stall < STALL_MAX_S
    mesh.nodes.pop("c")
    assert eventually(lambda: mesh.nodes["a"].states().get("c") in (None, "left"), 10), mesh.nodes["a"].states()


def test_60_tasks_come_though_a_node_is_killed(mesh: Mesh) -> None:
    mesh.begin("d", 1)
    mesh.all_see()
    refs = [step.remote(k, 0.2) for k in range(60)]
    timer = threading.Timer(1.5, mesh.kill, ["d"])
    timer.start()
    found, stall = longest_stall(refs)
    timer.join()
    assert sorted(k for k, _, _ in found) == list(range(60))
    print(f"\n  longest stall {stall:.2f} s")
    assert stall < STALL_MAX_S
