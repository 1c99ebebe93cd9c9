"""One end of a channel with its timer, as its owner's shell has it."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable, Sequence
from random import Random
from typing import Protocol

from lattica.mesh.alarm import Alarm
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.nat.datagrams import ID_BYTES, RELAYED
from lattica.mesh.nat.routes import Direct, ViaRelay
from lattica.mesh.relay.binding import Binding, Effect, Lost, Say
from lattica.mesh.relay.channels import LEASE_S
from lattica.mesh.relay.framed import Framed
from lattica.mesh.transport.path_socket import PathSocket

PATIENCE_S = (0.1, 0.3)
"""For UDP to the relay, before a TLS connection is tried as well: two round trips and a bit, as far as they are known,
and no less and no more than this."""
ASKED_TWICE = 2  # BINDs without an answer, after which another way is tried as well
LEAST_S = 0.001


class Owner(Protocol):
    """Who has all of them."""

    socket: PathSocket

    def channel_lost(self, channel: OwnChannel, reason: str) -> None: ...
    def another_way(self, relay: PeerId) -> None:
        """UDP may be blocked on the way to this relay."""


class OwnChannel:
    """A channel by way of `relay` to `peer`. `up` is done when the relay has answered, or fails with why not."""

    def __init__(
        self,
        owner: Owner,
        relay: PeerId,
        peer: PeerId,
        number: int,
        secret: bytes,
        ways: Iterable[Hashable],
        rng: Random,
        rtt_s: float | None = None,
    ) -> None:
        """rtt_s: round trip to the relay, as our session with it knows."""
        self.relay, self.peer, self.number = relay, peer, number
        self.route = ViaRelay(relay, number)
        self.other = (number ^ 1).to_bytes(ID_BYTES, "big")  # what comes to us begins with
        self.closed = False
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self.began_at = self._loop.time()
        self.leased_until = self.began_at + LEASE_S
        self.up: asyncio.Future[ViaRelay] = self._loop.create_future()
        self.binding = Binding(number, secret, rng, self.began_at)
        self.came_at = float("-inf")  # a datagram of the other end
        self._head = bytes([RELAYED]) + number.to_bytes(ID_BYTES, "big")
        self._inbox: list[bytes] = []
        least, most = PATIENCE_S
        patience_s = most if rtt_s is None else min(max(2 * rtt_s + least / 2, least), most)
        self._alarm = Alarm(self._tick)
        for way in ways:
            self.perform(self.binding.add(way, self.began_at))
        self._loop.call_later(patience_s, self._look_for_another_way)
        self.arm()

    def __repr__(self) -> str:
        return f"<OwnChannel to {short_peer(self.peer)} by {short_peer(self.relay)}: {self.binding!r}>"

    @property
    def used_at(self) -> float:
        """When something went or came."""
        return max(self.began_at, self.binding.sent_at, self.came_at)

    # -- datagrams

    def send(self, datagrams: Sequence[bytes]) -> None:
        """To the other end."""
        way, head = self.binding.way, self._head
        wrapped = [head + datagram for datagram in datagrams]
        if isinstance(way, Direct):
            self._owner.socket.send(way, wrapped)
        elif isinstance(way, Framed):
            way.send(wrapped)
        if self.binding.sent(self._loop.time()):
            self.arm()

    def arrived(self, payload: bytes) -> None:
        """From the other end; what comes in one turn of the loop is handed on together."""
        now = self._loop.time()
        self.binding.heard(now)
        self.came_at = now
        if not self._inbox:
            self._loop.call_soon(self._hand_on)
        self._inbox.append(payload)

    def _hand_on(self) -> None:
        inbox, self._inbox = self._inbox, []
        if not self.closed:
            self._owner.socket.arrived_together(self.route, inbox)

    # -- the binding

    def bound(self, data: bytes) -> bool:
        """A BOUND came. Whether it is the first."""
        self.binding.bound(data, self._loop.time())
        self.arm()
        if self.binding.way is None or self.up.done():
            return False
        self.up.set_result(self.route)
        return True

    def perform(self, effects: Sequence[Effect]) -> None:
        """Carry out what the binding asks for."""
        for effect in effects:
            if isinstance(effect, Lost):
                self._owner.channel_lost(self, effect.reason)
            else:
                self._say(effect)
        if effects and not self.closed and self.binding.unanswered >= ASKED_TWICE:
            self._owner.another_way(self.relay)
        self.arm()

    def _look_for_another_way(self) -> None:
        if self.binding.way is None and not self.closed:
            self._owner.another_way(self.relay)

    def _say(self, say: Say) -> None:
        if isinstance(say.way, Direct):
            self._owner.socket.send(say.way, [say.data])
        elif isinstance(say.way, Framed):
            say.way.send([say.data])

    def close(self, reason: str) -> None:
        """It is of no use any more."""
        self.closed = self.binding.over = True
        self._alarm.cancel()
        if not self.up.done():
            self.up.set_exception(ConnectionError(reason))
            self.up.exception()

    # -- time

    def arm(self) -> None:
        """A timer that comes too early asks again: setting one for each packet would cost more."""
        due = None if self.closed else self.binding.next_deadline()
        if due is not None:
            self._alarm.set(max(due, self._loop.time() + LEAST_S))

    def _tick(self) -> None:
        self.perform(self.binding.tick(self._loop.time()))
