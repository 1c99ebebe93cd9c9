"""All sessions of one peer: whom to dial and when, who is at the other end, which connection carries what.

    A -> B  Hello(session, proposal, received)      B -> A  Hello(...)       then both write what the other lacks

The dialer speaks first; from the two hellos both sides compute which session this connection carries (`_agreed`): the
one that both still have, else a new one under the lower PeerId's proposal. A session outlives its connections for
KEEP_S. Two connections dialed at once: both sides keep the one dialed by the lower PeerId.

Rules of this file. Who is at the other end is what the transport authenticated (`Member`); a hello says nothing about
that. Until its hello is accepted a connection may send nothing else. A proposal is kept until the other side has been
heard in the session that came of it, so that a connection that dies between the hellos costs nothing; a session that
ended is never taken up again (`_ended`), for the other side may have executed what it was sent.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
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
    Link,
    Member,
    Room,
    SessionDown,
    SessionUp,
    State,
    TwinSeen,
    Unreachable,
    WeAreTwin,
)
from lattica.mesh.session import Session
from lattica.mesh.wire import BULK, CONTROL, Bye, Frame, Hello

KEEP_S = 60.0
"""A session without a connection is kept this long: a router restarts within it. Longer holds calls, and what they
hold, for a peer that is gone."""
HELLO_S = 10.0  # for the first frame of a connection: a slow link needs seconds, a silent one holds a descriptor
PING_AFTER_S = 15.0  # of silence: half of the shortest NAT mapping we have met
WAIT_S = 1.0  # of silence while an acknowledgement is due
DEAD_AFTER_S = 5.0  # without a sound although something is due: 20 round trips of the longest path on Earth
PROBE_S = 1.5  # for an answer from the old connection when a second one turns up
SPARE_S = 5.0  # a second connection that the other side has not closed by then is closed here
BULK_IDLE_S = 60.0  # a bulk connection that carried nothing for so long is closed; a new one costs 2.3 ms
BACKOFF_S = (0.2, 30.0)  # first and longest pause between dials
UNREACHABLE_S = 10.0  # after which those who wait for a peer are told so; dialing goes on
ENDED_MAX = 16  # ended sessions remembered of a peer
PEERS_ENDED_MAX = 4096  # peers of whom some are remembered
CONNECTIONS_MAX = 8  # of one peer: two planes, each with a successor and a twin

Effect = Dial | Transmit | Hangup | Event


class Sessions:
    """See the module. `now` is monotonic seconds; `now + wall_offset` is this machine's unix time."""

    def __init__(
        self,
        me: Hello,
        peer: PeerId,
        rng: Random,
        objection: Callable[[Member, float], str],
        *,
        wall_offset: float = 0.0,
    ) -> None:
        """me: our hello's constant part. objection(member, unix_s): "" or why we do not talk to it."""
        self.me, self.peer, self.wall_offset = me, peer, wall_offset
        self.correction_s = 0.0  # what others' clocks say that ours lacks
        self._rng, self._objection = rng, objection
        self._links: dict[PeerId, Link] = {}
        self._connections: dict[int, Connection] = {}
        self._attempts: dict[int, tuple[PeerId, int, int]] = {}  # attempt -> (peer, plane, generation)
        self._ended: OrderedDict[PeerId, deque[int]] = OrderedDict()
        self._last_attempt = 0
        self._generation = 0  # of our own certificates
        self._stopped = False

    def __repr__(self) -> str:
        up = sum(link.session is not None for link in self._links.values())
        return f"<Sessions of {short_peer(self.peer)}: {up} up, {len(self._connections)} connections>"

    # -- what is known

    def peers(self) -> Iterator[PeerId]:
        """All with whom a session is up."""
        return (peer for peer, link in self._links.items() if link.session is not None)

    def member(self, peer: PeerId) -> Member | None:
        """What this peer's certificates say, of the latest connection; None without a session."""
        link = self._links.get(peer)
        return link.member if link and link.session else None

    def session(self, peer: PeerId) -> Session | None:
        """The session with this peer."""
        link = self._links.get(peer)
        return link.session if link else None

    def hello(self, peer: PeerId) -> Hello | None:
        """What the peer last said of itself."""
        link = self._links.get(peer)
        return link.control.theirs if link and link.control else None

    def connection(self, peer: PeerId, plane: int = CONTROL) -> int | None:
        """The connection that carries this plane now."""
        session = self.session(peer)
        return session.connection(plane) if session else None

    def rtt_s(self, peer: PeerId) -> float | None:
        """Round trip of the last ping, in seconds."""
        link = self._links.get(peer)
        return link.rtt_s if link else None

    def room(self, peer: PeerId, plane: int) -> int:
        """Bytes that may be sent now; 0 without a session."""
        session = self.session(peer)
        return session.room(plane) if session else 0

    # -- wishes of this machine

    def connect(self, peer: PeerId, addresses: Sequence[str], now: float) -> list[Effect]:
        """Have a session with this peer, and keep it. addresses: where it was last known, best first."""
        if self._stopped or peer == self.peer:
            return []
        link = self._link(peer)
        if addresses:
            link.addresses = tuple(dict.fromkeys(addresses))
        if link.wanted_since is None:
            link.wanted_since, link.told_unreachable, link.failures = now, False, 0
            link.redial_at.pop(CONTROL, None)
        return self._dial_if_needed(peer, link, now)

    def disconnect(self, peer: PeerId, reason: str, now: float) -> list[Effect]:
        """No session with this peer is wanted any more; the one there is ends now."""
        link = self._links.get(peer)
        if link is None:
            return []
        link.wanted_since = None
        effects: list[Effect] = []
        for connection in list(link.connections.values()):
            effects += self._hang_up(connection, wire.LEAVING, reason)
        return effects + self._end(peer, link, now, reason) + self._forget_if_idle(peer, link)

    def send(self, peer: PeerId, plane: int, payload: Frame, size: int, now: float) -> Sequence[Effect]:
        """Send in the session. The caller looks at `room` first and has seen `SessionUp`."""
        link = self._links[peer]
        assert link.session is not None, f"no session with {short_peer(peer)}"
        if not link.session.unacked_bytes(plane):
            link.waits_since[plane] = now
        effects: list[Effect] = [*link.session.send(plane, payload, size)]
        if plane == BULK:
            link.bulk_used_at = now
            if not effects:
                effects += self._bulk_if_needed(peer, link, now)
        return effects

    def recheck(self, now: float) -> list[Effect]:
        """Who may talk to us has changed: end what may no longer be."""
        effects: list[Effect] = []
        for peer, link in list(self._links.items()):
            why = self._objection(link.member, self._unix(now)) if link.member is not None else ""
            for connection in list(link.connections.values()):
                if why:
                    effects += self._hang_up(connection, wire.REFUSED, why)
                elif self._objection(connection.member, self._unix(now)):  # an old one: the peer has a better chain now
                    effects += self._hang_up(connection, wire.STALE, "an older certificate of yours is not accepted")
                    effects += self._lost(connection, now)
            if why:
                effects += self._end(peer, link, now, why)
                effects += self._refused(peer, link, why, now)
        return effects

    def reconnect(self, reason: str, now: float) -> list[Effect]:
        """Let every session go on over new connections, which show new certificates."""
        effects: list[Effect] = []
        self._generation += 1
        for connection in list(self._connections.values()):
            if connection.number in self._connections:
                effects += self._hang_up(connection, wire.STALE, reason)
                effects += self._lost(connection, now)
        return effects

    def stop(self, reason: str, now: float) -> list[Effect]:
        """End every session, and begin none."""
        self._stopped = True
        effects: list[Effect] = []
        for peer, link in list(self._links.items()):
            for connection in list(link.connections.values()):
                effects += self._hang_up(connection, wire.LEAVING, reason)
            effects += self._end(peer, link, now, reason)
        self._links.clear()
        self._attempts.clear()
        return effects

    # -- what the transport says

    def dialed(self, attempt: int, number: int, member: Member, now: float) -> list[Effect]:
        """A dial of ours is connected, and this is who answered."""
        peer, plane, generation = self._attempts.pop(attempt, (None, CONTROL, 0))
        connection = Connection(number, member, True, plane, now, generation)
        self._connections[number] = connection
        link = self._links.get(peer) if peer is not None else None
        if link is None or self._stopped:
            return self._hang_up(connection, wire.STALE, "it is not wanted any more")
        assert peer is not None
        link.attempts.pop(plane, None)
        why = self._objection(member, self._unix(now))
        if member.peer != peer:
            why = f"at {', '.join(link.addresses)} answers {short_peer(member.peer)}, not {short_peer(peer)}"
        if why:
            return [*self._hang_up(connection, wire.REFUSED, why), *self._failed(peer, link, plane, why, now)]
        link.connections[number] = connection
        return [self._greet(connection, link, now)]

    def dial_failed(self, attempt: int, reason: str, now: float, *, final: bool = False) -> list[Effect]:
        """A dial of ours came to nothing. final: the other side refuses us, by its certificate check."""
        peer, plane, generation = self._attempts.pop(attempt, (None, CONTROL, 0))
        link = self._links.get(peer) if peer is not None else None
        if link is None or peer is None:
            return []
        link.attempts.pop(plane, None)
        if final and generation == self._generation:  # else we have better certificates by now
            return self._refused(peer, link, reason, now)
        return self._failed(peer, link, plane, reason, now)

    def accepted(self, number: int, member: Member, now: float) -> list[Effect]:
        """Somebody has connected."""
        connection = Connection(number, member, False, CONTROL, now, self._generation)
        self._connections[number] = connection
        if self._stopped:
            return self._hang_up(connection, wire.LEAVING, "this node is stopping")
        if why := self._objection(member, self._unix(now)):
            return self._hang_up(connection, wire.REFUSED, why)
        link = self._link(member.peer)
        if len(link.connections) >= CONNECTIONS_MAX:
            return self._hang_up(connection, wire.STALE, f"you have {CONNECTIONS_MAX} connections here already")
        link.connections[number] = connection
        return []

    def received(self, number: int, frames: Sequence[wire.Received], now: float) -> list[Effect]:
        """Frames of one connection, in order."""
        effects: list[Effect] = []
        try:
            for frame in frames:
                connection = self._connections.get(number)  # a frame before may have ended it
                if connection is None:
                    break
                connection.heard_at, connection.pinged_at = now, None
                self._frame(connection, frame, now, effects)
        except RemoteProtocolError as error:
            connection = self._connections.get(number)
            if connection is not None:
                effects += self.broken(number, str(error).partition("\n")[0], now)
        return effects

    def broken(self, number: int, reason: str, now: float) -> list[Effect]:
        """The other side broke a rule, in a frame or in a payload: drop it, and what was between us."""
        connection = self._connections.get(number)
        link = self._links.get(connection.peer) if connection is not None else None
        if connection is None or link is None:
            return []
        effects = self._hang_up(connection, wire.BROKEN, reason)
        effects += self._lost(connection, now)
        effects += self._end(connection.peer, link, now, f"the other side broke a rule: {reason}")
        return effects + self._failed(connection.peer, link, CONTROL, reason, now)

    def closed(self, number: int, reason: str, now: float) -> list[Effect]:
        """A connection is no more, and not by our `Hangup`."""
        connection = self._connections.pop(number, None)
        return self._lost(connection, now) if connection is not None else []

    # -- time

    def tick(self, now: float) -> list[Effect]:
        """Whatever is due."""
        effects: list[Effect] = []
        for connection in list(self._connections.values()):
            if connection.number in self._connections:
                effects += self._look_at(connection, now)
        for peer, link in list(self._links.items()):
            if link.twin_due is not None and link.twin_due <= now:
                effects += self._twin_is_dead(peer, link, now)
            if link.session is not None:
                effects += link.session.tick(now)
                if link.control is None and link.down_since + KEEP_S <= now:
                    effects += self._end(peer, link, now, f"no connection for {KEEP_S:g} s")
            if self._owed_words(link) and link.wanted_since is not None and link.wanted_since + UNREACHABLE_S <= now:
                link.told_unreachable = True
                effects.append(Unreachable(peer, f"nobody answered for {UNREACHABLE_S:g} s", final=False))
            for plane in [plane for plane, due in link.redial_at.items() if due <= now]:
                del link.redial_at[plane]
            effects += self._dial_if_needed(peer, link, now)
            effects += self._bulk_if_needed(peer, link, now)
            effects += self._forget_if_idle(peer, link)
        return effects

    def next_deadline(self) -> float | None:
        """When to call `tick`."""
        due = [self._due(connection) for connection in self._connections.values()]
        for link in self._links.values():
            if link.twin_due is not None:
                due.append(link.twin_due)
            if link.session is not None:
                if (ack_due := link.session.next_deadline()) is not None:
                    due.append(ack_due)
                if link.control is None:
                    due.append(link.down_since + KEEP_S)
            if self._owed_words(link) and link.wanted_since is not None:
                due.append(link.wanted_since + UNREACHABLE_S)
            due += link.redial_at.values()
        return min(due) if due else None

    def validate(self) -> None:
        for number, connection in self._connections.items():
            assert connection.number == number, f"{connection!r} is filed under {number}"
            link = self._links.get(connection.peer)
            assert link is not None and link.connections.get(number) is connection, f"{connection!r} has no link"
        for peer, link in self._links.items():
            for plane in wire.PLANES:
                attached = link.of_plane(plane)
                assert len(attached) <= 1, f"{attached!r} all carry plane {plane}"
                carried = link.session.connection(plane) if link.session else None
                assert carried == (attached[0].number if attached else None), f"{short_peer(peer)}: {link.session!r}"
            if link.session is not None:
                link.session.validate()
            for number in link.connections:
                assert number in self._connections, f"connection {number} of {short_peer(peer)} is gone"

    # -- dialing

    def _link(self, peer: PeerId) -> Link:
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = Link(self._propose())
        return link

    def _unix(self, now: float) -> float:
        return now + self.wall_offset + self.correction_s

    def _propose(self) -> int:
        return self._rng.getrandbits(63) + 1

    def _dial(self, peer: PeerId, link: Link, plane: int) -> Dial:
        self._last_attempt += 1
        link.attempts[plane] = self._last_attempt
        self._attempts[self._last_attempt] = peer, plane, self._generation
        return Dial(self._last_attempt, peer, link.addresses)

    def _dial_if_needed(self, peer: PeerId, link: Link, now: float) -> list[Effect]:
        """Dial the control plane, if a session is wanted or one waits for a connection, and nothing is under way."""
        needed = link.wanted_since is not None or link.session is not None
        if not needed or not link.addresses or CONTROL in link.attempts or CONTROL in link.redial_at or self._stopped:
            return []
        if any(connection.plane == CONTROL for connection in link.connections.values()):
            return []
        return [self._dial(peer, link, CONTROL)]

    def _bulk_if_needed(self, peer: PeerId, link: Link, now: float) -> list[Effect]:
        """Dial the bulk plane, or ask the other side to, if something waits for it."""
        session, control = link.session, link.control
        if (
            session is None
            or control is None
            or not session.unacked_bytes(BULK)
            or session.connection(BULK) is not None
        ):
            return []
        if BULK in link.attempts or BULK in link.redial_at or link.of_plane(BULK, *State):
            return []
        if control.dialed and link.addresses:
            return [self._dial(peer, link, BULK)]
        link.redial_at[BULK] = now + HELLO_S  # asks again then
        return [Transmit(control.number, wire.encode(wire.Want(BULK)))]

    def _failed(self, peer: PeerId, link: Link, plane: int, reason: str, now: float) -> list[Effect]:
        """Dialing failed: pause, longer each time, and not in step with others."""
        first, longest = BACKOFF_S
        pause_s = min(first * 2 ** min(link.failures, 16), longest)
        link.failures += 1
        link.redial_at[plane] = now + pause_s * self._rng.uniform(0.5, 1.5)
        return []

    def _refused(self, peer: PeerId, link: Link, reason: str, now: float) -> list[Effect]:
        """They do not talk to us, or we not to them: dialing again changes nothing."""
        link.redial_at.clear()
        wanted, link.wanted_since = link.wanted_since is not None, None
        told = [Unreachable(peer, reason, final=True)] if wanted else []
        return [*self._end(peer, link, now, reason), *told, *self._forget_if_idle(peer, link)]

    def _owed_words(self, link: Link) -> bool:
        return link.wanted_since is not None and link.session is None and not link.told_unreachable

    # -- hellos

    def _greet(self, connection: Connection, link: Link, now: float) -> Transmit:
        session = link.session
        connection.mine = msgspec.structs.replace(
            self.me,
            plane=connection.plane,
            session=session.id if session else 0,
            proposal=link.proposal,
            received=session.received(connection.plane) if session else 0,
            unix_s=now + self.wall_offset,  # uncorrected: each side measures the other's own clock
        )
        return Transmit(connection.number, wire.encode(connection.mine))

    def _frame(self, connection: Connection, frame: wire.Received, now: float, effects: list[Effect]) -> None:
        link = self._links[connection.peer]
        if isinstance(frame, Bye):
            self._connections.pop(connection.number)
            effects.append(Hangup(connection.number, f"it said: {frame.text or frame.code}"))
            effects += self._heard_bye(connection, link, frame, now)
            return
        if connection.theirs is None:
            if not isinstance(frame, Hello):
                raise RemoteProtocolError(f"its first frame was {type(frame).__name__}, not Hello")
            effects += self._greeted(connection, link, frame, now)
            return
        match frame:
            case wire.Data():
                session = link.session
                if connection.state is not State.ATTACHED and connection.state is not State.SPARE:
                    raise RemoteProtocolError("it sent data before the hellos had agreed")
                assert session is not None, f"{connection!r} is attached to no session"
                if connection.plane == BULK:
                    link.bulk_used_at = now
                before = session.unacked_bytes(connection.plane)
                if session.receive(connection.plane, frame, now):
                    effects.append(Delivered(connection.peer, connection.plane, frame.payload))
                self._heard_in_session(link, session)
                if session.unacked_bytes(connection.plane) < before:
                    effects.append(Room(connection.peer, connection.plane))
            case wire.Ack(number):
                if link.session is not None and connection.state in (State.ATTACHED, State.SPARE):
                    link.session.acknowledged(connection.plane, number)
                    self._heard_in_session(link, link.session)
                    effects.append(Room(connection.peer, connection.plane))
            case wire.Ping(nonce):
                effects.append(Transmit(connection.number, wire.encode(wire.Pong(nonce))))
            case wire.Pong(nonce):
                if connection.asked_at is not None and connection.plane == CONTROL and nonce == 0:
                    link.rtt_s, connection.asked_at = now - connection.asked_at, None
                if link.twin_due is not None and nonce == self._twin_nonce(link):
                    effects += self._twins(connection.peer, link, now)
            case wire.Want(plane):
                idle = BULK not in link.attempts and not link.of_plane(BULK, *State)
                if plane == BULK and link.session is not None and idle and link.addresses:
                    effects.append(self._dial(connection.peer, link, BULK))
            case Hello():
                raise RemoteProtocolError("it said hello twice")
            case _:
                assert_never(frame)

    def _heard_in_session(self, link: Link, session: Session) -> None:
        if link.proposal == session.id and session.begun:
            link.proposal = self._propose()

    def _greeted(self, connection: Connection, link: Link, hello: Hello, now: float) -> list[Effect]:
        connection.theirs = hello
        if not connection.dialed:
            connection.plane = hello.plane
        if hello.oldest > wire.PROTOCOL or hello.protocol < self.me.oldest:
            side = "update this node" if hello.oldest > wire.PROTOCOL else "it must be updated"
            why = f"it speaks protocol {hello.protocol} (lattica {hello.version}), we {wire.PROTOCOL}: {side}"
            return [*self._hang_up(connection, wire.REFUSED, why), *self._lost(connection, now)]
        if connection.peer == self.peer:
            return self._met_ourselves(connection, hello, now)
        effects: list[Effect] = [ClockSample(connection.peer, hello.unix_s - (now + self.wall_offset))]
        process = (hello.boot, hello.instance)
        if link.process is not None and link.process != process:
            others = [c for c in link.connections.values() if c.state in (State.ATTACHED, State.SPARE)]
            if others:
                connection.state = State.WAITING
                if link.twin_due is None:
                    link.twin_due = now + PROBE_S
                nonce = wire.encode(wire.Ping(self._twin_nonce(link)))
                return [*effects, *(Transmit(other.number, nonce) for other in others)]
            effects += self._end(connection.peer, link, now, "its process was restarted")
        link.process = process
        return effects + self._agree(connection, link, now)

    def _met_ourselves(self, connection: Connection, hello: Hello, now: float) -> list[Effect]:
        """Somebody with our own key: ourselves, by a roundabout address, or a node started from a copy."""
        theirs, ours = (hello.boot, hello.instance), (self.me.boot, self.me.instance)
        text = f"two live nodes have the key of peer {short_peer(self.peer)}: its directory was copied"
        code = wire.STALE if theirs == ours else wire.TWIN
        # With STALE, and from the later one, the bye is only words; the later one stops by what it sees itself.
        effects: list[Effect] = [] if connection.dialed else [self._greet(connection, self._link(self.peer), now)]
        effects += self._hang_up(connection, code if theirs > ours else wire.STALE, text)
        effects += self._lost(connection, now)
        if theirs != ours:
            effects.append(WeAreTwin(text) if theirs < ours else TwinSeen(self.peer, text))
        return effects

    def _agree(self, connection: Connection, link: Link, now: float) -> list[Effect]:
        """Both hellos are there, or ours goes out now: find the session that this connection carries."""
        hello, peer, effects = connection.theirs, connection.peer, list[Effect]()
        assert hello is not None
        current = link.session.id if link.session else 0
        if not connection.dialed:
            live = link.control is not None
            if hello.plane == CONTROL and live and current and hello.session != current and hello.proposal != current:
                probe = self._probe(link, now)
                why = "another connection carries a session that this one does not know"
                return [*probe, *self._hang_up(connection, wire.STALE, why), *self._lost(connection, now)]
            effects.append(self._greet(connection, link, now))
        mine = connection.mine
        assert mine is not None
        agreed = self._agreed(mine, hello, peer)
        if agreed in self._ended.get(peer, ()):
            why = "that session is over here"
            return [*effects, *self._hang_up(connection, wire.OVER, why), *self._lost(connection, now)]
        if connection.plane == BULK and (not current or agreed != current):
            why = "bulk of a session that is not"
            return [*effects, *self._hang_up(connection, wire.STALE, why), *self._lost(connection, now)]
        if agreed != current and connection.dialed and mine.session != current:
            why = "another session began meanwhile"
            return [*effects, *self._hang_up(connection, wire.STALE, why), *self._lost(connection, now)]
        fresh = agreed != current
        if fresh:
            effects += self._end(peer, link, now, "the other side does not know it any more")
            link.session = Session(agreed)
            link.told_unreachable = False
            effects.append(SessionUp(peer, hello))
        return effects + self._attach(connection, link, now, resumed=not fresh)

    def _agreed(self, mine: Hello, theirs: Hello, peer: PeerId) -> int:
        if mine.session and mine.session == theirs.session:
            return mine.session
        return mine.proposal if self.peer < peer else theirs.proposal

    def _attach(self, connection: Connection, link: Link, now: float, *, resumed: bool) -> list[Effect]:
        """This connection can carry its plane: let it, unless another one does and is to be kept."""
        session, hello = link.session, connection.theirs
        assert session is not None and hello is not None
        plane, effects = connection.plane, list[Effect]()
        other = next(iter(link.of_plane(plane)), None)
        if other is not None:
            lower_is_mine = self.peer < connection.peer
            if connection.dialed != other.dialed and connection.dialed != lower_is_mine:
                # The other one was dialed by the lower PeerId: it stays, if it is alive.
                if connection.dialed:
                    hang_up = self._hang_up(connection, wire.STALE, "both dialed at once")
                    return [*hang_up, *self._lost(connection, now)]
                connection.state = State.SPARE
                return self._probe(link, now)
            effects += self._hang_up(other, wire.STALE, "a newer connection carries the session")
        connection.state = State.ATTACHED
        link.member, link.failures = connection.member, 0
        link.redial_at.pop(plane, None)
        if plane == CONTROL:
            effects.append(Attached(connection.peer, connection.member, hello, resumed))
            connection.asked_at = now
            effects.append(Transmit(connection.number, wire.encode(wire.Ping(0))))
        else:
            link.bulk_used_at = now
        had = hello.received if hello.session == session.id else 0  # else it speaks of another session
        effects += session.attach(plane, connection.number, had)
        effects.append(Room(connection.peer, plane))
        return effects + self._bulk_if_needed(connection.peer, link, now)

    def _probe(self, link: Link, now: float) -> list[Effect]:
        """Ask the control connection whether it lives: a sound within PROBE_S, or it is closed."""
        control = link.control
        if control is None or control.pinged_at is not None:
            return []
        control.pinged_at = now - DEAD_AFTER_S + PROBE_S
        return [Transmit(control.number, wire.encode(wire.Ping(0)))]

    # -- twins: two processes with one key

    def _twin_nonce(self, link: Link) -> int:
        """Only a process that lives now can say it: made of when we asked."""
        assert link.twin_due is not None
        return int(link.twin_due * 1e6) & ((1 << 63) - 1) | 1

    def _twins(self, peer: PeerId, link: Link, now: float) -> list[Effect]:
        """The older connections answered: both processes live, and the later one must stop."""
        link.twin_due = None
        waiting = [c for c in link.connections.values() if c.state is State.WAITING]
        if not waiting or link.process is None:
            return []
        theirs = waiting[0].theirs
        assert theirs is not None
        text = f"two live nodes have the key of peer {short_peer(peer)}: its directory was copied; the later one stops"
        effects: list[Effect] = [TwinSeen(peer, text)]
        if (theirs.boot, theirs.instance) > link.process:
            for connection in waiting:
                effects += self._hang_up(connection, wire.TWIN, text)
            return effects
        for connection in [c for c in link.connections.values() if c.state is not State.WAITING]:
            effects += self._hang_up(connection, wire.TWIN, text)
        return effects + self._twin_is_dead(peer, link, now)

    def _twin_is_dead(self, peer: PeerId, link: Link, now: float) -> list[Effect]:
        """The older connections are silent or closed: the process was restarted."""
        link.twin_due = None
        effects: list[Effect] = []
        waiting = [c for c in link.connections.values() if c.state is State.WAITING]
        if not waiting:
            return effects
        for connection in [c for c in link.connections.values() if c.state in (State.ATTACHED, State.SPARE)]:
            effects += self._hang_up(connection, wire.STALE, "your process was restarted")
        effects += self._end(peer, link, now, "its process was restarted")
        for connection in waiting:
            if connection.number in self._connections and connection.theirs is not None:
                link.process = connection.theirs.boot, connection.theirs.instance
                connection.state = State.GREETING
                effects += self._agree(connection, link, now)
        return effects

    # -- ends

    def _hang_up(self, connection: Connection, code: str, text: str) -> list[Effect]:
        """Say why, and close. The caller sees to what the connection carried, by `_lost`, unless a successor does."""
        self._connections.pop(connection.number, None)
        link = self._links.get(connection.peer)
        if link is not None:
            link.connections.pop(connection.number, None)
            if link.session is not None:
                link.session.detach(connection.number)
        bye = wire.encode(Bye(code, text[: wire.WORDS_MAX]))
        return [Transmit(connection.number, bye), Hangup(connection.number, text)]

    def _lost(self, connection: Connection, now: float) -> list[Effect]:
        """A connection is gone. What it carried waits for the next one."""
        peer, link = connection.peer, self._links.get(connection.peer)
        self._connections.pop(connection.number, None)
        if link is None:
            return []
        was_there = link.connections.pop(connection.number, None) is not None
        carried = connection.state is State.ATTACHED
        if link.session is not None:
            link.session.detach(connection.number)
        effects: list[Effect] = []
        if connection.plane == CONTROL and link.session is not None and link.control is None and carried:
            link.down_since = now
            spares = link.of_plane(CONTROL, State.SPARE)
            if spares:
                return self._attach(spares[0], link, now, resumed=True)
        others = [c for c in link.connections.values() if c.state in (State.ATTACHED, State.SPARE)]
        if link.twin_due is not None and not others:
            effects += self._twin_is_dead(peer, link, now)
        if carried and was_there:
            link.redial_at[connection.plane] = now + self._rng.uniform(0, BACKOFF_S[0] / 2)
        elif connection.dialed and connection.plane not in link.redial_at:
            effects += self._failed(peer, link, connection.plane, "it closed the connection", now)
        effects += self._dial_if_needed(peer, link, now)
        return effects + self._forget_if_idle(peer, link)

    def _heard_bye(self, connection: Connection, link: Link, bye: Bye, now: float) -> list[Effect]:
        peer, effects = connection.peer, list[Effect]()
        if bye.code == wire.TWIN:
            mine = (self.me.boot, self.me.instance)
            link.connections.pop(connection.number, None)
            if link.session is not None:
                link.session.detach(connection.number)
            return [WeAreTwin(bye.text or f"another node has this key, and was first (we are boot {mine[0]})")]
        if bye.code == wire.OVER and link.session is not None and connection.mine is not None:
            ours = (connection.mine.session, connection.mine.proposal)
            if link.session.id in ours:
                effects += self._end(peer, link, now, "the other side had given the session up")
        if bye.code in (wire.LEAVING, wire.BROKEN):
            effects += self._end(peer, link, now, bye.text or "it left")
        if bye.code == wire.REFUSED and connection.generation == self._generation:
            effects += self._lost(connection, now)
            return effects + self._refused(peer, link, f"{short_peer(peer)} refuses this node: {bye.text}", now)
        return effects + self._lost(connection, now)

    def _end(self, peer: PeerId, link: Link, now: float, reason: str) -> list[Effect]:
        """The session is over, for good. If one is wanted, a new one is tried for."""
        session = link.session
        if session is None:
            return []
        link.session, link.proposal = None, self._propose()
        ended = self._ended.setdefault(peer, deque(maxlen=ENDED_MAX))
        ended.append(session.id)
        self._ended.move_to_end(peer)
        if len(self._ended) > PEERS_ENDED_MAX:
            self._ended.popitem(last=False)
        effects: list[Effect] = [SessionDown(peer, reason)]
        for connection in list(link.connections.values()):
            if connection.state in (State.ATTACHED, State.SPARE):
                effects += self._hang_up(connection, wire.STALE, reason)
        if link.wanted_since is not None:
            link.wanted_since, link.told_unreachable = now, False
        return effects

    def _forget_if_idle(self, peer: PeerId, link: Link) -> list[Effect]:
        idle = link.session is None and link.wanted_since is None and not link.connections and not link.attempts
        if idle and self._links.get(peer) is link:
            del self._links[peer]
        return []

    def _due(self, connection: Connection) -> float:
        """When to look at it again."""
        if connection.state is State.GREETING:
            return connection.since + HELLO_S
        due = connection.member.expires - self.wall_offset - self.correction_s
        if connection.state is State.SPARE:
            due = min(due, connection.since + SPARE_S)
        if connection.plane == BULK:
            link = self._links[connection.peer]
            due = min(due, max(link.bulk_used_at, connection.since) + BULK_IDLE_S)
        if connection.pinged_at is not None:
            return min(due, connection.pinged_at + DEAD_AFTER_S)
        return min(due, self._ping_at(connection))

    def _ping_at(self, connection: Connection) -> float:
        """How long it may be silent before it is pinged: less while something is due from it."""
        link = self._links[connection.peer]
        if link.session is not None and link.session.unacked_bytes(connection.plane):
            return max(connection.heard_at, connection.since, link.waits_since[connection.plane]) + WAIT_S
        return connection.heard_at + PING_AFTER_S

    def _look_at(self, connection: Connection, now: float) -> list[Effect]:
        if self._due(connection) > now:
            return []
        link = self._links[connection.peer]
        if connection.state is State.GREETING:
            hang_up = self._hang_up(connection, wire.STALE, f"no hello within {HELLO_S:g} s")
            return [*hang_up, *self._lost(connection, now)]
        if connection.member.expires <= self._unix(now):
            hang_up = self._hang_up(connection, wire.STALE, "a certificate of this connection has expired")
            return [*hang_up, *self._lost(connection, now)]
        if connection.state is State.SPARE and connection.since + SPARE_S <= now:
            hang_up = self._hang_up(connection, wire.STALE, "a second connection")
            return [*hang_up, *self._lost(connection, now)]
        if connection.plane == BULK and max(link.bulk_used_at, connection.since) + BULK_IDLE_S <= now:
            if link.session is None or not link.session.unacked_bytes(BULK):
                hang_up = self._hang_up(connection, wire.IDLE, "no bulk for a while")
                self._lost(connection, now)
                link.redial_at.pop(BULK, None)
                return hang_up
            link.bulk_used_at = now
        if connection.pinged_at is not None:
            if connection.pinged_at + DEAD_AFTER_S <= now:
                hang_up = self._hang_up(connection, wire.STALE, f"silent for {now - connection.heard_at:.1f} s")
                return [*hang_up, *self._lost(connection, now)]
            return []
        connection.pinged_at = connection.asked_at = now
        return [Transmit(connection.number, wire.encode(wire.Ping(0)))]
