"""Jobs that were submitted: scripts that run as drivers at some node, and go on at another when that one dies.

    command ─ submit ─► a node ─ jobs.run ─► the host: its script runs there; a row of the table says so
                                                │ jobs.keep
                                                ▼
                        the next two in rendezvous order of the job's id: one of them is its next host

One row for each *run*, the key being the job's id and the number of the run: run 0 where it was submitted to, run n + 1
where it goes on when the host of run n is dead or has left. The highest run counts. So whoever begins one writes a key
that nobody has, and needs no leave of a host that is gone; a host that sees a higher run than its own ends its script.

Rules of this file. The script is started again from its beginning: it must find by itself what it has done. What a
script itself makes of its end is final: only the loss of a node starts it again, `max_restarts` times. Of several
nodes that see the loss the one of rank r waits r times RANK_S. Both halves of a partition may run a job until they
meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import stat
import sys
from collections.abc import Awaitable, Callable, Mapping
from time import time
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.errors import ConfigError, LatticaError, PeerUnreachableError, PermissionDeniedError
from lattica.mesh.identity import PEER_ID_BYTES, PeerId, peer_text, short_peer
from lattica.mesh.membership import MemberChanged, State
from lattica.mesh.papers import DAMAGED
from lattica.mesh.roles import Role
from lattica.mesh.services import caller, method, service
from lattica.mesh.table.kinds import JOB, STATEMENT
from lattica.mesh.table.rows import Row, read_row
from lattica.node import paths
from lattica.node.environment import JOB_VARIABLE as ENVIRONMENT_VARIABLE
from lattica.node.environment import Submitted
from lattica.node.job_logs import JobLogs
from lattica.node.package_desk import PackageDesk
from lattica.scheduler.rendezvous import Standing, deciders, order

if TYPE_CHECKING:
    from lattica.node.job_process import JobProcess
    from lattica.node.mesh_desk import MeshDesk
    from lattica.node.server import Node

log = logging.getLogger(__name__)
ID_BYTES = 8
KEEPERS = 2  # beside the host: two machines may die before it runs elsewhere
KEEPS_AT_ONCE = 4
KEPT_S = 5.0  # for another node to keep the files of a job, before whoever submits it is told that it runs
RANK_S = 2.0  # a run's row is everywhere within half a second
BACK_S = 3.0  # after our own start, for the table to say whether others went on with what we ran
CALL_S = 30.0  # for a node to do what a command wants
READ_BYTES = 256 << 10
WAIT_MAX_S = 20.0  # for news of a log
LIVE_MAX = 256  # scripts that run here at once: processes of some 30 MB each
ENDED_MAX = 200  # rows of runs that ended here
LIMIT_CHARS = 4096  # of a job's words and variables together
RUNNING, SUCCEEDED, FAILED, STOPPED, LOST = "running", "succeeded", "failed", "stopped", "lost"
UNREACHABLE = "its node does not answer"


class Run(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of a job's row. Unknown fields are ignored. submitter, host: PeerIds."""

    name: str
    submitter: bytes
    host: bytes
    package: str  # CID
    script: str  # in the package
    words: list[str] = []
    environ: dict[str, str] = {}
    max_restarts: int = 1
    restarts: int = 0
    state: str = RUNNING
    holders: list[bytes] = []
    submitted: float = 0.0
    began: float = 0.0
    ended: float = 0.0
    code: int = -1
    how: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Run).decode


@service("jobs")
class JobService:
    """What nodes ask each other of submitted jobs."""

    def __init__(self, runs: JobRuns) -> None:
        self._runs = runs

    @method(role=Role.SUBMIT)
    async def run(self, spec: dict[str, Any]) -> str:
        """Run this here; the job's id."""
        return await self._runs.begin(spec, caller.get().peer)

    @method(role=Role.SUBMIT | Role.ADMIN, idempotent=True)
    async def stop(self, job: str) -> None:
        """End what runs here of it."""
        self._runs.stop_here(job)

    @method(role=Role.SUBMIT | Role.ADMIN, idempotent=True, limit=64)
    async def logs(self, job: str, run: int, offset: int, wait_s: float) -> dict[str, Any]:
        """What it printed here, from there on: {data, offset, over}."""
        return await self._runs.read_here(job, run, offset, wait_s)

    @method(role=Role.SUBMIT | Role.ADMIN, idempotent=True)
    async def file(self, job: str, run: int, path: str, offset: int) -> dict[str, Any]:
        """Of a file in its folder here: {data, size}."""
        return await asyncio.to_thread(self._runs.file_here, job, run, path, offset)

    @method(role=Role.SUBMIT, idempotent=True, limit=KEEPS_AT_ONCE)
    async def keep(self, row: bytes) -> None:
        """Be one of those who can go on with the job of this row: know it, and keep its files."""
        if Role.EXECUTE not in self._runs.peer.credentials.member.roles:
            raise PermissionDeniedError("this node has not the role `execute`, and goes on with nobody's job")
        await self._runs.keep_here(read_row(row), caller.get().peer)


class _Live:
    """A run whose script runs here, or is about to."""

    def __init__(self, key: bytes, run: Run) -> None:
        self.key, self.run = key, run
        self.process: JobProcess | None = None
        self.stopped = ""  # why it was told to end
        self.folder = ""  # of the packages
        self.kept = asyncio.Event()  # by another node, or by none that could


class JobRuns:
    """See the module."""

    def __init__(self, node: Node, mesh: MeshDesk) -> None:
        self.node, self.mesh, self.peer = node, mesh, mesh.peer
        self.me: PeerId = mesh.peer.id
        folder = node.settings.data_dir
        self.packages = PackageDesk(self.peer, os.path.join(folder, "packages"), self._wanted, self._shelves)
        self.logs = JobLogs(os.path.join(folder, "jobs"))
        self._live: dict[bytes, _Live] = {}
        self._news: dict[bytes, asyncio.Event] = {}
        self._due: dict[bytes, asyncio.TimerHandle] = {}  # job -> when we take it over
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self.draining = False
        gossip = self.peer.gossip
        gossip.watch(JOB, self._row_changed)
        gossip.watch(STATEMENT, lambda _row, _before: self._look_at_revoked())
        gossip.watch_members(self._member_changed)
        self.peer.serve(JobService(self), offered=False)
        for verb, answer in self._verbs().items():
            mesh.answers(verb, answer)
        self._loop.call_later(BACK_S, self._look_at_all)

    def __repr__(self) -> str:
        return f"<JobRuns: {len(self._live)} run here, {len(self._due)} to be taken over>"

    def close(self) -> None:
        """The node ends: its scripts end with it, and go on elsewhere."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        for timer in self._due.values():
            timer.cancel()
        for live in self._live.values():
            if live.process is not None:
                live.process.close()
        self.logs.close()
        self.packages.close()

    # -- what is known

    def runs(self) -> dict[bytes, tuple[int, Run]]:
        """Job -> its highest run."""
        found: dict[bytes, tuple[int, Run]] = {}
        for row in self.peer.gossip.community.replica.rows(JOB):
            known = _read(row)
            if known is not None and (known[0] not in found or known[1] > found[known[0]][0]):
                found[known[0]] = known[1], known[2]
        return found

    def _wanted(self) -> list[str]:
        submitted = [run.package for _, run in self.runs().values() if run.state == RUNNING]
        return submitted + [package.cid for job in self.node.jobs.values() for package in job.environment.packages]

    def _shelves(self) -> list[str]:
        return [job.environment.shelf for job in self.node.jobs.values() if job.environment.shelf]

    def _heirs(self, job: bytes) -> list[PeerId]:
        """Who may run it, the first of them first."""
        community = self.peer.gossip.community
        living = []
        for peer in community.membership.living:
            member, info = community.replica.member(peer), community.node(peer)
            if member is not None and info is not None and Role.EXECUTE in member.roles:
                living.append(Standing(peer, member.roles, info.ephemeral))
        return order(job, deciders(living, Role.SUBMIT))

    # -- beginning

    async def begin(self, spec: Mapping[str, Any], submitter: PeerId) -> str:
        """Run a script here that somebody submitted; the job's id. Raises ConfigError, PermissionDeniedError,
        ObjectLostError."""
        mine = self.peer.credentials.member.roles
        if submitter != self.me and Role.EXECUTE not in mine:
            raise PermissionDeniedError(role="execute", action="run a job of others")
        if Role.SUBMIT not in mine:
            raise PermissionDeniedError(role="submit", action="run a job: its driver submits tasks by this node")
        if self.draining or self._closing:
            raise LatticaError("this node is going", do_next="submit to another: --on PEER")
        if len(self._live) >= LIVE_MAX:
            raise LatticaError(f"{LIVE_MAX} scripts run on this node already", do_next="submit to another: --on PEER")
        run = _run_of(spec, submitter, self.me, time())
        await self.packages.bring(run.package, [submitter])
        job = os.urandom(ID_BYTES)
        self._write(_key(job, 0), run)
        live = self._start(job, 0, run)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(live.kept.wait(), KEPT_S)
        return job.hex()

    def _start(self, job: bytes, number: int, run: Run) -> _Live:
        key = _key(job, number)
        live = self._live[key] = _Live(key, run)
        self._do(self._run(live, job, number))
        return live

    async def _run(self, live: _Live, job: bytes, number: int) -> None:
        from lattica.node.job_process import JOB_VARIABLE, JobProcess, words_for  # which few nodes need

        run, name = live.run, f"{job.hex()}-{number}"
        try:
            holders = [PeerId(one) for one in run.holders]
            others = [peer for peer in self._heirs(job) if peer not in holders]
            folder = await self.packages.unpacked(run.package, [*holders, *others], f"job-{name}")
            live.folder = f"job-{name}"
        except (LatticaError, OSError) as error:
            self._over(live, LOST, -1, str(error).partition("\n")[0])
            return
        if live.stopped or self._closing:
            self._over(live, STOPPED, -1, live.stopped)
            return
        for_workers = Submitted(run.package, folder, list(run.environ))
        environ = run.environ | {
            JOB_VARIABLE: job.hex(),
            ENVIRONMENT_VARIABLE: msgspec.json.encode(for_workers).decode(),
            paths.DATA_DIR_VARIABLE: self.node.settings.data_dir,
        }

        def ended(status: int) -> None:
            code, how = words_for(status)
            self.logs.end(name)
            state = STOPPED if live.stopped else SUCCEEDED if code == 0 else FAILED
            self._over(live, state, code, live.stopped or how)

        def printed(data: bytes) -> None:
            self.logs.write(name, data)
            self._tell(live.key)

        try:
            live.process = JobProcess(
                self.node.loop, [sys.executable, os.path.join(folder, run.script), *run.words], folder,
                self.node.settings.hidden, environ,
                admit=self.node.accept_driver, printed=printed, ended=ended,
            )  # fmt: skip
        except OSError as error:
            self._over(live, FAILED, -1, f"its script cannot be started: {error.strerror}")
            return
        log.info("job %s (%s) runs as pid %d", job.hex(), run.name, live.process.pid)
        await self._keep(live, job)

    async def _keep(self, live: _Live, job: bytes) -> None:
        """See that others could go on with it."""
        held = [self.me]
        for heir in self._heirs(job):
            if len(held) > KEEPERS or live.key not in self._live:
                break
            if heir == self.me:
                continue
            try:
                row = self.peer.gossip.community.replica.get(JOB, live.key)
                assert row is not None, "it was written before its script began"
                await self.peer.call(heir, "jobs.keep", row.data, timeout_s=CALL_S, idempotent=True)
            except (LatticaError, TimeoutError) as error:
                log.info("%s does not keep the files of job %s: %s", short_peer(heir), job.hex(), error)
                continue
            held.append(heir)
            self._hold(live, held)
        self._hold(live, held)

    def _hold(self, live: _Live, held: list[PeerId]) -> None:
        """These keep its files."""
        if live.key in self._live and not self._closing:
            self._change(live, holders=[bytes(one) for one in held])
        live.kept.set()

    def _change(self, live: _Live, **changes: Any) -> None:
        live.run = msgspec.structs.replace(live.run, **changes)
        self._write(live.key, live.run)

    def _over(self, live: _Live, state: str, code: int, how: str) -> None:
        live.kept.set()
        if self._live.pop(live.key, None) is None or self._closing:
            return
        if live.folder:
            self.packages.release(live.folder)
        log.info("job %s: %s, %s", live.key[:ID_BYTES].hex(), state, how)
        highest = self.runs().get(live.key[:ID_BYTES])
        if highest is None or highest[0] <= live.key[ID_BYTES]:
            self._change(live, state=state, code=code, how=how, ended=time())
            self._forget_oldest()
        self._tell(live.key)

    def _forget_oldest(self) -> None:
        """Of runs that ended here the table keeps some."""
        rows = self.peer.gossip.community.replica.rows(JOB)
        known = [(row.key, one[2]) for row in rows if row.writer == self.me and (one := _read(row)) is not None]
        ended = sorted((run.ended, key) for key, run in known if run.ended)
        for _, key in ended[: max(len(ended) - ENDED_MAX, 0)]:
            self.peer.gossip.write(JOB, key, b"", gone=True)

    def _write(self, key: bytes, run: Run) -> None:
        self.peer.gossip.write(JOB, key, _encode(run))

    def _tell(self, key: bytes) -> None:
        news = self._news.pop(key, None)
        if news is not None:
            news.set()

    def _do(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("of a job", exc_info=error)

    # -- going on with it

    def _row_changed(self, row: Row | None, before: Row | None) -> None:
        known = _read(row) if row is not None else None
        if known is None:
            return
        job, number, run = known
        for key, live in list(self._live.items()):
            mine = key[:ID_BYTES] == job and (
                key[ID_BYTES] < number or (key[ID_BYTES] == number and run.host != self.me)
            )
            if mine and live.process is not None:
                log.warning("job %s runs at %s now, and ends here", job.hex(), short_peer(PeerId(run.host)))
                live.stopped = "another node goes on with it"
                live.process.end(kindly=False)
        self._consider(job)

    def _member_changed(self, change: MemberChanged) -> None:
        if self._closing:
            return
        if change.state in (State.DEAD, State.LEFT, None):
            for job, (_, run) in self.runs().items():
                if run.host == change.peer:
                    self._consider(job)
        elif change.before in (State.DEAD, State.LEFT, None):
            for job in list(self._due):
                self._consider(job)

    def _look_at_all(self) -> None:
        for job in self.runs() if not self._closing else ():
            self._consider(job)

    def _orphaned(self, job: bytes) -> tuple[int, Run] | None:
        """Its highest run, if that has lost its node."""
        number, run = self.runs().get(job, (0, None))
        if run is None or run.state != RUNNING or self._is_outlaws(run):
            return None
        if run.host == self.me:
            return None if _key(job, number) in self._live else (number, run)
        state = self.peer.gossip.community.membership.state(PeerId(run.host))
        return (number, run) if state in (State.DEAD, State.LEFT, None) else None

    def _consider(self, job: bytes) -> None:
        """Go on with this job, if that is to be done, and our turn."""
        timer = self._due.pop(job, None)
        if timer is not None:
            timer.cancel()
        orphan = self._orphaned(job)
        if orphan is None or self._closing or self.draining:
            return
        heirs = self._heirs(job)
        if self.me in heirs:
            wait_s = RANK_S * heirs.index(self.me) + (BACK_S if orphan[1].host == self.me else 0.1)
            self._due[job] = self._loop.call_later(wait_s, self._take_over, job)

    def _take_over(self, job: bytes) -> None:
        self._due.pop(job, None)
        orphan = self._orphaned(job)
        if orphan is None or self._closing or self.draining:
            return
        number, run = orphan
        lost = f"its node {short_peer(PeerId(run.host))} was lost"
        again = run.restarts < run.max_restarts or run.max_restarts < 0
        if not again or number >= 255:
            run = msgspec.structs.replace(run, host=bytes(self.me), state=FAILED, ended=time(), how=lost)
            self._write(_key(job, min(number + 1, 255)), run)
            return
        log.warning("job %s goes on here: %s", job.hex(), lost)
        run = msgspec.structs.replace(run, host=bytes(self.me), restarts=run.restarts + 1, began=time(), how=lost)
        self._write(_key(job, number + 1), run)
        self._start(job, number + 1, run)

    def _is_outlaws(self, run: Run) -> bool:
        """Whether its submitter was put out of the mesh. (Rows that such a one wrote are hidden already.)"""
        return self.peer.credentials.trust.is_revoked(PeerId(run.submitter))

    def _look_at_revoked(self) -> None:
        trust = self.peer.credentials.trust
        for live in list(self._live.values()):
            if trust.is_revoked(PeerId(live.run.submitter)) and not live.stopped:
                live.stopped = "its submitter was put out of the mesh"
                if live.process is not None:  # else it ends before it begins
                    live.process.end(kindly=False)

    # -- what is asked

    async def keep_here(self, row: Row, host: PeerId) -> None:
        """As `JobService.keep`. Its host may be lost before gossip brings the row. Raises RemoteProtocolError,
        ObjectLostError."""
        self.peer.gossip.take(host, row)
        known = self.peer.gossip.community.replica.get(JOB, row.key)
        read = _read(known) if known is not None else None
        if read is None:
            raise LatticaError("the table here does not take the job's row", do_next="ask another node")
        await self.packages.bring(read[2].package, [host])

    def stop_here(self, job: str) -> None:
        """End its script, if it runs here."""
        for key, live in self._live.items():
            if key[:ID_BYTES].hex() == job:
                live.stopped = live.stopped or "somebody stopped it"
                if live.process is not None:
                    live.process.end(kindly=True)

    async def read_here(self, job: str, run: int, offset: int, wait_s: float) -> dict[str, Any]:
        """As `JobService.logs`."""
        key = _key(bytes.fromhex(job), run)
        name = f"{key[:ID_BYTES].hex()}-{run}"
        live = key in self._live
        if live and offset >= self.logs.size(name):
            news = self._news.setdefault(key, asyncio.Event())
            try:
                async with asyncio.timeout(min(max(0.0, wait_s), WAIT_MAX_S)):  # in this order: NaN is 0
                    await news.wait()
            except TimeoutError:
                pass
        live = key in self._live
        data, after = self.logs.read(name, offset, READ_BYTES)
        return {"data": data, "offset": after, "over": not live and after >= self.logs.size(name)}

    def _verbs(self) -> dict[str, Callable[[Mapping[str, Any]], Awaitable[Any]]]:
        return {
            "job_submit": self._submit,
            "job_list": self._list,
            "job_stop": self._stop,
            "job_logs": self._logs,
            "job_file": self._file,
        }

    async def _submit(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"spec": as `_run_of` reads it, "on": PEER or ""}."""
        spec, on = dict(data.get("spec") or {}), str(data.get("on", ""))
        host = self.mesh.peer_of(on) if on else self.me
        if host == self.me:
            job = await self.begin(spec, self.me)
        else:
            job = await self.peer.call(host, "jobs.run", spec, timeout_s=CALL_S)
        known = self.runs().get(bytes.fromhex(job))
        keepers = (
            {PeerId(one) for one in known[1].holders} if known is not None else {self.me}
        )  # its row comes by gossip
        return {"job": job, "node": peer_text(host), "keepers": len(keepers - {host})}

    async def _list(self, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """All jobs that the table knows, the latest last; data: {"job": id or its beginning} for one."""
        wanted = str(data.get("job", ""))
        found = [self._shown(job, number, run) for job, (number, run) in self.runs().items()]
        return sorted((one for one in found if one["job"].startswith(wanted)), key=lambda one: one["submitted"])

    def _shown(self, job: bytes, number: int, run: Run) -> dict[str, Any]:
        host = PeerId(run.host)
        state = self.peer.gossip.community.membership.state(host)
        lost = run.state == RUNNING and host != self.me and state in (State.DEAD, State.LEFT, None)
        info = self.peer.gossip.community.node(host)
        return {
            "job": job.hex(),
            "name": run.name,
            "state": "restarting" if lost else run.state,
            "node": peer_text(host),
            "node_name": info.name if info is not None else "",
            "run": number,
            "restarts": run.restarts,
            "max_restarts": run.max_restarts,
            "script": run.script,
            "words": run.words,
            "submitter": peer_text(PeerId(run.submitter)),
            "holders": [peer_text(PeerId(one)) for one in run.holders],
            "submitted": run.submitted,
            "began": run.began,
            "ended": run.ended or None,
            "exit_code": run.code if run.ended and run.code >= 0 else None,
            "how": run.how,
        }

    def job_of(self, text: str) -> bytes:
        """The job that is meant: by its id or the beginning of it, or by its name; of several the latest."""
        runs = self.runs()
        found = [job for job in runs if text and job.hex().startswith(text.lower())]
        found = (
            found
            or sorted(
                (job for job, (_, run) in runs.items() if run.name == text), key=lambda job: runs[job][1].submitted
            )[-1:]
        )
        if len(found) != 1:
            what = "several jobs are" if found else "no job is"
            raise ConfigError(f"{what} called {text!r:.60}", do_next="`lattica job list` names them all")
        return found[0]

    async def _stop(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"job": id, its beginning, or name}."""
        job = self.job_of(str(data.get("job", "")))
        number, run = self.runs()[job]
        host = PeerId(run.host)
        if run.state == RUNNING and host == self.me:
            self.stop_here(job.hex())
        elif run.state == RUNNING:
            try:
                await self.peer.call(host, "jobs.stop", job.hex(), timeout_s=CALL_S, idempotent=True)
            except PeerUnreachableError:
                if self._orphaned(job) is None:
                    raise
                gone = msgspec.structs.replace(
                    run, host=bytes(self.me), state=STOPPED, ended=time(), how="somebody stopped it"
                )
                self._write(_key(job, number + 1), gone)
        return self._shown(job, *self.runs()[job])

    async def _logs(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"job": ..., "run": number or -1 for the highest, "offset": ..., "wait_s": ...}.

        What the job is, with "data", "offset", "of_run" and "over": whether that run prints no more.
        """
        job = self.job_of(str(data.get("job", "")))
        highest, run = self.runs()[job]
        wanted = int(data.get("run", -1))
        number = highest if wanted < 0 else wanted
        row = self.peer.gossip.community.replica.get(JOB, _key(job, number))
        known = _read(row) if row is not None else None
        host = PeerId(known[2].host if known is not None else run.host)
        offset, wait_s = int(data.get("offset", 0)), float(data.get("wait_s", 0.0))
        wait_s = wait_s if number == highest else 0.0
        trouble = ""
        read: Mapping[str, Any] = {"data": b"", "offset": offset, "over": True}
        try:
            if host == self.me:
                read = await self.read_here(job.hex(), number, offset, wait_s)
            else:
                timeout_s = wait_s + 5.0
                read = await self.peer.call(
                    host, "jobs.logs", job.hex(), number, offset, wait_s, timeout_s=timeout_s, idempotent=True
                )
        except (LatticaError, TimeoutError) as error:
            trouble = error.message if isinstance(error, LatticaError) else UNREACHABLE
        shown = self._shown(job, *self.runs()[job])
        return shown | {
            "data": bytes(read["data"]), "offset": int(read["offset"]), "of_run": number, "over": bool(read["over"]),
            "trouble": trouble,
        }  # fmt: skip

    async def _file(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"job": ..., "path": of the file, in the job's folder, "offset": ...}. {data, size, node}."""
        job = self.job_of(str(data.get("job", "")))
        number, run = self.runs()[job]
        host, path, offset = PeerId(run.host), str(data.get("path", "")), int(data.get("offset", 0))
        if host == self.me:
            read: Mapping[str, Any] = await asyncio.to_thread(self.file_here, job.hex(), number, path, offset)
        else:
            read = await self.peer.call(
                host, "jobs.file", job.hex(), number, path, offset, timeout_s=CALL_S, idempotent=True
            )
        return {"data": bytes(read["data"]), "size": int(read["size"]), "node": peer_text(host)}

    def file_here(self, job: str, number: int, path: str, offset: int) -> dict[str, Any]:
        """As `JobService.file`. Raises ConfigError."""
        place = self.packages.place_of(f"job-{job}-{number}")
        words = path.split("/")
        if not place or path.startswith("/") or ".." in words:
            raise ConfigError(
                f"the job has no folder here with {path!r:.80}",
                do_next="name a file as it lies in the job's folder; that stays until its node ends",
            )
        try:
            fd = _open_inside(place, words)
        except OSError as error:
            raise ConfigError(f"{path!r:.80} cannot be read: {error.strerror}") from error
        try:
            return {"data": os.pread(fd, READ_BYTES, max(offset, 0)), "size": os.fstat(fd).st_size}
        finally:
            os.close(fd)


def _open_inside(folder: str, words: list[str]) -> int:
    """A regular file, by no link: the script may have put one there to what it does not see itself."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for word in words[:-1]:
            below = os.open(word, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = below
        fd = os.open(words[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no file")
    return fd


def _key(job: bytes, number: int) -> bytes:
    return job + bytes([number])


def _read(row: Row) -> tuple[bytes, int, Run] | None:
    """(job, number of the run, what it says); None if that is none of ours, or not written by who runs it."""
    if row.content.gone or len(row.key) != ID_BYTES + 1:
        return None
    try:
        run = _decode(row.body)
    except DAMAGED:
        return None
    return (row.key[:ID_BYTES], row.key[ID_BYTES], run) if run.host == row.writer and _is_sound(run) else None


def _is_sound(run: Run) -> bool:
    """Whether it can be shown and run: a row says what its writer likes."""
    peers = all(len(one) == PEER_ID_BYTES for one in (run.submitter, run.host, *run.holders))
    texts = run.script, *run.words, *run.environ, *run.environ.values()
    inside = not os.path.isabs(run.script) and ".." not in run.script.split("/")
    return peers and inside and not any("\0" in text for text in texts) and not any("=" in name for name in run.environ)


def _run_of(spec: Mapping[str, Any], submitter: PeerId, host: PeerId, now: float) -> Run:
    """What a command, here or elsewhere, wants run. Raises ConfigError."""
    try:
        run = msgspec.convert(
            {
                "name": spec.get("name", ""), "package": spec["package"], "script": spec["script"],
                "words": list(spec.get("words", ())), "environ": dict(spec.get("environ", {})),
                "max_restarts": spec.get("max_restarts", 1), "submitter": bytes(submitter), "host": bytes(host),
                "holders": [bytes(host), bytes(submitter)] if host != submitter else [bytes(host)],
                "submitted": now, "began": now,
            },
            Run,
        )  # fmt: skip
    except (msgspec.ValidationError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"a job cannot be understood: {error}") from error
    if os.path.isabs(run.script) or ".." in run.script.split("/"):
        raise ConfigError(f"the script {run.script!r} does not lie in the job's folder")
    if not _is_sound(run):
        raise ConfigError("a job has words or variables that no process can have")
    if sum(map(len, (*run.words, *run.environ, *run.environ.values(), run.name, run.script))) > LIMIT_CHARS:
        raise ConfigError(
            f"arguments and variables of a job have at most {LIMIT_CHARS} characters",
            do_next="put them into a file in its folder",
        )
    return run
