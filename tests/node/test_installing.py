"""Environments in the cache: how they are known, what is said of them, and which go."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path

import pytest

from lattica.node.installing import Installer, named, size_of, sweep
from lattica.scheduler.environments import Installs


def key(tmp_path: Path, *packages: str, tool: str = "pip", check: bool = False) -> str:
    installer = Installer(Installs(tool, packages, check=check), sys.executable, str(tmp_path), str(tmp_path / "cache"))
    return Path(installer._folder).name


def test_an_environment_is_known_by_what_is_asked_for_and_by_the_files_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_text("one")
    first = key(tmp_path, "numpy", "./a.whl")
    assert first == key(tmp_path, "numpy", "./a.whl")
    others = [
        key(tmp_path, "numpy", "./a.whl", tool="uv"),
        key(tmp_path, "numpy"),
        key(tmp_path, "numpy", "./a.whl", check=True),
    ]
    (tmp_path / "a.whl").write_text("another")
    assert len({first, key(tmp_path, "numpy", "./a.whl"), *others}) == 5


@pytest.mark.parametrize(
    ("packages", "words"),
    [
        (("numpy==2", "torch"), "numpy==2, torch"),
        (("--find-links https://me:secret@x", "numpy"), "numpy and 1 more"),
        (("git+https://me:secret@x/y",), "1 packages"),
        (tuple("abcdefg"), "a, b, c, d, e and 2 more"),
    ],
)
def test_packages_are_named_without_options_and_urls_which_may_hold_a_password(
    packages: tuple[str, ...], words: str
) -> None:
    assert named(Installs("pip", packages)) == words


def test_what_nobody_uses_goes_when_all_are_too_large_the_longest_unused_first(tmp_path: Path) -> None:
    for at, name in enumerate(("old", "used", "newer", "mine")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "ready.json").write_text(json.dumps({"size": 100}))
        os.utime(folder / "ready.json", (at, at))
    (tmp_path / "made just now").mkdir()
    used = os.open(tmp_path / "used", os.O_RDONLY)
    fcntl.flock(used, fcntl.LOCK_SH)
    sweep(str(tmp_path), str(tmp_path / "mine"), 400)
    assert len(os.listdir(tmp_path)) == 5, "there is room"
    sweep(str(tmp_path), str(tmp_path / "mine"), 300)
    assert sorted(os.listdir(tmp_path)) == ["made just now", "mine", "newer", "used"]
    sweep(str(tmp_path), str(tmp_path / "mine"), 0)
    assert sorted(os.listdir(tmp_path)) == ["made just now", "mine", "used"]
    os.close(used)
    (tmp_path / "mine" / "link").symlink_to("ready.json")
    assert size_of(str(tmp_path / "mine")) == len(json.dumps({"size": 100})) + len("ready.json")
