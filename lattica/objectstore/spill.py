"""What goes to disk when the arena is full: which objects, in which order, and who must agree.

    make_room ─► Ask its holders ─► all have forgotten where it lies ─► Write ─► Out: its region is free
                    └─ an array lies over it, or somebody asks where it lies ─► it stays

Processes read the arena without asking anybody, so a region may go only when no process knows its offset any more: each
that holds the object is asked to forget it (`Evict`), and says whether it could. A ref may be on its way between two
processes, with the offset in it. Whoever sent it had said so to the node (`Give`) before, on the connection on which
its answer came later: so when all answers are in, everybody who may get such a ref is known, and is asked as well. Who
was asked reads no offset of this object any more unless the node says it, also from what comes later.

Known are those whose count is not zero, and those whose count has changed since the first was asked (`touched`): of one
who has got two refs and dropped one of them the node may know of one gift and of the drop, which is zero in all. (The
gift that it has not heard of yet is of somebody who holds the object, is asked, and gave before he answers; or he had
answered before, and then the drop came while others were still asked.) Known are, too, those who were asked before:
they remember where it lies from what the node has told them since, though they may have dropped their refs and get
others.

Spans belong to processes, and go back only when they are empty: so objects are chosen by neighbourhood, span by span,
those first whose most recently used object was used the longest ago. The node hears of uses when an object is made,
when somebody asks for it, when it comes back from disk, and when it stays under an array; not of each `get`.

Rules of this file: `now` is the only time, sizes are bytes. Nothing is read or written here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from enum import Enum

import msgspec

BATCH_BYTES = 64 << 20
"""Of one file. Smaller: more files and flushes per byte (a flush costs 1 to 20 ms); larger: the first who waits waits
longer, and a file stays until the last object in it is gone."""
WRITES_MAX = 2  # files at once: the next one is read and hashed while the disk has the one before
ASKED_MAX = 20_000  # objects at once
KEPT_S = 0.3  # before an object with an array over it is asked for again
GRACE_S = 0.05
"""For what came back from disk to be read: whoever waited for it needs 1 ms, and keeps it from then on. Longer: a store
whose objects have all just come back has no room for as long."""
SILENT_S = 1.0  # a process that has not answered by then is not waited for: others' objects go instead


class State(Enum):
    """Of an object in memory."""

    STAYS = "stays"
    ASKED = "asked"  # its holders were asked to forget where it lies
    READY = "ready"  # they have; it waits for a thread
    WRITING = "writing"


class Region(msgspec.Struct, eq=False):
    """An object in memory. used: when, as far as is known; filed: it is on disk already; not_before: it is not asked
    for until then; keepers: who had arrays over it when they were asked."""

    object: bytes
    offset: int
    size: int
    used: float
    filed: bool = False
    not_before: float = 0.0
    state: State = State.STAYS
    since: float = 0.0  # when it was asked for
    round: int = 0  # in which it was: an answer to an earlier one says nothing of what was told since
    waits_for: set[int] = msgspec.field(default_factory=set)
    said_so: set[int] = msgspec.field(default_factory=set)
    touched: set[int] = msgspec.field(default_factory=set)
    keepers: frozenset[int] = frozenset()


class Ask(msgspec.Struct, frozen=True):
    """Have this client forget where these objects lie; its answer names the round."""

    client: int
    objects: list[bytes]
    round: int


class Forget(msgspec.Struct, frozen=True):
    """This object is gone: the client, who was asked once, need not remember it."""

    client: int
    object: bytes


class Write(msgspec.Struct, frozen=True, eq=False):
    """Put these into one file; `written` says how that went."""

    regions: Sequence[Region]


class Out(msgspec.Struct, frozen=True, eq=False):
    """It is on disk, and nobody knows where it lies in memory: that is free."""

    region: Region


Effect = Ask | Forget | Write | Out


class Piece(msgspec.Struct, eq=False):
    """A part of the arena: free (`owner` None), or a span. age: when the last of its objects was used, so far as it
    can be emptied; None: it cannot."""

    start: int
    stop: int
    owner: int | None
    regions: list[Region] = []
    age: float | None = None


class Spiller:
    """See the module. holders: of an object, the processes that must be asked. pinned: what the node itself reads."""

    def __init__(self, holders: Callable[[bytes], Iterable[int]], pinned: Collection[bytes] = ()) -> None:
        self._holders, self._pinned = holders, pinned
        self.regions: dict[bytes, Region] = {}
        self._asked: dict[bytes, set[int]] = {}  # who was ever asked to forget it
        self._ready: deque[Region] = deque()
        self._running = 0  # writes
        self._batch_bytes = BATCH_BYTES  # nothing: one object to a file, after one has failed
        self._round = 0
        self.window: tuple[int, int] | None = None  # (start, stop) that the last `make_room` makes free

    def __repr__(self) -> str:
        return f"<Spiller {len(self.regions)} in memory, {len(self._ready)} to be written, {self._running} writes>"

    # -- what is told

    def sealed(self, object: bytes, offset: int, size: int, now: float, *, restored: bool = False) -> None:
        """It lies there from now on, made or brought back from disk."""
        not_before = now + GRACE_S if restored else 0.0
        self.regions[object] = Region(object, offset, size, now, restored, not_before)

    def used(self, object: bytes, now: float) -> None:
        """Somebody was told where it lies, or begins to read it: it stays."""
        region = self.regions.get(object)
        if region is not None:
            region.used, region.state = now, State.STAYS

    def touched(self, object: bytes, client: int) -> None:
        """The count of a process has changed."""
        region = self.regions.get(object)
        if region is not None and region.state is State.ASKED:
            region.touched.add(client)

    def freed(self, object: bytes) -> list[Effect]:
        """Nobody holds it any more, in memory or on disk."""
        region = self.regions.pop(object, None)
        if region is not None:
            region.state = State.STAYS
        return [Forget(client, object) for client in sorted(self._asked.pop(object, ()))]

    def knows_of(self, object: bytes, client: int) -> None:
        """A process hears that it is on disk: it remembers that, as if it had been asked to forget where it lies."""
        self._asked.setdefault(object, set()).add(client)

    def given(self, object: bytes, client: int) -> list[Effect]:
        """The node gives it to a process, with what somebody has once written of where it lies."""
        if object not in self._asked or client in self._asked[object]:
            return []
        self._asked[object].add(client)
        return [Ask(client, [object], 0)]

    def client_gone(self, client: int) -> list[Effect]:
        """It will not answer, and reads nothing any more."""
        asked = [region for region in self.regions.values() if client in region.waits_for]
        for region in self.regions.values():
            region.touched.discard(client)
        for known in self._asked.values():
            known.discard(client)
        return self._answers(client, asked)

    # -- going

    def leaving_bytes(self, now: float) -> int:
        """Bytes that were chosen and may soon be free."""
        return sum(
            region.size
            for region in self.regions.values()
            if region.state in (State.READY, State.WRITING)
            or (region.state is State.ASKED and now - region.since < SILENT_S)
        )

    @property
    def writing_bytes(self) -> int:
        """Bytes that nobody can keep here any more but by asking for them."""
        return sum(region.size for region in self.regions.values() if region.state in (State.READY, State.WRITING))

    def make_room(
        self, need: int, goal: int, pieces: Sequence[tuple[int, int, int | None]], owner: int, now: float
    ) -> list[Effect]:
        """Choose what goes, so that `owner` finds `need` bytes in one piece, and about `goal` bytes are free in all.

        pieces: (start, stop, owner or None if free) of the whole arena, in order.
        """
        found = self._pieces(pieces, now)
        chosen = _window(found, need)
        self.window = (chosen[0].start, chosen[-1].stop) if chosen else None
        if chosen is None:  # what `owner` has of its own may do, though no whole span is to be had
            own = [each for piece in found if piece.owner == owner for each in piece.regions]
            going = _oldest([each for each in own if self._may_go(each, now)], need)
        else:
            going = [region for piece in chosen for region in piece.regions]
        total = sum(region.size for region in going)
        rest = [piece for piece in found if piece.age is not None and piece.regions]
        for piece in sorted(rest, key=lambda piece: (piece.age, piece.start)):
            if total >= goal or len(going) >= ASKED_MAX:
                break
            new = [region for region in piece.regions if region not in going]
            going += new
            total += sum(region.size for region in new)
        return self._ask(going, now)

    def could_fit(self, need: int, pieces: Sequence[tuple[int, int, int | None]], owner: int, now: float) -> bool:
        """Whether room in one piece can be made at all: by all but what arrays lie over, or the node reads."""
        found = self._pieces(pieces, now)
        for piece in found:
            stay = any(region.keepers or region.object in self._pinned for region in piece.regions)
            piece.age = None if stay else 0.0
        own = {region.object: region for piece in found if piece.owner == owner for region in piece.regions}
        mine = (each.size for each in own.values() if not each.keepers and each.object not in self._pinned)
        return _window(found, need) is not None or sum(mine) >= need

    def answered(
        self, client: int, round: int, gone: Iterable[bytes], kept: Iterable[bytes], now: float
    ) -> list[Effect]:
        """`client` has forgotten where these lie; over those that it `kept` lie arrays of its."""

        def due(objects: Iterable[bytes]) -> list[Region]:
            found = (self.regions.get(object) for object in objects)
            return [each for each in found if each is not None and each.round == round and client in each.waits_for]

        for region in due(kept):
            region.state, region.not_before = State.STAYS, now + KEPT_S
            region.keepers = frozenset({client})
            region.used = now  # else it is asked for again and again in place of others, which could go
            region.waits_for.clear()
        return self._answers(client, due(gone))

    def written(self, write: Write, *, well: bool) -> list[Effect]:
        """The file is on disk; or it could not be written."""
        self._running -= 1
        self._batch_bytes = BATCH_BYTES if well else 0
        effects: list[Effect] = []
        for region in write.regions:
            if self.regions.get(region.object) is not region:
                continue
            region.filed = well
            if region.state is State.WRITING:
                region.state = State.STAYS
                if well:
                    del self.regions[region.object]
                    effects.append(Out(region))
        return effects + self._fill()

    def kept_bytes(self) -> tuple[dict[int, int], int]:
        """(bytes under arrays, by the client that has these, as it last said; bytes that the node itself reads)."""
        views: dict[int, int] = {}
        for region in self.regions.values():
            for client in region.keepers:
                views[client] = views.get(client, 0) + region.size
        own = sum(self.regions[object].size for object in self._pinned if object in self.regions)
        return views, own

    def validate(self) -> None:
        """Assert what always holds."""
        for object, region in self.regions.items():
            assert region.object == object, "a region under another name"
            assert not (region.state is State.ASKED and not region.waits_for), "it waits for nobody"
            assert not (region.state is State.READY and region not in self._ready), "it would never be written"
            assert region.state is State.STAYS or object not in self._pinned, "what the node reads goes"
        assert 0 <= self._running <= WRITES_MAX, "too many writes"

    # -- inside

    def _may_go(self, region: Region, now: float) -> bool:
        return region.state is State.STAYS and now >= region.not_before and region.object not in self._pinned

    def _pieces(self, pieces: Sequence[tuple[int, int, int | None]], now: float) -> list[Piece]:
        """The pieces, with the objects in them. A span without objects that are known here cannot be emptied: something
        is just being written there, or it is on its way back."""
        found = [Piece(start, stop, owner, []) for start, stop, owner in pieces]
        at = 0
        for region in sorted(self.regions.values(), key=lambda region: region.offset):
            while at < len(found) and found[at].stop <= region.offset:
                at += 1
            over = at
            while over < len(found) and found[over].start < region.offset + region.size:
                found[over].regions.append(region)
                over += 1
        for piece in found:
            if piece.owner is None:
                piece.age = float("-inf")
            elif piece.regions and all(r.state is not State.STAYS or self._may_go(r, now) for r in piece.regions):
                piece.age = max(r.used if r.state is State.STAYS else float("-inf") for r in piece.regions)
        return found

    def _ask(self, regions: Sequence[Region], now: float) -> list[Effect]:
        """Of those that do not go yet."""
        effects: list[Effect] = []
        asks: dict[tuple[int, int], list[bytes]] = {}
        self._round += 1
        for region in regions[:ASKED_MAX]:
            if region.state is State.STAYS:
                region.state, region.since, region.keepers, region.round = State.ASKED, now, frozenset(), self._round
                region.said_so.clear()
                region.touched.clear()
                region.waits_for.clear()
                effects += self._advance(region, asks)
        return [*_asks(asks), *effects, *self._fill()]

    def _answers(self, client: int, regions: Iterable[Region]) -> list[Effect]:
        effects: list[Effect] = []
        asks: dict[tuple[int, int], list[bytes]] = {}
        for region in regions:
            region.waits_for.discard(client)
            region.said_so.add(client)
            if region.state is State.ASKED and not region.waits_for:
                effects += self._advance(region, asks)
        return [*_asks(asks), *effects, *self._fill()]

    def _advance(self, region: Region, asks: dict[tuple[int, int], list[bytes]]) -> list[Effect]:
        """All who were asked have answered: ask those who hold it by now, or let it go."""
        known = self._asked.setdefault(region.object, set())
        region.waits_for = (known | region.touched | set(self._holders(region.object))) - region.said_so
        known |= region.waits_for
        for client in sorted(region.waits_for):
            asks.setdefault((client, region.round), []).append(region.object)
        if region.waits_for:
            return []
        if region.filed:
            region.state = State.STAYS
            del self.regions[region.object]
            return [Out(region)]
        region.state = State.READY
        self._ready.append(region)
        return []

    def _fill(self) -> list[Effect]:
        """Begin as many writes as may run."""
        effects: list[Effect] = []
        while self._ready and self._running < WRITES_MAX:
            batch, total = list[Region](), 0
            while self._ready and (not batch or total + self._ready[0].size <= self._batch_bytes):
                region = self._ready.popleft()
                if region.state is State.READY and self.regions.get(region.object) is region:
                    region.state = State.WRITING
                    batch.append(region)
                    total += region.size
            if batch:
                self._running += 1
                effects.append(Write(batch))
        return effects


def _asks(asks: dict[tuple[int, int], list[bytes]]) -> list[Effect]:
    return [Ask(client, objects, round) for (client, round), objects in asks.items()]


def _window(pieces: Sequence[Piece], need: int) -> list[Piece] | None:
    """The neighbours with `need` bytes together that were used the longest ago; of equals, the least to write."""
    best: tuple[float, int] | None = None
    found: list[Piece] | None = None
    for first in range(len(pieces)):
        total, age, cost, last = 0, float("-inf"), 0, first
        while total < need and last < len(pieces):
            piece = pieces[last]
            if piece.age is None or (last > first and pieces[last - 1].stop != piece.start):
                break
            total += piece.stop - piece.start
            age = max(age, piece.age)
            cost += sum(region.size for region in piece.regions)
            last += 1
            if best is not None and (age, cost) >= best:
                break
        else:
            if total >= need and (best is None or (age, cost) < best):
                best, found = (age, cost), list(pieces[first:last])
    return found


def _oldest(regions: Iterable[Region], need: int) -> list[Region]:
    going, total = list[Region](), 0
    for region in sorted(regions, key=lambda region: (region.used, -region.size)):
        if total >= need:
            break
        going.append(region)
        total += region.size
    return going
