"""A peer in a process of its own: `python -m tests.e2e.mesh_process FOLDER HOST:PORT`; prints its ticket and serves."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from collections.abc import AsyncIterator

import uvloop

from lattica.mesh import credentials
from lattica.mesh.peer import Peer
from lattica.mesh.roles import EVERYTHING
from lattica.mesh.services import method, service

PAGE_BYTES = os.sysconf("SC_PAGESIZE")


def rss_bytes() -> int:
    """Memory of this process that is in RAM."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE_BYTES


@service("far")
class Far:
    def __init__(self) -> None:
        self.echoed: list[int] = []
        self.peak_bytes = 0

    @method()
    def echo(self, number: int) -> int:
        self.echoed.append(number)
        return number

    @method(role=None)
    def order(self) -> list[int]:
        return self.echoed

    @method(role=None)
    def pid(self) -> int:
        return os.getpid()

    @method(role=None)
    def memory(self) -> list[int]:
        return [rss_bytes(), self.peak_bytes]

    @method()
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @method(takes_stream=True)
    async def sink(self, pause_s: float = 0.0, *, incoming: AsyncIterator[bytes]) -> int:
        """How much came; the first 8 bytes of each item number it."""
        total = expected = 0
        async for item in incoming:
            assert int.from_bytes(item[:8], "little") == expected, f"item {expected} is missing"
            expected += 1
            total += len(item)
            self.peak_bytes = max(self.peak_bytes, rss_bytes())
            if pause_s:
                await asyncio.sleep(pause_s)
        return total


async def main(folder: str, listen: str) -> None:
    mine = credentials.load(folder, time.time()) or credentials.found(folder, time.time(), None)
    async with Peer(mine, listen=listen) as peer:
        peer.serve(Far())
        print(peer.steward.ticket(EVERYTHING, 3600.0), flush=True)
        await asyncio.Event().wait()


def die_with_parent() -> None:
    """However the test ends, this process does not stay (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    uvloop.run(main(*sys.argv[1:]))
