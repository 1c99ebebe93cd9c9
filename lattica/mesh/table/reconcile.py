"""How two peers find the rows in which their tables differ, without remembering anything between two messages.

    A -> B  Fingerprints of the 16 parts of everything       (of few items: Items, which says what they are)
    B -> A  of each part that differs: Fingerprints of its 16 parts, or Items       ... and so on, by turns
    B -> A  on Items: the rows that A lacks, and Want, which names those that B lacks
    B -> A  More, for what did not fit into this answer: A describes that part again, from that place on

Rules of this file. A part is (prefix, since): the places with this prefix (`lattica.crdt.ranges`) that are not before
`since`; a message names parts in ascending order and none twice. Whose row is newer cannot be seen from hashes, so both
are sent, and merging decides. Every answer is bounded, and deals with the first part at least, by rows or smaller
parts: so the exchange ends by itself. If a message is lost, a part of it ends early, and `begin` begins anew. The rows
of an answer are sent before its messages.

Source: Meyer, "Range-Based Set Reconciliation" (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import msgspec

from lattica.crdt.ranges import (
    ALL,
    DEPTH_MAX,
    EMPTY,
    FANOUT,
    FINGERPRINT_BYTES,
    PLACE_BITS,
    Ranges,
    children_of,
    depth_of,
    is_prefix,
    span,
)
from lattica.errors import RemoteProtocolError
from lattica.mesh.papers import DAMAGED
from lattica.mesh.table.rows import Row

MESSAGE_MAX_BYTES = 32 << 10
"""A call that comes behind one waits for 2.6 ms at 100 Mbit/s."""
PARTS_MAX = 1024  # in a message; `More` of all of them fits into one
ANSWER_MAX_BYTES = 2 * MESSAGE_MAX_BYTES  # of fingerprints and items
ROWS_MAX_BYTES = 64 << 10  # in one answer; a single row may be longer
ITEMS_FEW = 32
"""A part with so many is described by its items: 512 bytes, where fingerprints of its parts would be 128 and a turn."""
WANT_MAX = 128  # rows in one Want: as many as fit into an answer, if they have 500 bytes
_PLACE_BYTES, _HASH_BYTES = PLACE_BITS // 8, 8
_ITEM_BYTES = _PLACE_BYTES + _HASH_BYTES
_PART_BYTES = 26  # two integers, heads of an array and of bytes
_HEAD_BYTES = 16  # tag and heads of a message


class Sums(msgspec.Struct, array_like=True, frozen=True):
    """A part by the fingerprints of its 16 children, also of those that lie before `since`."""

    prefix: int
    since: int
    fingerprints: bytes  # 16 × 8


class Few(msgspec.Struct, array_like=True, frozen=True):
    """A part by all its items."""

    prefix: int
    since: int
    items: bytes  # each: 8 bytes of its place, and the first 8 of its hash


class Fingerprints(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """Parts with many items each."""

    parts: list[Sums]


class Items(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """Parts with few items each."""

    parts: list[Few]


class Want(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """The rows that the sender lacks, or has otherwise."""

    places: bytes  # 8 bytes each, ascending


class More(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """Describe these parts to me."""

    parts: list[tuple[int, int]]  # (prefix, since)


Message = Fingerprints | Items | Want | More
encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode
Part = TypeVar("Part", Sums, Few)


def decode(data: bytes) -> Message:
    """The message. Raises RemoteProtocolError."""
    if len(data) > MESSAGE_MAX_BYTES:
        raise RemoteProtocolError(f"a comparison has {len(data)} bytes, and may have {MESSAGE_MAX_BYTES}")
    try:
        message: Message = _decode(data)
    except DAMAGED as error:
        raise RemoteProtocolError(f"a comparison cannot be read: {error}") from error
    match message:
        case Fingerprints(parts):
            _check_parts([(part.prefix, part.since) for part in parts])
            if any(len(p.fingerprints) != FANOUT * FINGERPRINT_BYTES or depth_of(p.prefix) == DEPTH_MAX for p in parts):
                raise RemoteProtocolError("a comparison has other than 16 fingerprints for a part")
        case Items(parts):
            _check_parts([(part.prefix, part.since) for part in parts])
            for part in parts:
                _places(part.items, _ITEM_BYTES, part.prefix, part.since)
        case Want(places):
            if len(_places(places, _PLACE_BYTES, ALL)) > WANT_MAX:
                raise RemoteProtocolError(f"a comparison wants more than {WANT_MAX} rows at once")
        case More(parts):
            _check_parts(parts)
    return message


class Reconciler:
    """Answers with what one peer holds.

    rows_at: the row at a place that stands in `ranges`; None if it is not to be sent.
    """

    def __init__(self, ranges: Ranges, rows_at: Callable[[int], Row | None]) -> None:
        self._ranges, self._rows_at = ranges, rows_at

    def __repr__(self) -> str:
        return f"<Reconciler of {self._ranges!r}>"

    def begin(self) -> Message:
        """The first message of a round."""
        answer = _Answer(self._ranges, self._rows_at)
        answer.describe(ALL, 0)
        return answer.messages()[0]

    def answer(self, message: Message) -> tuple[list[Message], list[int]]:
        """(messages, places of rows) to send back to the peer that sent `message`, the rows first.

        Nothing if nothing differs. Rows of at most `ROWS_MAX_BYTES`, or one; messages of `MESSAGE_MAX_BYTES` each.
        """
        answer = _Answer(self._ranges, self._rows_at)
        match message:
            case Fingerprints(parts):
                for sums in parts:
                    answer.compare(sums)
            case Items(parts):
                for few in parts:
                    answer.serve(few)
            case Want(places):
                answer.send(_places(places, _PLACE_BYTES, ALL))
            case More(ranges):
                for prefix, since in ranges:
                    answer.describe(prefix, since)
        return answer.messages(), answer.rows


class _Answer:
    """One, while it is made. What does not fit any more becomes More."""

    def __init__(self, ranges: Ranges, rows_at: Callable[[int], Row | None]) -> None:
        self._ranges, self._rows_at = ranges, rows_at
        self.rows: list[int] = []
        self._sums: list[Sums] = []
        self._few: list[Few] = []
        self._want: list[int] = []
        self._more: list[tuple[int, int]] = []
        self._room, self._row_room = ANSWER_MAX_BYTES, ROWS_MAX_BYTES

    def describe(self, prefix: int, since: int) -> None:
        """Say what we have there."""
        if self._is_full():
            self._more.append((prefix, since))
            return
        is_deepest = depth_of(prefix) == DEPTH_MAX
        few = list(islice(self._ranges.walk(prefix, since), PARTS_MAX if is_deepest else ITEMS_FEW + 1))
        if is_deepest or len(few) <= ITEMS_FEW:
            items = b"".join([_packed(place, hash) for place, hash in few])
            self._few.append(Few(prefix, since, items))
            self._room -= _PART_BYTES + len(items)
        else:
            fingerprints = b"".join([fingerprint for _, fingerprint in self._ranges.children(prefix)])
            self._sums.append(Sums(prefix, since, fingerprints))
            self._room -= _PART_BYTES + len(fingerprints)

    def compare(self, theirs: Sums) -> None:
        """Describe what differs, or send it where they have nothing."""
        is_few = self._ranges.count(theirs.prefix, theirs.since) <= ITEMS_FEW
        for child, fingerprint in self._differing(theirs):
            since = max(theirs.since, span(child)[0])
            if is_few or self._is_full():
                self.describe(theirs.prefix, since)  # all the rest of it
                return
            if fingerprint == EMPTY:
                self.serve(Few(child, since, b""))
            else:
                self.describe(child, since)

    def serve(self, theirs: Few) -> None:
        """Send the rows that they lack, and want those that we lack."""
        if self._is_full():
            self._more.append((theirs.prefix, theirs.since))
            return
        lacked = {theirs.items[at : at + _ITEM_BYTES] for at in range(0, len(theirs.items), _ITEM_BYTES)}
        end = span(theirs.prefix)[1] + 1
        for place, hash in self._ranges.walk(theirs.prefix, theirs.since):
            item = _packed(place, hash)
            if item in lacked:
                lacked.discard(item)
            elif not self._send(place):
                self._more.append((theirs.prefix, place))
                end = place
                break
        places = {int.from_bytes(item[:_PLACE_BYTES], "big") for item in lacked}
        self._want += sorted(place for place in places if place < end)

    def send(self, places: Sequence[int]) -> None:
        """Send the rows at these places, as far as they are here."""
        for place in places:
            if not self._send(place):
                part = 1 << 4 * DEPTH_MAX | place >> PLACE_BITS - 4 * DEPTH_MAX
                if not self._more or self._more[-1][0] != part:
                    self._more.append((part, place))

    def messages(self) -> list[Message]:
        """All that is to be said."""
        made: list[Message] = [Fingerprints(each) for each in _packs(self._sums, lambda sums: len(sums.fingerprints))]
        made += [Items(parts) for parts in _packs(self._few, lambda few: len(few.items))]
        for at in range(0, len(self._want), WANT_MAX):
            wanted = self._want[at : at + WANT_MAX]
            made.append(Want(b"".join([place.to_bytes(_PLACE_BYTES, "big") for place in wanted])))
        if self._more:
            made.append(More(self._more))
        return made

    def _is_full(self) -> bool:
        return self._room <= 0 or self._row_room <= 0

    def _differing(self, theirs: Sums) -> Iterator[tuple[int, bytes]]:
        """The children, with their fingerprints, that are other ones here."""
        for number, child in enumerate(children_of(theirs.prefix)):
            fingerprint = theirs.fingerprints[number * FINGERPRINT_BYTES : (number + 1) * FINGERPRINT_BYTES]
            if span(child)[1] >= theirs.since and fingerprint != self._ranges.fingerprint(child):
                yield child, fingerprint

    def _send(self, place: int) -> bool:
        """Whether its row could be sent, or there is none."""
        row = self._rows_at(place)
        if row is None:
            return True
        if self.rows and len(row.data) > self._row_room:
            self._row_room = 0
            return False
        self.rows.append(place)
        self._row_room -= len(row.data)
        return True


def _packed(place: int, hash: bytes) -> bytes:
    return place.to_bytes(_PLACE_BYTES, "big") + hash[:_HASH_BYTES]


def _packs(parts: Iterable[Part], size: Callable[[Part], int]) -> Iterator[list[Part]]:
    """The parts in lists that fit into a message each. size: of a part, beside `_PART_BYTES`."""
    pack: list[Part] = []
    room = MESSAGE_MAX_BYTES - _HEAD_BYTES
    for part in parts:
        room -= _PART_BYTES + size(part)
        if room < 0 or len(pack) == PARTS_MAX:
            yield pack
            pack, room = [], MESSAGE_MAX_BYTES - _HEAD_BYTES - _PART_BYTES - size(part)
        pack.append(part)
    if pack:
        yield pack


def _check_parts(parts: Sequence[tuple[int, int]]) -> None:
    if not 0 < len(parts) <= PARTS_MAX:
        raise RemoteProtocolError(f"a comparison has {len(parts)} parts, and may have {PARTS_MAX}")
    free = 0
    for prefix, since in parts:
        if not is_prefix(prefix):
            raise RemoteProtocolError(f"a comparison is about {prefix}, which is no prefix")
        first, last = span(prefix)
        if not max(first, free) <= since <= last:
            raise RemoteProtocolError("a comparison has parts that are out of order, or begin outside themselves")
        free = last + 1


def _places(data: bytes, size: int, prefix: int, since: int = 0) -> list[int]:
    """The places at the head of each `size` bytes. Raises RemoteProtocolError if they are not in this part."""
    if len(data) % size:
        raise RemoteProtocolError("a comparison ends within a place")
    places = [int.from_bytes(data[at : at + _PLACE_BYTES], "big") for at in range(0, len(data), size)]
    if places and (places != sorted(places) or not since <= places[0] or places[-1] > span(prefix)[1]):
        raise RemoteProtocolError("a comparison has places out of order, or of another part")
    return places
