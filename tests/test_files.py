"""Files that are kept to their owner."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lattica import files
from lattica.errors import ConfigError


def test_a_private_file_is_its_owner_s_whatever_the_mask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files.write_private(str(tmp_path / "file"), b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert files.read_private(str(tmp_path / "file"), 2, "the file", "") == b"ne"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.write_private(str(path), b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        files.write_private(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_not_there_reads_as_none_and_is_removed_without_a_word(tmp_path: Path) -> None:
    assert files.read_private(str(tmp_path / "file"), 10, "the file", "") is None
    files.remove(str(tmp_path / "file"))


def test_a_file_that_others_may_read_and_what_is_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "open").write_bytes(b"secret")
    (tmp_path / "open").chmod(0o640)
    with pytest.raises(ConfigError, match=r"(?s)the file .*mode 640.*chmod 600.*make a new one"):
        files.read_private(str(tmp_path / "open"), 10, "the file", "make a new one")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="not a file of yours"):
        files.read_private(str(tmp_path / "pipe"), 10, "the file", "")
