"""Which node a command means."""

from __future__ import annotations

import click

from lattica.errors import ConfigError
from lattica.node import paths
from lattica.node.paths import NodeFile

data_dir_option = click.option(
    "--data-dir",
    metavar="DIR",
    help=f"The node's directory. [default: ${paths.DATA_DIR_VARIABLE}, else ~/.local/share/lattica]",
)


def node_of(data_dir: str | None) -> NodeFile:
    """The node that a command means. Raises ConfigError if none runs."""
    where = paths.data_dir(data_dir)
    node = paths.running_node(where)
    if node is None:
        raise ConfigError(
            f"no node runs on the data directory {where}",
            do_next=f"start one with `lattica start`, or name another with --data-dir or {paths.DATA_DIR_VARIABLE}",
        )
    return node
