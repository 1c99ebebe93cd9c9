"""Maymounkov & Mazières, "Kademlia: A Peer-to-Peer Information System Based on the XOR Metric", IPTPS 2002.

One test for each claim that the DHT relies on, with the words it is made in.
"""

from __future__ import annotations

from math import log2
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.dht.buckets import K, RoutingTable
from lattica.mesh.dht.keys import Key, distance
from lattica.mesh.dht.lookup import ALPHA, Lookup, Wish
from lattica.mesh.dht.messages import Contact
from lattica.mesh.identity import PeerId

keys = st.binary(min_size=32, max_size=32)


def test_k_and_alpha_are_those_of_the_paper() -> None:
    """§2.2: "for example k = 20"; §2.3: "α is a system-wide concurrency parameter, such as 3"."""
    assert (K, ALPHA) == (20, 3)


@given(keys, st.integers(0, (1 << 256) - 1))
def test_from_any_key_each_distance_leads_to_one_key(x: bytes, apart: int) -> None:
    """§2.1: "For any given point x and distance ∆ > 0, there is exactly one point y such that d(x, y) = ∆"."""
    y = (int.from_bytes(x, "big") ^ apart).to_bytes(32, "big")
    assert distance(x, y) == apart


def test_who_is_known_longest_stays_though_newcomers_come() -> None:
    """§2.2: "One cannot flush nodes' routing state by flooding the system with new nodes"."""
    rng = Random(1)
    table = RoutingTable(PeerId(bytes(32)))
    old = [PeerId(b"\x80" + rng.randbytes(31)) for _ in range(K)]
    for peer in old:
        table.saw(peer, ("a",), 0.0)
    for _ in range(1000):  # a flood of new ones
        table.saw(PeerId(b"\x80" + rng.randbytes(31)), ("a",), 1.0)
    assert {contact.peer for contact in table} == set(old)


def test_a_lookup_returns_the_k_closest_in_a_logarithm_of_steps() -> None:
    """§3: "the lookup algorithm will always return the closest node in h − log k steps", where h is about log n.

    500 peers with full tables; nothing is lost.
    """
    rng = Random(2)
    peers = [PeerId(rng.randbytes(32)) for _ in range(500)]
    tables = {}
    for peer in peers:
        tables[peer] = RoutingTable(peer)
        for other in rng.sample(peers, len(peers)):
            tables[peer].saw(other, ("a",), 0.0)
    for _ in range(50):
        target = Key(rng.randbytes(32))
        asker = rng.choice(peers)
        lookup = Lookup(Wish.PEERS, target, asker)
        lookup.suggest(tables[asker].closest(target), 1)
        while contacts := lookup.next():
            for contact in contacts:
                lookup.answered(contact.peer, (), tables[contact.peer].closest(target))
        closest = lookup.closest()
        others = sorted((peer for peer in peers if peer != asker), key=lambda peer: distance(peer, target))
        assert [found.contact for found in closest] == [Contact(peer, ("a",)) for peer in others[:K]]
        assert closest[0].hops <= log2(len(peers) / K) + 1
