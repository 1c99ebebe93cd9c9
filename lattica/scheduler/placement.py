"""Where a task runs: its submitter chooses from what it has heard, and the chosen node decides from what is true.

    choice = placement.place(demand, view, rng, now)             # Choice: ask that node for a lease
    placement.told(choice.peer, load, now, since=asked_at)       # what came with its answer, granted or refused
    placement.place(demand, view, rng, now, tried=(peer, ...))   # refused: the next one; after HOPS_MAX it queues
    placement.idle_for(demand, nodes, peer, waited_s, now)       # who would begin at once what has queued there so long

Rules of this file. All that is heard is old: a second, or a minute. So a submitter looks at LOOKS nodes drawn at
random, not at all (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001, and "How Useful Is Old
Information?", 2000): whoever takes the best of all meets everybody else there. It remembers what it has sent since a
node last spoke, and asks a node to queue the task only up to the wait that would make the second best the better one:
a refusal costs a round trip, a wrong queue the run time of others.

Beside those drawn, this machine is always looked at, and those where most of the input lies, and two of those that have
installed what it needs. Whether to leave is then a
question of seconds: the wait here and the run here, against trip, wait and run there. Pure; `rng` and `now` are given.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random

from lattica.mesh.identity import PeerId, short_peer
from lattica.scheduler.demand import Affinity, Demand, NodeView, Spread, at_once, fits, missing
from lattica.scheduler.load import Load
from lattica.scheduler.resources import ResourceSet

LOOKS = 2
"""Nodes drawn at random. p99 over an omniscient scheduler's, 200 nodes, load 1 s old: with 2 LOOKS 1.2 times, 4 1.3, 8
1.5, 16 1.9; each look more sends more of those with the same old view to the same node (docs/design/0011)."""
DRAWS_MAX = 12  # to find them; where most nodes do not fit, all are looked at
HOLDERS = 2  # nodes with most of the input that are looked at as well
HOPS_MAX = 3  # refusals; the node asked after that queues the task, however long it takes
LEEWAY_S = 0.02  # a wait that is not worth another round trip
TASK_S = 0.1  # run time of tasks that nobody has measured
QUEUE_MAX = 1024
"""Requests of other nodes that wait at one node (300 B each). Fewer: a burst goes round asking; more: it stands where
it cannot see that others are free."""
AGAIN_S = 0.5  # until a demand that nobody could take is placed again: loads are told every second
NOTHING = ResourceSet({})
SENT_MAX = 4096  # remembered per node; a submitter with more than that under way there knows that it is full
FORGET_S = 30.0  # what was neither confirmed nor ended counts no more: that of the soft state


@dataclass(frozen=True, slots=True)
class Choice:
    """Ask this node for a lease. limit_s: it shall refuse rather than let the task wait longer; inf on the last hop."""

    peer: PeerId
    limit_s: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nodes that could run it are full, or go: place it again at `again_at`, or when one of them says something new."""

    reason: str
    again_at: float


@dataclass(frozen=True, slots=True)
class Infeasible:
    """No living node can ever run it. It waits for one that can, unless `final`: then waiting would be in vain, and it
    fails (`TaskUnschedulableError`)."""

    reason: str
    final: bool = False


@dataclass(slots=True)
class _Known:
    """Of one node, beyond the view: the truest load, and what was sent there since."""

    load: Load
    at: float
    sent: deque[float] = field(default_factory=deque)  # when


class Placement:
    """The choices of one submitting node."""

    def __init__(self, me: PeerId, *, looks: int = LOOKS) -> None:
        self._me, self._looks = me, looks
        self._known: dict[PeerId, _Known] = {}
        self._spread: dict[PeerId, int] = {}  # the turn in which a task with SPREAD was last sent there
        self._turns = count(1)

    def __repr__(self) -> str:
        sent = sum(len(known.sent) for known in self._known.values())
        return f"<Placement of {short_peer(self._me)}: {sent} sent to {len(self._known)} peers>"

    # -- what is told

    def told(self, peer: PeerId, load: Load, now: float, since: float) -> None:
        """The node's own word, just now: with a grant or a refusal, and before each `place` for this machine itself.
        since: when what it answers was sent; what was sent later is not in its load yet."""
        at = (since + now) / 2  # when it said so
        known = self._known.get(peer)
        if known is None:
            self._known[peer] = _Known(load, at)
            return
        known.load, known.at = load, at
        while known.sent and known.sent[0] <= since:
            known.sent.popleft()

    def dropped(self, peer: PeerId, asked_at: float) -> None:
        """What was sent there then was given up, and has had no answer: it counts no more. A node whose load is as
        before says so only every 15 s, and would be taken for a busy one until then."""
        known = self._known.get(peer)
        if known is not None and (before := bisect_right(known.sent, asked_at)):
            del known.sent[before - 1]

    def ended(self, peer: PeerId, resources: ResourceSet, node: NodeView | None = None) -> None:
        """A lease there was returned: somebody who waits there begins, or there is more room. node: as it is seen."""
        known = self._known.get(peer)
        if known is None:
            return
        if node is not None and known.at < node.said_at:
            known.load, known.at = node.load, node.said_at
        load = known.load
        if load.queued:
            known.load = replace(load, queued=load.queued - 1)
        else:
            left = {name: units - resources.units.get(name, 0) for name, units in load.taken.items()}
            known.load = replace(load, taken={name: units for name, units in left.items() if units > 0})

    def gone(self, peer: PeerId) -> None:
        """Nothing is known of this node any more."""
        self._known.pop(peer, None)
        self._spread.pop(peer, None)

    # -- the question

    def place(
        self, demand: Demand, view: Mapping[PeerId, NodeView], rng: Random, now: float, tried: tuple[PeerId, ...] = ()
    ) -> Choice | Waiting | Infeasible:
        """tried: who has refused it already, in order."""
        match demand.strategy:
            case Affinity(peer, soft):
                node = view.get(peer)
                leaves = soft and node is not None and (peer in tried or self._load(node)[0].draining)
                if node is not None and fits(demand, node) and not leaves:
                    return self._to(node, math.inf, now) if self._open(node, now) else self._full([node], now)
                if not soft:
                    return self._unfit(peer, node, demand)
                candidates = self._draw(demand, view, rng, tried)
            case Spread():
                candidates = [node for node in view.values() if node.peer not in tried and fits(demand, node)]
                rng.shuffle(candidates)  # before the stable sort: equals are drawn
                candidates.sort(key=lambda node: self._spread.get(node.peer, 0))
            case _:
                candidates = self._draw(demand, view, rng, tried)
        candidates = [node for node in candidates if self._open(node, now)]
        last = len(tried) >= HOPS_MAX
        if not candidates:  # all those drawn are full, or all that fit have refused
            every = [node for node in view.values() if fits(demand, node)]
            candidates, last = [node for node in every if self._open(node, now)], True
            if not every:
                return self._infeasible(demand, view)
            if not candidates:
                return self._full(every, now)
        if isinstance(demand.strategy, Spread):
            choice, other = candidates[0], candidates[1] if len(candidates) > 1 else None
            self._spread[choice.peer] = next(self._turns)
            scores = [self._wait_s(node, demand, now) for node in (choice, other) if node]
        else:
            ranked = sorted(
                ((self.finish_s(demand, node, now), n) for n, node in enumerate(candidates)), key=lambda pair: pair[0]
            )
            choice = candidates[ranked[0][1]]
            scores = [score for score, _ in ranked[:2]]
        if last or len(scores) < 2:
            return self._to(choice, math.inf, now)
        gap_s = max(scores[1] - scores[0], 0.0)
        return self._to(choice, self._wait_s(choice, demand, now) + gap_s + LEEWAY_S, now)

    def idle_for(
        self, demand: Demand, nodes: Collection[NodeView], waits_at: PeerId, waited_s: float, now: float
    ) -> Choice | None:
        """Which of these, other than where it has waited for so long, would begin it at once. Its input's trip there is
        no longer than that wait: moving costs at most twice what the better of both would have."""
        match demand.strategy:
            case Affinity(peer, soft) if peer == waits_at or not soft:
                return None
        trips = {
            node.peer: self._trip_s(demand, node)
            for node in nodes
            if node.peer != waits_at
            and fits(demand, node)
            and self._open(node, now)
            and self._wait_s(node, demand, now) == 0.0
        }
        nearest = min(trips, key=lambda peer: trips[peer], default=None)
        if nearest is None or trips[nearest] > waited_s:
            return None
        return self._to(next(node for node in nodes if node.peer == nearest), 0.0, now)

    def finish_s(self, demand: Demand, node: NodeView, now: float) -> float:
        """Seconds from now until it would be done there, as far as is known: the score, less is better."""
        return self._trip_s(demand, node) + self._wait_s(node, demand, now) + demand.work_s * self._load(node)[0].pace

    def validate(self) -> None:
        for known in self._known.values():
            assert len(known.sent) <= SENT_MAX and list(known.sent) == sorted(known.sent), (
                "what was sent is in no order"
            )
            assert known.load.queued >= 0 and min(known.load.taken.values(), default=1) > 0, "a load less than nothing"

    # -- inside

    def _trip_s(self, demand: Demand, node: NodeView) -> float:
        """To bring there what it needs."""
        lacking = max(demand.input_bytes - demand.inputs.get(node.peer, 0), 0)
        setup_s = 0.0 if node.peer in demand.prepared else demand.setup_s
        return lacking / node.bytes_per_s + setup_s + (0.0 if node.peer == self._me else node.rtt_s)

    def _load(self, node: NodeView) -> tuple[Load, float]:
        """The newer of what it said to all and what it answered to us."""
        known = self._known.get(node.peer)
        if known is not None and known.at >= node.said_at:
            return known.load, known.at
        return node.load, node.said_at

    def _wait_s(self, node: NodeView, demand: Demand, now: float) -> float:
        """Until it would start there. What was sent since counts like more of the same."""
        load, said_at = self._load(node)
        known = self._known.get(node.peer)
        ahead = load.queued
        if known is not None:
            horizon = max(said_at - node.rtt_s / 2, now - FORGET_S)  # what had arrived when it said so is in its load
            while known.sent and known.sent[0] < horizon:
                known.sent.popleft()
            ahead += len(known.sent)
        return wait_s(demand, node, load, ahead)

    def _open(self, node: NodeView, now: float) -> bool:
        load, at = self._load(node)
        return not load.draining and (load.queued < QUEUE_MAX or now - at >= AGAIN_S)

    def _to(self, node: NodeView, limit_s: float, now: float) -> Choice:
        load, at = self._load(node)
        known = self._known.get(node.peer)
        if known is None:
            known = self._known[node.peer] = _Known(load, at)
        if len(known.sent) < SENT_MAX:
            known.sent.append(now)
        return Choice(node.peer, limit_s)

    def _draw(
        self, demand: Demand, view: Mapping[PeerId, NodeView], rng: Random, tried: tuple[PeerId, ...]
    ) -> list[NodeView]:
        """This machine first (it wins where all else is equal), the holders of the input, some that are prepared, then
        `looks` others."""
        found: dict[PeerId, NodeView] = {}
        prepared = rng.sample(sorted(demand.prepared), min(HOLDERS, len(demand.prepared))) if demand.prepared else ()
        for peer in (self._me, *_most(demand.inputs), *prepared):
            node = view.get(peer)
            if node is not None and peer not in tried and fits(demand, node):
                found[peer] = node
        wanted = len(found) + self._looks
        peers = list(view)
        for _ in range(DRAWS_MAX if len(peers) > DRAWS_MAX else 0):
            peer = peers[int(rng.random() * len(peers))]
            if peer not in found and peer not in tried and fits(demand, view[peer]):
                found[peer] = view[peer]
                if len(found) == wanted:
                    return list(found.values())
        rest = [node for p, node in view.items() if p not in found and p not in tried and fits(demand, node)]
        return [*found.values(), *rng.sample(rest, min(wanted - len(found), len(rest)))]

    def _full(self, nodes: Iterable[NodeView], now: float) -> Waiting:
        words = [
            f"{short_peer(node.peer)} {'drains' if load.draining else f'has {load.queued} waiting'}"
            for node in list(nodes)[:3]
            for load in [self._load(node)[0]]
        ]
        return Waiting(f"every node that could run it is full: {', '.join(words)}", now + AGAIN_S)

    def _unfit(self, peer: PeerId, node: NodeView | None, demand: Demand) -> Infeasible:
        if node is None or not node.living:
            state = "is dead" if node else "is no member"
            return Infeasible(f"needs node {short_peer(peer)}, which {state}", final=True)
        runs = not demand.python or demand.python in node.pythons or not node.pythons
        return Infeasible(f"needs node {short_peer(peer)}: {missing(demand, [node])}", final=not runs)

    def _infeasible(self, demand: Demand, view: Mapping[PeerId, NodeView]) -> Infeasible:
        """A version of Python that no node offers does not appear by itself: that is final. Nodes without anything of
        what it asks for offer none (a driver's own, with no CPU); those that are dead for now may come back."""
        able = [node for node in view.values() if node.executes and _offers(node, demand.resources)]
        pythons = {version for node in able for version in node.pythons}
        final = bool(demand.python and pythons and demand.python not in pythons)
        if final and (words := missing(Demand(NOTHING, python=demand.python), able)):
            return Infeasible(words, any(node.living for node in able))
        return Infeasible(missing(demand, view.values()))


def _offers(node: NodeView, resources: ResourceSet) -> bool:
    """Whether it has some of each."""
    return all(node.totals.units.get(name, 0) > 0 for name in resources.units)


def wait_s(demand: Demand, node: NodeView, load: Load, ahead: int) -> float:
    """Until a node with this load would start one more, with so many before it that do not run yet."""
    totals, taken = node.totals.units, load.taken
    room = None
    for name, units in demand.resources.units.items():
        fit = (totals.get(name, 0) - taken.get(name, 0)) // units
        room = fit if room is None or fit < room else room
    if room is None:  # asks for nothing
        return 0.0
    behind = ahead - max(room, 0)
    if behind < 0:
        return 0.0
    each_s = load.task_s or TASK_S
    if demand.inputs and demand.work_s:  # most of those that wait where the input lies are of its own kind
        each_s = demand.work_s * load.pace
    return (behind + 1) * each_s / at_once(demand, node)


def _most(inputs: Mapping[PeerId, int]) -> list[PeerId]:
    """Who holds most of the input."""
    if len(inputs) <= HOLDERS:
        return list(inputs)
    return sorted(inputs, key=lambda peer: -inputs[peer])[:HOLDERS]
