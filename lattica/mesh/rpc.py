"""Calls and streams between two peers, inside one session.

    caller -> callee  Call(id, method, args)        callee -> caller  Result(id, value) | Failure(id, error)
    either way        Item(id, value)* End(id)      a stream of the call; Cancel(id) from the caller
    either way        Credit(id, bytes) of a stream, Grant(bytes) of bodies of calls or of answers

A body of at most INLINE_MAX_BYTES travels in its message, on the control plane; a longer one is announced there
(`Large`) and follows on the bulk plane. So calls start in the order in which they were made as far as their bodies are
inline, and a long body delays nobody.

Rules of this file. Bodies are opaque: who may call is decided before one is decoded. Every byte of a body costs credit
(`credit`): a slow reader stops its writer. What is sent waits in `_outbox` and `_going` until `flush`, which is given
the session's room; and while much waits there, streams may not be written to, whatever their readers would take. Verbs
return no events: what comes of them is told by the next `receive` or `tick`, which `next_deadline` asks for at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lattica.errors import RemoteProtocolError
from lattica.mesh.bodies import Announcing, Incoming, Outgoing, inline, size_of
from lattica.mesh.compression import Packer
from lattica.mesh.credit import (
    CALLS_WINDOW_BYTES,
    RUNNING_MAX_BYTES,
    STREAM_WINDOW_BYTES,
    STREAMS_WINDOW_BYTES,
    Account,
    Tally,
    held_max_bytes,
)
from lattica.mesh.messages import (
    BODY_MAX_BYTES,
    FROM_CALLEE,
    FROM_CALLER,
    INLINE_MAX_BYTES,
    METHOD_MAX_CHARS,
    NOTICE_MAX_BYTES,
    STREAMS_IN,
    STREAMS_OUT,
    TIMED_OUT,
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
    Notice,
    Noticed,
    Result,
    Started,
    Writable,
    checked,
    decode,
    fitting,
)  # fmt: skip
from lattica.mesh.open_calls import Deadlines, OpenCall
from lattica.mesh.outbox import Outbox
from lattica.mesh.streams import Streams
from lattica.mesh.wire import BULK, CONTROL, Buffer, Frame

__all__ = [
    "BODY_MAX_BYTES", "CALLS_MAX", "FROM_CALLEE", "FROM_CALLER", "INLINE_MAX_BYTES", "STREAMS_IN", "STREAMS_OUT",
    "Answered", "Came", "Canceled", "Conversation", "Ended", "Event", "Failed", "Noticed", "Started",
    "TIMED_OUT", "Writable",
]  # fmt: skip

CALLS_MAX = 4096
"""Calls that may be unanswered at once, each way; more wait here. Each holds memory on both sides."""
BACKLOG_MAX_BYTES = 8 << 20
"""Of what waits for the session's room; while there is more, no item is taken from a stream's writer. Less would leave
the connection idle for a turn of the event loop."""


NOTICES_MAX_BYTES = 1 << 20
"""While more waits for the session's room, notices are left out: a peer that is gone would fill memory with them."""


class Conversation:
    """See the module. One per session; a new session begins a new one."""

    window_bytes = CALLS_WINDOW_BYTES
    stream_window_bytes = STREAM_WINDOW_BYTES
    streams_window_bytes = STREAMS_WINDOW_BYTES
    running_max_bytes = RUNNING_MAX_BYTES

    def __init__(self, packer: Packer | None = None) -> None:
        """packer: decides what is compressed; None: nothing."""
        self._mine: dict[int, OpenCall] = {}  # calls that we made
        self._theirs: dict[int, OpenCall] = {}  # calls that the other side made
        self._last_mine = self._last_theirs = 0
        self._outbox, self._going = Outbox(), Outgoing(packer)
        windows = self.window_bytes, self.stream_window_bytes[0], self.streams_window_bytes
        self._coming = Incoming(held_max_bytes(CALLS_MAX, *windows), self._taken)
        self._calls_out, self._answers_out = Account(self.window_bytes), Account(self.window_bytes)
        self._calls_in, self._answers_in = Tally(self.window_bytes), Tally(self.window_bytes)
        self._calls_waiting: deque[tuple[Call, Sequence[Buffer], int, OpenCall]] = deque()  # for credit, in order
        self._answers_waiting: deque[tuple[Result, Sequence[Buffer], int, OpenCall]] = deque()
        self._streams = Streams(self.stream_window_bytes, self.streams_window_bytes)
        self._running = 0  # bytes of arguments of calls that run
        self._deadlines = Deadlines(self._theirs, self._mine)
        self._want_calls = False
        self._woken: list[Event] = []

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
        return bool(self._outbox.messages or self._going.going or self._going.abandoned) or self._owes

    def may_send(self, id: int, side: int, size: int) -> bool:
        """Whether an item of `size` bytes may be sent now; if not, `Writable` will say when to ask again."""
        call = self._side(side).get(id)
        if call is None or call.writing is None:
            return True  # over: the caller finds out by sending
        return self._streams.may_write(call.writing, size, stall=self._backlog > BACKLOG_MAX_BYTES)

    # -- verbs of the caller

    def call(
        self, method: str, parts: Sequence[Buffer], size: int, timeout_s: float | None, flags: int, now: float
    ) -> int:
        """Call a method of the other side; the call's number. Look at `full` first."""
        assert len(self._mine) < CALLS_MAX, "look at `full` before you call"
        self._last_mine += 1
        id = self._last_mine
        call = self._mine[id] = OpenCall(size)
        if flags:
            self._open_streams(call, id, flags & STREAMS_OUT, flags & STREAMS_IN)
        timeout_ms = 0
        if timeout_s is not None:
            self._deadlines.add(now + max(timeout_s, 0.0), True, id)
            timeout_ms = max(int(timeout_s * 1000), 1)
        message = Call(id, method, timeout_ms, flags, b"")
        if self._calls_out.credit <= 0 or self._calls_waiting:
            self._calls_waiting.append((message, parts, size, call))
            call.behind = []
        else:
            self._send_call(message, parts, size)
        return id

    def cancel(self, id: int) -> None:
        """The answer is no longer wanted, and will not come."""
        if (call := self._mine.pop(id, None)) is not None:
            if call.behind is not None:
                self._calls_waiting = deque(entry for entry in self._calls_waiting if entry[0].id != id)
            elif self._unsay(id):
                self._calls_out.credit += call.size
                self._send_waiting_calls()
            else:
                self._outbox.add(Cancel(id))
            self._over(call, self._woken)
            self._room_for_calls(self._woken)

    # -- verbs of the callee

    def result(self, id: int, parts: Sequence[Buffer], size: int) -> None:
        """Answer a call of the other side."""
        if (call := self._theirs.pop(id, None)) is not None:
            self._stop_reading(call)
            if self._answers_out.credit <= 0 or self._answers_waiting:
                self._answers_waiting.append((Result(id, b""), parts, size, call))
            else:
                self._send_answer(id, parts, size, call, self._woken)

    def fail(self, id: int, error: Mapping[str, Any]) -> None:
        """Answer with an error: plain data, cut if it is very long. Items that were sent come before it."""
        if (call := self._theirs.pop(id, None)) is not None:
            data, size = fitting(error)
            self._outbox.add_answer(Failure(id, data), size, 0)
            self._over(call, self._woken)

    # -- verbs of both

    def item(self, id: int, side: int, parts: Sequence[Buffer], size: int) -> bool:
        """Send an item; side: ours in this call. False if our stream in it is over. Look at `may_send` first."""
        call = self._side(side).get(id)
        if call is None or call.writing is None or call.writing.ended:
            return False
        self._streams.spend(call.writing, size)
        if call.behind is not None:
            call.behind.append((Item(id, side, b""), parts, size))
        else:
            self._send_item(id, side, parts, size)
        return True

    def try_item(self, id: int, side: int, parts: Sequence[Buffer], size: int) -> bool:
        """`item` if `may_send`, in one. False: not now."""
        call = (self._mine if side == FROM_CALLER else self._theirs).get(id)
        if call is None or (writing := call.writing) is None or writing.ended:
            return True  # over, and the item nobody's
        if self._outbox.bytes + self._going.bytes > BACKLOG_MAX_BYTES:
            return self._streams.may_write(writing, size, stall=True)
        if not self._streams.outflows.try_spend(writing.flow, size):
            return False
        if call.behind is not None:
            call.behind.append((Item(id, side, b""), parts, size))
        else:
            self._send_item(id, side, parts, size)
        return True

    def end(self, id: int, side: int) -> None:
        """No more items from this side."""
        call = self._side(side).get(id)
        if call is not None and call.writing is not None and not call.writing.ended:
            call.writing.ended = True
            if call.behind is not None:
                call.behind.append((End(id, side), (), 0))
            else:
                self._outbox.add(End(id, side))

    def notice(self, protocol: int, body: bytes) -> bool:
        """Send a message of another protocol. False if it is left out, since too much waits already."""
        assert len(body) <= NOTICE_MAX_BYTES, f"a notice of {len(body)} bytes"
        if self._outbox.bytes > NOTICES_MAX_BYTES:
            return False
        self._outbox.add(Notice(protocol, body), len(body))
        return True

    def consumed(self, id: int, side: int, size: int) -> None:
        """The reader has taken an item of `size` bytes; side: of who sent it."""
        call = (self._theirs if side == FROM_CALLER else self._mine).get(id)
        if call is not None and call.reading is not None:
            self._streams.consumed(call.reading, id, 1 - side, size)

    def flush(self, room: Callable[[int], int]) -> list[tuple[int, Frame, int]]:
        """What to send now: (plane, buffers, size), at most about as much as there is room for."""
        out: list[tuple[int, Frame, int]] = []
        left = room(CONTROL)
        if self._owes and left > 0:
            self._give_credit()
        while self._outbox.messages and left > 0:
            data, last_body = self._outbox.flush()
            if self._going.held:
                self._going.announced(last_body)
            out.append((CONTROL, (data,), len(data)))
            left -= len(data)
        if self._going.going or self._going.abandoned:
            out += self._going.flush(room(BULK))
        if self._streams.stalled and self._backlog <= BACKLOG_MAX_BYTES:
            self._streams.less_waits(self._woken)
        return out

    def receive(self, plane: int, payload: Buffer, now: float) -> list[Event]:
        """A payload of the session. Raises RemoteProtocolError; the caller then drops the peer."""
        events, self._woken = self._woken, []
        if plane == BULK:
            if (whole := self._coming.receive(memoryview(payload))) is not None:
                self._arrived(*whole, events)
        else:
            for message in decode(payload):
                if type(message) is Item:
                    self._item(message, events)
                else:
                    self._message(message, now, events)
        return events

    def tick(self, now: float) -> list[Event]:
        """Calls whose deadline has passed, and what came of verbs."""
        events: list[Event] = []
        for mine, id in self._deadlines.passed(now):
            if mine:
                self.cancel(id)
                events.append(Failed(id, TIMED_OUT))
            else:
                self.fail(id, TIMED_OUT)  # its caller's clock may be slower
                events.append(Canceled(id, "its deadline has passed"))
        woken, self._woken = self._woken, []
        return woken + events

    def next_deadline(self) -> float | None:
        """When to call `tick`; in the past if there is something to tell."""
        return 0.0 if self._woken else self._deadlines.next()

    def validate(self) -> None:
        mine, theirs = self._mine.values(), self._theirs.values()
        assert len(mine) <= CALLS_MAX and len(theirs) <= CALLS_MAX, f"too many calls: {self!r}"
        readings = [call.reading for call in (*mine, *theirs) if call.reading is not None]
        writings = [call.writing for call in (*mine, *theirs) if call.writing is not None]
        if self._answers_waiting:
            writings += [call.writing for *_, call in self._answers_waiting if call.writing is not None]
        self._streams.validate(readings, writings)
        assert self._running == sum([call.running for call in theirs]), "arguments do not add up"
        self._coming.validate()

    # -- out

    @property
    def _backlog(self) -> int:
        return self._outbox.bytes + self._going.bytes

    @property
    def _owes(self) -> bool:
        """Whether there may be credit to give."""
        calls, answers = self._calls_in, self._answers_in  # every message asks
        return bool(self._streams.owing) or calls.owed >= calls.least or answers.owed >= answers.least

    @property
    def _withheld(self) -> int:
        """Credit for calls that is given back when those that run have ended."""
        return max(self._running - self.running_max_bytes, 0)

    def _side(self, side: int) -> dict[int, OpenCall]:
        """The calls in which our side is this one."""
        return self._mine if side == FROM_CALLER else self._theirs

    def _open_streams(self, call: OpenCall, id: int, reads: int, writes: int) -> None:
        call.reading = self._streams.read() if reads else None
        call.writing = self._streams.write(id) if writes else None

    def _send_call(self, call: Call, parts: Sequence[Buffer], size: int) -> None:
        self._calls_out.credit -= size
        body, inside = self._going.body(call.id, FROM_CALLER, parts, size)
        self._outbox.add_call(Call(call.id, call.method, call.timeout_ms, call.flags, body), inside)

    def _send_answer(self, id: int, parts: Sequence[Buffer], size: int, call: OpenCall, events: list[Event]) -> None:
        self._answers_out.credit -= size
        body, inside = self._going.body(id, FROM_CALLEE, parts, size)
        self._outbox.add_answer(Result(id, body), inside, size)
        if call.writing is not None:  # not before: its reader counts what it holds until it has the answer
            self._stop_writing(call, events)

    def _send_item(self, id: int, side: int, parts: Sequence[Buffer], size: int) -> None:
        body, inside = self._going.body(id, side, parts, size)
        self._outbox.add(Item(id, side, body), inside)

    def _send_waiting_calls(self) -> None:
        while self._calls_waiting and self._calls_out.credit > 0:
            message, parts, size, call = self._calls_waiting.popleft()
            self._send_call(message, parts, size)
            behind, call.behind = call.behind, None
            for follows, its_parts, its_size in behind or ():
                if type(follows) is Item:
                    self._send_item(follows.id, follows.side, its_parts, its_size)
                else:
                    self._outbox.add(follows)

    def _send_waiting_answers(self, events: list[Event]) -> None:
        while self._answers_waiting and self._answers_out.credit > 0:
            answer, parts, size, call = self._answers_waiting.popleft()
            self._send_answer(answer.id, parts, size, call, events)

    def _unsay(self, id: int) -> bool:
        """Whatever of a call of ours has not been sent is not sent. Whether nothing was."""
        self._going.drop(id, FROM_CALLER)
        return self._outbox.forget_call(id)

    def _give_credit(self) -> None:
        if self._streams.owing:
            for credit in self._streams.credits():
                self._outbox.add(Credit(*credit))
        if self._calls_in.due(withheld := self._withheld):
            self._outbox.add(Grant(self._calls_in.grant(withheld), FROM_CALLEE))
        if self._answers_in.due():
            self._outbox.add(Grant(self._answers_in.grant(), FROM_CALLER))

    # -- in

    def _message(self, message: Message, now: float, events: list[Event]) -> None:
        match message:
            case Call():
                self._called(message, now, events)
            case Result(id, body):
                call = self._unanswered(id)
                self._answers_in.came(size_of(body))
                if call is not None and call.reading is not None:
                    self._streams.stop_reading(call.reading)
                self._body_in(message, body, events)
            case Failure(id, error):
                call = self._unanswered(id)
                if call is not None:
                    if call.reading is not None:
                        self._streams.stop_reading(call.reading)
                    call.answer = Failed(id, error)
                    self._pump(id, FROM_CALLEE, call, events)
            case End(id, side):
                call = self._written_to(id, side)
                if call is not None and call.reading is not None:
                    call.reading.ended = True
                    self._pump(id, side, call, events)
            case Cancel(id):
                self._canceled(id, events)
            case Credit(id, side, count):
                call = self._side(1 - checked(side)).get(id)
                if call is not None:
                    if call.writing is None:
                        raise RemoteProtocolError(f"credit for a stream that was never opened, in call {id}")
                    self._streams.give(call.writing, count, events)
            case Notice(protocol, body):
                if len(body) > NOTICE_MAX_BYTES:
                    raise RemoteProtocolError(f"a notice of {len(body)} bytes")
                events.append(Noticed(protocol, body))
            case Grant(count, side):
                if checked(side) == FROM_CALLEE:
                    self._calls_out.give(count)
                    self._send_waiting_calls()
                else:
                    self._answers_out.give(count)
                    self._send_waiting_answers(events)

    def _item(self, message: Item, events: list[Event]) -> None:
        id, side, body = message.id, message.side, message.body
        call = self._written_to(id, side)
        if call is not None and (reading := call.reading) is not None and reading.flow is not None:
            size = len(body) if type(body) is bytes else size_of(body)
            self._streams.inflows.came(reading.flow, size)
            if type(body) is not Large and call.started and not reading.slots:
                events.append(Came(id, side, inline(body)))
                return
            reading.keep_place(message)
        self._body_in(message, body, events)

    def _called(self, message: Call, now: float, events: list[Event]) -> None:
        id, size = message.id, size_of(message.body)
        unanswered = len(self._theirs) + len(self._outbox.answers) + len(self._answers_waiting)
        if id <= self._last_theirs or unanswered >= CALLS_MAX or len(message.method) > METHOD_MAX_CHARS:
            raise RemoteProtocolError(f"call {id} after {self._last_theirs}, while {unanswered} are unanswered")
        self._last_theirs = id
        self._calls_in.came(size)
        call = self._theirs[id] = OpenCall(size)
        call.started = False
        if message.flags:
            self._open_streams(call, id, message.flags & STREAMS_IN, message.flags & STREAMS_OUT)
        if message.timeout_ms > 0:
            self._deadlines.add(now + message.timeout_ms / 1000, False, id)
        self._body_in(message, message.body, events)

    def _canceled(self, id: int, events: list[Event]) -> None:
        """Whatever of the answer has not been sent is not sent."""
        self._going.drop(id, FROM_CALLEE)
        self._answers_out.credit += self._outbox.forget_answer(id)
        if (call := self._theirs.pop(id, None)) is not None:
            self._over(call, events)
            events.append(Canceled(id, "its caller canceled it"))
        for entry in self._answers_waiting:
            if entry[0].id == id:
                self._answers_waiting.remove(entry)
                self._stop_writing(entry[3], events)
                break
        self._send_waiting_answers(events)

    def _unanswered(self, id: int) -> OpenCall | None:
        """The call that is answered now; None if it is over here."""
        call = self._mine.get(id)
        if id > self._last_mine or (call is not None and call.answer is not None):
            raise RemoteProtocolError(f"an answer to call {id}, which was not made or has one")
        return call

    def _written_to(self, id: int, side: int) -> OpenCall | None:
        """The call in whose stream they write; None if it is over here."""
        if side == FROM_CALLER:
            call = self._theirs.get(id)
        else:
            call = self._mine.get(id) if side == FROM_CALLEE else self._side(1 - checked(side)).get(id)
        if call is not None and (call.reading is None or call.reading.ended or call.reading.flow is None):
            raise RemoteProtocolError(f"the stream in call {id} has ended or was never opened")
        return call

    def _body_in(self, message: Announcing, body: Body, events: list[Event]) -> None:
        if (whole := self._coming.body(message, body)) is not None:
            self._arrived(*whole, events)

    def _arrived(self, message: Announcing, body: Buffer, events: list[Event]) -> None:
        """A body is whole."""
        self._taken(message, len(body))
        match message:
            case Call(id, method, timeout_ms, flags, _):
                call = self._theirs.get(id)
                if call is not None:  # else it was canceled while its body came
                    call.started, call.running = True, len(body)
                    self._running += len(body)
                    events.append(Started(id, method, timeout_ms / 1000 if timeout_ms > 0 else None, flags, body))
                    if call.reading is not None:
                        self._pump(id, FROM_CALLER, call, events)
            case Result(id, _):
                call = self._mine.get(id)
                if call is not None:
                    call.answer = Answered(id, body)
                    self._pump(id, FROM_CALLEE, call, events)
            case Item(id, side, _):
                call = self._side(1 - side).get(id)
                if call is not None and call.reading is not None:
                    call.reading.fill(message, body)
                    self._pump(id, side, call, events)

    def _pump(self, id: int, side: int, call: OpenCall, events: list[Event]) -> None:
        """Tell of items in their order, then of the end, then of the answer, as far as they are here."""
        if not call.started or (call.reading is not None and not call.reading.pump(id, side, events)):
            return
        if call.answer is not None:
            del self._mine[id]
            if call.writing is not None or type(call.answer) is Failed:
                self._unsay(id)
            self._over(call, events)
            events.append(call.answer)
            self._room_for_calls(events)

    def _taken(self, message: Announcing, size: int) -> None:
        """A body of a call or answer is here, or will not come: its credit is the sender's again."""
        if type(message) is Call:
            self._calls_in.owed += size
        elif type(message) is Result:
            self._answers_in.owed += size

    # -- ends

    def _over(self, call: OpenCall, events: list[Event]) -> None:
        """Its credit is free for others; bodies that still come for it are counted, and dropped."""
        self._stop_reading(call)
        self._stop_writing(call, events)

    def _stop_reading(self, call: OpenCall) -> None:
        self._running -= call.running
        call.running = 0
        if call.reading is not None:
            self._streams.stop_reading(call.reading)

    def _stop_writing(self, call: OpenCall, events: list[Event]) -> None:
        if call.writing is not None:
            writing, call.writing = call.writing, None
            self._streams.stop_writing(writing, events)

    def _room_for_calls(self, events: list[Event]) -> None:
        if self._want_calls and len(self._mine) < CALLS_MAX:
            self._want_calls = False
            events.append(Writable(0))
