"""Port Control Protocol, RFC 6887: a request and an answer of 24 bytes, MAP adds 36.

    request   version 1 · opcode 1 · - 2 · lifetime 4 · our address 16
    answer    version 1 · opcode 1, top bit set · - 1 · result 1 · lifetime 4 · epoch 4 · - 12
    MAP       nonce 12 · protocol 1 · - 3 · inner port 2 · outer port 2 · outer address 16      (§11.1)

Addresses of IPv4 are mapped into IPv6. The nonce shows that a request comes from who made the mapping; whoever comes
back with another one is refused until the mapping ends.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import msgspec

from lattica.mesh.nat.routes import ENDPOINT_BYTES, Endpoint, pack, unpack

PORT = 5351
VERSION = 2
ANSWER_BYTES = 24
MAP_BYTES = 36
DATAGRAM_MAX_BYTES = 1100  # §7
NONCE_BYTES = 12
ANNOUNCE, MAP = 0, 1  # opcodes, §19.2
_ANSWERED = 0x80
_HEAD = struct.Struct("!BBHI16s")
_ANSWER = struct.Struct("!BBBBII12x")
_MAP = struct.Struct(f"!{NONCE_BYTES}sB3xH{ENDPOINT_BYTES}s")


class Protocol(IntEnum):
    """As IANA numbers them."""

    TCP = 6
    UDP = 17


class Result(IntEnum):
    """§7.4."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13


class Mapping(msgspec.Struct, frozen=True):
    """What a MAP answer is about."""

    nonce: bytes
    protocol: int
    inner_port: int
    outer: Endpoint


class Answer(msgspec.Struct, frozen=True):
    """lifetime_s: of the mapping, or of the error. epoch_s: how long the gateway has kept its state."""

    opcode: int
    result: int
    lifetime_s: int
    epoch_s: int
    mapping: Mapping | None = None


def write_map(
    client: str, protocol: Protocol, inner_port: int, nonce: bytes, lifetime_s: int, suggested: Endpoint | None
) -> bytes:
    """Ask for a mapping, for longer, or with lifetime 0 for its end. client: our address, as the gateway sees it.
    suggested: the outer endpoint that we would like."""
    any_host = "::" if ":" in client else "0.0.0.0"
    outer = pack(suggested or Endpoint(any_host, 0))
    head = _HEAD.pack(VERSION, MAP, 0, lifetime_s, pack(Endpoint(client, 0))[:16])
    # The endpoint's port stands behind its address in ours, before it here.
    return head + _MAP.pack(nonce, protocol, inner_port, outer[16:] + outer[:16])


def write_announce(client: str) -> bytes:
    """Ask for nothing but an answer, which holds the epoch (§14.1)."""
    return _HEAD.pack(VERSION, ANNOUNCE, 0, 0, pack(Endpoint(client, 0))[:16])


def read(data: bytes) -> Answer | None:
    """None: no answer of this version. Options are not looked at."""
    if len(data) < ANSWER_BYTES or len(data) > DATAGRAM_MAX_BYTES:
        return None
    version, opcode, _, result, lifetime_s, epoch_s = _ANSWER.unpack_from(data)
    if version != VERSION or not opcode & _ANSWERED:
        return None
    opcode &= ~_ANSWERED
    mapping = None
    if opcode == MAP and len(data) >= ANSWER_BYTES + MAP_BYTES:
        nonce, protocol, inner_port, outer = _MAP.unpack_from(data, ANSWER_BYTES)
        mapping = Mapping(nonce, protocol, inner_port, unpack(outer[2:] + outer[:2]))
    return Answer(opcode, result, lifetime_s, epoch_s, mapping)


def has_forgotten(before_s: int, epoch_s: int, elapsed_s: float) -> bool:
    """Whether the gateway has lost its state between two answers, so that mappings are to be made anew (§8.5).

    before_s, epoch_s: of both answers. elapsed_s: between them, by our clock."""
    if epoch_s + 1 < before_s:
        return True
    theirs = epoch_s - before_s
    return elapsed_s + 2 < theirs - theirs / 16 or theirs + 2 < elapsed_s - elapsed_s / 16


def result_text(result: int) -> str:
    """Its name in the RFC."""
    try:
        return Result(result).name
    except ValueError:
        return f"result {result}"
