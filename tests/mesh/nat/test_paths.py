"""Which way the packets of a peer take: direct when there is one, another when it dies, and no flapping."""

from __future__ import annotations

from random import Random

import pytest

from lattica.mesh.nat import datagrams, paths
from lattica.mesh.nat.datagrams import Keys, Kind, Probe
from lattica.mesh.nat.path import PathProven, SeenAs, Suspected, Switched
from lattica.mesh.nat.paths import PathTable
from lattica.mesh.nat.routes import Direct, Endpoint, SendOver, ViaRelay
from tests.mesh.nat.talkers import RELAYS, Pair

SEEDS = range(4)
ELSEWHERE = Direct(Endpoint("198.51.100.9", 7411))


def direct_pair(seed: int, **dials: float) -> Pair:
    """Two peers that talk over a direct path, with two relays behind it; 5 s have passed."""
    pair = Pair(seed, **dials)
    pair.relayed()
    pair.world.run(0.5)
    pair.talk()
    for name, other in (("a1", "b"), ("b1", "a")):
        pair.world.tell(name, "table_does", "add", Direct(pair.outer(other)))
    pair.world.run(5.0)
    return pair


def is_direct(pair: Pair) -> bool:
    return all(isinstance(pair.table(name).current, Direct) for name in ("a1", "b1"))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_relayed_pair_becomes_direct_as_soon_as_a_direct_path_answers(seed: int) -> None:
    pair = Pair(seed)
    pair.relayed()
    pair.world.run(1.0)
    assert pair.table("a1").current == pair.channels["relay"], "the nearer relay carries it"
    pair.talk()
    pair.world.run(2.0)
    for name, other in (("a1", "b"), ("b1", "a")):
        pair.world.tell(name, "table_does", "add", Direct(pair.outer(other)))
    pair.world.run(2.6)
    assert is_direct(pair)
    assert pair.gap_s(1.2) < 0.2
    pair.world.run(30.0)
    assert len(pair.events(Switched, since=3.0)) == 0, "and stays so"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", [0.0, 0.02])
def test_a_dead_direct_path_gives_way_to_the_relay_within_a_second(seed: int, loss: float) -> None:
    pair = direct_pair(seed, loss=loss)
    assert is_direct(pair)
    for site in ("a", "b"):  # direct packets die in both directions, the channels' go on
        pair.nats.change(site, udp=False)
    pair.world.run(8.0)
    assert not is_direct(pair)
    assert pair.gap_s(5.0) <= 0.6
    for site in ("a", "b"):
        pair.nats.change(site, udp=True)
    pair.world.run(30.0)
    assert is_direct(pair), "and is used again when it lives again"


def test_a_path_on_which_packets_flow_is_missed_sooner() -> None:
    pair = direct_pair(1)
    pair.talk(0.01)
    pair.world.run(6.0)
    for site in ("a", "b"):
        pair.nats.change(site, udp=False)
    pair.world.run(8.0)
    assert pair.gap_s(6.0) <= 0.42


@pytest.mark.parametrize("seed", SEEDS)
def test_a_dead_relay_is_replaced_within_three_seconds(seed: int) -> None:
    pair = Pair(seed, "symmetric", "symmetric")
    pair.relayed()
    pair.world.run(1.0)
    pair.talk()
    pair.world.run(5.0)
    assert pair.table("a1").current == pair.table("b1").current == pair.channels["relay"]
    pair.world.crash("relay", power=True)
    pair.world.run(12.0)
    assert pair.table("a1").current == pair.table("b1").current == pair.channels["spare"]
    assert pair.gap_s(5.0) <= 1.5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_relay_that_dies_while_nobody_talks_is_replaced_when_it_is_missed(seed: int) -> None:
    pair = Pair(seed, "symmetric", "symmetric")
    pair.relayed()
    pair.world.run(40.0)
    pair.world.crash("relay", power=True)
    pair.world.run(40.5)
    pair.talk()
    pair.world.run(50.0)
    assert pair.gap_s(40.5) <= 3.0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nat", ["full-cone", "port-restricted", "port-restricted-random"])
def test_flushed_connection_tracking_costs_less_than_a_second(seed: int, nat: str) -> None:
    pair = direct_pair(seed, a=nat) if nat != "port-restricted-random" else direct_pair(seed)
    pair.nats.change("a", ports="random" if nat.endswith("random") else "preserve")
    pair.world.run(6.0)
    assert is_direct(pair)
    pair.nats.flush("a")
    pair.world.run(20.0)
    assert pair.gap_s(6.0) <= 1.0
    assert is_direct(pair)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_peer_whose_public_address_changes_is_followed_in_a_second(seed: int) -> None:
    pair = direct_pair(seed)
    pair.nats.roam("a")
    pair.world.run(20.0)
    assert pair.gap_s(5.0) <= 1.0
    assert is_direct(pair)
    assert pair.table("b1").current == Direct(pair.outer("a"))
    seen = [event.endpoint for _, name, event in pair.events(SeenAs, since=5.0) if name == "a1"]
    assert pair.outer("a") in seen, "it learns how it is seen now, and so that it is to measure again"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_change_that_is_told_is_followed_faster(seed: int) -> None:
    pair = direct_pair(seed)
    pair.nats.roam("a")
    pair.world.tell("a1", "table_does", "network_changed")
    pair.world.run(20.0)
    assert pair.gap_s(5.0) <= 0.6 and is_direct(pair)


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_a_path_that_comes_and_goes_is_not_followed_each_time(seed: int) -> None:
    pair = direct_pair(seed)

    def flap(udp: bool) -> None:
        for site in ("a", "b"):
            pair.nats.change(site, udp=udp)
        pair.world.after(2.0, flap, not udp)

    flap(False)
    pair.world.run(125.0)
    switches = len(pair.events(Switched, since=5.0)) / 2
    assert switches <= 12, f"{switches} switches of each side in 30 deaths"


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_five_percent_loss_neither_ends_a_path_nor_makes_it_flap(seed: int) -> None:
    pair = direct_pair(seed, loss=0.025)
    pair.world.run(125.0)
    assert len(pair.events(Switched, since=5.0)) <= 4
    if not is_direct(pair):  # it was left for six lost of sixteen, which is seldom, and comes back
        pair.world.run(145.0)
    assert is_direct(pair)


def test_a_direct_path_that_loses_a_third_is_left_for_a_sound_relay() -> None:
    pair = direct_pair(3)
    assert is_direct(pair)
    table = pair.table("a1")
    direct = next(path for path in table.paths if path.is_direct)
    for number in range(16):
        direct.outcomes.append(number % 3 != 0)
    pair.world.tell("a1", "table_does", "tick")
    assert isinstance(table.current, ViaRelay)


def test_idle_paths_are_kept_alive_at_half_the_measured_lifetime() -> None:
    def probes_a_minute(lifetime_s: float | None) -> float:
        pair = direct_pair(1)
        for name in ("a1", "b1"):
            pair.world.core(name)._send_at = float("inf")
            if lifetime_s:
                pair.table(name).keep_alive(lifetime_s)
        pair.world.run(60.0)
        before = pair.nats.packets["a1"]
        pair.world.run(360.0)
        return (pair.nats.packets["a1"] - before) / 5

    per_path = 2 * 3  # a probe and an answer on each of three paths
    assert probes_a_minute(None) == pytest.approx(4 * per_path, rel=0.2)
    assert probes_a_minute(60.0) == pytest.approx(2 * per_path, rel=0.2)
    assert probes_a_minute(10.0) == pytest.approx(12 * per_path, rel=0.2)


def test_a_mapping_of_ten_seconds_lives_when_its_lifetime_is_known() -> None:
    pair = direct_pair(2, a="port-restricted udp_stream=10 udp_timeout=10", b="port-restricted")
    for name in ("a1", "b1"):
        pair.world.core(name)._send_at = float("inf")
        pair.table(name).keep_alive(10.0)
    pair.world.run(120.0)
    pair.talk()
    pair.world.run(125.0)
    assert is_direct(pair) and pair.gap_s(120.0) <= 0.3


def quiet_table(now: float = 0.0) -> tuple[PathTable, Keys]:
    """A table with one proven path over ELSEWHERE, and the keys of the other side."""
    mine, theirs = (Keys.derive(bytes(32), lower=lower) for lower in (True, False))
    table = PathTable(mine, Random(1))
    answer(table, theirs, table.add(ELSEWHERE, now), now + 0.05)
    assert table.current == ELSEWHERE
    return table, theirs


def answer(table: PathTable, theirs: Keys, effects: list[paths.Effect], now: float) -> list[paths.Effect]:
    """Answer every probe among the effects."""
    answers: list[paths.Effect] = []
    for effect in effects:
        if isinstance(effect, SendOver) and (probe := datagrams.read_probe(theirs.receiving, effect.data)):
            seen = datagrams.Answer(probe.transaction, probe.kind, probe.time_us, Endpoint("192.0.2.1", 7411))
            answers += table.received(effect.route, datagrams.write_answer(theirs.sending, seen), now)
    return answers


def test_nothing_but_probes_goes_to_an_address_that_has_not_answered() -> None:
    table, theirs = quiet_table()
    stranger = Direct(Endpoint("203.0.113.66", 1))
    effects = table.heard(stranger, 1.0)
    assert stranger in [effect.route for effect in effects if isinstance(effect, SendOver)]
    assert table.current == ELSEWHERE
    assert any(isinstance(effect, PathProven) for effect in answer(table, theirs, effects, 1.05))


def test_a_thousand_spoofed_sources_make_a_handful_of_paths_and_few_probes() -> None:
    table, _ = quiet_table()
    probes = 0
    for number in range(1000):
        source = Direct(Endpoint(f"203.0.{number // 250}.{number % 250}", 1))
        probes += sum(isinstance(effect, SendOver) for effect in table.heard(source, 1.0 + number / 1000))
        table.validate()
    assert len(table.paths) <= 1 + paths.UNPROVEN_MAX
    assert probes <= 2 * paths.PROBES_MAX
    assert table.current == ELSEWHERE


def test_forged_and_replayed_probes_get_no_answer_and_change_nothing() -> None:
    table, theirs = quiet_table()
    old = datagrams.write_probe(theirs.sending, Probe(bytes(8), Kind.PATH, 1_000_000))
    new = datagrams.write_probe(theirs.sending, Probe(bytes(8), Kind.PATH, 60_000_000))
    assert table.received(ELSEWHERE, old, 1.0), "as long as it is new it is answered"
    assert table.received(ELSEWHERE, new, 60.0)
    thief = Direct(Endpoint("203.0.113.66", 1))
    before = repr(table)
    assert table.received(thief, old, 61.0) == []
    assert table.received(thief, new[:-1] + b"x", 61.0) == []
    assert table.received(thief, b"", 61.0) == [] and table.received(thief, bytes(64), 61.0) == []
    mine = Keys.derive(bytes(32), lower=True)
    assert table.received(thief, datagrams.write_probe(mine.sending, Probe(bytes(8), 1, 1)), 61.0) == [], "our own"
    assert repr(table) == before


def test_answers_are_as_long_as_their_questions() -> None:
    table, theirs = quiet_table()
    probe = datagrams.write_probe(theirs.sending, Probe(bytes(8), Kind.PATH, 1_000_000))
    sent = [effect for effect in table.received(ELSEWHERE, probe, 1.0) if isinstance(effect, SendOver)]
    assert sum(len(effect.data) for effect in sent) <= len(probe)


def test_when_nothing_answers_for_ten_seconds_there_is_no_path_until_one_answers_again() -> None:
    table, theirs = quiet_table()
    now, effects = 1.0, list[paths.Effect]()
    table.sent(now)
    while now < 20.0:
        due = table.next_deadline()
        assert due is not None
        now = max(now, due)
        effects += table.tick(now)
    gone = [effect for effect in effects if isinstance(effect, Switched)]
    assert [effect.route for effect in gone] == [None] and table.current is None
    assert sum(isinstance(effect, SendOver) for effect in effects) < 60
    effects = []
    while not any(isinstance(effect, SendOver) for effect in effects):
        now = table.next_deadline() or 0.0
        effects = table.tick(now)
    assert any(isinstance(effect, Switched) for effect in answer(table, theirs, effects, now + 0.05))


def test_a_closed_channel_is_left_at_once() -> None:
    table, theirs = quiet_table()
    channel = ViaRelay(RELAYS["relay"], 1)
    answer(table, theirs, table.add(channel, 1.0), 1.1)
    effects = table.remove(ELSEWHERE, 2.0)
    assert Switched(channel, ELSEWHERE, "the path was closed", lost=True) in effects
    assert Switched(None, channel, "the path was closed", lost=True) in table.remove(channel, 3.0)


def test_noting_a_packet_asks_for_a_nearer_deadline_only_when_it_is_nearer() -> None:
    table, _ = quiet_table()
    table.next_deadline()
    table.tick(1.0)
    table.next_deadline()
    assert table.heard(ELSEWHERE, 9.0) == []
    table.tick(9.0)
    due = table.next_deadline()
    assert due is not None and table.sent(9.0) == (due > 9.0 + table.paths[0].answer_s + paths.ASK_S)
    table.next_deadline()
    assert not table.sent(9.001), "the first one is waited for already"


class Flow:
    """Packets each way every 10 ms by a direct path of 80 ms, with a relay of 90 ms beside it, from 100.0 on."""

    DIRECT_S, RELAYED_S = 0.08, 0.09

    def __init__(self) -> None:
        self.table, self.theirs = quiet_table()
        self.channel = ViaRelay(RELAYS["relay"], 1)
        answer(self.table, self.theirs, self.table.add(self.channel, 1.0), 1.0 + self.RELAYED_S)
        self.now, self.effects = 100.0, list[tuple[float, paths.Effect]]()
        self._coming: list[tuple[float, ViaRelay | Direct, SendOver | None]] = []
        self.sleeps_until = 0.0  # the peer

    def run(self, until: float, *, direct: bool = True) -> None:
        """direct: whether that path carries anything. The relay's packets are read first, if both are there."""
        while self.now < until:
            self.now += 0.01
            if direct:
                self._come(ELSEWHERE, None, 0.0)
            self.table.sent(self.now)
            self._did(self.table.tick(self.now), direct=direct)
            due = [each for each in self._coming if each[0] <= self.now]
            self._coming = [each for each in self._coming if each[0] > self.now]
            for _, route, probe in sorted(due, key=lambda each: (each[0], each[1] == ELSEWHERE)):
                if probe is None:
                    self._did(self.table.heard(route, self.now), direct=direct)
                else:
                    self._did(answer(self.table, self.theirs, [probe], self.now), direct=direct)
            self.table.validate()

    def _come(self, route: ViaRelay | Direct, probe: SendOver | None, takes_s: float) -> None:
        self._coming.append((max(self.now + takes_s, self.sleeps_until + takes_s / 2), route, probe))

    def _did(self, effects: list[paths.Effect], *, direct: bool) -> None:
        for effect in effects:
            self.effects.append((self.now, effect))
            if isinstance(effect, SendOver) and (direct or effect.route == self.channel):
                assert isinstance(effect.route, ViaRelay | Direct)
                takes_s = self.RELAYED_S if effect.route == self.channel else self.DIRECT_S
                self._come(effect.route, effect, takes_s)

    def times(self, kind: type, since: float) -> list[float]:
        return [at for at, effect in self.effects if isinstance(effect, kind) and at >= since]


def test_where_packets_flow_the_path_is_asked_as_soon_as_the_next_ones_are_late() -> None:
    flow = Flow()
    flow.run(120.0)
    assert len(flow.times(SendOver, 115.0)) <= 6, "until then there is one a second"
    flow.run(121.0, direct=False)
    first, _, third = flow.times(SendOver, 120.0)[:3]
    assert first <= 120.06 and third <= 120.17, "no round trip has passed by the first"
    assert flow.times(Suspected, 120.0)[0] == pytest.approx(third), "and with the third the others are asked"


def test_a_path_that_swallows_what_others_bring_is_left_within_four_tenths_of_a_second() -> None:
    flow = Flow()
    flow.run(110.0)
    flow.run(111.0, direct=False)
    assert flow.table.current == flow.channel
    assert flow.times(Switched, 110.0)[0] <= 110.0 + paths.SILENT_S + flow.DIRECT_S + paths.GRACE_S


@pytest.mark.parametrize("sleeps_s", [0.1, 0.3, 0.6, 1.5])
def test_a_peer_that_is_busy_is_asked_a_few_times_and_no_path_is_left(sleeps_s: float) -> None:
    """What it answers when it is back comes by the relay first."""
    flow = Flow()
    flow.run(110.0)
    before = len(flow.times(SendOver, 0.0))
    flow.sleeps_until = 110.0 + sleeps_s
    flow.run(112.5)
    assert flow.times(Switched, 110.0) == [] and flow.table.current == ELSEWHERE
    assert len(flow.times(SendOver, 0.0)) - before <= 5 + 35 * sleeps_s


def test_who_was_asleep_itself_leaves_no_path_for_that() -> None:
    """Timers are first when it is back, and what came meanwhile is read then."""
    flow = Flow()
    flow.run(110.07)  # the last probe is under way
    flow.now = 111.0
    flow.run(112.5)
    assert flow.times(Switched, 110.0) == []


def test_a_path_by_which_the_peer_is_heard_and_does_not_hear_is_left_within_two_seconds() -> None:
    """Its relay knows an old address of the peer: what the peer sends arrives, what is sent to it does not."""
    table, theirs = quiet_table()
    channel = ViaRelay(RELAYS["relay"], 1)
    answer(table, theirs, table.add(channel, 1.0), 1.1)
    assert table.current == ELSEWHERE
    now, switched = 10.0, list[paths.Effect]()
    while now < 14.0 and not switched:
        now += 0.02
        table.sent(now)
        effects = [*table.heard(ELSEWHERE, now), *table.tick(now)]
        arrived = [effect for effect in effects if not isinstance(effect, SendOver) or effect.route == channel]
        effects += answer(table, theirs, arrived, now + 0.05)
        table.validate()
        switched = [effect for effect in effects if isinstance(effect, Switched)]
    assert switched and table.current == channel and now < 12.5, f"{now - 10:.1f} s"


def test_a_path_that_the_peer_has_left_is_left_too_without_waiting_for_probes() -> None:
    table, theirs = quiet_table()
    channel = ViaRelay(RELAYS["relay"], 1)
    answer(table, theirs, table.add(channel, 1.0), 1.1)
    table.sent(10.0)
    effects = list[paths.Effect]()
    for now in (10.4, 10.5, 10.6, 10.7):
        effects += [*table.heard(channel, now), *table.tick(now)]
    assert [effect.route for effect in effects if isinstance(effect, Switched)] == [channel]


def test_a_peer_that_hears_nothing_by_the_direct_path_is_followed_as_soon_as_it_goes_by_another() -> None:
    """Its gateway has another address now: what it sends still comes, and what is sent to it does not arrive."""
    table, theirs = quiet_table()
    channel = ViaRelay(RELAYS["relay"], 1)
    answer(table, theirs, table.add(channel, 1.0), 1.05)
    began, now, switched, asked_at = 100.0, 100.0, list[Switched](), 100.25
    while now < began + 2.0 and not switched:
        now += 0.01
        table.sent(now)
        left = now >= began + 0.65  # it is sure now
        effects = [*table.heard(channel if left else ELSEWHERE, now), *table.tick(now)]
        if now >= asked_at:  # it has its doubts since a quarter of a second has passed
            asked_at += 0.2
            probe = Probe(table._rng.randbytes(8), Kind.PATH, int(now * 1e6))
            effects += table.received(channel, datagrams.write_probe(theirs.sending, probe), now)
        arrived = [effect for effect in effects if isinstance(effect, SendOver) and effect.route == channel]
        effects += answer(table, theirs, arrived, now)
        table.validate()
        switched = [effect for effect in effects if isinstance(effect, Switched)]
    assert table.current == channel and now < began + 0.75, f"{now - began:.2f} s"
    assert switched[0].lost, "what was sent by the old path is to be sent again at once"
