"""A session from `init` to `shutdown`: whose node it is, what it may be asked, and that nothing survives it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lattica
from lattica.cli.client import NodeConnection, node_to_look_at
from lattica.codec import frames
from lattica.codec import messages as m
from lattica.errors import ConfigError
from lattica.exceptions import NodeDiedError
from lattica.node.running import running_nodes
from tests.e2e.conftest import RUN_VARIABLE, Script, Sessions, eventually, processes_of

LATTICA = [sys.executable, "-c", "from lattica.cli.main import main; main()"]


@lattica.remote
def echo(value: Any) -> Any:
    return value


@lattica.remote
def sleep(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@lattica.remote
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count


@pytest.fixture
def none(sessions: Sessions) -> Iterator[None]:
    """No session runs when the test begins, or after it."""
    sessions.end()
    yield
    sessions.end()


@pytest.fixture
def node(none: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A node of this machine, begun by `lattica start`, which LATTICA_DATA_DIR names."""
    place = tmp_path / "node"
    monkeypatch.setenv("LATTICA_DATA_DIR", str(place))
    begun = subprocess.run([*LATTICA, "start", "--num-cpus", "2"], capture_output=True, text=True, timeout=20)
    assert begun.returncode == 0, begun.stderr
    yield place
    lattica.shutdown()
    subprocess.run([*LATTICA, "stop"], capture_output=True, timeout=20, check=True)


# -- init


@pytest.mark.usefixtures("none")
def test_the_first_use_starts_a_session() -> None:
    assert not lattica.is_initialized()
    assert lattica.get(echo.remote(1)) == 1
    assert lattica.is_initialized()
    lattica.shutdown()
    assert not lattica.is_initialized()
    assert lattica.get(lattica.put(2)) == 2, "and the next use starts the next one"


@pytest.mark.usefixtures("none")
def test_threads_that_use_it_first_at_once_share_one_session() -> None:
    together, answers = threading.Barrier(8), []

    def use(k: int) -> None:
        together.wait()
        answers.append(lattica.get(echo.remote(k)))

    threads = [threading.Thread(target=use, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == list(range(8))
    assert len(lattica.nodes()) == 1


@pytest.mark.usefixtures("none")
def test_a_second_init_is_an_error_unless_it_is_to_be_ignored() -> None:
    lattica.init(num_cpus=1)
    for kind in (RuntimeError, ConfigError):  # Ray's, and ours
        with pytest.raises(kind, match="ignore_reinit_error"):
            lattica.init()
    lattica.init(num_cpus=7, ignore_reinit_error=True)
    assert lattica.cluster_resources()["CPU"] == 1


@pytest.mark.usefixtures("none")
def test_a_context_manager_ends_its_session() -> None:
    with lattica.init(num_cpus=1) as session:
        assert lattica.get(echo.remote("inside")) == "inside"
        place = session.address_info["session_dir"]
        assert os.path.isdir(place) and session["node_id"]
    assert not lattica.is_initialized()
    assert eventually(lambda: not os.path.exists(place))


@pytest.mark.usefixtures("none")
def test_a_second_session_in_one_process_knows_old_functions_and_not_old_refs() -> None:
    lattica.init(num_cpus=1)
    old, counter = echo.remote(1), Counter.remote()
    large = lattica.put(b"old" * 100_000)
    assert lattica.get([old, counter.add.remote()]) == [1, 1]
    pending = sleep.remote(30)
    lattica.shutdown()
    lattica.init(num_cpus=1)
    new = lattica.put(b"new" * 100_000)
    assert lattica.get([new, large, echo.remote(2)]) == [b"new" * 100_000, b"old" * 100_000, 2]
    assert lattica.wait([large, new], num_returns=2) == ([large, new], [])
    assert lattica.get(Counter.remote().add.remote()) == 1
    with pytest.raises(NodeDiedError, match="shut down"):
        lattica.get(pending)
    for stale in (old, large, pending, counter):
        with pytest.raises(ConfigError, match="session that has ended"):
            echo.remote([stale])
        with pytest.raises(ConfigError, match="session that has ended"):
            echo.remote(stale)
    with pytest.raises((ConfigError, NodeDiedError)):
        lattica.get(counter.add.remote())


@pytest.mark.usefixtures("none")
def test_shutdown_may_be_called_at_any_time() -> None:
    lattica.shutdown()
    lattica.init(num_cpus=1)
    lattica.shutdown()
    lattica.shutdown()


@pytest.mark.usefixtures("none")
def test_rays_arguments_are_accepted_named_once_and_unknown_ones_refused(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        lattica.init(num_cpus=1, include_dashboard=False, dashboard_port=8265, configure_logging=True, _temp_dir="/x")
        lattica.shutdown()
    said = [record for record in caplog.records if "ignores" in record.getMessage()]
    assert len(said) == 1 and said[0].levelno == logging.WARNING, "once, where everybody sees it"
    assert all(name in said[0].getMessage() for name in ("include_dashboard", "dashboard_port", "_temp_dir"))
    with pytest.raises(ConfigError, match=r"(?s)num_cpu.*say num_cpus; it takes address, num_cpus"):
        lattica.init(num_cpu=1)
    with pytest.raises(ConfigError):
        lattica.init("127.0.0.1:6379")
    with pytest.raises(ConfigError, match="lattica start"):
        lattica.init("auto")
    assert not lattica.is_initialized()


@pytest.mark.usefixtures("none")
def test_init_in_a_worker_is_refused_unless_it_is_to_be_ignored_and_its_session_is_the_drivers() -> None:
    here = lattica.init(num_cpus=1)

    @lattica.remote
    def inside() -> Any:
        try:
            lattica.init()
        except RuntimeError as error:
            with lattica.init(ignore_reinit_error=True) as session:
                node = session["node_id"]
            return lattica.is_initialized(), sys.argv, str(error), node

    initialized, argv, words, node = lattica.get(inside.remote())
    assert initialized and argv == sys.argv[:1] and "worker" in words and node == here["node_id"]


@pytest.mark.usefixtures("none")
def test_the_session_says_what_it_has() -> None:
    lattica.init(num_cpus=3, num_gpus=1, resources={"disk": 2.5}, object_store_memory=64 << 20, namespace="here")
    total = lattica.cluster_resources()
    assert (total["CPU"], total["GPU"], total["disk"]) == (3, 1, 2.5)
    assert total["object_store_memory"] == 64 << 20
    assert eventually(lambda: lattica.available_resources().get("CPU") == 3)
    busy = lattica.remote(num_cpus=2, num_gpus=1)(time.sleep).remote(0.5)
    assert eventually(lambda: lattica.available_resources().get("CPU") == 1)
    assert lattica.available_resources().get("GPU", 0) == 0
    [machine] = lattica.nodes()
    assert machine["Alive"] and machine["Resources"]["CPU"] == 3
    context = lattica.get_runtime_context()
    assert context.namespace == "here" and context.get_node_id() == machine["NodeID"]
    assert (context.get_task_id(), context.get_actor_id()) == (None, None)
    lattica.get(busy)


@pytest.mark.usefixtures("none")
def test_a_task_knows_where_it_runs() -> None:
    lattica.init(num_cpus=1, namespace="there")

    @lattica.remote
    def where() -> dict[str, Any]:
        context = lattica.get_runtime_context()
        return context.get() | {"worker": context.get_worker_id(), "name": context.get_task_name()}

    ref = where.remote()
    there, here = lattica.get(ref), lattica.get_runtime_context()
    assert there["job_id"] == here.get_job_id() and there["node_id"] == here.get_node_id()
    assert there["namespace"] == "there" and there["task_id"] == ref.hex()
    assert there["worker"] != here.get_worker_id() and there["name"].endswith("where")


# -- a node of the machine


def test_init_attaches_to_the_machines_node_which_outlives_the_driver(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lattica.init() as session:
        assert session.address_info["session_dir"].startswith(str(node))
        assert lattica.cluster_resources()["CPU"] == 2
        pid = lattica.get(sleep.remote(0))
    assert eventually(lambda: not os.path.exists(f"/proc/{pid}")), "its workers end with the driver"
    with lattica.init("auto"):
        assert lattica.get(echo.remote(1)) == 1
    with lattica.init(str(node)):
        assert lattica.get(echo.remote(1)) == 1
    with monkeypatch.context() as patch:
        patch.delenv("LATTICA_DATA_DIR")
        with lattica.init("auto") as session:
            assert session["session_dir"].startswith(str(node)), "it is the only one of this user"


def test_resources_cannot_be_set_for_a_node_that_runs_and_local_starts_another(node: Path) -> None:
    for given in ({"num_cpus": 1}, {"num_gpus": 0}, {"resources": {"a": 1}}, {"object_store_memory": 1 << 25}):
        with pytest.raises(ConfigError, match=next(iter(given))) as caught:
            lattica.init(**given)
        assert isinstance(caught.value, ValueError)
    with lattica.init("local", num_cpus=5):
        assert lattica.cluster_resources()["CPU"] == 5


ATTACHED = """
import sys, lattica, os, time
lattica.init(namespace=sys.argv[1])

@lattica.remote
def who(x):
    return os.getpid(), x

print(lattica.get([who.remote(k) for k in range(100)])[-1], flush=True)
NAME = sys.argv[1]
made = lattica.remote(type("Named", (), {"name": lambda self: NAME})).options(name="same").remote()
actor = lattica.get_actor("same")
print(lattica.get(actor.name.remote()), flush=True)
sys.stdin.readline()
"""


def test_two_drivers_run_side_by_side_on_one_node(node: Path, script: Script) -> None:
    drivers = [script.start(ATTACHED, name, name=f"{name}.py", stdin=subprocess.PIPE) for name in ("one", "two")]
    pids = set()
    for driver, name in zip(drivers, ("one", "two"), strict=True):
        pids.add(driver.stdout.readline())
        assert driver.stdout.readline() == f"{name}\n"
    assert len(pids) == 2, "no worker serves two jobs"
    for driver in drivers:
        _, err = driver.communicate("\n", timeout=10)
        assert driver.returncode == 0, err


# -- sudden ends

VICTIM = """
import os, subprocess, sys, time, lattica
lattica.init(num_cpus=2)

@lattica.remote
def busy():
    subprocess.Popen(["sleep", "60"])
    while True:
        time.sleep(0.1)

@lattica.remote
class Actor:
    def ready(self):
        return os.getpid()

refs = [busy.remote() for _ in range(2)]
actor = Actor.remote()
large = lattica.put(b"x" * (8 << 20))
lattica.get(actor.ready.remote())
time.sleep(0.2)
print("ready", flush=True)
lattica.get(refs)
"""


def others(*mine: int) -> list[tuple[int, str]]:
    """Processes of this run but for ourselves and those named."""
    return [entry for entry in processes_of(os.environ[RUN_VARIABLE]) if entry[0] not in mine]


@pytest.mark.usefixtures("none")
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_killed_leaves_no_process(script: Script, signum: signal.Signals) -> None:
    driver = script.start(VICTIM)
    assert driver.stdout.readline() == "ready\n"
    assert len(others(driver.pid)) >= 6, "node, zygote, workers and what they started"
    driver.send_signal(signum)
    began = time.monotonic()
    driver.wait(5)
    assert eventually(lambda: not others(driver.pid)), others(driver.pid)
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("none")
def test_a_driver_killed_on_a_machines_node_leaves_only_the_node(node: Path, script: Script) -> None:
    before = {pid for pid, _ in others()}
    driver = script.start(VICTIM.replace("num_cpus=2", ""))
    assert driver.stdout.readline() == "ready\n"
    driver.kill()
    driver.wait(5)
    assert eventually(lambda: not others(driver.pid, *before)), others(driver.pid, *before)
    with lattica.init():
        assert lattica.get(echo.remote(1)) == 1
        assert (
            lattica.available_resources()["object_store_memory"] == lattica.cluster_resources()["object_store_memory"]
        )


def node_pid() -> int:
    [pid] = [pid for pid, command in others() if "--attach-fd" in command]
    return pid


@pytest.mark.usefixtures("none")
def test_a_node_that_is_killed_is_an_error_within_a_second_wherever_one_waits() -> None:
    lattica.init(num_cpus=2)
    counter = Counter.remote()
    lattica.get(counter.add.remote())
    large = lattica.put(b"x" * (1 << 20))
    waiting = sleep.remote(30)
    errors: list[tuple[float, BaseException]] = []

    def get() -> None:
        try:
            lattica.get(waiting)
        except BaseException as error:
            errors.append((time.monotonic(), error))

    threads = [threading.Thread(target=get) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    os.kill(node_pid(), signal.SIGKILL)
    for thread in threads:
        thread.join(5)
    assert len(errors) == 3
    for ended, error in errors:
        assert isinstance(error, NodeDiedError) and ended - began < 1
    for attempt in (
        lambda: lattica.get(echo.remote(1), timeout=2),
        lambda: lattica.get(counter.add.remote(), timeout=2),
        lambda: lattica.get(Counter.remote().add.remote(), timeout=2),
        lambda: lattica.put(b"x" * (80 << 20)),
        lambda: lattica.nodes(),
        lambda: lattica.get(echo.remote(b"y" * (80 << 20)), timeout=2),
    ):
        with pytest.raises(NodeDiedError):
            attempt()
    assert lattica.get(large) == b"x" * (1 << 20), "what is mapped can still be read"
    lattica.shutdown()
    assert eventually(lambda: not others())
    lattica.init(num_cpus=1)
    assert lattica.get(echo.remote(1)) == 1


# -- forks


@pytest.mark.usefixtures("none")
def test_children_that_the_program_forks_do_no_harm(script: Script) -> None:
    out = script("""
import multiprocessing, os, sys, lattica, numpy
lattica.init(num_cpus=1)

@lattica.remote
def echo(x):
    return x

refs = [echo.remote(k) for k in range(100)]
large = lattica.put(numpy.arange(100_000))
array = lattica.get(large)

def child(k):
    assert not lattica.is_initialized()
    assert array.sum() == sum(range(100_000))
    return k

with multiprocessing.get_context("fork").Pool(2) as pool:
    print(sum(pool.map(child, range(10))))
pid = os.fork()
if not pid:
    globals().clear()
    import gc
    gc.collect()
    raise SystemExit(0)
os.waitpid(pid, 0)
print(sum(lattica.get(refs)), lattica.get(large).sum(), lattica.get(echo.remote("on")))
pid = os.fork()
if not pid:
    import lattica
    lattica.init(num_cpus=1)
    print(lattica.get(echo.remote("a session of its own")), flush=True)
    lattica.shutdown()
    os._exit(0)
os.waitpid(pid, 0)
print(lattica.get(echo.remote("still on")))
""")
    assert out.split("\n")[:4] == ["45", "4950 4999950000 on", "a session of its own", "still on"]


# -- the node of another program


@pytest.mark.usefixtures("none")
def test_commands_find_the_node_that_a_program_has_begun_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATTICA_DATA_DIR", raising=False)
    session = lattica.init(num_cpus=1)
    counter = Counter.options(name="counter").remote()
    kept = lattica.put(b"x" * 1_000_000)
    running, queued = sleep.remote(30), [sleep.remote(30) for _ in range(2)]
    assert lattica.get(counter.add.remote()) == 1
    node = eventually(running_nodes)[0]
    assert (node.driver, node.data_dir) == (os.getpid(), session["session_dir"])
    assert Path(node.socket).stat().st_mode & 0o777 == 0o600
    with NodeConnection(node_to_look_at(None)) as connection:
        assert connection.state("status")["jobs"][0]["pid"] == os.getpid()
        memory = connection.mesh("memory")
        mine = [row for row in memory["rows"] if row["object"] == kept.hex()]
        assert mine and mine[0]["pid"] == os.getpid() and memory["stores"][0]["used_bytes"] > 0
        assert eventually(lambda: {"running", "waiting"} <= states(connection)), states(connection)
        assert [row["name"] for row in connection.mesh("list", what="actors")["rows"]] == ["counter"]
        files = connection.mesh("logs_find", what="counter")
        assert connection.mesh("logs_read", node="", file=files[0]["file"], offset=-1, wait_s=0.01)["data"] == b""
        assert connection.mesh("timeline")["silent"] == []
        with pytest.raises(ConfigError, match="is in no mesh"):
            connection.mesh("whoami")
        with pytest.raises(ConfigError, match="is in no mesh"):
            connection.mesh("list", what="nodes")
        with pytest.raises(ConfigError, match="no list of"):
            connection.mesh("list", what="nonsense")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(node.socket)
        stranger.sendall(frames.encode([m.Hello(m.PROTOCOL, 1, "driver", sys.executable)]))
        assert stranger.recv(1) == b"", "commands alone are served"
    assert lattica.get(counter.add.remote()) == 2, "and the program goes on"
    assert len(queued) == 2 and running is not None
    lattica.shutdown()
    assert not running_nodes() and not os.path.exists(node.socket)


def states(connection: NodeConnection) -> set[str]:
    return {row["state"] for row in connection.mesh("list", what="tasks")["rows"]}
