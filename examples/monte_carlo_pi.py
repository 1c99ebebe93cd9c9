"""Estimate π by throwing darts, with progress that workers report while they run.

    python examples/monte_carlo_pi.py
    python examples/monte_carlo_pi.py --samples 1e9 --tasks 64

A dart thrown at a square hits the circle in it with a chance of π/4. Tasks throw the darts; an actor is told how far
each one is, and this program asks it now and then. The actor's method is called without waiting for an answer, so
reporting costs a task next to nothing.
"""

from __future__ import annotations

import argparse
import math
import sys
import time

import numpy as np

import lattica

CHUNK = 1_000_000  # darts between two reports
LOOK_S = 0.2


@lattica.remote
class Progress:
    """Who has thrown how many darts."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.thrown: dict[int, int] = {}

    def report(self, task: int, thrown: int) -> None:
        self.thrown[task] = thrown

    def share(self) -> float:
        return sum(self.thrown.values()) / self.total


@lattica.remote
def throw(task: int, darts: int, progress: lattica.actor.ActorHandle) -> int:
    """How many of them hit. Each task has random numbers of its own: its number is the seed."""
    rng = np.random.default_rng(task)
    hits = thrown = 0
    while thrown < darts:
        count = min(CHUNK, darts - thrown)
        x, y = rng.random(count), rng.random(count)
        hits += int(np.count_nonzero(x * x + y * y <= 1.0))
        thrown += count
        progress.report.remote(task, thrown)
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description="Estimate pi by throwing darts.")
    parser.add_argument("--samples", type=float, default=4e7, metavar="N", help="darts in all (default 4e7)")
    parser.add_argument("--tasks", type=int, default=8, metavar="N", help="default 8")
    options = parser.parse_args()
    each = math.ceil(options.samples / options.tasks)
    with lattica.init():
        began = time.monotonic()
        progress = Progress.remote(each * options.tasks)
        waiting = [throw.remote(task, each, progress) for task in range(options.tasks)]
        hits = 0
        while waiting:
            ready, waiting = lattica.wait(waiting, num_returns=len(waiting), timeout=LOOK_S)
            hits += sum(lattica.get(ready))
            show(lattica.get(progress.share.remote()), last=not waiting)
        darts, took_s = each * options.tasks, time.monotonic() - began
    error = 4 * math.sqrt(math.pi / 4 * (1 - math.pi / 4) / darts)
    print(
        f"π ≈ {4 * hits / darts:.6f} ± {error:.6f}, from {darts:,} darts, {darts / took_s / 1e6:,.0f} million a second"
    )


def show(share: float, *, last: bool) -> None:
    """A bar on a terminal; elsewhere nothing but the end."""
    if sys.stdout.isatty():
        bar = "█" * round(share * 40)
        print(f"\r{bar:░<40} {share:4.0%}", end="\n" if last else "", flush=True)
    elif last:
        print(f"{share:.0%} thrown")


if __name__ == "__main__":
    main()
