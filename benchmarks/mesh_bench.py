"""lattica's mesh by the lines of mesh_lines.py: two peers in two processes, mutual TLS 1.3 over TCP, uvloop.

    python mesh_bench.py serve --listen 127.0.0.1:7000 --ticket-file /tmp/ticket
    python mesh_bench.py load --ticket-file /tmp/ticket

The server founds a mesh in a folder of its own and writes its ticket; the load joins with it. One line more than the
others have: a small call every 10 ms while bulk saturates the connection.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the package beside this file, from whatever directory

import uvloop
from mesh_lines import (
    CALL_P50,
    CALL_P99,
    CHUNK,
    IN_FLIGHT,
    LARGE,
    SMALL,
    STREAM,
    Measure,
    arguments,
    large_requests,
    show,
    small_calls,
    write_ticket,
)

from lattica.mesh import credentials
from lattica.mesh.peer import Peer
from lattica.mesh.roles import MEMBER
from lattica.mesh.services import method, service
from lattica.mesh.tickets import Ticket, parse_ticket

CALLS = 2_000  # one at a time
WARM_S, MEASURE_S = 1.0, 4.0
STREAM_BYTES = 1 << 30
STREAM_MAX_S = 20.0  # over a slow link the stream is measured for so long
PING_P99 = "small call while bulk saturates, p99"
PING_EVERY_S = 0.01


@service("bench")
class Bench:
    @method(idempotent=True)
    def echo(self, data: bytes) -> bytes:
        return data

    @method(idempotent=True)
    def size(self, data: bytes) -> int:
        return len(data)

    @method(takes_stream=True)
    async def sink(self, *, incoming: AsyncIterator[bytes]) -> int:
        total = 0
        async for chunk in incoming:
            total += len(chunk)
        return total


async def serve(host: str, port: int, ticket_file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mine = credentials.found(folder, time.time(), os.path.join(folder, "recovery"))
        async with Peer(mine, listen=f"{host}:{port}") as peer:
            peer.serve(Bench())
            write_ticket(ticket_file, peer.steward.ticket(MEMBER, 3600.0, "bench"))
            await asyncio.Event().wait()


async def rate(call: Callable[[], Awaitable[object]], in_flight: int) -> float:
    """Calls per second, measured between two moments of a steady state."""
    done, going = 0, True

    async def worker() -> None:
        nonlocal done
        while going:
            await call()
            done += 1

    workers = [asyncio.ensure_future(worker()) for _ in range(in_flight)]
    await asyncio.sleep(WARM_S)
    first, began = done, time.perf_counter()
    await asyncio.sleep(MEASURE_S)
    value = (done - first) / (time.perf_counter() - began)
    going = False
    await asyncio.gather(*workers)
    return value


async def load(ticket: Ticket) -> list[Measure]:
    found: list[Measure] = []
    with tempfile.TemporaryDirectory() as folder:
        mine = credentials.join(folder, ticket, time.time())
        async with Peer(mine) as peer:
            other, addresses = ticket.peers[0]
            await peer.connect(other, addresses, timeout_s=20)
            small, large = os.urandom(SMALL), os.urandom(LARGE)
            took: list[float] = []
            for turn in range(CALLS + 200):
                began = time.perf_counter()
                await peer.call(other, "bench.echo", small)
                if turn >= 200:
                    took.append(time.perf_counter() - began)
                if sum(took) > 10:
                    break  # over a slow link
            took.sort()
            found.append(Measure(CALL_P50, statistics.median(took) * 1e6, "us"))
            found.append(Measure(CALL_P99, took[int(len(took) * 0.99)] * 1e6, "us"))
            for in_flight in IN_FLIGHT:
                value = await rate(lambda: peer.call(other, "bench.echo", small), in_flight)
                found.append(Measure(small_calls(in_flight), value, "1/s"))
            for in_flight in IN_FLIGHT:
                value = await rate(lambda: peer.call(other, "bench.size", large), in_flight)
                found.append(Measure(large_requests(in_flight), value, "1/s"))
            found.append(Measure(STREAM, await stream(peer, other), "MB/s"))
            found.append(Measure(PING_P99, await ping_beside_bulk(peer, other), "ms"))
    return found


async def stream(peer: Peer, other: bytes) -> float:
    """MB/s of one stream, until the reader has said that it has it all."""
    chunk, sent, began = os.urandom(CHUNK), 0, time.perf_counter()
    async with await peer.stream(other, "bench.sink", sends=True, receives=False) as sink:  # type: ignore[arg-type]
        while sent < STREAM_BYTES and time.perf_counter() - began < STREAM_MAX_S:
            await sink.send(chunk)
            sent += CHUNK
        await sink.finish()
        assert await sink.result() == sent
    return sent / 1e6 / (time.perf_counter() - began)


async def ping_beside_bulk(peer: Peer, other: bytes) -> float:
    """p99 in ms of a small call every PING_EVERY_S while a stream takes all there is."""
    bulk = asyncio.ensure_future(stream(peer, other))
    await asyncio.sleep(0.2)
    took: list[float] = []
    while not bulk.done() and len(took) < 1_000:
        began = time.perf_counter()
        await peer.call(other, "bench.echo", b"ping")  # type: ignore[arg-type]
        took.append(time.perf_counter() - began)
        await asyncio.sleep(PING_EVERY_S)
    await bulk
    took.sort()
    return took[int(len(took) * 0.99)] * 1e3


def main() -> None:
    args = arguments(__doc__)
    if args.verb == "serve":
        uvloop.run(serve(*args.listen, args.ticket_file))
    else:
        measures: Iterator[Measure] = iter(uvloop.run(load(parse_ticket(args.ticket_file.read_text()))))
        show(measures, args.json)


if __name__ == "__main__":
    main()
