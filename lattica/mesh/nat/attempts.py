"""What two peers that become direct say to each other, and what comes of their attempts: see `punching`."""

from __future__ import annotations

import msgspec

from lattica.mesh.nat.behaviour import Behaviour
from lattica.mesh.nat.candidates import Candidate
from lattica.mesh.nat.measuring import Witness
from lattica.mesh.nat.methods import Method
from lattica.mesh.nat.routes import CloseSocket, ConnectTcp, Direct, Endpoint, OpenSocket, SendOver


class Introduction(msgspec.Struct, frozen=True):
    """What one side tells of itself. tcp: where its listening port is seen over TCP."""

    behaviour: Behaviour
    candidates: tuple[Candidate, ...]
    tcp: tuple[Endpoint, ...] = ()
    birthday: bool = True


class Situation(msgspec.Struct, frozen=True):
    """What we know of ourselves. tcp_port: on which we listen."""

    introduction: Introduction
    witnesses: tuple[Witness, ...] = ()
    tcp_port: int = 0


class Readiness(msgspec.Struct, frozen=True):
    """endpoint: where our fresh socket is seen. ports: those that its next mappings will probably get."""

    endpoint: Endpoint | None = None
    ports: tuple[int, ...] = ()


class Introduce(msgspec.Struct, frozen=True, tag=1):
    """The leader begins an attempt, and tells of itself."""

    attempt: int
    introduction: Introduction


class Introduced(msgspec.Struct, frozen=True, tag=2):
    """The other side tells of itself, too."""

    attempt: int
    introduction: Introduction


class Prepare(msgspec.Struct, frozen=True, tag=3):
    """Open what this round needs, and say what is seen of it."""

    attempt: int
    round: int
    method: Method


class Ready(msgspec.Struct, frozen=True, tag=4):
    """took_s: how long it took to become ready, which is no part of the round trip."""

    attempt: int
    round: int
    readiness: Readiness
    took_s: float


class Go(msgspec.Struct, frozen=True, tag=5):
    """Shoot now; readiness: the leader's."""

    attempt: int
    round: int
    method: Method
    readiness: Readiness


class Later(msgspec.Struct, frozen=True, tag=6):
    """Instead of Ready: not now, but again in so many seconds."""

    attempt: int
    again_s: float


class Again(msgspec.Struct, frozen=True, tag=7):
    """Of the side that follows: it has found out more, so another attempt is worth it. attempt: the latest it knows."""

    attempt: int


Message = Introduce | Introduced | Prepare | Ready | Go | Later | Again


class Tell(msgspec.Struct, frozen=True):
    """Say this to the peer, over the session (a notice)."""

    message: Message


class Attempted(msgspec.Struct, frozen=True):
    """A round is over. reason: why it came to nothing; shots: datagrams sent; took_s: since its beginning."""

    method: Method | None
    round: int
    direct: bool
    took_s: float
    shots: int
    reason: str = ""


class BecameDirect(msgspec.Struct, frozen=True):
    """over: the route, or the remote end of a TCP connection; took_s: since `punch`, or the other side's Introduce."""

    method: Method
    over: Direct | Endpoint
    took_s: float


class StaysRelayed(msgspec.Struct, frozen=True):
    """Every method was tried, or there is none. again_s: until the next attempt by ourselves."""

    reason: str
    again_s: float


Effect = Tell | SendOver | OpenSocket | CloseSocket | ConnectTcp | Attempted | BecameDirect | StaysRelayed
