"""Who holds which object on this machine: what processes say when they are asked, and what the ledger knows besides."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from lattica.node.clients import DRIVER, WORKER, Client
from lattica.node.proxies import Proxy

if TYPE_CHECKING:
    from lattica.node.server import Node

log = logging.getLogger(__name__)
ANSWER_S = 2.0  # for all processes to say what they have: who is slower is left out
ROWS_MAX = 10_000  # of one node: 2 MB
Rows = list[dict[str, Any]]


class RefsDesk:
    """Asks all processes of this machine at once, for whoever wants to know."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._asks: dict[int, tuple[dict[int, Rows], set[int], Callable[[Rows], object]]] = {}
        self._requests = 0

    def __repr__(self) -> str:
        return f"<RefsDesk: {len(self._asks)} asked>"

    def ask(self, then: Callable[[Rows], object]) -> None:
        """Have `then` given the rows: object, size, state, by, holder, pid, job, made_at."""
        self._requests += 1
        request = self._requests
        asked = {
            number
            for number, client in self._node.clients.items()
            if client.kind in (DRIVER, WORKER) and client.pid and not isinstance(client.wire, Proxy)
        }
        self._asks[request] = {}, asked, then
        for number in sorted(asked):
            self._node.tell(number, m.RefsWanted(request))
        self._node.loop.call_later(ANSWER_S if asked else 0.0, self._end, request)

    def told(self, client: Client, message: m.Refs) -> None:
        """A process has answered."""
        ask = self._asks.get(message.request)
        if ask is None or client.number not in ask[1]:
            return
        try:
            rows = msgspec.msgpack.decode(message.rows)
            ask[0][client.number] = [dict(row) for row in rows]
        except (msgspec.DecodeError, TypeError, ValueError) as error:
            raise RemoteProtocolError(f"it said what is no list of refs: {error}") from error
        ask[1].discard(client.number)
        if not ask[1]:
            self._end(message.request)

    def _end(self, request: int) -> None:
        ask = self._asks.pop(request, None)
        if ask is not None and not self._node.closing:
            ask[2](self._rows(ask[0]))

    def _rows(self, said: dict[int, Rows]) -> Rows:
        ledger = self._node.store.ledger
        views = {view.object: view for view in ledger.objects()}
        rows, seen = Rows(), set[bytes]()
        for number, found in said.items():
            client = self._node.clients.get(number)
            for row in found if client is not None else ():
                assert client is not None
                object_ = bytes(row.get("object", b""))
                view = views.get(object_)
                seen.add(object_)
                state = view.state if view is not None else ""
                if state == "promised" and view is not None and view.lender is not None:
                    state = "elsewhere"
                rows.append(
                    self._row(
                        object_, row.get("size") or (view.size if view else 0), row.get("state") or state or "here"
                    )
                    | {"by": str(row.get("by", "ref")), "holder": _name(client), "pid": client.pid, "job": client.job}
                    | {"made_at": str(row.get("made_at", "")) or (view.made_at if view is not None else "")}
                )
        for object_, view in views.items():
            if object_ not in seen and view.state in ("here", "spilled", "failed"):
                holders = [self._node.clients.get(each) for each in ledger.holders(object_)]
                names = sorted({_name(each) for each in holders if each is not None})
                holder = ", ".join(names[:3]) or ("the node" if holders else "an object that contains it")
                rows.append(
                    self._row(object_, view.size, view.state)
                    | {"by": "hold", "holder": holder, "pid": 0, "job": 0, "made_at": view.made_at}
                )
        return sorted(rows, key=lambda row: -row["size"])[:ROWS_MAX]

    def _row(self, object_: bytes, size: int, state: str) -> dict[str, Any]:
        owner = self._node.store.ledger.owner(object_)
        client = self._node.clients.get(owner) if owner is not None else None
        made_by = _name(client) if client is not None else ""
        return {"object": object_.hex(), "size": size, "state": state, "made_by": made_by}


def _name(client: Client) -> str:
    return client.name or f"{client.kind} {client.number}"
