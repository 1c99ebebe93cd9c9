"""`lattica start`, `status` and `stop` with real nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lattica
from lattica.node import paths
from tests.e2e.conftest import Sessions, eventually

COMMAND = [sys.executable, "-c", "from lattica.cli.main import main; main()"]


@pytest.fixture
def place(sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data directory of the test's own, whose node, if one is left running, ends with the test."""
    sessions.end()
    monkeypatch.setenv("LATTICA_DATA_DIR", str(tmp_path / "node"))
    yield tmp_path / "node"
    sessions.end()
    run("stop")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=20)


def status() -> Any:
    done = run("status", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_node_starts_serves_shows_itself_and_stops(place: Path) -> None:
    begun = run("start", "--num-cpus", "3", "--num-gpus", "1", "--resources", '{"licence": 2}')
    assert begun.returncode == 0, begun.stderr
    again = run("start")
    assert again.returncode != 0 and "runs" in again.stderr + again.stdout
    lattica.init(namespace="shown")

    @lattica.remote
    class Worker:
        def ready(self) -> int:
            return os.getpid()

    worker = Worker.options(name="the worker", num_cpus=1).remote()
    pid = lattica.get(worker.ready.remote())
    kept = lattica.put(b"x" * (1 << 20))
    told = status()
    assert told["resources"]["total"]["CPU"] == 3 and told["resources"]["total"]["licence"] == 2
    assert eventually(lambda: status()["resources"]["available"]["CPU"] == 2)
    [job] = told["jobs"]
    assert job["pid"] == os.getpid() and job["namespace"] == "shown"
    [actor] = told["actors"]
    assert (actor["name"], actor["pid"], actor["state"].upper()) == ("the worker", pid, "ALIVE")
    assert told["memory"]["objects"] >= 1 or told["memory"]["used_bytes"] > 0
    people = run("status").stdout
    assert "the worker" in people and "CPU" in people and str(pid) in people
    del kept
    lattica.shutdown()
    assert eventually(lambda: not status()["jobs"])
    assert run("stop").returncode == 0
    assert run("status").returncode != 0
    assert not (place / "node.json").exists()


def test_start_with_block_ends_on_sigterm_with_everything_it_started(place: Path) -> None:
    node = subprocess.Popen([*COMMAND, "start", "--block", "--num-cpus", "1"], stdout=subprocess.PIPE, text=True)
    assert node.stdout is not None and "serves" in node.stdout.readline(), "it hands signals on from now"
    lattica.init()
    pid = lattica.get(lattica.remote(os.getpid).remote())
    began = time.monotonic()
    node.send_signal(signal.SIGTERM)
    node.communicate(timeout=10)
    assert node.returncode == 0 and time.monotonic() - began < 4
    assert eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    with pytest.raises(lattica.exceptions.NodeDiedError):
        lattica.get(lattica.remote(os.getpid).remote(), timeout=5)


@pytest.mark.parametrize("when", ["lock", "node.log", "sessions", "identity"])
def test_sigterm_while_a_node_in_the_foreground_starts_ends_both_and_tidies_up(place: Path, when: str) -> None:
    """Two-tenths of a second in which a supervisor may change its mind: the session of the node is closed in any case,
    and its socket is gone."""
    command = subprocess.Popen([*COMMAND, "start", "--block", "--num-cpus", "0"], stderr=subprocess.PIPE, text=True)
    assert eventually(lambda: (place / when).exists(), every_s=0.002)
    command.send_signal(signal.SIGTERM)
    _, said = command.communicate(timeout=10)
    assert command.returncode in ((0, -signal.SIGTERM) if when == "lock" else (0,)) and not said
    os.close(paths.lock_data_dir(str(place)))  # nobody has it
    assert not (place / "node.json").exists() and not os.path.exists(paths.socket_path(str(place)))
    log = place / "node.log"
    assert not log.exists() or "Traceback" not in log.read_text()


def test_two_nodes_of_one_machine_are_told_apart_by_their_directories(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = place.with_name("other")
    assert run("start", "--num-cpus", "1").returncode == 0
    assert run("start", "--num-cpus", "2", "--data-dir", str(other)).returncode == 0
    try:
        assert status()["resources"]["total"]["CPU"] == 1
        monkeypatch.setenv("LATTICA_DATA_DIR", str(other))
        with lattica.init():
            assert lattica.cluster_resources()["CPU"] == 2
        monkeypatch.setenv("LATTICA_DATA_DIR", str(place))
        with lattica.init():
            assert lattica.cluster_resources()["CPU"] == 1
    finally:
        assert run("stop", "--data-dir", str(other)).returncode == 0
    assert status()["resources"]["total"]["CPU"] == 1


def test_a_node_that_was_killed_is_not_taken_for_a_living_one(place: Path) -> None:
    assert run("start", "--num-cpus", "1").returncode == 0
    os.kill(status()["node"]["pid"], signal.SIGKILL)
    assert eventually(lambda: run("status").returncode != 0)
    with pytest.raises(lattica.errors.ConfigError):
        lattica.init("auto")
    assert run("start", "--num-cpus", "2").returncode == 0
    with lattica.init("auto"):
        assert lattica.get(lattica.remote(lambda: 1).remote()) == 1
