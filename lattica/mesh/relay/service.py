"""A relay's shell: members ask for channels over their sessions, and datagrams go on from one to the other.

    UDP ── Datagrams ──► bind, relayed ──► Channels ──► flush, once a turn of the loop ──► UDP, in pieces
    TLS ── Framed ─────►                                                            └───► Framed

Any member may ask, so there is no way to it but a session; that somebody was called is told over the session of the one
who is. Where packets come faster than they can be sent they are read first, as long as READS_FIRST turns, so that what
is lost is lost where pairs are told apart, and not in the kernel.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Hashable
from time import perf_counter
from typing import TYPE_CHECKING

from lattica.errors import ConfigError, LatticaError, PeerUnreachableError, PermissionDeniedError
from lattica.mesh.identity import PEER_ID_BYTES, PeerId, peer_text, short_peer
from lattica.mesh.nat.routes import Direct, Endpoint
from lattica.mesh.relay.channels import Channels, Grant
from lattica.mesh.relay.fair_queue import Lane
from lattica.mesh.relay.framed import Framed
from lattica.mesh.roles import Role
from lattica.mesh.services import caller, method, service
from lattica.mesh.transport.path_socket import BATCH_MAX, PathSocket

if TYPE_CHECKING:
    from lattica.mesh.links import Member
    from lattica.mesh.peer import Peer

log = logging.getLogger(__name__)
FLUSH_BYTES = 256 << 10  # sent in one turn of the loop: 2 ms
READS_FIRST = 8  # turns
LOOK_S = 5.0  # between looks at what has expired, and who is no member any more
TELL_S = 5.0  # for who is called to answer that it was told
KEEP_MAX = 4096  # channels whose leases are renewed by one call
FRAMED_MAX = 4  # connections of one member; the oldest gives way
FRAMED_IDLE_S = 60.0  # a connection that brought nothing for so long is closed: its owner binds every 15 s
OFFER = "relay"
"""The service by which relays are found in the table."""


@service(OFFER)
class RelayService:
    """See the module. Numbers and keys of channels go to their owners only."""

    def __init__(self, peer: Peer, socket: PathSocket) -> None:
        self.channels = Channels(os.urandom)  # members see many of them, and must not guess those of others
        self._peer, self._socket = peer, socket
        self._loop = asyncio.get_running_loop()
        self._members: dict[PeerId, Member] = {}  # by the certificates of their last call
        self._framed: dict[PeerId, dict[Framed, float]] = {}  # when each was last heard
        self._telling: set[asyncio.Task[None]] = set()
        self._flushing = self._stopped = False
        self._came = self._reads = 0  # datagrams since the last flush; flushes that were put off
        self._waits = False  # for the kernel to have room
        self._seconds = 0.0
        self._timer = self._loop.call_later(LOOK_S, self._look)

    def __repr__(self) -> str:
        return f"<RelayService: {self.channels!r}>"

    def stop(self) -> None:
        self._stopped = True
        self._timer.cancel()
        for task in self._telling:
            task.cancel()
        for framed in [framed for many in self._framed.values() for framed in many]:
            framed.close(within_s=0.0)

    # -- what members ask

    @method(role=None, idempotent=True)
    def reserve(self) -> float:
        """Be told when another opens a channel to the caller; for how many seconds."""
        return self.channels.reserve(self._admit(), self._loop.time())

    @method(role=None, idempotent=True)
    def release(self) -> None:
        """Not to be told any more."""
        self.channels.release(caller.get().peer)

    @method(role=None)
    def open(self, called: bytes) -> tuple[int, bytes, float]:
        """A channel to this peer: (number, secret, seconds of its lease). It is told at once, over its session; a
        channel to this relay itself leads nowhere, and shows that it can be bound."""
        who = self._admit()
        if not isinstance(called, bytes | memoryview) or len(called) != PEER_ID_BYTES:  # of a number, bytes() would be
            raise ConfigError("a channel to nobody", do_next="name the peer by its id")
        called_peer = PeerId(bytes(called))
        if called_peer == self._peer.id:  # only to see whether datagrams get here
            mine = self.channels.open(who, called_peer, self._loop.time()).ours
            return mine.number, mine.secret, mine.lease_s
        if not self._peer.has_session(called_peer):
            raise PeerUnreachableError(
                f"peer {peer_text(called_peer)[:8]} is not connected to relay {peer_text(self._peer.id)[:8]}",
                peer=peer_text(called_peer),
            )
        opened = self.channels.open(who, called_peer, self._loop.time())
        if (member := self._peer.sessions.member(called_peer)) is not None:
            self._members[called_peer] = member
        task = self._loop.create_task(self._tell(called_peer, opened.theirs, who))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
        return opened.ours.number, opened.ours.secret, opened.ours.lease_s

    @method(role=None, idempotent=True)
    def keep(self, numbers: list[int]) -> list[int]:
        """Renew the leases of these channels; those that are there."""
        known = [number for number in numbers[:KEEP_MAX] if isinstance(number, int)]
        return self.channels.keep(self._admit(), known, self._loop.time())

    @method(role=None, idempotent=True)
    def close(self, number: int) -> None:
        """End a channel of the caller."""
        if isinstance(number, int):
            self.channels.close(caller.get().peer, number)

    def _admit(self) -> PeerId:
        """Who calls, if we may serve it. Raises PermissionDeniedError."""
        me = self._peer.credentials.member
        if not me.roles & Role.RELAY:
            raise PermissionDeniedError(role="relay", peer=peer_text(self._peer.id), action="carry what others send")
        peer = caller.get().peer
        if (member := self._peer.sessions.member(peer)) is not None:
            self._members[peer] = member
        return peer

    async def _tell(self, called: PeerId, grant: Grant, who: PeerId) -> None:
        try:
            await self._peer.call(
                called, "relayed.opened", bytes(who), grant.number, grant.secret, grant.lease_s, timeout_s=TELL_S
            )
        except LatticaError as error:
            log.info("%s was not told of a channel: %s", short_peer(called), str(error).partition("\n")[0])
            self.channels.close(called, grant.number)

    # -- datagrams

    def bind(self, where: Hashable, seen: Endpoint, data: bytes) -> bool:
        """A BIND, from somebody at `where`. Whether the channel is one of ours."""
        answer = self.channels.bind(data, where, seen, self._loop.time())
        if answer is not None:
            self._send(where, [answer])
            self._soon()
        return answer is not None

    def relayed(self, where: Hashable, data: bytes) -> None:
        """A RELAYED, from somebody at `where`."""
        if self.channels.relayed(data, where):
            self._came += 1
            if not self._flushing:
                self._soon()

    def _soon(self) -> None:
        if not self._flushing and not self._waits and not self._stopped:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what waits, as far as one turn of the loop allows."""
        self._flushing = False
        came, self._came = self._came, 0
        if came >= BATCH_MAX and self._reads < READS_FIRST:
            self._reads += 1
            self._soon()
            return
        self._reads = 0
        began = perf_counter()
        self._send_waiting()
        self._seconds += perf_counter() - began

    def _send_waiting(self) -> None:
        taken = list(self.channels.take(FLUSH_BYTES))
        for place, (lane, where, datagrams) in enumerate(taken):
            sent = self._send(where, datagrams)
            if sent < len(datagrams):
                left = [(lane, datagrams[sent:]), *((lane, each) for lane, _, each in taken[place + 1 :])]
                self._put_back(where, left)
                return
        if self.channels.queue.ready:
            self._soon()

    def _send(self, where: Hashable, datagrams: list[bytes]) -> int:
        """How many could be sent; the rest waits."""
        if isinstance(where, Direct):
            return self._socket.offer(where, datagrams)
        if isinstance(where, Framed):
            where.send(datagrams)
            if where.is_full:
                self.channels.hold(where)
        return len(datagrams)

    def _put_back(self, where: Hashable, left: list[tuple[Lane, list[bytes]]]) -> None:
        """The kernel has no room."""
        for lane, datagrams in reversed(left):
            self.channels.put_back(lane, datagrams)
        assert isinstance(where, Direct), "a connection is held before it is full"
        self._waits = True
        self._socket.when_writable(where, self._writable)

    def _writable(self) -> None:
        self._waits = False
        self._soon()

    # -- connections

    def accept(self, framed: Framed, member: Member) -> None:
        """A member has connected, since its UDP is blocked."""
        mine = self._framed.setdefault(member.peer, {})
        while len(mine) >= FRAMED_MAX:
            oldest = next(iter(mine))
            del mine[oldest]
            oldest.close()
        mine[framed] = self._loop.time()
        self._members[member.peer] = member
        framed.drained = self._drained
        framed.ended = lambda framed: self._lost(member.peer, framed)

    def heard(self, framed: Framed, member: Member) -> None:
        """It brought something."""
        if framed in self._framed.get(member.peer, ()):
            self._framed[member.peer][framed] = self._loop.time()

    def _drained(self, framed: Framed) -> None:
        if not framed.is_full:
            self.channels.resume(framed)
            self._soon()

    def _lost(self, peer: PeerId, framed: Framed) -> None:
        self.channels.gone(framed)
        mine = self._framed.get(peer, {})
        mine.pop(framed, None)
        if not mine:
            self._framed.pop(peer, None)

    # -- time

    def _look(self) -> None:
        self._timer = self._loop.call_later(LOOK_S, self._look)
        now = self._loop.time()
        self.channels.tick(now)
        here = self.channels.members() | self._framed.keys()
        unix_s = self._peer.steward.unix_s()
        for peer, member in list(self._members.items()):
            if peer not in here:
                del self._members[peer]
            elif why := self._peer.steward.objection(member, unix_s):
                log.info("%s is not served any more: %s", short_peer(peer), why)
                self.channels.expel(peer)
                self._close_framed(peer, lambda _: True)
        for peer in list(self._framed):
            self._close_framed(peer, lambda heard_at: heard_at + FRAMED_IDLE_S <= now)

    def _close_framed(self, peer: PeerId, which: Callable[[float], bool]) -> None:
        for framed, heard_at in list(self._framed.get(peer, {}).items()):
            if which(heard_at):
                self._lost(peer, framed)
                framed.close()

    # -- for people

    @property
    def seconds(self) -> float:
        """Spent in sending what waited, since the beginning."""
        return self._seconds

    def numbers(self) -> dict[str, float]:
        """What there is to count, for metrics."""
        counts, queue = self.channels.counts, self.channels.queue
        return {
            "channels": len(self.channels),
            "reservations": self.channels.reservations,
            "queued_bytes": queue.bytes,
            "forwarded_datagrams_total": counts.forwarded,
            "forwarded_bytes_total": counts.forwarded_bytes,
            "dropped_datagrams_total": queue.dropped,
            "refused_datagrams_total": counts.unknown + counts.misplaced + counts.forged,
            "channels_opened_total": counts.opened,
        }
