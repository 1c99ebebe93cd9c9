"""`lattica relay`."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from lattica.cli.begin import begin, node_options, ticket_text
from lattica.errors import ConfigError

OPTIONS = ("block", "data_dir", "listen", "advertise", "port_mapping", "name", "labels", "metrics_port", "json")
OBJECTS_BYTES = 1 << 20  # of shared memory: it holds no objects
TLS_PORT = "443"


def parse_tls(text: str) -> str:
    """A port, or HOST:PORT, as an address to listen at."""
    from lattica.mesh.addresses import split_host

    address = f":{text}" if text.isdigit() else text
    try:
        split_host(address)
    except ConfigError as error:
        raise click.BadParameter(f"{text!r} is no port and no HOST:PORT") from error
    return address


@click.command("relay", short_help="Carry what nodes of a mesh send each other, and nothing else.")
@click.argument("ticket", metavar="[TICKET|FILE|-]", required=False)
@click.option(
    "--listen-tls",
    type=parse_tls,
    metavar="PORT",
    help=f"Take connections at a second port, too; with {TLS_PORT} by nodes whose network lets out nothing else. "
    "A number, or HOST:PORT.",
)
@partial(node_options, names=OPTIONS)
def command(ticket: str | None, listen_tls: str | None, **options: Any) -> None:
    """\b
    lattica relay ticket.txt               join by this ticket, and relay
    lattica relay ticket.txt --listen-tls 443
    lattica relay                          go on after a restart
    ssh gpu-1 lattica ticket --role relay | lattica relay -

    Starts a node that relays: it carries what other nodes of the mesh send each other where they cannot do so directly,
    and sees only ciphertext. Its certificate has the role relay and no other, whatever the ticket gives, so nobody can
    run code or keep objects on it, and it runs none on others. Run it where every node reaches it: a small machine with
    a public address, with the port open for UDP and TCP.

    It returns when the node serves; with --block when it has ended. `lattica status` shows what it carries,
    `lattica stop` ends it.
    """
    begin(
        ticket_text(ticket),
        relay=True,
        listen_tls=listen_tls,
        num_cpus=0.0,
        num_gpus=0.0,
        resources=None,
        object_store_memory=OBJECTS_BYTES,
        memory=None,
        grace=None,
        **options,
    )
