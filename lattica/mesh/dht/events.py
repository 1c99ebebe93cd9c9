"""What the DHT tells its shell. Answers are told by key: who asks for what is being looked up gets the same one."""

from __future__ import annotations

from dataclasses import dataclass

from lattica.mesh.dht.keys import Key
from lattica.mesh.dht.messages import Contact, Send
from lattica.mesh.dht.records import Record


@dataclass(frozen=True, slots=True)
class LookupFinished:
    """closest: at most K that serve and have answered, closest first, never we ourselves. hops: how many peers, one
    after another, led to the first of them (1: it was known here). asked: how many were."""

    target: Key
    closest: tuple[Contact, ...]
    hops: int
    asked: int


@dataclass(frozen=True, slots=True)
class RecordFound:
    """The latest that was found; None if there is none."""

    key: Key
    record: Record | None


@dataclass(frozen=True, slots=True)
class ProvidersFound:
    """All found so far, one record each: told when there are new ones, and a last time when the search is finished."""

    key: Key
    records: tuple[Record, ...]
    finished: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """So many keep a record of ours; told at each renewal. 0: it is tried again soon, unless it was withdrawn."""

    key: Key
    count: int


Event = LookupFinished | RecordFound | ProvidersFound | Stored
Effect = Send | Event
