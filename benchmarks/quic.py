"""TCP and QUIC between two processes: `python benchmarks/quic.py [--seconds 5] [--profile] [--link "20ms loss 1%"]`.

For each way: calls a second with 1,000 in flight, one way MB/s of a stream and the CPU it takes, how long a small call
takes while the stream saturates, and what a connection costs. QUIC is measured with datagrams of an Ethernet path
(1,350 bytes) and of this machine's loopback (8,192), since packets, not bytes, are what it pays for. `--link`: between
two hosts of a network lab (root), by a link with that delay one way, loss and rate, in netlab's words. Members that are
believed dead or suspect while the stream saturates are told: there should be none.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import uvloop

from lattica.mesh.membership import MemberChanged, State
from lattica.mesh.peer import Peer
from lattica.mesh.services import method, service
from lattica.mesh.transport import quic_link
from lattica.testing.netlab import Host, Lab, Unavailable

NOISE = os.urandom(1 << 20)  # that nobody compresses
WAYS = {"tcp": ("tcp", 0), "quic, 1350 B": ("quic", 1350), "quic, 8192 B": ("quic", 8192)}


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@service("bench")
class Bench:
    @method()
    def echo(self, value: bytes) -> bytes:
        return value

    @method()
    def cpu(self) -> float:
        return cpu_s()

    @method()
    async def blob(self, seconds: float) -> AsyncIterator[bytes]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            yield NOISE


def use_datagrams_of(size: int) -> None:
    if size:
        quic_link.datagram_bytes = lambda route: size


async def serve(way: str, size: int, listen: str) -> None:
    use_datagrams_of(size)
    async with Peer.found(listen=listen, transports=(way,)) as peer:
        peer.serve(Bench())
        print(peer.ticket(), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def calls(peer: Peer, other: Any, in_flight: int, seconds: float) -> tuple[float, float]:
    """(calls a second, CPU in microseconds of both sides for each)."""
    done = 0
    end = time.monotonic() + seconds
    body = bytes(128)
    before, there = cpu_s(), await peer.call(other, "bench.cpu")
    began = time.monotonic()

    async def one() -> None:
        nonlocal done
        while time.monotonic() < end:
            await peer.call(other, "bench.echo", body)
            done += 1

    await asyncio.gather(*(one() for _ in range(in_flight)))
    took = time.monotonic() - began
    cpu = cpu_s() - before + await peer.call(other, "bench.cpu") - there
    return done / took, cpu / done * 1e6


async def stream(peer: Peer, other: Any, seconds: float) -> tuple[float, float, list[float]]:
    """(MB/s one way, CPU seconds of both sides for a GB, seconds of small calls meanwhile)."""
    before, there = cpu_s(), await peer.call(other, "bench.cpu")
    total, pings, running = 0, list[float](), True

    async def ping() -> None:
        while running:
            began = time.monotonic()
            await peer.call(other, "bench.echo", b"")
            pings.append(time.monotonic() - began)
            await asyncio.sleep(0.02)

    pinging = asyncio.ensure_future(ping())
    async with await peer.stream(other, "bench.blob", seconds) as items:
        began = time.monotonic()
        async for item in items:
            total += len(item)
        took = time.monotonic() - began
    running = False
    await pinging
    cpu = cpu_s() - before + await peer.call(other, "bench.cpu") - there
    return total / took / 1e6, cpu / total * 1e9, sorted(pings)


async def connects(peer: Peer, other: Any, addresses: list[str], times: int) -> tuple[float, float]:
    """(milliseconds until the first call is answered, CPU milliseconds of both sides)."""
    there, spent, took = await peer.call(other, "bench.cpu"), 0.0, 0.0
    before = cpu_s()
    for _ in range(times):
        await peer.disconnect(other)
        await asyncio.sleep(0.02)
        began = time.monotonic()
        await peer.connect(other, addresses)
        await peer.call(other, "bench.echo", b"")
        took += time.monotonic() - began
    spent = cpu_s() - before + await peer.call(other, "bench.cpu") - there
    return took / times * 1e3, spent / times * 1e3


async def against(ticket: str, name: str, seconds: float, profile: bool) -> None:
    """Join the server's mesh, and measure."""
    way, size = WAYS[name]
    use_datagrams_of(size)
    async with Peer.join(ticket, listen=None, transports=(way,)) as peer:
        other, addresses = peer._first[0]
        await peer.call(other, "bench.echo", b"", timeout_s=10)
        doubted: list[MemberChanged] = []
        peer.gossip.watch_members(lambda change: doubted.append(change) if change.state is not State.ALIVE else None)
        await calls(peer, other, 100, 0.5)
        rate_1, _ = await calls(peer, other, 1, seconds / 4)
        rate, each_us = await calls(peer, other, 1000, seconds)
        if profile:
            import cProfile
            import pstats

            profiler = cProfile.Profile()
            profiler.enable()
        mb_s, cpu_gb, pings = await stream(peer, other, seconds)
        if profile:
            profiler.disable()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
        p50, p99 = pings[len(pings) // 2] * 1e3, pings[int(len(pings) * 0.99)] * 1e3
        first_ms, cpu_ms = await connects(peer, other, list(addresses), 20)
        packets = "" if not size else f", {cpu_gb / 1e9 * size * 1e6:.0f} us of CPU a packet (both sides)"
        print(
            f"{name:13} {1 / rate_1 * 1e6:6.0f} us a call;"
            f" {rate:8,.0f} calls/s at 1,000 in flight ({each_us:.0f} us CPU);"
            f" {mb_s:6.1f} MB/s one way, {cpu_gb:5.1f} s CPU/GB{packets};"
            f" small calls meanwhile p50 {p50:.1f} p99 {p99:.1f} ms, {len(doubted)} doubts;"
            f" connect {first_ms:.1f} ms, {cpu_ms:.1f} ms CPU",
            flush=True,
        )


def measure(name: str, given: argparse.Namespace, lab: Lab | None) -> None:
    """Both processes, on loopback or in two hosts of the lab."""
    way, size = WAYS[name]
    listen = f"{lab.ip('server')}:7411" if lab is not None else "127.0.0.1:0"
    command = [sys.executable, __file__, "--serve", way, str(size), listen]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = lab.popen("server", command, **pipes) if lab is not None else subprocess.Popen(command, **pipes)
    assert server.stdout is not None and server.stdin is not None
    ticket = server.stdout.readline().strip()
    if lab is None:
        uvloop.run(against(ticket, name, given.seconds, given.profile))
    else:
        command = [sys.executable, __file__, "--against", ticket, name, "--seconds", str(given.seconds)]
        lab.popen("client", command + ["--profile"] * given.profile).wait()
    server.stdin.close()
    server.wait(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", help="ways whose name begins so")
    parser.add_argument("--profile", action="store_true", help="the receiving side of the stream")
    parser.add_argument("--link", help="netlab's words for the link between the two, as '20ms loss 1%%'")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--against", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        uvloop.run(serve(given.serve[0], int(given.serve[1]), given.serve[2]))
    elif given.against:
        uvloop.run(against(*given.against, given.seconds, given.profile))
    elif given.link:
        try:
            with Lab(public={"server": Host(), "client": Host(given.link)}, probe=False) as lab:
                for name in ("tcp", "quic, 1350 B"):
                    if name.startswith(given.only or ""):
                        measure(name, given, lab)
        except Unavailable as error:
            sys.exit(f"no network lab: {error.reason}")
    else:
        for name in WAYS:
            if name.startswith(given.only or ""):
                measure(name, given, None)


if __name__ == "__main__":
    main()
