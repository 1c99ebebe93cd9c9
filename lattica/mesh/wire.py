"""Frames between two peers, over any transport that keeps order.

    u32 length | u8 kind | body             little-endian; `length` counts what follows it

    HELLO  msgpack map of `Hello`           the first frame of each side of a connection
    DATA   u64 seq | u64 ack | payload      numbered per session, plane and direction, from 1; `ack` is cumulative
    ACK    u64 ack
    PING   u64 nonce      PONG  u64 nonce
    WANT   u8 plane                         "dial this plane for me": only one side may be able to dial
    BYE    msgpack map of `Bye`             why this connection ends; nothing follows
    PROVE  bytes      PROOF  64 bytes       that a process of this key lives: see `twins`

The decoder distrusts: a length is checked before memory is taken for it, and before the other side's hello nothing
longer than a hello is taken at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from sys import getrefcount
from typing import Any

import msgspec

from lattica.errors import RemoteProtocolError

PROTOCOL = 1
"""What this release speaks; `Hello.oldest` is what it still understands."""
CONTROL, BULK = 0, 1
PLANES = (CONTROL, BULK)

HELLO, DATA, ACK, PING, PONG, WANT, BYE, PROVE, PROOF = range(1, 10)
LENGTH = 4
HEAD = 5  # length and kind
DATA_HEAD = HEAD + 16
FRAME_MAX_BYTES = (1 << 20) + 4096
"""Longest frame: a full batch of control messages, or one chunk of bulk. Longer ones would keep others waiting."""
HELLO_MAX_BYTES = 16 << 10
"""Longest frame from a peer whose hello has not come: forty addresses of a node with many interfaces fit."""
WINDOW_BYTES = 256 << 10
"""What is read at once. A frame that is longer is read into memory of its own, so that its payload is never copied."""
OWN_MEMORY_FROM_BYTES = 32 << 10  # copying less costs less than a second read
ROOM_BYTES = 516 << 10  # of memory that is used again: a full chunk of bulk with its heads fits
ROOMS_MAX = 4  # of one connection: what a reader that keeps up needs, and 2 MiB that an idle one holds
INSTANCE_MAX_BYTES, SIGNATURE_BYTES = 32, 64
WORDS_MAX = 256  # characters of a reason or a name that came from a peer

Buffer = bytes | bytearray | memoryview
Frame = Sequence[Buffer]
"""A frame ready to be written: its buffers in order, the head first. They must not change until it is acknowledged."""


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who speaks, and where the session stands. Unknown fields are ignored, so releases may differ.

    boot: of this process; with `instance` it tells a restart from a copied directory. session: that the sender still
    has with this peer (0: none); proposal: the number of the next one. received: the last DATA of this plane that it
    delivered. unix_s: its wall clock, as it is.
    """

    boot: int
    instance: bytes
    plane: int = CONTROL
    session: int = 0
    proposal: int = 0
    received: int = 0
    unix_s: float = 0.0
    protocol: int = PROTOCOL
    oldest: int = PROTOCOL
    name: str = ""
    version: str = ""
    addresses: list[str] = []
    packs: list[str] = []  # compressions it can undo


class Bye(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why the sender ends this connection. code: one of the words below; text: for people. The rest is said to the
    later one of two twins: which process was first, and its proof."""

    code: str
    text: str = ""
    boot: int = 0
    instance: bytes = b""
    proof: bytes = b""


REFUSED = "refused"  # by certificate, revocation or version: dialing again changes nothing
TWIN = "twin"  # two live nodes have this key, and the receiver is the later one
STALE = "stale"  # the session or connection was replaced meanwhile; dial again
LEAVING = "leaving"  # the sender stops; its session is over
OVER = "over"  # the session that you have in mind has ended here
BROKEN = "broken"  # the receiver broke a rule of the protocol
IDLE = "idle"  # not needed now; the session goes on


class Data(msgspec.Struct, frozen=True):
    """A numbered frame. payload: ours to keep."""

    seq: int
    ack: int
    payload: Buffer


class Ack(msgspec.Struct, frozen=True):
    """All frames up to this one have come."""

    ack: int


class Ping(msgspec.Struct, frozen=True):
    """Does this connection carry anything?"""

    nonce: int


class Pong(msgspec.Struct, frozen=True):
    """It does: the answer to the ping of this nonce."""

    nonce: int


class Want(msgspec.Struct, frozen=True):
    """Dial this plane for me."""

    plane: int


class Prove(msgspec.Struct, frozen=True):
    """Sign this instance of another process."""

    instance: bytes


class Proof(msgspec.Struct, frozen=True):
    """The answer to PROVE: signed by who has the key."""

    signature: bytes


Received = Hello | Data | Ack | Ping | Pong | Want | Bye | Prove | Proof
_HEAD, _NUMBERS, _DATA_HEAD = Struct("<IB"), Struct("<QQ"), Struct("<IBQQ")
_hello = msgspec.msgpack.Decoder(Hello)
_bye = msgspec.msgpack.Decoder(Bye)
_encoder = msgspec.msgpack.Encoder()


def data_head(size: int, seq: int, ack: int) -> bytes:
    """What stands before a payload of `size` bytes."""
    return _DATA_HEAD.pack(size + DATA_HEAD - LENGTH, DATA, seq, ack)


def encode(frame: Hello | Ack | Ping | Pong | Want | Bye | Prove | Proof) -> Frame:
    """A frame without payload, as one buffer."""
    match frame:
        case Hello():
            kind, body = HELLO, _encoder.encode(frame)
        case Bye():
            kind, body = BYE, _encoder.encode(frame)
        case Ack(number):
            kind, body = ACK, number.to_bytes(8, "little")
        case Ping(number):
            kind, body = PING, number.to_bytes(8, "little")
        case Pong(number):
            kind, body = PONG, number.to_bytes(8, "little")
        case Want(plane):
            kind, body = WANT, bytes([plane])
        case Prove(instance):
            kind, body = PROVE, instance
        case Proof(signature):
            kind, body = PROOF, signature
    return ((1 + len(body)).to_bytes(4, "little") + bytes([kind]) + body,)


def size_of(frame: Frame) -> int:
    """Bytes of a frame on the wire."""
    return sum(map(len, frame))


def _parse(kind: int, body: memoryview) -> Received:
    """One frame without its head. `body` may be reused by the caller afterwards, unless it is DATA's own memory."""
    size = len(body)
    if kind == DATA:
        if size < _NUMBERS.size:
            raise RemoteProtocolError(f"a data frame of {size} bytes is shorter than its numbers")
        seq, ack = _NUMBERS.unpack_from(body)
        return Data(seq, ack, body[_NUMBERS.size :])
    if kind in (ACK, PING, PONG):
        if size != 8:
            raise RemoteProtocolError(f"a frame of kind {kind} has {size} bytes instead of 8")
        number = int.from_bytes(body, "little")
        return Ack(number) if kind == ACK else Ping(number) if kind == PING else Pong(number)
    if kind == WANT:
        if size != 1 or body[0] not in PLANES:
            raise RemoteProtocolError("it wants a plane that does not exist")
        return Want(body[0])
    if kind in (PROVE, PROOF):
        if not size <= (INSTANCE_MAX_BYTES if kind == PROVE else SIGNATURE_BYTES):
            raise RemoteProtocolError(f"a frame of kind {kind} has {size} bytes")
        return Prove(bytes(body)) if kind == PROVE else Proof(bytes(body))
    try:
        if kind == HELLO:
            return _checked(_hello.decode(body))
        if kind == BYE:
            bye = _bye.decode(body)
            if not 0 <= bye.boot < 1 << 64 or len(bye.instance) > INSTANCE_MAX_BYTES:
                raise RemoteProtocolError("its farewell names a process that cannot be")
            return Bye(bye.code[:WORDS_MAX], bye.text[:WORDS_MAX], bye.boot, bye.instance, bye.proof[:SIGNATURE_BYTES])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"its {'hello' if kind == HELLO else 'farewell'} is undecodable: {error}") from error
    raise RemoteProtocolError(f"it sent a frame of kind {kind}, which does not exist")


def _checked(hello: Hello) -> Hello:
    numbers = (hello.boot, hello.session, hello.proposal, hello.received)
    if (
        any(not 0 <= number < 1 << 64 for number in numbers)
        or hello.plane not in PLANES
        or len(hello.instance) > INSTANCE_MAX_BYTES
    ):
        raise RemoteProtocolError("its hello has a number out of range")
    if not abs(hello.unix_s) < 1e12:  # also refuses nan
        raise RemoteProtocolError("its hello has a field out of range")
    if (
        len(hello.name) > WORDS_MAX
        or len(hello.version) > WORDS_MAX
        or any(len(a) > WORDS_MAX for a in hello.addresses)
    ):
        raise RemoteProtocolError("its hello has a text that is too long")
    return hello


class _Rooms:
    """Memory for long frames, used again when the last view of a frame is gone: fresh memory has to be given by the
    kernel and zeroed, which takes half as long as decrypting what goes into it, and is in no cache."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: list[bytearray] = []

    def take(self, size: int) -> memoryview:
        """Memory for `size` bytes; what is in it is anything."""
        if not ROOM_BYTES // 4 < size <= ROOM_BYTES:
            return memoryview(bytearray(size))
        for room in self._kept:  # in this order: the first were used last, and are in the processor's caches
            if getrefcount(room) == _UNSEEN:
                return memoryview(room)[:size]
        room = bytearray(ROOM_BYTES)
        if len(self._kept) < ROOMS_MAX:
            self._kept.append(room)
        return memoryview(room)[:size]


_UNSEEN = 3  # references to a room that nobody has a view of: the list's, the loop's, and that of the question


class Decoder:
    """Bytes in, frames out. Read into `window()`, then say how many bytes came: `advance(n)`; or `feed(bytes)`."""

    __slots__ = ("_end", "_filled", "_limit", "_own", "_rooms", "_space", "_start", "_view", "missing")

    def __init__(self) -> None:
        self._space = bytearray(WINDOW_BYTES)
        self._view = memoryview(self._space)
        self._start = self._end = 0  # what of it is not parsed yet
        self._own: memoryview | None = None  # a long frame in memory of its own, kind included
        self._filled = 0
        self.missing = 0  # bytes of that frame that have not come: nothing is learnt before the last of them
        self._rooms = _Rooms()
        self._limit = HELLO_MAX_BYTES

    def __repr__(self) -> str:
        return f"<Decoder: {self._end - self._start} bytes wait, {self._filled} of a long frame>"

    def trust(self) -> None:
        """Frames may be long from now on, as they may after a hello."""
        self._limit = FRAME_MAX_BYTES

    def window(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._own[self._filled :] if self._own is not None else self._view[self._end :]

    def advance(self, count: int) -> list[Received]:
        """The frames completed by `count` more bytes in the window. Raises RemoteProtocolError."""
        frames: list[Received] = []
        if self._own is not None:
            self._filled += count
            self.missing -= count
            if self.missing:
                return frames
            own, self._own, self._filled = self._own, None, 0
            frames.append(_parse(own[0], own[1:]))
            return frames
        self._end += count
        view, start, end = self._view, self._start, self._end
        while end - start >= HEAD:
            size, kind = _HEAD.unpack_from(view, start)
            if not 1 <= size <= self._limit:
                raise RemoteProtocolError(f"a frame of {size} bytes was announced; 1 to {self._limit} are allowed")
            stop = start + LENGTH + size
            if stop <= end:
                if kind == DATA and start + DATA_HEAD <= stop:
                    seq, ack = _NUMBERS.unpack_from(view, start + HEAD)
                    frames.append(Data(seq, ack, bytes(view[start + DATA_HEAD : stop])))
                else:
                    frames.append(_parse(kind, view[start + HEAD : stop]))
                start = stop
                if kind == HELLO:  # what follows it at once may be long already
                    self._limit = FRAME_MAX_BYTES
            elif size >= OWN_MEMORY_FROM_BYTES:
                if kind != DATA:
                    raise RemoteProtocolError(f"a frame of kind {kind} has {size} bytes")
                own = self._rooms.take(size)
                self._filled = end - start - LENGTH
                own[: self._filled] = view[start + LENGTH : end]
                self.missing = size - self._filled
                self._own, start = own, end
                break
            else:
                break
        if start == end:
            start = end = 0
        elif end == len(view) or start > len(view) // 2:
            rest = bytes(view[start:end])
            view[: len(rest)] = rest
            start, end = 0, len(rest)
        self._start, self._end = start, end
        return frames

    def feed(self, data: Buffer) -> list[Any]:
        """`window` and `advance` for bytes that are here already. Raises RemoteProtocolError."""
        frames: list[Received] = []
        rest = memoryview(data)
        while rest:
            window = self.window()
            count = min(len(window), len(rest))
            window[:count] = rest[:count]
            frames += self.advance(count)
            rest = rest[count:]
        return frames
