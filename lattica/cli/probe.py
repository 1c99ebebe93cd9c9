"""What `lattica up` and its like want to know of a node, asked on the node's own machine, with or without a node.

Hosts run this by name (`lattica.launch.nodes`), with the lattica that they have: answers are only ever added to.
"""

from __future__ import annotations

import os
import time
from typing import Any

from lattica.cli.client import NodeConnection
from lattica.errors import LatticaError
from lattica.node import membership, paths


def facts(data_dir: str | None = None) -> dict[str, Any]:
    """Plain data. running: whether a node does; trouble: why the rest is missing, "" if it is not."""
    where = paths.data_dir(data_dir)
    found: dict[str, Any] = {"data_dir": where, "running": False, "mesh": "", "issuer": False, "trouble": ""}
    try:
        node = paths.running_node(where)
        if node is None:
            return found | _kept(where)
        found |= {"running": True, "pid": node.pid, "version": node.version, "peer_id": node.node}
        with NodeConnection(node) as connection:
            return found | _said(connection)
    except LatticaError as error:
        return found | {"trouble": str(error)}


def _kept(where: str) -> dict[str, Any]:
    """What the disk says while no node runs."""
    if not os.path.isdir(paths.identity_dir(where)):
        return {}
    lock = paths.lock_data_dir(where)
    try:
        kept = membership.look(where, time.time())
    finally:
        os.close(lock)
    if kept is None:
        return {}
    return {name: kept.state.get(name) for name in ("mesh", "peer_id", "issuer")}


def _said(connection: NodeConnection) -> dict[str, Any]:
    """What the node says of itself and of its mesh."""
    state, self = connection.state("status"), connection.mesh("whoami")
    return {
        **{name: self.get(name) for name in ("mesh", "peer_id", "issuer", "name", "addresses", "labels")},
        "uptime_s": state.get("node", {}).get("uptime_s", 0),
        "resources": state.get("resources", {}),
        "counts": {what: len(state.get(what, ())) for what in ("jobs", "workers", "actors")},
        "peers": [
            {name: row.get(name) for name in ("peer_id", "name", "state", "labels")} for row in connection.mesh("peers")
        ],
    }
