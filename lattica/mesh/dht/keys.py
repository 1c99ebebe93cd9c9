"""Where things stand in the DHT: 256 bits, and how far two of them are apart.

    a peer, and its peer record    its PeerId: a hash of its key, so nobody chooses where it stands
    content, a topic, a value      BLAKE3-256 of a purpose and the name

A purpose in each name keeps the kinds apart: no topic can be named so that it falls on somebody's content.
Source: Maymounkov & Mazières, "Kademlia" (2002), §2.1 for the distance.
"""

from __future__ import annotations

from random import Random
from typing import NewType

from lattica.mesh.identity import PeerId

Key = NewType("Key", bytes)
KEY_BYTES = 32
KEY_BITS = 8 * KEY_BYTES


def content_key(cid: bytes) -> Key:
    """Who has the content of this name."""
    return _key("content", cid)


def topic_key(topic: str) -> Key:
    """Who takes part in this topic."""
    return _key("topic", topic.encode())


def value_key(writer: PeerId, name: str) -> Key:
    """What `writer` says under this name."""
    return _key("value", writer + name.encode())


def peer_key(peer: PeerId) -> Key:
    """Where this peer stands, and its record with it."""
    return Key(bytes(peer))


def place_of(key: bytes) -> int:
    """A key as the number that distances are made of."""
    return int.from_bytes(key, "big")


def distance(one: bytes, other: bytes) -> int:
    """XOR: symmetric, and from any key each distance leads to one key only."""
    return place_of(one) ^ place_of(other)


def shared_bits(one: bytes, other: bytes) -> int:
    """How many bits two keys have in common from the front; KEY_BITS if they are equal."""
    return KEY_BITS - distance(one, other).bit_length()


def random_key(near: bytes, shared: int, rng: Random) -> Key:
    """A key that has exactly so many bits in common with `near`, from the front."""
    below = KEY_BITS - shared - 1
    apart = (1 << below) | rng.getrandbits(below) if below else 1
    return Key((place_of(near) ^ apart).to_bytes(KEY_BYTES, "big"))


def _key(purpose: str, name: bytes) -> Key:
    from blake3 import blake3

    return Key(blake3(f"lattica dht {purpose} 1\0".encode() + name).digest())
