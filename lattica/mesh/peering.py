"""Everything between this peer and one other: the session, the connections that carry it, when to dial.

`Sessions` keeps one `Peering` per other peer and hands on what concerns it. What all of them share is in `Us`.

Rules of this file. A proposal is kept until the other side has been heard in the session that came of it, so that a
connection that dies between the hellos costs nothing; a session that ended is never taken up again (`Us.ended`), for
the other side may have executed what it was sent.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from random import Random
from typing import assert_never

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.mesh import wire
from lattica.mesh.effects import Dial, Hangup, Transmit
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.links import (
    Attached,
    ClockSample,
    Connection,
    Delivered,
    Event,
    Faltering,
    Member,
    Room,
    SessionDown,
    SessionUp,
    State,
    TwinSeen,
    Unreachable,
    WeAreTwin,
)
from lattica.mesh.liveness import DEAD_AFTER_S, HELLO_S, PROBE_S, Due, due, verdict
from lattica.mesh.session import Session
from lattica.mesh.wire import BULK, CONTROL, Bye, Frame, Hello

KEEP_S = 60.0
"""A session without a connection is kept this long: a router restarts within it. Longer holds calls, and what they
hold, for a peer that is gone."""
BACKOFF_S = (0.2, 30.0)  # first and longest pause between dials
UNREACHABLE_S = 10.0  # after which those who wait for a peer are told so; dialing goes on
ENDED_MAX = 16  # ended sessions remembered of a peer
PEERS_ENDED_MAX = 4096  # peers of whom some are remembered

Effect = Dial | Transmit | Hangup | Event


class Us:
    """This peer, as all its peerings know it. `now + wall_offset` is this machine's unix time."""

    def __init__(
        self, me: Hello, peer: PeerId, rng: Random, objection: Callable[[Member, float], str], wall_offset: float
    ) -> None:
        self.me, self.peer, self.rng, self.objection, self.wall_offset = me, peer, rng, objection, wall_offset
        self.correction_s = 0.0  # what others' clocks say that ours lacks
        self.stopped = False
        self.connections: dict[int, Connection] = {}
        self.attempts: dict[int, tuple[Peering, int]] = {}  # dials under way: to whom, for which plane
        self.ended: OrderedDict[PeerId, deque[int]] = OrderedDict()
        self._last_attempt = 0

    def unix(self, now: float) -> float:
        """The wall clock, corrected."""
        return now + self.wall_offset + self.correction_s

    def propose(self) -> int:
        """A number for a session that may come."""
        return self.rng.getrandbits(63) + 1

    def attempt(self, peering: Peering, plane: int) -> int:
        """A number for a dial."""
        self._last_attempt += 1
        self.attempts[self._last_attempt] = peering, plane
        return self._last_attempt

    def ends(self, peer: PeerId, session: int) -> None:
        """Remember that this session is over."""
        ended = self.ended.setdefault(peer, deque(maxlen=ENDED_MAX))
        ended.append(session)
        self.ended.move_to_end(peer)
        if len(self.ended) > PEERS_ENDED_MAX:
            self.ended.popitem(last=False)


class Peering:
    """See the module. Every verb returns effects."""

    __slots__ = (
        "addresses", "attempts", "bulk_used_at", "connections", "down_since", "failures", "member", "peer", "process",
        "proposal", "redial_at", "rtt_s", "session", "told_unreachable", "twin_due", "us", "waits_since",
        "wanted_since",
    )  # fmt: skip

    def __init__(self, us: Us, peer: PeerId) -> None:
        self.us, self.peer = us, peer
        self.addresses: tuple[str, ...] = ()
        self.wanted_since: float | None = None  # somebody here wants a session
        self.told_unreachable = False
        self.session: Session | None = None
        self.proposal = us.propose()
        self.process: tuple[int, bytes] | None = None  # (boot, instance) of the other side
        self.member: Member | None = None
        self.connections: dict[int, Connection] = {}
        self.attempts: dict[int, int] = {}  # plane -> number of the dial under way
        self.failures = 0  # dials in a row
        self.redial_at: dict[int, float] = {}  # plane -> when to dial it
        self.down_since = 0.0  # since when the session has no control connection
        self.bulk_used_at = 0.0
        self.twin_due: float | None = None
        self.waits_since = [0.0, 0.0]  # plane -> since when an acknowledgement is due
        self.rtt_s: float | None = None  # of the last ping over the control plane

    def __repr__(self) -> str:
        return f"<Peering with {short_peer(self.peer)}: {self.session!r}, {list(self.connections.values())}>"

    # -- what is known

    def of_plane(self, plane: int, *states: State) -> list[Connection]:
        """Its connections in one of these states; by default the one that carries the plane."""
        return [c for c in self.connections.values() if c.plane == plane and c.state in (states or (State.ATTACHED,))]

    @property
    def control(self) -> Connection | None:
        """The connection that carries the control plane."""
        return next(iter(self.of_plane(CONTROL)), None)

    @property
    def idle(self) -> bool:
        """Nothing is left to know."""
        return self.session is None and self.wanted_since is None and not self.connections and not self.attempts

    def validate(self) -> None:
        for plane in wire.PLANES:
            attached = self.of_plane(plane)
            assert len(attached) <= 1, f"{attached!r} all carry plane {plane}"
            carried = self.session.connection(plane) if self.session else None
            assert carried == (attached[0].number if attached else None), f"{self!r} carries plane {plane}"
        if self.session is not None:
            self.session.validate()
        for number in self.connections:
            assert number in self.us.connections, f"connection {number} of {short_peer(self.peer)} is gone"

    # -- wishes of this machine

    def connect(self, addresses: Sequence[str], now: float) -> list[Effect]:
        """Have a session, and keep it."""
        if addresses:
            self.addresses = tuple(dict.fromkeys(addresses))
        if self.wanted_since is None:
            self.wanted_since, self.told_unreachable, self.failures = now, False, 0
            self.redial_at.pop(CONTROL, None)
        return self._dial_if_needed()

    def disconnect(self, reason: str, now: float) -> list[Effect]:
        """No session is wanted any more; the one there is ends now."""
        self.wanted_since = None
        effects: list[Effect] = []
        for connection in list(self.connections.values()):
            effects += self.hang_up(connection, wire.LEAVING, reason)
        return effects + self.end(now, reason)

    def send(self, plane: int, payload: Frame, size: int, now: float) -> Sequence[Effect]:
        """Send in the session."""
        session = self.session
        assert session is not None, f"no session with {short_peer(self.peer)}"
        if not session.unacked_bytes(plane):
            self.waits_since[plane] = now
        effects: Sequence[Effect] = session.send(plane, payload, size)
        if plane == BULK:
            self.bulk_used_at = now
            if not effects:
                return self._bulk_if_needed(now)
        return effects

    # -- what the transport says

    def dialed(self, plane: int, connection: Connection, now: float) -> list[Effect]:
        """A dial of ours is connected."""
        self.attempts.pop(plane, None)
        member = connection.member
        why = self.us.objection(member, self.us.unix(now))
        if member.peer != self.peer:
            why = f"at {', '.join(self.addresses)} answers {short_peer(member.peer)}, not {short_peer(self.peer)}"
        if why:
            return [*self.hang_up(connection, wire.REFUSED, why), *self.failed(plane, now)]
        self.connections[connection.number] = connection
        return [self._greet(connection, now)]

    def dial_failed(self, plane: int, reason: str, now: float, final: bool) -> list[Effect]:
        """A dial of ours came to nothing."""
        self.attempts.pop(plane, None)
        return self.refused(reason, now) if final else self.failed(plane, now)

    def frame(self, connection: Connection, frame: wire.Received, now: float, effects: list[Effect]) -> None:
        """A frame of one of our connections. Raises RemoteProtocolError."""
        session = self.session
        if connection.theirs is None or isinstance(frame, Bye):
            self._early(connection, frame, now, effects)
            return
        match frame:
            case wire.Data():
                if connection.state is not State.ATTACHED and connection.state is not State.SPARE:
                    raise RemoteProtocolError("it sent data before the hellos had agreed")
                assert session is not None, f"{connection!r} is attached to no session"
                if connection.plane == BULK:
                    self.bulk_used_at = now
                before = session.unacked_bytes(connection.plane)
                if session.receive(connection.plane, frame, now):
                    effects.append(Delivered(self.peer, connection.plane, frame.payload))
                self._heard_in(session)
                if session.unacked_bytes(connection.plane) < before:
                    effects.append(Room(self.peer, connection.plane))
            case wire.Ack(number):
                if session is not None and connection.state in (State.ATTACHED, State.SPARE):
                    session.acknowledged(connection.plane, number)
                    self._heard_in(session)
                    effects.append(Room(self.peer, connection.plane))
            case wire.Ping(nonce):
                effects.append(Transmit(connection.number, wire.encode(wire.Pong(nonce))))
            case wire.Pong(nonce):
                if connection.asked_at is not None and connection.plane == CONTROL and nonce == 0:
                    self.rtt_s, connection.asked_at = now - connection.asked_at, None
                if self.twin_due is not None and nonce == self._twin_nonce():
                    effects += self._twins(now)
            case wire.Want(plane):
                idle = BULK not in self.attempts and not self.of_plane(BULK, *State)
                if plane == BULK and session is not None and idle and self.addresses:
                    effects.append(self._dial(BULK))
            case Hello():
                raise RemoteProtocolError("it said hello twice")
            case _:
                assert_never(frame)

    def breach(self, connection: Connection, reason: str, now: float) -> list[Effect]:
        """The other side broke a rule: drop it, and what was between us."""
        effects = self._close(connection, wire.BROKEN, reason, now)
        effects += self.end(now, f"the other side broke a rule: {reason}")
        return effects + self.failed(CONTROL, now)

    # -- time

    def tick(self, now: float) -> list[Effect]:
        """Whatever is due, but for connections: see `look_at`."""
        effects: list[Effect] = []
        if self.twin_due is not None and self.twin_due <= now:
            effects += self._twin_is_dead(now)
        if self.session is not None:
            effects += self.session.tick(now)
            if self.control is None and self.down_since + KEEP_S <= now:
                effects += self.end(now, f"no connection for {KEEP_S:g} s")
        if self._owed_words and self.wanted_since is not None and self.wanted_since + UNREACHABLE_S <= now:
            self.told_unreachable = True
            effects.append(Unreachable(self.peer, f"nobody answered for {UNREACHABLE_S:g} s", final=False))
        for plane in [plane for plane, at in self.redial_at.items() if at <= now]:
            del self.redial_at[plane]
        effects += self._dial_if_needed()
        return effects + self._bulk_if_needed(now)

    def deadlines(self) -> list[float]:
        """When to call `tick`."""
        found = [*self.redial_at.values()]
        if self.twin_due is not None:
            found.append(self.twin_due)
        if self.session is not None:
            if (ack_due := self.session.next_deadline()) is not None:
                found.append(ack_due)
            if self.control is None:
                found.append(self.down_since + KEEP_S)
        if self._owed_words and self.wanted_since is not None:
            found.append(self.wanted_since + UNREACHABLE_S)
        return found

    def look_at(self, connection: Connection, now: float) -> list[Effect]:
        """Ask whether this connection lives, or close it, if it is time to."""
        by = self._measure(connection)
        if due(connection, by) > now:
            return []
        farewell = verdict(connection, by, now)
        if farewell is None:
            connection.pinged_at = connection.asked_at = now
            return [Transmit(connection.number, wire.encode(wire.Ping(0)))]
        effects = self._close(connection, *farewell, now)
        if farewell[0] == wire.IDLE:
            self.redial_at.pop(BULK, None)
        return effects

    def due(self, connection: Connection) -> float:
        """When to call `look_at` for this connection."""
        return due(connection, self._measure(connection))

    def _measure(self, connection: Connection) -> Due:
        plane = connection.plane
        waits = self.session is not None and self.session.unacked_bytes(plane) > 0
        expires_at = connection.member.expires - self.us.wall_offset - self.us.correction_s
        return Due(expires_at, self.waits_since[plane] if waits else None, self.bulk_used_at)

    @property
    def _owed_words(self) -> bool:
        return self.wanted_since is not None and self.session is None and not self.told_unreachable

    # -- dialing

    def _dial(self, plane: int) -> Dial:
        self.attempts[plane] = self.us.attempt(self, plane)
        return Dial(self.attempts[plane], self.peer, self.addresses)

    def _dial_if_needed(self) -> list[Effect]:
        """Dial the control plane, if a session is wanted or one waits for a connection, and nothing is under way."""
        needed = self.wanted_since is not None or self.session is not None
        if not needed or not self.addresses or CONTROL in self.attempts or CONTROL in self.redial_at or self.us.stopped:
            return []
        if any(connection.plane == CONTROL for connection in self.connections.values()):
            return []
        return [self._dial(CONTROL)]

    def _bulk_if_needed(self, now: float) -> list[Effect]:
        """Dial the bulk plane, or ask the other side to, if something waits for it."""
        session, control = self.session, self.control
        if session is None or control is None:
            return []
        if not session.unacked_bytes(BULK) or session.connection(BULK) is not None:
            return []
        if BULK in self.attempts or BULK in self.redial_at or self.of_plane(BULK, *State):
            return []
        if control.dialed and self.addresses:
            return [self._dial(BULK)]
        self.redial_at[BULK] = now + HELLO_S  # asks again then
        return [Transmit(control.number, wire.encode(wire.Want(BULK)))]

    def failed(self, plane: int, now: float) -> list[Effect]:
        """Dialing failed: pause, longer each time, and not in step with others."""
        first, longest = BACKOFF_S
        pause_s = min(first * 2 ** min(self.failures, 16), longest)
        self.failures += 1
        self.redial_at[plane] = now + pause_s * self.us.rng.uniform(0.5, 1.5)
        return [Faltering(self.peer)] if self.session is not None and self.control is None else []

    def refused(self, reason: str, now: float) -> list[Effect]:
        """They do not talk to us, or we not to them: dialing again changes nothing."""
        self.redial_at.clear()
        wanted, self.wanted_since = self.wanted_since is not None, None
        told = [Unreachable(self.peer, reason, final=True)] if wanted else []
        return [*self.end(now, reason), *told]

    # -- hellos

    def _greet(self, connection: Connection, now: float) -> Transmit:
        session = self.session
        connection.mine = msgspec.structs.replace(
            self.us.me,
            plane=connection.plane,
            session=session.id if session else 0,
            proposal=self.proposal,
            received=session.received(connection.plane) if session else 0,
            unix_s=now + self.us.wall_offset,  # uncorrected: each side measures the other's own clock
        )
        return Transmit(connection.number, wire.encode(connection.mine))

    def _early(self, connection: Connection, frame: wire.Received, now: float, effects: list[Effect]) -> None:
        """The first frame of a connection, or its last."""
        if isinstance(frame, Bye):
            self.us.connections.pop(connection.number)
            effects.append(Hangup(connection.number, f"it said: {frame.text or frame.code}"))
            effects += self._heard_bye(connection, frame, now)
        elif isinstance(frame, Hello):
            effects += self._greeted(connection, frame, now)
        else:
            raise RemoteProtocolError(f"its first frame was {type(frame).__name__}, not Hello")

    def _heard_in(self, session: Session) -> None:
        if self.proposal == session.id and session.begun:
            self.proposal = self.us.propose()

    def _greeted(self, connection: Connection, hello: Hello, now: float) -> list[Effect]:
        connection.theirs = hello
        if not connection.dialed:
            connection.plane = hello.plane
        if hello.oldest > wire.PROTOCOL or hello.protocol < self.us.me.oldest:
            side = "update this node" if hello.oldest > wire.PROTOCOL else "it must be updated"
            why = f"it speaks protocol {hello.protocol} (lattica {hello.version}), we {wire.PROTOCOL}: {side}"
            return self._close(connection, wire.REFUSED, why, now)
        if self.peer == self.us.peer:
            return self._met_ourselves(connection, hello, now)
        effects: list[Effect] = [ClockSample(self.peer, hello.unix_s - (now + self.us.wall_offset))]
        process = (hello.boot, hello.instance)
        if self.process is not None and self.process != process:
            others = [c for c in self.connections.values() if c.state in (State.ATTACHED, State.SPARE)]
            if others:
                connection.state = State.WAITING
                if self.twin_due is None:
                    self.twin_due = now + PROBE_S
                nonce = wire.encode(wire.Ping(self._twin_nonce()))
                return [*effects, *(Transmit(other.number, nonce) for other in others)]
            effects += self.end(now, "its process was restarted")
        self.process = process
        return effects + self._agree(connection, now)

    def _agree(self, connection: Connection, now: float) -> list[Effect]:
        """Both hellos are there, or ours goes out now: find the session that this connection carries."""
        hello, effects = connection.theirs, list[Effect]()
        assert hello is not None
        current = self.session.id if self.session else 0
        if not connection.dialed:
            live = self.control is not None
            if hello.plane == CONTROL and live and current and hello.session != current and hello.proposal != current:
                why = "another connection carries a session that this one does not know"
                return [*self._probe(now), *self._close(connection, wire.STALE, why, now)]
            effects.append(self._greet(connection, now))
        mine = connection.mine
        assert mine is not None
        agreed = self._agreed(mine, hello)
        if agreed in self.us.ended.get(self.peer, ()):
            return [*effects, *self._close(connection, wire.OVER, "that session is over here", now)]
        if connection.plane == BULK and (not current or agreed != current):
            return [*effects, *self._close(connection, wire.STALE, "bulk of a session that is not", now)]
        if current and agreed != current and connection.dialed and mine.session != current:
            return [*effects, *self._close(connection, wire.STALE, "another session began meanwhile", now)]
        fresh = agreed != current
        if fresh:
            effects += self.end(now, "the other side does not know it any more")
            self.session = Session(agreed)
            self.told_unreachable = False
            effects.append(SessionUp(self.peer, hello))
        return effects + self._attach(connection, now, resumed=not fresh)

    def _agreed(self, mine: Hello, theirs: Hello) -> int:
        if mine.session and mine.session == theirs.session:
            return mine.session
        return mine.proposal if self.us.peer < self.peer else theirs.proposal

    def _attach(self, connection: Connection, now: float, *, resumed: bool) -> list[Effect]:
        """This connection can carry its plane: let it, unless another one does and is to be kept."""
        session, hello = self.session, connection.theirs
        assert session is not None and hello is not None
        plane, effects = connection.plane, list[Effect]()
        other = next(iter(self.of_plane(plane)), None)
        if other is not None:
            lower_is_mine = self.us.peer < self.peer
            if connection.dialed != other.dialed and connection.dialed != lower_is_mine:
                # The other one was dialed by the lower PeerId: it stays, if it is alive.
                if connection.dialed:
                    return self._close(connection, wire.STALE, "both dialed at once", now)
                connection.state = State.SPARE
                return self._probe(now)
            effects += self.hang_up(other, wire.STALE, "a newer connection carries the session")
        connection.state = State.ATTACHED
        self.member, self.failures = connection.member, 0
        self.redial_at.pop(plane, None)
        if plane == CONTROL:
            effects.append(Attached(self.peer, connection.member, hello, resumed))
            connection.asked_at = now
            effects.append(Transmit(connection.number, wire.encode(wire.Ping(0))))
        else:
            self.bulk_used_at = now
        had = hello.received if hello.session == session.id else 0  # else it speaks of another session
        effects += session.attach(plane, connection.number, had)
        effects.append(Room(self.peer, plane))
        return effects + self._bulk_if_needed(now)

    def _probe(self, now: float) -> list[Effect]:
        """Ask the control connection whether it lives: a sound within PROBE_S, or it is closed."""
        control = self.control
        if control is None or control.pinged_at is not None:
            return []
        control.pinged_at = now - DEAD_AFTER_S + PROBE_S
        return [Transmit(control.number, wire.encode(wire.Ping(0)))]

    # -- twins: two processes with one key

    def _met_ourselves(self, connection: Connection, hello: Hello, now: float) -> list[Effect]:
        """Somebody with our own key: ourselves, by a roundabout address, or a node started from a copy."""
        theirs, ours = (hello.boot, hello.instance), (self.us.me.boot, self.us.me.instance)
        text = f"two live nodes have the key of peer {short_peer(self.peer)}: its directory was copied"
        code = wire.STALE if theirs == ours else wire.TWIN
        # With STALE, and from the later one, the bye is only words; the later one stops by what it sees itself.
        effects: list[Effect] = [] if connection.dialed else [self._greet(connection, now)]
        effects += self._close(connection, code if theirs > ours else wire.STALE, text, now)
        if theirs != ours:
            effects.append(WeAreTwin(text) if theirs < ours else TwinSeen(self.peer, text))
        return effects

    def _twin_nonce(self) -> int:
        """Only a process that lives now can say it: made of when we asked."""
        assert self.twin_due is not None
        return int(self.twin_due * 1e6) & ((1 << 63) - 1) | 1

    def _twins(self, now: float) -> list[Effect]:
        """The older connections answered: both processes live, and the later one must stop."""
        self.twin_due = None
        waiting = [c for c in self.connections.values() if c.state is State.WAITING]
        if not waiting or self.process is None:
            return []
        theirs = waiting[0].theirs
        assert theirs is not None
        text = f"two live nodes have the key of peer {short_peer(self.peer)}: its directory was copied"
        text += "; the later one stops"
        effects: list[Effect] = [TwinSeen(self.peer, text)]
        if (theirs.boot, theirs.instance) > self.process:
            for connection in waiting:
                effects += self.hang_up(connection, wire.TWIN, text)
            return effects
        for connection in [c for c in self.connections.values() if c.state is not State.WAITING]:
            effects += self.hang_up(connection, wire.TWIN, text)
        return effects + self._twin_is_dead(now)

    def _twin_is_dead(self, now: float) -> list[Effect]:
        """The older connections are silent or closed: the process was restarted."""
        self.twin_due = None
        effects: list[Effect] = []
        waiting = [c for c in self.connections.values() if c.state is State.WAITING]
        if not waiting:
            return effects
        for connection in [c for c in self.connections.values() if c.state in (State.ATTACHED, State.SPARE)]:
            effects += self.hang_up(connection, wire.STALE, "your process was restarted")
        effects += self.end(now, "its process was restarted")
        for connection in waiting:
            if connection.number in self.us.connections and connection.theirs is not None:
                self.process = connection.theirs.boot, connection.theirs.instance
                connection.state = State.GREETING
                effects += self._agree(connection, now)
        return effects

    # -- ends

    def hang_up(self, connection: Connection, code: str, text: str) -> list[Effect]:
        """Say why, and close. The caller sees to what the connection carried, unless a successor does."""
        self.us.connections.pop(connection.number, None)
        self.connections.pop(connection.number, None)
        if self.session is not None:
            self.session.detach(connection.number)
        return farewell(connection, code, text)

    def _close(self, connection: Connection, code: str, text: str, now: float) -> list[Effect]:
        """Say why, and close; what the connection carried waits for the next one."""
        return [*self.hang_up(connection, code, text), *self.lost(connection, now)]

    def lost(self, connection: Connection, now: float) -> list[Effect]:
        """A connection is gone. What it carried waits for the next one."""
        self.us.connections.pop(connection.number, None)
        was_there = self.connections.pop(connection.number, None) is not None
        carried = connection.state is State.ATTACHED
        if self.session is not None:
            self.session.detach(connection.number)
        effects: list[Effect] = []
        if connection.plane == CONTROL and self.session is not None and self.control is None and carried:
            self.down_since = now
            spares = self.of_plane(CONTROL, State.SPARE)
            if spares:
                return self._attach(spares[0], now, resumed=True)
        others = [c for c in self.connections.values() if c.state in (State.ATTACHED, State.SPARE)]
        if self.twin_due is not None and not others:
            effects += self._twin_is_dead(now)
        if carried and was_there:
            self.redial_at[connection.plane] = now + self.us.rng.uniform(0, BACKOFF_S[0] / 2)
        elif connection.dialed and connection.plane not in self.redial_at:
            effects += self.failed(connection.plane, now)
        return effects + self._dial_if_needed()

    def _heard_bye(self, connection: Connection, bye: Bye, now: float) -> list[Effect]:
        effects = list[Effect]()
        if bye.code == wire.TWIN:
            self.connections.pop(connection.number, None)
            if self.session is not None:
                self.session.detach(connection.number)
            words = f"another node has this key, and was first (we are boot {self.us.me.boot})"
            return [WeAreTwin(bye.text or words)]
        if bye.code == wire.OVER and self.session is not None and connection.mine is not None:
            ours = (connection.mine.session, connection.mine.proposal)
            if self.session.id in ours:
                effects += self.end(now, "the other side had given the session up")
        if bye.code in (wire.LEAVING, wire.BROKEN):
            effects += self.end(now, bye.text or "it left")
        if bye.code == wire.REFUSED:
            effects += self.lost(connection, now)
            return effects + self.refused(f"{short_peer(self.peer)} refuses this node: {bye.text}", now)
        return effects + self.lost(connection, now)

    def end(self, now: float, reason: str) -> list[Effect]:
        """The session is over, for good. If one is wanted, a new one is tried for."""
        session = self.session
        if session is None:
            return []
        self.session, self.proposal = None, self.us.propose()
        self.us.ends(self.peer, session.id)
        effects: list[Effect] = [SessionDown(self.peer, reason)]
        for connection in list(self.connections.values()):
            if connection.state in (State.ATTACHED, State.SPARE):
                effects += self.hang_up(connection, wire.STALE, reason)
        if self.wanted_since is not None:
            self.wanted_since, self.told_unreachable = now, False
        return effects


def farewell(connection: Connection, code: str, text: str) -> list[Effect]:
    """Say why, and close."""
    bye = wire.encode(Bye(code, text[: wire.WORDS_MAX]))
    return [Transmit(connection.number, bye), Hangup(connection.number, text)]
