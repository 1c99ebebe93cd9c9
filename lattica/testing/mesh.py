"""Peers of a simulated mesh: the real session and RPC cores, and a workload that knows what must come of it.

    history = History()
    world.add_host("ann", lambda host: MeshPeer(host, ids, history))
    world.tell("ann", "call", "bob", 500)

`Sessions` and `Conversation` are those that run over TCP; what `Peer` does with coroutines is done here with a heap
of answers that are due. Windows are small, so that a few kilobytes meet every bound.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

from blake3 import blake3

from lattica.errors import RemoteProtocolError
from lattica.mesh import rpc
from lattica.mesh.effects import Dial, Hangup, Transmit
from lattica.mesh.identity import PeerId
from lattica.mesh.links import (
    DATAGRAM_RANK,
    STREAM_RANK,
    Attached,
    Delivered,
    Faltering,
    Room,
    SessionDown,
    SessionUp,
    TwinSeen,
    Unreachable,
    WeAreTwin,
)
from lattica.mesh.rpc import FROM_CALLEE, FROM_CALLER, STREAMS_IN, STREAMS_OUT
from lattica.mesh.sessions import Sessions
from lattica.mesh.wire import Hello
from lattica.testing.host import Host

TO_CARRY_OUT = {Transmit, Hangup, Dial}  # by the world; all other effects are events
STREAM_ITEMS = 40
ITEM_BYTES = (10, 3000)
THOROUGH_EVERY = 10  # steps of a peer; after the others only the sessions that were touched are validated
ANSWER_S = (0.0, 0.0, 0.0, 0.5, 3.0)  # how long methods take; most answer at once


@dataclass(frozen=True, slots=True)
class Credential:
    """Who a simulated peer proves to be."""

    peer: PeerId
    expires: float = float("inf")


class SmallConversation(rpc.Conversation):
    """The conversation with windows that a few bodies fill."""

    window_bytes = 64 << 10
    stream_window_bytes = (4 << 10, 32 << 10)
    streams_window_bytes = 64 << 10


@dataclass(slots=True)
class History:
    """What was asked, run and answered, by the tag of each call; asserts what must never happen, when it happens."""

    asked: dict[int, tuple[str, str, int]] = field(default_factory=dict)  # tag -> (caller, callee, size)
    runs: dict[int, int] = field(default_factory=dict)
    answers: dict[int, str] = field(default_factory=dict)  # tag -> "value", or why there is none
    items_in: dict[int, int] = field(default_factory=dict)
    items_out: dict[int, int] = field(default_factory=dict)
    last: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    tags: Any = field(default_factory=lambda: count(1))

    def ask(self, caller: str, callee: str, size: int) -> int:
        tag: int = next(self.tags)
        self.asked[tag] = caller, callee, size
        return tag

    def ran(self, tag: int, where: str, size: int) -> None:
        caller, callee, asked_size = self.asked[tag]
        assert callee == where and size == asked_size, f"call {tag} of {asked_size} bytes ran at {where} with {size}"
        self.runs[tag] = self.runs.get(tag, 0) + 1
        assert self.runs[tag] == 1, f"call {tag} ran {self.runs[tag]} times"
        if size <= rpc.INLINE_MAX_BYTES:
            assert tag > self.last[caller, callee], f"call {tag} of {caller} ran after {self.last[caller, callee]}"
            self.last[caller, callee] = tag

    def answered(self, tag: int, how: str) -> None:
        assert tag not in self.answers, f"call {tag} was answered {self.answers[tag]!r} and then {how!r}"
        assert how != "value" or self.runs.get(tag), f"call {tag} was answered and never ran"
        self.answers[tag] = how

    def item(self, tag: int, side: int, index: int) -> None:
        seen = self.items_in if side == FROM_CALLER else self.items_out
        expected = seen.get(tag, 0)
        assert index == expected, f"stream {tag}: item {index} came where {expected} was due"
        seen[tag] = index + 1

    @property
    def open(self) -> list[int]:
        return [tag for tag in self.asked if tag not in self.answers]


def _rank(connection: int) -> int:
    """Of the way that it takes: of each two that are made, one is better. Its ends have consecutive numbers."""
    return STREAM_RANK if (connection + 1) // 2 % 2 else DATAGRAM_RANK


def body_of(tag: int, size: int) -> bytes:
    """A body that says which call it is of, and is wrong if a byte is missing."""
    return tag.to_bytes(8, "little") + bytes(max(size - 8, 0))


class _Talk:
    """One session's conversation, and what the workload does in it."""

    def __init__(self, conversation: rpc.Conversation) -> None:
        self.unchanged = conversation  # for a look that changes nothing
        self.touched = True  # and not validated since
        self.flushed = False  # nothing to send has come since
        self._due: float | None = None
        self._asked = False  # when it is due, since the last verb
        self.mine: dict[int, int] = {}  # call -> tag
        self.theirs: dict[int, int] = {}
        self.to_send: dict[tuple[int, int], tuple[int, int]] = {}  # (call, side) -> (tag, next item)
        self.left: dict[int, int] = {}  # call of theirs -> flags of the streams that are not over

    @property
    def conversation(self) -> rpc.Conversation:
        """For a verb: it will be validated, and asked what it has to send."""
        self.touched, self.flushed, self._asked = True, False, False
        return self.unchanged

    def next_deadline(self) -> float | None:
        """Of the conversation."""
        if not self._asked:
            self._due, self._asked = self.unchanged.next_deadline(), True
        return self._due


class MeshPeer:
    """One participant. ids: name -> peer id; addresses are the names."""

    def __init__(self, host: Host, ids: Mapping[str, PeerId], history: History, *, name: str = "") -> None:
        """name: whose identity it has; its own by default, another's if its directory was copied."""
        self.host, self.history, self.ids = host, history, ids
        self.name = name or host.name
        self.names = {peer: each for each, peer in ids.items()}
        self.id = ids[self.name]
        stored = int.from_bytes(host.disk.read("boot") or b"", "little")
        boot = max(stored + 1, int(host.clock.unix_s()))
        host.disk.write("boot", boot.to_bytes(8, "little"))
        hello = Hello(boot=boot, instance=host.rng.randbytes(8), addresses=[host.name])
        wall = host.clock.unix_s() - host.clock.now()
        self.sessions = Sessions(
            hello,
            self.id,
            host.rng,
            self._objection,
            sign=lambda data: blake3(self.id + data).digest(),
            wall_offset=wall,
        )
        self.talks: dict[PeerId, _Talk] = {}
        self.waiting: dict[PeerId, list[tuple[Any, ...]]] = defaultdict(list)
        self.revoked: set[PeerId] = set()
        self.stopped = False
        self._due: list[tuple[float, int, PeerId, _Talk, int]] = []
        self._order = count()
        self._steps = 0

    def __repr__(self) -> str:
        return f"<MeshPeer {self.host.name}: {self.sessions!r}>"

    def credential(self) -> Credential:
        return Credential(self.id)

    def _objection(self, member: Any, unix_s: float) -> str:
        return "it is revoked" if member.peer in self.revoked else ""

    # -- the workload's verbs

    def call(self, to: str, size: int, timeout_s: float | None, now: float) -> Sequence[object]:
        """Ask another peer; what comes of it is in the history."""
        return self._ask(to, size, timeout_s, 0, now)

    def stream(self, to: str, flags: int, now: float) -> Sequence[object]:
        """A call with STREAM_ITEMS items, sent, received or both."""
        return self._ask(to, 16, None, flags, now)

    def revoke(self, name: str, now: float) -> Sequence[object]:
        self.revoked.add(self.ids[name])
        return self._carry_out(self.sessions.recheck(now), now)

    def _ask(self, to: str, size: int, timeout_s: float | None, flags: int, now: float) -> Sequence[object]:
        if self.stopped:
            return []
        peer, tag = self.ids[to], self.history.ask(self.name, to, size)
        talk = self.talks.get(peer)
        if talk is not None and not talk.conversation.full:
            self._begin(talk, tag, size, timeout_s, flags, now)
            return self._carry_out([], now)
        self.waiting[peer].append((tag, size, timeout_s, flags))
        return self._carry_out(self.sessions.connect(peer, [to], now), now)

    def _begin(self, talk: _Talk, tag: int, size: int, timeout_s: float | None, flags: int, now: float) -> None:
        body = body_of(tag, size)
        id = talk.conversation.call("work", [body], len(body), timeout_s, flags, now)
        talk.mine[id] = tag
        if flags & STREAMS_IN:
            talk.to_send[id, FROM_CALLER] = tag, 0

    # -- the world's verbs

    def dialed(self, attempt: int, connection: int, peer: Any, now: float) -> Sequence[object]:
        return self._carry_out(self.sessions.dialed(attempt, connection, peer, now, _rank(connection)), now)

    def dial_failed(self, attempt: int, reason: str, now: float, *, final: bool = False) -> Sequence[object]:
        return self._carry_out(self.sessions.dial_failed(attempt, reason, now, final=final), now)

    def accepted(self, connection: int, peer: Any, now: float) -> Sequence[object]:
        return self._carry_out(self.sessions.accepted(connection, peer, now, _rank(connection)), now)

    def received(self, connection: int, frames: list[Any], now: float) -> Sequence[object]:
        return self._carry_out(self.sessions.received(connection, frames, now), now)

    def closed(self, connection: int, reason: str, now: float) -> Sequence[object]:
        return self._carry_out(self.sessions.closed(connection, reason, now), now)

    def tick(self, now: float) -> Sequence[object]:
        effects = list(self.sessions.tick(now))
        while self._due and self._due[0][0] <= now:
            _, _, peer, talk, id = heappop(self._due)
            if self.talks.get(peer) is talk:
                self._answer(talk, id)
        for talk in self.talks.values():
            due = talk.next_deadline()
            if due is not None and due <= now:
                self._events(talk, talk.conversation.tick(now), now)
        return self._carry_out(effects, now)

    def next_deadline(self) -> float | None:
        first = self.sessions.next_deadline()
        for talk in self.talks.values():
            due = talk.next_deadline()
            if due is not None and (first is None or due < first):
                first = due
        if self._due and (first is None or self._due[0][0] < first):
            first = self._due[0][0]
        return first

    def validate(self) -> None:
        self._steps += 1
        self.sessions.validate(thorough=self._steps % THOROUGH_EVERY == 0)
        for talk in self.talks.values():
            if talk.touched:
                talk.unchanged.validate()
                talk.touched = False

    # -- what the shell does

    def _carry_out(self, effects: Sequence[Any], now: float) -> Sequence[object]:
        out: list[object] = []
        queue = list(effects)
        while True:
            for effect in queue:
                if type(effect) in TO_CARRY_OUT:
                    out.append(effect)
                else:
                    out += self._hear(effect, now)
            queue = []
            for peer, talk in self.talks.items():
                if talk.to_send:
                    self._pump(talk)
                if not talk.flushed:
                    queue += self._flush(peer, talk, now)
            if not queue:
                return out

    def _flush(self, peer: PeerId, talk: _Talk, now: float) -> list[Any]:
        """Send what there is, as far as there is room."""
        effects: list[Any] = []
        if not talk.unchanged.dirty:
            talk.flushed = True
        elif (session := self.sessions.session(peer)) is not None:
            for plane, frame, size in talk.conversation.flush(session.room):
                effects += self.sessions.send(peer, plane, frame, size, now)
        return effects

    def _hear(self, event: Any, now: float) -> list[object]:
        match event:
            case SessionUp(peer, _):
                talk = self.talks[peer] = _Talk(SmallConversation())
                for tag, size, timeout_s, flags in self.waiting.pop(peer, ()):
                    self._begin(talk, tag, size, timeout_s, flags, now)
            case SessionDown(peer, reason):
                for tag in self.talks.pop(peer).mine.values():
                    self.history.answered(tag, f"lost: {reason}")
            case Unreachable(peer, reason, _):
                for tag, *_ in self.waiting.pop(peer, ()):
                    self.history.answered(tag, f"unreachable: {reason}")
                return list(self._carry_out(self.sessions.disconnect(peer, "nobody there", now), now))
            case Delivered(peer, plane, payload):
                talk_or_none = self.talks.get(peer)
                if talk_or_none is None:
                    return []
                try:
                    self._events(talk_or_none, talk_or_none.conversation.receive(plane, payload, now), now)
                except RemoteProtocolError as error:
                    raise AssertionError(f"an honest peer broke a rule: {error}") from error
            case WeAreTwin():
                self.stopped = True
                for tags in self.waiting.values():
                    for tag, *_ in tags:
                        self.history.answered(tag, "we are a twin")
                self.waiting.clear()
                return [event, *self._carry_out(self.sessions.stop("a twin stops", now), now)]
            case TwinSeen():
                return [event]
            case Attached() | Room() | Faltering():
                pass
        return []

    def _events(self, talk: _Talk, events: Sequence[rpc.Event], now: float) -> None:
        for event in events:
            match event:
                case rpc.Started(id, _, _, flags, body):
                    tag = int.from_bytes(bytes(body[:8]), "little")
                    self.history.ran(tag, self.name, len(body))
                    talk.theirs[id] = tag
                    talk.left[id] = flags
                    if flags & STREAMS_OUT:
                        talk.to_send[id, FROM_CALLEE] = tag, 0
                    if not flags:
                        due = now + self.host.rng.choice(ANSWER_S)
                        peer = next(peer for peer, each in self.talks.items() if each is talk)
                        heappush(self._due, (due, next(self._order), peer, talk, id))
                case rpc.Answered(id, body):
                    tag = talk.mine.pop(id)
                    assert bytes(body[:8]) == tag.to_bytes(8, "little"), f"the answer of another call came for {tag}"
                    self.history.answered(tag, "value")
                case rpc.Failed(id, error):
                    self.history.answered(talk.mine.pop(id), str(error.get("error")))
                case rpc.Canceled(id):
                    talk.theirs.pop(id, None)
                    talk.to_send.pop((id, FROM_CALLEE), None)
                case rpc.Came(id, side, body):
                    tags = talk.theirs if side == FROM_CALLER else talk.mine
                    self.history.item(tags[id], side, int.from_bytes(bytes(body[:8]), "little"))
                    talk.conversation.consumed(id, side, len(body))
                case rpc.Ended(id, side):
                    tags = talk.theirs if side == FROM_CALLER else talk.mine
                    seen = self.history.items_in if side == FROM_CALLER else self.history.items_out
                    assert seen.get(tags[id]) == STREAM_ITEMS, f"stream {tags[id]} ended after {seen.get(tags[id])}"
                    if side == FROM_CALLER:
                        self._stream_over(talk, id, STREAMS_IN)

    def _answer(self, talk: _Talk, id: int) -> None:
        tag = talk.theirs.pop(id, None)
        if tag is not None:
            size = self.history.asked[tag][2] % 40_000
            body = body_of(tag, size)
            talk.conversation.result(id, [body], len(body))

    def _pump(self, talk: _Talk) -> None:
        """Send items as far as there is credit."""
        for (id, side), (tag, index) in list(talk.to_send.items()):
            while index < STREAM_ITEMS:
                size = self.host.rng.randint(*ITEM_BYTES)
                if not talk.conversation.may_send(id, side, size):
                    break
                if not talk.conversation.item(id, side, [body_of(index, size)], max(size, 8)):
                    index = STREAM_ITEMS + 1
                    break
                index += 1
            if index < STREAM_ITEMS:
                talk.to_send[id, side] = tag, index
                continue
            del talk.to_send[id, side]
            talk.conversation.end(id, side)
            if side == FROM_CALLEE:
                self._stream_over(talk, id, STREAMS_OUT)

    def _stream_over(self, talk: _Talk, id: int, flag: int) -> None:
        """One of a call's streams is over; the call is answered after the last."""
        talk.left[id] &= ~flag
        if not talk.left[id]:
            self._answer(talk, id)
