"""The names of things: bytes that are equal or not, and how messages show them.

    object   OBJECT_ID_BYTES, of the process that made it: which process, which of its calls, which result of that
    actor    ACTOR_ID_BYTES at random
    job, placement group   ID_BYTES at random

An `ActorId` or `JobId` is a type of its own where a checker shall refuse the one in place of the other, at no cost.
"""

from __future__ import annotations

from typing import NewType

ActorId = NewType("ActorId", bytes)
JobId = NewType("JobId", bytes)

ID_BYTES = 16
OBJECT_ID_BYTES = 16
ACTOR_ID_BYTES = 12
"""Ids of objects and of actors travel in the same lists; their lengths tell them apart."""
SHORT_ID_DIGITS = 4  # as git on small trees: enough to tell ids apart on one screen


def short(any_id: bytes) -> str:
    """The first hex digits, for messages and reprs: `9f2c`."""
    return any_id[:SHORT_ID_DIGITS].hex()[:SHORT_ID_DIGITS]
