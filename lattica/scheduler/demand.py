"""What a task asks of a node, what is known of a node, and words for why no node will do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lattica.mesh.identity import PeerId, short_peer
from lattica.scheduler import labels
from lattica.scheduler.load import Load
from lattica.scheduler.resources import ResourceSet

SITE = "site"  # the label that `site=` looks at
BYTES_PER_S = 125e6  # 1 Gbit/s: what a link is taken for until it was measured
RTT_S = 0.1  # a round trip that nobody has measured: far, but on this planet
NAMED_MAX = 5  # nodes or values named in a message
IDLE = Load()  # nothing was heard: it is taken for idle, and corrects that


@dataclass(frozen=True, slots=True)
class Default:
    """Where it is done first."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Evenly over the nodes that fit."""


@dataclass(frozen=True, slots=True)
class Affinity:
    """On that node; soft: elsewhere if it is gone, or can never run it."""

    peer: PeerId
    soft: bool = False


Strategy = Default | Spread | Affinity


@dataclass(frozen=True, slots=True)
class Demand:
    """What a task or an actor needs.

    python: its minor version, "3.11"; "" for any. trust: peers or issuers; empty for every member. input_bytes: of all
    arguments together; inputs: how many of them lie where. work_s: what it takes on a node of pace 1; 0: not known.
    soft_labels: nodes with these are preferred, by who places (`node.placer`); `fits` does not ask for them. setup_s:
    to install what its environment needs, where that is not `prepared`.
    """

    resources: ResourceSet
    labels: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    strategy: Strategy = Default()
    site: str = ""
    trust: frozenset[PeerId] = frozenset()
    inputs: Mapping[PeerId, int] = field(default_factory=dict)
    input_bytes: int = 0
    work_s: float = 0.0
    soft_labels: Mapping[str, str] = field(default_factory=dict)
    setup_s: float = 0.0
    prepared: frozenset[PeerId] = frozenset()


@dataclass(frozen=True, slots=True)
class NodeView:
    """What one peer knows of a node: the table's part, and what the node said of itself at `said_at`.

    issuers: who certified it, up to the root. rtt_s, bytes_per_s: measured from here, or guessed. living: by membership
    or by session evidence. executes: its certificate has that role, and it serves others than its own driver.
    """

    peer: PeerId
    totals: ResourceSet
    labels: Mapping[str, str] = field(default_factory=dict)
    pythons: tuple[str, ...] = ()
    issuers: tuple[PeerId, ...] = ()
    rtt_s: float = RTT_S
    bytes_per_s: float = BYTES_PER_S
    living: bool = True
    executes: bool = True
    load: Load = IDLE
    said_at: float = float("-inf")


def fits(demand: Demand, node: NodeView) -> bool:
    """Whether it could run there if nothing else did."""
    if not (node.living and node.executes):
        return False
    totals = node.totals.units
    for name, units in demand.resources.units.items():
        if totals.get(name, 0) < units:
            return False
    if demand.python and demand.python not in node.pythons:
        return False
    if demand.site and node.labels.get(SITE) != demand.site:
        return False
    if demand.trust and node.peer not in demand.trust and demand.trust.isdisjoint(node.issuers):
        return False
    return not demand.labels or labels.matches(demand.labels, node.labels)


def at_once(demand: Demand, node: NodeView) -> int:
    """How many of its kind an empty node runs side by side; at least 1, for one that asks for nothing many."""
    totals = node.totals.units
    return max(min((totals[name] // units for name, units in demand.resources.units.items()), default=1024), 1)


def missing(demand: Demand, nodes: Iterable[NodeView]) -> str:
    """Why no node will do: the first demand that none of those left meets, in the order a user would check them."""
    left = [node for node in nodes if node.living]
    if not left:
        return "no node is alive"
    left = [node for node in left if node.executes]
    if not left:
        return "no living node runs tasks of others"
    if demand.trust:
        left = [node for node in left if node.peer in demand.trust or not demand.trust.isdisjoint(node.issuers)]
        if not left:
            return f"trusts {_some(map(short_peer, demand.trust))}; no living node is one of these or certified by one"
    if demand.site and not (there := [node for node in left if node.labels.get(SITE) == demand.site]):
        return f"needs site {demand.site}; living nodes are at {_some(node.labels.get(SITE, '-') for node in left)}"
    left = there if demand.site else left
    if demand.python and not (able := [node for node in left if demand.python in node.pythons]):
        return f"needs Python {demand.python}, which no living node runs; they run {_versions(left)}"
    left = able if demand.python else left
    for name, rule in demand.labels.items():
        alike = [node for node in left if labels.matches({name: rule}, node.labels)]
        if not alike:
            return f"needs label {name}={rule}; living nodes have {_some(node.labels.get(name, '-') for node in left)}"
        left = alike
    for name, units in demand.resources.units.items():
        if not any(node.totals.units.get(name, 0) >= units for node in left):
            most = max(left, key=lambda node: node.totals.units.get(name, 0))
            has = most.totals.get(name, 0)
            owner = f" (peer {short_peer(most.peer)})" if has else ""
            return f"needs {name} {demand.resources[name]:g}; the most that a living node has is {has:g}{owner}"
    if any(fits(demand, node) for node in left):
        return ""
    return f"needs {_amounts(demand.resources)} on one node; living nodes have each, but none has all"


def _versions(nodes: Iterable[NodeView]) -> str:
    """Each version of Python, and who runs it."""
    runs: dict[str, list[str]] = {}
    for node in nodes:
        for version in node.pythons:
            runs.setdefault(version, []).append(short_peer(node.peer))
    return "; ".join(f"{version}: {_some(runs[version])}" for version in sorted(runs)[:NAMED_MAX]) or "none"


def _amounts(resources: ResourceSet) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in resources.items())


def _some(words: Iterable[str]) -> str:
    found = sorted(set(words))
    more = f" and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else ""
    return (", ".join(found[:NAMED_MAX]) or "none") + more
