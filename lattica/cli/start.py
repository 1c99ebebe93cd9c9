"""`lattica start`."""

from __future__ import annotations

import json
from typing import Any

import click

from lattica.cli.begin import begin, node_options, ticket_text


@click.command("start", short_help="Start this machine's node.")
@click.option(
    "--ticket",
    metavar="T|FILE|-",
    help="Join by this ticket: itself, a file with it, or - for stdin. [default: $LATTICA_TICKET]",
)
@click.option("--install-service", is_flag=True, help="Write a systemd unit that runs the node; start nothing.")
@click.option("--print", "print_service", is_flag=True, help="With --install-service: only show the unit.")
@node_options
def command(ticket: str | None, install_service: bool, print_service: bool, **options: Any) -> None:
    """\b
    lattica start
    lattica start --num-cpus 8 --resources '{"tpu": 2}' --object-store-memory 4GiB
    lattica start --ticket ticket.txt  join the mesh that made the ticket
    lattica start --block              for systemd or Docker
    lattica start --install-service --num-cpus 8

    Starts this machine's node in the background and returns as soon as programs can attach to it by lattica.init().
    It serves your programs until `lattica stop`. With --block the command returns when the node has ended.

    A node that is in no mesh yet founds one, or joins that of the ticket; later starts return to it. Every user of a
    machine can see the arguments of a command: hand a ticket over by a file, by stdin or by LATTICA_TICKET.
    """
    if install_service or print_service:
        _install(ticket, print_service, options)
        return
    begin(ticket_text(ticket), **options)


def _install(ticket: str | None, only_print: bool, options: dict[str, Any]) -> None:
    """The unit of the user's systemd, written or shown."""
    from lattica.cli import service
    from lattica.node import paths

    if ticket is not None:
        raise click.UsageError("a ticket is used once, and a unit is read by others: `lattica join` first")
    where = paths.data_dir(options.pop("data_dir"))
    words = []
    for name, value in options.items():
        if name in ("block", "as_json") or value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
            continue
        text = value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
        if name == "labels":
            text = ",".join(f"{key}={label}" for key, label in value.items())
        elif name == "resources":
            text = json.dumps(value)
        words += [f"--{name.replace('_', '-')}", text]
    unit = service.unit_text(where, words, options["grace"])
    if only_print:
        click.echo(unit, nl=False)
    else:
        click.echo("\n".join(service.install(where, unit)))
