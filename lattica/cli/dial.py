"""`lattica dial`."""

from __future__ import annotations

import json

import click

from lattica.cli.client import NodeConnection, data_dir_option, node_of
from lattica.mesh.addresses import split_host


@click.command("dial", short_help="Reach a member that cannot reach this node.")
@click.argument("peer")
@click.argument("address", metavar="HOST:PORT")
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
@data_dir_option
def command(peer: str, address: str, as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica dial sddz57kpspul2p576g3vczayuu4afvvmnz4gp7xhu6dbmdfry5jq 203.0.113.7:7411

    Connects this node with a peer that has a ticket of its mesh and waits: as a relay does that was started by the
    ticket of a machine behind a router. What to type here, it says there (`lattica relay`, `lattica join`). It returns
    once the two are connected, or after ten seconds in vain; from then on each finds the other by itself.
    """
    split_host(address)
    with NodeConnection(node_of(data_dir)) as connection:
        found = connection.mesh("dial", peer=peer, address=address)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    name = f" ({found['name']})" if found.get("name") else ""
    click.echo(f"peer {found['peer_id'][:8]}{name} is connected: {found.get('path') or address}")
