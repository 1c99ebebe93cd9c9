"""The names of things, as distinct types over bytes: a checker refuses an ActorId where a NodeId belongs, at no cost.

    NodeId, JobId, WorkerId   16 random bytes, made once per node, session or process
    ObjectId, ActorId         16 bytes from the process's `IdSource`

Ids are equal or not; nothing is encoded in them, and who may do what never rests on knowing one.
"""

from __future__ import annotations

from typing import NewType

ObjectId = NewType("ObjectId", bytes)
ActorId = NewType("ActorId", bytes)
NodeId = NewType("NodeId", bytes)
JobId = NewType("JobId", bytes)
WorkerId = NewType("WorkerId", bytes)

ID_BYTES = 16
SHORT_ID_DIGITS = 4  # as git on small trees: enough to tell ids apart on one screen
_HALF = 8
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: multiplying by it permutes the counters and spreads them


def short(any_id: bytes) -> str:
    """The first hex digits, for messages and reprs: `9f2c`."""
    return any_id[:SHORT_ID_DIGITS].hex()[:SHORT_ID_DIGITS]


class IdSource:
    """Ids that no two processes share, without a system call each: 8 bytes of scrambled counter, 8 of the process.

    The counter comes first and scrambled, so that `short` tells neighbours apart. A multiplication by an odd number
    permutes 64 bits: no id repeats within 2^64. After a fork the child must make a source of its own.

    process: 8 random bytes (`os.urandom(8)`), rolled by the caller.
    """

    def __init__(self, process: bytes) -> None:
        assert len(process) == _HALF, f"an IdSource takes {_HALF} random bytes, not {len(process)}"
        self._process = process
        self._counter = int.from_bytes(process, "big")  # not 0: the first ids of two processes differ at a glance

    def next(self) -> bytes:
        self._counter += 1
        return ((self._counter * _GOLDEN) & _MASK).to_bytes(_HALF, "big") + self._process
