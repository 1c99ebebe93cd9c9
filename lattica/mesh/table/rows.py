"""Rows: what one peer says under one key, signed, and valid or not by itself.

    msgpack  [content, signature, before]            content: msgpack array of `Content`

The signature is the writer's, over a purpose, the mesh and the content. `Row.hash` names the content. Rows of kinds
that prove themselves (`Keys.PROVES`) carry their proof in the body and no signature of a writer.

Order, by which one of two rows with one key wins (`Row.order`): (boot, counter, hash) where there is one writer for the
key, (epoch, HLC, writer, hash) where there are many. A row of epoch n + 1 names the hash of the one of epoch n that it
supersedes, and carries it (`before`), so that whoever never saw that one can check who may follow.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.mesh.identity import PEER_ID_BYTES, PeerId, short_peer
from lattica.mesh.papers import DAMAGED, SIGNATURE_BYTES
from lattica.mesh.table.kinds import KEY_MAX_BYTES, KINDS, NEVER, STATEMENT, Keys, Kind

ROW_MAX_BYTES = 80 << 10
"""Longest row: the longest body, and the row that it supersedes."""
HASH_BYTES = 16
UNKNOWN_MAX_BYTES = 16 << 10
"""Body of a row of a kind that only a later release knows. Two of them must fit into one row, as evidence."""
BOOT_BITS = 20
"""Random bits behind a node's boot number: two copies of one directory that start in the same second share no dot."""
_PURPOSE = b"lattica row 1\0"


class Content(msgspec.Struct, array_like=True, frozen=True):
    """What is signed. before: the hash of the row that this one supersedes; b"" for none."""

    kind: int
    key: bytes
    writer: bytes
    boot: int
    counter: int
    hlc: int
    expires: int  # unix seconds
    gone: bool  # a tombstone
    body: bytes
    epoch: int = 0
    before: bytes = b""
    heir: bytes = b""  # of multi-writer kinds: who else may supersede it, and no less than its writer


class _Signed(msgspec.Struct, array_like=True, frozen=True):
    content: bytes
    signature: bytes
    before: bytes = b""  # the superseded row, as it travels, but for what that one carried


_content = msgspec.msgpack.Decoder(Content)
_signed = msgspec.msgpack.Decoder(_Signed)
_encode = msgspec.msgpack.Encoder().encode


class Row:
    """One, as read: nothing in it is proved. data: as it travels."""

    __slots__ = ("content", "data", "hash", "place")

    def __init__(self, data: bytes, content: Content, hash: bytes) -> None:
        self.data, self.content, self.hash = data, content, hash
        self.place = place_of(content.kind, content.key)

    def __repr__(self) -> str:
        c = self.content
        kind = KINDS[c.kind].name if c.kind in KINDS else f"kind {c.kind}"
        gone = ", gone" if c.gone else ""
        return f"<{kind} {c.key[:4].hex()} of {short_peer(self.writer)} ({c.boot >> BOOT_BITS}, {c.counter}){gone}>"

    @property
    def kind(self) -> int:
        return self.content.kind

    @property
    def key(self) -> bytes:
        return self.content.key

    @property
    def writer(self) -> PeerId:
        return PeerId(self.content.writer)

    @property
    def body(self) -> bytes:
        return self.content.body

    @property
    def dot(self) -> tuple[int, int]:
        """(boot, counter): with the writer, the name of this act of writing."""
        return self.content.boot, self.content.counter

    @property
    def order(self) -> tuple[int | bytes, ...]:
        """Of two rows with one key the one with the greater order wins."""
        c = self.content
        if c.epoch:
            return c.epoch, c.hlc, c.writer, self.hash
        return 0, c.boot, c.counter.to_bytes(8, "big"), self.hash  # comparable with the other: kinds may be unknown


def place_of(kind: int, key: bytes) -> int:
    """Where a key stands among all: 64 bits of its hash."""
    from blake3 import blake3

    return int.from_bytes(blake3(kind.to_bytes(2, "big") + key).digest(8), "big")


def to_sign(content: bytes, mesh: bytes) -> bytes:
    """What a writer signs."""
    return _PURPOSE + mesh + content


def write_row(content: Content, sign: Callable[[bytes], bytes], mesh: bytes, before: Row | None = None) -> Row:
    """Sign it. before: the row that it supersedes, whose hash `content` names. Raises RemoteProtocolError if it can be
    none, for example if it is too large."""
    data = _encode(content)
    signature = b"" if _proves(content.kind) else sign(to_sign(data, mesh))
    return read_row(_encode(_Signed(data, signature, bare(before) if before else b"")))


def statement_row(statement: bytes) -> Row:
    """The row that a statement of an admin (`trust`) makes: the same, whoever brings it. Raises RemoteProtocolError."""
    from blake3 import blake3

    key = blake3(statement).digest()
    content = Content(STATEMENT.number, key, bytes(PEER_ID_BYTES), 0, 0, 0, NEVER, False, statement)
    return write_row(content, lambda _: b"", b"")


def read_row(data: bytes) -> Row:
    """The row, if it can be one: known fields, within the limits of its kind.

    Raises RemoteProtocolError. Whether its writer wrote it, and may, is for the replica to say.
    """
    signed, content, hash = _read(data)
    if bool(content.before) != bool(signed.before):
        raise RemoteProtocolError("a row does not carry what it supersedes")
    row = Row(bytes(data), content, hash)
    if signed.before:
        predecessor_of(row)
    return row


def read_bare(data: bytes) -> Row:
    """A row without what it carried, from `bare`. Raises RemoteProtocolError."""
    signed, content, hash = _read(data)
    if signed.before:
        raise RemoteProtocolError("a row carries what it should not")
    return Row(bytes(data), content, hash)


def bare(row: Row) -> bytes:
    """The row as another one carries it: without what it superseded itself."""
    signed = _signed.decode(row.data)
    return _encode(_Signed(signed.content, signed.signature))


def signed_part(row: Row) -> tuple[bytes, bytes]:
    """Its content, as it was signed, and the signature."""
    signed = _signed.decode(row.data)
    return signed.content, signed.signature


def predecessor_of(row: Row) -> Row | None:
    """The row that it supersedes; it lacks what it carried itself. Raises RemoteProtocolError if that is another one
    than it names, or not the last one of its key."""
    carried = _signed.decode(row.data).before
    if not carried:
        return None
    before, c = read_bare(carried), row.content
    b = before.content
    if before.hash != c.before or (b.kind, b.key, b.epoch) != (c.kind, c.key, c.epoch - 1):
        raise RemoteProtocolError("a row supersedes one that is not of its key, or not the last")
    return before


def _read(data: bytes) -> tuple[_Signed, Content, bytes]:
    from blake3 import blake3

    if len(data) > ROW_MAX_BYTES:
        raise RemoteProtocolError(f"a row has {len(data)} bytes, and may have {ROW_MAX_BYTES}")
    try:
        signed = _signed.decode(data)
        content = _content.decode(signed.content)
    except DAMAGED as error:
        raise RemoteProtocolError(f"a row cannot be read: {error}") from error
    if _encode(signed) != data:
        raise RemoteProtocolError("a row is written in another way than rows are")
    _check(content, len(signed.signature))
    return signed, content, blake3(signed.content).digest(HASH_BYTES)


def _proves(kind: int) -> bool:
    return kind in KINDS and KINDS[kind].keys is Keys.PROVES


def _check(c: Content, signature_bytes: int) -> None:
    numbers = (c.boot, c.counter, c.hlc, c.epoch)
    if any(not 0 <= number < 1 << 63 for number in numbers) or not 0 <= c.expires <= NEVER or not 0 < c.kind < 1 << 16:
        raise RemoteProtocolError("a row has a number out of range")
    if len(c.writer) != PEER_ID_BYTES or not 0 < len(c.key) <= KEY_MAX_BYTES:
        raise RemoteProtocolError("a row has no writer or no key")
    if signature_bytes != (0 if _proves(c.kind) else SIGNATURE_BYTES) or len(c.heir) not in (0, PEER_ID_BYTES):
        raise RemoteProtocolError("a row is signed in no way that counts")
    kind = KINDS.get(c.kind)
    name, max_bytes = (kind.name, kind.max_bytes) if kind else (f"kind {c.kind}", UNKNOWN_MAX_BYTES)
    if len(c.body) > max_bytes:
        raise RemoteProtocolError(f"a {name} row has {len(c.body)} bytes, and may have {max_bytes}")
    if kind is None:
        return
    if not _key_holds(kind, c):
        raise RemoteProtocolError(f"a {kind.name} row stands under a key that is not its writer's")
    if not kind.is_multi and (c.epoch or c.before or c.heir):
        raise RemoteProtocolError(f"a {kind.name} row has one writer, and supersedes nobody's")
    if kind.keys is Keys.PROVES and (c.hlc or c.gone or (kind is STATEMENT and c.expires != NEVER)):
        raise RemoteProtocolError(f"a {kind.name} row claims more than it proves")
    if kind.is_multi and (c.epoch < 1 or len(c.before) != HASH_BYTES * (c.epoch > 1)):
        raise RemoteProtocolError(f"a {kind.name} row does not name what it supersedes")


def _key_holds(kind: Kind, c: Content) -> bool:
    match kind.keys:
        case Keys.OWN:
            return c.key == c.writer
        case Keys.OWN_PREFIX:
            return c.key.startswith(c.writer)
        case Keys.OWN_SUFFIX:
            return c.key.endswith(c.writer)
        case Keys.FREE | Keys.PROVES:
            return True
