"""Which nodes of this user are believed to run, and whom a program attaches to."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lattica.errors import ConfigError
from lattica.node import paths, running
from lattica.node.paths import NodeFile


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where nodes of ours listen."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield Path(paths.runtime_dir())


def begun(folder: Path, name: str, *, pid: int = 0, driver: int = 0, since: float = 1.0) -> NodeFile:
    """A node that has said that it runs; this process plays it."""
    pid = pid or os.getpid()
    socket = str(folder / f"{name}.sock")
    node = NodeFile(
        pid, paths.process_birth(os.getpid()), socket, "ab" * 16, "0.1.0", "", f"/data/{name}", since, driver
    )
    Path(socket).touch()
    running.announce(node)
    return node


def test_nodes_are_found_the_oldest_first_until_they_end(folder: Path) -> None:
    young, old = begun(folder, "young", since=2.0), begun(folder, "old", driver=7)
    assert running.running_nodes() == [old, young]
    running.retract(old.socket)
    running.retract(old.socket)
    assert running.running_nodes() == [young]


def test_what_a_killed_embedded_node_left_is_removed_and_of_others_the_next_has_the_names(folder: Path) -> None:
    begun(folder, "own", pid=1, driver=7)
    shared = begun(folder, "shared", pid=1)
    assert running.running_nodes() == []
    assert sorted(os.listdir(folder)) == ["shared.json", "shared.sock"]
    assert shared.socket == str(folder / "shared.sock")


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o711])
def test_a_folder_that_is_open_to_others_names_no_node(folder: Path, mode: int) -> None:
    begun(folder, "a")
    folder.chmod(mode)
    assert running.running_nodes() == []


def test_a_file_that_others_may_read_or_a_link_or_the_name_of_another_socket_is_no_node(folder: Path) -> None:
    node = begun(folder, "a")
    entry = folder / "a.json"
    (folder / "b.json").write_bytes(entry.read_bytes())
    (folder / "b.json").chmod(0o600)
    (folder / "c.json").symlink_to(entry)
    (folder / "d.json").write_text("{")
    assert running.running_nodes() == [node]
    entry.chmod(0o644)
    assert running.running_nodes() == []


def test_an_embedded_node_is_known_by_its_sessions_folder(folder: Path) -> None:
    node = begun(folder, "own", driver=7)
    begun(folder, "shared")
    assert running.embedded_on("/data/../data/own") == node
    assert running.embedded_on("/data/shared") is None


def test_a_program_attaches_to_the_only_node_that_serves_whoever_comes(folder: Path) -> None:
    begun(folder, "own", driver=7)
    shared = begun(folder, "shared")
    assert running.node_elsewhere("/usual", named=False) == shared
    with pytest.raises(ConfigError, match="no node runs on this machine"):
        running.node_elsewhere("/usual", named=True)
    begun(folder, "other")
    with pytest.raises(
        ConfigError, match=r"2 nodes of yours.*/data/other.*/data/shared|2 nodes.*/data/shared.*/data/other"
    ):
        running.node_elsewhere("/usual", named=False)


def test_another_programs_own_node_is_named_and_not_attached_to(folder: Path) -> None:
    begun(folder, "own", driver=4711)
    for place, named in (("/usual", False), ("/data/own", True)):
        with pytest.raises(ConfigError, match="4711 belongs to it alone") as refused:
            running.node_elsewhere(place, named=named)
        assert "lattica start" in str(refused.value)


def test_an_embedded_node_listens_under_its_sessions_name_where_the_path_is_short_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    long = tmp_path / ("x" * 90)
    long.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with ExitStack() as stack:
        where = running.embedded_socket("/tmp/lattica-0/sessions/17-42")
        assert os.path.basename(where) == "17-42.sock"
        if not where.startswith(str(long)):
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(where)
