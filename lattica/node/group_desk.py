"""Placement groups on one node: those that its processes have made, and what it knows of others'.

    GroupCreate ──► groups.Group ──Reserve, Commit──► bundle_desk       of each keeper; here by a post of its own
                                 ◄──Reserved, Committed──
    GroupWatch ──► its owner ──GroupIs──► Known ──► group_asks          what waits for it

The owner of a group is the node of the process that made it; its id travels with the group's. Whoever else has to do
with a group asks its owner once (`GroupWatch`), and is told of every change. A group ends with its job, if it is not
detached; with the node that owns it; and by `GroupRemove`.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

from lattica.codec import far
from lattica.codec import messages as m
from lattica.errors import ConfigError, RemoteProtocolError
from lattica.ids import ID_BYTES, short
from lattica.mesh.identity import PEER_ID_BYTES, PeerId
from lattica.mesh.membership import State
from lattica.node.bundle_desk import BundleDesk
from lattica.node.clients import Client
from lattica.node.group_asks import AGAIN_S, GroupAsks
from lattica.node.known_groups import CREATED, OVER, PENDING, REMOVED, RESCHEDULING, UNSCHEDULABLE, Known
from lattica.node.loop import Timer
from lattica.scheduler import groups, labels, reservations
from lattica.scheduler.bundles import Pattern, Wishes
from lattica.scheduler.demand import Demand, NodeView
from lattica.scheduler.resources import ResourceSet

if TYPE_CHECKING:
    from lattica.node.far_neighbours import Neighbour
    from lattica.node.server import Node

log = logging.getLogger(__name__)
WAITING_SAID_S = 5.0  # after which a driver is told that nothing in the mesh can keep its bundles
OVER_MAX = 1024  # groups that have ended and are remembered, so that what still asks for them hears how
BUNDLES_MAX = 4096  # of one group, asked of one node: each takes at least a place in a table


def _wishes(message: m.GroupCreate) -> Wishes:
    """Raises ConfigError."""
    if message.selectors and len(message.selectors) != len(message.bundles):
        raise ConfigError(f"{len(message.selectors)} label selectors for {len(message.bundles)} bundles")
    for selector in message.selectors:
        labels.check(selector)
    return Wishes(
        {number: selector for number, selector in enumerate(message.selectors) if selector},
        PeerId(message.target) if message.target else None,
    )


class GroupDesk:
    """See the module."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.me = PeerId(node.settings.node)
        self.bundles = BundleDesk(node, self._answer_owner, self.came_back)
        self.asks = GroupAsks(node, self._group, self.bundles.number, self._arm)
        self._known: dict[bytes, Known] = {}
        self._view: dict[PeerId, NodeView] = {}
        self._questions = count(1)
        self._by_name: dict[int, tuple[PeerId, int, m.GroupWanted]] = {}  # question -> who was asked, and by whom
        self._post: deque[Callable[[], None]] = deque()  # what is to be heard once the step under way is done
        self._posting = False
        self._timer: Timer | None = None
        self._rng = Random(os.urandom(8))

    def __repr__(self) -> str:
        ours = sum(known.core is not None for known in self._known.values())
        return f"<GroupDesk: {ours} groups of ours, {self.bundles.kept!r}, {len(self.asks)} requests wait>"

    # -- told by clients

    def create(self, client: Client, message: m.GroupCreate) -> None:
        """Make a group of this process's job, and begin to place it; the answer says why not, if not."""
        job = self._node.jobs[client.job]
        try:
            if self._node.job_desk.is_leaving(client):
                raise ConfigError("its program is ending, and a placement group would outlive it")
            known = self._new(message, job.family, job.namespace)
        except ConfigError as error:
            client.send(m.State(message.request, {"error": error.message}))
            return
        client.send(m.State(message.request, {}))
        assert known.core is not None
        self._look_around()
        self._step(known, known.core.create(self._node.now()))

    def _new(self, message: m.GroupCreate, job: int, namespace: str) -> Known:
        """Raises ConfigError."""
        bundles = [ResourceSet.of(bundle) for bundle in message.bundles]
        if message.strategy not in Pattern.__members__ or len(message.group) != ID_BYTES:
            raise ConfigError(f"{message.strategy!r:.80} is no strategy of a placement group")
        if message.group in self._known:
            raise ConfigError(f"placement group {short(message.group)} is there already")
        if message.name and self._named(message.name, namespace) is not None:
            raise ConfigError(
                f"a placement group of namespace {namespace} is called {message.name!r} already",
                do_next="take another name, or get_placement_group(name)",
            )
        anywhere = Demand(ResourceSet({}), python=self._node.jobs[job].minor if self._node.far is not None else "")
        core = groups.Group(
            message.group, bundles, Pattern[message.strategy], self._view, self._rng, anywhere, _wishes(message)
        )
        known = self._known[message.group] = Known(
            message.group, self.me, PENDING, "", message.name, message.strategy, bundles, {}, core, job, namespace,
            message.detached,
        )  # fmt: skip
        return known

    def _named(self, name: str, namespace: str) -> Known | None:
        living = (known for known in self._known.values() if known.core is not None)
        return next((known for known in living if (known.name, known.namespace) == (name, namespace)), None)

    def remove(self, _: Client, message: m.GroupRemove) -> None:
        """End a group, here or by its owner; what runs in it ends."""
        known = self._group(message.owner, message.group)
        if known.owner == self.me:
            self._end(known, "it was removed")
        elif known.state not in OVER and self._node.far is not None:
            self._node.far.neighbour(known.owner).link.send(far.GroupEnd(known.id))

    def want(self, client: Client, message: m.GroupWanted) -> None:
        """Answer when the group that is named is known, or is ready; at once with all groups, if none is."""
        if message.group:
            known: Known | None = self._group(message.owner, message.group)
        elif message.name:
            known = self._named(message.name, self._node.jobs[client.job].namespace)
            if known is None and self._asks_driver(client, message):
                return
        else:
            client.send(m.State(message.request, [known.to_data() for known in self._known.values() if known.state]))
            return
        if known is None:
            client.send(m.State(message.request, []))
            return
        self._wait(known, client.number, message)

    def _wait(self, known: Known, client: int, message: m.GroupWanted) -> None:
        known.waiting.append((client, message.request, message.ready))
        self._answer(known)

    def _asks_driver(self, client: Client, message: m.GroupWanted) -> bool:
        """A name that is not known here: whether the node of its job's driver is asked."""
        origin = self._node.far.jobs.origin(client.job) if self._node.far is not None else None
        if origin is None or origin == self.me or self._node.far is None:
            return False
        number = next(self._questions)
        self._by_name[number] = origin, client.number, message
        namespace = self._node.jobs[client.job].namespace
        self._node.far.neighbour(origin).link.send(far.GroupNamed(number, namespace, message.name))
        return True

    def _found(self, peer: PeerId, number: int, group: bytes) -> None:
        origin, client, message = self._by_name.get(number, (None, 0, None))
        if message is None or origin != peer:
            return
        del self._by_name[number]
        if group:
            self._wait(self._group(peer, group), client, message)
        else:
            self._node.tell(client, m.State(message.request, []))

    def client_gone(self, client: Client, *, job_ended: bool) -> None:
        """Whatever it has asked for is void; with a driver its job's groups end."""
        self.asks.client_gone(client.number)
        for known in list(self._known.values()):
            known.waiting = [entry for entry in known.waiting if entry[0] != client.number]
            if job_ended and known.core is not None and known.job == client.job and not known.detached:
                self._end(known, "its job ended")

    # -- what asks for a group

    def wish(self, client: Client, message: m.LeaseRequest, resources: ResourceSet, job: int) -> bool:
        """Whether it is for a group, which is seen to. Raises ConfigError for what cannot be meant."""
        return self.asks.wish(client, message, resources, job)

    def wish_for_actor(self, number: int, job: int, resources: ResourceSet, name: str, data: bytes) -> bool:
        """The same for a request of the actor desk."""
        return self.asks.wish_for_actor(number, job, resources, name, data)

    def canceled(self, client: int, request: int) -> bool:
        """Its client wants it no more; whether it was one of ours, which waits nowhere now."""
        return self.asks.canceled(client, request)

    def granted(self, client: int, request: int) -> None:
        """It has its worker; or never will, and its client knows."""
        self.asks.granted(client, request)

    def came_back(self, client: int, request: int) -> bool:
        """The node of its bundle does not take it, or not now; whether it is one of ours."""
        return self.asks.came_back(client, request)

    def lend(self, neighbour: Neighbour, message: far.AskLease, job: int, resources: ResourceSet) -> str:
        """Another node asks for a worker in a bundle that is kept here: it is queued; or why it is not."""
        return self.bundles.lend(neighbour, message, job, resources)

    # -- groups of ours

    def _step(self, known: Known, effects: Iterable[groups.Effect]) -> None:
        """Carry out what a group's core wants, and tell whoever is concerned."""
        for effect in effects:
            match effect:
                case reservations.Send(to, message):
                    self._send(known, to, message)
                case groups.Ready():
                    known.state, known.reason = CREATED, ""
                case groups.Stuck(reason, infeasible):
                    self._stuck(known, reason, infeasible=infeasible)
        if known.core is not None:
            known.places = dict(known.core.placed)
        self._changed(known)
        self._deliver()

    def _stuck(self, known: Known, reason: str, *, infeasible: bool) -> None:
        known.reason = reason
        if known.state == CREATED:
            known.state = RESCHEDULING
        if infeasible and self._node.far is None:
            known.state, known.core = UNSCHEDULABLE, None
        elif infeasible:
            self._node.loop.call_later(WAITING_SAID_S, self._say, known, reason)

    def _say(self, known: Known, reason: str) -> None:
        job = self._node.jobs.get(known.job)
        if known.core is not None and known.state != CREATED and known.reason == reason and job is not None:
            text = f"placement group {short(known.id)} waits for nodes that can keep its bundles: {reason}"
            log.warning("%s", text)
            self._node.tell(job.driver, m.LogLines("lattica", os.getpid(), 2, [text]))

    def _end(self, known: Known, reason: str) -> None:
        core, known.core = known.core, None
        if core is None:
            return
        known.state, known.reason, known.places = REMOVED, reason, {}
        self._step(known, core.remove(self._node.now()))
        self._forget_old()

    def _forget_old(self) -> None:
        over = [one for one in self._known.values() if one.state in OVER]
        for one in over[: max(len(over) - OVER_MAX, 0)]:
            del self._known[one.id]

    def _send(self, known: Known, to: PeerId, message: reservations.ToNode | reservations.ToOwner) -> None:
        assert not isinstance(message, reservations.ToOwner), "what an owner says"
        if to == self.me:
            self._post.append(lambda: self.bundles.asked(self.me, message))
            return
        far_desk = self._node.far
        assert far_desk is not None
        neighbour = far_desk.neighbour(to)
        match message:
            case reservations.Reserve(group, attempt, bundles):
                job = far_desk.jobs.introduce(neighbour, known.job)
                if job is not None:
                    asked = [(index, resources.to_dict()) for index, resources in bundles]
                    neighbour.link.send(far.GroupReserve(group, attempt, job, asked))
            case reservations.Commit(group, attempt, token):
                neighbour.link.send(far.GroupCommit(group, attempt, token))
            case reservations.Abort(group, attempt):
                neighbour.link.send(far.GroupAbort(group, attempt))

    def _deliver(self) -> None:
        """What we say to ourselves is heard after what made us say it."""
        if self._posting:
            return
        self._posting = True
        try:
            while self._post:
                self._post.popleft()()
        finally:
            self._posting = False
        self._arm()

    def _changed(self, known: Known) -> None:
        """Tell whoever watches it, and look at what waits for it."""
        for peer in sorted(known.watchers):
            self._tell_watcher(known, peer)
        self._answer(known)
        self.asks.changed(known)

    def _tell_watcher(self, known: Known, peer: PeerId) -> None:
        if self._node.far is None:
            return
        nodes: list[bytes] = [known.places.get(index, b"") for index in range(len(known.bundles))]
        self._node.far.neighbour(peer).link.send(
            far.GroupIs(
                known.id, known.state, known.reason, known.name, known.strategy,
                [bundle.to_dict() for bundle in known.bundles], nodes,
            )
        )  # fmt: skip

    def _answer(self, known: Known) -> None:
        settled = known.state == CREATED or known.state in OVER
        for entry in list(known.waiting):
            client, request, ready = entry
            if settled or (known.state and not ready):
                known.waiting.remove(entry)
                self._node.tell(client, m.State(request, [known.to_data()]))

    def _look_around(self) -> None:
        """What groups are planned by is kept current here."""
        node = self._node
        self._view.clear()
        if node.far is not None:
            self._view.update(node.far.placer.views())
        else:
            self._view[self.me] = NodeView(
                self.me, node.resources.total, dict(node.settings.labels), rtt_s=0.0, load=node.load()
            )

    # -- groups of others

    def _group(self, owner: bytes, group: bytes) -> Known:
        """What is known of it; its owner is asked if that is nothing."""
        known = self._known.get(group)
        if known is None:
            known = self._known[group] = Known(group, PeerId(owner or self.me))
            if known.owner == self.me or self._node.far is None:
                known.state, known.reason = REMOVED, "no such group is known here"
                self._forget_old()
            else:
                self._watch_from_here(known)
        return known

    def _watch_from_here(self, known: Known) -> None:
        """Ask its owner; where the connection with that does not come about, `parted` has it asked again."""
        assert self._node.far is not None
        state = self._node.far.peer.gossip.community.membership.state(known.owner)
        if state in (State.DEAD, State.LEFT):
            self._orphaned(known)
        elif state is None:  # it has joined just now, or never did
            known.watch_at = self._node.now() + AGAIN_S
            self._arm()
        else:
            self._node.far.neighbour(known.owner).link.send(far.GroupWatch(known.id))

    def _orphaned(self, known: Known) -> None:
        known.state, known.reason, known.places = REMOVED, "the node that made it is gone", {}
        self._changed(known)

    # -- what keepers of bundles say

    def _answer_owner(self, to: PeerId, message: reservations.ToNode | reservations.ToOwner) -> None:
        if to == self.me:
            self._post.append(lambda: self._heard(self.me, message))
            return
        if self._node.far is None:
            return
        link = self._node.far.neighbour(to).link
        match message:
            case reservations.Reserved(group, attempt, token):
                link.send(far.GroupReserved(group, attempt, token))
            case reservations.Denied(group, attempt, reason):
                link.send(far.GroupDenied(group, attempt, reason))
            case reservations.Committed(group, attempt):
                link.send(far.GroupCommitted(group, attempt))
            case reservations.Expired(group, attempt):
                link.send(far.GroupExpired(group, attempt))

    def _heard(self, sender: PeerId, message: Any) -> None:
        """A keeper has answered one of our groups."""
        known = self._known.get(message.group)
        if known is not None and known.core is not None:
            self._step(known, known.core.receive(sender, message, self._node.now()))
        elif isinstance(message, reservations.Reserved | reservations.Committed):  # of one that is over
            over = Known(message.group, self.me)
            self._step(over, [reservations.Send(sender, reservations.Abort(message.group, message.attempt))])

    # -- told by other nodes

    def hear(self, neighbour: Neighbour, message: Any) -> None:
        """A message of `codec.far` about groups."""
        peer = neighbour.peer
        match message:
            case far.GroupReserve(group, attempt, job, asked):
                self._reserve(neighbour, group, attempt, job, asked)
            case far.GroupCommit(group, attempt, token):
                self._kept_for(peer, reservations.Commit(group, attempt, token))
            case far.GroupAbort(group, attempt):
                self._kept_for(peer, reservations.Abort(group, attempt))
            case far.GroupReserved(group, attempt, token):
                self._heard(peer, reservations.Reserved(group, attempt, token))
            case far.GroupDenied(group, attempt, reason):
                self._heard(peer, reservations.Denied(group, attempt, reason))
            case far.GroupCommitted(group, attempt):
                self._heard(peer, reservations.Committed(group, attempt))
            case far.GroupExpired(group, attempt):
                self._heard(peer, reservations.Expired(group, attempt))
            case far.GroupWatch(group):
                self._watch(peer, group)
            case far.GroupIs():
                self._is(peer, message)
            case far.GroupNamed(number, namespace, name):
                found = self._named(name, namespace)
                neighbour.link.send(far.GroupFound(number, b"" if found is None else found.id))
            case far.GroupFound(number, group):
                self._found(peer, number, group)
            case far.GroupEnd(group):
                known = self._known.get(group)
                if known is not None and known.owner == self.me:
                    self._end(known, "it was removed")

    def _reserve(
        self, neighbour: Neighbour, group: bytes, attempt: int, job: bytes, asked: list[tuple[int, dict[str, float]]]
    ) -> None:
        assert self._node.far is not None
        reason = "this node is going" if self._node.draining else self._node.far.jobs.objection(job)
        if reason:
            neighbour.link.send(far.GroupDenied(group, attempt, reason))
            return
        if len({index for index, _ in asked}) < len(asked) or len(asked) > BUNDLES_MAX:
            raise RemoteProtocolError(f"{len(asked)} bundles of one placement group, or one of them twice")
        try:
            bundles = tuple((index, ResourceSet.of(amounts)) for index, amounts in asked)
        except ConfigError as error:
            raise RemoteProtocolError(f"a bundle: {error}") from error
        self._kept_for(neighbour.peer, reservations.Reserve(group, attempt, bundles))

    def _kept_for(self, peer: PeerId, message: reservations.ToNode) -> None:
        self.bundles.asked(peer, message)
        self._deliver()

    def _watch(self, peer: PeerId, group: bytes) -> None:
        known = self._known.get(group)
        if known is None or known.owner != self.me:
            known = Known(group, self.me, REMOVED, "the node that it is said to be of does not know it")
        known.watchers.add(peer)
        self._tell_watcher(known, peer)

    def _is(self, peer: PeerId, message: far.GroupIs) -> None:
        known = self._known.get(message.group)
        if known is None or known.owner != peer:
            return
        if any(node and len(node) != PEER_ID_BYTES for node in message.nodes):
            raise RemoteProtocolError("a bundle is kept by what is no peer")
        try:
            known.bundles = [ResourceSet.of(bundle) for bundle in message.bundles]
        except ConfigError as error:
            raise RemoteProtocolError(f"a bundle: {error}") from error
        known.state, known.reason, known.name = message.state, message.reason, message.name
        known.strategy = message.strategy
        known.places = {index: PeerId(node) for index, node in enumerate(message.nodes) if node}
        known.watch_at = float("inf")
        self._changed(known)
        self._arm()

    def parted(self, peer: PeerId) -> None:
        """The connection with a node was lost: what we know of it may have changed, and what it keeps for us."""
        now = self._node.now()
        for number in [number for number, (origin, _, _) in self._by_name.items() if origin == peer]:
            self._found(peer, number, b"")
        for known in self._known.values():
            known.watchers.discard(peer)
            if known.core is not None:
                known.core.doubt(peer, now)
            elif known.owner == peer and known.state not in OVER:
                known.watch_at = now + AGAIN_S
        self._arm()

    def node_gone(self, peer: PeerId) -> None:
        """It is dead, or has left."""
        now = self._node.now()
        for known in list(self._known.values()):
            if known.core is not None:
                self._step(known, known.core.node_gone(peer, now))
            elif known.owner == peer and known.state not in OVER:
                self._orphaned(known)
        self.bundles.owner_gone(peer, now)
        self._deliver()

    # -- time

    def _arm(self) -> None:
        """One timer for all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = [known.core.next_deadline() for known in self._known.values() if known.core is not None]
        due += [self.bundles.next_deadline(), self.asks.next_deadline()]
        due += [known.watch_at for known in self._known.values()]
        soonest = min((at for at in due if at is not None), default=float("inf"))
        if soonest < float("inf") and not self._node.closing:
            self._timer = self._node.loop.call_at(soonest, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._node.closing:
            return
        now = self._node.now()
        self.bundles.tick(now)
        for known in list(self._known.values()):
            if known.core is not None and (due := known.core.next_deadline()) is not None and due <= now:
                self._look_around()
                self._step(known, known.core.tick(now))
            if known.watch_at <= now and self._node.far is not None:
                known.watch_at = float("inf")
                self._watch_from_here(known)
        self.asks.tick(now)
        self._deliver()
