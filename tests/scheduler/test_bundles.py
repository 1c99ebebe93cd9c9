"""Patterns of placement groups, planned from what nodes say is free."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.identity import PeerId, short_peer
from lattica.scheduler.bundles import Pattern, Plan, Wishes, plan
from lattica.scheduler.demand import Demand, NodeView
from lattica.scheduler.load import Load
from lattica.scheduler.placement import Infeasible, Waiting
from lattica.scheduler.resources import UNITS, ResourceSet

PACK, SPREAD, STRICT_PACK, STRICT_SPREAD = (
    Pattern.PACK, Pattern.SPREAD, Pattern.STRICT_PACK, Pattern.STRICT_SPREAD,
)  # fmt: skip


def peer(n: int) -> PeerId:
    return PeerId(bytes([n]) * 32)


def node(n: int, taken: float = 0, draining: bool = False, **totals: float) -> NodeView:
    return NodeView(peer(n), ResourceSet.of(totals), load=Load({"CPU": int(taken * UNITS)}, draining=draining))


def planned(
    bundles: list[dict[str, float]], pattern: Pattern, *nodes: NodeView, kept: dict[int, PeerId] | None = None
) -> Plan | Waiting | Infeasible:
    sets = [ResourceSet.of(bundle) for bundle in bundles]
    return plan(sets, pattern, {node.peer: node for node in nodes}, 0.0, kept)


def counts(answer: object) -> list[int]:
    assert isinstance(answer, dict), answer
    return sorted(Counter(answer.values()).values())


ONE = {"CPU": 1.0}


def test_pack_takes_as_few_nodes_as_hold_them() -> None:
    assert counts(planned([ONE] * 6, PACK, *(node(n, CPU=4) for n in range(5)))) == [2, 4]


def test_spread_takes_as_many_as_there_are_and_goes_round_again() -> None:
    assert counts(planned([ONE] * 7, SPREAD, *(node(n, CPU=4) for n in range(5)))) == [1, 1, 1, 2, 2]


def test_strict_pack_takes_the_node_with_least_left() -> None:
    answer = planned([ONE] * 3, STRICT_PACK, node(1, CPU=2), node(2, CPU=16), node(3, CPU=4))
    assert answer == dict.fromkeys(range(3), peer(3))


def test_strict_spread_finds_the_one_way_that_taking_what_fits_first_would_miss() -> None:
    """The first bundle fits on both nodes, the second one on one of them only."""
    for order in (1, -1):
        bundles = [{"CPU": 2.0, "a": 1.0}, {"CPU": 1.0, "b": 1.0}][::order]
        both, only_a = node(1, CPU=2, a=1, b=1), node(2, CPU=2, a=1)
        answer = planned(bundles, STRICT_SPREAD, both, only_a)
        assert isinstance(answer, dict) and sorted(answer.values()) == [peer(1), peer(2)]


def test_a_group_that_busy_nodes_could_hold_waits_and_one_that_none_could_says_why() -> None:
    assert isinstance(planned([ONE] * 2, STRICT_SPREAD, node(1, CPU=1), node(2, taken=1, CPU=1)), Waiting)
    assert planned([ONE] * 3, STRICT_SPREAD, node(1, CPU=9), node(2, CPU=9)) == Infeasible(
        "STRICT_SPREAD needs a node for each of 3 bundles; 2 living nodes could be used"
    )
    assert planned([ONE] * 3, STRICT_PACK, node(1, CPU=2), node(2, CPU=2)) == Infeasible(
        f"STRICT_PACK needs CPU 3; the most that a living node has is 2 (peer {short_peer(peer(1))})"
    )
    assert planned([ONE, {"GPU": 1}], PACK, node(1, CPU=2)) == Infeasible(
        "bundle 1 needs GPU 1; the most that a living node has is 0"
    )
    assert planned([ONE] * 5, SPREAD, node(1, CPU=2), node(2, CPU=2)) == Infeasible(
        "5 bundles need more than 2 living nodes have together"
    )
    assert planned([ONE], PACK, node(1, draining=True, CPU=2)) == Infeasible("every node that could run it is going")


def test_lost_bundles_go_beside_those_that_were_kept_as_their_pattern_wants() -> None:
    nodes = [node(n, taken=n == 1, CPU=4) for n in range(1, 4)]
    kept = {0: peer(1)}
    packed, spread = planned([ONE] * 2, PACK, *nodes, kept=kept), planned([ONE] * 2, STRICT_SPREAD, *nodes, kept=kept)
    assert packed == {1: peer(1)}
    assert isinstance(spread, dict) and spread.keys() == {1} and spread[1] != peer(1)


def test_labels_of_the_group_are_hard() -> None:
    there = NodeView(peer(9), ResourceSet.of({"CPU": 1}), labels={"zone": "a"})
    nodes = {peer(1): node(1, CPU=8), peer(9): there}
    wanted = Demand(ResourceSet({}), labels={"zone": "a"})
    assert plan([ResourceSet.of(ONE)], PACK, nodes, 0.0, demand=wanted) == {0: peer(9)}


@pytest.mark.parametrize("pattern", Pattern)
@given(
    bundles=st.lists(
        st.fixed_dictionaries({"CPU": st.integers(1, 4), "GPU": st.integers(0, 1)}), min_size=1, max_size=8
    ),
    nodes=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 2), st.integers(0, 8)), max_size=8),
)
def test_no_plan_gives_more_than_is_free_or_breaks_its_pattern(
    pattern: Pattern, bundles: list[dict[str, float]], nodes: list[tuple[int, int, int]]
) -> None:
    views = [node(n, min(taken, c), CPU=c, GPU=g) for n, (c, g, taken) in enumerate(nodes)]
    answer = planned(bundles, pattern, *views)
    if not isinstance(answer, dict):
        assert answer.reason
        return
    assert answer.keys() == set(range(len(bundles)))
    for n, (cpus, gpus, taken) in enumerate(nodes):
        here = [bundles[number] for number, at in answer.items() if at == peer(n)]
        assert sum(b["CPU"] for b in here) <= cpus - min(taken, cpus) and sum(b["GPU"] for b in here) <= gpus
    assert pattern is not STRICT_PACK or len(set(answer.values())) == 1
    assert pattern is not STRICT_SPREAD or len(set(answer.values())) == len(bundles)


def labelled(n: int, cpus: float, **labels: str) -> NodeView:
    return NodeView(peer(n), ResourceSet.of({"CPU": cpus}), labels)


def wished(bundles: int, pattern: Pattern, wishes: Wishes, *nodes: NodeView) -> Plan | Waiting | Infeasible:
    view = {node.peer: node for node in nodes}
    return plan([ResourceSet.of(ONE)] * bundles, pattern, view, 0.0, wishes=wishes)


@pytest.mark.parametrize("pattern", Pattern)
def test_a_bundle_is_only_where_the_labels_are_that_it_asks_for(pattern: Pattern) -> None:
    nodes = [labelled(1, 8), labelled(2, 2, gpu="A100", zone="b"), labelled(3, 2, gpu="A100", zone="a")]
    strict = pattern is Pattern.STRICT_PACK
    wishes = Wishes({0: {"gpu": "A100"}, 1: {"gpu": "A100", "zone": "a"} if not strict else {"zone": "b"}})
    answer = wished(2, pattern, wishes, *nodes)
    assert isinstance(answer, dict), answer
    assert answer == dict.fromkeys(range(2), peer(2)) if strict else answer[1] == peer(3)
    assert answer[0] in (peer(2), peer(3))


def test_bundles_whose_labels_no_node_has_are_named_in_the_reason() -> None:
    nodes = [labelled(1, 8, zone="a"), labelled(2, 8, zone="b")]
    answer = wished(2, PACK, Wishes({1: {"zone": "c"}}), *nodes)
    assert isinstance(answer, Infeasible) and answer.reason.startswith("bundle 1 needs label zone=c")
    answer = wished(2, STRICT_PACK, Wishes({0: {"zone": "a"}, 1: {"zone": "b"}}), *nodes)
    assert isinstance(answer, Infeasible) and "labels of every bundle" in answer.reason
    answer = wished(2, STRICT_SPREAD, Wishes({0: {"zone": "a"}, 1: {"zone": "a"}}), *nodes)
    assert isinstance(answer, Infeasible) and "1 living nodes" in answer.reason


def test_bundles_on_one_node_are_rather_on_the_target_while_it_has_room() -> None:
    nodes = [labelled(1, 2), labelled(2, 8)]
    assert wished(2, STRICT_PACK, Wishes(target=peer(2)), *nodes) == dict.fromkeys(range(2), peer(2))
    assert wished(2, STRICT_PACK, Wishes(target=peer(9)), *nodes) == dict.fromkeys(range(2), peer(1))
    assert wished(4, STRICT_PACK, Wishes(target=peer(1)), *nodes) == dict.fromkeys(range(4), peer(2))
