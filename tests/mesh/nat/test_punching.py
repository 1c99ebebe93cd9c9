"""Which pairs become direct, by which method and how soon, in a simulated internet of netlab's NAT types."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement, count
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.identity import PeerId
from lattica.mesh.nat import salvos
from lattica.mesh.nat.attempts import (
    Again,
    Attempted,
    BecameDirect,
    Go,
    Introduce,
    Introduced,
    Introduction,
    Later,
    Message,
    Prepare,
    Readiness,
    Ready,
    Situation,
    StaysRelayed,
    Tell,
)
from lattica.mesh.nat.behaviour import Behaviour, Dependence
from lattica.mesh.nat.candidates import Candidate, Source
from lattica.mesh.nat.datagrams import Keys
from lattica.mesh.nat.measuring import Witness
from lattica.mesh.nat.methods import ROUNDS, Method
from lattica.mesh.nat.punching import AGAINS_FREE, AGAINS_S, ANEW_S, FOLLOWED_MAX, PAUSES_S, SETTLED_S, Puncher
from lattica.mesh.nat.rounds import BIRTHDAYS_AN_HOUR, Budget
from lattica.mesh.nat.routes import MAIN, Direct, Endpoint, OpenSocket, SendOver, is_sendable
from lattica.testing.nat_nodes import NatLab
from lattica.testing.world import World

DIAL, SIMULTANEOUS, PREDICTION, BIRTHDAY, TCP = Method
BEGINS = 5.0  # when both meet; they have measured by then
WITHIN_S = {DIAL: 1.0, SIMULTANEOUS: 1.0, PREDICTION: 2.0, BIRTHDAY: 5.0, TCP: 1.0}

CONES = ("public", "full-cone")
OPEN_TO_ADDRESSES = (*CONES, "restricted-cone")
STRICT = ("firewall", "port-restricted", "port-restricted-random", "double")
SYMMETRIC = ("address-symmetric", "symmetric", "symmetric-seq")
TYPES = (*OPEN_TO_ADDRESSES, *STRICT, *SYMMETRIC, "udp-blocked", "tcp443-only")


def method_of(one: str, other: str) -> Method | None:
    """What FACTS' table of kernel NATs says: by which method this pair goes; None: relayed."""
    pair = {one, other}
    if "tcp443-only" in pair:
        return None
    if "udp-blocked" in pair:
        return None if pair & set(SYMMETRIC) else TCP
    if pair & set(CONES):
        return DIAL
    symmetric = [each for each in (one, other) if each in SYMMETRIC]
    if len(symmetric) == 2:
        return PREDICTION if pair == {"symmetric-seq"} else None
    if not symmetric or pair & set(OPEN_TO_ADDRESSES):
        return SIMULTANEOUS
    return PREDICTION if "symmetric-seq" in pair else BIRTHDAY


def build(lab: NatLab, name: str, nat: str, loss: float, **dials: object) -> None:
    if nat == "double":
        lab.nats.site(f"isp{name}", "cgn", hosts=0)
        lab.nats.site(name, "port-restricted", wan_s=0.005, loss=loss, upstream=f"isp{name}")
    else:
        lab.nats.site(name, nat, loss=loss, **dials)  # type: ignore[arg-type]


def meet(
    seed: int,
    a: str,
    b: str,
    *,
    loss: float = 0.0,
    birthday: bool = True,
    for_s: float = 12.0,
    every_s: float = 0.1,
    **dials: object,
) -> NatLab:
    lab = NatLab(World(seed), birthday=birthday)
    for name, nat in (("a", a), ("b", b)):
        build(lab, name, nat, loss, **dials)
        lab.add(f"{name}1")
    lab.begin()
    lab.world.run(BEGINS)
    lab.talk("a1", "b1", every_s)
    lab.world.run(BEGINS + for_s)
    return lab


def became(lab: NatLab) -> list[tuple[float, BecameDirect]]:
    """When, since both have met."""
    return [(at - BEGINS, event) for at, _, event in lab.events(BecameDirect) if isinstance(event, BecameDirect)]


@pytest.mark.parametrize(("one", "other"), [*combinations_with_replacement(TYPES, 2)])
def test_every_pair_goes_by_the_method_that_kernel_nats_allow(one: str, other: str) -> None:
    expected = method_of(one, other)
    for a, b in dict.fromkeys(((one, other), (other, one))):
        lab = meet(1, a, b, every_s=0.25, for_s=12.0 if expected in (None, BIRTHDAY) else 5.0)
        found = became(lab)
        assert lab.is_direct("a1", "b1") == (expected is not None), f"{a} x {b}: {lab.events(Attempted)}"
        if expected is None:
            assert any(isinstance(event, StaysRelayed) for _, _, event in lab.world.events)
        else:
            assert found[0][1].method is expected and found[0][0] <= WITHIN_S[expected], f"{a} x {b}: {found}"
        gaps = [lab.node("a1").longest["b1"], lab.node("b1").longest["a1"]]
        assert max(gaps) <= 0.5, "meanwhile packets flow by the relay"


@pytest.mark.parametrize(("strict", "symmetric"), [("port-restricted", "symmetric"), ("firewall", "address-symmetric")])
def test_birthdays_succeed_within_five_seconds_and_their_bounds(strict: str, symmetric: str) -> None:
    labs = [
        meet(seed, *((strict, symmetric) if seed % 2 else (symmetric, strict)), loss=0.01, for_s=6)
        for seed in range(20)
    ]
    soon = [lab for lab in labs if (found := became(lab)) and found[0][0] <= 5.0]
    assert len(soon) >= 19, f"{len(soon)} of 20"
    shots = [event.shots for lab in labs for _, _, event in lab.events(Attempted) if isinstance(event, Attempted)]
    median = sorted(shots)[len(shots) // 2]
    print(f"{strict} x {symmetric}: {len(soon)} of 20, shots of a side {median}, at most {max(shots)}")
    assert max(shots) <= salvos.GUESSES
    for lab in labs:
        assert all(len(lab.nats.hosts[name].sockets) <= 5 for name in ("a1", "b1")), "all others are closed"


@pytest.mark.parametrize("nat", ["port-restricted", "symmetric", "symmetric-seq"])
def test_guesses_are_not_spoilt_by_a_gateway_without_a_firewall(nat: str) -> None:
    """What arrives there before the other side has sent is noted by the gateway, and bars the way back."""
    for seed in range(5):
        other = "port-restricted" if nat != "port-restricted" else "symmetric"
        lab = meet(seed, f"{nat} unsolicited=accept", f"{other} unsolicited=accept", for_s=6)
        assert became(lab), f"seed {seed}: {lab.events(Attempted)}"


def test_birthdays_reach_through_a_second_gateway() -> None:
    for seed in range(5):
        lab = NatLab(World(seed))
        lab.nats.site("isp", "symmetric", hosts=0)
        lab.nats.site("a", "port-restricted", upstream="isp", wan_s=0.005)
        lab.nats.site("b", "port-restricted")
        lab.add("a1")
        lab.add("b1")
        lab.begin()
        lab.world.run(BEGINS)
        lab.talk("a1", "b1")
        lab.world.run(BEGINS + 6)
        assert became(lab)[0][1].method is BIRTHDAY, f"seed {seed}: {lab.events(Attempted)}"


def test_two_sequential_allocators_meet_nearly_always() -> None:
    labs = [meet(seed, "symmetric-seq", "symmetric-seq", loss=0.01, for_s=8) for seed in range(20)]
    direct = sum(lab.is_direct("a1", "b1") for lab in labs)
    print(f"symmetric-seq x symmetric-seq: {direct} of 20")
    assert direct >= 18, f"{direct} of 20"


@pytest.mark.parametrize("loss", [0.025, 0.05])
def test_simultaneous_sends_get_through_loss(loss: float) -> None:
    for seed in range(10):
        found = became(meet(seed, "port-restricted", "port-restricted", loss=loss, for_s=3))
        assert found and found[0][0] <= 2.0, f"seed {seed}: {found}"


@pytest.mark.parametrize("unsolicited", ["accept", "reject"])
def test_gateways_that_answer_early_packets_do_not_spoil_the_punch(unsolicited: str) -> None:
    """The sides begin apart: what says Go is often retransmitted, so that one begins 0.2 s late."""
    for seed in range(10):
        nat = f"port-restricted unsolicited={unsolicited}"
        lab = meet(seed, nat, nat, loss=0.05, for_s=6)
        found = became(lab)
        assert found and found[0][0] <= 5.0, f"seed {seed}: {lab.events(Attempted)}"


def test_two_hosts_behind_one_nat_without_hairpin_meet_on_their_lan() -> None:
    lab = NatLab(World(1))
    lab.nats.site("a", "symmetric", hosts=2)
    for name in ("a1", "a2"):
        lab.add(name)
    lab.begin()
    lab.world.run(BEGINS)
    lab.talk("a1", "a2")
    lab.world.run(BEGINS + 3)
    assert lab.node("a1").tables["a2"].current == Direct(lab.nats.local("a2"))
    assert lab.is_direct("a1", "a2")


@pytest.mark.parametrize("hairpin", [True, False])
def test_two_homes_behind_one_carrier_meet_if_it_hairpins(hairpin: bool) -> None:
    lab = NatLab(World(1))
    lab.nats.site("isp", "cgn" if hairpin else "cgn hairpin=no", hosts=0)
    for name in ("a", "b"):
        lab.nats.site(name, "port-restricted", upstream="isp", wan_s=0.005)
        lab.add(f"{name}1")
    lab.begin()
    lab.world.run(BEGINS)
    lab.talk("a1", "b1")
    lab.world.run(BEGINS + 12)
    assert lab.is_direct("a1", "b1") == hairpin


def test_ipv6_makes_two_symmetric_nats_direct() -> None:
    lab = meet(1, "symmetric", "symmetric", ipv6="stateful")
    current = lab.node("a1").tables["b1"].current
    assert isinstance(current, Direct) and current.endpoint.is_ipv6


def test_a_mapped_port_makes_two_symmetric_nats_direct() -> None:
    lab = NatLab(World(1))
    lab.nats.site("a", "symmetric portmap")
    lab.nats.site("b", "symmetric")
    for name in ("a1", "b1"):
        lab.add(name)
    lab.map_port("a1")
    lab.begin()
    lab.world.run(BEGINS)
    lab.talk("a1", "b1")
    lab.world.run(BEGINS + 3)
    assert lab.is_direct("a1", "b1") and became(lab)[0][1].method is DIAL


def test_birthdays_can_be_switched_off() -> None:
    lab = meet(1, "port-restricted", "symmetric", birthday=False)
    assert not lab.is_direct("a1", "b1")
    assert not any(event.method is BIRTHDAY for _, _, event in lab.events(Attempted) if isinstance(event, Attempted))
    assert max(lab.nats.packets[name] for name in ("a1", "b1")) < 1000


def test_birthdays_are_ten_an_hour_for_all_peers_together() -> None:
    budget = Budget()
    assert sum(budget.take(second) for second in range(100)) == BIRTHDAYS_AN_HOUR
    assert not budget.take(54.1), "one at a time"
    assert not budget.take(3599.0) and budget.take(3601.0)
    assert not Budget(0).take(0.0)


def test_after_a_udp_punch_bulk_gets_a_tcp_connection() -> None:
    lab = meet(1, "port-restricted", "full-cone")
    lab.world.tell("a1", "punch", "b1", (TCP,))
    lab.world.run(lab.world.now + 3)
    assert became(lab)[-1][1].method is TCP and lab.node("a1").tcp == {"b1"}
    assert isinstance(lab.node("a1").tables["b1"].current, Direct), "the path stays as it is"


@pytest.mark.parametrize("site", ["a", "b"])
@pytest.mark.parametrize(
    ("one", "other", "within_s"),
    [
        ("port-restricted", "port-restricted", 1.5),
        ("restricted-cone", "symmetric", 1.5),
        ("full-cone", "symmetric-seq", 1.5),
        ("symmetric-seq", "port-restricted", 1.5),
        ("symmetric-seq", "symmetric-seq", 3.0),
        ("double", "port-restricted", 1.5),
        ("port-restricted", "symmetric", 5.0),
    ],
)
def test_a_direct_pair_is_direct_again_soon_after_its_public_address_changed(
    one: str, other: str, within_s: float, site: str
) -> None:
    """What both knew of their sockets is true no more; half a second of this is until the silence is noticed."""
    lab = meet(2, one, other, for_s=5, every_s=0.2)
    assert lab.is_direct("a1", "b1")
    lab.nats.roam(site)
    lab.world.run(lab.world.now + within_s)
    assert lab.is_direct("a1", "b1"), lab.events(Attempted)
    assert max(lab.node("a1").longest["b1"], lab.node("b1").longest["a1"]) <= 1.1


def test_a_pair_that_was_direct_prepares_fresh_sockets_first_and_waits_for_no_witness_where_there_is_none() -> None:
    lead, follow = puncher(lower=True), puncher()
    for side in (lead, follow):
        side.proven(Direct(Endpoint("203.0.113.1", 7411)), 0.0)
    said = tells(lead.punch(1.0))
    answers = tells([effect for each in said for effect in follow.said(each, 1.0)])  # type: ignore[arg-type]
    effects = [effect for each in answers for effect in lead.said(each, 1.0)]  # type: ignore[arg-type]
    assert [word.round for word in tells(effects) if isinstance(word, Prepare)] == [ROUNDS[SIMULTANEOUS] + 1]
    (fresh,) = [effect.socket for effect in effects if isinstance(effect, OpenSocket)]
    lead.opened(fresh, Endpoint("10.0.0.2", 5000), 1.1)
    assert lead.observes is False


def test_a_renewed_round_without_fresh_sockets_asks_a_witness_as_it_begins() -> None:
    lead = puncher(lower=True)
    strict = msgspec.structs.replace(INTRODUCTION.behaviour, filtering=Dependence.ADDRESS_AND_PORT)
    symmetric = msgspec.structs.replace(INTRODUCTION.behaviour, mapping=Dependence.ADDRESS_AND_PORT)
    witness = Witness(PeerId(bytes(32)), Keys.derive(bytes(32), lower=True), Endpoint("198.51.100.1", 7411))
    lead.situation = Situation(msgspec.structs.replace(INTRODUCTION, behaviour=strict), (witness,))
    lead.proven(Direct(Endpoint("203.0.113.1", 7411)), 0.0)
    lead.punch(1.0)
    effects = lead.said(Introduced(1, msgspec.structs.replace(INTRODUCTION, behaviour=symmetric)), 1.0)
    assert Prepare(1, ROUNDS[BIRTHDAY] + 1, BIRTHDAY) in tells(effects)
    assert [effect.route for effect in effects if isinstance(effect, SendOver)] == [Direct(witness.endpoint)]
    due = lead.next_deadline()
    assert due is not None and due > 1.0, "nothing is left to do at once"


def test_who_punches_in_vain_pauses_longer_each_time() -> None:
    lab = meet(1, "symmetric", "symmetric", for_s=2000.0, every_s=20.0)
    stays = [event for _, name, event in lab.events(StaysRelayed, "a1") if isinstance(event, StaysRelayed)]
    assert len(stays) == 4 and "no method" in stays[0].reason and "symmetric NAT, random ports" in stays[0].reason
    assert stays[0].again_s <= 36 and stays[-1].again_s > 2800


def test_each_round_leaves_a_record() -> None:
    lab = meet(1, "port-restricted", "port-restricted")
    (record,) = [event for _, _, event in lab.events(Attempted, "a1")]
    assert isinstance(record, Attempted)
    assert record.direct and record.method is SIMULTANEOUS and record.round == 1 and 0 < record.took_s < 1
    lab = NatLab(World(1))
    assert lab.events(Attempted) == []


def test_all_rounds_are_bounded() -> None:
    places = [Endpoint(f"203.0.113.{number}", 7411) for number in range(6)]
    assert len(salvos.simultaneous(places, MAIN)) <= 200 and len(salvos.dial(places, MAIN)) <= 36
    assert len(salvos.predicted("203.0.113.1", range(1024, 2000), MAIN)) == salvos.WINDOW * len(salvos.PASSES_S)
    spray = salvos.spray("203.0.113.1", MAIN, Random(1))
    assert len(spray) == len({shot.route for shot in spray}) == salvos.GUESSES
    assert spray[-1].at_s == pytest.approx(salvos.GUESSES / salvos.RATE, abs=0.01)
    assert len(salvos.fan(range(256), places[0], double=False)) == 512


def test_predicted_ports_follow_the_last_and_wrap_above_1024() -> None:
    assert salvos.next_ports([20010, 20011], 1)[:3] == (20012, 20013, 20014)
    assert salvos.next_ports([20010, 20012], 2)[:3] == (20014, 20016, 20018)
    assert salvos.next_ports([65534, 65535], 1)[:2] == (1024, 1025)
    assert len(salvos.next_ports([5000], 0)) == salvos.WINDOW


def puncher(*, lower: bool = False) -> Puncher:
    made = Puncher(
        Keys.derive(bytes(32), lower=lower), Random(1), count(2), Budget(), lambda socket: False, lower=lower
    )
    made.situation = Situation(INTRODUCTION)
    return made


INTRODUCTION = Introduction(Behaviour(udp=True), ())


def tells(effects: Sequence[object]) -> list[object]:
    return [effect.message for effect in effects if isinstance(effect, Tell)]


def test_words_of_another_attempt_or_out_of_turn_change_nothing() -> None:
    follower = puncher()
    assert follower.punch(0.0) == [], "the lower leads"
    assert tells(follower.said(Introduce(7, INTRODUCTION), 0.0)) == [Introduced(7, INTRODUCTION)]
    for stray in (
        Go(6, 1, SIMULTANEOUS, Readiness()),
        Introduced(7, INTRODUCTION),
        Ready(7, 1, Readiness(), 0.0),
        Prepare(6, 1, BIRTHDAY),
        Go(7, 1, BIRTHDAY, Readiness()),
    ):
        assert follower.said(stray, 0.1) == [] and not follower.busy
    leader = puncher(lower=True)
    assert leader.said(Introduce(1, INTRODUCTION), 0.0) == leader.said(Go(0, 1, DIAL, Readiness()), 0.0) == []


def test_a_leader_whose_words_are_not_answered_gives_up_for_a_while() -> None:
    leader = puncher(lower=True)
    assert tells(leader.punch(0.0)) == [Introduce(1, INTRODUCTION)]
    assert leader.punch(1.0) == [], "one attempt at a time"
    due = leader.next_deadline()
    assert due is not None
    (stays,) = leader.tick(due)
    assert isinstance(stays, StaysRelayed) and "does not answer" in stays.reason
    again = leader.next_deadline()
    assert again is not None and again - due == pytest.approx(stays.again_s)
    assert tells(leader.tick(again)) == [Introduce(2, INTRODUCTION)]


def test_a_side_that_is_busy_with_a_birthday_says_when_to_come_again() -> None:
    follower, leader = puncher(), puncher(lower=True)
    symmetric = msgspec.structs.replace(INTRODUCTION.behaviour, mapping=Dependence.ADDRESS_AND_PORT)
    leader.situation = Situation(msgspec.structs.replace(INTRODUCTION, behaviour=symmetric))
    strict = msgspec.structs.replace(INTRODUCTION.behaviour, filtering=Dependence.ADDRESS_AND_PORT)
    follower.situation = Situation(msgspec.structs.replace(INTRODUCTION, behaviour=strict))
    follower._budget.take(0.0)
    said = tells(leader.punch(0.1))
    while said:  # each hears what the other says, at once
        said = tells([effect for each in said for effect in follower.said(each, 0.1)])  # type: ignore[arg-type]
        words, said = said, tells([effect for each in said for effect in leader.said(each, 0.1)])  # type: ignore[arg-type]
    (later,) = words
    assert isinstance(later, Later) and 0 < later.again_s <= 2 * salvos.BIRTHDAY_S
    assert leader.next_deadline() == pytest.approx(0.1 + later.again_s), "which is no failure, and no longer pause"


hosts = st.one_of(st.ip_addresses().map(str), st.sampled_from(["gpu.example.org", "", "224.0.0.1", "127.0.0.1", "::"]))
endpoints = st.builds(Endpoint, hosts, st.integers(-5, 70_000))
candidates = st.lists(st.builds(Candidate, st.sampled_from(Source), endpoints), max_size=40).map(tuple)
introductions = st.builds(
    Introduction,
    st.builds(Behaviour, st.sampled_from([None, True, False]), st.booleans(), st.sampled_from(Dependence)),
    candidates,
    st.lists(endpoints, max_size=9).map(tuple),
)
readinesses = st.builds(Readiness, st.none() | endpoints, st.lists(st.integers(-9, 1 << 70), max_size=40).map(tuple))
numbers, methods, seconds = st.integers(0, 4), st.sampled_from(Method), st.floats()
messages = st.one_of(
    st.builds(Introduce, st.just(1), introductions),
    st.builds(Introduced, st.just(1), introductions),
    st.builds(Prepare, st.just(1), numbers, methods),
    st.builds(Ready, st.just(1), numbers, readinesses, seconds),
    st.builds(Go, st.just(1), numbers, methods, readinesses),
    st.builds(Later, st.just(1), seconds),
)


@given(st.booleans(), st.lists(messages, min_size=1, max_size=12))
def test_whatever_the_other_side_says_is_survived_and_nothing_is_sent_where_nothing_can_be(
    lower: bool, said: list[Message]
) -> None:
    one, now, effects = puncher(lower=lower), 0.0, list[object]()
    effects += one.punch(now)
    for message in said:
        effects += one.said(message, now)
        for socket in [effect.socket for effect in effects if isinstance(effect, OpenSocket)]:
            if one.awaits(socket):
                effects += one.opened(socket, Endpoint("10.0.0.2", 5000), now)
        one.validate()
        due = one.next_deadline()
        assert due is None or due <= now + 1.2 * PAUSES_S[-1], "and it never waits for ever"
        now = max(now, due) if due is not None else now + 0.1
        effects += one.tick(now)
    for effect in effects:
        if isinstance(effect, SendOver):
            assert isinstance(effect.route, Direct) and is_sendable(effect.route.endpoint)


@pytest.mark.parametrize("prepares", [False, True])
def test_a_leader_cannot_have_others_send_to_a_stranger_faster_than_rounds_follow_each_other(prepares: bool) -> None:
    stranger = Candidate(Source.CONFIGURED, Endpoint("203.0.113.9", 53))
    theirs = Introduction(Behaviour(udp=True, mapped=True), (stranger,))
    follower, sent = puncher(), 0
    follower.said(Introduce(1, theirs), 0.0)
    for number in range(1, 10_000):
        now = number / 500
        words = [Prepare(1, number, SIMULTANEOUS)] if prepares else []
        for word in (*words, Go(1, number, DIAL, Readiness())):
            sent += sum(isinstance(effect, SendOver) for effect in follower.said(word, now))
    assert sent <= FOLLOWED_MAX * len(salvos.DIAL_S), f"{sent} datagrams within 20 s"
    later = follower.said(Prepare(1, 1, SIMULTANEOUS), 20.0)
    assert any(isinstance(word, Later) for word in tells(later))
    assert any(isinstance(effect, SendOver) for effect in follower.said(Go(1, 1, DIAL, Readiness()), 90.0))


def test_nobody_is_punched_before_it_is_known_what_we_are_behind() -> None:
    leader = puncher(lower=True)
    leader.situation = None
    assert leader.punch(0.0) == [] and leader.said(Introduced(1, INTRODUCTION), 0.0) == []


def test_sources_are_told_in_the_order_of_their_worth() -> None:
    assert list(Source) == [Source.CONFIGURED, Source.MAPPED, Source.HOST, Source.OBSERVED, Source.LAN]


def test_a_follower_that_knows_more_has_the_leader_try_again_at_once_but_not_without_bounds() -> None:
    leader, follower = puncher(lower=True), puncher()
    assert tells(leader.again(0.0)) == [Introduce(1, INTRODUCTION)], "the leader needs to ask nobody"
    assert tells(follower.again(0.0)) == [Again(0)]
    follower.situation = None
    assert follower.again(0.0) == [], "who knows nothing of itself has nothing to say"
    leader = puncher(lower=True)
    for attempt in range(1, AGAINS_FREE + 1):
        assert tells(leader.said(Again(attempt - 1), 5.0 * attempt)) == [Introduce(attempt, INTRODUCTION)]
        leader.tick(5.0 * attempt + 4.5)  # nobody answers
    assert leader.said(Again(9), 30.0) == []
    assert tells(leader.said(Again(9), 30.0 + AGAINS_S)) == [Introduce(AGAINS_FREE + 1, INTRODUCTION)]


def test_an_attempt_that_waits_for_a_side_that_knew_nothing_of_itself_begins_anew_when_it_does() -> None:
    leader = puncher(lower=True)
    leader.punch(0.0)
    assert tells(leader.said(Again(0), 1.0)) == [Introduce(2, INTRODUCTION)]


def test_a_round_that_was_overtaken_by_news_is_cut_short_and_another_attempt_follows() -> None:
    leader = puncher(lower=True)
    leader.punch(0.0)
    leader.said(Introduced(1, INTRODUCTION), 0.1)
    assert leader.busy and leader.said(Again(1), 0.5) == []
    effects = leader.tick(0.5 + SETTLED_S)
    stays = effects[-1]
    assert isinstance(stays, StaysRelayed) and stays.again_s <= ANEW_S
    assert tells(leader.tick(0.5 + SETTLED_S + ANEW_S)) == [Introduce(2, INTRODUCTION)]
