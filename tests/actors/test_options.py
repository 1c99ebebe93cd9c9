"""Options are Ray's, and a wrong one is refused where it is written, with the next step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.actors import options
from lattica.actors.options import ACTOR, LATER, METHOD, TASK, check, check_more
from lattica.actors.refs import RETURNS_MAX
from lattica.errors import ConfigError
from lattica.scheduler.given import DemandGiven, StrategyGiven
from lattica.util.placement_group import PlacementGroup
from lattica.util.scheduling_strategies import In, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy

PEER = "a" * 52  # as `lattica peers` shows one
SENSIBLE: list[dict[str, Any]] = [
    {},
    {"num_cpus": 0.5, "num_gpus": 1, "memory": 1 << 30, "resources": {"TPU": 2}},
    {"num_cpus": 0},
    {"num_returns": 0},
    {"num_returns": RETURNS_MAX - 1},
    {"num_returns": None},
    {"max_retries": -1, "retry_exceptions": [ValueError, OSError]},
    {"max_retries": 0, "retry_exceptions": True},
    {"retry_exceptions": ()},
    {"retry_exceptions": None},
    {"name": "step"},
    {"scheduling_strategy": "DEFAULT", "runtime_env": None},
    {"fallback_strategy": None, "_num_objects_per_yield": 1},
    {"runtime_env": {}, "max_calls": 0, "label_selector": {}},
    {"scheduling_strategy": "SPREAD", "label_selector": {"gpu": "in(A100, H100)", "market": "!spot"}},
    {"scheduling_strategy": NodeAffinitySchedulingStrategy("ab" * 32, soft=True)},
    {"trust": PEER, "results": "data", "site": "home"},
    {"trust": [PEER, "ab" * 32], "results": "any"},
    {"trust": None, "results": None, "site": None, "label_selector": None},
]

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"num_cpu": 1}, "no option 'num_cpu'"),
    ({"num_cpus": -1}, "num_cpus=-1"),
    ({"num_gpus": "one"}, "num_gpus='one'"),
    ({"memory": -5}, "memory"),
    ({"memory": "1G"}, "number of bytes"),
    ({"memory": float("inf")}, "number of bytes"),
    ({"resources": 3}, "dict"),
    ({"resources": {"": 1}}, "no name of a resource"),
    ({"num_returns": -1}, "num_returns=-1"),
    ({"num_returns": RETURNS_MAX}, "below 65536"),
    ({"num_returns": 1.5}, "whole number"),
    ({"num_returns": "two"}, "whole number"),
    ({"num_returns": True}, "whole number"),
    ({"_generator_backpressure_num_objects": 0}, "whole number above 0"),
    ({"_generator_backpressure_num_objects": 2.5}, "whole number above 0"),
    ({"max_retries": -2}, "at least -1"),
    ({"_num_objects_per_yield": 2}, "must be 1"),
    ({"fallback_strategy": [{"label_selector": {"a": "b"}}]}, "fallback_strategy is not supported"),
    ({"placement_group_bundle_index": 0}, "needs a placement_group"),
    ({"placement_group": PlacementGroup(b"g" * 16, [{"CPU": 1}]), "placement_group_bundle_index": 1}, "has 1 bundles"),
    ({"placement_group": None, "scheduling_strategy": "SPREAD"}, "two words for the same"),
    ({"max_retries": 1.0}, "whole number"),
    ({"max_retries": 1 << 63}, "whole number"),
    ({"num_cpus": 1.7e304}, "more than any machine has"),
    ({"num_cpu": 1}, "(?s)no option 'num_cpu'.*say num_cpus; it takes"),
    ({"num_gpus": 10**400}, "is no number"),
    ({"memory": 10**400}, "is no number"),
    ({"retry_exceptions": ValueError}, "list of exception classes"),
    ({"retry_exceptions": [ValueError()]}, "list of exception classes"),
    ({"retry_exceptions": ["ValueError"]}, "list of exception classes"),
    ({"name": ""}, "not empty"),
    ({"name": 5}, "string"),
    ({"runtime_env": {"conda": "x"}}, "'conda', which lattica does not have"),
    ({"scheduling_strategy": "SPRED"}, r"(?s)scheduling_strategy='SPRED' is none.*\"SPREAD\".*scheduling_strategies"),
    ({"scheduling_strategy": 3}, "is none"),
    ({"label_selector": ["gpu"]}, "(?s)must be a dict of labels.*say it like"),
    ({"label_selector": {"gpu": "in("}}, "(?s)no rule for a label.*say"),
    (
        {"label_selector": {"gpu": "a"}, "scheduling_strategy": NodeLabelSchedulingStrategy({"gpu": In("b")})},
        "different",
    ),
    ({"trust": []}, "(?s)one to 256 ids.*leave it out"),
    ({"trust": "attic"}, "(?s)'attic' is no id of a peer or an issuer.*lattica peers"),
    ({"trust": 5}, "one to 256 ids"),
    ({"results": "safe"}, "results='safe' must be 'any' or 'data'"),
    ({"site": ""}, "(?s)site='' must be a string.*lattica peers"),
    ({"site": 7}, "site=7 must be a string"),
]

WRONG_FOR_ACTORS: list[tuple[dict[str, Any], str]] = [
    ({"max_retries": 1}, "an actor has no option"),
    ({"max_concurrency": 0}, "at least 1"),
    ({"max_concurrency": 2.5}, "whole number"),
    ({"max_restarts": -2}, "at least -1"),
    ({"max_pending_calls": -3}, "at least -1"),
    ({"lifetime": "forever"}, "detached"),
    ({"partition": "both"}, "'consistent' or 'available'"),
    ({"checkpoint_every": -1}, "a number of seconds"),
    ({"namespace": 3}, "string"),
]


@pytest.mark.parametrize("given", SENSIBLE, ids=str)
def test_sensible_options_of_a_task_are_kept_as_they_are(given: dict[str, Any]) -> None:
    assert check(given, TASK, "a task") == given


@pytest.mark.parametrize(("given", "words"), WRONG, ids=str)
def test_a_wrong_option_of_a_task_is_refused_and_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        check(given, TASK, "a task")
    assert isinstance(caught.value, ValueError), "as in Ray"


@pytest.mark.parametrize(("given", "words"), WRONG_FOR_ACTORS, ids=str)
def test_a_wrong_option_of_an_actor_is_refused_and_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(given, ACTOR, "an actor")


def test_an_unknown_option_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"num_returns") as caught:
        check({"returns": 2}, METHOD, "a method")
    assert "_metadata" not in str(caught.value)


def test_options_of_actors_of_a_restartable_named_kind_pass() -> None:
    given = {"name": "c", "namespace": "n", "lifetime": "detached", "get_if_exists": True, "max_restarts": -1,
             "max_task_retries": 3, "max_concurrency": 8, "max_pending_calls": 100}  # fmt: skip
    assert check(given, ACTOR, "an actor") == given


ENORMOUS = st.sampled_from([1.7e304, -1.7e304, 5e-324, 1 << 63, -1 << 64, 10**400, -(10**400)])


@given(
    st.sampled_from(sorted(TASK | ACTOR | METHOD)),
    st.none() | st.integers() | st.text() | st.floats() | st.lists(st.none()) | ENORMOUS,
)
def test_any_value_of_any_option_passes_or_is_a_config_error(name: str, value: Any) -> None:
    for allowed, what in ((TASK, "a task"), (ACTOR, "an actor"), (METHOD, "a method")):
        try:
            checked = check({name: value}, allowed, what)
        except ConfigError:
            continue
        assert name in allowed
        assert set(checked) == {name} or (name in options.GROUP and set(checked) <= {"scheduling_strategy"})


@pytest.mark.parametrize("given", [["io"], {"io": 0}, {"io": "2"}, {"": 1}, {1: 2}, {"io": True}, 3])
def test_concurrency_groups_are_names_and_counts(given: Any) -> None:
    with pytest.raises(ConfigError, match="must be a dict of names"):
        check({"concurrency_groups": given}, ACTOR, "an actor")


def test_what_is_of_a_class_s_nature_is_said_where_it_is_made_remote() -> None:
    with pytest.raises(ConfigError, match=r"say @lattica\.remote\(concurrency_groups=…\)"):
        check_more({"concurrency_groups": {"io": 2}}, ACTOR, "an actor")
    assert check_more({"concurrency_groups": None, "num_cpus": 2}, ACTOR, "an actor")["num_cpus"] == 2


@pytest.mark.parametrize("given", [-1, 1.5, "1", True])
def test_max_calls_is_a_count(given: Any) -> None:
    with pytest.raises(ConfigError, match="whole number"):
        check({"max_calls": given}, TASK, "a task")


def test_what_is_to_come_later_may_be_given_its_default() -> None:
    assert all(check({name: None}, TASK | ACTOR | METHOD, "it") == {name: None} for name in LATER)


# -- what they mean


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"CPU": 1}),
        ({"num_cpus": None}, {"CPU": 1}),
        ({"num_cpus": 0}, {}),
        ({"num_cpus": 0.5, "num_gpus": 2}, {"CPU": 0.5, "GPU": 2}),
        ({"memory": 1024, "resources": {"TPU": 1}}, {"CPU": 1, "memory": 1024, "TPU": 1}),
    ],
)
def test_resources_are_what_was_asked_and_a_cpu_by_default(given: dict[str, Any], expected: dict[str, float]) -> None:
    assert options.resources(given, 1) == expected


def test_an_actor_takes_no_cpu_by_default() -> None:
    assert options.resources({}, 0) == {}


def test_what_a_node_is_asked_for_stands_in_the_options() -> None:
    strategy = NodeLabelSchedulingStrategy({"gpu": In("A100")})
    given = {"num_gpus": 1, "scheduling_strategy": strategy, "label_selector": {"market": "!spot"}, "site": "home"}
    assert options.demand(given, 1, "3.11") == DemandGiven(
        {"CPU": 1, "GPU": 1}, StrategyGiven(labels={"gpu": "in(A100)"}), {"market": "!spot"}, "home", python="3.11"
    )
    assert options.demand({"trust": [PEER, PEER]}, 0) == DemandGiven({}, trust=(bytes(32),))
    assert options.demand({}, 0) == options.demand({"scheduling_strategy": "DEFAULT"}, 0) == DemandGiven({})


def test_the_number_of_results_is_one_unless_said_otherwise() -> None:
    assert [options.num_returns(given) for given in ({}, {"num_returns": None}, {"num_returns": 3})] == [1, 1, 3]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (True, True),
        (False, False),
        (None, ()),
        ([ValueError], (ValueError,)),
        ((KeyError, OSError), (KeyError, OSError)),
    ],
)
def test_exceptions_to_retry_are_kept_as_isinstance_takes_them(given: Any, kept: Any) -> None:
    assert options.retry_exceptions(given) == kept


def test_a_placement_group_as_an_option_is_a_strategy_by_another_name() -> None:
    group = PlacementGroup(b"g" * 16, [{"CPU": 1}], b"o" * 32)
    made = check({"placement_group": group, "placement_group_capture_child_tasks": True, "num_cpus": 1}, TASK, "a task")
    strategy = StrategyGiven(group=b"g" * 16, captures=True, owner=b"o" * 32)
    assert made == {"num_cpus": 1, "scheduling_strategy": strategy}
    default = {"placement_group": "default", "placement_group_bundle_index": -1}
    assert check(default | {"placement_group_capture_child_tasks": None}, ACTOR, "an actor") == {}
    assert check({"placement_group": None}, ACTOR, "an actor") == {"scheduling_strategy": StrategyGiven()}
