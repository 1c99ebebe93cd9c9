"""runtime_env: variables, working directory and modules of a job's workers, here and on a machine without the files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import lattica
from lattica.errors import ConfigError
from tests.e2e.conftest import Script, Sessions
from tests.e2e.machines import COMMAND, Machine, see
from tests.e2e.test_environments import wheel

SCRIPT = """
import os, sys
import lattica
import helper

given = {"working_dir": "files", "py_modules": ["lib/extra"], "env_vars": {"MODE": "fast"}}
given = given if "env" in sys.argv else None
lattica.init(runtime_env=given)

@lattica.remote(scheduling_strategy="SPREAD")
def look():
    import time
    time.sleep(0.3)
    found = [lattica.get_runtime_context().get_node_id(), helper.doubled(1)]
    if given:
        import extra, inside
        found += [open("config.txt").read(), extra.X, inside.Y, os.environ["MODE"]]
    return tuple(found)

seen = set(lattica.get([look.remote() for _ in range(4)], timeout=20))
print(len({one[0] for one in seen}), {one[1:] for one in seen})
"""


DETACHED = """
import os, lattica

given = {"working_dir": "files", "py_modules": ["lib/extra"], "env_vars": {"MODE": "fast"}}
lattica.init(runtime_env=given, namespace="s")

@lattica.remote(max_restarts=-1, max_task_retries=-1)
class Rover:
    def look(self):
        import extra, helper, inside
        found = [open("config.txt").read(), extra.X, inside.Y, os.environ["MODE"], helper.doubled(1)]
        return lattica.get_runtime_context().get_node_id(), found

rover = Rover.options(name="rover", lifetime="detached").remote()
print(lattica.get(rover.look.remote(), timeout=20)[1])
"""

ENVIRONMENTS = """
import os, sys, time
import lattica
from lattica.errors import RuntimeEnvSetupError
from lattica.util.scheduling_strategies import NodeAffinitySchedulingStrategy

lattica.init()

@lattica.remote(scheduling_strategy="SPREAD")
def look(deeper):
    time.sleep(0.3)
    import extra, tinything
    found = [lattica.get_runtime_context().get_node_id(), tinything.VERSION, extra.X, os.environ["KIND"]]
    child = look.options(runtime_env={"env_vars": {"KIND": "child"}})
    return tuple(found), lattica.get([child.remote(False) for _ in range(4)]) if deeper else []

@lattica.remote
class Rover:
    def look(self):
        import extra, tinything
        return tinything.VERSION, extra.X, os.environ["KIND"]

given = {"pip": ["tinything==2.0"], "py_modules": ["lib/extra"], "env_vars": {"KIND": "task"}}
seen = lattica.get([look.options(runtime_env=given).remote(True) for _ in range(2)], timeout=60)
parents, children = {one for one, _ in seen}, {child for _, found in seen for child, _ in found}
print(len(parents), {one[1:] for one in parents}, len(children), {one[1:] for one in children})
here = lattica.get_runtime_context().get_node_id()
other = next(node["NodeID"] for node in lattica.nodes() if node["NodeID"] != here)
there = NodeAffinitySchedulingStrategy(other, False)
rover = Rover.options(scheduling_strategy=there, runtime_env=given).remote()
print(lattica.get(rover.look.remote(), timeout=30))
try:
    wrong = look.options(scheduling_strategy=there, runtime_env={"pip": ["tinything==9.9"]})
    lattica.get(wrong.remote(False), timeout=60)
except RuntimeEnvSetupError as error:
    print("No matching distribution found for tinything==9.9" in str(error), ": on node " in str(error))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "files").mkdir(parents=True)
    (folder / "lib" / "extra").mkdir(parents=True)
    (folder / "helper.py").write_text("def doubled(x): return 2 * x\n")
    (folder / "files" / "config.txt").write_text("hello")
    (folder / "files" / "inside.py").write_text("Y = 2\n")
    (folder / "lib" / "extra" / "__init__.py").write_text("X = 1\n")
    (folder / "train.py").write_text(SCRIPT)
    (folder / "rover.py").write_text(DETACHED)
    return folder


def test_workers_have_variables_a_copy_of_the_folder_and_modules(fresh: Callable[..., object], project: Path) -> None:
    fresh(
        num_cpus=1,
        runtime_env={
            "env_vars": {"MODE": "fast", "OMP_NUM_THREADS": "3"},
            "working_dir": project / "files",
            "py_modules": [project / "lib" / "extra"],
        },
    )

    @lattica.remote
    def look() -> tuple[object, ...]:
        import extra  # type: ignore[import-not-found]
        import inside  # type: ignore[import-not-found]

        found = Path("config.txt").read_text(), extra.X, inside.Y, os.environ["MODE"], os.environ["OMP_NUM_THREADS"]
        Path("config.txt").write_text("changed")
        return found

    assert lattica.get(look.remote(), timeout=10) == ("hello", 1, 2, "fast", "3")
    assert (project / "files" / "config.txt").read_text() == "hello" and "MODE" not in os.environ


def test_a_wrong_environment_is_refused_before_anything_starts(sessions: Sessions, tmp_path: Path) -> None:
    sessions.end()
    with pytest.raises(ConfigError, match="'conda'"):
        lattica.init(runtime_env={"conda": "x"})
    with pytest.raises(ConfigError, match="is no folder"):
        lattica.init(runtime_env={"working_dir": str(tmp_path / "nothing")})
    assert not lattica.is_initialized()


def elsewhere(machine: Machine, hidden: Path, *words: str) -> None:
    """Start its node where this folder is empty, as on another machine."""
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("an own view of the disk needs root and unshare")
    line = " ".join([f"mount -t tmpfs none {hidden} &&", 'exec "$@"'])
    environ = os.environ | {"LATTICA_DATA_DIR": str(machine.data_dir)}
    command = [
        "unshare",
        "-m",
        "sh",
        "-c",
        line,
        "sh",
        *COMMAND,
        *words,
        "--num-cpus",
        "1",
        "--name",
        machine.data_dir.name,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    if "mount" in done.stderr:
        pytest.skip("mounts are not allowed here")
    assert done.returncode == 0, done.stderr


def test_modules_and_folders_reach_a_machine_that_has_none_of_them(
    machine: Callable[[str], Machine], script: Script, project: Path
) -> None:
    one, two = machine("one"), machine("two")
    one.start()
    elsewhere(two, project, "join", one.ticket())
    see((one, ["two"]), (two, ["one"]))
    environ = os.environ | {"LATTICA_DATA_DIR": str(one.data_dir)}
    for words, expected in (((), "2 {(2,)}\n"), (("env",), "2 {(2, 'hello', 1, 2, 'fast')}\n")):
        done = subprocess.run(
            [sys.executable, "train.py", *words], capture_output=True, text=True, timeout=40, env=environ, cwd=project
        )
        assert (done.returncode, done.stdout) == (0, expected), done.stderr
    done = one.run("submit", "--working-dir", str(project), "train.py", "env")
    assert (done.returncode, done.stdout) == (0, "2 {(2, 'hello', 1, 2, 'fast')}\n"), done.stderr


def test_environments_of_single_tasks_and_actors_and_what_they_install_reach_other_machines(
    machine: Callable[[str], Machine], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Children of a task elsewhere inherit from it, wherever they run; what cannot be installed there says so here."""
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", "2.0")
    for name, value in (("LATTICA_CACHE_DIR", "cache"), ("PIP_FIND_LINKS", "wheels")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (project / "environments.py").write_text(ENVIRONMENTS)
    one, two = machine("one"), machine("two")
    one.start()
    elsewhere(two, project, "join", one.ticket())
    see((one, ["two"]), (two, ["one"]))
    environ = os.environ | {"LATTICA_DATA_DIR": str(one.data_dir)}
    done = subprocess.run(
        [sys.executable, "environments.py"], capture_output=True, text=True, timeout=90, env=environ, cwd=project
    )
    expected = ["2 {('2.0', 1, 'task')} 2 {('2.0', 1, 'child')}", "('2.0', 1, 'task')", "True True"]
    assert (done.returncode, done.stdout.splitlines()) == (0, expected), done.stderr
    assert "installing tinything==2.0 (pip)" in done.stderr


@pytest.mark.slow
def test_a_detached_actor_has_them_too_when_it_goes_on_where_its_files_are_not(
    machine: Callable[[str], Machine], script: Script, project: Path
) -> None:
    one, two, three = machine("one"), machine("two"), machine("three")
    one.start()
    for other in (two, three):
        elsewhere(other, project, "join", one.ticket())
    see((one, ["three", "two"]), (two, ["one", "three"]), (three, ["one", "two"]), within_s=10.0)
    environ = os.environ | {"LATTICA_DATA_DIR": str(one.data_dir)}
    done = subprocess.run(
        [sys.executable, "rover.py"], capture_output=True, text=True, timeout=40, env=environ, cwd=project
    )
    found = "['hello', 1, 2, 'fast', 2]"
    assert (done.returncode, done.stdout) == (0, f"{found}\n"), done.stderr
    time.sleep(12.0)  # nodes restart nothing in their first ten seconds
    os.kill(one.pid, signal.SIGKILL)
    asks = "import lattica\nlattica.init(namespace='s')\nr = lattica.get_actor('rover')\n"
    asks += "print(lattica.get(r.look.remote(), timeout=60)[1])"
    environ["LATTICA_DATA_DIR"] = str(two.data_dir)
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, timeout=90, env=environ)
    assert (done.returncode, done.stdout) == (0, f"{found}\n"), done.stderr
