"""What a participant of a world has that outlives its process: a disk, and clocks that are not quite right.

    world.add_host("ann", lambda host: Node(host.disk, host.clock, host.rng))

A write is on the disk when `write` returns, as after an fsync. Snapshots are copies, and a copied directory is the disk
of another host that began as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

EPOCH_S = 1_750_000_000.0
"""Unix time of a world's beginning: a day in June 2025. Certificates made by the world's clocks are valid in it."""


class HasTime(Protocol):
    """A world, as far as clocks care."""

    now: float


class Disk:
    """Named files of bytes."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self._files = dict(files or {})

    def __repr__(self) -> str:
        return f"<Disk: {len(self._files)} files, {sum(map(len, self._files.values()))} bytes>"

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._files))

    def read(self, name: str) -> bytes | None:
        """The whole file; None if there is none."""
        return self._files.get(name)

    def write(self, name: str, data: bytes) -> None:
        """Replace the whole file, durably: a crash after this returned does not undo it."""
        self._files[name] = bytes(data)

    def delete(self, name: str) -> None:
        """The file is no more; nothing happens if it never was."""
        self._files.pop(name, None)

    def copy(self) -> Disk:
        """A snapshot, which later writes do not change."""
        return Disk(self._files)


class HostClock:
    """Two clocks of one host: the monotonic one and that on the wall.

    `now` is monotonic: it never goes back, runs `drift` too fast (0.0001: a hundred parts per million) and stands still
    while the host is suspended. `unix_s` is what `time.time()` would say: drifting too, `offset_s` ahead, and right
    again after a suspension as far as it was before.
    """

    def __init__(self, world: HasTime, *, offset_s: float = 0.0, drift: float = 0.0, uptime_s: float = 0.0) -> None:
        """uptime_s: what `now` says at this moment, to show that two hosts' `now` have nothing in common."""
        self._world = world
        self.offset_s = offset_s
        self.drift = drift
        self.running = True
        self._since = world.now  # the rest is as of this world time
        self._local = world.now + uptime_s
        self._wall_error_s = 0.0
        self.exact = not drift and not uptime_s
        """`now` is the world's: nothing has to be converted."""

    def __repr__(self) -> str:
        return f"<HostClock: now {self.now():.6f}, wall {self.unix_s() - EPOCH_S - self._world.now:+g} s>"

    def now(self) -> float:
        """Monotonic seconds."""
        if self.exact or not self.running:
            return self._world.now if self.running else self._local
        return self._local + (self._world.now - self._since) * (1 + self.drift)

    def unix_s(self) -> float:
        """Seconds since 1970, by this host's belief."""
        error_s = self._wall_error_s + (self._world.now - self._since) * self.drift
        return EPOCH_S + self._world.now + self.offset_s + error_s

    def reached_at(self, due: float) -> float:
        """The world time at which `now()` will not be less than `due`; infinite while suspended."""
        if not self.running:
            return math.inf
        if self.exact:
            return due
        at = self._since + (due - self._local) / (1 + self.drift)
        step = math.ulp(max(abs(due), abs(at)))
        while self._local + (at - self._since) * (1 + self.drift) < due:  # by rounding
            at, step = at + step, step * 2
        return at

    def set(self, *, offset_s: float | None = None, drift: float | None = None) -> None:
        """Step the wall clock, or let both run at another speed. Use `World.set_clock`, which also moves the timers."""
        assert drift is None or drift > -1, "a clock does not run backwards"
        self._settle()
        self.offset_s = self.offset_s if offset_s is None else offset_s
        self.drift = self.drift if drift is None else drift
        self.exact = self.exact and not self.drift

    def stop(self) -> None:
        """`now` stands still: the host is suspended."""
        self._settle()
        self.running = self.exact = False

    def go_on(self) -> None:
        """`now` runs again."""
        self._settle()
        self.running = True

    def _settle(self) -> None:
        local = self.now()
        self._wall_error_s += (self._world.now - self._since) * self.drift
        self._since, self._local = self._world.now, local


@dataclass(slots=True)
class Host:
    """Given to the factory at each start. rng: dice of its own for this boot, so that one participant's throws do not
    change another's. boot: counts from 1 and stays with the name whatever becomes of the disk."""

    name: str
    seed: int
    disk: Disk
    clock: HostClock
    boot: int = 1
    _rng: Random | None = field(default=None, repr=False)

    @property
    def rng(self) -> Random:
        if self._rng is None:
            self._rng = Random(f"{self.seed} {self.name} {self.boot}")
        return self._rng

    def next_boot(self) -> None:
        """A new process begins on it."""
        self.boot, self._rng = self.boot + 1, None
