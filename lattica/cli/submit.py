"""`lattica submit`."""

from __future__ import annotations

import json
import os
import sys

import click

from lattica.cli.client import NodeConnection, data_dir_option, node_of
from lattica.cli.follow import follow_job
from lattica.errors import ConfigError
from lattica.node import paths

SHORT = 8  # characters of an id for people


@click.command("submit", short_help="Run a script on the mesh.", context_settings={"allow_interspersed_args": False})
@click.option("--name", default="", metavar="NAME", help="What people call the job. [default: the script's name]")
@click.option("--on", default="", metavar="PEER", help="The node that runs the script. [default: this machine's]")
@click.option("--working-dir", metavar="DIR", help="Folder that travels along. [default: the script and its modules]")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Of the folder, what stays here, like data or '*.ckpt'.")
@click.option("--env", "variables", multiple=True, metavar="K=V", help="Environment variable; all nodes can read it.")
@click.option(
    "--max-restarts", type=int, default=1, help="How often a lost node may be replaced; -1: always. [default: 1]"
)
@click.option("--no-wait", is_flag=True, help="Return as soon as it runs.")
@click.option("--json", "as_json", is_flag=True, help="For machines: with --no-wait, one JSON object.")
@data_dir_option
@click.argument("script")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]…")
def command(
    script: str,
    words: tuple[str, ...],
    *,
    name: str,
    on: str,
    working_dir: str | None,
    exclude: tuple[str, ...],
    variables: tuple[str, ...],
    max_restarts: int,
    no_wait: bool,
    as_json: bool,
    data_dir: str | None,
) -> None:
    """\b
    lattica submit train.py --epochs 10
    lattica submit --working-dir . --exclude data --name night train.py
    lattica submit --no-wait train.py; lattica logs -f train.py

    Runs a Python script on the mesh, whose lattica.init() finds the node that runs it. The job goes on when this
    command, this terminal or this machine ends: its files are kept by other nodes too (it says so if by none), and when
    the node that runs it is lost, another starts the script again, from its beginning. Options of lattica stand before
    the script. What it writes into its folder is had by `lattica job fetch JOB FILE`.

    Shows what it prints and returns with its exit code; Ctrl-C asks whether to stop the job or to leave it running.
    """
    node = node_of(data_dir)
    folder, inside = _places(script, working_dir)
    from lattica.node import packages

    if working_dir is not None:
        packed = packages.pack(folder, exclude)
    else:
        try:
            packed = packages.pack(folder, exclude, scripts=True)
        except ConfigError as error:
            raise ConfigError(
                error.message, do_next="name what the script needs by --working-dir and --exclude"
            ) from None
    spec = {
        "name": name or os.path.basename(script), "package": packed.cid, "script": inside, "words": list(words),
        "environ": _variables(variables), "max_restarts": max_restarts,
    }  # fmt: skip
    packages.Shelf(os.path.join(paths.data_dir(data_dir), "packages")).put(packed)
    with NodeConnection(node) as connection:
        begun = connection.mesh("job_submit", spec=spec, on=on)
        if not begun.get("keepers", 1):
            click.echo(
                "note: no other node keeps the job's files: if the node that runs it is lost, so is the job", err=True
            )
        if no_wait:
            click.echo(
                json.dumps(begun, indent=2) if as_json else f"job {begun['job']} runs at {begun['node'][:SHORT]}"
            )
            if not as_json:
                click.echo(f"  follow    lattica logs -f {begun['job'][:SHORT]}")
                click.echo(f"  stop      lattica job stop {begun['job'][:SHORT]}")
            return
        click.echo(f"job {begun['job']} runs at {begun['node'][:SHORT]}; Ctrl-C leaves it running", err=True)
        code = follow_job(connection, begun["job"], asks=True)
    sys.exit(code)


def _places(script: str, working_dir: str | None) -> tuple[str, str]:
    """(the folder that travels, the script's name in it). Raises ConfigError."""
    folder = os.path.abspath(working_dir) if working_dir is not None else os.path.dirname(os.path.abspath(script))
    for path in dict.fromkeys((os.path.abspath(script), os.path.join(folder, script))):
        if os.path.isfile(path):
            inside = os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
            if inside.startswith(".."):
                raise ConfigError(f"{script} does not lie in {folder}", do_next="name a folder that holds it")
            if working_dir is None and not script.endswith(".py"):
                raise ConfigError(f"{script} is no Python script (*.py)", do_next="name its folder by --working-dir")
            return folder, inside
    raise ConfigError(f"there is no script {script}", do_next="name it by its path, or as it lies in --working-dir")


def _variables(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in given:
        name, is_one, value = text.partition("=")
        if not name or not is_one:
            raise click.BadParameter(f"{text!r} is no variable; write it like NAME=value")
        found[name] = value
    return found
