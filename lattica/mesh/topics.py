"""Topics as programs see them: `publish` a value, iterate over a `Subscription`. Carries `pubsub` over the sessions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Self

import msgspec

from lattica.mesh import publications, values
from lattica.mesh.alarm import Alarm
from lattica.mesh.identity import PeerId
from lattica.mesh.notices import PUBSUB
from lattica.mesh.pubsub import Effect, Published, PubSub, Send

if TYPE_CHECKING:
    from lattica.mesh.peer import Peer
    from lattica.mesh.table.replica import Replica

QUEUE_MAX = 1024
"""Publications that wait for one subscriber; then the oldest is dropped, and counted. More would hold 64 MiB."""


class Message(msgspec.Struct, frozen=True):
    """What was published. publisher: by its certificate and signature."""

    topic: str
    publisher: PeerId
    value: Any


class Subscription:
    """Messages of one topic as they come: iterate over it, in an `async with` block that ends it.

    Each message comes once, messages of one publisher not always in order. dropped: how many were, because this reader
    was QUEUE_MAX behind.
    """

    def __init__(self, topics: Topics, topic: str) -> None:
        self.topic, self.dropped = topic, 0
        self._topics = topics
        self._waiting: deque[Published] = deque()
        self._wakes: asyncio.Future[None] | None = None
        self._over = False

    def __repr__(self) -> str:
        return f"<Subscription to {self.topic!r}: {len(self._waiting)} wait, {self.dropped} dropped>"

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        while not self._waiting:
            if self._over:
                raise StopAsyncIteration
            self._wakes = asyncio.get_running_loop().create_future()
            try:
                await self._wakes
            finally:
                self._wakes = None
        published = self._waiting.popleft()
        return Message(published.topic, published.publisher, values.decode(published.body))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more comes; what waits may still be read."""
        self._over = True
        self._topics.ended(self)
        self._wake()

    def came(self, published: Published) -> None:
        """One more."""
        if len(self._waiting) >= QUEUE_MAX:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(published)
        self._wake()

    def _wake(self) -> None:
        if self._wakes is not None and not self._wakes.done():
            self._wakes.set_result(None)


class Topics:
    """See the module. One per peer."""

    def __init__(self, peer: Peer, replica: Replica, checks: Any) -> None:
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._tick)
        self._subscriptions: dict[str, list[Subscription]] = {}

        def verify(publisher: PeerId, signature: bytes, data: bytes) -> bool:
            member = replica.member(publisher)
            return (
                member is not None
                and not replica.distrusts(publisher)
                and bool(checks.signed(member.public_key, signature, data))
            )

        self._core = PubSub(
            peer.id, replica.boot, Random(peer.rng.random()), sign=peer.credentials.identity.sign, verify=verify,
            mesh=replica.mesh,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<Topics: {self._core!r}>"

    def publish(self, topic: str, value: Any) -> None:
        """Bring a value to all subscribers of a topic. Raises ConfigError and LatticaError, as `PubSub.publish`."""
        parts, _ = values.encode(value)
        self._carry_out(self._core.publish(topic, b"".join(parts), self._loop.time()))

    def subscribe(self, topic: str) -> Subscription:
        """What is published to this topic from now on."""
        self._carry_out(self._core.subscribe(topic, self._loop.time()))
        found = Subscription(self, topic)
        self._subscriptions.setdefault(topic, []).append(found)
        return found

    def ended(self, subscription: Subscription) -> None:
        """A subscription is over."""
        mine = self._subscriptions.get(subscription.topic, [])
        if subscription in mine:
            mine.remove(subscription)
        if not mine and self._subscriptions.pop(subscription.topic, None) is not None:
            self._carry_out(self._core.unsubscribe(subscription.topic, self._loop.time()))

    def stop(self) -> None:
        """End all subscriptions."""
        self._alarm.cancel()
        for subscription in [each for mine in self._subscriptions.values() for each in mine]:
            subscription.close()

    # -- what the sessions say

    def connected(self, peer: PeerId) -> None:
        """There is a session."""
        self._carry_out(self._core.connected(peer, self._loop.time()))

    def disconnected(self, peer: PeerId) -> None:
        """There is none any more."""
        self._core.disconnected(peer)

    def notice(self, peer: PeerId, body: bytes) -> None:
        """A message of the protocol. Raises RemoteProtocolError."""
        self._carry_out(self._core.receive(peer, publications.decode(body), self._loop.time()))

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, message):
                    self._peer.send_notice(to, PUBSUB, publications.encode(message))
                case Published(topic):
                    for subscription in list(self._subscriptions.get(topic, ())):
                        subscription.came(effect)
        self._alarm.set(self._core.next_deadline())

    def _tick(self) -> None:
        self._carry_out(self._core.tick(self._loop.time()))
