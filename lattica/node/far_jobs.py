"""Jobs that reach several machines: their tokens, what others are told of them, and how they end.

    origin ── JobIs(token, surroundings) ──► host      before it is asked anything of the job
    host ── Output ──► origin                          what the job's workers print
    origin ── JobOver ──► host ── JobGone ──► origin   the driver waits for the last lines

A host begins a job under a number of its own, whose driver is a proxy; it ends with the driver's node, or by its word.
A variant (`environment_desk`) is a job to other nodes, too, under the token of the one that it is of, and its id says
what it is: nodes that think of the same one agree. It ends with its job.
A node may only have seemed dead: whoever said of a job hears `JobGone` and says of it anew before its next question;
the host begins it under another number, even while the last workers of the first one go.
"""

from __future__ import annotations

import logging
import os
import sys
from time import time
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.codec import far
from lattica.codec import messages as m
from lattica.errors import LatticaError, RemoteProtocolError
from lattica.ids import JobId
from lattica.mesh.identity import PeerId, peer_text
from lattica.mesh.membership import State
from lattica.mesh.roles import Role
from lattica.mesh.tokens import TOKEN_MAX_S, Submission, sign_token, verify_token
from lattica.node.clients import DRIVER, Job
from lattica.node.proxies import proxy
from lattica.scheduler.environments import (
    Environment,
    decode_installs,
    encode,
    key_of,
    key_of_parts,
    variant_of,
)

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour

log = logging.getLogger(__name__)
JOBS_MAX = 4096
JOB_SAID_MAX_CHARS = 512 << 10  # of a job, with its variables and packages
FAREWELL_S = 3.0  # for other machines to send the last lines of a job's workers
LOOK_S = 0.05  # between looks whether the workers of a job that ends are gone
_MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"


class FarJobs:
    """See the module."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk, self._node = desk, desk.node
        self._jobs: dict[bytes, int] = {}  # of others and of ours -> our number
        self._papers: dict[int, far.JobIs] = {}  # our number -> what others are told
        self._submissions: dict[int, Submission] = {}  # our number -> what its token allows
        self._seen_off: dict[bytes, set[PeerId]] = {}  # jobs of ours that end -> who has not sent its last lines yet

    def __repr__(self) -> str:
        return f"<FarJobs: {len(self._papers)}>"

    def doubt(self) -> None:
        """A job ends with its driver's node, and that may have begun anew before anybody missed it."""
        membership = self._desk.peer.gossip.community.membership
        for number, paper in list(self._papers.items()):
            origin = PeerId(paper.origin)
            job = self._node.jobs.get(number)
            if origin == self._desk.me or job is None or job.ended:
                continue
            if paper.root:
                continue  # it ends with its job
            if membership.state(origin) in (State.DEAD, State.LEFT, None):
                self.end(number, "the node of its driver is gone")
                continue
            neighbour = self._desk.neighbour(origin)
            if paper.job not in neighbour.asked_jobs:
                neighbour.asked_jobs.add(paper.job)
                neighbour.link.send(paper)

    # -- what others are told

    def paper(self, job: int) -> far.JobIs | None:
        """What other nodes are told of a job; None if it is gone."""
        known, entry = self._papers.get(job), self._node.jobs.get(job)
        if entry is None:
            return None
        if entry.root:
            return self._paper_of_variant(entry, known)
        now = self.unix()
        if known is not None and (
            known.origin != self._desk.me or self._submissions[job].expires - now > TOKEN_MAX_S / 2
        ):
            return known
        id = known.job if known is not None else os.urandom(16)
        mine = self._desk.peer.credentials
        token = sign_token(
            JobId(id), {}, now, now + TOKEN_MAX_S, signer=mine.identity, chain=mine.chain, mesh=mine.mesh
        )
        made = far.JobIs(
            id, token, self._desk.me, entry.python, entry.minor or _MINOR, entry.sys_path, entry.cwd, entry.script,
            entry.namespace, entry.log_to_driver, entry.preload, *_said_of(entry.environment),
        )  # fmt: skip
        self._papers[job] = made
        self._jobs[id] = job
        self._submissions[job] = Submission(self._desk.me, Role(0), JobId(id), {}, now + TOKEN_MAX_S)
        return made

    def _paper_of_variant(self, entry: Job, known: far.JobIs | None) -> far.JobIs | None:
        """The same under its job's token, wherever the variant was thought of first."""
        base = self.paper(entry.root)
        if base is None or (known is not None and known.token == base.token):
            return None if base is None else known
        id = variant_of(base.job, key_of(entry.environment))
        env_vars, packages, _, installs, setup_s = _said_of(entry.environment)
        made = msgspec.structs.replace(
            base, job=id, env_vars=env_vars, packages=packages, root=base.job, installs=installs, setup_s=setup_s
        )
        self._papers[entry.number], self._jobs[id] = made, entry.number
        self._submissions[entry.number] = self._submissions[entry.root]
        return made

    def unix(self) -> float:
        """The mesh's time."""
        return time() + self._desk.peer.sessions.correction_s

    def introduce(self, neighbour: Neighbour, job: int) -> bytes | None:
        """Tell it of the job if it does not know; the job's id, None if it is gone."""
        paper = self.paper(job)
        if paper is None or (paper.root and self.introduce(neighbour, self._node.environments.root(job)) is None):
            return None
        expires = self._submissions[job].expires
        if neighbour.told_jobs.get(paper.job, 0.0) < expires:
            neighbour.told_jobs[paper.job] = expires
            neighbour.link.send(paper)
        return paper.job

    # -- of others, here

    def job_is(self, neighbour: Neighbour, message: far.JobIs) -> None:
        """They have a job, and shall ask something of it; or ask whether one of ours goes on."""
        peer = self._desk.peer
        try:
            token = verify_token(message.token, peer.credentials.root, peer.credentials.trust, self.unix())
            if token.job != (message.root or message.job) or token.peer != message.origin:
                raise RemoteProtocolError("a job's token is another's")
            if message.root and message.job != variant_of(message.root, _key_of(message)):
                raise RemoteProtocolError("an environment's id is another's")
        except LatticaError as error:
            log.warning("a job of %s is refused: %s", neighbour.client.name, error.message)
            return
        number = self._jobs.get(message.job)
        known = self._papers.get(number) if number is not None else None
        if known is not None and known.origin != message.origin:
            log.warning("a job of %s is refused: another's has its id", neighbour.client.name)
            return
        if number is not None and self._has_ended(number):  # its node only seemed dead: this is another life of it
            number = None
            del self._jobs[message.job]
        if _chars_of(message) > JOB_SAID_MAX_CHARS:
            log.warning("a job of %s is refused: it says too much of itself", neighbour.client.name)
            return
        if message.origin == self._desk.me and not message.root:  # they ask whether it goes on
            self._asked(neighbour, message.job, number)
            return
        if number is None and message.root and not self._expects(message.root):
            neighbour.link.send(far.JobGone(message.job))  # it was told of the job before that was forgotten here
            return
        if number is None and len(self._papers) >= JOBS_MAX:
            log.warning("a job of %s is refused: there are too many", neighbour.client.name)
            return
        if len(neighbour.asked_jobs) >= JOBS_MAX:
            neighbour.asked_jobs.clear()  # who goes on with one is asked again
        if message.origin != self._desk.me:
            neighbour.asked_jobs.add(message.job)
        if number is None:
            if message.root in self._jobs and (number := self._variant_here(message)) is not None:
                self._papers[number], self._submissions[number] = message, token
                self._jobs[message.job] = number
                return
            if self._desk.environments.needed(message):
                self._desk.environments.prepare(neighbour, message, token)
                return
            number = self._begin_job(message, said_by(message), message.sys_path, message.cwd)
        self._papers[number] = message
        self._submissions[number] = token

    def _asked(self, neighbour: Neighbour, id: bytes, number: int | None) -> None:
        """They had no word from us when a job of ours ended, or it goes on. One that ends is here until its last worker
        has gone, and who asks in that time would hear nothing more of it."""
        job = self._node.jobs.get(number) if number is not None else None
        if job is not None and not job.ended:
            neighbour.told_jobs.setdefault(id, 0.0)
            return
        waiting = self._seen_off.get(id)
        if waiting is not None:
            waiting.add(neighbour.peer)
        neighbour.link.send(far.JobOver(id, waiting is not None))

    def _expects(self, root: bytes) -> bool:
        """Whether variants of this job may begin here, now or when it is prepared; if it cannot be, they say why."""
        environments = self._desk.environments
        return root in self._jobs or environments.is_coming(root) or environments.objection(root) != ""

    def _variant_here(self, paper: far.JobIs) -> int | None:
        """One that this node has thought of, too."""
        environments = self._node.environments
        return environments.known(self._jobs[paper.root], _key_of(paper)) if paper.root else None

    def admit(
        self, paper: far.JobIs, token: Submission, environment: Environment, sys_path: list[str], cwd: str
    ) -> None:
        """What it needs is here: it begins."""
        if paper.job not in self._jobs:
            number = self._begin_job(paper, environment, sys_path, cwd)
            self._papers[number] = paper
            self._submissions[number] = token

    def _has_ended(self, number: int) -> bool:
        """Whether a job of others is over here, and its last workers have not gone yet."""
        job = self._node.jobs.get(number)
        return job is not None and job.ended and self._papers[number].origin != self._desk.me

    def knows(self, id: bytes) -> bool:
        """Whether this job has begun here."""
        return id in self._jobs

    def number(self, id: bytes) -> int:
        """Ours for a job that `objection` lets through."""
        return self._jobs[id]

    def origin_gone(self, peer: PeerId, how: str) -> None:
        """A node is dead or has left, and with it the drivers of its jobs."""
        for number, paper in list(self._papers.items()):
            if paper.origin == peer and not paper.root and number in self._node.jobs:
                self.end(number, how)

    def job_of(self, id: bytes) -> Job | None:
        """The job whose driver is here."""
        number = self._jobs.get(id, 0)
        paper = self._papers.get(number)
        return self._node.jobs.get(number) if paper is not None and paper.origin == self._desk.me else None

    def _begin_job(self, paper: far.JobIs, environment: Environment, sys_path: list[str], cwd: str) -> int:
        if paper.root:
            root = self._jobs[paper.root]
            number = self._node.environments.variant(root, _key_of(paper), environment, sys_path, cwd)
            self._jobs[paper.job] = number
            return number
        node, driver = self._node, self._desk.new_number()
        python = paper.python if paper.minor == _MINOR and os.access(paper.python, os.X_OK) else sys.executable
        number = node.job_desk.next_number()
        node.jobs[number] = Job(
            number, driver, 0, python, sys_path, cwd, paper.script, paper.namespace, paper.log_to_driver,
            time(), paper.preload, environment=environment, minor=paper.minor,
        )  # fmt: skip
        name = f"driver on {peer_text(PeerId(paper.origin))[:8]}"
        client = proxy(driver, DRIVER, number, time(), name, lambda message: self._say_output(number, message))
        node.clients[driver] = client
        self._jobs[paper.job] = number
        if paper.minor == _MINOR:  # else nothing of it runs here: it only holds objects, or calls
            node.workers.zygotes.preload(python, sys_path, paper.preload)
        return number

    # -- what they print

    def _say_output(self, job: int, message: Any) -> None:
        paper = self._papers.get(job)
        if paper is not None and isinstance(message, m.LogLines):
            origin = self._desk.neighbour(PeerId(paper.origin))
            origin.link.send(far.Output(paper.job, message.who, message.pid, message.stream, message.lines))

    def output(self, neighbour: Neighbour, message: far.Output) -> None:
        """What workers of a job of ours print there."""
        job = self.job_of(message.job)
        if job is not None:
            who = f"{message.who}, {neighbour.client.name}" if message.who else neighbour.client.name
            self._node.logs.collector.came(job.number, who, message.pid, message.stream, message.lines)
            self._node.logs.send(job.number)

    # -- their end

    def ended(self, job: Job, *, farewell: bool) -> None:
        """Tell those who have workers of it; they end its variants with it."""
        if job.root:
            self._desk.placing.job_ended(job.number)
            return
        paper = self._papers.get(job.number)
        if paper is None:
            return
        told = [neighbour for neighbour in self._desk.neighbours.values() if paper.job in neighbour.told_jobs]
        for neighbour in told:
            neighbour.link.send(far.JobOver(paper.job, farewell))
            del neighbour.told_jobs[paper.job]
        self._desk.placing.job_ended(job.number)
        if farewell and told and paper.origin == self._desk.me:
            self._seen_off[paper.job] = {neighbour.peer for neighbour in told}
            self._node.loop.call_later(FAREWELL_S, self._see_off, job, paper.job)

    def sees_off(self, job: int) -> bool:
        """Whether other nodes have yet to send what its workers printed last."""
        paper = self._papers.get(job)
        return paper is not None and bool(self._seen_off.get(paper.job))

    def _see_off(self, job: Job, id: bytes) -> None:
        if self._seen_off.pop(id, None) is not None:
            self._node.job_desk.see_off(job)

    def job_over(self, neighbour: Neighbour, message: far.JobOver) -> None:
        """The driver of a job is gone, or the job is over where we have it from."""
        number = self._jobs.get(message.job)
        paper = self._papers.get(number) if number is not None else None
        if message.job not in neighbour.asked_jobs and (paper is None or paper.origin != neighbour.peer):
            return  # it has never said a word of it
        self._desk.environments.over(message.job)
        if number is None or paper is None or paper.origin == self._desk.me:
            if message.farewell:  # it was only asked, or is not prepared yet: nothing of it has run here
                neighbour.link.send(far.JobGone(message.job))
            return
        if not message.farewell:
            self.end(number, "its driver ended")
            return
        job = self._node.jobs.get(number)
        if job is not None:
            self._node.job_desk.end(job, farewell=True)
            self._told_farewell(neighbour, job, message.job)

    def _told_farewell(self, neighbour: Neighbour, job: Job, id: bytes) -> None:
        """Say that all is said once its workers are gone."""
        if self._node.job_desk.workers_of(job.number) and not self._desk.closing:
            self._node.loop.call_later(LOOK_S, self._told_farewell, neighbour, job, id)
            return
        self._node.logs.send(job.number)
        neighbour.link.send(far.JobGone(id))
        self.end(job.number, "its driver ended")

    def job_gone(self, neighbour: Neighbour, message: far.JobGone) -> None:
        """What a job had there has ended, and it is not known there any more."""
        neighbour.told_jobs.pop(message.job, None)
        waiting = self._seen_off.get(message.job)
        job = self._node.jobs.get(self._jobs.get(message.job, 0))
        if waiting is not None and job is not None:
            waiting.discard(neighbour.peer)
            if not waiting:
                self._see_off(job, message.job)

    def end(self, number: int, how: str) -> None:
        """The driver of a job of others is gone."""
        job = self._node.jobs.get(number)
        driver = self._node.clients.get(job.driver) if job is not None else None
        if driver is not None:
            self._node.client_gone(driver, how)

    def forgotten(self, number: int) -> None:
        """Nothing is left of it: who has told us of it does so again before it asks the next thing."""
        paper = self._papers.pop(number, None)
        self._submissions.pop(number, None)
        if paper is None or self._jobs.get(paper.job) != number:  # it has begun anew, under another number
            return
        self._desk.environments.forgotten(paper.job)
        del self._jobs[paper.job]
        for neighbour in self._desk.neighbours.values():
            neighbour.told_jobs.pop(paper.job, None)
            if paper.job in neighbour.asked_jobs:
                neighbour.asked_jobs.discard(paper.job)
                neighbour.link.send(far.JobGone(paper.job))

    def origin(self, job: int) -> PeerId | None:
        """The node of a job's driver, as far as it is known."""
        paper = self._papers.get(self._node.environments.root(job))
        return None if paper is None else PeerId(paper.origin)

    def objection(self, job: bytes) -> str:
        """Why nothing of this job runs here; "" if it may."""
        number = self._jobs.get(job)
        if number is None or number not in self._node.jobs or self._has_ended(number):
            reason = self._desk.environments.objection(job)
            return reason or "its job is not known here, or was refused: see this node's log"
        if self._node.closing or self._desk.closing:
            return "this node is going"
        if Role.EXECUTE not in self._desk.peer.credentials.member.roles:
            return "this node has not the role `execute`"
        submission = self._submissions[number]
        if submission.peer != self._desk.me and submission.expires < self.unix():
            return "its job's token has expired"
        return ""

    def objection_to_run(self, job: bytes) -> str:
        """Why this node lends no worker to this job; "" if it does. Its functions are bytecode of its own Python, which
        ends a worker of another one: whoever asks should know, and may not."""
        if reason := self.objection(job):
            return reason
        paper = self._papers.get(self._jobs[job])
        if paper is None or paper.origin == self._desk.me or paper.minor in ("", _MINOR):
            return ""
        return f"its program runs Python {paper.minor}, and this node runs {_MINOR} for others"


def said_by(paper: far.JobIs) -> Environment:
    """What of a job's environment is there without its packages. Raises RemoteProtocolError."""
    return Environment(paper.env_vars, installs=decode_installs(paper.installs), timeout_s=paper.setup_s)


def _key_of(paper: far.JobIs) -> bytes:
    return key_of_parts(paper.env_vars, paper.packages, decode_installs(paper.installs))


def _said_of(environment: Environment) -> tuple[dict[str, str], list[tuple[str, str]], bytes, bytes, float]:
    """The last five fields of a `JobIs` of no variant."""
    packages = [(package.kind, package.cid) for package in environment.packages]
    installs = b"" if environment.installs is None else encode(environment.installs)
    return environment.env_vars, packages, b"", installs, environment.timeout_s


def _chars_of(paper: far.JobIs) -> int:
    lists = paper.sys_path, paper.preload, paper.env_vars, paper.env_vars.values(), *paper.packages
    rest = paper.python, paper.minor, paper.cwd, paper.script, paper.namespace
    return len(paper.installs) + sum(len(text) for texts in (*lists, rest) for text in texts) + 8 * sum(map(len, lists))
