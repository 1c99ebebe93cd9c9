"""What ran on this machine and when, for `timeline()`: what living workers have noted, and the last of the dead.

A row is a worker: {pid, job, worker (its number), events (bytes, for `local.events.parse`)}. The node reads no event.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from lattica.codec import messages as m

if TYPE_CHECKING:
    from lattica.node.clients import Client
    from lattica.node.server import Node
    from lattica.node.workers import Process

KEPT_BYTES = 4 << 20  # of workers that have ended: some 90,000 events
TOLD_BYTES = 24 << 20  # of one node, the newest workers first
TIMELINE = "timeline"


class History:
    """See the module."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._past: deque[dict[str, Any]] = deque()
        self._past_bytes = 0

    def __repr__(self) -> str:
        return f"<History: {len(self._past)} ended workers, {self._past_bytes} bytes>"

    def ended(self, process: Process) -> None:
        """A worker is dead; its page is still there."""
        row = _row(process)
        if not row["events"]:
            return
        self._past.append(row)
        self._past_bytes += len(row["events"])
        while self._past_bytes > KEPT_BYTES:
            self._past_bytes -= len(self._past.popleft()["events"])

    def rows(self) -> list[dict[str, Any]]:
        """A row for each worker, the newest first."""
        living = [_row(process) for process in self._node.workers.processes.values()]
        found, room = [], TOLD_BYTES
        for row in sorted([*self._past, *living], key=lambda row: -row["worker"]):
            room -= len(row["events"])
            if room < 0:
                break
            if row["events"]:
                found.append(row)
        return found

    def request(self, client: Client, message: m.StateRequest) -> None:
        """A program's `timeline()`: all nodes of the mesh are asked, if there is one."""
        if self._node.mesh is not None:
            self._node.mesh.show(client, message.request, TIMELINE)
        else:
            here = {"node": self._node.settings.node.hex(), "node_name": ""}
            client.send(m.State(message.request, {"rows": [here | row for row in self.rows()], "silent": []}))


def _row(process: Process) -> dict[str, Any]:
    return {"pid": process.pid, "job": process.job, "worker": process.client, "events": process.page.ran()}
