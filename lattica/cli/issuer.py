"""`lattica issuer`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import click

from lattica.cli.client import NodeConnection, data_dir_option, node_of
from lattica.cli.sizes import moment_text, table

SHORT = 8  # characters of an id for people
as_json_option = click.option("--json", "as_json", is_flag=True, help="For machines: a list of objects.")
label_option = click.option("--label", default="", metavar="TEXT", help="What people call this issuer.")


@click.group("issuer", short_help="List the nodes that admit others; make one.", invoke_without_command=True)
@as_json_option
@data_dir_option
@click.pass_context
def command(ctx: click.Context, as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica issuer                     list them
    lattica issuer add k3f9a2bc        make a node one
    lattica issuer recover lattica-recovery-7abc.key

    Lists the nodes that can make tickets and renew memberships, and returns at once. A mesh should have two or more:
    with the last one lost, only the recovery file helps.
    """
    if ctx.invoked_subcommand is None:
        with NodeConnection(node_of(data_dir)) as connection:
            _say(connection.mesh("issuers"), as_json)


@command.command("add", short_help="Make a connected node an issuer.")
@click.argument("peer")
@label_option
@as_json_option
@data_dir_option
def add(peer: str, label: str, as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica issuer add k3f9a2bc --label "the machine in the cellar"

    Makes a node an issuer and an admin, and returns when it is one. Run it on an issuer that may make others: the node
    that founded the mesh, or one that was recovered. The peer is named by its id, by the beginning of it, or by its
    name.
    """
    with NodeConnection(node_of(data_dir)) as connection:
        done = connection.mesh("add_issuer", peer=peer, label=label)
    _say(done.get("issuers", []), as_json, f"peer {done.get('peer_id', peer)[:SHORT]} is an issuer now")


@command.command("recover", short_help="Make this node an issuer by the recovery file.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@label_option
@as_json_option
@data_dir_option
def recover(file: str, label: str, as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica issuer recover /media/stick/lattica-recovery-7abc.key

    Makes this machine's node, which must be a member of that mesh, an issuer and an admin, and returns when it is one.
    Move the file away again: whoever has it rules the mesh.
    """
    with NodeConnection(node_of(data_dir)) as connection:
        done = connection.mesh("recover_issuer", file=os.path.abspath(file), label=label)
    _say(done.get("issuers", []), as_json, "this node is an issuer now; move the recovery file away again")


def _say(issuers: Sequence[Mapping[str, Any]], as_json: bool, first: str = "") -> None:
    if as_json:
        click.echo(json.dumps(issuers, indent=2))
        return
    rows = [
        [
            str(issuer.get("issuer_id", "?"))[:SHORT],
            str(issuer.get("peer_id", "?"))[:SHORT],
            "this node" if issuer.get("this_node") else "alive" if issuer.get("alive") else "not connected",
            moment_text(issuer["since"]) if "since" in issuer else "",
            issuer.get("label", ""),
        ]
        for issuer in issuers
    ]
    if first:
        click.echo(first)
    click.echo("\n".join(table(["issuer", "peer", "state", "since", "label"], rows)))
    if len(issuers) < 2:
        click.echo(
            "warning: fewer than two issuers: if it is lost, nobody can join or renew; `lattica issuer add PEER`",
            err=True,
        )
