"""How a peer of the matrix offers to relay."""

from __future__ import annotations

from lattica.mesh.peer import Peer


def offer_relay(peer: Peer) -> None:
    """Let this peer relay for the others of its mesh."""
