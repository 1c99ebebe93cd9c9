"""Where tasks and actors shall run, by Ray's names: values of the option `scheduling_strategy`.

    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    fast = NodeLabelSchedulingStrategy({"gpu": In("A100", "H100"), "spot": DoesNotExist()})
    held = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    refs = [f.options(scheduling_strategy=one).remote() for one in ("SPREAD", there, fast, held)]

What cannot be meant is refused when it is made (ConfigError, a ValueError as in Ray). `to_wire` is for nodes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from lattica.errors import ConfigError
from lattica.scheduler import labels
from lattica.scheduler.given import ANY_BUNDLE, StrategyGiven, check_strategy, read_node


class PlacementGroupSchedulingStrategy:
    """In a bundle of a placement group; -1 for whichever has room.

    placement_group_capture_child_tasks: what it calls goes to the group as well.
    """

    def __init__(
        self,
        placement_group: Any,
        placement_group_bundle_index: int = ANY_BUNDLE,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks
        if not isinstance(placement_group_bundle_index, int) or placement_group_bundle_index < ANY_BUNDLE:
            raise ConfigError(
                f"placement_group_bundle_index={placement_group_bundle_index!r:.80} is no bundle",
                do_next="count from 0, or leave it out for whichever bundle has room",
            )
        count = getattr(placement_group, "bundle_count", None)
        if isinstance(count, int) and placement_group_bundle_index >= count:
            raise ConfigError(
                f"placement_group_bundle_index={placement_group_bundle_index}, but the group has {count} bundles",
                do_next=f"choose from 0 to {count - 1}, or -1 for whichever has room",
            )
        if not isinstance(placement_group_capture_child_tasks, bool | None):
            raise ConfigError(
                f"placement_group_capture_child_tasks={placement_group_capture_child_tasks!r:.80} must be True or False"
            )

    def __repr__(self) -> str:
        return f"PlacementGroupSchedulingStrategy({self.placement_group!r}, {self.placement_group_bundle_index})"

    def to_wire(self) -> StrategyGiven:
        """Raises ConfigError if there is no such group."""
        if self.placement_group is None:  # Ray's word for "in none, whatever group the caller is in"
            return StrategyGiven()
        name: Any = getattr(self.placement_group, "id", None)
        name = name.binary() if hasattr(name, "binary") else name
        if not isinstance(name, bytes):
            raise ConfigError(
                f"{self.placement_group!r:.80} is no placement group", do_next="pass what placement_group() returned"
            )
        captures = bool(self.placement_group_capture_child_tasks)
        given = StrategyGiven(
            group=bytes(name),
            bundle=self.placement_group_bundle_index,
            captures=captures,
            owner=getattr(self.placement_group, "_owner", b""),
        )
        check_strategy(given)
        return given


class NodeAffinitySchedulingStrategy:
    """On this node. soft: elsewhere if it is gone or can never run it, instead of failing.

    node_id: "NodeID" of `lattica.nodes()`, in hex; or a peer id, as `lattica peers` shows it.
    """

    def __init__(
        self, node_id: str, soft: bool, _spill_on_unavailable: bool = False, _fail_on_unavailable: bool = False
    ) -> None:
        if isinstance(node_id, bytes):
            node_id = node_id.hex()
        read_node(node_id)
        if _spill_on_unavailable or _fail_on_unavailable:
            raise ConfigError(
                "_spill_on_unavailable and _fail_on_unavailable are private to Ray, and not known here",
                do_next="leave them out: a task waits for its node, with soft=True only while it can run there",
            )
        self.node_id = node_id
        self.soft = soft

    def __repr__(self) -> str:
        return f"NodeAffinitySchedulingStrategy({self.node_id!r}, soft={self.soft!r})"

    def to_wire(self) -> StrategyGiven:
        return StrategyGiven(node=read_node(self.node_id), soft=bool(self.soft))


class _Operator(ABC):
    """On the value of one label."""

    @abstractmethod
    def rule(self, key: str) -> str:
        """As `labels` reads it."""


class _OfValues(_Operator):
    def __init__(self, *values: str) -> None:
        name = type(self).__name__
        if not values:
            raise ConfigError(f"{name}() names no value", do_next=f'say it like {name}("a", "b")')
        for value in values:
            if not isinstance(value, str):
                raise ConfigError(f"{name}({value!r:.80}): labels are strings", do_next=f'say it like {name}("a", "b")')
        self.values = list(values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.values))})"

    def rule(self, key: str) -> str:
        for value in self.values:
            if not value or value != value.strip() or not set("(),").isdisjoint(value):
                raise ConfigError(
                    f"{key}: no node has {value!r:.80}", do_next="labels are not empty and have no commas or brackets"
                )
        return f"in({','.join(self.values)})"


class In(_OfValues):
    """The label is one of these."""


class NotIn(_OfValues):
    """It is none of these, or the node does not have it."""

    def rule(self, key: str) -> str:
        return "!" + super().rule(key)


class Exists(_Operator):
    """The node has the label."""

    def __repr__(self) -> str:
        return "Exists()"

    def rule(self, key: str) -> str:
        return labels.EXISTS


class DoesNotExist(_Operator):
    """The node does not have it."""

    def __repr__(self) -> str:
        return "DoesNotExist()"

    def rule(self, key: str) -> str:
        return labels.MISSING


LabelMatchExpressionsT = dict[str, In | NotIn | Exists | DoesNotExist]


class NodeLabelSchedulingStrategy:
    """On nodes whose labels meet all of `hard`; rather on those that also meet all of `soft`."""

    def __init__(self, hard: LabelMatchExpressionsT | None, *, soft: LabelMatchExpressionsT | None = None) -> None:
        if not hard and not soft:
            raise ConfigError(
                "hard and soft of NodeLabelSchedulingStrategy are both empty", do_next='say it like {"gpu": In("A100")}'
            )
        self.hard, self.soft = dict(_checked(hard, "hard")), dict(_checked(soft, "soft"))
        self.to_wire()

    def __repr__(self) -> str:
        return f"NodeLabelSchedulingStrategy({self.hard!r}, soft={self.soft!r})"

    def to_wire(self) -> StrategyGiven:
        given = StrategyGiven(labels=_rules(self.hard), soft_labels=_rules(self.soft))
        check_strategy(given)
        return given


def _checked(expressions: Any, name: str) -> LabelMatchExpressionsT:
    if expressions is None:
        return {}
    if not isinstance(expressions, Mapping):
        raise ConfigError(f"{name}={expressions!r:.80} must be a dict", do_next='say it like {"gpu": In("A100")}')
    for key, operator in expressions.items():
        if not isinstance(key, str) or not isinstance(operator, _Operator):
            raise ConfigError(
                f"{name}: {{{key!r:.80}: {operator!r:.80}}} says nothing of a label",
                do_next='use In, NotIn, Exists or DoesNotExist, like {"gpu": In("A100")}',
            )
    return dict(expressions)


def _rules(expressions: LabelMatchExpressionsT) -> dict[str, str]:
    return {key: operator.rule(key) for key, operator in expressions.items()}


SchedulingStrategyT = (
    str | PlacementGroupSchedulingStrategy | NodeAffinitySchedulingStrategy | NodeLabelSchedulingStrategy | None
)
