"""Tasks of a node with a key: what they cannot read, and all that they can do as before.

As the user of the test run, and, if that is root, as another user too: the one has mounts by right, the other only in
a user namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from lattica.node import paths
from tests.e2e import intruder
from tests.e2e.conftest import eventually

COMMAND = "from lattica.cli.main import main; main()"
STRANGER = 12345
"""A user id that nobody has: for a node that is not root's."""
DRIVER = """
import pickle, sys, lattica
lattica.init("auto")
function, arguments = pickle.load(sys.stdin.buffer)
pickle.dump(lattica.get(lattica.remote(function).remote(*arguments), timeout=60), open("answer", "wb"))
"""


class Place:
    """A user with a home, and a node there."""

    def __init__(self, home: Path, user: int) -> None:
        self.home, self.user, self.python = home, user, sys.executable
        self.data_dir = home / "data"
        for name in ("tmp", "run", "work"):
            (home / name).mkdir(mode=0o700)
        for folder in (home, *home.iterdir()):
            os.chown(folder, user, user)
        home.chmod(0o700)
        self.environ = os.environ | {
            "HOME": str(home), "TMPDIR": f"{home}/tmp", "XDG_RUNTIME_DIR": f"{home}/run",
            "XDG_DATA_HOME": f"{home}/share", "LATTICA_DATA_DIR": f"{home}/data",
        }  # fmt: skip

    def find_python(self) -> None:
        """An interpreter that this user may run, with our packages; skip if there is none."""
        twin = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"  # ours may lie in root's home
        for self.python in (sys.executable, twin):
            with contextlib.suppress(OSError):
                if self.run(self.python, "-c", "import lattica, tests.e2e.intruder", cwd="/").returncode == 0:
                    return
            packages = os.pathsep.join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
            self.environ["PYTHONPATH"] = os.pathsep.join((self.environ["PYTHONPATH"], packages))
        pytest.skip(f"user {self.user} can run no interpreter that has our packages")

    def run(self, *words: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
        """A program as this user."""
        if self.user != os.geteuid():
            how |= {"user": self.user, "group": self.user, "extra_groups": []}
        how = {"env": self.environ, "cwd": self.home / "work", "capture_output": True, "timeout": 90} | how
        return subprocess.run(words, **how)

    def lattica(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return self.run(self.python, "-c", COMMAND, *words)

    def begin(self) -> None:
        """Start the node."""
        begun = self.lattica("start", "--num-cpus", "2", "--object-store-memory", "64MiB")
        assert begun.returncode == 0, begun.stderr

    def begin_with_a_ticket(self) -> None:
        """The same, with a ticket of its mesh in the environment, as on a machine that is set up by a script."""
        self.begin()
        self.ticket = self.environ["LATTICA_TICKET"] = self.lattica("ticket").stdout.decode().strip()
        assert self.lattica("stop").returncode == 0 and self.ticket.startswith("lat1")
        self.begin()

    def status(self) -> Any:
        done = self.lattica("status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @cached_property
    def protection(self) -> Any:
        """What the machine grants; asking takes a command, and the machine stays the same."""
        return self.status()["key_protection"]

    def task(self, function: Callable[..., Any], *arguments: object) -> Any:
        """What a task of this user's driver returns."""
        done = self.run(self.python, "-c", DRIVER, input=cloudpickle.dumps((function, arguments)))
        assert done.returncode == 0, done.stderr.decode()
        return pickle.loads((self.home / "work/answer").read_bytes())


@pytest.fixture(scope="module", params=["own", "stranger"])
def place(request: pytest.FixtureRequest, home: Path) -> Iterator[Place]:
    """A node of this user that runs, with a key."""
    user = os.geteuid()
    if request.param == "stranger":
        if user:
            pytest.skip("only root can be another user")
        user = STRANGER
    folder = Path(tempfile.mkdtemp(prefix="lattica-place-", dir="/tmp"))  # pytest's own folders are closed to others
    place = Place(folder, user)
    try:
        place.find_python()
        place.begin_with_a_ticket()
        yield place
        stopped = place.lattica("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert eventually(lambda: not paths.running_node(str(place.data_dir)))
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def protected(place: Place) -> Place:
    """The same, where the machine grants both protections."""
    if not (place.protection["mounts"] and place.protection["landlock"]):
        pytest.skip(f"this machine: {place.protection['reason']}")
    return place


def target(place: Place) -> intruder.Target:
    node = paths.running_node(str(place.data_dir))
    assert node is not None
    handle = intruder.handle_of(f"{place.data_dir}/identity")
    return intruder.Target(str(place.data_dir), node.socket, node.pid, os.getpid(), handle)


def test_start_and_status_say_whether_the_key_is_protected(place: Place) -> None:
    protection = place.status()["key_protection"]
    whole = protection["mounts"] and protection["landlock"]
    assert set(protection) == {"mounts", "landlock", "reason"} and bool(protection["reason"]) != whole
    assert (b"warning" in place.lattica("status").stdout) != whole


def test_no_attempt_of_a_task_reads_the_key_or_reaches_the_node(protected: Place) -> None:
    aim = target(protected)
    key = Path(aim.key).read_bytes()
    got = protected.task(intruder.break_in, aim)
    assert set(got) == set(intruder.ATTEMPTS)
    assert not {name: found for name, found in got.items() if found}
    assert Path(aim.key).read_bytes() == key and protected.status()["node"]["pid"] == aim.node


def test_the_attempts_are_real_without_protection_they_succeed(protected: Place) -> None:
    """As a program outside of any task: what fails here fails for another reason than the one that we rely on."""
    node = paths.running_node(str(protected.data_dir))
    assert node is not None
    aim = replace(target(protected), driver=node.pid)
    names = ["by_its_path", "by_a_subprocess", "by_asking_the_node_as_a_command", "by_ending_the_node"]
    if protected.user == 0:
        names += ["by_the_root_of_a_process_outside", "by_its_handle", "by_the_memory_of_the_node", "by_tracing"]
        names += ["by_taking_descriptors_of_the_node"]
    program = (
        "import pickle, sys; from tests.e2e import intruder\n"
        "names, aim = pickle.load(sys.stdin.buffer)\n"
        "print([name for name in names if not intruder.ATTEMPTS[name](aim)])"
    )
    names = [name for name in names if name != "by_its_handle" or aim.handle]
    done = protected.run(protected.python, "-c", program, input=pickle.dumps((names, aim)))
    assert done.returncode == 0 and done.stdout == b"[]\n", done.stdout.decode() + done.stderr.decode()


def test_no_descriptor_of_the_node_is_in_a_worker(protected: Place) -> None:
    def descriptors() -> list[str]:
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                found.append(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                pass  # that of the listing itself
        return found

    kinds = {path.split(":")[0] for path in protected.task(descriptors)}
    assert kinds <= {"/dev/null", "pipe", "socket", "anon_inode", "/memfd"}, "no file, and no folder"


def test_the_ticket_is_neither_in_a_worker_nor_in_its_zygote(protected: Place) -> None:
    def environments() -> list[bytes]:
        mine = [f"{name}={value}".encode() for name, value in os.environ.items()]
        return [*mine, *(Path(f"/proc/{pid}/environ").read_bytes() for pid in (os.getpid(), os.getppid()))]

    found = protected.task(environments)
    assert not [text for text in found if protected.ticket.encode() in text] and any(b"HOME=" in text for text in found)


def test_a_task_does_all_that_tasks_do(place: Place) -> None:
    folder = place.home / "work" / "honest"
    folder.mkdir()
    os.chown(folder, place.user, place.user)
    assert place.task(intruder.work, str(folder)) == []


def test_a_command_in_a_task_finds_no_node_and_a_program_there_starts_its_own(protected: Place) -> None:
    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    code, said = protected.task(run, COMMAND, "status")
    assert code == 1 and "no node runs" in said
    code, said = protected.task(run, COMMAND, "start")
    assert code == 1 and "Traceback" not in said and "do next" in said
    program = "import lattica; lattica.init(num_cpus=1); print(lattica.get(lattica.remote(lambda: 7).remote()))"
    assert protected.task(run, program) == (0, "7\n")


def test_a_program_in_the_data_directory_is_told_that_its_tasks_could_not_see_it(protected: Place) -> None:
    inside = protected.data_dir / "program"
    inside.mkdir()
    try:
        os.chown(inside, protected.user, protected.user)
        done = protected.run(protected.python, "-c", "import lattica; lattica.init('auto')", cwd=inside)
    finally:
        inside.rmdir()
    assert done.returncode != 0 and b"which tasks see empty" in done.stderr


def test_a_second_zygote_hides_no_decoy_in_the_place_of_a_folder_that_was_moved(protected: Place) -> None:
    """A task moves the data directory's parent and puts another there. Its zygote dies; the next must not be fooled."""
    aim = target(protected)

    def zygote() -> int:
        return os.getppid()

    pid = protected.task(zygote)
    real = protected.data_dir.with_name("elsewhere")
    protected.data_dir.rename(real)
    try:
        protected.data_dir.mkdir()
        shutil.copy(real / "node.json", protected.data_dir)
        os.chown(protected.data_dir, protected.user, protected.user)
        os.chown(protected.data_dir / "node.json", protected.user, protected.user)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(AssertionError, match="is not the folder that it was"):
            protected.task(intruder.by_its_path, replace(aim, data_dir=str(real)))
    finally:
        shutil.rmtree(protected.data_dir)
        real.rename(protected.data_dir)


def test_a_node_of_one_program_hides_the_folders_that_it_is_given(protected: Place) -> None:
    secret = protected.home / "work" / "secret"
    secret.mkdir()
    (secret / "key").write_text("mine")
    os.chown(secret, protected.user, protected.user)
    program = f"""
import functools, os, lattica, lattica.session
lattica.session.spawn_embedded = functools.partial(lattica.session.spawn_embedded, hide=[{str(secret)!r}])
lattica.init("local", num_cpus=1)
print(os.listdir({str(secret)!r}), lattica.get(lattica.remote(os.listdir).remote({str(secret)!r})))
"""
    done = protected.run(protected.python, "-c", program)
    assert done.stdout == b"['key'] []\n", done.stderr
