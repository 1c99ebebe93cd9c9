"""What docs/semantics.md says of nodes that are silent, revoked, drained or lost, where no other test bears it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.errors import ActorDiedError, ObjectLostError, WorkerCrashedError
from tests.e2e.conftest import Script, Sessions, eventually
from tests.e2e.far import Mesh, far_mesh, node_id, state_of

DEAD_S = 40.0  # for a death to be believed and all that follows, on a machine with other work


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Its tests come in this order: after two deaths within a minute the rest is a smaller side."""
    with far_mesh(tmp_path_factory.mktemp("semantics"), a=1, b=1, c=1, d=1) as mesh:
        yield mesh


@lattica.remote(num_cpus=0.1)
def run(path: str, seconds: float) -> str:
    with open(path, "a") as file:
        file.write("run\n")
    time.sleep(seconds)
    return node_id()


@lattica.remote(num_cpus=0.1)
class Keeper:
    def __init__(self) -> None:
        self.n = 0

    def add(self) -> int:
        self.n += 1
        return self.n

    def where(self) -> tuple[str, int]:
        return node_id(), os.getpid()

    def large(self) -> Any:
        return np.full(1 << 20, 7, np.uint8)

    def __lattica_checkpoint__(self) -> int:
        return self.n

    def __lattica_restore__(self, state: int) -> None:
        self.n = state


def test_tasks_of_a_silent_node_run_elsewhere_after_3_s_and_those_without_retries_end(
    mesh: Mesh, tmp_path: Path
) -> None:
    """Its workers go on meanwhile, so what is retried runs twice; what may not be runs once."""
    twice, once = tmp_path / "twice", tmp_path / "once"
    there = mesh.on("b", soft=True)
    ref = run.options(scheduling_strategy=there).remote(str(twice), 2.0)
    lone = run.options(scheduling_strategy=there, max_retries=0).remote(str(once), 2.0)
    assert eventually(lambda: twice.exists() and once.exists(), 10)
    pid = mesh.nodes["b"].pid
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises(WorkerCrashedError, match="silent for 3 s"):
            lattica.get(lone, timeout=20)
        print(f"\n  the end of a task without retries is told after {time.monotonic() - began:.1f} s of silence")
        assert mesh.name_of(lattica.get(ref, timeout=20)) != "b"
        print(f"  a task of 2 s is run elsewhere and back after {time.monotonic() - began:.1f} s")
    finally:
        os.kill(pid, signal.SIGCONT)
    mesh.all_see()
    assert (twice.read_text().count("run"), once.read_text().count("run")) == (2, 1)


def test_an_actor_of_a_silent_node_goes_on_elsewhere_with_its_checkpoint_and_the_old_one_ends(mesh: Mesh) -> None:
    there = mesh.on("b", soft=True)
    keeper = Keeper.options(scheduling_strategy=there, max_restarts=1, max_task_retries=-1, checkpoint_every=0).remote()
    mortal = Keeper.options(scheduling_strategy=there).remote()
    assert lattica.get([keeper.add.remote() for _ in range(3)], timeout=20) == [1, 2, 3]
    host, old = lattica.get(keeper.where.remote(), timeout=20)
    assert mesh.name_of(host) == "b" == mesh.name_of(lattica.get(mortal.where.remote(), timeout=20)[0])
    time.sleep(0.5)  # the checkpoint is on its way
    pid = mesh.nodes["b"].pid
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        assert lattica.get(keeper.add.remote(), timeout=DEAD_S) == 4
        print(f"\n  restarted after {time.monotonic() - began:.1f} s of silence")
        assert mesh.name_of(lattica.get(keeper.where.remote(), timeout=20)[0]) != "b"
        with pytest.raises(ActorDiedError):
            lattica.get(mortal.add.remote(), timeout=20)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert eventually(lambda: not os.path.exists(f"/proc/{old}"), 20), "nobody calls it, and it holds a CPU"
    mesh.all_see()
    assert lattica.get(keeper.add.remote(), timeout=20) == 5


PROGRAM = """
import lattica, sys, time
lattica.init(address="auto")
from lattica.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

@lattica.remote(num_cpus=0.1)
def forever():
    time.sleep(600)

@lattica.remote(num_cpus=0.1)
class Actor:
    def name(self):
        return "actor"

if sys.argv[2]:
    stays = Actor.options(name=sys.argv[2], namespace="s", lifetime="detached", max_restarts=-1, num_cpus=0).remote()
    lattica.get(stays.name.remote())
actor = Actor.options(scheduling_strategy=On(sys.argv[1], False)).remote()
ref = forever.options(scheduling_strategy=On(sys.argv[1], False)).remote()
print(lattica.get(actor.name.remote()), flush=True)
time.sleep(600)
"""


def begin(mesh: Mesh, script: Script, name: str, detached: str = "") -> Any:
    """A program of that node's, with work on b, and a detached actor if that has a name."""
    program = script.start(PROGRAM, mesh.ids["b"], detached, env={"LATTICA_DATA_DIR": str(mesh.nodes[name].data_dir)})
    assert program.stdout is not None and program.stdout.readline() == "actor\n"
    assert eventually(lambda: busy(mesh, "b") == 2, 10)
    return program


def test_what_a_revoked_node_runs_goes_on_elsewhere_and_what_runs_for_it_ends(
    mesh: Mesh, script: Script, tmp_path: Path
) -> None:
    program, there = begin(mesh, script, "c", "stays"), mesh.on("c", soft=True)
    keeper = Keeper.options(scheduling_strategy=there, max_restarts=1, max_task_retries=-1).remote()
    assert mesh.name_of(lattica.get(keeper.where.remote(), timeout=20)[0]) == "c"
    stays = lattica.get_actor("stays", "s").name.options(max_task_retries=-1)
    ran = tmp_path / "ran"
    task = run.options(scheduling_strategy=there).remote(str(ran), 5.0)
    assert eventually(ran.exists, 10)
    mesh.nodes["a"].ok("revoke", "c")
    began = time.monotonic()
    assert eventually(lambda: mesh.nodes["a"].states().get("c") is None, 10)
    assert mesh.name_of(lattica.get(keeper.where.remote(), timeout=DEAD_S)[0]) != "c"
    print(f"\n  an actor of a node that was revoked is elsewhere after {time.monotonic() - began:.1f} s")
    assert eventually(lambda: ran.read_text().count("run") == 2, DEAD_S)
    print(f"  a task is run again after {time.monotonic() - began:.1f} s at most")
    del keeper
    assert mesh.name_of(lattica.get(task, timeout=DEAD_S)) != "c"
    assert lattica.get(stays.remote(), timeout=DEAD_S) == "actor"
    print(f"  a detached actor answers again after {time.monotonic() - began:.1f} s")
    lattica.kill(lattica.get_actor("stays", "s"))
    assert eventually(lambda: busy(mesh, "b") == 0, DEAD_S), state_of(mesh.nodes["b"], "workers")
    program.kill()
    mesh.nodes.pop("c").ok("stop", "--force")


def test_what_an_actor_returned_is_lost_with_its_node_and_not_made_again(mesh: Mesh) -> None:
    keeper = Keeper.options(scheduling_strategy=mesh.on("d"), max_task_retries=3).remote()
    ref = keeper.large.remote()
    assert lattica.wait([ref], timeout=20, fetch_local=False)[0] == [ref]
    mesh.kill("d")
    with pytest.raises(ObjectLostError, match="the connection with node"):
        lattica.get(ref, timeout=DEAD_S)


def test_work_for_a_driver_ends_everywhere_when_its_node_is_killed(mesh: Mesh, script: Script) -> None:
    mesh.begin("e", 1)
    mesh.all_see()
    program = begin(mesh, script, "e")
    mesh.kill("e")
    began = time.monotonic()
    assert eventually(lambda: busy(mesh, "b") == 0, DEAD_S), state_of(mesh.nodes["b"], "workers")
    print(f"\n  its work has ended {time.monotonic() - began:.1f} s later")
    program.kill()


def test_an_actor_of_a_drained_node_goes_on_elsewhere_at_once_which_costs_a_restart(mesh: Mesh) -> None:
    there = mesh.on("b", soft=True)
    keeper = Keeper.options(scheduling_strategy=there, max_restarts=1, max_task_retries=-1, checkpoint_every=0).remote()
    mortal = Keeper.options(scheduling_strategy=there).remote()
    assert lattica.get([keeper.add.remote(), mortal.add.remote()], timeout=20) == [1, 1]
    assert mesh.name_of(lattica.get(keeper.where.remote(), timeout=20)[0]) == "b"
    assert mesh.name_of(lattica.get(mortal.where.remote(), timeout=20)[0]) == "b"
    began = time.monotonic()
    mesh.nodes.pop("b").ok("drain", "--no-wait")
    with pytest.raises(ActorDiedError):
        while time.monotonic() < began + DEAD_S:
            lattica.get(mortal.add.remote(), timeout=20)
            time.sleep(0.05)
    assert lattica.get(keeper.add.remote(), timeout=20) == 2
    print(f"\n  an actor of a node that drains is elsewhere after {time.monotonic() - began:.1f} s")


def busy(mesh: Mesh, name: str) -> int:
    """Workers of a node that run something."""
    return sum(worker["state"] != "idle" for worker in state_of(mesh.nodes[name], "workers"))
