"""Real processes on this machine: sessions that are reused where they can be, and nothing left behind after a module.

`two_cpus` and `four_cpus` give the running session if it is of that kind, else start one: a start costs 0.2 s. A test
that harms its session, or counts on a new one, calls `fresh(...)`. Programs of their own run through `script`.
"""

from __future__ import annotations

import glob
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import lattica

if TYPE_CHECKING:
    from tests.e2e.machines import Machine

HERE = str(Path(__file__).parent)
ROOT = str(Path(__file__).parents[2])
RUN_VARIABLE = "LATTICA_TEST_RUN"
"""Inherited by every process that a test starts, which tells ours from others' in /proc."""
SEVERAL_NODES = (
    "test_drain", "test_far_", "test_init_ticket", "test_launch_", "test_look", "test_mesh_", "test_results_data",
    "test_runtime_env", "test_submit",
)  # fmt: skip
"""How files begin whose tests have several nodes on this machine: `make test-mesh`."""
CLEAN_WITHIN_S = 5.0
"""How soon nothing may be left of a session."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything in this folder is e2e; what is slow runs only with `-m slow`, what needs several nodes with `-m mesh`
    (or where a file is named)."""
    ours = [item for item in items if str(item.path).startswith(HERE)]
    for item in ours:
        item.add_marker("e2e")
        if item.path.stem.startswith(SEVERAL_NODES) or "three" in getattr(item, "fixturenames", ()):
            item.add_marker("mesh")
    for marker in ("slow", "mesh"):
        named = marker == "mesh" and any(".py" in word for word in config.option.file_or_dir)
        if marker not in config.option.markexpr and not named:
            others = {item for item in ours if item.get_closest_marker(marker)}
            config.hook.pytest_deselected(items=list(others))
            items[:] = [item for item in items if item not in others]
            ours = [item for item in ours if item not in others]


# -- what is left behind ---------------------------------------------------------------------------------------------


def processes_of(run: str) -> list[tuple[int, str]]:
    """(pid, command) of every living process that inherited this run's mark."""
    mark, found = f"{RUN_VARIABLE}={run}".encode(), []
    for folder in glob.glob("/proc/[0-9]*"):
        try:
            environ = Path(folder, "environ").read_bytes()
            state = Path(folder, "stat").read_text().rpartition(")")[2].split()[0]
            if mark in environ.split(b"\0") and state != "Z":
                found.append((int(folder[6:]), Path(folder, "cmdline").read_text().replace("\0", " ")[:2000]))
        except OSError:  # it ended meanwhile, or is not ours
            continue
    return found


def files_of(home: Path) -> list[str]:
    """Session folders and sockets that nodes have made under this home."""
    return [*glob.glob(f"{home}/tmp/lattica-*/sessions/*"), *glob.glob(f"{home}/tmp/lattica-*/sockets/*"),
            *glob.glob(f"{home}/run/lattica/*")]  # fmt: skip


def shared_memory() -> set[str]:
    """Names in /dev/shm: lattica keeps none there. Tests that run beside this one may, for a moment."""
    return set(os.listdir("/dev/shm"))


def eventually(fact: Callable[[], Any], within_s: float = CLEAN_WITHIN_S, every_s: float = 0.02) -> Any:
    """What `fact()` says as soon as it is true; else its last word."""
    deadline = time.monotonic() + within_s
    while not (said := fact()) and time.monotonic() < deadline:
        time.sleep(every_s)
    return said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders of this module for sockets, sessions and data, in the environment of every process."""
    home = tmp_path_factory.mktemp("e2e")
    with pytest.MonkeyPatch.context() as patch:
        for variable, name in (("TMPDIR", "tmp"), ("XDG_RUNTIME_DIR", "run"), ("XDG_DATA_HOME", "data")):
            home.joinpath(name).mkdir(mode=0o700)
            patch.setenv(variable, str(home / name))
        patch.setenv(RUN_VARIABLE, home.name + str(os.getpid()))
        patch.delenv(
            "PYTHONDONTWRITEBYTECODE", raising=False
        )  # an installed lattica is compiled; compiling takes 0.4 s
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH")))))
        yield home


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_behind(home: Path) -> Iterator[None]:
    """After the module's tests there is no process, socket, folder or shared memory of theirs."""
    names = shared_memory()
    yield
    lattica.shutdown()
    run = os.environ[RUN_VARIABLE]
    eventually(lambda: not processes_of(run) and not files_of(home))
    left = processes_of(run)
    for pid, _ in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"processes are left: {left}"
    assert not files_of(home), f"files are left: {files_of(home)}"
    assert eventually(lambda: shared_memory() <= names), f"shared memory is left: {shared_memory() - names}"


# -- sessions --------------------------------------------------------------------------------------------------------


class Sessions:
    """The one session that this process may have at a time."""

    def __init__(self) -> None:
        self.shared: dict[str, Any] | None = None

    def share(self, **given: Any) -> None:
        """Have a session like this, the running one if it is."""
        if self.shared != given or not lattica.is_initialized():
            self.fresh(**given)
            self.shared = given

    def fresh(self, **given: Any) -> Any:
        """A new session, which the test may harm."""
        lattica.shutdown()
        self.shared = None
        return lattica.init(address="local", **given)

    def end(self) -> None:
        """None runs now."""
        lattica.shutdown()
        self.shared = None


@pytest.fixture(scope="module")
def sessions(nothing_is_left_behind: None) -> Sessions:
    return Sessions()


@pytest.fixture
def two_cpus(sessions: Sessions) -> None:
    """A session with two CPUs, shared with other tests."""
    sessions.share(num_cpus=2)


@pytest.fixture
def four_cpus(sessions: Sessions) -> None:
    """A session with four CPUs, shared with other tests."""
    sessions.share(num_cpus=4)


@pytest.fixture
def fresh(sessions: Sessions) -> Iterator[Callable[..., Any]]:
    """Start sessions of the test's own: `fresh(num_cpus=1)`; the last one ends with the test."""
    sessions.end()
    yield sessions.fresh
    sessions.end()


# -- machines of a mesh ----------------------------------------------------------------------------------------------


@pytest.fixture
def machine(sessions: Sessions, tmp_path: Path) -> Iterator[Callable[[str], Machine]]:
    """Machines by name, whose nodes end with the test."""
    from tests.e2e.machines import Machine

    sessions.end()
    machines: dict[str, Machine] = {}

    def named(name: str) -> Machine:
        return machines.setdefault(name, Machine(tmp_path / name))

    yield named
    with ThreadPoolExecutor() as pool:
        for done in pool.map(lambda one: one.run("stop", "--force"), machines.values()):
            assert done.returncode == 0, done.stderr


# -- programs --------------------------------------------------------------------------------------------------------


class Script:
    """Runs programs of their own, as a user would: `python name.py` in a folder of theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, text: str, *args: str, name: str = "program.py", env: dict[str, str] | None = None, **how: Any
              ) -> subprocess.Popen[str]:  # fmt: skip
        """Start it with piped output. `how`: further arguments of Popen."""
        path = self.folder / name
        path.write_text(text)
        how = {"cwd": self.folder, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | how
        process = subprocess.Popen([sys.executable, str(path), *args], env=os.environ | (env or {}), **how)
        self.started.append(process)
        return process

    def __call__(self, text: str, *args: str, timeout_s: float = 30.0, **how: Any) -> str:
        """Run it to its end; its standard output. It must end with 0."""
        process = self.start(text, *args, **how)
        out, err = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, f"exit code {process.returncode}\n{out}\n{err}"
        return out


@pytest.fixture
def script(tmp_path: Path, sessions: Sessions) -> Iterator[Script]:
    script = Script(tmp_path)
    yield script
    for process in script.started:
        if process.poll() is None:
            process.kill()
        process.communicate()
