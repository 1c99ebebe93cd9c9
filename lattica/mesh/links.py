"""Connections to other peers as sessions see them, and the events that come of them."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

import msgspec

from lattica.mesh import wire
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.wire import Hello

DATAGRAM_RANK, STREAM_RANK = 1, 2
"""Of the ways of a connection: a higher one carries more. TCP is of the higher, QUIC in Python of the lower."""


class Member(Protocol):
    """Who is at the other end, by its certificates."""

    @property
    def peer(self) -> PeerId: ...
    @property
    def expires(self) -> float: ...


class SessionUp(msgspec.Struct, frozen=True):
    """A session began; nothing of an earlier one is part of it."""

    peer: PeerId
    hello: Hello


class SessionDown(msgspec.Struct, frozen=True):
    """The session is over: what was asked in it and not answered may have run."""

    peer: PeerId
    reason: str


class Attached(msgspec.Struct, frozen=True):
    """A connection carries the session's control plane: the first one, or a successor. `member` may be renewed."""

    peer: PeerId
    member: Member
    hello: Hello
    resumed: bool


class Delivered(msgspec.Struct, frozen=True):
    """A payload from the session, in order, once."""

    peer: PeerId
    plane: int
    payload: wire.Buffer


class Room(msgspec.Struct, frozen=True):
    """The other side may have acknowledged frames of this plane. Of the control plane it is not said beside
    `Delivered`: whoever gets something looks for what it may send."""

    peer: PeerId
    plane: int


class Unreachable(msgspec.Struct, frozen=True):
    """Nobody answered for UNREACHABLE_S, or the peer refuses us (`final`): those who wait for it may give up."""

    peer: PeerId
    reason: str
    final: bool


class Faltering(msgspec.Struct, frozen=True):
    """The session has no connection, and dialing again failed: what may be asked elsewhere had better be."""

    peer: PeerId
    reason: str


class ClockSample(msgspec.Struct, frozen=True):
    """The peer's wall clock minus ours, by its hello; older by the time that the hello was under way."""

    peer: PeerId
    offset_s: float


class TwinSeen(msgspec.Struct, frozen=True):
    """Two live processes have this peer's key; the later one was told to stop."""

    peer: PeerId
    reason: str


class WeAreTwin(msgspec.Struct, frozen=True):
    """Another live process has our key and was first: we must stop."""

    reason: str


Event = (
    SessionUp | SessionDown | Attached | Delivered | Room | Unreachable | Faltering | ClockSample | TwinSeen | WeAreTwin
)


class State(Enum):
    """Of a connection, from its first frame on."""

    GREETING = auto()  # the other side's hello has not come
    WAITING = auto()  # it has; whether an earlier process of the same key still lives is being asked
    ATTACHED = auto()  # carries its plane
    SPARE = auto()  # could carry the control plane, which another connection does


class Connection:
    """One connection of a session, as `peering` keeps it: who is at its end, and when it was last heard."""

    __slots__ = (
        "asked_at",
        "dialed",
        "doubted_at",
        "generation",
        "heard_at",
        "measured_at",
        "member",
        "mine",
        "number",
        "peer",
        "pinged_at",
        "plane",
        "proved_at",
        "rank",
        "rtt_s",
        "since",
        "state",
        "theirs",
    )

    def __init__(
        self,
        number: int,
        member: Member,
        dialed: bool,
        plane: int,
        now: float,
        generation: int = 0,
        rank: int = STREAM_RANK,
    ) -> None:
        """generation: of our own certificates that it was made with. rank: of the way that it takes."""
        self.number, self.member, self.peer, self.dialed, self.plane = number, member, member.peer, dialed, plane
        self.state = State.GREETING
        self.generation, self.rank = generation, rank
        self.mine: Hello | None = None
        self.theirs: Hello | None = None
        self.since = self.heard_at = now
        self.pinged_at: float | None = None  # a sound is due
        self.doubted_at = float("-inf")  # of bulk: control was heard, and this was not
        self.asked_at: float | None = None  # of the last ping, for the round trip
        self.measured_at = now  # when one was last sent
        self.rtt_s: float | None = None
        self.proved_at = float("-inf")  # when we last signed for it

    def __repr__(self) -> str:
        return f"<connection {self.number} of {short_peer(self.peer)}, {self.state.name.lower()}, plane {self.plane}>"
