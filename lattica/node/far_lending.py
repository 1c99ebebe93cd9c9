"""Objects that nodes lend each other: who was given what, and holds it.

    giver's node      holds what its process gave to a process elsewhere, under that one's number (`to`)
    receiver's node   hears `FromAfar` from its process, says `Took`: held from now on by us as a node, until `Returned`

What a node that is gone had borrowed from us stays for LEASE_S: it comes back for it (`Took` without a count), or
others that it had lent it to come and ask.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lattica.codec import far
from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from lattica.ids import ACTOR_ID_BYTES, OBJECT_ID_BYTES

if TYPE_CHECKING:
    from lattica.node.clients import Client
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour
    from lattica.node.far_objects import FarObjects

ID_SIZES = frozenset({ACTOR_ID_BYTES, OBJECT_ID_BYTES})
HELD_MAX = 1 << 20
"""Objects and actors of ours that one node holds or waits for: 200 MB of this node's memory. Less: programs that hold a
million refs across machines; more: memory for whoever says that it holds what it was never given."""
LEASE_S = 60.0
"""What was lent to a node that is gone is kept: it may have been silent only, and come back for it; and whoever had it
from there hears of that death by itself, 0.1 to 8 s before or after us, and asks. Shorter: a machine that stood still
has lost what it held; longer: memory for what mostly nobody wants."""


class FarLending:
    """See the module."""

    def __init__(self, desk: FarDesk, objects: FarObjects) -> None:
        self._desk, self._objects = desk, objects
        self._node, self._store = desk.node, desk.node.store
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        return f"<FarLending to {len(self._desk.neighbours)} nodes>"

    def imported(self, client: Client, message: m.FromAfar) -> None:
        """A process of ours was given a hold by one elsewhere."""
        ledger, entry = self._store.ledger, self._desk.proxies.get(message.via)
        if entry is None:  # what it gave is let go there by now, unless somebody else holds it
            why = "the process that gave it is long gone"
            self._store.perform(ledger.inherit(client.number, message.object, why))
            return
        neighbour, theirs = entry
        if (names := self._desk.far_names.get(message.via)) is not None:  # a worker: it gave to our process by number
            theirs = names.get(client.number, 0)
        effects, keep = ledger.borrow(
            client.number, message.object, neighbour.client.number, value=message.value, attempt=message.attempt
        )
        self._store.perform(effects)
        neighbour.link.send(far.Took(theirs, message.object, 1, keep))
        if keep:
            self._objects.begin_anew(message.object)
            self._objects.serving.send_waiters_on(message.object)
            if ledger.awaited(message.object):
                self._objects.fetching.fetch(message.object)

    def took(self, neighbour: Neighbour, message: far.Took) -> None:
        """They hold it from now on; our process's gift is theirs. Without a count: as they did before we parted, if we
        have kept it since; else we may have it from them by now, and two that lend each other would for ever."""
        ledger, mine, theirs = self._store.ledger, self._objects.room.client.number, neighbour.client.number
        self.check(neighbour, message.object)
        kept = ledger.holds(mine, message.object) and not ledger.holds(theirs, message.object)
        if message.keep and (message.count or (kept and ledger.lender(message.object) != theirs)):
            self._store.perform(ledger.give(m.NODE, message.object, theirs))
            if message.count and ledger.lender(message.object) == theirs and len(message.object) == OBJECT_ID_BYTES:
                self._turned(neighbour, message.object)
        known = self._desk.proxies.get(message.proxy)
        if known is not None and known[0] is neighbour and 0 < message.count < 1 << 32:
            self._store.perform(ledger.drop(message.proxy, message.object, message.count))

    def _turned(self, neighbour: Neighbour, object_: bytes) -> None:
        """Who lends it to us has lost it, and has it from us: two that lend each other would for ever."""
        if self._store.ledger.size_here(object_) is not None:
            self._store.perform(self._store.ledger.keep_alone(object_))
        else:
            self._objects.searching.seek(object_, f"{neighbour.client.name} has lost it", but=neighbour)

    def returned(self, neighbour: Neighbour, message: far.Returned) -> None:
        """They hold it no more."""
        self._objects.serving.returned(neighbour, message.object)
        if self._store.ledger.holds(neighbour.client.number, message.object):
            self._store.perform(self._store.ledger.drop(neighbour.client.number, message.object))

    def check(self, neighbour: Neighbour, object_: bytes) -> None:
        """Raises RemoteProtocolError for what is no id, and for more of them than a node may keep here."""
        if len(object_) not in ID_SIZES:
            raise RemoteProtocolError(f"an id of {len(object_)} bytes")
        if self._store.ledger.kept_for(neighbour.client.number) >= HELD_MAX:
            raise RemoteProtocolError(f"it holds or waits for {HELD_MAX} objects of this node")

    def is_given(self, neighbour: Neighbour, object_: bytes) -> bool:
        """Whether it was given this object or actor: the node has it, or one of its processes, and has not said so."""
        ledger = self._store.ledger
        return ledger.holds(neighbour.client.number, object_) or any(
            other is neighbour and ledger.holds(number, object_) for number, (other, _) in self._desk.proxies.items()
        )

    def gives(self) -> bool:
        """Whether callers elsewhere were given what their nodes have not said yet that they hold."""
        callers = self._desk.proxies.keys() - self._desk.far_names.keys()
        return any(self._store.ledger.held_by(number) for number in callers)

    def stop(self, neighbour: Neighbour, message: far.Stop) -> None:
        """They want what makes it cancelled."""
        if self.is_given(neighbour, message.object):
            self.cancel(m.CancelObject(message.object, message.force, message.recursive))

    def cancel(self, message: m.CancelObject) -> None:
        """Only its owner knows what makes it: a process here, or one further on."""
        owner, lender = self._store.ledger.owner(message.object), self._objects.lender(message.object)
        if owner is not None:
            self._node.tell(owner, m.CancelWanted(message.object, message.force, message.recursive))
        elif lender is not None:
            lender.link.send(far.Stop(message.object, message.force, message.recursive))

    def keep_estate(self, neighbour: Neighbour) -> None:
        """A node is gone: what it had borrowed stays for LEASE_S."""
        ledger, mine = self._store.ledger, self._objects.room.client.number
        kept = [each for each in ledger.held_by(neighbour.client.number) if len(each) != ACTOR_ID_BYTES]
        for object_ in kept:
            self._store.perform(ledger.hold(mine, object_))

        def let_go() -> None:
            for object_ in () if self._node.closing else kept:
                self._store.perform(ledger.drop(mine, object_))

        self._loop.call_later(LEASE_S, let_go)

    def parted(self, neighbour: Neighbour, how: str) -> None:
        """A node is gone, and so is what was given to its processes."""
        for number, (other, _) in list(self._desk.proxies.items()):
            if other is neighbour:
                del self._desk.proxies[number]
                client = self._node.clients.get(number)
                if client is not None:
                    self._node.client_gone(client, how)
                self._store.perform(self._store.ledger.client_gone(number, how))
