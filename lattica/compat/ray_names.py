"""Names of Ray's that only programs written for it need: modes, ids as objects, a configuration of logs.

`lattica.compat.ray` has them beside those of `lattica`. Ids are strings or bytes here; these are bytes with
Ray's methods.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Self

from lattica.actors.refs import ObjectRef

RELEASE = "2.60.0"
"""Whose names these are."""
SCRIPT_MODE, WORKER_MODE = 0, 1


class UniqueID(bytes):
    """16 bytes, or as many as `size` says."""

    SIZE = 16

    @classmethod
    def from_binary(cls, id_bytes: bytes) -> Self:
        """Raises ValueError if they are not as many as there must be."""
        if len(id_bytes) != cls.SIZE:
            raise ValueError(f"{cls.__name__} has {cls.SIZE} bytes, not {len(id_bytes)}")
        return cls(id_bytes)

    @classmethod
    def from_hex(cls, hex_id: str) -> Self:
        """Raises ValueError."""
        return cls.from_binary(bytes.fromhex(hex_id))

    @classmethod
    def from_random(cls) -> Self:
        """Any one."""
        return cls(os.urandom(cls.SIZE))

    @classmethod
    def nil(cls) -> Self:
        """The one that names nothing."""
        return cls(b"\xff" * cls.SIZE)

    @classmethod
    def size(cls) -> int:
        """How many bytes it has."""
        return cls.SIZE

    def binary(self) -> bytes:
        """The plain bytes."""
        return bytes(self)

    def hex(self) -> str:  # type: ignore[override]  # a method without the separators that bytes take
        """In hex."""
        return bytes(self).hex()

    def is_nil(self) -> bool:
        """Whether it names nothing."""
        return self == self.nil()

    def redis_shard_hash(self) -> int:
        """A hash that is the same in every process."""
        return int.from_bytes(self[:8], "little")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"


class ActorID(UniqueID):
    """Of an actor: `handle._actor_id` is the bytes."""


class ActorClassID(UniqueID):
    """Nothing here has one."""


class FunctionID(UniqueID):
    """Of a remote function's code."""


class NodeID(UniqueID):
    """Of a node that is in no mesh; others have a peer id, of 32 bytes."""


class PlacementGroupID(UniqueID):
    """Of a placement group."""


class TaskID(UniqueID):
    """Of a task, which is that of its first result."""


class WorkerID(UniqueID):
    """Of a process."""


class JobID(UniqueID):
    """Of a driver's session."""

    SIZE = 4

    @classmethod
    def from_int(cls, value: int) -> Self:
        """As `RuntimeContext.get_job_id` counts them."""
        return cls(value.to_bytes(cls.SIZE, "big"))

    def int(self) -> int:
        """The number."""
        return int.from_bytes(self, "big")


ObjectID = ObjectRef
"""Ray's old name of it."""


@dataclass
class LoggingConfig:
    """How Ray would write its logs. `init` accepts it, and says once that it means nothing here."""

    encoding: str = "TEXT"
    log_level: str = "INFO"
    additional_log_standard_attrs: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Its fields."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> LoggingConfig:
        """One with these fields."""
        return cls(**d)


__all__ = [
    "SCRIPT_MODE", "WORKER_MODE", "ActorClassID", "ActorID", "FunctionID", "JobID", "LoggingConfig", "NodeID",
    "ObjectID", "PlacementGroupID", "TaskID", "UniqueID", "WorkerID",
]  # fmt: skip
