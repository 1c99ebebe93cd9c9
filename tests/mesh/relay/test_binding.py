"""One end of a channel, as its owner has it."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.nat.datagrams import Bound, read_bind, write_bound
from lattica.mesh.nat.routes import Endpoint
from lattica.mesh.relay.binding import HASTE_S, KEEP_ALIVE_S, START_MAX_S, TWICE_S, Binding, Effect, Lost, Say

SECRET = bytes(range(32))
HERE, MOVED = Endpoint("192.0.2.7", 4711), Endpoint("192.0.2.8", 4711)


class Relay:
    """Answers BINDs that come by the ways which lead to it, after `delay_s`."""

    def __init__(self, binding: Binding, *ways: Hashable, delay_s: float = 0.01, now: float = 0.0) -> None:
        self.binding, self.ways, self.delay_s, self.now = binding, set(ways), delay_s, now
        self.seen = HERE
        self.where: Hashable = None  # by which way it reaches the binding's owner
        self.binds: list[tuple[float, Hashable]] = []
        self.lost: Lost | None = None
        self._counter = 0
        self._mail: list[tuple[float, bytes]] = []

    def carry(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Lost):
                self.lost = effect
                continue
            self.binds.append((self.now, effect.way))
            bind = read_bind(SECRET, effect.data)
            assert bind is not None
            if effect.way in self.ways and bind.counter > self._counter:
                self._counter, self.where = bind.counter, effect.way
                answer = write_bound(SECRET, Bound(bind.channel, bind.counter, self.seen))
                self._mail.append((self.now + self.delay_s, answer))

    def run(self, until: float) -> None:
        while True:
            due = self.binding.next_deadline()
            times = [at for at in (due, *(at for at, _ in self._mail)) if at is not None]
            if not times or min(times) > until:
                break
            self.now = max(self.now, min(times))
            while self._mail and self._mail[0][0] <= self.now:
                self.binding.bound(self._mail.pop(0)[1], self.now)
            self.carry(self.binding.tick(self.now))
            self.binding.validate()
        self.now = until


def start(*ways: Hashable, leads: tuple[Hashable, ...] | None = None) -> tuple[Binding, Relay]:
    binding = Binding(2, SECRET, Random(7), 0.0)
    relay = Relay(binding, *(ways if leads is None else leads))
    for way in ways:
        relay.carry(binding.add(way, 0.0))
    return binding, relay


def test_it_is_bound_by_the_way_that_leads_to_the_relay_and_both_agree_which_that_is() -> None:
    for leads in (("v4",), ("v6",), ("v4", "v6")):
        binding, relay = start("v4", "v6", leads=leads)
        relay.run(2.0)
        assert binding.way == relay.where and binding.way in leads
        assert binding.seen == HERE and 0.009 < binding.rtt_s < 0.011


def test_a_way_that_is_found_late_is_taken_if_no_other_leads_there() -> None:
    binding, relay = start("udp", leads=("tls",))
    relay.run(0.4)
    assert binding.way is None
    relay.carry(binding.add("tls", 0.4))
    relay.run(0.5)
    assert binding.way == "tls" == relay.where


def test_without_any_answer_it_is_lost_and_says_so_once() -> None:
    binding, relay = start("udp", leads=())
    relay.run(START_MAX_S + 1)
    assert relay.lost is not None and binding.over
    assert binding.tick(99.0) == [] and binding.next_deadline() is None
    assert len(relay.binds) < 20


def test_it_binds_again_before_a_mapping_of_fifteen_seconds_is_forgotten() -> None:
    _, relay = start("udp")
    relay.run(200.0)
    times = [at for at, _ in relay.binds]
    assert max(later - sooner for sooner, later in pairwise(times)) <= KEEP_ALIVE_S
    assert len(times) < 20


def test_a_relay_that_died_is_noticed_within_a_second_and_a_half_of_the_next_packet() -> None:
    binding, relay = start("udp")
    relay.run(5.0)
    relay.ways.clear()
    binding.sent(5.0)
    relay.run(6.5)
    assert relay.lost is not None


def test_a_relay_that_lives_is_not_suspected_because_the_other_end_is_silent() -> None:
    binding, relay = start("udp")
    relay.run(5.0)
    before = len(relay.binds)
    for n in range(100):
        binding.sent(relay.now)
        relay.run(5.0 + n * 0.1)
    assert relay.lost is None
    assert 5 <= len(relay.binds) - before <= 12, "about one question a second"


def test_while_packets_come_the_relay_is_not_asked() -> None:
    binding, relay = start("udp")
    relay.run(1.0)
    before = len(relay.binds)
    for n in range(100):
        binding.sent(relay.now)
        binding.heard(relay.now)
        relay.run(1.0 + n * 0.1)
    assert len(relay.binds) - before <= 1


def test_a_way_that_carries_nothing_from_us_is_noticed_although_packets_come_by_it() -> None:
    binding, relay = start("udp", "tls")
    relay.run(1.0)
    relay.ways = {"tls"}
    while binding.way == "udp" and relay.now < 40:
        binding.heard(relay.now)
        relay.run(relay.now + 0.1)
    assert binding.way == "tls" and relay.now < KEEP_ALIVE_S + 2


def test_lost_answers_while_packets_come_are_no_death() -> None:
    binding, relay = start("udp")
    relay.run(1.0)
    relay.ways.clear()
    relay.carry(binding.doubt(1.0))
    for _ in range(15):
        binding.heard(relay.now)
        relay.run(relay.now + 0.1)
    relay.ways.add("udp")
    relay.run(4.0)
    assert relay.lost is None and binding.way == "udp"


def test_one_lost_answer_is_no_death() -> None:
    binding, relay = start("udp")
    relay.run(1.0)
    relay.ways.clear()
    relay.carry(binding.doubt(1.0))
    relay.ways.add("udp")
    relay.run(3.0)
    assert relay.lost is None and not binding.over


def test_a_firewall_that_shuts_udp_later_is_got_round_by_the_other_way() -> None:
    binding, relay = start("udp", "tls")
    relay.run(1.0)
    relay.ways = {"tls"}
    binding.sent(1.0)
    relay.run(3.0)
    assert relay.lost is None and binding.way == "tls" == relay.where


def test_udp_is_used_again_when_a_firewall_has_opened_and_until_then_nothing_is_lost() -> None:
    binding, relay = start("udp", "tls", leads=("tls",))
    relay.run(1.0)
    assert binding.way == "tls"
    for _ in range(5):
        relay.run(relay.now + KEEP_ALIVE_S)
        assert binding.way == "tls" == relay.where
    relay.ways.add("udp")
    relay.run(relay.now + KEEP_ALIVE_S + 1)
    assert binding.way == "udp" == relay.where and relay.lost is None


def test_the_second_question_to_a_silent_relay_comes_soon_since_its_owner_then_looks_for_another_way() -> None:
    binding, relay = start("udp")
    relay.run(5.0)
    relay.ways.clear()
    relay.carry(binding.doubt(5.0))
    relay.run(8.0)
    first, second, third, *_ = [at for at, _ in relay.binds if at >= 5.0]
    assert first == 5.0 and second <= 5.0 + TWICE_S + 0.011 and third - second > HASTE_S


def test_a_change_of_address_is_told_at_once_and_the_new_one_is_known() -> None:
    binding, relay = start("udp")
    relay.run(3.0)
    relay.seen = MOVED
    relay.carry(binding.moved(3.0))
    relay.run(3.1)
    assert binding.seen == MOVED


def test_a_connection_that_has_ended_is_no_way_any_more() -> None:
    binding, relay = start("tls")
    relay.run(1.0)
    relay.carry(binding.remove("tls", 1.0))
    relay.run(4.0)
    assert relay.lost is not None


@given(st.binary(max_size=70), st.integers(0, 1 << 64))
def test_a_forged_bound_changes_nothing(noise: bytes, counter: int) -> None:
    binding, relay = start("udp", leads=())
    relay.run(1.0)
    forged = write_bound(bytes(32), Bound(2, counter % (1 << 64), MOVED))
    for data in (noise, forged, forged[:-1] + noise[:1]):
        assert not binding.bound(data, 1.0)
    assert binding.way is None


@given(st.lists(st.tuples(st.sampled_from("sht+-mba"), st.integers(0, 9)), max_size=60))
def test_whatever_happens_to_it_a_binding_keeps_its_rules(steps: list[tuple[str, int]]) -> None:
    binding, relay = start("a", "b")
    for what, number in steps:
        relay.run(relay.now + number * 0.1)
        way = "abcdefghi"[number - 1]
        match what:
            case "s":
                binding.sent(relay.now)
            case "h":
                binding.heard(relay.now)
            case "t":
                relay.carry(binding.doubt(relay.now))
            case "+":
                relay.carry(binding.add(way, relay.now))
            case "-":
                relay.carry(binding.remove(way, relay.now))
            case "m":
                relay.carry(binding.moved(relay.now))
            case "b":
                relay.ways = {way}
            case "a":
                relay.ways = set("abcdefghi")
        binding.validate()
    if not binding.over and relay.lost is None:
        relay.ways = set("abcdefghi")
        relay.carry(binding.add("a", relay.now))
        relay.run(relay.now + 20)
        assert relay.lost is not None or binding.way == relay.where


def test_what_it_says_is_a_bind_by_a_way() -> None:
    binding = Binding(2, SECRET, Random(7), 0.0)
    (said,) = binding.add("udp", 0.0)
    assert isinstance(said, Say) and said.way == "udp" and len(said.data) == 64
