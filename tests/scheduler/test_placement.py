"""Which node a submitter asks, what it learns from the answer, and what it says when no node will do."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import ConfigError
from lattica.mesh.identity import PeerId, short_peer
from lattica.scheduler import labels
from lattica.scheduler.demand import Affinity, Demand, NodeView, Spread
from lattica.scheduler.load import Load
from lattica.scheduler.placement import (
    AGAIN_S,
    HOPS_MAX,
    LEEWAY_S,
    QUEUE_MAX,
    Choice,
    Infeasible,
    Placement,
    Waiting,
)
from lattica.scheduler.resources import UNITS, ResourceSet

GIGABYTE = 10**9


def peer(n: int) -> PeerId:
    return PeerId(bytes([n]) * 32)


ME = peer(0)
ONES, TWOS, NINES = short_peer(peer(1)), short_peer(peer(2)), short_peer(peer(9))
ONE = ResourceSet.of({"CPU": 1})


def node(n: int, cpus: float = 4, **how: object) -> NodeView:
    return NodeView(peer(n), ResourceSet.of({"CPU": cpus}), **{"rtt_s": 0.01, "pythons": ("3.11",), **how})  # type: ignore[arg-type]


def busy(cpus: float = 4, queued: int = 0, task_s: float = 1.0, **how: object) -> Load:
    return Load({"CPU": int(cpus * UNITS)}, queued, task_s, **how)  # type: ignore[arg-type]


class Submitter:
    def __init__(self, *nodes: NodeView, seed: int = 1) -> None:
        self.view = {node.peer: node for node in nodes}
        self.placement, self.rng, self.now = Placement(ME), Random(seed), 0.0

    def place(self, demand: Demand | None = None, tried: tuple[PeerId, ...] = ()) -> Choice | Waiting | Infeasible:
        return self.placement.place(demand or Demand(ONE), self.view, self.rng, self.now, tried)

    def chosen(self, demand: Demand | None = None, tried: tuple[PeerId, ...] = ()) -> PeerId:
        choice = self.place(demand, tried)
        self.placement.validate()
        assert isinstance(choice, Choice), choice
        return choice.peer

    def refusal(self, demand: Demand) -> Infeasible:
        answer = self.place(demand)
        assert isinstance(answer, Infeasible), answer
        return answer


def by(wanted: dict[str, float], **how: object) -> Demand:
    return Demand(ResourceSet.of(wanted), **how)  # type: ignore[arg-type]


# ---- local first --------------------------------------------------------------------------------------------------


def test_a_task_that_fits_here_stays_though_a_hundred_others_are_idle() -> None:
    mesh = Submitter(*(node(n) for n in range(100)))
    assert [mesh.chosen() for _ in range(4)] == [ME] * 4  # the fifth would wait
    assert mesh.chosen() != ME


def test_a_task_leaves_only_when_the_queue_is_longer_than_the_trip() -> None:
    near, far = node(1, rtt_s=0.01), node(1, rtt_s=0.5)
    here = node(0, load=busy(task_s=1.0))  # a CPU is free in a quarter of a second
    assert Submitter(here, near).chosen() == peer(1)
    assert Submitter(here, far).chosen() == ME


def test_a_task_leaves_a_slow_machine_if_it_is_known_to_be_long_and_not_if_it_is_short() -> None:
    slow, fast = node(0, load=Load(pace=2.0)), node(1, load=Load(pace=0.5))
    assert Submitter(slow, fast).chosen(Demand(ONE, work_s=1.0)) == peer(1)
    assert Submitter(slow, fast).chosen(Demand(ONE, work_s=0.001)) == ME
    assert Submitter(slow, fast).chosen(Demand(ONE)) == ME  # nothing is known of it


def test_a_task_goes_where_its_input_lies_until_the_wait_there_is_longer_than_moving_it() -> None:
    """1 GB at 1 Gbit/s: eight seconds."""
    demand = Demand(ONE, inputs={peer(7): GIGABYTE}, input_bytes=GIGABYTE)
    others = [node(n) for n in range(50) if n != 7]
    assert Submitter(*others, node(7, load=busy(queued=20))).chosen(demand) == peer(7)
    assert Submitter(*others, node(7, load=busy(queued=40))).chosen(demand) == ME


def test_of_two_inputs_the_larger_one_draws_the_task() -> None:
    demand = Demand(ONE, inputs={peer(1): GIGABYTE, peer(2): 2 * GIGABYTE}, input_bytes=3 * GIGABYTE)
    assert Submitter(*(node(n) for n in range(30))).chosen(demand) == peer(2)


# ---- what is old ----------------------------------------------------------------------------------------------------


def test_a_burst_goes_to_all_nodes_though_none_of_them_has_spoken_since() -> None:
    mesh = Submitter(node(0, 0), *(node(n) for n in range(1, 26)))
    chosen = Counter(mesh.chosen() for _ in range(100))
    assert len(chosen) == 25 and max(chosen.values()) <= 8, chosen


def test_what_was_sent_counts_until_the_node_speaks_again() -> None:
    mesh = Submitter(node(0, 0), node(1), node(2, load=busy(task_s=1.0)))
    for _ in range(4):
        assert mesh.chosen() == peer(1)
    mesh.now = 1.0
    mesh.view[peer(1)] = replace(mesh.view[peer(1)], load=Load(), said_at=0.9)  # they ended meanwhile
    assert [mesh.chosen() for _ in range(4)] == [peer(1)] * 4


def test_a_refusal_corrects_the_view_at_once_and_an_older_word_does_not_undo_it() -> None:
    mesh = Submitter(node(0, 0), node(1, said_at=1.0), node(2, load=busy(queued=1), said_at=1.0))
    mesh.now = 1.5
    assert mesh.chosen() == peer(1)
    mesh.placement.told(peer(1), busy(queued=9), 1.6, since=1.5)
    mesh.now = 1.6
    assert mesh.chosen() == peer(2)
    mesh.view[peer(1)] = replace(mesh.view[peer(1)], said_at=1.55)  # said before, heard after
    assert mesh.chosen() == peer(2)


def test_what_was_sent_after_the_answered_request_is_not_forgotten_with_it() -> None:
    mesh = Submitter(node(0, 0), node(1, 2), node(2, 2, load=busy(2, task_s=0.1)))
    assert mesh.chosen() == peer(1)
    mesh.now = 0.01
    assert mesh.chosen() == peer(1)
    mesh.placement.told(peer(1), busy(1), 0.02, since=0.0)  # answers the first, and counts it
    mesh.now = 0.02
    assert mesh.chosen() == peer(2)


def test_a_lease_that_is_returned_makes_room_before_the_node_says_so() -> None:
    mesh = Submitter(node(0, 0), node(1, 1), node(2, 1, load=busy(1, queued=3)))
    mesh.placement.told(peer(1), busy(1, queued=1, task_s=9.0), 0.0, since=0.0)
    assert mesh.chosen() == peer(2)
    mesh.placement.ended(peer(1), ONE)
    mesh.placement.ended(peer(1), ONE)
    assert mesh.chosen() == peer(1)


def test_a_node_is_asked_to_queue_only_for_as_long_as_the_second_best_is_no_better() -> None:
    """Best: starts in 0.25 s. Second best: in 0.75 s. A node that would let it wait for 0.8 s shall refuse."""
    mesh = Submitter(node(0, 0), node(1, load=busy()), node(2, load=busy(queued=2)))
    choice = mesh.place()
    assert isinstance(choice, Choice) and choice.peer == peer(1)
    assert choice.limit_s == pytest.approx(0.75 + LEEWAY_S)


# ---- spill-back -----------------------------------------------------------------------------------------------------


def test_who_refused_is_not_asked_again_and_after_the_last_hop_the_task_queues_anyhow() -> None:
    mesh = Submitter(*(node(n, load=busy(queued=2)) for n in range(50)))
    tried: tuple[PeerId, ...] = ()
    for hop in range(HOPS_MAX + 1):
        choice = mesh.place(tried=tried)
        assert isinstance(choice, Choice) and choice.peer not in tried
        assert (choice.limit_s == math.inf) == (hop == HOPS_MAX)
        tried += (choice.peer,)


def test_when_all_have_refused_the_best_of_them_queues_it() -> None:
    mesh = Submitter(node(0, load=busy(queued=9)), node(1, load=busy(queued=2)))
    assert mesh.place(tried=(peer(0), peer(1))) == Choice(peer(1), math.inf)


def test_a_demand_waits_while_all_that_fit_are_full_or_go_and_the_words_say_who() -> None:
    full = replace(busy(), queued=QUEUE_MAX)
    mesh = Submitter(node(0, 0), node(1, load=full, said_at=0.0), node(2, load=Load(draining=True)))
    assert mesh.place() == Waiting(
        f"every node that could run it is full: {ONES} has 1024 waiting, {TWOS} drains", mesh.now + AGAIN_S
    )
    mesh.now = AGAIN_S  # old by now: worth a question
    assert mesh.chosen() == peer(1)


# ---- strategies -----------------------------------------------------------------------------------------------------


def test_what_waits_behind_another_leaves_for_a_node_that_became_idle_and_for_no_other() -> None:
    """Those before it may be actors: their turn never ends."""
    full, far = node(1, load=busy(), said_at=1.0), node(3, load=busy(3), said_at=1.0, labels={"gpu": "yes"})
    nodes = [node(0, load=busy(), said_at=1.0), full, node(2, load=busy(queued=1), said_at=1.0), far]
    placement = Placement(ME)
    assert placement.idle_for(Demand(ONE), nodes, peer(1), 1.0, now=2.0) == Choice(peer(3), 0.0)
    assert placement.idle_for(Demand(ONE), nodes, peer(1), 1.0, now=2.0) is None, "its one free CPU was given away"
    for other in (by({"CPU": 2}), Demand(ONE, strategy=Affinity(peer(1))), Demand(ONE, labels={"gpu": "no"})):
        assert Placement(ME).idle_for(other, nodes, peer(1), 1.0, now=2.0) is None
    heavy = Demand(ONE, inputs={peer(1): GIGABYTE}, input_bytes=GIGABYTE)
    trip_s = GIGABYTE / far.bytes_per_s + far.rtt_s
    assert Placement(ME).idle_for(heavy, nodes, peer(1), trip_s - 0.1, now=9.0) is None
    assert Placement(ME).idle_for(heavy, nodes, peer(1), trip_s + 0.1, now=9.0) == Choice(peer(3), 0.0)


def test_what_was_given_up_before_its_answer_does_not_count() -> None:
    """A driver asks for three workers, and the first one does it all. The other two nodes are as idle as before, and
    have no reason to say so."""
    mesh = Submitter(node(1, 1, load=Load(), said_at=0.0), node(2, 1, load=Load(), said_at=0.0))
    mesh.now = 1.0
    for _ in range(2):
        mesh.chosen(Demand(ONE, strategy=Spread()))
    assert mesh.placement.idle_for(Demand(ONE), mesh.view.values(), peer(1), 1.0, now=1.5) is None
    mesh.placement.dropped(peer(2), asked_at=1.001)
    mesh.placement.dropped(peer(2), asked_at=1.001)  # once is enough
    mesh.placement.validate()
    assert mesh.placement.idle_for(Demand(ONE), mesh.view.values(), peer(1), 1.0, now=1.5) == Choice(peer(2), 0.0)


def test_spread_is_even_to_one_task() -> None:
    mesh = Submitter(*(node(n) for n in range(7)))
    counts = Counter(mesh.chosen(Demand(ONE, strategy=Spread())) for _ in range(70))
    assert set(counts.values()) == {10} and len(counts) == 7


def test_a_node_that_comes_later_gets_its_turn_and_not_all_that_the_others_had() -> None:
    mesh = Submitter(*(node(n) for n in range(3)))
    for _ in range(30):
        mesh.chosen(Demand(ONE, strategy=Spread()))
    mesh.view[peer(3)] = node(3)
    assert Counter(mesh.chosen(Demand(ONE, strategy=Spread())) for _ in range(40)) == {peer(n): 10 for n in range(4)}


def test_hard_affinity_waits_at_its_node_and_fails_when_that_is_dead() -> None:
    wanted = Demand(ONE, strategy=Affinity(peer(1)))
    assert Submitter(node(0), node(1, load=busy(queued=50))).place(wanted) == Choice(peer(1), math.inf)
    dead = Submitter(node(0), node(1, living=False)).refusal(wanted)
    assert dead == Infeasible(f"needs node {ONES}, which is dead", final=True)
    assert Submitter(node(0)).refusal(wanted) == Infeasible(f"needs node {ONES}, which is no member", final=True)


def test_hard_affinity_to_a_node_that_is_too_small_says_what_it_lacks() -> None:
    answer = Submitter(node(0), node(1)).refusal(by({"CPU": 5}, strategy=Affinity(peer(1))))
    assert answer.reason == f"needs node {ONES}: needs CPU 5; the most that a living node has is 4 (peer {ONES})"


@pytest.mark.parametrize("gone", [{"living": False}, {"load": Load(draining=True)}, {"executes": False}])
def test_soft_affinity_goes_elsewhere_when_its_node_is_gone_or_going(gone: dict[str, object]) -> None:
    wanted = Demand(ONE, strategy=Affinity(peer(1), soft=True))
    assert Submitter(node(0), node(1)).chosen(wanted) == peer(1)
    assert Submitter(node(0), node(1, **gone)).chosen(wanted) == ME


# ---- who may run it, and why nobody may -----------------------------------------------------------------------------


def test_labels_site_python_and_trust_are_hard() -> None:
    there = node(5, labels={"gpu": "H100", "site": "lab"}, pythons=("3.12",), issuers=(peer(99),))
    mesh = Submitter(*(node(n) for n in range(5)), there)
    for demand in (
        Demand(ONE, labels={"gpu": "in(A100, H100)"}),
        Demand(ONE, site="lab"),
        Demand(ONE, python="3.12"),
        Demand(ONE, trust=frozenset({peer(99)})),
        Demand(ONE, trust=frozenset({peer(5)})),
    ):
        assert mesh.chosen(demand) == peer(5), demand


def test_one_node_that_fits_is_found_among_a_thousand_that_do_not() -> None:
    mesh = Submitter(*(NodeView(PeerId(n.to_bytes(32, "big")), ONE) for n in range(1000)), node(255, 8))
    assert mesh.chosen(by({"CPU": 8})) == peer(255)


@pytest.mark.parametrize(
    "demand, words",
    [
        (by({"GPU": 2}), f"needs GPU 2; the most that a living node has is 1 (peer {TWOS})"),
        (by({"tpu": 1}), "needs tpu 1; the most that a living node has is 0"),
        (by({"CPU": 8, "GPU": 1}), "needs CPU 8, GPU 1 on one node; living nodes have each, but none has all"),
        (by({"CPU": 1}, site="moon"), "needs site moon; living nodes are at -, lab"),
        (by({"CPU": 1}, labels={"zone": "!in(a)", "gpu": "H100"}), "needs label gpu=H100; living nodes have -"),
        (
            by({"CPU": 1}, trust=frozenset({peer(9)})),
            f"trusts {NINES}; no living node is one of these or certified by one",
        ),
    ],
)
def test_an_infeasible_demand_says_what_is_missing_and_waits(demand: Demand, words: str) -> None:
    large = NodeView(peer(2), ResourceSet.of({"CPU": 1, "GPU": 1}), pythons=("3.12",), labels={"site": "lab"})
    giant = NodeView(peer(3), ResourceSet.of({"CPU": 64, "GPU": 8}), living=False)
    assert Submitter(node(1, 8), large, giant).refusal(demand) == Infeasible(words)


def test_a_python_that_no_node_offers_is_an_error_that_names_those_there_are() -> None:
    answer = Submitter(node(0), node(1, pythons=("3.12", "3.13"))).refusal(Demand(ONE, python="3.9"))
    runs = f"they run 3.11: {short_peer(ME)}; 3.12: {ONES}; 3.13: {ONES}"
    assert answer == Infeasible(f"needs Python 3.9, which no living node runs; {runs}", final=True)


def test_a_node_without_a_cpu_offers_no_python() -> None:
    """The driver's own, begun with num_cpus=0: it runs the driver's version, and none of its tasks."""
    answer = Submitter(node(0, 0, pythons=("3.12",)), node(1)).refusal(Demand(ONE, python="3.12"))
    assert answer == Infeasible(f"needs Python 3.12, which no living node runs; they run 3.11: {ONES}", final=True)


def test_a_python_of_nodes_that_are_dead_may_come_back() -> None:
    gone = node(1, pythons=("3.12",), living=False)
    assert not Submitter(node(0), gone).refusal(Demand(ONE, python="3.12")).final


def test_a_node_that_is_named_and_runs_another_python_is_an_error() -> None:
    answer = Submitter(node(0), node(1)).refusal(Demand(ONE, python="3.12", strategy=Affinity(peer(1))))
    words = f"needs node {ONES}: needs Python 3.12, which no living node runs; they run 3.11: {ONES}"
    assert answer == Infeasible(words, final=True)


def test_a_python_that_is_only_on_nodes_too_small_is_no_error_yet() -> None:
    answer = Submitter(node(0, 64), node(1, 1, pythons=("3.9",))).refusal(by({"CPU": 2}, python="3.9"))
    assert answer == Infeasible(f"needs CPU 2; the most that a living node has is 1 (peer {ONES})")


def test_an_infeasible_demand_is_placed_when_a_node_that_has_it_comes() -> None:
    mesh = Submitter(node(0))
    assert isinstance(mesh.place(by({"GPU": 1})), Infeasible)
    mesh.view[peer(1)] = NodeView(peer(1), ResourceSet.of({"CPU": 1, "GPU": 1}))
    assert mesh.chosen(by({"GPU": 1})) == peer(1)


def test_nobody_alive_and_nobody_who_runs_tasks_are_two_things() -> None:
    assert Submitter(node(0, living=False)).refusal(Demand(ONE)).reason == "no node is alive"
    assert Submitter(node(0, executes=False)).refusal(Demand(ONE)).reason == "no living node runs tasks of others"


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2), st.booleans(), st.integers(0, 2000)), max_size=30),
    st.integers(1, 8),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_a_choice_always_fits_and_only_what_fits_nowhere_is_infeasible(
    nodes: list[tuple[int, int, bool, int]], cpus: int, gpus: int, seed: int
) -> None:
    views = [
        NodeView(peer(n), ResourceSet.of({"CPU": c, "GPU": g}), living=lives, load=Load(queued=queue), said_at=0.0)
        for n, (c, g, lives, queue) in enumerate(nodes)
    ]
    fit = [v.peer for v, (c, g, lives, _) in zip(views, nodes) if c >= cpus and g >= gpus and lives]
    answer = Submitter(*views, seed=seed).place(by({"CPU": cpus, "GPU": gpus}))
    assert isinstance(answer, Infeasible) == (not fit)
    if isinstance(answer, Infeasible):
        assert answer.reason
    if isinstance(answer, Choice):
        assert answer.peer in fit


# ---- label rules ----------------------------------------------------------------------------------------------------


def test_label_rules_are_rays() -> None:
    there = {"market": "spot", "zone": "a"}
    for rule, fits in {"a": True, "b": False, "!a": False, "!b": True, "in(a,b)": True, "!in(a, b)": False}.items():
        assert labels.matches({"zone": rule}, there) == fits, rule
    assert not labels.matches({"gpu": "H100"}, there) and labels.matches({"gpu": "!H100"}, there)


@pytest.mark.parametrize("rule", ["", "!", "in()", "in(a", "in(a,)", "x" * 2000])
def test_a_rule_that_cannot_be_read_is_refused_with_the_rule_in_it(rule: str) -> None:
    with pytest.raises(ConfigError, match="no rule for a label"):
        labels.check({"zone": rule})
    labels.check({"zone": "!in(a, b)", "x": "y"})


def test_who_waits_where_its_input_lies_counts_those_before_it_as_its_own_kind() -> None:
    """A machine has run long tasks; now ten short ones want the 100 MB that lie there. They stay."""
    submitter = Submitter(node(0), node(1, cpus=1, load=busy(1, task_s=5.0), said_at=0.0))
    wants = Demand(ONE, inputs={peer(1): 10**8}, input_bytes=10**8, work_s=0.01)
    assert [submitter.chosen(wants) for _ in range(10)] == [peer(1)] * 10
    assert submitter.chosen(replace(wants, work_s=0.0)) == peer(0)


def test_a_lease_that_ended_since_a_node_spoke_is_seen_in_what_it_said() -> None:
    far = node(1, cpus=1, load=busy(1), said_at=5.0)
    submitter = Submitter(node(0), far)
    submitter.placement.told(peer(1), Load(), 1.0, 1.0)
    submitter.now = 6.0
    assert submitter.placement._wait_s(far, Demand(ONE), 6.0) > 0
    submitter.placement.ended(peer(1), ONE, far)
    assert submitter.placement._wait_s(far, Demand(ONE), 6.0) == 0


def test_a_node_that_has_what_is_to_be_installed_is_preferred_until_its_queue_is_longer_than_an_installation() -> None:
    nodes = [node(n) for n in range(40)]
    demand = Demand(ONE, work_s=1.0, setup_s=10.0, prepared=frozenset([peer(33)]))
    for seed in range(20):
        assert Submitter(*nodes, seed=seed).chosen(demand) == peer(33)
        assert Submitter(*nodes, seed=seed).chosen(replace(demand, prepared=frozenset())) == ME, "all are alike"
    nodes[33] = node(33, load=busy(queued=16))
    assert Submitter(*nodes).chosen(demand) == peer(33), "4 s in the queue"
    nodes[33] = node(33, load=busy(queued=80))
    assert Submitter(*nodes).chosen(demand) == ME, "20 s in the queue"
