"""Commands run in this process, against a node that a thread plays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click.testing
import pytest

from lattica.cli import daemon
from lattica.cli.main import main
from lattica.node import paths
from tests.cli.fake_node import FakeNode
from tests.cli.stage import Stage

Lattica = Callable[..., click.testing.Result]


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory that the environment names."""
    monkeypatch.setenv(paths.DATA_DIR_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def lattica(data_dir: Path) -> Lattica:
    """Run the command with these words."""
    return lambda *words: click.testing.CliRunner().invoke(main, words, prog_name="lattica")


@pytest.fixture
def node(data_dir: Path) -> Iterator[FakeNode]:
    """A node that runs on the data directory."""
    node = FakeNode(data_dir)
    paths.write_node_file(str(data_dir), node.file)
    yield node
    node.close()


@pytest.fixture
def stage(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """What `lattica start` starts."""
    stage = Stage(data_dir)
    monkeypatch.setattr(daemon, "spawn", stage.spawn)
    yield stage
    if stage.node:
        stage.node.close()
