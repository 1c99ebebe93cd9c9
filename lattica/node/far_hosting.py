"""Our workers, as other nodes have them: leased for tasks, become their actors, called by their processes.

    their node ── AskLease ──► admission, our book ──► LeaseIs        the worker is theirs
    their node ── ToWorker ──► the worker ── FromWorker ──► it        an actor that it owns (`Hosted`)
    their process ══ Carry ═══ Carrier ══ unix socket ══ worker       a caller (`Guest`), once `Open` is let through

Who may: a job whose token is verified and has not ended; a worker that is leased to that node; an actor by its id,
incarnation and life.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import time
from typing import TYPE_CHECKING

import msgspec

from lattica.codec import far, frames
from lattica.codec import messages as m
from lattica.errors import ConfigError, RemoteProtocolError
from lattica.node.clients import GUEST, WORKER, Client
from lattica.node.lease_desk import NO_ROOM
from lattica.node.proxies import proxy
from lattica.scheduler import load as loads
from lattica.scheduler.admission import Refused
from lattica.scheduler.fencing import Life
from lattica.scheduler.resources import ResourceSet

if TYPE_CHECKING:
    from typing import Any

    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour
    from lattica.node.links import Carrier
    from lattica.node.workers import Death, Process
    from lattica.scheduler.leases import Lease

DEATH_S = 3.0
"""From the end of a worker's connections to the word that it is dead, at the latest: until then it is known who called
it, so that its page can be read for them. A death is told within one and a half."""
RECONNECT_S = 30.0
"""For a caller of an actor to come back over another connection, under the number by which the actor knows what it has
called already. Shorter: a call runs twice; longer: the actor remembers callers that only dropped their handles."""
UNBORN_S = 1.0
"""Between looks whether a worker has been told which actor it is, where callers wait: their node may hear of it, and
ask us, before what its owner says comes to us."""
UNBORN_MAX = 256  # that wait for one worker
EARLY_MAX_BYTES = 32 << 20  # of one node, kept of connections that are not let through yet; with more they are refused
_NEWER = "a newer life of it runs elsewhere"
_from_node = msgspec.msgpack.Decoder(m.BecomeActor | m.ActorRelease | m.Exit | m.CheckpointWanted)


Token = tuple[bytes, far.Life]
"""A detached actor for which something is asked, and in which life it is."""


class Guest(msgspec.Struct, eq=False):
    """A process of another node (`caller` there) that calls a worker of ours; theirs: that node's number for it.
    token: of the detached actor that it is."""

    neighbour: Neighbour
    client: Client
    caller: int
    worker: int
    theirs: int
    carrier: Carrier
    token: Token | None = None


class Hosted(msgspec.Struct, eq=False):
    """A worker of ours that is, or will be, an actor of another node's."""

    neighbour: Neighbour
    worker: int
    actor: bytes = b""
    incarnation: int = 0
    life: far.Life | None = None  # of a detached one
    key: bytes = b""  # which its callers show


class FarHosting:
    """See the module."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk, self._node = desk, desk.node
        self.guests: dict[int, Guest] = {}
        self.hosted: dict[int, Hosted] = {}
        self.givers: dict[int, Client] = {}  # worker of ours that is an actor of others -> who gave it its arguments
        self.leased: dict[int, Token] = {}  # worker of ours -> the detached actor whose tasks run there
        self._unborn: dict[int, list[tuple[Neighbour, far.Open]]] = {}  # who wants to call the actor that it will be

    def __repr__(self) -> str:
        return f"<FarHosting: {len(self.hosted)} actors of others, {len(self.guests)} callers>"

    # -- leases

    def ask_lease(self, neighbour: Neighbour, message: far.AskLease) -> None:
        """They want a worker of ours."""
        if self._desk.environments.holds(neighbour, message):
            return
        reason = self._desk.jobs.objection_to_run(message.job) or self._desk.deciding.admit(message.by, message.life)
        try:
            resources = ResourceSet.of(message.resources)
        except ConfigError as error:
            reason = str(error)
        if reason:
            neighbour.link.send(far.LeaseNot(message.number, reason, True, self.load()))
            return
        if message.life is not None:
            neighbour.tokens[message.number] = message.by, message.life
        if message.within:
            if reason := self._node.groups.lend(neighbour, message, self._desk.jobs.number(message.job), resources):
                neighbour.link.send(far.LeaseNot(message.number, reason, False, self.load()))
            return
        answer = self._desk.placer.admission.ask(resources, message.limit_s, message.each_s)
        if isinstance(answer, Refused):
            neighbour.tokens.pop(message.number, None)
            neighbour.link.send(far.LeaseNot(message.number, answer.reason, answer.never, loads.encode(answer.load)))
            return
        neighbour.questions[message.number] = message.actor
        job = self._desk.jobs.number(message.job)
        self._node.lease_desk.perform(
            self._node.book.request(
                neighbour.client.number, message.number, job, resources, self._node.now(),
                retryable=message.retryable, name=message.name, lasting=message.actor,
            )
        )  # fmt: skip

    def drop_ask(self, neighbour: Neighbour, message: far.DropAsk) -> None:
        """They want it no more."""
        neighbour.questions.pop(message.number, None)
        neighbour.tokens.pop(message.number, None)
        self._desk.environments.dropped(neighbour, message.number)
        book = self._node.book
        self._node.lease_desk.perform(book.cancel(neighbour.client.number, message.number, self._node.now()))
        for lease in list(book.leases.values()):  # granted, and its worker is being forked
            theirs = lease.holder == neighbour.client.number and lease.request.number == message.number
            if theirs and self._node.lease_desk.is_unborn(lease):
                self._node.lease_desk.perform(book.returned(lease.lease, lease.holder, self._node.now()))

    def is_for_actor(self, lease: Lease) -> bool:
        """Whether another node wants it for an actor: the worker will not come back."""
        neighbour = self._desk.by_client(lease.holder)
        return neighbour is not None and neighbour.questions.get(lease.request.number, False)

    def not_here(self, client: int, number: int, reason: str) -> None:
        """What a node asked of a bundle of ours cannot be had any more."""
        neighbour = self._desk.by_client(client)
        if neighbour is not None:
            neighbour.tokens.pop(number, None)
        if neighbour is not None and neighbour.questions.pop(number, None) is not None:
            neighbour.link.send(far.LeaseNot(number, reason, False, self.load()))

    def denied(self, neighbour: Neighbour, message: m.LeaseDenied) -> None:
        """Our book will never serve what they asked."""
        neighbour.questions.pop(message.request, None)
        neighbour.tokens.pop(message.request, None)
        neighbour.link.send(
            far.LeaseNot(message.request, message.reason, True, self.load(), environment=message.environment)
        )

    def works_for(self, neighbour: Neighbour) -> bool:
        """Whether workers of ours are theirs, or called by them, or asked for."""
        return (
            bool(neighbour.questions)
            or any(hosted.neighbour is neighbour for hosted in self.hosted.values())
            or any(guest.neighbour is neighbour for guest in self.guests.values())
        )

    def lent(self, lease: Lease, worker: int) -> None:
        """A worker of ours is another node's."""
        neighbour = self._desk.by_client(lease.holder)
        if neighbour is None:
            return
        pid = self._node.workers.processes[worker].pid
        neighbour.shown.add(worker)
        token = neighbour.tokens.pop(lease.request.number, None)
        if neighbour.questions.pop(lease.request.number, False):
            self.hosted[worker] = Hosted(neighbour, worker)
        elif token is not None:
            self.leased[worker] = token
        gpus = list(lease.allocation.gpus)
        resources = lease.request.resources.plain().to_dict()
        self._node.tell(worker, m.Leased(lease.lease, neighbour.client.number, resources, gpus))
        neighbour.link.send(far.LeaseIs(lease.request.number, lease.lease, worker, pid, gpus, self.load()))

    def load(self) -> bytes:
        """What this node says of itself with an answer."""
        return loads.encode(self._desk.placer.admission.load())

    def give_back(self, neighbour: Neighbour, message: far.GiveBack) -> None:
        """They are done with a worker of ours."""
        lease = self._node.book.leases.get(message.lease)
        if lease is not None and lease.holder == neighbour.client.number:
            self._desk.placer.admission.reported(message.ran_s, message.expected_s)
            self.leased.pop(lease.worker or 0, None)
            hosted = self.hosted.pop(lease.worker, None) if lease.worker is not None else None
            if hosted is not None and hosted.actor:  # its code is in there: nobody else gets that worker
                self._node.end_worker(hosted.worker, "its owner has returned it")
                return
            self._node.lease_desk.perform(self._node.book.returned(message.lease, lease.holder, self._node.now()))

    def kill_worker(self, neighbour: Neighbour, message: far.KillWorker) -> None:
        """They want a worker killed that they lease."""
        lease = self._node.book.leases.get(message.lease)
        if lease is None or lease.holder != neighbour.client.number or lease.worker is None:
            return
        process = self._node.workers.processes.get(lease.worker)
        if process is not None:
            started, _, _ = process.page.post_mortem(message.caller)
            if not (message.seq and started > message.seq):
                self._node.end_worker(lease.worker, message.why or "killed by its caller")

    # -- actors of theirs

    def to_worker(self, neighbour: Neighbour, message: far.ToWorker) -> None:
        """What the owner of an actor tells the worker that it is, or shall be."""
        hosted = self.hosted.get(message.worker)
        if hosted is None or hosted.neighbour is not neighbour:
            return
        try:
            told = _from_node.decode(message.message)
        except msgspec.DecodeError as error:
            raise RemoteProtocolError(f"a message for a worker: {error}") from error
        if isinstance(told, m.BecomeActor):
            if hosted.actor:
                raise RemoteProtocolError("a worker that is an actor is to become one")
            if why := self._desk.deciding.admit(told.actor, message.life):
                self._node.end_worker(message.worker, why)
                return
            hosted.actor, hosted.incarnation, hosted.life = told.actor, told.incarnation, message.life
            hosted.key = message.key
            via = self._giver(neighbour, message.worker, message.proxy)
            told = msgspec.structs.replace(told, via=via)
            self._node.pool.became_actor(message.worker, self._node.now())
            if told.size:
                self._node.actor_desk.checkpoints.become_anothers(message.worker, told, neighbour.peer)
                return
        self._node.tell(message.worker, told)
        if isinstance(told, m.BecomeActor):
            self._let_in(message.worker)

    def _giver(self, neighbour: Neighbour, worker: int, theirs: int) -> int:
        """Stands for the node that gave an actor its arguments."""
        number = self._desk.new_number()
        client = proxy(number, GUEST, 0, time(), f"the owner of worker {worker}", lambda _: None)
        self._desk.proxies[number] = neighbour, theirs
        self._node.store.joined(number, b"")
        self._node.clients[number] = client
        client.peers.add(worker)
        self._node.clients[worker].peers.add(number)
        self.givers[worker] = client
        return number

    def end_worker(self, neighbour: Neighbour, message: far.EndWorker) -> None:
        """An actor of theirs has ended."""
        hosted = self.hosted.get(message.worker)
        if hosted is None or hosted.neighbour is not neighbour:
            return
        if message.kill:
            self._node.end_worker(message.worker, "")
        else:
            self._node.let_worker_go(message.worker)

    def fence(self, actor: bytes, life: Life) -> None:
        """A life of a detached actor is known: earlier ones end, which we host for others, and what they have here."""
        for hosted in list(self.hosted.values()):
            if hosted.life is not None and _is_earlier((hosted.actor, hosted.life), actor, life):
                self._node.end_worker(hosted.worker, f"it was superseded: {_NEWER}")
        for worker, token in list(self.leased.items()):
            if _is_earlier(token, actor, life):
                self._node.end_worker(worker, f"its caller was superseded: {_NEWER}")
        for guest in list(self.guests.values()):
            if guest.token is not None and _is_earlier(guest.token, actor, life):
                guest.carrier.close(f"the caller was superseded: {_NEWER}")

    def forwards(self, client: Client, message: Any) -> bool:
        """Whether a worker of ours said this to the node that owns the actor it is."""
        hosted = self.hosted.get(client.number)
        if hosted is None or not hosted.actor:
            return False
        data = frames.encode_one(message)
        hosted.neighbour.link.send(far.FromWorker(client.number, data), len(data))
        return True

    # -- ends

    def worker_died(self, process: Process, death: Death) -> None:
        """A worker of ours is dead: those elsewhere who know it are told, after all that it had said."""
        worker = process.client
        self.hosted.pop(worker, None)
        self.leased.pop(worker, None)
        lease = self._node.book.lease_of(worker)
        knowing = [neighbour for neighbour in self._desk.neighbours.values() if worker in neighbour.shown]
        owner = self._desk.by_client(lease.holder) if lease is not None else None
        if (giver := self.givers.pop(worker, None)) is not None:
            self._desk.silenced.add(giver.number)
            self._node.client_gone(giver, death.how)
        started, replies = 0, b""
        for guest in list(self._guests_of(worker)):
            if guest.neighbour is owner:
                began, number, items = process.page.post_mortem(guest.client.number)
                if began or number:
                    started, replies = began, frames.join(number, items)[4:] + items if number else b""
            guest.carrier.drain()
            guest.carrier.close(death.how)
            self._guest_gone(guest, death.how)
        for neighbour in knowing:
            neighbour.shown.discard(worker)
            mine = neighbour is owner and lease is not None
            neighbour.link.send(
                far.WorkerOver(
                    worker, lease.lease if mine and lease is not None else 0, started if mine else 0,
                    replies if mine else b"", death.how, death.stderr, death.out_of_memory,
                )
            )  # fmt: skip

    def _guests_of(self, worker: int) -> Iterator[Guest]:
        entry = self._node.clients.get(worker)
        for number in entry.peers if entry is not None else ():
            if number in self.guests:
                yield self.guests[number]

    # -- callers

    def open(self, neighbour: Neighbour, message: far.Open) -> None:
        """They want a process of theirs connected with a worker of ours, perhaps before that can be: then what comes
        over the connection is kept."""
        if self._desk.environments.holds(neighbour, message) or self._is_unborn(neighbour, message):
            neighbour.early.setdefault(message.carrier, [])
            return
        came = neighbour.early.pop(message.carrier, [])
        neighbour.early_bytes -= sum(map(len, came or ()))
        if came is not None:
            self._open(neighbour, message, came)

    def _is_unborn(self, neighbour: Neighbour, message: far.Open) -> bool:
        """Whether its worker shall be an actor, and has not been told which: then it waits for that."""
        hosted, waiting = self.hosted.get(message.worker), self._unborn.get(message.worker, [])
        if not message.actor or hosted is None or hosted.actor or len(waiting) >= UNBORN_MAX:
            return False
        if not waiting:
            self._unborn[message.worker] = waiting
            self._node.loop.call_later(UNBORN_S, self._let_in, message.worker)
        waiting.append((neighbour, message))
        return True

    def _let_in(self, worker: int) -> None:
        for neighbour, message in self._unborn.pop(worker, ()):
            self._desk.hear(neighbour, message)

    def _open(self, neighbour: Neighbour, message: far.Open, came: list[bytes]) -> None:
        """came: over it, so far."""
        entry, node = self._node.clients.get(message.worker), self._node
        hosted = self.hosted.get(message.worker)
        reason = self._desk.jobs.objection(message.job)
        if entry is None or entry.kind != WORKER:
            reason = "there is no such worker"
        elif message.actor:
            if not self._desk.actors.lives_in(message.worker, message.actor, message.incarnation, hosted):
                reason = "it is not that incarnation of that actor"
            elif not self._desk.actors.may_call(neighbour, message, hosted):
                reason = "you were given no handle of this actor"
            else:
                reason = reason or self._desk.deciding.admit(message.actor, message.life)
                reason = reason or self._desk.deciding.admit(message.by, message.by_life)
        elif (lease := node.book.lease_of(message.worker)) is None or lease.holder != neighbour.client.number:
            reason = "it is not leased to you"
        if not reason and not node.workers.room():
            reason = NO_ROOM
        if reason or entry is None:
            neighbour.link.send(far.Closed(message.carrier, reason))
            return
        neighbour.link.check(message.carrier)
        ours, theirs = self._node.wires.pair()
        guest = self._was_here(neighbour, message)
        client = guest.client if guest is not None else self._new_guest(neighbour, message)
        number = client.number

        def ended(why: str) -> None:
            if self.guests.get(number) is mine and mine.carrier is carrier:
                lives = message.worker in node.workers.processes
                if message.actor and lives and number not in self._desk.silenced and neighbour.link.over is None:
                    node.loop.call_later(RECONNECT_S, self._guest_gone, mine, why)
                elif carrier.ended_here and lives:
                    node.loop.call_later(DEATH_S, self._guest_gone, mine, why)  # is it dead? then it is asked for
                else:
                    self._guest_gone(mine, why)

        carrier = neighbour.link.accept(message.carrier, ours, ended)
        token = (message.by, message.by_life) if message.by_life is not None else None
        mine = self.guests[number] = Guest(
            neighbour, client, message.caller, message.worker, message.proxy, carrier, token
        )
        if guest is not None:
            guest.carrier.end("there is a newer one")
        entry.send(m.NewCaller(number, True), [theirs])
        client.peers.add(message.worker)
        entry.peers.add(number)
        neighbour.shown.add(message.worker)
        neighbour.link.send(far.Opened(message.carrier, number))
        for data in came:
            carrier.carry(data)

    def _was_here(self, neighbour: Neighbour, message: far.Open) -> Guest | None:
        """Who opens a connection, if it had one before. But if its node has believed us dead since, it knows the worker
        by another number, and its process gave up what it had sent: that is another caller, who sends it again."""
        guest = self.guests.get(neighbour.known.get((message.caller, message.worker), 0))
        if guest is None or guest.theirs == message.proxy:
            return guest
        why = "its node believed this one dead"
        self._guest_gone(guest, why)
        guest.carrier.end(why)
        return None

    def _guest_gone(self, guest: Guest, why: str) -> None:
        """A process elsewhere has no connection with this worker any more."""
        if self.guests.get(guest.client.number) is guest:
            del self.guests[guest.client.number]
            guest.neighbour.known.pop((guest.caller, guest.worker), None)
            self._node.client_gone(guest.client, why)

    def _new_guest(self, neighbour: Neighbour, message: far.Open) -> Client:
        number = self._desk.new_number()
        name = f"a process of {neighbour.client.name}"
        client = proxy(number, GUEST, self._desk.jobs.number(message.job), time(), name, lambda _: None)
        neighbour.known[message.caller, message.worker] = number
        self._desk.proxies[number] = neighbour, message.proxy
        self._node.clients[number] = client
        self._node.store.joined(number, b"")
        return client

    def carry(self, neighbour: Neighbour, message: far.Carry) -> None:
        """Bytes of a connection."""
        carrier, came = neighbour.link.carriers.get(message.carrier), neighbour.early.get(message.carrier)
        if carrier is not None:
            carrier.carry(message.data)
        elif came is not None:
            came.append(message.data)
            neighbour.early_bytes += len(message.data)
            if neighbour.early_bytes > EARLY_MAX_BYTES:
                self._forget_early(neighbour, message.carrier)
                neighbour.link.send(far.Closed(message.carrier, "too much came before it could be let through"))

    def _forget_early(self, neighbour: Neighbour, carrier: int) -> None:
        """It is over before it was let through."""
        neighbour.early_bytes -= sum(map(len, neighbour.early[carrier] or ()))
        neighbour.early[carrier] = None

    def taken(self, neighbour: Neighbour, message: far.Taken) -> None:
        """They have handed on so many bytes of a connection."""
        carrier = neighbour.link.carriers.get(message.carrier)
        if carrier is not None:
            carrier.taken(message.size)

    def closed(self, neighbour: Neighbour, message: far.Closed) -> None:
        """A connection is over there."""
        carrier = neighbour.link.carriers.get(message.carrier)
        if carrier is None:
            if message.carrier in neighbour.early:
                self._forget_early(neighbour, message.carrier)
            return
        if message.gone:
            for guest in self.guests.values():
                if guest.carrier is carrier:
                    self._desk.silenced.add(guest.client.number)
        carrier.finish(message.reason)

    def parted(self, neighbour: Neighbour, how: str) -> None:
        """A node is gone: its processes call nobody here, and the actors that it owned end."""
        for guest in [guest for guest in self.guests.values() if guest.neighbour is neighbour]:
            self.guests.pop(guest.client.number, None)
            self._node.client_gone(guest.client, how)
        for hosted in [hosted for hosted in self.hosted.values() if hosted.neighbour is neighbour]:
            del self.hosted[hosted.worker]
            self._node.end_worker(hosted.worker, f"its owner is gone: {how}")


def _is_earlier(token: Token, actor: bytes, life: Life) -> bool:
    """Whether it is of an actor of which this life goes on instead."""
    return token[0] == actor and Life(*token[1]).standing() < life.standing()
