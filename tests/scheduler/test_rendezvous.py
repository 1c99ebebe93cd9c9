"""Everybody finds the same one responsible, and little moves when somebody goes."""

from __future__ import annotations

from random import Random

from lattica.mesh.identity import PeerId
from lattica.mesh.roles import MEMBER, Role
from lattica.scheduler.rendezvous import Standing, deciders, first, order, rank, weight

PEERS = [PeerId(bytes([number]) * 32) for number in range(10)]
THINGS = [b"thing %d" % number for number in range(1000)]


def test_the_order_is_the_same_however_the_members_were_learned() -> None:
    shuffled = Random(1).sample(PEERS, len(PEERS))
    assert all(order(thing, PEERS) == order(thing, shuffled) for thing in THINGS)


def test_first_and_rank_agree_with_the_order() -> None:
    for thing in THINGS[:50]:
        found = order(thing, PEERS)
        assert first(thing, PEERS) == found[0]
        assert [rank(thing, peer, PEERS) for peer in found] == list(range(10))
        assert [rank(thing, peer, [other for other in PEERS if other != peer]) for peer in found] == list(range(10))


def test_who_goes_leaves_only_what_it_was_first_for_and_each_to_its_second() -> None:
    gone, stay = PEERS[3], [peer for peer in PEERS if peer != PEERS[3]]
    for thing in THINGS:
        was = order(thing, PEERS)
        assert first(thing, stay) == (was[1] if was[0] == gone else was[0])


def test_things_are_spread_evenly() -> None:
    counts = [sum(first(thing, PEERS) == peer for thing in THINGS) for peer in PEERS]
    assert min(counts) >= 60 and max(counts) <= 140, counts


def test_of_nobody_nobody_is_first() -> None:
    assert first(b"thing", []) is None and order(b"thing", []) == []


def test_ephemeral_nodes_and_those_without_the_role_decide_nothing() -> None:
    living = [
        Standing(PEERS[0], MEMBER),
        Standing(PEERS[1], MEMBER, ephemeral=True),
        Standing(PEERS[2], Role.EXECUTE | Role.STORE),
        Standing(PEERS[3], Role.SUBMIT),
    ]
    assert deciders(living, Role.SUBMIT) == [PEERS[0], PEERS[3]]


def test_the_weight_is_what_it_was_in_the_first_release() -> None:
    """Releases share a mesh: they must find the same home."""
    assert weight(b"trainer", PEERS[1]) == 0x699F82D857137C88
