"""`lattica.mesh.call` and its like: those of the peer whose block or method runs here."""

from __future__ import annotations

from typing import Any

from lattica.errors import ConfigError
from lattica.mesh.calls import Stream
from lattica.mesh.identity import PeerId
from lattica.mesh.peer import Peer, Target, current
from lattica.mesh.topics import Subscription


async def call(target: Target, method: str, *args: Any, **kwargs: Any) -> Any:
    """As `Peer.call`, by the peer of the surrounding `async with` block or method."""
    return await _here().call(target, method, *args, **kwargs)


async def stream(target: Target, method: str, *args: Any, **kwargs: Any) -> Stream:
    """As `Peer.stream`, by the peer of the surrounding `async with` block or method."""
    return await _here().stream(target, method, *args, **kwargs)


def publish(topic: str, value: Any) -> None:
    """As `Peer.publish`."""
    _here().publish(topic, value)


def subscribe(topic: str) -> Subscription:
    """As `Peer.subscribe`."""
    return _here().subscribe(topic)


async def put_record(name: str, value: bytes) -> int:
    """As `Peer.put_record`."""
    return await _here().put_record(name, value)


async def get_record(writer: PeerId | str, name: str) -> bytes | None:
    """As `Peer.get_record`."""
    return await _here().get_record(writer, name)


async def provide(what: bytes | str) -> int:
    """As `Peer.provide`."""
    return await _here().provide(what)


async def find_providers(what: bytes | str) -> dict[PeerId, tuple[str, ...]]:
    """As `Peer.find_providers`."""
    return await _here().find_providers(what)


def _here() -> Peer:
    peer = current.get(None)
    if peer is None:
        raise ConfigError(
            "no peer of a mesh is running here", do_next="call it inside `async with mesh.Peer.join(ticket) as peer:`"
        )
    return peer
