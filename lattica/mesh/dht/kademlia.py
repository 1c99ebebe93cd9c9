"""The DHT as one peer sees it: it looks up, stores and finds records, and if it serves, keeps them for others.

    lookup · find_peer · put_record · get_record · provide · withdraw · find_providers      wishes of this machine
    saw · gone · reachable                                                                  what its shell knows
    receive · tick                                                                          what happens

Rules of this file. `now` is monotonic seconds, and `now + wall_offset` unix time. The sender is what the transport
authenticated, so whoever answers is whom we asked; what it says of others is hearsay until they have answered
themselves, and what it says of records counts if their writers signed them. So a liar costs time and nothing else.
Only peers that serve are asked and enter the routing table; all others are clients. A late answer is normal.
Source: Maymounkov & Mazières, "Kademlia" (2002); `K` and `ALPHA` are the paper's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from lattica.mesh.dht.asks import Ask, Asks
from lattica.mesh.dht.buckets import K, RoutingTable
from lattica.mesh.dht.events import Effect, LookupFinished, ProvidersFound, RecordFound, Stored
from lattica.mesh.dht.keys import Key, distance, peer_key, value_key
from lattica.mesh.dht.lookup import Lookup, Wish
from lattica.mesh.dht.lookups import Lookups
from lattica.mesh.dht.messages import Contact, Find, Found, Kept, Message, Send, Store, fitting
from lattica.mesh.dht.publishing import Publisher, Storing
from lattica.mesh.dht.records import TTL_S, Record, Sign, Verify, is_current, is_signed
from lattica.mesh.dht.serving import Serving
from lattica.mesh.dht.store import RecordStore
from lattica.mesh.dht.upkeep import Upkeep
from lattica.mesh.identity import PeerId, peer_id_of, short_peer

Purpose = Lookup | Storing | None  # None: only to see whether it lives


class Kademlia:
    """See the module."""

    def __init__(
        self,
        public_key: bytes,
        rng: Random,
        *,
        sign: Sign,
        verify: Verify,
        mesh: bytes,
        boot: int,
        wall_offset: float = 0.0,
        ttl_s: float = TTL_S,
    ) -> None:
        """mesh: its id. boot: of this start, above all earlier ones. ttl_s: of what this peer publishes."""
        self.peer: PeerId = peer_id_of(public_key)
        self.wall_offset = wall_offset
        self._verify, self._mesh = verify, mesh
        self._asks: Asks[Purpose] = Asks(rng)
        self._publisher = Publisher(public_key, sign, mesh, boot, ttl_s, rng)
        self._lookups = Lookups(self.peer)
        self._upkeep = Upkeep(self.peer, rng)
        self._serving = Serving(self._upkeep.table, verify, mesh, rng)

    def __repr__(self) -> str:
        role = "server" if self.serves else "client"
        return f"<Kademlia {short_peer(self.peer)}: {role}, {len(self.table)} peers, {len(self._lookups)} lookups>"

    @property
    def table(self) -> RoutingTable:
        """Whom we know of those that serve."""
        return self._upkeep.table

    @property
    def store(self) -> RecordStore:
        """What we keep for others."""
        return self._serving.store

    @property
    def serves(self) -> bool:
        """Whether others may ask us."""
        return bool(self._serving.addresses)

    # -- wishes of this machine

    def lookup(self, target: Key, now: float) -> list[Effect]:
        """Who is closest to `target`? Ends in LookupFinished."""
        return self._wish(Wish.PEERS, target, now)

    def find_peer(self, peer: PeerId, now: float) -> list[Effect]:
        """Where is it? Ends in RecordFound(peer_key(peer))."""
        return self._wish(Wish.PEER, peer_key(peer), now)

    def get_record(self, writer: PeerId, name: str, now: float) -> list[Effect]:
        """What did it put under this name? Ends in RecordFound(value_key(writer, name))."""
        return self._wish(Wish.VALUE, value_key(writer, name), now)

    def find_providers(self, key: Key, now: float) -> list[Effect]:
        """Who provides it? ProvidersFound as they are found, and when all have been asked."""
        return self._wish(Wish.PROVIDERS, key, now)

    def put_record(self, name: str, value: bytes, now: float) -> list[Effect]:
        """Keep this in the DHT until `withdraw(value_key(self.peer, name))`. Stored, and again when it is renewed."""
        self._lookups.require_room()
        return self._wish(Wish.STORE, self._publisher.put(name, value), now)

    def provide(self, key: Key, now: float) -> list[Effect]:
        """Be found under `key` until `withdraw(key)`. Stored, and again when it is renewed."""
        self._lookups.require_room()
        return self._wish(Wish.STORE, self._publisher.provide(key), now)

    def withdraw(self, key: Key) -> None:
        """Renew it no more; it expires."""
        self._publisher.withdraw(key)

    # -- what the shell knows

    def reachable(self, addresses: Sequence[str], serves: bool, now: float) -> list[Effect]:
        """We are at these addresses, and serve if everybody can reach us there. Said to others by our peer record."""
        ours = fitting(addresses)
        self._serving.addresses = ours if serves else ()
        self._publisher.moved(ours, now)
        return self.tick(now)

    def saw(self, peer: PeerId, addresses: Sequence[str], is_server: bool, now: float) -> list[Effect]:
        """A member that lives, by whatever evidence; only those that serve are ever asked."""
        if is_server:
            self._upkeep.saw(peer, fitting(addresses), now)
        else:
            self._upkeep.gone(peer, now)
        return []

    def gone(self, peer: PeerId, now: float) -> list[Effect]:
        """It died, left, was revoked or serves no more."""
        self._upkeep.gone(peer, now)
        effects = [effect for ask in self._asks.of(peer) for effect in self._gave_up(ask, now)]
        return effects + self._begin(now)

    # -- what happens

    def receive(self, sender: PeerId, message: Message, now: float) -> list[Effect]:
        """A message of that peer."""
        match message:
            case Find():
                if message.addresses:
                    self._upkeep.saw(sender, message.addresses, now)
                else:
                    self._upkeep.gone(sender, now)  # it does not serve any more
                return [*self._serving.find(sender, message, now)]
            case Store():
                return [*self._serving.keep(sender, message, now, now + self.wall_offset)]
            case Found():
                return self._found(sender, message, now) + self._begin(now)
            case Kept(number, kept):
                ask = self._asks.answered(number, sender, now)
                return self._settle(ask.wish, kept, now) if ask and isinstance(ask.wish, Storing) else []

    def tick(self, now: float) -> list[Effect]:
        """Ask the silent again, renew what is ours, refresh what was not looked at."""
        effects: list[Effect] = []
        again, given_up = self._asks.overdue(now)
        for ask in again:
            effects += self._ask_again(ask, now)
        for ask in given_up:
            effects += self._gave_up(ask, now)
        for key in self._publisher.agenda.take(now):
            self._lookups.want(Wish.STORE, key)
        refreshed, quiet = self._upkeep.take(now)
        for key in refreshed:
            self._lookups.want(Wish.REFRESH, key)
        for contact in quiet:
            effects.append(self._ask(contact, peer_key(self.peer), None, now))
        self.store.expire(now)
        return effects + self._begin(now)

    def next_deadline(self) -> float | None:
        """When to call `tick`; None: never."""
        first: float | None = None
        for part in (self._asks, self.store, self._upkeep, self._publisher):
            due = part.next_deadline()
            if due is not None and (first is None or due < first):
                first = due
        return first

    def validate(self) -> None:
        """Assert what always holds."""
        for part in (self._lookups, self._asks, self.store, self._upkeep):
            part.validate()

    # -- look-ups

    def _wish(self, wish: Wish, key: Key, now: float) -> list[Effect]:
        self._lookups.require_room()
        self._lookups.want(wish, key)
        return self._begin(now)

    def _begin(self, now: float) -> list[Effect]:
        """Begin what waits, as far as it may."""
        effects: list[Effect] = []
        while lookup := self._lookups.begin():
            key = lookup.target
            lookup.suggest(self.table, 1)  # all: of those close to the key every one may be dead
            self._upkeep.looks(key, now)
            kept = [record.data for record in self.store.of(lookup.wish.kind, key, now)]
            effects += self._learn(lookup, kept, now) + self._advance(lookup, now)
        return effects

    def _advance(self, lookup: Lookup, now: float) -> list[Effect]:
        if lookup.is_over:
            return []
        effects: list[Effect] = [self._ask(contact, lookup.target, lookup, now) for contact in lookup.next()]
        if lookup.is_complete:
            self._lookups.end(lookup)
            effects += self._finish(lookup, now)
        return effects

    def _ask(self, contact: Contact, target: Key, lookup: Lookup | None, now: float) -> Send:
        kind = lookup.wish.kind if lookup is not None else 0
        find = Find(self._asks.next_number(), target, kind, self._serving.addresses)
        return self._asks.ask(contact, find, lookup, now)

    def _ask_again(self, ask: Ask[Purpose], now: float) -> list[Effect]:
        lookup = ask.wish
        if not isinstance(lookup, Lookup) or lookup.is_over:
            return [Send(ask.contact.peer, ask.contact.addresses, ask.message)]
        lookup.slow(ask.contact.peer)
        ask.contact = lookup.contact_of(ask.contact.peer)  # others may have said another address since
        return [Send(ask.contact.peer, ask.contact.addresses, ask.message), *self._advance(lookup, now)]

    def _gave_up(self, ask: Ask[Purpose], now: float) -> list[Effect]:
        """It was asked often enough. If nobody at all has answered since, it is our network that is down."""
        if self._asks.heard >= ask.began:
            self._upkeep.gone(ask.contact.peer, now)
        match ask.wish:
            case Lookup() as lookup if not lookup.is_over:
                lookup.silent(ask.contact.peer)
                return self._advance(lookup, now)
            case Storing() as storing:
                return self._settle(storing, False, now)
        return []

    def _found(self, sender: PeerId, found: Found, now: float) -> list[Effect]:
        ask = self._asks.answered(found.ask, sender, now)
        if ask is None:
            return []
        self._upkeep.saw(sender, found.addresses, now)
        lookup = ask.wish
        if not isinstance(lookup, Lookup) or lookup.is_over:
            return []
        lookup.answered(sender, found.addresses, found.contacts)
        return self._learn(lookup, found.records, now) + self._advance(lookup, now)

    def _learn(self, lookup: Lookup, records: Sequence[bytes], now: float) -> list[Effect]:
        def is_genuine(record: Record) -> bool:
            return is_current(record, now + self.wall_offset) and is_signed(record, self._verify, self._mesh)

        if lookup.learn(records, is_genuine) and lookup.wish is Wish.PROVIDERS:
            return [ProvidersFound(lookup.target, tuple(lookup.records.values()), False)]
        return []

    def _finish(self, lookup: Lookup, now: float) -> list[Effect]:
        closest, key = lookup.closest(), lookup.target
        match lookup.wish:
            case Wish.PEERS:
                hops = closest[0].hops if closest else 0
                contacts = tuple(candidate.contact for candidate in closest)
                return [LookupFinished(key, contacts, hops, lookup.asked)]
            case Wish.PEER | Wish.VALUE:
                return [RecordFound(key, next(iter(lookup.records.values()), None))]  # such a key has one writer
            case Wish.PROVIDERS:
                return [ProvidersFound(key, tuple(lookup.records.values()), True)]
            case Wish.STORE:
                return self._store([candidate.contact for candidate in closest], key, now)
            case Wish.REFRESH:
                if key == peer_key(self.peer):
                    self._publisher.hurry(now)
                    for farther in self._upkeep.farther([candidate.contact.peer for candidate in closest], now):
                        self._lookups.want(Wish.REFRESH, farther)
                return []

    # -- storing

    def _store(self, closest: list[Contact], key: Key, now: float) -> list[Effect]:
        """Bring our record to those who are closest, to ourselves if we are among them."""
        record = self._publisher.write(key, now + self.wall_offset)
        if record is None:
            return [Stored(key, 0)]
        keep_it = self.serves and (len(closest) < K or distance(self.peer, key) < distance(closest[-1].peer, key))
        we_keep = keep_it and self.store.keep(record, now, now + self.wall_offset)
        contacts = closest[: K - we_keep]
        storing = Storing(key, len(contacts) + 1)
        effects: list[Effect] = []
        for contact in contacts:
            store = Store(self._asks.next_number(), record.data)
            effects.append(self._asks.ask(contact, store, storing, now))
        return effects + self._settle(storing, we_keep, now)

    def _settle(self, storing: Storing, kept: bool, now: float) -> list[Effect]:
        """One more has said whether it keeps it."""
        storing.open -= 1
        storing.count += kept
        if storing.open:
            return []
        self._publisher.stored(storing.key, storing.count, now)
        return [Stored(storing.key, storing.count)]
