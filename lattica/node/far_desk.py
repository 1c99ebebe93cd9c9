"""Work across machines: leases on other nodes' workers, theirs on ours, and the connections that calls take.

    our process ── LeaseRequest ──► LeaseDesk ──► FarDesk.place ──AskLease──► their FarDesk ──► their book, their worker
    our process ══ unix socket ══ Carrier ═══════ Carry ═══════ Carrier ══ unix socket ══ their worker

Both sides see the other machine's processes as clients with numbers of their own (`proxies`): to our process a worker
elsewhere is a worker, and to that one our process is a caller. Nobody but the two looks at what they say; values too
large for a message are fetched by the receiver's node when they are wanted (`far_objects`).

What is known of another node lives as long as the session with it. When that ends, or cannot be resumed, what it had of
ours is lost: tasks are run elsewhere, and actors hear the membership's verdict (`far_actors`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from time import time
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.codec import far, frames
from lattica.codec import messages as m
from lattica.errors import ConfigError, LatticaError, RemoteProtocolError
from lattica.ids import JobId
from lattica.mesh.identity import PEER_ID_BYTES, PeerId, peer_text
from lattica.mesh.membership import MemberChanged, State
from lattica.mesh.roles import Role
from lattica.mesh.services import caller, method, service
from lattica.mesh.tokens import TOKEN_MAX_S, Submission, sign_token, verify_token
from lattica.node.clients import AWAY, DRIVER, GUEST, NODE, WORKER, Client, Job
from lattica.node.deciding import Deciding
from lattica.node.detached_desk import DetachedDesk
from lattica.node.environment import NOTHING, Environment
from lattica.node.far_actors import FarActors
from lattica.node.far_environment import FarEnvironments
from lattica.node.far_objects import FarObjects
from lattica.node.kept import Kept
from lattica.node.lease_desk import FAR_LEASE, NO_ROOM
from lattica.node.links import Carrier, Link
from lattica.node.names_desk import NamesDesk
from lattica.node.proxies import proxy
from lattica.scheduler import load as loads
from lattica.scheduler.admission import Refused
from lattica.scheduler.demand import Demand
from lattica.scheduler.fencing import Life
from lattica.scheduler.given import WORK_S_MAX, decode_within
from lattica.scheduler.leases import Lease
from lattica.scheduler.placement import Choice, Infeasible
from lattica.scheduler.resources import ResourceSet

if TYPE_CHECKING:
    from lattica.mesh.calls import Pipe
    from lattica.node.mesh_desk import MeshDesk
    from lattica.node.placer import Placer
    from lattica.node.server import Node
    from lattica.node.workers import Death, Process

log = logging.getLogger(__name__)
SILENCE_S = 3.0
"""Of a node that has tasks of ours, after which they are run elsewhere. Longer: a lost machine's tasks wait for it;
shorter: one that is merely busy runs them twice."""
PING_S = 1.0  # how often a node that has work of others, or of which it is asked, says something
AGAIN_S = 0.5  # between two looks for a place for what waits
SHORT_S = 0.05  # after something has changed that may make room
ELSEWHERE_S = 1.0
"""What waits in another node's queue is asked of a third one that is idle, after this. Those before it there may be
actors, whose turn never ends. Shorter: a queue that moves is left for one that is no shorter when the request comes."""
LEAVES_MAX = 64  # looked at at once
HANDED_OVER_S = 8.0
"""How long what was given to a process elsewhere is held after its connection has ended: its last messages may be on
their way from a socket through that process to its node."""
DEATH_S = 3.0
"""From the end of a worker's connections to the word that it is dead, at the latest: until then it is known who called
it, so that its page can be read for them. A death is told within one and a half."""
RECONNECT_S = 30.0
"""For a caller of an actor to come back over another connection, under the number by which the actor knows what it has
called already. Shorter: a call runs twice; longer: the actor remembers callers that only dropped their handles."""
JOBS_MAX = 4096
JOB_SAID_MAX_CHARS = 512 << 10  # of a job, with its variables and packages
FAREWELL_S = 3.0  # for other machines to send the last lines of a job's workers
NO_RESOURCES = ResourceSet({})
WAITING_SAID_S = 5.0  # after which a driver is told that nothing in the mesh can run its task
_OF_GROUPS = (
    far.GroupReserve, far.GroupCommit, far.GroupAbort, far.GroupReserved, far.GroupDenied, far.GroupCommitted,
    far.GroupExpired, far.GroupWatch, far.GroupIs, far.GroupEnd, far.GroupNamed, far.GroupFound,
)  # fmt: skip
_OF_STORES = (
    far.Took, far.Returned, far.Want, far.Here, far.Nowhere, far.Has, far.Going, far.MayGo, far.Taken,
)  # fmt: skip
"""What members say that may neither run anything nor have anything run: they hold objects."""
_from_node = msgspec.msgpack.Decoder(m.BecomeActor | m.ActorRelease | m.Exit | m.CheckpointWanted)
_from_worker = msgspec.msgpack.Decoder(m.ActorReady | m.ActorFailed | m.ActorExit | m.ActorCheckpoint)


class Away(msgspec.Struct, eq=False):
    """A worker of another node, as ours know it: client `client.number` here, `theirs` there."""

    neighbour: Neighbour
    client: Client
    theirs: int
    pid: int
    lease: int = 0  # of ours
    gpus: list[int] = []
    carriers: dict[int, Carrier] = {}  # caller -> its connection
    guests: dict[int, int] = {}  # caller -> by what number that node knows it
    over: bool = False


class Guest(msgspec.Struct, eq=False):
    """A process of another node (`caller` there) that calls a worker of ours; theirs: that node's number for it."""

    neighbour: Neighbour
    client: Client
    caller: int
    worker: int
    theirs: int
    carrier: Carrier


class Held(msgspec.Struct, eq=False):
    """A lease of ours on another node's worker. holder: NODE for an actor."""

    away: Away
    theirs: int
    holder: int
    resources: dict[str, float] = {}
    within: bytes = b""


class Wish(msgspec.Struct, eq=False):
    """A request of a client of ours for a worker, until it has one. where: whom we asked, None: nobody now.
    within: the bundle of a placement group that it is for, as `node.group_desk` says it."""

    client: int
    request: int
    job: int
    demand: Demand
    retryable: bool
    name: str
    actor: bool
    since: float
    local: bool = False  # it waits in our own book
    where: Neighbour | None = None
    number: int = 0  # of the question
    asked_at: float = 0.0
    moved_at: float = 0.0  # when it is seen whether it waits there in vain
    tried: list[PeerId] = []
    again_at: float = 0.0
    trouble: str = ""  # why nothing can run it
    said: bool = False
    within: bytes = b""


class Hosted(msgspec.Struct, eq=False):
    """A worker of ours that is, or will be, an actor of another node's."""

    neighbour: Neighbour
    worker: int
    actor: bytes = b""
    incarnation: int = 0
    life: far.Life | None = None  # of a detached one


class Neighbour:
    """Another node, for as long as the link with it."""

    def __init__(self, peer: PeerId, client: Client, link: Link) -> None:
        self.peer, self.client, self.link = peer, client, link
        self.told_jobs: dict[bytes, float] = {}  # job -> until when they have its token
        self.asked_jobs: set[bytes] = set()  # of theirs: they have told us of it, or were asked whether it goes on
        self.asks: dict[int, Wish] = {}
        self.workers: dict[int, Away] = {}  # their number -> it
        self.known: dict[tuple[int, int], int] = {}  # (their number of a process, worker) -> our number of it
        self.questions: dict[int, bool] = {}  # their requests that wait here -> whether for an actor
        self.shown: set[int] = set()  # workers of ours that they know: they are told of the end of each
        self.doubtful = False  # their silence has cost them our tasks
        self.roles = Role(0)
        self.warned = False  # that they may not say what they say

    def __repr__(self) -> str:
        return f"<Neighbour {peer_text(self.peer)[:8]}: {len(self.workers)} workers for us>"


@service("node")
class NodeService:
    """What one node offers to others."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk = desk

    @method(role=Role.EXECUTE | Role.SUBMIT | Role.STORE, pipe=True)
    async def link(self, *, pipe: Pipe) -> None:
        """Hear a node: `codec.far`. What each of its messages needs is checked by the desk."""
        await self._desk.linked(pipe)


class FarDesk:
    """See the module."""

    def __init__(self, node: Node, mesh: MeshDesk, placer: Placer) -> None:
        self.node, self.mesh, self.placer = node, mesh, placer
        self.peer = mesh.peer
        self.me = mesh.peer.id
        self.neighbours: dict[PeerId, Neighbour] = {}
        self.proxies: dict[
            int, tuple[Neighbour, int]
        ] = {}  # our number of a process elsewhere -> its node, their number
        self.aways: dict[int, Away] = {}
        self.guests: dict[int, Guest] = {}
        self.hosted: dict[int, Hosted] = {}
        self.leases: dict[int, Held] = {}
        self.wishes: dict[tuple[int, int], Wish] = {}
        self.far_names: dict[int, dict[int, int]] = {}  # our number of a worker elsewhere -> as in its `Away.guests`
        self.givers: dict[int, Client] = {}  # worker of ours that is an actor of others -> who gave it its arguments
        self.silenced: set[int] = set()  # processes elsewhere that have ended, and whose last word has been heard
        self._jobs: dict[bytes, int] = {}  # of others and of ours -> our number
        self._papers: dict[int, far.JobIs] = {}  # our number -> what others are told
        self._submissions: dict[int, Submission] = {}  # our number -> what its token allows
        self._seen_off: dict[bytes, set[PeerId]] = {}  # jobs of ours that end -> who has not sent its last lines yet
        self._lease_numbers, self._questions = count(FAR_LEASE), count(1)
        self._looking: Any = None
        self._closing = False
        self.environments = FarEnvironments(self)
        self.objects = FarObjects(self)
        self.actors = FarActors(self)
        self.kept = Kept(self, os.path.join(node.settings.data_dir, "kept"))
        self.names, self.detached = NamesDesk(self), DetachedDesk(self)
        self.deciding = Deciding(self, mesh.how)
        self._handlers: dict[type, Any] = {
            far.JobIs: self._job_is, far.JobOver: self._job_over, far.JobGone: self._job_gone,
            far.AskLease: self._ask_lease, far.DropAsk: self._drop_ask, far.LeaseIs: self._lease_is,
            far.LeaseNot: self._lease_not, far.GiveBack: self._give_back, far.KillWorker: self._kill_worker,
            far.Wanted: self._wanted, far.WorkerOver: self._worker_over, far.ToWorker: self._to_worker,
            far.FromWorker: self._from_worker, far.EndWorker: self._end_worker, far.Output: self._output,
            far.Open: self._open, far.Opened: self._opened, far.Carry: self._carry, far.Taken: self._taken,
            far.Closed: self._closed,
            far.Took: self.objects.took, far.Returned: self.objects.returned, far.Want: self.objects.want,
            far.Here: self.objects.here, far.Nowhere: self.objects.nowhere, far.Stop: self.objects.stop,
            far.Has: self.objects.has,
            far.ActorWanted: self.actors.wanted, far.ActorAt: self.actors.at, far.ActorIsDown: self.actors.is_down,
            far.ActorEnd: self.actors.end,
            far.Claiming: self.deciding.claiming, far.WhoHas: self.deciding.who_has,
            far.NameRow: self.names.answered, far.HoldActor: self.names.hold, far.ActorHeld: self.names.answered,
            far.Keep: self.kept.keep, far.KeptWanted: self.kept.wanted, far.NotKept: self.kept.not_kept,
            **dict.fromkeys(_OF_GROUPS, self._of_groups),
        }  # fmt: skip
        self.peer.serve(NodeService(self), offered=False)
        self.peer.on_falter.append(self._faltered)
        self.peer.gossip.watch_members(self._member_changed)
        placer.changed = self._look_soon
        mesh.teach("actors", lambda _: self.detached.view())
        mesh.teach("side", lambda _: self.deciding.side())
        mesh.teach("adopt", lambda _: self.deciding.adopt())
        self.deciding.start()
        self._beat = node.loop.call_later(PING_S, self._ping)

    def __repr__(self) -> str:
        return (
            f"<FarDesk: {len(self.neighbours)} links, {len(self.leases)} leases elsewhere, {len(self.wishes)} wishes>"
        )

    def close(self) -> None:
        """The node ends."""
        self._closing = True
        self.environments.close()
        self._beat.cancel()
        for desk in (self.deciding, self.names, self.detached, self.actors):
            desk.close()
        if self._looking is not None:
            self._looking[0].cancel()
        for neighbour in list(self.neighbours.values()):
            neighbour.link.end("this node ends")

    @property
    def is_closing(self) -> bool:
        """Whether this node is going."""
        return self._closing or self.node.closing

    def lives(self, peer: PeerId) -> bool:
        """Whether it is another member, and not known to be dead."""
        state = self.peer.gossip.community.membership.state(peer)
        return peer != self.me and (peer in self.neighbours or state in (State.ALIVE, State.SUSPECT))

    def roles_of(self, peer: PeerId) -> Role:
        """What a member may do."""
        if peer == self.me:
            return self.peer.credentials.member.roles
        member = self.peer.gossip.community.replica.member(peer)
        return Role(0) if member is None else member.roles

    # -- links

    async def linked(self, pipe: Pipe) -> None:
        """Another node has something to say."""
        if self._closing:
            pipe.close("this node ends")
            return
        neighbour = self.neighbour(pipe.peer)
        neighbour.roles = caller.get().roles
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        neighbour.link.hear(pipe)
        ended = pipe.ended

        def end(reason: str) -> None:
            ended(reason)
            if not over.done():
                over.set_result(None)

        pipe.ended = end
        if pipe.over is None:
            await over

    def neighbour(self, peer: PeerId) -> Neighbour:
        """The node of this peer; a link with it begins if there is none."""
        found = self.neighbours.get(peer)
        if found is None and len(peer) != PEER_ID_BYTES:
            raise RemoteProtocolError(f"{peer.hex()[:80]} is no peer")
        if found is None:
            link = Link(self.peer, peer, self._received, self._link_ended)
            name = f"node {peer_text(peer)[:8]}"
            number = self.new_number()
            client = proxy(number, NODE, 0, time(), name, lambda message: self._told(peer, message))
            found = self.neighbours[peer] = Neighbour(peer, client, link)
            self.node.clients[number] = client
            self.node.store.joined(number, b"")
        return found

    def new_number(self) -> int:
        """For a client."""
        return self.node.new_number()

    def _received(self, link: Link, messages: list[Any]) -> None:
        neighbour = self.neighbours.get(link.other)
        if neighbour is None or neighbour.link is not link:
            return
        neighbour.doubtful = False
        works = bool(neighbour.roles & (Role.EXECUTE | Role.SUBMIT))
        for message in messages:
            if works or isinstance(message, _OF_STORES):
                self._handlers[type(message)](neighbour, message)
            elif not neighbour.warned:
                neighbour.warned = True
                what = type(message).__name__
                log.warning("%s has neither `execute` nor `submit`: its %s is ignored", neighbour.client.name, what)

    def answers(self, kind: type, answer: Any) -> None:
        """Another desk hears messages of this kind: answer(neighbour, message)."""
        self._handlers[kind] = answer

    def _told(self, peer: PeerId, message: Any) -> None:
        """What our desks tell another node, as a client of theirs."""
        neighbour = self.neighbours.get(peer)
        if neighbour is None:
            return
        match message:
            case m.Located():
                self.objects.located(neighbour, message)
            case m.Lost():
                neighbour.link.send(far.Nowhere(message.object, message.owner, message.made_at))
            case m.LeaseWanted():
                neighbour.link.send(far.Wanted())
            case m.LeaseDenied():
                neighbour.questions.pop(message.request, None)
                neighbour.link.send(far.LeaseNot(message.request, message.reason, True, self._load()))
            case m.ActorDown():
                neighbour.link.send(far.ActorIsDown(frames.encode_one(message)))

    def _link_ended(self, link: Link, reason: str) -> None:
        neighbour = self.neighbours.get(link.other)
        if neighbour is None or neighbour.link is not link:
            return
        del self.neighbours[link.other]
        if self._closing or self.node.closing:
            return
        how = f"the connection with {neighbour.client.name} was lost: {reason}"
        log.info("%s", how)
        self._lose(neighbour, how)
        for away in list(neighbour.workers.values()):
            self._away_over(away, how)
        for guest in [guest for guest in self.guests.values() if guest.neighbour is neighbour]:
            self.guests.pop(guest.client.number, None)
            self.node.client_gone(guest.client, how)
        self.actors.parted(neighbour, how)
        self.names.parted(neighbour, how)
        self.kept.parted(neighbour)
        for hosted in [hosted for hosted in self.hosted.values() if hosted.neighbour is neighbour]:
            del self.hosted[hosted.worker]
            self.node.end_worker(hosted.worker, f"its owner is gone: {how}")
        self.objects.parting(neighbour, how)
        self.node.client_gone(neighbour.client, how)  # its leases are orphans: their workers end
        self.objects.parted(neighbour, how)
        if self.node.group_desk is not None:
            self.node.group_desk.parted(neighbour.peer)
        self._look_soon()

    def _member_changed(self, change: MemberChanged) -> None:
        if change.state in (State.DEAD, State.LEFT):
            for number, paper in list(self._papers.items()):
                if paper.origin == change.peer and number in self.node.jobs:
                    self._end_job(number, f"the node of its driver is {change.state.value}")
            neighbour = self.neighbours.get(change.peer)
            if neighbour is not None:
                neighbour.link.end(f"it is {change.state.value}")
            if self.node.group_desk is not None:
                self.node.group_desk.node_gone(change.peer)
        self._look_soon()

    def _faltered(self, peer: PeerId, reason: str) -> None:
        """No connection, and none to be had: what it does for us is done elsewhere, now."""
        neighbour = self.neighbours.get(peer)
        if neighbour is not None:
            how = f"{neighbour.client.name} cannot be reached: {reason}"
            self._lose(neighbour, how)
            self.objects.doubted(neighbour, how)

    def _ping(self) -> None:
        """Say that we live, to those who wait for us; doubt those who are silent."""
        now = self.node.now()
        self._beat = self.node.loop.call_later(PING_S, self._ping)
        self._doubt_jobs()
        for neighbour in list(self.neighbours.values()):
            neighbour.roles = self.roles_of(neighbour.peer) or neighbour.roles  # a certificate was renewed, perhaps
            link = neighbour.link
            mine = bool(neighbour.asks) or any(away.lease for away in neighbour.workers.values())
            if mine and now - max(link.heard_at, link.since) > SILENCE_S and not neighbour.doubtful:
                self._lose(neighbour, f"{neighbour.client.name} has been silent for {SILENCE_S:g} s")
            theirs = neighbour.questions or any(hosted.neighbour is neighbour for hosted in self.hosted.values())
            busy = mine or theirs or any(guest.neighbour is neighbour for guest in self.guests.values())
            if busy and now - link.said_at >= PING_S / 2:
                link.send(far.Taken(0, 0))

    def _doubt_jobs(self) -> None:
        """A job ends with its driver's node, and that may have begun anew before anybody missed it."""
        membership = self.peer.gossip.community.membership
        for number, paper in list(self._papers.items()):
            origin = PeerId(paper.origin)
            job = self.node.jobs.get(number)
            if origin == self.me or job is None or job.ended:
                continue
            if membership.state(origin) in (State.DEAD, State.LEFT, None):
                self._end_job(number, "the node of its driver is gone")
                continue
            neighbour = self.neighbour(origin)
            if paper.job not in neighbour.asked_jobs:
                neighbour.asked_jobs.add(paper.job)
                neighbour.link.send(paper)

    def _lose(self, neighbour: Neighbour, how: str) -> None:
        """Its leases of tasks are lost, whether it lives or not; if it does, it is told to end them."""
        neighbour.doubtful = True
        for wish in list(neighbour.asks.values()):
            neighbour.link.send(far.DropAsk(wish.number))
            self._unask(wish)
            wish.tried.append(neighbour.peer)
        for number, held in list(self.leases.items()):
            if held.away.neighbour is neighbour and held.holder != m.NODE:
                neighbour.link.send(far.KillWorker(held.theirs, 0, how))
                self._lease_lost(number, held, m.LeaseLost(number, 0, 0, b"", how, "", unknown=True))
                self._away_over(held.away, how)
        self._look_soon()

    # -- jobs

    def paper(self, job: int) -> far.JobIs | None:
        """What other nodes are told of a job; None if it is gone."""
        known, entry = self._papers.get(job), self.node.jobs.get(job)
        if entry is None:
            return None
        now = self.unix()
        if known is not None and (known.origin != self.me or self._submissions[job].expires - now > TOKEN_MAX_S / 2):
            return known
        id = known.job if known is not None else os.urandom(16)
        token = sign_token(
            JobId(id), {}, now, now + TOKEN_MAX_S, signer=self.peer.credentials.identity,
            chain=self.peer.credentials.chain, mesh=self.peer.credentials.mesh,
        )  # fmt: skip
        made = far.JobIs(
            id, token, self.me, entry.python, f"{sys.version_info[0]}.{sys.version_info[1]}", entry.sys_path, entry.cwd,
            entry.script, entry.namespace, entry.log_to_driver, entry.preload, entry.environment.env_vars,
            [(package.kind, package.cid) for package in entry.environment.packages],
        )  # fmt: skip
        self._papers[job] = made
        self._jobs[id] = job
        self._submissions[job] = Submission(self.me, Role(0), JobId(id), {}, now + TOKEN_MAX_S)
        return made

    def unix(self) -> float:
        """The mesh's time."""
        return time() + self.peer.sessions.correction_s

    def _introduce(self, neighbour: Neighbour, job: int) -> bytes | None:
        """Tell it of the job if it does not know; the job's id, None if it is gone."""
        paper = self.paper(job)
        if paper is None:
            return None
        expires = self._submissions[job].expires
        if neighbour.told_jobs.get(paper.job, 0.0) < expires:
            neighbour.told_jobs[paper.job] = expires
            neighbour.link.send(paper)
        return paper.job

    def _job_is(self, neighbour: Neighbour, message: far.JobIs) -> None:
        peer = self.peer
        try:
            token = verify_token(message.token, peer.credentials.root, peer.credentials.trust, self.unix())
            if token.job != message.job or token.peer != message.origin:
                raise RemoteProtocolError("a job's token is another's")
        except LatticaError as error:
            log.warning("a job of %s is refused: %s", neighbour.client.name, error.message)
            return
        number = self._jobs.get(message.job)
        known = self._papers.get(number) if number is not None else None
        if known is not None and known.origin != message.origin:
            log.warning("a job of %s is refused: another's has its id", neighbour.client.name)
            return
        if _chars_of(message) > JOB_SAID_MAX_CHARS:
            log.warning("a job of %s is refused: it says too much of itself", neighbour.client.name)
            return
        if message.origin == self.me:  # they ask whether it goes on
            if number is None:
                neighbour.link.send(far.JobOver(message.job))
            else:
                neighbour.told_jobs.setdefault(message.job, 0.0)
            return
        if number is None and len(self._papers) >= JOBS_MAX:
            log.warning("a job of %s is refused: there are too many", neighbour.client.name)
            return
        if len(neighbour.asked_jobs) >= JOBS_MAX:
            neighbour.asked_jobs.clear()  # who goes on with one is asked again
        neighbour.asked_jobs.add(message.job)
        if number is None:
            if self.environments.needed(message):
                self.environments.prepare(neighbour, message, token)
                return
            number = self._begin_job(message, NOTHING, message.sys_path, message.cwd)
        self._papers[number] = message
        self._submissions[number] = token

    def admit_job(
        self, paper: far.JobIs, token: Submission, environment: Environment, sys_path: list[str], cwd: str
    ) -> None:
        """What it needs is here: it begins."""
        if paper.job not in self._jobs:
            number = self._begin_job(paper, environment, sys_path, cwd)
            self._papers[number] = paper
            self._submissions[number] = token

    def hear(self, neighbour: Neighbour, message: Any) -> None:
        """What it said some time ago, and had to wait."""
        if self.neighbours.get(neighbour.peer) is neighbour and not self._closing:
            self._handlers[type(message)](neighbour, message)

    def job_of(self, id: bytes) -> Job | None:
        """The job whose driver is here."""
        number = self._jobs.get(id, 0)
        paper = self._papers.get(number)
        return self.node.jobs.get(number) if paper is not None and paper.origin == self.me else None

    def _begin_job(self, paper: far.JobIs, environment: Environment, sys_path: list[str], cwd: str) -> int:
        node, driver = self.node, self.new_number()
        python = paper.python if paper.minor == _MINOR and os.access(paper.python, os.X_OK) else sys.executable
        number = node.job_desk.next_number()
        node.jobs[number] = Job(
            number, driver, 0, python, sys_path, cwd, paper.script, paper.namespace, paper.log_to_driver,
            time(), paper.preload, environment=environment,
        )  # fmt: skip
        name = f"driver on {peer_text(PeerId(paper.origin))[:8]}"
        client = proxy(driver, DRIVER, number, time(), name, lambda message: self._say_output(number, message))
        node.clients[driver] = client
        self._jobs[paper.job] = number
        node.workers.zygotes.preload(python, sys_path, paper.preload)
        return number

    def _say_output(self, job: int, message: Any) -> None:
        paper = self._papers.get(job)
        if paper is not None and isinstance(message, m.LogLines):
            origin = self.neighbour(PeerId(paper.origin))
            origin.link.send(far.Output(paper.job, message.who, message.pid, message.stream, message.lines))

    def _output(self, neighbour: Neighbour, message: far.Output) -> None:
        job = self.job_of(message.job)
        if job is not None:
            who = f"{message.who}, {neighbour.client.name}" if message.who else neighbour.client.name
            self.node.logs.collector.came(job.number, who, message.pid, message.stream, message.lines)
            self.node.logs.send(job.number)

    def job_ended(self, job: Job, *, farewell: bool) -> None:
        """Tell those who have workers of it."""
        paper = self._papers.get(job.number)
        if paper is None:
            return
        told = [neighbour for neighbour in self.neighbours.values() if paper.job in neighbour.told_jobs]
        for neighbour in told:
            neighbour.link.send(far.JobOver(paper.job, farewell))
            del neighbour.told_jobs[paper.job]
        for wish in [wish for wish in self.wishes.values() if wish.job == job.number and not wish.actor]:
            self._drop(wish)
        if farewell and told and paper.origin == self.me:
            self._seen_off[paper.job] = {neighbour.peer for neighbour in told}
            self.node.loop.call_later(FAREWELL_S, self._see_off, job, paper.job)

    def sees_off(self, job: int) -> bool:
        """Whether other nodes have yet to send what its workers printed last."""
        paper = self._papers.get(job)
        return paper is not None and bool(self._seen_off.get(paper.job))

    def _see_off(self, job: Job, id: bytes) -> None:
        if self._seen_off.pop(id, None) is not None:
            self.node.job_desk.see_off(job)

    def _job_over(self, neighbour: Neighbour, message: far.JobOver) -> None:
        number = self._jobs.get(message.job)
        paper = self._papers.get(number) if number is not None else None
        if message.job not in neighbour.asked_jobs and (paper is None or paper.origin != neighbour.peer):
            return  # it has never said a word of it
        self.environments.over(message.job)
        if number is None or paper is None or paper.origin == self.me:
            if message.farewell:  # it was only asked, or is not prepared yet: nothing of it has run here
                neighbour.link.send(far.JobGone(message.job))
            return
        if not message.farewell:
            self._end_job(number, "its driver ended")
            return
        job = self.node.jobs.get(number)
        if job is not None:
            self.node.job_desk.end(job, farewell=True)
            self._told_farewell(neighbour, job, message.job)

    def _told_farewell(self, neighbour: Neighbour, job: Job, id: bytes) -> None:
        """Say that all is said once its workers are gone."""
        if self.node.pool.of_job(job.number) and not self._closing:
            self.node.loop.call_later(SHORT_S, self._told_farewell, neighbour, job, id)
            return
        self.node.logs.send(job.number)
        neighbour.link.send(far.JobGone(id))
        self._end_job(job.number, "its driver ended")

    def _job_gone(self, neighbour: Neighbour, message: far.JobGone) -> None:
        waiting = self._seen_off.get(message.job)
        job = self.node.jobs.get(self._jobs.get(message.job, 0))
        if waiting is not None and job is not None:
            waiting.discard(neighbour.peer)
            if not waiting:
                self._see_off(job, message.job)

    def _end_job(self, number: int, how: str) -> None:
        job = self.node.jobs.get(number)
        driver = self.node.clients.get(job.driver) if job is not None else None
        if driver is not None:
            self.node.client_gone(driver, how)

    def job_forgotten(self, number: int) -> None:
        """Nothing is left of it."""
        paper = self._papers.pop(number, None)
        self._submissions.pop(number, None)
        if paper is not None:
            self.environments.forgotten(paper.job)
            self._jobs.pop(paper.job, None)
            for neighbour in self.neighbours.values():
                neighbour.told_jobs.pop(paper.job, None)
                neighbour.asked_jobs.discard(paper.job)

    # -- placing what our clients want

    def wish(self, client: Client, message: m.LeaseRequest, resources: ResourceSet) -> None:
        """A process of ours wants a worker. Raises ConfigError if what it wants cannot be understood."""
        demand = self.placer.demand(message.given, resources)
        if message.inputs or message.work_s:
            demand = self._knowing(demand, message.inputs, message.work_s)
        now = self.node.now()
        self.place(
            Wish(client.number, message.request, client.job, demand, message.retryable, message.name, False, now)
        )

    def _knowing(self, demand: Demand, inputs: Sequence[tuple[bytes, int]], work_s: float = 0.0) -> Demand:
        """With where these objects lie, as far as is known here."""
        lies, size = self.objects.lies(inputs)
        return replace(demand, inputs=lies, input_bytes=size, work_s=min(max(work_s, 0.0), WORK_S_MAX))

    def wish_for_actor(
        self, number: int, job: int, resources: ResourceSet, name: str, given: bytes,
        inputs: Sequence[tuple[bytes, int]] = (),
    ) -> None:  # fmt: skip
        """The actor desk wants one. given: what its creator said of the place."""
        demand = self.placer.demand(given, resources)
        if inputs:
            demand = self._knowing(demand, inputs)
        self.place(Wish(m.NODE, number, job, demand, False, name, True, self.node.now()))

    def place(self, wish: Wish) -> None:
        """A client wants a worker: here, or wherever the placer says."""
        self.wishes[wish.client, wish.request] = wish
        if self.placer.stays(wish.demand):
            self._queue_here(wish)
        else:
            self._try(wish)

    def _try(self, wish: Wish) -> None:
        """Find the node to ask. What stays here waits in our book, and is looked at again."""
        if wish.where is not None:
            return
        if wish.within:
            del self.wishes[wish.client, wish.request]
            self.node.groups.came_back(wish.client, wish.request)
            return
        now = self.node.now()
        choice = self.placer.choose(wish.demand, tuple(wish.tried))
        wish.trouble = ""
        match choice:
            case Choice(peer, _) if peer == self.me:
                self._queue_here(wish)
            case Choice(peer, limit_s):
                self._leave_book(wish)
                self._ask(wish, self.neighbour(peer), limit_s)
                return
            case Infeasible(reason, final) if final:
                self._drop(wish)
                self._denied(wish, reason)
                return
            case Infeasible(reason):
                wish.trouble = reason
                self._leave_book(wish)
                self._say_trouble(wish, now)
            case _:
                if self.node.resources.missing(wish.demand.resources):
                    self._leave_book(wish)
                elif self.placer.possible_here(wish.demand):
                    self._queue_here(wish)
        wish.tried.clear()
        wish.again_at = now + AGAIN_S
        if (wish.client, wish.request) in self.wishes:
            self._look_at(wish.again_at)

    def _say_trouble(self, wish: Wish, now: float) -> None:
        if not wish.said and now - wish.since > WAITING_SAID_S:
            wish.said = True
            text = f"{wish.name or 'a task'} waits for a node that can run it: {wish.trouble}"
            log.warning("%s", text)
            job = self.node.jobs.get(wish.job)
            if job is not None:
                self.node.tell(job.driver, m.LogLines("lattica", os.getpid(), 2, [text]))

    def _queue_here(self, wish: Wish) -> None:
        if not wish.local:
            wish.local = True
            self.node.lease_desk.perform(
                self.node.book.request(
                    wish.client, wish.request, wish.job, wish.demand.resources, self.node.now(),
                    retryable=wish.retryable, name=wish.name,
                )
            )  # fmt: skip

    def _leave_book(self, wish: Wish) -> None:
        if wish.local:
            wish.local = False
            self.node.lease_desk.perform(self.node.book.cancel(wish.client, wish.request, self.node.now()))

    def _ask(self, wish: Wish, neighbour: Neighbour, limit_s: float) -> None:
        job = self._introduce(neighbour, wish.job)
        if job is None:
            self._drop(wish)
            return
        wish.where, wish.number, wish.asked_at = neighbour, next(self._questions), self.node.now()
        wish.moved_at = wish.asked_at + ELSEWHERE_S
        self._look_at(wish.moved_at)
        neighbour.asks[wish.number] = wish
        neighbour.link.send(
            far.AskLease(
                wish.number, job, wish.demand.resources.to_dict(), min(limit_s, 1e9), wish.retryable, wish.name,
                wish.actor, wish.within, wish.demand.work_s if wish.demand.inputs else 0.0,
            )
        )  # fmt: skip

    def _unask(self, wish: Wish) -> None:
        if wish.where is not None:
            wish.where.asks.pop(wish.number, None)
            wish.where = None

    def _drop(self, wish: Wish) -> None:
        """It is no wish any more."""
        if self.wishes.pop((wish.client, wish.request), None) is None:
            return
        if wish.where is not None:
            self._drop_question(wish, wish.where)
        self._leave_book(wish)

    def _drop_question(self, wish: Wish, where: Neighbour) -> None:
        """It does not wait there any more."""
        where.link.send(far.DropAsk(wish.number))
        if not wish.within:
            self.placer.dropped(where.peer, wish.asked_at)
        self.placer.ended(where.peer, NO_RESOURCES)  # it was ahead of others there, perhaps
        self._unask(wish)

    def canceled(self, client: int, request: int) -> bool:
        """The client wants it no more. Whether that was a wish of ours that is not in the book."""
        wish = self.wishes.get((client, request))
        if wish is None:
            return False
        self._drop(wish)
        return True

    def granted_here(self, lease: Lease) -> None:
        """Our own book has served it."""
        self.wishes.pop((lease.holder, lease.request.number), None)

    def denied_here(self, client: int, number: int) -> None:
        """Our own book never will."""
        self.wishes.pop((client, number), None)

    def _denied(self, wish: Wish, reason: str) -> None:
        if wish.client == m.NODE:
            self.node.actor_desk.denied(wish.request, reason)
        else:
            self.node.tell(wish.client, m.LeaseDenied(wish.request, reason))

    def _look_soon(self) -> None:
        """Something has changed: what waits may find a place."""
        for wish in self.wishes.values():
            wish.again_at = 0.0
        if self.wishes:
            self._look_at(self.node.now() + SHORT_S)

    def _look_at(self, at: float) -> None:
        if self._closing or (self._looking is not None and self._looking[1] <= at):
            return
        if self._looking is not None:
            self._looking[0].cancel()
        self._looking = self.node.loop.call_at(at, self._look), at

    def _look(self) -> None:
        self._looking = None
        now = self.node.now()
        self._leave_queues(now)
        for wish in list(self.wishes.values()):
            if wish.where is None and wish.again_at <= now and (wish.client, wish.request) in self.wishes:
                self._try(wish)
        waiting = [wish.again_at for wish in self.wishes.values() if wish.where is None]
        if waiting:
            self._look_at(max(min(waiting), now + SHORT_S))
        elif self.wishes:
            self._look_at(now + ELSEWHERE_S)

    def _leave_queues(self, now: float) -> None:
        """What waits at another node, and would begin at once at a third, is asked of that one."""
        late = [wish for wish in self.wishes.values() if wish.where and not wish.within and wish.moved_at <= now]
        for wish in sorted(late, key=lambda wish: wish.moved_at)[:LEAVES_MAX]:
            where = wish.where
            wish.moved_at = now + ELSEWHERE_S
            if where is None or wish.number not in where.asks:
                continue
            choice = self.placer.idle_for(wish.demand, where.peer, now - wish.asked_at)
            if choice is None:
                continue
            self._drop_question(wish, where)
            wish.tried.clear()
            if choice.peer == self.me:
                self._queue_here(wish)
            else:
                self._ask(wish, self.neighbour(choice.peer), choice.limit_s)

    # -- placement groups

    def _of_groups(self, neighbour: Neighbour, message: Any) -> None:
        self.node.groups.hear(neighbour, message)

    def ask_of_bundle(
        self, peer: PeerId, client: int, request: int, job: int, demand: Demand, within: bytes, *,
        retryable: bool, name: str, actor: bool,
    ) -> None:  # fmt: skip
        """Ask the node of a bundle for a worker in it. What it does not lend comes back to the desk of groups."""
        wish = Wish(client, request, job, demand, retryable, name, actor, self.node.now(), within=within)
        self.wishes[client, request] = wish
        self._ask(wish, self.neighbour(peer), 0.0)

    def leases_in(self, group: bytes, bundle: int) -> int:
        """How many workers we have there."""
        held = [decode_within(held.within) for held in self.leases.values() if held.within]
        return sum((within.group, within.bundle) == (group, bundle) for within in held)

    def not_here(self, client: int, number: int, reason: str) -> None:
        """What a node asked of a bundle of ours cannot be had any more."""
        neighbour = self._by_client(client)
        if neighbour is not None and neighbour.questions.pop(number, None) is not None:
            neighbour.link.send(far.LeaseNot(number, reason, False, self._load()))

    def introduce(self, neighbour: Neighbour, job: int) -> bytes | None:
        """Tell it of the job if it does not know; the job's id, None if it is gone."""
        return self._introduce(neighbour, job)

    def origin(self, job: int) -> PeerId | None:
        """The node of a job's driver, as far as it is known."""
        paper = self._papers.get(job)
        return None if paper is None else PeerId(paper.origin)

    def objection(self, job: bytes) -> str:
        """Why nothing of this job runs here; "" if it may."""
        return self._objection(job)

    # -- leases elsewhere

    def _lease_is(self, neighbour: Neighbour, message: far.LeaseIs) -> None:
        wish = neighbour.asks.pop(message.number, None)
        if wish is None:
            neighbour.link.send(far.GiveBack(message.lease))
            return
        self._heard_load(neighbour, message.load, wish.asked_at)
        wish.where = None
        self.wishes.pop((wish.client, wish.request), None)
        away = self.away(neighbour, message.worker, message.pid, wish.job)
        number = next(self._lease_numbers)
        away.lease, away.gpus, away.client.name = number, message.gpus, wish.name
        self.leases[number] = Held(away, message.lease, wish.client, wish.demand.resources.to_dict(), wish.within)
        if wish.within:
            self.node.groups.granted(wish.client, wish.request)
        if wish.client == m.NODE:
            if not self.node.actor_desk.granted_away(wish.request, away.client.number):
                self.give_back(number)
            return
        holder = self.node.clients.get(wish.client)
        if holder is None:
            self.give_back(number)
            return
        worker = away.client.number
        fd = [] if worker in holder.callees else self.connect(holder, worker)
        host = neighbour.client.number
        holder.send(m.LeaseGranted(wish.request, number, worker, message.pid, bool(fd), message.gpus, True, host), fd)

    def _lease_not(self, neighbour: Neighbour, message: far.LeaseNot) -> None:
        wish = neighbour.asks.pop(message.number, None)
        if wish is None:
            return
        self._heard_load(neighbour, message.load, wish.asked_at)
        wish.where = None
        wish.tried.append(neighbour.peer)
        self._try(wish)

    def _heard_load(self, neighbour: Neighbour, data: bytes, asked_at: float) -> None:
        if data and (load := loads.decode(data)) is not None:
            self.placer.told(neighbour.peer, load, asked_at)

    def give_back(self, number: int, ran_s: float = 0.0, expected_s: float = 0.0) -> None:
        """A lease of ours elsewhere is over. ran_s, expected_s: as in `messages.LeaseReturn`."""
        held = self.leases.pop(number, None)
        if held is not None:
            held.away.lease = 0
            held.away.neighbour.link.send(far.GiveBack(held.theirs, ran_s, expected_s))
            self.placer.ended(held.away.neighbour.peer, ResourceSet.of(held.resources))

    def returned(self, client: int, message: m.LeaseReturn) -> None:
        """Its holder returns it."""
        held = self.leases.get(message.lease)
        if held is not None and held.holder == client:
            self.give_back(message.lease, message.ran_s, message.expected_s)

    def kill(self, client: int, message: m.WorkerKill) -> None:
        """Its holder wants the worker killed."""
        held = self.leases.get(message.lease)
        if held is not None and held.holder == client:
            guest = held.away.guests.get(client, 0)
            held.away.neighbour.link.send(far.KillWorker(held.theirs, message.seq, message.why, guest))

    def client_gone(self, client: Client) -> None:
        """A client of the node has ended, here or elsewhere."""
        if client.kind in (GUEST, AWAY):
            self.let_go_later(client)
            return
        self.actors.client_gone(client.number)
        self._holder_gone(client.number)

    def _holder_gone(self, client: int) -> None:
        """One of our processes has ended: what it had elsewhere goes."""
        for wish in [wish for wish in self.wishes.values() if wish.client == client]:
            self._drop(wish)
        for number, held in list(self.leases.items()):
            if held.holder == client:
                del self.leases[number]
                held.away.lease = 0
                held.away.neighbour.link.send(far.KillWorker(held.theirs, 0, "its caller ended"))

    def _wanted(self, neighbour: Neighbour, _: far.Wanted) -> None:
        holders = {held.holder for held in self.leases.values() if held.away.neighbour is neighbour}
        for holder in holders - {m.NODE}:
            self.node.tell(holder, m.LeaseWanted())

    def _lease_lost(self, number: int, held: Held, message: m.LeaseLost) -> None:
        self.leases.pop(number, None)
        held.away.lease = 0
        if held.holder != m.NODE:
            message.lease, message.client = number, held.away.client.number
            self.node.tell(held.holder, message)

    # -- workers elsewhere

    def away(self, neighbour: Neighbour, theirs: int, pid: int = 0, job: int = 0) -> Away:
        """The worker of another node, as a client of ours."""
        found = neighbour.workers.get(theirs)
        if found is None:
            number = self.new_number()
            name = f"worker {theirs} of {neighbour.client.name}"
            client = proxy(number, AWAY, job, time(), name, lambda message: self._told_away(number, message))
            client.pid = pid
            found = neighbour.workers[theirs] = self.aways[number] = Away(neighbour, client, theirs, pid)
            self.node.clients[number] = client
            self.node.store.joined(number, b"")
            self.proxies[number] = neighbour, theirs
            self.far_names[number] = found.guests
        return found

    def _told_away(self, number: int, message: Any) -> None:
        away = self.aways.get(number)
        if away is None:
            return
        match message:
            case m.ClientGone(client):
                carrier = away.carriers.pop(client, None)
                if carrier is not None:
                    carrier.drain()
                    carrier.close("its process has ended", gone=client not in self.node.clients)
                    self._forget_unopened(away, client)
            case m.BecomeActor() | m.ActorRelease() | m.Exit() | m.CheckpointWanted():
                data = frames.encode_one(message)
                life = self.deciding.life_of(message.actor) if isinstance(message, m.BecomeActor) else None
                away.neighbour.link.send(far.ToWorker(away.theirs, number, data, life), len(data))

    def connect(self, caller: Client, worker: int, actor: bytes = b"", incarnation: int = 0) -> list[int]:
        """Connect a process of ours with a worker elsewhere: its end, as a list of one descriptor."""
        away = self.aways[worker]
        link = away.neighbour.link
        job = self._introduce(away.neighbour, caller.job) or b""
        before = away.carriers.pop(caller.number, None)
        if before is not None:
            before.close("there is a newer one")
        ours, theirs = self.node.wires.pair()

        def ended(_: str) -> None:
            if away.carriers.get(caller.number) is carrier:
                del away.carriers[caller.number]
                caller.callees.discard(worker)
                self._forget_unopened(away, caller.number)

        carrier = away.carriers[caller.number] = link.carrier(ours, ended)
        life = self.deciding.life_of(actor) if actor else None
        link.send(far.Open(carrier.number, away.theirs, worker, job, caller.number, actor, incarnation, life))
        caller.peers.add(worker)
        caller.callees.add(worker)
        away.client.peers.add(caller.number)
        return [theirs]

    def _forget_unopened(self, away: Away, caller: int) -> None:
        """Its node has not connected us: there may be no such worker any more, and nobody would tell us of its end."""
        unused = not away.carriers and not away.lease and caller not in away.guests
        if unused and not away.over and self.node.actor_desk.supervisor.actor_of(away.client.number) is None:
            self._away_gone(away, "its node has not connected us with it")

    def _opened(self, neighbour: Neighbour, message: far.Opened) -> None:
        carrier = neighbour.link.carriers.get(message.carrier)
        for away in neighbour.workers.values():
            for client, each in away.carriers.items():
                if each is carrier:
                    away.guests[client] = message.proxy
                    return

    def _worker_over(self, neighbour: Neighbour, message: far.WorkerOver) -> None:
        away = neighbour.workers.get(message.worker)
        if away is None or away.over:
            return
        away.over = True
        left = [carrier for carrier in away.carriers.values() if not carrier.over]

        def when_empty() -> None:
            left.pop()
            if not left:
                self._buried(away, message)

        if not left:
            self._buried(away, message)
        for carrier in list(left):
            carrier.when_empty(when_empty)

    def _buried(self, away: Away, message: far.WorkerOver) -> None:
        """All that it said has been handed on."""
        held = self.leases.get(away.lease)
        if held is not None:
            number = away.lease
            self._lease_lost(
                number, held,
                m.LeaseLost(
                    number, 0, message.started, message.replies, message.how, message.stderr, message.out_of_memory
                ),
            )  # fmt: skip
        self.node.actor_desk.away_died(away.client.number, message.how, message.stderr, message.out_of_memory)
        self.silenced.add(away.client.number)
        self._away_gone(away, message.how)
        self.silenced.discard(away.client.number)

    def _away_over(self, away: Away, how: str) -> None:
        """Its node is gone, or as good as."""
        held = self.leases.get(away.lease)
        if held is not None:
            self._lease_lost(away.lease, held, m.LeaseLost(0, 0, 0, b"", how, "", unknown=True))
        self.node.actor_desk.away_died(away.client.number, how, "", False)
        self._away_gone(away, how)

    def _away_gone(self, away: Away, how: str) -> None:
        away.over = True
        away.neighbour.workers.pop(away.theirs, None)
        if self.aways.pop(away.client.number, None) is None:
            return
        carriers = list(away.carriers.values())
        away.carriers.clear()
        for carrier in carriers:
            carrier.close(how)
        self.node.client_gone(away.client, how)

    def let_go_later(self, client: Client) -> None:
        """What was given to a process elsewhere is held a little longer: it may just be telling its node of it. And a
        process of ours may yet tell what it was given by that one."""
        if client.number in self.silenced:
            self.silenced.discard(client.number)
            self.node.store.gone(client, f"{client.name} is gone")
        self.node.loop.call_later(HANDED_OVER_S, self._let_go, client)

    def _let_go(self, client: Client) -> None:
        self.proxies.pop(client.number, None)
        self.far_names.pop(client.number, None)
        if not self.node.closing:
            self.node.store.gone(client, f"{client.name} is gone")

    # -- leases of others here

    def _ask_lease(self, neighbour: Neighbour, message: far.AskLease) -> None:
        if self.environments.holds(neighbour, message):
            return
        reason = self._objection(message.job)
        try:
            resources = ResourceSet.of(message.resources)
        except ConfigError as error:
            reason = str(error)
        if reason:
            neighbour.link.send(far.LeaseNot(message.number, reason, True, self._load()))
            return
        if message.within:
            if reason := self.node.groups.lend(neighbour, message, self._jobs[message.job], resources):
                neighbour.link.send(far.LeaseNot(message.number, reason, False, self._load()))
            return
        answer = self.placer.admission.ask(resources, message.limit_s, message.each_s)
        if isinstance(answer, Refused):
            neighbour.link.send(far.LeaseNot(message.number, answer.reason, answer.never, loads.encode(answer.load)))
            return
        neighbour.questions[message.number] = message.actor
        self.node.lease_desk.perform(
            self.node.book.request(
                neighbour.client.number, message.number, self._jobs[message.job], resources, self.node.now(),
                retryable=message.retryable, name=message.name, lasting=message.actor,
            )
        )  # fmt: skip

    def _objection(self, job: bytes) -> str:
        """Why nothing of this job runs here; "" if it may."""
        number = self._jobs.get(job)
        if number is None or number not in self.node.jobs:
            reason = self.environments.objection(job)
            return reason or "its job is not known here, or was refused: see this node's log"
        if self.node.closing or self._closing:
            return "this node is going"
        if Role.EXECUTE not in self.peer.credentials.member.roles:
            return "this node has not the role `execute`"
        submission = self._submissions[number]
        if submission.peer != self.me and submission.expires < self.unix():
            return "its job's token has expired"
        return ""

    def _drop_ask(self, neighbour: Neighbour, message: far.DropAsk) -> None:
        neighbour.questions.pop(message.number, None)
        self.environments.dropped(neighbour, message.number)
        book = self.node.book
        self.node.lease_desk.perform(book.cancel(neighbour.client.number, message.number, self.node.now()))
        for lease in list(book.leases.values()):  # granted, and its worker is being forked
            theirs = lease.holder == neighbour.client.number and lease.request.number == message.number
            if theirs and self.node.lease_desk.is_unborn(lease):
                self.node.lease_desk.perform(book.returned(lease.lease, lease.holder, self.node.now()))

    def is_for_actor(self, lease: Lease) -> bool:
        """Whether another node wants it for an actor: the worker will not come back."""
        neighbour = self._by_client(lease.holder)
        return neighbour is not None and neighbour.questions.get(lease.request.number, False)

    def _by_client(self, number: int) -> Neighbour | None:
        return next((each for each in self.neighbours.values() if each.client.number == number), None)

    def lent(self, lease: Lease, worker: int) -> None:
        """A worker of ours is another node's."""
        neighbour = self._by_client(lease.holder)
        if neighbour is None:
            return
        pid = self.node.workers.processes[worker].pid
        neighbour.shown.add(worker)
        if neighbour.questions.pop(lease.request.number, False):
            self.hosted[worker] = Hosted(neighbour, worker)
        gpus = list(lease.allocation.gpus)
        resources = lease.request.resources.plain().to_dict()
        self.node.tell(worker, m.Leased(lease.lease, neighbour.client.number, resources, gpus))
        neighbour.link.send(far.LeaseIs(lease.request.number, lease.lease, worker, pid, gpus, self._load()))

    def _load(self) -> bytes:
        return loads.encode(self.placer.admission.load())

    def _give_back(self, neighbour: Neighbour, message: far.GiveBack) -> None:
        lease = self.node.book.leases.get(message.lease)
        if lease is not None and lease.holder == neighbour.client.number:
            self.placer.admission.reported(message.ran_s, message.expected_s)
            hosted = self.hosted.pop(lease.worker, None) if lease.worker is not None else None
            if hosted is not None and hosted.actor:  # its code is in there: nobody else gets that worker
                self.node.end_worker(hosted.worker, "its owner has returned it")
                return
            self.node.lease_desk.perform(self.node.book.returned(message.lease, lease.holder, self.node.now()))

    def _kill_worker(self, neighbour: Neighbour, message: far.KillWorker) -> None:
        lease = self.node.book.leases.get(message.lease)
        if lease is None or lease.holder != neighbour.client.number or lease.worker is None:
            return
        process = self.node.workers.processes.get(lease.worker)
        if process is not None:
            started, _, _ = process.page.post_mortem(message.caller)
            if not (message.seq and started > message.seq):
                self.node.end_worker(lease.worker, message.why or "killed by its caller")

    def _to_worker(self, neighbour: Neighbour, message: far.ToWorker) -> None:
        hosted = self.hosted.get(message.worker)
        if hosted is None or hosted.neighbour is not neighbour:
            return
        try:
            told = _from_node.decode(message.message)
        except msgspec.DecodeError as error:
            raise RemoteProtocolError(f"a message for a worker: {error}") from error
        if isinstance(told, m.BecomeActor):
            if hosted.actor:
                raise RemoteProtocolError("a worker that is an actor is to become one")
            if why := self.deciding.admit(told.actor, message.life):
                self.node.end_worker(message.worker, why)
                return
            hosted.actor, hosted.incarnation, hosted.life = told.actor, told.incarnation, message.life
            via = self._giver(neighbour, message.worker, message.proxy)
            told = msgspec.structs.replace(told, via=via)
            self.node.pool.became_actor(message.worker, self.node.now())
        self.node.tell(message.worker, told)

    def _giver(self, neighbour: Neighbour, worker: int, theirs: int) -> int:
        """Stands for the node that gave an actor its arguments."""
        number = self.new_number()
        client = proxy(number, GUEST, 0, time(), f"the owner of worker {worker}", lambda _: None)
        self.proxies[number] = neighbour, theirs
        self.node.store.joined(number, b"")
        self.node.clients[number] = client
        client.peers.add(worker)
        self.node.clients[worker].peers.add(number)
        self.givers[worker] = client
        return number

    def _end_worker(self, neighbour: Neighbour, message: far.EndWorker) -> None:
        hosted = self.hosted.get(message.worker)
        if hosted is None or hosted.neighbour is not neighbour:
            return
        if message.kill:
            self.node.end_worker(message.worker, "")
        else:
            self.node.let_worker_go(message.worker)

    def fence(self, actor: bytes, life: Life) -> None:
        """A life of a detached actor is known: earlier ones end, which we host for others."""
        for hosted in list(self.hosted.values()):
            if hosted.actor == actor and hosted.life is not None and Life(*hosted.life).standing() < life.standing():
                self.node.end_worker(hosted.worker, "it was superseded: a newer life of it runs elsewhere")

    def end_away(self, worker: int, *, kill: bool) -> None:
        """An actor of ours elsewhere has ended."""
        away = self.aways.get(worker)
        if away is not None:
            away.neighbour.link.send(far.EndWorker(away.theirs, kill))

    def forwards(self, client: Client, message: Any) -> bool:
        """Whether a worker of ours said this to the node that owns the actor it is."""
        hosted = self.hosted.get(client.number)
        if hosted is None or not hosted.actor:
            return False
        data = frames.encode_one(message)
        hosted.neighbour.link.send(far.FromWorker(client.number, data), len(data))
        return True

    def _from_worker(self, neighbour: Neighbour, message: far.FromWorker) -> None:
        away = neighbour.workers.get(message.worker)
        if away is None:
            return
        try:
            said = _from_worker.decode(message.message)
        except msgspec.DecodeError as error:
            raise RemoteProtocolError(f"a message of a worker: {error}") from error
        self.node.actor_desk.away_said(away.client, said)

    def worker_died(self, process: Process, death: Death) -> None:
        """A worker of ours is dead: those elsewhere who know it are told, after all that it had said."""
        worker = process.client
        self.hosted.pop(worker, None)
        lease = self.node.book.lease_of(worker)
        knowing = [neighbour for neighbour in self.neighbours.values() if worker in neighbour.shown]
        owner = self._by_client(lease.holder) if lease is not None else None
        if (giver := self.givers.pop(worker, None)) is not None:
            self.silenced.add(giver.number)
            self.node.client_gone(giver, death.how)
        started, replies = 0, b""
        for guest in list(self._guests_of(worker)):
            if guest.neighbour is owner:
                began, number, items = process.page.post_mortem(guest.client.number)
                if began or number:
                    started, replies = began, frames.join(number, items)[4:] + items if number else b""
            guest.carrier.drain()
            guest.carrier.close(death.how)
            self._guest_gone(guest, death.how)
        for neighbour in knowing:
            neighbour.shown.discard(worker)
            mine = neighbour is owner and lease is not None
            neighbour.link.send(
                far.WorkerOver(
                    worker, lease.lease if mine and lease is not None else 0, started if mine else 0,
                    replies if mine else b"", death.how, death.stderr, death.out_of_memory,
                )
            )  # fmt: skip

    def _guests_of(self, worker: int) -> Iterator[Guest]:
        entry = self.node.clients.get(worker)
        for number in entry.peers if entry is not None else ():
            if number in self.guests:
                yield self.guests[number]

    # -- connections

    def _open(self, neighbour: Neighbour, message: far.Open) -> None:
        if self.environments.holds(neighbour, message):
            return
        entry, node = self.node.clients.get(message.worker), self.node
        hosted = self.hosted.get(message.worker)
        reason = self._objection(message.job)
        if entry is None or entry.kind != WORKER:
            reason = "there is no such worker"
        elif message.actor:
            if not self.actors.lives_in(message.worker, message.actor, message.incarnation, hosted):
                reason = "it is not that incarnation of that actor"
            else:
                reason = reason or self.deciding.admit(message.actor, message.life)
        elif (lease := node.book.lease_of(message.worker)) is None or lease.holder != neighbour.client.number:
            reason = "it is not leased to you"
        if not reason and not node.workers.room():
            reason = NO_ROOM
        if reason or entry is None:
            neighbour.link.send(far.Closed(message.carrier, reason))
            return
        neighbour.link.check(message.carrier)
        ours, theirs = self.node.wires.pair()
        before = neighbour.known.get((message.caller, message.worker))
        guest = self.guests.get(before) if before is not None else None
        client = guest.client if guest is not None else self._new_guest(neighbour, message)
        number = client.number

        def ended(why: str) -> None:
            if self.guests.get(number) is mine and mine.carrier is carrier:
                lives = message.worker in node.workers.processes
                if message.actor and lives and number not in self.silenced and neighbour.link.over is None:
                    node.loop.call_later(RECONNECT_S, self._guest_gone, mine, why)
                elif carrier.ended_here and lives:
                    node.loop.call_later(DEATH_S, self._guest_gone, mine, why)  # is it dead? then it is asked for
                else:
                    self._guest_gone(mine, why)

        carrier = neighbour.link.accept(message.carrier, ours, ended)
        mine = self.guests[number] = Guest(neighbour, client, message.caller, message.worker, message.proxy, carrier)
        if guest is not None:
            guest.carrier.end("there is a newer one")
        entry.send(m.NewCaller(number, True), [theirs])
        client.peers.add(message.worker)
        entry.peers.add(number)
        neighbour.shown.add(message.worker)
        neighbour.link.send(far.Opened(message.carrier, number))

    def _guest_gone(self, guest: Guest, why: str) -> None:
        """A process elsewhere has no connection with this worker any more."""
        if self.guests.get(guest.client.number) is guest:
            del self.guests[guest.client.number]
            guest.neighbour.known.pop((guest.caller, guest.worker), None)
            self.node.client_gone(guest.client, why)

    def _new_guest(self, neighbour: Neighbour, message: far.Open) -> Client:
        number = self.new_number()
        name = f"a process of {neighbour.client.name}"
        client = proxy(number, GUEST, self._jobs[message.job], time(), name, lambda _: None)
        neighbour.known[message.caller, message.worker] = number
        self.proxies[number] = neighbour, message.proxy
        self.node.clients[number] = client
        self.node.store.joined(number, b"")
        return client

    def _carry(self, neighbour: Neighbour, message: far.Carry) -> None:
        carrier = neighbour.link.carriers.get(message.carrier)
        if carrier is not None:
            carrier.carry(message.data)

    def _taken(self, neighbour: Neighbour, message: far.Taken) -> None:
        carrier = neighbour.link.carriers.get(message.carrier)
        if carrier is not None:
            carrier.taken(message.size)

    def _closed(self, neighbour: Neighbour, message: far.Closed) -> None:
        carrier = neighbour.link.carriers.get(message.carrier)
        if carrier is None:
            return
        if message.gone:
            for guest in self.guests.values():
                if guest.carrier is carrier:
                    self.silenced.add(guest.client.number)
        carrier.finish(message.reason)


def _chars_of(paper: far.JobIs) -> int:
    lists = paper.sys_path, paper.preload, paper.env_vars, paper.env_vars.values(), *paper.packages
    rest = paper.python, paper.minor, paper.cwd, paper.script, paper.namespace
    return sum(len(text) for texts in (*lists, rest) for text in texts) + 8 * sum(map(len, lists))


_MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"
