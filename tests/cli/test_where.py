"""Which node a command means that names none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lattica.cli.client import node_of
from lattica.node import paths, running
from tests.cli.conftest import Lattica
from tests.cli.fake_node import FakeNode

Begin = Callable[..., FakeNode]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> Iterator[Begin]:
    """Begin nodes that the usual data directory knows nothing of."""
    for variable in ("XDG_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv(paths.DATA_DIR_VARIABLE)
    nodes = []

    def begin(name: str, *, driver: int = 0) -> FakeNode:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        node = FakeNode(folder)
        node.mesh["list"] = {"rows": [{"class_name": name}], "silent": []}
        listens = os.path.join(paths.runtime_dir(), f"{name}.sock")
        os.rename(node.file.socket, listens)
        running.announce(replace(node.file, socket=listens, data_dir=str(folder), driver=driver))
        nodes.append(node)
        return node

    yield begin
    for node in nodes:
        node.close()


def test_the_only_node_is_looked_at_and_named_on_stderr(lattica: Lattica, begin: Begin) -> None:
    begin("mine", driver=os.getpid())
    result = lattica("list", "actors")
    assert result.exit_code == 0, result.output
    assert "mine" in result.stdout and "no node runs in" not in result.stdout
    assert f"this is the node of {Path('/proc/self/cmdline').read_text().split(chr(0))[0][:20]}" in result.stderr
    assert f"(pid {os.getpid()})" in result.stderr


def test_of_several_all_are_listed_with_the_way_to_choose_one(lattica: Lattica, begin: Begin, tmp_path: Path) -> None:
    begin("mine", driver=os.getpid())
    begin("shared")
    result = lattica("memory")
    assert result.exit_code == 1
    for part in ("2 nodes of yours", str(tmp_path / "mine"), str(tmp_path / "shared"), "lattica start", "--data-dir"):
        assert part in result.stderr, result.stderr
    stopped = lattica("stop", "--data-dir", str(tmp_path / "mine"))
    assert stopped.exit_code == 1 and f"(pid {os.getpid()}), and ends with it" in stopped.stderr
    chosen = lattica("list", "actors", "--data-dir", str(tmp_path / "mine"))
    assert chosen.exit_code == 0 and "mine" in chosen.stdout and not chosen.stderr


def test_where_the_environment_names_a_node_no_other_is_looked_at(
    lattica: Lattica, begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin("mine", driver=os.getpid())
    monkeypatch.setenv(paths.DATA_DIR_VARIABLE, str(tmp_path / "empty"))
    assert "no node runs on the data directory" in lattica("status").stderr


def test_what_changes_something_is_told_of_nodes_elsewhere_and_takes_none(lattica: Lattica, begin: Begin) -> None:
    begin("shared")
    begin("mine", driver=os.getpid())
    result = lattica("ticket")
    assert result.exit_code == 1 and "nodes of yours run on others" in result.stderr
    assert "shared" in result.stderr and "mine" not in result.stderr


def test_the_usual_node_is_meant_wherever_else_others_run(lattica: Lattica, begin: Begin, tmp_path: Path) -> None:
    begin("mine", driver=os.getpid())
    usual = begin("usual")
    paths.make_data_dir(paths.data_dir())
    paths.write_node_file(paths.data_dir(), usual.file)
    assert node_of(None) == usual.file
