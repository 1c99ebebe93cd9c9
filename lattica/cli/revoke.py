"""`lattica revoke`."""

from __future__ import annotations

import json
import time

import click

from lattica.cli.client import NodeConnection, data_dir_option, node_of
from lattica.cli.sizes import moment_text, parse_moment


@click.command("revoke", short_help="Put a peer or an issuer out of the mesh.")
@click.argument("peer", required=False)
@click.option("--issuer", metavar="ID", help="An issuer, in place of a peer: what it signed does not count any more.")
@click.option(
    "--since", metavar="TIME", help="With --issuer: what it signed since then, like 2026-03-01 or 3d. [default: now]"
)
@click.option("--reason", default="", metavar="TEXT", help="Why: all peers are told.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
@data_dir_option
def command(
    peer: str | None, issuer: str | None, since: str | None, reason: str, as_json: bool, data_dir: str | None
) -> None:
    """\b
    lattica revoke k3f9a2bc --reason "the laptop was stolen"
    lattica revoke --issuer 9f2c41d0 --since 2026-03-01

    Puts a peer out of the mesh for ever, closes the ticket it came by to others, and returns when the nodes that this
    one is connected to have been told. Its sessions end; it comes back only under a new key with a new ticket. A peer
    is named by its id, by the beginning of it, or by its name.

    Of an issuer, what it signed at --since or later ends; its members get new memberships from other issuers.
    """
    if (peer is None) == (issuer is None):
        raise click.UsageError("name a peer, or an issuer with --issuer")
    if since is not None and issuer is None:
        raise click.UsageError("--since is for issuers; a peer is out at once and for ever")
    with NodeConnection(node_of(data_dir)) as connection:
        if peer is not None:
            done = connection.mesh("revoke", peer=peer, reason=reason)
        else:
            now = time.time()
            moment = now if since is None else parse_moment(since, now)
            done = connection.mesh("revoke_issuer", issuer=issuer, since=moment, reason=reason)
    if as_json:
        click.echo(json.dumps(done, indent=2))
        return
    told = done.get("told", 0)
    others = f"; {told} node{'s have' if told > 1 else ' has'} been told, and will tell the others" if told else ""
    if peer is not None:
        click.echo(f"peer {done.get('peer_id', peer)} is out of the mesh{others}")
    else:
        click.echo(f"what issuer {done['issuer_id'][:8]} signed since {moment_text(done['since'])} has ended{others}")
