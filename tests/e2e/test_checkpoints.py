"""Large checkpoints: a learner's weights go on, on one machine and from one machine to another."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.actors import current
from tests.e2e.conftest import Sessions, eventually
from tests.e2e.far import Mesh, far_mesh, node_id

FLOATS = 5 << 20  # 20 MiB


@lattica.remote(num_cpus=1, max_restarts=2, max_task_retries=-1, checkpoint_every=0)
class Learner:
    def __init__(self) -> None:
        self.weights = np.zeros(FLOATS, np.float32)

    def step(self) -> tuple[float, float]:
        self.weights[:] += 1
        return float(self.weights[0]), float(self.weights[-1])

    def where(self) -> str:
        return node_id()

    def __lattica_checkpoint__(self) -> Any:
        return {"weights": self.weights}

    def __lattica_restore__(self, state: Any) -> None:
        self.weights = np.array(state["weights"])


def test_weights_of_20_mib_outlive_a_worker_of_a_machine_alone(sessions: Sessions) -> None:
    lattica.shutdown()
    lattica.init(num_cpus=1, object_store_memory=128 << 20)
    learner = Learner.remote()
    for step in range(1, 4):
        assert lattica.get(learner.step.remote(), timeout=20) == (step, step)
    for step in (4, 5):
        time.sleep(1.0)  # its worker lays it into the store, and the node copies it
        assert eventually(lambda: not current.get().state("status")["memory"]["objects"], 20)
        lattica.kill(learner, no_restart=False)
        assert lattica.get(learner.step.remote(), timeout=20) == (step, step)
    lattica.shutdown()


@pytest.mark.mesh
def test_weights_of_20_mib_go_on_elsewhere_when_their_machine_is_killed(
    sessions: Sessions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def kept(mesh: Mesh) -> list[str]:
        large = [path for path in tmp_path.glob("**/kept/*") if path.suffix != ".new" and path.stat().st_size > FLOATS]
        return sorted(
            {name for name, node in mesh.nodes.items() if any(node.data_dir in path.parents for path in large)}
        )

    with far_mesh(tmp_path / "mesh", a=1, b=1, c=1) as mesh:
        learner = Learner.options(scheduling_strategy=mesh.on("b", soft=True)).remote()
        for step in range(1, 4):
            assert lattica.get(learner.step.remote(), timeout=20) == (step, step)
        assert mesh.name_of(lattica.get(learner.where.remote(), timeout=20)) == "b"
        assert eventually(lambda: len(kept(mesh)) >= 2 and "a" in kept(mesh), 10), (
            "on two nodes, the owner's among them"
        )
        time.sleep(1.0)  # the last of them, too
        mesh.kill("b")
        assert lattica.get(learner.step.remote(), timeout=40) == (4, 4)
        assert mesh.name_of(lattica.get(learner.where.remote(), timeout=20)) != "b"
        assert eventually(lambda: kept(mesh) == ["a", "c"], 10)
        said = capfd.readouterr()
        assert "Traceback" not in said.out + said.err
