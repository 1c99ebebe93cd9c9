"""The DHT as programs see it: records and providers, put and found. Carries `dht` over the sessions.

A message to a peer without a session waits for one that is dialed for it; such sessions are few, since every peer
remembers who serves, and they are let go when they were idle for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from lattica.errors import GetTimeoutError, LatticaError
from lattica.mesh.alarm import Alarm
from lattica.mesh.dht import messages
from lattica.mesh.dht.events import Event, LookupFinished, ProvidersFound, RecordFound, Stored
from lattica.mesh.dht.kademlia import Kademlia
from lattica.mesh.dht.keys import Key, content_key, peer_key, topic_key, value_key
from lattica.mesh.dht.messages import Send
from lattica.mesh.identity import PeerId
from lattica.mesh.notices import DHT

if TYPE_CHECKING:
    from lattica.mesh.peer import Peer

DIAL_S = 5.0  # for a session with a peer that is to be asked
IDLE_S = 30.0  # then a session that was dialed for a question is let go
WAITING_MAX = 64  # messages that wait for one session; a core asks again what got lost
DIALS_MAX = 32  # at once
ANSWER_S = 30.0  # for a look-up: five asks of each silent peer take less


class Directory:
    """See the module. One per peer."""

    def __init__(self, peer: Peer, mesh: bytes, boot: int, checks: Any, wall_offset: float) -> None:
        identity = peer.credentials.identity
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._tick)
        self._core = Kademlia(
            identity.public_key, Random(peer.rng.random()), sign=identity.sign, verify=checks.signed, mesh=mesh,
            boot=boot, wall_offset=wall_offset,
        )  # fmt: skip
        self._asked: dict[tuple[type[Event], Key], list[asyncio.Future[Any]]] = {}
        self._waiting: dict[PeerId, list[bytes]] = {}
        self._dials: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Directory: {self._core!r}>"

    # -- doors

    async def put_record(self, name: str, value: bytes) -> int:
        """Keep a small value in the DHT under this peer's name, renewed while it runs. How many others keep it."""
        effects = self._core.put_record(name, value, self._loop.time())
        stored: Stored = await self._answer(Stored, value_key(self._peer.id, name), effects)
        return stored.count

    async def get_record(self, writer: PeerId, name: str) -> bytes | None:
        """What a peer keeps there under this name; None if nothing was found."""
        effects = self._core.get_record(writer, name, self._loop.time())
        found: RecordFound = await self._answer(RecordFound, value_key(writer, name), effects)
        return found.record.value if found.record is not None else None

    async def find_peer(self, peer: PeerId) -> tuple[str, ...]:
        """Where a peer says that it is; nothing if it does not say."""
        found: RecordFound = await self._answer(
            RecordFound, peer_key(peer), self._core.find_peer(peer, self._loop.time())
        )
        return found.record.addresses if found.record is not None else ()

    async def provide(self, what: bytes | str) -> int:
        """Be found as a provider of content (bytes: its id) or of a topic (text) while this peer runs. How many others
        remember it."""
        key = key_of(what)
        stored: Stored = await self._answer(Stored, key, self._core.provide(key, self._loop.time()))
        return stored.count

    def withdraw(self, what: bytes | str) -> None:
        """Be a provider no more; others forget it within an hour."""
        self._core.withdraw(key_of(what))

    async def find_providers(self, what: bytes | str) -> dict[PeerId, tuple[str, ...]]:
        """Who provides this, and where they are."""
        key = key_of(what)
        found: ProvidersFound = await self._answer(
            ProvidersFound, key, self._core.find_providers(key, self._loop.time())
        )
        return {record.writer: record.addresses for record in found.records}

    # -- what the peer tells

    def reachable(self, addresses: Sequence[str], *, ephemeral: bool = False) -> None:
        """We are at these addresses; others may ask us there, unless we go with a program."""
        self._carry_out(self._core.reachable(addresses, bool(addresses) and not ephemeral, self._loop.time()))

    def saw(self, peer: PeerId, addresses: Sequence[str], *, ephemeral: bool = False) -> None:
        """A member that lives. It serves if it can be dialed, and is none that goes with a program: that one would not
        answer, and whoever asked would wait for it."""
        self._carry_out(self._core.saw(peer, addresses, bool(addresses) and not ephemeral, self._loop.time()))

    def gone(self, peer: PeerId) -> None:
        """It died, left or was revoked."""
        self._carry_out(self._core.gone(peer, self._loop.time()))

    def connected(self, peer: PeerId) -> None:
        """There is a session: what waited for it goes out."""
        for body in self._waiting.pop(peer, ()):
            self._peer.send_notice(peer, DHT, body)

    def notice(self, peer: PeerId, body: bytes) -> None:
        """A message of the protocol. Raises RemoteProtocolError."""
        self._carry_out(self._core.receive(peer, messages.decode(body), self._loop.time()))

    def correct_clock(self, wall_offset: float) -> None:
        """Unix time minus the loop's."""
        self._core.wall_offset = wall_offset

    def stop(self) -> None:
        """End what is under way."""
        self._alarm.cancel()
        for task in list(self._dials):
            task.cancel()
        for waiters in self._asked.values():
            for waiter in waiters:
                waiter.cancel()
        self._asked.clear()

    # -- inside

    async def _answer(self, kind: type[Event], key: Key, effects: Sequence[Any]) -> Any:
        waiter = self._loop.create_future()
        self._asked.setdefault((kind, key), []).append(waiter)
        self._carry_out(effects)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await waiter
        except TimeoutError as error:
            raise GetTimeoutError(timeout_s=ANSWER_S, waiting_for="an answer of the DHT") from error
        finally:
            waiters = self._asked.get((kind, key), [])
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters:
                self._asked.pop((kind, key), None)

    def _carry_out(self, effects: Sequence[Any]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, addresses, message):
                    self._send(peer, addresses, messages.encode(message))
                case ProvidersFound(key, _, finished):
                    if finished:
                        self._tell(effect, key)
                case RecordFound(key) | Stored(key):
                    self._tell(effect, key)
                case LookupFinished(key):
                    self._tell(effect, key)
        self._alarm.set(self._core.next_deadline())

    def _tell(self, event: Event, key: Key) -> None:
        for waiter in self._asked.pop((type(event), key), ()):
            if not waiter.done():
                waiter.set_result(event)

    def _send(self, peer: PeerId, addresses: Sequence[str], body: bytes) -> None:
        if self._peer.has_session(peer):
            self._peer.send_notice(peer, DHT, body)
            return
        waiting = self._waiting.get(peer)
        if waiting is not None:
            if len(waiting) < WAITING_MAX:
                waiting.append(body)
            return
        if len(self._dials) >= DIALS_MAX:
            return
        self._waiting[peer] = [body]
        task = self._loop.create_task(self._dial(peer, tuple(addresses)))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _dial(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        try:
            await self._peer.connect(peer, addresses, timeout_s=DIAL_S)
            self._loop.call_later(IDLE_S, self._let_go, peer)
        except LatticaError:
            pass  # the core asks somebody else
        finally:
            self._waiting.pop(peer, None)

    def _let_go(self, peer: PeerId) -> None:
        if peer not in self._peer.gossip.community.membership.kept:
            self._peer.release(peer)

    def _tick(self) -> None:
        self._carry_out(self._core.tick(self._loop.time()))


def key_of(what: bytes | str) -> Key:
    """Where content (bytes) or a topic (text) stands."""
    return topic_key(what) if isinstance(what, str) else content_key(what)
