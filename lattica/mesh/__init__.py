"""Machines that call each other, without actors: peers, services, streams.

    from lattica import mesh

    @mesh.service("kv")
    class Store:
        @mesh.method(role=mesh.Role.STORE, idempotent=True)
        def get(self, key): ...

    async with mesh.Peer.join(ticket) as peer:
        peer.serve(Store())
        print(await mesh.call(other, "kv.get", "weights"))

    async with await mesh.stream(other, "blocks.read", "weights") as blocks:
        async for block in blocks: ...

    async with mesh.subscribe("scores") as messages:      # of all peers: mesh.publish("scores", {"step": 7})
        async for message in messages: ...

    await mesh.provide(content_id)                        # in the DHT: await mesh.find_providers(content_id)

`call` and the others use the peer of the `async with` block, or of the method, that they are called in. Values are
numbers, strings, bytes, lists, dicts and numpy arrays; nothing is pickled. How machines are joined: docs/guide/mesh.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lattica.mesh.calls import Stream
    from lattica.mesh.doors import (
        call,
        find_providers,
        get_record,
        provide,
        publish,
        put_record,
        stream,
        subscribe,
    )
    from lattica.mesh.identity import PeerId, parse_peer, peer_text
    from lattica.mesh.peer import Peer
    from lattica.mesh.roles import Role
    from lattica.mesh.services import Caller, caller, method, service
    from lattica.mesh.topics import Subscription

_HOMES = {
    "calls": ("Stream",),
    "doors": ("call", "find_providers", "get_record", "provide", "publish", "put_record", "stream", "subscribe"),
    "identity": ("PeerId", "parse_peer", "peer_text"),
    "peer": ("Peer",),
    "roles": ("Role",),
    "topics": ("Subscription",),
    "services": ("Caller", "caller", "method", "service"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    import importlib

    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'lattica.mesh' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lattica.mesh.{home}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME_OF)


__all__ = [
    "Caller", "Peer", "PeerId", "Role", "Stream", "Subscription", "call", "caller", "find_providers", "get_record",
    "method", "parse_peer", "peer_text", "provide", "publish", "put_record", "service", "stream", "subscribe",
]  # fmt: skip
