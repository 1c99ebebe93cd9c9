"""This peer, as all its peerings know it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from lattica.mesh import wire
from lattica.mesh.effects import Dial, Hangup, Transmit
from lattica.mesh.identity import PeerId
from lattica.mesh.links import Connection, Event, Member
from lattica.mesh.twins import Process, Sign
from lattica.mesh.wire import Bye, Hello

if TYPE_CHECKING:
    from lattica.mesh.peering import Peering

ENDED_MAX = 16  # ended sessions remembered of a peer
PEERS_ENDED_MAX = 4096  # peers of whom some are remembered

Effect = Dial | Transmit | Hangup | Event


class Us:
    """See the module. `now + wall_offset` is this machine's unix time."""

    def __init__(
        self,
        me: Hello,
        peer: PeerId,
        rng: Random,
        objection: Callable[[Member, float], str],
        sign: Sign,
        wall_offset: float,
    ) -> None:
        self.me, self.peer, self.rng, self.objection, self.sign = me, peer, rng, objection, sign
        self.wall_offset = wall_offset
        self.correction_s = 0.0  # what others' clocks say that ours lacks
        self.stopped = False
        self.connections: dict[int, Connection] = {}
        self.generation = 0  # of our own certificates: how often they were renewed
        self.attempts: dict[int, tuple[Peering, int, int]] = {}  # dials under way: to whom, for which plane, with which
        self.ended: OrderedDict[PeerId, deque[int]] = OrderedDict()
        self._last_attempt = 0

    @property
    def process(self) -> Process:
        """Which process of this peer we are."""
        return self.me.boot, self.me.instance

    def unix(self, now: float) -> float:
        """The wall clock, corrected."""
        return now + self.wall_offset + self.correction_s

    def propose(self) -> int:
        """A number for a session that may come."""
        return self.rng.getrandbits(63) + 1

    def attempt(self, peering: Peering, plane: int) -> int:
        """A number for a dial."""
        self._last_attempt += 1
        self.attempts[self._last_attempt] = peering, plane, self.generation
        return self._last_attempt

    def under_way(self, peering: Peering, plane: int) -> int:
        """How many dials of that peer, for this plane, have come to no end yet."""
        return sum(to is peering and of == plane for to, of, _ in self.attempts.values())

    def ends(self, peer: PeerId, session: int) -> None:
        """Remember that this session is over."""
        ended = self.ended.setdefault(peer, deque(maxlen=ENDED_MAX))
        ended.append(session)
        self.ended.move_to_end(peer)
        if len(self.ended) > PEERS_ENDED_MAX:
            self.ended.popitem(last=False)


def farewell(connection: Connection, bye: Bye) -> list[Effect]:
    """Say why, and close."""
    return [Transmit(connection.number, wire.encode(bye)), Hangup(connection.number, bye.text)]
