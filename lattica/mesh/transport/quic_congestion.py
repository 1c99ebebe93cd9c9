"""How fast QUIC sends: by the bandwidth and the round trip that it measures, and not by what is lost (BBR).

    rate    = gain × the largest rate at which packets were acknowledged within BANDWIDTH_S
    window  = that rate × (2 × the shortest round trip within ROUND_TRIP_S + how late the ends are)

Reno halves its window for every loss: one packet in a hundred lost over 40 ms leaves 0.4 MB/s of any link. Radio links,
busy machines with short socket buffers, and Python that reads too late lose such a share without being full.

    STARTUP     gain 2.8: twice the rate each round trip, and at least the first window, until three in a row brought
                no quarter more, or all packets of one have waited
    DRAIN       gain 0.5: until the queue that this left is gone
    PROBE       eight phases of a round trip: 1.25 (is there more?), 0.75 (give back what was queued), 1, 1, 1, 1, 1, 1
    ROUND TRIP  half the window for a fifth of a second, where the shortest round trip is old: is it still so short?

Where more than LOSS_MAX of a round trip's packets are lost there is no room, whatever was measured before: what may be
in flight is bounded at seven tenths, and the bound grows by a seventh in each round trip that loses less.

Source: Cardwell, Cheng, Gunn, Yeganeh, Jacobson, "BBR: Congestion-Based Congestion Control" (2016), and
draft-ietf-ccwg-bbr, whose names and gains these are; the bound is a plainer form of its `inflight_hi`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any

from aioquic.quic.congestion.base import QuicCongestionControl
from aioquic.quic.recovery import QuicPacketPacer

if TYPE_CHECKING:
    from aioquic.quic.packet_builder import QuicSentPacket

STARTUP_GAIN, DRAIN_GAIN = 2.77, 0.5
PROBE_GAINS = (1.25, 0.75, 0.99, 0.99, 0.99, 0.99, 0.99, 0.99)
WINDOW_GAIN = 2.0
FULL_GROWTH, FULL_ROUNDS = 1.25, 3
BANDWIDTH_S = 1.0
"""For how long a measured rate counts, or for ten round trips: longer than a pause of Python's, shorter than a user
waits when a link gets slower."""
ROUND_TRIP_S = 10.0
SHORTEST_S = 0.2  # of the look whether the round trip is still so short
PHASE_MIN_S = 0.02  # of a phase of PROBE: timers of a millisecond tell no shorter ones apart
LATE_S = 0.008
"""How late ends are, beside the path: acknowledgements wait for 2 ms, and for Python. Without it, the window over a
path of 0.3 ms would be less than is acknowledged at once."""
LATE_MAX_S = 0.016
"""How late they may be found to be, the path included: as long as the turns that a machine gives its processes when ten
want each of its cores. A queue on the way looks alike, so that no more is believed, and nothing over longer paths."""
LOSS_MAX = 0.08
"""Of a round trip's packets. Lower: less is sent over radio links that lose as much. Higher: short queues of others are
kept full while we look for more."""
QUEUE_LOSS_MAX = 0.03
"""The same where every packet of that round trip has also waited: probably in a queue, which is full. Ends that are
busy look alike, so that it is above what is lost by chance."""
QUEUED = 1.25  # times the shortest round trip, and LATE_S: there is a queue
LOST_MIN = 6  # packets in a round trip, before its share of losses says anything
BETA, REGROWTH = 0.7, 1.15
BOUND_MIN = 0.9  # of what fills the path: the rate itself is measured, and falls within BANDWIDTH_S
WINDOW_MIN = 4  # datagrams
SAFE_BYTES = 1200  # of a packet: what every path carries (RFC 9000 §14)
INITIAL_WINDOW = 10  # RFC 9002 §7.2
BURST_S = 0.004
"""As much may leave at once: timers come up to a millisecond late, and Python a few. More overflows short queues; less
wakes both ends for a packet or two, which costs half as much again."""
BURST_MIN, BURST_MAX = 2, 16  # datagrams
CATCH_UP_S = 0.02
"""So much time is made up for by a longer burst, if the loop was busy when the next one was due. Without it a machine
that is always late would never learn how fast its path is."""
BURST_MAX_BYTES = 128 << 10  # of such a burst; it fits into the buffer of a receiver who is not root, 208 KiB
GRAIN_S = 1e-5  # later than the pacer's very moment, or sums of floats come out just before it


class State(Enum):
    STARTUP = "startup"
    DRAIN = "drain"
    PROBE = "probe"
    ROUND_TRIP = "round trip"


class Bbr(QuicCongestionControl):
    """See the module. What a packet must know of the time when it was sent is written onto it."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.datagram_bytes, self._first_window = max_datagram_size, INITIAL_WINDOW
        self.long_lost = 0  # long packets that were lost, since one arrived, and as shorter ones arrive
        self._short_came = False
        self._begin()

    def _begin(self) -> None:
        """Nothing is known."""
        self.state, self.gain = State.STARTUP, STARTUP_GAIN
        self.congestion_window = INITIAL_WINDOW * self.datagram_bytes
        self.round_trip_s = float("inf")
        self._round_trip_at = 0.0
        self._rates: deque[tuple[float, float]] = deque()  # (when, bytes a second), falling
        self._delivered, self._delivered_at, self._first_sent_at = 0, 0.0, 0.0
        self._newest: Any = None  # packet of this acknowledgement
        self._round_ends = 0  # when so much is delivered
        self._round_began = 0
        self._lost, self._lost_packets = 0, 0  # in this round
        self._full_rate, self._full_rounds = 0.0, 0
        self._idle_until = 0  # delivered so much: what is sent until more is was limited by what there was to send
        self._bound, self._cut_until = float("inf"), 0
        self._phase, self._phase_at = 0, 0.0
        self._shortest_s, self._shortest_until = float("inf"), 0.0
        self._round_shortest_s, self._late_s = float("inf"), 0.0
        self._carries_since = float("inf")  # when the first packet that arrived was sent

    def begin_with(self, datagrams: int) -> None:
        """So many may be under way before anything is measured."""
        self._first_window, self.congestion_window = datagrams, datagrams * self.datagram_bytes

    def __repr__(self) -> str:
        rate, window = self.rate / 1e6, self.congestion_window / 1e3
        return f"<Bbr, {self.state.value}: {rate:.2f} MB/s, {self.round_trip_s * 1e3:.1f} ms, window {window:.0f} KB>"

    # -- what is measured

    @property
    def rate(self) -> float:
        """The bandwidth, in bytes a second; 0: not known."""
        return self._rates[0][1] if self._rates else 0.0

    @property
    def sending_rate(self) -> float:
        """Bytes a second at which packets may leave; 0: as fast as the window lets them."""
        if not self._rates:
            return 0.0
        least = self.gain * self._first_window if self.state is State.STARTUP else WINDOW_MIN
        floor = least * self.datagram_bytes / (self.round_trip_s + LATE_S)  # who has sent little knows little
        return max(min(self.gain * self.rate, self._bound / self._path_s), floor)

    @property
    def late_s(self) -> float:
        """How much longer than the path an acknowledgement lately took at the least."""
        return max(LATE_S, min(self._late_s, LATE_MAX_S - self.round_trip_s))

    @property
    def _path_s(self) -> float:
        """The round trip, with as much lateness as is surely no queue."""
        return self.round_trip_s + min(LATE_S, self.round_trip_s / 8)

    def _pipe(self, gain: float) -> float:
        """Bytes in flight at which the path is full, times that, and what ends hold that are late: once, or between two
        busy processes a word would wait as long again."""
        return self.rate * (gain * self.round_trip_s + self.late_s)

    def nothing_to_send(self) -> None:
        """The window has room, and there is nothing for it: what is measured now says nothing of the path."""
        self._idle_until = self._delivered + self.bytes_in_flight

    # -- aioquic's verbs

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        sent_at: float = packet.sent_time or 0.0
        if not self.bytes_in_flight:
            self._first_sent_at = self._delivered_at = sent_at
        self.bytes_in_flight += packet.sent_bytes
        about: Any = packet
        about.then = self, self._delivered, self._delivered_at, self._first_sent_at, self._has_idled()

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        about: Any = packet
        ours = about.then[0] is self  # else it was sent by another path, and is no matter of this one (RFC 9000 §9.4)
        if packet.sent_bytes <= SAFE_BYTES:
            self._short_came = True
        elif ours:
            self.long_lost, self._short_came = 0, False
        if not ours:
            return
        self.bytes_in_flight -= packet.sent_bytes
        self._delivered += packet.sent_bytes
        self._delivered_at = now
        self._carries_since = min(self._carries_since, about.sent_time)
        if self._newest is None or about.then[1] >= self._newest.then[1]:
            self._newest = about

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        for packet in self._of_this_path(packets):
            self.bytes_in_flight -= packet.sent_bytes

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        for packet in self._of_this_path(packets):
            self.bytes_in_flight -= packet.sent_bytes
            if packet.sent_bytes > SAFE_BYTES and self._short_came:
                self.long_lost += 1
            if (packet.sent_time or 0.0) >= self._carries_since:  # else there was no path yet, and not a full one
                self._lost += packet.sent_bytes
                self._lost_packets += 1

    def _of_this_path(self, packets: Iterable[Any]) -> Iterable[QuicSentPacket]:
        return (packet for packet in packets if packet.then[0] is self)

    def on_persistent_congestion(self) -> None:
        """Nothing came through for several timeouts: it is another path, as far as we know."""
        in_flight = self.bytes_in_flight
        self._begin()
        self.bytes_in_flight = in_flight
        self.congestion_window = WINDOW_MIN * self.datagram_bytes

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """After the packets of one acknowledgement. rtt: of the latest one, with the other side's delay."""
        packet, self._newest = self._newest, None
        if packet is None:
            return
        began = self._new_round(packet)
        self._measure(packet, rtt, now)
        if began:
            self._round_over(packet.then[4])
        self._advance(now)
        self._set_window()

    # -- after an acknowledgement

    def _new_round(self, packet: Any) -> bool:
        """Whether a round trip has passed since the last one began: a packet that was sent since then is here."""
        if packet.then[1] < self._round_ends:
            return False
        self._round_ends = self._delivered
        return True

    def _measure(self, packet: Any, rtt: float, now: float) -> None:
        _, delivered, delivered_at, first_sent_at, idle = packet.then
        self._first_sent_at = packet.sent_time
        took = max(packet.sent_time - first_sent_at, self._delivered_at - delivered_at)
        if rtt <= self.round_trip_s * 1.05:
            self._round_trip_at = now
        self.round_trip_s = min(self.round_trip_s, max(rtt, 1e-4))
        self._shortest_s = min(self._shortest_s, rtt)
        self._round_shortest_s = min(self._round_shortest_s, rtt)
        horizon = now - max(BANDWIDTH_S, 10 * self.round_trip_s)
        while len(self._rates) > 1 and self._rates[0][0] < horizon:
            self._rates.popleft()
        if took <= 0:
            return
        rate = (self._delivered - delivered) / took
        if idle and rate < self.rate:
            return
        while self._rates and self._rates[-1][1] <= rate:
            self._rates.pop()
        self._rates.append((now, rate))

    def _round_over(self, idle: bool) -> None:
        delivered = self._delivered - self._round_began
        share = self._lost / (self._lost + delivered) if self._lost_packets >= LOST_MIN else 0.0
        queued = self._round_shortest_s > QUEUED * self.round_trip_s + LATE_S
        self._round_began, self._lost, self._lost_packets = self._delivered, 0, 0
        if self._round_shortest_s < float("inf"):
            longer_s = self._round_shortest_s - self.round_trip_s
            if self.state is State.STARTUP and longer_s > max(2 * LATE_S, self.round_trip_s / 2):
                self._full_rounds = FULL_ROUNDS  # a queue, before the rate can tell
            late_s = min(longer_s, LATE_MAX_S)
            self._late_s += (late_s - self._late_s) / 4
        self._round_shortest_s = float("inf")
        if share > (QUEUE_LOSS_MAX if queued else LOSS_MAX) and self._delivered >= self._cut_until:
            before = min(self._bound, max(self.bytes_in_flight + delivered * share, self._pipe(1.0)))
            self._bound = max(BETA * before, BOUND_MIN * self.rate * self._path_s, WINDOW_MIN * self.datagram_bytes)
            self._cut_until = self._delivered + self.bytes_in_flight  # what else is lost until then was sent before
            if self.state is State.STARTUP:
                self._full_rounds = FULL_ROUNDS
        if self.state is State.STARTUP and not idle and self._full_rounds < FULL_ROUNDS:
            if self.rate >= FULL_GROWTH * self._full_rate:
                self._full_rate, self._full_rounds = self.rate, 0
            else:
                self._full_rounds += 1

    def _advance(self, now: float) -> None:
        """To the next state or phase, if it is time."""
        if self.state is State.STARTUP and self._full_rounds >= FULL_ROUNDS:
            self.state, self.gain = State.DRAIN, DRAIN_GAIN
        if self.state is State.DRAIN and self._is_drained():
            self._probe(2, now)
        elif self.state is State.PROBE:
            self._next_phase(now)
            if self._round_trip_at < now - ROUND_TRIP_S:
                self.state, self.gain, self._shortest_s = State.ROUND_TRIP, 1.0, float("inf")
                self._shortest_until = now + SHORTEST_S + self.round_trip_s
        elif self.state is State.ROUND_TRIP and now >= self._shortest_until:
            self.round_trip_s, self._round_trip_at = self._shortest_s, now
            self._probe(2, now)

    def _probe(self, phase: int, now: float) -> None:
        if phase == 0:
            self._bound *= REGROWTH
            if self._bound > self._pipe(2 * WINDOW_GAIN):
                self._bound = float("inf")
        self.state, self._phase, self._phase_at = State.PROBE, phase, now
        self.gain = PROBE_GAINS[phase]

    def _next_phase(self, now: float) -> None:
        passed = now - self._phase_at >= max(self.round_trip_s, PHASE_MIN_S)
        if self.gain > 1.0:
            over = passed and (self._lost_packets or self.bytes_in_flight >= self._pipe(self.gain) or self._has_idled())
        elif self.gain < 1.0:
            over = passed or self._is_drained()
        else:
            over = passed
        if over:
            self._probe((self._phase + 1) % len(PROBE_GAINS), now)

    def _is_drained(self) -> bool:
        return self.bytes_in_flight <= self.rate * self._path_s

    def _has_idled(self) -> bool:
        """Nothing that was sent since is acknowledged yet."""
        return self._idle_until >= self._delivered

    def _set_window(self) -> None:
        least = WINDOW_MIN * self.datagram_bytes
        if self.state is State.ROUND_TRIP:
            window = self._pipe(0.5)
        elif self.state is State.STARTUP:
            window = max(self._pipe(WINDOW_GAIN), self.congestion_window)
        else:
            window = self._pipe(WINDOW_GAIN)
        self.congestion_window = int(max(min(window, self._bound), least))


class Pacer(QuicPacketPacer):
    """Packets leave at the rate that the congestion control says. aioquic's lets one more go at every call, however
    soon: over a path with a short queue a fifth of all packets was lost by that."""

    def __init__(self, control: Bbr) -> None:
        super().__init__(max_datagram_size=control.datagram_bytes)
        self._control = control
        self._due: float | None = None  # when we are to be asked again, as nothing more may leave before

    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]  # as aioquic's does in fact
        """When the next packets may go; None: now. Once no more may, half a burst has to come together."""
        if self.packet_time is None:
            return None
        self.update_bucket(now=now)
        least = 0.0 if self._due is None else self.bucket_max / 2
        if self.bucket_time > least:
            self._due = None
            return None
        self._due = now + self.bucket_max / 2 - self.bucket_time + GRAIN_S
        return self._due

    def update_bucket(self, now: float) -> None:
        """What may leave at once grows with time; by more than a burst, if we were to be asked earlier."""
        if now <= self.evaluation_time or self.packet_time is None:
            return
        late_s = 0.0 if self._due is None else min(max(now - self._due, 0.0), CATCH_UP_S)
        late_s = min(late_s, BURST_MAX_BYTES / self._control.datagram_bytes * self.packet_time)
        self.bucket_time = min(self.bucket_time + now - self.evaluation_time, self.bucket_max + late_s)
        self.evaluation_time = now

    def update_after_send(self, now: float) -> None:
        if self.packet_time is not None:
            self.update_bucket(now=now)
            self.bucket_time -= self.packet_time

    def give_back(self, unused: int) -> None:
        """Packets were counted as full ones: bytes that they did not have."""
        if self.packet_time is not None:
            spared_s = self.packet_time * unused / self._control.datagram_bytes
            self.bucket_time = max(self.bucket_time, min(self.bucket_time + spared_s, self.bucket_max))

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        rate = self._control.sending_rate
        if not rate:
            super().update_rate(congestion_window=congestion_window, smoothed_rtt=smoothed_rtt)
            return
        size = self._control.datagram_bytes
        self.packet_time = size / rate
        self.bucket_max = max(BURST_MIN * size, min(rate * BURST_S, BURST_MAX * size)) / rate
        self.bucket_time = min(self.bucket_time, self.bucket_max)
