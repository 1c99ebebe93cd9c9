"""A program for Ray runs on the machines of a mesh: their workers have `ray` too, though nobody there knows of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.compat.record import COMMAND
from tests.e2e.conftest import Script, Sessions
from tests.e2e.far import Mesh, far_mesh

PROGRAM = """
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@ray.remote
def there():
    import ray  # of this worker
    import ray.exceptions

    return ray.get_runtime_context().get_node_id(), ray.exceptions.RayError.__module__, ray.get(here.remote())


@ray.remote(num_cpus=0)
def here():
    import ray.util

    return ray.util.__name__


ray.init(address="auto")
nodes = [node["NodeID"] for node in ray.nodes()]
refs = [there.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in nodes]
answers = ray.get(refs)
print([answer[0] for answer in answers] == nodes, len(nodes), {answer[1:] for answer in answers})
"""


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("far"), a=1, b=1) as mesh:
        yield mesh


def test_workers_of_other_machines_have_ray(mesh: Mesh, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATTICA_DATA_DIR", str(mesh.nodes["a"].data_dir))
    path = script.folder / "program.py"
    path.write_text(PROGRAM)
    done = subprocess.run([sys.executable, *COMMAND, str(path)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True 2 {('lattica.errors', 'lattica.util')}\n", done.stderr
