"""A peer that tells others how it sees them. Every node does; it needs a second UDP port, for the filtering's sake.

    OBSERVE      answered from where it came to
    OTHER_PORT   answered from our other port
    OTHER_PEER   the answer, signed by us, is given to another peer, which sends it
    LATER        answered after `argument` seconds: does the mapping live so long?

Whoever has no key with us gets nothing, and nobody gets more bytes than were asked with. The shell hands over probes
of the kinds in KINDS, with the keys of the peer whose id they carry.
"""

from __future__ import annotations

from collections import deque

import msgspec

from lattica.mesh.identity import PeerId
from lattica.mesh.nat import datagrams
from lattica.mesh.nat.datagrams import ANSWER, SIGNED_BYTES, Answer, Keys, Kind, Probe
from lattica.mesh.nat.routes import Direct, Endpoint, Route, SendOver

KINDS = frozenset({Kind.OBSERVE, Kind.OTHER_PORT, Kind.OTHER_PEER, Kind.LATER})
LATER_MAX_S = 300
LATER_MAX = 512  # answers that are owed at once, of all peers
LATER_OF_PEER_MAX = 40
FOR_OTHERS_MAX = 20  # datagrams a second that we send where others ask us to


class HaveSent(msgspec.Struct, frozen=True):
    """Ask some other public peer, not `asker`, to send this ANSWER there (`nat.answer_from`)."""

    asker: PeerId
    data: bytes
    to: Endpoint


Effect = SendOver | HaveSent


class Answering:
    """other: number of the socket on our other port; None: there is none."""

    def __init__(self, other: int | None) -> None:
        self.other = other
        self._later: list[tuple[float, PeerId, SendOver]] = []
        self._sent_for_others: deque[float] = deque(maxlen=FOR_OTHERS_MAX)

    def __repr__(self) -> str:
        return f"<Answering: {len(self._later)} answers owed>"

    def received(self, peer: PeerId, keys: Keys, route: Route, data: bytes, now: float) -> list[Effect]:
        """A probe that claims to be of this peer."""
        probe = datagrams.read_probe(keys.receiving, data)
        if probe is None or not isinstance(route, Direct):
            return []
        answer = Answer(probe.transaction, probe.kind, probe.time_us, route.endpoint)
        signed = datagrams.write_answer(keys.sending, answer)
        match probe.kind:
            case Kind.OBSERVE:
                return [SendOver(route, signed)]
            case Kind.OTHER_PORT if self.other is not None:
                return [SendOver(Direct(route.endpoint, self.other), signed)]
            case Kind.OTHER_PEER:
                return [HaveSent(peer, signed, route.endpoint)]
            case Kind.LATER:
                self._owe(peer, probe, SendOver(route, signed), now)
        return []

    def send_for(self, data: bytes, to: Endpoint, now: float) -> list[Effect]:
        """Another peer asks us to send this answer of its own there. So that nobody is flooded: an answer, and few."""
        often = len(self._sent_for_others) == FOR_OTHERS_MAX and now - self._sent_for_others[0] < 1.0
        if len(data) != SIGNED_BYTES or data[0] != ANSWER or often:
            return []
        self._sent_for_others.append(now)
        return [SendOver(Direct(to), data)]

    def tick(self, now: float) -> list[Effect]:
        due: list[Effect] = [effect for at, _, effect in self._later if at <= now]
        self._later = [each for each in self._later if each[0] > now]
        return due

    def next_deadline(self) -> float | None:
        return min((at for at, _, _ in self._later), default=None)

    def validate(self) -> None:
        assert len(self._later) <= LATER_MAX, f"{len(self._later)} answers owed"

    def _owe(self, peer: PeerId, probe: Probe, effect: SendOver, now: float) -> None:
        theirs = sum(each == peer for _, each, _ in self._later)
        if probe.argument <= LATER_MAX_S and theirs < LATER_OF_PEER_MAX and len(self._later) < LATER_MAX:
            self._later.append((now + probe.argument, peer, effect))
