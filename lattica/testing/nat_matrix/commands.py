"""The command line of the matrix: see the package.

Exit code 1 if a pair did worse than it must, 3 if this machine cannot run labs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

import lattica.testing.nat_matrix as package
from lattica.testing.netlab import Host, Lab, Unavailable

from .attempts import HEAD, Attempt, Line, as_json, attempt, table
from .fleet import RELAYS, Fleet
from .kinds import KINDS, MIXED, Pair, all_pairs, can_be_direct, is_guessed, pair_of, sites_of

WAN = "20ms"
DIRECT_S = 12.0
"""For a pair that can be direct: two rounds of the birthday method."""
RELAYED_S = 2.0
"""How long a pair that cannot be direct is watched, for it should not become so."""
MESH_ATTEMPTS = 10
"""In one mesh: who has left stands in the table for a day, and a join takes in all of it."""
ATTEMPTS, GUESSED_ATTEMPTS = 5, 20
MISSED_MAX = 0.05
"""Of attempts by prediction or the birthday method: what may fail; all else must go well each time."""
SYMMETRIC_SEQUENTIAL_MISSED_MAX = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Let pairs of peers become direct, and print how it went; exit code 1 if too few did."""
    parser = argparse.ArgumentParser(description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", metavar="ONE/OTHER", help=f"kinds: {', '.join(KINDS)}. Default: all pairs")
    parser.add_argument("--attempts", type=int, help="of each pair (default: 5, and 20 where ports are guessed)")
    parser.add_argument("--mixed", type=int, metavar="N", help="N random pairs of the mixed population, once each")
    parser.add_argument("--seed", type=int, default=7, help="of the random pairs")
    parser.add_argument("--wan", default=WAN, help="the link of every uplink (default: 20ms one way)")
    parser.add_argument("--within", type=float, default=DIRECT_S, help="seconds in which a pair must be direct")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append every attempt to it")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what the peers log")
    given = parser.parse_args(argv)
    try:
        plan = _mixed(given.mixed, given.seed) if given.mixed else _plan(given.pairs, given.attempts)
        return run(plan, given)
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 3


def _plan(names: Sequence[str], attempts: int | None) -> list[Pair]:
    pairs = [pair_of(name) for name in names] or all_pairs()
    return [pair for pair in pairs for _ in range(attempts or (GUESSED_ATTEMPTS if is_guessed(pair) else ATTEMPTS))]


def _mixed(count: int, seed: int) -> list[Pair]:
    rng = Random(seed)
    drawn = [rng.choices(list(MIXED), list(MIXED.values()), k=2) for _ in range(count)]
    return [(one, other) for one, other in drawn]


def run(plan: Sequence[Pair], given: argparse.Namespace) -> int:
    """Every attempt, one after the other; print the matrix."""
    kinds = dict.fromkeys(kind for pair in plan for kind in pair)
    lines: dict[Pair, Line] = {}
    began = time.monotonic()
    lab = Lab(public={name: Host() for name in RELAYS}, sites=sites_of(kinds, given.wan), probe=False)
    with lab, Fleet(lab, given.logs) as fleet:
        for number, pair in enumerate(plan, 1):
            if number % MESH_ATTEMPTS == 1:
                fleet.found()
            made = attempt(fleet, pair, given.within if can_be_direct(pair) else RELAYED_S)
            lines.setdefault(pair, Line(pair)).attempts.append(made)
            print(f"{number:4} {progress(made)}", file=sys.stderr, flush=True)
            if given.json:
                with given.json.open("a") as file:
                    file.write(json.dumps(as_json(made)) + "\n")
    print(table([HEAD, *(line.cells() for line in lines.values())]))
    print(summary(lines.values(), time.monotonic() - began))
    return 1 if missed(lines.values()) else 0


def progress(made: Attempt) -> str:
    """One attempt, in a line."""
    answered = f"answered {made.answered_s:.2f}" if made.answered else f"NO ANSWER {made.error}"
    direct = f"direct {made.direct_s:.2f} {made.transport} {made.method}" if made.direct else f"{made.path}"
    refused = f" ({len(made.failed)} refused: {made.failed[0][:60]})" if made.failed else ""
    return f"{'/'.join(made.pair):32} {answered} {direct} [{' | '.join(made.behind)}]{refused}"


def summary(lines: Iterable[Line], took_s: float) -> str:
    """All attempts, in a line."""
    every = [each for line in lines for each in line.attempts]
    answered = sum(each.answered for each in every)
    soon = sum(each.answered_s <= 1 for each in every)
    direct = sum(each.direct for each in every)
    can = sum(can_be_direct(each.pair) for each in every)
    hits = sum(each.direct and can_be_direct(each.pair) for each in every)
    return (
        f"{len(every)} attempts in {took_s:.0f} s: {answered} answered, {soon} of them within a second; {direct} direct"
        f" ({direct / max(len(every), 1):.0%}), of {can} that can be so {hits}"
    )


def missed(lines: Iterable[Line]) -> list[str]:
    """What is worse than it must be: pairs by name."""
    return ["/".join(line.pair) for line in lines if not _is_good(line)]


def _is_good(line: Line) -> bool:
    total = len(line.attempts)
    if line.answered < total:
        return False
    if not can_be_direct(line.pair):
        return True
    share = 0.0
    if is_guessed(line.pair):
        share = SYMMETRIC_SEQUENTIAL_MISSED_MAX if line.pair == ("symmetric-seq",) * 2 else MISSED_MAX
    return line.direct >= total - max(int(total * share), 0)
