"""What a machine is behind is found by asking ordinary peers, whatever it is, and through loss."""

from __future__ import annotations

from itertools import count
from random import Random

import msgspec
import pytest

from lattica.mesh.identity import PeerId
from lattica.mesh.nat import datagrams
from lattica.mesh.nat.answering import FOR_OTHERS_MAX, LATER_OF_PEER_MAX, Answering, HaveSent
from lattica.mesh.nat.behaviour import Allocation, Behaviour, Dependence, Sighting, allocation_of, is_double, mapping_of
from lattica.mesh.nat.datagrams import Answer, Keys, Kind, Probe
from lattica.mesh.nat.measuring import Glimpsed, Measurement
from lattica.mesh.nat.routes import Direct, Endpoint, OpenSocket, SendOver
from tests.mesh.nat.measurers import Measuring

EI, AD, APD = Dependence.INDEPENDENT, Dependence.ADDRESS, Dependence.ADDRESS_AND_PORT
KEPT, SEQUENTIAL, RANDOM = Allocation.KEPT, Allocation.SEQUENTIAL, Allocation.RANDOM

CLASSES = {
    "open": ("public address", False, EI, EI, None),
    "public": ("public address", False, EI, EI, None),
    "firewall": ("public address behind a firewall", False, EI, APD, None),
    "full-cone": ("full cone NAT", True, EI, EI, KEPT),
    "restricted-cone": ("restricted cone NAT", True, EI, AD, KEPT),
    "port-restricted": ("port-restricted cone NAT", True, EI, APD, KEPT),
    "port-restricted-random": ("port-restricted cone NAT", True, EI, APD, RANDOM),
    "address-symmetric": ("symmetric NAT, random ports", True, AD, APD, RANDOM),
    "symmetric": ("symmetric NAT, random ports", True, APD, APD, RANDOM),
    "symmetric-seq": ("symmetric NAT, sequential ports", True, APD, APD, SEQUENTIAL),
    "cgn": ("full cone NAT", True, EI, EI, RANDOM),
    "port-restricted over cgn": ("port-restricted cone NAT", True, EI, APD, RANDOM),
    "full-cone over port-restricted": ("port-restricted cone NAT", True, EI, APD, KEPT),
    "full-cone over symmetric": ("symmetric NAT, random ports", True, APD, APD, RANDOM),
    "port-restricted unsolicited=accept": ("port-restricted cone NAT", True, EI, APD, KEPT),
    "port-restricted unsolicited=reject": ("port-restricted cone NAT", True, EI, APD, KEPT),
}


def same_class(behaviour: Behaviour, nat: str) -> bool:
    found = (behaviour.words, behaviour.translated, behaviour.mapping, behaviour.filtering, behaviour.allocation)
    return behaviour.udp is True and found == CLASSES[nat]


@pytest.mark.parametrize("nat", CLASSES)
def test_every_type_of_nat_is_recognised(nat: str) -> None:
    for seed in range(5):
        behaviour = Measuring(seed, nat).measure()
        assert same_class(behaviour, nat), f"seed {seed}: {behaviour}"


@pytest.mark.parametrize("nat", CLASSES)
def test_every_type_of_nat_is_recognised_through_five_percent_loss(nat: str) -> None:
    for seed in range(12):
        behaviour = Measuring(seed, nat, loss=0.05).measure()
        assert same_class(behaviour, nat), f"seed {seed}: {behaviour}"


@pytest.mark.parametrize("nat", ["full-cone", "port-restricted", "symmetric", "firewall"])
def test_two_witnesses_are_enough(nat: str) -> None:
    behaviour = Measuring(1, nat, witnesses=2).measure()
    assert same_class(behaviour, nat), f"{behaviour}"


def test_with_one_witness_less_is_said_and_nothing_wrong() -> None:
    behaviour = Measuring(1, "full-cone", witnesses=1).measure()
    assert behaviour.mapping is None and behaviour.filtering is AD and behaviour.translated
    assert Measuring(1, "symmetric", witnesses=1).measure().mapping is APD
    alone = Measuring(1, "open", witnesses=1).measure()
    assert (alone.words, alone.filtering) == ("public address", None), "nobody could show whether there is a firewall"
    assert Measuring(1, "firewall", witnesses=1).measure().filtering is APD, "its other port was not let through"


@pytest.mark.parametrize("nat", ["udp-blocked", "tcp443-only"])
def test_blocked_udp_is_said_after_three_seconds(nat: str) -> None:
    lab = Measuring(1, nat)
    lab.begin()
    lab.world.run_until(lab.measured, within_s=3.5, missing=lambda: "no verdict")
    behaviour = lab.measured()[-1].behaviour
    assert behaviour.udp is False and behaviour.words == "UDP is blocked" and behaviour.mapping is None


@pytest.mark.parametrize("nat", ["full-cone", "port-restricted", "cgn"])
def test_hairpins_are_found(nat: str) -> None:
    assert Measuring(1, f"{nat} hairpin").measure().hairpin is True
    if nat != "cgn":
        assert Measuring(1, nat).measure().hairpin is False
    assert Measuring(1, "firewall").measure().hairpin is None


def test_a_full_cone_is_recognised_in_a_fraction_of_a_second() -> None:
    lab = Measuring(1, "full-cone hairpin")
    started = lab.world.now
    lab.begin()
    lab.world.run_until(lab.measured, within_s=1.0, missing=lambda: "no verdict")
    assert lab.world.now - started < 0.5


@pytest.mark.parametrize("nat", ["port-restricted", "symmetric", "symmetric-seq", "firewall"])
def test_all_but_the_filtering_is_known_a_round_trip_after_the_beginning(nat: str) -> None:
    lab = Measuring(1, nat)
    began = lab.world.now
    whole = lab.measure()
    (at, glimpsed), last = [(at, event) for at, _, event in lab.world.events if isinstance(event, Glimpsed)]
    assert last[0] - began < 2.5 and last[1].behaviour.filtering is whole.filtering
    assert at - began < 0.3 and glimpsed.observed == lab.measured()[-1].observed
    assert glimpsed.behaviour == msgspec.structs.replace(whole, filtering=None, hairpin=glimpsed.behaviour.hairpin)


@pytest.mark.parametrize("nat", ["udp-blocked", "tcp443-only"])
def test_blocked_udp_is_glimpsed_within_a_second(nat: str) -> None:
    lab = Measuring(1, nat)
    began = lab.world.now
    assert lab.measure().udp is False
    ((at, glimpsed),) = [(at, event) for at, _, event in lab.world.events if isinstance(event, Glimpsed)]
    assert at - began < 1.0 and glimpsed.behaviour == Behaviour(udp=False)


def test_a_machine_that_measured_in_an_outage_measures_again_and_less_often_each_time() -> None:
    lab = Measuring(1, "port-restricted")
    lab.nats.change("a", udp=False)
    assert lab.measure().udp is False
    lab.world.run(1000.0)
    assert len(lab.measured()) in (5, 6), "after 30 s, 1, 2, 5 and 10 minutes"
    lab.nats.change("a", udp=True)
    lab.world.run(1620.0)
    assert same_class(lab.measured()[-1].behaviour, "port-restricted")


def test_other_witnesses_are_asked_when_the_first_are_gone_and_what_is_known_stays() -> None:
    lab = Measuring(1, "port-restricted", witnesses=3)
    behaviour = lab.measure()
    lab.world.crash("w0")
    lab.world.crash("w1")
    lab.world.tell("a1", "does", "use", [lab.witness("w2")])
    lab.world.run(lab.world.now + 200.0)
    assert {each.behaviour.udp for each in lab.measured()} == {True}, "nobody takes their silence for a blocked port"
    assert lab.measured()[-1].behaviour.mapping == behaviour.mapping
    lab.world.tell("a1", "does", "use", [])
    lab.world.run(lab.world.now + 1.0)
    before = len(lab.measured())
    lab.world.run(lab.world.now + 200.0)
    assert len(lab.measured()) == before


def test_ipv6_is_seen_where_it_works() -> None:
    lab = Measuring(1, "port-restricted", ipv6="stateful")
    assert lab.measure().ipv6
    assert any(endpoint.is_ipv6 for endpoint in lab.measured()[-1].observed)
    assert not Measuring(1, "port-restricted").measure().ipv6


def test_the_main_socket_is_observed_too() -> None:
    lab = Measuring(1, "port-restricted")
    lab.measure()
    assert lab.measured()[-1].observed == (Endpoint(lab.nats.sites["a"].gateway.outer, 7411),)


@pytest.mark.parametrize(("lives_s", "found_s"), [(30, (20.0, 30.0)), (65, (60.0,)), (180, (120.0,)), (8, (5.0,))])
@pytest.mark.parametrize("nat", ["port-restricted", "symmetric"])
def test_the_lifetime_is_measured_in_passing(nat: str, lives_s: int, found_s: tuple[float, ...]) -> None:
    lab = Measuring(1, f"{nat} udp_stream={lives_s} udp_timeout={min(lives_s, 30)}", loss=0.01)
    assert lab.measure().lifetime_s is None
    lab.world.run(200.0)
    assert lab.measured()[-1].behaviour.lifetime_s in found_s
    assert lab.nats.hosts["a1"].sockets.keys() == {0}, "and every socket is closed"


def test_a_change_of_the_network_is_measured_again() -> None:
    lab = Measuring(1, "full-cone")
    lab.measure()
    lab.nats.change("a", mapping="apdm", filtering="apdf")
    lab.nats.flush("a")
    lab.world.tell("a1", "does", "network_changed")
    lab.world.run(lab.world.now + 6.0)
    assert same_class(lab.measured()[-1].behaviour, "symmetric")


def test_another_port_of_the_main_socket_is_noticed_and_told() -> None:
    """The gateway forgets its mappings while nothing is sent: the next one is another port."""
    lab = Measuring(1, "port-restricted-random")
    lab.measure()
    before = lab.measured()[-1].observed
    lab.nats.flush("a")
    lab.world.run(lab.world.now + 25.0)
    assert lab.measured()[-1].observed != before and len(lab.measured()) == 2
    assert lab.measured()[-1].behaviour == lab.measured()[0].behaviour


def test_another_address_is_noticed_and_measured_anew() -> None:
    lab = Measuring(1, "symmetric")
    lab.measure()
    lab.nats.roam("a")
    lab.world.run(lab.world.now + 30.0)
    assert {each.host for each in lab.measured()[-1].observed} == {lab.nats.sites["a"].gateway.outer}


def test_a_mapping_of_the_main_socket_lives_for_hours_without_traffic() -> None:
    lab = Measuring(1, "port-restricted-random", loss=0.02)
    lab.measure()
    lab.world.run(4000.0)
    assert {each.observed for each in lab.measured()} == {lab.measured()[0].observed}


def test_udp_that_becomes_blocked_is_noticed_in_a_minute() -> None:
    lab = Measuring(1, "port-restricted")
    lab.measure()
    lab.nats.change("a", udp=False)
    lab.world.run(lab.world.now + 60.0)
    assert lab.measured()[-1].behaviour.udp is False


def test_a_measurement_sends_less_than_a_hundred_datagrams() -> None:
    lab = Measuring(1, "symmetric", loss=0.05)
    lab.measure()
    assert lab.nats.packets["a1"] < 100
    before = lab.nats.packets["a1"]
    lab.world.run(200.0)
    assert lab.nats.packets["a1"] - before < 100, "and for the lifetime as many"


def test_a_double_nat_shows_when_the_gateway_tells_its_own_outer_address() -> None:
    assert is_double("100.64.0.3", ["203.0.0.1"]) is True
    assert is_double("203.0.0.9", ["203.0.0.1"]) is True
    assert is_double("203.0.0.1", ["203.0.0.1"]) is False
    assert is_double("", ["203.0.0.1"]) is None and is_double("203.0.0.1", []) is None
    lab = Measuring(1, "port-restricted over cgn")
    lab.world.core("a1").measurement.told_outer = lab.nats.sites["a"].gateway.outer
    assert lab.measure().double is True


def seen(*ports: int, by: str = "198.51.100.1", local: int = 5000) -> list[Sighting]:
    return [Sighting(0, Endpoint("10.0.0.2", local), Endpoint(by, 1), Endpoint("203.0.113.1", port)) for port in ports]


def test_sequential_ports_are_recognised_with_gaps_and_steps() -> None:
    assert allocation_of(seen(20010, 20011, 20012, 20013)) == (SEQUENTIAL, 1)
    assert allocation_of(seen(20010, 20012, 20014, 20016)) == (SEQUENTIAL, 2)
    assert allocation_of(seen(20013, 20010, 20019, 20012)) == (SEQUENTIAL, 1), "others took some; out of order"
    assert allocation_of(seen(20010, 40000, 31000, 1025)) == (RANDOM, 0)
    assert allocation_of(seen(5000)) == (KEPT, 0)
    assert allocation_of(seen(5001, 5002)) == (None, 0) and allocation_of([]) == (None, 0)


def test_a_mapping_that_differs_by_address_only_is_address_dependent() -> None:
    assert mapping_of(seen(1, 1) + seen(2, 2, by="198.51.100.2")) is AD
    assert mapping_of(seen(1, 3) + seen(2, 2, by="198.51.100.2")) is APD
    assert mapping_of(seen(1) + seen(2, by="198.51.100.2")) is APD, "nobody has two ports: the safer of the two"
    assert mapping_of(seen(1) + seen(1, by="198.51.100.2")) is EI
    assert mapping_of(seen(1)) is None and mapping_of([]) is None


def test_forged_answers_change_no_measurement() -> None:
    lab = Measuring(2, "symmetric")
    lab.begin()
    asker, witness = lab.world.core("a1").measurement, lab.witness("w0")
    stranger = Keys.derive(bytes(32), lower=False)
    for transaction in list(asker._questions):
        forged = Answer(transaction, Kind.OTHER_PEER, 0, Endpoint("192.0.2.1", 1))
        data = datagrams.write_answer(stranger.sending, forged)
        data = data[:1] + witness.keys.receiving.id + data[9:]
        assert asker.received(Direct(witness.endpoint), data, lab.world.now) == []
    lab.world.run(6.0)
    assert same_class(lab.measured()[-1].behaviour, "symmetric")


PEER = PeerId(b"p" * 32)
MINE, THEIRS = Keys.derive(bytes(32), lower=True), Keys.derive(bytes(32), lower=False)
ROUTE = Direct(Endpoint("203.0.113.7", 4000))


def probe(kind: int, argument: int = 0, transaction: bytes = bytes(8)) -> bytes:
    return datagrams.write_probe(THEIRS.sending, Probe(transaction, kind, 1, argument))


def test_a_witness_answers_by_the_way_it_is_asked_for() -> None:
    witness = Answering(other=1)
    (here,) = witness.received(PEER, MINE, ROUTE, probe(Kind.OBSERVE), 0.0)
    (there,) = witness.received(PEER, MINE, ROUTE, probe(Kind.OTHER_PORT), 0.0)
    (elsewhere,) = witness.received(PEER, MINE, ROUTE, probe(Kind.OTHER_PEER), 0.0)
    assert isinstance(here, SendOver) and here.route == ROUTE
    assert isinstance(there, SendOver) and there.route == Direct(ROUTE.endpoint, 1)
    assert isinstance(elsewhere, HaveSent) and elsewhere.to == ROUTE.endpoint and elsewhere.asker == PEER
    for effect in (here, there, elsewhere):
        answer = datagrams.read_answer(THEIRS.receiving, effect.data)
        assert answer is not None and answer.seen == ROUTE.endpoint and len(effect.data) == 64
    assert Answering(other=None).received(PEER, MINE, ROUTE, probe(Kind.OTHER_PORT), 0.0) == []
    assert witness.received(PEER, MINE, ROUTE, probe(Kind.HAIRPIN), 0.0) == []
    assert witness.received(PEER, MINE, ROUTE, bytes(64), 0.0) == []


def test_a_witness_owes_a_bounded_number_of_late_answers() -> None:
    witness = Answering(other=1)
    for number in range(100):
        assert witness.received(PEER, MINE, ROUTE, probe(Kind.LATER, 30, number.to_bytes(8, "big")), 0.0) == []
    assert witness.next_deadline() == 30.0 and witness.tick(29.9) == []
    assert len(witness.tick(30.0)) == LATER_OF_PEER_MAX and witness.next_deadline() is None
    witness.received(PEER, MINE, ROUTE, probe(Kind.LATER, 301), 30.0)
    assert witness.next_deadline() is None, "nobody keeps a mapping for so long"


def test_a_witness_sends_only_answers_for_others_and_few_of_them() -> None:
    witness, to = Answering(other=1), Endpoint("203.0.113.7", 4000)
    answer = datagrams.write_answer(THEIRS.sending, Answer(bytes(8), Kind.OTHER_PEER, 1, to))
    sent = sum(len(witness.send_for(answer, to, 1.0 + number / 1000)) for number in range(100))
    assert sent == FOR_OTHERS_MAX
    assert witness.send_for(answer, to, 3.0) != []
    assert witness.send_for(b"\xc0" + bytes(1199), to, 5.0) == [] and witness.send_for(probe(1), to, 5.0) == []


def test_sockets_that_open_after_the_measurement_was_stopped_are_nobodys() -> None:
    lab = Measuring(1, "full-cone")
    measurement = Measurement(Random(1), count(1))
    first = [
        effect.socket for effect in measurement.measure([lab.witness("w0")], [], 0.0) if isinstance(effect, OpenSocket)
    ]
    measurement.measure([lab.witness("w0")], [], 0.1)
    assert measurement.opened(first[0], Endpoint("10.0.0.1", 1), 0.2) == []
    measurement.validate()
