"""What a node says of itself every second: what is taken, how long its queue is, how fast it runs.

    data = encode(load)          # at most DATA_MAX_BYTES, for the mesh's soft state
    load = decode(data)          # raises RemoteProtocolError; whoever said it may lie, and only delays others by it

It says what is taken, not what is free: a name that is not there is wholly free, so that an idle machine with thirty
resources says nothing, and totals are known from the table anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.scheduler.resources import CPU, GPU, MEMORY, NAMES_MAX

DATA_MAX_BYTES = 128  # that of the mesh's soft state, per peer
UNITS_MAX = 1 << 62  # of one resource: memory is counted in 1/10,000 bytes
QUEUED_MAX = 1_000_000
TASK_S_MAX = 1e6  # twelve days
PACE_MIN, PACE_MAX = 1 / 64, 64.0  # who says more is broken, or lies
SHORT_NAMES = {CPU: 0, GPU: 1, MEMORY: 2}  # appended only
_LONG_NAMES = {number: name for name, number in SHORT_NAMES.items()}


@dataclass(frozen=True, slots=True)
class Load:
    """One node at one moment. taken: in 1/10,000, by name.

    queued: requests that wait there. task_s: mean run time of recent tasks, whatever they were; 0 if there were none.
    pace: how long its tasks took, where submitters expected 1 (`pace`). draining: it takes no more.
    """

    taken: Mapping[str, int] = field(default_factory=dict)
    queued: int = 0
    task_s: float = 0.0
    pace: float = 1.0
    draining: bool = False


_Amount = Annotated[int, msgspec.Meta(ge=0, le=UNITS_MAX)]


class _Wire(msgspec.Struct, array_like=True, frozen=True):
    """Fields are only ever appended; later releases' ones are ignored."""

    queued: Annotated[int, msgspec.Meta(ge=0, le=QUEUED_MAX)]
    task_us: Annotated[int, msgspec.Meta(ge=0, le=int(TASK_S_MAX * 1e6))]
    pace_milli: Annotated[int, msgspec.Meta(ge=int(PACE_MIN * 1000), le=int(PACE_MAX * 1000))]
    draining: bool
    taken: Annotated[dict[int | str, _Amount], msgspec.Meta(max_length=NAMES_MAX)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Wire)


def encode(load: Load) -> bytes:
    """The longest names are left out where not all fit: who asks for those learns by a refusal."""
    taken = {SHORT_NAMES.get(name, name): units for name, units in load.taken.items() if units > 0}
    names = sorted(taken, key=lambda name: len(name.encode()) if isinstance(name, str) else 0)
    while True:
        data = _encoder.encode(
            _Wire(
                min(load.queued, QUEUED_MAX),
                int(min(load.task_s, TASK_S_MAX) * 1e6),
                round(min(max(load.pace, PACE_MIN), PACE_MAX) * 1000),
                load.draining,
                {name: min(taken[name], UNITS_MAX) for name in names},
            )
        )
        if len(data) <= DATA_MAX_BYTES:
            return data
        names.pop()


def decode(data: bytes) -> Load:
    """Raises RemoteProtocolError for anything that `encode` of some release could not have written."""
    if len(data) > DATA_MAX_BYTES:
        raise RemoteProtocolError(f"a load of {len(data)} bytes; at most {DATA_MAX_BYTES} are allowed")
    try:
        wire = _decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"a load cannot be read: {error}") from error
    taken: dict[str, int] = {}
    for name, units in wire.taken.items():
        known = _LONG_NAMES.get(name) if isinstance(name, int) else name
        if known is not None:  # else a short name of a later release
            taken[known] = units
    return Load(taken, wire.queued, wire.task_us / 1e6, wire.pace_milli / 1000, wire.draining)
