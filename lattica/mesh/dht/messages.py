"""What peers say to each other about the DHT.

    A -> B  Find(ask, target, kind, addresses)        B -> A  Found(ask, contacts, records, addresses)
    A -> B  Store(ask, record)                        B -> A  Kept(ask, kept)

Numbers are only ever appended, and unknown fields at the ends of messages are ignored. `ask` is the asker's number: an
answer counts if it has the number of an open ask of that very peer. Who sends is what the transport authenticated.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.mesh.dht.keys import KEY_BYTES
from lattica.mesh.identity import PEER_ID_BYTES, PeerId, short_peer
from lattica.mesh.papers import DAMAGED

ADDRESSES_MAX = 4
"""Of a peer: v4 and v6, at home and outside. An answer names twenty peers."""
ADDRESS_MAX_CHARS = 256  # of ASCII: the longest host name, and a port
CONTACTS_MAX = 20  # in an answer: the k closest
RECORD_MAX_BYTES = 2 << 10
"""A record has some 250 bytes; the largest have 4 addresses of 256 characters, or a value of 1 KiB."""
RECORDS_MAX = 16
"""In an answer: so many providers are more than anybody calls at once."""
RECORDS_MAX_BYTES = 8 << 10
"""Of all records in an answer: with the usual 20 contacts it then fits into a control message of 16 KiB."""
MESSAGE_MAX_BYTES = 40 << 10
"""20 contacts with 4 addresses of 256 characters, and the records. Ours have 1 to 3 KiB."""
ASK_MAX = (1 << 63) - 1


class Contact(msgspec.Struct, array_like=True, frozen=True):
    """A peer, and where it is said to be: hearsay until it has answered there."""

    peer: PeerId
    addresses: tuple[str, ...]


class Find(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """Who is closest to `target`? kind: of the records under it that are wanted, 0 for none. addresses: of an asker
    that serves, else none."""

    ask: int
    target: bytes
    kind: int = 0
    addresses: tuple[str, ...] = ()


class Found(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """The closest that the sender knows, closest first, and some of the records under the target. addresses: its own,
    which nobody else is believed about."""

    ask: int
    contacts: tuple[Contact, ...]
    records: tuple[bytes, ...] = ()
    addresses: tuple[str, ...] = ()


class Store(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """Keep this record of the sender's."""

    ask: int
    record: bytes


class Kept(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """Whether it is kept, or one as new as it."""

    ask: int
    kept: bool


Message = Find | Found | Store | Kept
encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


def decode(data: bytes) -> Message:
    """Raises RemoteProtocolError for whatever is no message within the limits above."""
    if len(data) > MESSAGE_MAX_BYTES:
        raise RemoteProtocolError(f"a message of the DHT has {len(data)} bytes, and may have {MESSAGE_MAX_BYTES}")
    try:
        message: Message = _decode(data)
    except DAMAGED as error:
        raise RemoteProtocolError(f"a message of the DHT cannot be read: {error}") from error
    if not 0 <= message.ask <= ASK_MAX or not _holds(message):
        raise RemoteProtocolError(f"a {type(message).__name__} of the DHT is beyond its limits")
    return message


def _holds(message: Message) -> bool:
    match message:
        case Find(_, target, _, addresses):
            return len(target) == KEY_BYTES and are_addresses(addresses)
        case Found(_, contacts, records, addresses):
            return (
                len(contacts) <= CONTACTS_MAX
                and are_addresses(addresses)
                and all(len(one.peer) == PEER_ID_BYTES and are_addresses(one.addresses) for one in contacts)
                and len(records) <= RECORDS_MAX
                and sum(map(len, records)) <= RECORDS_MAX_BYTES
            )
        case Store(_, record):
            return len(record) <= RECORD_MAX_BYTES
        case Kept():
            return True


def are_addresses(addresses: tuple[str, ...]) -> bool:
    """Few enough, and none too long."""
    return len(addresses) <= ADDRESSES_MAX and all(map(_is_address, addresses))


def fitting(addresses: Iterable[str]) -> tuple[str, ...]:
    """The first of them that others will read."""
    return tuple(filter(_is_address, addresses))[:ADDRESSES_MAX]


def _is_address(address: str) -> bool:
    return len(address) <= ADDRESS_MAX_CHARS and address.isascii()


# -- what the core asks of its shell -----------------------------------------------------------------------------------


class Send(msgspec.Struct, frozen=True):
    """Bring this to the peer, over the session there is, or one dialed at these addresses; it may be lost."""

    peer: PeerId
    addresses: tuple[str, ...]
    message: Message

    def __repr__(self) -> str:
        return f"<Send {type(self.message).__name__} to {short_peer(self.peer)}>"
