"""The bytes of probes, answers and relayed packets on the UDP socket that QUIC shares.

    0x01 PROBE     key id 8 · transaction 8 · kind 1 · argument 2 · send time 8 · padding 20 · MAC 16
    0x02 ANSWER    key id 8 · transaction 8 · kind 1 · echo of time 8 · seen 18 · padding 4 · MAC 16
    0x03 BIND      channel 8 · counter 8 · padding 31 · MAC 16
    0x04 BOUND     channel 8 · counter 8 · seen 18 · padding 13 · MAC 16
    0x05 RELAYED   channel 8 · payload
    0x00 PUNCH     up to 15 bytes of noise

All but the last two are 64 bytes, so no answer is longer than its question. QUIC has bit 0x40 of the first byte set
(RFC 9000 §17.2, §17.3), ours never do. The MAC is BLAKE3, keyed, cut to 16 bytes, over all before it. Numbers are
big-endian; padding is written as zeros, and covered by the MAC whatever it is.

Each direction between two peers has a key of its own (`Keys`), so what is thrown back at its sender is nobody's. A key
id says whose datagram it claims to be: the shell looks it up among its owners, drops what is unknown, and lets the
owner read it, which checks length and MAC first. A forged datagram costs a look-up, or that and one MAC.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from hmac import compare_digest

import msgspec
from blake3 import blake3

from lattica.mesh.nat.routes import Endpoint, pack, unpack

QUIC_BIT = 0x40
PUNCH, PROBE, ANSWER, BIND, BOUND, RELAYED = range(6)
SIGNED_BYTES = 64
MAC_BYTES = 16
SECRET_BYTES = 32
ID_BYTES = 8
PUNCH_MAX_BYTES = 16
RELAYED_HEAD_BYTES = 9
CHANNEL_MAX = (1 << 64) - 1

_PROBE = struct.Struct(">B8s8sBHQ20x")
_ANSWER = struct.Struct(">B8s8sBQ18s4x")
_BIND = struct.Struct(">BQQ31x")
_BOUND = struct.Struct(">BQQ18s13x")
_RELAYED = struct.Struct(">BQ")


class Kind(IntEnum):
    """What a probe asks for. Numbers are only ever appended."""

    PATH = 1  # an answer, from where this arrived
    OBSERVE = 2  # the same, of a peer that tells us how we look from there
    OTHER_PORT = 3  # an answer from another port of the same address
    OTHER_PEER = 4  # an answer by a peer to which we have not sent
    LATER = 5  # an answer only after `argument` seconds
    HAIRPIN = 6  # nothing: it is to ourselves


class Key(msgspec.Struct, frozen=True):
    """What one side signs with. id: names it on the wire, and gives nothing away."""

    id: bytes
    secret: bytes


class Keys(msgspec.Struct, frozen=True):
    """Of two peers with each other, as one of them has them."""

    sending: Key
    receiving: Key

    @staticmethod
    def derive(shared: bytes, *, lower: bool) -> Keys:
        """From SECRET_BYTES that both know, agreed over their session. lower: ours is the lower PeerId."""
        assert len(shared) == SECRET_BYTES, f"a shared secret has {SECRET_BYTES} bytes, not {len(shared)}"
        up, down = (_derived(shared, way) for way in ("lower to higher", "higher to lower"))
        return Keys(up, down) if lower else Keys(down, up)


class Probe(msgspec.Struct, frozen=True):
    """transaction: 8 random bytes. time_us: when it was sent, by the sender's monotonic clock."""

    transaction: bytes
    kind: int
    time_us: int
    argument: int = 0


class Answer(msgspec.Struct, frozen=True):
    """time_us: that of the probe. seen: where the probe seemed to come from."""

    transaction: bytes
    kind: int
    time_us: int
    seen: Endpoint


class Bind(msgspec.Struct, frozen=True):
    """Who may use the channel is at this datagram's source now. counter: grows with each, or it is a replay."""

    channel: int
    counter: int


class Bound(msgspec.Struct, frozen=True):
    """The relay's answer."""

    channel: int
    counter: int
    seen: Endpoint


def is_quic(data: bytes) -> bool:
    """Whether it is a packet of QUIC, and none of ours."""
    return bool(data) and bool(data[0] & QUIC_BIT)


def key_id(data: bytes) -> bytes:
    """Whose PROBE or ANSWER this claims to be; b"" if it is none."""
    return data[1:9] if len(data) == SIGNED_BYTES and data[0] in (PROBE, ANSWER) else b""


def kind_of(data: bytes) -> int:
    """What a datagram for which `key_id` knew an id claims to be: PATH is for its peer's table, `answering.KINDS` for
    whoever answers or measures."""
    return data[17]


def write_probe(key: Key, probe: Probe) -> bytes:
    """A probe as bytes, signed with this key."""
    return _signed(
        key.secret,
        _PROBE.pack(PROBE, key.id, probe.transaction, probe.kind, probe.argument, probe.time_us),
    )


def read_probe(key: Key, data: bytes) -> Probe | None:
    """None: it is no probe of this key, and nobody is told so."""
    if not _holds(key.secret, PROBE, data) or data[1:9] != key.id:
        return None
    _, _, transaction, kind, argument, time_us = _PROBE.unpack(data[:-MAC_BYTES])
    return Probe(transaction, kind, time_us, argument)


def write_answer(key: Key, answer: Answer) -> bytes:
    """Raises ValueError if `seen` is no address."""
    fields = (key.id, answer.transaction, answer.kind, answer.time_us, pack(answer.seen))
    return _signed(key.secret, _ANSWER.pack(ANSWER, *fields))


def read_answer(key: Key, data: bytes) -> Answer | None:
    """None: it is no answer of this key."""
    if not _holds(key.secret, ANSWER, data) or data[1:9] != key.id:
        return None
    _, _, transaction, kind, time_us, seen = _ANSWER.unpack(data[:-MAC_BYTES])
    return Answer(transaction, kind, time_us, unpack(seen))


def write_bind(secret: bytes, bind: Bind) -> bytes:
    """A BIND as bytes, signed with the channel's secret."""
    return _signed(secret, _BIND.pack(BIND, bind.channel, bind.counter))


def read_bind(secret: bytes, data: bytes) -> Bind | None:
    """None: it is no BIND with this secret."""
    if not _holds(secret, BIND, data):
        return None
    _, channel, counter = _BIND.unpack(data[:-MAC_BYTES])
    return Bind(channel, counter)


def write_bound(secret: bytes, bound: Bound) -> bytes:
    """Raises ValueError if `seen` is no address."""
    return _signed(secret, _BOUND.pack(BOUND, bound.channel, bound.counter, pack(bound.seen)))


def read_bound(secret: bytes, data: bytes) -> Bound | None:
    """None: it is no BOUND with this secret."""
    if not _holds(secret, BOUND, data):
        return None
    _, channel, counter, seen = _BOUND.unpack(data[:-MAC_BYTES])
    return Bound(channel, counter, unpack(seen))


def channel_of(data: bytes) -> int | None:
    """Of a BIND, BOUND or RELAYED, before anything is verified; None if it is none of them."""
    if len(data) < RELAYED_HEAD_BYTES or not BIND <= data[0] <= RELAYED:
        return None
    if data[0] != RELAYED and len(data) != SIGNED_BYTES:
        return None
    return int.from_bytes(data[1:9], "big")


def write_relayed(channel: int, payload: bytes) -> bytes:
    """A payload with the head by which its relay knows the channel."""
    return _RELAYED.pack(RELAYED, channel) + payload


def relayed_payload(data: bytes) -> bytes:
    """Of a datagram whose first byte is RELAYED and for which `channel_of` knew a channel."""
    return data[RELAYED_HEAD_BYTES:]


def write_punch(noise: bytes) -> bytes:
    """noise: what makes two of them differ, at most PUNCH_MAX_BYTES - 1."""
    assert len(noise) < PUNCH_MAX_BYTES, f"{len(noise)} bytes of noise"
    return bytes([PUNCH]) + noise


def _derived(shared: bytes, way: str) -> Key:
    made = blake3(shared, derive_key_context=f"lattica 2026 nat probe key, {way}").digest(
        length=ID_BYTES + SECRET_BYTES
    )
    return Key(made[:ID_BYTES], made[ID_BYTES:])


def _signed(secret: bytes, body: bytes) -> bytes:
    return body + blake3(body, key=secret).digest(length=MAC_BYTES)


def _holds(secret: bytes, first: int, data: bytes) -> bool:
    if len(data) != SIGNED_BYTES or data[0] != first:
        return False
    mac = blake3(data[:-MAC_BYTES], key=secret).digest(length=MAC_BYTES)
    return compare_digest(mac, data[-MAC_BYTES:])
