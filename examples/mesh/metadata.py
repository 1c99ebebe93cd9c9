"""Calls: a small service of facts about models, and somebody who asks.

    python examples/mesh/metadata.py

A method is a method with a decorator, an error is an error on the other side too, and a role that the caller's ticket
did not give is refused before the method is looked at. On two machines: see README.md.
"""

from __future__ import annotations

import asyncio
import sys
import time

from ends import two_ends

from lattica import mesh
from lattica.errors import CallFailedError, PermissionDeniedError

Facts = dict[str, str | int]
QUESTIONS = 1_000


@mesh.service("facts")
class Registry:
    """What is known of each model."""

    def __init__(self) -> None:
        self._known: dict[str, Facts] = {"tiny": {"layers": 2, "dtype": "float32"}}

    @mesh.method(role=None, idempotent=True)  # every member may ask
    def about(self, model: str) -> Facts:
        return self._known[model]

    @mesh.method(role=mesh.Role.STORE)
    def tell(self, model: str, facts: Facts) -> int:
        self._known[model] = facts
        return len(self._known)

    @mesh.method(role=mesh.Role.ADMIN)
    def forget(self, model: str) -> None:
        del self._known[model]


async def ask(peer: mesh.Peer, registry: mesh.PeerId) -> None:
    await mesh.call(registry, "facts.tell", "large", {"layers": 48, "dtype": "bfloat16"})
    print("large:", await mesh.call(registry, "facts.about", "large"))

    try:
        await mesh.call(registry, "facts.about", "huge")
    except CallFailedError as error:
        print(f"huge: the registry raised {error.type_name}")
    try:
        await mesh.call(registry, "facts.forget", "large")
    except PermissionDeniedError as error:
        print(f"forget: refused, it takes the role {error.role}")

    began = time.perf_counter()
    await asyncio.gather(*[peer.call(registry, "facts.about", "tiny") for _ in range(QUESTIONS)])
    print(f"{QUESTIONS:,} questions at once: answered in {(time.perf_counter() - began) * 1e3:.0f} ms")


if __name__ == "__main__":
    sys.exit(two_ends("A service of facts, and who asks it.", Registry, ask, mesh.Role.SUBMIT | mesh.Role.STORE))
