"""What a peer remembers of publications: which it has seen, and those themselves while somebody may still miss them.

Both are bounded by what one publisher can make them hold, so that a peer that publishes too much loses its own
publications and nobody else's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from lattica.mesh.identity import PeerId
from lattica.mesh.publications import HAVE_MAX, Id, Publication

REPAIR_S = 10.0
"""Age to which a publication is kept and announced. Longer: more is bridged, and costs memory and digests."""
PUBLISHED_MAX = 512  # publications of one publisher in REPAIR_S
PUBLISHED_MAX_BYTES = 1 << 20
"""Of them: 100 KB/s, which every peer of the mesh receives once at least."""
LATE = 2  # as much as that is taken from others: what was held up comes together
KEPT_MAX = HAVE_MAX  # publications of all: 800 a second
KEPT_MAX_BYTES = 16 << 20  # of all
OVERHEAD_BYTES = 256  # that one counts besides its body
SEEN_S = 60.0
"""Numbers that were not seen by so long after a higher one never will be: nobody keeps them any more."""
ABOVE_MAX = 4096  # numbers seen of one process that are not yet a floor: PUBLISHED_MAX in each REPAIR_S, and more
BOOTS_MAX = 4  # of one publisher, the latest: what still travels is of the last two
PUBLISHERS_MAX = 4096  # some 300 bytes each; beyond, the one that was silent for longest is forgotten


@dataclass(slots=True)
class _Numbers:
    """Of one process of a publisher: all up to `floor` count as seen. above: others that were, and when."""

    floor: int = 0
    above: dict[int, float] = field(default_factory=dict)

    def add(self, number: int, now: float) -> None:
        if number == self.floor + 1:
            self._raise(number)
            return
        self.above[number] = now
        if now - next(iter(self.above.values())) >= SEEN_S:
            self._raise(max(number for number, at in self.above.items() if now - at >= SEEN_S))
        elif len(self.above) > ABOVE_MAX:
            self._raise(sorted(self.above)[ABOVE_MAX // 2])

    def _raise(self, floor: int) -> None:
        if floor > self.floor + 1:
            self.above = {number: at for number, at in self.above.items() if number > floor}
        self.floor = floor
        while self.above.pop(self.floor + 1, None) is not None:
            self.floor += 1


class Seen:
    """Which publications were seen. It forgets none of the last PUBLISHERS_MAX publishers, however long ago: a machine
    that slept may bring what is older than any window."""

    def __init__(self) -> None:
        self._publishers: dict[PeerId, dict[int, _Numbers]] = {}  # by boot; the latest heard is the last

    def __len__(self) -> int:
        return len(self._publishers)

    def has(self, id: Id) -> bool:
        """Whether it was seen, or is so old that nobody can say."""
        publisher, boot, number = id
        boots = self._publishers.get(publisher)
        if boots is None:
            return False
        numbers = boots.get(boot)
        if numbers is None:
            return len(boots) >= BOOTS_MAX and boot < min(boots)
        return number <= numbers.floor or number in numbers.above

    def add(self, id: Id, now: float) -> None:
        """It is seen, for the first time."""
        publisher, boot, number = id
        boots = self._publishers.pop(publisher, None) or {}
        self._publishers[publisher] = boots
        if len(self._publishers) > PUBLISHERS_MAX:
            del self._publishers[next(iter(self._publishers))]
        numbers = boots.get(boot)
        if numbers is None:
            if len(boots) >= BOOTS_MAX:
                del boots[min(boots)]
            numbers = boots[boot] = _Numbers()
        numbers.add(number, now)


@dataclass(slots=True)
class _Share:
    """Of one publisher, among what is kept."""

    count: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """A publication, and when it was published, as far as is known."""

    publication: Publication
    at: float

    def aged(self, now: float) -> Publication:
        """As it is passed on."""
        return msgspec.structs.replace(self.publication, age_ms=max(0, int((now - self.at) * 1e3)))


class Recent:
    """Publications younger than REPAIR_S."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._kept: dict[Id, Kept] = {}  # in the order in which they came
        self._shares: dict[PeerId, _Share] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Id]:
        return iter(self._kept)

    def get(self, id: Id, now: float) -> Publication | None:
        """It, with its age."""
        kept = self._kept.get(id)
        return kept.aged(now) if kept is not None and now - kept.at < REPAIR_S else None

    def share(self, publisher: PeerId) -> tuple[int, int]:
        """How many of this publisher's are kept, and their bytes."""
        share = self._shares.get(publisher)
        return (share.count, share.size_bytes) if share is not None else (0, 0)

    def has_room(self, size_bytes: int) -> bool:
        """Whether one more fits without another going."""
        return len(self) < KEPT_MAX and self.size_bytes + size_bytes <= KEPT_MAX_BYTES

    def add(self, publication: Publication, now: float) -> bool:
        """Keep it. False: its publisher has published too much. If there is no room, the one that came first goes."""
        size = size_of(publication.body)
        count, share_bytes = self.share(publication.publisher)
        if count >= LATE * PUBLISHED_MAX or share_bytes + size > LATE * PUBLISHED_MAX_BYTES:
            return False
        while not self.has_room(size):
            self._drop(next(iter(self._kept)))
        self._kept[publication.id] = Kept(publication, now - publication.age_ms / 1e3)
        share = self._shares.setdefault(publication.publisher, _Share())
        share.count += 1
        share.size_bytes += size
        self.size_bytes += size
        return True

    def expire(self, now: float) -> None:
        """Drop what is older than REPAIR_S."""
        for id in [id for id, kept in self._kept.items() if now - kept.at >= REPAIR_S]:
            self._drop(id)

    def validate(self) -> None:
        """Assert what always holds."""
        assert len(self._kept) <= KEPT_MAX and self.size_bytes <= KEPT_MAX_BYTES, "too much is kept"
        assert len(self._shares) <= len(self._kept), "somebody has a share of nothing"
        assert bool(self._kept) == bool(self.size_bytes), "what is kept does not add up"

    def _drop(self, id: Id) -> None:
        size = size_of(self._kept.pop(id).publication.body)
        share = self._shares[id[0]]
        share.count -= 1
        share.size_bytes -= size
        self.size_bytes -= size
        if not share.count:
            del self._shares[id[0]]


def size_of(body: bytes) -> int:
    """What a publication counts."""
    return len(body) + OVERHEAD_BYTES
