"""`lattica peers`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from lattica.cli.addresses import shown
from lattica.cli.client import NodeConnection, data_dir_option, node_of
from lattica.cli.sizes import duration_text, table

ROWS_MAX = 50
"""Rows for people; `--json` has all."""
GONE = ("dead", "left")
SHORT = 8  # characters of an id for people; commands take them, where they tell a peer from all others


@click.command("peers", short_help="List the nodes of the mesh.")
@click.option("--json", "as_json", is_flag=True, help="For machines: a list of objects.")
@data_dir_option
def command(as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica peers
    lattica peers --json | jq -r '.[] | select(.state == "dead") | .name'

    Lists the nodes of the mesh, this one among them, and returns at once. Every node lists the same; the path and the
    round trip are those of this one's sessions. Nodes that died or left come last, for a day.
    """
    with NodeConnection(node_of(data_dir)) as connection:
        peers = connection.mesh("peers")
        state = connection.mesh("whoami")
    if as_json:
        click.echo(json.dumps(peers, indent=2))
    else:
        click.echo("\n".join(page(peers, time.time(), is_issuer=bool(state.get("issuer", True)))))
    for warning in state.get("warnings", ()):
        click.echo(f"warning: {warning}", err=True)


def page(peers: Sequence[Mapping[str, Any]], unix_s: float, *, is_issuer: bool = True) -> list[str]:
    """The lines for people, the living first. is_issuer: it can make tickets. Tolerates what a node of another release
    leaves out."""
    alone = all(peer.get("this_node") for peer in peers)
    rows = [
        [
            str(peer.get("peer_id", "?"))[:SHORT],
            peer.get("name", ""),
            _state(peer, unix_s),
            "this node" if peer.get("this_node") else _path(peer),
            _rtt(peer.get("rtt_ms")),
            peer.get("roles", ""),
            peer.get("version", ""),
            next(iter(shown(peer.get("addresses", ()))), ""),
        ]
        for peer in sorted(peers, key=lambda peer: peer.get("state") in GONE)[:ROWS_MAX]
    ]
    lines = table(["peer", "name", "state", "path", "rtt", "roles", "lattica", "address"], rows) if rows else []
    if alone and is_issuer:
        lines.append("there is no other node; `lattica ticket` here and `lattica join` there bring one")
    elif alone:
        lines.append("no other node has answered yet; `lattica doctor` says where this one looks for them")
    if len(peers) > ROWS_MAX:
        lines.append(f"  ... and {len(peers) - ROWS_MAX} more, with --json")
    return lines


def _path(peer: Mapping[str, Any]) -> str:
    """`quic direct 192.0.2.7:7411 (birthday)`: how it is carried, and by which method that came to be."""
    method = peer.get("method", "")
    words = (peer.get("transport", ""), peer.get("path", ""), f"({method})" if method else "")
    return " ".join(filter(None, words))


def _state(peer: Mapping[str, Any], unix_s: float) -> str:
    since = peer.get("since")
    return str(peer.get("state", "?")) + ("" if since is None else f" for {duration_text(unix_s - since)}")


def _rtt(rtt_ms: float | None) -> str:
    return "" if rtt_ms is None else f"{rtt_ms:.1f} ms"
