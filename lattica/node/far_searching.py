"""What was lent by a node that is gone, or out of reach: looked for at others, waited for, or lost.

    gone ─► all who may have a copy are asked (`Want.now`) ─► Here: it is fetched from there
                    └─ nobody ─► the DHT, by its content ─ nobody ─► missing ─ somebody wants it ─► looked for once more
                                                                       └─ its lender is back ─► borrowed again (`Took`)

What nobody has is lost when somebody waits for it, and its lender does not come back for it in time. The owner of a
result makes it anew only when nobody has it who may: those whom we or our borrowers have lent it to are asked first,
also while its lender is merely out of reach (`doubted`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from lattica.codec import far
from lattica.errors import LatticaError
from lattica.ids import ACTOR_ID_BYTES
from lattica.mesh.identity import PeerId
from lattica.node.far_lending import LEASE_S

if TYPE_CHECKING:
    from lattica.node.far_desk import FarDesk
    from lattica.node.far_neighbours import Neighbour
    from lattica.node.far_objects import FarObjects

log = logging.getLogger(__name__)
SEEK_S = 3.0
"""For other nodes to say whether they have what one that is gone has lent. Longer: whoever waits hears later that it is
lost, or its owner makes it anew later; shorter: a busy node's copy is not found."""
SEEK_MAX = 16  # nodes that are asked at once
SOUGHT_MAX = 64  # that are asked for one object; those who were asked may name others
PROVIDERS_S = 5.0  # for the DHT to say who has some content
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


class FarSearching:
    """See the module."""

    def __init__(self, desk: FarDesk, objects: FarObjects) -> None:
        self._desk, self._objects = desk, objects
        self._node, self._store = desk.node, desk.node.store
        self._loop = asyncio.get_running_loop()
        self.seeking: dict[bytes, Seeking] = {}  # lent by nodes that are gone, and asked of others
        self.missing: dict[bytes, Missing] = {}
        self._of_content: set[asyncio.Task[None]] = set()  # searches in the DHT
        self._renewing: set[PeerId] = set()  # of whom we soon borrow again
        self._silent: dict[PeerId, float] = {}  # believed dead -> until when what they have lent is waited for

    def __repr__(self) -> str:
        return f"<FarSearching: {len(self.seeking)} looked for, {len(self.missing)} missing>"

    # -- a search

    def seek(
        self, object_: bytes, how: str, made_at: str = "", but: Neighbour | None = None, doubted: bool = False
    ) -> None:
        """Ask all whom we know for a copy; what nobody has is lost, if somebody waits for it, or missing. doubted: its
        lender `but` may come back, and stays its lender."""
        ledger = self._store.ledger
        if object_ in self.seeking or ledger.lender(object_) is None or ledger.size_here(object_) is not None:
            return
        if not doubted:
            lender = self._objects.lender(object_)
            if lender is not None:
                lender.link.send(far.Returned(object_))
            ledger.relend(object_, self._objects.room.client.number)
        missing = self.missing.get(object_)
        known = [each.peer for each in self._desk.neighbours.values()]
        named = self._objects.serving.known_to_have(object_)
        gone = set() if but is None else {but.peer}
        until = self._loop.time() + BACK_S
        seeking = self.seeking[object_] = Seeking(how, made_at, set(), {self._desk.me} | gone, until, doubted)
        self._ask_all(object_, seeking, [*named, *([missing.lender] if missing is not None else []), *known])
        if not seeking.asked:
            self._round_over(object_, seeking, seeking.rounds)

    def look_again(self, object_: bytes) -> None:
        """Somebody wants it: it may have come back since it was missing."""
        if (missing := self.missing.get(object_)) is not None:
            self.seek(object_, missing.how)

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
        self._loop.call_later(SEEK_S, self._round_over, object_, seeking, seeking.rounds)

    def found(self, neighbour: Neighbour, object_: bytes) -> bool:
        """Whether we look for it, and this is the first node that has it."""
        seeking = self.seeking.get(object_)
        if seeking is None or neighbour.peer not in seeking.asked:
            return False
        del self.seeking[object_]
        self._objects.fetching.forget(object_)
        return not self._objects.fetching.is_busy(object_)

    def not_at(self, object_: bytes, neighbour: Neighbour) -> None:
        """That node does not have it, if it was asked."""
        seeking = self.seeking.get(object_)
        if seeking is None or neighbour.peer not in seeking.asked:
            return
        seeking.asked.discard(neighbour.peer)
        if not seeking.asked:
            self._round_over(object_, seeking, seeking.rounds)

    def sent_on(self, neighbour: Neighbour, message: far.Here, holders: Sequence[PeerId]) -> None:
        """That node does not have it, if it was asked, and knows who does."""
        seeking = self.seeking.get(message.object)
        if seeking is None or neighbour.peer not in seeking.asked:
            return
        if not self._objects.is_earlier(neighbour, message):
            self._objects.holders.learned(message.object, message.cid, vouched=False)
            self._ask_all(message.object, seeking, holders)
        self.not_at(message.object, neighbour)

    def _round_over(self, object_: bytes, seeking: Seeking, rounds: int) -> None:
        """Nobody of this round has it: whom does the DHT know? Nobody: its lender is asked again, if it may answer."""
        if not self._goes_on(object_, seeking, rounds):
            return
        if not seeking.by_content and (cid := self._objects.holders.cid(object_)):
            seeking.by_content = True
            seeking.rounds += 1
            task = self._loop.create_task(self._ask_providers(object_, seeking, cid))
            self._of_content.add(task)
            task.add_done_callback(self._of_content.discard)
            return
        missing = self.missing.get(object_)
        is_in_time = self._loop.time() < seeking.until and self._store.ledger.awaited(object_)
        if missing is not None and is_in_time and self._desk.lives(missing.lender):
            seeking.rounds += 1
            self._loop.call_later(RENEW_S, self._ask_again, object_, seeking, missing.lender, seeking.rounds)
            return
        del self.seeking[object_]
        self._give_up(object_, seeking)

    def _goes_on(self, object_: bytes, seeking: Seeking, rounds: int) -> bool:
        return self.seeking.get(object_) is seeking and seeking.rounds == rounds and not self._node.closing

    def _give_up(self, object_: bytes, seeking: Seeking) -> None:
        """Nobody has it: it is lost, unless its lender may be back, or nobody waits for it."""
        ledger, missing = self._store.ledger, self.missing.get(object_)
        asked = len(seeking.tried - {self._desk.me})
        dht = ", and the DHT knows no other" if seeking.by_content else ""
        how = f"{seeking.how}; none of {asked} other nodes has a copy{dht}" if asked else seeking.how
        lender = self._objects.lender(object_)
        if seeking.doubted and (lender is None or not lender.doubtful):
            self._objects.fetching.resolve([object_])  # it is back
        elif seeking.doubted or (missing is not None and not ledger.awaited(object_)):
            if effects := ledger.doubted(object_, how):
                log.info("object %s: %s; its owner is told, and may make it again", object_.hex()[:8], how)
                self._store.perform(effects)
        elif missing is not None and ledger.owner(object_) is None and (left := self._waits_for(missing.lender)) > 0:
            self._loop.call_later(left, self._lose, object_, missing, how, seeking.made_at)
        else:
            self.missing.pop(object_, None)
            self._store.perform(ledger.lost(object_, how, seeking.made_at))

    def _waits_for(self, peer: PeerId) -> float:
        """How long what it has lent is still waited for: who is believed dead may be silent only, and keeps it."""
        if not self._desk.may_return(peer):
            return 0.0
        now = self._loop.time()
        return self._silent.setdefault(peer, now + LEASE_S) - now

    def _lose(self, object_: bytes, missing: Missing, how: str, made_at: str) -> None:
        """Its lender has not come back: whoever waits is told."""
        ledger = self._store.ledger
        still = self.missing.get(object_) is missing and not self._is_busy(object_)
        if still and not self._node.closing and ledger.awaited(object_):
            del self.missing[object_]
            self._store.perform(ledger.lost(object_, how, made_at))

    def _is_busy(self, object_: bytes) -> bool:
        """Whether somebody is asked for it now."""
        return object_ in self.seeking or self._objects.fetching.is_busy(object_)

    def _ask_again(self, object_: bytes, seeking: Seeking, lender: PeerId, rounds: int) -> None:
        """It lives, and has not answered: there may be a session with it by now."""
        if self._goes_on(object_, seeking, rounds):
            seeking.tried.discard(lender)
            self._ask_all(object_, seeking, [lender])
            if not seeking.asked:
                self._round_over(object_, seeking, seeking.rounds)

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
        if self.seeking.get(object_) is seeking:
            self._ask_all(object_, seeking, found)
            if not seeking.asked:
                self._round_over(object_, seeking, seeking.rounds)

    def came(self, object_: bytes) -> None:
        """It is here, or is lent by another from now on."""
        self.missing.pop(object_, None)

    def forget(self, object_: bytes) -> None:
        """Nobody here wants it any more."""
        self.seeking.pop(object_, None)
        self.missing.pop(object_, None)

    # -- nodes that are gone, or out of reach, or back

    def doubted(self, neighbour: Neighbour, how: str) -> None:
        """It cannot be reached: what it has lent is made anew where nobody else has it."""
        ledger = self._store.ledger
        for object_ in ledger.lent_by(neighbour.client.number):
            if ledger.owner(object_) is None or len(object_) == ACTOR_ID_BYTES:
                continue
            if self._may_lie_elsewhere(object_, neighbour):
                self.seek(object_, how, but=neighbour, doubted=True)
            else:
                self._store.perform(ledger.doubted(object_, how))

    def _may_lie_elsewhere(self, object_: bytes, but: Neighbour) -> bool:
        """Whether another node may have what this one has lent us: we have lent it on, or have heard who has it."""
        holds, others = self._store.ledger.holds, self._desk.neighbours.values()
        known = self._objects.serving.known_to_have(object_) or self._objects.holders.cid(object_)
        return bool(known) or any(other is not but and holds(other.client.number, object_) for other in others)

    def parting(self, neighbour: Neighbour, how: str) -> None:
        """The link with a node has ended: what it has lent may be had elsewhere, or of itself, if it lives."""
        ledger, fetching, peer = self._store.ledger, self._objects.fetching, neighbour.peer
        lives = self._desk.lives(peer)
        for object_ in ledger.lent_by(neighbour.client.number):
            if len(object_) == ACTOR_ID_BYTES:
                continue
            self.missing[object_] = Missing(peer, how)
            seeking = self.seeking.get(object_)
            if seeking is not None:
                seeking.doubted = False
            busy = seeking is not None or fetching.is_busy(object_, but=peer)
            if busy or (lives and not ledger.awaited(object_)):  # others are asked, or it is borrowed again
                ledger.relend(object_, self._objects.room.client.number)
            else:
                fetching.forget(object_)
                self.seek(object_, how)
        if lives:
            self._renew_soon(peer)

    def parted(self, neighbour: Neighbour) -> None:
        """A node is gone: so are the answers that it owed."""
        for object_ in list(self.seeking):
            self.not_at(object_, neighbour)

    def member_changed(self, peer: PeerId) -> None:
        """A node that was believed dead lives, or the other way round."""
        if self._desk.lives(peer):
            self._silent.pop(peer, None)
            self._renew_soon(peer)
        elif peer not in self._desk.neighbours:
            for object_ in self._missing_from(peer):
                self.seek(object_, self.missing[object_].how)

    def _missing_from(self, peer: PeerId) -> list[bytes]:
        """What it has lent, and nobody looks for now."""
        return [each for each, missing in self.missing.items() if missing.lender == peer and not self._is_busy(each)]

    def _renew_soon(self, peer: PeerId) -> None:
        if peer not in self._renewing:
            self._renewing.add(peer)
            self._loop.call_later(RENEW_S, self._renew, peer)

    def _renew(self, peer: PeerId) -> None:
        """It lives, as far as is known: borrow again what is missing, which it has kept for us if it could."""
        self._renewing.discard(peer)
        ledger, missing = self._store.ledger, self._missing_from(peer)
        if not missing or self._node.closing or not self._desk.lives(peer):
            return
        neighbour = self._desk.neighbour(peer)
        for object_ in missing:
            del self.missing[object_]
            neighbour.link.send(far.Took(0, object_, 0, True))
            ledger.relend(object_, neighbour.client.number)
        self._objects.fetching.resolve(missing)
