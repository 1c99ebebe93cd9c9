"""A demand as it travels: what a program may say of it, what is made of that, and what a client cannot get past it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given as over
from hypothesis import strategies as st

from lattica.errors import ConfigError, RemoteProtocolError
from lattica.mesh.identity import PeerId, peer_text
from lattica.scheduler import labels
from lattica.scheduler.demand import Affinity, Default, Demand, NodeView, Spread
from lattica.scheduler.given import (
    GIVEN_MAX_BYTES,
    INPUT_MAX_BYTES,
    TRUST_MAX,
    DemandGiven,
    StrategyGiven,
    decode,
    encode,
    objection,
    read_node,
    read_trusted,
)
from lattica.scheduler.resources import ResourceSet

ANN, BOB = PeerId(b"\xaa" * 32), PeerId(b"\xbb" * 32)
ONE = {"CPU": 1.0}
FULL = DemandGiven(
    {"CPU": 0.5, "GPU": 1},
    StrategyGiven(labels={"gpu": "in(A100,H100)"}, soft_labels={"zone": "a"}),
    {"market": "!spot"},
    "home",
    (ANN,),
    ((ANN, 10), (BOB, 5), (ANN, 1)),
    16,
    "3.11",
    2.5,
)


def test_all_that_is_said_stands_in_the_demand() -> None:
    assert FULL.to_demand() == Demand(
        resources=ResourceSet.of({"CPU": 0.5, "GPU": 1}),
        labels={"gpu": "in(A100,H100)", "market": "!spot"},
        python="3.11",
        strategy=Default(),
        site="home",
        trust=frozenset({ANN}),
        inputs={ANN: 11, BOB: 5},
        input_bytes=16,
        work_s=2.5,
        soft_labels={"zone": "a"},
    )


def test_the_bytes_of_a_demand_are_these() -> None:
    strategy = "99c2c400c28080c400ffc2c400"
    data = f"9981a3435055cb3ff0000000000000{strategy}80a0909000a0cb0000000000000000"
    assert encode(DemandGiven(ONE)).hex() == data
    assert decode(encode(FULL)) == FULL


def test_one_of_an_earlier_release_says_less_and_is_read() -> None:
    assert decode(msgspec.msgpack.encode([ONE])) == DemandGiven(ONE)
    assert decode(msgspec.msgpack.encode([ONE, [True]])) == DemandGiven(ONE, StrategyGiven(spread=True))


def test_one_of_a_later_release_says_more_and_is_read() -> None:
    more = [*msgspec.msgpack.decode(encode(FULL)), "new"]
    assert decode(msgspec.msgpack.encode(more)) == FULL


@pytest.mark.parametrize(
    ("strategy", "meant"),
    [
        (StrategyGiven(), Default()),
        (StrategyGiven(spread=True), Spread()),
        (StrategyGiven(node=ANN), Affinity(ANN)),
        (StrategyGiven(node=ANN, soft=True), Affinity(ANN, soft=True)),
        (StrategyGiven(node=b"n" * 16), Affinity(PeerId(b"n" * 16))),
    ],
)
def test_a_strategy_is_what_placement_knows(strategy: StrategyGiven, meant: object) -> None:
    assert DemandGiven(ONE, strategy).to_demand().strategy == meant


def test_a_task_of_a_placement_group_runs_where_its_bundle_is() -> None:
    assert DemandGiven(ONE, StrategyGiven(group=b"g" * 16, bundle=2)).to_demand(BOB).strategy == Affinity(BOB)


def test_an_input_that_lies_at_two_peers_is_one_input() -> None:
    demand = DemandGiven(ONE, inputs=((ANN, 100), (BOB, 100))).to_demand()
    assert demand.input_bytes == 100


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (DemandGiven({"CPU": -1}), "not an amount"),
        (DemandGiven({"": 1}), "no name of a resource"),
        (DemandGiven({"GPU": 1.5}), "whole number"),
        (DemandGiven(ONE, StrategyGiven(spread=True, node=ANN)), "one task has one strategy"),
        (DemandGiven(ONE, StrategyGiven(group=b"g" * 16, node=ANN)), "one task has one strategy"),
        (DemandGiven(ONE, StrategyGiven(node=b"short")), r"(?s)no node id.*lattica\.nodes\(\)"),
        (DemandGiven(ONE, StrategyGiven(group=b"short")), "no placement group"),
        (DemandGiven(ONE, StrategyGiven(labels={"gpu": "in(("})), r"(?s)no rule for a label.*say"),
        (DemandGiven(ONE, StrategyGiven(soft_labels={"gpu": ""})), "no rule for a label"),
        (DemandGiven(ONE, labels={"gpu": "in()"}), "no rule for a label"),
        (DemandGiven(ONE, StrategyGiven(labels={"gpu": "a"}), {"gpu": "b"}), r"(?s)different things of label gpu.*one"),
        (DemandGiven(ONE, trust=(b"short",)), "(?s)no peer and no issuer.*whole ids"),
        (DemandGiven(ONE, inputs=((b"short", 1),)), "what is no peer"),
        (DemandGiven(ONE, python="3"), r'(?s)no minor version of Python.*"3\.11"'),
        (DemandGiven(ONE, python="٣.١"), "no minor version"),
    ],
)
def test_what_makes_no_sense_is_refused_with_words(given: DemandGiven, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        given.to_demand()


@pytest.mark.parametrize(
    "data",
    [
        [ONE, [False, b"n" * 33]],
        [ONE, [False, b"", False, {str(n): "a" for n in range(labels.RULES_MAX + 1)}]],
        [ONE, [False, b"", False, {"a": "b" * (labels.CHARS_MAX + 1)}]],
        [ONE, [False, b"", False, {}, {}, b"g" * 16, -2]],
        [{str(n): 1.0 for n in range(65)}],
        [ONE, [], {}, "s" * 257],
        [ONE, [], {}, "", [ANN] * (TRUST_MAX + 1)],
        [ONE, [], {}, "", [], [[ANN, -1]]],
        [ONE, [], {}, "", [], [[ANN, INPUT_MAX_BYTES + 1]]],
        [ONE, [], {}, "", [], [[ANN, 1]] * 257],
        [ONE, [], {}, "", [], [], 0, "3.11.12.13"],
        [ONE, [], {}, "", [], [], 0, "", -1.0],
        [3],
        "words",
    ],
)
def test_what_is_beyond_a_limit_is_a_breach(data: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(msgspec.msgpack.encode(data))


def test_what_is_too_long_is_neither_written_nor_read() -> None:
    rules = {f"label-{n}": "v" * labels.CHARS_MAX for n in range(labels.RULES_MAX)}
    with pytest.raises(ConfigError, match=r"(?s)at most 65536.*fewer labels"):
        encode(DemandGiven(ONE, labels=rules))
    with pytest.raises(RemoteProtocolError, match="65537 bytes"):
        decode(bytes(GIVEN_MAX_BYTES + 1))


@over(st.binary(max_size=200))
def test_noise_is_refused_or_read(data: bytes) -> None:
    try:
        decode(data)
    except RemoteProtocolError:
        pass


ids = st.binary(max_size=33)
rules = st.dictionaries(st.text(max_size=5), st.text("ab!*(),in", max_size=9), max_size=3)
demands = st.builds(
    DemandGiven,
    st.dictionaries(st.sampled_from(["CPU", "GPU", "x", ""]), st.floats() | st.integers(0, 9), max_size=3),
    st.builds(StrategyGiven, st.booleans(), ids, st.booleans(), rules, rules, ids, st.integers(-2, 2**31)),
    rules,
    st.text(max_size=5),
    st.tuples(ids) | st.just(()),
    st.lists(st.tuples(ids, st.integers(0, 9)), max_size=3).map(tuple),
    st.integers(0, 9),
    st.sampled_from(["", "3.11", "x"]),
)


@over(demands)
def test_whatever_a_client_says_becomes_a_demand_or_a_word_to_its_user(given: DemandGiven) -> None:
    try:
        demand = given.to_demand(ANN)
    except ConfigError:
        return
    assert demand.input_bytes >= max(demand.inputs.values(), default=0)
    labels.check(demand.labels)
    assert decode(encode(given)) == given or given.resources != given.resources  # NaN


def test_ids_are_read_as_people_have_them() -> None:
    assert read_node(ANN.hex()) == read_node(peer_text(ANN)) == read_trusted(peer_text(ANN)) == ANN
    assert read_node("ab" * 16) == b"\xab" * 16 and read_trusted("AB" * 32) == b"\xab" * 32


@pytest.mark.parametrize(
    "text", ["", "ab", "a" * 52 + "b", "1" * 52, "zz" * 32, " " * 64, 7, None, b"ab" * 32, "ab" * 20]
)
def test_what_is_no_id_is_refused_with_where_to_find_one(text: object) -> None:
    with pytest.raises(ConfigError, match=r"no node id"):
        read_node(text)
    with pytest.raises(ConfigError, match=r"(?s)no id of a peer or an issuer.*lattica peers"):
        read_trusted(text)


def test_a_label_may_be_asked_for_by_being_there() -> None:
    assert labels.matches({"gpu": "*"}, {"gpu": ""}) and not labels.matches({"gpu": "*"}, {})
    assert labels.matches({"gpu": "!*"}, {}) and not labels.matches({"gpu": "!*"}, {"gpu": "A100"})
    labels.check({"gpu": "*", "disk": "!*"})


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (DemandGiven(labels={"gpu": "A100"}), "needs label gpu=A100; living nodes have -"),
        (DemandGiven(strategy=StrategyGiven(labels={"zone": "!a"})), "needs label zone=!a"),
        (DemandGiven(site="attic"), "needs site attic"),
        (DemandGiven(strategy=StrategyGiven(node=BOB)), "and this machine, aaaa"),
        (DemandGiven(strategy=StrategyGiven(node=BOB, soft=True)), ""),
        (DemandGiven(strategy=StrategyGiven(node=ANN)), ""),
        (DemandGiven(labels={"zone": "a"}, trust=(BOB,), python="3.99", resources={"CPU": 99.0}), ""),
        (DemandGiven(strategy=StrategyGiven(soft_labels={"zone": "b"})), ""),
    ],
)
def test_a_machine_that_is_alone_says_what_of_the_place_it_can_never_be(said: DemandGiven, words: str) -> None:
    node = NodeView(ANN, ResourceSet.of(ONE), {"zone": "a"})
    reason = objection(encode(said), node)
    assert words in reason and bool(words) == bool(reason)
