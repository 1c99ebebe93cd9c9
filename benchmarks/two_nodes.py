"""Two nodes on loopback: lattica beside plain TCP, and with `--peer gradient` beside Gradient's package of our name.

    python benchmarks/two_nodes.py --peer gradient        what `make bench PEER=gradient` runs
    python benchmarks/two_nodes.py --quick                one run a side, nothing kept

Every side has two fresh processes a run, in a network namespace with nothing but loopback where that can be had; the
sides in turn, and the median of each line counts. What failed is printed with how often. Exit code 1 if lattica missed
what it promises.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import history
from mesh_lines import IN_FLIGHT, STREAM, Measure, large_requests, small_calls
from pair_table import Sitting, median_of
from pairs import PairSide, Start, gradient, ours, plain, present, run_pair, versions
from sides import loopback_only

RUNS = 3
PROMISED = {small_calls(IN_FLIGHT[-1]): 25_000.0, large_requests(IN_FLIGHT[-1]): 1_100.0, STREAM: 400.0}
"""On two cores, mutual TLS included. The paper's table has 10,000 and 850 calls/s, on four."""


def starter(prefix: Sequence[str]) -> Start:
    def start(place: str, command: Sequence[str], options: Mapping[str, Any]) -> subprocess.Popen[str]:
        return subprocess.Popen([*prefix, *command], **options)

    return start


def free_port() -> int:
    """Of the machine's own network; inside a fresh namespace every port is."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def measure(sides: Sequence[PairSide], runs: int) -> Sitting:
    found: dict[str, list[list[Measure]]] = {side.name: [] for side in sides}
    with loopback_only(True) as prefix:
        for turn in range(runs):
            for side in sides:
                print(f"... two nodes {turn + 1}, {side.name}", file=sys.stderr, flush=True)
                found[side.name].append(run_pair(side, starter(prefix), f"127.0.0.1:{free_port()}"))
    return Sitting("two processes over loopback", {name: median_of(each) for name, each in found.items()}, PROMISED)


def compare(peer: str | None, quick: bool) -> int:
    """Measure, print, and keep it in the history unless it was a quick look."""
    sitting = measure(present([ours(), *([gradient()] if peer else []), plain()]), 1 if quick else RUNS)
    print(sitting.as_text())
    if not quick:
        history.append(sitting.rows(versions(), ", two processes"))
    return 1 if sitting.missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["gradient"], help="measure this beside it, in its own environment")
    parser.add_argument("--quick", action="store_true", help="one run a side; nothing is kept")
    given = parser.parse_args()
    return compare(given.peer, given.quick)


if __name__ == "__main__":
    sys.exit(main())
