"""`lattica table`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import click

from lattica.cli.client import NodeConnection, data_dir_option, node_of
from lattica.cli.sizes import duration_text, size_text, table

ROWS_MAX = 200
"""Rows for people; `--json` has more."""
SHORT = 8  # characters of an id for people
SHOWN_CHARS = 80  # of what a row says


@click.command("table", short_help="Show what all nodes of the mesh know.")
@click.argument("kind", default="")
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
@data_dir_option
def command(kind: str, as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica table
    lattica table node
    lattica table accusation --json | jq '.rows[] | {key, writer}'

    Shows the table that every node of the mesh holds: how many rows of each kind, or the rows of one; returns at once.
    Rows that do not count (tombstones, and those of writers that are revoked or lied) are marked.
    """
    with NodeConnection(node_of(data_dir)) as connection:
        found = connection.mesh("table", kind=kind)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n".join(rows_page(found, time.time()) if kind else kinds_page(found)))


def kinds_page(found: Mapping[str, Any]) -> list[str]:
    """How much there is. Tolerates what a node of another release leaves out."""
    kinds = [
        [one.get("kind", "?"), one.get("rows", 0), one.get("hidden", 0), size_text(one.get("bytes", 0))]
        for one in found.get("kinds", ())
        if one.get("rows")
    ]
    lines = table(["kind", "rows", "hidden", "size"], kinds)
    lines.append(f"{found.get('rows', '?')} rows; fingerprint {found.get('root', '?')}, the same on all that agree")
    for writer in found.get("distrusted", ()):
        lines.append(f"hidden: what {str(writer.get('peer_id', '?'))[:SHORT]} wrote: {writer.get('why', '?')}")
    return lines


def rows_page(found: Mapping[str, Any], unix_s: float) -> list[str]:
    """The rows of a kind."""
    rows = found.get("rows", [])
    if not rows:
        return [f"there is no {found.get('kind', '')} row"]
    shown = [
        [
            row.get("key", "?")[:40],
            str(row.get("writer", ""))[:SHORT],
            f"{row.get('boot', '?')}.{row.get('counter', '?')}" if row.get("writer") else "",
            "" if row.get("written") is None else duration_text(unix_s - row["written"]),
            "never" if row.get("expires") is None else duration_text(row["expires"] - unix_s),
            f"({row['hidden']})" if row.get("hidden") else _cut(row.get("says", "")),
        ]
        for row in rows[:ROWS_MAX]
    ]
    lines = table(["key", "writer", "dot", "age", "expires in", "says"], shown)
    if (more := len(rows) - ROWS_MAX + found.get("more", 0)) > 0:
        lines.append(f"  ... and {more} more" + (", with --json" if len(rows) > ROWS_MAX else ""))
    return lines


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "..."
