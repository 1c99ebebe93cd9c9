"""Messages of a conversation that wait until the session has room for them.

What was never sent is worth nothing once its call is over: it is dropped here, so that whoever calls and gives up again
and again while nothing is acknowledged fills no memory.
"""

from __future__ import annotations

from lattica.mesh.messages import (
    FROM_CALLEE,
    Body,
    Call,
    End,
    Failure,
    Item,
    Large,
    Message,
    Notice,
    Packed,
    Result,
    encode,
)

BATCH_BYTES = 512 << 10
"""Of messages in one frame, about: half of what a frame may have, since sizes are estimated."""
MESSAGE_BYTES = 64  # of a message without its body, at most
DEAD_MAX = 256  # calls that are over and whose messages are dropped by the next flush; more are dropped at once
EVERY_BODY = 1 << 63


def weight(message: Message) -> int:
    """Bytes of a message on the wire, at most about."""
    match message:
        case Call(_, method, _, _, body):
            return MESSAGE_BYTES + 4 * len(method) + _body_bytes(body)
        case Result(_, body) | Item(_, _, body):
            return MESSAGE_BYTES + _body_bytes(body)
        case Failure(_, error):
            return MESSAGE_BYTES + len(encode(error))
        case Notice(_, body):
            return MESSAGE_BYTES + len(body)
        case _:
            return MESSAGE_BYTES


def _body_bytes(body: Body) -> int:
    return len(body) if isinstance(body, bytes) else len(body.data) if isinstance(body, Packed) else 0


class Outbox:
    """See the module."""

    __slots__ = ("_call_added", "_call_sent", "_dead_answers", "_dead_calls", "answers", "bytes", "messages")

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.bytes = 0  # estimated, from above
        self.answers: dict[int, int] = {}  # call of the other side whose answer is in here -> credit that it cost
        self._call_added = self._call_sent = 0  # numbers of the last ones of ours
        self._dead_calls: set[int] = set()
        self._dead_answers: set[int] = set()

    def add(self, message: Message, body_bytes: int = 0) -> None:
        """Send this after what is here. body_bytes: by how much it may be more than MESSAGE_BYTES."""
        self.messages.append(message)
        self.bytes += MESSAGE_BYTES + body_bytes

    def add_call(self, call: Call, body_bytes: int) -> None:
        """Send this call of ours; their numbers grow."""
        self._call_added = call.id
        self.add(call, body_bytes + 4 * len(call.method))

    def add_answer(self, message: Result | Failure, body_bytes: int, cost: int) -> None:
        """Send this answer to a call of the other side. cost: credit that it took."""
        self.answers[message.id] = cost
        self.add(message, body_bytes)

    def forget_call(self, id: int) -> bool:
        """A call of ours is over: send nothing more of it. Whether nothing was sent."""
        self._dead_calls.add(id)
        self._tidy(DEAD_MAX)
        return id > self._call_sent

    def forget_answer(self, id: int) -> int:
        """A call of the other side is over: send nothing more of it. The credit that an unsent answer had cost."""
        cost = self.answers.pop(id, 0)
        self._dead_answers.add(id)
        self._tidy(DEAD_MAX)
        return cost

    def flush(self) -> tuple[bytes, int]:
        """One frame's payload, and the number of the last body that it announces. There must be `messages`."""
        if self._dead_calls or self._dead_answers:
            self._tidy(0)
        if self.bytes <= BATCH_BYTES:  # the rule: all in one frame
            data = encode(self.messages)
            self.messages.clear()
            self.bytes, self._call_sent = 0, self._call_added
            self.answers.clear()
            return data, EVERY_BODY
        messages, last_body = self._batch(), 0
        for message in messages:
            if isinstance(message, Call | Result | Item) and type(message.body) is Large:
                last_body = message.body.body
        return encode(messages), last_body

    def _batch(self) -> list[Message]:
        """As many as make a batch."""
        size = count = 0
        for message in self.messages:
            count += 1
            size += weight(message)
            if type(message) is Call:
                self._call_sent = message.id
            elif isinstance(message, Result | Failure):
                self.answers.pop(message.id, None)
            if size >= BATCH_BYTES:
                break
        batch = self.messages[:count]
        del self.messages[:count]
        self.bytes -= size
        return batch

    def _tidy(self, dead_max: int) -> None:
        """Drop the messages of calls that are over."""
        if len(self._dead_calls) + len(self._dead_answers) > dead_max:
            self.messages = [message for message in self.messages if not self._is_dead(message)]
            self.bytes = sum(map(weight, self.messages))
            self._dead_calls.clear()
            self._dead_answers.clear()

    def _is_dead(self, message: Message) -> bool:
        match message:
            case Result(id) | Failure(id):
                return id in self._dead_answers
            case Item(id, side) | End(id, side):
                return id in (self._dead_answers if side == FROM_CALLEE else self._dead_calls)
            case Call(id):
                return id in self._dead_calls
            case _:
                return False
