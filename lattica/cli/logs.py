"""`lattica logs`."""

from __future__ import annotations

import sys
import time

import click

from lattica.cli.client import NodeConnection, data_dir_option, node_to_look_at
from lattica.cli.follow import follow_job, show
from lattica.errors import ConfigError, LatticaError
from lattica.node.paths import NodeFile

WAIT_S = 0.5  # for news, of all files in turn
LOOK_S = 3.0  # between questions to all nodes whether it lives, and where


@click.command("logs", short_help="Show what a job, an actor or a worker prints.")
@click.argument("what", metavar="JOB|ACTOR|PID")
@click.option("-f", "--follow", is_flag=True, help="Until it is over.")
@data_dir_option
def command(what: str, follow: bool, data_dir: str | None) -> None:
    """\b
    lattica logs 3fa9c1d2
    lattica logs -f train.py           the latest job of that name
    lattica logs counter               an actor, by its name or the beginning of its id
    lattica logs 4711                  a worker, by its pid

    Shows what a job's script, an actor or a worker has printed, at whichever node it runs, and returns; with --follow
    when the job is over, with its exit code. Of actors and workers it shows the last MiB.
    """
    node = node_to_look_at(data_dir)
    try:
        show_job(what, node, follow=follow)
    except ConfigError as error:
        if not _show_workers(what, node, follow=follow):
            raise ConfigError(
                f"neither a job, nor an actor or worker that lives, is called {what!r:.60}",
                do_next="`lattica list jobs`, `lattica list actors` and `lattica list workers` name them",
            ) from error


def show_job(job: str, node: NodeFile, *, follow: bool) -> None:
    """What it printed in its last run, or follow it."""
    with NodeConnection(node) as connection:
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


def _show_workers(what: str, node: NodeFile, *, follow: bool) -> bool:
    """What the workers that are meant have printed; whether there are any."""
    with NodeConnection(node) as connection:
        files = connection.mesh("logs_find", what=what)
        offsets = {(one["node"], one["file"]): -1 for one in files}
        first, look_at = True, time.monotonic() + LOOK_S
        while files and (follow or first):
            news = False
            for one in files:
                name = one["node"], one["file"]
                wait_s = 0.0 if first else WAIT_S / len(files)
                while True:
                    try:
                        answer = connection.mesh(
                            "logs_read", node=one["node"], file=one["file"], offset=offsets[name], wait_s=wait_s
                        )
                    except LatticaError as error:
                        click.echo(f"--- {one['node_name'] or one['node']}: {error.message} ---", err=True)
                        return True
                    show(answer["data"])
                    wait_s, offsets[name] = 0.0, answer["offset"]
                    news = news or bool(answer["data"])
                    if not answer["data"]:
                        break
            first = False
            if follow and time.monotonic() >= look_at:
                found = connection.mesh("logs_find", what=what)  # an actor that was restarted prints elsewhere
                for one in found:
                    offsets.setdefault((one["node"], one["file"]), 0)
                files = [*found, *(one for one in files if news and one not in found)]
                look_at = time.monotonic() + LOOK_S
        return bool(offsets)
