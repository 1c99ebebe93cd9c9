"""Who reads, who sleeps, who is woken: real sockets and threads, and timeouts that only a failure would reach."""

from __future__ import annotations

import errno
import functools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lattica.codec import frames
from lattica.codec import messages as m
from lattica.local.guard import Guard
from lattica.local.reactor import FLUSH_MESSAGES, Link, Reactor
from lattica.local.stream import Stream

LONG_S = 10.0
"""Until a test gives up."""
IO_THREAD = "lattica-io"


class Wish:
    """A condition that somebody waits for. `asked` counts how often it was looked at."""

    def __init__(self, true: bool = False) -> None:
        self.true = true
        self.asked = threading.Semaphore(0)

    def __call__(self) -> bool:
        self.asked.release()
        return self.true

    def looked_at(self, times: int) -> None:
        """Wait until it was looked at so often: once by whoever is about to lead, twice by a follower."""
        for _ in range(times):
            assert self.asked.acquire(timeout=LONG_S), "nobody looked"


class Peer:
    """The other end of a connection, and what was heard at ours: (message, name of the thread that read it)."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.socket, ours = socket.socketpair()
        self.heard: list[tuple[Any, str]] = []
        self.anything = threading.Event()
        self.ends = 0
        self.on_message: Callable[[Any], None] = lambda message: None
        with reactor.lock:
            self.link: Link = reactor.add(Stream(ours, m.FromWorker), self)

    def say(self, *messages: Any) -> None:
        self.socket.sendall(frames.encode(messages))

    def hear(self, count: int) -> list[Any]:
        """The next messages that we sent."""
        decoder, got = frames.Decoder(m.FromWorker), []
        while len(got) < count:
            got += decoder.feed(self.socket.recv(1 << 20))
        return got

    def received(self, messages: list[Any]) -> None:
        for message in messages:
            self.heard.append((message, threading.current_thread().name))
            self.on_message(message)
        self.anything.set()

    def ended(self) -> None:
        self.ends += 1
        self.anything.set()


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor(Guard(), lambda: None)
    yield made
    made.close()


@pytest.fixture
def peers(reactor: Reactor) -> Iterator[Callable[[], Peer]]:
    made: list[Peer] = []

    def make() -> Peer:
        made.append(Peer(reactor))
        made[-1].socket.settimeout(LONG_S)
        return made[-1]

    yield make
    reactor.close()
    for each in made:
        each.socket.close()


@pytest.fixture
def peer(peers: Callable[[], Peer]) -> Peer:
    return peers()


class Spy:
    """Stands for a peer's stream, and notes when it is flushed."""

    def __init__(self, peer: Peer, flushed: list[Peer]) -> None:
        self.peer, self.flushed, self.stream = peer, flushed, peer.link.stream

    def flush(self) -> bool:
        self.flushed.append(self.peer)
        return self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def before(owner: Any, method: str, action: Callable[[], None]) -> None:
    """Do something once, right before the next call of a method."""
    original = getattr(owner, method)

    def wrapped(*args: Any) -> Any:
        setattr(owner, method, original)
        action()
        return original(*args)

    setattr(owner, method, wrapped)


def in_thread(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """Start it in a thread; calling what is returned waits for the end and gives its result."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function(*args)), daemon=True)
    thread.start()

    def join() -> Any:
        thread.join(LONG_S)
        assert results, "the thread did not end"
        return results[0]

    return join


def fulfil(reactor: Reactor, wish: Wish) -> None:
    with reactor.lock:
        wish.true = True
        reactor.changed()


def waiter(reactor: Reactor, wish: Wish, *, leads: bool) -> Callable[[], Any]:
    """A thread that leads or follows, and sleeps by now, or is sure to be woken."""
    join = in_thread(reactor.wait, wish, LONG_S)
    wish.looked_at(1 if leads else 2)
    with reactor.lock:
        return join


# -- who reads


def test_the_thread_that_waits_reads_its_own_answer(reactor: Reactor, peer: Peer) -> None:
    before(reactor, "_poll", lambda: peer.say(m.Returned([1])))
    assert reactor.wait(lambda: bool(peer.heard), LONG_S)
    assert peer.heard == [(m.Returned([1]), threading.current_thread().name)]


def test_the_io_thread_reads_while_nobody_waits(peer: Peer) -> None:
    peer.say(m.Returned([1]))
    assert peer.anything.wait(LONG_S)
    assert peer.heard == [(m.Returned([1]), IO_THREAD)]


def test_the_io_thread_reads_on_after_somebody_has_waited(reactor: Reactor, peer: Peer) -> None:
    before(reactor, "_poll", lambda: peer.say(m.Returned([1])))
    assert reactor.wait(lambda: bool(peer.heard), LONG_S)
    peer.anything.clear()
    peer.say(m.Returned([2]))
    assert peer.anything.wait(LONG_S)
    assert peer.heard[1] == (m.Returned([2]), IO_THREAD)


def test_a_condition_that_is_true_already_is_not_waited_for(reactor: Reactor) -> None:
    before(reactor, "_lead", lambda: pytest.fail("it waited"))
    assert reactor.wait(lambda: True, 0)


def test_whoever_leads_reads_for_the_others_and_wakes_them(reactor: Reactor, peer: Peer) -> None:
    mine, others = Wish(), Wish()

    def heard(message: Any) -> None:
        (others if message.seqs == [1] else mine).true = True

    peer.on_message = heard
    led = waiter(reactor, mine, leads=True)
    followed = waiter(reactor, others, leads=False)
    peer.say(m.Returned([1]))
    assert followed() is True
    peer.say(m.Returned([2]))
    assert led() is True
    assert IO_THREAD not in [name for _, name in peer.heard]


def test_the_io_thread_wakes_followers_once_the_leader_has_left(reactor: Reactor, peer: Peer) -> None:
    mine, others = Wish(), Wish()
    peer.on_message = lambda message: setattr(others, "true", True)
    led = waiter(reactor, mine, leads=True)
    followed = waiter(reactor, others, leads=False)
    fulfil(reactor, mine)
    assert led() is True
    peer.say(m.Returned([1]))
    assert followed() is True


def test_many_threads_that_wait_at_once_all_get_their_own_answers(reactor: Reactor, peers: Any) -> None:
    each_rounds = 200

    def echo(peer: Peer) -> None:
        for _ in range(each_rounds):
            peer.say(*peer.hear(1))

    def call(peer: Peer) -> int:
        for seq in range(each_rounds):
            with reactor.lock:
                reactor.send(peer.link, m.Returned([seq]))
            assert reactor.wait(lambda seq=seq: len(peer.heard) > seq, LONG_S)  # type: ignore[misc]
        return len(peer.heard)

    mine = [peers() for _ in range(6)]
    echoes = [in_thread(echo, peer) for peer in mine]
    calls = [in_thread(call, peer) for peer in mine]
    assert [join() for join in calls] == [each_rounds] * len(mine)
    for join in echoes:
        join()


# -- what wakes


def test_a_change_without_a_message_wakes_the_leader(reactor: Reactor) -> None:
    wish = Wish()
    led = waiter(reactor, wish, leads=True)
    fulfil(reactor, wish)
    assert led() is True


def test_a_change_without_a_message_wakes_a_follower(reactor: Reactor) -> None:
    mine, others = Wish(), Wish()
    led = waiter(reactor, mine, leads=True)
    followed = waiter(reactor, others, leads=False)
    fulfil(reactor, others)
    assert followed() is True
    fulfil(reactor, mine)
    assert led() is True


def test_a_change_between_the_first_look_and_the_sleep_is_not_missed(reactor: Reactor) -> None:
    """The waiter has looked and is about to sleep; another thread makes the condition true and says so.

    If it were not yet known as the leader, nobody would be woken, and it would sleep on a condition that is true.
    """
    wish = Wish()
    before(reactor, "_lead", lambda: in_thread(lambda: fulfil(reactor, wish) or True)())
    assert in_thread(reactor.wait, wish, None)() is True


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_a_wait_in_vain_ends_with_its_timeout(reactor: Reactor, timeout: float) -> None:
    assert reactor.wait(lambda: False, timeout) is False


def test_a_follower_in_vain_ends_with_its_timeout(reactor: Reactor) -> None:
    mine = Wish()
    led = waiter(reactor, mine, leads=True)
    assert reactor.wait(lambda: False, 0) is False
    assert not reactor._followers
    fulfil(reactor, mine)
    assert led() is True


def test_a_wait_without_time_looks_at_the_sockets_once(reactor: Reactor, peer: Peer) -> None:
    before(reactor, "_poll", lambda: peer.say(m.Returned([1])))
    assert reactor.wait(lambda: bool(peer.heard), 0) is True


@pytest.mark.parametrize("timeout", [1e7, 1e12, float("inf")])
@pytest.mark.parametrize("leads", [True, False])
def test_a_timeout_longer_than_the_kernel_counts_is_waited_for(reactor: Reactor, timeout: float, leads: bool) -> None:
    first, wish = Wish(), Wish()
    led = waiter(reactor, first, leads=True) if not leads else lambda: True
    waited = in_thread(reactor.wait, wish, timeout)
    wish.looked_at(1 if leads else 2)
    fulfil(reactor, wish)
    assert waited() is True
    fulfil(reactor, first)
    assert led() is True


# -- sending


def test_what_is_queued_leaves_before_a_wait(reactor: Reactor, peer: Peer) -> None:
    with reactor.lock:
        reactor.send(peer.link, m.Returned([1]))
        reactor.send(peer.link, m.Returned([2]))
    before(reactor, "_poll", lambda: peer.say(*peer.hear(2)))
    assert reactor.wait(lambda: len(peer.heard) == 2, LONG_S)


def test_a_lone_message_leaves_at_once(reactor: Reactor, peer: Peer) -> None:
    with reactor.lock:  # so the I/O thread cannot be the one that sends
        peer.link.flushed_at = time.monotonic() + 1000  # as if it had been flushed just now
        reactor.send(peer.link, m.Returned([1]))
        reactor.nudge(peer.link, alone=True)
        assert not peer.link.stream.unsent
    assert peer.hear(1) == [m.Returned([1])]


def test_a_message_in_a_burst_leaves_with_the_io_thread(reactor: Reactor, peer: Peer) -> None:
    with reactor.lock:
        peer.link.flushed_at = time.monotonic() + 1000  # as if it had been flushed just now
        reactor.send(peer.link, m.Returned([1]))
        reactor.nudge(peer.link, alone=False)
        assert reactor.rung and peer.link.stream.unsent
    assert peer.hear(1) == [m.Returned([1])]


def test_a_burst_that_has_grown_leaves_at_once(reactor: Reactor, peer: Peer) -> None:
    with reactor.lock:
        peer.link.flushed_at = time.monotonic() + 1000
        for seq in range(FLUSH_MESSAGES):
            reactor.send(peer.link, m.Returned([seq]))
        reactor.nudge(peer.link, alone=False)
        assert not peer.link.stream.unsent


def test_the_node_hears_before_anybody_else(reactor: Reactor, peers: Any) -> None:
    """It must know of a gift before the receiver can drop it."""
    one, node, other = peers(), peers(), peers()
    sent: list[Peer] = []
    with reactor.lock:
        reactor.node_link = node.link
        for each in (one, node, other):
            each.link.stream = Spy(each, sent)
            reactor.send(each.link, m.Returned([1]))
        reactor.flush()
    assert sent == [node, one, other]


def test_what_the_node_said_after_the_poll_is_heard_before_what_is_read_with_it(reactor: Reactor, peers: Any) -> None:
    node, other = peers(), peers()
    order: list[str] = []
    with reactor.lock:
        reactor.node_link = node.link

    def arrives(_: Any) -> None:
        node.say(m.Returned([1]))
        reactor.hear_node()
        reactor.hear_node()  # nothing more: it comes back
        order.append("other")

    node.on_message = lambda _: order.append("node")
    other.on_message = arrives
    other.say(m.Returned([2]))
    assert other.anything.wait(LONG_S)
    with reactor.lock:
        assert order == ["node", "other"]


def test_to_hear_a_node_that_is_gone_ends_its_connection_once(reactor: Reactor, peers: Any) -> None:
    node = peers()
    with reactor.lock:
        reactor.node_link = node.link
        node.socket.close()
        reactor.hear_node()
        reactor.hear_node()
        assert node.ends == 1


def test_a_peer_that_does_not_read_gets_the_rest_when_it_does(reactor: Reactor, peer: Peer) -> None:
    large = m.Reply(1, [b"x" * (3 << 20)])
    with reactor.lock:
        reactor.send(peer.link, large)
        reactor.flush()
        assert not peer.link.writable
        reactor.send(peer.link, m.Returned([2]))
        reactor.flush()
    assert peer.hear(2) == [large, m.Returned([2])]
    peer.say(m.Returned([3]))  # and it is heard on
    assert peer.anything.wait(LONG_S)
    with reactor.lock:
        assert peer.link.writable


def test_a_frame_that_a_full_socket_does_not_take_leaves_later_and_says_when(reactor: Reactor, peer: Peer) -> None:
    items = frames.encode_one(m.Returned([1] * 3_000_000))
    told = Wish()
    with reactor.lock:
        reactor.send_frame(peer.link, frames.join(1, items) + items, lambda: setattr(told, "true", True))
        reactor.send(peer.link, m.Returned([2]))
    assert not told.true
    hear = in_thread(peer.hear, 2)
    assert reactor.wait(told, LONG_S)
    assert hear() == [m.Returned([1] * 3_000_000), m.Returned([2])]


def test_two_that_send_each_other_more_than_their_sockets_hold_both_get_through(reactor: Reactor, peer: Peer) -> None:
    """Neither lock is held while a socket is full, or each would wait for the other to read."""
    other = Reactor(Guard(), lambda: None)
    heard: list[Any] = []

    class There:
        received = staticmethod(heard.extend)

        def ended(self) -> None: ...

    with other.lock:
        link = other.add(Stream(peer.socket.dup(), m.FromWorker), There())
    items = frames.encode_one(m.Returned([1] * 3_000_000))
    sent = [Wish(), Wish()]
    for each, where, wish in ((reactor, peer.link, sent[0]), (other, link, sent[1])):
        with each.lock:
            each.send_frame(where, frames.join(1, items) + items, functools.partial(setattr, wish, "true", True))
    join = in_thread(other.wait, lambda: sent[1].true and bool(heard), LONG_S)
    assert reactor.wait(lambda: sent[0].true and bool(peer.heard), LONG_S) and join()
    other.close()


@pytest.mark.parametrize("gone", ["before", "while the socket is full"])
def test_whoever_waits_for_a_frame_to_leave_is_told_when_the_peer_is_gone(
    reactor: Reactor, peer: Peer, gone: str
) -> None:
    told = Wish()
    with reactor.lock:
        if gone == "before":
            reactor.remove(peer.link)
        reactor.send_frame(peer.link, bytes(3 << 20), lambda: setattr(told, "true", True))
        reactor.remove(peer.link)
        assert told.true
        told.true = False
        reactor.send_frame(peer.link, bytes(3 << 20), lambda: setattr(told, "true", True))
        assert told.true


def test_a_send_for_which_the_kernel_lacks_memory_is_made_a_little_later(reactor: Reactor, peer: Peer) -> None:
    stream = peer.link.stream
    real = stream._sock

    class Short:
        def send(self, data: Any) -> int:
            stream._sock = real
            raise OSError(errno.ENOBUFS, "no buffer space available")

    with reactor.lock:
        stream._sock = Short()  # type: ignore[assignment]
        reactor.send(peer.link, m.Returned([1]))
        reactor.flush()
        assert stream.unsent
    assert peer.hear(1) == [m.Returned([1])]


def test_finalizers_work_is_done_before_each_round_of_flushes(peers: Any) -> None:
    done: list[bool] = []
    reactor = Reactor(Guard(), lambda: done.append(reactor.lock._is_owned()))  # type: ignore[attr-defined]
    assert reactor.wait(lambda: True)
    assert done and all(done)
    reactor.close()


# -- time


def test_timers_run_in_their_order_in_the_io_thread_and_under_the_lock(reactor: Reactor) -> None:
    ran: list[tuple[int, str, bool]] = []
    over = threading.Event()

    def note(number: int) -> None:
        ran.append((number, threading.current_thread().name, reactor.lock._is_owned()))  # type: ignore[attr-defined]
        if number == 3:
            over.set()

    with reactor.lock:
        now = time.monotonic()
        for number in (3, 1, 2):
            reactor.call_at(now - 4 + number, lambda number=number: note(number))  # type: ignore[misc]
    assert over.wait(LONG_S)
    assert ran == [(number, IO_THREAD, True) for number in (1, 2, 3)]


def test_a_timer_that_is_due_before_those_set_earlier_is_not_late(reactor: Reactor) -> None:
    ran = threading.Event()
    with reactor.lock:
        reactor.call_at(time.monotonic() + 1000, lambda: pytest.fail("too early"))
    with reactor.lock:
        reactor.call_at(time.monotonic(), ran.set)
    assert ran.wait(LONG_S)


def test_a_timer_wakes_whoever_waits_for_what_it_does(reactor: Reactor) -> None:
    wish = Wish()
    led = waiter(reactor, wish, leads=True)
    with reactor.lock:
        reactor.call_at(time.monotonic(), lambda: setattr(wish, "true", True))
    assert led() is True


def test_the_io_thread_asks_how_long_it_may_sleep(reactor: Reactor) -> None:
    """A worker's finished replies wait behind a task that runs: the I/O thread looks again after what the hook says."""
    asked: list[str] = []
    enough = threading.Event()

    def hook() -> float | None:
        asked.append(threading.current_thread().name)
        if len(asked) < 3:
            return 0.0
        enough.set()
        return None

    reactor.idle_hook = hook
    reactor.ring()
    assert enough.wait(LONG_S) and set(asked) == {IO_THREAD}


# -- callbacks of users


def test_a_callback_may_itself_wait_for_something(reactor: Reactor, peer: Peer) -> None:
    """A future's callback calls `get`: the thread that runs it must not be the only one that could read."""
    results: list[bool] = []
    over = threading.Event()

    def ask_again() -> None:
        before(reactor, "_poll", lambda: peer.say(m.Returned([2])))
        results.append(reactor.wait(lambda: len(peer.heard) == 2, LONG_S))
        over.set()

    peer.on_message = lambda message: message.seqs == [1] and reactor.after_dispatch.append(ask_again)
    before(reactor, "_poll", lambda: peer.say(m.Returned([1])))
    assert reactor.wait(lambda: bool(results), LONG_S)
    assert results == [True]
    peer.heard.clear()
    over.clear()
    peer.say(m.Returned([1]))  # and the same in the I/O thread
    assert over.wait(LONG_S) and results == [True, True]


def test_a_callback_runs_without_the_lock(reactor: Reactor, peer: Peer) -> None:
    owned: list[bool] = []
    peer.on_message = lambda message: reactor.after_dispatch.append(
        lambda: owned.append(reactor.lock._is_owned())  # type: ignore[attr-defined]
    )
    before(reactor, "_poll", lambda: peer.say(m.Returned([1])))
    assert reactor.wait(lambda: bool(owned), LONG_S)
    assert owned == [False]


def test_a_callback_that_raises_is_logged_and_the_reading_goes_on(
    reactor: Reactor, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    ran = threading.Event()
    with reactor.lock, caplog.at_level(logging.ERROR):
        reactor.after_dispatch.extend([lambda: 1 / 0, ran.set])  # type: ignore[list-item]
        reactor.changed()  # nobody dispatches now: the I/O thread is woken for it
    assert ran.wait(LONG_S)
    assert "ZeroDivisionError" in caplog.text
    peer.say(m.Returned([1]))
    assert peer.anything.wait(LONG_S)


def test_callbacks_that_wait_when_the_reactor_closes_still_run(reactor: Reactor) -> None:
    ran = threading.Event()
    with reactor.lock:
        reactor.after_dispatch.append(ran.set)
    reactor.close()
    assert ran.is_set()


# -- ends


def test_the_end_of_a_stream_is_heard_once_and_after_its_last_message(reactor: Reactor, peer: Peer) -> None:
    def last_words() -> None:
        peer.say(m.Returned([1]))
        peer.socket.close()

    before(reactor, "_poll", last_words)
    assert reactor.wait(lambda: peer.ends > 0, LONG_S)
    assert [message for message, _ in peer.heard] == [m.Returned([1])]
    assert reactor.wait(lambda: False, 0) is False and peer.ends == 1
    assert peer.link.stream.closed


def test_a_peer_that_breaks_the_rules_is_dropped_alone(reactor: Reactor, peers: Any) -> None:
    bad, good = peers(), peers()
    bad.socket.sendall(b"\x01\x00\x00\x00\xc1")
    assert bad.anything.wait(LONG_S) and bad.ends == 1
    good.say(m.Returned([1]))
    assert good.anything.wait(LONG_S) and good.ends == 0


def test_a_connection_that_we_drop_is_not_heard_any_more(reactor: Reactor, peer: Peer) -> None:
    with reactor.lock:
        reactor.remove(peer.link)
        reactor.remove(peer.link)  # twice is once
    assert peer.socket.recv(1) == b"" and peer.ends == 0


def test_a_connection_dropped_twice_does_not_take_the_next_one_along(reactor: Reactor, peers: Any) -> None:
    """A worker dies: its connection ends and is closed. The node's word of it comes later, and we close once more; by
    then a new actor's connection has the descriptor's number."""
    gone, after = peers(), peers()
    with reactor.lock:
        reactor.remove(gone.link)
        fd = os.dup2(after.link.stream.fd, gone.link.stream.fd)
        reactor.remove(after.link)
        reactor.add(Stream(socket.socket(fileno=fd), m.FromWorker), after)
        reactor.remove(gone.link)
    after.say(m.Returned([1]))
    assert after.anything.wait(LONG_S) and after.heard[0][0] == m.Returned([1])


def test_closing_wakes_everybody(reactor: Reactor, peer: Peer) -> None:
    mine, others = Wish(), Wish()
    led = waiter(reactor, mine, leads=True)
    followed = waiter(reactor, others, leads=False)
    reactor.close()
    assert led() is False and followed() is False
    assert reactor.wait(lambda: False, LONG_S) is False and reactor.wait(lambda: True) is True


def test_closing_ends_the_io_thread_and_leaves_no_descriptor() -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    threads_before = threading.active_count()
    reactor = Reactor(Guard(), lambda: None)
    peer = Peer(reactor)
    reactor.close()
    reactor.close()
    peer.socket.close()
    assert len(os.listdir("/proc/self/fd")) == open_before and threading.active_count() == threads_before


def test_a_finalizer_that_rings_after_the_end_writes_to_no_descriptor(reactor: Reactor) -> None:
    reactor.close()
    with reactor.lock:
        reactor.ring()
        reactor.call_at(0.0, lambda: pytest.fail("nobody runs timers any more"))
        reactor.changed()


# -- interrupts


@pytest.fixture
def ctrl_c(reactor: Reactor) -> Iterator[None]:
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    reactor.guard.wrap(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, found)


def test_ctrl_c_breaks_a_wait_and_leaves_the_stream_whole(reactor: Reactor, peer: Peer, ctrl_c: None) -> None:
    before(reactor, "_poll", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        reactor.wait(lambda: bool(peer.heard), LONG_S)
    assert not reactor.guard.on
    peer.say(m.Returned([1]))  # the turn is free: the I/O thread reads
    assert peer.anything.wait(LONG_S) and peer.heard[0][1] == IO_THREAD


def test_ctrl_c_breaks_a_follower_and_forgets_it(reactor: Reactor, ctrl_c: None) -> None:
    mine, others = Wish(), Wish()
    led = waiter(reactor, mine, leads=True)

    def interrupt() -> None:
        others.looked_at(2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    in_thread(interrupt)
    with pytest.raises(KeyboardInterrupt):
        reactor.wait(others, LONG_S)
    assert not reactor._followers and not reactor.guard.on
    fulfil(reactor, mine)
    assert led() is True


def test_interrupts_at_any_moment_lose_no_reply(reactor: Reactor, peer: Peer) -> None:
    rounds, interrupts, armed, stop = 1500, 0, False, threading.Event()

    def handler(signum: int, frame: Any) -> None:
        nonlocal armed, interrupts
        if armed:
            armed = False  # one at a time, or the test's own `except` would be interrupted
            interrupts += 1
            raise KeyboardInterrupt

    def echo() -> bool:
        for _ in range(rounds):
            peer.say(*peer.hear(1))
        return True

    def interrupt() -> bool:
        while not stop.wait(0.000_3):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return True

    found = signal.signal(signal.SIGINT, handler)
    reactor.guard.wrap(signal.SIGINT)
    echoed, interrupted = in_thread(echo), in_thread(interrupt)
    for seq in range(rounds):
        with reactor.lock:
            reactor.send(peer.link, m.Returned([seq]))
        while len(peer.heard) <= seq:
            try:
                armed = True
                assert reactor.wait(lambda count=seq + 1: len(peer.heard) == count, LONG_S), f"reply {seq} is lost"
                armed = False
            except KeyboardInterrupt:
                continue
    stop.set()
    assert interrupted() and echoed() and interrupts > 10
    assert [message.seqs for message, _ in peer.heard] == [[seq] for seq in range(rounds)]
    signal.signal(signal.SIGINT, found)
