"""Whom a peer knows: many near it, few far away, the longest known first."""

from __future__ import annotations

from random import Random

from lattica.mesh.dht.buckets import SPARES_MAX, K, RoutingTable
from lattica.mesh.dht.keys import distance
from tests.mesh.dht.examples import peer_at

ME = peer_at(0)
FAR = 1 << 255  # shares no bit with us


def full_table() -> RoutingTable:
    """Its farthest bucket has K peers, seen at 0, 1, 2, ..."""
    table = RoutingTable(ME)
    for number in range(K):
        table.saw(peer_at(FAR + number), (f"a{number}",), float(number))
    return table


def test_a_peer_never_knows_itself() -> None:
    table = RoutingTable(ME)
    table.saw(ME, ("a",), 0.0)
    assert len(table) == 0


def test_a_full_bucket_takes_nobody_new_and_keeps_the_newcomer_as_a_spare() -> None:
    table = full_table()
    table.saw(peer_at(FAR + K), ("new",), 30.0)
    table.validate()
    assert len(table) == K and peer_at(FAR + K) not in table


def test_the_spare_seen_last_takes_the_place_of_a_peer_that_is_gone() -> None:
    table = full_table()
    for number in (K, K + 1):
        table.saw(peer_at(FAR + number), ("new",), 30.0 + number)
    table.gone(peer_at(FAR + 3))
    table.validate()
    assert peer_at(FAR + K + 1) in table and peer_at(FAR + K) not in table and len(table) == K


def test_a_spare_that_is_gone_takes_no_place() -> None:
    table = full_table()
    table.saw(peer_at(FAR + K), ("new",), 30.0)
    table.gone(peer_at(FAR + K))
    table.gone(peer_at(FAR))
    table.validate()
    assert len(table) == K - 1


def test_spares_are_bounded_and_the_latest_are_kept() -> None:
    table = full_table()
    for number in range(K, K + 3 * SPARES_MAX):
        table.saw(peer_at(FAR + number), (), float(number))
        table.validate()
    table.gone(peer_at(FAR))
    assert peer_at(FAR + K + 3 * SPARES_MAX - 1) in table


def test_whose_place_is_wanted_is_asked_if_it_was_long_not_seen() -> None:
    table = full_table()
    assert table.stale(100.0) == [], "nobody wants its place"
    table.saw(peer_at(FAR + K), (), 30.0)
    assert [contact.peer for contact in table.stale(100.0)] == [peer_at(FAR)]
    table.saw(peer_at(FAR), (), 31.0)
    assert [contact.peer for contact in table.stale(100.0)] == [peer_at(FAR + 1)]
    assert table.stale(0.5) == []


def test_a_peer_seen_without_addresses_keeps_those_it_had() -> None:
    table = full_table()
    table.saw(peer_at(FAR), (), 50.0)
    table.saw(peer_at(FAR + 1), ("elsewhere",), 50.0)
    addresses = {contact.peer: contact.addresses for contact in table}
    assert addresses[peer_at(FAR)] == ("a0",) and addresses[peer_at(FAR + 1)] == ("elsewhere",)


def test_the_closest_come_first_over_all_buckets_and_without_the_asker() -> None:
    rng = Random(3)
    table = RoutingTable(ME)
    for _ in range(300):
        table.saw(peer_at(rng.getrandbits(256)), ("a",), 0.0)
    far, near = peer_at(rng.getrandbits(256)), peer_at(rng.getrandbits(248))
    for target in (far, near, ME, next(iter(table)).peer):
        known = sorted((contact.peer for contact in table), key=lambda peer: distance(peer, target))
        assert [contact.peer for contact in table.closest(target)] == known[:K]
        assert [contact.peer for contact in table.closest(target, 3, known[0])] == known[1:4]
        assert [contact.peer for contact in table.closest(target, 1000)] == known


def test_a_thousand_peers_fill_few_places_far_away_and_all_near_by() -> None:
    rng = Random(4)
    peers = [peer_at(rng.getrandbits(256)) for _ in range(1000)]
    table = RoutingTable(ME)
    for peer in peers:
        table.saw(peer, ("a",), 0.0)
    table.validate()
    assert 100 <= len(table) <= 160
    assert {contact.peer for contact in table.closest(ME, 8)} == set(sorted(peers)[:8])
