"""`lattica up`."""

from __future__ import annotations

from functools import partial

import click

from lattica.cli import clusters
from lattica.launch.up import up


@click.command("up", short_help="Start the nodes of a cluster's file.")
@clusters.file_argument
@click.option("--prune", is_flag=True, help="Stop nodes of the cluster that the file does not name any more.")
@clusters.parallel_option
@clusters.json_option
def command(file: str, prune: bool, parallel: int, as_json: bool) -> None:
    """\b
    lattica up cluster.yaml
    lattica up cluster.yaml --prune    and stop what the file does not name any more

    Starts a node on every host of the file that has none, all in one mesh, and returns when they know each other.
    Nodes that run stay as they are, so it can be run again at any time. The exit code is 1 if a host failed; the
    others are up nonetheless. What stands in the file is told in docs/launch.md.
    """
    report = clusters.over_hosts(file, partial(up, prune=prune), parallel=parallel)
    clusters.tell(report, clusters.up_lines(report), as_json=as_json)
