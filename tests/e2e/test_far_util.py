"""What `lattica.util` runs uses all machines of a mesh: pools, executors, queues, joblib and dask."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.util import ActorPool
from lattica.util.executor import LatticaExecutor
from lattica.util.multiprocessing import Pool
from lattica.util.queue import Queue
from tests.e2e.conftest import Sessions
from tests.e2e.far import Mesh, far_mesh, node_id


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("far"), a=1, b=2) as mesh:
        yield mesh


def where(_: Any = None, seconds: float = 0.2) -> str:
    time.sleep(seconds)
    return node_id()


def test_a_pool_has_a_process_for_each_cpu_of_each_machine(mesh: Mesh) -> None:
    with Pool() as pool:
        assert pool.processes == 3
        assert {mesh.name_of(node) for node in pool.map(where, range(9), chunksize=1)} == {"a", "b"}
        assert Counter(map(mesh.name_of, mesh_of(pool))) == {"a": 1, "b": 2}
        assert [int(found.sum()) for found in pool.imap(np.ones, [300_000, 3])] == [300_000, 3]


def mesh_of(pool: Pool) -> list[str]:
    return [outcomes[0][0] for outcomes in lattica.get([process.actor.run_batch.remote(where, [((), {})])
                                                        for process in pool._pool])]  # fmt: skip


def test_an_executor_and_libraries_over_it_use_all_machines(mesh: Mesh) -> None:
    joblib, dask = pytest.importorskip("joblib"), pytest.importorskip("dask")
    from lattica.util.dask import lattica_dask_get
    from lattica.util.joblib import register_lattica

    register_lattica()
    with LatticaExecutor() as executor:
        found = set(executor.map(where, range(9)))
    assert {mesh.name_of(node) for node in found} == {"a", "b"}
    with joblib.parallel_config("lattica", n_jobs=-1):
        found = set(joblib.Parallel()(joblib.delayed(where)(n) for n in range(9)))
    assert {mesh.name_of(node) for node in found} == {"a", "b"}
    many = [dask.delayed(np.full)(300_000, n) for n in range(6)]
    assert dask.delayed(sum)([one.sum() for one in many]).compute(scheduler=lattica_dask_get) == 300_000 * 15


def test_a_queue_and_a_pool_of_actors_reach_across(mesh: Mesh) -> None:
    queue = Queue()

    @lattica.remote(num_cpus=0)
    class Putter:
        def put(self, value: Any) -> str:
            queue.put(value)
            return node_id()

    pool = ActorPool([Putter.options(scheduling_strategy=mesh.on(name)).remote() for name in ("a", "b")])
    nodes = set(pool.map_unordered(lambda actor, value: actor.put.remote(value), range(10)))
    assert {mesh.name_of(node) for node in nodes} == {"a", "b"}
    assert sorted(queue.get_nowait_batch(10)) == list(range(10))
    queue.shutdown()
