"""Actors of other nodes, as processes here meet them; and ours, as theirs do.

An actor is supervised by the node that made it (its owner). A process elsewhere that was given a handle asks its own
node for the actor, and that one the node it has the handle from, which supervises it or asks on. The answer says where
the present incarnation lives, and the asking node connects its process with that worker, wherever it is.

A detached actor roves: its row says who supervises it. Whoever looked for it at a node that is gone looks there again,
and hears of it as of a restart; on a smaller side of the mesh, that it is unavailable until it answers.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from typing import TYPE_CHECKING

import msgspec

from lattica.codec import far, frames
from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from lattica.ids import short
from lattica.mesh.identity import PeerId, short_peer
from lattica.node.clients import NODE, WORKER, Client
from lattica.node.loop import Timer
from lattica.scheduler.restarts import Record

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_hosting import Hosted
    from lattica.node.far_neighbours import Neighbour

log = logging.getLogger(__name__)
LOOK_S = 0.5  # between looks for a roving actor that is wanted
ASK_AGAIN_S = 2.0  # where its row says that it is
NODE_DEAD = "its node is dead, and it has no restarts left"
KEY_BYTES = 16
_down = msgspec.msgpack.Decoder(m.ActorDown)


class Foreign(msgspec.Struct, eq=False):
    """An actor that another node supervises, or knows who does. lender: None while it is not known where one roves."""

    lender: Neighbour | None
    callers: dict[int, None] = {}  # clients that want to be connected
    at: far.ActorAt | None = None
    asked_at: float = 0.0
    unavailable: bool = False  # and they were told so
    over: bool = False  # they were told that it is, since its node is dead; if that comes back, so does the actor


class FarActors:
    """See the module."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk, self._node = desk, desk.node
        self._foreign: dict[bytes, Foreign] = {}
        self._secret = os.urandom(32)
        self._looking: Timer | None = None

    def __repr__(self) -> str:
        return f"<FarActors: {len(self._foreign)} of other nodes>"

    # -- theirs

    def connect(self, client: Client, actor: bytes) -> bool:
        """Connect a client with an actor that is not ours, now and after each restart; False if nobody knows it yet."""
        node = self._node
        if client.number not in node.clients:
            return True
        found = self._foreign.get(actor)
        if actor in self._desk.deciding.records:
            self._connect_roving(client, actor, found)
            return True
        if found is None:
            lender = node.store.ledger.lender(actor)
            neighbour = next((n for n in self._desk.neighbours.values() if n.client.number == lender), None)
            if neighbour is None:
                return False
            found = self._foreign[actor] = Foreign(neighbour)
        if not found.callers and found.lender is not None:
            found.lender.link.send(far.ActorWanted(actor))
        elif found.at is not None:
            self._join(client, found, found.at)
        found.callers[client.number] = None
        return True

    def at(self, neighbour: Neighbour, message: far.ActorAt) -> None:
        """An incarnation lives there."""
        found = self._foreign.get(message.actor)
        if found is None or found.lender is not neighbour or self._desk.deciding.admit(message.actor, message.life):
            return
        found.unavailable = False
        host = PeerId(message.host) if message.host else self._desk.me
        if host not in (self._desk.me, neighbour.peer) and not self._desk.lives(host):
            found.at = None
            for number in found.callers:
                how = "it is said to run on a node that nobody knows"
                self._node.tell(number, m.ActorDown(message.actor, message.incarnation, False, how))
            return
        found.at = far.ActorAt(message.actor, message.incarnation, host, message.worker, key=message.key)
        for number in list(found.callers):
            client = self._node.clients.get(number)
            if client is None:
                found.callers.pop(number, None)
            else:
                self._join(client, found, found.at)

    def _join(self, client: Client, found: Foreign, at: far.ActorAt) -> None:
        desk = self._desk
        if client.kind == NODE:
            self.tell_where(client, at.actor, at.incarnation, at.host, at.worker, at.key)
            return
        if at.host == desk.me:
            worker = desk.node.clients.get(at.worker)
            if worker is None or worker.kind != WORKER:
                return  # dead: its owner says so soon
            fd = desk.node.connect(client, at.worker)
            client.send(m.ActorConnected(at.actor, at.incarnation, at.worker, worker.pid), fd)
            return
        away = desk.workers.away(desk.neighbour(PeerId(at.host)), at.worker)
        fd = desk.workers.connect(client, away.client.number, at.actor, at.incarnation, at.key)
        host = away.neighbour.client.number
        client.send(m.ActorConnected(at.actor, at.incarnation, away.client.number, away.pid, True, host), fd)

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
        record = self._desk.deciding.records.get(message.actor)
        if record is not None:
            self._kill_roving(message, PeerId(record.host))
            return True
        lender = self._node.store.ledger.lender(message.actor)
        neighbour = next((n for n in self._desk.neighbours.values() if n.client.number == lender), None)
        if neighbour is None:
            return False
        neighbour.link.send(far.ActorEnd(message.actor, message.no_restart))
        return True

    def _kill_roving(self, message: m.ActorKill, host: PeerId) -> None:
        """A node that is silent may live, and is told too: whoever has killed an actor sends it nothing more until its
        end is heard, of that node or of the end of the link with it."""
        desk, deciding = self._desk, self._desk.deciding
        if desk.lives(host):
            desk.neighbour(host).link.send(far.ActorEnd(message.actor, message.no_restart))
        answers = host != desk.me and deciding.answers(host)
        if message.no_restart and not answers and not deciding.is_island:
            desk.detached.end_everywhere(message.actor)

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
            if found.lender is neighbour and actor in self._desk.deciding.records:
                self._lost(actor, found, how)
            elif found.lender is neighbour:
                del self._foreign[actor]
                incarnation = found.at.incarnation if found.at is not None else 0
                for number in found.callers:
                    self._node.tell(number, m.ActorDown(actor, incarnation, False, f"its owner is gone: {how}"))

    # -- those that rove

    def close(self) -> None:
        """The node ends."""
        if self._looking is not None:
            self._looking.cancel()

    def _connect_roving(self, client: Client, actor: bytes, found: Foreign | None) -> None:
        record = self._desk.deciding.records[actor]
        if client.kind == NODE and record.host != self._desk.me:
            client.send(m.ActorDown(actor, 0, True, "it does not run under this node any more"))
            return
        if found is None:
            found = self._foreign[actor] = Foreign(None)
        found.callers[client.number] = None
        if found.at is not None:
            self._join(client, found, found.at)
        elif found.unavailable:
            self._say_unavailable(client.number, actor)
        elif found.over and self._desk.deciding.is_over(record):
            client.send(m.ActorDown(actor, 0, False, NODE_DEAD))
        else:
            self.look()

    def moved(self, actor: bytes, record: Record | None) -> None:
        """What its row says of it has changed."""
        found = self._foreign.get(actor)
        if found is None:
            return
        if record is None:
            if found.lender is None:
                self._tell_over(actor, found, "it was ended")
        elif found.lender is None or found.lender.peer != record.host:
            life = record.life.epoch, record.life.incarnation, record.life.minority
            if found.lender is not None and self._desk.deciding.admit(actor, life):
                return  # of a life before the one that we call: it was written while we could not hear each other
            if found.lender is not None and found.at is not None:
                self._lost(actor, found, "it goes on under another node")
            found.lender = None
            self.look()

    def _lost(self, actor: bytes, found: Foreign, how: str) -> None:
        """Who supervised it is gone, or does not any more."""
        incarnation = found.at.incarnation if found.at is not None else 0
        found.lender, found.at, found.asked_at = None, None, 0.0
        for number in list(found.callers):
            self._node.tell(number, m.ActorDown(actor, incarnation, True, how))
        self.look()

    def _tell_over(self, actor: bytes, found: Foreign, how: str) -> None:
        del self._foreign[actor]
        for number in found.callers:
            self._node.tell(number, m.ActorDown(actor, 0, False, how))

    def _is_over(self, actor: bytes, found: Foreign) -> None:
        """By what is known of its node now, which may have been silent only: whoever has a handle is kept in mind."""
        if found.over:
            return
        found.over, found.lender, found.at = True, None, None
        for number in list(found.callers):
            self._node.tell(number, m.ActorDown(actor, 0, False, NODE_DEAD))

    def look(self) -> None:
        """Find those that are wanted, soon."""
        if self._looking is None and not self._desk.is_closing:
            self._looking = self._node.loop.call_later(0.0, self._look)

    def _look(self) -> None:
        self._looking = None
        waits = False
        for actor, found in list(self._foreign.items()):
            record = self._desk.deciding.records.get(actor)
            if record is not None and found.callers:
                self._seek(actor, found, record)
                waits = waits or (found.at is None and not found.over)
            elif record is None and found.lender is None:
                self._tell_over(actor, found, "it was ended")
        if waits and self._looking is None and not self._desk.is_closing:
            self._looking = self._node.loop.call_later(LOOK_S, self._look)

    def _seek(self, actor: bytes, found: Foreign, record: Record) -> None:
        desk, deciding, now = self._desk, self._desk.deciding, self._node.now()
        host = PeerId(record.host)
        if found.unavailable and (deciding.answers(host) or not deciding.is_island):
            found.unavailable = False
            for number in list(found.callers):  # calls wait again, and do not fail
                self._node.tell(number, m.ActorDown(actor, 0, True, "it is looked for again"))
        if found.over and not deciding.is_over(record):
            found.over = False
            for number in list(found.callers):
                self._node.tell(number, m.ActorDown(actor, 0, True, "its node is back"))
        if host == desk.me:
            if actor in self._node.actor_desk.supervisor.actors:
                del self._foreign[actor]
                for number in found.callers:
                    if (client := self._node.clients.get(number)) is not None:
                        self._node.actor_desk.connect(client, m.ActorConnect(actor))
        elif deciding.is_over(record):
            self._is_over(actor, found)
        elif not deciding.answers(host):
            if deciding.is_cut_off() and not found.unavailable:
                found.unavailable, found.at, found.lender = True, None, None
                for number in list(found.callers):
                    self._say_unavailable(number, actor)
        elif found.at is None and now - found.asked_at >= ASK_AGAIN_S:
            found.lender, found.asked_at = desk.neighbour(host), now
            found.lender.link.send(far.ActorWanted(actor))

    def _say_unavailable(self, client: int, actor: bytes) -> None:
        how = "its node does not answer, and this one is on a smaller side of its mesh"
        self._node.tell(client, m.ActorDown(actor, 0, False, how, unavailable=True))

    # -- ours

    def wanted(self, neighbour: Neighbour, message: far.ActorWanted) -> None:
        """They ask for an actor: one of ours, or one that we know from somebody else."""
        if not self._may_reach(neighbour, message.actor):
            down = m.ActorDown(message.actor, 0, False, "its node has no handle of this actor")
            neighbour.link.send(far.ActorIsDown(frames.encode_one(down)))
            return
        self._node.actor_desk.connect(neighbour.client, m.ActorConnect(message.actor))

    def key_of(self, actor: bytes, incarnation: int) -> bytes:
        """What this node gives to those with a handle of an actor of ours, and to the node where it lives: who was not
        given it cannot guess it."""
        what = actor + b"%d" % incarnation
        return hashlib.blake2b(what, key=self._secret, digest_size=KEY_BYTES).digest()

    def may_call(self, neighbour: Neighbour, message: far.Open, hosted: Hosted | None) -> bool:
        """Whether one of their processes has a handle, or knows who has shown one."""
        if hosted is not None:
            return hmac.compare_digest(message.key, hosted.key)
        ours = self.key_of(message.actor, message.incarnation)
        return hmac.compare_digest(message.key, ours) or self._may_reach(neighbour, message.actor)

    def tell_where(
        self, client: Client, actor: bytes, incarnation: int, host: bytes, worker: int, key: bytes = b""
    ) -> None:
        """Tell another node where an incarnation lives. key: of one that is not ours."""
        neighbour = next((n for n in self._desk.neighbours.values() if n.client is client), None)
        if neighbour is not None:
            there = b"" if host == neighbour.peer else host
            life = self._desk.deciding.life_of(actor)
            key = key or self.key_of(actor, incarnation)
            neighbour.link.send(far.ActorAt(actor, incarnation, there, worker, life, key))

    def why(self, actor: bytes) -> str:
        """Why an actor that is not ours is not to be reached, in words; "" if nothing is known."""
        record = self._desk.deciding.records.get(actor)
        if record is None:
            return "its owner, another node, has not said where it is"
        host = PeerId(record.host)
        if host == self._desk.me:
            return "it is being restarted here"
        lives = "" if self._desk.deciding.answers(host) else ", which does not answer"
        return f"it belongs to node {short_peer(host)}{lives}"

    def place_of(self, worker: int) -> tuple[bytes, int]:
        """(host, its number for the worker) of a worker that is an actor of ours."""
        away = self._desk.workers.aways.get(worker)
        return (self._desk.me, worker) if away is None else (away.neighbour.peer, away.theirs)

    def end(self, neighbour: Neighbour, message: far.ActorEnd) -> None:
        """They want it killed."""
        if not self._may_reach(neighbour, message.actor):
            log.warning("%s has no handle of actor %s, and may not end it", neighbour.client.name, short(message.actor))
            return
        self._node.actor_desk.kill(neighbour.client, m.ActorKill(message.actor, message.no_restart))

    def _may_reach(self, neighbour: Neighbour, actor: bytes) -> bool:
        """Whether one of their processes can have a handle: it was given here, or the actor roves."""
        plan = self._node.actor_desk.supervisor.living(actor)
        roves = actor in self._desk.deciding.records or (plan is not None and plan.detached)
        return roves or self._desk.objects.lending.is_given(neighbour, actor)

    def lives_in(self, worker: int, actor: bytes, incarnation: int, hosted: Hosted | None) -> bool:
        """Whether that incarnation is in that worker of ours."""
        if hosted is not None:
            return hosted.actor == actor and hosted.incarnation == incarnation
        ours = self._node.actor_desk.supervisor.actor_of(worker)
        return ours is not None and ours.plan.actor == actor and ours.incarnation == incarnation
