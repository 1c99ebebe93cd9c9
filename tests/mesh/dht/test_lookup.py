"""One look-up: whom it asks, in which order, and when it is over."""

from __future__ import annotations

from lattica.mesh.dht.buckets import K
from lattica.mesh.dht.keys import Key
from lattica.mesh.dht.lookup import ALPHA, ASKED_MAX, Lookup, Wish
from lattica.mesh.dht.messages import ADDRESSES_MAX, Contact
from lattica.mesh.dht.records import Record
from lattica.mesh.identity import PeerId
from tests.mesh.dht.examples import ANN, BOB, CONTENT, peer_at, record

TARGET = Key(bytes(32))  # so that a peer's number is its distance
ME = peer_at(1 << 250)


def contact(number: int) -> Contact:
    return Contact(peer_at(number), (f"a{number}",))


def lookup(*numbers: int) -> Lookup:
    made = Lookup(Wish.PEERS, TARGET, ME)
    made.suggest(map(contact, numbers), 1)
    return made


def asked(one: Lookup) -> list[int]:
    return [int.from_bytes(found.peer, "big") for found in one.next()]


def test_alpha_are_asked_at_a_time_the_closest_first() -> None:
    one = lookup(9, 3, 7, 5, 1)
    assert asked(one) == [1, 3, 5] and len((1, 3, 5)) == ALPHA
    assert asked(one) == []
    one.answered(peer_at(3), (), [contact(2)])
    assert asked(one) == [2]


def test_it_is_over_when_the_k_closest_have_answered() -> None:
    one = lookup(*range(1, K + 5))
    while numbers := asked(one):
        assert not one.is_complete
        for number in numbers:
            one.answered(peer_at(number), (), [])
    assert one.is_complete and one.asked == K
    assert [found.contact for found in one.closest()] == [contact(number) for number in range(1, K + 1)]


def test_a_slow_peer_makes_room_for_another_and_is_still_waited_for() -> None:
    one = lookup(1, 2, 3, 4)
    asked(one)
    one.slow(peer_at(1))
    assert asked(one) == [4]
    for number in (2, 3, 4):
        one.answered(peer_at(number), (), [])
    assert not one.is_complete
    one.answered(peer_at(1), (), [])
    assert one.is_complete and one.closest()[0].contact == contact(1)


def test_a_silent_peer_is_not_waited_for_and_not_among_the_closest() -> None:
    one = lookup(1, 2)
    asked(one)
    one.slow(peer_at(1))
    one.silent(peer_at(1))
    one.answered(peer_at(2), (), [contact(1)])
    assert asked(one) == [] and one.is_complete
    assert [found.contact for found in one.closest()] == [contact(2)]


def test_hops_count_who_led_to_whom() -> None:
    one = lookup(100)
    for number, closer in ((100, 50), (50, 20), (20, 20)):
        assert asked(one) == [number]
        one.answered(peer_at(number), (), [contact(closer)])
    assert [(found.contact, found.hops) for found in one.closest()] == [
        (contact(20), 3),
        (contact(50), 2),
        (contact(100), 1),
    ]


def test_a_peer_never_asks_itself() -> None:
    one = lookup()
    one.suggest([Contact(ME, ("me",))], 1)
    assert asked(one) == [] and one.is_complete and one.closest() == []


def test_other_addresses_of_a_peer_are_tried_as_well_and_its_own_word_is_the_last() -> None:
    """A liar is asked first and says that 1 is somewhere else."""
    one = lookup(5, 6)
    asked(one)
    one.answered(peer_at(5), (), [Contact(peer_at(1), ("lie",))])
    one.answered(peer_at(6), (), [contact(1)])
    assert asked(one) == [1] and one.contact_of(peer_at(1)).addresses == ("lie", "a1")
    one.answered(peer_at(1), ("mine",), [])
    assert one.closest()[0].contact.addresses == ("mine",)


def test_lies_about_addresses_are_bounded() -> None:
    one = lookup(1)
    for number in range(50):
        one.suggest([Contact(peer_at(1), (f"lie {number}",))], 2)
    assert len(one.contact_of(peer_at(1)).addresses) <= 2 * ADDRESSES_MAX


def test_made_up_peers_cost_so_many_asks_and_no_more() -> None:
    """A liar answers under its own name, and each time names twenty that are closer and do not exist."""
    one = lookup(1 << 200)
    one.answered(PeerId(one.next()[0].peer), (), [contact((1 << 190) + number) for number in range(500)])
    asks = 0
    while numbers := asked(one):
        asks += len(numbers)
        for number in numbers:
            one.slow(peer_at(number))
    for number in range(500):
        if number < asks:
            one.silent(peer_at((1 << 190) + number))
    assert one.is_complete and one.asked <= ASKED_MAX
    assert [found.contact for found in one.closest()] == [contact(1 << 200)]


def test_of_records_the_latest_of_each_writer_is_kept_and_only_for_its_key() -> None:
    one = Lookup(Wish.PROVIDERS, CONTENT, ME)

    def genuine(record: Record) -> bool:
        return True

    assert one.learn([record(seq=2).data, record("provider", BOB).data], genuine)
    assert not one.learn([record(seq=1).data, record(key=Key(bytes(32))).data, b"noise"], genuine)
    assert one.learn([record(seq=3).data], genuine)
    assert not one.learn([record(seq=4).data], lambda _: False), "it was forged"
    assert {writer: found.order[1] for writer, found in one.records.items()} == {ANN.peer: 3, BOB.peer: 7}
