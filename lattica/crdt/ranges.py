"""Sums over a set of (place, hash), by which two that hold almost the same set find where they differ.

Places are integers of 64 bits. A *prefix* is an integer too, a 1 and then the hexadecimal digits with which its places
begin: 1 is all of them, 0x1a3 those that begin with a3; it has 15 digits at most. The fingerprint of a prefix is the
hash of a sum over its items, so that a change costs one addition per level, and of their count.

Source: Meyer, "Range-Based Set Reconciliation" (2022).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from blake3 import blake3

PLACE_BITS = 64
ALL = 1
"""The prefix of all places."""
FANOUT = 16
DEPTH_MAX = 15
FINGERPRINT_BYTES = 8  # two different ranges look the same once in 2**64
EMPTY = bytes(FINGERPRINT_BYTES)
"""Fingerprint of a range without items."""
ROOT_BYTES = 16

_SUMS_DEPTH = 3
"""Deepest prefixes with a sum of their own: 4,096, of 150 bytes each once there are 16,000 items."""
_SPLIT_ITEMS = 64
"""A prefix with more gives its 16 children sums; of fewer, 1.5 µs each, a sum is made when somebody asks."""
_BLOCK_ITEMS = 512  # an insertion moves 4 KiB at most

# A sum is one integer: the number of items, and above it the sum of their hashes modulo 2**128.
_COUNT_BITS = 32
_COUNT = (1 << _COUNT_BITS) - 1
_SUM = (1 << 128 + _COUNT_BITS) - 1
_SUM_BYTES = (128 + _COUNT_BITS) // 8


class Ranges:
    """A set of (place, hash), in the order of places. It keeps no copies: the integers and hashes are those given."""

    __slots__ = ("_blocks", "_starts", "_sums")

    def __init__(self) -> None:
        self._blocks: list[tuple[list[int], list[bytes]]] = [([], [])]  # places ascending, and their hashes
        self._starts = [0]  # the lowest place that may stand in each block
        self._sums = {ALL: 0}  # either all children of a prefix are here or none

    def __repr__(self) -> str:
        return f"<Ranges: {len(self)} items, {self.root().hex()[:8]}>"

    def __len__(self) -> int:
        return self._sums[ALL] & _COUNT

    def add(self, place: int, hash: bytes) -> None:
        """Put an item in. Two may have one place, but nothing is there twice: adding it again changes nothing."""
        number = bisect_right(self._starts, place) - 1
        places, hashes = self._blocks[number]
        at = _index(places, hashes, place, hash)
        if places[at : at + 1] == [place] and hashes[at] == hash:
            return
        places.insert(at, place)
        hashes.insert(at, hash)
        if len(places) > _BLOCK_ITEMS:
            self._split_block(number)
        self._change(place, _item(place, hash))

    def remove(self, place: int, hash: bytes) -> None:
        """Take an item out. Raises KeyError if it is not there."""
        number = bisect_right(self._starts, place) - 1
        places, hashes = self._blocks[number]
        at = _index(places, hashes, place, hash)
        if places[at : at + 1] != [place] or hashes[at] != hash:
            raise KeyError(place)
        del places[at], hashes[at]
        if not places and number:
            del self._blocks[number], self._starts[number]
        self._change(place, -_item(place, hash))

    def replace(self, place: int, old: bytes, new: bytes) -> None:
        """Take the one item out, and put the other in at the same place."""
        self.remove(place, old)
        self.add(place, new)

    def root(self) -> bytes:
        """Fingerprint of everything, 16 bytes."""
        return _hash(self._sums[ALL], ROOT_BYTES)

    def fingerprint(self, prefix: int) -> bytes:
        """8 bytes; `EMPTY` if no item is there."""
        total = self._sum(prefix)
        return _hash(total, FINGERPRINT_BYTES) if total & _COUNT else EMPTY

    def children(self, prefix: int) -> list[tuple[int, bytes]]:
        """The 16 prefixes that are one digit longer, with their fingerprints."""
        return [(child, self.fingerprint(child)) for child in children_of(prefix)]

    def count(self, prefix: int, since: int = 0) -> int:
        """How many items there are. since: those at this place or after it."""
        first, last = span(prefix)
        if since <= first and prefix in self._sums:
            return self._sums[prefix] & _COUNT
        return sum(end - begin for _, begin, end in self._cuts(max(first, since), last))

    def items(self, prefix: int, since: int = 0) -> list[tuple[int, bytes]]:
        """Its items in order. since: those at this place or after it."""
        return list(self.walk(prefix, since))

    def walk(self, prefix: int, since: int = 0) -> Iterator[tuple[int, bytes]]:
        """As `items`, one by one; the set must not change meanwhile."""
        first, last = span(prefix)
        for (places, hashes), begin, end in self._cuts(max(first, since), last):
            yield from zip(places[begin:end], hashes[begin:end])

    def validate(self) -> None:
        """Assert what always holds."""
        items = self.items(ALL)
        assert items == sorted(set(items)), "the items are not in order"
        assert all(len(places) == len(hashes) for places, hashes in self._blocks), "a block has lost half an item"
        assert all(self._add_up(*span(prefix)) == total for prefix, total in self._sums.items()), "a sum is wrong"

    # -- inside

    def _cuts(self, first: int, last: int) -> Iterator[tuple[tuple[list[int], list[bytes]], int, int]]:
        """The parts of blocks with places from `first` to `last`: (block, begin, end)."""
        number = bisect_right(self._starts, first) - 1
        while first <= last and number < len(self._blocks) and self._starts[number] <= last:
            places = self._blocks[number][0]
            yield self._blocks[number], bisect_left(places, first), bisect_right(places, last)
            number += 1

    def _split_block(self, number: int) -> None:
        places, hashes = self._blocks[number]
        at = bisect_left(places, places[len(places) // 2])  # one place stays in one block
        if at:
            self._blocks[number : number + 1] = [(places[:at], hashes[:at]), (places[at:], hashes[at:])]
            self._starts.insert(number + 1, places[at])

    def _change(self, place: int, by: int) -> None:
        """The sums of all prefixes of this place change; a prefix that has grown gives sums to its children."""
        sums, prefix, depth = self._sums, ALL, 0
        while prefix in sums:
            total = sums[prefix] = sums[prefix] + by & _SUM
            longest, depth = prefix, depth + 1
            prefix = 1 << 4 * depth | place >> PLACE_BITS - 4 * depth
        if depth <= _SUMS_DEPTH and total & _COUNT > _SPLIT_ITEMS:
            for child in children_of(longest):
                sums[child] = self._add_up(*span(child))

    def _sum(self, prefix: int) -> int:
        found = self._sums.get(prefix)
        return self._add_up(*span(prefix)) if found is None else found

    def _add_up(self, first: int, last: int) -> int:
        total = 0
        for (places, hashes), begin, end in self._cuts(first, last):
            total += sum(map(_item, places[begin:end], hashes[begin:end]))
        return total & _SUM


def is_prefix(number: int) -> bool:
    """Whether it is one."""
    digits, rest = divmod(number.bit_length() - 1, 4)
    return number > 0 and rest == 0 and digits <= DEPTH_MAX


def depth_of(prefix: int) -> int:
    """How many digits it has."""
    return (prefix.bit_length() - 1) // 4


def span(prefix: int) -> tuple[int, int]:
    """Its first and its last place."""
    bits = PLACE_BITS + 1 - prefix.bit_length()
    first = (prefix << bits) - (1 << PLACE_BITS)
    return first, first + (1 << bits) - 1


def children_of(prefix: int) -> range:
    """The prefixes that are one digit longer."""
    return range(prefix << 4, (prefix << 4) + FANOUT)


def _index(places: list[int], hashes: list[bytes], place: int, hash: bytes) -> int:
    """Where the item stands, or belongs."""
    at = bisect_left(places, place)
    while at < len(places) and places[at] == place and hashes[at] < hash:
        at += 1
    return at


def _item(place: int, hash: bytes) -> int:
    """What one item adds to a sum."""
    digest = blake3(place.to_bytes(8, "big") + hash).digest(16)
    return int.from_bytes(digest, "big") << _COUNT_BITS | 1


def _hash(total: int, size: int) -> bytes:
    digest: bytes = blake3(total.to_bytes(_SUM_BYTES, "big")).digest(size)
    return digest
