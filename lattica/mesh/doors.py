"""`lattica.mesh.call` and `lattica.mesh.stream`: those of the peer whose block or method runs here."""

from __future__ import annotations

from typing import Any

from lattica.errors import ConfigError
from lattica.mesh.calls import Stream
from lattica.mesh.peer import Peer, Target, current


async def call(target: Target, method: str, *args: Any, **kwargs: Any) -> Any:
    """As `Peer.call`, by the peer of the surrounding `async with` block or method."""
    return await _here().call(target, method, *args, **kwargs)


async def stream(target: Target, method: str, *args: Any, **kwargs: Any) -> Stream:
    """As `Peer.stream`, by the peer of the surrounding `async with` block or method."""
    return await _here().stream(target, method, *args, **kwargs)


def _here() -> Peer:
    peer = current.get(None)
    if peer is None:
        raise ConfigError(
            "no peer of a mesh is running here", do_next="call it inside `async with mesh.Peer.join(ticket) as peer:`"
        )
    return peer
