"""A wire of the node: what the socket does not take now is sent when it can be, without spinning."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from lattica.codec import messages as m
from lattica.local.stream import Stream
from lattica.node.loop import EpollLoop
from lattica.node.wires import Wire, Wires

Rig = tuple[EpollLoop, Wire, Stream]


@pytest.fixture
def rig() -> Iterator[Rig]:
    ours, theirs = socket.socketpair()
    loop = EpollLoop()
    wire = Wire(Wires(loop), ours, m.FromWorker, lambda messages: None, lambda reason: None, name="a test")
    peer = Stream(theirs, m.FromWorker)
    yield loop, wire, peer
    wire.close()
    peer.close()
    loop.close()


class Short:
    """A socket for which the kernel lacks something, so often."""

    def __init__(self, sock: socket.socket, times: int) -> None:
        self.sock, self.left = sock, times

    def send(self, data: Any) -> int:
        if self.left:
            self.left -= 1
            raise OSError(errno.ETOOMANYREFS, "too many references")
        return self.sock.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


def hear(loop: EpollLoop, peer: Stream, count: int) -> tuple[list[Any], int]:
    """So many messages that arrive at the peer, and the turns of the loop until then."""
    got: list[Any] = []
    turns = 0
    readable = select.poll()
    readable.register(peer.fd, select.POLLIN)
    while len(got) < count:
        assert turns < 10_000, "the loop turns and turns, and nothing comes"
        loop._turn()
        turns += 1
        while readable.poll(0):
            got += peer.receive() or []
    return got, turns


def test_what_the_socket_does_not_take_is_sent_when_it_is_writable(rig: Rig) -> None:
    loop, wire, peer = rig
    large = m.Reply(1, [bytes(3 << 20)])
    wire.send(large)
    wire.send(m.Returned([2]))
    assert hear(loop, peer, 2)[0] == [large, m.Returned([2])]
    assert not wire.full


@pytest.mark.parametrize("full_before", [False, True])
def test_what_the_kernel_lacks_something_for_is_tried_again_and_does_not_keep_the_loop_busy(
    rig: Rig, full_before: bool
) -> None:
    loop, wire, peer = rig
    large = m.Reply(1, [bytes(3 << 20)])
    if full_before:
        wire.send(large)
        wire.flush()
        assert wire.full
    wire.stream._sock = Short(wire.stream._sock, 3)  # type: ignore[assignment]
    wire.send(m.Returned([2]))
    wire.flush()
    wire.flush()
    got, turns = hear(loop, peer, 1 + full_before)
    assert got[-1] == m.Returned([2])
    assert turns < 100, "a socket that is writable and takes nothing was polled again and again"


def test_a_wire_that_is_short_of_something_can_be_full_after_that(rig: Rig) -> None:
    loop, wire, peer = rig
    large = m.Reply(1, [bytes(3 << 20)])
    wire.stream._sock = Short(wire.stream._sock, 1)  # type: ignore[assignment]
    wire.send(large)
    wire.flush()
    assert wire.stream.short
    assert hear(loop, peer, 1)[0] == [large]
    assert not wire.full and not wire.stream.short


def test_what_is_held_back_comes_after_what_it_is_released_with_and_a_close_leaves_no_descriptor(rig: Rig) -> None:
    loop, wire, peer = rig
    wire.hold()
    for seq in (2, 3):
        wire.send(m.Reply(seq, []))
    assert not wire.stream.unsent
    wire.release(m.Reply(1, []))
    got, _ = hear(loop, peer, 3)
    assert [message.seq for message in got] == [1, 2, 3]
    wire.hold()
    mine, other = socket.socketpair()
    wire.send(m.Reply(4, []), [other.detach()])
    wire.close()
    assert mine.recv(1) == b"", "the end that was to be sent is closed"
    mine.close()
    wire.send(m.Reply(5, []))
