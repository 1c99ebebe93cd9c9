"""What is measured between two processes, and how a script of a side says it. Standard library only: every side's
interpreter runs it.

A side is a script with two verbs, one a process:

    serve --listen HOST:PORT --ticket-file F      writes F when it can be called, and serves until it is ended
    load --ticket-file F --json                   measures, and prints a JSON line a measure:
                                                  {"name": ..., "value": ..., "unit": ..., "errors": {...}}

`errors` (what was said -> how often) may be left out. Calls that failed are no part of a rate, but they are printed
beside it: a side that answers half of its calls fast is not fast.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SMALL = 128
LARGE = 256 << 10
CHUNK = 256 << 10  # of the stream
IN_FLIGHT = (16, 1_000)
ERROR_MAX_CHARS = 120

CALL_P50 = "one call, p50"
CALL_P99 = "one call, p99"
STREAM = "one-way stream"
RATE_UNITS = {"1/s", "MB/s"}


def small_calls(in_flight: int) -> str:
    """128 bytes there and back."""
    return f"128 B calls, {in_flight:,} in flight"


def large_requests(in_flight: int) -> str:
    """256 KiB there, a few bytes back."""
    return f"256 KiB requests, {in_flight:,} in flight"


LINES = (
    CALL_P50,
    CALL_P99,
    *(small_calls(each) for each in IN_FLIGHT),
    *(large_requests(each) for each in IN_FLIGHT),
    STREAM,
)


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of a side. value: None where nothing could be measured, and `errors` says why."""

    name: str
    value: float | None
    unit: str
    errors: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        line = {"name": self.name, "value": self.value, "unit": self.unit}
        return json.dumps(line | ({"errors": dict(self.errors)} if self.errors else {}))

    @property
    def failures(self) -> int:
        return sum(self.errors.values())


def read_measures(text: str) -> Iterator[Measure]:
    """The measures among a script's output; other lines are its own talk."""
    for line in text.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            yield Measure(found["name"], found["value"], found["unit"], found.get("errors", {}))


def arguments(purpose: str | None) -> argparse.Namespace:
    """The command line of a side's script."""
    parser = argparse.ArgumentParser(description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    serve = verbs.add_parser("serve", help="be called")
    serve.add_argument("--listen", required=True, metavar="HOST:PORT", type=host_and_port)
    load = verbs.add_parser("load", help="call, and measure")
    load.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    for verb in (serve, load):
        verb.add_argument("--ticket-file", required=True, type=Path)
    return parser.parse_args()


def host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def write_ticket(path: Path, ticket: str) -> None:
    """At once or not at all: the other process waits for the file."""
    draft = path.with_suffix(".new")
    draft.write_text(ticket)
    draft.rename(path)


def show(measures: Iterator[Measure], as_json: bool) -> None:
    """Print each as soon as it is there."""
    for each in measures:
        value = "–" if each.value is None else f"{each.value:,.1f}"
        told = "".join(f"\n    {count:,} × {what}" for what, count in each.errors.items())
        print(each.to_json() if as_json else f"{each.name:34} {value:>12} {each.unit}{told}", flush=True)
