"""`lattica whoami`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from lattica.cli.client import NodeConnection, data_dir_option, node_of
from lattica.cli.sizes import moment_text


@click.command("whoami", short_help="Show who this node is in its mesh.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object.")
@data_dir_option
def command(as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica whoami
    lattica whoami --json | jq -r .peer_id

    Shows the id, roles and addresses of this machine's node, and returns at once.
    """
    with NodeConnection(node_of(data_dir)) as connection:
        state = connection.mesh("whoami")
    if as_json:
        click.echo(json.dumps(state, indent=2))
    else:
        click.echo("\n".join(page(state)))


def page(state: Mapping[str, Any]) -> list[str]:
    """The lines for people. Tolerates what a node of another release leaves out."""
    until = f"until {moment_text(state['expires'])}" if "expires" in state else ""
    if state.get("via_invite"):
        until += ", by its ticket: no issuer has certified this node yet"
    elif until:
        until += ", renewed before that"
    rows = {
        "peer": state.get("peer_id", "?"),
        "name": state.get("name", ""),
        "mesh": state.get("mesh", "?"),
        "roles": state.get("roles", "?") + (" (issuer: it admits others)" if state.get("issuer") else ""),
        "member": until,
        "listens": ", ".join(state.get("addresses", ())) or "nowhere",
        "labels": ", ".join(f"{name}={value}" for name, value in state.get("labels", {}).items()),
        "lattica": state.get("version", ""),
    }
    lines = [f"{name:<8}  {value}" for name, value in rows.items() if value]
    if state.get("recovery_file"):
        lines.append(f"recovery  {state['recovery_file']}: move it off this machine")
    return lines + [f"warning: {warning}" for warning in state.get("warnings", ())]
