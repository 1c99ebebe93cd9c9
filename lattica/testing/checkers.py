"""Judges of what happened, apart from the system: they hear events, never see a core.

    calls = Calls()
    attach(world, calls, Streams())       # from now on they hear what participants report, after every step
    world.run(until=60)
    calls.finish()                        # liveness: nothing is owed

A participant reports by returning events among its effects: `Asked`, `Ran`, `Answered`, `Wrote`, `Read` and so on; the
world itself reports `Gone` for a process that crashed, and what was owed to that one is owed to nobody. What must never
happen fails at the step in which it does, so that the trace ends there; `finish` demands what must have happened in the
end. A checker that was only ever satisfied proves little: break the system once and see it fail.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from lattica.testing.world import Gone, World

SHOWN_MAX = 5  # of what is missing, in a failure


class Checker(Protocol):
    """Hears every event of a world; ignores those that it does not know."""

    def saw(self, who: str, event: object) -> None: ...


def attach(world: World, *checkers: Checker) -> None:
    """Let these hear, after each step, what participants have reported since."""
    heard = 0

    def listen() -> None:
        nonlocal heard
        events = world.events
        while heard < len(events):
            _, who, event = events[heard]
            heard += 1
            for checker in checkers:
                checker.saw(who, event)

    world.watch(listen)


# ---- calls ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """The caller wants this. call: unlike every other. lane: calls of one caller, callee and lane start in order."""

    call: Hashable
    callee: str
    lane: Hashable = None


@dataclass(frozen=True, slots=True)
class Ran:
    """The callee began with it. value: what it will answer."""

    call: Hashable
    value: object = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The caller got its answer, or an error instead. failed: the error in words."""

    call: Hashable
    value: object = None
    failed: str = ""


@dataclass(slots=True)
class _Call:
    caller: str
    callee: str
    lane: Hashable
    order: int
    values: list[object] = field(default_factory=list)
    outcome: str = ""


class Calls:
    """Each call is answered once, by what it was answered with where it ran; nothing runs that was not asked, nor more
    often than it may, nor before what its caller had asked earlier in the same lane."""

    def __init__(self, *, runs_max: int | None = 1, ordered: bool = True) -> None:
        """runs_max: 1 for at most once; None for any number. ordered: first runs come in the order of asking."""
        self.runs_max, self.ordered = runs_max, ordered
        self._calls: dict[Hashable, _Call] = {}
        self._open: dict[Hashable, _Call] = {}
        self._order = count(1)
        self._last: dict[tuple[str, str, Hashable], int] = {}

    def __repr__(self) -> str:
        return f"<Calls: {len(self._calls)} asked, {len(self._open)} not answered>"

    def saw(self, who: str, event: object) -> None:
        match event:
            case Asked(call, callee, lane):
                assert call not in self._calls, f"{who} asks call {call!r} again"
                self._calls[call] = self._open[call] = _Call(who, callee, lane, next(self._order))
            case Ran(call, value):
                self._ran(who, call, value)
            case Answered(call, value, failed):
                self._answered(who, call, value, failed)
            case Gone():
                for call in [call for call, asked in self._open.items() if asked.caller == who]:
                    self._open.pop(call).outcome = "its caller is gone"

    def _ran(self, who: str, call: Hashable, value: object) -> None:
        asked = self._calls.get(call)
        assert asked is not None, f"{who} runs call {call!r}, which nobody asked"
        assert asked.callee == who, f"{who} runs call {call!r}, which was for {asked.callee}"
        asked.values.append(value)
        times = len(asked.values)
        assert self.runs_max is None or times <= self.runs_max, f"call {call!r} of {asked.caller} ran {times} times"
        if self.ordered and times == 1:
            lane = asked.caller, who, asked.lane
            last = self._last.get(lane, 0)
            assert asked.order > last, f"call {call!r} of {asked.caller} runs after one that was asked later"
            self._last[lane] = asked.order

    def _answered(self, who: str, call: Hashable, value: object, failed: str) -> None:
        asked = self._calls.get(call)
        assert asked is not None, f"{who} has an answer to call {call!r}, which nobody asked"
        assert asked.caller == who, f"{who} has the answer to call {call!r} of {asked.caller}"
        now = f"failed: {failed}" if failed else "answered"
        assert not asked.outcome, f"call {call!r} of {who} is {now}, and was before: {asked.outcome}"
        assert failed or asked.values, f"call {call!r} of {who} is answered, and never ran"
        assert failed or value in asked.values, f"call {call!r} of {who} gets {value!r}, it ran with {asked.values!r}"
        asked.outcome = now
        del self._open[call]

    def unanswered(self) -> list[Hashable]:
        """The calls that somebody still waits for."""
        return list(self._open)

    def outcomes(self) -> dict[str, int]:
        """How many calls ended how: `answered`, `failed: ...`, `its caller is gone`, or empty while they are open."""
        tally: dict[str, int] = {}
        for asked in self._calls.values():
            tally[asked.outcome] = tally.get(asked.outcome, 0) + 1
        return tally

    def finish(self) -> None:
        """Every call is answered, or has failed with an error, or its caller is gone."""
        assert not self._open, f"{len(self._open)} calls were never answered: {list(self._open.items())[:SHOWN_MAX]}"


# ---- streams --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wrote:
    """An item was put into the stream, at its writing end."""

    stream: Hashable
    item: object


@dataclass(frozen=True, slots=True)
class WroteEnd:
    """Nothing more will be written. failed: it was broken off, and the reader may miss what it has not read."""

    stream: Hashable
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Read:
    """An item came out of the stream."""

    stream: Hashable
    item: object


@dataclass(frozen=True, slots=True)
class ReadEnd:
    """The reader saw the end of the stream. failed: by an error, and the stream may be longer."""

    stream: Hashable
    failed: str = ""


class _Stream:
    __slots__ = ("read", "read_end", "unread", "write_end", "written")

    def __init__(self) -> None:
        self.unread: deque[object] = deque()
        self.written = self.read = 0
        self.write_end: str | None = None
        self.read_end: str | None = None


class Streams:
    """What is read from a stream is a prefix of what was written to it; if it ends without an error it is the whole."""

    def __init__(self) -> None:
        self._streams: dict[Hashable, _Stream] = {}

    def __repr__(self) -> str:
        items = sum(stream.read for stream in self._streams.values())
        return f"<Streams: {len(self._streams)}, {items} items read, {len(self.unfinished())} without an end>"

    def saw(self, who: str, event: object) -> None:
        match event:
            case Wrote(name, item):
                stream = self._stream(name)
                assert stream.write_end is None, f"{who} writes to stream {name!r} after its end"
                stream.unread.append(item)
                stream.written += 1
            case WroteEnd(name, failed):
                stream = self._stream(name)
                assert stream.write_end is None, f"{who} ends stream {name!r} twice"
                stream.write_end = failed
            case Read(name, item):
                self._read(who, name, item)
            case ReadEnd(name, failed):
                stream = self._stream(name)
                assert stream.read_end is None, f"{who} sees the end of stream {name!r} twice"
                stream.read_end = failed
                if not failed:
                    assert stream.write_end is not None, f"{who} sees the end of stream {name!r}, which goes on"
                    left = len(stream.unread)
                    assert not left, f"{who} sees the end of stream {name!r}, and {left} items never came"

    def _read(self, who: str, name: Hashable, item: object) -> None:
        stream = self._stream(name)
        assert stream.read_end is None, f"{who} reads {item!r} from stream {name!r} after its end"
        assert stream.unread, (
            f"{who} reads {item!r} from stream {name!r}, of which all {stream.written} items were read"
        )
        due = stream.unread.popleft()
        assert item == due, f"{who} reads {item!r} as item {stream.read} of stream {name!r}, where {due!r} was written"
        stream.read += 1

    def _stream(self, name: Hashable) -> _Stream:
        return self._streams.setdefault(name, _Stream())

    def unfinished(self) -> list[Hashable]:
        """The streams whose readers still wait."""
        return [name for name, stream in self._streams.items() if stream.read_end is None]

    def finish(self) -> None:
        """Every reader has seen the end of its stream, or an error."""
        left = self.unfinished()
        assert not left, f"{len(left)} streams never ended: {left[:SHOWN_MAX]}"


# ---- sessions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionBegan:
    """From now on we share this session with that participant."""

    peer: str
    session: Hashable


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """It is over, for good."""

    peer: str
    session: Hashable


class Agreement:
    """A participant has one session at a time with another, and takes none up again that it has ended. In the end both
    mean the same one."""

    def __init__(self) -> None:
        self._current: dict[tuple[str, str], Hashable] = {}
        self._ended: set[tuple[str, str, Hashable]] = set()

    def __repr__(self) -> str:
        return f"<Agreement: {len(self._current)} ends of sessions, {len(self._ended)} were ended>"

    def saw(self, who: str, event: object) -> None:
        match event:
            case SessionBegan(peer, session):
                current = self._current.get((who, peer))
                assert current is None, f"{who} begins session {session!r} with {peer} while it has {current!r}"
                assert (who, peer, session) not in self._ended, f"{who} takes up ended session {session!r} with {peer}"
                self._current[who, peer] = session
            case SessionEnded(peer, session):
                current = self._current.pop((who, peer), None)
                assert current == session, f"{who} ends session {session!r} with {peer}, and had {current!r}"
                self._ended.add((who, peer, session))
            case Gone():
                for ends in [ends for ends in self._current if ends[0] == who]:
                    self._ended.add((*ends, self._current.pop(ends)))

    def disagreements(self) -> list[str]:
        """Where one means another session than the other, or has one alone."""
        found = []
        for (one, other), session in self._current.items():
            theirs = self._current.get((other, one))
            if theirs != session:
                found.append(f"{one} has session {session!r} with {other}, who has {theirs!r}")
        return found

    def finish(self) -> None:
        """Both ends of every session mean the same one."""
        found = self.disagreements()
        assert not found, "; ".join(found[:SHOWN_MAX])


# ---- bounds ---------------------------------------------------------------------------------------------------------


class Bounded:
    """A number that stays within its limit: `world.watch(Bounded("bytes that ann keeps", measure, 1 << 20))`.

    peak: the largest so far, to set the limit by, and to see that the bound was ever met.
    """

    def __init__(self, what: str, measure: Callable[[], Any], limit: float) -> None:
        self.what, self.measure, self.limit = what, measure, limit
        self.peak: float = 0.0

    def __repr__(self) -> str:
        return f"<Bounded: {self.what}, at most {self.peak:,g} of {self.limit:,g}>"

    def __call__(self) -> None:
        value = self.measure()
        if value > self.peak:
            self.peak = value
            assert value <= self.limit, f"{self.what}: {value:,g}, and {self.limit:,g} is the limit"
