"""`lattica ticket`."""

from __future__ import annotations

import json

import click

from lattica.cli.addresses import are_local, shown
from lattica.cli.client import NodeConnection, data_dir_option, node_of
from lattica.cli.sizes import moment_text, parse_duration

ADDRESSES_SHOWN = 3


@click.command("ticket", short_help="Make a ticket, by which others join.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    metavar="ROLE",
    help="What joiners may do: execute, submit, store, relay, admin. Repeat it, or put commas. "
    "[default: all but admin]",
)
@click.option(
    "--ttl", type=parse_duration, default="7d", show_default=True, metavar="TIME", help="How long one can join with it."
)
@click.option("--label", default="", metavar="TEXT", help="What it is for, for people.")
@click.option(
    "--json", "as_json", is_flag=True, help="For machines: the ticket and what it allows, as one JSON object."
)
@data_dir_option
def command(roles: tuple[str, ...], ttl: float, label: str, as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica ticket
    lattica ticket --role execute,store --ttl 12h --label "spot instances"
    lattica ticket > ticket.txt

    Prints a ticket on a line of its own, and returns at once. With it any number of machines can join this mesh until
    it expires; who has joined stays. Whoever has the ticket can join, so treat it as a password.
    """
    with NodeConnection(node_of(data_dir)) as connection:
        made = connection.mesh(
            "ticket", roles=",".join(roles) or "execute,submit,store,relay", ttl_s=float(ttl), label=label
        )
    if as_json:
        click.echo(json.dumps(made, indent=2))
        return
    click.echo(made["ticket"])
    found = made.get("addresses", [])
    addresses = shown(found)
    where = ", ".join(addresses[:ADDRESSES_SHOWN]) + (", ..." if len(addresses) > ADDRESSES_SHOWN else "")
    click.echo(f"joiners may: {made['roles']}; until {moment_text(made['expires'])}", err=True)
    click.echo(f"they look for this mesh at {where or 'no address: this node does not listen'}", err=True)
    if are_local(found):
        click.echo(
            "these are addresses of a local network: a machine elsewhere does not reach them by itself. Begin with one "
            "that has a public address: `lattica relay TICKET` there, which says what to run here",
            err=True,
        )
    click.echo("on another machine: lattica join TICKET; keep it secret, it lets anybody in", err=True)
