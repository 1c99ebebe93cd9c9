"""CPython's `test` package with its tests of executors, put first on the path of this process and of what it starts.

Source builds of Python (python.org, pyenv, uv, conda-forge's `python` on some platforms) install it; Debian and Ubuntu
keep it in libpython3.X-testsuite, which needs no root to unpack; slim images have nothing. Nothing is copied into the
repository.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

NAME = "test_concurrent_futures"
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
WHY_NOT = (
    f"this Python {VERSION} comes without CPython's tests, and `apt-get download libpython{VERSION}-testsuite` did "
    "not help: use a Python built from source (pyenv, uv), or a Debian or Ubuntu with package lists (apt-get update)"
)
PARTS = ("executor", "util", "test_shutdown", "test_wait", "test_as_completed", "test_init")
"""Modules of the package that the file became in Python 3.12."""


@cache
def folder(name: str = NAME) -> Path | None:
    """What is first on the path now: a folder whose `test` package has a module of this name; None if none has."""
    own = Path(sysconfig.get_path("stdlib"), "test")
    if list(own.glob(f"{name}*")):
        return own.parent
    cache = Path(sys.prefix, ".foreign", f"cpython-{VERSION}")
    if not list((cache / "test").glob(f"{name}*")):
        unpacked = own.exists() and _from_debian(cache / "package", name)
        if not unpacked:
            return None
        _join(cache / "test", own, unpacked)
    sys.path.insert(0, str(cache))
    for name in [name for name in sys.modules if name == "test" or name.startswith("test.")]:
        del sys.modules[name]
    return cache


def _from_debian(place: Path, name: str) -> Path | None:
    """The `test` folder of Debian's package, unpacked there; None if it has no module of this name."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        package = f"libpython{VERSION}-testsuite"
        got = subprocess.run(["apt-get", "download", package], cwd=scratch, capture_output=True, timeout=300)
        files = list(Path(scratch).glob("*.deb"))
        if got.returncode or not files:
            return None
        place.mkdir(parents=True, exist_ok=True)
        if subprocess.run(["dpkg", "-x", files[0], place], capture_output=True, timeout=300).returncode:
            return None
    return next((found.parent for found in place.rglob(f"test/{name}*")), None)


def _join(place: Path, *sources: Path) -> None:
    """Links to everything of these folders; of the first that has it."""
    place.mkdir(parents=True, exist_ok=True)
    for source in sources:
        for entry in source.iterdir():
            link = place / entry.name
            if entry.name != "__pycache__" and not link.is_symlink():
                link.symlink_to(entry)


@cache
def modules() -> list[ModuleType]:
    """Where the tests lie: one module up to Python 3.11, several since."""
    whole = importlib.import_module(f"test.{NAME}")
    if hasattr(whole, "ExecutorMixin"):
        return [whole]
    return [importlib.import_module(f"test.{NAME}.{part}") for part in PARTS]


def suites() -> dict[str, Any]:
    """Every class of theirs by name."""
    return {name: value for module in modules() for name, value in vars(module).items() if isinstance(value, type)}
