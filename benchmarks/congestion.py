"""What QUIC's congestion control makes of links, in simulation: no sockets, no clock, no Python in the way.

    python benchmarks/congestion.py [--seconds 15] [--only "1 % loss"]

One stream (or two, where a link is shared) over a bottleneck with a queue. For each link: the share of its rate that
arrived, how long packets waited in the queue, and what share of them it dropped; for two flows, the smaller's part.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent.parent))

from lattica.mesh.transport import quic_engine
from lattica.mesh.transport.quic_engine import Data, Engine, Up
from lattica.mesh.transport.quic_packets import Retries, initial_of
from tests.mesh.transport.quic_pairs import configurations, the_mesh

DATAGRAM_BYTES = 1350
HEADS_BYTES = 34  # of a packet and of its stream frame, and the seal
UNACKED_MAX_BYTES, UNSENT_MAX_BYTES, CHUNK_BYTES = 1 << 20, 128 << 10, 64 << 10  # as `quic` has them
SOURCE = b"198.51.100.2:7411"


@dataclass(frozen=True)
class Path_:
    """rate: bytes a second. delay_s: one way. queue_s: how much of the rate the queue holds. loss: besides the queue's.
    flows: that share it. late_s: how long an end is busy with something else, now and then."""

    rate: float
    delay_s: float
    queue_s: float
    loss: float = 0.0
    flows: int = 1
    late_s: float = 0.0

    def __str__(self) -> str:
        words = f"{self.rate / 1e6:g} MB/s, {self.delay_s * 2e3:g} ms, queue {self.queue_s * 1e3:g} ms"
        if self.loss:
            words += f", {self.loss * 100:g} % loss"
        if self.late_s:
            words += f", ends late by up to {self.late_s * 1e3:g} ms"
        return words + (f", {self.flows} flows" if self.flows > 1 else "")


PATHS = [
    Path_(10e6, 0.0005, 0.02),
    Path_(10e6, 0.02, 0.04),
    Path_(10e6, 0.02, 0.04, 0.001),
    Path_(10e6, 0.02, 0.04, 0.01),
    Path_(10e6, 0.02, 0.04, 0.02),
    Path_(10e6, 0.02, 0.04, 0.05),
    Path_(10e6, 0.02, 0.005),
    Path_(10e6, 0.02, 1.0),
    Path_(10e6, 0.02, 0.04, 0.01, late_s=0.02),
    Path_(1e6, 0.02, 0.1, 0.01),
    Path_(0.2e6, 0.05, 0.3, 0.01),
    Path_(5e6, 0.075, 0.15, 0.01),
    Path_(5e6, 0.075, 0.15),
    Path_(10e6, 0.02, 0.04, 0.0, flows=2),
    Path_(10e6, 0.02, 0.04, 0.01, flows=2),
    Path_(2e6, 0.02, 0.01, 0.0, flows=2),
]


class Flow:
    """Two engines, up; the client writes as fast as it may."""

    def __init__(self, number: int) -> None:
        keys, theirs = the_mesh().member(), the_mesh().member()
        self.number = number
        self.client: Engine = quic_engine.dial(configurations(keys), 0.0)
        retries = Retries(bytes(32))
        for datagram in self.client.datagrams(0.0):
            initial = initial_of(datagram)
            assert initial is not None
            self.client.receive([retries.answer(initial, SOURCE, b"12345678", 0.0)], 0.0)
        self.first = self.client.datagrams(0.0)
        initial = initial_of(self.first[0])
        assert initial is not None
        original = retries.original(initial, SOURCE, 0.0)
        assert original is not None
        self.server = quic_engine.accept(configurations(theirs), original, initial.destination)
        self.stream: int | None = None
        self.arrived: list[tuple[float, int]] = []
        self.up = 0

    def fill(self) -> None:
        if self.up < 2:
            return
        if self.stream is None:
            self.stream = self.client.open()
        while True:
            unacked, unsent = self.client.unacked(self.stream), self.client.unsent(self.stream)
            room = min(UNACKED_MAX_BYTES - unacked, UNSENT_MAX_BYTES - unsent, CHUNK_BYTES)
            if room <= 0:
                return
            self.client.write(self.stream, bytes(room))


class World:
    def __init__(self, path: Path_, seed: int) -> None:
        self.path, self.rng, self.now = path, Random(seed), 0.0
        self.flows = [Flow(number) for number in range(path.flows)]
        self._events: list[tuple[float, int, Engine, bytes, Flow]] = []
        self._count = 0
        self._free_at = 0.0
        self.waited: list[tuple[float, float]] = []
        self.sent = self.dropped = 0
        self._late: dict[Engine, float] = {}
        for flow in self.flows:
            for datagram in flow.first:
                self._carry(flow, flow.client, datagram)

    def _carry(self, flow: Flow, sender: Engine, datagram: bytes) -> None:
        at = self.now
        to = flow.server
        if sender is flow.client:
            self.sent += 1
            wait = max(self._free_at - at, 0.0)
            if wait > self.path.queue_s:
                self.dropped += 1
                return
            self.waited.append((at, wait))
            self._free_at = at + wait + len(datagram) / self.path.rate
            at = self._free_at
        else:
            to = flow.client
        if self.rng.random() < self.path.loss:
            return
        self._count += 1
        heappush(self._events, (at + self.path.delay_s, self._count, to, datagram, flow))

    def _busy_until(self, engine: Engine) -> float:
        """An end that is busy looks at what came, and at its timers, later."""
        if not self.path.late_s:
            return 0.0
        if self._late.get(engine, 0.0) < self.now - 0.1 * self.rng.random():
            self._late[engine] = self.now + self.rng.random() * self.path.late_s
        return self._late[engine]

    def run(self, until: float) -> None:
        pending: deque[tuple[Engine, Flow]] = deque()
        while self.now < until:
            due = [
                (max(at, self._late.get(engine, 0.0)), engine, flow)
                for flow in self.flows
                for engine in (flow.client, flow.server)
                if (at := engine.deadline()) is not None
            ]
            soonest = min((at for at, *_ in due), default=until)
            if self._events and self._events[0][0] <= soonest:
                at, _, engine, datagram, flow = heappop(self._events)
                self.now = max(self.now, at)
                late = self._busy_until(engine)
                if late > self.now:
                    self._count += 1
                    heappush(self._events, (late, self._count, engine, datagram, flow))
                    continue
                batch = [datagram]
                while self._events and self._events[0][0] <= self.now and self._events[0][2] is engine:
                    batch.append(heappop(self._events)[3])
                self._heard(flow, engine.receive(batch, self.now))
                pending.append((engine, flow))
            else:
                self.now = max(self.now, soonest)
                for at, engine, flow in due:
                    if at <= self.now:
                        self._heard(flow, engine.tick(self.now))
                        pending.append((engine, flow))
            while pending:
                engine, flow = pending.popleft()
                if engine is flow.client:
                    flow.fill()
                for datagram in engine.datagrams(self.now):
                    self._carry(flow, engine, datagram)

    def _heard(self, flow: Flow, events: list[object]) -> None:
        for event in events:
            if isinstance(event, Up):
                flow.up += 1
                if flow.up == 2:
                    for engine in (flow.client, flow.server):
                        engine.path_changed(DATAGRAM_BYTES)
                    flow.fill()
                    for datagram in flow.client.datagrams(self.now):
                        self._carry(flow, flow.client, datagram)
            elif isinstance(event, Data):
                flow.arrived.append((self.now, len(event.data)))


def measure(path: Path_, seconds: float, seed: int) -> str:
    began = time.perf_counter()
    world = World(path, seed)
    world.run(seconds)
    carried = path.rate * (DATAGRAM_BYTES - HEADS_BYTES) / DATAGRAM_BYTES

    def rate(flow: Flow, since: float) -> float:
        return sum(size for at, size in flow.arrived if at >= since) / (seconds - since)

    shares = [rate(flow, seconds / 3) for flow in world.flows]
    early = sum(sum(size for at, size in flow.arrived if at < 2.0) for flow in world.flows) / 2.0
    waits = sorted(wait for at, wait in world.waited if at >= seconds / 3)
    line = (
        f"{path!s:62} {sum(shares) / 1e6:6.2f} MB/s ({sum(shares) / carried:4.0%}), first 2 s {early / 1e6:5.2f};"
        f" queue p50 {waits[len(waits) // 2] * 1e3:4.0f} p95 {waits[len(waits) * 95 // 100] * 1e3:4.0f} ms,"
        f" drops {world.dropped / world.sent:5.1%}"
    )
    if len(shares) > 1:
        line += f"; the smaller has {min(shares) / sum(shares):.0%}"
    return f"{line}  [{time.perf_counter() - began:.0f} s]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    for path in PATHS:
        if given.only in str(path):
            print(measure(path, given.seconds, given.seed), flush=True)


if __name__ == "__main__":
    main()
