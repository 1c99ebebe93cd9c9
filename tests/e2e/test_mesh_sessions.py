"""Two processes, real sockets, mutual TLS: what is lost when connections and processes die."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lattica.errors import PeerUnreachableError
from lattica.mesh import credentials
from lattica.mesh.identity import PeerId
from lattica.mesh.peer import Peer
from lattica.mesh.tickets import parse_ticket
from lattica.mesh.transport.ways import Ways
from tests.e2e.mesh_process import rss_bytes

pytestmark = pytest.mark.e2e
CHUNK_BYTES = 256 << 10
EXTRA_MAX_BYTES = 64 << 20
"""What a stream may take of each process's memory, whatever its length."""


class Far:
    """The other process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as sock:  # one port for all its lives, so that a restarted one is found again
            sock.bind(("127.0.0.1", 0))
            self.listen = f"127.0.0.1:{sock.getsockname()[1]}"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Its ticket, once it listens."""
        command = [sys.executable, "-m", "tests.e2e.mesh_process", str(self.folder), self.listen]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    folder = tmp_path / "far"
    folder.mkdir(mode=0o700)
    process = Far(folder)
    yield process
    process.kill()


@contextlib.asynccontextmanager
async def near(folder: Path, ticket: str) -> AsyncIterator[tuple[Peer, PeerId]]:
    """A peer here that has a session with the process."""
    parsed = parse_ticket(ticket)
    async with Peer(credentials.join(str(folder), parsed, time.time())) as peer:
        other, addresses = parsed.peers[0]
        await peer.connect(other, addresses, timeout_s=10)
        yield peer, other


async def cut(peer: Peer) -> int:
    """Reset every TCP connection of this peer; how many."""
    ways = peer._transport
    assert isinstance(ways, Ways) and ways.tcp is not None
    connections = list(ways.tcp._connections.values())
    for connection in connections:
        connection.abort()
    return len(connections)


async def send_all(peer: Peer, other: PeerId, total: int, pause_s: float = 0.0) -> tuple[int, int]:
    """(what the sink counted, the most memory that this process had)."""
    peak = 0
    async with await peer.stream(other, "far.sink", pause_s, sends=True, receives=False) as stream:
        for number in range(total // CHUNK_BYTES):
            await stream.send(number.to_bytes(8, "little") + bytes(CHUNK_BYTES - 8))
            peak = max(peak, rss_bytes())
        await stream.finish()
        return await stream.result(), peak


async def test_fifty_cuts_during_ten_thousand_calls_and_a_stream_of_500_mib_lose_nothing(
    far: Far, tmp_path: Path
) -> None:
    async with near(tmp_path / "near", far.start()) as (peer, other):
        before = rss_bytes()
        total = 500 << 20
        stream = asyncio.ensure_future(send_all(peer, other, total))
        gate = asyncio.Semaphore(400)
        cuts = 0

        async def call(number: int) -> int:
            async with gate:
                answer: int = await peer.call(other, "far.echo", number)
                return answer

        calls = asyncio.ensure_future(asyncio.gather(*[call(number) for number in range(10_000)]))
        while cuts < 50:
            await asyncio.sleep(0.06)
            cuts += bool(await cut(peer))
        assert await calls == list(range(10_000))
        sent, peak = await stream
        assert sent == total
        assert await peer.call(other, "far.order") == list(range(10_000)), "each ran once, in the order of the calls"
        assert peak - before < 3 * EXTRA_MAX_BYTES, f"{(peak - before) >> 20} MiB more"


async def test_a_killed_peer_ends_calls_with_words_and_is_found_again(far: Far, tmp_path: Path) -> None:
    async with near(tmp_path / "near", far.start()) as (peer, other):
        assert await peer.call(other, "far.echo", 1) == 1
        waiting = [asyncio.ensure_future(peer.call(other, "far.sleep", 60.0)) for _ in range(20)]
        await asyncio.sleep(0.2)
        far.kill()
        far.start()
        for call in waiting:
            with pytest.raises(PeerUnreachableError, match="may have run"):
                await asyncio.wait_for(call, 20)
        assert await asyncio.wait_for(peer.call(other, "far.echo", 2), 20) == 2
        assert await peer.call(other, "far.order") == [2], "nothing was sent again to the new process"


@pytest.mark.parametrize("total", [256 << 20, pytest.param(1 << 30, marks=pytest.mark.slow)])
async def test_a_slow_reader_keeps_both_processes_small(far: Far, tmp_path: Path, total: int) -> None:
    async with near(tmp_path / "near", far.start()) as (peer, other):
        mine, (theirs, _) = rss_bytes(), await peer.call(other, "far.memory")
        sent, peak = await send_all(peer, other, total, pause_s=0.002)
        assert sent == total
        _, their_peak = await peer.call(other, "far.memory")
        print(f"{total >> 20} MiB: sender +{(peak - mine) >> 20} MiB, reader +{(their_peak - theirs) >> 20} MiB")
        assert peak - mine < EXTRA_MAX_BYTES, f"the sender took {(peak - mine) >> 20} MiB more"
        assert their_peak - theirs < EXTRA_MAX_BYTES, f"the reader took {(their_peak - theirs) >> 20} MiB more"
