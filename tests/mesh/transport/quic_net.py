"""QUIC transports in one process, on a virtual clock; datagrams go by "relays" that are other nodes of this net."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from time import time
from typing import Any

from lattica.mesh import wire
from lattica.mesh.effects import Dial
from lattica.mesh.identity import PeerId, peer_text
from lattica.mesh.nat.routes import Route, ViaRelay
from lattica.mesh.transport.quic import Quic
from lattica.mesh.wire import CONTROL, Received
from tests.mesh.transport.quic_pairs import Keys, Mesh


@functools.cache
def mesh_of_today() -> Mesh:
    return Mesh(time())


@dataclass
class Hears:
    """An owner that writes down what it is told."""

    dialed_: list[tuple[int, int, PeerId]] = field(default_factory=list)
    failed: list[tuple[int, str, bool]] = field(default_factory=list)
    accepted_: list[tuple[int, PeerId]] = field(default_factory=list)
    frames: dict[int, list[Received]] = field(default_factory=dict)
    broken_: list[tuple[int, str]] = field(default_factory=list)
    closed_: list[tuple[int, str]] = field(default_factory=list)
    refused_: list[tuple[str, str]] = field(default_factory=list)

    def dialed(self, attempt: int, number: int, member: Any, rank: int = 0) -> None:
        self.dialed_.append((attempt, number, member.peer))

    def dial_failed(self, attempt: int, reason: str, final: bool) -> None:
        self.failed.append((attempt, reason, final))

    def accepted(self, number: int, member: Any, rank: int = 0) -> None:
        self.accepted_.append((number, member.peer))

    def received(self, number: int, frames: list[Received]) -> None:
        self.frames.setdefault(number, []).extend(frames)

    def broken(self, number: int, reason: str) -> None:
        self.broken_.append((number, reason))

    def closed(self, number: int, reason: str) -> None:
        self.closed_.append((number, reason))

    def refused(self, address: str, reason: str) -> None:
        self.refused_.append((address, reason))

    def better(self, peer: PeerId, plane: int = 0) -> None: ...


class Node:
    def __init__(self, net: Net, keys: Keys) -> None:
        self.keys, self.hears = keys, Hears()
        self.quic = Quic(self.hears, keys)
        self.address = f"relay/{peer_text(keys.peer)}"
        self.channel = 1

        async def relayed(peer: PeerId, relay: PeerId) -> Route:
            return ViaRelay(relay, self.channel)

        self.quic.relayed = relayed
        self.quic.socket.to_relay = functools.partial(net.carry, self)

    def say(self, number: int, plane: int = CONTROL, payload: bytes = b"", seq: int = 1) -> None:
        """A hello, and a frame if there is a payload."""
        self.quic.write(number, wire.encode(wire.Hello(boot=1, instance=b"12345678", plane=plane)))
        if payload:
            self.data(number, payload, seq)
        self.quic.flush()

    def data(self, number: int, payload: bytes, seq: int = 1) -> None:
        self.quic.write(number, (wire.data_head(len(payload), seq, 0), payload))
        self.quic.flush()


class Net:
    """delay_s: one way. loss: the share of datagrams that never arrive. dead: who is cut off."""

    def __init__(self, *, delay_s: float = 0.01, loss: float = 0.0, seed: int = 7) -> None:
        self.delay_s, self.loss, self.rng = delay_s, loss, Random(seed)
        self.nodes: dict[PeerId, Node] = {}
        self.dead: set[PeerId] = set()
        self.carried: list[tuple[PeerId, PeerId, bytes]] = []
        self.bytes_s: float | None = None  # of each direction of each pair
        self._free_at: dict[tuple[PeerId, PeerId], float] = {}

    def node(self, keys: Keys | None = None) -> Node:
        made = Node(self, keys or mesh_of_today().member())
        self.nodes[made.keys.peer] = made
        return made

    def carry(self, sender: Node, route: ViaRelay, datagrams: Sequence[bytes]) -> None:
        loop = asyncio.get_running_loop()
        there = self.nodes.get(route.relay)
        for datagram in datagrams:
            self.carried.append((sender.keys.peer, route.relay, datagram))
            cut = {sender.keys.peer, route.relay} & self.dead
            if there is None or cut or self.rng.random() < self.loss:
                continue
            at = loop.time()
            if self.bytes_s is not None:
                way = sender.keys.peer, route.relay
                at = self._free_at[way] = max(at, self._free_at.get(way, 0.0)) + len(datagram) / self.bytes_s
            loop.call_at(
                at + self.delay_s, there.quic.socket.arrived, ViaRelay(sender.keys.peer, sender.channel), datagram
            )

    async def connected(self, one: Node, two: Node, *, plane: int = CONTROL, attempt: int = 1) -> tuple[int, int]:
        """A connection that `one` has dialed, and both have said hello on; its numbers."""
        before = len(two.hears.accepted_)
        one.quic.dial(Dial(attempt, two.keys.peer, (two.address,), plane))
        await until(lambda: any(tried == attempt for tried, *_ in one.hears.dialed_))
        number = next(number for tried, number, _ in one.hears.dialed_ if tried == attempt)
        one.say(number, plane)
        await until(lambda: len(two.hears.accepted_) > before)
        there = two.hears.accepted_[-1][0]
        two.say(there, plane)
        await until(lambda: number in one.hears.frames)
        return number, there


async def until(holds: Any, longest_s: float = 30.0) -> None:
    """Let virtual time pass until that holds."""
    end = asyncio.get_running_loop().time() + longest_s
    while not holds():
        assert asyncio.get_running_loop().time() < end, "it did not come to hold"
        await asyncio.sleep(0.001)
