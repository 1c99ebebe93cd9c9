"""What `lattica start` and `lattica join` have in common: the node's options, its start, and what is said of it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from lattica.cli import daemon, protection
from lattica.cli.addresses import dial_text, shown, trouble_text
from lattica.cli.sizes import parse_duration, parse_size, size_text
from lattica.cli.where import data_dir_option
from lattica.errors import ConfigError, NodeDiedError
from lattica.node import paths
from lattica.node.paths import NodeFile
from lattica.scheduler.resources import parse_request

SHORT = 8  # characters of an id for people
ADDRESSES_SHOWN = 3
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?"
Command = Callable[..., None]


def parse_amounts(text: str) -> dict[str, float]:
    """An option's value as a JSON object of names and amounts."""
    try:
        amounts = json.loads(text)
    except ValueError:
        amounts = None
    if not isinstance(amounts, dict):
        raise click.BadParameter(f"""{text!r} is no JSON object like '{{"tpu": 2}}'""")
    return amounts


def parse_labels(text: str) -> dict[str, str]:
    """An option's value as labels: `site=home,gpu=3090`."""
    labels = {}
    for part in text.split(","):
        found = re.fullmatch(rf"\s*({LABEL})\s*=\s*({LABEL})?\s*", part)
        if found is None:
            raise click.BadParameter(f"{part!r} is no label; write them like site=home,gpu=3090")
        labels[found[1]] = found[2] or ""
    return labels


def parse_reached(texts: tuple[str, ...]) -> str | None:
    """An option's values as addresses at which others reach this node, with commas between; None without any."""
    from lattica.mesh.addresses import split_host

    for text in texts:
        try:
            host, port = split_host(text)
        except ConfigError as error:
            raise click.BadParameter(error.message) from error
        if not port or host in ("", "0.0.0.0", "::"):
            raise click.BadParameter(f"{text!r} is nowhere: give the host and the port that lead here from outside")
    return ",".join(texts) or None


OPTIONS: dict[str, Callable[[Command], Command]] = {
    "block": click.option("--block", is_flag=True, help="Stay in the foreground until SIGTERM or Ctrl-C."),
    "data_dir": data_dir_option,
    "listen": click.option(
        "--listen",
        metavar="HOST:PORT",
        help="Where other nodes reach this one; HOST empty for all interfaces, `none` for no port. "
        "[default: $LATTICA_LISTEN, else :7411, or a free port if that is taken]",
    ),
    "advertise": click.option(
        "--advertise",
        metavar="HOST:PORT",
        multiple=True,
        callback=lambda context, option, given: parse_reached(given),
        help="Where else others reach this node, as by a port that you have forwarded in the router (may be repeated). "
        "Tickets name it, too. [default: $LATTICA_ADVERTISE, with commas]",
    ),
    "port_mapping": click.option(
        "--port-mapping/--no-port-mapping",
        default=None,
        help="Whether to ask the router for a port that leads here (PCP, NAT-PMP, UPnP). "
        "[default: $LATTICA_PORT_MAPPING, else yes]",
    ),
    "birthday": click.option(
        "--birthday/--no-birthday",
        default=None,
        help="Whether hundreds of ports may be tried to get through a NAT that gives random ones, ten times an hour at "
        "the most. [default: $LATTICA_BIRTHDAY, else yes]",
    ),
    "name": click.option("--name", metavar="NAME", help="What people call this node. [default: the machine's name]"),
    "labels": click.option("--labels", type=parse_labels, metavar="K=V,…", help="Labels, like site=home,gpu=3090."),
    "num_cpus": click.option(
        "--num-cpus", type=float, metavar="N", help="CPUs to offer. [default: those of this machine]"
    ),
    "num_gpus": click.option(
        "--num-gpus", type=float, metavar="N", help="GPUs to offer. [default: those of this machine]"
    ),
    "resources": click.option(
        "--resources", type=parse_amounts, metavar="JSON", help="""Your own resources, like '{"tpu": 2}'."""
    ),
    "object_store_memory": click.option(
        "--object-store-memory",
        type=parse_size,
        metavar="BYTES",
        help="Shared memory for objects, like 4GiB. [default: 30 % of RAM]",
    ),
    "spill_dir": click.option(
        "--spill-dir",
        type=click.Path(file_okay=False),
        metavar="DIR",
        help="Where objects go that do not fit into memory. [default: $LATTICA_SPILL_DIR, else the data directory]",
    ),
    "spill_limit": click.option(
        "--spill-limit",
        type=parse_size,
        metavar="BYTES",
        help="How much may lie there. [default: $LATTICA_SPILL_LIMIT, else what leaves 5 % of the disk free]",
    ),
    "memory": click.option(
        "--memory",
        type=parse_size,
        metavar="BYTES",
        help="What tasks may ask for as `memory`. [default: RAM without the shared memory]",
    ),
    "grace": click.option(
        "--grace",
        type=parse_duration,
        metavar="TIME",
        help="How long tasks of others may still run after SIGTERM. [default: 30s]",
    ),
    "metrics_port": click.option(
        "--metrics-port",
        metavar="PORT",
        help="Serve metrics for Prometheus there, at 127.0.0.1 unless HOST:PORT says otherwise.",
    ),
    "json": click.option("--json", "as_json", is_flag=True, help="For machines: what is said, as one JSON object."),
}
"""Of commands that start a node, by the name of the argument that they make."""


def node_options(command: Command, names: Iterable[str] = tuple(OPTIONS)) -> Command:
    """The options of a command that starts a node; names: which of them."""
    for name in reversed(tuple(names)):
        command = OPTIONS[name](command)
    return command


def ticket_text(given: str | None) -> str:
    """The ticket that the user means by an argument, a file, "-" or LATTICA_TICKET; "" if by nothing.

    Raises ConfigError if it is none.
    """
    if given is None and not os.environ.get("LATTICA_TICKET", "").strip():
        return ""
    from lattica.mesh import ticket_text as texts  # what is inside is for the node to read: it takes cryptography

    text = texts.read_text(given, os.environ, sys.stdin)
    if text is None:
        return ""
    texts.unpack(text)
    return "".join(text.split())


def begin(
    ticket: str,
    *,
    block: bool,
    data_dir: str | None,
    listen: str | None,
    port_mapping: bool | None,
    birthday: bool | None = None,
    relay: bool = False,
    listen_tls: str | None = None,
    advertise: str | None = None,
    name: str | None,
    labels: dict[str, str] | None,
    num_cpus: float | None,
    num_gpus: float | None,
    resources: dict[str, float] | None,
    object_store_memory: int | None,
    spill_dir: str | None = None,
    spill_limit: int | None = None,
    memory: int | None,
    grace: float | None,
    metrics_port: str | None,
    as_json: bool,
) -> None:
    """Start a node, say how that went, and with `block` wait for its end. ticket: its text; "": found or return.

    Raises LatticaError with what the node says if it cannot serve, or cannot go on.
    """
    # Whatever the node would refuse is refused here, before anything starts.
    parse_request(num_cpus=num_cpus, num_gpus=num_gpus, resources=resources)
    if listen not in (None, "", "none"):
        from lattica.mesh.addresses import split_host

        split_host(str(listen))
    if spill_dir:
        _check_spill_dir(spill_dir)
    where = paths.data_dir(data_dir)
    paths.make_data_dir(where)
    os.close(paths.lock_data_dir(where))  # the node itself takes it again
    paths.socket_path(where)
    options = options_of(
        where,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        resources=json.dumps(resources) if resources else None,
        object_store_memory=object_store_memory,
        spill_dir=os.path.abspath(spill_dir) if spill_dir else None,
        spill_limit=spill_limit,
        memory=memory,
        listen=listen or None,
        port_mapping=None if port_mapping is None else "yes" if port_mapping else "no",
        birthday=None if birthday is None else "yes" if birthday else "no",
        relay="yes" if relay else None,
        listen_tls=listen_tls,
        advertise=advertise,
        name=name,
        labels=json.dumps(labels) if labels else None,
        grace=grace,
        metrics=metrics_port,
    )
    if not block:
        _begin(options, where, ticket, None, named=data_dir is not None, as_json=as_json)
        return
    with daemon.Signals() as signals:
        _begin(options, where, ticket, signals, named=data_dir is not None, as_json=as_json)


def _check_spill_dir(folder: str) -> None:
    """Raises ConfigError if it cannot be written to: the node would say so when its memory is full."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--spill-dir {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--spill-dir {folder} cannot be written to by you", do_next="name a folder of yours")


def _begin(
    options: list[str], where: str, ticket: str, signals: daemon.Signals | None, *, named: bool, as_json: bool
) -> None:
    """signals: of the foreground, where the command stays."""
    begun = daemon.spawn(options, where, ticket)
    log = os.path.join(where, daemon.LOG_FILE)
    try:
        if signals is not None:
            signals.hand_on_to(begun.process)
        try:
            said = daemon.await_ready(begun.ready, begun.pidfd, log)
        except BaseException:
            if signals is not None and signals.told:
                signals.wait(begun.process)  # it tidies up
                return
            begun.kill()
            raise
        try:
            facts = daemon.facts(begun.ready, begun.pidfd, log, said)
            node = paths.running_node(where)
            if node is None:
                raise _ended(log, "the node served, and has ended again")
        except NodeDiedError:
            if signals is not None and signals.told:
                return
            raise
        if as_json:
            click.echo(json.dumps(_facts(node, facts), indent=2))
        else:
            click.echo("\n".join(greeting(node, where, facts, named=named, block=signals is not None)))
        if signals is not None and (code := signals.wait(begun.process)):
            raise _ended(log, f"the node ended by itself ({exit_text(code)})")
    finally:
        begun.close()


def options_of(where: str, **given: object) -> list[str]:
    """Options of the node process: pairs of name and value; what is None is left out, for the node to decide."""
    words = ["--data-dir", where]
    for name, value in given.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def _ended(log: str, what: str) -> NodeDiedError:
    return NodeDiedError(what, do_next=f"read {log}{daemon.last_words(log)}")


def _facts(node: NodeFile, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "node": node.node,
        "pid": node.pid,
        "socket": node.socket,
        "version": node.version,
        "mesh": facts.get("mesh") or {},
        "key_protection": facts.get("protection"),
    }


def greeting(node: NodeFile, where: str, facts: Mapping[str, Any], *, named: bool, block: bool) -> list[str]:
    """What to say of a node that serves. facts: as of `daemon.facts`. named: the user named its data directory, and
    must do so again."""
    mesh: Mapping[str, Any] = facts.get("mesh") or {}
    option = f" --data-dir {shlex.quote(where)}" if named else ""
    variable = f"{paths.DATA_DIR_VARIABLE}={shlex.quote(where)} " if named else ""
    lines = [
        f"node {node.node[:SHORT]} serves (pid {node.pid}, lattica {node.version}){_offer(facts)}",
        *_mesh_lines(mesh),
    ]
    if "submit" in mesh.get("roles", "submit"):
        lines.append(f"  attach    {variable}python my_program.py, which calls lattica.init()")
    lines.append(f"  look      lattica status{option}" + (f", lattica peers{option}" if mesh else ""))
    if mesh.get("issuer"):
        lines.append(f"  invite    lattica ticket{option}, and on another machine: lattica join TICKET")
    lines.append(f"  stop      {'Ctrl-C' if block else f'lattica stop{option}'}")
    logs = [os.path.join(where, daemon.LOG_FILE)]
    if node.session_dir:
        logs.append(f"{os.path.join(node.session_dir, 'logs')} (workers)")
    lines.append(f"  logs      {', '.join(logs)}")
    if recovery := mesh.get("recovery_file"):
        lines.append(f"  recovery  {recovery}")
        lines.append("            whoever has this file rules the mesh: move it off this machine, to a safe place")
    warnings = [*mesh.get("warnings", ()), protection.warning(facts.get("protection") or {})]
    return [*lines, *(f"  warning   {text}" for text in warnings if text)]


def _mesh_lines(mesh: Mapping[str, Any]) -> list[str]:
    """Which mesh, where it listens, whom it has met."""
    if not mesh:
        return []
    how = {"founded": "founded", "joined": "joined", "returned": "back in"}.get(mesh.get("how", ""), "in")
    lines = [f"  mesh      {how} {str(mesh.get('mesh', '?'))[:SHORT]}, with the roles {mesh.get('roles', '?')}"]
    addresses = shown(mesh.get("addresses", []))
    more = f" and {len(addresses) - ADDRESSES_SHOWN} more" if len(addresses) > ADDRESSES_SHOWN else ""
    lines.append(
        f"  listens   {', '.join(addresses[:ADDRESSES_SHOWN]) + more if addresses else 'nowhere: it only dials'}"
    )
    lines += [f"            {note}" for note in mesh.get("notes", ())]
    peers = [f"{peer.get('peer_id', '?')[:SHORT]} {peer.get('name', '')}".strip() for peer in mesh.get("peers", ())]
    if peers:
        lines.append(f"  peers     {', '.join(peers[:ADDRESSES_SHOWN])}")
    else:
        troubles = [f"            {trouble_text(one)}" for one in mesh.get("troubles", ())[:ADDRESSES_SHOWN]]
        if troubles or mesh.get("how") == "joined":
            lines += ["  peers     none has answered yet; the node keeps trying (lattica doctor)", *troubles]
        if mesh.get("how") == "joined" and (reached := dial_text(mesh)):
            lines.append(f"            if they are behind a router and this machine is not, run there: {reached}")
    return lines


def exit_text(code: int) -> str:
    """Words for a return code as of subprocess."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _offer(facts: Mapping[str, Any]) -> str:
    """Words for what it offers; nothing if it does not say, which is no reason to fail."""
    try:
        total = facts["resources"]["total"]
        amounts = [
            size_text(amount) + " of shared memory" if name == "object_store_memory" else f"{amount:g} {name}"
            for name, amount in total.items()
            if name != "memory" and not name.startswith("node:")
        ]
    except (KeyError, TypeError, AttributeError, ValueError):
        return ""
    return f" with {', '.join(amounts)}"
