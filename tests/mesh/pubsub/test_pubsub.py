"""Topics: what is published reaches every subscriber once, whatever is lost on the way, and nobody pays for silence."""

from __future__ import annotations

import pytest

from lattica.errors import ConfigError, LatticaError
from lattica.mesh import pubsub
from lattica.mesh.publications import BODY_MAX_BYTES, TOPIC_MAX_CHARS, WANT_MAX, Have, Publication, Run, Want, ids_of
from lattica.mesh.pubsub import ANSWER_MAX_BYTES, DIGEST_LINKS, DIGEST_S, FANOUT, PUSHED_MAX_BYTES, Published
from lattica.mesh.recent import PUBLISHED_MAX, PUBLISHED_MAX_BYTES, REPAIR_S
from lattica.mesh.wants import ASKS_MAX, WANT_S, WANTED_OF_ONE_MAX
from tests.mesh.pubsub.examples import ANN, BOB, CYD, DAN, KEYS, Peers, core, given, publication, sent

LONG = bytes(PUSHED_MAX_BYTES + 1)
MANY = [peer for peer in KEYS if peer not in (ANN.peer, BOB.peer, CYD.peer, DAN.peer)]
ONE = Published("steps", ANN.peer, 5, 1, b"4096")


@pytest.fixture
def chain() -> Peers:
    """ann - bob - cyd, of whom cyd is subscribed to steps."""
    peers = Peers(ANN, BOB, CYD)
    peers.link(ANN, BOB)
    peers.link(BOB, CYD)
    peers.tell(CYD, "subscribe", "steps")
    return peers


# -- spreading


def test_a_publication_reaches_a_subscriber_through_a_peer_that_is_none(chain: Peers) -> None:
    chain.tell(ANN, "publish", "steps", b"4096")
    assert chain.given == [(CYD.peer, ONE)]


def test_a_publisher_that_is_subscribed_is_given_its_own() -> None:
    one = core(ANN)
    one.subscribe("steps", 0.0)
    assert given(one.publish("steps", b"4096", 0.0)) == [ONE]


def test_other_topics_and_those_unsubscribed_are_passed_on_and_not_given_out(chain: Peers) -> None:
    chain.tell(ANN, "publish", "weather", b"rain")
    chain.tell(CYD, "unsubscribe", "steps")
    chain.tell(ANN, "publish", "steps", b"4096")
    assert chain.given == [] and len([1 for _, to, _ in chain.sent if to == CYD.peer]) == 2


def test_what_comes_again_is_neither_given_out_nor_passed_on() -> None:
    one = core(BOB, ANN.peer, CYD.peer, DAN.peer)
    one.subscribe("steps", 0.0)
    first = one.receive(ANN.peer, publication(), 0.0)
    assert given(first) == [ONE] and {to for to, _ in sent(first)} == {CYD.peer, DAN.peer}
    assert one.receive(CYD.peer, publication(), 0.1) == []
    assert one.receive(CYD.peer, publication(), 1e6) == [], "however long ago it was"


def test_publications_of_two_processes_of_one_peer_are_different() -> None:
    one = core(BOB)
    one.subscribe("steps", 0.0)
    effects = [one.receive(ANN.peer, publication(boot=boot), 0.0) for boot in (5, 6)]
    assert [published.boot for each in effects for published in given(each)] == [5, 6]


def test_publications_are_given_out_as_they_come_and_their_numbers_tell_the_order() -> None:
    one = core(BOB)
    one.subscribe("steps", 0.0)
    effects = [one.receive(ANN.peer, publication(number), 0.0) for number in (2, 1)]
    assert [published.number for each in effects for published in given(each)] == [2, 1]


def test_a_short_one_is_pushed_to_a_few_links_and_not_back() -> None:
    one = core(BOB, ANN.peer, CYD.peer, *MANY)
    pushed = sent(one.receive(CYD.peer, publication(), 0.0))
    assert len(pushed) == FANOUT and not {ANN.peer, CYD.peer} & {to for to, _ in pushed}
    assert all(message == publication() for _, message in pushed)


def test_a_long_one_is_announced_and_fetched_once() -> None:
    peers = Peers(ANN, BOB, CYD, DAN)
    for one, other in ((ANN, BOB), (ANN, CYD), (BOB, CYD), (BOB, DAN), (CYD, DAN)):
        peers.link(one, other)
    peers.tell(DAN, "subscribe", "weights")
    peers.tell(ANN, "publish", "weights", LONG)
    assert [(peer, published.body) for peer, published in peers.given] == [(DAN.peer, LONG)]
    peers.run(until=REPAIR_S * 2)
    carried = [to for _, to, message in peers.sent if isinstance(message, Publication)]
    assert sorted(carried) == sorted((BOB.peer, CYD.peer, DAN.peer)), "each gets it once"


# -- who said it


@pytest.mark.parametrize(
    "forged",
    [
        Publication(ANN.peer, 5, 1, "steps", b"4096", publication(by=DAN).signature),
        Publication(ANN.peer, 5, 2, "steps", b"4096", publication().signature),
        Publication(ANN.peer, 6, 1, "steps", b"4096", publication().signature),
        Publication(ANN.peer, 5, 1, "weather", b"4096", publication().signature),
        Publication(ANN.peer, 5, 1, "steps", b"4097", publication().signature),
    ],
    ids=["signer", "number", "boot", "topic", "body"],
)
def test_what_its_publisher_did_not_sign_is_dropped_and_does_not_stand_in_for_the_true_one(forged: Publication) -> None:
    one = core(BOB, CYD.peer)
    one.subscribe("steps", 0.0)
    one.subscribe("weather", 0.0)
    assert one.receive(DAN.peer, forged, 0.0) == []
    assert given(one.receive(ANN.peer, publication(), 0.0)) == [ONE]


def test_a_publication_that_comes_before_its_publishers_certificate_is_asked_for_again() -> None:
    known = {BOB.peer}
    one = core(BOB, CYD.peer, knows=known)
    one.subscribe("steps", 0.0)
    assert one.receive(CYD.peer, publication(), 0.0) == []
    known.add(ANN.peer)
    have = Have((Run(ANN.peer, 5, 1, 1),))
    assert sent(one.receive(CYD.peer, have, 1.0)) == [(CYD.peer, Want(have.runs))]
    assert given(one.receive(CYD.peer, publication(), 1.1)) == [ONE]


# -- repair


def test_a_push_that_was_lost_is_repaired_by_a_digest(chain: Peers) -> None:
    chain.lost = lambda sender, to, message: to == CYD.peer and isinstance(message, Publication)
    chain.tell(ANN, "publish", "steps", b"4096")
    assert chain.given == []
    chain.lost = lambda sender, to, message: False
    chain.run(until=DIGEST_S)
    assert chain.given == [(CYD.peer, ONE)]


def test_who_does_not_answer_is_not_waited_for_when_another_has_it() -> None:
    one = core(BOB, ANN.peer, CYD.peer)
    have = Have((Run(DAN.peer, 5, 1, 1),))
    assert sent(one.receive(CYD.peer, have, 0.0)) == [(CYD.peer, Want(have.runs))]
    assert one.receive(ANN.peer, have, 0.1) == [], "it was asked for"
    assert one.next_deadline() == WANT_S
    assert set(sent(one.tick(WANT_S))) == {(ANN.peer, Want(have.runs)), (CYD.peer, Want(have.runs))}


def test_a_peer_that_is_gone_is_not_asked() -> None:
    one = core(BOB, ANN.peer, CYD.peer)
    have = Have((Run(DAN.peer, 5, 1, 1),))
    one.receive(CYD.peer, have, 0.0)
    one.receive(ANN.peer, have, 0.1)
    one.disconnected(CYD.peer)
    assert sent(one.tick(WANT_S)) == [(ANN.peer, Want(have.runs))]
    one.disconnected(ANN.peer)
    assert one.next_deadline() is None


def test_what_nobody_sends_is_given_up_until_it_is_announced_again() -> None:
    one = core(BOB, ANN.peer)
    have = Have((Run(DAN.peer, 5, 1, 1),))
    asks, effects, now = 0, one.receive(ANN.peer, have, 0.0), 0.0
    while effects:
        asks += len(effects)
        now = one.next_deadline() or now
        effects = one.tick(now)
    assert asks == ASKS_MAX and one.next_deadline() is None
    assert sent(one.receive(ANN.peer, have, now)) == [(ANN.peer, Want(have.runs))]


def test_a_liar_fills_its_own_share_of_what_is_waited_for() -> None:
    """dan announces what does not exist, as much as he can; what ann announces is asked for all the same."""
    one = core(BOB, ANN.peer, DAN.peer)
    for number in range(20):
        one.receive(DAN.peer, Have((Run(CYD.peer, number, 1, 4000),)), 0.0)
        one.validate()
    assert len(one._wants) == WANTED_OF_ONE_MAX
    have = Have((Run(CYD.peer, 0, 5000, 5000),))
    assert sent(one.receive(ANN.peer, have, 0.0)) == [(ANN.peer, Want(have.runs))]


def test_an_answer_is_bounded_and_the_rest_is_asked_for_again() -> None:
    one = core(BOB, ANN.peer)
    for number in range(1, 11):
        one.receive(ANN.peer, publication(number, body=bytes(BODY_MAX_BYTES)), 0.0)
    answer = sent(one.receive(ANN.peer, Want((Run(ANN.peer, 5, 1, WANT_MAX),)), 0.0))
    assert [message.number for _, message in answer if isinstance(message, Publication)] == [1, 2, 3]
    assert sum(len(message.body) for _, message in answer if isinstance(message, Publication)) <= ANSWER_MAX_BYTES


def test_a_link_that_comes_up_in_time_brings_what_was_missed() -> None:
    """ann is alone when she publishes; the link comes up 5 s later, and then it is on its way at once."""
    peers = Peers(ANN, BOB)
    peers.tell(BOB, "subscribe", "steps")
    peers.tell(ANN, "publish", "steps", b"4096")
    peers.run(until=5.0)
    peers.link(ANN, BOB)
    assert peers.given == [(BOB.peer, ONE)]


def test_a_link_that_comes_up_too_late_brings_nothing_old() -> None:
    peers = Peers(ANN, BOB)
    peers.tell(BOB, "subscribe", "steps")
    peers.tell(ANN, "publish", "steps", b"4096")
    peers.run(until=REPAIR_S)
    peers.link(ANN, BOB)
    assert peers.given == [] and not peers.sent


def test_what_came_before_the_subscription_is_not_given_again(chain: Peers) -> None:
    chain.tell(ANN, "publish", "steps", b"4096")
    chain.tell(BOB, "subscribe", "steps")
    chain.run(until=REPAIR_S * 2)
    assert [peer for peer, _ in chain.given] == [CYD.peer]


def test_a_publication_ages_wherever_it_is_kept() -> None:
    """Else each peer would keep it for as long as the first, and a chain of them for ever."""
    one = core(BOB, CYD.peer)
    one.receive(ANN.peer, publication(age_ms=4000), 100.0)
    ((_, answer),) = sent(one.receive(CYD.peer, Want((Run(ANN.peer, 5, 1, 1),)), 103.0))
    assert isinstance(answer, Publication) and answer.age_ms == 7000
    assert one.receive(CYD.peer, Want((Run(ANN.peer, 5, 1, 1),)), 96.0 + REPAIR_S) == []
    assert one.receive(ANN.peer, publication(2, age_ms=int(REPAIR_S * 1000)), 103.0) == [], "too old"


def test_silence_costs_nothing(chain: Peers) -> None:
    chain.run(until=3600.0)
    assert not chain.sent
    chain.tell(ANN, "publish", "steps", b"4096")
    chain.run(until=chain.now + REPAIR_S + 2 * DIGEST_S)
    spent = len(chain.sent)
    chain.run(until=chain.now + 3600.0)
    assert len(chain.sent) == spent and all(one.next_deadline() is None for one in chain.cores.values())


def test_a_digest_goes_to_a_few_links() -> None:
    one = core(BOB, *MANY)
    one.receive(ANN.peer, publication(), 0.0)
    digests = sent(one.tick(DIGEST_S))
    assert len(digests) == DIGEST_LINKS
    assert all(isinstance(message, Have) and list(ids_of(message.runs)) == [publication().id] for _, message in digests)


# -- limits


def test_a_body_that_is_too_long_is_refused_and_the_error_says_where_it_belongs() -> None:
    with pytest.raises(ConfigError, match="object store"):
        core(ANN).publish("weights", bytes(BODY_MAX_BYTES + 1), 0.0)


@pytest.mark.parametrize("topic", ["", "a" * (TOPIC_MAX_CHARS + 1), "\ud800", "a\nb"])
def test_a_topic_that_is_no_name_is_refused(topic: str) -> None:
    with pytest.raises(ConfigError, match="no name of a topic"):
        core(ANN).publish(topic, b"", 0.0)
    with pytest.raises(ConfigError, match="no name of a topic"):
        core(ANN).subscribe(topic, 0.0)


@pytest.mark.parametrize("size", [0, 60_000])
def test_who_publishes_too_much_is_told_to_slow_down_and_may_go_on_later(size: int) -> None:
    one = core(ANN, BOB.peer)
    done = 0
    with pytest.raises(LatticaError, match="publish less often"):
        for _ in range(PUBLISHED_MAX + 1):
            one.publish("steps", bytes(size), 0.0)
            done += 1
    assert done == (PUBLISHED_MAX if size == 0 else PUBLISHED_MAX_BYTES // (size + 256))
    (effect,) = sent(one.publish("steps", b"", REPAIR_S))
    assert isinstance(effect[1], Publication) and effect[1].number == done + 1, "a refused one takes no number"


def test_who_is_refused_nothing_by_itself_is_told_when_all_together_publish_too_much() -> None:
    one = core(BOB)
    for key in list(KEYS.values())[2:]:
        for number in range(1, 25):
            one.receive(key.peer, publication(number, key, body=bytes(60_000)), 0.0)
    with pytest.raises(LatticaError, match="all peers together"):
        one.publish("steps", bytes(60_000), 0.0)


def test_what_a_publisher_says_beyond_its_limits_is_neither_given_out_nor_asked_for() -> None:
    one = core(BOB, CYD.peer)
    one.subscribe("steps", 0.0)
    taken = [number for number in range(1, 2000) if given(one.receive(ANN.peer, publication(number), 0.0))]
    assert taken == list(range(1, 2 * PUBLISHED_MAX + 1))
    assert one.receive(CYD.peer, Have((Run(ANN.peer, 5, 1, 1999),)), 0.0) == []


def test_a_peer_subscribes_to_so_many_topics_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub, "TOPICS_MAX", 3)
    one = core(ANN)
    for topic in ("a", "b", "c", "c"):
        one.subscribe(topic, 0.0)
    with pytest.raises(LatticaError, match="unsubscribe from some"):
        one.subscribe("d", 0.0)
    one.unsubscribe("a", 0.0)
    one.subscribe("d", 0.0)
    one.validate()


def test_a_core_tells_how_it_is() -> None:
    one = core(ANN, BOB.peer)
    one.publish("steps", b"", 0.0)
    assert repr(one).endswith(": 0 topics, 1 links, 1 publications kept, 0 wanted>")
