"""Questions that wait for an answer: asked again until there is one, given up after ASKS_MAX.

How long to wait follows the round trips seen (RFC 6298 §2); an answer to what was asked twice tells nothing about them
(§3, Karn's rule). An answer counts if it comes from the very peer that was asked, under the number of the question.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

from lattica.mesh.dht.agenda import Agenda
from lattica.mesh.dht.messages import ASK_MAX, Contact, Message, Send
from lattica.mesh.identity import PeerId

W = TypeVar("W")
ASKS_MAX = 5
"""At 20 % loss and 1,000 peers, one ask finds the closest in 39 % of look-ups, three in 91 %, five in 99 %."""
SILENT_ASKS = 2
"""Of one who was given up a moment ago: others still speak of the dead until they have asked them too."""
SILENT_S = 60.0  # so long
SILENT_MAX = 1024  # peers remembered as silent
TIMEOUT_S = (0.2, 3.0)
"""Shortest and longest: a busy peer takes a moment, and a path of more than three seconds is as good as none."""
FIRST_TIMEOUT_S = 1.0  # before any round trip was seen (RFC 6298 §2.1)
BACKOFF = 1.2
"""Each wait is so much longer than the last: loss is not congestion, but it may be."""


class RoundTrips:
    """Smoothed round trip and its deviation, in seconds; the names are the RFC's."""

    __slots__ = ("rttvar", "srtt")

    def __init__(self) -> None:
        self.srtt = self.rttvar = 0.0

    def took(self, seconds: float) -> None:
        """One more was measured."""
        if not self.srtt:
            self.srtt, self.rttvar = seconds, seconds / 2
            return
        self.rttvar += (abs(self.srtt - seconds) - self.rttvar) / 4
        self.srtt += (seconds - self.srtt) / 8

    @property
    def timeout_s(self) -> float:
        """How long to wait for an answer before asking again."""
        if not self.srtt:
            return FIRST_TIMEOUT_S
        return min(max(self.srtt + 4 * self.rttvar, TIMEOUT_S[0]), TIMEOUT_S[1])


@dataclass(slots=True)
class Ask(Generic[W]):
    """wish: what it is asked for. times: how often it was sent, first at `began`."""

    number: int
    contact: Contact
    message: Message
    wish: W
    began: float
    times_max: int
    times: int = 1


class Asks(Generic[W]):
    """All open ones of this peer."""

    def __init__(self, rng: Random) -> None:
        self._number = rng.getrandbits(48)  # so that a late answer to an earlier process is none to this one
        self._open: dict[int, Ask[W]] = {}
        self._due: Agenda[int] = Agenda()
        self._silent: dict[PeerId, float] = {}  # since when, the latest last
        self.round_trips = RoundTrips()
        self.heard = float("-inf")  # when anybody answered last

    def __len__(self) -> int:
        return len(self._open)

    def next_number(self) -> int:
        """For the next question."""
        self._number = (self._number + 1) & ASK_MAX
        return self._number

    def ask(self, contact: Contact, message: Message, wish: W, now: float) -> Send:
        """Open a question. message: carries a number of its own, by `next_number`."""
        is_silent = now - self._silent.get(contact.peer, float("-inf")) < SILENT_S
        ask = Ask(message.ask, contact, message, wish, now, SILENT_ASKS if is_silent else ASKS_MAX)
        self._open[ask.number] = ask
        self._due.put(ask.number, now + self.round_trips.timeout_s)
        return Send(contact.peer, contact.addresses, message)

    def answered(self, number: int, sender: PeerId, now: float) -> Ask[W] | None:
        """The question that this answers; None if it is late, or not the sender's to answer."""
        ask = self._open.get(number)
        if ask is None or ask.contact.peer != sender:
            return None
        self._close(ask)
        self._silent.pop(sender, None)
        self.heard = now
        if ask.times == 1:
            self.round_trips.took(now - ask.began)
        return ask

    def overdue(self, now: float) -> tuple[list[Ask[W]], list[Ask[W]]]:
        """(those to be sent again, those given up)"""
        again: list[Ask[W]] = []
        given_up: list[Ask[W]] = []
        for number in self._due.take(now):
            ask = self._open[number]
            if ask.times >= ask.times_max:
                self._close(ask)
                given_up.append(ask)
                if ask.times == ASKS_MAX:
                    self._is_silent(ask.contact.peer, now)
                continue
            self._due.put(number, now + self.round_trips.timeout_s * BACKOFF**ask.times)
            ask.times += 1
            again.append(ask)
        return again, given_up

    def of(self, peer: PeerId) -> list[Ask[W]]:
        """What this peer is asked; it is given up."""
        found = [ask for ask in self._open.values() if ask.contact.peer == peer]
        for ask in found:
            self._close(ask)
        return found

    def next_deadline(self) -> float | None:
        """When one is overdue."""
        return self._due.next()

    def validate(self) -> None:
        """Assert what always holds."""
        assert len(self._open) == len(self._due), "an ask waits without end"
        self._due.validate()

    def _is_silent(self, peer: PeerId, now: float) -> None:
        self._silent.pop(peer, None)
        self._silent[peer] = now
        if len(self._silent) > SILENT_MAX:
            del self._silent[next(iter(self._silent))]

    def _close(self, ask: Ask[W]) -> None:
        del self._open[ask.number]
        self._due.drop(ask.number)
