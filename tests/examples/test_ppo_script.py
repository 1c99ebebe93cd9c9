"""examples/rl/ppo.py as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

RL = "the example needs the rl extra: pip install 'lattica-mesh[rl]'"
MISSING = [module for module in ("gymnasium", "matplotlib", "torch") if find_spec(module) is None]

SCRIPT = Path(__file__).parents[2] / "examples" / "rl" / "ppo.py"
TIMEOUT_S = 100.0  # a run here takes five seconds, but a machine can be busy

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(bool(MISSING), reason=RL)]


def run(*arguments, cwd, **environment):
    """The finished process of `ppo.py arguments`, run in `cwd`."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    env = os.environ | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run that ended before its target, and where it left its file: a start costs six seconds of CPU."""
    cwd = tmp_path_factory.mktemp("short")
    return run("--steps", 1000, "--workers", 1, "--seed", 1, "--state", "run.pt", cwd=cwd), cwd


def test_a_target_that_is_not_reached_is_exit_code_1_and_says_what_to_do(short):
    done, cwd = short
    assert done.returncode == 1, done.stderr
    *_, advice, path = done.stdout.splitlines()
    assert "475 was not reached" in advice
    assert path == str(cwd / "learning-curve.png") and Path(path).stat().st_size > 0


def test_a_run_goes_on_from_its_file_and_learns_and_the_last_line_is_the_path_of_its_curve(short):
    _, cwd = short
    done = run("--target", 60, "--seed", 1, "--state", "run.pt", "--out", "curves/one.png", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "goes on after 1,024 steps" in done.stdout
    assert done.stdout.splitlines()[-1] == str(cwd / "curves" / "one.png")
    assert (cwd / "curves" / "one.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(name='torch')")  # found before the real one
    done = run(cwd=tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert done.returncode == 1
    assert "needs torch" in done.stderr and "pip install 'lattica-mesh[rl]'" in done.stderr
    assert "Traceback" not in done.stderr
