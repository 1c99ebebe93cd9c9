"""Objects across machines: who lends what to whom, and how bytes come here.

    giver's node      holds what its process gave to a process elsewhere, under that one's number (`to`)
    receiver's node   hears `FromAfar` from its process, says `Took`: held from now on by us as a node, until `Returned`
    a process waits   Want → Here (few bytes, or who has them) → fetched, verified, into the arena, once per machine

A node that borrows an object lends it on: its own lender keeps it as long as somebody here or further on holds it. When
a lender is gone, what was fetched stays, and what was not is asked of those who are known to have it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from time import time
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.codec import far
from lattica.codec import messages as m
from lattica.errors import LatticaError, ObjectStoreFullError, RemoteProtocolError
from lattica.mesh.identity import PeerId, peer_text
from lattica.node.blocks import Blocks
from lattica.node.clients import STORE, Client
from lattica.node.proxies import proxy
from lattica.objectstore.arena import ArenaMap
from lattica.objectstore.suballocator import Suballocator, span_bytes_for

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk, Neighbour

log = logging.getLogger(__name__)
IN_MESSAGE_MAX_BYTES = 256 << 10
"""Of an object whose bytes come with the answer; larger ones are fetched in verified blocks."""
ACTOR_ID_BYTES = 12
SAID_MAX_BYTES = 1 << 40  # of one argument, by a process
HOLDERS_MAX = 8  # of an object, named in one answer
INPUTS_MAX = 8  # of a task, looked for
SERVED_MAX = 65_536
"""Objects of which it is remembered who has fetched them from here (200 B each): tasks go there as well as here."""
SEEK_S = 3.0
"""For other nodes to say whether they have what one that is gone has lent. Longer: whoever waits hears later that it is
lost, or its owner makes it anew later; shorter: a busy node's copy is not found."""
OFFERS_MIN = 256  # objects whose blocks are offered, before those that are gone are looked for
SEEK_MAX = 16  # nodes that are asked at once


class Seeking(msgspec.Struct, eq=False):
    """A search for a copy of what a node that is gone has lent. how: why; asked: who has not answered yet."""

    how: str
    made_at: str
    asked: set[PeerId]


class FarObjects:
    """See the module. `client`: this node as one that writes into the arena, like any process."""

    def __init__(self, desk: FarDesk) -> None:
        self._desk, self._node = desk, desk.node
        self._loop = asyncio.get_running_loop()
        number = desk.new_number()
        self.client: Client = proxy(number, STORE, 0, time(), "fetched objects", self._told)
        self._node.clients[number] = self.client
        self._node.store.joined(number, b"")
        self._regions = Suballocator()
        self._sealed: dict[bytes, int] = {}
        self._spans: dict[int, asyncio.Future[None]] = {}  # requests for room
        self._requests = 0
        self._map: ArenaMap | None = None
        self._sweeping = False
        self._offers: dict[bytes, None] = {}  # what others may read, or might once
        self._offers_max = OFFERS_MIN
        self._wanted: dict[bytes, PeerId] = {}  # asked of this node, and not told
        self._fetching: dict[bytes, asyncio.Task[None]] = {}
        self._sources: dict[bytes, Neighbour] = {}  # of what is being fetched: who has said where it lies
        self._seeking: dict[bytes, Seeking] = {}  # lent by nodes that are gone, and asked of others
        self._served: dict[bytes, dict[PeerId, None]] = {}  # who has fetched it from here, and holds it
        self.blocks = Blocks(
            desk.peer, self._node.store.arena, self._loop, self._pin, lambda offset, _: self._regions.free(offset)
        )

    def __repr__(self) -> str:
        return f"<FarObjects: {len(self._wanted)} asked for, {len(self._fetching)} being fetched>"

    # -- giving and taking

    def imported(self, client: Client, message: m.FromAfar) -> None:
        """A process of ours was given a hold by one elsewhere."""
        entry = self._desk.proxies.get(message.via)
        if entry is None:  # what it gave is let go there by now, unless somebody else holds it
            self._perform(self._node.store.ledger.hold(client.number, message.object))
            if self._node.store.ledger.owner(message.object) is None:
                self._perform(self._node.store.ledger.lost(message.object, "the process that gave it is long gone"))
            return
        neighbour, theirs = entry
        if (names := self._desk.far_names.get(message.via)) is not None:  # a worker: it gave to our process by number
            theirs = names.get(client.number, 0)
        effects, keep = self._node.store.ledger.borrow(
            client.number, message.object, neighbour.client.number, value=message.value
        )
        self._perform(effects)
        neighbour.link.send(far.Took(theirs, message.object, 1, keep))
        if keep and self._node.store.ledger.awaited(message.object):
            self.fetch(message.object)

    def took(self, neighbour: Neighbour, message: far.Took) -> None:
        """They hold it from now on; our process's gift is theirs."""
        ledger = self._node.store.ledger
        if message.keep:
            self._perform(ledger.give(m.NODE, message.object, neighbour.client.number))
        known = self._desk.proxies.get(message.proxy)
        if known is not None and known[0] is neighbour and 0 < message.count < 1 << 32:
            self._perform(ledger.drop(message.proxy, message.object, message.count))

    def returned(self, neighbour: Neighbour, message: far.Returned) -> None:
        """They hold it no more."""
        served = self._served.get(message.object)
        if served is not None and neighbour.peer in served:
            del served[neighbour.peer]
            if not served:
                del self._served[message.object]
        self._perform(self._node.store.ledger.drop(neighbour.client.number, message.object))

    def unborrowed(self, lender: int, object_: bytes) -> None:
        """Nobody here holds it any more."""
        self._wanted.pop(object_, None)
        self._seeking.pop(object_, None)
        neighbour = self._neighbour(lender)
        if neighbour is not None:
            neighbour.link.send(far.Returned(object_))

    def _neighbour(self, client: int) -> Neighbour | None:
        return next((each for each in self._desk.neighbours.values() if each.client.number == client), None)

    # -- asking

    def resolve(self, objects: Sequence[bytes]) -> None:
        """Some of these may be wanted from elsewhere."""
        ledger = self._node.store.ledger
        for object_ in objects:
            if ledger.lender(object_) is not None and ledger.awaited(object_):
                self.fetch(object_)

    def fetch(self, object_: bytes) -> None:
        """Ask its lender for it, once."""
        if object_ in self._wanted or object_ in self._fetching:
            return
        lender = self._node.store.ledger.lender(object_)
        neighbour = self._neighbour(lender) if lender is not None else None
        if neighbour is not None:
            self._wanted[object_] = neighbour.peer
            neighbour.link.send(far.Want(object_))

    def missing_of(self, neighbour: Neighbour) -> list[bytes]:
        """What it lends us, and has a value, and is not here."""
        lent = self._node.store.ledger.lent_by(neighbour.client.number)
        return [object_ for object_ in lent if len(object_) != ACTOR_ID_BYTES]

    def lies(self, inputs: Sequence[tuple[bytes, int]]) -> tuple[dict[PeerId, int], int]:
        """(peer -> bytes of these that lie there, bytes of all). inputs: (object, bytes), as a process says."""
        ledger, found, total = self._node.store.ledger, dict[PeerId, int](), 0
        for object_, said in inputs[:INPUTS_MAX]:
            here = ledger.place(object_)
            size = here[1] if here is not None else min(max(said, 0), SAID_MAX_BYTES)
            total += size
            peers = list(self._served.get(object_, ()))
            lender = ledger.lender(object_)
            neighbour = self._neighbour(lender) if lender is not None else None
            if neighbour is not None:
                peers.append(neighbour.peer)
            if here is not None or lender is None:  # nobody else knows of a region of a process of ours
                peers.append(self._desk.me)
            for peer in dict.fromkeys(peers):
                found[peer] = found.get(peer, 0) + size
        return found, total

    def want(self, neighbour: Neighbour, message: far.Want) -> None:
        """They want to know where it lies; we may have to ask on."""
        if message.now and self._node.store.ledger.place(message.object) is None:
            neighbour.link.send(far.Nowhere(message.object, "it is not here"))
            return
        self._perform(self._node.store.ledger.resolve(neighbour.client.number, [message.object]))
        self.resolve([message.object])

    def located(self, neighbour: Neighbour, message: m.Located) -> None:
        """It lies here: say so to a node that waits for it."""
        ledger = self._node.store.ledger
        found = ledger.place(message.object)
        if found is None:
            neighbour.link.send(far.Nowhere(message.object, "it was freed"))
            return
        offset, size, failed, contains = found
        for inner in contains:
            self._perform(ledger.give(m.NODE, inner, neighbour.client.number))
        data = bytes(self._reading().read(offset, size)) if size <= IN_MESSAGE_MAX_BYTES else b""
        if not data and size:
            self._offer(message.object, offset, size, failed)
        neighbour.link.send(far.Here(message.object, size, failed, list(contains), data), len(data))
        if len(self._served) >= SERVED_MAX:
            del self._served[next(iter(self._served))]
        self._served.setdefault(message.object, {})[neighbour.peer] = None

    def _offer(self, object_: bytes, offset: int, size: int, failed: bool) -> None:
        """Others may read its blocks. What a process here had made is not withdrawn when that is freed, but later."""
        self.blocks.offer(object_, offset, size, failed)
        self._offers[object_] = None
        if len(self._offers) > self._offers_max:
            ledger = self._node.store.ledger
            for each in [each for each in self._offers if ledger.place(each) is None]:
                self.blocks.withdraw(each)
                del self._offers[each]
            self._offers_max = max(2 * len(self._offers), OFFERS_MIN)

    def here(self, neighbour: Neighbour, message: far.Here) -> None:
        """They say where it lies."""
        if self._wanted.get(message.object) == neighbour.peer:
            del self._wanted[message.object]
        elif not self._found(neighbour, message.object):
            self._give_back(neighbour, message.contains)
            return
        if len(message.data) not in (0, message.size):
            raise RemoteProtocolError(f"an object of {message.size} bytes came with {len(message.data)}")
        task = self._fetching[message.object] = self._loop.create_task(self._bring(neighbour, message))
        self._sources[message.object] = neighbour

        def done(_: object) -> None:
            del self._fetching[message.object], self._sources[message.object]

        task.add_done_callback(done)

    def nowhere(self, neighbour: Neighbour, message: far.Nowhere) -> None:
        """It will never come."""
        if self._wanted.get(message.object) == neighbour.peer:
            del self._wanted[message.object]
            self._seek(message.object, message.owner, message.made_at, neighbour)
        elif (seeking := self._seeking.get(message.object)) is not None:
            self._not_at(message.object, seeking, neighbour)

    # -- what a node that is gone has lent

    def _seek(self, object_: bytes, how: str, made_at: str = "", but: Neighbour | None = None) -> None:
        """Ask all whom we know for a copy; if nobody has one it is lost."""
        ledger = self._node.store.ledger
        if object_ in self._seeking or ledger.lender(object_) is None or ledger.place(object_) is not None:
            return
        lender = self._neighbour(ledger.lender(object_) or 0)
        if lender is not None:
            lender.link.send(far.Returned(object_))
        ledger.relend(object_, self.client.number)
        asked = [each for each in self._desk.neighbours.values() if each is not but and not each.doubtful][:SEEK_MAX]
        seeking = self._seeking[object_] = Seeking(how, made_at, {each.peer for each in asked})
        for each in asked:
            each.link.send(far.Want(object_, now=True))
        if asked:
            self._loop.call_later(SEEK_S, self._give_up, object_, seeking)
        else:
            self._give_up(object_, seeking)

    def _found(self, neighbour: Neighbour, object_: bytes) -> bool:
        """Whether we look for it, and this is the first node that has it."""
        seeking = self._seeking.get(object_)
        if seeking is None or neighbour.peer not in seeking.asked:
            return False
        del self._seeking[object_]
        return object_ not in self._fetching

    def _not_at(self, object_: bytes, seeking: Seeking, neighbour: Neighbour) -> None:
        seeking.asked.discard(neighbour.peer)
        if not seeking.asked:
            self._give_up(object_, seeking)

    def _give_up(self, object_: bytes, seeking: Seeking) -> None:
        if self._seeking.get(object_) is seeking and not self._node.closing:
            del self._seeking[object_]
            self._perform(self._node.store.ledger.lost(object_, seeking.how, seeking.made_at))

    async def _bring(self, neighbour: Neighbour, message: far.Here) -> None:
        try:
            if message.data or not message.size:
                offset = await self._room(max(message.size, 1))
                self._node.store.arena.write(offset, [message.data])
            else:
                if self._node.store.ledger.place(message.object) is None:
                    self.blocks.withdraw(message.object)  # it was here once, made by a process whose span that was
                sources = [neighbour.peer, *(PeerId(peer) for peer in message.holders[:HOLDERS_MAX])]
                found = await self.blocks.fetch(message.object, sources, message.size, self._room)
                offset = found.offset
        except LatticaError as error:
            self._give_back(neighbour, message.contains)
            how = f"it could not be fetched from {neighbour.client.name}: {error.message}"
            log.warning("object %s: %s", message.object.hex()[:8], how)
            self._not_brought(neighbour, message.object, how)
            return
        except asyncio.CancelledError:  # by `doubted`
            self._give_back(neighbour, message.contains)
            self._not_brought(neighbour, message.object, f"{neighbour.client.name} cannot be reached")
            return
        self._arrived(neighbour, message, offset)

    def _not_brought(self, neighbour: Neighbour, object_: bytes, how: str) -> None:
        lender = self._neighbour(self._node.store.ledger.lender(object_) or 0)
        if lender is None or lender is neighbour:
            self._seek(object_, how, but=neighbour)
        else:  # it was made anew meanwhile; and this fetch ends first
            self._loop.call_soon(self._loop.call_soon, self.resolve, [object_])

    def _arrived(self, neighbour: Neighbour, message: far.Here, offset: int) -> None:
        store, ledger, mine = self._node.store, self._node.store.ledger, self.client.number
        if not ledger.held(message.object) and not ledger.awaited(message.object):
            self.blocks.withdraw(message.object)  # nobody wants it any more
            self._regions.free(offset)
            self._sweep_soon()
            self._give_back(neighbour, message.contains)
            return
        for inner in message.contains:
            effects, keep = ledger.borrow(mine, inner, neighbour.client.number, value=False)
            self._perform(effects)
            if not keep:
                neighbour.link.send(far.Returned(inner))
        self._sealed[message.object] = offset
        if message.size > IN_MESSAGE_MAX_BYTES:
            self._offer(message.object, offset, message.size, message.failed)
        store.perform(ledger.seal(mine, message.object, offset, message.size, 0, message.failed, message.contains))
        for inner in message.contains:
            self._perform(ledger.drop(mine, inner))
        self._perform(ledger.drop(mine, message.object))

    def _give_back(self, neighbour: Neighbour, objects: Sequence[bytes]) -> None:
        for inner in objects:
            neighbour.link.send(far.Returned(inner))

    def stop(self, neighbour: Neighbour, message: far.Stop) -> None:
        """They want what makes it cancelled."""
        self.cancel(m.CancelObject(message.object, message.force, message.recursive))

    def cancel(self, message: m.CancelObject) -> None:
        """Only its owner knows what makes it: a process here, or one further on."""
        ledger = self._node.store.ledger
        owner, lender = ledger.owner(message.object), ledger.lender(message.object)
        neighbour = self._neighbour(lender) if lender is not None else None
        if owner is not None:
            self._node.tell(owner, m.CancelWanted(message.object, message.force, message.recursive))
        elif neighbour is not None:
            neighbour.link.send(far.Stop(message.object, message.force, message.recursive))

    def doubted(self, neighbour: Neighbour, how: str) -> None:
        """A node cannot be reached: what it has lent is made anew where that can be, and not waited for."""
        for object_, source in self._sources.items():
            if source is neighbour:
                self._fetching[object_].cancel()
        self._perform(self._node.store.ledger.doubted(neighbour.client.number, how))

    def parting(self, neighbour: Neighbour, how: str) -> None:
        """A node is gone: what it has lent may be had elsewhere."""
        for object_ in self._node.store.ledger.lent_by(neighbour.client.number):
            if len(object_) == ACTOR_ID_BYTES:
                continue
            if object_ not in self._fetching:  # else that knows others, or seeks them itself
                self._wanted.pop(object_, None)
                self._seek(object_, how)
            else:
                self._node.store.ledger.relend(object_, self.client.number)

    def parted(self, neighbour: Neighbour, how: str) -> None:
        """A node is gone: so are the answers that it owed, and what was given to its processes."""
        for served in self._served.values():
            served.pop(neighbour.peer, None)
        for object_, seeking in list(self._seeking.items()):
            self._not_at(object_, seeking, neighbour)
        for object_, peer in list(self._wanted.items()):
            if peer == neighbour.peer:
                del self._wanted[object_]
        for number, (other, _) in list(self._desk.proxies.items()):
            if other is neighbour:
                del self._desk.proxies[number]
                client = self._node.clients.get(number)
                if client is not None:
                    self._node.client_gone(client, how)
                self._perform(self._node.store.ledger.client_gone(number, how))

    # -- room for what comes

    async def _room(self, size: int) -> int:
        """Where in the arena `size` bytes may be written. Raises ObjectStoreFullError."""
        while (offset := self._regions.allocate(size)) is None:
            self._requests += 1
            future = self._spans[self._requests] = self._loop.create_future()
            wish = span_bytes_for(size, self._regions.span_bytes)
            self._node.store.span(self.client, m.SpanRequest(self._requests, size, wish))
            await future
        return offset

    def _told(self, message: Any) -> None:
        match message:
            case m.SpanGrant(request, offset, size):
                self._regions.add_span(offset, size)
                self._settle(request, None)
            case m.SpanDenied(request, detail):
                self._settle(request, ObjectStoreFullError(detail))
            case m.Freed(object_):
                if (region := self._sealed.pop(object_, None)) is not None:
                    self.blocks.withdraw(object_)
                    self._regions.free(region)
                    self._sweep_soon()
            case m.SpanWanted():
                self._return(self._regions.empty_spans())

    def _settle(self, request: int, error: Exception | None) -> None:
        future = self._spans.pop(request, None)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def _sweep(self) -> None:
        self._sweeping = False
        if not self._node.closing:
            self._return(self._regions.sweep())
            if self._regions.empty_spans():
                self._sweep_soon()

    def _sweep_soon(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(SPAN_ROUND_S, self._sweep)

    def _return(self, spans: Sequence[tuple[int, int]]) -> None:
        for offset, size in list(spans):
            self._regions.remove_span(offset)
            self._node.store.span_back(self.client, m.SpanReturn(offset, size))

    def bytes_of(self, object_: bytes) -> tuple[bytes, bool, Sequence[bytes]] | None:
        """(bytes, whether it is a failure, what it contains) of what lies here."""
        found = self._node.store.ledger.place(object_)
        if found is None:
            return None
        offset, size, failed, contains = found
        return bytes(self._reading().read(offset, size)), failed, contains

    async def take_in(self, object_: bytes, data: bytes, failed: bool, contains: Sequence[bytes]) -> None:
        """Bytes that came by another way: they lie here from now on, held once by this node. Raises
        ObjectStoreFullError."""
        ledger, mine = self._node.store.ledger, self.client.number
        if ledger.place(object_) is None:
            offset = await self._room(max(len(data), 1))
            if ledger.place(object_) is None:
                self._node.store.arena.write(offset, [data])
                self._sealed[object_] = offset
                self._perform(ledger.seal(mine, object_, offset, len(data), 0, failed, list(contains)))
                self._perform(ledger.give(m.NODE, object_, m.NODE))
                self._perform(ledger.drop(mine, object_))  # which `seal` has given
                return
            self._regions.free(offset)
        self._perform(ledger.give(m.NODE, object_, m.NODE))

    def _reading(self) -> ArenaMap:
        if self._map is None:
            arena = self._node.store.arena
            self._map = ArenaMap(os.dup(arena.fd), arena.size_bytes)
        return self._map

    def _pin(self, object_: bytes) -> Any:
        """Keep it while its blocks are read; None if it is gone."""
        ledger, mine = self._node.store.ledger, self.client.number
        if ledger.place(object_) is None:
            return None
        self._perform(ledger.hold(mine, object_))
        return lambda: self._perform(ledger.drop(mine, object_))

    def _perform(self, effects: Any) -> None:
        self._node.store.perform(effects)

    def __str__(self) -> str:
        return f"{self!r} for {peer_text(self._desk.me)[:8]}"


SPAN_ROUND_S = 2.0
"""As in the processes: a span that was empty for a whole round goes back."""
