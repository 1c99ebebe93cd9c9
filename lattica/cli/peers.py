"""`lattica peers`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from lattica.cli.client import NodeConnection, data_dir_option, node_of
from lattica.cli.sizes import table

ROWS_MAX = 50
"""Rows for people; `--json` has all."""
SHORT = 8  # characters of an id for people; commands take them, where they tell a peer from all others


@click.command("peers", short_help="List the nodes that this one is connected to.")
@click.option("--json", "as_json", is_flag=True, help="For machines: a list of objects.")
@data_dir_option
def command(as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica peers
    lattica peers --json | jq '.[].peer_id'

    Lists the nodes with which this one has a session, and returns at once.
    """
    with NodeConnection(node_of(data_dir)) as connection:
        peers = connection.mesh("peers")
        state = connection.mesh("whoami")
    if as_json:
        click.echo(json.dumps(peers, indent=2))
    else:
        click.echo("\n".join(page(peers)))
    for warning in state.get("warnings", ()):
        click.echo(f"warning: {warning}", err=True)


def page(peers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines for people. Tolerates what a node of another release leaves out."""
    if not peers:
        return ["no session with another node; `lattica ticket` here and `lattica join` there make one"]
    rows = [
        [
            str(peer.get("peer_id", "?"))[:SHORT],
            peer.get("name", ""),
            peer.get("state", "?"),
            " ".join(filter(None, (peer.get("transport", ""), peer.get("path", "")))),
            _rtt(peer.get("rtt_ms")),
            peer.get("roles", ""),
            peer.get("version", ""),
            next(iter(peer.get("addresses", ())), ""),
        ]
        for peer in peers[:ROWS_MAX]
    ]
    lines = table(["peer", "name", "state", "path", "rtt", "roles", "lattica", "address"], rows)
    if len(peers) > ROWS_MAX:
        lines.append(f"  ... and {len(peers) - ROWS_MAX} more, with --json")
    return lines


def _rtt(rtt_ms: float | None) -> str:
    return "" if rtt_ms is None else f"{rtt_ms:.1f} ms"
