"""What a node without a mesh answers to commands: of itself what `look` answers of a whole mesh, in the same shape.

It serves one program on the loop of `node.loop`, so it waits by timers; a node imports this when a command asks.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lattica.codec import messages as m
from lattica.errors import ConfigError, InternalError, LatticaError
from lattica.node.clients import Client
from lattica.node.history import TIMELINE
from lattica.node.views import LOOK_S, Views, begin_at, read_at, size_of, wait_of

if TYPE_CHECKING:
    from lattica.node.server import Node

log = logging.getLogger(__name__)
Rows = list[dict[str, Any]]
Answer = Callable[[Any], None]


class LookHere:
    """See the module."""

    def __init__(self, node: Node) -> None:
        self._node, self._views = node, Views(node)
        self._where = {"node": node.settings.node.hex(), "node_name": socket.gethostname()}
        self._verbs: dict[str, Callable[[Mapping[str, Any], Answer], None]] = {
            "list": self._list,
            TIMELINE: lambda _, answer: answer(self._all(node.history.rows())),
            "memory": self._memory,
            "logs_find": self._find,
            "logs_read": self._read,
        }

    def __repr__(self) -> str:
        return f"<LookHere: {', '.join(self._verbs)}>"

    def request(self, client: Client, message: m.MeshRequest) -> None:
        """Answer it, now or later."""

        def answer(data: Any) -> None:
            if not self._node.closing:
                client.send(m.MeshAnswer(message.request, data))

        try:
            verb = self._verbs.get(message.verb)
            if verb is None:
                raise _no_mesh()
            verb(message.data, answer)
        except LatticaError as error:
            client.send(m.MeshAnswer(message.request, None, dict(error.to_data())))
        except Exception as error:  # a bug of ours: the command must hear of it, and the program goes on
            log.exception("%s of a command", message.verb)
            told = InternalError(f"{message.verb} failed: {type(error).__name__}")
            client.send(m.MeshAnswer(message.request, None, dict(told.to_data())))

    def _all(self, rows: Rows) -> dict[str, Any]:
        return {"rows": [self._where | row for row in rows], "silent": []}

    def _list(self, data: Mapping[str, Any], answer: Answer) -> None:
        what = str(data.get("what", ""))
        if what == "nodes":
            raise _no_mesh()
        answer(self._all(self._views.here(what)))

    def _memory(self, _: Mapping[str, Any], answer: Answer) -> None:
        def told(rows: Rows) -> None:
            copies = [row | {"copies": int(row.get("state") in ("here", "spilled"))} for row in rows]
            answer(self._all(copies) | {"stores": [self._where | self._views.store()]})

        self._node.refs.ask(told)

    def _find(self, data: Mapping[str, Any], answer: Answer) -> None:
        what = str(data.get("what", ""))
        actors = self._views.here("actors")
        meant = [row["actor"] for row in actors if row["name"] == what and row["state"] != "DEAD"] or [what]
        answer([self._where | {"file": file} for one in dict.fromkeys(meant) for file in self._views.files_of(one)])

    def _read(self, data: Mapping[str, Any], answer: Answer) -> None:
        path, wished = self._views.log(str(data["file"])), int(data.get("offset", -1))
        until = self._node.now() + wait_of(float(data.get("wait_s", 0.0)))

        def look(offset: int) -> None:
            size = size_of(path)
            offset = begin_at(offset, size)
            if offset >= size and self._node.now() < until:
                self._node.loop.call_later(LOOK_S, look, offset)
                return
            found = read_at(path, offset)
            answer({"data": found, "offset": offset + len(found)})

        look(wished)


def _no_mesh() -> ConfigError:
    return ConfigError(
        "this node serves the program that has begun it, and is in no mesh",
        do_next="`lattica start` begins one that is, which programs attach to",
    )
