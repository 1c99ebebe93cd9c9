"""`lattica exec`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from lattica.cli import clusters
from lattica.launch.cluster import Cluster, Host
from lattica.launch.crew import Crew
from lattica.launch.survey import execute


@click.command("exec", short_help="Run a command on every host of a cluster's file.")
@clusters.file_argument
@click.option("--host", "only", multiple=True, metavar="NAME", help="Only on this host. Repeat it for several.")
@clusters.parallel_option
@click.argument("words", metavar="-- COMMAND", nargs=-1, required=True, type=click.UNPROCESSED)
def command(file: str, only: tuple[str, ...], parallel: int, words: tuple[str, ...]) -> None:
    """\b
    lattica exec cluster.yaml -- nvidia-smi -L
    lattica exec cluster.yaml --host gpu-1 -- lattica doctor
    lattica exec cluster.yaml -- sh -c 'df -h | tail -1'

    Runs a command on every host of the file, shows what it says with the host before each line (not with one --host),
    and returns when it has ended everywhere, with the worst of the exit codes; 255 is ssh's own, of a host that it did
    not reach. The words go to the command as they are: for pipes and variables have `sh -c` run them. It reads nothing.
    LATTICA_DATA_DIR and PATH are those of the host's node: `lattica` and `python` are the cluster's.
    """

    async def verb(_: Cluster, hosts: Sequence[Host], crew: Crew) -> int:
        width = max(len(host.name) for host in hosts)

        def show(host: str, line: str, err: bool) -> None:
            click.echo(line if len(only) == 1 else f"{host:<{width}} | {line}", err=err)

        code, codes = await execute(hosts, crew, words, show)
        for host, ended in codes.items() if len(only) != 1 else ():
            if ended:
                click.echo(f"{host:<{width}} | exit code {ended}", err=True)
        for host, error in crew.failed.items():
            click.echo(clusters.failure(host, error), err=True)
        return code

    sys.exit(clusters.over_hosts(file, verb, parallel=parallel, only=only, quiet=True))
