"""A model in two shards: activations go from the machine of the first to that of the second, and one machine is lost.

    python examples/mesh/sharded_inference.py

Two machines have the head of the model, one its tail. Requests go to a head, which calls the tail itself. In the middle
of them a head is killed: calls that it had not answered are made again at the other one, since they are idempotent. On
several machines: see README.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from ends import HERE, TICKET_S, VARIABLE, another, parser, run, ticket_of, until_told

from lattica import mesh

REQUESTS, AT_ONCE, BATCH = 400, 8, 32
WEIGHTS = np.random.default_rng(7)
W1, W2 = (WEIGHTS.standard_normal(shape, np.float32) / 16 for shape in ((256, 512), (512, 10)))


@mesh.service("head")
class Head:
    @mesh.method(idempotent=True)
    async def forward(self, x: Any) -> list[Any]:
        hidden = np.maximum(x @ W1, 0)
        return [await mesh.call(None, "tail.forward", hidden, idempotent=True), os.getpid()]


@mesh.service("tail")
class Tail:
    @mesh.method(idempotent=True)
    def forward(self, hidden: Any) -> Any:
        return hidden @ W2


@mesh.service("directory")
class Directory:
    """Who has which shard."""

    def __init__(self, peer: mesh.Peer) -> None:
        self._peer = peer
        self._turn = itertools.count()
        self._shards: dict[str, list[tuple[bytes, list[str]]]] = {"tail": [(peer.id, peer.listening)]}

    @mesh.method(role=mesh.Role.EXECUTE)
    def enter(self, shard: str, addresses: list[str]) -> None:
        self._shards.setdefault(shard, []).append((mesh.caller.get().peer, addresses))

    @mesh.method(idempotent=True)
    def who(self, shard: str) -> list[tuple[bytes, list[str]]]:
        """Providers that are there, a different one first each time."""
        alive = [mesh.parse_peer(each["peer_id"]) for each in self._peer.peers() if each["state"] == "alive"]
        here = {self._peer.id, *alive}
        found = [each for each in self._shards.get(shard, ()) if each[0] in here]
        first = next(self._turn) % max(len(found), 1)
        return found[first:] + found[:first]


def find_shards(peer: mesh.Peer, directory: mesh.PeerId) -> None:
    """Calls without a target go to those whom the directory names for the service."""

    async def resolver(shard: str) -> list[mesh.PeerId]:
        found = await peer.call(directory, "directory.who", shard, idempotent=True)
        for provider, addresses in found:
            peer.know(provider, addresses)
        return [provider for provider, _ in found]

    peer.resolver = resolver


async def tail(listen: str) -> None:
    """The second shard; its machine founds the mesh, and keeps the directory."""
    async with mesh.Peer.found(listen=listen) as peer:
        peer.serve(Tail())
        peer.serve(Directory(peer))
        await until_told(peer.ticket(mesh.Role.SUBMIT | mesh.Role.EXECUTE, ttl_s=TICKET_S))


async def head(listen: str, ticket: str) -> None:
    """A first shard, on a machine that joins."""
    async with mesh.Peer.join(ticket, listen=listen) as peer:
        founder = peer.credentials.peers[0][0]
        find_shards(peer, founder)
        peer.serve(Head())
        await peer.call(founder, "directory.enter", "head", peer.listening)
        await until_told(str(os.getpid()))


async def infer(ticket: str, half_time: Callable[[], None]) -> None:
    """Send requests through both shards, and compare the answers with those of the whole model."""
    inputs = np.random.default_rng(1).standard_normal((REQUESTS, BATCH, 256), np.float32)
    wanted = np.maximum(inputs @ W1, 0) @ W2
    answered, gate = Counter[int](), asyncio.Semaphore(AT_ONCE)

    async with mesh.Peer.join(ticket) as peer:
        find_shards(peer, peer.credentials.peers[0][0])

        async def request(number: int) -> None:
            async with gate:
                logits, by = await peer.call(None, "head.forward", inputs[number], idempotent=True)
            assert np.allclose(logits, wanted[number], atol=1e-4)
            answered[by] += 1
            if answered.total() == REQUESTS // 2:
                half_time()

        await asyncio.gather(*map(request, range(REQUESTS)))
    who = ", ".join(f"{count} by the head of process {pid}" for pid, count in answered.items())
    print(f"{answered.total()} of {REQUESTS} requests answered, all as by the whole model: {who}")


async def all_here() -> None:
    """Three machines with shards, as processes of this one, and their client."""
    async with contextlib.AsyncExitStack() as ends:
        _, ticket = await ends.enter_async_context(another("--shard", "tail", "--listen", HERE))
        os.environ[VARIABLE] = ticket
        heads = [await ends.enter_async_context(another("--shard", "head", "--listen", HERE)) for _ in range(2)]

        def kill_one() -> None:
            process, pid = heads[0]
            print(f"the head of process {pid} is killed")
            process.kill()

        await infer(ticket, kill_one)


def main(options: Namespace) -> int:
    ticket = ticket_of(options)
    if options.shard == "tail":
        return run(tail(options.listen or HERE))
    if options.shard == "head":
        return run(head(options.listen or HERE, ticket))
    return run(infer(ticket, lambda: None) if ticket else all_here())


if __name__ == "__main__":
    options = parser("A model in two shards.")
    options.add_argument("--shard", choices=("head", "tail"), help="host this shard; a head needs the tail's ticket")
    sys.exit(main(options.parse_args()))
