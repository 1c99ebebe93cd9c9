"""`lattica top`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from lattica.cli.client import NodeConnection, data_dir_option, node_to_look_at
from lattica.cli.sizes import parse_duration, size_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

WORKERS_MAX = 20
"""Workers for people, the busiest first; `--json` has all."""
INTERVAL_MIN_S = 0.2
BAR_CHARS = 10
FULL = 0.9
"""Share of what there is from which on a bar is red."""
Row = Mapping[str, Any]


@click.command("top", short_help="Watch machines and workers, live.")
@click.option("--interval", default="1s", show_default=True, help="Between looks, such as 5s or 0.5.")
@click.option("--once", is_flag=True, help="Look twice, an interval apart, print that and return.")
@click.option("--json", "as_json", is_flag=True, help="For machines: as --once, one JSON object.")
@data_dir_option
def command(interval: str, once: bool, as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica top
    lattica top --once | head
    lattica top --json | jq '.machines[] | {node_name, cpu_share}'

    Shows what the machines of the mesh do, anew each second, and returns at Ctrl-C: CPU and memory of each, by whomever
    used; what is taken of the node's CPUs, GPUs and object store; how many tasks and calls end each second, and what
    waits for a place. Below it the workers that use most CPU. A node that does not answer is named.
    """
    interval_s = max(parse_duration(interval), INTERVAL_MIN_S)
    with NodeConnection(node_to_look_at(data_dir)) as connection:
        looks = Looks(connection)
        if as_json or once or not sys.stdout.isatty():
            looks.take()
            time.sleep(interval_s)
            found = looks.take()
            click.echo(json.dumps(found, indent=2) if as_json else _as_text(found))
            return
        _watch(looks, interval_s)


class Looks:
    """Asks the mesh again and again, and says how much was done between two looks."""

    def __init__(self, connection: NodeConnection) -> None:
        self._connection = connection
        self._machines: dict[str, Row] = {}
        self._workers: dict[tuple[str, int], Row] = {}

    def take(self) -> dict[str, Any]:
        """{machines, workers, silent}: the node's rows, machines with cpu_share (0 to 1) and ends_per_s, workers with
        cpu_share (1 is a whole core) and ends_per_s; shares are None until the second look. Workers by CPU."""
        machines = self._connection.mesh("list", what="machines")
        workers = self._connection.mesh("list", what="workers")["rows"]
        return self.compare(machines["rows"], workers, machines["silent"])

    def compare(self, machines: Sequence[Row], workers: Sequence[Row], silent: Sequence[Row]) -> dict[str, Any]:
        """The same of rows that were asked for."""
        passed = {row["node"]: _since(self._machines.get(row["node"]), row, "clock_s") for row in machines}
        shown: list[dict[str, Any]] = []
        for row in workers:
            before, took = self._workers.get((row["node"], row["pid"])), passed.get(row["node"])
            shown.append(
                {**row, "cpu_share": _rate(before, row, "cpu_s", took), "ends_per_s": _rate(before, row, "ran", took)}
            )
        shown.sort(key=lambda row: (-(row["cpu_share"] or 0.0), row["node_name"], row["pid"]))
        found = []
        for row in machines:
            took = passed[row["node"]]
            share = _rate(self._machines.get(row["node"]), row, "cpu_s", took)
            ends = [one["ends_per_s"] or 0.0 for one in shown if one["node"] == row["node"]]
            found.append({**row, "cpu_share": share and share / row["cpus"], "ends_per_s": sum(ends) if took else None})
        self._machines = {row["node"]: row for row in machines}
        self._workers = {(row["node"], row["pid"]): row for row in workers}
        return {"machines": found, "workers": shown, "silent": list(silent)}


def _since(before: Row | None, now: Row, what: str) -> float | None:
    return None if before is None else float(now[what] - before[what])


def _rate(before: Row | None, now: Row, what: str, took_s: float | None) -> float | None:
    """How much more it became each second; from 0 on for what was not there before."""
    if not took_s or took_s <= 0 or what not in now:
        return None
    return float(max(now[what] - (before or {}).get(what, 0 if before else now[what]), 0)) / took_s


def _watch(looks: Looks, interval_s: float) -> None:
    from rich.live import Live

    with Live(_page(looks.take()), auto_refresh=False, screen=True) as live:
        try:
            time.sleep(INTERVAL_MIN_S)
            while True:
                live.update(_page(looks.take()), refresh=True)
                time.sleep(interval_s)
        except KeyboardInterrupt:
            return


def _as_text(found: Mapping[str, Any]) -> str:
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    Console(file=out, width=140, no_color=True).print(_page(found))
    return out.getvalue().rstrip()


def _page(found: Mapping[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    silent = [Text(f"{row.get('name') or row.get('peer_id', '?')} does not answer: {row.get('why', '?')}", "yellow")
              for row in found["silent"]]  # fmt: skip
    workers = found["workers"]
    more = [Text(f"... and {len(workers) - WORKERS_MAX} more")] if len(workers) > WORKERS_MAX else []
    return Group(_machines(found["machines"]), *silent, Text(""), _workers(workers[:WORKERS_MAX]), *more)


def _machines(rows: Sequence[Row]) -> Table:
    table = _table("node", "cpu", "memory", "object store", "CPUs taken", "GPUs", "ends/s", "waiting")
    for row in rows:
        total, available = row.get("total", {}), row.get("available", {})
        table.add_row(
            _name(row),
            _bar(row.get("cpu_share")),
            _bar(_share(row, "memory"), f" of {size_text(row.get('memory_total', 0))}"),
            _bar(_share(row, "store"), f" of {size_text(row.get('store_total', 0))}"),
            _taken(total, available, "CPU"),
            _taken(total, available, "GPU"),
            _number(row.get("ends_per_s")),
            str(row.get("waiting", "")),
        )
    return table


def _workers(rows: Sequence[Row]) -> Table:
    table = _table("worker", "node", "state", "cpu", "memory", "ends/s", "runs")
    for row in rows:
        share = row.get("cpu_share")
        table.add_row(
            str(row.get("pid", "?")),
            _name(row),
            str(row.get("state", "?")),
            "" if share is None else f"{share:.0%}",
            size_text(row.get("rss_bytes", 0)),
            _number(row.get("ends_per_s")),
            str(row.get("name", "")),
        )
    return table


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right" if column in ("ends/s", "waiting") else "left")
    return table


def _name(row: Row) -> str:
    return row.get("node_name") or str(row.get("node", "?"))[:8]


def _share(row: Row, what: str) -> float | None:
    total = row.get(f"{what}_total")
    return row.get(f"{what}_bytes", 0) / total if total else None


def _taken(total: Row, available: Row, name: str) -> str:
    return f"{total[name] - available.get(name, 0):g} of {total[name]:g}" if total.get(name) else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _bar(share: float | None, after: str = "") -> Any:
    from rich.text import Text

    if share is None:
        return Text(" " * BAR_CHARS)
    full = round(min(max(share, 0.0), 1.0) * BAR_CHARS)
    color = "red" if share > FULL else "green"
    return Text.assemble(("█" * full, color), ("░" * (BAR_CHARS - full), "dim"), f" {share:4.0%}{after}")
