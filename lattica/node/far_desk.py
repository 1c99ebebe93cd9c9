"""Work across machines: the links with other nodes, and who hears what comes over them.

    our process ── LeaseRequest ──► LeaseDesk ──► FarPlacing ──AskLease──► their FarHosting ──► their book, their worker
    our process ══ unix socket ══ Carrier ═══════ Carry ═══════ Carrier ══ unix socket ══ their worker

Both sides see the other machine's processes as clients with numbers of their own (`proxies`): to our process a worker
elsewhere is a worker (`far_workers`), and to that one our process is a caller (`far_hosting`). Nobody but the two looks
at what they say; values too large for a message are fetched by the receiver's node, when they are wanted
(`far_objects`).

What is known of another node lives as long as the session with it. When that ends, or cannot be resumed, what it had of
ours is lost: tasks are run elsewhere, and actors hear the membership's verdict (`far_actors`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from itertools import count
from time import time
from typing import TYPE_CHECKING, Any

from lattica.codec import far, frames
from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from lattica.mesh.identity import PEER_ID_BYTES, PeerId, peer_text
from lattica.mesh.membership import MemberChanged, State
from lattica.mesh.roles import Role
from lattica.mesh.services import caller
from lattica.node.clients import AWAY, GUEST, NODE, Client
from lattica.node.deciding import Deciding
from lattica.node.detached_desk import DetachedDesk
from lattica.node.far_actors import FarActors
from lattica.node.far_environment import FarEnvironments
from lattica.node.far_hosting import FarHosting
from lattica.node.far_jobs import FarJobs
from lattica.node.far_neighbours import Neighbour, NodeService, Silence
from lattica.node.far_objects import FarObjects
from lattica.node.far_placing import FarPlacing
from lattica.node.far_workers import FarWorkers
from lattica.node.guesses import Guesses
from lattica.node.kept import Kept
from lattica.node.links import Link
from lattica.node.names_desk import NamesDesk
from lattica.node.proxies import proxy

if TYPE_CHECKING:
    from lattica.mesh.calls import Pipe
    from lattica.node.mesh_desk import MeshDesk
    from lattica.node.placer import Placer
    from lattica.node.server import Node

log = logging.getLogger(__name__)
HANDED_OVER_S = 8.0
"""How long what was given to a process elsewhere is held after its connection has ended: its last messages may be on
their way from a socket through that process to its node."""
_OF_GROUPS = (
    far.GroupReserve, far.GroupCommit, far.GroupAbort, far.GroupReserved, far.GroupDenied, far.GroupCommitted,
    far.GroupExpired, far.GroupWatch, far.GroupIs, far.GroupEnd, far.GroupNamed, far.GroupFound,
)  # fmt: skip
_OF_STORES = (
    far.Took, far.Returned, far.Want, far.Here, far.Nowhere, far.Has, far.Going, far.MayGo, far.Taken,
)  # fmt: skip
"""What members say that may neither run anything nor have anything run: they hold objects."""


class FarDesk:
    """See the module."""

    def __init__(self, node: Node, mesh: MeshDesk, placer: Placer, *, spins: bool = False) -> None:
        """spins: as in `Attention`."""
        self.node, self.mesh, self.placer = node, mesh, placer
        self.peer = mesh.peer
        self.me = mesh.peer.id
        self.closing, self._links, self._spins = False, count(1), spins
        self.neighbours: dict[PeerId, Neighbour] = {}
        self.proxies: dict[int, tuple[Neighbour, int]] = {}
        """Our number of a process elsewhere -> its node, their number."""
        self.far_names: dict[int, dict[int, int]] = {}  # our number of a worker elsewhere -> as in its `Away.guests`
        self.silenced: set[int] = set()  # processes elsewhere that have ended, and whose last word has been heard
        self.jobs, self.environments = FarJobs(self), FarEnvironments(self)
        self.placing, self.workers, self.hosting = FarPlacing(self), FarWorkers(self), FarHosting(self)
        self.objects, self.guesses = FarObjects(self), Guesses()
        self.objects.blocks.may_know = self.may_know
        self.actors = FarActors(self)
        self.kept = Kept(self, os.path.join(node.settings.data_dir, "kept"))
        self.names, self.detached = NamesDesk(self), DetachedDesk(self)
        self.deciding = Deciding(self, mesh.how)
        self._handlers = self._who_hears()
        self.peer.serve(NodeService(self), offered=False)
        self.peer.gossip.watch_members(self._member_changed)
        placer.changed = self.placing.look_soon
        mesh.teach("actors", lambda _: self.detached.view())
        mesh.teach("side", lambda _: self.deciding.side())
        mesh.teach("adopt", lambda _: self.deciding.adopt())
        self.deciding.start()
        self.silence = Silence(self)
        self.peer.on_falter.append(self.silence.faltered)

    def __repr__(self) -> str:
        wishes, leases = len(self.placing.wishes), len(self.workers.leases)
        return f"<FarDesk: {len(self.neighbours)} links, {leases} leases elsewhere, {wishes} wishes>"

    def _who_hears(self) -> dict[type, Any]:
        """What is called with (neighbour, message), by the message's type."""
        jobs, placing, workers, hosting, objects = self.jobs, self.placing, self.workers, self.hosting, self.objects
        return {
            far.Begins: lambda *_: None,  # its link has heard it
            far.JobIs: jobs.job_is, far.JobOver: jobs.job_over, far.JobGone: jobs.job_gone, far.Output: jobs.output,
            far.LeaseIs: placing.lease_is, far.LeaseNot: placing.lease_not,
            far.Wanted: workers.wanted, far.WorkerOver: workers.worker_over, far.FromWorker: workers.from_worker,
            far.Opened: workers.opened,
            far.AskLease: hosting.ask_lease, far.DropAsk: hosting.drop_ask, far.GiveBack: hosting.give_back,
            far.KillWorker: hosting.kill_worker, far.ToWorker: hosting.to_worker, far.EndWorker: hosting.end_worker,
            far.Open: hosting.open, far.Carry: hosting.carry, far.Taken: hosting.taken, far.Closed: hosting.closed,
            far.Took: self._took, far.Returned: objects.lending.returned, far.Stop: objects.lending.stop,
            far.Want: self._want, far.Has: objects.serving.has,
            far.Here: objects.fetching.here, far.Nowhere: objects.fetching.nowhere,
            far.ActorWanted: self.actors.wanted, far.ActorAt: self.actors.at, far.ActorIsDown: self.actors.is_down,
            far.ActorEnd: self.actors.end,
            far.Claiming: self.deciding.claiming, far.WhoHas: self.deciding.who_has,
            far.NameRow: self.names.answered, far.HoldActor: self.names.hold, far.ActorHeld: self.names.answered,
            far.Keep: self.kept.keep, far.KeptWanted: self.kept.wanted, far.NotKept: self.kept.not_kept,
            far.Kept: self.kept.kept, far.Unkeep: self.kept.unkeep_here,
            **dict.fromkeys(_OF_GROUPS, self._of_groups),
        }  # fmt: skip

    def close(self) -> None:
        """The node ends."""
        self.closing = True
        self.environments.close()
        for desk in (self.silence, self.placing, self.deciding, self.names, self.kept, self.detached, self.actors):
            desk.close()
        for neighbour in list(self.neighbours.values()):
            neighbour.link.end("this node ends")

    @property
    def is_closing(self) -> bool:
        """Whether this node is going."""
        return self.closing or self.node.closing

    def lives(self, peer: PeerId) -> bool:
        """Whether it is another member, and not known to be dead."""
        state = self.peer.gossip.community.membership.state(peer)
        return peer != self.me and (peer in self.neighbours or state in (State.ALIVE, State.SUSPECT))

    def may_return(self, peer: PeerId) -> bool:
        """Whether it is believed dead, and may be silent only: its machine did not refuse us."""
        state = self.peer.gossip.community.membership.state(peer)
        return state is State.DEAD and peer not in self.silence.refused

    def roles_of(self, peer: PeerId) -> Role:
        """What a member may do."""
        if peer == self.me:
            return self.peer.credentials.member.roles
        member = self.peer.gossip.community.replica.member(peer)
        return Role(0) if member is None else member.roles

    async def linked(self, pipe: Pipe) -> None:
        """Another node has something to say."""
        if self.closing:
            pipe.close("this node ends")
            return
        neighbour = self.neighbour(pipe.peer)
        neighbour.may(caller.get().roles)
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

    # -- links

    def neighbour(self, peer: PeerId) -> Neighbour:
        """The node of this peer; a link with it begins if there is none."""
        found = self.neighbours.get(peer)
        if found is None and len(peer) != PEER_ID_BYTES:
            raise RemoteProtocolError(f"{peer.hex()[:80]} is no peer")
        if found is None:
            link = Link(self.peer, peer, self._received, self._link_ended, next(self._links), spins=self._spins)
            name = f"node {peer_text(peer)[:8]}"
            number = self.new_number()
            client = proxy(number, NODE, 0, time(), name, lambda message: self._told(peer, message))
            found = self.neighbours[peer] = Neighbour(peer, client, link)
            self.node.clients[number] = client
            self.node.store.joined(number, b"")
        return found

    def by_client(self, number: int) -> Neighbour | None:
        """The node that is this client of ours."""
        return next((each for each in self.neighbours.values() if each.client.number == number), None)

    def new_number(self) -> int:
        """For a client."""
        return self.node.new_number()

    def _received(self, link: Link, messages: list[Any]) -> None:
        neighbour = self.neighbours.get(link.other)
        if neighbour is None or neighbour.link is not link:
            return
        neighbour.doubtful = False
        for message in messages:
            if neighbour.works or isinstance(message, _OF_STORES):
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
                self.objects.serving.located(neighbour, message)
            case m.Lost():
                neighbour.link.send(far.Nowhere(message.object, message.owner, message.made_at))
            case m.LeaseWanted():
                neighbour.link.send(far.Wanted())
            case m.LeaseDenied():
                self.hosting.denied(neighbour, message)
            case m.ActorDown():
                neighbour.link.send(far.ActorIsDown(frames.encode_one(message)))

    def _link_ended(self, link: Link, reason: str) -> None:
        neighbour = self.neighbours.get(link.other)
        if neighbour is None or neighbour.link is not link:
            return
        del self.neighbours[link.other]
        if self.closing or self.node.closing:
            return
        how = f"the connection with {neighbour.client.name} was lost: {reason}"
        log.info("%s", how)
        self.silence.lose(neighbour, how)
        self.workers.parted(neighbour, how)
        self.hosting.parted(neighbour, how)
        self.actors.parted(neighbour, how)
        self.names.parted(neighbour, how)
        self.kept.parted(neighbour)
        self.objects.parting(neighbour, how)
        self.node.client_gone(neighbour.client, how)  # its leases are orphans: their workers end
        self.objects.parted(neighbour, how)
        if self.node.group_desk is not None:
            self.node.group_desk.parted(neighbour.peer)
        self.placing.look_soon()

    def _member_changed(self, change: MemberChanged) -> None:
        if change.state in (State.DEAD, State.LEFT):
            self.jobs.origin_gone(change.peer, f"the node of its driver is {change.state.value}")
            neighbour = self.neighbours.get(change.peer)
            if neighbour is not None:
                neighbour.link.end(f"it is {change.state.value}")
            if self.node.group_desk is not None:
                self.node.group_desk.node_gone(change.peer)
        elif change.state is State.ALIVE:
            self.silence.refused.discard(change.peer)
        self.objects.searching.member_changed(change.peer)
        self.placing.look_soon()

    def hear(self, neighbour: Neighbour, message: Any) -> None:
        """What it said some time ago, and had to wait."""
        if self.neighbours.get(neighbour.peer) is neighbour and not self.closing:
            self._handlers[type(message)](neighbour, message)

    # -- clients, here and elsewhere

    def client_gone(self, client: Client) -> None:
        """A client of the node has ended, here or elsewhere."""
        if client.kind in (GUEST, AWAY):
            self.let_go_later(client)
            return
        self.actors.client_gone(client.number)
        self.placing.holder_gone(client.number)
        self.workers.holder_gone(client.number)

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

    def may_know(self, peer: PeerId, object_: bytes) -> bool:
        """Whether that node is answered for this object: it was lent it, or has not guessed too often."""
        now, ledger = self.node.now(), self.node.store.ledger
        if not ledger.held(object_) and ledger.size_here(object_) is None:
            self.guesses.missed(peer, now)
        neighbour = self.neighbours.get(peer)
        lent = neighbour is not None and ledger.holds(neighbour.client.number, object_)
        return (
            lent
            or self.guesses.may_guess(peer, now)
            or (neighbour is not None and self.objects.lending.is_given(neighbour, object_))
        )

    def _took(self, neighbour: Neighbour, message: far.Took) -> None:
        """Nobody comes by a guess by saying that it was given it."""
        if not message.keep or self.may_know(neighbour.peer, message.object):
            self.objects.lending.took(neighbour, message)

    def _want(self, neighbour: Neighbour, message: far.Want) -> None:
        if self.may_know(neighbour.peer, message.object):
            self.objects.serving.want(neighbour, message)
        else:
            neighbour.link.send(far.Nowhere(message.object, "it is not here"))

    def _of_groups(self, neighbour: Neighbour, message: Any) -> None:
        self.node.groups.hear(neighbour, message)
