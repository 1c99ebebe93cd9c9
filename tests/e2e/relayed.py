"""Real peers in one process whose session goes by a relay that is none: what one sends arrives at the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lattica.mesh.identity import PeerId, peer_text
from lattica.mesh.nat.routes import Route, ViaRelay
from lattica.mesh.peer import Peer
from lattica.mesh.transport.quic import RELAY, Quic
from lattica.mesh.transport.ways import Ways

DELAY_S = 0.01
CHANNEL = 7


def quic_of(peer: Peer) -> Quic:
    assert isinstance(peer._transport, Ways) and peer._transport.quic is not None
    return peer._transport.quic


class FakeRelay:
    """carried: datagrams, both ways."""

    def __init__(self, relay: PeerId, one: Peer, other: Peer) -> None:
        self.relay, self.carried, self.dead = relay, 0, False
        self.route = ViaRelay(relay, CHANNEL)
        for here, there in ((one, other), (other, one)):
            quic = quic_of(here)
            quic.relayed = self._relayed
            quic.socket.to_relay = lambda route, datagrams, there=there: self._carry(there, datagrams)  # type: ignore[misc]

    async def _relayed(self, peer: PeerId, relay: PeerId) -> Route:
        return self.route

    def _carry(self, there: Peer, datagrams: Sequence[bytes]) -> None:
        for datagram in datagrams:
            self.carried += 1
            if not self.dead:
                asyncio.get_running_loop().call_later(DELAY_S, quic_of(there).socket.arrived, self.route, datagram)

    @property
    def address(self) -> str:
        return RELAY + peer_text(self.relay)
