"""runtime_env of single tasks and actors: what children inherit, what is installed, and that none meets another."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lattica
from lattica.errors import RuntimeEnvSetupError
from lattica.runtime_env import RuntimeEnv
from tests.e2e.conftest import Sessions

JOB = {"env_vars": {"KIND": "job", "KEPT": "job"}}


def wheel(folder: Path, version: str) -> Path:
    """A wheel of `tinything`, which knows its version."""
    path, info = folder / f"tinything-{version}-py3-none-any.whl", f"tinything-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinything.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinything\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(scope="module")
def wheels(home: Path, sessions: Sessions) -> Iterator[Path]:
    """A folder with wheels, which is the only place where pip looks; environments are cached beside it."""
    folder = home / "wheels"
    folder.mkdir()
    wheel(folder, "1.0")
    wheel(folder, "2.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATTICA_CACHE_DIR", str(home / "cache"))
        patch.setenv("PIP_FIND_LINKS", str(folder))
        patch.setenv("PIP_NO_INDEX", "1")
        yield folder
        sessions.end()


@pytest.fixture
def session(wheels: Path, sessions: Sessions) -> None:
    sessions.share(num_cpus=2, runtime_env=JOB)


@lattica.remote(num_cpus=0)
def look() -> tuple[int, list[str | None]]:
    return os.getpid(), [os.environ.get(name) for name in ("KIND", "KEPT", "MORE")]


@lattica.remote(num_cpus=0, runtime_env={"env_vars": {"KIND": "parent", "MORE": "${KIND}s"}})
def parent() -> list[Any]:
    child = look.options(runtime_env=RuntimeEnv(env_vars={"KIND": "child"}))
    return [lattica.get([look.remote(), child.remote()]), lattica.get_runtime_context().runtime_env]


def test_children_inherit_and_lay_theirs_on_top_and_nobody_else_sees_it(session: None) -> None:
    before = dict(os.environ)
    (same, other), around = lattica.get(parent.remote(), timeout=30)
    assert same[1] == ["parent", "job", "parents"] and other[1] == ["child", "job", "childs"]
    assert around == {"env_vars": {"KIND": "parent", "KEPT": "job", "MORE": "${KIND}s"}}
    assert lattica.get(look.remote(), timeout=10)[1] == ["job", "job", None]
    assert dict(os.environ) == before


@lattica.remote(num_cpus=0, runtime_env={"env_vars": {"KIND": "actor"}}, max_restarts=1, max_task_retries=1)
class Rover:
    def look(self) -> tuple[int, list[str | None]]:
        return lattica.get(look.remote())  # type: ignore[no-any-return]

    def job(self) -> str:
        return lattica.get_runtime_context().get_job_id()

    def die(self) -> None:
        if not lattica.get_runtime_context().was_current_actor_reconstructed:
            os._exit(1)


def test_an_actor_has_its_own_again_after_a_restart_and_belongs_to_the_same_job(session: None) -> None:
    rover = Rover.remote()
    lattica.get(rover.die.remote(), timeout=30)
    assert lattica.get(rover.look.remote(), timeout=10)[1] == ["actor", "job", None]
    assert lattica.get(rover.job.remote(), timeout=10) == lattica.get_runtime_context().get_job_id()


def test_two_environments_never_meet_in_one_process(session: None) -> None:
    kinds = [look, *(look.options(runtime_env={"env_vars": {"KIND": kind}}) for kind in "ab")]
    found = lattica.get([kinds[n % 3].remote() for n in range(90)], timeout=60)
    seen: dict[int, set[str]] = {}
    for at, (pid, (kind, *_)) in enumerate(found):
        assert kind == ("job", "a", "b")[at % 3]
        seen.setdefault(pid, set()).add(kind)
    assert all(len(kinds) == 1 for kinds in seen.values())


@lattica.remote(num_cpus=0)
def thing() -> tuple[str, str]:
    import tinything  # type: ignore[import-not-found]

    return tinything.VERSION, sys.prefix


def test_what_pip_installs_is_there_for_its_tasks_and_actors_alone_and_is_installed_once(
    session: None, wheels: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Beside it another version, of a wheel that travels as it is."""
    two = thing.options(runtime_env={"pip": ["tinything==2.0"]})
    one = thing.options(runtime_env={"py_modules": [str(wheels / "tinything-1.0-py3-none-any.whl")]})
    found = lattica.get([two.remote(), one.remote(), two.remote()], timeout=100)
    assert [version for version, _ in found] == ["2.0", "1.0", "2.0"]
    assert found[0][1].startswith(str(home / "cache")) and found[1][1] == sys.prefix
    with pytest.raises(ModuleNotFoundError):
        lattica.get(thing.remote(), timeout=10)
    assert len(list((home / "cache" / "environments").iterdir())) == 1
    said = capfd.readouterr().err
    assert said.count("installing tinything==2.0 (pip)") == 1 and "installed tinything==2.0 in" in said


def test_what_cannot_be_installed_fails_with_the_words_of_pip(session: None) -> None:
    wrong = {"pip": ["tinything==9.9"]}
    with pytest.raises(RuntimeEnvSetupError, match=r"No matching distribution found for tinything==9\.9"):
        lattica.get(thing.options(runtime_env=wrong).remote(), timeout=100)
    rover = Rover.options(runtime_env=wrong).remote()
    with pytest.raises(RuntimeEnvSetupError, match=r"from versions: 1\.0, 2\.0"):
        lattica.get(rover.look.remote(), timeout=100)
    late = {"pip": ["tinything==1.0"], "config": {"setup_timeout_seconds": 0.05}}
    with pytest.raises(RuntimeEnvSetupError, match=r"longer than setup_timeout_seconds=0\.05"):
        lattica.get(thing.options(runtime_env=late).remote(), timeout=100)


@lattica.remote(num_cpus=0)
def read() -> str:
    from shared import WORD  # type: ignore[import-not-found]

    return f"{WORD} {Path('config.txt').read_text()}"


@lattica.remote(num_cpus=0)
def packs(folder: str, module: str) -> str:
    given = {"working_dir": folder, "py_modules": [module]}
    return lattica.get(read.options(runtime_env=given).remote())  # type: ignore[no-any-return]


def test_folders_of_single_tasks_travel_and_so_do_those_that_a_task_packs(session: None, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "config.txt").write_text("there")
    (tmp_path / "shared.py").write_text("WORD = 'hello'\n")
    given = {"working_dir": str(tmp_path / "files"), "py_modules": [str(tmp_path / "shared.py")]}
    assert lattica.get(read.options(runtime_env=given).remote(), timeout=20) == "hello there"
    assert lattica.get(packs.remote(str(tmp_path / "files"), str(tmp_path / "shared.py")), timeout=20) == "hello there"


@lattica.remote(num_cpus=0)
def loaded() -> tuple[int, str | None, list[str]]:
    return hash("a word"), os.environ.get("LD_LIBRARY_PATH"), sys.path


def test_variables_that_act_when_an_interpreter_is_loaded_act_in_workers(session: None, tmp_path: Path) -> None:
    given = {"PYTHONHASHSEED": "7", "LD_LIBRARY_PATH": "${LD_LIBRARY_PATH}:/x", "PYTHONPATH": str(tmp_path)}
    seed, libraries, path = lattica.get(loaded.options(runtime_env={"env_vars": given}).remote(), timeout=60)
    asked = [sys.executable, "-c", "print(hash('a word'))"]
    environ = os.environ | {"PYTHONHASHSEED": "7"}
    assert seed == int(subprocess.run(asked, env=environ, capture_output=True, check=True).stdout)
    assert libraries == f"{os.environ.get('LD_LIBRARY_PATH', '')}:/x" and path.index(str(tmp_path)) == 1
    assert hash("a word") != seed and str(tmp_path) not in lattica.get(loaded.remote(), timeout=10)[2]
