"""One end of a channel, as its owner has it: by which way the relay is reached, and whether it lives.

    shell -> core   add(way) · bound(way, data) · heard · sent · doubt · moved · tick      (each at its time)
    core -> shell   Say(way, data): send this BIND there     Lost(reason): the channel is of no use any more

A *way* is anything by which the shell can send to the relay: an address, or a connection. While nothing has answered
all are tried, START_S apart; the one whose BOUND has the highest counter is used, since that is where the relay takes
us to be. Bound, it says so again every KEEP_ALIVE_S, which also keeps a NAT's mapping, and tries better ways than the
one in use, a firewall may have opened. When something was sent and
nothing came back for SUSPECT_S the relay is asked in the same way: no answer to ASKS_MAX of them, by any way, and it is
lost; that is 1.2 s after the relay died, where its answers took 20 ms.
"""

from __future__ import annotations

from collections.abc import Hashable
from random import Random

import msgspec

from lattica.mesh.nat.datagrams import Bind, read_bound, write_bind
from lattica.mesh.nat.routes import Endpoint

START_S = 0.1  # between the first BINDs by different ways
AGAIN_S = 0.3  # between rounds while nothing has answered
START_MAX_S = 4.0  # after which nothing will: a TCP connection with TLS takes 3 s where a packet is lost
KEEP_ALIVE_S = 15.0  # half of the shortest UDP mapping that was met
SUSPECT_S = 0.4
TWICE_S = 0.1  # until the second of them, and a round trip: then the owner looks for another way as well
HASTE_S = 0.2  # between BINDs that ask whether the relay lives; a round trip more where that is long
ASKS_MAX = 4
ASKS_HEARD_MAX = 12  # while packets of the other end come: then it may be that answers were lost, four times in a row
TRUST_S = 1.0  # after an answer, before silence of the other end makes us ask the relay again
WAYS_MAX = 6
ASKED_MAX = 32  # BINDs whose answers are known when they come


class Say(msgspec.Struct, frozen=True):
    """Send these bytes to the relay, by this way."""

    way: Hashable
    data: bytes


class Lost(msgspec.Struct, frozen=True):
    """The relay does not answer, by any way: the channel is over."""

    reason: str


Effect = Say | Lost


class Binding:
    """See the module. `now` is monotonic seconds. Ways are added best first: UDP before a connection."""

    def __init__(self, number: int, secret: bytes, rng: Random, now: float) -> None:
        self.number = number
        self.way: Hashable = None  # by which it is used; None: not yet
        self.seen: Endpoint | None = None  # where the relay sees us
        self.rtt_s = 0.0
        self.over = False
        self.heard_at = now  # anything of the channel
        self.sent_at = float("-inf")  # a packet of ours
        self._secret, self._rng = secret, rng
        self._ways: list[Hashable] = []
        self._next_way = 0
        self._began = now
        self._counter = self._answered = 0
        self._asked: dict[int, tuple[Hashable, float]] = {}  # counter -> by which way, when
        self._unanswered = 0  # BINDs in a row, once it was bound
        self._asks_since = now  # since the first of them
        self._waits_since: float | None = None  # something was sent, and nothing came
        self._due = now  # of the next BIND

    def __repr__(self) -> str:
        state = "over" if self.over else f"by {self.way}" if self.way is not None else "not bound"
        return f"<Binding {self.number:x}, {state}, {self._unanswered} unanswered>"

    @property
    def unanswered(self) -> int:
        """BINDs in a row that nobody answered, once it was bound."""
        return self._unanswered

    def knows(self, way: Hashable) -> bool:
        """Whether the relay may be reached so, as far as we were told."""
        return way in self._ways

    def add(self, way: Hashable, now: float) -> list[Effect]:
        """The relay may be reached so, too."""
        if way in self._ways or len(self._ways) >= WAYS_MAX:
            return []
        self._ways.append(way)
        if self.way is None or self._unanswered:
            return [self._bind(way, now)]
        return []

    def remove(self, way: Hashable, now: float) -> list[Effect]:
        """It is no way any more: its connection has ended."""
        if way not in self._ways:
            return []
        self._ways.remove(way)
        return self.doubt(now) if way == self.way else []

    def bound(self, data: bytes, now: float) -> bool:
        """A BOUND of this number came. Whether the relay is reached by another way, or from another place, now."""
        answer = read_bound(self._secret, data)
        if answer is None or answer.counter <= self._answered or answer.counter not in self._asked:
            return False
        way, at = self._asked[answer.counter]
        self._answered = answer.counter
        self._asked = {counter: asked for counter, asked in self._asked.items() if counter > answer.counter}
        self.rtt_s = now - at if not self.rtt_s else self.rtt_s + (now - at - self.rtt_s) / 4
        changed = way != self.way or answer.seen != self.seen
        self.way, self.seen, self.heard_at = way, answer.seen, now
        self._unanswered, self._waits_since = 0, None
        # A later one by another way may have moved us there, at the relay: unless its answer comes, say where we are.
        moved = any(other != way for other, _ in self._asked.values())
        self._due = now + (HASTE_S + self.rtt_s if moved else KEEP_ALIVE_S * self._rng.uniform(0.8, 1.0))
        return changed

    def heard(self, now: float) -> None:
        """A packet of the other end came. That ours arrive is shown by an answer to a BIND alone."""
        self.heard_at = now
        self._waits_since = None

    def sent(self, now: float) -> bool:
        """A packet was sent. Whether a deadline came nearer."""
        self.sent_at = now
        if self._waits_since is None:
            self._waits_since = max(now, self.heard_at + TRUST_S - SUSPECT_S)
            return True
        return False

    def doubt(self, now: float) -> list[Effect]:
        """The relay may be gone: ask."""
        if self.over:
            return []
        if self.way is not None and not self._unanswered:
            self._due = now
        return self.tick(now)

    def moved(self, now: float) -> list[Effect]:
        """An address of this machine has changed: say so by every way."""
        if self.over:
            return []
        self._unanswered = 0
        self._due = now + HASTE_S
        return [self._bind(way, now) for way in self._ways]

    def next_deadline(self) -> float | None:
        """When to call `tick`."""
        if self.over:
            return None
        if self.way is not None and self._waits_since is not None and not self._unanswered:
            return min(self._due, self._waits_since + SUSPECT_S)
        return self._due

    def tick(self, now: float) -> list[Effect]:
        """Say the BINDs that are due; notice that nobody answers."""
        due = self.next_deadline()
        if due is None or due > now:
            return []
        if self.way is None:
            return self._start(now)
        most = ASKS_MAX if self.heard_at < self._asks_since else ASKS_HEARD_MAX
        if self._unanswered >= most:
            self.over = True
            return [Lost("the relay does not answer any more")]
        if not self._unanswered:
            self._asks_since = now
        self._unanswered += 1
        self._due = now + (TWICE_S if self._unanswered == 1 else HASTE_S) + self.rtt_s
        # The relay believes the highest counter that it has seen: the way that we want, if it works, comes last.
        if self.way in self._ways and self._unanswered == 1:
            better = self._ways[: self._ways.index(self.way)] if self._waits_since is None else []
            return [self._bind(way, now) for way in (self.way, *better)]
        others = [way for way in self._ways if way != self.way]  # it may be the way that is dead
        return [self._bind(way, now) for way in (*others, *([self.way] if self.way in self._ways else []))]

    def validate(self) -> None:
        """Every invariant."""
        assert len(self._asked) <= ASKED_MAX and len(self._ways) <= WAYS_MAX
        assert self._answered <= self._counter
        assert self._unanswered <= ASKS_HEARD_MAX

    # -- inside

    def _start(self, now: float) -> list[Effect]:
        if now >= self._began + START_MAX_S:
            self.over = True
            return [Lost("the relay answers by no way" if self._ways else "no way to the relay is known")]
        if not self._ways:
            self._due = now + START_S
            return []
        way = self._ways[self._next_way % len(self._ways)]
        self._next_way += 1
        self._due = now + (START_S if self._next_way % len(self._ways) else AGAIN_S)
        return [self._bind(way, now)]

    def _bind(self, way: Hashable, now: float) -> Say:
        self._counter += 1
        if len(self._asked) >= ASKED_MAX:
            del self._asked[min(self._asked)]
        self._asked[self._counter] = way, now
        return Say(way, write_bind(self._secret, Bind(self.number, self._counter)))
