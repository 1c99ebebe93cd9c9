"""Records: what a peer says of itself for others to find, signed, and good until it expires.

    msgpack  [content, signature]            content: msgpack array of `Content`

    PEER      under the peer's id            it can be reached at `addresses`
    PROVIDER  under any key, one per writer  it has that content, or takes part in that topic, and is at `addresses`
    VALUE     under hash(writer, name)       `value`, up to 1 KiB

The signature covers a purpose, the mesh and the content, and is made with the key that the content carries; the hash of
that key is the writer. Of two records with one place the one with the later (boot, seq) counts. A record has one
encoding only: who did not sign it cannot make a second one of it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.mesh.dht.keys import KEY_BYTES, Key, peer_key, value_key
from lattica.mesh.dht.messages import RECORD_MAX_BYTES, are_addresses
from lattica.mesh.identity import PeerId, peer_id_of, short_peer
from lattica.mesh.papers import DAMAGED, SIGNATURE_BYTES

PEER, PROVIDER, VALUE = 1, 2, 3
KINDS = {PEER: "peer", PROVIDER: "provider", VALUE: "value"}
PUBLIC_KEY_BYTES = 32
NAME_MAX_BYTES = 256  # of a value
VALUE_MAX_BYTES = 1 << 10
"""Twenty peers keep it in memory for people that they do not know: what is longer belongs into the object store."""
TTL_S = 3600.0
"""A record outlives its writer by so much at most. Longer: more dead providers are tried; shorter: more traffic."""
TTL_MAX_S = 24 * 3600.0
CLOCKS_APART_S = 3600.0
"""The writer's clock may be so much ahead of ours, as with certificates."""
NUMBER_MAX = (1 << 63) - 1
_PURPOSE = b"lattica dht record 1\0"

Sign = Callable[[bytes], bytes]
Verify = Callable[[bytes, bytes, bytes], bool]
"""(public key, signature, data) -> whether this is that key's signature: `Checks.signed`."""


class Content(msgspec.Struct, array_like=True, frozen=True):
    """What is signed. boot: the number of the writer's start; seq: counts its records of this start."""

    kind: int
    key: bytes
    public_key: bytes
    boot: int
    seq: int
    expires: int  # unix seconds
    addresses: tuple[str, ...] = ()
    name: str = ""
    value: bytes = b""


class _Signed(msgspec.Struct, array_like=True, frozen=True):
    content: bytes
    signature: bytes


_content = msgspec.msgpack.Decoder(Content)
_signed = msgspec.msgpack.Decoder(_Signed)
_encode = msgspec.msgpack.Encoder().encode


class Record:
    """One, as read: nothing in it is proved until `is_signed`. data: as it travels."""

    __slots__ = ("content", "data", "key", "writer")

    def __init__(self, data: bytes, content: Content, writer: PeerId) -> None:
        self.data, self.content, self.writer = data, content, writer
        self.key = Key(content.key)

    def __repr__(self) -> str:
        c = self.content
        return f"<{KINDS[c.kind]} record {c.key[:4].hex()} of {short_peer(self.writer)} ({c.boot}, {c.seq})>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and other.data == self.data

    def __hash__(self) -> int:
        return hash(self.data)

    @property
    def order(self) -> tuple[int, int]:
        """Of two records of one writer under one key the one with the greater order counts."""
        return self.content.boot, self.content.seq

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where its writer is."""
        return self.content.addresses

    @property
    def value(self) -> bytes:
        return self.content.value

    @property
    def expires(self) -> int:
        return self.content.expires


def write_record(content: Content, sign: Sign, mesh: bytes) -> Record:
    """Sign it. Raises RemoteProtocolError if it can be no record, for example if it is too long."""
    data = _encode(content)
    return read_record(_encode(_Signed(data, sign(_to_sign(data, mesh)))))


def read_record(data: bytes) -> Record:
    """The record, if it can be one. Raises RemoteProtocolError. Whether its writer wrote it says `is_signed`."""
    if len(data) > RECORD_MAX_BYTES:
        raise RemoteProtocolError(f"a record has {len(data)} bytes, and may have {RECORD_MAX_BYTES}")
    try:
        signed = _signed.decode(data)
        content = _content.decode(signed.content)
    except DAMAGED as error:
        raise RemoteProtocolError(f"a record cannot be read: {error}") from error
    if _encode(signed) != data or len(signed.signature) != SIGNATURE_BYTES:
        raise RemoteProtocolError("a record is written in another way than records are")
    if not _holds(content):
        raise RemoteProtocolError("a record says what cannot be")
    writer = peer_id_of(content.public_key)
    if not _stands_where_it_may(content, writer):
        raise RemoteProtocolError(f"a {KINDS[content.kind]} record stands under a key that is not its writer's")
    return Record(bytes(data), content, writer)


def is_signed(record: Record, verify: Verify, mesh: bytes) -> bool:
    """Whether its writer wrote it, for this mesh."""
    signed = _signed.decode(record.data)
    return verify(record.content.public_key, signed.signature, _to_sign(signed.content, mesh))


def is_current(record: Record, unix_s: float) -> bool:
    """Whether it counts at this time: it has not expired, and does not want to outlive what may be."""
    return unix_s < record.content.expires <= unix_s + TTL_MAX_S + CLOCKS_APART_S


def _to_sign(content: bytes, mesh: bytes) -> bytes:
    return _PURPOSE + mesh + content


def _holds(c: Content) -> bool:
    return (
        c.kind in KINDS
        and len(c.key) == KEY_BYTES
        and len(c.public_key) == PUBLIC_KEY_BYTES
        and all(0 <= number <= NUMBER_MAX for number in (c.boot, c.seq, c.expires))
        and are_addresses(c.addresses)
        and len(c.name.encode()) <= NAME_MAX_BYTES
        and len(c.value) <= VALUE_MAX_BYTES
    )


def _stands_where_it_may(c: Content, writer: PeerId) -> bool:
    if c.kind == PEER:
        return c.key == peer_key(writer)
    if c.kind == VALUE:
        return c.key == value_key(writer, c.name)
    return True  # anybody may say that it has something
