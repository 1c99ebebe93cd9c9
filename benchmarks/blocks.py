"""An object between two nodes: two peers in two processes on loopback, mutual TLS 1.3, uvloop, arena to arena.

    python benchmarks/blocks.py                 both processes, 100 MiB
    python benchmarks/blocks.py --mib 1000 --turns 3

Printed beside it are the floors: the same peers' plain stream of chunks, which is thrown away, and what this machine
hashes and writes. A first fetch waits until the holder has hashed the object; the others find it hashed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the package beside this file, from whatever directory

import uvloop
from blake3 import blake3
from mesh_lines import write_ticket

from lattica.mesh import credentials
from lattica.mesh.peer import Peer
from lattica.mesh.roles import MEMBER
from lattica.mesh.services import method, service
from lattica.mesh.tickets import parse_ticket
from lattica.node.blocks import PIECE_BYTES, Blocks
from lattica.objectstore.arena import Arena

MIB = 1 << 20
OBJECT = bytes(16)
START_S = 20.0
SETTLE_S = 1.0  # a new member's first certificate comes soon, and its connections begin anew with it: 0.2 s


@service("floor")
class Floor:
    @method()
    async def chunks(self, size: int) -> AsyncIterator[bytes]:
        chunk = os.urandom(PIECE_BYTES)
        for _ in range(0, size, PIECE_BYTES):
            yield chunk


def backed(size: int) -> Arena:
    arena = Arena(size)
    arena.back(0, size)
    return arena


async def serve(ticket_file: Path, size: int) -> None:
    arena = backed(size)
    for at in range(0, size, MIB):
        arena.write(at, [os.urandom(MIB)])
    with tempfile.TemporaryDirectory() as folder:
        mine = credentials.found(folder, time.time(), os.path.join(folder, "recovery"))
        async with Peer(mine, listen="127.0.0.1:0") as peer:
            peer.serve(Floor())
            blocks = Blocks(peer, arena, asyncio.get_running_loop(), lambda _: lambda: None)
            blocks.offer(OBJECT, 0, size, False)
            write_ticket(ticket_file, peer.steward.ticket(MEMBER, 3600.0, "bench"))
            await asyncio.Event().wait()


async def load(ticket: str, size: int, turns: int) -> None:
    parsed = parse_ticket(ticket)
    with tempfile.TemporaryDirectory() as folder:
        async with Peer(credentials.join(folder, parsed, time.time())) as peer:
            other, addresses = parsed.peers[0]
            await peer.connect(other, addresses, timeout_s=START_S)
            arena = backed(size)

            async def allocate(_: int) -> int:
                return 0

            blocks = Blocks(peer, arena, asyncio.get_running_loop(), lambda _: lambda: None)
            await asyncio.sleep(SETTLE_S)
            rates: list[float] = []
            floors: list[float] = []
            for _ in range(turns + 1):
                began, cpu = time.perf_counter(), time.process_time()
                await blocks.fetch(OBJECT, [other], size, allocate)
                took, used = time.perf_counter() - began, time.process_time() - cpu
                rates.append(size / 1e6 / took)
                blocks.withdraw(OBJECT)
                came, began = 0, time.perf_counter()
                async with await peer.stream(other, "floor.chunks", size) as stream:
                    async for chunk in stream:
                        came += len(chunk)
                floors.append(came / 1e6 / (time.perf_counter() - began))
                print(f"  {rates[-1]:7.0f} MB/s, {used / took:.0%} of a core here; plain stream {floors[-1]:.0f} MB/s")
            print(f"first fetch, hashed there   {rates[0]:7.0f} MB/s")
            print(f"fetch, median               {statistics.median(rates[1:]):7.0f} MB/s")
            print(f"floor: plain stream         {statistics.median(floors):7.0f} MB/s")
            block = os.urandom(MIB)
            print(f"floor: BLAKE3, one thread   {rate(lambda: blake3(block).digest()):7.0f} MB/s")
            print(f"floor: into the arena       {rate(lambda: arena.write(0, [block])):7.0f} MB/s")
            await blocks.close()
            arena.close()


def rate(work: Callable[[], object]) -> float:
    """MB/s of something that works on a MiB."""
    began = time.perf_counter()
    for _ in range(100):
        work()
    return 100 * MIB / 1e6 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=100)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)  # where the ticket goes
    given = parser.parse_args()
    size = given.mib * MIB
    if given.serve:
        uvloop.run(serve(given.serve, size))
        return
    with tempfile.TemporaryDirectory() as folder:
        ticket = Path(folder) / "ticket"
        command = [sys.executable, __file__, "--mib", str(given.mib), "--serve", str(ticket)]
        holder = subprocess.Popen(command)
        try:
            latest = time.monotonic() + START_S
            while not ticket.exists() and time.monotonic() < latest:
                time.sleep(0.05)
            uvloop.run(load(ticket.read_text(), size, given.turns))
        finally:
            holder.terminate()
            holder.wait()


if __name__ == "__main__":
    main()
