"""Streams: numpy tensors from one machine to another, as fast as the link, and no faster than their reader.

    python examples/mesh/tensor_stream.py

An async generator is a stream. Its writer stands still at a `yield` while the reader is behind, so neither side ever
holds more than a window of tensors, 16 MiB at the most, and one. On two machines: see README.md.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from ends import two_ends

from lattica import mesh

SHAPE = (1024, 1024)  # of float32: 4 MiB
TENSORS = 128
READ = 5  # how many the slow reader takes
PAUSE_S = 0.3


@mesh.service("tensors")
class Tensors:
    """Makes tensors, and says how many."""

    def __init__(self) -> None:
        self.made = 0

    @mesh.method()
    async def read(self, count: int) -> AsyncIterator[Any]:
        noise = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
        for self.made in range(1, count + 1):
            yield noise  # as it lies there: nothing is copied or pickled

    @mesh.method(idempotent=True)
    def progress(self) -> int:
        return self.made


async def read(peer: mesh.Peer, writer: mesh.PeerId) -> None:
    size, last, began = 0, None, time.perf_counter()
    async with await mesh.stream(writer, "tensors.read", TENSORS) as tensors:
        async for last in tensors:  # a read-only array over the bytes that came
            size += last.nbytes
    took_s = time.perf_counter() - began
    assert last is not None and last.shape == SHAPE
    print(f"{TENSORS} tensors, {size / 1e6:.0f} MB: {size / 1e6 / took_s:.0f} MB/s")

    async with await mesh.stream(writer, "tensors.read", TENSORS) as tensors:
        items = aiter(tensors)
        for _ in range(READ):
            await anext(items)
            await asyncio.sleep(PAUSE_S)
        made = await mesh.call(writer, "tensors.progress")  # calls do not wait behind streams
        await asyncio.sleep(PAUSE_S)
        still = await mesh.call(writer, "tensors.progress")
    print(f"a slow reader took {READ} of {TENSORS}: the writer made {made}, and {still} a while later: it waits")


if __name__ == "__main__":
    sys.exit(two_ends("Tensors as a stream.", Tensors, read, mesh.Role.SUBMIT))
