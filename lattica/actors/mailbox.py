"""The calls that have reached an actor: which one may run next.

    caller -> actor   calls, numbered per caller, in order
    actor -> caller   one reply for each

Rules of this file. Calls start in order of arrival, at most `limit` at a time (1: one after the other, as their callers
made them). A call that arrives twice (its caller sent it again after a reconnect) runs once. What a caller has queued
when it ends is dropped; what runs, runs on.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class Numbered(Protocol):
    """What the core needs of a call."""

    @property
    def seq(self) -> int: ...


C = TypeVar("C", bound=Numbered)


class Mailbox(Generic[C]):
    """One actor's queue of (caller, call)."""

    __slots__ = ("_queue", "_seen", "limit", "running")

    def __init__(self, limit: int) -> None:
        """limit: calls that may run at the same time."""
        self.limit = limit
        self.running: set[tuple[int, int]] = set()
        self._queue: deque[tuple[int, C]] = deque()
        self._seen: dict[int, int] = {}  # caller -> highest number that arrived

    def __repr__(self) -> str:
        return f"<Mailbox: {len(self._queue)} queued, {len(self.running)} of {self.limit} running>"

    def __len__(self) -> int:
        return len(self._queue)

    def arrived(self, caller: int, call: C) -> bool:
        """Queue a call; False if it came before."""
        if call.seq <= self._seen.get(caller, 0):
            return False
        self._seen[caller] = call.seq
        self._queue.append((caller, call))
        return True

    def next(self) -> tuple[int, C] | None:
        """The next call to start, if one may; it counts as running until `finished`."""
        if not self._queue or len(self.running) >= self.limit:
            return None
        caller, call = self._queue.popleft()
        self.running.add((caller, call.seq))
        return caller, call

    def finished(self, caller: int, seq: int) -> None:
        """A running call ended."""
        self.running.discard((caller, seq))

    def cancel(self, caller: int, seq: int) -> C | None:
        """Take a queued call out; None if it is not queued (it runs, or has ended)."""
        for entry in self._queue:
            if entry[0] == caller and entry[1].seq == seq:
                self._queue.remove(entry)
                return entry[1]
        return None

    def forget(self, caller: int) -> list[C]:
        """The caller ended: the calls it had queued, dropped."""
        dropped = [call for who, call in self._queue if who == caller]
        if dropped:
            self._queue = deque(entry for entry in self._queue if entry[0] != caller)
        self._seen.pop(caller, None)
        return dropped

    @property
    def drained(self) -> bool:
        """Whether nothing is queued and nothing runs."""
        return not self._queue and not self.running

    def validate(self) -> None:
        """No call twice, none both queued and running, no more running than allowed."""
        queued = [(caller, call.seq) for caller, call in self._queue]
        assert len(set(queued)) == len(queued), "a call is queued twice"
        assert not self.running & set(queued), "a call is queued and running"
        assert len(self.running) <= self.limit, f"{len(self.running)} run, {self.limit} may"
