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
from lattica.scheduler.environments import (
    NOTHING,
    PACKAGES_MAX,
    PY_MODULE,
    WORKING_DIR,
    Environment,
    Travels,
    Wanted,
    merged,
    read,
)

if TYPE_CHECKING:
    from lattica.node.packages import Packed

JOB_VARIABLE = "LATTICA_JOB_ENVIRONMENT"
"""Environment variable of the script of a submitted job: what its workers shall have, as JSON of a `Submitted`."""


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


def make(given: Mapping[str, Any] | None, environ: Mapping[str, str] = os.environ) -> tuple[Environment, Folder | None]:
    """The environment of a driver's job, and the folder that it needs. given: `runtime_env`.

    Raises ConfigError for what cannot be had, and for folders that cannot be packed.
    """
    wanted = read(given or {})
    packages, folder = lay_out(wanted)
    return merged(_around(environ), wanted, packages, folder.path if folder is not None else ""), folder


def lay_out(wanted: Wanted) -> tuple[list[Travels], Folder | None]:
    """Pack the folders that it names: packages, and the folder that they lie in, if there are any.

    Raises ConfigError.
    """
    found: list[tuple[str, Packed]] = []
    if wanted.working_dir is not None or wanted.py_modules:
        from lattica.node import packages

        if wanted.working_dir is not None:
            found.append((WORKING_DIR, packages.pack(os.path.abspath(wanted.working_dir), wanted.excludes)))
        for module in wanted.py_modules or ():
            found.append((PY_MODULE, packages.pack_module(_path_of(module), wanted.excludes)))
    return _laid_out(found) if found else ([], None)


def _laid_out(found: Sequence[tuple[str, Packed]]) -> tuple[list[Travels], Folder]:
    from lattica.node import packages, paths

    session = paths.open_session(paths.embedded_sessions(), keep=0)
    folder = Folder(session.path, session.shared())
    here: list[Travels] = []
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
    return here, folder


def _around(environ: Mapping[str, str]) -> Environment:
    """What a submitted job gives to its script's workers."""
    submitted = _submitted(environ)
    if submitted is None:
        return NOTHING
    variables = {name: environ[name] for name in submitted.variables if name in environ}
    return Environment(variables, [Travels(WORKING_DIR, submitted.package, submitted.folder)])


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
