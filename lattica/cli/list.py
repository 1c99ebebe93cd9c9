"""`lattica list`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from lattica.cli import job, peers
from lattica.cli.client import NodeConnection, data_dir_option, node_to_look_at
from lattica.cli.sizes import duration_text, size_text, table

SHORT = 8  # characters of an id for people
ROWS_MAX = 200  # for people; `--json` has all
Row = Mapping[str, Any]


def _node(row: Row) -> str:
    return row.get("node_name") or str(row.get("node", "?"))[:SHORT]


def _amounts(row: Row) -> str:
    return " ".join(f"{amount:g} {name}" for name, amount in row.get("resources", {}).items())


COLUMNS: dict[str, dict[str, Callable[[Row], object]]] = {
    "tasks": {
        "name": lambda row: row.get("name", ""),
        "state": lambda row: row.get("state", "?"),
        "node": _node,
        "pid": lambda row: row.get("pid") or "",
        "takes": _amounts,
        "": lambda row: row.get("why", ""),
    },
    "actors": {
        "actor": lambda row: str(row.get("actor", "?"))[:SHORT],
        "class": lambda row: row.get("class_name", "?"),
        "name": lambda row: row.get("name", ""),
        "namespace": lambda row: row.get("namespace", ""),
        "state": lambda row: row.get("state", "?"),
        "owner": _node,
        "pid": lambda row: row.get("pid") or "",
        "restarts": lambda row: row.get("restarts", 0),
    },
    "workers": {
        "node": _node,
        "pid": lambda row: row.get("pid", "?"),
        "state": lambda row: row.get("state", "?"),
        "job": lambda row: row.get("job", "?"),
        "memory": lambda row: size_text(row.get("rss_bytes", 0)),
        "runs": lambda row: row.get("name", ""),
    },
    "objects": {
        "object": lambda row: str(row.get("object", "?")),
        "size": lambda row: size_text(row["size"]) if row.get("size") else "",
        "state": lambda row: row.get("state", "?"),
        "known to": _node,
        "owner": lambda row: row.get("owner") or row.get("lender") or "ended",
        "pid": lambda row: row.get("pid") or "",
        "holders": lambda row: row.get("holders", 0),
        "made at": lambda row: row.get("made_at", ""),
    },
    "memory": {
        "node": _node,
        "held by": lambda row: row.get("holder", "?"),
        "pid": lambda row: row.get("pid") or "",
        "held": lambda row: row.get("held", 0),
        "size": lambda row: size_text(row.get("held_bytes", 0)),
        "made": lambda row: row.get("made", 0),
        "made size": lambda row: size_text(row.get("made_bytes", 0)),
        "waits for": lambda row: row.get("waiting", 0),
    },
    "drivers": {
        "node": _node,
        "job": lambda row: row.get("job", "?"),
        "pid": lambda row: row.get("pid") or "elsewhere",
        "for": lambda row: duration_text(time.time() - row.get("since", time.time())),
        "workers": lambda row: row.get("workers", 0),
        "actors": lambda row: row.get("actors", 0),
        "script": lambda row: row.get("script", ""),
    },
}


@click.command("list", short_help="List tasks, actors, workers, objects, nodes or jobs of the mesh.")
@click.argument("what", type=click.Choice([*COLUMNS, "nodes", "jobs"]), metavar="WHAT")
@click.option("--json", "as_json", is_flag=True, help="For machines: {rows: [...], silent: [...]}.")
@data_dir_option
def command(what: str, as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica list actors
    lattica list tasks --json | jq -r '.rows[] | select(.state == "waiting") | .why'

    WHAT: tasks, actors, workers, objects, memory, drivers, nodes or jobs. Asks all nodes of the mesh, and returns when
    they have answered, or after five seconds; who did not is named.

    Of tasks a row is a worker that is lent to a program, with what it runs first, or a request for one that waits; a
    program's own queue is not shown. Of objects a row is one that a node knows: values of up to 100 KiB stay in the
    program until it shares them. Memory has a row for each process: how many objects it holds and has made. Drivers
    are programs that are attached to a node, jobs are scripts that were submitted.
    """
    with NodeConnection(node_to_look_at(data_dir)) as connection:
        if what == "jobs":
            found = {"rows": connection.mesh("job_list"), "silent": []}
        else:
            found = connection.mesh("list", what=what)
    if as_json:
        click.echo(json.dumps(found, indent=2, default=lambda value: value.hex()))
    elif what == "jobs":
        click.echo("\n".join(job.page(found["rows"], time.time())))
    elif what == "nodes":
        click.echo("\n".join(peers.page(found["rows"], time.time())))
    else:
        click.echo("\n".join(page(what, found["rows"])))
    for one in found.get("silent", ()):
        name = one.get("name") or str(one.get("peer_id", "?"))[:SHORT]
        click.echo(f"warning: {name} did not answer: {one.get('why', '?')}", err=True)


def page(what: str, rows: Sequence[Row]) -> list[str]:
    """The lines for people. Tolerates what a node of another release leaves out."""
    if not rows:
        return [f"there are no {what}"]
    columns = COLUMNS[what]
    lines = table(list(columns), [[cell(row) for cell in columns.values()] for row in rows[:ROWS_MAX]])
    if len(rows) > ROWS_MAX:
        lines.append(f"  ... and {len(rows) - ROWS_MAX} more, with --json")
    return lines
