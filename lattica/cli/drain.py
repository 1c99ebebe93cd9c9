"""`lattica drain`."""

from __future__ import annotations

import json
import time

import click

from lattica.cli import daemon
from lattica.cli.client import NodeConnection, data_dir_option, node_of
from lattica.cli.sizes import parse_duration
from lattica.errors import NodeDiedError

SHORT = 8  # characters of an id for people
END_S = 30.0  # for a node to hand over what others need, and to end, once the grace is over
LOOK_S = 0.3


@click.command("drain", short_help="Let a node finish what it does for others, and end it.")
@click.argument("peer", default="")
@click.option("--grace", default="30s", metavar="TIME", help="How long tasks of others may still run. [default: 30s]")
@click.option("--no-wait", is_flag=True, help="Return as soon as the node has been told.")
@click.option("--json", "as_json", is_flag=True, help="For machines: {peer_id, left}.")
@data_dir_option
def command(peer: str, grace: str, no_wait: bool, as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica drain                      this machine's node
    lattica drain k3f9a2bc --grace 5min
    lattica drain box-2                another one, for admins

    The node takes nothing new, lets tasks of others end, and hands over objects that only it has and others hold; then
    it leaves the mesh, and ends. Jobs and actors that run there begin again elsewhere, as often as they may. It
    returns when the node has left. SIGTERM to a node does the same; a second one ends it at once.
    """
    node, grace_s = node_of(data_dir), parse_duration(grace)
    with NodeConnection(node) as connection:
        told = connection.mesh("drain", peer=peer, grace_s=grace_s)
        short = str(told["peer_id"])[:SHORT]
        if no_wait:
            return _tell(told["peer_id"], left=False, as_json=as_json)
        if not told["this_node"]:
            _await_left(connection, told["peer_id"], grace_s + END_S)
    if told["this_node"]:
        pidfd = daemon.open_pidfd(node)
        if pidfd is not None and not daemon.ended_within(pidfd, grace_s + END_S):
            raise _late(short, grace_s)
    _tell(told["peer_id"], left=True, as_json=as_json)


def _tell(peer: str, *, left: bool, as_json: bool) -> None:
    words = f"node {peer[:SHORT]} {'has left' if left else 'drains'}"
    click.echo(json.dumps({"peer_id": peer, "left": left}) if as_json else words)


def _await_left(connection: NodeConnection, peer: str, limit_s: float) -> None:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        states = {row["peer_id"]: row["state"] for row in connection.mesh("peers")}
        if states.get(peer, "left") in ("left", "dead"):
            return
        time.sleep(LOOK_S)
    raise _late(peer[:SHORT], limit_s)


def _late(short: str, limit_s: float) -> NodeDiedError:
    return NodeDiedError(
        f"node {short} has not left after {limit_s:g} s", do_next="look at its log, or end it with `lattica stop`"
    )
