"""Keys with other peers, for as long as there is a session with each (`nat.key`)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from lattica.errors import LatticaError, RemoteProtocolError
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.nat.datagrams import SECRET_BYTES, Keys
from lattica.mesh.nat_shell.exchange import Card, keys_of, read_card, write_card

if TYPE_CHECKING:
    from lattica.mesh.peer import Peer

log = logging.getLogger(__name__)
KEY_S = 5.0  # for a peer to answer


class Known(msgspec.Struct):
    """With whom we have keys. theirs: its half; card: its latest that says anything."""

    theirs: bytes
    keys: Keys
    card: Card


class Keyring:
    """See the module. agreed(peer): there are keys now. served(peer): (the port of our second socket, whether others
    can answer for us), for one who wants us as a witness."""

    def __init__(
        self, peer: Peer, agreed: Callable[[PeerId], None], served: Callable[[PeerId], tuple[int, bool]]
    ) -> None:
        self._peer, self._agreed_, self._served = peer, agreed, served
        self._halves: dict[PeerId, bytes] = {}
        self._known: dict[PeerId, Known] = {}
        self._owners: dict[bytes, PeerId] = {}  # key id -> whose it is
        self._asking: dict[PeerId, asyncio.Task[Known | None]] = {}

    def __repr__(self) -> str:
        return f"<Keyring: {len(self._known)} peers>"

    def __len__(self) -> int:
        return len(self._known)

    def get(self, peer: PeerId) -> Known | None:
        """Our keys with this peer, if we have exchanged cards."""
        return self._known.get(peer)

    def owner_of(self, id: bytes) -> PeerId | None:
        """Whose key this is."""
        return self._owners.get(id)

    def stop(self) -> None:
        for task in self._asking.values():
            task.cancel()

    def forget(self, peer: PeerId) -> None:
        """The session is over."""
        self._halves.pop(peer, None)
        if (known := self._known.pop(peer, None)) is not None:
            self._owners.pop(known.keys.receiving.id, None)
        if (task := self._asking.pop(peer, None)) is not None:
            task.cancel()

    async def ask(self, peer: PeerId, *, asks: bool = False) -> Known | None:
        """Keys with this peer, with whom there is a session; None: it has none for us. asks: it shall be a witness."""
        task = self._asking.get(peer)
        if task is None or asks:
            task = asyncio.get_running_loop().create_task(self._exchange(peer, asks))
            self._asking[peer] = task
            task.add_done_callback(lambda done: self._asked(peer, done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                return None  # the session is over
            raise

    def ask_soon(self, peer: PeerId) -> None:
        """As `ask`, without waiting for it."""
        if peer not in self._asking:
            task = self._asking[peer] = asyncio.get_running_loop().create_task(self._exchange(peer, False))
            task.add_done_callback(lambda done: self._asked(peer, done))

    def asked(self, peer: PeerId, card: object) -> bytes:
        """The peer has sent its card; ours. Raises RemoteProtocolError."""
        theirs = read_card(card)
        self._agreed(peer, theirs)
        port, has_others = self._served(peer) if theirs.asks else (0, False)
        return write_card(Card(self._half(peer), False, port, has_others))

    def _half(self, peer: PeerId) -> bytes:
        half = self._halves.get(peer)
        if half is None:
            half = self._halves[peer] = os.urandom(SECRET_BYTES)  # the peer's own numbers can be guessed from others
        return half

    async def _exchange(self, peer: PeerId, asks: bool) -> Known | None:
        mine = write_card(Card(self._half(peer), asks))
        try:
            answer = await self._peer.call(peer, "nat.key", mine, timeout_s=KEY_S, idempotent=True)
            return self._agreed(peer, read_card(answer))
        except LatticaError as error:  # it runs a release that knows nothing of this, or is gone
            log.info("no keys with %s: %s", short_peer(peer), str(error).partition("\n")[0])
            return None

    def _asked(self, peer: PeerId, task: asyncio.Task[Known | None]) -> None:
        if self._asking.get(peer) is task:
            del self._asking[peer]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("keys with %s", short_peer(peer), exc_info=error)

    def _agreed(self, peer: PeerId, card: Card) -> Known | None:
        """Both halves are known. Raises RemoteProtocolError if theirs was another one before."""
        known = self._known.get(peer)
        if known is not None:
            if known.theirs != card.half:
                raise RemoteProtocolError("it changed its half of a secret within one session")
            if card.port or card.has_others:
                known.card = card
            return known
        if not self._peer.has_session(peer):
            return None
        keys = keys_of(self._half(peer), card.half, lower=self._peer.id < peer)
        known = self._known[peer] = Known(card.half, keys, card)
        self._owners[keys.receiving.id] = peer
        self._agreed_(peer)
        return known
