"""Refs and holds: what a process has of an object.

An `ObjectRef` is the process's only record of an object: its value, or that it has none yet. A `Hold` is the process's
claim on bytes in the arena or on an object that other processes share; refs own holds, and so do the arrays that are
views of the bytes. When the last owner of a hold is gone its finalizer, which may run inside the garbage collector in
any thread, only appends to a deque (`Releases`); the runtime does the rest when it is safe.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from lattica.codec.messages import Failed
from lattica.errors import ConfigError

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    from lattica.actors.runtime import Runtime

STREAM_ID_BYTES = 17
"""Of a generator among releases: a letter and the id of its task."""

SHARED, BORROWED, ASKED, PROMISED = 1, 2, 4, 8


class Releases(deque[tuple[bytes, int, int, bool]]):
    """Holds that ended: (id, offset or -1, count at the node, whether others may know it). Filled by finalizers."""

    poke: Callable[[], None] | None = None


class Hold:
    """One claim on an object; `count` is what the node has been told of it, through us or through who gave it to us.

    data: its bytes are read as data or not at all. at: the machine that it lay on when it came, by our node's number
    for that; 0: this one, or not known.
    """

    __slots__ = ("__weakref__", "_releases", "at", "count", "data", "id", "offset", "sealed", "size")

    def __init__(
        self, releases: Releases, id: bytes, offset: int = -1, size: int = 0, count: int = 0, sealed: bool = True,
        data: bool = False,
    ):  # fmt: skip
        self._releases = releases
        self.id, self.offset, self.size, self.count, self.sealed = id, offset, size, count, sealed
        self.data, self.at = data, 0

    def __del__(self) -> None:
        releases = self._releases
        releases.append((self.id, self.offset, self.count, self.sealed))
        if releases.poke is not None:
            releases.poke()


class ActorHold:
    """This process's claim on an actor: one, shared by its handles and calls. What the node counts is in the peer.

    It has no finalizer, but is watched by a weak reference: an object whose finalizer runs can still be reached through
    weak references, and another thread would take the claim up again just when it is given up.
    """

    __slots__ = ("__weakref__", "_releases", "id")

    def __init__(self, releases: Releases, id: bytes) -> None:
        self._releases, self.id = releases, id

    def __repr__(self) -> str:
        return f"<handle of actor {self.id.hex()[:8]}>"

    def watch(self) -> weakref.ref[ActorHold]:
        """A reference that leaves word in `Releases` when the last handle is gone, if it is itself kept until then."""
        return weakref.ref(self, functools.partial(_actor_over, self._releases, self.id))


def _actor_over(releases: Releases, id: bytes, _: object) -> None:
    releases.append((id, -1, 0, True))
    if releases.poke is not None:
        releases.poke()


class InPlace:
    """A value whose bytes lie in the arena, held; or (`hold.offset` is negative) in that of another machine, from where
    they come when they are read."""

    __slots__ = ("failed", "hold")

    def __init__(self, hold: Hold, failed: bool = False) -> None:
        self.hold, self.failed = hold, failed


class Nested:
    """A small serialized value, and what keeps the refs and handles inside it alive."""

    __slots__ = ("data", "refs")

    def __init__(self, data: bytes, refs: list[Any]) -> None:
        self.data, self.refs = data, refs


class ObjectRef:
    """A value that exists or will exist; `lattica.get` waits for it. Equal by identity: one per object and process."""

    __slots__ = ("__weakref__", "_callbacks", "_flags", "_hold", "_id", "_runtime", "_serial", "_task", "_value")

    def __init__(self, runtime: Runtime, serial: int = 0, id: bytes | None = None) -> None:
        self._runtime = runtime
        self._serial = serial
        self._id = id
        self._value: bytes | InPlace | Nested | Failed | None = None
        self._callbacks: list[Callable[[ObjectRef], None]] | None = None
        self._flags = 0
        self._hold: Hold | None = None  # our count at the node once the object is shared
        self._task: Any = None  # what will make it: for cancel

    @property
    def id(self) -> bytes:
        """16 bytes: 8 of the process that made it, 6 counting its tasks up, 2 for which result. Made when first asked
        for."""
        if self._id is None:
            self._id = self._runtime.token + self._serial.to_bytes(8, "big")
        return self._id

    def binary(self) -> bytes:
        """The id's bytes."""
        return self.id

    def hex(self) -> str:
        """The id in hexadecimal digits."""
        return self.id.hex()

    @property
    def cid(self) -> str:
        """The content id (CIDv1) of the value's serialized bytes; waits for the value. Equal bytes, equal cid."""
        return self._runtime.cid(self)

    @property
    def is_data(self) -> bool:
        """Whether whoever reads it reads data or nothing."""
        value, task = self._value, self._task
        hold = value.hold if type(value) is InPlace else self._hold
        return (hold is not None and hold.data) or (task is not None and task.data)

    def task_id(self) -> str:
        """Id of the task that makes it."""
        return self.id.hex()

    def is_nil(self) -> bool:
        """Refs are never nil here."""
        return False

    def __repr__(self) -> str:
        return f"ObjectRef({self.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        from lattica.actors import values

        return values.reduce_ref(self)

    def __copy__(self) -> ObjectRef:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ObjectRef:
        """The same object's ref: there is one in a process."""
        return self

    def check_session(self, runtime: Runtime) -> None:
        """Raises ConfigError if this ref is not of `runtime`: its bytes lie in an arena that nobody else sees."""
        if self._runtime is not runtime:
            raise ConfigError(
                f"object {self.hex()[:8]} belongs to a session that has ended",
                do_next="make it again; a value that it had can still be read with lattica.get, and put anew",
            )

    def future(self) -> Future[Any]:
        """A concurrent.futures.Future of the value."""
        return self._runtime.future(self)

    def as_future(self, _internal: bool = False) -> asyncio.Future[Any]:
        """A future of the running event loop. `await ref` and `asyncio.wrap_future(ref.future())` do the same."""
        import asyncio  # 50 ms, which most processes save

        return asyncio.wrap_future(self.future())

    def __await__(self) -> Generator[Any, None, Any]:
        return self._runtime.awaitable(self).__await__()


RETURNS_MAX = 1 << 16
"""Results of one task: an id has two bytes for which one."""
