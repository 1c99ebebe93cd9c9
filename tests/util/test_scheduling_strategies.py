"""Strategies have Ray's names and arguments, refuse what cannot be meant, and say the rest to nodes."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import ConfigError
from lattica.mesh.identity import PeerId, peer_text
from lattica.scheduler import labels
from lattica.scheduler.given import StrategyGiven, check_strategy
from lattica.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

PEER = PeerId(b"\xab" * 32)


class Group:
    """What `placement_group()` returns, as far as a strategy looks at it."""

    def __init__(self, id: Any = b"g" * 16) -> None:
        self.id, self.bundle_count = id, 2


class RayId:
    def binary(self) -> bytes:
        return b"r" * 16


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (NodeAffinitySchedulingStrategy(PEER.hex(), False), StrategyGiven(node=PEER)),
        (NodeAffinitySchedulingStrategy(node_id=peer_text(PEER), soft=True), StrategyGiven(node=PEER, soft=True)),
        (NodeAffinitySchedulingStrategy(PEER, False), StrategyGiven(node=PEER)),  # type: ignore[arg-type]
        (
            NodeLabelSchedulingStrategy({"gpu": In("A100", "H100"), "spot": DoesNotExist()}, soft={"zone": NotIn("b")}),
            StrategyGiven(labels={"gpu": "in(A100,H100)", "spot": "!*"}, soft_labels={"zone": "!in(b)"}),
        ),
        (NodeLabelSchedulingStrategy({}, soft={"ssd": Exists()}), StrategyGiven(soft_labels={"ssd": "*"})),
        (PlacementGroupSchedulingStrategy(Group()), StrategyGiven(group=b"g" * 16)),
        (
            PlacementGroupSchedulingStrategy(
                placement_group=Group(RayId()),
                placement_group_bundle_index=1,
                placement_group_capture_child_tasks=True,
            ),
            StrategyGiven(group=b"r" * 16, bundle=1, captures=True),
        ),
        (PlacementGroupSchedulingStrategy(None), StrategyGiven()),
    ],
)
def test_a_strategy_says_to_nodes_what_was_said_to_it(strategy: Any, said: StrategyGiven) -> None:
    assert strategy.to_wire() == said
    assert pickle.loads(pickle.dumps(strategy)).to_wire() == said, "remote functions with options travel"
    check_strategy(said)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NodeAffinitySchedulingStrategy("k3f9", False), r"(?s)no node id.*lattica\.nodes\(\)"),
        (lambda: NodeAffinitySchedulingStrategy(PEER.hex(), True, _spill_on_unavailable=True), "(?s)leave them out"),
        (lambda: NodeLabelSchedulingStrategy({}), "(?s)both empty.*say it like"),
        (lambda: NodeLabelSchedulingStrategy({"gpu": "A100"}), "(?s)says nothing of a label.*use In"),  # type: ignore[dict-item]
        (lambda: NodeLabelSchedulingStrategy({7: Exists()}), "says nothing of a label"),  # type: ignore[dict-item]
        (lambda: NodeLabelSchedulingStrategy(["gpu"]), "(?s)must be a dict"),  # type: ignore[arg-type]
        (lambda: NodeLabelSchedulingStrategy({"gpu": In("a,b")}), "(?s)no node has 'a,b'.*no commas"),
        (lambda: NodeLabelSchedulingStrategy({"gpu": In("")}), "no node has ''"),
        (lambda: In(), r'(?s)names no value.*In\("a", "b"\)'),
        (lambda: NotIn(3), "labels are strings"),  # type: ignore[arg-type]
        (lambda: PlacementGroupSchedulingStrategy(Group(), -2), "(?s)no bundle.*count from 0"),
        (lambda: PlacementGroupSchedulingStrategy(Group(), 2), "(?s)has 2 bundles.*0 to 1"),
        (lambda: PlacementGroupSchedulingStrategy(Group(), 0, "yes"), "must be True or False"),  # type: ignore[arg-type]
        (lambda: PlacementGroupSchedulingStrategy("group").to_wire(), "(?s)no placement group.*pass what"),
        (lambda: PlacementGroupSchedulingStrategy(Group(b"short")).to_wire(), "no placement group"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_say(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make()
    assert isinstance(caught.value, ValueError), "as in Ray"


VALUES = st.lists(st.text("abc-_.123", min_size=1, max_size=4), min_size=1, max_size=3)


@given(VALUES, st.none() | st.text("abc-_.123", max_size=2))
def test_operators_mean_what_they_say(values: list[str], has: str | None) -> None:
    node = {} if has is None else {"key": has}
    meant = {
        In(*values): has in values,
        NotIn(*values): has not in values,
        Exists(): bool(node),
        DoesNotExist(): not node,
    }
    for operator, matches in meant.items():
        rules = NodeLabelSchedulingStrategy({"key": operator}).to_wire().labels
        assert labels.matches(rules, node) == matches, operator


def test_names_of_arguments_are_ray_s() -> None:
    """Those of its release 2.60."""
    rays = {
        PlacementGroupSchedulingStrategy: "(placement_group, placement_group_bundle_index=-1, "
        "placement_group_capture_child_tasks=None)",
        NodeAffinitySchedulingStrategy: "(node_id, soft, _spill_on_unavailable=False, _fail_on_unavailable=False)",
        NodeLabelSchedulingStrategy: "(hard, *, soft=None)",
        In: "(*values)",
        NotIn: "(*values)",
        Exists: "()",
        DoesNotExist: "()",
    }
    for ours, theirs in rays.items():
        plain = [one.replace(annotation=one.empty) for one in inspect.signature(ours).parameters.values()]
        assert str(inspect.Signature(plain)) == theirs
