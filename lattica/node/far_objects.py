"""Objects across machines: who lends what to whom, and how bytes come here.

    giver's node      holds what its process gave to a process elsewhere, under that one's number (`to`)
    receiver's node   hears `FromAfar` from its process, says `Took`: held from now on by us as a node, until `Returned`
    a process waits   Want → Here (few bytes, or who has them) → fetched, verified, into the arena, once per machine
    it lies further   Want → Here(away, holders); Want → a holder → Here; Has → the lender, who names us from now on

A node that borrows an object lends it on: its own lender keeps it as long as somebody here or further on holds it. It
does not bring it here for others: it names who has it, and is asked again (`Want.fetch`) only if none of them can be
had. When a lender is gone, what was fetched stays, and what was not is asked of those who are known to have it, and of
those whom the DHT knows by its content, if we have heard of that. What nobody has is missing, and not lost yet: when
somebody wants it, it is looked for once more, and so it is when its lender, which may only have been silent, is back.
What a node that is gone had borrowed from us stays for LEASE_S: it comes back for it (`Took` without a count), or
others that it had lent it to come and ask.

The owner of a result makes it anew only when nobody has it who may: those whom we or our borrowers have lent it to are
asked first, also while its lender is merely out of reach (`doubted`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Sequence
from time import time
from typing import TYPE_CHECKING, Any

import msgspec

from lattica.codec import far
from lattica.codec import messages as m
from lattica.errors import LatticaError, ObjectStoreFullError, OutOfDiskError, RemoteProtocolError
from lattica.mesh.identity import PeerId
from lattica.node.blocks import Blocks
from lattica.node.clients import STORE, Client
from lattica.node.holders import HOLDERS_MAX, Holders
from lattica.node.proxies import proxy
from lattica.objectstore.arena import ArenaMap
from lattica.objectstore.suballocator import Suballocator, span_bytes_for

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour

log = logging.getLogger(__name__)
IN_MESSAGE_MAX_BYTES = 256 << 10
"""Of an object whose bytes come with the answer; larger ones are fetched in verified blocks."""
ACTOR_ID_BYTES = 12
SAID_MAX_BYTES = 1 << 40  # of one argument, by a process
ID_SIZES = frozenset({ACTOR_ID_BYTES, 16})
CONTAINS_MAX = 1 << 20  # of one object
HELD_MAX = 1 << 20
"""Objects and actors of ours that one node holds or waits for: 200 MB of this node's memory. Less: programs that hold a
million refs across machines; more: memory for whoever says that it holds what it was never given."""
INPUTS_MAX = 8  # of a task, looked for
SERVED_MAX = 65_536
"""Objects of which it is remembered who has fetched them and holds them by a loan of ours (200 B each): tasks go there
as well as here, and others are sent there."""
SEEK_S = 3.0
"""For other nodes to say whether they have what one that is gone has lent. Longer: whoever waits hears later that it is
lost, or its owner makes it anew later; shorter: a busy node's copy is not found."""
OFFERS_MIN = 256  # objects whose blocks are offered, before those that are gone are looked for
SEEK_MAX = 16  # nodes that are asked at once
SOUGHT_MAX = 64  # that are asked for one object; those who were asked may name others
PROVIDERS_S = 5.0  # for the DHT to say who has some content
LEASE_S = 60.0
"""What was lent to a node that is gone is kept: it may have been silent only, and come back for it; and whoever had it
from there hears of that death by itself, 0.1 to 8 s before or after us, and asks. Shorter: a machine that stood still
has lost what it held; longer: memory for what mostly nobody wants."""
RENEW_S = 1.0  # between tries to borrow again from a node that lives, when the link with it has ended
BACK_S = 15.0
"""For a lender that is not known to be dead to answer somebody who waits: after a silence the two have a session again
once the one has refuted the other's verdict."""


class Seeking(msgspec.Struct, eq=False):
    """A search for a copy of what a node that is gone has lent. how: why; asked: who has not answered yet; tried: who
    was asked, or is gone; until: so long its lender is asked again if it lives; doubted: it has a lender still, who
    is out of reach; rounds: begun, each of SEEK_S; by_content: the DHT was asked."""

    how: str
    made_at: str
    asked: set[PeerId]
    tried: set[PeerId]
    until: float
    doubted: bool = False
    rounds: int = 0
    by_content: bool = False


class Missing(msgspec.Struct, frozen=True, eq=False):
    """What is not here, and was lent by a node with which we have no link any more. how: why not."""

    lender: PeerId
    how: str


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
        self._searches: set[asyncio.Task[None]] = set()  # in the DHT
        self._missing: dict[bytes, Missing] = {}
        self._renewing: set[PeerId] = set()  # of whom we soon borrow again
        self._silent: dict[PeerId, float] = {}  # believed dead -> until when what they have lent is waited for
        self._served: dict[bytes, dict[PeerId, None]] = {}  # who has fetched it, and holds it by a loan of ours
        self._holders = Holders()
        self.blocks = Blocks(
            desk.peer, self._node.store.arena, self._loop, self._pin, lambda offset, _: self._regions.free(offset)
        )
        self.blocks.bring_back = self._bring_back

    def __repr__(self) -> str:
        return f"<FarObjects: {len(self._wanted)} asked for, {len(self._fetching)} being fetched>"

    # -- giving and taking

    def imported(self, client: Client, message: m.FromAfar) -> None:
        """A process of ours was given a hold by one elsewhere."""
        entry = self._desk.proxies.get(message.via)
        if entry is None:  # what it gave is let go there by now, unless somebody else holds it
            ledger, why = self._node.store.ledger, "the process that gave it is long gone"
            self._perform(ledger.inherit(client.number, message.object, why))
            return
        neighbour, theirs = entry
        if (names := self._desk.far_names.get(message.via)) is not None:  # a worker: it gave to our process by number
            theirs = names.get(client.number, 0)
        effects, keep = self._node.store.ledger.borrow(
            client.number, message.object, neighbour.client.number, value=message.value, attempt=message.attempt
        )
        self._perform(effects)
        neighbour.link.send(far.Took(theirs, message.object, 1, keep))
        if keep:
            self._begin_anew(message.object)
            self._send_waiters_on(message.object)
            if self._node.store.ledger.awaited(message.object):
                self.fetch(message.object)

    def _begin_anew(self, object_: bytes) -> None:
        """Another node lends it from now on, perhaps what was made anew: who had it before is not named any more."""
        self._holders.forget(object_)
        self._served.pop(object_, None)
        self._missing.pop(object_, None)

    def took(self, neighbour: Neighbour, message: far.Took) -> None:
        """They hold it from now on; our process's gift is theirs. Without a count: as they did before we parted, if we
        have kept it since; else we may have it from them by now, and two that lend each other would for ever."""
        ledger, theirs = self._node.store.ledger, neighbour.client.number
        self._check(neighbour, message.object)
        kept = ledger.holds(self.client.number, message.object) and not ledger.holds(theirs, message.object)
        if message.keep and (message.count or (kept and ledger.lender(message.object) != theirs)):
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
        if self._node.store.ledger.holds(neighbour.client.number, message.object):
            self._perform(self._node.store.ledger.drop(neighbour.client.number, message.object))

    def _check(self, neighbour: Neighbour, object_: bytes) -> None:
        """Raises RemoteProtocolError for what is no id, and for more of them than a node may keep here."""
        if len(object_) not in ID_SIZES:
            raise RemoteProtocolError(f"an id of {len(object_)} bytes")
        if self._node.store.ledger.kept_for(neighbour.client.number) >= HELD_MAX:
            raise RemoteProtocolError(f"it holds or waits for {HELD_MAX} objects of this node")

    def is_given(self, neighbour: Neighbour, object_: bytes) -> bool:
        """Whether it was given this object or actor: the node has it, or one of its processes, and has not said so."""
        ledger = self._node.store.ledger
        return ledger.holds(neighbour.client.number, object_) or any(
            other is neighbour and ledger.holds(number, object_) for number, (other, _) in self._desk.proxies.items()
        )

    def gives(self) -> bool:
        """Whether callers elsewhere were given what their nodes have not said yet that they hold."""
        callers = self._desk.proxies.keys() - self._desk.far_names.keys()
        return any(self._node.store.ledger.held_by(number) for number in callers)

    def unborrowed(self, lender: int, object_: bytes) -> None:
        """Nobody here holds it any more."""
        self._wanted.pop(object_, None)
        self._seeking.pop(object_, None)
        self._missing.pop(object_, None)
        self._holders.forget(object_)
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
        """Ask its lender for it, once, or those whom it has named."""
        if object_ in self._wanted or object_ in self._fetching:
            return
        if self._node.store.ledger.is_spilled(object_):
            self._node.store.bring_back(object_, lambda _: None)
            return
        lender = self._node.store.ledger.lender(object_)
        neighbour = self._neighbour(lender) if lender is not None else None
        if neighbour is not None and self._holders.asking(object_):
            self._ask_on(object_, "")
        elif neighbour is not None:
            self._wanted[object_] = neighbour.peer
            neighbour.link.send(far.Want(object_))
        elif (missing := self._missing.get(object_)) is not None:
            self._seek(object_, missing.how)

    def why(self, object_: bytes) -> str:
        """Why what we borrow is not here, in words; "" if it is."""
        if (source := self._sources.get(object_)) is not None:
            return f"it is being fetched from {source.client.name}"
        if (seeking := self._seeking.get(object_)) is not None:
            return f"a copy is looked for: {seeking.how}"
        if (missing := self._missing.get(object_)) is not None:
            return f"{missing.how}; it is waited for, as that machine may be silent only"
        lender = self._neighbour(self._node.store.ledger.lender(object_) or 0)
        return f"{lender.client.name}, which lends it, has not said that it has a value" if lender is not None else ""

    def missing_of(self, neighbour: Neighbour) -> list[bytes]:
        """What it lends us, and has a value, and is not here."""
        lent = self._node.store.ledger.lent_by(neighbour.client.number)
        return [object_ for object_ in lent if len(object_) != ACTOR_ID_BYTES]

    def lies(self, inputs: Sequence[tuple[bytes, int]]) -> tuple[dict[PeerId, int], int]:
        """(peer -> bytes of these that lie there, bytes of all). inputs: (object, bytes), as a process says."""
        ledger, found, total = self._node.store.ledger, dict[PeerId, int](), 0
        for object_, said in inputs[:INPUTS_MAX]:
            here = ledger.size_here(object_)
            size = here if here is not None else min(max(said, 0), SAID_MAX_BYTES)
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
        """They want to know where it lies: here, or at others, or nobody knows yet and they wait."""
        ledger, object_ = self._node.store.ledger, message.object
        self._check(neighbour, object_)
        if ledger.size_here(object_) is None:
            if not message.fetch and (holders := self._elsewhere(neighbour, object_)):
                self._send_on(neighbour, object_, holders)
                return
            asker = neighbour.client.number
            circle = ledger.lender(object_) == asker and not ledger.holds(asker, object_)
            if message.now or circle or not ledger.held(object_):  # it would wait for ever
                neighbour.link.send(far.Nowhere(object_, "it is not here"))
                return
        self._perform(ledger.resolve(neighbour.client.number, [object_]))
        self.resolve([object_])

    def _elsewhere(self, neighbour: Neighbour, object_: bytes) -> list[bytes]:
        """Who has what we borrow, as far as we know; the best first. They keep it for us as long as we borrow it."""
        lender = self._neighbour(self._node.store.ledger.lender(object_) or 0)
        if lender is None:
            return []
        known = dict.fromkeys(
            [*[lender.peer][lender.doubtful :], *self._served.get(object_, ()), *self._holders.of(object_)]
        )
        return [peer for peer in known if peer not in (neighbour.peer, self._desk.me)][:HOLDERS_MAX]

    def _send_on(self, neighbour: Neighbour, object_: bytes, holders: list[bytes]) -> None:
        cid, attempt = self._holders.cid(object_), self._node.store.ledger.attempt(object_)
        neighbour.link.send(far.Here(object_, 0, holders=holders, cid=cid, away=True, attempt=attempt))

    def _send_waiters_on(self, object_: bytes) -> None:
        """It is known now who has it: other nodes ask there."""
        ledger = self._node.store.ledger
        for waiter in ledger.waiters(object_):
            neighbour = self._neighbour(waiter)
            if neighbour is not None and (holders := self._elsewhere(neighbour, object_)):
                self._perform(ledger.unwait(waiter, object_))
                self._send_on(neighbour, object_, holders)

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
        inside = size <= IN_MESSAGE_MAX_BYTES and not neighbour.link.crowded  # for who does not read it is not copied
        data = bytes(self._reading().read(offset, size)) if inside else b""
        holders, cid = list[bytes](), b""
        if not data and size:
            self._offer(message.object, offset, size, failed)
            holders = [peer for peer in self._served.get(message.object, ()) if peer != neighbour.peer]
            cid = self.blocks.cid_of(message.object)
        named, attempt = holders[-HOLDERS_MAX:], ledger.attempt(message.object)
        here = far.Here(message.object, size, failed, list(contains), data, named, cid, attempt=attempt)
        neighbour.link.send(here, len(data))
        self._has(neighbour, message.object)

    def has(self, neighbour: Neighbour, message: far.Has) -> None:
        """They have what we lend them, from another."""
        ledger = self._node.store.ledger
        self._has(neighbour, message.object)
        if ledger.holds(neighbour.client.number, message.object) and ledger.lender(message.object) is not None:
            self._holders.learned(message.object, message.cid, vouched=False)

    def _has(self, neighbour: Neighbour, object_: bytes) -> None:
        if self._node.store.ledger.holds(neighbour.client.number, object_):  # else nobody says when it has not
            if len(self._served) >= SERVED_MAX:
                del self._served[next(iter(self._served))]
            self._served.setdefault(object_, {})[neighbour.peer] = None

    def _offer(self, object_: bytes, offset: int, size: int, failed: bool) -> None:
        """Others may read its blocks. What a process here had made is not withdrawn when that is freed, but later."""
        self.blocks.offer(object_, offset, size, failed)
        self._offers[object_] = None
        if len(self._offers) > self._offers_max:
            ledger = self._node.store.ledger
            for each in [each for each in self._offers if ledger.size_here(each) is None]:
                self.blocks.withdraw(each)
                del self._offers[each]
            self._offers_max = max(2 * len(self._offers), OFFERS_MIN)

    def here(self, neighbour: Neighbour, message: far.Here) -> None:
        """They say where it lies."""
        if message.away:
            self._sent_on(neighbour, message)
            return
        if self._is_earlier(neighbour, message):
            self._give_back(neighbour, message.contains)
            self.nowhere(neighbour, far.Nowhere(message.object, "it was made again since"))
            return
        if self._wanted.get(message.object) == neighbour.peer:
            del self._wanted[message.object]
        elif not self._found(neighbour, message.object):
            self._give_back(neighbour, message.contains)
            return
        said_right = 0 <= message.size <= SAID_MAX_BYTES and len(message.contains) <= CONTAINS_MAX
        if not said_right or not all(len(inner) in ID_SIZES for inner in message.contains):
            raise RemoteProtocolError(f"an object of {message.size} bytes that refers to what cannot be")
        if len(message.data) not in (0, message.size):
            raise RemoteProtocolError(f"an object of {message.size} bytes came with {len(message.data)}")
        task = self._fetching[message.object] = self._loop.create_task(self._bring(neighbour, message))
        self._sources[message.object] = neighbour

        def done(_: object) -> None:
            del self._fetching[message.object], self._sources[message.object]

        task.add_done_callback(done)

    def _is_earlier(self, neighbour: Neighbour, message: far.Here) -> bool:
        """Whether what they have was made by an earlier run than what we are to have. A lender's word counts."""
        ledger = self._node.store.ledger
        lends = ledger.lender(message.object) == neighbour.client.number
        return not lends and message.attempt < ledger.attempt(message.object)

    def nowhere(self, neighbour: Neighbour, message: far.Nowhere) -> None:
        """It will never come."""
        if self._wanted.get(message.object) == neighbour.peer:
            del self._wanted[message.object]
            if self._node.store.ledger.lender(message.object) == neighbour.client.number:
                self._seek(message.object, message.owner, message.made_at, neighbour)
            else:
                self._ask_on(message.object, message.owner)
        elif (seeking := self._seeking.get(message.object)) is not None:
            self._not_at(message.object, seeking, neighbour)

    def _sent_on(self, neighbour: Neighbour, message: far.Here) -> None:
        """They do not have it, and know who does."""
        object_, holders = message.object, [PeerId(peer) for peer in message.holders[:HOLDERS_MAX]]
        if self._wanted.get(object_) == neighbour.peer:
            del self._wanted[object_]
            lender = self._neighbour(self._node.store.ledger.lender(object_) or 0)
            asked = [self._desk.me, neighbour.peer, *([lender.peer] if lender is not None else [])]
            if lender is neighbour:
                self._node.store.ledger.later(object_, message.attempt)
            self._holders.hinted(object_, holders, message.cid, asked)
            self._ask_on(object_, "nobody has it who is said to")
        elif (seeking := self._seeking.get(object_)) is not None and neighbour.peer in seeking.asked:
            if not self._is_earlier(neighbour, message):
                self._holders.learned(object_, message.cid, vouched=False)
                self._ask_all(object_, seeking, holders)
            self._not_at(object_, seeking, neighbour)

    def _ask_on(self, object_: bytes, how: str) -> None:
        """Ask the next one that was named; when all were, have the lender bring it. how: why it is sought if that is
        gone."""
        ledger = self._node.store.ledger
        lender = self._neighbour(ledger.lender(object_) or 0)
        peer = self._holders.next(object_, self._desk.lives)
        if peer is not None:
            self._wanted[object_] = peer
            self._desk.neighbour(peer).link.send(far.Want(object_))
        elif lender is not None:
            self._wanted[object_] = lender.peer
            lender.link.send(far.Want(object_, fetch=True))
        else:
            self._seek(object_, how)

    # -- what a node that is gone has lent

    def _seek(
        self, object_: bytes, how: str, made_at: str = "", but: Neighbour | None = None, doubted: bool = False
    ) -> None:
        """Ask all whom we know for a copy; what nobody has is lost, if somebody waits for it, or missing. doubted: its
        lender `but` may come back, and stays its lender."""
        ledger = self._node.store.ledger
        if object_ in self._seeking or ledger.lender(object_) is None or ledger.size_here(object_) is not None:
            return
        if not doubted:
            lender = self._neighbour(ledger.lender(object_) or 0)
            if lender is not None:
                lender.link.send(far.Returned(object_))
            ledger.relend(object_, self.client.number)
        missing = self._missing.get(object_)
        known = [each.peer for each in self._desk.neighbours.values()]
        named = [*self._served.get(object_, ()), *self._holders.of(object_)]
        gone = set() if but is None else {but.peer}
        until = self._loop.time() + BACK_S
        seeking = self._seeking[object_] = Seeking(how, made_at, set(), {self._desk.me} | gone, until, doubted)
        self._ask_all(object_, seeking, [*named, *([missing.lender] if missing is not None else []), *known])
        if not seeking.asked:
            self._give_up(object_, seeking, seeking.rounds)

    def _ask_all(self, object_: bytes, seeking: Seeking, peers: Iterable[PeerId]) -> None:
        """These may have a copy."""
        for peer in dict.fromkeys(peers):
            room = len(seeking.asked) < SEEK_MAX and len(seeking.tried) < SOUGHT_MAX
            linked = self._desk.neighbours.get(peer)
            answers = self._desk.lives(peer) and (linked is None or not linked.doubtful)
            if room and answers and peer not in seeking.tried:
                seeking.tried.add(peer)
                seeking.asked.add(peer)
                self._desk.neighbour(peer).link.send(far.Want(object_, now=True))
        seeking.rounds += 1
        self._loop.call_later(SEEK_S, self._give_up, object_, seeking, seeking.rounds)

    def _found(self, neighbour: Neighbour, object_: bytes) -> bool:
        """Whether we look for it, and this is the first node that has it."""
        seeking = self._seeking.get(object_)
        if seeking is None or neighbour.peer not in seeking.asked:
            return False
        del self._seeking[object_]
        self._wanted.pop(object_, None)
        return object_ not in self._fetching

    def _not_at(self, object_: bytes, seeking: Seeking, neighbour: Neighbour) -> None:
        if neighbour.peer not in seeking.asked:
            return
        seeking.asked.discard(neighbour.peer)
        if not seeking.asked:
            self._give_up(object_, seeking, seeking.rounds)

    def _give_up(self, object_: bytes, seeking: Seeking, rounds: int) -> None:
        """Nobody of this round has it: whom does the DHT know? Nobody: it is lost."""
        if self._seeking.get(object_) is not seeking or seeking.rounds != rounds or self._node.closing:
            return
        if not seeking.by_content and (cid := self._holders.cid(object_)):
            seeking.by_content = True
            seeking.rounds += 1
            task = self._loop.create_task(self._ask_providers(object_, seeking, cid))
            self._searches.add(task)
            task.add_done_callback(self._searches.discard)
            return
        ledger, missing = self._node.store.ledger, self._missing.get(object_)
        is_in_time = self._loop.time() < seeking.until and ledger.awaited(object_)
        if missing is not None and is_in_time and self._desk.lives(missing.lender):
            seeking.rounds += 1
            self._loop.call_later(RENEW_S, self._ask_again, object_, seeking, missing.lender, seeking.rounds)
            return
        del self._seeking[object_]
        asked = len(seeking.tried - {self._desk.me})
        dht = ", and the DHT knows no other" if seeking.by_content else ""
        how = f"{seeking.how}; none of {asked} other nodes has a copy{dht}" if asked else seeking.how
        lender = self._neighbour(ledger.lender(object_) or 0)
        if seeking.doubted and (lender is None or not lender.doubtful):
            self.resolve([object_])  # it is back
        elif seeking.doubted or (missing is not None and not ledger.awaited(object_)):
            if effects := ledger.doubted(object_, how):
                log.info("object %s: %s; its owner is told, and may make it again", object_.hex()[:8], how)
                self._perform(effects)
        elif missing is not None and ledger.owner(object_) is None and (left := self._waits_for(missing.lender)) > 0:
            self._loop.call_later(left, self._lose, object_, missing, how, seeking.made_at)
        else:
            self._missing.pop(object_, None)
            self._perform(ledger.lost(object_, how, seeking.made_at))

    def _waits_for(self, peer: PeerId) -> float:
        """How long what it has lent is still waited for: who is believed dead may be silent only, and keeps it."""
        if not self._desk.may_return(peer):
            return 0.0
        now = self._loop.time()
        return self._silent.setdefault(peer, now + LEASE_S) - now

    def _lose(self, object_: bytes, missing: Missing, how: str, made_at: str) -> None:
        """Its lender has not come back: whoever waits is told."""
        busy = object_ in self._fetching or object_ in self._seeking or object_ in self._wanted
        ledger = self._node.store.ledger
        if self._missing.get(object_) is missing and not busy and not self._node.closing and ledger.awaited(object_):
            del self._missing[object_]
            self._perform(ledger.lost(object_, how, made_at))

    def _ask_again(self, object_: bytes, seeking: Seeking, lender: PeerId, rounds: int) -> None:
        """It lives, and has not answered: there may be a session with it by now."""
        if self._seeking.get(object_) is seeking and seeking.rounds == rounds and not self._node.closing:
            seeking.tried.discard(lender)
            self._ask_all(object_, seeking, [lender])
            if not seeking.asked:
                self._give_up(object_, seeking, seeking.rounds)

    async def _ask_providers(self, object_: bytes, seeking: Seeking, cid: bytes) -> None:
        peer, found = self._desk.peer, dict[PeerId, tuple[str, ...]]()
        try:
            async with asyncio.timeout(PROVIDERS_S):
                found = await peer.find_providers(cid)
        except (LatticaError, TimeoutError) as error:
            log.info("providers of %s: %s", cid.hex()[:16], str(error).partition("\n")[0])
        for provider, addresses in found.items():
            if not peer.has_session(provider):
                peer.know(provider, addresses)
        log.info("object %s: %d nodes are known to have its content", object_.hex()[:8], len(found))
        if self._seeking.get(object_) is seeking:
            self._ask_all(object_, seeking, found)
            if not seeking.asked:
                self._give_up(object_, seeking, seeking.rounds)

    async def _bring(self, neighbour: Neighbour, message: far.Here) -> None:
        try:
            if message.data or not message.size:
                offset = await self._room(max(message.size, 1))
                self._node.store.arena.write(offset, [message.data])
            else:
                if self._node.store.ledger.size_here(message.object) is None:
                    self.blocks.withdraw(message.object)  # it was here once, made by a process whose span that was
                cid = message.cid or self._holders.cid(message.object, vouched=True) or None
                named = [PeerId(peer) for peer in message.holders[:HOLDERS_MAX]] + self._holders.of(message.object)
                if message.attempt and cid is None:
                    named = []  # they may have what an earlier run made, and nothing else tells the two apart
                sources = [neighbour.peer, *(peer for peer in dict.fromkeys(named) if self._desk.lives(peer))]
                found = await self.blocks.fetch(message.object, sources, message.size, self._room, cid=cid)
                offset = found.offset
                if found.size != message.size:  # or what lies behind it would be read as a part of it, and served
                    if self._node.store.ledger.size_here(message.object) is None:
                        self.blocks.withdraw(message.object)
                        self._regions.free(offset)
                    raise RemoteProtocolError(f"it was said to have {message.size} bytes, and has {found.size}")
        except LatticaError as error:
            self._give_back(neighbour, message.contains)
            how = f"it could not be fetched from {neighbour.client.name}: {error.message}"
            log.warning("object %s: %s", message.object.hex()[:8], how)
            self._holders.doubt(message.object)  # its providers were asked, too
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
            return
        if lender.doubtful:
            self._perform(self._node.store.ledger.doubted(object_, how))
        # that one was named by the lender, or it was made anew meanwhile; and this fetch ends first
        self._loop.call_soon(self._loop.call_soon, self.resolve, [object_])

    def _arrived(self, neighbour: Neighbour, message: far.Here, offset: int) -> None:
        store, ledger, mine = self._node.store, self._node.store.ledger, self.client.number
        if not ledger.held(message.object) and not ledger.awaited(message.object):
            self.blocks.withdraw(message.object)  # nobody wants it any more
            self._regions.free(offset)
            self._sweep_soon()
            self._give_back(neighbour, message.contains)
            return
        lender = self._neighbour(ledger.lender(message.object) or 0)
        gone = self._desk.neighbours.get(neighbour.peer) is not neighbour  # and so are its loans
        for inner in message.contains:
            effects, keep = ledger.borrow(mine, inner, mine if gone else neighbour.client.number, value=False)
            self._perform(effects)
            if gone and keep and len(inner) != ACTOR_ID_BYTES:
                self._seek(inner, f"the connection with {neighbour.client.name} was lost", but=neighbour)
            elif not keep:
                neighbour.link.send(far.Returned(inner))
        self._sealed[message.object] = offset
        if message.size > IN_MESSAGE_MAX_BYTES:
            self._offer(message.object, offset, message.size, message.failed)
        self._holders.forget(message.object)
        self._missing.pop(message.object, None)
        store.perform(
            ledger.seal(
                mine, message.object, offset, message.size, 0, message.failed, message.contains, message.attempt
            )
        )
        if store.spill is not None:
            store.spill.sealed(message.object)
        if lender is not None and lender is not neighbour:
            lender.link.send(far.Has(message.object, self.blocks.cid_of(message.object)))
        for inner in message.contains:
            self._perform(ledger.drop(mine, inner))
        self._perform(ledger.drop(mine, message.object))

    def _give_back(self, neighbour: Neighbour, objects: Sequence[bytes]) -> None:
        for inner in objects:
            neighbour.link.send(far.Returned(inner))

    def stop(self, neighbour: Neighbour, message: far.Stop) -> None:
        """They want what makes it cancelled."""
        if self.is_given(neighbour, message.object):
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
                self._holders.learned(object_, self.blocks.cid_of(object_), vouched=True)
                self._fetching[object_].cancel()
        self._ask_others(neighbour)
        ledger = self._node.store.ledger
        for object_ in ledger.lent_by(neighbour.client.number):
            if ledger.owner(object_) is None or len(object_) == ACTOR_ID_BYTES:
                continue
            if self._may_lie_elsewhere(object_, neighbour):
                self._seek(object_, how, but=neighbour, doubted=True)
            else:
                self._perform(ledger.doubted(object_, how))

    def _may_lie_elsewhere(self, object_: bytes, but: Neighbour) -> bool:
        """Whether another node may have what this one has lent us: we have lent it on, or have heard who has it."""
        holds, others = self._node.store.ledger.holds, self._desk.neighbours.values()
        known = self._served.get(object_) or self._holders.of(object_) or self._holders.cid(object_)
        return bool(known) or any(other is not but and holds(other.client.number, object_) for other in others)

    def parting(self, neighbour: Neighbour, how: str) -> None:
        """The link with a node has ended: what it has lent may be had elsewhere, or of itself, if it lives; and others
        may ask for what it had borrowed, or itself."""
        self._keep_estate(neighbour)
        ledger, peer = self._node.store.ledger, neighbour.peer
        lives = self._desk.lives(peer)
        for object_ in ledger.lent_by(neighbour.client.number):
            if len(object_) == ACTOR_ID_BYTES:
                continue
            self._missing[object_] = Missing(peer, how)
            seeking = self._seeking.get(object_)
            if seeking is not None:
                seeking.doubted = False
            busy = seeking is not None or object_ in self._fetching or self._wanted.get(object_, peer) != peer
            if busy or (lives and not ledger.awaited(object_)):  # others are asked, or it is borrowed again
                ledger.relend(object_, self.client.number)
            else:
                self._wanted.pop(object_, None)
                self._seek(object_, how)
        if lives:
            self._renew_soon(peer)

    def member_changed(self, peer: PeerId) -> None:
        """A node that was believed dead lives, or the other way round."""
        if self._desk.lives(peer):
            self._silent.pop(peer, None)
            self._renew_soon(peer)
        elif peer not in self._desk.neighbours:
            for object_ in self._missing_from(peer):
                self._seek(object_, self._missing[object_].how)

    def _missing_from(self, peer: PeerId) -> list[bytes]:
        """What it has lent, and nobody looks for now."""
        busy = self._fetching.keys() | self._seeking.keys() | self._wanted.keys()
        return [each for each, missing in self._missing.items() if missing.lender == peer and each not in busy]

    def _renew_soon(self, peer: PeerId) -> None:
        if peer not in self._renewing:
            self._renewing.add(peer)
            self._loop.call_later(RENEW_S, self._renew, peer)

    def _renew(self, peer: PeerId) -> None:
        """It lives, as far as is known: borrow again what is missing, which it has kept for us if it could."""
        self._renewing.discard(peer)
        ledger, missing = self._node.store.ledger, self._missing_from(peer)
        if not missing or self._node.closing or not self._desk.lives(peer):
            return
        neighbour = self._desk.neighbour(peer)
        for object_ in missing:
            del self._missing[object_]
            neighbour.link.send(far.Took(0, object_, 0, True))
            ledger.relend(object_, neighbour.client.number)
        self.resolve(missing)

    def parted(self, neighbour: Neighbour, how: str) -> None:
        """A node is gone: so are the answers that it owed, and what was given to its processes."""
        for served in self._served.values():
            served.pop(neighbour.peer, None)
        for object_, seeking in list(self._seeking.items()):
            self._not_at(object_, seeking, neighbour)
        self._ask_others(neighbour)
        for number, (other, _) in list(self._desk.proxies.items()):
            if other is neighbour:
                del self._desk.proxies[number]
                client = self._node.clients.get(number)
                if client is not None:
                    self._node.client_gone(client, how)
                self._perform(self._node.store.ledger.client_gone(number, how))

    def _ask_others(self, neighbour: Neighbour) -> None:
        """It will not answer, and did not lend what we have asked it for."""
        lender = neighbour.client.number
        for object_ in [each for each, peer in self._wanted.items() if peer == neighbour.peer]:
            if self._node.store.ledger.lender(object_) != lender:
                del self._wanted[object_]
                self._ask_on(object_, f"{neighbour.client.name} cannot be reached")

    def _keep_estate(self, neighbour: Neighbour) -> None:
        ledger, mine = self._node.store.ledger, self.client.number
        kept = [each for each in ledger.held_by(neighbour.client.number) if len(each) != ACTOR_ID_BYTES]
        for object_ in kept:
            self._perform(ledger.hold(mine, object_))

        def let_go() -> None:
            for object_ in () if self._node.closing else kept:
                self._perform(ledger.drop(mine, object_))

        self._loop.call_later(LEASE_S, let_go)

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
            case m.SpanDenied(request, detail, disk):
                self._settle(request, OutOfDiskError(detail) if disk else ObjectStoreFullError(detail))
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
            if (offset, size) not in self._regions.empty_spans():
                continue  # the one before was granted to somebody, whose like asked us for this one meanwhile
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
        if ledger.size_here(object_) is None:
            offset = await self._room(max(len(data), 1))
            if ledger.size_here(object_) is None:
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
        store, mine = self._node.store, self.client.number
        if store.ledger.place(object_) is None:
            return None
        self._perform(store.ledger.hold(mine, object_))
        store.pin(object_)

        def unpin() -> None:
            store.unpin(object_)
            self._perform(store.ledger.drop(mine, object_))

        return unpin

    def went_to_disk(self, object_: bytes) -> None:
        """It lies in memory no more: whoever reads its blocks next has it brought back."""
        self.blocks.went_to_disk(object_)

    async def _bring_back(self, object_: bytes) -> int | None:
        """Where it lies, once it is in memory; None if that cannot be."""
        came: asyncio.Future[bool] = self._loop.create_future()

        def told(here: bool) -> None:
            if not came.done():
                came.set_result(here)

        self._node.store.bring_back(object_, told)
        here = self._node.store.ledger.place(object_) if await came else None
        return here[0] if here is not None else None

    def _perform(self, effects: Any) -> None:
        self._node.store.perform(effects)


SPAN_ROUND_S = 2.0
"""As in the processes: a span that was empty for a whole round goes back."""
