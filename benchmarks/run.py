"""`make bench`: lattica, and with `--peer ray` Ray beside it, by the same lines on the same machine in one sitting.
With `--peer gradient`: two nodes that call each other, beside Gradient's package; see two_nodes.py.

    python benchmarks/run.py --peer ray
    python benchmarks/run.py --peer ray --only task_sync,store --quick
    python benchmarks/run.py --peer ray --write docs/benchmarks.md

Every part runs in fresh processes, the sides in turn; rows that a core's whim can change sixfold run in five processes
a side and the median counts. Prints the table and appends one JSON line per measure to `benchmarks/history.jsonl`, but
not from a `--quick` run. Exit code 1 if a promised ratio was missed or one of our parts failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import history
import sides
import two_nodes
from cases import PARTS, Part
from floors import FLOORS
from sides import Row, Side
from table import Line, as_markdown, as_text, processes_as_markdown, rewrite

REPEATS = 5  # samples of each bench in one process
QUICK_REPEATS = 2


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["ray", "gradient"], help="measure this beside it, in its own environment")
    parser.add_argument("--ray-python", type=Path, help="an interpreter that has ray (default: made on demand)")
    parser.add_argument("--fw", default="lattica", help="the module on our side")
    parser.add_argument("--only", default="", help=f"comma-separated parts: {', '.join(part.name for part in PARTS)}")
    parser.add_argument("--quick", action="store_true", help="one process a part, two samples; nothing is kept")
    parser.add_argument("--no-namespace", action="store_true", help="stay in the machine's own network")
    parser.add_argument("--write", type=Path, help="rewrite the tables between the markers of this page")
    return parser.parse_args()


def run_all(both: list[Side], parts: list[Part], quick: bool, namespace: bool) -> dict[str, list[Row]]:
    """fw -> all its rows. The sides alternate, process by process, so that a slow minute of the machine meets both."""
    rows: dict[str, list[Row]] = {side.fw: [] for side in both}
    with sides.loopback_only(namespace) as prefix:
        for part in parts:
            for turn in range(1 if quick else part.processes):
                for side in both:
                    print(f"... {part.name} {turn + 1}, {side.fw}", file=sys.stderr, flush=True)
                    rows[side.fw] += sides.run_part(side, part, prefix, QUICK_REPEATS if quick else REPEATS)
    return rows


def lines_of(parts: list[Part], ours: dict[str, float], theirs: dict[str, float]) -> list[Line]:
    floors: dict[str, float] = {}
    lines = []
    for case in (case for part in parts for case in part.cases):
        if case.floor and case.floor not in floors:
            floors[case.floor] = FLOORS[case.floor].measure()
        floor = floors[case.floor] if case.floor else None
        lines.append(Line(case, case.value(ours), case.value(theirs), floor))
    return lines


def main() -> int:
    args = parse()
    if args.peer == "gradient":
        if args.only or args.write:
            sys.exit("--only and --write are of the comparison with Ray")
        return two_nodes.compare(args.peer, args.quick)
    wanted = [name for name in args.only.split(",") if name]
    unknown = set(wanted) - {part.name for part in PARTS}
    if unknown:
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; parts: {', '.join(part.name for part in PARTS)}")
    if args.write and (wanted or args.quick):
        sys.exit("--write publishes a whole sitting: leave out --only and --quick")
    parts = [part for part in PARTS if not wanted or part.name in wanted]
    both = [sides.ours(args.fw)] + ([sides.ray(args.ray_python)] if args.peer == "ray" else [])
    rows = run_all(both, parts, args.quick, not args.no_namespace)

    ours, theirs = sides.medians(rows[args.fw]), sides.medians(rows.get("ray", [])) if args.peer else {}
    lines = lines_of(parts, ours, theirs)
    print(as_text(lines))
    if not args.quick:
        history.append(rows)
    if args.write:
        rewrite(args.write, "table", as_markdown(lines, history.sitting()))
        rewrite(args.write, "processes", processes_as_markdown(rows))
    return 1 if any(line.met is False or line.ours is None for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
