"""One end of a connection that two nodes carry: what the other side may say, and what it may not."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from lattica.codec import far
from lattica.errors import RemoteProtocolError
from lattica.node.attention import Attention
from lattica.node.links import READ_BYTES, WAITING_MAX_BYTES, WINDOW_BYTES, Carrier


class FakeLink:
    crowded = False

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.carriers: dict[int, Carrier] = {}
        self.said: list[Any] = []
        self.here, self.there = Attention(self._loop, spins=False), Attention(self._loop, spins=False)

    def send(self, message: Any, size: int = 0) -> None:
        self.said.append(message)

    def forget(self, carrier: Carrier) -> None:
        self.carriers.pop(carrier.number, None)


def begin() -> tuple[FakeLink, Carrier, socket.socket, list[str]]:
    ours, process = socket.socketpair()
    process.setblocking(False)
    link, ends = FakeLink(), list[str]()
    return link, Carrier(link, 2, ours, ends.append), process, ends  # type: ignore[arg-type]


async def test_what_a_process_writes_is_carried_until_a_window_is_not_taken() -> None:
    link, carrier, process, _ = begin()
    sent, data = 0, bytes(READ_BYTES)
    for _ in range(200):
        try:
            sent += process.send(data)
        except BlockingIOError:
            await asyncio.sleep(0)
    carried = sum(len(message.data) for message in link.said)
    assert WINDOW_BYTES < carried <= WINDOW_BYTES + READ_BYTES < sent
    carrier.taken(carried)
    for _ in range(200):
        await asyncio.sleep(0)
    assert sum(len(message.data) for message in link.said) == sent
    carrier.close()
    process.close()


async def test_more_taken_than_was_sent_or_less_than_nothing_is_a_protocol_error() -> None:
    _, carrier, process, _ = begin()
    for size in (1, -1):
        with pytest.raises(RemoteProtocolError, match="were taken"):
            carrier.taken(size)
    carrier.close()
    process.close()


async def test_a_sender_that_minds_no_window_is_a_protocol_error() -> None:
    _, carrier, process, _ = begin()
    with pytest.raises(RemoteProtocolError, match="bytes wait"):
        for _ in range(WAITING_MAX_BYTES // READ_BYTES + 10):
            carrier.carry(bytes(READ_BYTES))
    carrier.close()
    process.close()


async def test_what_came_is_handed_on_before_the_other_sides_end_is() -> None:
    _, carrier, process, ends = begin()
    for _ in range(8):
        carrier.carry(bytes(READ_BYTES))
    carrier.finish("it ended")
    assert not ends
    read = 0
    while not ends:
        try:
            read += len(process.recv(READ_BYTES))
        except BlockingIOError:
            await asyncio.sleep(0)
    while data := process.recv(READ_BYTES):
        read += len(data)
    assert read == 8 * READ_BYTES and ends == ["it ended"]
    process.close()


async def test_a_process_that_ends_is_said_to_have_ended_the_connection() -> None:
    link, carrier, process, ends = begin()
    process.close()
    for _ in range(10):
        await asyncio.sleep(0)
    assert carrier.over and carrier.ended_here and len(ends) == 1
    assert link.said == [far.Closed(2, "the process has ended it")]
