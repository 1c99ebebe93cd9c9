"""Datagrams that wait to be passed on: fair between pairs of peers, bounded for each channel and in all.

A *lane* is one way of a channel, a *pair* is all lanes between two peers. Pairs take turns by deficit round robin
(Shreedhar & Varghese 1996) of QUANTUM_BYTES, so who sends more, or opens more channels, gets no more than others while
there is not enough for all. Within a pair its lanes take turns of LANE_QUANTUM_BYTES. Where too much waits the oldest
datagrams go: QUIC takes that for congestion, and slows down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

QUANTUM_BYTES = 64 << 10
"""Of a pair in one turn: 50 datagrams, which the kernel takes in one piece. More: others wait longer for their turn."""
LANE_QUANTUM_BYTES = 16 << 10  # so that acknowledgements do not wait behind all that they acknowledge
CHANNEL_MAX_BYTES = 256 << 10
"""That wait in both ways of a channel: 20 ms at 100 Mbit/s. More is delay, and memory for those who do not read."""
TOTAL_MAX_BYTES = 64 << 20
SHED_SHARE = 1 / 16
"""How far below the bound the queues are cut when they reach it, so that the longest are sought once for many drops."""
DATAGRAM_COST_BYTES = 64  # of memory and work, beside its length: many small ones are not free


class Pair:
    """Two peers that talk by way of us."""

    __slots__ = ("deficit", "in_turn", "ring")

    def __init__(self) -> None:
        self.ring: deque[Lane] = deque()  # lanes of it that have something, and may send it
        self.deficit = 0
        self.in_turn = False  # it was given its quantum, and has not used it up

    def __repr__(self) -> str:
        return f"<Pair: {len(self.ring)} lanes, {self.deficit} bytes left of its turn>"


class Lane:
    """What one end of a channel has sent to the other."""

    __slots__ = ("bytes", "held", "in_ring", "other", "owner", "pair", "queue")

    def __init__(self, owner: Hashable, pair: Pair) -> None:
        """owner: whatever tells its user where the datagrams go."""
        self.owner, self.pair = owner, pair
        self.queue: deque[bytes] = deque()
        self.bytes = 0  # by cost
        self.other: Lane = self  # of the same channel
        self.held = False  # its datagrams cannot go now
        self.in_ring = False

    def __repr__(self) -> str:
        return f"<Lane: {len(self.queue)} datagrams{', held' if self.held else ''}>"


class FairQueue:
    """See the module. Bytes are counted by cost: a datagram's length and DATAGRAM_COST_BYTES."""

    def __init__(self, *, channel_max: int = CHANNEL_MAX_BYTES, total_max: int = TOTAL_MAX_BYTES) -> None:
        self.bytes = 0
        self.dropped = 0  # datagrams, since the beginning
        self._channel_max, self._total_max = channel_max, total_max
        self._turns: deque[Pair] = deque()  # pairs that have something to send
        self._lanes: dict[Lane, None] = {}  # that have a datagram

    def __repr__(self) -> str:
        return f"<FairQueue: {self.bytes} bytes in {len(self._lanes)} lanes of {len(self._turns)} pairs>"

    @property
    def ready(self) -> bool:
        """Whether something may be sent."""
        return bool(self._turns)

    def put(self, lane: Lane, datagram: bytes) -> None:
        """A datagram came for this lane."""
        cost = len(datagram) + DATAGRAM_COST_BYTES
        if not lane.queue:
            self._lanes[lane] = None
        lane.queue.append(datagram)
        lane.bytes += cost
        self.bytes += cost
        if not lane.in_ring and not lane.held:
            self._enter(lane)
        while lane.bytes + lane.other.bytes > self._channel_max:
            self._drop_oldest(lane if lane.bytes >= lane.other.bytes else lane.other)
        if self.bytes > self._total_max:
            self._shed()

    def take(self, most: int) -> list[tuple[Lane, list[bytes]]]:
        """What to send now, in this order: about so many bytes; less only if there is no more."""
        found: list[tuple[Lane, list[bytes]]] = []
        while most > 0 and self._turns:
            pair = self._turns[0]
            if not pair.in_turn:
                pair.deficit += QUANTUM_BYTES
                pair.in_turn = True
            most -= self._serve(pair, most, found)
            if not pair.ring:
                self._leave(pair)
            elif pair.deficit < len(pair.ring[0].queue[0]) + DATAGRAM_COST_BYTES:
                pair.in_turn = False
                self._turns.rotate(-1)
        return found

    def put_back(self, lane: Lane, datagrams: list[bytes]) -> None:
        """These were taken just now, and could not be sent."""
        for datagram in reversed(datagrams):
            if not lane.queue:
                self._lanes[lane] = None
            cost = len(datagram) + DATAGRAM_COST_BYTES
            lane.queue.appendleft(datagram)
            lane.bytes += cost
            self.bytes += cost
            lane.pair.deficit += cost
        if lane.queue and not lane.in_ring and not lane.held:
            self._enter(lane)

    def hold(self, lane: Lane) -> None:
        """Nothing of it can be sent for now."""
        lane.held = True
        if lane.in_ring:
            lane.in_ring = False
            lane.pair.ring.remove(lane)
            if not lane.pair.ring:
                self._leave(lane.pair)

    def release(self, lane: Lane) -> None:
        """It can be sent again."""
        lane.held = False
        if lane.queue and not lane.in_ring:
            self._enter(lane)

    def clear(self, lane: Lane) -> None:
        """What waits in it is nobody's any more."""
        self.dropped += len(lane.queue)
        self.bytes -= lane.bytes
        lane.queue.clear()
        lane.bytes = 0
        self._empty(lane)

    def validate(self) -> None:
        """Every invariant."""
        assert self.bytes == sum(lane.bytes for lane in self._lanes) <= self._total_max, f"{self.bytes} bytes wait"
        rings = [lane for pair in self._turns for lane in pair.ring]
        assert len(set(map(id, self._turns))) == len(self._turns), "a pair has two turns"
        assert {id(lane) for lane in rings} == {id(lane) for lane in self._lanes if not lane.held}, "a lane is left out"
        for lane in self._lanes:
            assert lane.queue, f"{lane!r} is empty, and in the list of those that are not"
            assert lane.bytes == sum(len(each) + DATAGRAM_COST_BYTES for each in lane.queue)
            assert lane.bytes + lane.other.bytes <= self._channel_max, f"{lane!r} is too long"
            assert lane.in_ring == (not lane.held)

    # -- inside

    def _serve(self, pair: Pair, most: int, found: list[tuple[Lane, list[bytes]]]) -> int:
        """Take from the pair's lanes what its turn and `most` allow; how many bytes."""
        ring, taken = pair.ring, 0
        while ring and taken < most:
            lane = ring[0]
            queue, batch, size = lane.queue, list[bytes](), 0
            first = len(queue[0]) + DATAGRAM_COST_BYTES
            room = min(pair.deficit, max(min(LANE_QUANTUM_BYTES, most - taken), first))
            while queue and size + len(queue[0]) + DATAGRAM_COST_BYTES <= room:
                size += len(queue[0]) + DATAGRAM_COST_BYTES
                batch.append(queue.popleft())
            if not batch:
                break
            if found and found[-1][0] is lane:
                found[-1][1].extend(batch)
            else:
                found.append((lane, batch))
            pair.deficit -= size
            lane.bytes -= size
            self.bytes -= size
            taken += size
            if queue:
                ring.rotate(-1)
            else:
                self._empty(lane, leave=False)
        return taken

    def _enter(self, lane: Lane) -> None:
        lane.in_ring = True
        if not lane.pair.ring:
            self._turns.append(lane.pair)
        lane.pair.ring.append(lane)

    def _leave(self, pair: Pair) -> None:
        """It has nothing to send: what was left of its turn is over."""
        pair.deficit, pair.in_turn = 0, False
        self._turns.remove(pair)

    def _empty(self, lane: Lane, *, leave: bool = True) -> None:
        self._lanes.pop(lane, None)
        if lane.in_ring:
            lane.in_ring = False
            lane.pair.ring.remove(lane)
            if leave and not lane.pair.ring:
                self._leave(lane.pair)

    def _drop_oldest(self, lane: Lane) -> None:
        cost = len(lane.queue.popleft()) + DATAGRAM_COST_BYTES
        lane.bytes -= cost
        self.bytes -= cost
        self.dropped += 1
        if not lane.queue:
            self._empty(lane)

    def _shed(self) -> None:
        """Cut the longest lanes to one length, such that all together are SHED_SHARE below the bound."""
        excess = self.bytes - int(self._total_max * (1 - SHED_SHARE))
        lanes = sorted(self._lanes, key=lambda lane: lane.bytes, reverse=True)
        level, above = 0, 0  # the first `count` lanes, which have `above` bytes, are cut to `level`
        for count, lane in enumerate(lanes, 1):
            above += lane.bytes
            level = max((above - excess) // count, 0)
            if count == len(lanes) or level >= lanes[count].bytes:
                break
        for lane in lanes:
            if lane.bytes <= level:
                break
            while lane.bytes > level:
                self._drop_oldest(lane)
