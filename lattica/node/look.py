"""What the whole mesh does, as one node can tell: it asks each of the others, and names those that do not answer.

    command ─ list(what) ─► Look ─┬─ look.at(what) ─► every living member: its rows, at most ROWS_MAX
                                  └─ the table, for what stands there

    command ─ logs_of(what) ─► look.find ─► whoever has that actor or worker ─ look.read ─► bytes of its files

Who asks must be a member that submits or administers: rows tell names of others' actors and scripts.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lattica.errors import ConfigError, LatticaError, RemoteProtocolError
from lattica.mesh.identity import PeerId, parse_peer, peer_text
from lattica.mesh.membership import State
from lattica.mesh.roles import Role
from lattica.mesh.services import method, service
from lattica.node import roster
from lattica.node.clients import WORKER
from lattica.node.history import TIMELINE

if TYPE_CHECKING:
    from lattica.node.mesh_desk import MeshDesk
    from lattica.node.server import Node

ROWS_MAX = 2000  # of one node: some 400 KB
ANSWER_S = 5.0  # for a node to answer; others are shown without it
AT_ONCE = 32  # nodes that are asked at the same time
READ_BYTES = 256 << 10
TAIL_BYTES = 1 << 20  # of a file, where its reader begins
WAIT_MAX_S = 10.0  # for news of a file
LOOK_S = 0.2
LOOKERS = Role.SUBMIT | Role.ADMIN
ID_CHARS_MIN = 6  # of an actor's id
LOG_NAME = r"worker-\d+--?\d+\.(out|err)"


@service("look")
class LookService:
    """See the module."""

    def __init__(self, look: Look) -> None:
        self._look = look

    @method(role=LOOKERS, idempotent=True)
    async def at(self, what: str) -> list[dict[str, Any]]:
        """This node's rows."""
        return self._look.here(what)

    @method(role=LOOKERS, idempotent=True)
    async def timeline(self) -> list[dict[str, Any]]:
        """What ran here, as of `history`."""
        return self._look.ran()

    @method(role=LOOKERS, idempotent=True)
    async def memory(self) -> dict[str, Any]:
        """Who holds which object here, and how full the store is: {rows, store}."""
        return await self._look.refs()

    @method(role=LOOKERS, idempotent=True)
    async def find(self, what: str) -> list[str]:
        """Names of log files here of what is meant."""
        return self._look.files_of(what)

    @method(role=LOOKERS, idempotent=True, limit=64)
    async def read(self, name: str, offset: int, wait_s: float) -> dict[str, Any]:
        """Bytes of a log file: {data, offset}; offset: -1 for the last TAIL_BYTES."""
        return await self._look.read(name, offset, wait_s)


class Look:
    """See the module."""

    def __init__(self, node: Node, mesh: MeshDesk) -> None:
        self._node, self._mesh, self._peer = node, mesh, mesh.peer
        self._views: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "tasks": self._tasks,
            "actors": self._actors,
            "workers": node.state.workers,
            "machines": node.state.machine,
            "objects": self._objects,
            "memory": self._memory,
            "drivers": node.state.jobs,
        }
        self._peer.serve(LookService(self), offered=False)
        mesh.answers("list", self._list)
        mesh.answers(TIMELINE, self._timeline)
        mesh.answers("memory", self._memory_everywhere)
        mesh.answers("summary", self._summary)
        mesh.answers("logs_find", self._find)
        mesh.answers("logs_read", self._read)

    def __repr__(self) -> str:
        return f"<Look at {', '.join(self._views)}>"

    # -- here

    def here(self, what: str) -> list[dict[str, Any]]:
        """This node's rows. Raises ConfigError."""
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
        for wish in node.far.placing.wishes.values() if node.far is not None else ():
            where = "asks another node" if wish.where is not None else "waits here" if wish.local else "waits"
            found.append(
                {
                    "name": wish.name,
                    "state": "waiting",
                    "pid": 0,
                    "job": node.environments.root(wish.job),
                    "resources": wish.demand.resources.to_dict(),
                    "why": wish.trouble or where,
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

    async def _summary(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """The mesh in short, as this node knows it; addresses: where this node listens."""
        state, far = self._peer.steward.state(), self._node.far
        return {
            "mesh": state.get("mesh", ""),
            "name": state.get("name", ""),
            "roles": state.get("roles", ""),
            "addresses": state.get("addresses", []),
            "members": dict(Counter(str(row.get("state")) for row in roster.members(self._peer))),
            "issuers": list(self._peer.steward.issuers()),
            "side": far.deciding.side() if far is not None else {},
            "relays": self._peer.relays.status() if self._peer.relays is not None else {},
            "metrics": self._node.metrics_at,
        }

    # -- everywhere

    def _others(self) -> dict[PeerId, str]:
        """Living members but for us, and their names."""
        community = self._peer.gossip.community
        living = [peer for peer, state in community.states().items() if state in (State.ALIVE, State.SUSPECT)]
        infos = {peer: community.node(peer) for peer in living if peer != self._peer.id}
        return {peer: info.name if info is not None else "" for peer, info in infos.items()}

    async def _ask_all(self, method: str, *words: str) -> tuple[dict[PeerId, Any], list[dict[str, str]]]:
        """(answers, who did not and why)."""
        gate, answers, silent = asyncio.Semaphore(AT_ONCE), {}, []

        async def ask(peer: PeerId, name: str) -> None:
            async with gate:
                try:
                    answers[peer] = await self._peer.call(peer, method, *words, timeout_s=ANSWER_S, idempotent=True)
                except (LatticaError, TimeoutError) as error:
                    why = error.message if isinstance(error, LatticaError) else f"no answer within {ANSWER_S:g} s"
                    silent.append({"peer_id": peer_text(peer), "name": name, "why": why})

        await asyncio.gather(*(ask(peer, name) for peer, name in self._others().items()))
        return answers, silent

    async def _list(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"what": ...}. {rows: each with "node" and "node_name", silent: [{peer_id, name, why}]}. Nodes in the
        order of their names, so that whoever asks sees the same."""
        what = str(data.get("what", ""))
        if what == "nodes":
            return {"rows": roster.members(self._peer), "silent": []}
        return await self._gather(self.here(what), "look.at", what)

    async def _gather(self, mine: list[dict[str, Any]], method: str, *words: str) -> dict[str, Any]:
        """{rows, silent}: ours and what the others answer."""
        answers, silent = await self._ask_all(method, *words)
        names = self._others() | {self._peer.id: self._peer.name}
        rows = []
        found_at = {self._peer.id: mine} | answers
        for peer in sorted(found_at, key=lambda peer: (names.get(peer, ""), peer)):
            found = found_at[peer]
            if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
                silent.append({"peer_id": peer_text(peer), "name": names.get(peer, ""), "why": "it answered nonsense"})
                continue
            where = {"node": peer_text(peer), "node_name": names.get(peer, "")}
            rows += [where | row for row in found[:ROWS_MAX]]
        return {"rows": rows, "silent": silent}

    def ran(self) -> list[dict[str, Any]]:
        """What ran here."""
        return self._node.history.rows()

    async def _timeline(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """{rows: as of `history`, each with "node" and "node_name", silent}."""
        return await self._gather(self.ran(), "look.timeline")

    async def refs(self) -> dict[str, Any]:
        """As `LookService.memory`."""
        came: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()

        def told(rows: list[dict[str, Any]]) -> None:
            if not came.done():
                came.set_result(rows)

        self._node.refs.ask(told)
        rows = await came
        store = self._node.state.memory()
        del store["clients"]
        return {"rows": rows, "store": store}

    async def _memory_everywhere(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """{rows: who holds which object, with "node", "node_name" and "copies" (nodes that have its bytes); stores:
        each with "node", "node_name"; silent: as of `_list`}."""
        mine, (answers, silent) = await asyncio.gather(self.refs(), self._ask_all("look.memory"))
        names = self._others() | {self._peer.id: self._peer.name}
        rows, stores = [], []
        copies = dict[str, set[PeerId]]()
        found_at = {self._peer.id: mine} | answers
        for peer in sorted(found_at, key=lambda peer: (names.get(peer, ""), peer)):
            where = {"node": peer_text(peer), "node_name": names.get(peer, "")}
            found = found_at[peer]
            try:
                theirs = [where | row for row in found["rows"]]
                stores.append(where | found["store"])
            except (TypeError, KeyError):
                silent.append({"peer_id": peer_text(peer), "name": names.get(peer, ""), "why": "it answered nonsense"})
                continue
            rows += theirs
            for row in theirs:
                if row.get("state") in ("here", "spilled"):
                    copies.setdefault(str(row.get("object")), set()).add(peer)
        rows = [row | {"copies": len(copies.get(str(row.get("object")), ()))} for row in rows]
        return {"rows": rows, "stores": stores, "silent": silent}

    # -- logs of actors and workers

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

    async def read(self, name: str, offset: int, wait_s: float) -> dict[str, Any]:
        """As `LookService.read`."""
        if not re.fullmatch(LOG_NAME, name):
            raise RemoteProtocolError(f"{name[:80]!r} is no log of a worker")
        path = os.path.join(self._node.settings.session_dir, "logs", name)
        until = asyncio.get_running_loop().time() + min(max(0.0, wait_s), WAIT_MAX_S)  # in this order: NaN is 0
        while True:
            size = await asyncio.to_thread(_size, path)
            if offset > size:  # it was full, and begins anew
                offset = 0
            if offset < 0:
                offset = max(size - TAIL_BYTES, 0)
            if offset < size or asyncio.get_running_loop().time() >= until:
                break
            await asyncio.sleep(LOOK_S)
        data = await asyncio.to_thread(_read, path, offset)
        return {"data": data, "offset": offset + len(data)}

    async def _find(self, data: Mapping[str, Any]) -> list[dict[str, str]]:
        """data: {"what": pid, or id or name of an actor}. [{node, node_name, file}]."""
        what = str(data.get("what", ""))
        actors = (await self._list({"what": "actors"}))["rows"]
        meant = [row["actor"] for row in actors if row["name"] == what and row["state"] != "DEAD"] or [what]
        names = self._others() | {self._peer.id: self._peer.name}
        found = []
        for one in dict.fromkeys(meant):
            answers, _ = await self._ask_all("look.find", one)
            for peer, files in ({self._peer.id: self.files_of(one)} | answers).items():
                where = {"node": peer_text(peer), "node_name": names.get(peer, "")}
                found += [where | {"file": str(file)} for file in files]
        return found

    async def _read(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """data: {"node": id, "file": name, "offset": number, "wait_s": seconds}."""
        peer = parse_peer(str(data.get("node", "")))
        name, offset, wait_s = str(data["file"]), int(data.get("offset", -1)), float(data.get("wait_s", 0.0))
        if peer == self._peer.id:
            return await self.read(name, offset, wait_s)
        found = await self._peer.call(
            peer, "look.read", name, offset, wait_s, timeout_s=wait_s + ANSWER_S, idempotent=True
        )
        return {"data": bytes(found["data"]), "offset": int(found["offset"])}


def _pid_of(name: str) -> int:
    return int(name.partition(".")[0].rpartition("-")[2])


def _size(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except OSError:
        return 0


def _read(path: str, at: int) -> bytes:
    """Tasks may write in this folder: a link there could lead to what the node sees and they do not."""
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
