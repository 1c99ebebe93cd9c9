"""BBR and its pacer over links that are a queue and a delay: what arrives, what waits, what is dropped. No QUIC."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

import pytest
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.tls import Epoch

from lattica.mesh.transport.quic_congestion import BURST_MAX, Bbr, Pacer, State

SIZE = 1350
ACK_S = 0.002  # packets of so long share an acknowledgement
REORDERED = 3  # packets behind one that is acknowledged, which are then lost: RFC 9002 §6.1.1


@dataclass
class Flow:
    """One sender, with as much to send as `demand` says: bytes each `every_s`; None: always something."""

    control: Bbr = field(default_factory=lambda: Bbr(max_datagram_size=SIZE))
    demand: int | None = None
    every_s: float = 0.0
    arrived: int = 0
    number: int = 0
    waiting: int = 0  # bytes that there are to send
    armed_for: float = -1.0  # when it is woken
    sent: dict[int, QuicSentPacket] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pacer = Pacer(self.control)


class Link:
    """rate: bytes a second. delay_s: one way. queue_s: of its rate."""

    def __init__(self, *flows: Flow, rate: float, delay_s: float, queue_s: float, loss: float = 0.0) -> None:
        self.flows, self.rate, self.delay_s, self.queue_s, self.loss = flows, rate, delay_s, queue_s, loss
        self.now, self.rng = 0.0, Random(7)
        self.waits: list[float] = []
        self.counted = self.dropped = 0
        self._free_at = 0.0
        self._events: list[tuple[float, int, str, Flow, list[int]]] = []
        self._count = 0
        self._acks: dict[int, list[int]] = {}
        for flow in flows:
            self._at(0.0, "demand" if flow.demand else "send", flow, [])

    def _at(self, when: float, kind: str, flow: Flow, numbers: list[int]) -> None:
        self._count += 1
        heappush(self._events, (when, self._count, kind, flow, numbers))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        for flow in self.flows:
            flow.arrived = 0
        self.waits.clear()
        self.counted = self.dropped = 0
        while self._events and self._events[0][0] <= until:
            self.now, _, kind, flow, numbers = heappop(self._events)
            if kind == "arrive":
                if not (batch := self._acks.setdefault(id(flow), [])):
                    self._at(self.now + ACK_S, "ack", flow, [])
                batch += numbers
                flow.arrived += SIZE
            elif kind == "ack":
                self._at(self.now + self.delay_s, "acked", flow, self._acks.pop(id(flow)))
            elif kind == "acked":
                self._acked(flow, numbers)
                self._send(flow)
            elif kind == "demand":
                flow.waiting += flow.demand or 0
                self._at(self.now + flow.every_s, "demand", flow, [])
                self._send(flow)
            else:
                self._send(flow)
        self.now = until

    def _acked(self, flow: Flow, numbers: list[int]) -> None:
        latest = max(numbers)
        rtt = self.now - (flow.sent[latest].sent_time or 0.0) if latest in flow.sent else None
        for number in numbers:
            if number in flow.sent:
                flow.control.on_packet_acked(now=self.now, packet=flow.sent.pop(number))
        if rtt is not None:
            flow.control.on_rtt_measurement(now=self.now, rtt=rtt)
        lost = [flow.sent.pop(number) for number in list(flow.sent) if number <= latest - REORDERED]
        if lost:
            flow.control.on_packets_lost(now=self.now, packets=lost)
        flow.pacer.update_rate(congestion_window=flow.control.congestion_window, smoothed_rtt=rtt or 0.1)

    def _send(self, flow: Flow) -> None:
        control = flow.control
        while flow.demand is None or flow.waiting > 0:
            if control.bytes_in_flight + SIZE > control.congestion_window:
                return
            due = flow.pacer.next_send_time(now=self.now)
            if due is not None:
                if flow.armed_for <= self.now:
                    flow.armed_for = due
                    self._at(due, "send", flow, [])
                return
            flow.number += 1
            packet = QuicSentPacket(
                Epoch.ONE_RTT, True, True, False, flow.number, QuicPacketType.ONE_RTT, self.now, SIZE
            )
            flow.sent[flow.number] = packet
            control.on_packet_sent(packet=packet)
            flow.pacer.update_after_send(now=self.now)
            flow.waiting -= SIZE
            self._carry(flow, flow.number)
        control.nothing_to_send()

    def _carry(self, flow: Flow, number: int) -> None:
        self.counted += 1
        wait = max(self._free_at - self.now, 0.0)
        if wait > self.queue_s:
            self.dropped += 1
            return
        self.waits.append(wait)
        self._free_at = self.now + wait + SIZE / self.rate
        if self.rng.random() >= self.loss:
            self._at(self._free_at + self.delay_s, "arrive", flow, [number])

    @property
    def used(self) -> float:
        """The share of the link's rate, over the last `run` of 6 s."""
        return sum(flow.arrived for flow in self.flows) / 6 / self.rate

    @property
    def median_wait_s(self) -> float:
        return sorted(self.waits)[len(self.waits) // 2]


@pytest.mark.parametrize("loss", [0.0, 0.001, 0.01, 0.03])
@pytest.mark.parametrize("delay_s", [0.005, 0.02, 0.075])
def test_a_link_that_loses_some_packets_is_used_all_the_same(delay_s: float, loss: float) -> None:
    """Reno over 40 ms: a tenth of 10 MB/s at one loss in a thousand, a twenty-fifth at one in a hundred."""
    link = Link(Flow(), rate=5e6, delay_s=delay_s, queue_s=0.05, loss=loss)
    link.run(4.0)
    link.run(6.0)
    assert link.used > 0.85 * (1 - loss), f"{link.used:.0%}, {link.flows[0].control!r}"
    assert link.median_wait_s < 0.03 and link.dropped < 0.02 * link.counted


def test_a_large_queue_is_not_filled() -> None:
    link = Link(Flow(), rate=2e6, delay_s=0.02, queue_s=2.0)
    link.run(4.0)
    link.run(6.0)
    assert link.used > 0.95 and link.median_wait_s < 0.06, "where Reno fills all of it"


def test_a_short_queue_is_not_kept_full() -> None:
    link = Link(Flow(), rate=10e6, delay_s=0.02, queue_s=0.005)
    link.run(4.0)
    link.run(6.0)
    assert link.used > 0.8 and link.dropped < 0.06 * link.counted, f"{link.dropped / link.counted:.1%}"


def test_two_share_a_link() -> None:
    link = Link(Flow(), Flow(), rate=5e6, delay_s=0.02, queue_s=0.04)
    link.run(4.0)
    link.run(6.0)
    assert link.used > 0.9 and min(flow.arrived for flow in link.flows) > 0.2 * 5e6 * 6


def test_a_link_that_gets_slower_or_faster_is_followed_within_seconds() -> None:
    link = Link(Flow(), rate=8e6, delay_s=0.02, queue_s=0.1)
    link.run(3.0)
    link.rate = 1e6
    link.run(3.0)
    link.run(6.0)
    assert link.used > 0.9 and link.dropped < 0.05 * link.counted
    link.rate = 8e6
    link.run(6.0)
    link.run(6.0)
    assert link.used > 0.8


def test_who_says_little_is_not_held_up_when_it_says_more() -> None:
    """A burst of 60 KB each 100 ms, for longer than any measurement counts: it leaves within a round trip or two."""
    flow = Flow(demand=60_000, every_s=0.1)
    link = Link(flow, rate=50e6, delay_s=0.01, queue_s=0.05)
    link.run(6.0)
    assert flow.waiting <= 0 or flow.control.state is State.STARTUP
    link.run(6.0)
    assert flow.arrived == pytest.approx(60_000 * 60, rel=0.02)
    assert flow.waiting < 60_000


def test_a_first_window_leaves_within_half_a_round_trip_whatever_little_was_measured() -> None:
    flow = Flow(demand=SIZE, every_s=0.1)
    flow.control.begin_with(32)
    link = Link(flow, rate=50e6, delay_s=0.04, queue_s=0.05)
    link.run(0.65)
    assert 0 < flow.control.rate < 40_000, "a packet in a round trip"
    flow.waiting = 30 * SIZE
    link._send(flow)
    link.run(0.04)
    assert flow.waiting <= 0


def test_what_is_lost_before_anything_arrives_is_no_full_queue() -> None:
    """A relay that learns where the other side is now, after 30 ms."""

    class Late(Link):
        def _carry(self, flow: Flow, number: int) -> None:
            if self.now >= 0.03:
                super()._carry(flow, number)

    flow = Flow(demand=4 * SIZE, every_s=0.01)
    flow.control.begin_with(32)
    link = Late(flow, rate=50e6, delay_s=0.04, queue_s=0.05)
    link.run(1.0)
    assert flow.waiting < 8 * SIZE, f"{flow.control!r}, {flow.waiting / SIZE:.0f} packets wait"


def test_ends_that_are_late_learn_how_fast_their_path_is() -> None:
    """Two processes of a busy machine: each gets its turn every 15 ms, and may then send what it was due to send."""

    class Busy(Link):
        def _at(self, when: float, kind: str, flow: Flow, numbers: list[int]) -> None:
            turn_s = 0.015 if kind in ("ack", "acked", "send") else 0.0
            super()._at(-(-when // turn_s) * turn_s if turn_s else when, kind, flow, numbers)

    link = Busy(Flow(), rate=20e6, delay_s=0.00025, queue_s=0.05)
    link.run(5.0)
    link.run(6.0)
    assert link.used > 0.3, f"{link.used:.0%} of 20 MB/s, {link.flows[0].control!r}"


def test_after_silence_it_begins_anew() -> None:
    link = Link(Flow(), rate=5e6, delay_s=0.02, queue_s=0.05)
    link.run(3.0)
    control = link.flows[0].control
    assert control.rate == pytest.approx(5e6, rel=0.2) and control.state is not State.STARTUP
    in_flight = control.bytes_in_flight
    control.on_persistent_congestion()
    assert control.state is State.STARTUP and control.rate == 0.0 and control.congestion_window == 4 * SIZE
    assert control.bytes_in_flight == in_flight, "what is under way is under way"


def test_a_packet_of_another_path_tells_nothing_of_this_one() -> None:
    before, after = Bbr(max_datagram_size=SIZE), Bbr(max_datagram_size=SIZE)
    packet = QuicSentPacket(Epoch.ONE_RTT, True, True, False, 1, QuicPacketType.ONE_RTT, 1.0, SIZE)
    before.on_packet_sent(packet=packet)
    after.on_packet_acked(now=1.1, packet=packet)
    after.on_rtt_measurement(now=1.1, rtt=0.1)
    after.on_packets_lost(now=1.1, packets=[packet])
    after.on_packets_expired(packets=[packet])
    assert after.rate == 0.0 and after.bytes_in_flight == 0


def test_the_pacer_lets_no_more_go_however_often_it_is_asked() -> None:
    """aioquic's lets one packet go at each call, which comes with each acknowledgement."""
    link = Link(Flow(), rate=5e6, delay_s=0.02, queue_s=0.05)
    link.run(3.0)
    control, pacer = link.flows[0].control, link.flows[0].pacer
    pacer.update_rate(congestion_window=0, smoothed_rtt=0.0)
    now, sent = link.now + 1.0, 0
    while pacer.next_send_time(now=now) is None:  # what it may catch up with
        pacer.update_after_send(now=now)
    for _ in range(10_000):  # for a tenth of a second, every 10 us
        now += 1e-5
        while pacer.next_send_time(now=now) is None:
            pacer.update_after_send(now=now)
            sent += SIZE
    assert sent <= control.sending_rate * 0.1 + (BURST_MAX + 1) * SIZE
    assert sent >= control.sending_rate * 0.1 * 0.95


def test_short_packets_are_not_counted_as_full_ones() -> None:
    link = Link(Flow(), rate=5e6, delay_s=0.02, queue_s=0.05)
    link.run(3.0)
    pacer = link.flows[0].pacer
    pacer.update_rate(congestion_window=0, smoothed_rtt=0.0)
    now, sent = link.now + 1.0, 0
    while pacer.next_send_time(now=now) is None and sent < 1000:
        pacer.update_after_send(now=now)
        pacer.give_back(SIZE - 100)
        sent += 1
    assert sent > 2 * BURST_MAX
