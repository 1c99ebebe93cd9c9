"""Peers in memory, on a virtual clock: certificates are names, and nothing is signed."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from blake3 import blake3

from lattica.mesh.identity import PeerId
from lattica.mesh.peer import Peer
from lattica.mesh.roles import EVERYTHING, NOTHING, Role
from lattica.mesh.services import method, service
from lattica.mesh.transport.memory import MemoryNetwork
from lattica.testing.loop import run_virtually


@dataclass(frozen=True)
class PlainMember:
    peer: PeerId
    roles: Role = EVERYTHING
    expires: float = 1e12


@dataclass
class PlainIdentity:
    peer: PeerId

    def sign(self, data: bytes) -> bytes:
        return bytes(blake3(self.peer + data).digest(64))


@dataclass
class PlainCredentials:
    identity: PlainIdentity
    boot: int = 1


class PlainSteward:
    """Admits everybody, and says what roles the certificate says."""

    no_roles = NOTHING
    contexts = None

    def __init__(self, peer: Peer) -> None:
        self.refused: list[str] = []

    def objection(self, member: Any, unix_s: float) -> str:
        return ""

    def met(self, peer: PeerId, member: Any, hello: Any) -> Role:
        roles: Role = member.roles
        return roles

    def parted(self, peer: PeerId) -> None: ...
    def clock_sample(self, peer: PeerId, offset_s: float) -> None: ...
    def refused_by(self, peer: PeerId, reason: str) -> None:
        self.refused.append(reason)

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def service(self) -> object:
        return _Nothing()


class PlainGossip:
    """Tells nobody anything."""

    def __init__(self, peer: Peer) -> None: ...
    def start(self) -> None: ...
    def leave(self) -> None: ...
    async def stop(self) -> None: ...
    def connected(self, peer: PeerId) -> None: ...
    def disconnected(self, peer: PeerId) -> None: ...
    def refused(self, peer: PeerId) -> None: ...
    def correct_clock(self) -> None: ...
    def offer(self, service: str) -> None: ...
    def moved(self, addresses: list[str]) -> None: ...
    def summon(self, peer: PeerId) -> bool:
        return False

    async def providers(self, service: str) -> list[PeerId]:
        return []


@service("nothing")
class _Nothing:
    @method(role=None)
    def here(self) -> bool:
        return True


class Network:
    """Makes peers that find each other in memory."""

    def __init__(self, delay_s: float) -> None:
        self.memory = MemoryNetwork(delay_s=delay_s)
        self._numbers = 0

    async def peer(self, *services: object, roles: Role = EVERYTHING, boot: int = 1, number: int = 0) -> Peer:
        self._numbers += 1
        id = PeerId(bytes([number or self._numbers]) * 32)
        credentials: Any = PlainCredentials(PlainIdentity(id), boot)
        member = PlainMember(id, roles)
        made = Peer(
            credentials,
            listen="memory:0",
            rng=Random(self._numbers),
            transport=lambda owner: self.memory.transport(owner, member),
            name=f"peer {self._numbers}",
            steward=PlainSteward,  # type: ignore[arg-type]
            gossip=PlainGossip,  # type: ignore[arg-type]
        )
        for each in services:
            made.serve(each)
        return await made.start()

    async def pair(self, *services: object, roles: Role = EVERYTHING) -> tuple[Peer, Peer]:
        """Two connected peers; the second serves, the first has `roles`."""
        one, two = await self.peer(roles=roles), await self.peer(*services)
        await one.connect(two.id, two.listening)
        return one, two


@pytest.fixture
def network() -> Callable[..., Network]:
    return lambda delay_s=0.01: Network(delay_s)


async def settle(seconds: float = 1.0) -> None:
    """Let virtual time pass."""
    await asyncio.sleep(seconds)


def virtual(test: Callable[..., Any]) -> Callable[..., None]:
    """Run an async test on a virtual clock."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_virtually(test(*args, **kwargs))

    return run
