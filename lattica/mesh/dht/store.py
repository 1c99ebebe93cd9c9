"""What one peer keeps for the others: records until they expire, so many of each key and writer and no more.

A record is kept only if its writer itself brought it: who that is, and that it is a member, the transport has proved.
So nobody can fill a server with what strangers have signed, and a member fills no more than its share.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from lattica.mesh.dht.agenda import Agenda
from lattica.mesh.dht.keys import Key
from lattica.mesh.dht.messages import RECORDS_MAX, RECORDS_MAX_BYTES
from lattica.mesh.dht.records import TTL_MAX_S, Record, is_current
from lattica.mesh.identity import PeerId

KEY_RECORDS_MAX = 256
"""Under one key: of a topic that thousands take part in, the latest are enough to meet the others."""
WRITER_RECORDS_MAX = 1024
"""Of one writer. With 100 servers and k = 20 a writer of 5,000 records comes to this."""
STORE_RECORDS_MAX = 1 << 16
"""Of all: some 40 MB."""

Shelf = tuple[int, Key]
"""A kind, and a key: nobody crowds a value out by many providers."""
Place = tuple[Shelf, PeerId]


@dataclass(slots=True)
class Held:
    """until: when it expires, on our monotonic clock."""

    record: Record
    until: float


class RecordStore:
    """See the module. `now` is monotonic; records expire by unix time, which is told when they come."""

    def __init__(self) -> None:
        self._held: dict[Shelf, dict[PeerId, Held]] = {}
        self._of_writer: Counter[PeerId] = Counter()
        self._expiries: Agenda[Place] = Agenda()

    def __repr__(self) -> str:
        return f"<RecordStore: {len(self)} records on {len(self._held)} shelves>"

    def __len__(self) -> int:
        return len(self._expiries)

    def keep(self, record: Record, now: float, unix_s: float) -> bool:
        """Keep it, in place of an older one. Whether it, or one that is as new, is kept now."""
        self.expire(now)
        if not is_current(record, unix_s):
            return False
        shelf = record.content.kind, record.key
        held = self._held.get(shelf, {}).get(record.writer)
        if held is not None and record.order <= held.record.order:
            return record.data == held.record.data
        if held is None and not self._has_room(shelf, record.writer):
            return False
        until = now + min(record.expires - unix_s, TTL_MAX_S)
        self._of_writer[record.writer] += held is None
        self._held.setdefault(shelf, {})[record.writer] = Held(record, until)
        self._expiries.put((shelf, record.writer), until)
        return True

    def of(self, kind: int, key: Key, now: float) -> list[Record]:
        """All of this kind under this key."""
        self.expire(now)
        return [held.record for held in self._held.get((kind, key), {}).values()]

    def some_of(self, kind: int, key: Key, now: float, rng: Random) -> tuple[bytes, ...]:
        """What fits into an answer; of more, others each time, so that no provider is everybody's."""
        records = [record.data for record in self.of(kind, key, now)]
        if len(records) > RECORDS_MAX:
            records = rng.sample(records, RECORDS_MAX)
        while sum(map(len, records)) > RECORDS_MAX_BYTES:
            records.pop()
        return tuple(records)

    def next_deadline(self) -> float | None:
        """When the next record expires."""
        return self._expiries.next()

    def expire(self, now: float) -> None:
        """Forget what has."""
        for place in self._expiries.take(now):
            self._forget(place)

    def validate(self) -> None:
        """Assert what always holds."""
        assert len(self) == self._of_writer.total() <= STORE_RECORDS_MAX, "records are counted wrongly"
        self._expiries.validate()

    def _has_room(self, shelf: Shelf, writer: PeerId) -> bool:
        """Room is made under a crowded key: what expires first, and was renewed longest ago, is forgotten."""
        if self._of_writer[writer] >= WRITER_RECORDS_MAX or len(self) >= STORE_RECORDS_MAX:
            return False
        crowd = self._held.get(shelf, {})
        if len(crowd) >= KEY_RECORDS_MAX:
            first = min(crowd, key=lambda writer: crowd[writer].until)
            self._expiries.drop((shelf, first))
            self._forget((shelf, first))
        return True

    def _forget(self, place: Place) -> None:
        shelf, writer = place
        del self._held[shelf][writer]
        if not self._held[shelf]:
            del self._held[shelf]
        self._of_writer[writer] -= 1
        if not self._of_writer[writer]:
            del self._of_writer[writer]
