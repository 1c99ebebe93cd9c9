"""`lattica down`."""

from __future__ import annotations

from functools import partial

import click

from lattica.cli import clusters
from lattica.launch.down import down


@click.command("down", short_help="Stop the nodes of a cluster's file.")
@clusters.file_argument
@click.option(
    "--purge", is_flag=True, help="Delete the data directories that `up` made, with keys. Only local clusters."
)
@click.option("--force", is_flag=True, help="Kill nodes that do not end by themselves.")
@clusters.parallel_option
@clusters.json_option
def command(file: str, purge: bool, force: bool, parallel: int, as_json: bool) -> None:
    """\b
    lattica down cluster.yaml
    lattica down cluster.yaml --purge  and forget that it ever was

    Stops the nodes that `lattica up` has started on the hosts of the file, and returns when they have ended; it can be
    run again, and from another machine. Nodes that were started by hand are left. Keys and memberships stay on the
    hosts, and the next `up` brings the same mesh back; --purge deletes those of a local cluster.
    """
    verb = partial(down, purge=purge, force=force)
    report = clusters.over_hosts(file, verb, parallel=parallel)
    clusters.tell(report, clusters.down_lines(report), as_json=as_json)
