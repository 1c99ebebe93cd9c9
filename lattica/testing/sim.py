"""Run simulated worlds from the command line: the same seed, the same world.

    python -m lattica.testing.sim --seed 7                     every world
    python -m lattica.testing.sim --seed 7 --world leases      one
    python -m lattica.testing.sim --seeds 1-2000 --jobs 8      many seeds, in so many processes
    python -m lattica.testing.sim --seed 7 --long              larger worlds, and the LONG_SEEDS seeds from 7 on
    python -m lattica.testing.sim --list

A world is a module in `lattica/testing/scenarios/`, found by its name, with one function `play(seed, long) -> World`
that asserts what must hold on the way and returns the world at its end. The first line of its docstring says what it
shows. Exit code 1 where an assertion failed; the last steps before it are printed, and the seed to replay it. The hash
of a world is the same wherever its seed is played.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from pkgutil import iter_modules

from lattica.testing import scenarios
from lattica.testing.world import World

LONG_SEEDS = 50  # as many as turn up a race of one in twenty nearly always
PROGRESS_S = 5.0  # between lines while many seeds are played
FAILURES_SHOWN = 5  # per world, in full; of the others only the seeds
CHUNK_MAX = 16  # seeds handed to a process at once


def world_names() -> list[str]:
    """All there are to run, in order."""
    return sorted(module.name for module in iter_modules(scenarios.__path__) if not module.name.startswith("_"))


def scenario(name: str) -> tuple[str, Callable[[int, bool], World]]:
    """What a scenario shows, in a line, and its `play`."""
    module = import_module(f"{scenarios.__name__}.{name}")
    return (module.__doc__ or "").partition("\n")[0], module.play


@dataclass(frozen=True, slots=True)
class Played:
    """How one world went. failure: the traceback with the last steps; empty if all held."""

    name: str
    seed: int
    long: bool
    took_s: float
    failure: str = ""
    now: float = 0.0
    hash: str = ""
    tally: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.failure:
            return f"{self.failure}{self.name:12} seed {self.seed}: FAILED; replay with  {self.replay}"
        tally = ", ".join(f"{number:,} {what}" for what, number in self.tally.items() if number)
        return f"{self.name:12} seed {self.seed}: {self.hash}, {self.now:.1f} s in {self.took_s:.2f} s; {tally}"

    @property
    def replay(self) -> str:
        """The command that plays it again."""
        if self.long:
            return f"python -m lattica.testing.sim --seeds {self.seed}-{self.seed} --long --world {self.name}"
        return f"make sim SEED={self.seed} ARGS='--world {self.name}'"


def play(name: str, seed: int, long: bool) -> Played:
    """Play one world to its end, or to what fails in it."""
    started = time.perf_counter()
    try:
        world = scenario(name)[1](seed, long)
    except Exception:
        return Played(name, seed, long, time.perf_counter() - started, traceback.format_exc())
    took_s = time.perf_counter() - started
    return Played(name, seed, long, took_s, "", world.now, world.trace_hash(), world.tally)


def _played(name: str, seeds: Iterable[int], long: bool, jobs: int) -> Iterator[Played]:
    """Each seed's world, in order of seeds."""
    if jobs == 1:
        yield from (play(name, seed, long) for seed in seeds)
        return
    todo = list(seeds)
    chunk = max(1, min(CHUNK_MAX, len(todo) // (4 * jobs)))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(play, [name] * len(todo), todo, [long] * len(todo), chunksize=chunk)


def sweep(name: str, seeds: range, long: bool, jobs: int) -> bool:
    """Play one world from many seeds; print progress, what failed, and a sum. Whether all held."""
    started = told = time.perf_counter()
    failed: list[Played] = []
    steps = 0
    for done, played in enumerate(_played(name, seeds, long, jobs), 1):
        steps += played.tally.get("steps", 0)
        if played.failure:
            failed.append(played)
            print(played if len(failed) <= FAILURES_SHOWN else f"{name:12} seed {played.seed}: FAILED", flush=True)
        if time.perf_counter() - told > PROGRESS_S:
            told = time.perf_counter()
            print(f"{name:12} {done:,} of {len(seeds):,} seeds, {len(failed)} failed", flush=True)
    took_s = time.perf_counter() - started
    verdict = f"{len(failed)} FAILED: {', '.join(str(one.seed) for one in failed)}" if failed else "all held"
    rate = f"{steps:,} steps, {steps / took_s:,.0f} a second"
    print(f"{name:12} seeds {seeds.start}-{seeds.stop - 1}: {verdict}; {took_s:.1f} s, {rate}", flush=True)
    return not failed


def _range(text: str) -> range:
    first, dash, last = text.partition("-")
    try:
        seeds = range(int(first), int(last if dash else first) + 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of seeds; write 1-2000") from None
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text!r} is empty; write the smaller seed first")
    return seeds


def main(argv: list[str] | None = None) -> int:
    """Play the worlds that are asked for; exit code 1 if an invariant broke."""
    parser = argparse.ArgumentParser("python -m lattica.testing.sim", description="Run simulated worlds from a seed.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seeds", type=_range, metavar="A-B", help="every seed from A to B, a sum at the end")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes; 0: as many as there are CPUs")
    parser.add_argument("--world", choices=world_names(), action="append", help="only this one (may be repeated)")
    parser.add_argument("--long", action="store_true", help=f"larger worlds, {LONG_SEEDS} seeds from --seed on")
    parser.add_argument("--list", action="store_true", help="list the worlds")
    given = parser.parse_args(argv)
    names = given.world or world_names()
    if given.list:
        for name in world_names():
            print(f"{name:12} {scenario(name)[0]}")
        return 0
    if given.seeds is None and not given.long:
        held = True
        for name in names:
            played = play(name, given.seed, False)
            print(played, flush=True)
            held = held and not played.failure
        return 0 if held else 1
    seeds = given.seeds or range(given.seed, given.seed + LONG_SEEDS)
    jobs = given.jobs or os.cpu_count() or 1
    results = [sweep(name, seeds, given.long, jobs) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
