"""`lattica stop`."""

from __future__ import annotations

import json

import click

from lattica.cli import daemon
from lattica.cli.client import NodeConnection, data_dir_option
from lattica.cli.where import whose
from lattica.errors import ConfigError, NodeDiedError
from lattica.node import paths, running

END_WAIT_S = 10.0
"""How long a node may take to end: it ends its workers (1 s), and writes what they printed."""


@click.command("stop", short_help="End the node.")
@click.option("--force", is_flag=True, help=f"Kill it if it has not ended after {END_WAIT_S:g} s.")
@click.option("--json", "as_json", is_flag=True, help="For machines: {node, pid, ended}; null where none ran.")
@data_dir_option
def command(force: bool, as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica stop
    lattica stop --force               even one that does not answer

    Ends this machine's node, its workers and what they run, and returns when all have ended. Programs that are
    attached to it get NodeDiedError. What a node that was killed has left in the way is removed.
    """
    where = paths.data_dir(data_dir)
    node = paths.running_node(where)
    if node is None:
        if (own := running.embedded_on(where)) is not None:
            raise ConfigError(f"this is the node of {whose(own)}, and ends with it", do_next="end the program")
        paths.sweep_dead_node(where)
        paths.sweep_embedded()
        click.echo("null" if as_json else f"no node runs on {where}")
        return

    def ask() -> None:
        with NodeConnection(node) as connection:
            connection.shutdown()

    if not daemon.end(node, ask, wait_s=END_WAIT_S, force=force):
        raise NodeDiedError(
            f"the node (pid {node.pid}) has not ended after {END_WAIT_S:g} s",
            do_next="wait a little, or kill it with `lattica stop --force`",
        )
    paths.sweep_dead_node(where)  # one that had to be killed has removed nothing
    told = {"node": node.node, "pid": node.pid, "ended": True}
    click.echo(json.dumps(told) if as_json else f"node {node.node[:8]} (pid {node.pid}) has ended")
