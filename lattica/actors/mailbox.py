"""The calls between a caller and an actor: which one may run next, and what is said again after a reconnect.

    caller -> actor   calls, numbered per caller, in order; each says up to where replies have arrived (`acked`)
    actor -> caller   one reply for each

Rules of this file. Which call starts is said by `lines`. What a caller has queued when it ends is dropped; what runs,
runs on.

A connection that ends is not the end of its caller. Over the next one the caller sends again, in order and under the
same numbers, what it has no reply to. A call that arrives twice runs once. If its reply was made before the new
connection, that reply is sent again: it is kept until it is acknowledged, or until too many are. If not, it is owed,
and will come over the new connection by itself. So whatever a cut has swallowed comes once, and nothing comes twice.

A caller on a machine that was believed dead is gone, and back as another caller under new numbers, if the machine was
only silent. What it then sends again is known by what shall have the result (`Past`): it does not run twice either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from lattica.actors.lines import Line, Lines, Queued

KEPT_BYTES_MAX = 16 << 20
"""Of one caller's replies that it has not acknowledged. A cut swallows what lies in the socket and in our outbox: more
is kept for a caller that reads slowly, less would cost it calls; an idle caller's stay until it calls again."""
PAST_MAX = 4096
"""Calls that have ended, of callers on other machines that are gone: 100 B each, besides KEPT_BYTES_MAX of replies."""
ACKED_EACH = 64
"""Replies after which a caller looks up to where they have come, and as many more as calls are under way."""
BREAKS_MAX = 5
"""Connections to a living actor that may break one after the other, before what is owed ends in an error: a reply that
cannot be read would break each of them."""
PAUSE_FIRST_S = 0.05
PAUSE_LAST_S = 2.0
"""Until the next connection is asked for: the node says of a death within milliseconds, and the pause doubles with each
break in a row."""
STEADY_S = 10.0
"""A connection that lived so long, or brought a reply, is no part of such a row."""


class Numbered(Queued, Protocol):
    """What the core needs of a call."""

    @property
    def acked(self) -> int: ...

    @property
    def object(self) -> bytes: ...


C = TypeVar("C", bound=Numbered)
R = TypeVar("R")
T = TypeVar("T")


class Past(Generic[R]):
    """Calls that have begun here for callers that are gone, by what shall have the result, with the replies of those
    that have ended. The oldest are forgotten beyond PAST_MAX and KEPT_BYTES_MAX, and may run again."""

    __slots__ = ("_bytes", "_ended", "_running", "_size_of", "asked", "calls")

    def __init__(self, size_of: Callable[[R], int]) -> None:
        self.calls: dict[bytes, None] = {}  # all of them, oldest first
        self._ended: dict[bytes, R | None] = {}
        self._running: dict[tuple[int, int], bytes] = {}  # (caller, number) -> which
        self.asked: dict[bytes, tuple[int, int]] = {}  # what runs, and came again: as whom, under which number
        self._size_of, self._bytes = size_of, 0

    def __repr__(self) -> str:
        return f"<Past: {len(self.calls)} calls of callers that are gone, {len(self._running)} run>"

    def began(self, caller: int, seq: int, call: bytes) -> None:
        """It still runs."""
        self.calls[call] = None
        self._running[caller, seq] = call

    def ended(self, call: bytes, reply: R | None) -> None:
        """None: its reply cannot be said again."""
        self.calls[call] = None
        self._ended[call] = reply
        self._bytes += 0 if reply is None else self._size_of(reply)
        while len(self._ended) > PAST_MAX or self._bytes > KEPT_BYTES_MAX:
            oldest = next(iter(self._ended))
            dropped = self._ended.pop(oldest)
            self._bytes -= 0 if dropped is None else self._size_of(dropped)
            del self.calls[oldest]

    def finished(self, caller: int, seq: int, reply: R | None) -> tuple[int, int] | None:
        """A call of somebody who is gone has ended: as whom and under which number it is waited for, if it is."""
        call = self._running.pop((caller, seq), None)
        if call is None:
            return None
        self.ended(call, reply)
        return self.asked.pop(call, None)

    def again(self, call: bytes, caller: int, seq: int) -> tuple[bool, R | None]:
        """It came again: (whether it has ended, its reply if that is kept)."""
        if call in self._ended:
            return True, self._ended[call]
        self.asked[call] = caller, seq
        return False, None


class _Caller(Generic[R]):
    """What the actor knows of one caller. Two queues of plain things: a tuple per reply would feed the garbage
    collector, which then looks at all of them."""

    __slots__ = ("acked", "again", "begun", "begun_seqs", "kept", "kept_bytes", "kept_seqs", "owed", "seen")

    def __init__(self) -> None:
        self.seen = 0  # highest number that arrived
        self.acked = 0
        self.begun_seqs: deque[int] = deque()  # of a far caller's calls that are not acknowledged, oldest first
        self.begun: deque[bytes] = deque()  # what shall have their results
        self.kept_seqs: deque[int] = deque()  # of replies, oldest first
        self.kept: deque[R] = deque()
        self.kept_bytes = 0
        self.owed: set[int] = set()  # not answered when its connection was last replaced
        self.again: dict[int, R] | None = None  # what was kept then, while calls come again


class Mailbox(Lines[C], Generic[C, R]):
    """One actor's queues of (caller, call), and the replies that may have to be sent again."""

    __slots__ = ("_callers", "_size_of", "far", "past")

    def __init__(self, limit: int, size_of: Callable[[R], int], groups: Mapping[str, int] | None = None) -> None:
        """limit, groups: as of `Lines`. size_of: bytes of memory that a kept reply takes."""
        super().__init__(limit, groups)
        self._size_of = size_of
        self._callers: dict[int, _Caller[R]] = {}
        self.far: set[int] = set()  # callers on other machines, which may be believed dead and come back
        self.past: Past[R] = Past(size_of)

    def __repr__(self) -> str:
        return f"<Mailbox: {super().__repr__()}>"

    def arrived(self, caller: int, call: C) -> bool:
        """Queue a call; False if it came before: see `repeat`."""
        known = self._callers.get(caller)
        if known is None:
            known = self._callers[caller] = _Caller()
        if call.acked > known.acked:
            self._acknowledged(known, call.acked)
        if call.seq <= known.seen:
            return False
        known.seen, known.again = call.seq, None
        if call.group or self.held_up:
            self.put(caller, call)
        else:
            self._default.queue.append((caller, call))
        return True

    def came_back(self, caller: int, call: C) -> bool:
        """Whether it is one of `past`, and has not come under this number: then it is not queued, but answered."""
        known = self._callers.get(caller)
        if call.object not in self.past.calls or (known is not None and call.seq <= known.seen):
            return False
        if known is None:
            known = self._callers[caller] = _Caller()
        known.seen, known.again = call.seq, None
        return True

    def next(self, line: Line[C] | None = None) -> tuple[int, C] | None:
        """As of `Lines`, whose lines are here again: every call comes this way."""
        if line is None:
            line = self._default
        if not line.queue or line.running >= line.limit:
            return None
        caller, call = entry = line.queue.popleft()
        seq = call.seq
        if self._ahead.of:
            self._ahead.discard(caller, seq)
        line.running += 1
        self._running[caller, seq] = line
        if self.far and caller in self.far:
            known = self._callers[caller]
            known.begun_seqs.append(seq)
            known.begun.append(call.object)
        return entry

    def forget(self, caller: int) -> list[C]:
        """The caller ended, or its machine is believed dead: the calls it had queued, dropped."""
        dropped = self.drop(caller)
        known = self._callers.pop(caller, None)
        is_far = caller in self.far
        self.far.discard(caller)
        if known is not None and is_far:
            kept = dict(zip(known.kept_seqs, known.kept, strict=True))
            for seq, call in zip(known.begun_seqs, known.begun, strict=True):
                if (caller, seq) in self.running:
                    self.past.began(caller, seq, call)
                else:
                    self.past.ended(call, kept.get(seq))
        return dropped

    # -- replies, and what is said again

    def replied(self, caller: int, seq: int, reply: R) -> Sequence[tuple[int, R]]:
        """A call has ended, if it ran. Keep its reply until it is acknowledged; the oldest, which are not kept any more
        since they are too many."""
        line = self._running.pop((caller, seq), None)  # as `finished`
        if line is not None:
            line.running -= 1
        known = self._callers.get(caller)
        if known is None:
            return ()
        known.kept_seqs.append(seq)
        known.kept.append(reply)
        known.kept_bytes = kept_bytes = known.kept_bytes + self._size_of(reply)
        return () if kept_bytes <= KEPT_BYTES_MAX else self._drop_some(known)

    def _drop_some(self, known: _Caller[R]) -> list[tuple[int, R]]:
        dropped = []
        while known.kept_bytes > KEPT_BYTES_MAX and len(known.kept) > 1:
            dropped.append(self._drop_oldest(known))
        return dropped

    def _drop_oldest(self, known: _Caller[R]) -> tuple[int, R]:
        reply = known.kept.popleft()
        known.kept_bytes -= self._size_of(reply)
        return known.kept_seqs.popleft(), reply

    def _acknowledged(self, known: _Caller[R], acked: int) -> None:
        known.acked = acked
        if acked >= known.seen:  # all of them, as whenever calls are made one by one
            known.kept_seqs.clear()
            known.kept.clear()
            known.kept_bytes = 0
            if known.begun_seqs:
                known.begun_seqs.clear()
                known.begun.clear()
            return
        while known.begun_seqs and known.begun_seqs[0] <= acked:
            known.begun_seqs.popleft()
            known.begun.popleft()
        while known.kept_seqs and known.kept_seqs[0] <= acked:
            self._drop_oldest(known)

    def reconnected(self, caller: int) -> None:
        """Replies go over another connection from now on."""
        known = self._callers.get(caller)
        if known is not None:
            known.owed = {call.seq for call in self.waiting(caller)}
            known.owed.update(seq for who, seq in self.running if who == caller)
            known.owed.update(seq for who, seq in self.past.asked.values() if who == caller)
            known.again = dict(zip(known.kept_seqs, known.kept, strict=True))

    def repeat(self, caller: int, seq: int) -> tuple[bool, R | None]:
        """A call came again: (whether it has been answered over an earlier connection, its reply if that is kept)."""
        known = self._callers[caller]
        if seq in known.owed:
            return False, None
        return True, None if known.again is None else known.again.get(seq)

    def validate(self) -> None:
        """As of `Lines`, and no more kept than allowed."""
        super().validate()
        for caller, known in self._callers.items():
            assert known.kept_bytes == sum(map(self._size_of, known.kept)), f"bytes kept for {caller} are miscounted"
            assert len(known.kept) == len(known.kept_seqs), "a reply without a number"
            assert known.kept_bytes <= KEPT_BYTES_MAX or len(known.kept) == 1, f"too much is kept for {caller}"
            queued = {(caller, call.seq) for call in self.waiting(caller)}
            waiting = {(caller, seq) for seq in known.kept_seqs} & {*queued, *self.running}
            assert not waiting, f"{waiting} is answered, and has not ended"


class Unanswered(Generic[T]):
    """What a caller has sent to one actor and has no reply to, and when a broken connection to it is replaced."""

    __slots__ = ("_connected_at", "_heard", "acked", "breaks", "calls")

    def __init__(self) -> None:
        self.calls: dict[int, T] = {}  # by rising numbers; who sends puts one in, who hears its reply takes it out
        self.acked = 0  # all replies up to this number have arrived; if `calls` is empty, then all
        self.breaks = 0  # in a row
        self._heard = 0  # replies, since `acked` was looked up
        self._connected_at = 0.0

    def heard(self, count: int) -> None:
        """So many replies came, and their calls were taken out of `calls`."""
        self.breaks = 0
        self._heard += count
        if self._heard > ACKED_EACH + len(self.calls):  # the dict is made anew: a step a reply, and none over its gaps
            self._heard = 0
            left = list(self.calls.items())
            self.calls.clear()
            self.calls.update(left)
            if left:
                self.acked = left[0][0] - 1

    def put_back(self, seq: int, call: T) -> None:
        """Its reply could not be read."""
        left = sorted([(seq, call), *self.calls.items()], key=lambda entry: entry[0])
        self.calls.clear()
        self.calls.update(left)

    def take_all(self) -> list[T]:
        """Nothing of it will be answered: the calls, in order."""
        taken = list(self.calls.values())
        self.calls.clear()
        return taken

    def connected(self, now: float) -> None:
        """There is a connection."""
        self._connected_at = now

    def broke(self, now: float) -> float:
        """It ended, and perhaps its actor lives: after so many seconds another one is asked for."""
        self.breaks = 1 if now - self._connected_at >= STEADY_S else self.breaks + 1
        return min(PAUSE_FIRST_S * 2.0 ** (min(self.breaks, 10) - 1), PAUSE_LAST_S)

    @property
    def hopeless(self) -> bool:
        """Whether too many have broken in a row to send the same again."""
        return self.breaks > BREAKS_MAX

    def validate(self) -> None:
        """Calls are in order, and none of them is acknowledged."""
        assert list(self.calls) == sorted(self.calls), "calls are out of order"
        assert not self.calls or min(self.calls) > self.acked, "a call is acknowledged before its reply came"
