"""Two conversations joined by a lossless queue per plane, and a workload that knows what must come of it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any
from unittest.mock import patch

from lattica.mesh import credit, rpc
from lattica.mesh.messages import INLINE_MAX_BYTES
from lattica.mesh.rpc import FROM_CALLEE, FROM_CALLER, STREAMS_IN, STREAMS_OUT, Conversation
from lattica.mesh.wire import BULK, CONTROL, PLANES

SIZES = (8, 50, 3000, INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1, 70_000, 300_000)


class Small(Conversation):
    """Windows that a few bodies fill."""

    window_bytes = 64 << 10
    stream_window_bytes = (8 << 10, 64 << 10)
    streams_window_bytes = 96 << 10
    running_max_bytes = 256 << 10


def body_of(tag: int, size: int) -> bytes:
    """A body that says whose it is, and is wrong if a byte is missing."""
    return tag.to_bytes(8, "little") + bytes([tag % 251]) * (size - 8)


@dataclass
class Side:
    """One end: its conversation, and what its user knows."""

    conversation: Conversation
    open: dict[int, int] = field(default_factory=dict)  # our calls -> size
    flags: dict[tuple[bool, int], int] = field(default_factory=dict)  # (ours, call) -> flags
    running: dict[int, int] = field(default_factory=dict)  # their calls -> size
    sent: dict[tuple[int, int], list[bytes]] = field(default_factory=lambda: defaultdict(list))  # (call, our side)
    got: dict[tuple[int, int], list[bytes]] = field(default_factory=lambda: defaultdict(list))  # (call, their side)
    untaken: deque[tuple[int, int, int]] = field(default_factory=deque)
    ended: set[tuple[int, int]] = field(default_factory=set)
    over: set[tuple[int, int]] = field(default_factory=set)  # streams of ours that we ended
    answers: dict[int, bytes | dict[str, Any]] = field(default_factory=dict)  # what we answered
    answered: dict[int, Any] = field(default_factory=dict)  # what came
    started: list[int] = field(default_factory=list)


class Pair:
    """Both ends. Every step is checked."""

    def __init__(self, rng: Random, make: Callable[[], Conversation] = Small) -> None:
        self.rng, self.now = rng, 0.0
        self.sides = Side(make()), Side(make())
        self.queues: dict[tuple[int, int], deque[bytes]] = {(s, plane): deque() for s in (0, 1) for plane in PLANES}

    # -- the network

    def flush(self, side: int, room: dict[int, int] | None = None) -> None:
        rooms = room or dict.fromkeys(PLANES, 1 << 40)
        for plane, frame, size in self.sides[side].conversation.flush(rooms.__getitem__):
            data = b"".join(frame)
            assert len(data) == size and len(data) <= (1 << 20), f"a frame of {len(data)} bytes"
            self.queues[side, plane].append(data)

    def deliver(self, side: int, plane: int, count: int = 1 << 30) -> bool:
        """Hand on what `side` sent; whether there was anything."""
        queue = self.queues[side, plane]
        moved = bool(queue and count)
        for _ in range(min(count, len(queue))):
            self.hear(1 - side, self.sides[1 - side].conversation.receive(plane, queue.popleft(), self.now))
        return moved

    def tick(self, side: int) -> None:
        self.hear(side, self.sides[side].conversation.tick(self.now))

    def settle(self) -> None:
        """Until nothing moves; readers take what comes."""
        moved = True
        while moved:
            moved = False
            for side in (0, 1):
                self.tick(side)
                self.take(side, 1 << 30)
                self.flush(side)
            for side in (0, 1):
                for plane in PLANES:
                    moved |= self.deliver(side, plane)
        self.validate()

    # -- what users do

    def call(self, side: int, size: int, flags: int = 0, timeout_s: float | None = None) -> int:
        me = self.sides[side]
        assert not me.conversation.full
        tag = len(me.open) + len(me.answered) + 1
        id = me.conversation.call("m", [body_of(tag, size)], size, timeout_s, flags, self.now)
        me.open[id], me.flags[True, id] = size, flags
        return id

    def item(self, side: int, id: int, ours: int, size: int) -> bool:
        """Send one if there is credit."""
        me = self.sides[side]
        if (id, ours) in me.over or not me.conversation.may_send(id, ours, size):
            return False
        body = body_of(len(me.sent[id, ours]), size)
        if me.conversation.item(id, ours, [body[:5], body[5:]], size):
            me.sent[id, ours].append(body)
        return True

    def end(self, side: int, id: int, ours: int) -> None:
        me = self.sides[side]
        me.over.add((id, ours))
        me.conversation.end(id, ours)

    def answer(self, side: int, id: int, size: int) -> None:
        me = self.sides[side]
        if me.flags[False, id] & STREAMS_OUT and (id, FROM_CALLEE) not in me.over:
            self.end(side, id, FROM_CALLEE)
        del me.running[id]
        if size:
            me.answers[id] = body_of(id, size)
            me.conversation.result(id, [me.answers[id]], size)  # type: ignore[list-item]
        else:
            me.answers[id] = {"error": "ConfigError", "message": f"of {id}"}
            me.conversation.fail(id, me.answers[id])  # type: ignore[arg-type]

    def cancel(self, side: int, id: int) -> None:
        del self.sides[side].open[id]
        self.sides[side].conversation.cancel(id)

    def take(self, side: int, count: int) -> None:
        """The reader takes items."""
        me = self.sides[side]
        for _ in range(min(count, len(me.untaken))):
            me.conversation.consumed(*me.untaken.popleft())

    # -- what is checked

    def hear(self, side: int, events: list[rpc.Event]) -> None:
        me, other = self.sides[side], self.sides[1 - side]
        for event in events:
            match event:
                case rpc.Started(id, "m", _, flags, body):
                    assert id not in me.started, f"call {id} started twice"
                    me.started.append(id)
                    assert flags == other.flags[True, id]
                    if id in other.open:
                        assert len(body) == other.open[id] and bytes(body[8:]) == bytes(body[8:9]) * (len(body) - 8)
                    me.running[id], me.flags[False, id] = len(body), flags
                case rpc.Answered(id, body):
                    del me.open[id]
                    assert bytes(body) == other.answers[id], f"call {id} got another answer"
                    self._whole(me, other, id)
                    me.answered[id] = bytes(body)
                case rpc.Failed(id, error):
                    del me.open[id]
                    assert error in (other.answers.get(id), rpc.TIMED_OUT)
                    if error == other.answers.get(id):
                        self._whole(me, other, id)
                    me.answered[id] = error
                case rpc.Came(id, theirs, body):
                    assert theirs == FROM_CALLEE or id in me.started, "an item came before its call"
                    got = me.got[id, theirs]
                    assert bytes(body) == other.sent[id, theirs][len(got)], f"stream {id}: another item came"
                    got.append(bytes(body))
                    me.untaken.append((id, theirs, len(body)))
                case rpc.Ended(id, theirs):
                    assert (id, theirs) not in me.ended
                    me.ended.add((id, theirs))
                    assert me.got[id, theirs] == other.sent[id, theirs], f"stream {id} ended early"
                case rpc.Canceled(id):
                    me.running.pop(id, None)
                case rpc.Writable():
                    pass
                case _:
                    raise AssertionError(event)

    def _whole(self, me: Side, other: Side, id: int) -> None:
        assert id not in me.answered, f"call {id} was answered twice"
        assert me.got[id, FROM_CALLEE] == other.sent[id, FROM_CALLEE], f"call {id} was answered before its items"

    def validate(self) -> None:
        for side in self.sides:
            side.conversation.validate()

    def assert_whole(self) -> None:
        """Everything was taken: nothing is kept, and every window is whole again by both sides' books."""
        for me, other in ((self.sides[0], self.sides[1]), (self.sides[1], self.sides[0])):
            mine: Any = me.conversation
            theirs: Any = other.conversation
            for account, tally in ((mine._calls_out, theirs._calls_in), (mine._answers_out, theirs._answers_in)):
                assert tally.out == tally.owed, "all was taken"
                assert account.credit + tally.owed == mine.window_bytes, "credit has leaked"
            assert not mine._calls_waiting and not mine._answers_waiting and not len(mine._outbox.messages)
            assert mine._outbox.bytes == mine._going.bytes == len(mine._going) == len(mine._coming) == 0
            assert not mine._coming._given_up and not mine._outbox.answers and mine._coming._held == 0
            calls = [*mine._mine.items(), *mine._theirs.items()]
            assert {id for id, _ in calls} == {*me.open, *me.running}, "calls are forgotten, or kept"
            if not calls:
                assert mine._running == mine._streams.inflows._grown == mine._streams.inflows._overdrawn == 0
                assert mine._streams.outflows._overdrawn == 0 and not mine._streams.stalled

    def assert_streams_whole(self, id: int, caller: int) -> None:
        """What the writer of each stream of this open call may send is what its reader lets come."""
        ours: Any = self.sides[caller].conversation
        theirs: Any = self.sides[1 - caller].conversation
        a, b = ours._mine[id], theirs._theirs[id]
        for writer, reader in ((a, b), (b, a)):
            if writer.writing is not None:
                assert reader.reading.flow.held == 0
                assert writer.writing.flow.credit + reader.reading.flow.returned == reader.reading.flow.window


def play(pair: Pair, steps: int) -> None:
    """Random verbs of both users, a network that stalls and delivers its planes in any order."""
    with patch.object(rpc, "BACKLOG_MAX_BYTES", 200_000), patch.object(credit, "OVERDRAFT_MAX_BYTES", 310_000):
        _play(pair, steps)


def _play(pair: Pair, steps: int) -> None:
    rng = pair.rng
    for _ in range(steps):
        side = rng.randrange(2)
        me = pair.sides[side]
        match rng.choice(("call", "item", "item", "answer", "deliver", "deliver", "flush", "take", "cancel", "time")):
            case "call" if not me.conversation.full:
                flags = rng.choice((0, 0, STREAMS_IN, STREAMS_OUT, STREAMS_IN | STREAMS_OUT))
                pair.call(side, rng.choice(SIZES), flags, rng.choice((None, None, None, 0.5, 5.0)))
            case "item":
                ours = [(id, FROM_CALLER) for id in me.open if me.flags[True, id] & STREAMS_IN]
                ours += [(id, FROM_CALLEE) for id in me.running if me.flags[False, id] & STREAMS_OUT]
                if ours:
                    id, mine = rng.choice(ours)
                    for _ in range(rng.randrange(1, 20)):
                        if not pair.item(side, id, mine, rng.choice(SIZES)):
                            break
                    if rng.random() < 0.2 and (id, mine) not in me.over:
                        pair.end(side, id, mine)
            case "answer" if me.running:
                pair.answer(side, rng.choice(list(me.running)), rng.choice((0, *SIZES)))
            case "deliver":
                pair.deliver(side, rng.choice(PLANES), rng.randrange(1, 6))
            case "flush":
                pair.flush(side, {plane: rng.choice((0, 1, 200_000, 1 << 30)) for plane in (CONTROL, BULK)})
            case "take":
                pair.take(side, rng.randrange(1, 20))
            case "cancel" if me.open and rng.random() < 0.3:
                pair.cancel(side, rng.choice(list(me.open)))
            case "time":
                pair.now += 0.2 * rng.random()
                pair.tick(side)
        pair.validate()


def finish(pair: Pair) -> None:
    """Heal everything, and let every call come to its end."""
    pair.settle()
    while any(side.running for side in pair.sides):  # some begin when others have ended
        for side in (0, 1):
            for id in list(pair.sides[side].running):
                pair.answer(side, id, pair.rng.choice((0, 40, 40_000)))
        pair.settle()
    for side in pair.sides:
        assert not side.open and not side.running, f"unanswered: {side.open}, {side.running}"
    pair.assert_whole()
