"""Generators, from both ends: what a worker makes one after the other, and what its caller has of it. Pure.

    caller -> worker   Task or Call with `returns` below zero, Taken ...       worker -> caller   Item ..., Reply

Rules of this file. Items have numbers from 0 and come in order over one connection; a `Reply` of one value ends them.
The worker is a bounded number of items and bytes ahead of what the caller says that it has heard, and, if the user gave
a window, of what the user has taken. It keeps what is not heard, and says it again over another connection; the caller
takes each number once and leaves out what it does not expect. A run that follows a death begins by hearing what the
caller has: those items are made, and neither kept nor sent.

The id of an item is made of its number and of blocks of ids that the caller deals out, so that every run gives the same
one: blocks[n // BLOCK_ITEMS], plus one, plus the rest.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from lattica.codec import messages as m

V = TypeVar("V")
R = TypeVar("R")

AHEAD_ITEMS = 1024
AHEAD_BYTES = 4 << 20
"""What a worker has made and its caller has not heard, as of the connections between nodes: at 75 ms there and back
these are 13,000 items and 53 MB a second. More: memory for a caller that stands still, and names in `Unheard`."""
HEARD_EACH = 4  # parts of that after which the caller says what it has heard
TAKEN_EACH = 8  # parts of the user's window; below as many items, each one is told
BLOCK_ITEMS = (1 << 16) - 1
"""Ids end with two bytes for which result; the first of a block is the generator's own, or nobody's."""

NEW, OLD, STRANGE = range(3)
"""An item that comes: the next one; one that was here before a run was repeated; one that does not come now."""


def to_wire(window: int) -> int:
    """A generator's `returns`. window: items that may be made and not taken; 0: any number."""
    return -1 - window


def window_of(returns: int) -> int:
    """The window in a `returns` below zero."""
    return -1 - returns


def small_bytes(value: m.Value) -> int:
    """Bytes of an item in its message; those in the arena are not counted."""
    match value:
        case bytes():
            return len(value)
        case m.InArena():
            return 0
    return len(value.data)


def item_id(blocks: list[bytes], at: int) -> bytes:
    """The id of item number `at`."""
    block = blocks[at // BLOCK_ITEMS]
    return block[:8] + (int.from_bytes(block[8:], "big") + 1 + at % BLOCK_ITEMS).to_bytes(8, "big")


def item_number(blocks: list[bytes], id: bytes) -> int:
    """Which item has this id."""
    serial = int.from_bytes(id[8:], "big")
    block = id[:8] + (serial & ~0xFFFF).to_bytes(8, "big")
    return blocks.index(block) * BLOCK_ITEMS + (serial & 0xFFFF) - 1


class Producer(Generic[V]):
    """One run of a generator, as its worker has it."""

    __slots__ = ("_bytes", "_kept", "blocks", "heard", "made", "over", "taken", "window")

    def __init__(self, first: bytes, window: int) -> None:
        """first: the block of ids that the task brings."""
        self.blocks, self.window = [first], window
        self.made = 0  # number of the next item
        self.heard = self.taken = 0  # as the caller says
        self.over = False  # nobody wants more
        self._kept: deque[tuple[int, V]] = deque()  # (bytes, item) of what is made and not heard
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<Producer: {self.made} made, {self.heard} heard, {self.taken} taken>"

    def told(self, heard: int, taken: int, blocks: list[bytes], over: bool) -> None:
        """What the caller says; what it says late says nothing."""
        self.heard, self.taken = max(self.heard, heard), max(self.taken, taken)
        self.blocks += blocks
        self.over = self.over or over
        while self._kept and self.made - len(self._kept) < self.heard:
            self._bytes -= self._kept.popleft()[0]

    @property
    def starved(self) -> bool:
        """Whether the user must take some first."""
        return self.window > 0 and self.made - self.taken >= self.window

    @property
    def may_make(self) -> bool:
        """Whether the next item may be made, or nobody wants it."""
        if self.over:
            return True
        ahead = self.made - self.heard >= AHEAD_ITEMS or self._bytes >= AHEAD_BYTES
        return not ahead and not self.starved and self.made < len(self.blocks) * BLOCK_ITEMS

    @property
    def wanted(self) -> bool:
        """Whether the item that was made is to be sent: an earlier run may have sent it."""
        return self.made >= self.heard

    @property
    def next_id(self) -> bytes:
        """The id of the item that is being made."""
        return item_id(self.blocks, self.made)

    def skip(self) -> None:
        """It was made, and is not wanted."""
        self.made += 1

    def add(self, item: V, size_bytes: int) -> None:
        """It was made, and is to be sent."""
        if self.wanted:  # else it was heard of while it was made, in an earlier run
            self._kept.append((size_bytes, item))
            self._bytes += size_bytes
        self.made += 1

    def unheard(self) -> list[tuple[int, V]]:
        """(number, item) of what is to be said again over another connection."""
        first = self.made - len(self._kept)
        return [(first + at, item) for at, (_, item) in enumerate(self._kept)]

    def validate(self) -> None:
        """What is kept is what is not heard, and no more than may be."""
        assert len(self._kept) == max(0, self.made - self.heard) or self.over, "kept and unheard are not the same"
        assert len(self._kept) <= AHEAD_ITEMS, f"{len(self._kept)} items are kept"
        assert self._bytes == sum(size for size, _ in self._kept), "bytes are miscounted"
        assert not self.window or self.over or self.made - self.taken <= self.window, "more was made than may be"


class Consumer(Generic[R]):
    """A generator as its caller has it, over all runs. R: what the caller makes of an item."""

    __slots__ = ("_bytes", "_told", "blocks", "ended", "have", "heard", "ready", "taken", "window")

    def __init__(self, first: bytes, window: int) -> None:
        self.blocks, self.window = [first], window
        self.have = 0  # items that have come
        self.heard = 0  # number of the item that comes next in this run
        self.taken = 0  # items that the user has
        self.ready: deque[R] = deque()  # what the user has not taken
        self.ended = False
        self._told = (0, 0)  # heard, taken
        self._bytes = 0  # of items since then

    def __repr__(self) -> str:
        return f"<Consumer: {self.have} items, {self.taken} taken{', ended' if self.ended else ''}>"

    def begins(self, wanted: int | None = None) -> tuple[int, int]:
        """A run is about to begin: (heard, taken) to say before. wanted: the first item that was lost, if any was."""
        self.heard = self.have if wanted is None else min(wanted, self.have)
        return self.tells()

    def came(self, at: int, size_bytes: int) -> int:
        """An item: NEW, OLD or STRANGE."""
        if at != self.heard:
            return STRANGE
        self.heard += 1
        self._bytes += size_bytes
        if at < self.have:
            return OLD
        self.have += 1
        return NEW

    def take(self) -> R:
        """The user has the next one. Raises IndexError if none is there."""
        item = self.ready.popleft()
        self.taken += 1
        return item

    @property
    def short_of_ids(self) -> bool:
        """Whether the next block is due: half of one is more than a worker is ahead."""
        return self.have + BLOCK_ITEMS // 2 >= len(self.blocks) * BLOCK_ITEMS

    @property
    def owes(self) -> bool:
        """Whether it is time to say what was heard and taken."""
        heard, taken = self._told
        if self.heard - heard >= AHEAD_ITEMS // HEARD_EACH or self._bytes >= AHEAD_BYTES // HEARD_EACH:
            return True
        return self.window > 0 and self.taken - taken >= max(1, self.window // TAKEN_EACH)

    def tells(self) -> tuple[int, int]:
        """(heard, taken), which are being said now."""
        self._bytes = 0
        self._told = self.heard, self.taken
        return self._told

    @property
    def unheard(self) -> list[bytes]:
        """Ids of all items that this run may have made, and whose coming we have not heard of."""
        last = min(self.heard + AHEAD_ITEMS, len(self.blocks) * BLOCK_ITEMS)
        return [item_id(self.blocks, at) for at in range(self.heard, last)]

    def validate(self) -> None:
        """Items are counted once, in order."""
        had = self.have + self.ended  # an error is an item more
        assert self.taken + len(self.ready) <= had and self.heard <= self.have, "items are miscounted"
