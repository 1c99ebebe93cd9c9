"""What a peer wants to be found: stored with those who are closest, renewed, found by all others."""

from __future__ import annotations

import pytest

from lattica.errors import ConfigError
from lattica.mesh.dht.buckets import K
from lattica.mesh.dht.events import ProvidersFound, RecordFound, Stored
from lattica.mesh.dht.kademlia import Kademlia
from lattica.mesh.dht.keys import distance, peer_key, topic_key, value_key
from lattica.mesh.dht.publishing import OWN_MAX, REPUBLISH_PART
from lattica.mesh.dht.records import PROVIDER, TTL_S, VALUE_MAX_BYTES
from lattica.testing.authority import FakeKey
from tests.mesh.dht.examples import (
    ANN,
    BOB,
    CONTENT,
    CYD,
    MANY,
    TOPIC,
    Peers,
    core,
    events,
    to,
)


def test_a_value_is_found_by_who_knows_its_writer_and_name(three: Peers) -> None:
    three.tell(ANN.peer, "put_record", "step", b"4096")
    key = value_key(ANN.peer, "step")
    assert Stored(key, 3) in three.events[ANN.peer]
    three.tell(BOB.peer, "get_record", ANN.peer, "step")
    (found,) = events(three, BOB, RecordFound)
    assert (found.key, found.record.value, found.record.writer) == (key, b"4096", ANN.peer)


def test_a_value_that_is_put_again_is_found_in_its_new_form_though_one_server_missed_it(three: Peers) -> None:
    three.tell(ANN.peer, "put_record", "step", b"1")
    three.silent.add(CYD.peer)
    three.tell(ANN.peer, "put_record", "step", b"2")
    three.run(three.now + 30)
    three.silent.clear()
    three.tell(CYD.peer, "get_record", ANN.peer, "step")
    assert events(three, CYD, RecordFound)[-1].record.value == b"2"


def test_what_was_never_put_is_not_found(three: Peers) -> None:
    three.tell(BOB.peer, "get_record", ANN.peer, "step")
    assert events(three, BOB, RecordFound) == [RecordFound(value_key(ANN.peer, "step"), None)]


def test_a_value_that_is_too_long_is_refused_with_advice(ann: Kademlia) -> None:
    with pytest.raises(ConfigError, match="object store"):
        ann.put_record("step", bytes(VALUE_MAX_BYTES + 1), 0.0)


@pytest.mark.parametrize("name", ["n" * 257, "ä" * 129, "\ud800", "\n"], ids=ascii)
def test_a_name_that_is_none_is_refused_with_advice(ann: Kademlia, name: str) -> None:
    with pytest.raises(ConfigError, match="printable"):
        ann.put_record(name, b"", 0.0)


def test_a_peer_cannot_provide_itself(ann: Kademlia) -> None:
    with pytest.raises(ConfigError, match="find_peer"):
        ann.provide(peer_key(ANN.peer), 0.0)


def test_a_peer_has_no_more_records_than_it_may(ann: Kademlia) -> None:
    for number in range(OWN_MAX - 1):  # and its peer record
        ann.provide(topic_key(str(number)), 0.0)
    with pytest.raises(ConfigError, match="withdraw"):
        ann.provide(TOPIC, 0.0)
    ann.provide(topic_key("0"), 0.0)  # it has that one
    ann.withdraw(topic_key("0"))
    ann.provide(TOPIC, 0.0)


def test_every_peer_is_found_by_its_id(three: Peers) -> None:
    three.tell(ANN.peer, "find_peer", CYD.peer)
    assert events(three, ANN, RecordFound)[-1].record.addresses == to(CYD)


def test_providers_are_told_as_they_are_found_and_at_the_end(three: Peers) -> None:
    for key in (ANN, BOB):
        three.tell(key.peer, "provide", CONTENT)
    three.tell(CYD.peer, "find_providers", CONTENT)
    found = events(three, CYD, ProvidersFound)
    assert [event.finished for event in found] == [*[False] * (len(found) - 1), True] and len(found) > 1
    assert {(one.writer, one.addresses) for one in found[-1].records} == {(ANN.peer, to(ANN)), (BOB.peer, to(BOB))}


def test_a_client_provides_and_finds_as_others_do(three: Peers) -> None:
    dan = FakeKey("dan")
    three.cores[dan.peer] = core(dan, serves=False)
    three.events[dan.peer] = []
    three.tell(dan.peer, "saw", BOB.peer, to(BOB), True)
    three.tell(dan.peer, "provide", TOPIC)
    three.tell(ANN.peer, "find_providers", TOPIC)
    assert [one.writer for one in events(three, ANN, ProvidersFound)[-1].records] == [dan.peer]
    three.tell(dan.peer, "find_peer", CYD.peer)
    assert events(three, dan, RecordFound)[-1].record.addresses == to(CYD)


def test_what_is_provided_is_stored_again_long_before_it_expires(three: Peers) -> None:
    three.tell(ANN.peer, "provide", CONTENT)
    began = three.now
    three.run(began + TTL_S * REPUBLISH_PART)
    assert events(three, ANN, Stored).count(Stored(CONTENT, 3)) == 2
    three.run(began + 5 * TTL_S)
    three.tell(BOB.peer, "find_providers", CONTENT)
    assert len(events(three, BOB, ProvidersFound)[-1].records) == 1


def test_what_is_withdrawn_expires(three: Peers) -> None:
    three.tell(ANN.peer, "provide", CONTENT)
    three.cores[ANN.peer].withdraw(CONTENT)
    three.run(three.now + TTL_S + 1)
    three.tell(BOB.peer, "find_providers", CONTENT)
    assert events(three, BOB, ProvidersFound) == [ProvidersFound(CONTENT, (), True)]


def test_a_peer_that_moves_says_so_in_all_its_records(three: Peers) -> None:
    three.tell(ANN.peer, "provide", CONTENT)
    three.tell(ANN.peer, "reachable", ["new:1"], True)
    three.tell(BOB.peer, "find_providers", CONTENT)
    three.tell(BOB.peer, "find_peer", ANN.peer)
    assert events(three, BOB, ProvidersFound)[-1].records[0].addresses == ("new:1",)
    assert events(three, BOB, RecordFound)[-1].record.addresses == ("new:1",)


def test_a_peer_that_has_not_moved_says_nothing_again(three: Peers) -> None:
    assert three.cores[ANN.peer].reachable(list(to(ANN)), True, three.now) == []
    assert len(three.cores[ANN.peer].reachable(["new:1"], True, three.now)) > 1


def test_what_nobody_could_keep_is_stored_as_soon_as_others_are_known(ann: Kademlia) -> None:
    client = core(BOB, serves=False)
    assert client.provide(CONTENT, 0.0) == [Stored(CONTENT, 0)]
    peers = Peers()
    peers.cores, peers.events = {ANN.peer: ann, BOB.peer: client}, {ANN.peer: [], BOB.peer: []}
    peers.tell(BOB.peer, "saw", ANN.peer, to(ANN), True)
    peers.run(3.0)
    assert Stored(CONTENT, 1) in peers.events[BOB.peer]


def test_a_record_goes_to_the_k_closest_and_to_us_if_we_are_among_them(many: Peers) -> None:
    many.tell(MANY[3].peer, "provide", TOPIC)
    closest = sorted((key.peer for key in MANY), key=lambda peer: distance(peer, TOPIC))
    keepers = {peer for peer, one in many.cores.items() if one.store.of(PROVIDER, TOPIC, many.now)}
    assert keepers == set(closest[:K]) and Stored(TOPIC, K) in many.events[MANY[3].peer]
