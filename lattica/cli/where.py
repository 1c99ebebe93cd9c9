"""Which node a command means."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import click

from lattica.cli.sizes import duration_text, table
from lattica.errors import ConfigError
from lattica.node import paths, running
from lattica.node.paths import NodeFile

SCRIPT_CHARS = 80
data_dir_option = click.option(
    "--data-dir",
    metavar="DIR",
    help=f"The node's directory. [default: ${paths.DATA_DIR_VARIABLE}, else ~/.local/share/lattica]",
)


def node_of(data_dir: str | None) -> NodeFile:
    """The node of `lattica start` that a command means. Raises ConfigError if none runs; it lists those elsewhere."""
    node = paths.running_node(paths.data_dir(data_dir))
    if node is None:
        raise _none(
            data_dir, [] if _is_named(data_dir) else [one for one in running.running_nodes() if not one.embedded]
        )
    return node


def node_to_look_at(data_dir: str | None) -> NodeFile:
    """The node that a command means which only looks: also one that a program has begun for itself.

    Where nobody has named one and none runs in the usual place, it is the only one of this user. Raises ConfigError if
    there are several, or none.
    """
    where = paths.data_dir(data_dir)
    node = paths.running_node(where)
    if node is not None:
        return node
    if _is_named(data_dir):
        node = running.embedded_on(where)
        if node is None:
            raise _none(data_dir, [])
        return node
    nodes = running.running_nodes()
    if not nodes:
        raise _none(data_dir, nodes)
    if len(nodes) > 1:
        raise ConfigError(
            f"{len(nodes)} nodes of yours run on this machine, and none in {where}:\n" + "\n".join(listed(nodes)),
            do_next=f"say which with --data-dir, or with {paths.DATA_DIR_VARIABLE}",
        )
    click.echo(f"no node runs in {where}; this is {_words(nodes[0])}", err=True)
    return nodes[0]


def listed(nodes: Sequence[NodeFile]) -> list[str]:
    """A line for each, for people."""
    now = time.time()
    rows = [[node.pid, duration_text(now - node.since), node.data_dir, whose(node)] for node in nodes]
    return table(["pid", "for", "data directory", "of"], rows)


def _is_named(data_dir: str | None) -> bool:
    return bool(data_dir or os.environ.get(paths.DATA_DIR_VARIABLE))


def _none(data_dir: str | None, others: Sequence[NodeFile]) -> ConfigError:
    also = "; nodes of yours run on others:\n" + "\n".join(listed(others)) if others else ""
    return ConfigError(
        f"no node runs on the data directory {paths.data_dir(data_dir)}{also}",
        do_next=f"start one with `lattica start`, or name another with --data-dir or {paths.DATA_DIR_VARIABLE}",
    )


def _words(node: NodeFile) -> str:
    return f"the node of {whose(node)}" if node.embedded else f"the node of {node.data_dir}"


def whose(node: NodeFile) -> str:
    """By what a node was begun, for people."""
    if not node.embedded:
        return "lattica start"
    try:
        with open(f"/proc/{node.driver}/cmdline", "rb") as file:
            words = file.read(4096).rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        words = ""
    short = words if len(words) <= SCRIPT_CHARS else words[: SCRIPT_CHARS - 1] + "…"
    return f"{short or 'a program'} (pid {node.driver})"
