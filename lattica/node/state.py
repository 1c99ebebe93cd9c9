"""What the node tells about itself: plain data for `lattica status`, `nodes()` and `available_resources()`."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from lattica._version import __version__
from lattica.actors.supervision import State
from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from lattica.node.clients import Client
from lattica.node.history import TIMELINE
from lattica.node.memory_readings import cpu_seconds, machine_cpu_seconds, resident_bytes
from lattica.scheduler.resources import UNITS

if TYPE_CHECKING:
    from lattica.node.server import Node

OBJECT_STORE = "object_store_memory"


class StateDesk:
    """Answers `StateRequest`. It reads the other desks and changes nothing."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._views: dict[str, Callable[[], object]] = {
            "status": self.status,
            "resources": self.resources,
            "cluster": self.cluster,
            "nodes": self.nodes,
            "jobs": self.jobs,
            "workers": self.workers,
            "actors": self.actors,
            "names": self.names,
            "memory": self.memory,
            "protection": node.workers.zygotes.protection,
        }

    def request(self, client: Client, message: m.StateRequest) -> None:
        """Answer with one of the views."""
        if message.what == TIMELINE:
            return self._node.history.request(client, message)
        view = self._views.get(message.what)
        if view is None:
            raise RemoteProtocolError(f"it asked for {message.what[:40]!r}, which is none of {', '.join(self._views)}")
        return client.send(m.State(message.request, view()))

    def status(self) -> dict[str, Any]:
        """All of it, as `lattica status --json` prints it."""
        node = self._node
        about = {
            "id": node.settings.node.hex(),
            "peer_id": node.mesh.peer_id if node.mesh is not None else "",
            "pid": os.getpid(),
            "version": __version__,
            "uptime_s": round(time() - node.started_at, 1),
            "data_dir": node.settings.data_dir,
            "session_dir": node.settings.session_dir,
            "python": sys.executable,
        }
        return {
            "node": about,
            "resources": self.resources(),
            "jobs": self.jobs(),
            "workers": self.workers(),
            "actors": self.actors(),
            "memory": self.memory(),
            "key_protection": self._node.workers.zygotes.protection(),
        }

    def resources(self) -> dict[str, dict[str, float]]:
        """What there is and what is free, by Ray's names. Shared memory counts as free where nobody has a span."""
        node, spans = self._node, self._node.store.spans
        total = {**node.resources.total.to_dict(), OBJECT_STORE: float(spans.capacity_bytes)}
        available = {**node.resources.available, OBJECT_STORE: float(spans.free_bytes)}
        return {"total": total, "available": available}

    def cluster(self) -> dict[str, dict[str, float]]:
        """The same of all nodes that tasks of this one may run on. What is free elsewhere is what those last said; of
        shared memory only this machine's is known."""
        found = self.resources()
        if self._node.far is not None:
            for peer, view in self._node.far.placer.views().items():
                if peer == self._node.far.me:
                    continue
                for name, units in view.totals.units.items():
                    free = units - min(view.load.taken.get(name, 0), units)
                    for of, amount in (("total", units), ("available", free)):
                        found[of][name] = found[of].get(name, 0.0) + amount / UNITS
        return found

    def nodes(self) -> list[dict[str, Any]]:
        """All machines of the mesh that did not leave, this one first, in the shape of `ray.nodes()`."""
        node = self._node
        mine = {
            "NodeID": node.settings.node.hex(),
            "Alive": True,
            "NodeManagerAddress": "127.0.0.1",
            "NodeManagerHostname": socket.gethostname(),
            "NodeName": node.mesh.peer.name if node.mesh is not None else socket.gethostname(),
            "Resources": self.resources()["total"],
            "Labels": dict(node.settings.labels),
        }
        return [mine, *(self._others() if node.mesh is not None else ())]

    def _others(self) -> list[dict[str, Any]]:
        from lattica.mesh.identity import parse_peer
        from lattica.node import roster

        assert self._node.mesh is not None, "only a node of a mesh has others"
        return [
            {
                "NodeID": parse_peer(row["peer_id"]).hex(),
                "Alive": row["state"] in ("alive", "suspect"),
                "NodeManagerAddress": next(iter(row["addresses"]), "").rpartition(":")[0],
                "NodeManagerHostname": row["name"],
                "NodeName": row["name"],
                "Resources": row["resources"],
                "Labels": row["labels"],
            }
            for row in roster.members(self._node.mesh.peer)
            if not row["this_node"] and row["state"] != "left"
        ]

    def jobs(self) -> list[dict[str, Any]]:
        """Sessions of drivers, those that ended too while detached actors of theirs live."""
        node = self._node
        return [
            {
                "job": job.number,
                "pid": job.pid,
                "namespace": job.namespace,
                "since": job.since,
                "script": job.script,
                "ended": job.ended,
                "workers": len(node.job_desk.workers_of(job.number)),
                "actors": sum(
                    len(node.actor_desk.supervisor.living_in(number)) for number in node.environments.family(job.number)
                ),
            }
            for job in node.jobs.values()
            if not job.root
        ]

    def names(self) -> list[tuple[str, str]]:
        """(namespace, name) of the actors that have one, on any machine of the mesh."""
        found = set(self._node.actor_desk.supervisor.names)
        if self._node.far is not None:
            found.update(self._node.far.deciding.names_borne())
        return sorted(found)

    def workers(self) -> list[dict[str, Any]]:
        """Worker processes, with what each runs."""
        found = []
        for worker in self._node.pool.workers.values():
            client = self._node.clients.get(worker.client)
            if client is None:
                continue
            lease = self._node.book.lease_of(worker.client)
            found.append(
                {
                    "client": worker.client,
                    "pid": client.pid,
                    "state": "blocked" if lease is not None and lease.blocked else worker.use.value,
                    "job": self._node.environments.root(worker.job),
                    "name": client.name if lease is not None else "",
                    "rss_bytes": resident_bytes(client.pid) if client.pid else 0,
                    "cpu_s": cpu_seconds(client.pid) if client.pid else 0.0,
                    "ran": self._node.workers.processes[worker.client].page.total,
                }
            )
        return found

    def machine(self) -> list[dict[str, Any]]:
        """This machine in one row: what of it is used, by whomever, and what of the node's resources. CPU times in
        seconds since the machine was started, `clock_s` too."""
        node = self._node
        memory, store, resources = node.memory.reading(), node.store.spans, self.resources()
        wishes = node.far.placing.wishes.values() if node.far is not None else ()
        return [
            {
                "cpus": os.cpu_count() or 1,
                "cpu_s": machine_cpu_seconds(),
                "clock_s": monotonic(),
                "memory_bytes": memory.used,
                "memory_total": memory.total,
                "store_bytes": store.used_bytes,
                "store_total": store.capacity_bytes,
                "total": resources["total"],
                "available": resources["available"],
                "waiting": len(wishes),
            }
        ]

    def actors(self) -> list[dict[str, Any]]:
        """Actors, the dead among them while somebody holds a handle."""
        found = []
        for actor in self._node.actor_desk.supervisor.actors.values():
            client = self._node.clients.get(actor.worker) if actor.worker is not None else None
            found.append(
                {
                    "actor": actor.plan.actor.hex(),
                    "class_name": actor.plan.class_name,
                    "name": actor.plan.name,
                    "namespace": actor.plan.namespace,
                    "state": actor.state.value,
                    "incarnation": actor.incarnation,
                    "restarts": actor.restarts,
                    "pid": client.pid if client is not None and actor.state is not State.DEAD else 0,
                    "job": self._node.environments.root(actor.plan.job),
                    "how": actor.end.how if actor.end is not None else "",
                }
            )
        return found

    def memory(self) -> dict[str, Any]:
        """The object store: sizes in bytes."""
        store = self._node.store
        views = store.ledger.views()
        clients = [
            {
                "client": view.client,
                "name": self._node.clients[view.client].name if view.client in self._node.clients else "node",
                "held": view.held,
                "held_bytes": view.held_bytes,
                "made": view.made,
                "made_bytes": view.made_bytes,
                "waiting": view.waiting,
            }
            for view in views
        ]
        return {
            "arena_bytes": store.spans.capacity_bytes,
            "used_bytes": store.spans.used_bytes,
            "backed_bytes": store.spans.backed_bytes,
            "objects": sum(view.made for view in views),
            "clients": clients,
            "available_bytes": store.spans.free_bytes,
            **(store.spill.view() if store.spill is not None else {"spilled_objects": 0, "spilled_bytes": 0}),
        }
