"""Whom this peer knows of those that serve the DHT: many near it, few far away.

Bucket i holds at most K peers that share exactly i bits with us. The longest known live longest (the paper, §2.2), so a
full bucket takes nobody new; newcomers wait as spares, and one takes the place of a peer that does not answer. Who was
long not heard of, while spares wait, is asked whether it lives: see `upkeep`.
Source: Maymounkov & Mazières, "Kademlia" (2002), §2.2 and §4.1 (spares are its replacement cache).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lattica.mesh.dht.keys import place_of, shared_bits
from lattica.mesh.dht.messages import Contact
from lattica.mesh.identity import PeerId

K = 20
"""So many peers are close to a key: that all of them die within an hour is unlikely (the paper, §2.2)."""
SPARES_MAX = K  # of a bucket


@dataclass(slots=True)
class Known:
    """One peer. seen: when it was last heard of, on our clock."""

    contact: Contact
    place: int
    seen: float


@dataclass(slots=True)
class Bucket:
    """Both in the order in which they were last seen, the latest last."""

    peers: dict[PeerId, Known] = field(default_factory=dict)
    spares: dict[PeerId, Known] = field(default_factory=dict)


class RoutingTable:
    """See the module. me: never in it."""

    def __init__(self, me: PeerId) -> None:
        self.me = me
        self.buckets: dict[int, Bucket] = {}  # bits shared with us -> those that do
        self._count = 0

    def __repr__(self) -> str:
        return f"<RoutingTable: {self._count} peers in {len(self.buckets)} buckets>"

    def __len__(self) -> int:
        return self._count

    def __contains__(self, peer: PeerId) -> bool:
        bucket = self.buckets.get(shared_bits(self.me, peer))
        return bucket is not None and peer in bucket.peers

    def __iter__(self) -> Iterator[Contact]:
        return (known.contact for bucket in self.buckets.values() for known in bucket.peers.values())

    def saw(self, peer: PeerId, addresses: tuple[str, ...], now: float) -> None:
        """It lives, and serves. addresses: () if nothing is said about them."""
        if peer == self.me:
            return
        bucket = self.buckets.setdefault(shared_bits(self.me, peer), Bucket())
        known = bucket.peers.pop(peer, None)
        is_new = known is None
        if known is None:
            known = bucket.spares.pop(peer, None) or Known(Contact(peer, ()), place_of(peer), now)
        known.seen = now
        if addresses and addresses != known.contact.addresses:
            known.contact = Contact(peer, addresses)
        if not is_new or len(bucket.peers) < K:
            bucket.peers[peer] = known
            self._count += is_new
            return
        bucket.spares[peer] = known
        if len(bucket.spares) > SPARES_MAX:
            del bucket.spares[next(iter(bucket.spares))]

    def gone(self, peer: PeerId) -> None:
        """It does not answer, or serves no more: the spare seen last takes its place."""
        bucket = self.buckets.get(shared_bits(self.me, peer))
        if bucket is None:
            return
        bucket.spares.pop(peer, None)
        if bucket.peers.pop(peer, None) is None:
            return
        self._count -= 1
        if bucket.spares:
            spare, known = bucket.spares.popitem()
            bucket.peers = {spare: known} | bucket.peers  # seen longer ago than the others, for all we know
            self._count += 1

    def closest(self, target: bytes, count: int = K, without: PeerId | None = None) -> list[Contact]:
        """Those closest to `target`, closest first. Of the bucket that it would be in itself all are closer than any
        others; then come those that are nearer to us, whatever bucket they are in; then one bucket after the other."""
        place, shared = place_of(target), shared_bits(self.me, target)
        found: list[Contact] = []
        for group in self._by_nearness(shared):
            by_distance = {known.place ^ place: known.contact for bucket in group for known in bucket.peers.values()}
            found += [by_distance[distance] for distance in sorted(by_distance)]  # sorts numbers: no calls
            if len(found) > count:
                break
        return [contact for contact in found if contact.peer != without][:count]

    def _by_nearness(self, shared: int) -> Iterator[list[Bucket]]:
        """Buckets in groups, all peers of one closer to a target in bucket `shared` than all of the next."""
        buckets = self.buckets
        if shared in buckets:
            yield [buckets[shared]]
        yield [bucket for bits, bucket in buckets.items() if bits > shared]
        for bits in sorted(buckets, reverse=True):
            if bits < shared:
                yield [buckets[bits]]

    def stale(self, before: float) -> list[Contact]:
        """The one seen longest ago of each bucket that has spares, if that was before then."""
        oldest = (next(iter(bucket.peers.values())) for bucket in self.buckets.values() if bucket.spares)
        return [known.contact for known in oldest if known.seen < before]

    def validate(self) -> None:
        """Assert what always holds."""
        count = 0
        for bucket in self.buckets.values():
            peers, spares = len(bucket.peers), len(bucket.spares)
            count += peers
            assert peers <= K and spares <= SPARES_MAX, "a bucket has too many peers"
            assert peers == K or not spares, "spares wait while there is room"
        assert count == self._count, "peers are counted wrongly"
