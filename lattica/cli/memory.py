"""`lattica memory`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from lattica.cli.client import NodeConnection, data_dir_option, node_to_look_at
from lattica.cli.sizes import size_text, table

SHORT = 8  # characters of an id for people
ENTRIES = 200
Row = Mapping[str, Any]
STATES = {
    "here": "in memory", "spilled": "spilled", "inline": "in the process", "pending": "being made",
    "promised": "being made", "elsewhere": "elsewhere", "failed": "an error", "lost": "lost", "unknown": "?",
}  # fmt: skip


def _node(row: Row) -> str:
    return row.get("node_name") or str(row.get("node", "?"))[:SHORT]


def _made(row: Row) -> str:
    """Where or by whom it was made; paths without the folder that we are in."""
    site = str(row.get("made_at") or "")
    here = os.getcwd() + os.sep
    return site.removeprefix(here) or str(row.get("made_by") or "")


COLUMNS: dict[str, Callable[[Row], object]] = {
    "object": lambda row: str(row.get("object", "?")),
    "size": lambda row: size_text(row.get("size", 0)),
    "where": lambda row: STATES.get(str(row.get("state")), row.get("state", "?")),
    "held by": lambda row: row.get("holder", "?"),
    "pid": lambda row: row.get("pid") or "",
    "node": _node,
    "as": lambda row: row.get("by", "?"),
    "copies": lambda row: row.get("copies", 0),
    "made by": _made,
}
SORTS: dict[str, Callable[[Row], Any]] = {
    "size": lambda row: -row.get("size", 0),
    "pid": lambda row: (_node(row), row.get("pid", 0), -row.get("size", 0)),
    "node": lambda row: (_node(row), -row.get("size", 0)),
    "as": lambda row: (str(row.get("by")), -row.get("size", 0)),
}
GROUPS: dict[str, Callable[[Row], str]] = {
    "node": _node,
    "pid": lambda row: f"{row.get('holder', '?')} (pid {row.get('pid') or '-'}, {_node(row)})",
    "made": lambda row: _made(row) or "?",
    "where": lambda row: STATES.get(str(row.get("state")), "?"),
    "as": lambda row: str(row.get("by", "?")),
}


@click.command("memory", short_help="Show which objects there are, and who holds them.")
@click.option("--sort-by", type=click.Choice(list(SORTS)), default="size", show_default=True, help="Order of rows.")
@click.option("--group-by", type=click.Choice(list(GROUPS)), help="A line for each group, in place of objects.")
@click.option("--entries", type=click.IntRange(1), default=ENTRIES, show_default=True, help="Rows for people.")
@click.option("--json", "as_json", is_flag=True, help="For machines: {rows: [...], stores: [...], silent: [...]}.")
@data_dir_option
def command(sort_by: str, group_by: str | None, entries: int, as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica memory
    lattica memory --group-by made     with LATTICA_RECORD_CALL_SITES=1 in the program: by the line that made them
    lattica memory --json | jq '.rows[] | select(.by | contains("array"))'

    A row is an object and a process that holds it: as a ref, by an array that lies over its bytes (which keeps it in
    memory), as an argument of a task or actor; or what else holds it (another node, an object that contains it). Asks
    all processes of all nodes of the mesh, and returns within five seconds; who did not answer is named.

    Of small values (up to 100 KiB) the bytes are in the process. `copies` are nodes that have the bytes.
    """
    with NodeConnection(node_to_look_at(data_dir)) as connection:
        found = connection.mesh("memory")
    if as_json:
        click.echo(json.dumps(found, indent=2, default=lambda value: value.hex()))
    else:
        click.echo("\n".join(page(found["rows"], found["stores"], sort_by, group_by, entries)))
    for one in found.get("silent", ()):
        name = one.get("name") or str(one.get("peer_id", "?"))[:SHORT]
        click.echo(f"warning: {name} did not answer: {one.get('why', '?')}", err=True)


def page(rows: Sequence[Row], stores: Sequence[Row], sort_by: str, group_by: str | None, entries: int) -> list[str]:
    """The lines for people. Tolerates what a node of another release leaves out."""
    lines: list[str] = []
    if not rows:
        lines.append("nobody holds an object")
    elif group_by is not None:
        lines += _groups(rows, GROUPS[group_by], group_by)[: entries + 1]
    else:
        chosen = sorted(rows, key=SORTS[sort_by])[:entries]
        lines += table(list(COLUMNS), [[cell(row) for cell in COLUMNS.values()] for row in chosen])
        if len(rows) > entries:
            lines.append(f"  ... and {len(rows) - entries} more, with --entries or --json")
    lines += ["", *_stores(stores, rows)]
    return lines


def _groups(rows: Sequence[Row], key: Callable[[Row], str], name: str) -> list[str]:
    """An object that several hold counts in each group once."""
    sizes: dict[str, dict[str, int]] = {}
    for row in rows:
        sizes.setdefault(key(row), {})[str(row.get("object"))] = row.get("size", 0)
    largest = sorted(sizes.items(), key=lambda group: -sum(group[1].values()))
    cells = [[group, len(objects), size_text(sum(objects.values()))] for group, objects in largest]
    return table([name, "objects", "size"], cells)


def _stores(stores: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """Objects are counted by the rows: a node does not know those of which a process alone knows."""
    here: dict[object, set[object]] = {}
    for row in rows:
        if row.get("state") == "here":
            here.setdefault(row.get("node"), set()).add(row.get("object"))
    cells = [
        [
            _node(store),
            len(here.get(store.get("node"), ())),
            size_text(store.get("used_bytes", 0)),
            size_text(store.get("arena_bytes", 0)),
            store.get("spilled_objects", 0),
            size_text(store.get("spilled_bytes", 0)),
        ]
        for store in stores
    ]
    return table(["store of", "objects", "used", "of", "spilled", "on disk"], cells)
