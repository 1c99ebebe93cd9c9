"""Before the kernel ends something at random, end the work that is cheapest to lose.

    told    over(reading, now): is it too full?    kill(workers, now): then what to end    asked   interval_s()

Linux's own OOM killer takes the largest process, which may be the driver, and says nothing that a caller could act on.
At THRESHOLD of the memory of the machine, or of the cgroup we live in, one worker is ended: its task is retried, or
becomes an OutOfMemoryError that says how full it was and who had most. Pure: `memory_readings` reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

THRESHOLD = 0.95
"""Share of memory in use at which work is ended. Higher leaves the kernel no time to reclaim caches, and it kills
first; lower wastes memory: 5 % of 24 GiB is 1.2 GiB, what one process can fill in a second."""
KILL_EVERY_S = 1.0
"""The least time between two kills: memory of an ended process is back after milliseconds, or a second for many GiB."""
DYING_S = 5.0
"""How long a victim that is still there holds off the next kill; a process in uninterruptible sleep may never end."""
INTERVAL_MIN_S, INTERVAL_MAX_S = 0.25, 1.0
"""Between two readings. A reading takes 12 to 60 µs: even at the shortest interval that is 0.02 % of a core."""
FILL_BYTES_PER_S = 4 << 30
"""How quickly memory can fill: four cores that touch fresh pages, 1 GB/s each."""
LARGEST_SHOWN = 5  # processes named in the error: enough to see who it was
GIB = 1 << 30


class Work(IntEnum):
    """What a worker does, in the order in which it is ended."""

    RETRYABLE_TASK = 0
    IDLE = 1  # holds what tasks left in its globals
    TASK = 2
    ACTOR = 3


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes in use and bytes there are, of the "machine" or of the "cgroup" (`where`)."""

    used: int
    total: int
    where: str = "machine"

    @property
    def share(self) -> float:
        """In use, 0 to 1."""
        return self.used / self.total if self.total else 0.0


def fullest(readings: Iterable[Reading]) -> Reading:
    """The reading that counts: the one nearest to its end."""
    return max(readings, key=lambda reading: reading.share)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker. `since`: when it began its task or became its actor; `bytes`: of its own, without shared memory."""

    client: int
    pid: int
    name: str
    work: Work
    since: float
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Kill:
    """End this worker; `reason` is for the error's words."""

    client: int
    reason: str


def choose_victim(workers: Iterable[Candidate]) -> Candidate | None:
    """Whom to end: retryable tasks first, actors last, and the youngest of a kind, which has done the least.

    Youngest first also lets the oldest finish, so a set of tasks that does not fit together still makes progress.
    """
    return min(workers, key=lambda worker: (worker.work, -worker.since, -worker.client), default=None)


class MemoryMonitor:
    """Says when to look, and whom to end."""

    def __init__(self, threshold: float = THRESHOLD) -> None:
        """threshold: share of memory, 0 to 1; at 0 every reading is over it, at more than 1 none is."""
        self.threshold = threshold
        self.reading = Reading(0, 0)
        self._victim: Kill | None = None
        self._killed_at = float("-inf")

    def __repr__(self) -> str:
        return f"<MemoryMonitor: {self.reading.share:.0%} of {self.reading.where}, threshold {self.threshold:.0%}>"

    def over(self, reading: Reading, now: float) -> bool:
        """Take a reading; whether to call `kill` with the workers, which costs more to learn than this."""
        self.reading = reading
        return reading.total > 0 and reading.share >= self.threshold and now - self._killed_at >= KILL_EVERY_S

    def kill(self, workers: Sequence[Candidate], now: float) -> Kill | None:
        """What to end now, of these; None while the last victim is on its way out, or if there is nobody to end."""
        dying = self._victim is not None and any(worker.client == self._victim.client for worker in workers)
        if dying and now - self._killed_at < DYING_S:
            return None
        last = self._victim.client if dying and self._victim else None  # it does not die; try another
        victim = choose_victim(worker for worker in workers if worker.client != last)
        if victim is None:
            return None
        self._victim, self._killed_at = Kill(victim.client, self._words(workers)), now
        return self._victim

    def interval_s(self) -> float:
        """How long until the next reading: half the time in which memory could fill up to the threshold."""
        room = self.reading.total * self.threshold - self.reading.used
        return min(max(room / FILL_BYTES_PER_S / 2, INTERVAL_MIN_S), INTERVAL_MAX_S)

    def _words(self, workers: Iterable[Candidate]) -> str:
        used, total = self.reading.used, self.reading.total
        largest = sorted(workers, key=lambda worker: worker.bytes, reverse=True)[:LARGEST_SHOWN]
        names = ", ".join(f"{worker.name} (pid {worker.pid}) {worker.bytes / GIB:.2f} GiB" for worker in largest)
        return (
            f"out of memory: {self.reading.share:.1%} of the {self.reading.where}'s {total / GIB:.1f} GiB were in use "
            f"({used / GIB:.1f} GiB; threshold {self.threshold:.0%}); the largest workers: {names}"
        )
