"""Makes a virtual environment with packages in it: once per machine, under a lock, in a process of its own.

    node ── wanted (a file in memory) ──► main ── lines of JSON ──► node
                                            {"say": words}               progress, for whoever waits
                                            {"python", "site", "folder"} it is there
                                            {"failed": words}            it is not; with the tool's own output

An environment is known by what is asked for, by the interpreter, and by the files of this machine that it names. It
lies in <cache>/environments/<key>/, whose lock is shared by all who use it and held alone by whoever makes or deletes
it. It sees what the program's own interpreter has installed. pip runs code of the packages, so this process first gives
up sight of the node's key, as workers do. Those that nobody uses go, the longest unused first, beyond CACHE_BYTES.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from lattica.node.spawn import NOTHING_HIDDEN
from lattica.scheduler.environments import UV, Installs, decode_installs

FORMAT = 1  # of the folders; another one is another key
CACHE_BYTES = 10 << 30  # as Ray; LATTICA_ENVIRONMENTS_BYTES says otherwise
OUTPUT_CHARS = 32 << 10  # of a tool's output that an error shows, its end
NAMED_MAX = 5  # packages named in words
SHOWN = ("Collecting ", "Downloading ", "Building wheel", "Installing collected", "Successfully installed")
"""Beginnings of the lines of a tool's output that are progress."""
SHOWN_MAX = 200  # such lines
WAIT_S = 0.2  # between looks at a lock that another has
WATCH_S = 0.5  # between looks whether the node lives
_LOOK = """import importlib.util, json, site, sys
places = site.getsitepackages() + ([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])
print(json.dumps([sys.version, places, importlib.util.find_spec("pip") is not None]))
"""


class Failed(Exception):
    """It cannot be made; the words are for the user."""


def main(fd: int) -> None:
    """Make what is wanted. fd: a file in memory that says so, as JSON."""
    parent = os.getppid()
    with open(fd, "rb") as file:
        wanted = json.loads(file.read())
    if wanted["hidden"] != NOTHING_HIDDEN:
        from lattica.node import confine

        confine.confine([(path, device, inode) for path, device, inode in json.loads(wanted["hidden"])])
    threading.Thread(
        target=_end_with_the_node, args=(parent,), daemon=True
    ).start()  # confinement wants a single thread
    installs = decode_installs(bytes.fromhex(wanted["installs"]))
    assert installs is not None, "a node asks for something"
    try:
        found = Installer(installs, wanted["python"], wanted["cwd"], wanted["cache"]).run()
    except Failed as error:
        _say(failed=str(error))
    except OSError as error:
        _say(failed=f"{named(installs)} cannot be installed: {error}")
    else:
        _say(**found)


def _end_with_the_node(parent: int) -> None:
    """And with all that it runs: a node that was killed has not said so."""
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    os.killpg(0, signal.SIGKILL)


def _say(**words: str) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


class Installer:
    """One environment."""

    def __init__(self, installs: Installs, python: str, cwd: str, cache: str) -> None:
        self._installs, self._python, self._cwd = installs, python, cwd
        self._parent = os.path.join(cache, "environments")
        self._shown = 0
        look = subprocess.run([python, "-I", "-c", _LOOK], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if look.returncode:
            raise Failed(f"{python} cannot be run: {look.stderr.strip()[-OUTPUT_CHARS:]}")
        version, self._places, self._has_pip = json.loads(look.stdout)
        self._folder = os.path.join(self._parent, self._key(version))
        self._venv = os.path.join(self._folder, "venv")

    def run(self) -> dict[str, str]:
        """Where it is. Raises Failed, OSError."""
        os.makedirs(self._parent, mode=0o700, exist_ok=True)
        lock = _locked(self._folder, fcntl.LOCK_SH)
        if (found := self._ready()) is None:
            os.close(lock)
            lock = self._alone()
            found = self._ready() or self._make()
        with contextlib.suppress(OSError):
            os.utime(os.path.join(self._folder, "ready.json"))
        fcntl.flock(lock, fcntl.LOCK_SH)  # until we end, when the node has its own
        sweep(self._parent, self._folder, int(os.environ.get("LATTICA_ENVIRONMENTS_BYTES") or CACHE_BYTES))
        return found

    def _key(self, version: str) -> str:
        import hashlib

        files = list(_files(self._installs.packages, self._cwd))
        parts = [FORMAT, repr(_plain(self._installs)), self._python, version, self._places, files]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def _alone(self) -> int:
        said = False
        while True:
            with contextlib.suppress(BlockingIOError):
                return _locked(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not said:
                _say(say=f"waiting for {named(self._installs)}, which another node of this machine installs")
                said = True
            time.sleep(WAIT_S)

    def _ready(self) -> dict[str, str] | None:
        try:
            with open(os.path.join(self._folder, "ready.json")) as file:
                found = json.load(file)
            return {name: str(found[name]) for name in ("python", "site", "folder")}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _make(self) -> dict[str, str]:
        """Alone."""
        began = time.monotonic()
        for name in os.listdir(self._folder):  # what was left midway
            shutil.rmtree(os.path.join(self._folder, name), ignore_errors=True)
        _say(say=f"installing {named(self._installs)} ({self._installs.tool})")
        try:
            self._do("a virtual environment", [self._python, "-I", "-m", "venv", "--without-pip", self._venv])
            python = os.path.join(self._venv, "bin", "python")
            site = self._show_base(python)
            self._fill(python)
        except BaseException:
            shutil.rmtree(self._venv, ignore_errors=True)
            raise
        found = {"python": python, "site": site, "folder": self._venv}
        draft = os.path.join(self._folder, "ready.new")
        with open(draft, "w") as file:
            json.dump(found | {"size": size_of(self._folder)}, file)
        os.replace(draft, os.path.join(self._folder, "ready.json"))
        _say(say=f"installed {named(self._installs)} in {time.monotonic() - began:.1f} s")
        return found

    def _show_base(self, python: str) -> str:
        """Let it see what the program's own interpreter has installed, behind its own; where its own modules lie."""
        words = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = self._do("a virtual environment", [python, "-I", "-c", words]).strip()
        with open(os.path.join(site, "_lattica_base.pth"), "w") as file:
            file.writelines(f"import site; site.addsitedir({place!r})\n" for place in self._places)
        return site

    def _fill(self, python: str) -> None:
        installs = self._installs
        pip = [python, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input"]
        requirements = os.path.join(self._folder, "requirements.txt")
        with open(requirements, "w") as file:
            file.writelines(f"{line}\n" for line in installs.packages)
        if not self._has_pip and (installs.tool != UV or not shutil.which("uv")):
            self._do("pip itself", [python, "-P", "-m", "ensurepip"])
        if installs.tool == UV:
            uv = self._uv(python, pip)
            tool, at = [*uv, "pip"], ["--python", python]
        else:
            if installs.version:
                self._do(f"pip {installs.version}", [*pip, "install", f"pip{installs.version}"])
            tool, at = pip, []
        self._do(named(installs), [*tool, "install", *at, *installs.options, "-r", requirements])
        if installs.check:
            self._do("packages that go together", [*tool, "check", *at])

    def _uv(self, python: str, pip: list[str]) -> list[str]:
        """How uv is run: that of this machine, or one that is installed first."""
        found = shutil.which("uv")
        if found and not self._installs.version:
            return [found]
        self._do("uv itself", [*pip, "install", f"uv{self._installs.version}"])
        return [python, "-P", "-m", "uv"]

    def _do(self, what: str, argv: Sequence[str]) -> str:
        """Run it, show its progress; all that it printed. Raises Failed with that, as it was."""
        environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._cwd,
            env=environ,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        output = ""
        with process.stdout:
            for line in process.stdout:
                output = (output + line)[-OUTPUT_CHARS:]
                if line.strip().startswith(SHOWN) and self._shown < SHOWN_MAX:
                    self._shown += 1
                    _say(say=line.strip())
        if code := process.wait():
            self._fail(what, argv, code, output)
        return output

    def _fail(self, what: str, argv: Sequence[str], code: int, output: str) -> NoReturn:
        command = " ".join(os.path.basename(word) if at == 0 else word for at, word in enumerate(argv[:8]))
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise Failed(f"{what} cannot be had: `{command} ...` ended with {how}. It said:\n{output.rstrip()}")


def _plain(installs: Installs) -> list[Any]:
    """Its fields; `repr` hides them."""
    return [installs.tool, list(installs.packages), installs.version, list(installs.options), installs.check]


def named(installs: Installs) -> str:
    """The packages, for people: names alone, since an option or URL may hold a password."""
    names = [line for line in installs.packages if not line.startswith("-") and "://" not in line]
    more = len(installs.packages) - len(names[:NAMED_MAX])
    return ", ".join(names[:NAMED_MAX]) + (
        f" and {more} more" if more and names else "" if names else f"{more} packages"
    )


def _files(lines: Sequence[str], cwd: str) -> Iterator[tuple[str, int, int]]:
    """The files of this machine that requirements name: one that has changed is another."""
    for line in lines:
        for word in line.removeprefix("-r").removeprefix("-c").removeprefix("-e").split():
            path = os.path.join(cwd, word.removeprefix("file://").split("#")[0])
            with contextlib.suppress(OSError, ValueError):
                if os.sep in word and os.path.exists(path):
                    found = os.stat(path)
                    yield path, found.st_size, found.st_mtime_ns


def _locked(folder: str, how: int) -> int:
    """A lock on this folder, which is made. Raises BlockingIOError."""
    while True:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, how)
            if os.path.samestat(os.fstat(fd), os.stat(folder)):
                return fd
        except FileNotFoundError:
            pass  # deleted meanwhile
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def size_of(folder: str) -> int:
    """Bytes of the files in it; links count as nothing."""
    return sum(os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names)


def sweep(parent: str, keep: str, most: int) -> None:
    """Delete environments that nobody uses, the longest unused first, until the rest is no larger than that."""
    found: list[tuple[float, int, str]] = []
    for entry in os.scandir(parent):
        try:
            path = os.path.join(entry.path, "ready.json")
            with open(path) as file:
                found.append((os.stat(path).st_mtime, int(json.load(file)["size"]), entry.path))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it is being made
    over = sum(size for _, size, _ in found) - most
    for _, size, folder in sorted(found):
        if over <= 0:
            return
        if folder == keep:
            continue
        try:
            lock = _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        over -= size
