"""Where tasks of this node's programs run: what is known of every node, and the choice among them.

    demand(given, resources)    what a client says, as the questions below take it
    stays(demand)               it begins here at once, and nobody would be done with it sooner as far as is known
    choose(demand, tried)       Choice: ask that node for a lease (if it is this one, its book); Waiting; Infeasible
    told(peer, load, asked_at)  what came with an answer, a grant or a refusal
    ended(peer, resources)      a lease there was returned
    changed()                   is called when what waits may find a place: `choose` again

What is known of a node comes from five places: its node row (resources, labels, versions of Python, whether it is a
driver's own), its certificate row (roles, issuers; of nodes too with whom there is no session), the membership, its
soft state (load), and the session with it (round trip). Whoever something new is heard of is looked at again, when the
next choice is made, and nobody else.

Rules of this file. Members that are suspected get nothing while any other node could run it: what is sent to the dead
is lost for ten seconds, and a stall is over sooner than that. The dead only explain why nothing fits. This node runs
what its own programs ask for whether its certificate has the role `execute` or not: that is about others.

Among a thousand nodes a choice takes 70 µs; where labels are preferred, or nothing fits, all are looked at: 1 to 3 ms.
What was `Infeasible` stays so while `generation` is the same, whatever loads say, and need not be asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from lattica.errors import ConfigError, RemoteProtocolError
from lattica.mesh.identity import PeerId
from lattica.mesh.membership import MemberChanged, State
from lattica.mesh.roles import Role
from lattica.mesh.soft_state import ID_BYTES
from lattica.mesh.table.kinds import CERTIFICATE, NODE, STATEMENT
from lattica.mesh.table.rows import Row
from lattica.node.loop import Loop, Timer
from lattica.scheduler import labels
from lattica.scheduler.admission import Admission
from lattica.scheduler.demand import IDLE, RTT_S, Affinity, Demand, NodeView, Spread, fits
from lattica.scheduler.given import decode as decode_given
from lattica.scheduler.leases import LeaseBook
from lattica.scheduler.load import Load, decode
from lattica.scheduler.placement import LEEWAY_S, Choice, Infeasible, Placement, Waiting
from lattica.scheduler.resources import ResourcePool, ResourceSet

if TYPE_CHECKING:
    from lattica.node.mesh_desk import MeshDesk

TELL_S = 0.05
"""Between calls of `changed`. A thousand nodes say their loads each second, and each time all that waits is placed."""
ROUND_TRIPS_S = 1.0  # between looks at what sessions measured
ROUND_TRIP_SHARE = 0.1  # a change by less is none
FETCHED_BYTES = 1 << 20  # input that lies elsewhere and is worth no thought: 8 ms at 1 Gbit/s
PYTHONS_MAX, PYTHON_MAX_CHARS = 16, 8  # believed of one node
NOTHING = ResourceSet({})


class Placer:
    """See the module."""

    def __init__(self, mesh: MeshDesk, resources: ResourcePool, book: LeaseBook, loop: Loop, rng: Random) -> None:
        self._mesh, self._resources, self._book, self._loop, self._rng = mesh, resources, book, loop, rng
        self._me = mesh.peer.id
        self.admission = Admission(self._me, resources, book)
        self.changed: Callable[[], None] = lambda: None
        self.generation = 0  # counts changes of who there is, and of what they have
        self._placement = Placement(self._me)
        self._own = NodeView(self._me, resources.total, dict(mesh.labels), rtt_s=0.0)
        self._runs: dict[str, None] = {}  # versions of Python of our own programs
        self._all: dict[PeerId, NodeView] = {}  # all members that have not left
        self._able: dict[PeerId, NodeView] = {}  # of them those that live, unsuspected, and run tasks of others
        self._peers: dict[bytes, PeerId] = {}  # by the beginnings of their ids
        self._stale: set[PeerId] = set()
        self._all_stale = True
        self._round_trips_at = self._told_at = float("-inf")
        self._timer: Timer | None = None
        gossip = mesh.peer.gossip
        self._watches = [
            gossip.watch(NODE, self._row_changed),
            gossip.watch(CERTIFICATE, self._row_changed),
            gossip.watch(STATEMENT, self._said),
            gossip.watch_members(self._member_changed),
            gossip.watch_soft(self._heard),
        ]

    def __repr__(self) -> str:
        return f"<Placer: {len(self._able)} of {len(self._all)} nodes, {self._placement!r}, {self.admission!r}>"

    def stop(self) -> None:
        """Hear nothing more."""
        while self._watches:
            self._watches.pop()()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- what is known

    def views(self) -> Mapping[PeerId, NodeView]:
        """The nodes that may be asked, this one with its true load: to plan placement groups. Not to be changed."""
        self._look()
        self._own = self._able[self._me] = self._all[self._me] = replace(
            self._own, load=self.load(), said_at=self._loop.time()
        )
        return self._able

    def load(self) -> Load:
        """This node's, as it is told to everybody."""
        return self.admission.load()

    def runs(self, python: str) -> None:
        """A program of this node runs in this version of Python, and so do its tasks here."""
        if python not in self._runs:
            self._runs[python] = None
            self._is_stale(self._me)

    # -- the questions

    def demand(self, given: bytes, resources: ResourceSet, python: str = "") -> Demand:
        """What a client of this node needs. given: an encoded `DemandGiven`, whose own resources do not count; b"" for
        anywhere. python: the version of its program, "3.11". Raises ConfigError with words for its user,
        RemoteProtocolError for what no client of ours writes."""
        if not given:
            return Demand(resources, python=python)
        said = decode_given(given)
        if said.strategy.group:
            raise ConfigError("the placement group of this task is not known here", do_next="make it anew")
        return replace(said.to_demand(), resources=resources, python=said.python or python)

    def possible_here(self, demand: Demand) -> bool:
        """Whether it may run here at all, and wait for that."""
        self._look()
        if self.admission.draining or not fits(demand, self._own):
            return False
        match demand.strategy:
            case Affinity(peer, soft) if peer != self._me:
                node = self._able.get(peer)
                return soft and (node is None or not fits(demand, node))
        return True

    def stays(self, demand: Demand) -> bool:
        """Whether it shall run here without a look at others: it fits now, its input is here or small, and it is not
        known to run for longer than it takes to ask. What runs for longer is `choose`n: somebody may be faster."""
        if self._book.waiting or self.admission.draining or not self._resources.fits(demand.resources):
            return False
        self._look()
        if not fits(demand, self._own) or not labels.matches(demand.soft_labels, self._own.labels):
            return False
        match demand.strategy:
            case Affinity(peer):
                return peer == self._me
            case Spread():
                return False
        if demand.prepared and self._me not in demand.prepared:  # another has installed what it needs
            return False
        lacking = demand.input_bytes - demand.inputs.get(self._me, 0)
        return lacking <= FETCHED_BYTES and demand.work_s * self.admission.pace.pace <= LEEWAY_S

    def choose(self, demand: Demand, tried: Sequence[PeerId] = ()) -> Choice | Waiting | Infeasible:
        """The node to ask, which is counted as asked. tried: who has refused it already, in order."""
        self._look()
        now = self._loop.time()
        self._placement.told(self._me, self.load(), now, since=now)
        refused = tuple(tried)
        if demand.soft_labels:
            liked = {
                peer: node
                for peer, node in self._able.items()
                if peer not in refused and labels.matches(demand.soft_labels, node.labels)
            }
            answer = self._placement.place(demand, liked, self._rng, now, refused)
            if isinstance(answer, Choice):
                return answer
        answer = self._placement.place(demand, self._able, self._rng, now, refused)
        if isinstance(answer, Infeasible) and len(self._able) < len(self._all):
            answer = self._placement.place(demand, self._all, self._rng, now, refused)
        return answer

    def idle_for(self, demand: Demand, waits_at: PeerId, waited_s: float) -> Choice | None:
        """A node, other than the one where it has waited for so long, that would begin it at once."""
        self._look()
        now = self._loop.time()
        self._placement.told(self._me, self.load(), now, since=now)
        return self._placement.idle_for(demand, self._able.values(), waits_at, waited_s, now)

    def may_return(self, peer: PeerId) -> bool:
        """Whether it is a member that is dead, or only silent for long."""
        node = self._all.get(peer)
        return node is not None and not node.living

    def told(self, peer: PeerId, load: Load, asked_at: float) -> None:
        """The node's own word, with its answer to what was asked then."""
        if peer in self._all:
            self._placement.told(peer, load, self._loop.time(), asked_at)

    def dropped(self, peer: PeerId, asked_at: float) -> None:
        """What was asked of the node then was given up before it had answered."""
        self._placement.dropped(peer, asked_at)

    def ended(self, peer: PeerId, resources: ResourceSet) -> None:
        """A lease there was returned, or given up."""
        self._placement.ended(peer, resources, self._all.get(peer))
        self._tell()

    def validate(self) -> None:
        """Assert what always holds."""
        self._placement.validate()
        assert self._able.items() <= self._all.items(), "a node is known in two ways"
        assert all(node.living and node.executes for node in self._able.values()), "a node that cannot be asked"

    # -- what is heard

    def _row_changed(self, row: Row | None, before: Row | None) -> None:
        for one in (row, before):
            if one is not None:
                self._is_stale(one.writer)

    def _said(self, _row: Row | None, _before: Row | None) -> None:
        """An admin has revoked an issuer, perhaps: that is about many."""
        self._all_stale = True
        self._is_stale(self._me)

    def _member_changed(self, change: MemberChanged) -> None:
        self._is_stale(change.peer)
        if change.state in (State.DEAD, State.LEFT, None):
            self._placement.gone(change.peer)

    def _is_stale(self, peer: PeerId) -> None:
        """It must be looked at again."""
        self._stale.add(peer)
        self.generation += 1
        self._tell()

    def _heard(self, beginnings: list[bytes]) -> None:
        now = self._loop.time()
        for beginning in beginnings:
            peer = self._peers.get(beginning)
            if self._all_stale or peer in self._stale:
                self._tell()  # it is looked at as a whole
                continue
            if peer is None:  # nobody's that we know
                continue
            before = self._all[peer]
            node = self._all[peer] = self._with_load(before, now)
            if peer in self._able:
                self._able[peer] = node
            if _is_less(node.load, before.load):
                self._tell()

    def _tell(self) -> None:
        if self._timer is None:
            wait_s = max(self._told_at + TELL_S - self._loop.time(), 0.0)
            self._timer = self._loop.call_later(wait_s, self._tell_now)

    def _tell_now(self) -> None:
        self._timer, self._told_at = None, self._loop.time()
        self.changed()

    # -- what is looked at

    def _look(self) -> None:
        """See whatever is new."""
        now = self._loop.time()
        if self._all_stale:
            self._all_stale = False
            known = self._mesh.peer.gossip.community.membership.members()
            self._stale = {self._me, *known, *self._all}
        for peer in sorted(self._stale):  # in no order of hashes: the same dice choose the same node
            self._look_at(peer, now)
        self._stale.clear()
        if self._round_trips_at <= now:
            self._round_trips_at = now + ROUND_TRIPS_S
            self._measure()

    def _look_at(self, peer: PeerId, now: float) -> None:
        state = self._mesh.peer.gossip.community.membership.state(peer)
        node = self._see_own() if peer == self._me else self._see(peer, state, now)
        if node is None:
            self._all.pop(peer, None)
            self._able.pop(peer, None)
            self._peers.pop(peer[:ID_BYTES], None)
            return
        self._all[peer] = node
        if peer != self._me:
            self._peers[peer[:ID_BYTES]] = peer
        if node.living and node.executes and (state is not State.SUSPECT or peer == self._me):
            self._able[peer] = node
        else:
            self._able.pop(peer, None)

    def _see_own(self) -> NodeView:
        community = self._mesh.peer.gossip.community
        member = community.replica.member(self._me)
        issuers = tuple(PeerId(issuer) for issuer, _ in member.issuers) if member else ()
        pythons = tuple(dict.fromkeys([*community.info.python, *self._runs]))
        self._own = replace(self._own, issuers=issuers, pythons=pythons)
        return self._own

    def _see(self, peer: PeerId, state: State | None, now: float) -> NodeView | None:
        """None if it is no member, or has left."""
        community = self._mesh.peer.gossip.community
        info, member = community.node(peer), community.replica.member(peer)
        if state in (State.LEFT, None) or info is None or member is None:
            return None
        try:
            totals = ResourceSet.of(info.resources)
        except ConfigError:  # nothing that it says of them can be believed
            totals = NOTHING
        trusted = Role.EXECUTE in member.roles and not self._mesh.peer.credentials.trust.revoked(member)
        rtt_s = self._mesh.peer.sessions.rtt_s(peer)
        node = NodeView(
            peer,
            totals,
            info.labels,
            tuple(version for version in info.python[:PYTHONS_MAX] if len(version) <= PYTHON_MAX_CHARS),
            tuple(PeerId(issuer) for issuer, _ in member.issuers),
            RTT_S if rtt_s is None else rtt_s,
            living=state is not State.DEAD,
            executes=trusted and bool(totals),  # a driver's own node says what it has if it was asked to help
        )
        return self._with_load(node, now)

    def _with_load(self, node: NodeView, now: float) -> NodeView:
        """With what it said last; what it said before, if that cannot be read."""
        said = self._mesh.peer.gossip.community.soft.get(node.peer, now)
        if said is None:
            return node
        try:
            return replace(node, load=decode(said[0]), said_at=now - said[1])
        except RemoteProtocolError:
            return node

    def _measure(self) -> None:
        """Round trips, of those with whom there is a session."""
        sessions = self._mesh.peer.sessions
        for peer in sessions.peers():
            node, rtt_s = self._all.get(peer), sessions.rtt_s(peer)
            if node is None or rtt_s is None or abs(rtt_s - node.rtt_s) <= ROUND_TRIP_SHARE * node.rtt_s:
                continue
            node = self._all[peer] = replace(node, rtt_s=rtt_s)
            if peer in self._able:
                self._able[peer] = node


def _is_less(load: Load, before: Load) -> bool:
    """Whether something may fit now that did not."""
    if before is IDLE:
        return False
    freed = any(load.taken.get(name, 0) < units for name, units in before.taken.items())
    return freed or load.queued < before.queued or (before.draining and not load.draining)
