"""All sessions of one peer: whom to dial and when, who is at the other end, which connection carries what.

    A -> B  Hello(session, proposal, received)      B -> A  Hello(...)       then both write what the other lacks

The dialer speaks first; from the two hellos both sides compute which session this connection carries: the one that
both still have, else a new one under the lower PeerId's proposal. A session outlives its connections for KEEP_S. Two
connections dialed at once: both sides keep the one dialed by the lower PeerId.

Rules of this file. Who is at the other end is what the transport authenticated (`Member`); a hello says nothing about
that. Until its hello is accepted a connection may send nothing else. What concerns one other peer is in `peering`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from lattica.errors import RemoteProtocolError
from lattica.mesh import wire
from lattica.mesh.dialing import BACKOFF_S, UNREACHABLE_S
from lattica.mesh.effects import Dial, Hangup, Transmit
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.links import STREAM_RANK, Connection, Event, Member
from lattica.mesh.liveness import BULK_IDLE_S, DEAD_AFTER_S, HELLO_S, PING_AFTER_S, PROBE_S, SPARE_S, WAIT_S
from lattica.mesh.peering import KEEP_S, Peering
from lattica.mesh.session import Session
from lattica.mesh.twins import Sign
from lattica.mesh.us import Effect, Us, farewell
from lattica.mesh.wire import CONTROL, Bye, Frame, Hello

__all__ = [
    "BACKOFF_S", "BULK_IDLE_S", "CONNECTIONS_MAX", "DEAD_AFTER_S", "HELLO_S", "KEEP_S", "PING_AFTER_S", "PROBE_S",
    "SPARE_S", "UNREACHABLE_S", "WAIT_S", "Dial", "Effect", "Event", "Hangup", "Sessions", "Transmit",
]  # fmt: skip

CONNECTIONS_MAX = 8  # of one peer: two planes, each with a successor and a twin


class Sessions:
    """See the module. `now` is monotonic seconds; `now + wall_offset` is this machine's unix time."""

    def __init__(
        self,
        me: Hello,
        peer: PeerId,
        rng: Random,
        objection: Callable[[Member, float], str],
        *,
        sign: Sign,
        wall_offset: float = 0.0,
    ) -> None:
        """me: our hello's constant part. objection(member, unix_s): "" or why we do not talk to it. sign: by the key
        that `peer` is made of."""
        self.peer = peer
        self._us = Us(me, peer, rng, objection, sign, wall_offset)
        self._connections = self._us.connections
        self._peerings: dict[PeerId, Peering] = {}
        self._due: dict[PeerId, float] = {}  # when to look at a peering, if a verb does not say so before
        self._touched: dict[PeerId, None] = {}  # something happened there: ask it again when it is due

    def __repr__(self) -> str:
        up = sum(peering.session is not None for peering in self._peerings.values())
        return f"<Sessions of {short_peer(self.peer)}: {up} up, {len(self._connections)} connections>"

    # -- what is known

    @property
    def me(self) -> Hello:
        """Our hello's constant part; a new one is said from the next connection on."""
        return self._us.me

    @me.setter
    def me(self, hello: Hello) -> None:
        self._us.me = hello

    @property
    def correction_s(self) -> float:
        """What others' clocks say that ours lacks."""
        return self._us.correction_s

    @correction_s.setter
    def correction_s(self, seconds: float) -> None:
        self._us.correction_s = seconds
        self._touched.update(dict.fromkeys(self._peerings))  # certificates expire earlier or later

    def peers(self) -> Iterator[PeerId]:
        """All with whom a session is up."""
        return (peer for peer, peering in self._peerings.items() if peering.session is not None)

    def member(self, peer: PeerId) -> Member | None:
        """What this peer's certificates say, of the latest connection; None without a session."""
        peering = self._peerings.get(peer)
        return peering.member if peering and peering.session else None

    def session(self, peer: PeerId) -> Session | None:
        """The session with this peer."""
        peering = self._peerings.get(peer)
        return peering.session if peering else None

    def hello(self, peer: PeerId) -> Hello | None:
        """What the peer last said of itself."""
        peering = self._peerings.get(peer)
        return peering.control.theirs if peering and peering.control else None

    def connection(self, peer: PeerId, plane: int = CONTROL) -> int | None:
        """The connection that carries this plane now."""
        session = self.session(peer)
        return session.connection(plane) if session else None

    def is_dialed(self, peer: PeerId) -> bool:
        """Whether the connection that carries its control plane was dialed by us."""
        peering = self._peerings.get(peer)
        return peering is not None and peering.control is not None and peering.control.dialed

    def rtt_s(self, peer: PeerId) -> float | None:
        """Round trip of the last ping, in seconds."""
        peering = self._peerings.get(peer)
        return peering.rtt_s if peering else None

    def room(self, peer: PeerId, plane: int) -> int:
        """Bytes that may be sent now; 0 without a session."""
        session = self.session(peer)
        return session.room(plane) if session else 0

    # -- wishes of this machine

    def connect(self, peer: PeerId, addresses: Sequence[str], now: float) -> list[Effect]:
        """Have a session with this peer, and keep it. addresses: where it was last known, best first."""
        if self._us.stopped or peer == self.peer:
            return []
        peering = self._peering(peer)
        return self._settle(peering, peering.connect(addresses, now))

    def found(self, peer: PeerId, addresses: Sequence[str]) -> list[Effect]:
        """This peer is at these addresses now: what waits for a connection tries those that are new."""
        peering = self._peerings.get(peer)
        return self._settle(peering, peering.found(addresses)) if peering is not None and addresses else []

    def upgrade(self, peer: PeerId, addresses: Sequence[str] = (), plane: int = CONTROL) -> list[Effect]:
        """A better way to this peer may be open now, at these addresses or the known ones: dial once more."""
        peering = self._peerings.get(peer)
        return peering.upgrade(addresses, plane) if peering is not None else []

    def disconnect(self, peer: PeerId, reason: str, now: float) -> list[Effect]:
        """No session with this peer is wanted any more; the one there is ends now."""
        peering = self._peerings.get(peer)
        return self._settle(peering, peering.disconnect(reason, now)) if peering is not None else []

    def send(self, peer: PeerId, plane: int, payload: Frame, size: int, now: float) -> Sequence[Effect]:
        """Send in the session. The caller looks at `room` first and has seen `SessionUp`."""
        peering = self._peerings[peer]
        self._touched[peer] = None
        return peering.send(plane, payload, size, now)

    def recheck(self, now: float) -> list[Effect]:
        """Who may talk to us has changed: end what may no longer be."""
        effects: list[Effect] = []
        unix_s = self._us.unix(now)
        for peering in list(self._peerings.values()):
            # Also a peer that is just reconnecting: it is what its latest certificates say, without a connection too.
            why = self._us.objection(peering.member, unix_s) if peering.member is not None else ""
            for connection in list(peering.connections.values()):
                if why:
                    effects += peering.hang_up(connection, wire.REFUSED, why)
                elif self._us.objection(connection.member, unix_s):  # an older chain of a peer that has a better one
                    effects += peering.hang_up(connection, wire.STALE, "an older certificate of yours is not accepted")
                    effects += self._settle(peering, peering.lost(connection, now))
            if why:
                effects += self._settle(peering, peering.refused(why, now))
        return effects

    def reconnect(self, reason: str, now: float) -> list[Effect]:
        """Let every session go on over new connections, which show new certificates. One that we dialed carries on
        until the next one does: right after a join, much is under way."""
        effects: list[Effect] = []
        self._us.generation += 1
        for connection in list(self._connections.values()):
            if connection.number in self._connections:
                peering = self._peerings[connection.peer]
                if connection is peering.control and connection.dialed and (again := peering.upgrade(())):
                    effects += self._settle(peering, again)
                    continue
                effects += peering.hang_up(connection, wire.STALE, reason)
                effects += self._settle(peering, peering.lost(connection, now))
        return effects

    def stop(self, reason: str, now: float) -> list[Effect]:
        """End every session, and begin none."""
        self._us.stopped = True
        effects: list[Effect] = []
        for peering in self._peerings.values():
            effects += peering.disconnect(reason, now)
        self._peerings.clear()
        self._due.clear()
        self._touched.clear()
        self._us.attempts.clear()
        return effects

    # -- what the transport says

    def dialed(self, attempt: int, number: int, member: Member, now: float, rank: int = STREAM_RANK) -> list[Effect]:
        """A dial of ours is connected, and this is who answered. rank: of the way it takes."""
        peering, plane, generation = self._us.attempts.pop(attempt, (None, CONTROL, 0))
        connection = Connection(number, member, True, plane, now, generation, rank)
        if peering is None or self._us.stopped:
            return farewell(connection, Bye(wire.STALE, "it is not wanted any more"))
        self._connections[number] = connection
        return self._settle(peering, peering.dialed(plane, connection, now))

    def dial_failed(self, attempt: int, reason: str, now: float, *, final: bool = False) -> list[Effect]:
        """A dial of ours came to nothing. final: the other side refuses us, by its certificate check."""
        peering, plane, generation = self._us.attempts.pop(attempt, (None, CONTROL, 0))
        final = final and generation == self._us.generation  # else we have better certificates by now
        return self._settle(peering, peering.dial_failed(plane, reason, now, final)) if peering is not None else []

    def accepted(self, number: int, member: Member, now: float, rank: int = STREAM_RANK) -> list[Effect]:
        """Somebody has connected."""
        connection = Connection(number, member, False, CONTROL, now, self._us.generation, rank)
        if self._us.stopped:
            return farewell(connection, Bye(wire.LEAVING, "this node is stopping"))
        if why := self._us.objection(member, self._us.unix(now)):
            return farewell(connection, Bye(wire.REFUSED, why[: wire.WORDS_MAX]))
        peering = self._peering(member.peer)
        if len(peering.connections) >= CONNECTIONS_MAX:
            return farewell(connection, Bye(wire.STALE, f"you have {CONNECTIONS_MAX} connections here already"))
        self._connections[number] = peering.connections[number] = connection
        return self._settle(peering, [])

    def received(self, number: int, frames: Sequence[wire.Received], now: float) -> list[Effect]:
        """Frames of one connection, in order."""
        effects: list[Effect] = []
        connection = self._connections.get(number)
        if connection is None:
            return effects
        peering = self._peerings[connection.peer]
        connection.heard_at, connection.pinged_at = now, None
        try:
            for frame in frames:
                if type(frame) is wire.Data and connection.theirs is not None:
                    peering.data(connection, frame, now, effects)
                else:
                    peering.frame(connection, frame, now, effects)
                if number not in self._connections:  # this frame has ended it
                    break
        except RemoteProtocolError as error:
            effects += peering.breach(str(error).partition("\n")[0], now)
        if peering.session is not None:  # it is needed, so there is nothing to settle
            self._touched[peering.peer] = None
            return effects
        return self._settle(peering, effects)

    def broken(self, number: int, reason: str, now: float) -> list[Effect]:
        """The other side broke a rule, by what came over this connection: drop it, and what was between us."""
        connection = self._connections.get(number)
        return self.breach(connection.peer, reason, now) if connection is not None else []

    def breach(self, peer: PeerId, reason: str, now: float) -> list[Effect]:
        """The other side broke a rule, in a payload: drop it, and what was between us."""
        peering = self._peerings.get(peer)
        return self._settle(peering, peering.breach(reason, now)) if peering is not None else []

    def closed(self, number: int, reason: str, now: float) -> list[Effect]:
        """A connection is no more, and not by our `Hangup`."""
        connection = self._connections.get(number)
        if connection is None:
            return []
        peering = self._peerings[connection.peer]
        return self._settle(peering, peering.lost(connection, now))

    # -- time

    def tick(self, now: float) -> list[Effect]:
        """Whatever is due."""
        self._ask_touched()
        effects: list[Effect] = []
        for peer in [peer for peer, due in self._due.items() if due <= now]:
            peering = self._peerings[peer]
            effects += self._settle(peering, peering.tick(now))
        return effects

    def next_deadline(self) -> float | None:
        """When to call `tick`."""
        self._ask_touched()
        return min(self._due.values(), default=None)

    def _ask_touched(self) -> None:
        """When to look at those to which something happened; an idle mesh asks nobody."""
        for peer in self._touched:
            due = self._peerings[peer].next_deadline()
            if due is None:
                self._due.pop(peer, None)
            else:
                self._due[peer] = due
        self._touched.clear()

    def validate(self, *, thorough: bool = True) -> None:
        """thorough: also those to which nothing happened since `next_deadline`, and that this is so."""
        assert self._touched.keys() <= self._peerings.keys() >= self._due.keys(), "a deadline of a peer that is gone"
        if not thorough:
            for peer in self._touched:
                self._peerings[peer].validate()
            return
        filed = 0
        for peer, peering in self._peerings.items():
            peering.validate()  # each connection of it is ours, and that of no other peering
            filed += len(peering.connections)
            if peer not in self._touched:
                due = peering.next_deadline()
                assert due == self._due.get(peer), f"{short_peer(peer)} is due at {due}, not at {self._due.get(peer)}"
        assert filed == len(self._connections), f"{len(self._connections) - filed} connections have no peering: {self}"

    # -- inside

    def _peering(self, peer: PeerId) -> Peering:
        peering = self._peerings.get(peer)
        if peering is None:
            peering = self._peerings[peer] = Peering(self._us, peer)
        return peering

    def _settle(self, peering: Peering, effects: list[Effect]) -> list[Effect]:
        """After a verb of this peering: forget a peer of whom nothing is left to know, else ask when it is due."""
        peer = peering.peer
        if self._peerings.get(peer) is peering:
            if peering.idle:
                del self._peerings[peer]
                self._due.pop(peer, None)
                self._touched.pop(peer, None)
            else:
                self._touched[peer] = None
        return effects
