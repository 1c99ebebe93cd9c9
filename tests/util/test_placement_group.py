"""Placement groups have Ray's names and arguments, refuse what cannot be meant, and travel; children are captured."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest

import lattica.util
from lattica.actors import options
from lattica.errors import ConfigError
from lattica.scheduler.given import ANY_BUNDLE, StrategyGiven, decode, encode_within
from lattica.util import placement_group as by_package
from lattica.util.placement_group import PlacementGroup, placement_group
from lattica.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ID, OWNER = b"g" * 16, b"o" * 32
CAPTURING = encode_within(StrategyGiven(group=ID, bundle=1, captures=True, owner=OWNER))


def test_the_package_has_the_functions_and_not_their_module() -> None:
    assert by_package is placement_group and callable(by_package)
    assert set(lattica.util.__all__) <= set(dir(lattica.util))


def test_arguments_are_those_of_ray() -> None:
    names = list(inspect.signature(placement_group).parameters)
    assert names[:5] == ["bundles", "strategy", "name", "lifetime", "_soft_target_node_id"]
    assert inspect.signature(PlacementGroup.wait).parameters["timeout_seconds"].default == 30


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"bundles": []}, "list of 1 to"),
        ({"bundles": {"CPU": 1}}, "list of 1 to"),
        ({"bundles": [{}]}, "asks for nothing"),
        ({"bundles": [{"CPU": 0}]}, "asks for nothing"),
        ({"bundles": [{"CPU": -1}]}, "not an amount"),
        ({"bundles": [{"pg/1/CPU": 1}]}, "are for placement groups"),
        ({"bundles": [{"CPU": 1}], "strategy": "TIGHT"}, "use one of PACK, SPREAD, STRICT_PACK, STRICT_SPREAD"),
        ({"bundles": [{"CPU": 1}], "lifetime": "for ever"}, "None or 'detached'"),
        ({"bundles": [{"CPU": 1}], "_soft_target_node_id": "ab"}, "goes with STRICT_PACK alone"),
        ({"bundles": [{"CPU": 1}], "_soft_target_node_id": "ab", "strategy": "STRICT_PACK"}, "no node"),
        ({"bundles": [{"CPU": 1}], "bundle_label_selector": [{}, {"gpu": "A100"}]}, "list of 1 dicts"),
        ({"bundles": [{"CPU": 1}], "bundle_label_selector": [{"gpu": "in(A100"}]}, "no rule for a label"),
        ({"bundles": [{"CPU": 1}], "topology_strategy": {"rack": "PACK"}}, "cannot be had"),
        ({"bundles": [{"CPU": 1}], "topology_strategy": {}, "strategy": "PACK"}, "cannot be had"),
        ({"bundles": [{"CPU": 1}], "name": 3}, "must be a string"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anybody_is_asked(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        placement_group(**given)


def test_a_group_travels_with_its_owner() -> None:
    group = PlacementGroup(ID, [{"CPU": 1}], OWNER)
    copy = pickle.loads(pickle.dumps(group))
    assert copy == group and hash(copy) == hash(group) and copy._owner == OWNER and copy.bundle_specs == [{"CPU": 1}]
    assert copy.id.binary() == ID and copy.id.hex() == ID.hex() and not copy.id.is_nil()
    assert PlacementGroup.empty().is_empty and PlacementGroup.empty() != group


def test_a_strategy_says_whose_the_group_is() -> None:
    group = PlacementGroup(ID, [{"CPU": 1}, {"CPU": 1}], OWNER)
    assert PlacementGroupSchedulingStrategy(group, 1).to_wire() == StrategyGiven(group=ID, bundle=1, owner=OWNER)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (None, StrategyGiven(group=ID, bundle=ANY_BUNDLE, captures=True, owner=OWNER)),
        ("DEFAULT", None),
        ("SPREAD", StrategyGiven(spread=True)),
        (PlacementGroupSchedulingStrategy(None), StrategyGiven()),
        (
            PlacementGroupSchedulingStrategy(PlacementGroup(b"h" * 16, [{"CPU": 1}], OWNER), 0),
            StrategyGiven(group=b"h" * 16, bundle=0, captures=True, owner=OWNER),
        ),
        (
            PlacementGroupSchedulingStrategy(PlacementGroup(b"h" * 16, [{"CPU": 1}], OWNER), 0, False),
            StrategyGiven(group=b"h" * 16, bundle=0, owner=OWNER),
        ),
    ],
)
def test_children_go_to_a_capturing_group_unless_they_say_where(strategy: Any, expected: StrategyGiven | None) -> None:
    said = options.where({"scheduling_strategy": strategy}, 1, CAPTURING)
    assert (decode(said).strategy if said else None) == expected


def test_a_group_that_does_not_capture_says_nothing_of_children() -> None:
    quiet = encode_within(StrategyGiven(group=ID, bundle=1, owner=OWNER))
    assert options.where({}, 1, quiet) == b"" == options.where({}, 1)
