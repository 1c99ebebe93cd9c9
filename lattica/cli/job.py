"""`lattica job`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from lattica.cli.client import NodeConnection, data_dir_option, node_of
from lattica.cli.sizes import duration_text, size_text, table

SHORT = 8  # characters of an id for people
ROWS_MAX = 50  # for people; `--json` has all


@click.group("job", short_help="List jobs, stop one, read what it prints, fetch what it wrote.")
def command() -> None:
    """\b
    lattica job list
    lattica job stop 3fa9c1d2
    lattica job logs 3fa9c1d2          the same as lattica logs
    lattica job fetch 3fa9c1d2 curve.png

    Each of them asks this machine's node, which knows of all jobs of the mesh, and returns at once.
    """


@command.command("list", short_help="List the jobs of the mesh.")
@click.option("--json", "as_json", is_flag=True, help="For machines: a list of objects.")
@data_dir_option
def list_jobs(as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica job list
    lattica job list --json | jq -r '.[] | select(.state == "failed") | .job'

    Lists jobs that were submitted in the last days, the latest last, and returns at once.
    """
    with NodeConnection(node_of(data_dir)) as connection:
        jobs = connection.mesh("job_list")
    click.echo(json.dumps(jobs, indent=2) if as_json else "\n".join(page(jobs, time.time())))


@command.command("stop", short_help="End a job.")
@click.argument("job")
@data_dir_option
def stop(job: str, data_dir: str | None) -> None:
    """\b
    lattica job stop 3fa9c1d2
    lattica job stop train.py          by its name, the latest of that name

    Sends SIGTERM to the job's script, SIGKILL three seconds later, and returns when its node has been told.
    """
    with NodeConnection(node_of(data_dir)) as connection:
        told = connection.mesh("job_stop", job=job)
    what = "is told to stop" if told["state"] in ("running", "restarting") else f"is over already: {told['state']}"
    click.echo(f"job {told['job'][:SHORT]} ({told['name']}) {what}")


@command.command("logs", short_help="Show what a job prints.")
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Until the job is over.")
@data_dir_option
def job_logs(job: str, follow: bool, data_dir: str | None) -> None:
    """\b
    lattica job logs -f 3fa9c1d2

    Shows what a job has printed, and returns; with --follow when the job is over, with its exit code.
    """
    from lattica.cli.logs import show_job

    show_job(job, node_of(data_dir), follow=follow)


@command.command("fetch", short_help="Copy a file that a job has written.")
@click.argument("job")
@click.argument("file")
@click.argument("to", required=False, type=click.Path())
@data_dir_option
def fetch(job: str, file: str, to: str | None, data_dir: str | None) -> None:
    """\b
    lattica job fetch 3fa9c1d2 learning-curve.png
    lattica job fetch train.py out/model.pt /tmp/model.pt

    Copies a file out of the folder in which a job's script runs, from the node where that is, to here or to the path
    behind it. The folder is a copy of what was submitted, and stays until its node ends or has run many other jobs.
    """
    place = to or os.path.basename(file)
    place = os.path.join(place, os.path.basename(file)) if os.path.isdir(place) else place
    with NodeConnection(node_of(data_dir)) as connection:
        read = connection.mesh("job_file", job=job, path=file, offset=0)
        with open(place, "wb") as out:
            out.write(read["data"])
            while read["data"] and out.tell() < read["size"]:
                read = connection.mesh("job_file", job=job, path=file, offset=out.tell())
                out.write(read["data"])
            size = out.tell()
    click.echo(f"{place}: {size_text(size)} from node {read['node'][:SHORT]}")


def page(jobs: Sequence[Mapping[str, Any]], unix_s: float) -> list[str]:
    """The lines for people. Tolerates what a node of another release leaves out."""
    if not jobs:
        return ["no job was submitted; `lattica submit script.py` submits one"]
    rows = [
        [
            str(one.get("job", "?"))[:SHORT],
            one.get("name", ""),
            str(one.get("state", "?")) + ("" if one.get("exit_code") is None else f" ({one['exit_code']})"),
            one.get("node_name") or str(one.get("node", "?"))[:SHORT],
            f"{one.get('restarts', 0)}",
            duration_text((one.get("ended") or unix_s) - one.get("submitted", unix_s)),
            one.get("how", "") if one.get("state") != "running" else "",
        ]
        for one in jobs[-ROWS_MAX:]
    ]
    lines = table(["job", "name", "state", "node", "restarts", "for", ""], rows)
    if len(jobs) > ROWS_MAX:
        lines.append(f"  ... and {len(jobs) - ROWS_MAX} earlier ones, with --json")
    return lines
