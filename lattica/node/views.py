"""What one node does, in rows: for `lattica list`, `memory`, `top` and `logs`, of its own machine and of others.

It reads the other desks and changes nothing.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lattica.errors import ConfigError, RemoteProtocolError
from lattica.node.clients import WORKER

if TYPE_CHECKING:
    from lattica.node.far_placing import Wish
    from lattica.node.server import Node

ROWS_MAX = 2000  # of one node: some 400 KB
READ_BYTES = 256 << 10
TAIL_BYTES = 1 << 20  # of a file, where its reader begins
WAIT_MAX_S = 10.0  # for news of a file
LOOK_S = 0.2
ID_CHARS_MIN = 6  # of an actor's id
LOG_NAME = r"worker-\d+--?\d+\.(out|err)"


class Views:
    """See the module."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._views: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "tasks": self._tasks,
            "actors": self._actors,
            "workers": node.state.workers,
            "machines": node.state.machine,
            "objects": self._objects,
            "memory": self._memory,
            "drivers": node.state.jobs,
        }

    def __repr__(self) -> str:
        return f"<Views: {', '.join(self._views)}>"

    def here(self, what: str) -> list[dict[str, Any]]:
        """This node's rows of one kind. Raises ConfigError."""
        view = self._views.get(what)
        if view is None:
            raise ConfigError(f"there is no list of {what[:40]!r}", do_next=f"choose from {', '.join(self._views)}")
        return view()[:ROWS_MAX]

    def _tasks(self) -> list[dict[str, Any]]:
        """What runs in workers, and what waits for one. The node is not on the path of calls: it knows leases."""
        node, found = self._node, []
        for lease in node.book.leases.values():
            client = node.clients.get(lease.worker) if lease.worker is not None else None
            if client is None or node.actor_desk.supervisor.actor_of(client.number) is not None:
                continue
            found.append(
                {
                    "name": lease.request.name,
                    "state": "blocked" if lease.blocked else "running",
                    "pid": client.pid,
                    "job": node.environments.root(client.job),
                    "resources": lease.request.resources.to_dict(),
                    "why": "",
                }
            )
        if node.far is None:
            waiting = [(one.name, one.job, one.resources, "waits here") for one in node.book.queued()]
        else:
            waiting = [
                (wish.name, wish.job, wish.demand.resources, wish.trouble or _where(wish))
                for wish in node.far.placing.wishes.values()
            ]
        for name, job, resources, why in waiting:
            found.append(
                {
                    "name": name,
                    "state": "waiting",
                    "pid": 0,
                    "job": node.environments.root(job),
                    "resources": resources.to_dict(),
                    "why": why,
                }
            )
        return found

    def _actors(self) -> list[dict[str, Any]]:
        """Those that this node supervises, and the states of those that were superseded here."""
        offers = self._node.far.detached.superseded_states.view() if self._node.far is not None else []
        return [*self._node.state.actors(), *offers]

    def _objects(self) -> list[dict[str, Any]]:
        """Each that is known here, the largest first. state: "here", "failed", "elsewhere" (another node lends it),
        "promised" (its value is being made), "lost", "unknown"."""
        node = self._node
        found = []
        for view in sorted(node.store.ledger.objects(), key=lambda view: (-view.size, view.object)):
            owner = node.clients.get(view.owner) if view.owner is not None else None
            lender = node.clients.get(view.lender) if view.lender is not None else None
            found.append(
                {
                    "object": view.object.hex(),
                    "state": "elsewhere" if view.state == "promised" and lender is not None else view.state,
                    "size": view.size,
                    "owner": "" if owner is None else owner.name or f"{owner.kind} {owner.number}",
                    "pid": owner.pid if owner is not None else 0,
                    "lender": lender.name if lender is not None else "",
                    "holders": view.holders,
                    "made_at": view.made_at,
                }
            )
        return found

    def _memory(self) -> list[dict[str, Any]]:
        """By the processes that hold them: (kind, pid, held, held_bytes, made, made_bytes, waiting)."""
        found = []
        for view in self._node.store.ledger.views():
            client = self._node.clients.get(view.client)
            found.append(
                {
                    "holder": "the node" if client is None else client.name or f"{client.kind} {client.number}",
                    "pid": client.pid if client is not None else 0,
                    "held": view.held,
                    "held_bytes": view.held_bytes,
                    "made": view.made,
                    "made_bytes": view.made_bytes,
                    "waiting": view.waiting,
                }
            )
        return [row for row in found if row["held"] or row["made"] or row["waiting"]]

    def store(self) -> dict[str, Any]:
        """How full the object store is."""
        found = self._node.state.memory()
        del found["clients"]
        return found

    def files_of(self, what: str) -> list[str]:
        """Log files of workers here that are meant: by pid, or by the id of their actor. Those of the living are named
        before they have printed anything."""
        found = {actor.worker: actor.plan.actor for actor in self._node.actor_desk.supervisor.actors.values()}
        if self._node.far is not None:
            found |= {worker: hosted.actor for worker, hosted in self._node.far.hosting.hosted.items()}
        pids = {int(what)} if what.isdigit() else set()
        for worker, actor in found.items():
            client = self._node.clients.get(worker) if worker is not None else None
            meant = len(what) >= ID_CHARS_MIN and actor.hex().startswith(what.lower())
            if meant and client is not None and client.kind == WORKER and client.pid:
                pids.add(client.pid)
        living = [one for one in self._node.clients.values() if one.kind == WORKER and one.pid in pids]
        silent = {f"worker-{one.number}-{one.pid}.{stream}" for one in living for stream in ("err", "out")}
        try:
            names = os.listdir(os.path.join(self._node.settings.session_dir, "logs"))
        except OSError:
            names = []
        return sorted(silent.union(name for name in names if re.fullmatch(LOG_NAME, name) and _pid_of(name) in pids))

    def log(self, name: str) -> str:
        """The path of a log that `files_of` has named. Raises RemoteProtocolError for another name."""
        if not re.fullmatch(LOG_NAME, name):
            raise RemoteProtocolError(f"{name[:80]!r} is no log of a worker")
        return os.path.join(self._node.settings.session_dir, "logs", name)


def _where(wish: Wish) -> str:
    return "asks another node" if wish.where is not None else "waits here" if wish.local else "waits"


def begin_at(offset: int, size: int) -> int:
    """Where in a log of this size to read, for who asks for `offset`; -1: its last TAIL_BYTES."""
    if offset > size:  # it was full, and begins anew
        return 0
    return offset if offset >= 0 else max(size - TAIL_BYTES, 0)


def wait_of(wait_s: float) -> float:
    """As long as somebody may wait for news, in seconds."""
    return min(max(0.0, wait_s), WAIT_MAX_S)  # in this order: NaN is 0


def _pid_of(name: str) -> int:
    return int(name.partition(".")[0].rpartition("-")[2])


def size_of(path: str) -> int:
    """Bytes of a log; 0 if there is none."""
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except OSError:
        return 0


def read_at(path: str, at: int) -> bytes:
    """At most READ_BYTES of a log, and none of a link: tasks may write in this folder, and a link could lead to what
    they do not see."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.pread(fd, READ_BYTES, at) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    except OSError:
        return b""
    finally:
        os.close(fd)
