"""One round of punching: its fresh sockets, how witnesses see them, and what it sends; and how many there may be.

See `punching` for who begins one, and when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random

import msgspec

from lattica.mesh.nat import datagrams, salvos
from lattica.mesh.nat.attempts import Introduction, Readiness
from lattica.mesh.nat.candidates import observed_of, targets
from lattica.mesh.nat.datagrams import Kind, Probe
from lattica.mesh.nat.measuring import Witness
from lattica.mesh.nat.methods import ROUNDS, Method, is_open
from lattica.mesh.nat.routes import MAIN, Direct, Endpoint, SendOver
from lattica.mesh.nat.salvos import Shot

FRESH_ROUND = 3  # of simultaneous sending: an early packet may have spoilt the ports of the first
OBSERVE_S = (0.0, 0.15, 0.4, 0.8)
OBSERVED_S = 1.2  # then a fresh socket does without
BIRTHDAYS_AN_HOUR = 10


def needs_preparation(method: Method, number: int) -> bool:
    """Whether both open sockets for this round before it begins."""
    return method in (Method.PREDICTION, Method.BIRTHDAY) or (method is Method.SIMULTANEOUS and number >= FRESH_ROUND)


def is_renewed(method: Method, number: int) -> bool:
    """Whether this round, which comes before the others, is of a pair that was direct: a side has moved, and neither
    believes what it knew of its own main socket."""
    return number > ROUNDS[method]


class Budget:
    """Of birthday rounds, which send by the thousand: of all punchers of a node together, one at a time."""

    def __init__(self, an_hour: int = BIRTHDAYS_AN_HOUR) -> None:
        self._times: deque[float] = deque(maxlen=max(an_hour, 1))
        self._an_hour = an_hour

    def is_busy(self, now: float) -> bool:
        """Whether a round is under way."""
        return bool(self._times) and now - self._times[-1] < salvos.BIRTHDAY_S

    def take(self, now: float) -> bool:
        """Whether such a round may begin now; if so, it counts."""
        if self.is_busy(now):
            return False
        full = len(self._times) == self._times.maxlen and now - self._times[0] < 3600.0
        if full or not self._an_hour:
            return False
        self._times.append(now)
        return True


class Round(msgspec.Struct):
    """From its preparation to its end. Times are monotonic seconds."""

    number: int
    method: Method
    since: float
    sockets: tuple[int, ...] = ()  # fresh ones
    opening: set[int] = set()
    observing: dict[bytes, int] = {}  # transaction -> which witness
    questions: list[tuple[float, bytes]] = []
    seen: dict[int, Endpoint] = {}
    prepared_at: float = float("inf")  # at the latest
    ready: bool = False
    asked_at: float = 0.0  # when Prepare came, on the higher side
    shots: Sequence[Shot] = ()
    begins: float = float("inf")
    ends: float = float("inf")
    shot: int = 0  # how many are sent
    connects: list[tuple[float, Endpoint]] = []
    connected: int = 0

    @property
    def is_prepared(self) -> bool:
        return needs_preparation(self.method, self.number)

    def is_ready(self, now: float) -> bool:
        """Whether its sockets are open, and seen as far as they will be."""
        return now >= self.prepared_at or (not self.opening and bool(self.seen) and not self.observing)

    # ---- how fresh sockets are seen -------------------------------------------------------------------------------

    def observe(self, witnesses: Sequence[Witness], rng: Random, now: float) -> None:
        """Ask how our socket is seen: a fresh one, or the main one in a renewed round in which this side has none. For
        prediction two witnesses, one after the other: the second's port is the latest."""
        if not is_renewed(self.method, self.number) and (self.method is Method.BIRTHDAY or not self.sockets):
            self.prepared_at = now
            return
        wanted = 2 if self.method is Method.PREDICTION and self.sockets else 1
        for index in range(min(wanted, len(witnesses))):
            transaction = rng.randbytes(8)
            self.observing[transaction] = index
            self.questions += [(now + after, transaction) for after in OBSERVE_S]
        self.questions.sort(key=lambda question: question[0])
        self.prepared_at = now + OBSERVED_S if self.observing else now

    def ask(self, witnesses: Sequence[Witness], now: float) -> list[SendOver]:
        """The questions that are due."""
        effects: list[SendOver] = []
        if not witnesses:  # they have gone: do without
            self.questions.clear()
        while self.questions and self.questions[0][0] <= now:
            _, transaction = self.questions.pop(0)
            witness = witnesses[self.observing[transaction] % len(witnesses)]
            probe = Probe(transaction, Kind.OBSERVE, max(int(now * 1e6), 0))
            data = datagrams.write_probe(witness.keys.sending, probe)
            effects.append(SendOver(Direct(witness.endpoint, self.sockets[0] if self.sockets else MAIN), data))
        return effects

    def answered(self, witnesses: Sequence[Witness], data: bytes) -> bool:
        """Whether this is the ANSWER to one of them."""
        for witness in witnesses:
            answer = datagrams.read_answer(witness.keys.receiving, data)
            if answer is not None and answer.transaction in self.observing:
                self.seen[self.observing.pop(answer.transaction)] = answer.seen
                self.questions = [each for each in self.questions if each[1] in self.observing]
                return True
        return False

    def readiness(self, step: int) -> Readiness:
        """What the other side must know of the socket that we observed. step: between ports of our allocator."""
        if not self.seen:
            return Readiness()
        first = next(iter(self.seen.values()))
        if self.method is not Method.PREDICTION or not self.sockets:
            return Readiness(first)
        return Readiness(first, salvos.next_ports([endpoint.port for endpoint in self.seen.values()], step))

    # ---- what is sent ---------------------------------------------------------------------------------------------

    def salvo(self, ours: Introduction, theirs: Introduction, other: Readiness, rng: Random) -> Sequence[Shot]:
        """From what both have told of themselves, and of their fresh sockets."""
        socket = self.sockets[0] if len(self.sockets) == 1 else MAIN
        places = targets(ours.candidates, theirs.candidates)
        seen = other.endpoint or observed_of(theirs.candidates)
        match self.method:
            case Method.SIMULTANEOUS:
                fresh = (other.endpoint,) if other.endpoint is not None else ()
                return salvos.simultaneous((*fresh, *places)[: len(places) or 1], socket)
            case Method.DIAL:
                return salvos.dial(places, socket) if is_open(theirs.behaviour, theirs.candidates) else ()
            case Method.PREDICTION if other.ports and other.endpoint is not None:
                return salvos.predicted(other.endpoint.host, other.ports, socket)
            case Method.PREDICTION if seen is not None:
                return salvos.predicted(seen.host, (seen.port,), socket)
            case Method.BIRTHDAY if seen is not None:
                if self.sockets:
                    return salvos.fan(self.sockets, seen, double=bool(ours.behaviour.double))
                return salvos.spray(seen.host, socket, rng)
        return ()
