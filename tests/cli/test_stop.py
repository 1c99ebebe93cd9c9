"""`lattica stop`. The node's process is `sleep`, or a shell that ignores SIGTERM."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lattica.cli import stop
from lattica.node import paths
from tests.cli.conftest import Lattica
from tests.cli.fake_node import FakeNode


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def stubborn() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ignores SIGTERM, and has said so."""
    shell = ["sh", "-c", "trap '' TERM; echo deaf; read x"]
    with subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def without_a_socket(data_dir: Path, process: subprocess.Popen[bytes]) -> None:
    """A node file of a node that does not answer."""
    birth = paths.process_birth(process.pid)
    paths.write_node_file(str(data_dir), paths.NodeFile(process.pid, birth, "/nowhere.sock", "cd" * 16, "0.1.0"))


def test_where_nothing_runs_there_is_nothing_to_do(lattica: Lattica, data_dir: Path) -> None:
    result = lattica("stop")
    assert result.exit_code == 0
    assert result.output == f"no node runs on {data_dir}\n"
    assert lattica("stop", "--json").output == "null\n"


def test_a_node_is_asked_to_end_and_waited_for(
    lattica: Lattica, data_dir: Path, process: subprocess.Popen[bytes]
) -> None:
    node = FakeNode(data_dir, pid=process.pid)
    node.told_to_end = process.kill
    paths.write_node_file(str(data_dir), node.file)
    result = lattica("stop")
    node.close()
    assert result.exit_code == 0
    assert result.output == f"node abababab (pid {process.pid}) has ended\n"
    assert process.wait() == -9, "it was the node that ended it, not SIGTERM"


def test_a_node_that_does_not_answer_is_ended_by_sigterm(
    lattica: Lattica, data_dir: Path, process: subprocess.Popen[bytes]
) -> None:
    without_a_socket(data_dir, process)
    assert lattica("stop").exit_code == 0
    assert process.wait() == -15


def test_a_node_that_does_not_end_is_left_to_the_user(
    lattica: Lattica, data_dir: Path, stubborn: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "END_WAIT_S", 0.01)
    without_a_socket(data_dir, stubborn)
    result = lattica("stop")
    assert result.exit_code == 1
    assert "lattica stop --force" in result.output
    assert stubborn.poll() is None


def test_force_kills_a_node_that_does_not_end(
    lattica: Lattica, data_dir: Path, stubborn: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "END_WAIT_S", 0.01)
    without_a_socket(data_dir, stubborn)
    assert lattica("stop", "--force").exit_code == 0
    assert stubborn.wait() == -9


def test_a_process_that_has_a_dead_nodes_pid_is_left_alone(
    lattica: Lattica, data_dir: Path, process: subprocess.Popen[bytes]
) -> None:
    without_a_socket(data_dir, process)
    node = paths.read_node_file(str(data_dir))
    paths.write_node_file(str(data_dir), replace(node, birth="another-boot/17"))
    assert "no node runs" in lattica("stop", "--force").output
    assert process.poll() is None


@pytest.fixture
def left_behind(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The socket of a node that was killed, and its node file."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("TMPDIR", str(data_dir))
    path = paths.socket_path(str(data_dir))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
    paths.write_node_file(str(data_dir), paths.NodeFile(1, "another-boot/17", path, "cd" * 16, "0.1.0"))
    yield Path(path)


def test_what_a_killed_node_has_left_is_removed(lattica: Lattica, data_dir: Path, left_behind: Path) -> None:
    assert lattica("stop").output == f"no node runs on {data_dir}\n"
    assert not left_behind.exists() and paths.read_node_file(str(data_dir)) is None


def test_a_node_that_had_to_be_killed_leaves_nothing(
    lattica: Lattica, data_dir: Path, left_behind: Path, process: subprocess.Popen[bytes]
) -> None:
    birth = paths.process_birth(process.pid)
    paths.write_node_file(str(data_dir), paths.NodeFile(process.pid, birth, str(left_behind), "cd" * 16, "0.1.0"))
    assert lattica("stop").exit_code == 0
    assert not left_behind.exists() and paths.read_node_file(str(data_dir)) is None


def test_while_a_node_begins_or_ends_nothing_is_removed(lattica: Lattica, data_dir: Path, left_behind: Path) -> None:
    lock = paths.lock_data_dir(str(data_dir))
    assert "no node runs" in lattica("stop").output
    os.close(lock)
    assert left_behind.exists() and paths.read_node_file(str(data_dir)) is not None


def test_no_file_is_removed_because_a_node_file_names_it(lattica: Lattica, data_dir: Path, left_behind: Path) -> None:
    precious = data_dir / "precious"
    precious.write_text("kept")
    for named in (precious, data_dir / left_behind.name):
        named.touch()
        paths.write_node_file(str(data_dir), paths.NodeFile(1, "another-boot/17", str(named), "cd" * 16, "0.1.0"))
        assert lattica("stop").exit_code == 0
        assert named.exists() and paths.read_node_file(str(data_dir)) is None
