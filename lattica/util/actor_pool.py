"""A fixed set of actors that share work: each has one call at a time, the next goes to whichever is free.

    pool = ActorPool([Scorer.remote() for _ in range(4)])
    for score in pool.map(lambda scorer, text: scorer.score.remote(text), texts):
        print(score)

Names, arguments and errors are Ray's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lattica
from lattica.errors import ActorDiedError

Call = Callable[[Any, Any], Any]
"""(actor, value) -> the ref of a call of that actor, or the list of refs if the method has several results."""


class ActorPool:
    """Actors that take turns.

        pool = ActorPool([Doubler.remote(), Doubler.remote()])
        list(pool.map(lambda actor, value: actor.double.remote(value), [1, 2, 3]))      # [2, 4, 6]

    An actor that died stays out of the pool; the error says so once, from `get_next`.
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle = list(actors)
        self._running: dict[Any, tuple[int, Any]] = {}  # key of the call -> (its number, actor), oldest first
        self._by_number: dict[int, Any] = {}  # what the function answered: a ref or a list of them
        self._waiting: deque[tuple[Call, Any]] = deque()
        self._submitted = 0
        self._returned = 0  # the number that `get_next` answers with next

    def map(self, fn: Call, values: Iterable[Any]) -> Iterator[Any]:
        """Results of `fn(actor, value)` for every value, in the order of the values, as they come.

        What was submitted before and not read is dropped.
        """
        self._drop()
        for value in values:
            self.submit(fn, value)
        return self._results(self.get_next)

    def map_unordered(self, fn: Call, values: Iterable[Any]) -> Iterator[Any]:
        """The same in the order in which they finish."""
        self._drop()
        for value in values:
            self.submit(fn, value)
        return self._results(self.get_next_unordered)

    def submit(self, fn: Call, value: Any) -> None:
        """Call `fn(actor, value)` with an idle actor, or with the next that is; `get_next` has the result."""
        if not self._idle:
            self._waiting.append((fn, value))
            return
        actor = self._idle.pop()
        try:
            answer = fn(actor, value)
            key = _key(answer)
            hash(key)
        except BaseException:  # no call was made: the actor is still free
            self._idle.append(actor)
            raise
        self._running[key] = self._submitted, actor
        self._by_number[self._submitted] = answer
        self._submitted += 1

    def has_next(self) -> bool:
        """Whether a result is still to come."""
        return bool(self._running)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of `submit`.

        timeout: seconds. ignore_if_timedout: after a timeout go on to the one behind it.

        Raises TimeoutError, StopIteration if nothing is to come, ValueError after `get_next_unordered` has taken a
        later one; and what the call raised.
        """
        if not self.has_next():
            raise StopIteration("No more results to get")
        if self._returned not in self._by_number:
            raise ValueError("get_next() is not possible after get_next_unordered() has taken a later result")
        answer = self._by_number[self._returned]
        ready = timeout is None or _is_ready(answer, timeout)
        if not ready and not ignore_if_timedout:
            raise TimeoutError(f"no result within {timeout:g} s")
        return self._take(_key(answer), ready, timeout)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Whichever result is there first.

        ignore_if_timedout: after a timeout the oldest call is given up.

        Raises TimeoutError, StopIteration if nothing is to come; and what the call raised.
        """
        if not self.has_next():
            raise StopIteration("No more results to get")
        by_ref = {key[0] if isinstance(key, tuple) else key: key for key in self._running}  # one reply has all results
        ready, _ = lattica.wait(list(by_ref), num_returns=1, timeout=timeout)
        if not ready and not ignore_if_timedout:
            raise TimeoutError(f"no result within {timeout:g} s")
        return self._take(by_ref[ready[0]] if ready else next(iter(self._running)), bool(ready), timeout)

    def has_free(self) -> bool:
        """Whether an actor is idle and nothing waits for one."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> Any:
        """Take an idle actor out of the pool; None if all are busy."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Add an actor. Raises ValueError if the pool has it."""
        if actor in self._idle or any(actor == busy for _, busy in self._running.values()):
            raise ValueError("Actor already belongs to current ActorPool")
        self._free(actor)

    # -- inside

    def _take(self, key: Any, ready: bool, timeout: float | None) -> Any:
        number, actor = self._running.pop(key)
        answer = self._by_number.pop(number)
        self._returned = max(self._returned, number + 1)
        if not ready:
            self._free(actor)
            raise TimeoutError(f"no result within {timeout:g} s; the call is no longer waited for")
        try:
            value = lattica.get(answer)
        except ActorDiedError:
            self._next_waiting()
            raise
        except BaseException:
            self._free(actor)
            raise
        self._free(actor)
        return value

    def _free(self, actor: Any) -> None:
        self._idle.append(actor)
        self._next_waiting()

    def _next_waiting(self) -> None:
        if self._waiting and self._idle:
            self.submit(*self._waiting.popleft())

    def _drop(self) -> None:
        """Forget what was submitted; its actors are free when they have answered what they run."""
        self._waiting.clear()
        for _, actor in self._running.values():
            self._idle.append(actor)
        self._running.clear()
        self._by_number.clear()
        self._returned = self._submitted

    def _results(self, take: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield take()


def _key(answer: Any) -> Any:
    return tuple(answer) if isinstance(answer, list) else answer


def _is_ready(answer: Any, timeout: float) -> bool:
    refs = answer if isinstance(answer, list) else [answer]
    return not lattica.wait(refs, num_returns=len(refs), timeout=timeout)[1]


__all__ = ["ActorPool"]
