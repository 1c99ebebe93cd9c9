"""The example that learns, on machines that come and go (`make test-chaos`)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import lattica
from tests.e2e.churn import Churn
from tests.e2e.conftest import ROOT, Sessions, eventually
from tests.e2e.far import Mesh, far_mesh, state_of

needs_rl = pytest.mark.skipif(
    not all(map(find_spec, ("torch", "gymnasium", "matplotlib"))), reason="needs torch, gymnasium and matplotlib"
)
pytestmark = [pytest.mark.slow, pytest.mark.chaos, needs_rl]
LEARNS_S = 5.0
PLACED = """
import sys
sys.path.insert(0, sys.argv.pop(1))
node = sys.argv.pop(1)
import ppo
from lattica.util.scheduling_strategies import NodeAffinitySchedulingStrategy
there = NodeAffinitySchedulingStrategy(node, soft=True)
ppo.LearnerActor = ppo.LearnerActor.options(scheduling_strategy=there)
sys.exit(ppo.main())
"""
LIMIT_S = 240.0  # of training, on two cores that six nodes and all that dies and begins on them share


def test_a_policy_learns_while_a_node_is_killed_every_five_seconds_and_another_joins(
    sessions: Sessions, tmp_path: Path
) -> None:
    with far_mesh(tmp_path, a=1, b=1, c=1, d=1, e=1, f=1) as mesh:
        lattica.shutdown()
        script = [sys.executable, f"{ROOT}/examples/rl/ppo.py", "--workers", "4", "--time-limit", str(LIMIT_S)]
        environ = os.environ | {"LATTICA_DATA_DIR": str(mesh.nodes["b"].data_dir)}
        with Churn(mesh, 5.0, "b", "a") as churn:
            done = subprocess.run(
                [*script, "--out", str(tmp_path / "curve.png")],
                env=environ, capture_output=True, text=True, timeout=LIMIT_S + 60,
            )  # fmt: skip
        again = done.stdout.count("a machine was lost")
        lines = [line for line in done.stdout.splitlines() if line.startswith("update")]
        how = lines[-1] if lines else done.stdout[-2000:]
        print(f"\n  {how}; {len(churn.killed)} nodes killed, {again} updates again")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert churn.killed


def test_the_learner_goes_on_from_its_checkpoint_when_its_node_dies(sessions: Sessions, tmp_path: Path) -> None:
    with far_mesh(tmp_path, a=1, b=1, c=1) as mesh:
        lattica.shutdown()
        script = [sys.executable, "-c", PLACED, f"{ROOT}/examples/rl", mesh.ids["b"]]
        script += ["--time-limit", str(LIMIT_S), "--out", "curve.png"]
        environ = os.environ | {"LATTICA_DATA_DIR": str(mesh.nodes["a"].data_dir)}
        with subprocess.Popen(script, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as program:
            assert eventually(lambda: home_of_learner(mesh) == "b", within_s=30.0), home_of_learner(mesh)
            time.sleep(LEARNS_S)  # a checkpoint has been taken
            mesh.kill("b")
            home = eventually(lambda: home_of_learner(mesh), within_s=30.0)
            said, _ = program.communicate(timeout=LIMIT_S + 60)
        assert program.returncode == 0, said[-3000:]
        steps = [int(line.split()[2].replace(",", "")) for line in said.splitlines() if line.startswith("update")]
        assert steps == sorted(steps)
        print(f"\n  the learner went on at {home}; {said.splitlines()[-2]}")
        assert home in ("a", "c") and steps


def home_of_learner(mesh: Mesh) -> str:
    """The node with the learner; "" if it lives nowhere yet."""
    for name, node in mesh.nodes.items():
        for worker in state_of(node, "workers"):
            if "LearnerActor" in worker["name"]:
                return name
    return ""
