"""`lattica leave`."""

from __future__ import annotations

import os

import click

from lattica.cli.client import data_dir_option
from lattica.errors import ConfigError
from lattica.node import membership, paths


@click.command("leave", short_help="Forget the mesh.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_dir_option
def command(yes: bool, data_dir: str | None) -> None:
    """\b
    lattica leave
    lattica leave --yes

    Deletes this machine's membership of its mesh, after asking, and returns. No node may run meanwhile. The machine's
    key stays, so it is the same peer in the next mesh; the mesh itself goes on without it.
    """
    where = paths.data_dir(data_dir)
    if (node := paths.running_node(where)) is not None:
        raise ConfigError(f"a node (pid {node.pid}) runs on {where}", do_next="end it with `lattica stop` first")
    identity = paths.identity_dir(where)
    files = membership.files_of(identity)
    if not files:
        click.echo(f"this machine is in no mesh ({where})")
        return
    lock = paths.lock_data_dir(where)
    try:
        click.echo("\n".join(["this deletes", *(f"  {path}  {what}" for path, what in files.items())]))
        if any(os.path.basename(path) == "issuer.key" for path in files):
            click.echo("this node is an issuer: see to it that the mesh has another (`lattica issuer`)")
        if not yes:
            click.confirm("leave the mesh?", abort=True)
        membership.forget(identity)
    finally:
        os.close(lock)
    click.echo(
        "this machine has left its mesh; `lattica join TICKET` takes it into another, `lattica start` founds one"
    )
