"""The log of a node that runs for months."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lattica.node import node_log


@pytest.fixture
def fds() -> tuple[int, int]:
    """Stand in for stdout and stderr."""
    pair = os.open("/dev/null", os.O_WRONLY), os.open("/dev/null", os.O_WRONLY)
    yield pair  # type: ignore[misc]
    for fd in pair:
        os.close(fd)


def test_a_full_log_begins_anew_and_one_before_it_is_kept(tmp_path: Path, fds: tuple[int, int]) -> None:
    path = str(tmp_path / "node.log")
    node_log.write_to(path, fds)
    os.write(fds[0], b"first\n")
    assert not node_log.rotate(path, fds, 100)
    for round in range(3):
        os.write(fds[round % 2], b"%d" % round * 101)
        assert node_log.rotate(path, fds, 100)
        os.write(fds[0], b"out\n")
        os.write(fds[1], b"err\n")
    assert sorted(os.listdir(tmp_path)) == ["node.log", "node.log.1"]
    assert Path(path).read_bytes() == b"out\nerr\n", "both streams go on in the new one"
    assert Path(path + ".1").read_bytes() == b"out\nerr\n" + b"2" * 101
    assert os.stat(path).st_mode & 0o777 == 0o600
