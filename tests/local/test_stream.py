"""Streams over a real socket pair: order, back-pressure, descriptors, ends. The peer is in the same process."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.codec import frames
from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from lattica.local.stream import READ_BYTES, Stream
from tests.conftest import examples

Pair = tuple[Stream, Stream]


def make_pair() -> Pair:
    one, other = socket.socketpair()
    return Stream(one, m.FromWorker), Stream(other, m.FromWorker, takes_fds=True)


@pytest.fixture
def pair() -> Iterator[Pair]:
    sender, receiver = make_pair()
    yield sender, receiver
    sender.close()
    receiver.close()


@pytest.fixture
def bare() -> Iterator[tuple[socket.socket, Stream]]:
    """A socket that a test writes to itself, and the stream at its other end."""
    one, other = socket.socketpair()
    stream = Stream(other, m.FromWorker)
    yield one, stream
    one.close()
    stream.close()


def reply(seq: int, size: int = 10) -> m.Reply:
    return m.Reply(seq, [b"x" * size])


def number_of(fd: int) -> int:
    """The number that a descriptor made by `numbered` bears; closes it."""
    try:
        return int(os.pread(fd, 20, 0))
    finally:
        os.close(fd)


def numbered(number: int) -> int:
    fd = os.memfd_create("test")
    os.write(fd, b"%d" % number)
    return fd


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def exchange(sender: Stream, receiver: Stream) -> list[Any]:
    """Flush and receive in turn until all has arrived."""
    got: list[Any] = []
    readable = select.poll()
    readable.register(receiver.fd, select.POLLIN)
    while True:
        done = sender.flush()
        while readable.poll(0):
            got += receiver.receive() or []
        if done:
            return got


# -- messages


def test_messages_arrive_in_the_order_in_which_they_were_queued(pair: Pair) -> None:
    sender, receiver = pair
    for seq in range(100):
        assert sender.queue(reply(seq)) == seq + 1
    assert sender.unsent and sender.flush() and not sender.unsent
    assert receiver.receive() == [reply(seq) for seq in range(100)]


def test_nothing_has_arrived_yet_is_an_empty_list(pair: Pair) -> None:
    assert pair[1].receive() == []


def test_a_full_socket_keeps_the_rest_until_it_is_writable(pair: Pair) -> None:
    sender, receiver = pair
    sender.queue(reply(1, 3 << 20))
    assert not sender.flush() and sender.unsent
    sender.queue(reply(2))  # behind the rest of the first
    assert not sender.flush()
    assert exchange(sender, receiver) == [reply(1, 3 << 20), reply(2)]
    assert not sender.unsent


def test_raw_frames_keep_their_place_between_messages(pair: Pair) -> None:
    sender, receiver = pair
    sender.queue(reply(1))
    items = frames.encode_one(reply(2))
    sender.queue_raw(frames.join(1, items))
    sender.queue_raw(items)
    sender.queue(reply(3))
    assert exchange(sender, receiver) == [reply(1), reply(2), reply(3)]


# -- sends that fail


class Failing:
    """A socket whose next sends fail with these numbers, and which otherwise is the one it stands for."""

    def __init__(self, sock: socket.socket, *numbers: int) -> None:
        self.sock, self.numbers = sock, list(numbers)

    def send(self, data: Any) -> int:
        return self._fail_or(self.sock.send, data)

    def sendmsg(self, parts: Any, rights: Any) -> int:
        return self._fail_or(self.sock.sendmsg, parts, rights)

    def recv_into(self, memory: Any) -> int:
        return self._fail_or(self.sock.recv_into, memory)

    def _fail_or(self, call: Any, *args: Any) -> Any:
        if self.numbers:
            raise OSError(self.numbers[0], os.strerror(self.numbers.pop(0)))
        return call(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


def fail_next(stream: Stream, *numbers: int) -> None:
    stream._sock = Failing(stream._sock, *numbers)  # type: ignore[assignment]


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS])
@pytest.mark.parametrize("with_descriptor", [False, True])
def test_a_send_for_which_the_kernel_lacks_something_is_tried_again(
    pair: Pair, number: int, with_descriptor: bool
) -> None:
    sender, receiver = pair
    fail_next(sender, number, number)
    sent = m.Returned([7])
    sender.queue(sent, [numbered(7)] if with_descriptor else [])
    for _ in range(2):
        assert not sender.flush() and sender.short and sender.unsent
    assert sender.flush() and receiver.receive() == [sent]
    if with_descriptor:
        assert number_of(receiver.take_fd()) == 7


def test_a_full_socket_is_not_short_of_anything(pair: Pair) -> None:
    sender, receiver = pair
    fail_next(sender, errno.ENOBUFS)
    sender.queue(reply(1, 3 << 20))
    assert not sender.flush() and sender.short
    assert not sender.flush() and not sender.short
    assert not sender.flush() and not sender.short
    assert exchange(sender, receiver) == [reply(1, 3 << 20)]


@pytest.mark.parametrize("before", [0, 3 << 20])
def test_a_send_that_can_never_succeed_ends_the_stream_for_both_and_says_why(
    pair: Pair, caplog: pytest.LogCaptureFixture, before: int
) -> None:
    sender, receiver = pair
    if before:
        sender.queue(reply(0, before))
        assert not sender.flush()
    fail_next(sender, errno.EMSGSIZE)
    sender.queue(reply(1))
    assert sender.flush() and not sender.unsent
    assert "could not be sent" in caplog.text and "too long" in caplog.text
    while (got := receiver.receive()) is not None:
        assert got == []
    assert sender.receive() is None


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ECONNRESET])
def test_a_peer_that_is_gone_is_not_worth_a_word(pair: Pair, caplog: pytest.LogCaptureFixture, number: int) -> None:
    fail_next(pair[0], number)
    pair[0].queue(reply(1))
    assert pair[0].flush() and not pair[0].unsent and not caplog.text


def test_a_read_for_which_the_kernel_lacks_memory_is_no_end(pair: Pair) -> None:
    receiver, sender = pair
    sender.queue(reply(1))
    assert sender.flush()
    fail_next(receiver, errno.ENOMEM)
    assert receiver.receive() == []
    assert receiver.receive() == [reply(1)]


def test_a_descriptor_for_which_there_was_no_room_is_said_to_be_lost_for_that(pair: Pair) -> None:
    sender, receiver = pair
    sender.queue(m.Returned([7]), [numbered(7)])
    assert sender.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    fillers = [os.dup(0) for _ in range(used)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(fillers) + 1, hard))
    try:
        assert receiver.receive() == [m.Returned([7])]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)
    with pytest.raises(RemoteProtocolError, match="too many files open"):
        receiver.take_fd()


# -- descriptors


def test_descriptors_arrive_in_order_whatever_goes_between_them(pair: Pair) -> None:
    sender, receiver = pair
    for number in range(5):
        sender.queue(reply(number))
        sender.queue(m.Returned([number]), [numbered(2 * number), numbered(2 * number + 1)])
    got = exchange(sender, receiver)
    assert got == [message for n in range(5) for message in (reply(n), m.Returned([n]))]
    assert [number_of(receiver.take_fd()) for _ in range(10)] == list(range(10))


def test_a_descriptor_behind_a_full_socket_arrives_with_its_message(pair: Pair) -> None:
    sender, receiver = pair
    sender.queue(reply(1, 3 << 20))
    sender.queue(m.Returned([7]), [numbered(7)])
    assert exchange(sender, receiver)[-1] == m.Returned([7])
    assert number_of(receiver.take_fd()) == 7


def test_sent_descriptors_are_closed_here(pair: Pair) -> None:
    sender, receiver = pair
    before = open_descriptors()
    sender.queue(m.Returned([1]), [numbered(1)])
    exchange(sender, receiver)
    number_of(receiver.take_fd())
    assert open_descriptors() == before


def test_a_descriptor_that_did_not_come_is_the_peers_mistake(pair: Pair) -> None:
    with pytest.raises(RemoteProtocolError, match="descriptor"):
        pair[1].take_fd()


def test_descriptors_sent_to_a_stream_that_takes_none_do_not_pile_up() -> None:
    receiver, sender = make_pair()
    before = open_descriptors()
    sender.queue(m.Returned([1]), [numbered(1)])
    assert sender.flush() and receiver.receive() == [m.Returned([1])]
    assert open_descriptors() == before
    sender.close()
    receiver.close()


def test_closing_a_stream_closes_the_descriptors_in_both_boxes() -> None:
    before = open_descriptors()
    sender, receiver = make_pair()
    sender.queue(m.Returned([1]), [numbered(1)])
    assert sender.flush() and receiver.receive()
    sender.queue(m.Returned([2]), [numbered(2)])
    sender.close()
    receiver.close()
    assert open_descriptors() == before


def test_descriptors_for_a_peer_that_is_gone_are_closed() -> None:
    before = open_descriptors()
    sender, receiver = make_pair()
    receiver.close()
    sender.queue(m.Returned([1]), [numbered(1)])
    assert sender.flush() and not sender.unsent
    sender.close()
    sender.queue(m.Returned([2]), [numbered(2)])
    assert sender.flush() and open_descriptors() == before


@examples(60)
@given(st.lists(st.sampled_from(["small", "large", "with descriptors", "flush", "receive"]), max_size=40))
def test_in_any_order_of_events_each_message_comes_once_with_its_descriptors(events: list[str]) -> None:
    sender, receiver = make_pair()
    sent: list[Any] = []
    got: list[Any] = []
    descriptors = 0
    for number, event in enumerate(events):
        if event == "flush":
            sender.flush()
        elif event == "receive":
            got += receiver.receive() or []
        elif event == "with descriptors":
            sent.append(m.Returned([number]))
            sender.queue(sent[-1], [numbered(descriptors)])
            descriptors += 1
        else:
            sent.append(reply(number, 300 << 10 if event == "large" else 5))
            sender.queue(sent[-1])
    got += exchange(sender, receiver)
    assert got == sent
    assert [number_of(receiver.take_fd()) for _ in range(descriptors)] == list(range(descriptors))
    sender.close()
    receiver.close()


# -- the end


def test_what_was_sent_arrives_before_the_end_of_the_stream(pair: Pair) -> None:
    sender, receiver = pair
    sender.queue(reply(1))
    sender.flush()
    sender.close()
    assert receiver.receive() == [reply(1)]
    assert receiver.receive() is None


def test_half_a_message_and_then_the_end_is_the_end(bare: tuple[socket.socket, Stream]) -> None:
    peer, stream = bare
    peer.sendall(bytes(frames.encode([reply(1)]))[:-1])
    assert stream.receive() == []
    peer.close()
    assert stream.receive() is None


def test_a_connection_that_was_reset_is_the_end(pair: Pair) -> None:
    sender, receiver = pair
    receiver.queue(reply(1))
    receiver.flush()
    sender.close()  # with unread bytes: the kernel says ECONNRESET
    assert receiver.receive() is None


def test_sending_to_a_peer_that_is_gone_is_no_error_and_keeps_nothing(pair: Pair) -> None:
    sender, receiver = pair
    receiver.close()
    for size in (10, 3 << 20):
        sender.queue(reply(1, size))
        assert sender.flush() and not sender.unsent


def test_bytes_that_are_no_messages_are_a_protocol_error(bare: tuple[socket.socket, Stream]) -> None:
    peer, stream = bare
    peer.sendall(b"\x01\x00\x00\x00\xc1")
    with pytest.raises(RemoteProtocolError):
        stream.receive()


def test_all_that_a_dead_peer_wrote_is_heard_although_its_socket_lives_on_in_a_child() -> None:
    """A worker writes replies in one frame longer than a read, and dies; a process that it forked has the socket still.

    The end of the stream never comes then, and the first read brings no whole message: both must not stop the reader.
    """
    sender, receiver = make_pair()
    child = os.dup(sender.fd)
    replies = [reply(seq, 900) for seq in range(READ_BYTES // 700)]
    for each in replies:
        sender.queue(each)
    assert sender.flush(), "the kernel's buffer is smaller than this test assumes"
    sender.close()
    assert receiver.drain() == replies
    os.close(child)
    assert receiver.drain() == []
    receiver.close()


def test_the_last_words_of_a_dead_peer_end_where_they_stop_making_sense(bare: tuple[socket.socket, Stream]) -> None:
    peer, stream = bare
    peer.sendall(bytes(frames.encode([reply(1)])))
    assert stream.receive() == [reply(1)]
    peer.sendall(b"\x01\x00\x00\x00\xc1")
    assert stream.drain() == []


def test_a_forked_child_lets_go_without_a_word(pair: Pair) -> None:
    sender, receiver = pair
    sender.queue(reply(1))
    copy = Stream(socket.socket(fileno=os.dup(sender.fd)), m.FromWorker)
    copy.queue(reply(2))
    copy.abandon()
    assert sender.flush() and receiver.receive() == [reply(1)]


def test_the_kernel_says_who_is_at_the_other_end(pair: Pair) -> None:
    assert pair[0].peer_credentials() == (os.getpid(), os.getuid(), os.getgid())


def test_a_stream_says_what_it_still_has_to_send(pair: Pair) -> None:
    pair[0].queue(reply(1))
    assert "1 unsent messages, 0 unsent frames" in repr(pair[0])
    pair[0].close()
    assert "closed" in repr(pair[0])
