"""`lattica join`."""

from __future__ import annotations

from typing import Any

import click

from lattica.cli.begin import begin, node_options, ticket_text


@click.command("join", short_help="Start this machine's node, in the mesh of a ticket.")
@click.argument("ticket", metavar="[TICKET|FILE|-]", required=False)
@node_options
def command(ticket: str | None, **options: Any) -> None:
    """\b
    lattica join lat1...
    lattica join ticket.txt            a file with it
    ssh gpu-1 lattica ticket | lattica join -

    Starts this machine's node as a member of the mesh that made the ticket, and returns when the node serves and has
    met another, or has tried for some seconds; it goes on trying. The same as `lattica start --ticket`.

    Without an argument the ticket is read from LATTICA_TICKET. Every user of a machine can see the arguments of a
    command: where that matters, hand the ticket over by a file, by stdin or by LATTICA_TICKET.
    """
    text = ticket_text(ticket)
    if not text:
        raise click.UsageError("which ticket? Paste it, name a file with it, or give - and the ticket on stdin")
    begin(text, **options)
