"""What our processes wait for, and other machines have: asked for once per machine, and brought into the arena.

    Want ─► its lender ─► Here (few bytes, or who has them) ─► fetched, verified, into the arena
                     └──► Here(away, holders) ─► Want ─► a holder ─► Here ─► Has ─► the lender, who names us from now on

What its lender cannot bring, because it is gone or has it no more, is looked for elsewhere (`far_searching`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lattica.codec import far
from lattica.errors import LatticaError, RemoteProtocolError
from lattica.ids import ACTOR_ID_BYTES
from lattica.mesh.identity import PeerId
from lattica.node.far_lending import ID_SIZES
from lattica.node.far_serving import IN_MESSAGE_MAX_BYTES, SAID_MAX_BYTES
from lattica.node.holders import HOLDERS_MAX

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour
    from lattica.node.far_objects import FarObjects

log = logging.getLogger(__name__)
CONTAINS_MAX = 1 << 20  # of one object


class FarFetching:
    """See the module."""

    def __init__(self, desk: FarDesk, objects: FarObjects) -> None:
        self._desk, self._objects, self._store = desk, objects, desk.node.store
        self._loop = asyncio.get_running_loop()
        self.wanted: dict[bytes, PeerId] = {}  # asked of this node, and not told
        self.tasks: dict[bytes, asyncio.Task[None]] = {}  # each brings one object
        self.sources: dict[bytes, Neighbour] = {}  # of what is being fetched: who has said where it lies

    def __repr__(self) -> str:
        return f"<FarFetching: {len(self.wanted)} asked for, {len(self.tasks)} being fetched>"

    # -- asking

    def resolve(self, objects: Sequence[bytes]) -> None:
        """Some of these may be wanted from elsewhere."""
        ledger = self._store.ledger
        for object_ in objects:
            if ledger.lender(object_) is not None and ledger.awaited(object_):
                self.fetch(object_)

    def fetch(self, object_: bytes) -> None:
        """Ask its lender for it, once, or those whom it has named."""
        if object_ in self.wanted or object_ in self.tasks:
            return
        if self._store.ledger.is_spilled(object_):
            self._store.bring_back(object_, lambda _: None)
            return
        lender = self._objects.lender(object_)
        if lender is None:
            self._objects.searching.look_again(object_)
        elif self._objects.holders.asking(object_):
            self._ask_on(object_, "")
        else:
            self._ask(object_, lender)

    def _ask(self, object_: bytes, neighbour: Neighbour, *, fetch: bool = False) -> None:
        """fetch: it shall bring what it does not have."""
        self.wanted[object_] = neighbour.peer
        neighbour.link.send(far.Want(object_, fetch=fetch))

    def _ask_on(self, object_: bytes, how: str) -> None:
        """Ask the next one that was named; when all were, have the lender bring it. how: why it is sought if that is
        gone."""
        lender = self._objects.lender(object_)
        peer = self._objects.holders.next(object_, self._desk.lives)
        if peer is not None:
            self._ask(object_, self._desk.neighbour(peer))
        elif lender is not None:
            self._ask(object_, lender, fetch=True)
        else:
            self._objects.searching.seek(object_, how)

    def is_busy(self, object_: bytes, but: PeerId | None = None) -> bool:
        """Whether it is on its way, or somebody other than `but` is asked for it."""
        return object_ in self.tasks or self.wanted.get(object_, but) != but

    def forget(self, object_: bytes) -> None:
        """Nobody is asked for it any more."""
        self.wanted.pop(object_, None)

    # -- answers

    def here(self, neighbour: Neighbour, message: far.Here) -> None:
        """They say where it lies."""
        if message.away:
            self._sent_on(neighbour, message)
            return
        if self._objects.is_earlier(neighbour, message):
            self._give_back(neighbour, message.contains)
            self.nowhere(neighbour, far.Nowhere(message.object, "it was made again since"))
            return
        if self.wanted.get(message.object) == neighbour.peer:
            del self.wanted[message.object]
        elif not self._objects.searching.found(neighbour, message.object):
            self._give_back(neighbour, message.contains)
            return
        said_right = 0 <= message.size <= SAID_MAX_BYTES and len(message.contains) <= CONTAINS_MAX
        if not said_right or not all(len(inner) in ID_SIZES for inner in message.contains):
            raise RemoteProtocolError(f"an object of {message.size} bytes that refers to what cannot be")
        if len(message.data) not in (0, message.size):
            raise RemoteProtocolError(f"an object of {message.size} bytes came with {len(message.data)}")
        task = self.tasks[message.object] = self._loop.create_task(self._bring(neighbour, message))
        self.sources[message.object] = neighbour

        def done(_: object) -> None:
            del self.tasks[message.object], self.sources[message.object]

        task.add_done_callback(done)

    def nowhere(self, neighbour: Neighbour, message: far.Nowhere) -> None:
        """It will never come."""
        if self.wanted.get(message.object) != neighbour.peer:
            self._objects.searching.not_at(message.object, neighbour)
            return
        del self.wanted[message.object]
        if self._store.ledger.lender(message.object) == neighbour.client.number:
            self._objects.searching.seek(message.object, message.owner, message.made_at, neighbour)
        else:
            self._ask_on(message.object, message.owner)

    def _sent_on(self, neighbour: Neighbour, message: far.Here) -> None:
        """They do not have it, and know who does."""
        object_, holders = message.object, [PeerId(peer) for peer in message.holders[:HOLDERS_MAX]]
        if self.wanted.get(object_) != neighbour.peer:
            self._objects.searching.sent_on(neighbour, message, holders)
            return
        del self.wanted[object_]
        lender = self._objects.lender(object_)
        asked = [self._desk.me, neighbour.peer, *([lender.peer] if lender is not None else [])]
        if lender is neighbour:
            self._store.ledger.later(object_, message.attempt)
        self._objects.holders.hinted(object_, holders, message.cid, asked)
        self._ask_on(object_, "nobody has it who is said to")

    def _give_back(self, neighbour: Neighbour, objects: Sequence[bytes]) -> None:
        for inner in objects:
            neighbour.link.send(far.Returned(inner))

    # -- bringing

    async def _bring(self, neighbour: Neighbour, message: far.Here) -> None:
        try:
            if message.data or not message.size:
                offset = await self._objects.reserve(max(message.size, 1))
                self._store.arena.write(offset, [message.data])
            else:
                offset = await self._read_blocks(neighbour, message)
        except LatticaError as error:
            self._give_back(neighbour, message.contains)
            how = f"it could not be fetched from {neighbour.client.name}: {error.message}"
            log.warning("object %s: %s", message.object.hex()[:8], how)
            self._objects.holders.doubt(message.object)  # its providers were asked, too
            self._not_brought(neighbour, message.object, how)
            return
        except asyncio.CancelledError:  # by `doubted`
            self._give_back(neighbour, message.contains)
            self._not_brought(neighbour, message.object, f"{neighbour.client.name} cannot be reached")
            return
        self._arrived(neighbour, message, offset)

    async def _read_blocks(self, neighbour: Neighbour, message: far.Here) -> int:
        """Where it lies then. Raises LatticaError."""
        blocks, holders, ledger = self._objects.blocks, self._objects.holders, self._store.ledger
        if ledger.size_here(message.object) is None:
            blocks.withdraw(message.object)  # it was here once, made by a process whose span that was
        cid = message.cid or holders.cid(message.object, vouched=True) or None
        named = [PeerId(peer) for peer in message.holders[:HOLDERS_MAX]] + holders.of(message.object)
        if message.attempt and cid is None:
            named = []  # they may have what an earlier run made, and nothing else tells the two apart
        sources = [neighbour.peer, *(peer for peer in dict.fromkeys(named) if self._desk.lives(peer))]
        found = await blocks.fetch(message.object, sources, message.size, self._objects.reserve, cid=cid)
        if found.size != message.size:  # or what lies behind it would be read as a part of it, and served
            if ledger.size_here(message.object) is None:
                blocks.withdraw(message.object)
                self._objects.room.free(found.offset)
            raise RemoteProtocolError(f"it was said to have {message.size} bytes, and has {found.size}")
        return found.offset

    def _not_brought(self, neighbour: Neighbour, object_: bytes, how: str) -> None:
        lender = self._objects.lender(object_)
        if lender is None or lender is neighbour:
            self._objects.searching.seek(object_, how, but=neighbour)
            return
        if lender.doubtful:
            self._store.perform(self._store.ledger.doubted(object_, how))
        # that one was named by the lender, or it was made anew meanwhile; and this fetch ends first
        self._loop.call_soon(self._loop.call_soon, self.resolve, [object_])

    def _arrived(self, neighbour: Neighbour, message: far.Here, offset: int) -> None:
        objects, store, ledger = self._objects, self._store, self._store.ledger
        object_, mine = message.object, objects.room.client.number
        if not ledger.held(object_) and not ledger.awaited(object_):
            objects.blocks.withdraw(object_)  # nobody wants it any more
            objects.room.free(offset)
            self._give_back(neighbour, message.contains)
            return
        lender = objects.lender(object_)
        self._borrow(neighbour, message.contains)
        objects.room.sealed(object_, offset)
        if message.size > IN_MESSAGE_MAX_BYTES:
            objects.serving.offer(object_, offset, message.size, message.failed)
        objects.holders.forget(object_)
        objects.searching.came(object_)
        store.perform(
            ledger.seal(mine, object_, offset, message.size, 0, message.failed, message.contains, message.attempt)
        )
        if store.spill is not None:
            store.spill.sealed(object_)
        if lender is not None and lender is not neighbour:
            lender.link.send(far.Has(object_, objects.blocks.cid_of(object_)))
        for inner in message.contains:
            store.perform(ledger.drop(mine, inner))
        store.perform(ledger.drop(mine, object_))

    def _borrow(self, neighbour: Neighbour, contains: Sequence[bytes]) -> None:
        """What has come contains these, which they have lent us with it."""
        ledger, mine = self._store.ledger, self._objects.room.client.number
        gone = self._desk.neighbours.get(neighbour.peer) is not neighbour  # and so are its loans
        for inner in contains:
            effects, keep = ledger.borrow(mine, inner, mine if gone else neighbour.client.number, value=False)
            self._store.perform(effects)
            if gone and keep and len(inner) != ACTOR_ID_BYTES:
                how = f"the connection with {neighbour.client.name} was lost"
                self._objects.searching.seek(inner, how, but=neighbour)
            elif not keep:
                neighbour.link.send(far.Returned(inner))

    # -- nodes that are gone, or out of reach

    def doubted(self, neighbour: Neighbour) -> None:
        """It cannot be reached: what comes from there is had elsewhere."""
        for object_, source in self.sources.items():
            if source is neighbour:
                self._objects.holders.learned(object_, self._objects.blocks.cid_of(object_), vouched=True)
                self.tasks[object_].cancel()
        self.ask_others(neighbour)

    def ask_others(self, neighbour: Neighbour) -> None:
        """It will not answer, and did not lend what we have asked it for."""
        lender = neighbour.client.number
        for object_ in [each for each, peer in self.wanted.items() if peer == neighbour.peer]:
            if self._store.ledger.lender(object_) != lender:
                del self.wanted[object_]
                self._ask_on(object_, f"{neighbour.client.name} cannot be reached")
