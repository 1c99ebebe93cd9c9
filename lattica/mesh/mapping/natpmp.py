"""NAT-PMP, RFC 6886: the older of the two that gateways speak at port 5351, for IPv4.

request   version 1 · opcode 1                         [ - 2 · inner port 2 · outer port 2 · lifetime 4 ]
answer    version 1 · opcode + 128 · result 2 · epoch 4 [ outer address 4 | inner port 2 · outer port 2 · lifetime 4 ]
"""

from __future__ import annotations

import ipaddress
import struct
from enum import IntEnum

import msgspec

VERSION = 0
ADDRESS, MAP_UDP, MAP_TCP = 0, 1, 2  # opcodes
ANSWER_MAX_BYTES = 16
_ANSWERED = 0x80
_HEAD = struct.Struct("!BBHI")
_MAP = struct.Struct("!HHI")


class Result(IntEnum):
    """§3.5."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


class Address(msgspec.Struct, frozen=True):
    """The gateway's outer address; "" if it has none."""

    host: str


class Mapping(msgspec.Struct, frozen=True):
    """What a gateway has granted; lifetime 0: it has ended (RFC 6886 §3.3)."""

    inner_port: int
    outer_port: int
    lifetime_s: int


class Answer(msgspec.Struct, frozen=True):
    """epoch_s: how long the gateway has kept its state."""

    opcode: int
    result: int
    epoch_s: int
    says: Address | Mapping | None = None


def write_address() -> bytes:
    """Ask for the outer address."""
    return bytes((VERSION, ADDRESS))


def write_map(opcode: int, inner_port: int, outer_port: int, lifetime_s: int) -> bytes:
    """Ask for a mapping, for longer, or with lifetime 0 (and outer port 0) for its end."""
    return bytes((VERSION, opcode, 0, 0)) + _MAP.pack(inner_port, outer_port, lifetime_s)


def read(data: bytes) -> Answer | None:
    """None: no answer of this version. One that says that it knows no PCP is one, too (§9)."""
    if len(data) < _HEAD.size or data[0] != VERSION or not data[1] & _ANSWERED:
        return None
    _, opcode, result, epoch_s = _HEAD.unpack_from(data)
    opcode &= ~_ANSWERED
    says: Address | Mapping | None = None
    if result == Result.SUCCESS and opcode == ADDRESS and len(data) >= 12:
        host = ipaddress.IPv4Address(data[8:12])
        says = Address("" if host.is_unspecified else str(host))
    elif result == Result.SUCCESS and opcode in (MAP_UDP, MAP_TCP) and len(data) >= 16:
        says = Mapping(*_MAP.unpack_from(data, 8))
    return Answer(opcode, result, epoch_s, says)


def has_forgotten(before_s: int, epoch_s: int, elapsed_s: float) -> bool:
    """Whether the gateway has lost its state between two answers (§3.6): it counts slower than we do by more than an
    eighth and two seconds. Or so much faster: this machine slept, and what it had may have run out."""
    theirs_s = epoch_s - before_s
    return theirs_s < elapsed_s * 7 / 8 - 2 or theirs_s > elapsed_s * 9 / 8 + 2


def result_text(result: int) -> str:
    """Its name in the RFC."""
    try:
        return Result(result).name
    except ValueError:
        return f"result {result}"
