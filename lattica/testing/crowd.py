"""A large mesh in one world, and what it costs: false deaths, how soon a death and a row are known, bytes per peer.

    python -m lattica.testing.crowd --peers 200 --seconds 60
    python -m lattica.testing.crowd --peers 1000 --seconds 600 --seed 3
    python -m lattica.testing.crowd --peers 200 --seconds 60 --busy

Messages are lost, one in ten, and take 20 to 200 ms; every few seconds 1 % of the peers stand still for five. Every
now and then a peer dies for good and somebody writes a row. Bytes count headers, acknowledgements, handshakes and
keep-alives (`community`'s estimates), each once, where it is sent. Exit code 1 if a promise was missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

from lattica.mesh.identity import PeerId
from lattica.mesh.membership import MemberChanged, State
from lattica.mesh.table.kinds import SERVICE
from lattica.mesh.table.rows import Row
from lattica.testing.community import Resident, Town, join_all
from lattica.testing.host import Host
from lattica.testing.links import Link
from lattica.testing.world import World

SETTLE_S = 12.0  # sessions are made in it; they count from then on
STALL_S = 5.0
STALLED = 0.01  # of all peers, at once
STALL_EVERY_S = 10.0
DEATH_EVERY_S = 10.0
ROW_EVERY_S = 5.0
AFTER_S = 20.0  # after the last death and row, until the world ends
BUSY = 0.8  # of peers say something new of themselves each second

FALSE_DEATHS = 0
DEATH_KNOWN_S = 12.0
ROW_KNOWN_S = 3.0
IDLE_BYTES_PER_S = 1500.0
BUSY_BYTES_PER_S = 20_000.0


@dataclass(slots=True)
class Figures:
    """What came out. Times in seconds."""

    peers: int
    seconds: float
    busy: bool
    false_deaths: list[str] = field(default_factory=list)
    deaths: list[float] = field(default_factory=list)  # from the end of a peer until one other knew, all of them
    unknown_deaths: int = 0  # (dead, other) pairs that never were
    rows: list[float] = field(default_factory=list)  # from a write until one other had it
    unknown_rows: int = 0
    bytes_per_s: float = 0.0  # sent, of the average peer, stalls included
    idle_bytes_per_s: float = 0.0  # while nothing is written and nobody stalls
    bytes_by_kind: dict[str, float] = field(default_factory=dict)
    sessions: float = 0.0
    load_age_s: float = 0.0  # of what a peer knows of another's load, median
    took_s: float = 0.0
    steps: int = 0

    def missed(self) -> list[str]:
        """The promises that were."""
        promises = [
            (len(self.false_deaths) > FALSE_DEATHS, f"{len(self.false_deaths)} false deaths: {self.false_deaths[:3]}"),
            (self.unknown_deaths > 0, f"{self.unknown_deaths} deaths are not known"),
            (
                percentile(self.deaths, 99) > DEATH_KNOWN_S,
                f"a death is known after {percentile(self.deaths, 99):.1f} s",
            ),
            (percentile(self.rows, 99) > ROW_KNOWN_S, f"a row is known after {percentile(self.rows, 99):.1f} s"),
            (self.unknown_rows > 0, f"{self.unknown_rows} rows are not known"),
            (
                self.idle_bytes_per_s > (BUSY_BYTES_PER_S if self.busy else IDLE_BYTES_PER_S),
                f"{self.idle_bytes_per_s:,.0f} bytes a second",
            ),
        ]
        return [words for is_missed, words in promises if is_missed]

    def lines(self) -> list[str]:
        """For people."""
        kinds = ", ".join(f"{kind} {count:,.0f}" for kind, count in sorted(self.bytes_by_kind.items()) if count >= 0.5)
        found = [
            f"{self.peers} peers, {self.seconds:g} s{', busy' if self.busy else ''}: {self.sessions:.1f} sessions each",
            f"  false deaths         {len(self.false_deaths)}",
            f"  a death is known     {_spread(self.deaths)} ({len(self.deaths):,} times, {self.unknown_deaths} never)",
            f"  a row is known       {_spread(self.rows)} ({len(self.rows):,} times, {self.unknown_rows} never)",
            f"  bytes sent per peer  {self.idle_bytes_per_s:,.0f} a second, disturbed {self.bytes_per_s:,.0f}: {kinds}",
            f"  it took              {self.took_s:.1f} s, {self.steps:,} steps",
        ]
        if self.busy:
            found.insert(5, f"  load known           {self.load_age_s:.1f} s old in the median")
        return found


def _spread(values: Sequence[float]) -> str:
    p50, p99 = percentile(values, 50), percentile(values, 99)
    return f"p50 {p50:.2f} s, p99 {p99:.2f} s, last {max(values, default=0.0):.2f} s"


class _Watched(Resident):
    """Tells the crowd of rows as they come."""

    def __init__(self, told: Callable[[str, Row], None], host: Host, town: Town, **how: Any) -> None:
        self._told = told
        super().__init__(host, town, **how)

    def _noticed(self, row: Row) -> list[object]:
        if row.kind == SERVICE.number:
            self._told(self.host.name, row)
        return []


class Crowd:
    """See the module."""

    def __init__(self, seed: int, peers: int, seconds: float, *, busy: bool = False) -> None:
        self.world = World(seed, link=Link(delay_s=(0.02, 0.2), loss=0.1), steps_max=1 << 62)
        self.names = [f"p{number:04}" for number in range(peers)]
        self.town = Town(self.names)
        self.figures = Figures(peers, seconds, busy)
        self._written: dict[bytes, tuple[float, set[str]]] = {}  # key -> when, who is to know
        self._killed: dict[PeerId, tuple[float, set[str]]] = {}
        self._counted = 0  # of the world's events
        self._stalled_until: dict[str, float] = {}
        join_all(self.world, self.town, self.names, light=True, resident=partial(_Watched, self._row_came))

    def run(self) -> Figures:
        """Let it live."""
        began, world, figures = perf_counter(), self.world, self.figures
        if figures.busy:
            self._say()
        world.run(until=SETTLE_S)
        quiet_s = min(20.0, figures.seconds / 4)
        before = self._bytes()
        world.run(until=SETTLE_S + quiet_s)
        figures.idle_bytes_per_s = (self._bytes() - before) / figures.peers / quiet_s
        end = SETTLE_S + figures.seconds
        for every, what in ((STALL_EVERY_S, self._stall), (DEATH_EVERY_S, self._kill), (ROW_EVERY_S, self._write)):
            at = world.now + every / 2
            while at < max(end - AFTER_S, world.now + every):
                world.after(at - world.now, what)
                at += every
        before, kinds_before, since = self._bytes(), self._kinds(), world.now
        while world.now < end:
            world.run(until=min(world.now + 5.0, end))
            self._count()
        lasted = (world.now - since) * figures.peers
        figures.bytes_per_s = (self._bytes() - before) / lasted
        figures.bytes_by_kind = {
            kind: (count - kinds_before.get(kind, 0)) / lasted for kind, count in self._kinds().items()
        }
        living = [name for name in self.names if world.is_alive(name)]
        figures.sessions = sum(len(world.core(name).linked) for name in living) / len(living)
        figures.unknown_deaths = sum(len(left & set(living)) for _, left in self._killed.values())
        figures.unknown_rows = sum(len(left & set(living)) for _, left in self._written.values())
        if figures.busy:
            figures.load_age_s = self._load_age(living)
        figures.took_s, figures.steps = perf_counter() - began, world.tally["steps"]
        return figures

    # -- what happens

    def _living(self) -> list[str]:
        return [name for name in self.names if self.world.is_alive(name) and not self.world.is_paused(name)]

    def _stall(self) -> None:
        for name in self.world.rng.sample(self._living(), max(1, int(len(self.names) * STALLED))):
            self.world.pause(name)
            self._stalled_until[name] = self.world.now + STALL_S
            self.world.after(STALL_S, self.world.resume, name)

    def _kill(self) -> None:
        name = self.world.rng.choice(self._living())
        self.world.crash(name, power=True)
        self._killed[self.town.peer(name)] = self.world.now, {one for one in self.names if self.world.is_alive(one)}

    def _write(self) -> None:
        name = self.world.rng.choice(self._living())
        key = bytes(self.town.peer(name)) + len(self._written).to_bytes(4, "big")
        self._written[key] = self.world.now, {one for one in self._living() if one != name}
        self.world.tell(name, "write", SERVICE, key, b"a row")

    def _say(self) -> None:
        """Each second most peers say how much is free there."""
        rng = self.world.rng
        for name in self._living():
            if rng.random() < BUSY:
                self.world.tell(name, "say", rng.randbytes(24))
        self.world.after(1.0, self._say)

    # -- what is seen

    def _row_came(self, name: str, row: Row) -> None:
        written = self._written.get(row.key)
        if written is None or name not in written[1]:
            return
        written[1].discard(name)
        since, now = written[0], self.world.now
        if self._stalled_until.get(name, 0.0) < since:  # "over peers not stalled"
            self.figures.rows.append(now - since)

    def _count(self) -> None:
        """Look at the events since the last look."""
        world = self.world
        for at, who, event in world.events:
            if not isinstance(event, MemberChanged) or event.state is not State.DEAD:
                continue
            killed = self._killed.get(event.peer)
            if killed is None or killed[0] > at:
                self.figures.false_deaths.append(f"{self.town.names[event.peer]} for {who} at {at:.1f} s")
            elif who in killed[1]:
                killed[1].discard(who)
                if self._stalled_until.get(who, 0.0) < killed[0]:
                    self.figures.deaths.append(at - killed[0])
        world.events.clear()

    def _bytes(self) -> int:
        return sum(self.world.core(name).bytes_sent for name in self.names)

    def _kinds(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for name in self.names:
            for kind, count in self.world.core(name).sent.items():
                found[kind] = found.get(kind, 0) + count
        return found

    def _load_age(self, living: Sequence[str]) -> float:
        rng, now, ages = self.world.rng, self.world.now, []
        for _ in range(500):
            one, other = rng.sample(list(living), 2)
            said = self.world.core(one).community.soft.get(self.town.peer(other), now)
            ages.append(said[1] if said is not None else float("inf"))
        return percentile(ages, 50)


def percentile(values: Sequence[float], percent: float) -> float:
    """Of none: 0."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)] if ordered else 0.0


def main(argv: list[str] | None = None) -> int:
    """Run one mesh and print its figures; exit code 1 if one misses its goal."""
    parser = argparse.ArgumentParser("python -m lattica.testing.crowd", description="What a large mesh costs.")
    parser.add_argument("--peers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--busy", action="store_true", help="80 %% of the peers change their load each second")
    given = parser.parse_args(argv)
    figures = Crowd(given.seed, given.peers, given.seconds, busy=given.busy).run()
    print("\n".join(figures.lines()), flush=True)
    for words in figures.missed():
        print(f"  MISSED               {words}")
    return 1 if figures.missed() else 0


if __name__ == "__main__":
    sys.exit(main())
