"""What a transport offers, and what it tells its owner.

A transport authenticates: `dialed` and `accepted` come with the `Member` whom the other end has proved to be, and not
before. Connections are numbered by the transport; bytes keep their order within one. rank: of the way it takes
(`links`), for sessions to prefer one by; `better`: a way of a higher rank than was told is open after all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lattica.mesh.effects import Dial
from lattica.mesh.identity import PeerId
from lattica.mesh.links import STREAM_RANK, Member
from lattica.mesh.wire import CONTROL, Frame, Received


class Owner(Protocol):
    """Who is told; the verbs of `sessions.Sessions`, at the time they are called."""

    def dialed(self, attempt: int, number: int, member: Member, rank: int = STREAM_RANK) -> None: ...
    def dial_failed(self, attempt: int, reason: str, final: bool) -> None: ...
    def accepted(self, number: int, member: Member, rank: int = STREAM_RANK) -> None: ...
    def received(self, number: int, frames: list[Received]) -> None: ...
    def broken(self, number: int, reason: str) -> None: ...
    def closed(self, number: int, reason: str) -> None: ...
    def refused(self, address: str, reason: str) -> None: ...
    def better(self, peer: PeerId, plane: int = CONTROL) -> None: ...


class Transport(Protocol):
    """What carries frames: sockets, or memory in tests and simulations. Connections have numbers, which their owner
    deals out."""

    async def listen(self, address: str) -> Sequence[str]:
        """Accept connections at "host:port" (port 0: any); the addresses bound. Raises ConfigError if it is taken."""

    def dial(self, dial: Dial) -> None:
        """Begin a dial; the owner hears how it went."""

    def write(self, number: int, frame: Frame) -> None:
        """Write a frame after those before it; a number that is gone is ignored."""

    def flush(self) -> None:
        """Hand on what was written since the last flush."""

    def hang_up(self, number: int) -> None:
        """Close once everything is written; the owner hears nothing more of it."""

    def path(self, number: int) -> tuple[str, str]:
        """(what it is, "tcp+tls" or "quic"; the other end's address) for people."""

    async def close(self) -> None:
        """Close everything, and return when it is closed."""
