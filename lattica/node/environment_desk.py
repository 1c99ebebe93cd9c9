"""Environments of tasks and actors on this node: which there are of a job, and the virtual environments they need.

    EnvironmentIs(key) ─► a variant: a job beside the job, with workers of its own, that ends with it
    a lease of such    ─► wait(lease) ─► an installer at work ─► the lease gets its worker, or is denied

A worker belongs to one variant for life, so two environments never meet in one. What is installed lies in a folder of
this user's cache, made once per machine (`node.installing`); here it is known who uses it, and held until nobody does.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.codec import messages as m
from lattica.errors import ConfigError, RemoteProtocolError
from lattica.node import paths
from lattica.node.clients import Client, Job
from lattica.node.environment import here_of
from lattica.scheduler.environments import Environment, Installs, decode, encode, key_of
from lattica.scheduler.leases import Lease

if TYPE_CHECKING:
    from lattica.node.installation import Installation
    from lattica.node.server import Node

log = logging.getLogger(__name__)
VARIANTS_MAX = 10_000
"""Of one job, a few KB each; one process of it asks for at most 4,096."""
AGAIN_S = 10.0
"""After an installation failed, before it is tried again: what has queued for it fails at once, and what comes later
may find an index that answers again."""
SITES = ("site-packages", "dist-packages")


class Venv(msgspec.Struct, eq=False):
    """A virtual environment: `making`, ready with `python`, or failed with `reason`."""

    python: str = ""
    site: str = ""  # where its modules lie
    folder: str = ""
    reason: str = ""
    again_at: float = 0.0  # when one that has failed is tried again
    making: Installation | None = None
    waiting: list[Lease] = []
    jobs: set[int] = set()  # that it is for
    lock: int = -1  # shared, on its folder in the cache: nobody deletes it meanwhile


class EnvironmentDesk:
    """See the module."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._variants: dict[int, dict[bytes, int]] = {}  # job -> key -> variant
        self._venvs: dict[tuple[str, str, Installs], Venv] = {}  # by interpreter, working directory, and what

    def __repr__(self) -> str:
        return f"<EnvironmentDesk: {sum(map(len, self._variants.values()))} variants, {len(self._venvs)} installed>"

    # -- variants

    def told(self, client: Client, message: m.EnvironmentIs) -> None:
        """It will ask for workers with this around them."""
        environment = decode(message.data)
        if key_of(environment) != message.key:
            raise RemoteProtocolError("an environment's key is another's")
        try:
            here_of(environment, paths.embedded_sessions())
        except ConfigError as error:
            raise RemoteProtocolError(f"an environment: {error}") from error
        number = self.variant(self.root(client.job), message.key, environment)
        if environment.shelf:  # of a variant that is known, too: it is deleted with the job's
            with contextlib.suppress(OSError):  # whoever packed it has just ended
                self._node.job_desk.hold_folder(number, environment.shelf)

    def job_for(self, job: int, key: bytes) -> int:
        """The job, or variant, of what a client of this one asks for. Raises RemoteProtocolError for an unknown key."""
        if not key:
            return job
        found = self._keys(self.root(job)).get(key)
        if found is None:
            raise RemoteProtocolError("an environment that it has not told of")
        return found

    def variant(
        self, root: int, key: bytes, environment: Environment, sys_path: list[str] | None = None, cwd: str | None = None
    ) -> int:
        """The number of this job's variant with that environment, which begins if it is new. sys_path, cwd: if they are
        not the job's."""
        keys, node, job = self._keys(root), self._node, self._node.jobs[root]
        if key in keys:
            return keys[key]
        if len(keys) > VARIANTS_MAX:
            raise RemoteProtocolError(f"job {root} has more than {VARIANTS_MAX} environments")
        number = keys[key] = node.job_desk.next_number()
        node.jobs[number] = msgspec.structs.replace(
            job,
            number=number,
            root=root,
            environment=environment,
            sys_path=job.sys_path if sys_path is None else sys_path,
            cwd=job.cwd if cwd is None else cwd,
            venv=None,
        )
        node.pool.lean.add(number)
        return number

    def known(self, root: int, key: bytes) -> int | None:
        """That variant of this job, if there is one."""
        return self._keys(root).get(key)

    def family(self, job: int) -> list[int]:
        """The job that it is of, and all variants of that."""
        root = self.root(job)
        return [root, *(number for number in self._variants.get(root, {}).values() if number != root)]

    def forgotten(self, job: int) -> None:
        """Nothing is left of this job or variant."""
        self._variants.pop(job, None)
        self._node.pool.lean.discard(job)
        for place, venv in list(self._venvs.items()):
            venv.jobs.discard(job)
            if not venv.jobs:
                del self._venvs[place]
                self._let_go(venv)

    def root(self, job: int) -> int:
        """The job that people know, of a job or variant."""
        entry = self._node.jobs.get(job)
        return job if entry is None else entry.family

    def _keys(self, root: int) -> dict[bytes, int]:
        found = self._variants.get(root)
        if found is None:
            found = self._variants[root] = {key_of(self._node.jobs[root].environment): root}
        return found

    # -- what must be installed

    def begin(self, job: Job) -> None:
        """Install what a job needs, before anybody asks."""
        installs = job.environment.installs
        if installs is not None and job.venv is None:
            self._venv_of(job, installs)

    def wait(self, lease: Lease, job: Job) -> bool:
        """Whether this lease must wait for what is installed; then it is placed or denied by and by."""
        installs = job.environment.installs
        if installs is None or job.venv is not None:
            return False
        venv = self._venv_of(job, installs)
        if venv.python:
            job.venv = venv
            return False
        venv.waiting.append(lease)
        if venv.making is None:
            self._node.loop.call_soon(self._tell, venv)
        return True

    def awaits(self, lease: Lease) -> bool:
        """Whether it waits for that."""
        return any(lease in venv.waiting for venv in self._venvs.values())

    def close(self) -> None:
        """The node ends."""
        for venv in self._venvs.values():
            self._let_go(venv)
        self._venvs.clear()

    def _venv_of(self, job: Job, installs: Installs) -> Venv:
        place = job.python, job.cwd if os.path.isdir(job.cwd) else "/", installs
        venv = self._venvs.get(place)
        if venv is None:
            venv = self._venvs[place] = Venv()
        venv.jobs.add(job.number)
        if not venv.python and venv.making is None and venv.again_at <= self._node.now():
            self._install(venv, place, job.environment.timeout_s)
        return venv

    def _install(self, venv: Venv, place: tuple[str, str, Installs], timeout_s: float) -> None:
        from lattica.node.installation import Installation

        python, cwd, installs = place
        wanted = {
            "python": python,
            "cwd": cwd,
            "cache": paths.cache_dir(),
            "installs": encode(installs).hex(),
            "hidden": self._node.settings.hidden,
        }
        venv.reason = ""

        def said(message: dict[str, Any]) -> None:
            self._said(venv, message)

        def ended(reason: str) -> None:
            self._ended(venv, reason)

        try:
            venv.making = Installation(self._node.loop, msgspec.json.encode(wanted), timeout_s, said, ended)
        except OSError as error:
            self._ended(venv, f"no installer can be started: {error}")

    def _said(self, venv: Venv, message: dict[str, Any]) -> None:
        match message:
            case {"say": str(text)}:
                self._show(venv, text)
            case {"failed": str(text)}:
                venv.reason = text
            case {"python": str(python), "site": str(site), "folder": str(folder)}:
                venv.python, venv.site, venv.folder = python, site, folder

    def _ended(self, venv: Venv, reason: str) -> None:
        """The installer is gone: all is known."""
        venv.making = None
        if venv.python and not venv.reason and not reason:
            try:
                venv.lock = os.open(os.path.dirname(venv.folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(venv.lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                reason = f"{venv.folder} is gone again: {error}"
        if not venv.jobs:
            self._let_go(venv)
            return
        if venv.reason or reason or not venv.python:
            venv.python, venv.again_at = "", self._node.now() + AGAIN_S
            venv.reason = (
                venv.reason or f"the packages could not be installed: {reason or 'the installer said nothing'}"
            )
            log.info("what a job needs could not be installed")
        self._tell(venv)

    def _tell(self, venv: Venv) -> None:
        """Those who have waited."""
        if venv.making is not None or self._node.closing:
            return
        waiting, venv.waiting = venv.waiting, []
        for lease in waiting:
            self._node.lease_desk.prepared(lease, "" if venv.python else venv.reason)

    def _show(self, venv: Venv, text: str) -> None:
        """Progress, to the programs that wait for it."""
        jobs = [self._node.jobs[number] for number in venv.jobs if number in self._node.jobs]
        for driver in {job.driver for job in jobs if job.log_to_driver}:
            pid = venv.making.pid if venv.making is not None else os.getpid()
            self._node.tell(driver, m.LogLines("lattica", pid, 2, [text]))

    def _let_go(self, venv: Venv) -> None:
        if venv.making is not None:
            venv.making.close("nobody needs it any more")
        if venv.lock >= 0:
            os.close(venv.lock)
            venv.lock = -1


def behind_modules(sys_path: Sequence[str], site: str) -> list[str]:
    """With what is installed in front of all that the program's interpreter has installed, and behind its modules."""
    at = next((at for at, path in enumerate(sys_path) if path.rstrip("/").endswith(SITES)), len(sys_path))
    return [*sys_path[:at], site, *sys_path[at:]]
