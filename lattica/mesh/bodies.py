"""Long bodies on the bulk plane: cut into chunks on their way out, put together on their way in.

    u64 body | u8 flags | u32 size | bytes        one chunk; `size` is of the original, if the bytes are compressed

Chunks of different bodies take turns. A body goes out after the message that announces it; but bulk may be quicker than
control, so its chunks may come first. A body whose call is over is abandoned: who has half of it is told to forget it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from lattica.errors import RemoteProtocolError
from lattica.mesh.compression import LEAST_BYTES, Packer, unpack
from lattica.mesh.messages import BODY_MAX_BYTES, INLINE_MAX_BYTES, Body, Call, Item, Large, Packed, Result
from lattica.mesh.wire import BULK, Buffer, Frame

CHUNK_BYTES = (512 << 10) + 64
"""Of bulk: 512 KiB and the head of a value. Shorter ones cost more per byte, longer ones make others wait: 50 ms at
10 MB/s, half of what the connection has taken ahead anyway (`tls_connection.WRITE_AHEAD_BYTES`)."""
CHUNK_LEAST_BYTES = 4 << 10  # of a chunk that is not the last of its body: each is kept as an object of its own
_HEAD = 13
_PACKED, _ABANDONED = 1, 2

Unary = Call | Result
Announcing = Unary | Item
"""A message that has a body."""


class _Outgoing:
    __slots__ = ("body", "call", "parts", "side", "size")

    def __init__(self, body: int, call: int, side: int, parts: Sequence[Buffer], size: int) -> None:
        """size: bytes that are not sent yet."""
        self.body, self.call, self.side, self.size = body, call, side, size
        self.parts = deque(memoryview(part).cast("B") for part in parts if len(part))

    def take(self, count: int) -> list[memoryview]:
        """The next bytes, at most `count`, as buffers."""
        taken: list[memoryview] = []
        while count and self.parts:
            part = self.parts[0]
            taken.append(part[:count])
            if len(part) > count:
                self.parts[0] = part[count:]
            else:
                self.parts.popleft()
            count -= len(taken[-1])
        return taken


class Outgoing:
    """The bodies that one side of a conversation sends."""

    __slots__ = ("_last", "_packer", "abandoned", "bytes", "going", "held")

    def __init__(self, packer: Packer | None) -> None:
        """packer: decides what is compressed; None: nothing."""
        self._packer = packer
        self._last = 0
        self.held: deque[_Outgoing] = deque()  # their messages wait in the outbox, in the same order
        self.going: deque[_Outgoing] = deque()
        self.abandoned: list[int] = []
        self.bytes = 0  # not sent yet

    def __len__(self) -> int:
        return len(self.going) + len(self.held)

    def body(self, call: int, side: int, parts: Sequence[Buffer], size: int) -> tuple[Body, int]:
        """A body as its message has it, and how many bytes of it are there. A long one follows when that is sent."""
        if size > INLINE_MAX_BYTES:
            return self._add(call, side, parts, size), 0
        if self._packer is not None and size >= LEAST_BYTES:
            packed = self._packer.pack(parts, size)
            if packed is not None:
                return Packed(packed, size), len(packed)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts), size

    def _add(self, call: int, side: int, parts: Sequence[Buffer], size: int) -> Large:
        self._last += 1
        self.held.append(_Outgoing(self._last, call, side, parts, size))
        self.bytes += size
        return Large(self._last, size)

    def announced(self, last: int) -> None:
        """The messages of all bodies up to this one were sent."""
        while self.held and self.held[0].body <= last:
            self.going.append(self.held.popleft())

    def drop(self, call: int, side: int) -> None:
        """Send no more of the bodies of this call, and tell of those that were announced. The messages of the others
        must not be sent either."""
        for bodies in (self.held, self.going):
            for outgoing in [body for body in bodies if body.call == call and body.side == side]:
                bodies.remove(outgoing)
                self.bytes -= outgoing.size
                if bodies is self.going:
                    self.abandoned.append(outgoing.body)

    def flush(self, room: int) -> list[tuple[int, Frame, int]]:
        """What to send now: (plane, buffers, size), at most about `room` bytes."""
        out: list[tuple[int, Frame, int]] = []
        for body in self.abandoned:
            out.append((BULK, (_head(body, _ABANDONED, 0),), _HEAD))
        self.abandoned.clear()
        while self.going and room > 0:
            outgoing = self.going.popleft()
            taken = outgoing.take(CHUNK_BYTES)
            if outgoing.parts:
                self.going.append(outgoing)  # the others take their turns
            size, flags, payload = sum(map(len, taken)), 0, list[Buffer](taken)
            outgoing.size -= size
            self.bytes -= size
            if self._packer is not None and (packed := self._packer.pack(taken, size)) is not None:
                flags, payload = _PACKED, [packed]
            length = _HEAD + sum(map(len, payload))
            out.append((BULK, (_head(outgoing.body, flags, size), *payload), length))
            room -= length
        return out


def _head(body: int, flags: int, size: int) -> bytes:
    return body.to_bytes(8, "little") + bytes([flags]) + size.to_bytes(4, "little")


class _Incoming:
    __slots__ = ("arrived", "chunks", "complete", "message", "size")

    def __init__(self) -> None:
        self.message: Announcing | None = None
        self.size = -1
        self.arrived = 0
        self.chunks: list[Buffer] = []
        self.complete = False  # a short chunk came: it was the last

    def joined(self) -> Buffer:
        return self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)


class Incoming:
    """The bodies that one side of a conversation receives."""

    __slots__ = ("_bodies", "_bodies_max", "_given_up", "_held", "_held_max", "_taken")

    def __init__(self, held_max: int, taken: Callable[[Announcing, int], None]) -> None:
        """held_max: bytes of unfinished bodies, more than their sender has credit for. taken: is told of bodies that
        will not come, and of their size."""
        self._held_max, self._taken = held_max, taken
        self._bodies_max = held_max // INLINE_MAX_BYTES  # each is longer
        self._bodies: dict[int, _Incoming] = {}
        self._given_up: set[int] = set()  # bodies of theirs whose announcement has not come
        self._held = 0

    def __len__(self) -> int:
        return len(self._bodies)

    def body(self, message: Announcing, body: Body) -> tuple[Announcing, Buffer] | None:
        """The body of a message, or its announcement; both, if it is whole. Raises RemoteProtocolError."""
        return self._announced(message, body) if type(body) is Large else (message, inline(body))

    def _announced(self, message: Announcing, large: Large) -> tuple[Announcing, Buffer] | None:
        if not INLINE_MAX_BYTES < large.size <= BODY_MAX_BYTES:
            raise RemoteProtocolError(f"a body of {large.size} bytes was announced; {BODY_MAX_BYTES} are allowed")
        if large.body in self._given_up:
            self._given_up.discard(large.body)
            self._taken(message, large.size)
            return None
        incoming = self._bodies.get(large.body)
        if incoming is None:
            incoming = self._bodies[large.body] = _Incoming()
        if incoming.message is not None:
            raise RemoteProtocolError(f"body {large.body} was announced twice")
        incoming.message, incoming.size = message, large.size
        self._check()
        return self._whole(large.body, incoming)

    def receive(self, frame: memoryview) -> tuple[Announcing, Buffer] | None:
        """A chunk; the body that it completes, with its message. Raises RemoteProtocolError."""
        if len(frame) < _HEAD:
            raise RemoteProtocolError(f"a chunk of {len(frame)} bytes")
        body, flags = int.from_bytes(frame[:8], "little"), frame[8]
        size, payload = int.from_bytes(frame[9:_HEAD], "little"), frame[_HEAD:]
        if flags > _ABANDONED:
            raise RemoteProtocolError(f"a chunk with flags {flags}")
        if flags == _ABANDONED:
            self._abandon(body, self._bodies.pop(body, None))
            return None
        if flags & _PACKED:
            if size > CHUNK_BYTES:
                raise RemoteProtocolError(f"a chunk unpacks to {size} bytes")
            payload = memoryview(unpack(payload, size))
        if len(payload) != size or not size:
            raise RemoteProtocolError(f"a chunk has {len(payload)} bytes, and said {size}")
        incoming = self._bodies.get(body)
        if incoming is None:
            incoming = self._bodies[body] = _Incoming()
        if incoming.complete:
            raise RemoteProtocolError(f"body {body} goes on after a chunk of less than {CHUNK_LEAST_BYTES} bytes")
        incoming.complete = size < CHUNK_LEAST_BYTES
        incoming.chunks.append(payload)
        incoming.arrived += size
        self._held += size
        self._check()
        return self._whole(body, incoming)

    def _check(self) -> None:
        if self._held > self._held_max or len(self._bodies) > self._bodies_max:
            raise RemoteProtocolError("more bulk than it has credit for")

    def validate(self) -> None:
        assert self._held == sum(body.arrived for body in self._bodies.values()), "bytes of bodies do not add up"

    def _whole(self, body: int, incoming: _Incoming) -> tuple[Announcing, Buffer] | None:
        if incoming.message is None or incoming.arrived < incoming.size:
            return None
        if incoming.arrived > incoming.size:
            raise RemoteProtocolError(f"body {body} has {incoming.arrived} bytes, and {incoming.size} were announced")
        del self._bodies[body]
        self._held -= incoming.arrived
        return incoming.message, incoming.joined()

    def _abandon(self, body: int, incoming: _Incoming | None) -> None:
        """The sender gave this body up, since its call is over: only the books are set right."""
        if incoming is not None:
            self._held -= incoming.arrived
        if incoming is None or incoming.message is None:
            self._given_up.add(body)  # its announcement is still on its way, on the other plane
            if len(self._given_up) > self._bodies_max:
                raise RemoteProtocolError("it gave up more bodies than it announced")
        else:
            self._taken(incoming.message, incoming.size)


def size_of(body: Body) -> int:
    """Bytes of the original. Raises RemoteProtocolError for a size that cannot be."""
    if isinstance(body, bytes):
        return len(body)
    if not 0 <= body.size <= BODY_MAX_BYTES:
        raise RemoteProtocolError(f"a body of {body.size} bytes was announced; {BODY_MAX_BYTES} are allowed")
    return body.size


def inline(body: Body) -> Buffer:
    """The bytes of a body that is in its message. Raises RemoteProtocolError."""
    if type(body) is Packed:
        if not 0 <= body.size <= INLINE_MAX_BYTES:
            raise RemoteProtocolError(f"an inline body unpacks to {body.size} bytes")
        return unpack(body.data, body.size)
    assert isinstance(body, bytes)
    if len(body) > INLINE_MAX_BYTES:
        raise RemoteProtocolError(f"an inline body of {len(body)} bytes")
    return body
