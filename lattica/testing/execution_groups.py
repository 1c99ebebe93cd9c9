"""Placement groups in the world `execution`: drivers make and remove them, tasks run in their bundles.

A bundle has one CPU and tasks in it never wait for others, so at most one begins in it on any run of a node before the
one before has ended. No node keeps more bundles than it has CPUs; in the end none keeps any.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from lattica.codec import messages as m
from lattica.ids import ID_BYTES
from lattica.scheduler.given import ANY_BUNDLE, DemandGiven, StrategyGiven, decode_within, encode
from lattica.testing.execution import PIPE_S
from lattica.testing.execution_nodes import NodeUnit, SimNode
from lattica.testing.execution_processes import SimDriver, SimWorker

if TYPE_CHECKING:
    from lattica.testing.scenarios.execution import Plan, Play

BUNDLES_MAX = 3
WORD_S = 2 * PIPE_S[1]
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


@dataclass(eq=False, slots=True)
class Group:
    """One that a driver has made. removed: it, or its driver's end, has ended it."""

    id: bytes
    bundles: int
    owner: bytes  # the node of its driver
    removed: bool = False
    begun: dict[tuple[NodeUnit, int], list[tuple[SimWorker, Plan]]] = field(default_factory=dict)

    def given(self, bundle: int) -> bytes:
        """What a task says that shall run in it."""
        return encode(DemandGiven(strategy=StrategyGiven(group=self.id, bundle=bundle, owner=self.owner)))


class Groups:
    """See the module."""

    def __init__(self, play: Play) -> None:
        self.play, self.universe = play, play.universe

    def make(self, driver: SimDriver) -> Group:
        """Have one; it is there when the nodes say so."""
        rng, runtime = self.universe.rng, driver.runtime
        group = Group(self.universe.urandom(ID_BYTES), rng.randint(1, BUNDLES_MAX), runtime.node_id)
        request = runtime.next_request()
        runtime.expect(request, lambda answer: self.play.hold(answer.data == {}, f"a group is refused: {answer}"))
        runtime.tell_node(m.GroupCreate(request, group.id, [{"CPU": 1.0}] * group.bundles, rng.choice(STRATEGIES)))
        self.universe.count("groups")
        return group

    def remove(self, driver: SimDriver, group: Group) -> None:
        """It ends, and what runs in it."""
        group.removed = True
        driver.runtime.tell_node(m.GroupRemove(group.id, group.owner))

    def any_of(self, groups: list[Group]) -> tuple[Group, bytes] | None:
        """For a task: one of them, and the words for it."""
        rng = self.universe.rng
        if not groups or rng.random() < 0.6:
            return None
        group = rng.choice(groups)
        return group, group.given(ANY_BUNDLE if rng.random() < 0.6 else rng.randrange(group.bundles))

    def begins(self, worker: SimWorker, plan: Plan) -> None:
        """A task of a group begins there. The node's word of the place was sent before it, by another pipe."""
        worker.later(WORD_S, partial(self._begun, worker, plan))

    def _begun(self, worker: SimWorker, plan: Plan) -> None:
        group, within = plan.group, worker.runtime.within
        assert group is not None
        if not _runs(worker, plan):
            return
        self.play.hold(bool(within), f"{plan} is of a placement group, and begins outside of it")
        if not within:
            return
        place = decode_within(within)
        self.play.hold(place.group == group.id, f"{plan} begins in another group")
        running = group.begun.setdefault((worker.host, place.bundle), [])
        running[:] = [(other, its) for other, its in running if _runs(other, its)]
        self.play.hold(not running, f"{plan} begins in bundle {place.bundle} of one CPU, where {running} runs")
        running.append((worker, plan))
        self.universe.count("starts in groups")

    def left(self, name: str, node: SimNode) -> list[str]:
        """What is kept of them."""
        desk = node.group_desk
        found = [] if desk is None else [f"{name} keeps bundle {key[2]} of a group" for key in desk.bundles._here]
        return found + ([f"{name}: {desk.bundles.kept!r}"] if desk is not None and desk.bundles.kept._attempts else [])

    def validate(self, node: SimNode, cpus: int) -> None:
        """No more is kept than there is."""
        desk = node.group_desk
        if desk is not None:
            desk.bundles.kept.validate()
            kept = len(desk.bundles._here)
            assert kept <= cpus, f"{node.unit.name} keeps {kept} bundles of one CPU each, and has {cpus} CPUs"


def _runs(worker: SimWorker, plan: Plan) -> bool:
    body: Any = worker.body
    return worker.unit.alive and not worker.blocked and body is not None and body.plan is plan
