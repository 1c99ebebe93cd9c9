"""Calls and streams between two peers, inside one session.

    caller -> callee  Call(id, method, args)        callee -> caller  Result(id, value) | Failure(id, error)
    either way        Item(id, value)* End(id)      a stream of the call; Cancel(id) from the caller
    either way        Credit(id, bytes) of a stream, Grant(bytes) of bodies of calls

A body of at most INLINE_MAX_BYTES travels in its message, on the control plane; a longer one is announced there
(`Large`) and follows on the bulk plane, in chunks that take turns with those of other bodies. So calls start in the
order in which they were made as far as their bodies are inline, and a long body delays nobody.

Rules of this file. Bodies are opaque: who may call is decided before one is decoded. Every byte of a body costs credit,
which the receiver gives back when its user has taken the body: a slow reader stops its writer. A sender with credit
left may send one body of any size up to BODY_MAX_BYTES, so nothing is too long to ever be sent. What is sent waits in
`_outbox` and `_bulk` until `flush`, which is given the session's room.
Source: credit as in RFC 9113 §5.2 (HTTP/2 flow control), in bytes of bodies, apart for calls and for each stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any

from lattica.errors import RemoteProtocolError
from lattica.mesh.bodies import Announcing, Incoming, Outgoing, Unary
from lattica.mesh.compression import LEAST_BYTES, Packer, unpack
from lattica.mesh.messages import (
    BODY_MAX_BYTES,
    FROM_CALLEE,
    FROM_CALLER,
    INLINE_MAX_BYTES,
    METHOD_MAX_CHARS,
    STREAMS_IN,
    STREAMS_OUT,
    Answered,
    Body,
    Call,
    Came,
    Cancel,
    Canceled,
    Credit,
    End,
    Ended,
    Event,
    Failed,
    Failure,
    Grant,
    Item,
    Large,
    Message,
    Packed,
    Result,
    Started,
    Writable,
    decode,
    encode,
)
from lattica.mesh.wire import BULK, CONTROL, Buffer, Frame

__all__ = [
    "BODY_MAX_BYTES", "CALLS_MAX", "FROM_CALLEE", "FROM_CALLER", "INLINE_MAX_BYTES", "STREAMS_IN", "STREAMS_OUT",
    "Answered", "Came", "Canceled", "Conversation", "Ended", "Event", "Failed", "Started", "Writable",
]  # fmt: skip

CALLS_MAX = 4096
"""Calls that may be unanswered at once, each way; more wait here. Each holds memory on both sides."""
WINDOW_BYTES = 16 << 20  # credit for bodies of calls: bandwidth x delay of 100 MB/s over 150 ms
STREAM_WINDOW_BYTES = (1 << 20, 16 << 20)  # credit of a stream: at first, and of one whose reader keeps up
STREAMS_WINDOW_BYTES = 48 << 20  # of all streams of a session together; beyond it windows do not grow
ITEM_COST_BYTES = 64  # what an item costs besides its bytes, so that empty ones have a bound as well
BATCH_BYTES = 512 << 10  # of control messages in one frame
MESSAGE_BYTES = 64  # of a message without its body, about


class _Stream:
    """One direction of a call's stream, as its receiver or its sender sees it."""

    __slots__ = ("credit", "ended", "held", "queue", "returned", "slots", "wants_room", "window")

    def __init__(self, window_bytes: int) -> None:
        self.credit = window_bytes  # of the sender: what it may send
        self.window = window_bytes  # of the receiver
        self.held = 0  # bytes that came and were not consumed
        self.returned = 0  # consumed, and not given back yet
        self.ended = False
        self.wants_room = False
        self.slots: deque[list[Any]] = deque()  # items in order; one whose body is still on bulk is [None, cost]


class _Open:
    """A call that is not over, on either side."""

    __slots__ = ("answer", "behind", "deadline", "flags", "incoming", "outgoing")

    def __init__(self, flags: int, deadline: float | None, window_bytes: int) -> None:
        self.flags, self.deadline = flags, deadline
        self.behind: list[Message] | None = None  # messages of a call that itself still waits for credit
        self.answer: Buffer | None = None  # came, while items before it are still on their way
        self.incoming, self.outgoing = _Stream(window_bytes), _Stream(window_bytes)


class Conversation:
    """See the module. One per session; a new session begins a new one."""

    window_bytes = WINDOW_BYTES
    stream_window_bytes = STREAM_WINDOW_BYTES
    streams_window_bytes = STREAMS_WINDOW_BYTES

    def __init__(self, packer: Packer | None = None) -> None:
        """packer: decides what is compressed; None: nothing."""
        self._packer = packer
        self._mine: dict[int, _Open] = {}  # calls that we made
        self._theirs: dict[int, _Open] = {}  # calls that the other side made
        self._last_mine = self._last_theirs = 0
        self._outbox: list[Message] = []
        self._outbox_bytes = 0  # of the bodies in it
        self._unary: deque[tuple[Unary, Sequence[Buffer], int]] = deque()  # wait for credit, in order
        self._going = Outgoing(packer)
        held_max = 2 * (self.window_bytes + self.streams_window_bytes + BODY_MAX_BYTES)
        self._coming = Incoming(held_max, 2 * CALLS_MAX)
        self._credit = self.window_bytes  # for bodies of calls that we send
        self._consumed = 0  # bytes of their bodies taken by our users, and not granted again yet
        self._stream_windows = 0
        self._deadlines: list[tuple[float, bool, int]] = []
        self._want_calls = False

    def __repr__(self) -> str:
        return f"<Conversation: {len(self._mine)} calls out, {len(self._theirs)} in, {len(self._going)} bodies going>"

    # -- what is known

    @property
    def full(self) -> bool:
        """No further call may be made now; `Writable(0)` says when."""
        self._want_calls = len(self._mine) >= CALLS_MAX
        return self._want_calls

    @property
    def dirty(self) -> bool:
        """Whether `flush` has something to send, room permitting."""
        return bool(self._outbox) or self._going.dirty

    def may_send(self, id: int, side: int) -> bool:
        """Whether the stream has credit; if not, `Writable` will say when."""
        call = self._side(side).get(id)
        if call is None:
            return True  # over: the caller finds out by sending
        call.outgoing.wants_room = call.outgoing.credit <= 0
        return not call.outgoing.wants_room

    def open_calls(self) -> tuple[list[int], list[int]]:
        """Calls that are not over: those that we made, those of the other side."""
        return list(self._mine), list(self._theirs)

    # -- verbs of the caller

    def call(
        self, method: str, parts: Sequence[Buffer], size: int, timeout_s: float | None, flags: int, now: float
    ) -> int:
        """Call a method of the other side; the call's number. Look at `full` first."""
        assert len(self._mine) < CALLS_MAX, "look at `full` before you call"
        self._last_mine += 1
        id = self._last_mine
        deadline = None if timeout_s is None else now + max(timeout_s, 0.0)
        self._mine[id] = _Open(flags, deadline, self.stream_window_bytes[0])
        if deadline is not None:
            heappush(self._deadlines, (deadline, True, id))
        timeout_ms = 0 if timeout_s is None else max(int(timeout_s * 1000), 1)
        self._unary_out(Call(id, method, timeout_ms, flags, b""), parts, size)
        return id

    def cancel(self, id: int) -> None:
        """The answer is no longer wanted, and will not come."""
        if (call := self._mine.pop(id, None)) is not None:
            self._drop_outgoing(id, FROM_CALLER)
            self._outbox.append(Cancel(id))
            self._over(call)

    # -- verbs of the callee

    def result(self, id: int, parts: Sequence[Buffer], size: int) -> None:
        """Answer a call of the other side."""
        if (call := self._theirs.pop(id, None)) is not None:
            self._over(call)
            self._unary_out(Result(id, b""), parts, size)

    def fail(self, id: int, error: Mapping[str, Any]) -> None:
        """Answer with an error: plain data."""
        if (call := self._theirs.pop(id, None)) is not None:
            self._drop_outgoing(id, FROM_CALLEE)
            self._over(call)
            self._outbox.append(Failure(id, dict(error)))

    # -- verbs of both

    def item(self, id: int, side: int, parts: Sequence[Buffer], size: int) -> bool:
        """Send an item; side: ours in this call. False if the call is over. Look at `may_send` first."""
        call = self._side(side).get(id)
        if call is None or call.outgoing.ended:
            return False
        call.outgoing.credit -= size + ITEM_COST_BYTES
        out = self._outbox if call.behind is None else call.behind
        out.append(Item(id, side, self._body_out(id, side, parts, size)))
        return True

    def end(self, id: int, side: int) -> None:
        """No more items from this side."""
        call = self._side(side).get(id)
        if call is not None and not call.outgoing.ended:
            call.outgoing.ended = True
            (self._outbox if call.behind is None else call.behind).append(End(id, side))

    def consumed(self, id: int, side: int, size: int) -> None:
        """The reader has taken an item of `size` bytes; side: of who sent it."""
        call = self._side(1 - side).get(id)
        if call is None:
            return
        stream, cost = call.incoming, size + ITEM_COST_BYTES
        stream.held -= cost
        stream.returned += cost
        if stream.returned >= stream.window // 4 or (stream.held <= 0 and stream.returned >= stream.window // 8):
            grown = 0
            if stream.held <= 0 and self._stream_windows + stream.window <= self.streams_window_bytes:
                grown = min(
                    stream.window, self.stream_window_bytes[1] - stream.window
                )  # the reader waits for the sender
                stream.window += grown
                self._stream_windows += grown
            self._outbox.append(Credit(id, 1 - side, stream.returned + grown))
            stream.returned = 0

    def flush(self, room: Callable[[int], int]) -> list[tuple[int, Frame, int]]:
        """What to send now: (plane, buffers, size), at most about as much as there is room for."""
        out: list[tuple[int, Frame, int]] = []
        left = room(CONTROL)
        while self._outbox and left > 0:
            if self._outbox_bytes + len(self._outbox) * MESSAGE_BYTES <= BATCH_BYTES:  # the rule: all in one frame
                data = encode(self._outbox)
                self._outbox.clear()
                self._outbox_bytes = 0
            else:
                data, count = self._batch()
                del self._outbox[:count]
                self._outbox_bytes = max(self._outbox_bytes - len(data), 0) if self._outbox else 0
            out.append((CONTROL, (data,), len(data)))
            left -= len(data)
        return out + self._going.flush(room(BULK)) if self._going.dirty else out

    def receive(self, plane: int, payload: Buffer, now: float) -> list[Event]:
        """A payload of the session. Raises RemoteProtocolError; the caller then drops the peer."""
        events: list[Event] = []
        if plane == BULK:
            if (whole := self._coming.receive(memoryview(payload))) is not None:
                self._arrived(*whole, now, events)
        else:
            for message in decode(payload):
                self._message(message, now, events)
        self._consumed += self._coming.returned
        self._coming.returned = 0
        if self._consumed >= self.window_bytes // 16:
            self._outbox.append(Grant(self._consumed))
            self._consumed = 0
        return events

    def tick(self, now: float) -> list[Event]:
        """Calls whose deadline has passed."""
        events: list[Event] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            due, mine, id = heappop(self._deadlines)
            calls = self._mine if mine else self._theirs
            call = calls.get(id)
            if call is None or call.deadline != due:
                continue
            if mine:
                self.cancel(id)
                events.append(Failed(id, {"error": "GetTimeoutError", "message": "the call's deadline has passed"}))
                self._room_for_calls(events)
            else:
                del self._theirs[id]
                self._drop_outgoing(id, FROM_CALLEE)
                self._over(call)
                events.append(Canceled(id, "its deadline has passed"))
        return events

    def next_deadline(self) -> float | None:
        """When to call `tick`."""
        while self._deadlines:
            due, mine, id = self._deadlines[0]
            call = (self._mine if mine else self._theirs).get(id)
            if call is not None and call.deadline == due:
                return due
            heappop(self._deadlines)
        return None

    def validate(self) -> None:
        assert len(self._mine) <= CALLS_MAX and len(self._theirs) <= CALLS_MAX, f"too many calls: {self!r}"
        self._coming.validate()

    # -- out

    def _side(self, side: int) -> dict[int, _Open]:
        """The calls in which our side is this one."""
        return self._mine if side == FROM_CALLER else self._theirs

    def _unary_out(self, message: Unary, parts: Sequence[Buffer], size: int) -> None:
        if self._credit <= 0 or self._unary:
            self._unary.append((message, parts, size))
            if type(message) is Call:
                self._mine[message.id].behind = []
        else:
            self._unary_send(message, parts, size)

    def _unary_send(self, message: Unary, parts: Sequence[Buffer], size: int) -> None:
        self._credit -= size
        side = FROM_CALLER if type(message) is Call else FROM_CALLEE
        body = self._body_out(message.id, side, parts, size)
        if type(message) is Call:
            self._outbox.append(Call(message.id, message.method, message.timeout_ms, message.flags, body))
            call = self._mine[message.id]
            self._outbox += call.behind or ()
            call.behind = None
        else:
            self._outbox.append(Result(message.id, body))

    def _body_out(self, call: int, side: int, parts: Sequence[Buffer], size: int) -> Body:
        if size <= INLINE_MAX_BYTES:
            self._outbox_bytes += size
            if self._packer is not None and size >= LEAST_BYTES:
                packed = self._packer.pack(parts, size)
                if packed is not None:
                    return Packed(packed, size)
            return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
        return self._going.add(call, side, parts, size)

    def _drop_outgoing(self, call: int, side: int) -> None:
        """Whatever of this call has not been sent is not sent."""
        self._going.drop(call, side)
        kind = Call if side == FROM_CALLER else Result
        if self._unary:
            self._unary = deque(entry for entry in self._unary if type(entry[0]) is not kind or entry[0].id != call)

    def _batch(self) -> tuple[bytes, int]:
        """As many messages as make a batch, encoded, and how many."""
        items, size = list[bytes](), 0
        for message in self._outbox:
            items.append(encode(message))
            size += len(items[-1])
            if size >= BATCH_BYTES:
                break
        return b"\xdd" + len(items).to_bytes(4, "big") + b"".join(items), len(items)

    # -- in

    def _message(self, message: Message, now: float, events: list[Event]) -> None:
        match message:
            case Call(id, method, timeout_ms, flags, body):
                if id <= self._last_theirs or len(self._theirs) >= CALLS_MAX or len(method) > METHOD_MAX_CHARS:
                    raise RemoteProtocolError(f"call {id} after {self._last_theirs} of {len(self._theirs)} open ones")
                self._last_theirs = id
                deadline = now + timeout_ms / 1000 if timeout_ms > 0 else None
                self._theirs[id] = _Open(flags, deadline, self.stream_window_bytes[0])
                if deadline is not None:
                    heappush(self._deadlines, (deadline, False, id))
                self._body_of(message, body, now, events)
            case Result(_, body) | Item(_, _, body):
                if type(message) is Item:
                    self._item_slot(message)
                self._body_of(message, body, now, events)
            case Failure(id, error):
                if (over := self._mine.pop(id, None)) is not None:
                    self._drop_outgoing(id, FROM_CALLER)
                    self._over(over)
                    events.append(Failed(id, error))
                    self._room_for_calls(events)
            case Cancel(id):
                if (over := self._theirs.pop(id, None)) is not None:
                    self._drop_outgoing(id, FROM_CALLEE)
                    self._over(over)
                    events.append(Canceled(id, "its caller canceled it"))
            case End(id, side):
                call = self._side(1 - side).get(id)
                if call is not None and not call.incoming.ended:
                    call.incoming.ended = True
                    if not call.incoming.slots:
                        events.append(Ended(id, side))
            case Credit(id, side, count):
                call = self._side(1 - side).get(id)
                if not 0 < count <= 1 << 40:
                    raise RemoteProtocolError(f"a credit of {count} bytes")
                if call is not None:
                    call.outgoing.credit += count
                    if call.outgoing.wants_room and call.outgoing.credit > 0:
                        call.outgoing.wants_room = False
                        events.append(Writable(id))
            case Grant(count):
                if not 0 < count <= 1 << 40:
                    raise RemoteProtocolError(f"a grant of {count} bytes")
                self._credit += count
                while self._unary and self._credit > 0:
                    self._unary_send(*self._unary.popleft())

    def _body_of(self, message: Announcing, body: Body, now: float, events: list[Event]) -> None:
        if type(body) is not Large:
            self._arrived(message, self._inline(body), now, events)
        elif (whole := self._coming.announced(message, body)) is not None:
            self._arrived(*whole, now, events)

    def _inline(self, body: bytes | Packed | Large) -> Buffer:
        if type(body) is Packed:
            if not 0 <= body.size <= INLINE_MAX_BYTES:
                raise RemoteProtocolError(f"an inline body unpacks to {body.size} bytes")
            return unpack(body.data, body.size)
        assert isinstance(body, bytes)
        if len(body) > INLINE_MAX_BYTES:
            raise RemoteProtocolError(f"an inline body of {len(body)} bytes")
        return body

    def _item_slot(self, item: Item) -> None:
        """Keep the place of an item, whose body may come later than those of its successors."""
        if item.side not in (FROM_CALLER, FROM_CALLEE):
            raise RemoteProtocolError(f"an item of side {item.side}")
        call = self._side(1 - item.side).get(item.id)
        if call is None:
            return
        stream = call.incoming
        if stream.ended or not call.flags & (STREAMS_IN if item.side == FROM_CALLER else STREAMS_OUT):
            raise RemoteProtocolError(f"an item of a stream that has ended or was never opened, in call {item.id}")
        size = len(item.body) if isinstance(item.body, bytes) else item.body.size
        stream.held += size + ITEM_COST_BYTES
        if stream.held > self.stream_window_bytes[1] + BODY_MAX_BYTES + ITEM_COST_BYTES:
            raise RemoteProtocolError(f"stream {item.id} was sent more than it has credit for")
        stream.slots.append([None, item])

    def _arrived(self, message: Announcing, body: Buffer, now: float, events: list[Event]) -> None:
        """A body is whole."""
        match message:
            case Call(id, method, timeout_ms, flags, _):
                self._consumed += len(body)
                if id in self._theirs:  # else it was canceled while its body came
                    events.append(Started(id, method, timeout_ms / 1000 if timeout_ms > 0 else None, flags, body))
            case Result(id, _):
                self._consumed += len(body)
                open_call = self._mine.get(id)
                if open_call is not None:
                    open_call.answer = body
                    if not open_call.incoming.slots:
                        self._answered(id, open_call, events)
            case Item(id, side, _):
                call = self._side(1 - side).get(id)
                if call is None:
                    return
                slots = call.incoming.slots
                if slots and slots[0][1] is message:
                    slots[0][0] = body
                else:
                    next(slot for slot in slots if slot[1] is message)[0] = body
                while slots and slots[0][0] is not None:
                    events.append(Came(id, side, slots.popleft()[0]))
                if slots:
                    return
                if call.incoming.ended:
                    events.append(Ended(id, side))
                if call.answer is not None:
                    self._answered(id, call, events)

    def _answered(self, id: int, call: _Open, events: list[Event]) -> None:
        assert call.answer is not None
        del self._mine[id]
        self._drop_outgoing(id, FROM_CALLER)
        self._over(call)
        events.append(Answered(id, call.answer))
        self._room_for_calls(events)

    def _over(self, call: _Open) -> None:
        """Its stream's window is free for others; bodies that still come for it are counted, and dropped."""
        self._stream_windows -= call.incoming.window - self.stream_window_bytes[0]

    def _room_for_calls(self, events: list[Event]) -> None:
        if self._want_calls and len(self._mine) < CALLS_MAX:
            self._want_calls = False
            events.append(Writable(0))
