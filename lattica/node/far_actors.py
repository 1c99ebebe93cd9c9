"""Actors of other nodes, as processes here meet them; and ours, as theirs do.

An actor is supervised by the node that made it (its owner). A process elsewhere that was given a handle asks its own
node for the actor, and that one the node it has the handle from, which supervises it or asks on. The answer says where
the present incarnation lives, and the asking node connects its process with that worker, wherever it is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from lattica.codec import far
from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from lattica.mesh.identity import PeerId
from lattica.node.clients import NODE, WORKER, Client

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk, Hosted, Neighbour

log = logging.getLogger(__name__)
UNKNOWN_TRIES = 40
UNKNOWN_S = 0.05
"""A process may ask for an actor before its node has read from another process that this one was given it."""
_down = msgspec.msgpack.Decoder(m.ActorDown)


class Foreign(msgspec.Struct, eq=False):
    """An actor that another node supervises, or knows who does."""

    lender: Neighbour
    callers: dict[int, None] = {}  # clients that want to be connected
    at: far.ActorAt | None = None


class FarActors:
    """See the module."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk, self._node = desk, desk.node
        self._foreign: dict[bytes, Foreign] = {}

    def __repr__(self) -> str:
        return f"<FarActors: {len(self._foreign)} of other nodes>"

    # -- theirs

    def connect(self, client: Client, actor: bytes, tries: int = 0) -> None:
        """Connect a client with an actor that is not ours, now and after each restart."""
        node = self._node
        if client.number not in node.clients:
            return
        found = self._foreign.get(actor)
        if found is None:
            lender = node.store.ledger.lender(actor)
            neighbour = next((n for n in self._desk.neighbours.values() if n.client.number == lender), None)
            if neighbour is None:
                if tries < UNKNOWN_TRIES:
                    node.loop.call_later(UNKNOWN_S, self.connect, client, actor, tries + 1)
                    return
                client.send(m.ActorDown(actor, 0, False, "no node that is connected knows this actor"))
                return
            found = self._foreign[actor] = Foreign(neighbour)
        if not found.callers:
            found.lender.link.send(far.ActorWanted(actor))
        elif found.at is not None:
            self._join(client, found, found.at)
        found.callers[client.number] = None

    def at(self, neighbour: Neighbour, message: far.ActorAt) -> None:
        """An incarnation lives there."""
        found = self._foreign.get(message.actor)
        if found is None or found.lender is not neighbour:
            return
        host = PeerId(message.host) if message.host else self._desk.me
        found.at = far.ActorAt(message.actor, message.incarnation, host, message.worker)
        for number in list(found.callers):
            client = self._node.clients.get(number)
            if client is None:
                found.callers.pop(number, None)
            else:
                self._join(client, found, found.at)

    def _join(self, client: Client, found: Foreign, at: far.ActorAt) -> None:
        desk = self._desk
        if client.kind == NODE:
            self.tell_where(client, at.actor, at.incarnation, at.host, at.worker)
            return
        if at.host == desk.me:
            worker = desk.node.clients.get(at.worker)
            if worker is None or worker.kind != WORKER:
                return  # dead: its owner says so soon
            fd = desk.node.connect(client, at.worker)
            client.send(m.ActorConnected(at.actor, at.incarnation, at.worker, worker.pid), fd)
            return
        away = desk.away(desk.neighbour(PeerId(at.host)), at.worker)
        fd = desk.connect(client, away.client.number, at.actor, at.incarnation)
        client.send(m.ActorConnected(at.actor, at.incarnation, away.client.number, away.pid, True), fd)

    def is_down(self, neighbour: Neighbour, message: far.ActorIsDown) -> None:
        """An incarnation has ended."""
        try:
            down = _down.decode(message.message)
        except msgspec.DecodeError as error:
            raise RemoteProtocolError(f"word of an actor: {error}") from error
        found = self._foreign.get(down.actor)
        if found is None or found.lender is not neighbour:
            return
        found.at = None
        for number in found.callers:
            self._node.tell(number, down)
        if not down.restarting:
            del self._foreign[down.actor]

    def kill(self, message: m.ActorKill) -> bool:
        """Whether the actor is another node's, which is told."""
        lender = self._node.store.ledger.lender(message.actor)
        neighbour = next((n for n in self._desk.neighbours.values() if n.client.number == lender), None)
        if neighbour is None:
            return False
        neighbour.link.send(far.ActorEnd(message.actor, message.no_restart))
        return True

    def client_gone(self, client: int) -> None:
        """It waits for no actor any more."""
        for found in self._foreign.values():
            found.callers.pop(client, None)

    def unborrowed(self, actor: bytes) -> None:
        """Nobody here has a handle of it any more."""
        self._foreign.pop(actor, None)

    def parted(self, neighbour: Neighbour, how: str) -> None:
        """A node is gone, and with it the actors that it supervised."""
        for actor, found in list(self._foreign.items()):
            if found.lender is neighbour:
                del self._foreign[actor]
                incarnation = found.at.incarnation if found.at is not None else 0
                for number in found.callers:
                    self._node.tell(number, m.ActorDown(actor, incarnation, False, f"its owner is gone: {how}"))

    # -- ours

    def wanted(self, neighbour: Neighbour, message: far.ActorWanted) -> None:
        """They ask for an actor: one of ours, or one that we know from somebody else."""
        self._node.actor_desk.connect(neighbour.client, m.ActorConnect(message.actor))

    def tell_where(self, client: Client, actor: bytes, incarnation: int, host: bytes, worker: int) -> None:
        """Tell another node where an incarnation lives."""
        neighbour = next((n for n in self._desk.neighbours.values() if n.client is client), None)
        if neighbour is not None:
            there = b"" if host == neighbour.peer else host
            neighbour.link.send(far.ActorAt(actor, incarnation, there, worker))

    def place_of(self, worker: int) -> tuple[bytes, int]:
        """(host, its number for the worker) of a worker that is an actor of ours."""
        away = self._desk.aways.get(worker)
        return (self._desk.me, worker) if away is None else (away.neighbour.peer, away.theirs)

    def end(self, neighbour: Neighbour, message: far.ActorEnd) -> None:
        """They want it killed."""
        self._node.actor_desk.kill(neighbour.client, m.ActorKill(message.actor, message.no_restart))

    def lives_in(self, worker: int, actor: bytes, incarnation: int, hosted: Hosted | None) -> bool:
        """Whether that incarnation is in that worker of ours."""
        if hosted is not None:
            return hosted.actor == actor and hosted.incarnation == incarnation
        ours = self._node.actor_desk.supervisor.actor_of(worker)
        return ours is not None and ours.plan.actor == actor and ours.incarnation == incarnation
