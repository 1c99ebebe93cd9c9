"""Objects across machines: who lends, serves, fetches and looks for them, over the one arena of a node.

    far_lending     who was given what: `FromAfar` of a process → `Took` … `Returned`
    far_serving     what other nodes ask: `Want` → `Here`, or who has it
    far_fetching    what a process here waits for: `Want` → `Here` → into the arena, once per machine → `Has`
    far_searching   what a node that is gone has lent: asked of all who may have it, missing, or lost

A node that borrows an object lends it on: its own lender keeps it as long as somebody here or further on holds it. When
a lender is gone, what was fetched stays, and what was not is asked of those who are known to have it, and of those whom
the DHT knows by its content, if we have heard of that.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lattica.codec import far
from lattica.codec import messages as m
from lattica.errors import ObjectStoreFullError, OutOfDiskError
from lattica.ids import ACTOR_ID_BYTES
from lattica.node.blocks import Blocks
from lattica.node.far_fetching import FarFetching
from lattica.node.far_lending import FarLending
from lattica.node.far_searching import FarSearching
from lattica.node.far_serving import FarServing
from lattica.node.holders import Holders
from lattica.node.room import Room
from lattica.objectstore.arena import ArenaMap

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour


class FarObjects:
    """See the module. `room`: this node as one that writes into the arena, like any process; its client's number stands
    for this node in the ledger."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk, self._node, self._store = desk, desk.node, desk.node.store
        self._loop = asyncio.get_running_loop()
        self._map: ArenaMap | None = None
        self.room = Room(desk.node, "fetched objects", lambda object_: self.blocks.withdraw(object_))
        self.holders = Holders()
        self.lending, self.serving = FarLending(desk, self), FarServing(desk, self)
        self.fetching, self.searching = FarFetching(desk, self), FarSearching(desk, self)
        self.blocks = Blocks(
            desk.peer, self._store.arena, self._loop, self._pin, lambda offset, _: self.room.free(offset)
        )
        self.blocks.bring_back = self._bring_back

    def __repr__(self) -> str:
        return f"<FarObjects: {self.fetching!r}, {self.searching!r}>"

    # -- what is known of an object

    def lender(self, object_: bytes) -> Neighbour | None:
        """The node that lends it to us."""
        number = self._store.ledger.lender(object_)
        return None if number is None else self._desk.by_client(number)

    def is_earlier(self, neighbour: Neighbour, message: far.Here) -> bool:
        """Whether what they have was made by an earlier run than what we are to have. A lender's word counts."""
        ledger = self._store.ledger
        lends = ledger.lender(message.object) == neighbour.client.number
        return not lends and message.attempt < ledger.attempt(message.object)

    def why(self, object_: bytes) -> str:
        """Why what we borrow is not here, in words; "" if it is."""
        if (source := self.fetching.sources.get(object_)) is not None:
            return f"it is being fetched from {source.client.name}"
        if (seeking := self.searching.seeking.get(object_)) is not None:
            return f"a copy is looked for: {seeking.how}"
        if (missing := self.searching.missing.get(object_)) is not None:
            return f"{missing.how}; it is waited for, as that machine may be silent only"
        lender = self.lender(object_)
        return f"{lender.client.name}, which lends it, has not said that it has a value" if lender is not None else ""

    def missing_of(self, neighbour: Neighbour) -> list[bytes]:
        """What it lends us, and has a value, and is not here."""
        lent = self._store.ledger.lent_by(neighbour.client.number)
        return [object_ for object_ in lent if len(object_) != ACTOR_ID_BYTES]

    # -- what becomes of objects, and of nodes

    def begin_anew(self, object_: bytes) -> None:
        """Another node lends it from now on, perhaps what was made anew: who had it before is not named any more."""
        self.holders.forget(object_)
        self.serving.forget(object_)
        self.searching.came(object_)

    def unborrowed(self, lender: int, object_: bytes) -> None:
        """Nobody here holds it any more. lender: the number of the client that lent it."""
        self.fetching.forget(object_)
        self.searching.forget(object_)
        self.holders.forget(object_)
        neighbour = self._desk.by_client(lender)
        if neighbour is not None:
            neighbour.link.send(far.Returned(object_))

    def doubted(self, neighbour: Neighbour, how: str) -> None:
        """A node cannot be reached: what it has lent is made anew where that can be, and not waited for."""
        self.fetching.doubted(neighbour)
        self.searching.doubted(neighbour, how)

    def parting(self, neighbour: Neighbour, how: str) -> None:
        """The link with a node has ended: what it has lent may be had elsewhere, or of itself, if it lives; and others
        may ask for what it had borrowed, or itself."""
        self.lending.keep_estate(neighbour)
        self.searching.parting(neighbour, how)

    def parted(self, neighbour: Neighbour, how: str) -> None:
        """A node is gone: so are the answers that it owed, and what was given to its processes."""
        self.serving.parted(neighbour)
        self.searching.parted(neighbour)
        self.fetching.ask_others(neighbour)
        self.lending.parted(neighbour, how)

    # -- the arena

    async def reserve(self, size: int) -> int:
        """Where in the arena `size` bytes may be written. Raises ObjectStoreFullError."""
        reserved: asyncio.Future[int] = self._loop.create_future()

        def found(offset: int | None, denial: m.SpanDenied | None) -> None:
            if offset is None:
                assert denial is not None, "there is room, or there is none"
                if not reserved.done():
                    reserved.set_exception((OutOfDiskError if denial.disk else ObjectStoreFullError)(denial.detail))
            elif reserved.done():  # nobody waits for it any more
                self.room.free(offset)
            else:
                reserved.set_result(offset)

        self.room.allocate(size, found)
        try:
            return await reserved
        except asyncio.CancelledError:
            if not reserved.cancelled() and reserved.done() and reserved.exception() is None:
                self.room.free(reserved.result())  # it came in the turn of the loop in which its fetch was cancelled
            raise

    def bytes_of(self, object_: bytes) -> tuple[bytes, bool, Sequence[bytes]] | None:
        """(bytes, whether it is a failure, what it contains) of what lies here."""
        found = self._store.ledger.place(object_)
        if found is None:
            return None
        offset, size, failed, contains = found
        return bytes(self.reading().read(offset, size)), failed, contains

    async def take_in(self, object_: bytes, data: bytes, failed: bool, contains: Sequence[bytes]) -> None:
        """Bytes that came by another way: they lie here from now on, held once by this node. Raises
        ObjectStoreFullError."""
        ledger, store, mine = self._store.ledger, self._store, self.room.client.number
        if ledger.size_here(object_) is None:
            offset = await self.reserve(max(len(data), 1))
            if ledger.size_here(object_) is None:
                store.arena.write(offset, [data])
                self.room.sealed(object_, offset)
                store.perform(ledger.seal(mine, object_, offset, len(data), 0, failed, list(contains)))
                store.perform(ledger.give(m.NODE, object_, m.NODE))
                store.perform(ledger.drop(mine, object_))  # which `seal` has given
                return
            self.room.free(offset)
        store.perform(ledger.give(m.NODE, object_, m.NODE))

    def reading(self) -> ArenaMap:
        """The arena, for the bytes of what lies in it."""
        if self._map is None:
            arena = self._store.arena
            self._map = ArenaMap(os.dup(arena.fd), arena.size_bytes)
        return self._map

    def _pin(self, object_: bytes) -> Callable[[], object] | None:
        """Keep it while its blocks are read; None if it is gone."""
        store, mine = self._store, self.room.client.number
        if store.ledger.place(object_) is None:
            return None
        store.perform(store.ledger.hold(mine, object_))
        store.pin(object_)

        def unpin() -> None:
            store.unpin(object_)
            store.perform(store.ledger.drop(mine, object_))

        return unpin

    async def _bring_back(self, object_: bytes) -> int | None:
        """Where it lies, once it is in memory; None if that cannot be."""
        came: asyncio.Future[bool] = self._loop.create_future()

        def told(here: bool) -> None:
            if not came.done():
                came.set_result(here)

        self._store.bring_back(object_, told)
        here = self._store.ledger.place(object_) if await came else None
        return here[0] if here is not None else None
