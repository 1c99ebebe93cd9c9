"""What one node tells another for `lattica doctor`: whether its port can be reached from there, and its table."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lattica.errors import LatticaError
from lattica.mesh import tls
from lattica.mesh.addresses import split_host
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.services import caller, method, service
from lattica.mesh.transport.quic import RELAY

if TYPE_CHECKING:
    from lattica.mesh.peer import Peer

ADDRESSES_MAX = 8  # of a caller, tried at once
CONNECT_S = 2.0
CALLS_MAX = 4  # that are answered at once, of all callers


@service("node")
class DialBack:
    """Offered by every node that runs on its own."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    @method(role=None, idempotent=True, limit=CALLS_MAX)
    async def dial_back(self) -> dict[str, str]:
        """Address -> "" if the caller answers there, else why not: of its own addresses, and no others."""
        peer = caller.get().peer
        known = self._peer.addresses_of(peer)
        addresses = [address for address in known if not address.startswith(RELAY)][:ADDRESSES_MAX]
        tried = await asyncio.gather(*(self._try(address, peer) for address in addresses))
        return dict(zip(addresses, tried))

    @method(role=None, idempotent=True)
    def table_root(self) -> tuple[bytes, int]:
        """The fingerprint of our table, and how many rows it has."""
        replica = self._peer.gossip.community.replica
        return replica.root(), len(replica)

    async def _try(self, address: str, peer: PeerId) -> str:
        """A handshake, and no more: behind a private address there may be another machine."""
        contexts = self._peer.steward.contexts
        try:
            async with asyncio.timeout(CONNECT_S):
                _, writer = await asyncio.open_connection(
                    *split_host(address), ssl=contexts.client(), server_hostname=tls.MESH_NAME
                )
            try:
                there = contexts.member_of(writer.get_extra_info("ssl_object")).peer
            finally:
                writer.close()
        except TimeoutError:
            return f"no answer within {CONNECT_S:g} s"
        except (OSError, LatticaError) as error:
            return tls.words(error)
        return "" if there == peer else f"peer {short_peer(there)} is there"


def told_of(addresses: Sequence[str]) -> list[str]:
    """Those that mean the same on another machine; all of them if there are no others."""
    far = [address for address in addresses if not address.startswith(("127.", "[::1]", RELAY))]
    return far or list(addresses)
