"""`lattica adopt`."""

from __future__ import annotations

import json

import click

from lattica.cli.client import NodeConnection, data_dir_option, node_of
from lattica.errors import ConfigError


@click.command("adopt", short_help="Declare this side of a mesh that was cut apart the whole.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
@data_dir_option
def command(yes: bool, as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica adopt
    lattica adopt --yes

    For a mesh that has lost more than half of its machines for good, or at once: those that are left take themselves
    for a smaller side, and restart no detached actor. Says that the nodes which this one sees are the mesh from now on,
    after asking, and returns; they restart what is missing within seconds. If the others live after all, each of them
    is on a smaller side until it is connected again. The node needs the role `admin`.
    """
    with NodeConnection(node_of(data_dir)) as connection:
        side = connection.mesh("side")
        if not side["island"]:
            raise ConfigError("this node is on the larger side of its mesh already", do_next="see `lattica peers`")
        if not as_json:
            click.echo(
                f"{side['here']} of {side['members']} nodes are here; do not answer: {', '.join(side['missing'])}"
            )
        if not yes:
            click.confirm("are these the whole mesh from now on?", abort=True)
        done = connection.mesh("adopt")
    if as_json:
        click.echo(json.dumps(done, indent=2))
    else:
        click.echo(f"the mesh has {len(done['members'])} nodes from now on: {', '.join(done['members'])}")
