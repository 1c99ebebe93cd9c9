"""`lattica logs`."""

from __future__ import annotations

import sys

import click

from lattica.cli.client import NodeConnection, data_dir_option, node_of
from lattica.cli.follow import follow_job, show


@click.command("logs", short_help="Show what a job, an actor or a worker prints.")
@click.argument("what", metavar="JOB")
@click.option("-f", "--follow", is_flag=True, help="Until it is over.")
@data_dir_option
def command(what: str, follow: bool, data_dir: str | None) -> None:
    """\b
    lattica logs 3fa9c1d2
    lattica logs -f train.py           the latest job of that name

    Shows what a job's script has printed, at whichever node it runs, and returns; with --follow when the job is over,
    with its exit code.
    """
    show_job(what, follow=follow, data_dir=data_dir)


def show_job(job: str, *, follow: bool, data_dir: str | None) -> None:
    """What it printed in its last run, or follow it."""
    with NodeConnection(node_of(data_dir)) as connection:
        if follow:
            code = follow_job(connection, connection.mesh("job_logs", job=job, run=-1)["job"], asks=False)
            sys.exit(code)
        run, offset = -1, 0
        while True:
            answer = connection.mesh("job_logs", job=job, run=run, offset=offset)
            run = answer["of_run"]
            show(answer["data"])
            if answer["offset"] == offset:
                if answer["trouble"]:
                    click.echo(f"--- {answer['trouble']} ---", err=True)
                return
            offset = answer["offset"]
