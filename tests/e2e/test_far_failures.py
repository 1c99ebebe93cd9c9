"""What is cancelled, raised, crashed and killed on other nodes, and what a driver hears of it."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.errors import NodeDiedError, ObjectLostError, TaskCancelledError, WorkerCrashedError
from tests.e2e.conftest import Sessions, eventually
from tests.e2e.far import Mesh, far_mesh, node_id, state_of


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("far"), a=1, b=1, c=1) as mesh:
        yield mesh


class OwnError(Exception):
    def __init__(self, code: int, why: str) -> None:
        super().__init__(code, why)
        self.code, self.why = code, why


@lattica.remote
def nap(path: str, seconds: float) -> str:
    Path(path).write_text(str(os.getpid()))
    time.sleep(seconds)
    return node_id()


@lattica.remote
def fails() -> None:
    raise OwnError(7, "no")


@lattica.remote
def dies_at_first(path: str, how: str) -> int:
    """The number of the run."""
    with open(path, "a") as file:
        file.write("run\n")
    runs = Path(path).read_text().count("run")
    if runs == 1:
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), signal.SIGKILL)
    return runs


@lattica.remote
def parent(path: str, there: Any) -> str:
    return lattica.get(nap.options(scheduling_strategy=there).remote(path, 60))


def test_a_users_exception_comes_with_its_class_and_traceback(mesh: Mesh) -> None:
    with pytest.raises(OwnError) as caught:
        lattica.get(fails.options(scheduling_strategy=mesh.on("b")).remote(), timeout=20)
    assert caught.value.code == 7
    assert "raise OwnError" in str(caught.value)


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_crash_is_charged_to_its_task_once(mesh: Mesh, tmp_path: Path, how: str) -> None:
    ref = dies_at_first.options(scheduling_strategy=mesh.on("b"), max_retries=1).remote(str(tmp_path / "runs"), how)
    assert lattica.get(ref, timeout=20) == 2
    ref = dies_at_first.options(scheduling_strategy=mesh.on("b"), max_retries=0).remote(str(tmp_path / "again"), how)
    with pytest.raises(WorkerCrashedError) as caught:
        lattica.get(ref, timeout=20)
    assert ("exit code 3" if how == "exit" else "SIGKILL") in str(caught.value)


def test_a_running_task_is_cancelled(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    ref = nap.options(scheduling_strategy=mesh.on("b")).remote(str(path), 60)
    assert eventually(path.exists, 10)
    lattica.cancel(ref)
    with pytest.raises(TaskCancelledError):
        lattica.get(ref, timeout=5)


def test_force_kills_the_worker(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    ref = nap.options(scheduling_strategy=mesh.on("b")).remote(str(path), 60)
    assert eventually(lambda: path.exists() and path.read_text(), 10)
    lattica.cancel(ref, force=True)
    with pytest.raises(TaskCancelledError):
        lattica.get(ref, timeout=5)
    pid = int(path.read_text())
    assert eventually(lambda: not os.path.exists(f"/proc/{pid}"), 5)


def test_a_queued_task_never_runs_after_its_cancel(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    first = nap.options(scheduling_strategy=mesh.on("b")).remote(str(path), 1.0)
    assert eventually(path.exists, 10)
    second = nap.options(scheduling_strategy=mesh.on("b")).remote(str(tmp_path / "no"), 1.0)
    time.sleep(0.1)
    lattica.cancel(second)
    with pytest.raises(TaskCancelledError):
        lattica.get(second, timeout=5)
    lattica.get(first, timeout=5)
    assert not (tmp_path / "no").exists()


def test_what_a_cancelled_task_called_on_a_third_node_ends_too(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    ref = parent.options(scheduling_strategy=mesh.on("b")).remote(str(path), mesh.on("c"))
    assert eventually(lambda: path.exists() and path.read_text(), 10)
    lattica.cancel(ref, recursive=True)
    with pytest.raises(TaskCancelledError):
        lattica.get(ref, timeout=5)
    workers = functools.partial(state_of, mesh.nodes["c"], "workers")
    assert eventually(lambda: all(worker["state"] == "idle" for worker in workers()), 5), workers()


def test_whoever_was_given_a_ref_may_cancel_it_from_elsewhere(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    ref = nap.options(scheduling_strategy=mesh.on("b")).remote(str(path), 60)
    assert eventually(path.exists, 10)

    @lattica.remote
    def stop(refs: Any) -> None:
        lattica.cancel(refs[0])

    lattica.get(stop.options(scheduling_strategy=mesh.on("c")).remote([ref]), timeout=10)
    with pytest.raises(TaskCancelledError):
        lattica.get(ref, timeout=5)


def test_wait_tells_which_are_ready(mesh: Mesh, tmp_path: Path) -> None:
    quick = nap.options(scheduling_strategy=mesh.on("b")).remote(str(tmp_path / "q"), 0.0)
    late = nap.options(scheduling_strategy=mesh.on("c")).remote(str(tmp_path / "l"), 1.0)
    ready, rest = lattica.wait([late, quick], num_returns=1, timeout=10)
    assert ready == [quick] and rest == [late]
    assert lattica.wait([late, quick], num_returns=2, timeout=10)[1] == []
    assert lattica.wait([late], timeout=0)[0] == [late]


def test_functions_with_large_closures_are_told_apart(mesh: Mesh) -> None:
    weights = np.arange(1 << 20, dtype=np.uint8)

    def make(number: int) -> Any:
        @lattica.remote
        def f() -> int:
            return int(weights.sum()) + number

        return f

    for number in range(3):
        for name in "bc":
            f = make(number)
            assert (
                lattica.get(f.options(scheduling_strategy=mesh.on(name)).remote(), timeout=20)
                == int(weights.sum()) + number
            )


def test_what_far_workers_print_is_seen_at_the_driver(mesh: Mesh, script: Any) -> None:
    text = f"""
import lattica
lattica.init(address="auto")
from lattica.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

@lattica.remote
def say(word):
    print("the word is", word)

there = {list(mesh.ids.values())!r}
lattica.get([say.options(scheduling_strategy=On(one, False)).remote(one[:4]) for one in there])
"""
    process = script.start(text, env={"LATTICA_DATA_DIR": str(mesh.nodes["a"].data_dir)})
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    for there in mesh.ids.values():
        assert f"the word is {there[:4]}" in out + err, (out, err)


def test_tasks_wait_for_a_node_with_their_labels_that_joins_later(mesh: Mesh, tmp_path: Path) -> None:
    f = nap.options(label_selector={"zone": "z"}, num_cpus=0.5)
    refs = [f.remote(str(tmp_path / "n"), 0.05) for _ in range(4)]
    assert lattica.wait(refs, timeout=0.3)[0] == []
    mesh.begin("z", 1, "--labels", "zone=z")
    assert {mesh.name_of(id) for id in lattica.get(refs, timeout=20)} == {"z"}


def test_a_result_that_is_lost_with_its_node_is_made_again_by_a_retry(mesh: Mesh, tmp_path: Path) -> None:
    @lattica.remote
    def big(path: str) -> Any:
        with open(path, "a") as file:
            file.write("run\n")
        return np.full(5 << 20, 7, np.uint8)

    path = str(tmp_path / "runs")
    ref = big.options(scheduling_strategy=mesh.on("z", soft=True)).remote(path)
    other = big.options(scheduling_strategy=mesh.on("z", soft=True), max_retries=0).remote(path)
    assert len(lattica.wait([ref, other], num_returns=2, timeout=20)[0]) == 2
    mesh.kill("z")
    began = time.monotonic()
    assert lattica.get(ref, timeout=20).sum() == 7 * (5 << 20)
    print(f"\n  made again after {time.monotonic() - began:.1f} s")
    with pytest.raises(ObjectLostError) as caught:
        lattica.get(other, timeout=20)
    assert "connection with node" in str(caught.value)
    assert Path(path).read_text().count("run") == 3


def test_a_task_without_retries_ends_with_its_node(mesh: Mesh, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    ref = nap.options(scheduling_strategy=mesh.on("c"), max_retries=0).remote(str(path), 60)
    assert eventually(lambda: path.exists() and path.read_text(), 10)
    mesh.kill("c")
    began = time.monotonic()
    with pytest.raises((WorkerCrashedError, NodeDiedError)) as caught:
        lattica.get(ref, timeout=20)
    assert "cannot be reached" in str(caught.value)
    assert time.monotonic() - began < 5
