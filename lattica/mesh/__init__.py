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

`call` and `stream` use the peer of the `async with` block, or of the method, that they are called in. Values are
numbers, strings, bytes, lists, dicts and numpy arrays; nothing is pickled. How machines are joined: docs/guide/mesh.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lattica.mesh.calls import Stream
    from lattica.mesh.doors import call, stream
    from lattica.mesh.identity import PeerId, parse_peer, peer_text
    from lattica.mesh.peer import Peer
    from lattica.mesh.roles import Role
    from lattica.mesh.services import Caller, caller, method, service

_HOMES = {
    "calls": ("Stream",),
    "doors": ("call", "stream"),
    "identity": ("PeerId", "parse_peer", "peer_text"),
    "peer": ("Peer",),
    "roles": ("Role",),
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
    "Caller", "Peer", "PeerId", "Role", "Stream", "call", "caller", "method", "parse_peer", "peer_text", "service",
    "stream",
]  # fmt: skip
