"""A first-in, first-out queue that tasks and actors share: an actor holds it, handles travel.

    queue = Queue(maxsize=100)
    producer.remote(queue)                      # in there: queue.put(item)
    item = queue.get(timeout=5)                 # in an async actor: await queue.get_async()
    queue.shutdown()

Names, arguments and errors are Ray's. `Empty` and `Full` are also those of the standard library's `queue`.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterable, Mapping
from typing import Any

import lattica


class Empty(queue.Empty):
    """Nothing was there in time."""


class Full(queue.Full):
    """No room was there in time."""


class Queue:
    """A queue that any process of the program may put to and get from.

    maxsize: how many items it holds; 0 for any number. actor_options: of the actor that holds it, such as
    {"num_cpus": 1} or {"name": "inbox", "lifetime": "detached"}.
    """

    def __init__(self, maxsize: int = 0, actor_options: Mapping[str, Any] | None = None) -> None:
        self.maxsize = maxsize
        self.actor: Any = lattica.remote(_QueueActor).options(**actor_options or {}).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many items it has."""
        return int(lattica.get(self.actor.qsize.remote()))

    def qsize(self) -> int:
        """How many items it has."""
        return self.size()

    def empty(self) -> bool:
        """Whether it has none."""
        return bool(lattica.get(self.actor.empty.remote()))

    def full(self) -> bool:
        """Whether there is no room."""
        return bool(lattica.get(self.actor.full.remote()))

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item; wait for room if `block`, for `timeout` seconds at most.

        Raises Full, ValueError for a negative timeout.
        """
        _get(self._putting(item, block, timeout))

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """`put` for coroutines."""
        await _await(self._putting(item, block, timeout))

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The oldest item; wait for one if `block`, for `timeout` seconds at most.

        Raises Empty, ValueError for a negative timeout.
        """
        return _get(self._getting(block, timeout))

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """`get` for coroutines."""
        return await _await(self._getting(block, timeout))

    def put_nowait(self, item: Any) -> None:
        """`put(item, block=False)`."""
        self.put(item, block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Add all of these in their order, or none. Raises Full, TypeError if they are no iterable."""
        if not isinstance(items, Iterable):
            raise TypeError("Argument 'items' must be an Iterable")
        _get(self.actor.put_nowait_batch.remote(list(items)))

    def get_nowait(self) -> Any:
        """`get(block=False)`."""
        return self.get(block=False)

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """The oldest `num_items`, oldest first. Raises Empty if there are fewer, TypeError, ValueError."""
        if not isinstance(num_items, int):
            raise TypeError("Argument 'num_items' must be an int")
        if num_items < 0:
            raise ValueError("'num_items' must be nonnegative")
        items: list[Any] = _get(self.actor.get_nowait_batch.remote(num_items))
        return items

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the actor that holds it, and what is still in it.

        force: at once. Else the calls that came before are answered, for `grace_period_s` seconds at most.
        """
        actor, self.actor = self.actor, None
        if actor is None:
            return
        if not force and lattica.wait([actor.__lattica_terminate__.remote()], timeout=grace_period_s)[0]:
            return
        lattica.kill(actor, no_restart=True)

    def _putting(self, item: Any, block: bool, timeout: float | None) -> lattica.ObjectRef:
        ref: lattica.ObjectRef
        if block:
            ref = self.actor.put.remote(item, _checked(timeout))
        else:
            ref = self.actor.put_nowait.remote(item)
        return ref

    def _getting(self, block: bool, timeout: float | None) -> lattica.ObjectRef:
        ref: lattica.ObjectRef = self.actor.get.remote(_checked(timeout)) if block else self.actor.get_nowait.remote()
        return ref


def _checked(timeout: float | None) -> float | None:
    if timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")
    return timeout


def _get(ref: lattica.ObjectRef) -> Any:
    try:
        return lattica.get(ref)
    except Full as error:
        raise Full(*error.args) from None  # what was raised over there has its traceback, which says nothing here
    except Empty as error:
        raise Empty(*error.args) from None


async def _await(ref: lattica.ObjectRef) -> Any:
    try:
        return await ref
    except Full as error:
        raise Full(*error.args) from None
    except Empty as error:
        raise Empty(*error.args) from None
    except asyncio.CancelledError:  # nobody waits any more: no item may be taken for him
        lattica.cancel(ref)
        raise


class _QueueActor:
    """Holds the items. Its methods run on one event loop, so they never interleave but at an await."""

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    async def qsize(self) -> int:
        return self.queue.qsize()

    async def empty(self) -> bool:
        return self.queue.empty()

    async def full(self) -> bool:
        return self.queue.full()

    async def put(self, item: Any, timeout: float | None = None) -> None:
        try:
            await asyncio.wait_for(self.queue.put(item), timeout)
        except TimeoutError:
            raise Full(f"no room within {timeout:g} s") from None

    async def get(self, timeout: float | None = None) -> Any:
        try:
            return await asyncio.wait_for(self.queue.get(), timeout)
        except TimeoutError:
            raise Empty(f"nothing within {timeout:g} s") from None

    async def put_nowait(self, item: Any) -> None:
        if self.queue.full():
            raise Full(f"it holds {self.maxsize} items")
        self.queue.put_nowait(item)

    async def put_nowait_batch(self, items: list[Any]) -> None:
        if 0 < self.maxsize < len(items) + self.queue.qsize():
            raise Full(f"{len(items)} items do not fit beside {self.queue.qsize()}: it holds {self.maxsize}")
        for item in items:
            self.queue.put_nowait(item)

    async def get_nowait(self) -> Any:
        if self.queue.empty():
            raise Empty("it has no item")
        return self.queue.get_nowait()

    async def get_nowait_batch(self, num_items: int) -> list[Any]:
        if num_items > self.queue.qsize():
            raise Empty(f"it has {self.queue.qsize()} items, not {num_items}")
        return [self.queue.get_nowait() for _ in range(num_items)]


__all__ = ["Empty", "Full", "Queue"]
