"""What keeps a routing table true while nobody looks anything up: look-ups in ranges that were long not looked at.

A newcomer looks up itself, which finds its neighbours, and then the ranges farther away of which it knows too few
(the paper, §2.3). Itself it looks up again every quarter of an hour; in seconds, and then less and less often, while
fewer than K answer: it may have come as one of the first, and a client is told by nobody who came later.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from lattica.mesh.dht.agenda import Agenda
from lattica.mesh.dht.buckets import K, RoutingTable
from lattica.mesh.dht.keys import Key, peer_key, random_key, shared_bits
from lattica.mesh.dht.messages import Contact
from lattica.mesh.identity import PeerId

JOIN_S = 1.0
"""After the first peer is known, so that one look-up learns from all that are met in this moment."""
AGAIN_S = 5.0  # after nobody answered; after fewer than K did, doubling up to:
OWN_REFRESH_S = 900.0
"""Between look-ups of ourselves: those next to us are whom others look for through us."""
REFRESH_S = 3600.0
"""A bucket in whose range nothing was looked up for so long is refreshed."""
STALE_S = 900.0
"""Who is not heard of for so long, while others wait for its place, is asked whether it lives."""
_OURSELVES = -1  # among the indices of buckets that are due


class Upkeep:
    """See the module. It says what to look up; `Kademlia` does."""

    def __init__(self, me: PeerId, rng: Random) -> None:
        self.me, self.table = me, RoutingTable(me)
        self._rng = rng
        self._again_s = AGAIN_S
        self._due: Agenda[int] = Agenda()

    def saw(self, peer: PeerId, addresses: tuple[str, ...], now: float) -> None:
        """This peer lives, and serves."""
        if peer == self.me:
            return
        self.table.saw(peer, addresses, now)
        index = shared_bits(self.me, peer)
        if _OURSELVES not in self._due:
            self._due.put(_OURSELVES, now + JOIN_S * self._rng.uniform(0.5, 1.5))
        if index not in self._due:
            self._put_off(index, REFRESH_S, now)

    def gone(self, peer: PeerId, now: float) -> None:
        """This peer does not, or no more."""
        before = len(self.table)
        self.table.gone(peer)
        if before == K and len(self.table) < K:
            self._again_s = AGAIN_S
            self._put_off(_OURSELVES, AGAIN_S, now)

    def looks(self, key: Key, now: float) -> None:
        """Something is being looked up there."""
        index = shared_bits(self.me, key)
        if index in self._due:
            self._put_off(index, REFRESH_S, now)

    def take(self, now: float) -> tuple[list[Key], list[Contact]]:
        """(keys to look up by now, peers to be asked whether they live)"""
        keys: list[Key] = []
        quiet: list[Contact] = []
        for index in self._due.take(now):
            if index == _OURSELVES:
                self._put_off(index, OWN_REFRESH_S, now)
                keys.append(peer_key(self.me))
                quiet = self.table.stale(now - STALE_S)
            else:
                self._put_off(index, REFRESH_S, now)
                keys.append(random_key(self.me, index, self._rng))
        return keys, quiet

    def farther(self, closest: Sequence[PeerId], now: float) -> list[Key]:
        """What to look up now that we know who is closest to us: the ranges beyond of which we know too few."""
        if len(closest) < K:  # these are all there are, for now
            self._put_off(_OURSELVES, self._again_s, now)
            if closest:
                self._again_s = min(2 * self._again_s, OWN_REFRESH_S)
            return []
        self._again_s = AGAIN_S
        known = {index: len(bucket.peers) for index, bucket in self.table.buckets.items()}
        beyond = range(shared_bits(self.me, closest[-1]))
        return [random_key(self.me, index, self._rng) for index in beyond if known.get(index, 0) < K]

    def next_deadline(self) -> float | None:
        """When to `take`."""
        return self._due.next()

    def validate(self) -> None:
        """Assert what always holds."""
        self.table.validate()
        self._due.validate()

    def _put_off(self, index: int, by_s: float, now: float) -> None:
        self._due.put(index, now + by_s * self._rng.uniform(0.75, 1.25))
