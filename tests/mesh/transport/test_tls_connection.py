"""TLS driven by hand: two connections whose kernel is a list of bytes."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from lattica.mesh import credentials, tls
from lattica.mesh.transport.tls_connection import READ_BYTES, TURN_BYTES, TlsConnection
from lattica.mesh.wire import Data, data_head

CHUNK_BYTES = 300_000


class Kernel:
    """What a connection writes to, and what it reads of the other one, as an event loop would have it."""

    def __init__(self) -> None:
        self.reader: TlsConnection
        self.sent: deque[bytes] = deque()
        self.reads, self.closing = True, False
        self.pauses = 0

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else self

    def setsockopt(self, *_: object) -> None:
        pass

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        self.reads, self.pauses = False, self.pauses + 1

    def resume_reading(self) -> None:
        self.reads = True

    def deliver(self, data: deque[bytes]) -> int:
        """Hand on what the other side sent, while it is read; how many bytes."""
        total = 0
        while data and self.reads:
            part = data.popleft()
            buffer = self.reader.get_buffer(-1)
            count = min(len(part), len(buffer))
            buffer[:count] = part[:count]
            if count < len(part):
                data.appendleft(part[count:])
            self.reader.buffer_updated(count)
            total += count
        return total


class Pair:
    """A dialer and an accepter with their handshake behind them."""

    def __init__(self, folder: Path) -> None:
        contexts = tls.Contexts(credentials.found(str(folder / "peer"), time.time(), str(folder / "recovery")))
        self.frames: list[Any] = []
        self.ends: list[str] = []
        self.kernels = Kernel(), Kernel()
        ways: list[Callable[[str], ssl.SSLContext] | ssl.SSLContext] = [contexts.client(), lambda _: contexts.server()]
        for kernel, context in zip(self.kernels, ways, strict=True):
            kernel.reader = TlsConnection(0, context, self._received, self._ended, self._ended)
            kernel.reader.connection_made(kernel)  # type: ignore[arg-type]
        for _ in range(4):
            self.deliver(0), self.deliver(1)
        for kernel in self.kernels:
            assert kernel.reader.up.done()
            kernel.reader.decoder.trust()
            kernel.reader.release()
        self.dialer, self.accepter = (kernel.reader for kernel in self.kernels)

    def deliver(self, to: int) -> int:
        return self.kernels[to].deliver(self.kernels[1 - to].sent)

    def _received(self, _: TlsConnection, frames: list[Any]) -> None:
        self.frames += frames

    def _ended(self, _: TlsConnection, reason: str) -> None:
        self.ends.append(reason)


def run(test: Callable[[Pair], Awaitable[None]], folder: Path) -> None:
    async def inside() -> None:
        await test(Pair(folder))

    asyncio.run(inside())


def say(connection: TlsConnection, number: int) -> None:
    connection.write((data_head(CHUNK_BYTES, number, 0), bytes([number]) * CHUNK_BYTES))
    connection.flush()


@pytest.mark.parametrize("step", [READ_BYTES, 5_000])
def test_frames_come_whole_whatever_is_read_at_once(tmp_path: Path, step: int) -> None:
    async def test(pair: Pair) -> None:
        for number in range(1, 9):
            say(pair.dialer, number)
        sent = b"".join(pair.kernels[0].sent)
        pair.kernels[0].sent = deque(sent[at : at + step] for at in range(0, len(sent), step))
        while pair.kernels[0].sent:
            pair.deliver(1)
            await asyncio.sleep(0)
        assert [type(frame) for frame in pair.frames] == [Data] * 8
        for number, frame in enumerate(pair.frames, 1):
            assert (frame.seq, bytes(frame.payload)) == (number, bytes([number]) * CHUNK_BYTES)

    run(test, tmp_path)


def test_who_waits_for_what_was_read_has_a_turn_before_much_more_is_read(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        for number in range(1, 31):
            say(pair.dialer, number)
        turns = 0
        while pair.kernels[0].sent:
            assert pair.deliver(1) <= TURN_BYTES + READ_BYTES, "uvloop reads on, 32 times, unless reading is paused"
            turns += 1
            await asyncio.sleep(0)
        assert len(pair.frames) == 30 and turns >= 30 * CHUNK_BYTES // (TURN_BYTES + READ_BYTES)
        assert pair.kernels[1].reads and pair.kernels[1].pauses == turns - 1

    run(test, tmp_path)


def test_a_connection_that_ends_while_reading_pauses_is_left_alone(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        for number in range(1, 6):
            say(pair.dialer, number)
        pair.deliver(1)
        assert not pair.kernels[1].reads
        pair.kernels[1].close()
        pair.accepter.connection_lost(None)
        await asyncio.sleep(0)
        assert not pair.kernels[1].reads and pair.ends == ["the other side closed it"]

    run(test, tmp_path)


def test_a_goodbye_behind_frames_closes_after_them(tmp_path: Path) -> None:
    async def test(pair: Pair) -> None:
        say(pair.dialer, 1)
        pair.dialer.finish()
        pair.deliver(1)
        assert len(pair.frames) == 1 and pair.kernels[1].closing

    run(test, tmp_path)
