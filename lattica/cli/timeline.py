"""`lattica timeline`."""

from __future__ import annotations

import json

import click

from lattica.cli.client import NodeConnection, data_dir_option, node_to_look_at
from lattica.trace import chrome_trace, write

SHORT = 8  # characters of an id for people


@click.command("timeline", short_help="Write down what ran when, for a trace viewer.")
@click.argument(
    "file", type=click.Path(dir_okay=False, writable=True, allow_dash=True), default="lattica-timeline.json"
)
@data_dir_option
def command(file: str, data_dir: str | None) -> None:
    """\b
    lattica timeline
    lattica timeline -  |  jq '.[] | select(.args.failed)'

    Writes the tasks and actor calls that have ended on all nodes of the mesh, the newest thousands of each worker, to
    FILE (default: lattica-timeline.json; "-" is stdout), as a Chrome trace: open it at https://ui.perfetto.dev or
    chrome://tracing. A process there is a machine, a thread a worker. It returns when all nodes have answered, or after
    five seconds; who did not is named.
    """
    with NodeConnection(node_to_look_at(data_dir)) as connection:
        found = connection.mesh("timeline")
    trace = chrome_trace(found["rows"])
    if file == "-":
        click.echo(json.dumps(trace))
    else:
        write(file, trace)
        ran = sum(event["ph"] in ("X", "b") for event in trace)
        click.echo(f"{ran} tasks and calls in {file}: open it at https://ui.perfetto.dev")
    for one in found.get("silent", ()):
        name = one.get("name") or str(one.get("peer_id", "?"))[:SHORT]
        click.echo(f"warning: {name} did not answer: {one.get('why', '?')}", err=True)
