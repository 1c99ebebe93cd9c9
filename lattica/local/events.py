"""What a worker ran and when, in memory that it shares with its node: the material of `timeline()`.

Noting one is an append to a list; some dozens at a time are encoded and stored behind the worker's page, at the latest
when the worker has waited for a while. Nothing is sent, and what a killed worker had stored stays. The node reads when
it is asked, and once more when the worker has ended.

Two halves are filled in turn, so the newest few thousand are there. Layout, u64 in the machine's byte order: how often
the halves were changed, bytes used of the first, of the second, events so far; the halves begin at byte 64. In a half
lie a u32 size and a batch (msgpack), again and again.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from typing import NamedTuple

import msgspec

HALF_BYTES = 256 << 10  # of 45 bytes each, about
EVENTS_BYTES = 64 + 2 * HALF_BYTES
BATCH = 64
STORE_S = 0.03
"""Of waiting for the next task or call, after which what was noted is stored: between two calls of one who waits for
each answer there is no time to waste."""
TASK, CALL, COROUTINE = 1, 2, 3
"""Kinds: a task, an actor's call, one that shares its thread with others."""
FAILED = 16
"""Added to the kind: it raised."""
_CHANGES, _USED, _TOTAL = 0, 1, 3
_SIZE = struct.Struct("=I")
Noted = tuple[str, float, int, int, int, bytes, int]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[float, list[Noted]]).decode


class Event(NamedTuple):
    """Something that ran and has ended. began: unix seconds; micros: how long; object: the id of its first result;
    thread: which of the worker's, 0 for the main one."""

    name: str
    began: float
    micros: int
    kind: int
    attempt: int
    object: bytes
    thread: int


class EventWriter:
    """The worker's side, used by its main thread, or under its lock.

    note: append (name, began by `perf_counter`, micros, kind, attempt, object, thread); `store` when there are BATCH.
    """

    __slots__ = ("_at", "_half", "_map", "_offset_s", "_words", "note", "noted")

    def __init__(self, shared: mmap.mmap, at: int) -> None:
        """shared: memory, of at least EVENTS_BYTES from `at`, a multiple of 8, on."""
        self._map, self._at = shared, at
        self._words = memoryview(shared)[at : at + 64].cast("Q")
        self._half = 0
        self._offset_s = time.time() - time.perf_counter()
        self.noted: list[Noted] = []
        self.note = self.noted.append

    def store(self) -> None:
        """Put what was noted where the node sees it."""
        self._words[_TOTAL] += len(self.noted)
        data = _encode((self._offset_s, self.noted))
        self.noted.clear()
        size = _SIZE.size + len(data)
        if size > HALF_BYTES:  # names of hundreds of thousands of letters
            return
        used = self._words[_USED + self._half]
        if used + size > HALF_BYTES:
            self._half = 1 - self._half
            self._words[_USED + self._half] = used = 0
            self._words[_CHANGES] += 1
        start = self._at + 64 + self._half * HALF_BYTES + used
        self._map[start : start + size] = _SIZE.pack(len(data)) + data
        self._words[_USED + self._half] = used + size

    def close(self) -> None:
        """Let the memory go."""
        self._words.release()


def stored(shared: mmap.mmap, at: int) -> bytes:
    """The batches that lie there, oldest first, for `parse`. While a worker writes on, the oldest may come out torn."""
    words = memoryview(shared)[at : at + 64].cast("Q")
    try:
        now = words[_CHANGES] % 2
        parts = []
        for half in (1 - now, now):
            start = at + 64 + half * HALF_BYTES
            parts.append(shared[start : start + min(words[_USED + half], HALF_BYTES)])
        return b"".join(parts)
    finally:
        words.release()


def total(shared: mmap.mmap, at: int) -> int:
    """How many events were stored in all."""
    return int.from_bytes(shared[at + 8 * _TOTAL : at + 8 * _TOTAL + 8], sys.byteorder)


def parse(data: bytes) -> list[Event]:
    """The events of `stored`. A worker can write what it likes: from the first thing that is none on, all is left
    out."""
    found: list[Event] = []
    at = 0
    while at + _SIZE.size <= len(data):
        (size,) = _SIZE.unpack_from(data, at)
        at += _SIZE.size
        try:
            offset, batch = _decode(data[at : at + size])
        except (msgspec.DecodeError, ValueError):
            break
        found += [Event._make(noted)._replace(began=noted[1] + offset) for noted in batch]
        at += size
    return found
