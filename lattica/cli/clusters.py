"""What the verbs of a cluster's file have in common: their options, the run over all hosts, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import click

from lattica.cli.sizes import size_text, table
from lattica.errors import LatticaError
from lattica.launch.cluster import Cluster, Host, read_cluster
from lattica.launch.crew import PARALLEL, Crew, room_for
from lattica.launch.progress import Silence, progress_of
from lattica.launch.report import Report, hosts_of
from lattica.launch.survey import status
from lattica.node import paths

SHORT = 8  # characters of an id for people
Command = Callable[..., None]
Verb = Callable[[Cluster, Sequence[Host], Crew], Awaitable[Any]]

file_argument = click.argument("file", metavar="CLUSTER.yaml")
json_option = click.option("--json", "as_json", is_flag=True, help="For machines: what came of it, as one JSON object.")
parallel_option = click.option(
    "--parallel",
    type=click.IntRange(1, 256),
    default=PARALLEL,
    show_default=True,
    metavar="N",
    help="Hosts at work at once.",
)


def over_hosts(
    file: str, verb: Verb, *, parallel: int = PARALLEL, only: Sequence[str] = (), quiet: bool = False
) -> Any:
    """Read the file and run `verb` over its hosts, or over those of them in `only`; what it returns. quiet: show
    no progress.

    Raises ConfigError if the file cannot be, or names no such host.
    """
    cluster = read_cluster(file)
    hosts = hosts_of(cluster)
    if unknown := [name for name in only if name not in {host.name for host in hosts}]:
        names = ", ".join(host.name for host in hosts)
        raise click.BadParameter(f"{file} names no host {unknown[0]}; it names {names}", param_hint="--host")
    chosen = [host for host in hosts if not only or host.name in only]
    with Silence() if quiet else progress_of([host.name for host in chosen], sys.stderr) as progress:

        async def run() -> Any:
            return await verb(cluster, chosen, Crew(progress, room_for(cluster.provider, parallel)))

        return asyncio.run(run())


def tell(report: Report, lines: Sequence[str], *, as_json: bool) -> None:
    """Say how it went, and end with exit code 1 if a host failed."""
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        click.echo("\n".join([*lines, *(f"note: {note}" for note in report.notes)]))
        for host, error in report.failed.items():
            click.echo(failure(host, error), err=True)
    sys.exit(0 if report.ok else 1)


def failure(host: str, error: LatticaError) -> str:
    """Why a host failed, and what to do."""
    return f"{host}: {error}"


def left_over_lines(report: Report, remedy: str) -> list[str]:
    """The nodes that the file does not name any more."""
    if not report.left_over:
        return []
    return [f"not in the file, but running: {', '.join(report.left_over)}; {remedy}"]


def up_lines(report: Report) -> list[str]:
    """What `up` says at its end."""
    hosts = [host for host, word in report.state.items() if word in ("started", "runs already")]
    good = [host for host in hosts if host not in report.failed]
    total = sum(1 for word in report.state.values() if word in ("started", "runs already", "missing"))
    lines = [f"cluster {report.cluster}: {len(good)} of {total} hosts are up, in the mesh {report.mesh[:SHORT] or '?'}"]
    lines += left_over_lines(report, "`lattica up --prune` stops them")
    if not good:
        return lines
    if not report.data_dir:
        file = shlex.quote(report.file)
        return [*lines, f"join from here: lattica exec {file} --host {good[0]} -- lattica ticket | lattica join -"]
    if report.data_dir == paths.data_dir():
        return [*lines, "programs of this machine find it: lattica.init(), lattica status"]
    return [
        *lines,
        "another cluster has the usual data directory; programs of this machine find this one after:",
        f"export {paths.DATA_DIR_VARIABLE}={shlex.quote(report.data_dir)}",
    ]


def down_lines(report: Report) -> list[str]:
    """What `down` says at its end."""
    words = [word for host, word in report.state.items() if host not in report.failed]
    stopped = sum(word.startswith("stopped") for word in words)
    lines = [f"cluster {report.cluster}: {stopped} nodes stopped, {len(words) - stopped} did not run or were left"]
    lines += [f"  {host}  {word}" for host, word in report.state.items() if "left" in word]
    return lines


def show_status(file: str, *, as_json: bool) -> None:
    """`lattica status CLUSTER.yaml`."""
    report = over_hosts(file, status, quiet=not sys.stderr.isatty())
    tell(report, status_lines(report), as_json=as_json)


def status_lines(report: Report) -> list[str]:
    """A line for each host."""
    rows = []
    for host, word in report.state.items():
        facts = report.facts.get(host)
        said = facts.said if facts is not None and facts.running else {}
        resources, counts = said.get("resources", {}), said.get("counts", {})
        rows.append(
            [
                host,
                "failed" if facts is None else word,
                str(said.get("peer_id") or "")[:SHORT],
                _use(resources, "CPU"),
                _use(resources, "GPU"),
                _use(resources, "object_store_memory"),
                str(counts.get("workers", "")),
                str(counts.get("actors", "")),
                next(iter(said.get("addresses") or ()), ""),
                facts.said.get("data_dir", "") if facts is not None else "",
            ]
        )
    up = sum(word == "up" and host not in report.failed for host, word in report.state.items())
    lines = [f"cluster {report.cluster}: {up} of {len(rows)} hosts are up, in the mesh {report.mesh[:SHORT] or '?'}"]
    lines += table(
        ["host", "state", "peer", "CPU", "GPU", "objects", "workers", "actors", "address", "data directory"], rows
    )
    if "down" in report.state.values():
        lines.append(f"`lattica up {shlex.quote(report.file)}` starts what is down")
    return lines + left_over_lines(report, "`lattica up --prune` stops them")


def _use(resources: Any, name: str) -> str:
    """`1/4`: in use, of all."""
    total, available = resources.get("total", {}).get(name), resources.get("available", {}).get(name, 0)
    if not total:
        return ""
    words = size_text if name.endswith("memory") else "{:g}".format
    return f"{words(total - available)}/{words(total)}"
