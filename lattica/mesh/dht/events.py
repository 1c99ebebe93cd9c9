"""What the DHT tells its shell. Answers are told by key: who asks for what is being looked up gets the same one."""

from __future__ import annotations

import msgspec

from lattica.mesh.dht.keys import Key
from lattica.mesh.dht.messages import Contact, Send
from lattica.mesh.dht.records import Record


class LookupFinished(msgspec.Struct, frozen=True):
    """closest: at most K that serve and have answered, closest first, never we ourselves. hops: how many peers, one
    after another, led to the first of them (1: it was known here). asked: how many were."""

    target: Key
    closest: tuple[Contact, ...]
    hops: int
    asked: int


class RecordFound(msgspec.Struct, frozen=True):
    """The latest that was found; None if there is none."""

    key: Key
    record: Record | None


class ProvidersFound(msgspec.Struct, frozen=True):
    """All found so far, one record each: told when there are new ones, and a last time when the search is finished."""

    key: Key
    records: tuple[Record, ...]
    finished: bool


class Stored(msgspec.Struct, frozen=True):
    """So many keep a record of ours; told at each renewal. 0: it is tried again soon, unless it was withdrawn."""

    key: Key
    count: int


Event = LookupFinished | RecordFound | ProvidersFound | Stored
Effect = Send | Event
