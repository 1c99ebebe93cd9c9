"""What other nodes ask of the objects here: where each lies, and its bytes.

    Want ─► Here (few bytes, or a place whose blocks they read) · Here(away, holders) · nothing yet: they wait · Nowhere

A node that borrows an object does not bring it here for others: it names who has it, and is asked again (`Want.fetch`)
only if none of them can be had. `Has` says that they have it by now: others are sent there too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lattica.codec import far
from lattica.codec import messages as m
from lattica.mesh.identity import PeerId
from lattica.node.holders import HOLDERS_MAX

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour
    from lattica.node.far_objects import FarObjects

IN_MESSAGE_MAX_BYTES = 256 << 10
"""Of an object whose bytes come with the answer; larger ones are fetched in verified blocks."""
SAID_MAX_BYTES = 1 << 40  # of one argument, by a process
INPUTS_MAX = 8  # of a task, looked for
SERVED_MAX = 65_536
"""Objects of which it is remembered who has fetched them and holds them by a loan of ours (200 B each): tasks go there
as well as here, and others are sent there."""
OFFERS_MIN = 256  # objects whose blocks are offered, before those that are gone are looked for


class FarServing:
    """See the module."""

    def __init__(self, desk: FarDesk, objects: FarObjects) -> None:
        self._desk, self._objects, self._store = desk, objects, desk.node.store
        self._served: dict[bytes, dict[PeerId, None]] = {}  # who has fetched it, and holds it by a loan of ours
        self._offers: dict[bytes, None] = {}  # what others may read, or might once
        self._offers_max = OFFERS_MIN

    def __repr__(self) -> str:
        return f"<FarServing: {len(self._served)} objects fetched by others, {len(self._offers)} offered>"

    def want(self, neighbour: Neighbour, message: far.Want) -> None:
        """They want to know where it lies: here, or at others, or nobody knows yet and they wait."""
        ledger, object_ = self._store.ledger, message.object
        self._objects.lending.check(neighbour, object_)
        if ledger.size_here(object_) is None:
            if not message.fetch and (holders := self.elsewhere(neighbour, object_)):
                self._send_on(neighbour, object_, holders)
                return
            asker = neighbour.client.number
            made_here = ledger.owner(object_) is not None and ledger.holds(asker, object_)  # once its owner hears of it
            circle = ledger.lender(object_) == asker and not made_here
            if message.now or circle or not ledger.held(object_):  # it would wait for ever
                neighbour.link.send(far.Nowhere(object_, "it is not here"))
                return
        self._store.perform(ledger.resolve(neighbour.client.number, [object_]))
        self._objects.fetching.resolve([object_])

    def elsewhere(self, neighbour: Neighbour, object_: bytes) -> list[bytes]:
        """Who has what we borrow, as far as we know; the best first. They keep it for us as long as we borrow it."""
        lender = self._objects.lender(object_)
        if lender is None:
            return []
        known: dict[bytes, None] = dict.fromkeys([*[lender.peer][lender.doubtful :], *self.known_to_have(object_)])
        return [peer for peer in known if peer not in (neighbour.peer, self._desk.me)][:HOLDERS_MAX]

    def known_to_have(self, object_: bytes) -> list[PeerId]:
        """Who has fetched it by a loan of ours, and who is said to have it."""
        return [*self._served.get(object_, ()), *self._objects.holders.of(object_)]

    def _send_on(self, neighbour: Neighbour, object_: bytes, holders: list[bytes]) -> None:
        cid, attempt = self._objects.holders.cid(object_), self._store.ledger.attempt(object_)
        neighbour.link.send(far.Here(object_, 0, holders=holders, cid=cid, away=True, attempt=attempt))

    def send_waiters_on(self, object_: bytes) -> None:
        """It is known now who has it: other nodes ask there."""
        ledger = self._store.ledger
        for waiter in ledger.waiters(object_):
            neighbour = self._desk.by_client(waiter)
            if neighbour is not None and (holders := self.elsewhere(neighbour, object_)):
                self._store.perform(ledger.unwait(waiter, object_))
                self._send_on(neighbour, object_, holders)

    def located(self, neighbour: Neighbour, message: m.Located) -> None:
        """It lies here: say so to a node that waits for it."""
        ledger = self._store.ledger
        found = ledger.place(message.object)
        if found is None:
            neighbour.link.send(far.Nowhere(message.object, "it was freed"))
            return
        offset, size, failed, contains = found
        for inner in contains:
            self._store.perform(ledger.give(m.NODE, inner, neighbour.client.number))
        inside = size <= IN_MESSAGE_MAX_BYTES and not neighbour.link.crowded  # for who does not read it is not copied
        data = bytes(self._objects.reading().read(offset, size)) if inside else b""
        holders, cid = list[bytes](), b""
        if not data and size:
            self.offer(message.object, offset, size, failed)
            holders = [peer for peer in self._served.get(message.object, ()) if peer != neighbour.peer]
            cid = self._objects.blocks.cid_of(message.object)
        named, attempt = holders[-HOLDERS_MAX:], ledger.attempt(message.object)
        here = far.Here(message.object, size, failed, list(contains), data, named, cid, attempt=attempt)
        neighbour.link.send(here, len(data))
        self._has(neighbour, message.object)

    def has(self, neighbour: Neighbour, message: far.Has) -> None:
        """They have what we lend them, from another."""
        ledger = self._store.ledger
        self._has(neighbour, message.object)
        if ledger.holds(neighbour.client.number, message.object) and ledger.lender(message.object) is not None:
            self._objects.holders.learned(message.object, message.cid, vouched=False)

    def _has(self, neighbour: Neighbour, object_: bytes) -> None:
        if self._store.ledger.holds(neighbour.client.number, object_):  # else nobody says when it has not
            if len(self._served) >= SERVED_MAX:
                del self._served[next(iter(self._served))]
            self._served.setdefault(object_, {})[neighbour.peer] = None

    def offer(self, object_: bytes, offset: int, size: int, failed: bool) -> None:
        """Others may read its blocks. What a process here had made is not withdrawn when that is freed, but later."""
        blocks = self._objects.blocks
        blocks.offer(object_, offset, size, failed)
        self._offers[object_] = None
        if len(self._offers) > self._offers_max:
            ledger = self._store.ledger
            for each in [each for each in self._offers if ledger.size_here(each) is None]:
                blocks.withdraw(each)
                del self._offers[each]
            self._offers_max = max(2 * len(self._offers), OFFERS_MIN)

    def returned(self, neighbour: Neighbour, object_: bytes) -> None:
        """They hold it no more, and need not have it."""
        served = self._served.get(object_)
        if served is not None and neighbour.peer in served:
            del served[neighbour.peer]
            if not served:
                del self._served[object_]

    def forget(self, object_: bytes) -> None:
        """It is made anew: who had it before has another."""
        self._served.pop(object_, None)

    def parted(self, neighbour: Neighbour) -> None:
        """A node is gone, with what it had."""
        for served in self._served.values():
            served.pop(neighbour.peer, None)

    def lies(self, inputs: Sequence[tuple[bytes, int]]) -> tuple[dict[PeerId, int], int]:
        """(peer -> bytes of these that lie there, bytes of all). inputs: (object, bytes), as a process says."""
        ledger, found, total = self._store.ledger, dict[PeerId, int](), 0
        for object_, said in inputs[:INPUTS_MAX]:
            here = ledger.size_here(object_)
            size = here if here is not None else min(max(said, 0), SAID_MAX_BYTES)
            total += size
            peers = list(self._served.get(object_, ()))
            lender = self._objects.lender(object_)
            if lender is not None:
                peers.append(lender.peer)
            if here is not None or ledger.lender(object_) is None:  # nobody else knows of a region of a process of ours
                peers.append(self._desk.me)
            for peer in dict.fromkeys(peers):
                found[peer] = found.get(peer, 0) + size
        return found, total
