"""Which call of an actor may start next: a line for each concurrency group, and those that wait for their arguments.

Rules of this file. Calls of one group start in order of arrival, at most `limit` at a time; groups know nothing of each
other. A call whose arguments are still to be fetched does not start, and holds up nothing but later calls of its own
caller to its own group: an actor that stood still for it would wait for ever if the arguments were lost, and what makes
them again calls that actor. Arguments of the first such call of a caller and group are fetched at once, those of more
within AHEAD_BYTES.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

AHEAD_BYTES = 64 << 20
"""Arguments that are fetched, or on their way, for calls that have not begun. More: a queue of calls with large ones
fills the store; less: the actor waits for the network between two calls."""


class Queued(Protocol):
    """What this core needs of a call."""

    @property
    def seq(self) -> int: ...
    @property
    def group(self) -> str: ...


Q = TypeVar("Q", bound=Queued)


class Line(Generic[Q]):
    """The calls of one concurrency group that may start, in order; `limit` of them may run at the same time."""

    __slots__ = ("limit", "queue", "running")

    def __init__(self, limit: int) -> None:
        self.limit, self.running = limit, 0
        self.queue: deque[tuple[int, Q]] = deque()

    def __repr__(self) -> str:
        return f"{len(self.queue)} queued, {self.running} of {self.limit} running"


class _HeldUp(Generic[Q]):
    """Calls of one caller to one group, in order, from the first on whose arguments are not here."""

    __slots__ = ("asked", "calls", "line", "missing")

    def __init__(self, line: Line[Q]) -> None:
        self.line = line
        self.calls: deque[Q] = deque()
        self.missing: dict[int, int] = {}  # number -> bytes of its arguments that are to be fetched
        self.asked: set[int] = set()  # of those, what is being fetched


class _Ahead:
    """Calls whose arguments are fetched, or on their way, and that have not begun: by (caller, number)."""

    __slots__ = ("_per_line", "of", "size")

    def __init__(self) -> None:
        self.of: dict[tuple[int, int], tuple[tuple[int, int], int]] = {}
        self._per_line: dict[tuple[int, int], int] = {}
        self.size = 0

    def has_room(self, line: tuple[int, int], size: int) -> bool:
        """Whether one more may be fetched: the first of its caller and group, or within AHEAD_BYTES."""
        return line not in self._per_line or self.size + size <= AHEAD_BYTES

    def add(self, caller: int, seq: int, line: tuple[int, int], size: int) -> None:
        self.of[caller, seq] = line, size
        self._per_line[line] = self._per_line.get(line, 0) + 1
        self.size += size

    def discard(self, caller: int, seq: int) -> None:
        """It begins, or never will."""
        line, size = self.of.pop((caller, seq), (None, 0))
        if line is not None:
            self.size -= size
            self._per_line[line] -= 1
            if not self._per_line[line]:
                del self._per_line[line]

    def validate(self, queued: set[tuple[int, int]]) -> None:
        """Only what is queued, and sums are sums."""
        assert self.of.keys() <= queued, "arguments are counted of calls that have begun"
        assert self.size == sum(size for _, size in self.of.values()), "bytes ahead are miscounted"
        assert sum(self._per_line.values()) == len(self.of), "calls ahead are miscounted"


class Lines(Generic[Q]):
    """The calls of one actor that have not begun, and how many run."""

    __slots__ = ("_ahead", "_default", "_running", "held_up", "lines", "running")

    def __init__(self, limit: int, groups: Mapping[str, int] | None = None) -> None:
        """limit: calls that may run at the same time, beside those of `groups`, which have limits of their own."""
        self._default: Line[Q] = Line(limit)
        self.lines: dict[str, Line[Q]] = {"": self._default}
        self.lines.update((name, Line(most)) for name, most in (groups or {}).items())
        self._running: dict[tuple[int, int], Line[Q]] = {}
        self.running = self._running.keys()
        self.held_up: dict[tuple[int, int], _HeldUp[Q]] = {}  # (caller, id of the line)
        self._ahead = _Ahead()

    def __repr__(self) -> str:
        return "; ".join(f"{name} {line}".strip() for name, line in self.lines.items())

    def __len__(self) -> int:
        queued = sum(len(line.queue) for line in self.lines.values())
        return queued + sum(len(held.calls) for held in self.held_up.values())

    @property
    def limit(self) -> int:
        """How many calls of no group may run at the same time."""
        return self._default.limit

    @property
    def drained(self) -> bool:
        """Whether nothing is queued and nothing runs."""
        return not self._running and not len(self)

    def put(self, caller: int, call: Q) -> None:
        """Behind the others of its group. One of a group that is not known goes to those of none."""
        line = self._default if not call.group else self.lines.get(call.group, self._default)
        if self.held_up and (held := self.held_up.get((caller, id(line)))) is not None:
            held.calls.append(call)
        else:
            line.queue.append((caller, call))

    def wait_for_arguments(self, caller: int, call: Q, size: int) -> None:
        """This one, the last that was put, must not start before `size` bytes were fetched: see `to_fetch` and
        `fetched`."""
        line = self._default if not call.group else self.lines.get(call.group, self._default)
        held = self.held_up.get((caller, id(line)))
        if held is None:
            line.queue.pop()
            held = self.held_up[caller, id(line)] = _HeldUp(line)
            held.calls.append(call)
        held.missing[call.seq] = size

    def to_fetch(self) -> list[tuple[int, Q]]:
        """The calls whose arguments are to be fetched now; of each it is said once."""
        found = []
        for (caller, line), held in self.held_up.items():
            for call in held.calls if len(held.asked) < len(held.missing) else ():
                size = held.missing.get(call.seq)
                if size is None or call.seq in held.asked:
                    continue
                if not self._ahead.has_room((caller, line), size):
                    break
                self._ahead.add(caller, call.seq, (caller, line), size)
                held.asked.add(call.seq)
                found.append((caller, call))
        return found

    def fetched(self, caller: int, seq: int) -> None:
        """The arguments of a call are here, or are known never to come."""
        for (who, line), held in list(self.held_up.items()):
            if who == caller and held.missing.pop(seq, None) is not None:
                held.asked.discard(seq)
                self._let_go(caller, line, held)

    def _let_go(self, caller: int, line: int, held: _HeldUp[Q]) -> None:
        """Those that wait for nothing any more may start."""
        while held.calls and held.calls[0].seq not in held.missing:
            held.line.queue.append((caller, held.calls.popleft()))
        if not held.calls:
            del self.held_up[caller, line]

    def next(self, line: Line[Q] | None = None) -> tuple[int, Q] | None:
        """The next call to start, if one may; it counts as running until `finished`. line: one of `lines`; None: of
        those of no group."""
        if line is None:
            line = self._default
        if not line.queue or line.running >= line.limit:
            return None
        caller, call = entry = line.queue.popleft()
        if self._ahead.of:
            self._ahead.discard(caller, call.seq)
        line.running += 1
        self._running[caller, call.seq] = line
        return entry

    def line_of(self, caller: int, seq: int) -> Line[Q] | None:
        """Where a running call came from."""
        return self._running.get((caller, seq))

    def finished(self, caller: int, seq: int) -> None:
        """A running call ended."""
        line = self._running.pop((caller, seq), None)
        if line is not None:
            line.running -= 1

    def cancel(self, caller: int, seq: int) -> Q | None:
        """Take a queued call out; None if it is not queued (it runs, or has ended)."""
        for line in self.lines.values():
            for entry in line.queue:
                if entry[0] == caller and entry[1].seq == seq:
                    line.queue.remove(entry)
                    self._ahead.discard(caller, seq)
                    return entry[1]
        for (who, which), held in self.held_up.items():
            for call in held.calls if who == caller else ():
                if call.seq == seq:
                    held.calls.remove(call)
                    held.missing.pop(seq, None)
                    held.asked.discard(seq)
                    self._ahead.discard(caller, seq)
                    self._let_go(caller, which, held)
                    return call
        return None

    def __contains__(self, key: tuple[int, int]) -> bool:
        """Whether this call, of (caller, number), waits or runs."""
        caller, seq = key
        return self.line_of(caller, seq) is not None or any(call.seq == seq for call in self.waiting(caller))

    def waiting(self, caller: int) -> list[Q]:
        """What this one has queued."""
        queued = [call for line in self.lines.values() for who, call in line.queue if who == caller]
        return queued + [call for (who, _), held in self.held_up.items() if who == caller for call in held.calls]

    def drop(self, caller: int) -> list[Q]:
        """Take out all that this one has queued."""
        dropped = self.waiting(caller)
        if dropped:
            for line in self.lines.values():
                line.queue = deque(entry for entry in line.queue if entry[0] != caller)
            self.held_up = {key: held for key, held in self.held_up.items() if key[0] != caller}
            for call in dropped:
                self._ahead.discard(caller, call.seq)
        return dropped

    def validate(self) -> None:
        """No call twice, none both queued and running, no more running than allowed, none held up for nothing."""
        queued = [(caller, call.seq) for line in self.lines.values() for caller, call in line.queue]
        for (caller, _), held in self.held_up.items():
            assert held.calls and held.calls[0].seq in held.missing, "calls are held up, and none waits for arguments"
            assert held.asked <= held.missing.keys() <= {call.seq for call in held.calls}, "what is fetched is not held"
            queued += [(caller, call.seq) for call in held.calls]
        assert len(set(queued)) == len(queued), "a call is queued twice"
        assert not self.running & set(queued), "a call is queued and running"
        self._ahead.validate(set(queued))
        for name, line in self.lines.items():
            assert line.running == sum(of is line for of in self._running.values()), f"calls of {name!r} are miscounted"
            assert line.running <= line.limit, f"{line.running} of {name!r} run, {line.limit} may"
