"""`lattica status`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from lattica.cli import daemon, protection
from lattica.cli.addresses import shown
from lattica.cli.client import NodeConnection, data_dir_option, node_to_look_at
from lattica.cli.sizes import duration_text, size_text, table
from lattica.node.logs import FILE_BACKUPS, FILE_BYTES_MAX
from lattica.node.node_log import LOG_BYTES_MAX

ROWS_MAX = 50
"""Rows of one table for people; `--json` has all."""
IN_BYTES = ("memory", "object_store_memory")  # resources that are sizes
Rows = Sequence[Mapping[str, Any]]


@click.command("status", short_help="Show what the node has and does.")
@click.argument("file", metavar="[CLUSTER.yaml]", required=False)
@click.option("--json", "as_json", is_flag=True, help="For machines: all there is, as one JSON object.")
@data_dir_option
def command(file: str | None, as_json: bool, data_dir: str | None) -> None:
    """\b
    lattica status
    lattica status --json | jq .resources.available
    lattica status cluster.yaml        a line for each host of the file

    Shows resources, jobs, workers, actors and memory of this machine's node, and returns at once; with exit code 1 if
    none runs. With a cluster's file it asks all its hosts, and the exit code is 1 if one of them has no node.
    """
    if file is not None:
        if data_dir is not None:
            raise click.UsageError("a cluster's file says where its nodes are: leave --data-dir out")
        from lattica.cli import clusters

        return clusters.show_status(file, as_json=as_json)
    with NodeConnection(node_to_look_at(data_dir)) as connection:
        state = connection.state("status")
        if state.get("node", {}).get("peer_id"):
            state["mesh"] = connection.mesh("summary")
    if as_json:
        click.echo(json.dumps(state, indent=2, default=_plain))
    else:
        click.echo("\n".join(page(state, time.time())))


def _plain(value: object) -> str:
    """Ids are bytes on the wire and hex for people."""
    return value.hex() if isinstance(value, bytes) else str(value)


def page(state: Mapping[str, Any], unix_s: float) -> list[str]:
    """The lines for people. Tolerates what a node of another release leaves out."""
    node = state.get("node", {})
    lines = [
        f"node {node.get('peer_id', '')[:8] or _id(node)}  pid {node.get('pid', '?')}"
        f"  up {duration_text(node.get('uptime_s', 0))}"
        f"  lattica {node.get('version', '?')}  {node.get('data_dir', '')}".rstrip()
    ]
    if node.get("peer_id", "?") and (missing := protection.warning(state.get("key_protection", {}))):
        lines.append(f"warning: {missing}")
    lines += _mesh(state.get("mesh") or {})
    lines += ["", "resources", *_resources(state.get("resources", {}))]
    lines += _section("jobs", _jobs(state.get("jobs", []), unix_s))
    lines += _section("workers", _workers(state.get("workers", [])))
    lines += _section("actors", _actors(state.get("actors", [])))
    lines += ["", "memory", *_memory(state.get("memory", {}), state.get("workers", []))]
    return [*lines, *_logs(node)]


def _mesh(mesh: Mapping[str, Any]) -> list[str]:
    """Which one, who lives, on which side this node is, who admits others, and where it is reached."""
    if not mesh:
        return []
    members, side = mesh.get("members", {}), mesh.get("side", {})
    others = "".join(f", {members[state]} {state}" for state in sorted(members) if state != "alive")
    issuers = [str(one.get("peer_id", "?"))[:8] for one in mesh.get("issuers", ())]
    rows = {
        "id": f"{str(mesh.get('mesh', '?'))[:8]}, this node is {mesh.get('name', '?')} ({mesh.get('roles', '?')})",
        "members": f"{members.get('alive', 0)} alive{others} (lattica peers)",
        "issuers": ", ".join(issuers) + (": with it lost, nobody can join" if len(issuers) == 1 else "") or "none",
        "listens": ", ".join(shown(mesh.get("addresses", ()))) or "nowhere: it only dials",
        "relayed": _relayed(mesh.get("relays") or {}),
        "relays": _relays(mesh.get("relays") or {}),
        "metrics": mesh.get("metrics", ""),
    }
    lines = ["", "mesh", *(f"  {name:<8}  {text}" for name, text in rows.items() if text)]
    if side.get("island") and side.get("members"):  # of none, while nobody has been met
        lines.append(
            f"  warning   cut off with {side.get('here', '?')} of {side.get('members', '?')} members; "
            f"missing: {', '.join(side.get('missing', ()))}"
        )
    return lines


def _relayed(relays: Mapping[str, Any]) -> str:
    """By whom others reach this node, if they cannot dial it."""
    found = [
        f"{str(one.get('relay', '?'))[:8]} ({one.get('rtt_ms', '?')} ms)" for one in relays.get("reservations", ())
    ]
    return f"reached by way of {', '.join(found)}, where not directly" if found else ""


def _relays(relays: Mapping[str, Any]) -> str:
    """What it carries for others."""
    serves = relays.get("serves", {})
    if not relays.get("offering") and not serves.get("channels"):
        return ""
    passed = size_text(serves.get("forwarded_bytes_total", 0))
    lost = serves.get("dropped_datagrams_total", 0)
    return (
        f"for others: {serves.get('channels', 0):g} channels, {serves.get('reservations', 0):g} reservations, "
        f"{passed} passed on, {lost:g} datagrams dropped"
    )


def _logs(node: Mapping[str, Any]) -> list[str]:
    """Where what is said and printed lies, and how much of it is kept."""
    if not node.get("data_dir"):
        return []
    path = os.path.join(node["data_dir"], daemon.LOG_FILE)
    size = size_text(os.path.getsize(path)) if os.path.exists(path) else "not there"
    files = f"{FILE_BACKUPS + 1} files of {size_text(FILE_BYTES_MAX)} for each stream"
    return [
        "",
        "logs",
        f"  node      {path} ({size}); beyond {size_text(LOG_BYTES_MAX)} a new one begins, and this is kept",
        f"  workers   {os.path.join(node.get('session_dir', '?'), 'logs')}; at most {files}",
        f"  jobs      {os.path.join(node['data_dir'], 'jobs')}; read them by `lattica logs JOB`",
    ]


def _id(row: Mapping[str, Any], name: str = "id") -> str:
    return _plain(row.get(name, "?"))[:8]


def _section(title: str, rows: list[dict[str, object]]) -> list[str]:
    """A heading with the count, and the table; nothing but the heading if there are none."""
    lines = ["", f"{title} ({len(rows)})"]
    if rows:
        shown = rows[:ROWS_MAX]
        lines += table(list(shown[0]), [list(row.values()) for row in shown])
    if len(rows) > ROWS_MAX:
        lines.append(f"  ... and {len(rows) - ROWS_MAX} more, with --json")
    return lines


def _resources(resources: Mapping[str, Mapping[str, float]]) -> list[str]:
    total, available = resources.get("total", {}), resources.get("available", {})
    rows = []
    for name, amount in total.items():
        words = size_text if name in IN_BYTES else "{:g}".format
        rows.append([name, words(amount - available.get(name, amount)), "of", words(amount)])
    return table(["", "in use", "", "total"], rows)


def _jobs(jobs: Rows, unix_s: float) -> list[dict[str, object]]:
    return [
        {
            "job": job.get("job", "?"),
            "pid": job.get("pid", "?"),
            "state": "ended" if job.get("ended") else "running",
            "for": duration_text(unix_s - job["since"]) if "since" in job else "?",
            "workers": job.get("workers", 0),
            "actors": job.get("actors", 0),
            "namespace": job.get("namespace", ""),
            "script": job.get("script", ""),
        }
        for job in jobs
    ]


def _workers(workers: Rows) -> list[dict[str, object]]:
    return [
        {
            "pid": worker.get("pid", "?"),
            "job": worker.get("job", "?"),
            "state": worker.get("state", "?"),
            "memory": size_text(worker.get("rss_bytes", 0)),
            "runs": worker.get("name", ""),
        }
        for worker in workers
    ]


def _actors(actors: Rows) -> list[dict[str, object]]:
    return [
        {
            "actor": _id(actor, "actor"),
            "class": actor.get("class_name", "?"),
            "name": actor.get("name", ""),
            "namespace": actor.get("namespace", ""),
            "state": actor.get("state", "?"),
            "restarts": actor.get("restarts", 0),
            "pid": actor.get("pid") or "",
            "job": actor.get("job", "?"),
        }
        for actor in actors
    ]


def _spilled(memory: Mapping[str, Any]) -> list[str]:
    """Nothing, where nothing ever was."""
    if not memory.get("spilled_total"):
        return []
    lines = [
        f"  spilled   {memory.get('spilled_objects', 0)} of {size_text(memory.get('spilled_bytes', 0))} are on disk"
    ]
    if trouble := memory.get("spill_trouble"):
        lines.append(f"            no more can go there: {trouble}")
    return lines


def _memory(memory: Mapping[str, Any], workers: Rows) -> list[str]:
    used, quota, backed = (memory.get(name, 0) for name in ("used_bytes", "arena_bytes", "backed_bytes"))
    resident = sum(worker.get("rss_bytes", 0) for worker in workers)
    free = memory.get("available_bytes", 0)
    return [
        f"  objects   {memory.get('objects', 0)} in {size_text(used)} of {size_text(quota)} shared memory",
        f"            {size_text(free)} free, {size_text(backed)} backed by memory of the machine",
        *_spilled(memory),
        f"  workers   {size_text(resident)} resident, shared pages counted in each",
    ]
