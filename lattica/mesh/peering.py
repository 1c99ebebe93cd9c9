"""Everything between this peer and one other: the session, the connections that carry it, when to dial.

`Sessions` keeps one `Peering` per other peer and hands on what concerns it. What all of them share is in `Us`. The file
is long: dialing, silence and twins have rooms of their own, and what is left is one machine.

Rules of this file. A proposal is kept until the other side has been heard in the session that came of it, so that a
connection that dies between the hellos costs nothing; a session that ended is never taken up again (`Us.ended`), for
the other side may have executed what it was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.mesh import wire
from lattica.mesh.dialing import UNREACHABLE_S, Dialing
from lattica.mesh.effects import Dial, Hangup, Transmit
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.links import (
    STREAM_RANK,
    Attached,
    ClockSample,
    Connection,
    Delivered,
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
from lattica.mesh.liveness import (
    DEAD_AFTER_S,
    PROBE_S,
    WAIT_S,
    due,
    fell_silent,
    given_up_at,
    is_silent,
    measure_at,
    round_trip,
    verdict,
)
from lattica.mesh.session import Session
from lattica.mesh.twins import Inquiry, Process, is_later_twin, statement
from lattica.mesh.us import Effect, Us, farewell
from lattica.mesh.wire import BULK, CONTROL, Bye, Frame, Hello

DIALS_MAX = 3  # of one peer at once, as its addresses become known
STEADY_S = 1.0  # of a bulk connection's life, after which the next one is dialed as soon as it is gone
KEEP_S = 60.0
"""A session without a connection is kept this long: a router restarts within it. Longer holds calls, and what they
hold, for a peer that is gone."""


class Peering:
    """See the module. Every verb returns effects."""

    __slots__ = (
        "bulk_used_at", "connections", "dialing", "down_since", "inquiry", "member", "peer", "process", "proposal",
        "rtt_s", "session", "us", "waits_since",
    )  # fmt: skip

    def __init__(self, us: Us, peer: PeerId) -> None:
        self.us, self.peer = us, peer
        self.dialing = Dialing(us.rng)
        self.session: Session | None = None
        self.proposal = us.propose()
        self.process: Process | None = None  # of the other side
        self.inquiry: Inquiry | None = None  # which of its processes lives
        self.member: Member | None = None
        self.connections: dict[int, Connection] = {}
        self.down_since = 0.0  # since when the session has no control connection
        self.bulk_used_at = 0.0
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
        for connection in self.connections.values():
            if connection.plane == CONTROL and connection.state is State.ATTACHED:
                return connection
        return None

    @property
    def idle(self) -> bool:
        """Nothing is left to know."""
        return not self._needed and not self.connections and not self.dialing.attempts

    @property
    def _needed(self) -> bool:
        return self.session is not None or self.dialing.wanted_since is not None

    @property
    def _is_talking(self) -> bool:
        """There is a connection for the control plane, or may be one in a moment."""
        return any(connection.plane == CONTROL for connection in self.connections.values())

    def validate(self) -> None:
        carriers: list[int | None] = [None] * len(wire.PLANES)
        for number, connection in self.connections.items():
            assert connection.number == number, f"{connection!r} is filed under {number}"
            assert connection.peer == self.peer, f"{connection!r} is filed under {self!r}"
            assert self.us.connections.get(number) is connection, f"{connection!r} is gone"
            if connection.state is State.ATTACHED:
                plane = connection.plane
                assert carriers[plane] is None, f"{self.of_plane(plane)!r} all carry plane {plane}"
                carriers[plane] = number
        for plane, carrier in enumerate(carriers):
            carried = self.session.connection(plane) if self.session is not None else None
            assert carried == carrier, f"{self!r} carries plane {plane} over {carried}"
        if self.session is not None:
            self.session.validate()

    # -- wishes of this machine

    def connect(self, addresses: Sequence[str], now: float) -> list[Effect]:
        """Have a session, and keep it."""
        self.dialing.wish(addresses, now)
        return self._dial_if_needed()

    def found(self, addresses: Sequence[str]) -> list[Effect]:
        """Where the peer is now. If it is not reached yet, what is new is tried at once, beside a dial under way: that
        may wait for seconds at an address that leads nowhere from here. Over datagrams only what a stream may reach."""
        new = tuple(address for address in addresses if address not in self.dialing.addresses)
        awaited = self.dialing.wanted_since is not None or self.session is not None
        if not new or not awaited or self.us.stopped:
            return []
        if self._is_talking:
            control = self.control
            direct = tuple(address for address in new if "/" not in address)  # not by way of a relay
            if control is None or control.rank == STREAM_RANK or not direct:
                return []
            new = direct
        self.dialing.addresses = tuple(addresses)
        if CONTROL not in self.dialing.attempts and not self._is_talking:
            self.dialing.moved()
            return self._dial_if_needed()
        beside = self.us.under_way(self, CONTROL) < DIALS_MAX
        return [msgspec.structs.replace(self._dial(CONTROL), addresses=new)] if beside else []

    def upgrade(self, addresses: Sequence[str], plane: int = CONTROL) -> list[Effect]:
        """Dial once more although a connection is there: a better one may take its place, and takes what it carries."""
        if self.control is None or self.us.stopped or plane in self.dialing.attempts:
            return []
        self.dialing.addresses = tuple(dict.fromkeys((*addresses, *self.dialing.addresses)))
        return [self._dial(plane)]

    def disconnect(self, reason: str, now: float) -> list[Effect]:
        """No session is wanted any more; the one there is ends now."""
        self.dialing.wanted_since = None
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
        self.dialing.attempts.pop(plane, None)
        if connection.peer != self.peer:  # whom we may have a session with: it is not refused
            return [*self.hang_up(connection, wire.STALE, "another peer was called"), *self.failed(plane, now)]
        if why := self.us.objection(connection.member, self.us.unix(now)):
            return [*self.hang_up(connection, wire.REFUSED, why), *self.failed(plane, now)]
        if not self._needed:
            return self.hang_up(connection, wire.STALE, "it is not wanted any more")
        self.connections[connection.number] = connection
        return [self._greet(connection, now)]

    def dial_failed(self, plane: int, reason: str, now: float, final: bool) -> list[Effect]:
        """A dial of ours came to nothing."""
        if not final and self.us.under_way(self, plane):
            return []  # another one may still succeed
        self.dialing.attempts.pop(plane, None)
        return self.refused(reason, now) if final else self.failed(plane, now, reason)

    def frame(self, connection: Connection, frame: wire.Received, now: float, effects: list[Effect]) -> None:
        """A frame of one of our connections. Raises RemoteProtocolError."""
        session = self.session
        if connection.theirs is None or isinstance(frame, Bye):
            self._early(connection, frame, now, effects)
            return
        match frame:
            case wire.Data():
                self.data(connection, frame, now, effects)
            case wire.Ack(number):
                if session is not None and connection.state in (State.ATTACHED, State.SPARE):
                    session.acknowledged(connection.plane, number)
                    self._heard_in(session)
                    effects.append(Room(self.peer, connection.plane))
            case wire.Ping(nonce):
                effects.append(Transmit(connection.number, wire.encode(wire.Pong(nonce))))
            case wire.Pong(nonce):
                if connection.asked_at is not None and connection.plane == CONTROL and nonce == 0:
                    self.rtt_s = connection.rtt_s = round_trip(connection.rtt_s, now - connection.asked_at)
                    connection.asked_at = None
            case wire.Want(plane):
                self.dialing.bulk_asked = self.dialing.bulk_asked or plane == BULK
                for bulk in self.of_plane(BULK):
                    if fell_silent(bulk, now):  # the other side has none, so its way is gone
                        effects += self.hang_up(bulk, wire.STALE, "the other side has no bulk connection")
                effects += self._bulk_if_needed(now)
            case wire.Prove(instance):
                effects += self._prove(connection, instance, now)
            case wire.Proof(signature):
                effects += self._proved(connection, signature, now)
            case Hello():
                raise RemoteProtocolError("it said hello twice")
            case _:
                assert_never(frame)

    def data(self, connection: Connection, frame: wire.Data, now: float, effects: list[Effect]) -> None:
        """`frame` for the kind that nearly all are, of a connection whose hello has come."""
        session, plane = self.session, connection.plane
        if connection.state is State.WAITING:  # it has agreed, and we cannot: it will send this again
            effects += self._close(connection, wire.STALE, "another process of this peer is here", now)
            return
        assert session is not None, f"{connection!r} is attached to no session"
        if plane == BULK:
            self.bulk_used_at = now
        is_new = session.receive(plane, frame, now)
        if is_new:
            effects.append(Delivered(self.peer, plane, frame.payload))
        if self.proposal == session.id:
            self._heard_in(session)
        if plane == BULK or not is_new:
            effects.append(Room(self.peer, plane))

    def breach(self, reason: str, now: float) -> list[Effect]:
        """The other side broke a rule: drop it, and what was between us."""
        self.dialing.broke(now)
        effects: list[Effect] = []
        for connection in list(self.connections.values()):
            effects += self.hang_up(connection, wire.BROKEN, reason)
        return effects + self.end(now, f"the other side broke a rule: {reason}")

    # -- time

    def tick(self, now: float) -> list[Effect]:
        """Whatever is due."""
        effects: list[Effect] = []
        for connection in list(self.connections.values()):
            if connection.number in self.connections:
                effects += self._look_at(connection, now)
        if self.inquiry is not None and self.inquiry.due <= now:
            effects += self._inquired(now)
        if self.session is not None:
            effects += self.session.tick(now)
            if self.control is None and self.down_since + KEEP_S <= now:
                effects += self.end(now, f"no connection for {KEEP_S:g} s")
        if self.dialing.tick(now, up=self.session is not None):
            effects.append(Unreachable(self.peer, f"nobody answered for {UNREACHABLE_S:g} s", final=False))
        effects += self._dial_if_needed()
        return effects + self._bulk_if_needed(now)

    def next_deadline(self) -> float | None:
        """When to call `tick`."""
        session = self.session
        first = self.dialing.next_deadline(up=session is not None)
        for connection in self.connections.values():
            at = due(connection, *self._measure(connection))
            if connection.plane == BULK and connection.pinged_at is not None:
                at = min(at, given_up_at(connection, self.control))
            if first is None or at < first:
                first = at
        if self.inquiry is not None and (first is None or self.inquiry.due < first):
            first = self.inquiry.due
        if session is not None:
            ack_due = session.next_deadline()
            if ack_due is not None and (first is None or ack_due < first):
                first = ack_due
            if self.control is None and (first is None or self.down_since + KEEP_S < first):
                first = self.down_since + KEEP_S
        return first

    def _look_at(self, connection: Connection, now: float) -> list[Effect]:
        """Ask whether this connection lives, or close it, if it is time to."""
        if connection.plane == BULK and given_up_at(connection, self.control) <= now:
            if connection.pinged_at is not None and connection.doubted_at < connection.pinged_at:
                connection.doubted_at = now
                return []
            effects = self._close(connection, wire.STALE, "it is silent, and control is heard", now)
            self.dialing.not_needed(BULK)  # no pause: this side knows, and the other may not
            return effects + self._bulk_if_needed(now)
        by = self._measure(connection)
        if due(connection, *by) > now:
            return []
        if measure_at(connection) <= now:
            connection.asked_at = connection.measured_at = now
            return [Transmit(connection.number, wire.encode(wire.Ping(0)))]
        farewell = verdict(connection, *by, now)
        if farewell is None:
            connection.pinged_at = connection.asked_at = connection.measured_at = now
            return [Transmit(connection.number, wire.encode(wire.Ping(0))), *self._doubt(connection)]
        effects = self._close(connection, *farewell, now)
        if farewell[0] == wire.IDLE:
            self.dialing.not_needed(BULK)
        return effects

    def _doubt(self, connection: Connection) -> list[Effect]:
        """Something is due and nothing is heard: the way may be gone, as where a router has a new address. Dial beside
        it, for TCP says so after minutes and the verdict takes seconds; QUIC looks for another way by itself."""
        is_tcp = connection is self.control and connection.rank == STREAM_RANK
        waits = self.session is not None and self.session.unacked_bytes(connection.plane) > 0
        return self.upgrade(()) if is_tcp and connection.dialed and waits else []

    def _measure(self, connection: Connection) -> tuple[float, float | None, float]:
        """What `liveness.due` looks at besides the connection: expires_at, waits_since, bulk_used_at."""
        plane = connection.plane
        waits = self.session is not None and self.session.unacked_bytes(plane) > 0
        expires_at = connection.member.expires - self.us.wall_offset - self.us.correction_s
        return expires_at, self.waits_since[plane] if waits else None, self.bulk_used_at

    # -- dialing

    def _dial(self, plane: int) -> Dial:
        number = self.dialing.attempts[plane] = self.us.attempt(self, plane)
        return Dial(number, self.peer, self.dialing.addresses, plane)

    def _dial_if_needed(self) -> list[Effect]:
        """Dial the control plane, if a session is wanted or one waits for a connection, and nothing is under way."""
        if not self._needed or not self.dialing.may(CONTROL) or self.us.stopped:
            return []
        return [] if self._is_talking else [self._dial(CONTROL)]

    def _bulk_if_needed(self, now: float) -> list[Effect]:
        """Dial the bulk plane, or ask the other side to, if something waits for it."""
        session = self.session
        waits = session is not None and session.unacked_bytes(BULK) > 0
        if session is None or not (waits or self.dialing.bulk_asked):
            return []
        control = self.control
        if control is None or self.dialing.pauses(BULK) or self.of_plane(BULK, *State):
            return []
        if (self.dialing.bulk_asked or (waits and control.dialed)) and self.dialing.may(BULK):
            return [self._dial(BULK)]
        if not waits:
            return []
        self.dialing.asked(now)
        return [Transmit(control.number, wire.encode(wire.Want(BULK)))]

    def _bulk_again(self, now: float) -> list[Effect]:
        """Bulk that had lasted is gone. One side dials it, so no pause keeps two apart; and if that is this side, it
        does not wait for the other's wish, which would come a round trip later, if bulk was coming."""
        self.dialing.not_needed(BULK)
        control = self.control
        if control is not None and control.dialed and self.bulk_used_at + WAIT_S > now:
            self.dialing.bulk_asked = True
        return self._bulk_if_needed(now)

    def failed(self, plane: int, now: float, reason: str = "") -> list[Effect]:
        """Dialing failed: pause, longer each time, and not in step with others."""
        self.dialing.failed(plane, now)
        return [Faltering(self.peer, reason)] if self.session is not None and self.control is None else []

    def refused(self, reason: str, now: float) -> list[Effect]:
        """They do not talk to us, or we not to them: dialing again changes nothing."""
        told = [Unreachable(self.peer, reason, final=True)] if self.dialing.refused() else []
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
        elif isinstance(frame, wire.Prove) and connection.dialed:  # another process of our key is known there
            effects += self._prove(connection, frame.instance, now)
        else:
            raise RemoteProtocolError(f"its first frame was {type(frame).__name__}, not Hello")

    def _heard_in(self, session: Session) -> None:
        if self.proposal == session.id and session.begun:
            self.proposal = self.us.propose()

    def _greeted(self, connection: Connection, hello: Hello, now: float) -> list[Effect]:
        connection.theirs = hello
        if not connection.dialed:
            connection.plane = hello.plane
        elif connection.plane != hello.plane:
            raise RemoteProtocolError(f"plane {connection.plane} was dialed, and plane {hello.plane} answers")
        if hello.oldest > wire.PROTOCOL or hello.protocol < self.us.me.oldest:
            side = "update this node" if hello.oldest > wire.PROTOCOL else "it must be updated"
            why = f"it speaks protocol {hello.protocol} (lattica {hello.version}), we {wire.PROTOCOL}: {side}"
            return self._close(connection, wire.REFUSED, why, now)
        if self.peer == self.us.peer:
            return self._met_ourselves(connection, hello, now)
        effects: list[Effect] = [ClockSample(self.peer, hello.unix_s - (now + self.us.wall_offset))]
        process = (hello.boot, hello.instance)
        if self.process is not None and self.process != process:
            if self._former():
                connection.state = State.WAITING
                return effects + self._inquire(connection, self.process, process, now)
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
            self.dialing.wait_anew(now)
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
            if self._stays(other, connection) and not (plane == BULK and fell_silent(other, now)):
                if connection.dialed:
                    return self._close(connection, wire.STALE, "another one is there, and stays", now)
                connection.state = State.SPARE
                return self._probe(now)
            effects += self.hang_up(other, wire.STALE, "a newer connection carries the session")
        connection.state = State.ATTACHED
        self.member = connection.member
        if not self.dialing.addresses:  # it dialed us: where it says it listens is where to look for it
            self.dialing.addresses = tuple(hello.addresses)
        self.dialing.carried(plane)
        if plane == CONTROL:
            for bulk in self.of_plane(BULK):
                if bulk.rank < connection.rank:  # it goes on by the better way
                    effects += self.hang_up(bulk, wire.STALE, "there is a better way")
                elif bulk.pinged_at is not None or is_silent(other, bulk):
                    in_use = self.bulk_used_at + WAIT_S > bulk.heard_at  # till it fell silent
                    self.dialing.bulk_asked = connection.dialed and in_use
                    effects += self.hang_up(bulk, wire.STALE, "it fell silent, as what carried control did")
            self.dialing.not_needed(BULK)  # what was asked over the former connection may not have arrived
            effects.append(Attached(self.peer, connection.member, hello, resumed))
            connection.asked_at = connection.measured_at = now
            effects.append(Transmit(connection.number, wire.encode(wire.Ping(0))))
        else:
            self.bulk_used_at = now
        had = hello.received if hello.session == session.id else 0  # else it speaks of another session
        effects += session.attach(plane, connection.number, had)
        effects.append(Room(self.peer, plane))
        return effects + self._bulk_if_needed(now)

    def _stays(self, other: Connection, newer: Connection) -> bool:
        """Whether `other`, if it is alive, carries on although there is a newer one; both sides judge alike. Whoever
        dials again had a reason. Of two dialed at once it is the better way, or that of the lower PeerId."""
        if newer.dialed == other.dialed:
            return False
        if newer.rank != other.rank:
            return other.rank > newer.rank
        return newer.dialed != (self.us.peer < self.peer)

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
        theirs, ours = (hello.boot, hello.instance), self.us.process
        text = f"two live nodes have the key of peer {short_peer(self.peer)}: its directory was copied"
        code = wire.STALE if theirs == ours else wire.TWIN
        # With STALE, and from the later one, the bye is only words; the later one stops by what it sees itself.
        effects: list[Effect] = [] if connection.dialed else [self._greet(connection, now)]
        effects += self._close(connection, code if theirs > ours else wire.STALE, text, now)
        if theirs != ours:
            effects.append(WeAreTwin(text) if theirs < ours else TwinSeen(self.peer, text))
        return effects

    def _former(self) -> list[Connection]:
        """Connections of the process that we know."""
        return [c for c in self.connections.values() if c.state in (State.ATTACHED, State.SPARE)]

    def _waiting(self) -> list[Connection]:
        """Connections of a process that we do not know yet."""
        return [c for c in self.connections.values() if c.state is State.WAITING]

    def _prove(self, connection: Connection, instance: bytes, now: float) -> list[Effect]:
        """Say that we live, to whoever has met another process of our key. A signature costs, so not too often."""
        if instance == self.us.me.instance or now - connection.proved_at < PROBE_S:
            return []
        connection.proved_at = now
        signature = self.us.sign(statement(self.us.process, instance))
        return [Transmit(connection.number, wire.encode(wire.Proof(signature)))]

    def _inquire(self, connection: Connection, former: Process, new: Process, now: float) -> list[Effect]:
        """Ask both processes whether they live."""
        if self.inquiry is None:
            self.inquiry = Inquiry(former, new, now + PROBE_S)
        elif self.inquiry.new != new:
            return self._close(connection, wire.STALE, "a third process of this peer", now)
        effects: list[Effect] = [Transmit(connection.number, wire.encode(wire.Prove(former[1])))]
        return effects + [Transmit(each.number, wire.encode(wire.Prove(new[1]))) for each in self._former()]

    def _proved(self, connection: Connection, signature: bytes, now: float) -> list[Effect]:
        if self.inquiry is None:
            return []
        self.inquiry.proved(signature, new=connection.state is State.WAITING)
        return self._inquired(now) if self.inquiry.verdict is not None else []

    def _inquired(self, now: float) -> list[Effect]:
        """It is known which processes live: both, and the later one must stop; or only the new one."""
        assert self.inquiry is not None
        inquiry, known = self.inquiry, self.inquiry.verdict
        if known is None and not inquiry.former_lives:
            return self._restarted(now)
        self.inquiry = None
        waiting, effects = self._waiting(), list[Effect]()
        if known is None or not waiting:
            for connection in waiting:
                effects += self.hang_up(connection, wire.STALE, "an earlier process of this peer lives")
            return effects
        new_stops, (boot, instance), proof = known
        text = f"two live nodes have the key of peer {short_peer(self.peer)}: its directory was copied"
        text += "; the later one stops"
        effects.append(TwinSeen(self.peer, text))
        for connection in waiting if new_stops else self._former():
            effects += self.hang_up(connection, wire.TWIN, text, boot, instance, proof)
        return effects if new_stops else effects + self._restarted(now)

    def _restarted(self, now: float) -> list[Effect]:
        """The former process is silent, closed or told to stop: the new one takes its place."""
        self.inquiry = None
        effects: list[Effect] = []
        waiting = self._waiting()
        if not waiting:
            return effects
        for connection in self._former():
            effects += self.hang_up(connection, wire.STALE, "your process was restarted")
        effects += self.end(now, "its process was restarted")
        for connection in waiting:
            if connection.number in self.us.connections and connection.theirs is not None:
                self.process = connection.theirs.boot, connection.theirs.instance
                connection.state = State.GREETING
                effects += self._agree(connection, now)
        return effects

    # -- ends

    def hang_up(
        self, connection: Connection, code: str, text: str, boot: int = 0, instance: bytes = b"", proof: bytes = b""
    ) -> list[Effect]:
        """Say why, and close. The caller sees to what the connection carried, unless a successor does."""
        self.us.connections.pop(connection.number, None)
        self.connections.pop(connection.number, None)
        if self.session is not None:
            self.session.detach(connection.number)
        return farewell(connection, Bye(code, text[: wire.WORDS_MAX], boot, instance, proof))

    def _close(self, connection: Connection, code: str, text: str, now: float) -> list[Effect]:
        """Say why, and close; what the connection carried waits for the next one."""
        return [*self.hang_up(connection, code, text), *self.lost(connection, now)]

    def lost(self, connection: Connection, now: float) -> list[Effect]:
        """A connection is gone. What it carried waits for the next one."""
        self.us.connections.pop(connection.number, None)
        was_there = self.connections.pop(connection.number, None) is not None
        plane, carried = connection.plane, connection.state is State.ATTACHED
        if self.session is not None:
            self.session.detach(connection.number)
        effects: list[Effect] = []
        if self.session is not None and carried and not self.of_plane(plane):
            if plane == CONTROL:
                self.down_since = now
            if spares := self.of_plane(plane, State.SPARE):
                return self._attach(spares[0], now, resumed=True)
        if self.inquiry is not None and not self._former():
            effects += self._restarted(now)
        if carried and was_there:
            self.dialing.died(plane, now)
            if plane == BULK and connection.since + STEADY_S <= now:
                effects += self._bulk_again(now)
        elif connection.dialed and not self.dialing.pauses(plane):
            effects += self.failed(plane, now)
        return effects + self._dial_if_needed()

    def _heard_bye(self, connection: Connection, bye: Bye, now: float) -> list[Effect]:
        effects = list[Effect]()
        if bye.code == wire.TWIN:
            first = (bye.boot, bye.instance)
            if is_later_twin(self.us.sign, self.us.process, first, bye.proof):
                effects.append(WeAreTwin(bye.text or f"another node has this key, and was first (boot {bye.boot})"))
        if bye.code == wire.OVER and self.session is not None and connection.mine is not None:
            ours = (connection.mine.session, connection.mine.proposal)
            if self.session.id in ours:
                effects += self.end(now, "the other side had given the session up")
        if bye.code in (wire.LEAVING, wire.BROKEN):
            effects += self.end(now, bye.text or "it left")
        if bye.code == wire.BROKEN:
            self.dialing.broke(now)  # we will again
        if bye.code == wire.REFUSED and connection.generation == self.us.generation:
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
        self.dialing.wait_anew(now)
        return effects
