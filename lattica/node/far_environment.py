"""What a job of another node needs around its workers here: packages are fetched and unpacked before it begins.

    JobIs ──► needed()? ──no──► the job begins at once
                 │ yes
                 ▼ prepare(): fetch by CID from the origin, or from who told us; unpack, once per node
              meanwhile what is asked for that job waits; then it is answered in order

A driver that says nothing of a working directory has its modules beside its script. Where that script does not exist on
this machine, its origin packs the Python files in its folder (`environment.beside`), if they are few.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.codec import far
from lattica.errors import ConfigError, LatticaError
from lattica.mesh.identity import PeerId
from lattica.mesh.roles import Role
from lattica.mesh.services import method, service
from lattica.node.far_jobs import said_by
from lattica.node.paths import within
from lattica.scheduler.environments import PACKAGES_MAX, PY_MODULE, Environment, Travels

if TYPE_CHECKING:
    from lattica.mesh.tokens import Submission
    from lattica.node.clients import Job
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour
    from lattica.node.seeds import Seed

log = logging.getLogger(__name__)
AGAIN_S = 10.0  # after a failure, before it is tried again
ANSWER_S = 30.0  # for the origin to pack modules
COMING_MAX = 256  # jobs that are prepared at once, and that could not be: each says up to 512 KiB of itself
WAITING_MAX = 10_000  # questions for one job that is prepared


@service("environment")
class EnvironmentService:
    """What those who run a job ask its origin."""

    def __init__(self, environments: FarEnvironments) -> None:
        self._environments = environments

    @method(role=Role.EXECUTE, idempotent=True)
    async def beside(self, job: bytes) -> str:
        """The package of the modules beside the script of a job of mine; "" if there are none to be had."""
        return await self._environments.beside(job)


class _Coming:
    """A job that is prepared."""

    def __init__(self, root: bytes) -> None:
        """root: the job that it is a variant of, if it is one."""
        self.root = root
        self.waiting: list[tuple[Neighbour, Any]] = []
        self.task: asyncio.Task[None] | None = None


class FarEnvironments:
    """See the module."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk, self._node = desk, desk.node
        self._coming: dict[bytes, _Coming] = {}
        self._failed: dict[bytes, tuple[float, far.JobIs, Submission, str]] = {}
        self._beside: dict[str, asyncio.Task[str]] = {}  # folder -> package
        self._using: dict[bytes, list[str]] = {}  # job -> folders of the packages
        desk.peer.serve(EnvironmentService(self), offered=False)

    def __repr__(self) -> str:
        return f"<FarEnvironments: {len(self._coming)} jobs are prepared>"

    def close(self) -> None:
        """The node ends."""
        for coming in self._coming.values():
            if coming.task is not None:
                coming.task.cancel()

    # -- here, for a job of others

    def needed(self, paper: far.JobIs) -> bool:
        """Whether its workers need anything that must be brought first."""
        root = paper.root in self._coming or paper.root in self._failed
        return bool(paper.packages) or _lacking(paper) != "" or root

    def is_coming(self, job: bytes) -> bool:
        """Whether it is prepared."""
        return job in self._coming

    def prepare(self, neighbour: Neighbour, paper: far.JobIs, token: Submission) -> None:
        """Bring what it needs; then the job begins."""
        if paper.job in self._coming:
            return
        self._failed.pop(paper.job, None)
        if len(self._coming) >= COMING_MAX:
            log.warning("a job of %s is refused: %d others are prepared", neighbour.client.name, COMING_MAX)
            return
        coming = self._coming[paper.job] = _Coming(paper.root)
        coming.task = asyncio.ensure_future(self._prepare(neighbour, paper, token))

    def holds(self, neighbour: Neighbour, message: far.AskLease | far.Open) -> bool:
        """Whether this must wait until its job is prepared."""
        failed = self._failed.get(message.job)
        if failed is not None and self._node.now() >= failed[0]:
            if (root := self._failed.get(failed[1].root)) is not None:
                self.prepare(neighbour, root[1], root[2])
            self.prepare(neighbour, failed[1], failed[2])
        coming = self._coming.get(message.job)
        if coming is None or len(coming.waiting) >= WAITING_MAX:
            return False
        coming.waiting.append((neighbour, message))
        return True

    def objection(self, job: bytes) -> str:
        """Why it could not be prepared; "" if that is not so."""
        failed = self._failed.get(job)
        return failed[3] if failed is not None else ""

    def dropped(self, neighbour: Neighbour, number: int) -> None:
        """It does not want that lease any more."""
        for coming in self._coming.values():
            coming.waiting = [
                (other, message)
                for other, message in coming.waiting
                if other is not neighbour or not isinstance(message, far.AskLease) or message.number != number
            ]

    def over(self, job: bytes) -> None:
        """It has ended before it began here."""
        for each in [job, *(each for each, coming in self._coming.items() if coming.root == job)]:
            self._failed.pop(each, None)
            coming = self._coming.pop(each, None)
            if coming is not None and coming.task is not None:
                coming.task.cancel()

    def forgotten(self, job: bytes) -> None:
        """Nothing is left of it."""
        if self._node.runs is not None:
            for name in self._using.pop(job, ()):
                self._node.runs.packages.release(name)

    async def _prepare(self, neighbour: Neighbour, paper: far.JobIs, token: Submission) -> None:
        coming = self._coming[paper.job]
        reason = ""
        try:
            environment, sys_path, cwd = await self._brought(neighbour, paper)
        except (LatticaError, TimeoutError, OSError) as error:
            reason = error.message if isinstance(error, LatticaError) else str(error) or "nobody answered"
        except Exception as error:  # a bug of ours: what waits must hear of it
            log.exception("what a job needs")
            reason = f"it could not be prepared: {error!r}"
        if self._coming.get(paper.job) is not coming:
            self.forgotten(paper.job)
            return
        del self._coming[paper.job]
        if reason:
            text = (
                f"tasks of this job cannot run on {self._node.mesh.peer_id[:8] if self._node.mesh else '?'}: {reason}"
            )
            log.warning("%s", text)
            self.forgotten(paper.job)
            if len(self._failed) >= COMING_MAX:
                del self._failed[next(iter(self._failed))]
            self._failed[paper.job] = self._node.now() + AGAIN_S, paper, token, reason
            neighbour.link.send(far.Output(paper.job, "", os.getpid(), 2, [text]))
        else:
            self._desk.jobs.admit(paper, token, environment, sys_path, cwd)
        for other, message in coming.waiting:
            self._desk.hear(other, message)

    async def _brought(self, neighbour: Neighbour, paper: far.JobIs) -> tuple[Environment, list[str], str]:
        """(what its workers have, its sys.path here, its working directory here)."""
        holders = [PeerId(paper.origin), neighbour.peer]
        here: list[Travels] = []
        if (first := self._coming.get(paper.root)) is not None and first.task is not None:
            await asyncio.wait([first.task])
        if paper.root and not self._desk.jobs.knows(paper.root):
            raise ConfigError("the job that it is of is not known here, or could not be prepared")
        if len(paper.packages) > PACKAGES_MAX:
            raise ConfigError(f"a job has {len(paper.packages)} packages")
        for kind, cid in paper.packages:
            here.append(Travels(kind, cid, await self._unpacked(paper.job, cid, holders)))
        sys_path, cwd = list(paper.sys_path), paper.cwd
        if lacking := _lacking(paper):
            cid = await self._desk.peer.call(
                holders[0], "environment.beside", paper.root or paper.job, timeout_s=ANSWER_S, idempotent=True
            )
            if cid:
                place = await self._unpacked(paper.job, str(cid), holders)
                here.append(Travels(PY_MODULE, str(cid), place))
                sys_path = [place if path == lacking else path for path in sys_path]
                cwd = cwd if await asyncio.to_thread(os.path.isdir, cwd) else place
        return msgspec.structs.replace(said_by(paper), packages=here), sys_path, cwd

    async def _unpacked(self, job: bytes, cid: str, holders: list[PeerId]) -> str:
        assert self._node.runs is not None, "a node of a mesh has packages"
        name = f"{cid}.files"
        place = await self._node.runs.packages.unpacked(cid, holders, name)
        self._using.setdefault(job, []).append(name)
        return place

    # -- at the origin

    async def beside(self, job: bytes) -> str:
        """As `EnvironmentService.beside`."""
        entry = self._desk.jobs.job_of(job)
        folder = "" if entry is None else script_folder(entry)
        if entry is None or not folder or self._node.workers.zygotes.hider_of(folder):
            return ""
        if any(within(folder, path) for path in entry.environment.paths()):  # of a submitted job
            return ""
        if not await asyncio.to_thread(os.path.isdir, folder):  # of a detached actor that began elsewhere
            return ""
        if folder not in self._beside:
            task = self._beside[folder] = asyncio.ensure_future(self._pack(folder))
            task.add_done_callback(lambda _: self._beside.pop(folder, None))  # it may have changed by the next job
        try:
            return await asyncio.shield(self._beside[folder])
        except ConfigError as error:
            if not entry.environment.packages:
                raise
            log.info("%s", error.message)  # what its tasks need is in those, perhaps
            return ""

    async def packed_beside(self, job: Job) -> str:
        """The same for a detached actor, whose modules shall be found when this machine is gone. Raises ConfigError."""
        folder = script_folder(job)
        if not folder or self._node.workers.zygotes.hider_of(folder):
            return ""
        if not await asyncio.to_thread(os.path.exists, script_of(job)):
            return ""
        if any(within(folder, path) for path in job.environment.paths()):
            return ""
        return await self._pack(folder)

    async def _pack(self, folder: str) -> str:
        from lattica.node import packages

        assert self._node.runs is not None, "a node of a mesh has packages"
        try:
            packed = await asyncio.to_thread(packages.pack, folder, scripts=True)
        except ConfigError as error:
            raise ConfigError(
                f"the modules beside the script do not travel: {error.message}",
                do_next='name what it needs: lattica.init(runtime_env={"working_dir": ..., "excludes": [...]})',
            ) from error
        await asyncio.to_thread(self._node.runs.packages.shelf.put, packed)
        return packed.cid


def script_of(job: Job | far.JobIs | Seed) -> str:
    """Its path."""
    return os.path.join(job.cwd, job.script)


def script_folder(job: Job | far.JobIs) -> str:
    """Where the modules of a driver lie that is a script; "" if it is none."""
    script = os.path.normpath(os.path.join(job.cwd, job.script))
    if not script.endswith(".py"):
        return ""
    front = os.path.normpath(job.sys_path[0]) if job.sys_path else ""
    if os.path.isabs(front) and script.startswith(front.rstrip("/") + "/"):
        return front  # `python -m package.module` imports from there
    return os.path.dirname(script)


def _lacking(paper: far.JobIs) -> str:
    """The folder of the script's modules, if that is to be brought."""
    folder = script_folder(paper)
    return "" if not folder or os.path.exists(script_of(paper)) else folder
