"""The node's loop calls what is due, once, and survives what its callbacks raise and remove."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest
import uvloop

from lattica.node.loop import EpollLoop


@pytest.fixture(params=["epoll", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The loop of embedded nodes, and that of nodes with a mesh: to the node they are alike."""
    loop: Any = EpollLoop() if request.param == "epoll" else uvloop.new_event_loop()
    yield loop
    for thread in threading.enumerate():
        if thread.name == "lattica-work":
            thread.join()  # it wakes the loop up with its last breath
    loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def run(loop: Any, turns: int = 3) -> None:
    """So many turns, none of which sleeps."""
    for _ in range(turns):
        loop.call_soon(lambda: None)
        loop.call_soon(loop.stop)
        loop.run_forever()


def test_callbacks_run_in_order_and_what_they_add_runs_in_the_next_turn(loop: Any) -> None:
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        loop.call_soon(seen.append, "third")

    loop.call_soon(first)
    loop.call_soon(seen.append, "second")
    run(loop)
    assert seen == ["first", "second", "third"]


def test_timers_run_by_time_and_not_if_cancelled(loop: Any) -> None:
    seen: list[str] = []
    now = loop.time()
    loop.call_at(now + 0.004, seen.append, "later")
    loop.call_at(now + 0.002, seen.append, "sooner")
    loop.call_at(now + 0.001, seen.append, "never").cancel()
    loop.call_at(now + 1000, seen.append, "not yet")
    loop.call_at(now + 0.006, loop.stop)
    loop.run_forever()
    assert seen == ["sooner", "later"]


def test_a_reader_is_called_while_there_is_something_to_read_and_until_it_is_removed(
    loop: Any, pipe: tuple[int, int]
) -> None:
    read, write = pipe
    seen: list[bytes] = []
    loop.add_reader(read, lambda: seen.append(os.read(read, 1)))
    run(loop)
    os.write(write, b"abc" * 10)
    run(loop, 2)
    loop.remove_reader(read)
    loop.remove_reader(read)
    before = list(seen)
    run(loop, 2)
    assert seen == before and seen[:2] == [b"a", b"b"]


def test_a_descriptor_that_a_callback_removes_is_not_called_in_the_same_turn(loop: Any) -> None:
    """Two pipes are ready; whoever is first closes the other, whose descriptor may by then be somebody else's."""
    pipes = [os.pipe(), os.pipe()]
    seen: list[int] = []

    def take(mine: int, other: int) -> None:
        seen.append(mine)
        loop.remove_reader(other)

    (one, _), (two, _) = pipes
    loop.add_reader(one, take, one, two)
    loop.add_reader(two, take, two, one)
    for _, write in pipes:
        os.write(write, b"x")
    run(loop, 1)
    assert len(set(seen)) == 1
    for ends in pipes:
        for end in ends:
            os.close(end)


def test_a_descriptor_that_a_callback_opens_does_not_hear_of_its_predecessor(loop: Any) -> None:
    """Two workers die in one turn. The first death starts a third worker, whose pidfd gets the number of the second's:
    it must not be taken for dead."""
    called: list[int] = []
    ends = [os.pipe() for _ in range(2)]
    closed: list[int] = []

    def replace(mine: int) -> None:
        called.append(mine)
        if closed:
            return
        (other,) = {read for read, _ in ends} - {mine}
        loop.remove_reader(mine)
        loop.remove_reader(other)
        os.dup2(quiet, other)  # something with nothing to read
        loop.add_reader(other, replace, -other)
        closed.append(other)

    quiet, silent = os.pipe()
    for read, write in ends:
        os.write(write, b"x")
        loop.add_reader(read, replace, read)
    run(loop)
    assert len(called) == 1
    for fd in (quiet, silent, *(end for pipe in ends for end in pipe)):
        if fd in closed:
            loop.remove_reader(fd)
        os.close(fd)


def test_a_writer_beside_a_reader_is_called_when_there_is_room(loop: Any) -> None:
    import socket

    ours, theirs = socket.socketpair()
    seen: list[str] = []
    with ours, theirs:
        loop.add_reader(ours.fileno(), seen.append, "read")
        loop.add_writer(ours.fileno(), seen.append, "write")
        run(loop, 1)
        loop.remove_writer(ours.fileno())
        theirs.send(b"x")
        run(loop, 1)
        loop.remove_reader(ours.fileno())
    assert [kind for kind, _ in groupby(seen)] == ["write", "read"]


def test_a_reader_hears_of_a_connection_that_was_reset(loop: Any) -> None:
    """A driver is killed with unread bytes in its socket: the node gets an error, not an end, and must hear of it."""
    import socket

    ours, theirs = socket.socketpair()
    seen: list[str] = []

    def readable() -> None:
        try:
            seen.append(str(ours.recv(1)))
        except ConnectionResetError:
            seen.append("reset")
        loop.remove_reader(ours.fileno())

    with ours:
        loop.add_reader(ours.fileno(), readable)
        ours.send(b"unread")
        theirs.close()
        run(loop)
    assert seen == ["reset"]


def test_a_callback_that_raises_is_logged_and_the_others_run(loop: Any, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []
    loop.call_soon(int, "no number")
    loop.call_soon(seen.append, "next")
    with caplog.at_level(logging.ERROR):
        run(loop)
    assert seen == ["next"] and "no number" in caplog.text


def test_work_in_a_thread_is_told_on_the_loop_with_what_it_raised(loop: Any) -> None:
    told: list[tuple[object, int]] = []

    def done(work: object) -> None:
        told.append((work.exception(), threading.get_ident()))  # type: ignore[attr-defined]
        if len(told) == 2:
            loop.stop()

    for argument in ("7", "seven"):
        loop.run_in_executor(None, int, argument).add_done_callback(done)
    loop.run_forever()
    errors = sorted(type(error).__name__ for error, _ in told)
    assert errors == ["NoneType", "ValueError"] and {thread for _, thread in told} == {threading.get_ident()}


def test_work_that_ends_after_its_loop_was_closed_writes_to_no_descriptor() -> None:
    """The loop takes the result and ends before the thread has woken it; the descriptor may be another's by then."""
    loop = EpollLoop()
    loop.close()
    loop.call_soon_threadsafe(int)


def test_a_signal_wakes_the_loop_and_calls_its_handler(loop: Any) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    try:
        loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
        loop.run_forever()
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, before)
