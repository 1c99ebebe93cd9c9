"""Why something of a client's waits, in words: a worker that it asked for, or an actor; and where one runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lattica.actors.supervision import State
from lattica.codec import messages as m
from lattica.node.clients import Client

if TYPE_CHECKING:
    from lattica.node.server import Node


def answer(node: Node, client: Client, message: m.Why) -> None:
    """Tell it."""
    client.send(m.State(message.request, {"why": _why(node, client.number, message)}))


def _why(node: Node, client: int, message: m.Why) -> str:
    if message.actor and (words := _of_actor(node, message.actor)):
        return words
    if message.actor and not message.worker:
        return node.far.actors.why(message.actor) if node.far is not None else ""
    if message.object:
        return _of_object(node, message.object)
    if message.worker:
        away = node.far.workers.aways.get(message.worker) if node.far is not None else None
        return f"it is on {away.neighbour.client.name}" if away is not None else ""
    return of_request(node, client, message.of)


def _of_object(node: Node, object_: bytes) -> str:
    ledger = node.store.ledger
    if node.far is not None and ledger.lender(object_) is not None:
        return node.far.objects.why(object_)
    owner = ledger.owner(object_)
    client = node.clients.get(owner) if owner is not None else None
    return f"{client.kind} {client.name or client.number} (pid {client.pid}) owes it" if client is not None else ""


def _of_actor(node: Node, actor: bytes) -> str:
    known = node.actor_desk.supervisor.actors.get(actor)
    if known is None or known.state is State.ALIVE:
        return ""
    does = "it is restarted" if known.incarnation > 1 else "it is started"
    if known.worker is not None:
        return f"{does}, and its constructor runs"
    number = node.actor_desk.request_of(actor)
    words = of_request(node, m.NODE, number) if number is not None else "it pauses between two crashes"
    return f"{does}: {words}" if words else does


def of_request(node: Node, client: int, number: int) -> str:
    """Why a lease that it asked for is not granted; "" if nothing is known of it."""
    if node.group_desk is not None and (words := node.group_desk.asks.why(client, number)):
        return words
    if node.far is not None and (words := node.far.placing.why(client, number)):
        return words
    return in_book(node, client, number)


def in_book(node: Node, client: int, number: int) -> str:
    """The same of what waits in this node's own book."""
    found = node.book.ahead_of(client, number)
    if found is None:
        return ""
    request, ahead = found
    free, total = node.resources.available, node.resources.total.to_dict()
    wants = ", ".join(
        f"{name} ({free.get(name, 0):g} of {total[name]:g} free)" for name in request.resources.plain() if name in total
    )
    others = f"{ahead} other{'s' * (ahead > 1)}"
    line = f"it is queued on this node behind {others}" if ahead else "it is the next in this node's queue"
    return f"{line}, and needs {wants}" if wants else line
