"""Who reads the connections of a driver or worker: one thread at a time.

All connections stand in one epoll set. A thread that waits for a result *leads*: it polls the set and dispatches what
arrives, for everybody, until its own condition is true, so a round trip costs one wake-up. While nobody leads, the I/O
thread does. It sleeps on a second epoll set, the gate, in which the first one is itself a member: leading is one
`epoll_ctl` that takes it out, and one that puts it back.

    caller thread:   submit ─ flush ─ lead: poll, dispatch, poll, dispatch … done ─ hand back
    I/O thread:      asleep on the gate ──────────────────────────────────────────► polls, dispatches

A second waiting thread follows: it leaves its condition with the reader, who wakes it when it is true. State is guarded
by one lock per process, held while messages are dispatched or queued, never while a thread sleeps or runs user code.
"""

from __future__ import annotations

import functools
import heapq
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sized
from itertools import count
from typing import Any, Protocol

from lattica.errors import RemoteProtocolError
from lattica.local.guard import Guard
from lattica.local.stream import RETRY_S, Stream

EVENTS_MAX = 64
"""Ready connections handled per poll; more simply come with the next one."""
FLUSH_MESSAGES = 64
FLUSH_S = 300e-6
"""A burst leaves in batches of so many messages, or what came together in so long: a send costs 4 us and gives the GIL
away, a message to encode 0.1."""
ATTENTIVE_S = 500e-6
"""Once rung, the I/O thread looks about it at this interval until a whole one has passed with nothing to send. Waking
it for each message would let it fight the submitting thread for the GIL; and most callers flush by themselves."""

log = logging.getLogger("lattica")

SLEEP_MAX_S = 86_400.0
"""Longest single sleep, a day: epoll counts milliseconds in 31 bits, and users wait with `timeout=1e9`."""

NAP_S = 1.0
"""Longest single sleep of a thread that a signal may break: one that comes between Python's last look for signals and
the system call is handled only after the call (5 of 100 aimed at that moment; a Ctrl-C or a cancel would be lost)."""

SPIN_S = 200e-6
"""A thread that expects one message, and whose last such waits were short, looks for it this long before it sleeps: an
idle core takes 25-50 us to wake up, twice in a round trip that otherwise costs 50. A wait that was longer after all is
paid for by SPIN_PENALTY short ones before the next spin, so this must exceed what a round trip takes without spinning
(105-115 us on a slow day): shorter, a machine that once missed would never spin again. One core never spins."""
SPIN_PENALTY = 8
SPIN_NEVER = -(1 << 60)

_IN, _OUT, _HUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR


class Handler(Protocol):
    """What a connection's owner hears, with the reactor's lock held."""

    def received(self, messages: list[Any]) -> None: ...
    def ended(self) -> None: ...


class Link:
    """A stream in the reactor's care, and who hears it."""

    __slots__ = ("dirty", "drained", "flushed_at", "handler", "stream", "why", "writable")

    def __init__(self, stream: Stream, handler: Handler) -> None:
        self.stream, self.handler = stream, handler
        self.dirty = False
        self.writable = True  # False: the socket is full, and the set tells when it is not
        self.drained: Callable[[], None] | None = None  # called once when all is sent, or will never be; lock held
        self.flushed_at = 0.0
        self.why = ""  # why we closed it, if it was us


class _Follower:
    __slots__ = ("done", "lock", "released")

    def __init__(self, done: Callable[[], bool]) -> None:
        self.done, self.released = done, False
        self.lock = threading.Lock()
        self.lock.acquire()

    def wake(self) -> None:
        if not self.released:
            self.released = True
            self.lock.release()


class Reactor:
    """The connections of one process; see the top of this file."""

    def __init__(self, guard: Guard, housekeep: Callable[[], None], chores: Sized = (None,)) -> None:
        """housekeep: called with the lock held before each round of flushes, as long as there are `chores` (finalizers
        leave their work there)."""
        self.lock = threading.RLock()
        self.guard = guard
        self._housekeep, self._chores = housekeep, chores
        self._set, self._gate = select.epoll(), select.epoll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # wakes the I/O thread
        self._poke = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # wakes whoever leads
        self._spin_credit = -SPIN_PENALTY if len(os.sched_getaffinity(0)) > 1 else SPIN_NEVER
        self._leader = 0  # its thread's ident
        self.node_link: Link | None = None
        self._node_poll: select.poll | None = None  # of its connection alone
        self._gate.register(self._bell, _IN)
        self._set.register(self._poke, _IN)
        self._set_fd = self._set.fileno()
        self._gate.register(self._set_fd, _IN)
        self._turn = threading.Lock()
        self._links: dict[int, Link] = {}
        self._dirty: list[Link] = []
        self._followers: list[_Follower] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_order = count()
        self._io_sleeps_until = 0.0
        self._rung = False
        self.after_dispatch: deque[Callable[[], None]] = deque()  # user callbacks, run without lock or turn
        self.idle_hook: Callable[[], float | None] | None = (
            None  # worker: flush finished replies; returns seconds to look again
        )
        self.closed = False
        self._thread = threading.Thread(target=self._run, name="lattica-io", daemon=True)
        self._thread.start()

    # -- connections (lock held)

    def add(self, stream: Stream, handler: Handler) -> Link:
        """Read `stream` from now on."""
        link = Link(stream, handler)
        self._links[stream.fd] = link
        self._set.register(stream.fd, _IN)
        return link

    def remove(self, link: Link) -> None:
        """Forget and close it; its handler hears nothing more. A second time is no matter, though by then another
        connection may have got its descriptor's number."""
        if self._links.get(link.stream.fd) is link:
            del self._links[link.stream.fd]
            self._set.unregister(link.stream.fd)
        link.stream.close()
        link.writable = True  # a closed stream takes whatever comes
        self._drained(link)

    # -- sending (lock held)

    def send(self, link: Link, message: Any) -> None:
        """Queue a message; it leaves with the next flush, which `nudge`, a wait or the I/O thread brings soon."""
        link.stream.messages.append(message)  # `queue` would do no more
        if not link.dirty:
            link.dirty = True
            self._dirty.append(link)

    def send_frame(self, link: Link, frame: bytes, then: Callable[[], None]) -> None:
        """Send a whole frame now; `then` is called, with the lock held, when the kernel has taken it all or the peer is
        gone: in here, or later. One at a time: not before the last one's `then`."""
        assert link.drained is None, "the last frame is not sent yet"
        link.stream.queue_raw(frame)
        link.drained = then
        self._flush_link(link, time.monotonic())

    def nudge(self, link: Link, *, alone: bool) -> None:
        """See that what is queued is sent: now if it is `alone` (nothing of ours is under way there, so the peer waits
        for it) or enough has come together, else within a millisecond."""
        if alone or len(link.stream.messages) >= FLUSH_MESSAGES or time.monotonic() - link.flushed_at > FLUSH_S:
            self.flush()
        elif not self._rung:
            self.ring()

    def flush(self) -> None:
        """Send everything that is queued, in the order in which connections became dirty.

        The node's connection is first whenever it is dirty: it must know of a gift before the receiver can drop it.
        """
        if self._chores:
            self._housekeep()
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, []
        now = time.monotonic()
        node = self.node_link
        if node is not None and node.dirty:
            self._flush_link(node, now)
        for link in dirty:
            if link.dirty:
                self._flush_link(link, now)

    def _flush_link(self, link: Link, now: float) -> None:
        link.dirty = False
        link.flushed_at = now
        if not link.writable:
            return
        stream = link.stream
        if stream.flush():
            if link.drained is not None:
                self._drained(link)
            return
        link.writable = False
        if self._links.get(stream.fd) is link:
            if stream.short:
                self.call_at(now + RETRY_S, functools.partial(self._retry, link))
            else:
                self._set.modify(stream.fd, _IN | _OUT)

    def _retry(self, link: Link) -> None:
        link.writable = True
        self._flush_link(link, time.monotonic())

    def _drained(self, link: Link) -> None:
        drained, link.drained = link.drained, None
        if drained is not None:
            drained()

    def ring(self) -> None:
        """Wake the I/O thread. Takes no lock: finalizers call it."""
        if not self.closed:
            self._rung = True
            os.eventfd_write(self._bell, 1)

    @property
    def rung(self) -> bool:
        """Whether the I/O thread is on its way already."""
        return self._rung

    # -- time (lock held)

    def call_at(self, when: float, what: Callable[[], None]) -> None:
        """Call `what` in the I/O thread, with the lock held, at `when` (time.monotonic) or soon after."""
        heapq.heappush(self._timers, (when, next(self._timer_order), what))
        if when < self._io_sleeps_until and not self._rung:
            self.ring()

    # -- waiting

    def wait(self, done: Callable[[], bool], timeout: float | None = None, *, spin: bool = False) -> bool:
        """Block until `done()`; False if `timeout` seconds pass first. `done` is called with the lock held, by any
        thread. `spin`: one message is expected, perhaps very soon; see SPIN_S."""
        guard = self.guard
        mine = guard.enter()
        try:
            deadline = None if timeout is None else time.monotonic() + timeout
            while True:
                with self.lock:
                    self.flush()
                    if done():
                        return True
                    if self.closed:
                        return False
                    leads = self._turn.acquire(False)
                    if leads:  # here, so that `changed` finds a leader to wake, or a follower, but never nobody
                        self._leader = threading.get_ident()
                nap_s = NAP_S if mine else SLEEP_MAX_S
                if leads:
                    finished = self._lead(done, deadline, nap_s, spin and self._spin_credit >= 0)
                else:
                    finished = self._follow(done, deadline, nap_s)
                if self.after_dispatch:
                    self._run_callbacks()
                if finished is not None:
                    return finished
        finally:
            if mine:
                guard.leave()

    def _lead(self, done: Callable[[], bool], deadline: float | None, nap_s: float, spin: bool) -> bool | None:
        began = time.monotonic()
        try:
            self._gate.modify(self._set_fd, 0)
            while not self.closed and not self.after_dispatch:
                events = self._spin(began + SPIN_S) if spin else None
                if not events:
                    left = nap_s if deadline is None else min(max(0.0, deadline - time.monotonic()), nap_s)
                    events = self._poll(left)
                    if spin:
                        spin = False
                        self._spin_credit = -SPIN_PENALTY
                if self._dispatch(events, done):
                    return True
                if deadline is not None and time.monotonic() >= deadline:
                    return False
            return None
        finally:
            self._leader = 0
            if self._spin_credit < 0 and time.monotonic() - began < SPIN_S:
                self._spin_credit += 1
            if not self.closed:
                self._gate.modify(self._set_fd, _IN)
            self._turn.release()

    def _spin(self, until: float) -> list[tuple[int, int]]:
        """Look again and again, without sleeping, for a while."""
        poll = self._set.poll
        while True:
            events = poll(0, EVENTS_MAX)
            if events or time.monotonic() >= until:
                return events

    def _poll(self, timeout: float) -> list[tuple[int, int]]:
        guard = self.guard
        guarded = guard.defers_here
        try:
            if guarded:
                guard.open()
            return self._set.poll(timeout, EVENTS_MAX)
        finally:
            if guarded:
                guard.on = True

    def _follow(self, done: Callable[[], bool], deadline: float | None, nap_s: float) -> bool | None:
        follower = _Follower(done)
        with self.lock:
            if done():
                return True
            if self.closed:
                return None
            self._followers.append(follower)
        guard = self.guard
        guarded = guard.defers_here
        try:
            if guarded:
                guard.open()
            left = nap_s if deadline is None else min(max(0.0, deadline - time.monotonic()), nap_s)
            follower.lock.acquire(timeout=left)
        finally:
            if guarded:
                guard.on = True
            with self.lock:
                if follower in self._followers:
                    self._followers.remove(follower)
        with self.lock:
            if done():
                return True
        return None if deadline is None or time.monotonic() < deadline else False

    # -- dispatching

    def _dispatch(self, events: list[tuple[int, int]], done: Callable[[], bool] | None = None) -> bool:
        """Read and hear every ready connection, then send what that led to; whether `done` then. The caller has the
        turn.

        The node's is first: what it said before it gave somebody our address is heard before they are, as a rule; see
        `hear_node`.
        """
        if len(events) > 1 and self.node_link is not None:
            first = self.node_link.stream.fd
            events.sort(key=lambda event: event[0] != first)
        with self.lock:
            for fd, event in events:
                link = self._links.get(fd)
                if link is None:
                    if fd == self._poke and not self.closed:
                        os.eventfd_read(fd)
                    continue
                if event & _OUT:
                    link.writable = True
                    self._set.modify(fd, _IN)
                    self._flush_link(link, time.monotonic())
                if event & (_IN | _HUP):
                    self._read(link)
            self.flush()
            if self._followers:
                self.wake_followers()
            return done is not None and done()

    def _read(self, link: Link) -> None:
        try:
            messages = link.stream.receive()
            if messages:
                link.handler.received(messages)
        except RemoteProtocolError as error:
            log.error("a connection is closed: %s", error)
            messages, link.why = None, error.message
        except Exception as error:  # a bug of ours: whoever waits for this connection must not wait for ever
            log.exception("a message could not be handled; its connection is closed")
            messages, link.why = None, f"a message could not be handled: {error!r}"
        if messages is None:
            self.remove(link)
            link.handler.ended()

    def hear_node(self) -> None:
        """Hear all that the node has said by now. Lock held, by any thread.

        `_dispatch` puts the node first among what one poll has found. But to read a connection takes also what came
        after that poll, and the node may have said something before that: then nobody has heard it yet.
        """
        node = self.node_link
        if node is None:
            return
        if self._node_poll is None:
            self._node_poll = select.poll()
            self._node_poll.register(node.stream.fd, select.POLLIN)
        while self._links.get(node.stream.fd) is node and self._node_poll.poll(0):
            self._read(node)

    def wake_followers(self) -> None:
        """Wake every following thread whose condition is true by now. Lock held."""
        for follower in [f for f in self._followers if f.done()]:
            follower.wake()

    def changed(self) -> None:
        """Something that a thread may wait for became true without a message. Lock held."""
        if self._followers:
            self.wake_followers()
        if self._leader and self._leader != threading.get_ident():
            os.eventfd_write(self._poke, 1)
        if self.after_dispatch and not self._rung:
            self.ring()

    def _run_callbacks(self) -> None:
        """Run what waits in `after_dispatch`. Without lock or turn: user code may itself wait for something."""
        while self.after_dispatch:
            try:
                callback = self.after_dispatch.popleft()
            except IndexError:  # another thread was quicker
                return
            try:
                callback()
            except Exception:
                log.exception("a callback failed: %r", callback)

    def _run(self) -> None:
        bell, members = self._bell, self._set_fd
        attentive = False
        while not self.closed:
            with self.lock:
                self._io_sleeps_until = self._timers[0][0] if self._timers else float("inf")
            left = self._io_sleeps_until - time.monotonic()
            hint = self.idle_hook() if self.idle_hook is not None else None
            if hint is not None:
                left = min(left, hint)
            if attentive:
                time.sleep(ATTENTIVE_S)
                left = 0.0
            events = self._gate.poll(-1 if left == float("inf") else max(0.0, left))
            if self.closed:
                return
            fds = [fd for fd, _ in events]
            if bell in fds:
                os.eventfd_read(bell)
                if not attentive:
                    attentive = True
                    continue
            due = bool(self._timers) and self._timers[0][0] <= time.monotonic()
            if (members in fds or due) and self._turn.acquire(False):  # timers judge what has been read, not what waits
                try:
                    self._dispatch(self._set.poll(0, EVENTS_MAX))
                finally:
                    self._turn.release()
            with self.lock:
                if attentive and not self._dirty:
                    attentive = self._rung = False
                now = time.monotonic()
                if self._timers and self._timers[0][0] <= now:
                    while self._timers and self._timers[0][0] <= now:
                        heapq.heappop(self._timers)[2]()
                    self.changed()
                self.flush()
            self._run_callbacks()

    # -- the end

    def close(self) -> None:
        """Close every connection and end the I/O thread; whoever waits is woken."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            for link in list(self._links.values()):
                self.remove(link)
            for follower in self._followers:
                follower.wake()
        os.eventfd_write(self._bell, 1)
        os.eventfd_write(self._poke, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=2.0)
        if self._turn.acquire(timeout=2.0):
            self._close_descriptors()
        self._run_callbacks()

    def _close_descriptors(self) -> None:
        self._set.close()
        self._gate.close()
        os.close(self._bell)
        os.close(self._poke)

    def abandon(self) -> None:
        """In a forked child: close the descriptors, silently. The I/O thread does not exist here."""
        self.closed = True
        for link in self._links.values():
            link.stream.abandon()
        self._links.clear()
        self._close_descriptors()
