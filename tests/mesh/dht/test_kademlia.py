"""The DHT as one peer sees it, and a few of them that hear each other at once; `test_world` has hundreds and loss."""

from __future__ import annotations

from typing import Any

import pytest

from lattica.errors import LocalProtocolError, RemoteProtocolError
from lattica.mesh.dht import lookups as lookups_module
from lattica.mesh.dht.asks import ASKS_MAX
from lattica.mesh.dht.buckets import K
from lattica.mesh.dht.events import LookupFinished, ProvidersFound, RecordFound
from lattica.mesh.dht.kademlia import Kademlia
from lattica.mesh.dht.keys import Key, distance, peer_key, topic_key
from lattica.mesh.dht.lookups import LOOKUPS_MAX
from lattica.mesh.dht.messages import Contact, Find, Found, Kept, Store
from lattica.mesh.dht.publishing import REPUBLISH_PART
from lattica.mesh.dht.records import PROVIDER, TTL_S
from lattica.mesh.dht.upkeep import OWN_REFRESH_S, REFRESH_S
from lattica.testing.authority import FakeKey
from tests.mesh.dht.examples import (
    ANN,
    AT,
    BOB,
    CONTENT,
    CYD,
    MANY,
    TOPIC,
    Peers,
    core,
    events,
    record,
    sends,
    to,
)

# -- looking up


def test_a_lookup_finds_the_closest_of_all(many: Peers) -> None:
    many.tell(MANY[0].peer, "lookup", TOPIC)
    (found,) = events(many, MANY[0], LookupFinished)
    others = sorted((key.peer for key in MANY[1:]), key=lambda peer: distance(peer, TOPIC))
    assert [contact.peer for contact in found.closest] == others[:K]
    assert found.hops == 1 and found.asked >= K


def test_a_lookup_goes_from_one_peer_to_the_next() -> None:
    peers = Peers(ANN, BOB, CYD)
    peers.cores[ANN.peer].saw(BOB.peer, to(BOB), True, 0.0)
    peers.cores[BOB.peer].saw(CYD.peer, to(CYD), True, 0.0)
    peers.tell(ANN.peer, "lookup", peer_key(CYD.peer))
    assert events(peers, ANN, LookupFinished) == [
        LookupFinished(peer_key(CYD.peer), (Contact(CYD.peer, to(CYD)), Contact(BOB.peer, to(BOB))), 2, 2)
    ]
    assert CYD.peer in peers.cores[ANN.peer].table


def test_a_lookup_goes_on_with_those_farther_away_if_all_who_were_close_are_dead() -> None:
    peers = Peers(*MANY)
    peers.introduce()
    others = sorted((key.peer for key in MANY[1:]), key=lambda peer: distance(peer, TOPIC))
    peers.silent |= set(others[:K])
    peers.tell(MANY[0].peer, "lookup", TOPIC)
    peers.run(30.0)
    (found,) = events(peers, MANY[0], LookupFinished)
    assert [contact.peer for contact in found.closest] == others[K:]


def test_a_lookup_without_anybody_ends_at_once(ann: Kademlia) -> None:
    assert ann.lookup(TOPIC, 0.0) == [LookupFinished(TOPIC, (), 0, 0)]


def test_who_wishes_what_is_looked_up_already_gets_the_same_answer(ann: Kademlia) -> None:
    ann.saw(BOB.peer, to(BOB), True, 0.0)
    assert len(sends(ann.lookup(TOPIC, 0.0))) == 1
    assert ann.lookup(TOPIC, 0.1) == []


def test_more_lookups_than_may_run_wait_for_their_turn(ann: Kademlia, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups_module, "WAITING_MAX", 3)
    ann.saw(BOB.peer, to(BOB), True, 0.0)
    sent = [send for number in range(LOOKUPS_MAX + 3) for send in sends(ann.lookup(topic_key(str(number)), 0.0))]
    assert len(sent) == LOOKUPS_MAX
    ann.validate()
    with pytest.raises(LocalProtocolError):
        ann.lookup(TOPIC, 0.0)
    answer = ann.receive(BOB.peer, Found(sent[0].message.ask, ()), 0.1)
    assert len(sends(answer)) == 1, "the next one begins"
    ann.validate()


# -- who is known


def test_who_asks_and_serves_is_known_and_a_client_is_not(ann: Kademlia) -> None:
    ann.receive(BOB.peer, Find(1, TOPIC, 0, to(BOB)), 0.0)
    ann.receive(CYD.peer, Find(1, TOPIC), 0.0)
    assert list(ann.table) == [Contact(BOB.peer, to(BOB))]


def test_who_serves_no_more_is_forgotten_when_it_asks(ann: Kademlia) -> None:
    ann.receive(BOB.peer, Find(1, TOPIC, 0, to(BOB)), 0.0)
    ann.receive(BOB.peer, Find(2, TOPIC), 1.0)
    assert len(ann.table) == 0


def test_who_is_seen_to_serve_no_more_is_forgotten(ann: Kademlia) -> None:
    ann.saw(BOB.peer, to(BOB), True, 0.0)
    ann.saw(BOB.peer, to(BOB), False, 1.0)
    assert len(ann.table) == 0


def test_a_client_answers_nobody_and_keeps_nothing() -> None:
    client = core(ANN, serves=False)
    assert client.receive(BOB.peer, Find(1, TOPIC), 0.0) == []
    assert client.receive(BOB.peer, Store(2, record("provider", BOB).data), 0.0) == []
    assert len(client.store) == 0


def test_what_others_say_of_a_peer_is_not_believed_before_it_answers(ann: Kademlia) -> None:
    ann.saw(BOB.peer, to(BOB), True, 0.0)
    (first,) = sends(ann.lookup(TOPIC, 0.0))
    (second,) = sends(ann.receive(BOB.peer, Found(first.message.ask, (Contact(CYD.peer, ("lie",)),), (), to(BOB)), 0.1))
    assert second.peer == CYD.peer and CYD.peer not in ann.table
    ann.receive(CYD.peer, Found(second.message.ask, (), (), to(CYD)), 0.2)
    assert Contact(CYD.peer, to(CYD)) in list(ann.table), "its own word on where it is"


def test_a_silent_peer_is_asked_five_times_and_forgotten_if_others_answer(ann: Kademlia) -> None:
    """Bob answers, Cyd does not."""
    ann.saw(BOB.peer, to(BOB), True, 0.0)
    ann.saw(CYD.peer, to(CYD), True, 0.0)
    effects: list[Any] = ann.lookup(TOPIC, 0.0)
    (to_bob,) = [send for send in sends(effects) if send.peer == BOB.peer]
    effects += ann.receive(BOB.peer, Found(to_bob.message.ask, ()), 0.1)
    while not any(isinstance(effect, LookupFinished) for effect in effects):
        due = ann.next_deadline()
        assert due is not None
        effects += [effect for effect in ann.tick(due) if getattr(effect, "message", None) is None or _asks(effect)]
        ann.validate()
    assert len([send for send in sends(effects) if send.peer == CYD.peer]) == ASKS_MAX
    assert CYD.peer not in ann.table and BOB.peer in ann.table


def _asks(effect: Any) -> bool:
    return isinstance(effect.message, Find) and effect.message.target == TOPIC


def test_if_nobody_at_all_answers_nobody_is_forgotten() -> None:
    """It is our own network that is down: when it is back, the table is as good as before."""
    peers = Peers(ANN, BOB, CYD)
    peers.introduce()
    peers.silent |= {BOB.peer, CYD.peer}
    peers.tell(ANN.peer, "lookup", TOPIC)
    peers.run(60.0)
    assert events(peers, ANN, LookupFinished) == [LookupFinished(TOPIC, (), 0, 2)]
    assert len(peers.cores[ANN.peer].table) == 2


def test_an_answer_nobody_asked_for_changes_nothing(ann: Kademlia) -> None:
    ann.saw(BOB.peer, to(BOB), True, 0.0)
    (send,) = sends(ann.lookup(TOPIC, 0.0))
    for sender, number in ((CYD.peer, send.message.ask), (BOB.peer, send.message.ask + 1)):
        assert ann.receive(sender, Found(number, (Contact(CYD.peer, to(CYD)),), (), to(CYD)), 0.1) == []
        assert ann.receive(sender, Kept(number, True), 0.1) == []
    assert CYD.peer not in ann.table


def test_a_peer_that_is_gone_is_not_waited_for(ann: Kademlia) -> None:
    ann.saw(BOB.peer, to(BOB), True, 0.0)
    ann.lookup(TOPIC, 0.0)
    assert ann.gone(BOB.peer, 0.1) == [LookupFinished(TOPIC, (), 0, 1)]
    ann.validate()


def test_a_newcomer_that_knows_one_peer_looks_up_itself_and_soon_knows_the_others() -> None:
    peers = Peers(*MANY)
    for key in MANY[1:]:
        peers.cores[key.peer].saw(MANY[0].peer, to(MANY[0]), True, 0.0)
    peers.run(60.0)
    assert min(len(one.table) for one in peers.cores.values()) >= K


def test_a_newcomer_that_nobody_answered_tries_again_in_seconds() -> None:
    """All that it said in its first half minute was lost. Until somebody has heard it, nobody finds it."""
    peers = Peers(ANN, BOB)
    peers.cores[ANN.peer].saw(BOB.peer, to(BOB), True, 0.0)
    peers.silent.add(BOB.peer)
    peers.run(30.0)
    assert ANN.peer not in peers.cores[BOB.peer].table
    peers.silent.clear()
    peers.run(45.0)
    assert ANN.peer in peers.cores[BOB.peer].table


def test_a_client_that_came_first_learns_of_those_that_come_later() -> None:
    """It met the one server that there was, and nobody tells a client of others. If that one died, it had nobody."""
    client, first = FakeKey("client"), MANY[0]
    peers = Peers(*MANY)
    peers.cores[client.peer], peers.events[client.peer] = core(client, serves=False), []
    peers.tell(client.peer, "saw", first.peer, to(first), True)
    peers.run(10.0)
    for key in MANY[1:]:
        peers.cores[key.peer].saw(first.peer, to(first), True, peers.now)
    peers.run(60.0)
    assert len(peers.cores[client.peer].table) >= K


def test_a_small_mesh_does_not_look_for_more_all_the_time(three: Peers) -> None:
    counted = 0
    while (due := min(one.next_deadline() or 0.0 for one in three.cores.values())) < 3 * 3600.0:
        three.run(due)
        counted += 1
    assert counted < 3 * 3 * 3600 / 200, "ticks of three peers in three hours"


def test_what_nobody_looks_at_is_refreshed(ann: Kademlia) -> None:
    ann.saw(BOB.peer, to(BOB), True, 0.0)
    targets: list[Key] = []
    while (due := ann.next_deadline()) is not None and due < 2 * REFRESH_S:
        for send in sends(ann.tick(due), object):
            assert isinstance(send.message, Find), "its Stores come with answers"
            targets.append(Key(send.message.target))
            for store in sends(ann.receive(BOB.peer, Found(send.message.ask, (), (), to(BOB)), due + 0.1), Store):
                ann.receive(BOB.peer, Kept(store.message.ask, True), due + 0.2)
        ann.validate()
    own = (
        7 + 2 * REFRESH_S / OWN_REFRESH_S + 2 * REFRESH_S / (TTL_S * REPUBLISH_PART)
    )  # 5 s, 10 s, ...; our peer record
    assert 0.7 * own <= targets.count(peer_key(ANN.peer)) <= 1.5 * own
    assert any(distance(target, BOB.peer) < distance(target, ANN.peer) for target in targets), "Bob's bucket"


# -- those who lie


def test_nobody_stores_a_record_of_another(ann: Kademlia) -> None:
    with pytest.raises(RemoteProtocolError, match="not its own"):
        ann.receive(CYD.peer, Store(1, record("provider", BOB).data), 0.0)


def test_nobody_stores_what_it_has_not_signed(ann: Kademlia) -> None:
    data = record("provider", BOB).data
    with pytest.raises(RemoteProtocolError, match="not signed"):
        ann.receive(BOB.peer, Store(1, data[:-1] + bytes([data[-1] ^ 1])), 0.0)
    assert ann.store.of(PROVIDER, CONTENT, 0.0) == []


def test_what_a_peer_shows_counts_only_if_it_is_signed_current_and_asked_for(ann: Kademlia) -> None:
    good, expired = record("provider", BOB, expires=AT + 60), record("provider", CYD, expires=AT)
    forged = good.data[:-1] + bytes([good.data[-1] ^ 1])
    elsewhere = record("provider", CYD, key=TOPIC)
    ann.saw(BOB.peer, to(BOB), True, 0.0)
    (send,) = sends(ann.find_providers(CONTENT, 1.0))
    shown = (b"noise", forged, expired.data, elsewhere.data)
    effects = ann.receive(BOB.peer, Found(send.message.ask, (), shown), 1.1)
    assert effects == [ProvidersFound(CONTENT, (), True)]
    (send,) = sends(ann.find_providers(CONTENT, 2.0))
    effects = ann.receive(BOB.peer, Found(send.message.ask, (), (*shown, good.data)), 2.1)
    assert effects[-1] == ProvidersFound(CONTENT, (good,), True)


def test_who_provides_under_the_id_of_another_is_not_taken_for_it(ann: Kademlia) -> None:
    """Cyd says, rightly signed, that it has the content that is called as Bob is."""
    forged = record("provider", CYD, key=peer_key(BOB.peer), boot=1 << 50)
    ann.saw(CYD.peer, to(CYD), True, 0.0)
    (send,) = sends(ann.find_peer(BOB.peer, 1.0))
    effects = ann.receive(CYD.peer, Found(send.message.ask, (), (forged.data,)), 1.1)
    assert effects == [RecordFound(peer_key(BOB.peer), None)]


def test_it_says_who_it_is_and_what_it_does(ann: Kademlia) -> None:
    ann.saw(BOB.peer, to(BOB), True, 0.0)
    ann.lookup(TOPIC, 0.0)
    assert repr(ann).endswith(": server, 1 peers, 1 lookups>")
