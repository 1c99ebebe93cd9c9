"""`lattica start`."""

from __future__ import annotations

import json
import os
import shlex
import signal
from typing import Any

import click

from lattica.cli import daemon, protection
from lattica.cli.client import NodeConnection, data_dir_option
from lattica.cli.sizes import parse_size, size_text
from lattica.errors import LatticaError, NodeDiedError
from lattica.node import paths
from lattica.node.paths import NodeFile
from lattica.scheduler.resources import parse_request


def parse_amounts(text: str) -> dict[str, float]:
    """An option's value as a JSON object of names and amounts."""
    try:
        amounts = json.loads(text)
    except ValueError:
        amounts = None
    if not isinstance(amounts, dict):
        raise click.BadParameter(f"""{text!r} is no JSON object like '{{"tpu": 2}}'""")
    return amounts


@click.command("start", short_help="Start this machine's node.")
@click.option("--block", is_flag=True, help="Stay in the foreground until SIGTERM or Ctrl-C.")
@data_dir_option
@click.option("--num-cpus", type=float, metavar="N", help="CPUs to offer. [default: those of this machine]")
@click.option("--num-gpus", type=float, metavar="N", help="GPUs to offer. [default: those of this machine]")
@click.option("--resources", type=parse_amounts, metavar="JSON", help="""Your own resources, like '{"tpu": 2}'.""")
@click.option(
    "--object-store-memory",
    type=parse_size,
    metavar="BYTES",
    help="Shared memory for objects, like 4GiB. [default: 30 % of RAM]",
)
def command(
    block: bool,
    data_dir: str | None,
    num_cpus: float | None,
    num_gpus: float | None,
    resources: dict[str, float] | None,
    object_store_memory: int | None,
) -> None:
    """\b
    lattica start
    lattica start --num-cpus 8 --resources '{"tpu": 2}' --object-store-memory 4GiB
    lattica start --block              for systemd or Docker

    Starts this machine's node in the background and returns as soon as programs can attach to it by lattica.init().
    It serves your programs until `lattica stop`. With --block the command returns when the node has ended.
    """
    # Whatever the node would refuse is refused here, before anything starts.
    parse_request(num_cpus=num_cpus, num_gpus=num_gpus, resources=resources)
    where = paths.data_dir(data_dir)
    paths.make_data_dir(where)
    os.close(paths.lock_data_dir(where))  # the node itself takes it again
    paths.socket_path(where)
    options = node_options(where, num_cpus, num_gpus, resources, object_store_memory)
    begun = daemon.spawn(options, where)
    log = os.path.join(where, daemon.LOG_FILE)
    try:
        try:
            daemon.await_ready(begun.ready, begun.pidfd, log)
        except BaseException:
            begun.kill()
            raise
        click.echo("\n".join(greeting(where, named=data_dir is not None, block=block)))
        if block and (code := daemon.serve_until_told(begun.process)):
            raise NodeDiedError(f"the node ended by itself ({exit_text(code)})", do_next=f"read {log}")
    finally:
        begun.close()


def node_options(
    where: str,
    num_cpus: float | None,
    num_gpus: float | None,
    resources: dict[str, float] | None,
    object_store_memory: int | None,
) -> list[str]:
    """Options of the node process: pairs of name and value; what was not given is left out, for the node to decide."""
    given = {
        "--data-dir": where,
        "--num-cpus": num_cpus,
        "--num-gpus": num_gpus,
        "--resources": json.dumps(resources) if resources else None,
        "--object-store-memory": object_store_memory,
    }
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]


def greeting(where: str, *, named: bool, block: bool) -> list[str]:
    """What to say of a node that serves. named: the user named its data directory, and must do so again."""
    node = paths.running_node(where)
    if node is None:
        raise LatticaError(
            "the node served, and has ended again", do_next=f"read {os.path.join(where, daemon.LOG_FILE)}"
        )
    option = f" --data-dir {shlex.quote(where)}" if named else ""
    variable = f"{paths.DATA_DIR_VARIABLE}={shlex.quote(where)} " if named else ""
    lines = [
        f"node {node.node[:8]} serves (pid {node.pid}, lattica {node.version}){_offer(node)}",
        f"  attach    {variable}python my_program.py, which calls lattica.init()",
        f"  look      lattica status{option}",
        f"  stop      {'Ctrl-C' if block else f'lattica stop{option}'}",
    ]
    logs = [os.path.join(where, daemon.LOG_FILE)]
    if node.session_dir:
        logs.append(f"{os.path.join(node.session_dir, 'logs')} (workers)")
    lines.append(f"  logs      {', '.join(logs)}")
    missing = protection.warning(_ask(node, "protection") or {})
    return [*lines, f"  warning   {missing}"] if missing else lines


def exit_text(code: int) -> str:
    """Words for a return code as of subprocess."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _offer(node: NodeFile) -> str:
    """Words for what it offers; nothing if it does not say, which is no reason to fail."""
    try:
        total = (_ask(node, "resources") or {})["total"]
        amounts = [
            size_text(amount) + " of shared memory" if name == "object_store_memory" else f"{amount:g} {name}"
            for name, amount in total.items()
            if name != "memory" and not name.startswith("node:")
        ]
    except (KeyError, TypeError, AttributeError, ValueError):
        return ""
    return f" with {', '.join(amounts)}"


def _ask(node: NodeFile, what: str) -> Any:
    """What the node says of itself; None if it does not."""
    try:
        with NodeConnection(node) as connection:
            return connection.state(what)
    except LatticaError:
        return None
