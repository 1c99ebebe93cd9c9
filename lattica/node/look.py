"""What the whole mesh does, as one node can tell: it asks each of the others, and names those that do not answer.

    command ─ list(what) ─► Look ─┬─ look.at(what) ─► every living member: its rows, at most ROWS_MAX
                                  └─ the table, for what stands there

    command ─ logs_of(what) ─► look.find ─► whoever has that actor or worker ─ look.read ─► bytes of its files

Who asks must be a member that submits or administers: rows tell names of others' actors and scripts.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lattica.errors import LatticaError
from lattica.mesh.identity import PeerId, parse_peer, peer_text
from lattica.mesh.membership import State
from lattica.mesh.roles import Role
from lattica.mesh.services import method, service
from lattica.node import roster
from lattica.node.history import TIMELINE
from lattica.node.views import LOOK_S, ROWS_MAX, Views, begin_at, read_at, size_of, wait_of

if TYPE_CHECKING:
    from lattica.node.mesh_desk import MeshDesk
    from lattica.node.server import Node

ANSWER_S = 5.0  # for a node to answer; others are shown without it
AT_ONCE = 32  # nodes that are asked at the same time
LOOKERS = Role.SUBMIT | Role.ADMIN


@service("look")
class LookService:
    """See the module."""

    def __init__(self, look: Look) -> None:
        self._look = look

    @method(role=LOOKERS, idempotent=True)
    async def at(self, what: str) -> list[dict[str, Any]]:
        """This node's rows."""
        return self._look.views.here(what)

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
        return self._look.views.files_of(what)

    @method(role=LOOKERS, idempotent=True, limit=64)
    async def read(self, name: str, offset: int, wait_s: float) -> dict[str, Any]:
        """Bytes of a log file: {data, offset}; offset: -1 for the last TAIL_BYTES."""
        return await self._look.read(name, offset, wait_s)


class Look:
    """See the module."""

    def __init__(self, node: Node, mesh: MeshDesk) -> None:
        self._node, self._mesh, self._peer = node, mesh, mesh.peer
        self.views = Views(node)
        self._peer.serve(LookService(self), offered=False)
        mesh.answers("list", self._list)
        mesh.answers(TIMELINE, self._timeline)
        mesh.answers("memory", self._memory_everywhere)
        mesh.answers("summary", self._summary)
        mesh.answers("logs_find", self._find)
        mesh.answers("logs_read", self._read)

    def __repr__(self) -> str:
        return f"<Look by {self.views!r}>"

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
        return await self._gather(self.views.here(what), "look.at", what)

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
        return {"rows": await came, "store": self.views.store()}

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

    async def read(self, name: str, offset: int, wait_s: float) -> dict[str, Any]:
        """As `LookService.read`."""
        path = self.views.log(name)
        until = asyncio.get_running_loop().time() + wait_of(wait_s)
        while True:
            size = await asyncio.to_thread(size_of, path)
            offset = begin_at(offset, size)
            if offset < size or asyncio.get_running_loop().time() >= until:
                break
            await asyncio.sleep(LOOK_S)
        data = await asyncio.to_thread(read_at, path, offset)
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
            for peer, files in ({self._peer.id: self.views.files_of(one)} | answers).items():
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
