"""`lattica leave`, on a membership of real files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click.testing
import pytest

from lattica.cli.main import main
from lattica.mesh import credentials
from lattica.node import membership, paths
from tests.cli.conftest import Lattica
from tests.cli.fake_node import FakeNode


@pytest.fixture
def founded(data_dir: Path) -> Path:
    """A machine that has founded a mesh, and met a peer: its identity folder."""
    identity = Path(paths.identity_dir(str(data_dir)))
    credentials.found(str(identity), time.time())
    (identity / "mesh" / "peers").write_text("{}")
    return identity


def test_what_is_deleted_is_said_and_the_key_stays(lattica: Lattica, founded: Path) -> None:
    key = (founded / "node.key").read_bytes()
    result = lattica("leave", "--yes")
    assert result.exit_code == 0, result.output
    for name in ("membership", "issuer.key", "trust", "peers"):
        assert f"  {founded}/mesh/{name}  " in result.output and not (founded / "mesh" / name).exists()
    assert "see to it that the mesh has another" in result.output and "has left its mesh" in result.output
    assert (founded / "node.key").read_bytes() == key
    assert credentials.load(str(founded), time.time()) is None
    assert "is in no mesh" in lattica("leave").output


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, True), ("n\n", 1, False), ("\n", 1, False)])
def test_leave_asks_before_it_deletes_anything(founded: Path, answer: str, code: int, left: bool) -> None:
    result = click.testing.CliRunner().invoke(main, ["leave"], prog_name="lattica", input=answer)
    assert result.exit_code == code and "leave the mesh?" in result.output
    assert bool(membership.files_of(str(founded))) != left
    os.close(paths.lock_data_dir(str(founded.parent)))  # it is free again


def test_while_a_node_runs_nothing_is_deleted(lattica: Lattica, founded: Path, node: FakeNode) -> None:
    result = lattica("leave", "--yes")
    assert result.exit_code == 1 and "lattica stop" in result.output
    assert len(membership.files_of(str(founded))) == 4


def test_while_a_node_starts_nothing_is_deleted(lattica: Lattica, founded: Path) -> None:
    lock = paths.lock_data_dir(str(founded.parent))
    result = lattica("leave", "--yes")
    os.close(lock)
    assert result.exit_code == 1 and len(membership.files_of(str(founded))) == 4


def test_where_nothing_was_there_is_nothing_to_leave(lattica: Lattica, data_dir: Path) -> None:
    result = lattica("leave", "--yes", "--data-dir", str(data_dir / "elsewhere"))
    assert result.exit_code == 0 and "is in no mesh" in result.output and not (data_dir / "elsewhere").exists()
