"""Which node gets which bundle of a placement group.

PACK          on as few nodes as possible          STRICT_PACK    on one
SPREAD        on as many as possible               STRICT_SPREAD  each on another

Planned from what nodes have said is free, which is old; the two phases of `groups` find out whether it is true.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from lattica.mesh.identity import PeerId
from lattica.scheduler import labels
from lattica.scheduler.demand import Demand, NodeView, fits, missing
from lattica.scheduler.placement import AGAIN_S, Infeasible, Waiting
from lattica.scheduler.resources import ResourceSet

BUNDLES_MAX = 1024  # of one group; planning takes their number times that of nodes


class Pattern(Enum):
    """How the bundles of a group lie to each other; strict ones wait rather than yield. The words are Ray's."""

    PACK = "PACK"
    SPREAD = "SPREAD"
    STRICT_PACK = "STRICT_PACK"
    STRICT_SPREAD = "STRICT_SPREAD"


Plan = dict[int, PeerId]
"""Bundle -> node."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """Where bundles shall be. selectors: of each, by number, as `labels` reads them. target: rather there, if all of
    them are on one node."""

    selectors: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    target: PeerId | None = None

    def barred(self, node: NodeView) -> frozenset[int]:
        """Bundles that may not be on this node."""
        return frozenset(
            number for number, selector in self.selectors.items() if not labels.matches(selector, node.labels)
        )


def plan(
    bundles: Sequence[ResourceSet],
    pattern: Pattern,
    view: Mapping[PeerId, NodeView],
    now: float,
    kept: Mapping[int, PeerId] | None = None,
    demand: Demand | None = None,
    pressed: Collection[PeerId] = (),
    wishes: Wishes | None = None,
) -> Plan | Waiting | Infeasible:
    """Nodes for all bundles but those `kept`, which have one. demand: what else nodes must meet (labels, trust).
    pressed: nodes that shall make room, whatever is taken there."""
    kept, wishes = kept or {}, wishes or Wishes()
    wanted = {number: bundle for number, bundle in enumerate(bundles) if number not in kept}
    anywhere = demand or Demand(ResourceSet({}))
    nodes = [node for node in view.values() if fits(anywhere, node) and not node.load.draining]
    barred = {node.peer: wishes.barred(node) for node in nodes}
    free = {
        node.peer: _Free(node, {} if node.peer in pressed else node.load.taken, barred[node.peer]) for node in nodes
    }
    if (found := _choose(wanted, pattern, free, kept, wishes.target)) is not None:
        return found
    if pressed:
        return Waiting("it does not fit even on nodes that make room", now + AGAIN_S)
    empty = {node.peer: _Free(node, {}, barred[node.peer]) for node in nodes}
    for number, peer in kept.items():
        if peer in empty:
            empty[peer].take(bundles[number])
    if _choose(wanted, pattern, empty, kept) is not None:
        return Waiting(f"{len(wanted)} bundles by {pattern.value} would fit, were the nodes less busy", now + AGAIN_S)
    return Infeasible(_why(wanted, pattern, nodes, anywhere, view, wishes))


class _Free:
    """What one node still has to give while a plan is made."""

    def __init__(self, node: NodeView, taken: Mapping[str, int], barred: frozenset[int] = frozenset()) -> None:
        """barred: bundles that it may not have."""
        self.peer, self.barred = node.peer, barred
        self.units = {name: units - taken.get(name, 0) for name, units in node.totals.units.items()}
        self.bundles = 0

    def holds(self, number: int, bundle: ResourceSet) -> bool:
        return number not in self.barred and all(
            self.units.get(name, 0) >= units for name, units in bundle.units.items()
        )

    def take(self, bundle: ResourceSet) -> None:
        for name, units in bundle.units.items():
            self.units[name] -= units
        self.bundles += 1

    def copy(self) -> _Free:
        copy = _Free.__new__(_Free)
        copy.peer, copy.units, copy.bundles, copy.barred = self.peer, dict(self.units), self.bundles, self.barred
        return copy


def _choose(
    wanted: Mapping[int, ResourceSet],
    pattern: Pattern,
    free: Mapping[PeerId, _Free],
    kept: Mapping[int, PeerId],
    target: PeerId | None = None,
) -> Plan | None:
    """None where they do not fit."""
    nodes = {peer: one.copy() for peer, one in free.items()}
    for peer in kept.values():
        if peer in nodes:
            nodes[peer].bundles += 1
    order = sorted(
        wanted, key=lambda number: _size(wanted[number]), reverse=True
    )  # the large ones first: they fit in few places
    match pattern:
        case Pattern.STRICT_PACK:
            return _on_one(wanted, order, nodes, kept, target)
        case Pattern.STRICT_SPREAD:
            return _matching(wanted, order, {peer: one for peer, one in nodes.items() if not one.bundles})
        case Pattern.PACK:
            return _packed(wanted, order, nodes)
        case Pattern.SPREAD:
            return _spread(wanted, order, nodes)


def _size(bundle: ResourceSet) -> tuple[int, int]:
    """By how many names, then by how much: what asks for a GPU as well goes before what asks for CPUs."""
    return len(bundle.units), sum(units for name, units in bundle.units.items() if name != "memory")


def _filled(wanted: Mapping[int, ResourceSet], order: Sequence[int], node: _Free) -> tuple[Plan, _Free]:
    """What of these one node can take, one after the other, and what it has left then."""
    left, taken = node.copy(), {}
    for number in order:
        if left.holds(number, wanted[number]):
            left.take(wanted[number])
            taken[number] = node.peer
    return taken, left


def _on_one(
    wanted: Mapping[int, ResourceSet],
    order: Sequence[int],
    nodes: Mapping[PeerId, _Free],
    kept: Mapping[int, PeerId],
    target: PeerId | None,
) -> Plan | None:
    """The target if it can, else the node with least left then, so that large gaps stay for others."""
    homes = set(kept.values())
    plans = [_filled(wanted, order, node) for node in nodes.values() if not homes or node.peer in homes]
    whole = [
        ((left.peer != target, sum(left.units.values())), taken) for taken, left in plans if len(taken) == len(wanted)
    ]
    return min(whole, key=lambda pair: pair[0])[1] if whole else None


def _packed(wanted: Mapping[int, ResourceSet], order: Sequence[int], nodes: dict[PeerId, _Free]) -> Plan | None:
    """Again and again the node that takes most of what is left; those that have bundles of the group come first."""
    placed: Plan = {}
    rest = list(order)
    while rest:
        plans = [(bool(node.bundles), *_filled(wanted, rest, node)) for node in nodes.values()]
        if not plans:
            return None
        _, taken, left = max(plans, key=lambda entry: (entry[0] and bool(entry[1]), len(entry[1])))
        if not taken:
            return None
        placed |= taken
        nodes[left.peer] = left
        rest = [number for number in rest if number not in taken]
    return placed


def _spread(wanted: Mapping[int, ResourceSet], order: Sequence[int], nodes: Mapping[PeerId, _Free]) -> Plan | None:
    placed: Plan = {}
    for number in order:
        able = [node for node in nodes.values() if node.holds(number, wanted[number])]
        if not able:
            return None
        node = min(able, key=lambda node: (node.bundles, -sum(node.units.values())))
        node.take(wanted[number])
        placed[number] = node.peer
    return placed


def _matching(wanted: Mapping[int, ResourceSet], order: Sequence[int], nodes: Mapping[PeerId, _Free]) -> Plan | None:
    """A node for each by augmenting paths (Kuhn 1955): taking the first that fits may leave none for another."""
    bundle_at: dict[PeerId, int] = {}
    able = {number: [peer for peer, node in nodes.items() if node.holds(number, wanted[number])] for number in order}

    def find(number: int, seen: set[PeerId]) -> bool:
        """A place for it, moving others if need be: breadth-first, since paths may be as long as the group."""
        came: dict[PeerId, tuple[int, PeerId | None]] = {}
        queue: list[tuple[int, PeerId | None]] = [(number, None)]
        for bundle, before in queue:
            for peer in able[bundle]:
                if peer in seen:
                    continue
                seen.add(peer)
                came[peer] = bundle, before
                if peer in bundle_at:
                    queue.append((bundle_at[peer], peer))
                    continue
                step: PeerId | None = peer
                while step is not None:  # back along the path, each bundle to its new node
                    moved, step_before = came[step]
                    bundle_at[step] = moved
                    step = step_before
                return True
        return False

    if all(find(number, set()) for number in order):
        return {number: peer for peer, number in bundle_at.items()}
    return None


def _why(
    wanted: Mapping[int, ResourceSet],
    pattern: Pattern,
    nodes: Sequence[NodeView],
    demand: Demand,
    view: Mapping[PeerId, NodeView],
    wishes: Wishes,
) -> str:
    if not nodes:
        return missing(demand, view.values()) or "every node that could run it is going"
    for number, bundle in wanted.items():
        if lacking := missing(Demand(bundle, wishes.selectors.get(number, {})), nodes):
            return f"bundle {number} {lacking}"
    if pattern is Pattern.STRICT_SPREAD:
        able = len(nodes) - sum(wanted.keys() <= wishes.barred(node) for node in nodes)
        return f"STRICT_SPREAD needs a node for each of {len(wanted)} bundles; {able} living nodes could be used"
    if pattern is Pattern.STRICT_PACK:
        total = sum(wanted.values(), ResourceSet({}))
        if all(wishes.barred(node) & wanted.keys() for node in nodes):
            return "STRICT_PACK needs one node that has the labels of every bundle; no living node has them all"
        return f"STRICT_PACK {missing(Demand(total), nodes)}"
    return f"{len(wanted)} bundles need more than {len(nodes)} living nodes have together"
