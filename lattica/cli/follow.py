"""Show what a job prints, as it comes, until it is over or the user has seen enough."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from lattica.cli.client import NodeConnection
from lattica.errors import LatticaError

WAIT_S = 10.0  # for news, before the node is asked again
AGAIN_S = 0.5  # between questions while nobody can answer
LOST_S = 120.0
"""How long a job whose node is lost may take to go on: a death is known after eight seconds, others take turns."""
SHORT = 8  # characters of an id for people
OVER = ("succeeded", "failed", "stopped", "lost")


def follow_job(connection: NodeConnection, job: str, *, asks: bool) -> int:
    """Until the job is over; its exit code, 1 if it has none. asks: at Ctrl-C, whether it shall be stopped."""
    try:
        return _follow(connection, job)
    except KeyboardInterrupt:
        click.echo(err=True)
        if asks and sys.stdin.isatty():
            try:
                if click.confirm("stop the job, too?", default=False, err=True):
                    raise _Stop
            except (click.Abort, KeyboardInterrupt):
                pass
            except _Stop:
                with NodeConnection(connection.node) as another:
                    another.mesh("job_stop", job=job)
                click.echo(f"job {job[:SHORT]} is told to stop", err=True)
                return 130
        click.echo(f"job {job[:SHORT]} goes on; follow it by `lattica logs -f {job[:SHORT]}`", err=True)
        return 130


class _Stop(Exception):
    pass


def _follow(connection: NodeConnection, job: str) -> int:
    offset, run, quiet_since, told = 0, 0, 0.0, ""
    while True:
        answer = connection.mesh("job_logs", job=job, run=run, offset=offset, wait_s=WAIT_S)
        show(answer["data"])
        offset = answer["offset"]
        if answer["run"] > run and (answer["over"] or answer["trouble"]):
            click.echo(f"--- its node was lost: {_restart(answer)} ---", err=True)
            run, offset, quiet_since, told = answer["run"], 0, 0.0, ""
            continue
        if answer["state"] in OVER and answer["run"] == run and (answer["over"] or answer["trouble"]):
            return _end(answer)
        if answer["trouble"] or answer["over"]:
            now = time.monotonic()
            quiet_since = quiet_since or now
            if answer["trouble"] and answer["trouble"] != told:
                told = answer["trouble"]
                click.echo("--- its node does not answer; if it is lost, another goes on with the job ---", err=True)
            if now - quiet_since > LOST_S:
                raise LatticaError(
                    f"nothing was heard of job {job[:SHORT]} for {LOST_S:g} s",
                    do_next="look at `lattica job list` and `lattica peers`",
                )
            time.sleep(AGAIN_S)
        else:
            quiet_since = 0.0


def show(data: bytes) -> None:
    """As it was printed."""
    click.echo(data, nl=False)


def _restart(answer: Mapping[str, Any]) -> str:
    if answer["state"] in OVER and not answer["began"]:
        return "it is over"
    name = answer["node_name"] or answer["node"][:SHORT]
    most = answer["max_restarts"]
    of = f" of {most}" if most >= 0 else ""
    return f"the script begins again at {name} (restart {answer['restarts']}{of})"


def _end(answer: Mapping[str, Any]) -> int:
    if answer["state"] == "succeeded":
        return 0
    click.echo(f"job {answer['job'][:SHORT]} {answer['state']}: {answer['how']}", err=True)
    code = answer["exit_code"]
    return int(code) if code else 1
