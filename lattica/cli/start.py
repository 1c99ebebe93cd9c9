"""`lattica start`."""

from __future__ import annotations

from typing import Any

import click

from lattica.cli.begin import begin, node_options, ticket_text


@click.command("start", short_help="Start this machine's node.")
@click.option(
    "--ticket",
    metavar="T|FILE|-",
    help="Join by this ticket: itself, a file with it, or - for stdin. [default: $LATTICA_TICKET]",
)
@node_options
def command(ticket: str | None, **options: Any) -> None:
    """\b
    lattica start
    lattica start --num-cpus 8 --resources '{"tpu": 2}' --object-store-memory 4GiB
    lattica start --ticket ticket.txt  join the mesh that made the ticket
    lattica start --block              for systemd or Docker

    Starts this machine's node in the background and returns as soon as programs can attach to it by lattica.init().
    It serves your programs until `lattica stop`. With --block the command returns when the node has ended.

    A node that is in no mesh yet founds one, or joins that of the ticket; later starts return to it. Every user of a
    machine can see the arguments of a command: hand a ticket over by a file, by stdin or by LATTICA_TICKET.
    """
    begin(ticket_text(ticket), **options)
