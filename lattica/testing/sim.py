"""Run simulated worlds from the command line: the same seed, the same world.

    python -m lattica.testing.sim --seed 7                    every world
    python -m lattica.testing.sim --seed 7 --world leases     one
    python -m lattica.testing.sim --seed 7 --long             larger worlds, and the LONG_SEEDS seeds from 7 on
    python -m lattica.testing.sim --list

A world is a module in `lattica/testing/scenarios/`, found by its name, with one function `play(seed, long) -> World`
that asserts what must hold on the way and returns the world at its end. The first line of its docstring says what it
shows. Exit code 1 where an assertion failed; the last steps before it are printed, and the seed to replay it.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

from lattica.testing import scenarios
from lattica.testing.world import World

LONG_SEEDS = 50  # as many as turn up a race of one in twenty nearly always


def world_names() -> list[str]:
    return sorted(module.name for module in iter_modules(scenarios.__path__) if not module.name.startswith("_"))


def scenario(name: str) -> tuple[str, Callable[[int, bool], World]]:
    """What a scenario shows, in a line, and its `play`."""
    module = import_module(f"{scenarios.__name__}.{name}")
    return (module.__doc__ or "").partition("\n")[0], module.play


def run(name: str, seed: int, long: bool) -> bool:
    """Play one world and print what happened; whether all held."""
    started = time.perf_counter()
    try:
        world = scenario(name)[1](seed, long)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print(f"{name:12} seed {seed}: FAILED; replay with  make sim SEED={seed} ARGS='--world {name}'", flush=True)
        return False
    tally = ", ".join(f"{number:,} {what}" for what, number in world.tally.items() if number)
    print(f"{name:12} seed {seed}: {world.now:.1f} s in {time.perf_counter() - started:.2f} s; {tally}", flush=True)
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m lattica.testing.sim", description="Run simulated worlds from a seed.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--world", choices=world_names(), action="append", help="only this one (may be repeated)")
    parser.add_argument("--long", action="store_true", help=f"larger worlds, {LONG_SEEDS} seeds from --seed on")
    parser.add_argument("--list", action="store_true", help="list the worlds")
    given = parser.parse_args(argv)
    if given.list:
        for name in world_names():
            print(f"{name:12} {scenario(name)[0]}")
        return 0
    seeds = range(given.seed, given.seed + (LONG_SEEDS if given.long else 1))
    held = [run(name, seed, given.long) for name in given.world or world_names() for seed in seeds]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
