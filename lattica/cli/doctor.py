"""`lattica doctor`."""

from __future__ import annotations

import json
import sys
import time

import click

from lattica.cli import checkup
from lattica.cli.client import data_dir_option
from lattica.node import paths


@click.command("doctor", short_help="Look for what is wrong, and say what to do.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
@data_dir_option
def command(as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica doctor
    lattica doctor --json | jq '.checks[] | select(.level != "ok")'

    Looks at the node's key and files, its membership, the clock, the port and the connections, says of each whether it
    is ok, and returns within some seconds; with exit code 1 if something is bad. It also works while no node runs.
    """
    checks = checkup.examine(paths.data_dir(data_dir), time.time())
    sick = any(check.level == checkup.BAD for check in checks)
    if as_json:
        click.echo(json.dumps({"ok": not sick, "checks": [check.to_dict() for check in checks]}, indent=2))
    else:
        click.echo("\n".join(line for check in checks for line in check.lines()))
    sys.exit(1 if sick else 0)
