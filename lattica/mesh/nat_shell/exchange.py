"""What two peers tell each other inside their session about NATs, as bytes; pure.

    A -> B  nat.key(card)          B -> A  card                  any time, by either, as often as they like
    notice NAT                     a message of `nat/punching`

A card holds half of a secret, which stays the same for as long as the session does: so both sides have the same keys
whoever asked, and even if both did at once. Relays carry the session, and cannot read it.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from blake3 import blake3

from lattica.errors import RemoteProtocolError
from lattica.mesh.nat.attempts import Message
from lattica.mesh.nat.behaviour import Behaviour
from lattica.mesh.nat.datagrams import SECRET_BYTES, Keys
from lattica.mesh.papers import DAMAGED

T = TypeVar("T")
CARD_MAX_BYTES = 256  # with room for what later releases add
BEHAVIOUR_MAX_BYTES = 1024
MESSAGE_MAX_BYTES = 4096  # 16 candidates are a kilobyte


class Card(msgspec.Struct, frozen=True, omit_defaults=True):
    """half: SECRET_BYTES of the sender's, for this session. asks: it wants the other side as a witness
    (`nat/measuring`). port: of its second UDP socket, 0: it has none. has_others: it can have others answer."""

    half: bytes
    asks: bool = False
    port: int = 0
    has_others: bool = False


def write_card(card: Card) -> bytes:
    """A card as bytes."""
    return msgspec.msgpack.encode(card)


def read_card(data: object) -> Card:
    """Of what a peer gave as one. Raises RemoteProtocolError."""
    card = _read(data, CARD_MAX_BYTES, _card, "a card")
    if len(card.half) != SECRET_BYTES or not 0 <= card.port < 65536:
        raise RemoteProtocolError("a card holds something that is not what it should be")
    return card


def keys_of(mine: bytes, theirs: bytes, *, lower: bool) -> Keys:
    """From both halves. lower: ours is the lower PeerId."""
    halves = mine + theirs if lower else theirs + mine
    shared = blake3(halves, derive_key_context="lattica 2026 nat keys of a session").digest(length=SECRET_BYTES)
    return Keys.derive(shared, lower=lower)


def write_message(message: Message) -> bytes:
    """A message of `nat/punching` as bytes."""
    return msgspec.msgpack.encode(message)


def read_message(data: bytes) -> Message:
    """Raises RemoteProtocolError."""
    return _read(data, MESSAGE_MAX_BYTES, _message, "a message of punching")


def write_behaviour(behaviour: Behaviour) -> bytes:
    """For the node's row."""
    return msgspec.msgpack.encode(behaviour)


def read_behaviour(data: bytes) -> Behaviour:
    """Of some node's row; one that cannot be read says nothing."""
    try:
        found = _behaviour.decode(data) if 0 < len(data) <= BEHAVIOUR_MAX_BYTES else Behaviour()
    except DAMAGED:
        return Behaviour()
    lives = found.lifetime_s is None or 0.0 < found.lifetime_s < float("inf")  # false also for what is no number
    return found if lives else msgspec.structs.replace(found, lifetime_s=None)


_behaviour = msgspec.msgpack.Decoder(Behaviour)
_card = msgspec.msgpack.Decoder(Card)
_message: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def _read(data: object, most: int, decoder: msgspec.msgpack.Decoder[T], what: str) -> T:
    if not isinstance(data, bytes | memoryview):  # of a number, bytes() would be so many zeros
        raise RemoteProtocolError(f"{what} is no bytes")
    if len(data) > most:
        raise RemoteProtocolError(f"{what} has {len(data)} bytes, and may have {most}")
    try:
        return decoder.decode(data)
    except DAMAGED as error:
        raise RemoteProtocolError(f"{what} cannot be read: {error}") from error
