"""Programs that were written for Ray print under `python -m lattica.compat.ray` what they printed under Ray 2.60.

The programs are in tests/compat/programs; what Ray printed is in tests/compat/golden (`python tests/compat/record.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compat.record import COMMAND, GOLDEN, NAMES, PROGRAMS, told
from tests.e2e.conftest import Script

ALWAYS = ("nested_tasks", "placement_groups", "wait_loops", "word_count")
"""About a second each. The others have `slow`."""

WHOLE = """
import os
import sys

import lattica
import ray
import ray.util.placement_group
from ray.exceptions import RayTaskError
from ray.util import placement_group

assert ray.util.placement_group is placement_group is lattica.util.placement_group
assert RayTaskError is lattica.exceptions.RayTaskError
assert sys.modules["__main__"].__dict__ is globals()


@ray.remote
def inside():
    import ray  # nobody has told the worker but its environment
    import ray.util.scheduling_strategies

    return ray.remote is lattica.remote, os.path.basename(sys.argv[0])


if __name__ == "__main__":
    ray.init(address="local", num_cpus=1, runtime_env={"env_vars": {"OTHER": "1"}})
    print(*sys.argv[1:], ray.__version__, *ray.get(inside.remote()))
    try:
        import ray.data
    except ImportError as error:
        print(error.name)
    print(hasattr(ray, "train"), "remote" in dir(ray))
"""


def run(name: str) -> str:
    done = subprocess.run(
        [sys.executable, *COMMAND, str(PROGRAMS / f"{name}.py")], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return told(done.stdout)


@pytest.mark.parametrize("name", ALWAYS)
def test_a_program_prints_what_it_prints_under_ray(name: str, home: Path) -> None:
    assert run(name) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NAMES} - {*ALWAYS}))
def test_every_program_prints_what_it_prints_under_ray(name: str, home: Path) -> None:
    assert run(name) == (GOLDEN / f"{name}.txt").read_text()


def test_a_program_has_ray_in_its_workers_and_finds_itself_as_under_python(script: Script, tmp_path: Path) -> None:
    script.folder.joinpath("whole.py").write_text(WHOLE)
    for given in (["whole.py"], ["-m", "whole"]):
        done = subprocess.run(
            [sys.executable, *COMMAND, *given, "one", "-m"], cwd=script.folder, capture_output=True, text=True
        )
        assert done.stdout.splitlines() == ["one -m 2.60.0 True whole.py", "ray.data", "False True"], done.stderr


def test_a_program_that_imports_compat_itself_needs_no_command(script: Script) -> None:
    assert script("from lattica.compat import ray\n" + WHOLE).startswith("2.60.0 True program.py")


def test_a_script_that_is_not_there_is_named(home: Path) -> None:
    done = subprocess.run([sys.executable, *COMMAND, "nowhere.py"], capture_output=True, text=True)
    assert done.returncode == 1 and "cannot read nowhere.py: No such file" in done.stderr
    assert "Traceback" not in done.stderr and os.path.basename(COMMAND[-1]) in done.stderr
