"""One look-up: who is closest to a key, found by asking those who are close whom they know that is closer.

ALPHA asks are open at a time. Who is slow keeps being asked, but its place goes to another, so that the dead cost
traffic and hardly time. The look-up is over when the K closest of those that are not silent have answered.
Source: Maymounkov & Mazières, "Kademlia" (2002), §2.3.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from lattica.errors import RemoteProtocolError
from lattica.mesh.dht.buckets import K
from lattica.mesh.dht.keys import Key, place_of
from lattica.mesh.dht.messages import ADDRESSES_MAX, Contact
from lattica.mesh.dht.records import PEER, PROVIDER, VALUE, Record, read_record
from lattica.mesh.identity import PeerId

ALPHA = 3
"""More find sooner and ask more peers in vain; the paper's simulations chose 3."""
ASKED_MAX = 256
"""Peers asked: 1,000 peers with a third of them dead take 30 to 60. Who answers with made-up ones costs so many."""
FOUND_MAX = 256  # writers whose records a look-up collects


class Wish(Enum):
    """What a look-up is for."""

    PEERS = auto()
    PEER = auto()
    VALUE = auto()
    PROVIDERS = auto()
    STORE = auto()
    REFRESH = auto()

    @property
    def kind(self) -> int:
        """Of the records that it looks for; 0: none."""
        return _KINDS.get(self, 0)


_KINDS = {Wish.PEER: PEER, Wish.VALUE: VALUE, Wish.PROVIDERS: PROVIDER}


class State(Enum):
    """Of a peer that this look-up has heard of."""

    NEW = auto()
    ASKED = auto()
    SLOW = auto()  # asked again
    ANSWERED = auto()
    SILENT = auto()  # given up


@dataclass(slots=True, eq=False)
class Candidate:
    """hops: how many peers, one after another, led to it; 1 for one that we knew."""

    contact: Contact
    hops: int
    state: State = State.NEW


@dataclass(slots=True, eq=False)
class Lookup:
    """See the module. me: never asked."""

    wish: Wish
    target: Key
    me: PeerId
    records: dict[PeerId, Record] = field(default_factory=dict)  # verified, the latest of each writer
    asked: int = 0
    is_over: bool = False
    _candidates: dict[PeerId, Candidate] = field(default_factory=dict)
    _order: list[tuple[int, Candidate]] = field(default_factory=list)  # by distance, which no two share
    _open: int = 0  # how many are ASKED

    def __repr__(self) -> str:
        return f"<Lookup of {self.target[:4].hex()}: {self.asked} asked, {len(self._candidates)} heard of>"

    def suggest(self, contacts: Iterable[Contact], hops: int) -> None:
        """These may be close. Other addresses of one that is known are tried as well: the first may be a lie."""
        place = place_of(self.target)
        for contact in contacts:
            known = self._candidates.get(contact.peer)
            if known is None:
                if contact.peer != self.me:
                    candidate = self._candidates[contact.peer] = Candidate(contact, hops)
                    insort(self._order, (place_of(contact.peer) ^ place, candidate))
            elif known.state in (State.NEW, State.ASKED, State.SLOW) and contact.addresses != known.contact.addresses:
                both = dict.fromkeys((*known.contact.addresses, *contact.addresses))
                known.contact = Contact(contact.peer, tuple(both)[: 2 * ADDRESSES_MAX])

    def next(self) -> list[Contact]:
        """Whom to ask now; they count as asked."""
        found: list[Contact] = []
        window, new, silent, slow = K, State.NEW, State.SILENT, State.SLOW
        for _, candidate in self._order:
            if not window or self._open >= ALPHA or self.asked >= ASKED_MAX:
                break
            state = candidate.state
            window -= state is not silent and state is not slow
            if state is new:
                candidate.state = State.ASKED
                self._open += 1
                self.asked += 1
                found.append(candidate.contact)
        return found

    def contact_of(self, peer: PeerId) -> Contact:
        """Where it is said to be by now."""
        return self._candidates[peer].contact

    def slow(self, peer: PeerId) -> None:
        """It was asked again."""
        self._became(peer, State.SLOW)

    def silent(self, peer: PeerId) -> None:
        """It was given up."""
        self._became(peer, State.SILENT)

    def answered(self, peer: PeerId, addresses: tuple[str, ...], contacts: Iterable[Contact]) -> None:
        """It is there, and knows these."""
        self._became(peer, State.ANSWERED)
        candidate = self._candidates[peer]
        candidate.contact = Contact(peer, addresses or candidate.contact.addresses)
        self.suggest(contacts, candidate.hops + 1)

    def learn(self, answer: Iterable[bytes], is_genuine: Callable[[Record], bool]) -> bool:
        """Records that somebody shows. Whether they say anything new; what is damaged or forged does not."""
        is_new = False
        for data in answer:
            try:
                record = read_record(data)
            except RemoteProtocolError:
                continue  # no reason to drop who passes it on
            known = self.records.get(record.writer)
            knows = known.order >= record.order if known is not None else len(self.records) >= FOUND_MAX
            is_wanted = (record.content.kind, record.key) == (self.wish.kind, self.target)
            if is_wanted and not knows and is_genuine(record):
                self.records[record.writer] = record
                is_new = True
        return is_new

    @property
    def is_complete(self) -> bool:
        """Whether the K closest that are not silent have answered, or nobody is left to ask."""
        window, new, answered, silent = K, State.NEW, State.ANSWERED, State.SILENT
        spent = self.asked >= ASKED_MAX
        for _, candidate in self._order:
            state = candidate.state
            if state is answered:
                window -= 1
                if not window:
                    return True
            elif state is not silent and not (state is new and spent):
                return False
        return True

    def closest(self) -> list[Candidate]:
        """The K closest of those that answered, closest first."""
        return [candidate for _, candidate in self._order if candidate.state is State.ANSWERED][:K]

    def _became(self, peer: PeerId, state: State) -> None:
        candidate = self._candidates[peer]
        self._open -= candidate.state is State.ASKED
        candidate.state = state
