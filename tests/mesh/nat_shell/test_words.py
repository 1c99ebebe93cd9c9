"""What people are told of NATs."""

from __future__ import annotations

from typing import Any

import msgspec

from lattica.mesh.nat.behaviour import Allocation, Behaviour, Dependence
from lattica.mesh.nat_shell.words import words_of

SYMMETRIC = Behaviour(
    udp=True,
    translated=True,
    mapping=Dependence.ADDRESS_AND_PORT,
    filtering=Dependence.ADDRESS_AND_PORT,
    allocation=Allocation.RANDOM,
    lifetime_s=60.0,
)


def status(behaviour: Behaviour, **more: Any) -> dict[str, Any]:
    return {"behaviour": msgspec.to_builtins(behaviour), "words": behaviour.words, "peers": {}, "records": []} | more


def peer(number: int, path: str, rtt_ms: float | None = None) -> dict[str, Any]:
    return {"peer_id": f"peer{number}" + "x" * 46, "name": f"gpu-{number}", "path": path, "rtt_ms": rtt_ms}


def test_what_a_machine_is_behind_and_how_its_peers_are_reached_is_one_sentence() -> None:
    peers = [peer(number, f"direct 192.0.2.{number}:7411", 5.0) for number in range(1, 12)]
    peers += [peer(number, "relay/peer7xxx", 61.0) for number in (21, 22, 23)]
    first, *relayed = words_of(status(SYMMETRIC, observed=["203.0.113.9:41000"]), peers)
    assert first.good and first.what == (
        "this machine is behind a symmetric NAT, random ports, seen at 203.0.113.9:41000, no port mapping, "
        "an idle mapping lives 60 s at least; direct to 11 of 14 peers, 3 relayed through gpu-7, round trip 61 ms"
    )
    assert len(relayed) == 3 and not any(said.good for said in relayed)


def test_of_a_peer_that_is_relayed_it_is_said_what_was_tried_and_what_would_help() -> None:
    one = peer(3, "relay/zzzzzzzz")
    records = [
        {"peer_id": one["peer_id"], "method": "birthday", "direct": False, "reason": "nothing came through"},
        {"peer_id": one["peer_id"], "method": "birthday", "direct": False, "reason": "too many in this hour"},
        {"peer_id": "another", "method": "dial", "direct": False, "reason": "nothing came through"},
        {"peer_id": one["peer_id"], "method": "", "direct": False, "reason": "every method was tried"},
    ]
    paths = {one["peer_id"]: {"stays_relayed": "every method was tried"}}
    _, said = words_of(status(SYMMETRIC, records=records, peers=paths, birthday=False), [one])
    assert said.what == "gpu-3 is relayed: tried birthday (too many in this hour); every method was tried"
    assert "UPnP" in said.do_next and "--birthday" in said.do_next and "IPv6" in said.do_next
    mapped = msgspec.structs.replace(SYMMETRIC, mapped=True)
    assert "other side" in list(words_of(status(mapped), [one]))[1].do_next
    assert "firewall" in list(words_of(status(Behaviour(udp=False)), [one]))[1].do_next


def test_where_the_other_side_lets_no_udp_out_it_is_not_said_that_a_udp_port_would_help() -> None:
    one = peer(3, "relay/zzzzzzzz")
    others = {one["peer_id"]: msgspec.to_builtins(Behaviour(udp=False))}
    _, said = words_of(status(SYMMETRIC, others=others), [one])
    assert said.what == (
        "gpu-3 is relayed: symmetric NAT, random ports here, UDP is blocked there: no method goes through"
    )
    assert "other side's firewall" in said.do_next and "UDP port" not in said.do_next
    _, odd = words_of(status(SYMMETRIC, others={one["peer_id"]: {"udp": "perhaps"}}), [one])
    assert odd.what == "gpu-3 is relayed: nothing was tried yet" and "UDP port" in odd.do_next


def test_who_is_reached_from_outside_is_told_so_though_nobody_could_measure() -> None:
    (said,) = words_of(status(Behaviour(), reached=True), [])
    assert said.what.startswith("others reach this machine from outside")


def test_what_is_not_known_is_said_so_and_a_node_of_another_release_is_tolerated() -> None:
    (said,) = words_of(status(Behaviour()), [])
    assert said.good and "not known" in said.what
    assert list(words_of({}, [peer(1, "relay/x")])) == []
    for said in words_of({"words": "something", "behaviour": None, "records": [{}]}, [{}, {"path": "relay/abc"}]):
        assert said.what


def test_public_addresses_and_blocked_udp_are_behind_nothing() -> None:
    public = Behaviour(udp=True, translated=False, mapping=Dependence.INDEPENDENT, filtering=Dependence.INDEPENDENT)
    assert [said.what for said in words_of(status(public), [])] == ["this machine has a public address"]
    assert [said.what for said in words_of(status(Behaviour(udp=False)), [])] == ["UDP is blocked for this machine"]


def test_many_relayed_peers_are_counted() -> None:
    found = list(words_of(status(SYMMETRIC), [peer(number, "relay/zzzzzzzz") for number in range(20)]))
    assert found[-1].what == "... and 12 more peers are relayed"


def test_a_machine_with_ipv6_alone_is_not_said_to_be_behind_a_nat() -> None:
    (said,) = words_of(status(Behaviour(udp=True, ipv6=True), observed=["[2001:db8::7]:7411"]), [])
    assert said.what == "UDP gets out of this machine over IPv6 alone, seen at [2001:db8::7]:7411"
