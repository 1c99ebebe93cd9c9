"""What a job's workers have around them beside the machine: variables, a working directory, modules.

    init(runtime_env=...) ─ make() ─► a folder of the driver's own: packages by CID, and beside them their files
                                          │ Hello.job: paths for the workers here, CIDs for those elsewhere
                                          ▼
                    node ── JobIs ──► another node fetches packages by CID, once, and puts its own paths in their place

The folder lies among the sessions of embedded nodes, which tasks see. Its driver and its node both hold a shared lock
on it; whoever lets go last deletes it, so the files of a detached actor stay while its job does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.errors import ConfigError

if TYPE_CHECKING:
    from lattica.node.packages import Packed

KEYS = ("env_vars", "working_dir", "py_modules", "excludes")
IGNORED = ("config", "eager_install")  # of Ray's, which say how and when its own are installed
WORKING_DIR, PY_MODULE = "working_dir", "py_module"
PACKAGES_MAX = 32
VARIABLES_MAX_CHARS = 64 << 10
JOB_VARIABLE = "LATTICA_JOB_ENVIRONMENT"
"""Environment variable of the script of a submitted job: what its workers shall have, as JSON of a `Submitted`."""


class Travels(msgspec.Struct, array_like=True, frozen=True):
    """A package of a job. path: where its files lie on this machine, "" on the wire."""

    kind: str
    cid: str
    path: str = ""


class Environment(msgspec.Struct, frozen=True):
    """Of one job. shelf: the folder of its driver that holds the packages."""

    env_vars: dict[str, str] = {}
    packages: list[Travels] = []
    shelf: str = ""

    def paths(self) -> list[str]:
        """What stands at the front of the workers' sys.path for it."""
        return [package.path for package in self.packages if package.path]

    def cwd(self) -> str:
        """The working directory; "" if it says nothing."""
        return next((package.path for package in self.packages if package.kind == WORKING_DIR), "")


NOTHING = Environment()


class Submitted(msgspec.Struct, frozen=True):
    """What a node says to the script of a job that was submitted."""

    package: str
    folder: str
    variables: list[str] = []


class Folder:
    """A folder with an environment's packages, for as long as somebody holds it."""

    def __init__(self, path: str, lock: int = -1) -> None:
        """lock: a shared one; without it, hold the folder of a driver. Raises OSError."""
        self.path, self._lock = path, lock
        if lock >= 0:
            return
        import fcntl

        self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Let it go, and delete it if nobody else holds it."""
        import fcntl
        import shutil

        if self._lock < 0:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.path, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(self._lock)
            self._lock = -1


def check(given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a `runtime_env` that cannot be had."""
    unknown = [key for key in given if key not in (*KEYS, *IGNORED)]
    if unknown:
        raise ConfigError(
            f"runtime_env has {', '.join(map(repr, unknown))}, which this release of lattica does not support",
            do_next=f"it takes {', '.join(KEYS)}; install packages where the nodes run",
        )
    variables = given.get("env_vars") or {}
    if not isinstance(variables, Mapping) or not all(
        isinstance(text, str) for pair in variables.items() for text in pair
    ):
        raise ConfigError("env_vars of runtime_env must be a dict of strings")
    if any(not name or "=" in name or "\0" in name + value for name, value in variables.items()):
        raise ConfigError("env_vars of runtime_env has a name or value that no variable can have")
    if sum(len(name) + len(value) for name, value in variables.items()) > VARIABLES_MAX_CHARS:
        raise ConfigError(f"env_vars of runtime_env has more than {VARIABLES_MAX_CHARS} characters")
    modules = given.get("py_modules") or ()
    if isinstance(modules, str) or not isinstance(modules, Sequence) or len(modules) >= PACKAGES_MAX:
        raise ConfigError(f"py_modules of runtime_env must be a list of at most {PACKAGES_MAX - 1} folders or modules")
    if not isinstance(given.get("working_dir") or "", str | os.PathLike):
        raise ConfigError("working_dir of runtime_env must be the path of a folder")


def make(given: Mapping[str, Any] | None, environ: Mapping[str, str] = os.environ) -> tuple[Environment, Folder | None]:
    """The environment of a driver's job, and the folder that it needs. given: `runtime_env`, checked.

    Raises ConfigError for folders that cannot be packed.
    """
    given = given or {}
    env_vars = dict(given.get("env_vars") or {})
    submitted = _submitted(environ)
    found: list[tuple[str, Packed]] = []
    here: list[Travels] = []
    if submitted is not None:
        env_vars = {name: environ[name] for name in submitted.variables if name in environ} | env_vars
        if not given.get("working_dir"):
            here = [Travels(WORKING_DIR, submitted.package, submitted.folder)]
    if given.get("working_dir") or given.get("py_modules"):
        from lattica.node import packages

        excludes = tuple(given.get("excludes") or ())
        if folder := given.get("working_dir"):
            found.append((WORKING_DIR, packages.pack(os.path.abspath(folder), excludes)))
        for module in given.get("py_modules") or ():
            found.append((PY_MODULE, packages.pack_module(_path_of(module), excludes)))
    if not found:
        return Environment(env_vars, here), None
    return _laid_out(env_vars, here, found)


def _laid_out(
    env_vars: dict[str, str], here: list[Travels], found: Sequence[tuple[str, Packed]]
) -> tuple[Environment, Folder]:
    from lattica.node import packages, paths

    session = paths.open_session(paths.embedded_sessions(), keep=0)
    folder = Folder(session.path, session.shared())
    try:
        shelf = packages.Shelf(folder.path)
        for kind, packed in found:
            shelf.put(packed)
            place = os.path.join(folder.path, f"{packed.cid}.files")
            if not os.path.isdir(place):
                packages.unpack(packed.data, place)
            here.append(Travels(kind, packed.cid, place))
    except BaseException:
        folder.close()
        raise
    return Environment(env_vars, here, folder.path), folder


def _submitted(environ: Mapping[str, str]) -> Submitted | None:
    try:
        return msgspec.json.decode(environ.get(JOB_VARIABLE, ""), type=Submitted)
    except msgspec.DecodeError:
        return None


def _path_of(module: object) -> str:
    """Where a module lies that is given by its path, or as itself."""
    if isinstance(module, str | os.PathLike):
        return os.path.abspath(module)
    places = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
    if not places[0]:
        raise ConfigError(f"{module!r:.80} of py_modules is neither a path nor a module with files")
    return str(places[0])


def here_of(environment: Environment, sessions: str) -> Environment:
    """What a node believes of a driver's word: the folder must be one of the user's sessions, and all paths absolute.

    Raises ConfigError.
    """
    shelf = environment.shelf
    if shelf and os.path.dirname(os.path.realpath(shelf)) != os.path.realpath(sessions):
        raise ConfigError(f"packages lie in {shelf!r:.200}, which is no folder of a driver")
    if len(environment.packages) > PACKAGES_MAX or not all(os.path.isabs(path) for path in environment.paths()):
        raise ConfigError("a job's packages cannot be understood")
    return environment
