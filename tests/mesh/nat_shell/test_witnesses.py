"""Who is asked what we are behind."""

from __future__ import annotations

from random import Random

from lattica.mesh.identity import PeerId
from lattica.mesh.nat.routes import Endpoint
from lattica.mesh.nat_shell.witnesses import Candidate, candidate_of, pick

ONE, TWO, THREE, FOUR = (PeerId(bytes([number]) * 32) for number in range(1, 5))


def candidate(peer: PeerId, host: str) -> Candidate:
    return Candidate(peer, Endpoint(host, 7411))


def test_a_peer_is_asked_at_its_first_public_address_of_each_family() -> None:
    told = [
        Endpoint("10.0.0.7", 1),
        Endpoint("gpu.example.org", 2),
        Endpoint("203.0.113.7", 3),
        Endpoint("203.0.113.8", 4),
        Endpoint("fd00::7", 5),
        Endpoint("2001:db8::7", 6),
    ]
    assert candidate_of(ONE, told, ()) == Candidate(ONE, Endpoint("203.0.113.7", 3), Endpoint("2001:db8::7", 6))


def test_neither_private_addresses_nor_our_own_nor_what_is_no_address_make_a_witness() -> None:
    for endpoint in (
        Endpoint("192.168.1.7", 7411),
        Endpoint("127.0.0.1", 7411),
        Endpoint("100.64.0.7", 7411),
        Endpoint("203.0.113.9", 7411),
        Endpoint("203.0.113.7", 0),
        Endpoint("somewhere", 7411),
        Endpoint("", -1),
    ):
        assert candidate_of(ONE, [endpoint], ["203.0.113.9"]) is None, endpoint


def test_witnesses_are_at_different_addresses_and_those_that_are_asked_already_stay() -> None:
    candidates = [candidate(ONE, "203.0.113.1"), candidate(TWO, "203.0.113.1"), candidate(THREE, "203.0.113.3")]
    for seed in range(20):
        picked = pick(candidates, [TWO], Random(seed))
        assert {each.peer for each in picked} == {TWO, THREE} and picked[0].peer == TWO


def test_the_work_of_a_witness_is_shared_by_chance() -> None:
    candidates = [candidate(peer, f"203.0.113.{peer[0]}") for peer in (ONE, TWO, THREE, FOUR)]
    chosen = {pick(candidates, [], Random(seed), 1)[0].peer for seed in range(40)}
    assert chosen == {ONE, TWO, THREE, FOUR}
    assert pick([], [ONE], Random(1)) == ()
