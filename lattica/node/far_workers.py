"""Workers of other nodes that work for us, and our leases on them.

    our process ══ unix socket ══ Carrier ═══════ Carry ═══════ Carrier ══ unix socket ══ their worker (`Away`)

To our processes a worker elsewhere is one more client, with a number of its own. It is forgotten with its lease, its
last connection or its node; what it had said before it died is handed on first.
"""

from __future__ import annotations

from itertools import count
from time import time
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.codec import far, frames
from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from lattica.node.clients import AWAY, Client
from lattica.node.lease_desk import FAR_LEASE
from lattica.node.proxies import proxy
from lattica.scheduler.given import decode_within
from lattica.scheduler.resources import ResourceSet

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour
    from lattica.node.far_placing import Wish
    from lattica.node.links import Carrier

_from_worker = msgspec.msgpack.Decoder(m.ActorReady | m.ActorFailed | m.ActorExit | m.ActorCheckpoint)


class Away(msgspec.Struct, eq=False):
    """A worker of another node, as ours know it: client `client.number` here, `theirs` there."""

    neighbour: Neighbour
    client: Client
    theirs: int
    pid: int
    lease: int = 0  # of ours
    gpus: list[int] = []
    carriers: dict[int, Carrier] = {}  # caller -> its connection
    guests: dict[int, int] = {}  # caller -> by what number that node knows it
    over: bool = False


class Held(msgspec.Struct, eq=False):
    """A lease of ours on another node's worker. holder: NODE for an actor."""

    away: Away
    theirs: int
    holder: int
    resources: dict[str, float] = {}
    within: bytes = b""


class FarWorkers:
    """See the module."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk, self._node = desk, desk.node
        self.aways: dict[int, Away] = {}
        self.leases: dict[int, Held] = {}
        self._lease_numbers = count(FAR_LEASE)

    def __repr__(self) -> str:
        return f"<FarWorkers: {len(self.aways)} workers elsewhere, {len(self.leases)} leases>"

    # -- leases

    def granted(self, neighbour: Neighbour, message: far.LeaseIs, wish: Wish) -> None:
        """A wish of ours has a worker there."""
        away = self.away(neighbour, message.worker, message.pid, wish.job)
        number = next(self._lease_numbers)
        away.lease, away.gpus, away.client.name = number, message.gpus, wish.name
        self.leases[number] = Held(away, message.lease, wish.client, wish.demand.resources.to_dict(), wish.within)
        if wish.within:
            self._node.groups.granted(wish.client, wish.request)
        if wish.client == m.NODE:
            if not self._node.actor_desk.granted_away(wish.request, away.client.number):
                self.give_back(number)
            return
        holder = self._node.clients.get(wish.client)
        if holder is None:
            self.give_back(number)
            return
        worker = away.client.number
        fd = [] if worker in holder.callees else self.connect(holder, worker)
        host = neighbour.client.number
        holder.send(m.LeaseGranted(wish.request, number, worker, message.pid, bool(fd), message.gpus, True, host), fd)

    def leases_in(self, group: bytes, bundle: int) -> int:
        """How many workers we have there."""
        held = [decode_within(held.within) for held in self.leases.values() if held.within]
        return sum((within.group, within.bundle) == (group, bundle) for within in held)

    def give_back(self, number: int, ran_s: float = 0.0, expected_s: float = 0.0) -> None:
        """A lease of ours elsewhere is over. ran_s, expected_s: as in `messages.LeaseReturn`."""
        held = self.leases.pop(number, None)
        if held is not None:
            held.away.lease = 0
            held.away.neighbour.link.send(far.GiveBack(held.theirs, ran_s, expected_s))
            self._desk.placer.ended(held.away.neighbour.peer, ResourceSet.of(held.resources))

    def returned(self, client: int, message: m.LeaseReturn) -> None:
        """Its holder returns it."""
        held = self.leases.get(message.lease)
        if held is not None and held.holder == client:
            self.give_back(message.lease, message.ran_s, message.expected_s)

    def kill(self, client: int, message: m.WorkerKill) -> None:
        """Its holder wants the worker killed."""
        held = self.leases.get(message.lease)
        if held is not None and held.holder == client:
            guest = held.away.guests.get(client, 0)
            held.away.neighbour.link.send(far.KillWorker(held.theirs, message.seq, message.why, guest))

    def holder_gone(self, client: int) -> None:
        """One of our processes has ended: what it had elsewhere goes."""
        for number, held in list(self.leases.items()):
            if held.holder == client:
                del self.leases[number]
                held.away.lease = 0
                held.away.neighbour.link.send(far.KillWorker(held.theirs, 0, "its caller ended"))

    def wanted(self, neighbour: Neighbour, _: far.Wanted) -> None:
        """Others wait there for what our processes lease."""
        holders = {held.holder for held in self.leases.values() if held.away.neighbour is neighbour}
        for holder in holders - {m.NODE}:
            self._node.tell(holder, m.LeaseWanted())

    def _lease_lost(self, number: int, held: Held, message: m.LeaseLost) -> None:
        self.leases.pop(number, None)
        held.away.lease = 0
        if held.holder != m.NODE:
            message.lease, message.client = number, held.away.client.number
            self._node.tell(held.holder, message)

    # -- workers

    def away(self, neighbour: Neighbour, theirs: int, pid: int = 0, job: int = 0) -> Away:
        """The worker of another node, as a client of ours."""
        found = neighbour.workers.get(theirs)
        if found is None:
            number = self._desk.new_number()
            name = f"worker {theirs} of {neighbour.client.name}"
            client = proxy(number, AWAY, job, time(), name, lambda message: self._told_away(number, message))
            client.pid = pid
            found = neighbour.workers[theirs] = self.aways[number] = Away(neighbour, client, theirs, pid)
            self._node.clients[number] = client
            self._node.store.joined(number, b"")
            self._desk.proxies[number] = neighbour, theirs
            self._desk.far_names[number] = found.guests
        return found

    def _told_away(self, number: int, message: Any) -> None:
        away = self.aways.get(number)
        if away is None:
            return
        match message:
            case m.ClientGone(client):
                carrier = away.carriers.pop(client, None)
                if carrier is not None:
                    carrier.drain()
                    carrier.close("its process has ended", gone=client not in self._node.clients)
                    self._forget_unopened(away, client)
            case m.BecomeActor() | m.ActorRelease() | m.Exit() | m.CheckpointWanted():
                data = frames.encode_one(message)
                life, key = None, b""
                if isinstance(message, m.BecomeActor):
                    life = self._desk.deciding.life_of(message.actor)
                    key = self._desk.actors.key_of(message.actor, message.incarnation)
                away.neighbour.link.send(far.ToWorker(away.theirs, number, data, life, key), len(data))

    # -- connections

    def connect(
        self, caller: Client, worker: int, actor: bytes = b"", incarnation: int = 0, key: bytes = b""
    ) -> list[int]:
        """Connect a process of ours with a worker elsewhere: its end, as a list of one descriptor. key: of an actor
        that is not ours, as its owner said it."""
        away = self.aways[worker]
        link = away.neighbour.link
        job = self._desk.jobs.introduce(away.neighbour, caller.job) or b""
        before = away.carriers.pop(caller.number, None)
        if before is not None:
            before.close("there is a newer one")
        ours, theirs = self._node.wires.pair()

        def ended(_: str) -> None:
            if away.carriers.get(caller.number) is carrier:
                del away.carriers[caller.number]
                caller.callees.discard(worker)
                self._forget_unopened(away, caller.number)

        carrier = away.carriers[caller.number] = link.carrier(ours, ended)
        life = self._desk.deciding.life_of(actor) if actor else None
        by, by_life = self._desk.deciding.token_of(caller.number)
        if actor and not key:
            key = self._desk.actors.key_of(actor, incarnation)
        link.send(
            far.Open(
                carrier.number, away.theirs, worker, job, caller.number, actor, incarnation, life, by, by_life, key
            )
        )  # fmt: skip
        caller.peers.add(worker)
        caller.callees.add(worker)
        away.client.peers.add(caller.number)
        return [theirs]

    def _forget_unopened(self, away: Away, caller: int) -> None:
        """Its node has not connected us: there may be no such worker any more, and nobody would tell us of its end."""
        unused = not away.carriers and not away.lease and caller not in away.guests
        if unused and not away.over and self._node.actor_desk.supervisor.actor_of(away.client.number) is None:
            self._away_gone(away, "its node has not connected us with it")

    def opened(self, neighbour: Neighbour, message: far.Opened) -> None:
        """A connection of ours has come about."""
        carrier = neighbour.link.carriers.get(message.carrier)
        for away in neighbour.workers.values():
            for client, each in away.carriers.items():
                if each is carrier:
                    away.guests[client] = message.proxy
                    return

    # -- ends

    def worker_over(self, neighbour: Neighbour, message: far.WorkerOver) -> None:
        """A worker there is dead: its last words are handed on first."""
        away = neighbour.workers.get(message.worker)
        if away is None or away.over:
            return
        away.over = True
        left = [carrier for carrier in away.carriers.values() if not carrier.over]

        def when_empty() -> None:
            left.pop()
            if not left:
                self._buried(away, message)

        if not left:
            self._buried(away, message)
        for carrier in list(left):
            carrier.when_empty(when_empty)

    def _buried(self, away: Away, message: far.WorkerOver) -> None:
        """All that it said has been handed on."""
        held = self.leases.get(away.lease)
        if held is not None:
            number = away.lease
            self._lease_lost(
                number, held,
                m.LeaseLost(
                    number, 0, message.started, message.replies, message.how, message.stderr, message.out_of_memory
                ),
            )  # fmt: skip
        self._node.actor_desk.away_died(away.client.number, message.how, message.stderr, message.out_of_memory)
        self._desk.silenced.add(away.client.number)
        self._away_gone(away, message.how)
        self._desk.silenced.discard(away.client.number)

    def _away_over(self, away: Away, how: str) -> None:
        """Its node is gone, or as good as."""
        held = self.leases.get(away.lease)
        if held is not None:
            self._lease_lost(away.lease, held, m.LeaseLost(0, 0, 0, b"", how, "", unknown=True))
        self._node.actor_desk.away_died(away.client.number, how, "", False)
        self._away_gone(away, how)

    def _away_gone(self, away: Away, how: str) -> None:
        away.over = True
        away.neighbour.workers.pop(away.theirs, None)
        if self.aways.pop(away.client.number, None) is None:
            return
        carriers = list(away.carriers.values())
        away.carriers.clear()
        for carrier in carriers:
            carrier.close(how)
        self._node.client_gone(away.client, how)

    def end(self, worker: int, *, kill: bool) -> None:
        """An actor of ours elsewhere has ended."""
        away = self.aways.get(worker)
        if away is not None:
            away.neighbour.link.send(far.EndWorker(away.theirs, kill))

    def from_worker(self, neighbour: Neighbour, message: far.FromWorker) -> None:
        """What a worker there that is an actor of ours says."""
        away = neighbour.workers.get(message.worker)
        if away is None:
            return
        try:
            said = _from_worker.decode(message.message)
        except msgspec.DecodeError as error:
            raise RemoteProtocolError(f"a message of a worker: {error}") from error
        self._node.actor_desk.away_said(away.client, said)

    def lose(self, neighbour: Neighbour, how: str) -> None:
        """It is silent: tasks that it runs for us are lost, whether it lives or not; if it does, it is to end them."""
        for number, held in list(self.leases.items()):
            if held.away.neighbour is neighbour and held.holder != m.NODE:
                neighbour.link.send(far.KillWorker(held.theirs, 0, how))
                self._lease_lost(number, held, m.LeaseLost(number, 0, 0, b"", how, "", unknown=True))
                self._away_over(held.away, how)

    def parted(self, neighbour: Neighbour, how: str) -> None:
        """It is gone, with all workers."""
        for away in list(neighbour.workers.values()):
            self._away_over(away, how)
