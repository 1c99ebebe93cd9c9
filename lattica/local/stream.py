"""One unix socket that carries frames of messages, and now and then descriptors (SCM_RIGHTS).

A stream decides nothing about threads: whoever calls `receive` is the reader, and whoever calls `flush` the writer; the
reactor (drivers, workers) or the event loop (node) sees to it that there is one of each at a time. Sending never
blocks: what the socket does not take stays in the outbox, and `flush` says so.

A send can fail for three reasons. The peer is gone: its messages go nowhere, and the reader hears the end. The kernel
is short of something, and says so on a socket that epoll calls writable: `short`, to be tried again a little later.
Anything else is a mistake of ours: the stream is then ended both ways, for a connection with a hole in it would leave
somebody waiting for ever.
"""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from lattica.codec import frames
from lattica.errors import RemoteProtocolError

READ_BYTES = 256 << 10
"""One recv. A unix socket rarely holds more than its 208 KiB send buffer."""
FDS_MAX = 64
"""Descriptors in one recvmsg; the kernel allows 253 per message, we send at most 4."""
SEND_BUFFER_BYTES = 1 << 20
"""Asked of the kernel, which may grant less (net.core.wmem_max)."""
RETRY_S = 0.01
"""How soon a `short` stream is flushed again: many readers' turns, and a hundred tries a second cost nothing."""
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN})
_SHORT = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
"""Memory for the socket, or descriptors in flight: more than the user's limit lie in sockets unread (unix(7))."""

log = logging.getLogger("lattica")


class _Memory(threading.local):
    """What one thread reads into, before it is decoded. (`recv` takes memory from the kernel for so many bytes, and
    gives it back: up to 40 us for a message of 60 bytes.)"""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_BYTES))


_memory = _Memory()


class Stream:
    """Frames of messages over one connected unix stream socket, which this object owns."""

    __slots__ = (
        "_decoder",
        "_inbox_fds",
        "_lost_fds",
        "_outbox",
        "_pending_fds",
        "_sock",
        "_takes_fds",
        "closed",
        "fd",
        "messages",
        "short",
    )

    def __init__(self, sock: socket.socket, types: Any, *, takes_fds: bool = False) -> None:
        """types: union of the messages that may arrive. takes_fds: whether descriptors may arrive with them."""
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._sock = sock
        self.fd = sock.fileno()
        self._decoder = frames.Decoder(types)
        self._takes_fds = takes_fds
        self._inbox_fds: deque[int] = deque()
        self._lost_fds = False
        self.messages: list[msgspec.Struct] = []  # of the next frame; what has none but itself to say appends here
        self._pending_fds: list[int] = []
        self._outbox: deque[tuple[memoryview, list[int]]] = deque()
        self.closed = False
        self.short = False  # the last flush stopped for want of memory or the like, and not because the socket is full

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd {self.fd}"
        return f"<Stream {state}: {len(self.messages)} unsent messages, {len(self._outbox)} unsent frames>"

    # -- sending

    def queue(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> int:
        """Put a message into the next frame; returns how many it has now. `fds` are sent with it and closed here
        after."""
        if fds:  # descriptors ride on the first byte of a frame, so a message with descriptors begins one
            if self.messages:
                self._seal()
            self._pending_fds.extend(fds)
            self.messages.append(message)
            self._seal()
            return 0
        self.messages.append(message)
        return len(self.messages)

    @property
    def unsealed(self) -> int:
        """How many messages the next frame has now."""
        return len(self.messages)

    @property
    def unsent(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self.messages or self._outbox)

    def flush(self) -> bool:
        """Send what is queued; False if the rest must wait until the socket is writable, or for RETRY_S if `short`.

        A peer that is gone is not an error here: the reader sees the end of the stream, and says it once.
        """
        outbox = self._outbox
        if self.messages:
            if not outbox and not self.closed:
                messages, self.messages = self.messages, []
                frame = frames.encode(messages)
                try:
                    sent = self._sock.send(frame)
                except OSError as error:
                    if self._over(error):
                        return True
                    sent = 0
                if sent == len(frame):
                    return True
                self.short = self.short and not sent
                outbox.append((memoryview(frame)[sent:], []))
                return False
            self._seal()
        while outbox:
            if self.closed:
                self._discard()
                return True
            view, fds = outbox[0]
            try:
                sent = self._send_with(view, fds) if fds else self._sock.send(view)
            except OSError as error:
                if not self._over(error):
                    return False
                self._discard()
                return True
            if fds:
                for fd in fds:
                    os.close(fd)
            if sent < len(view):
                outbox[0] = (view[sent:], [])
                self.short = False
                return False
            outbox.popleft()
        return True

    def _over(self, error: OSError) -> bool:
        """Whether nothing more will ever be sent, after this error of a send; else it is to be tried again."""
        self.short = error.errno in _SHORT
        if self.short or isinstance(error, BlockingIOError):
            return False
        if error.errno not in _GONE:
            log.error("a connection is closed, since a message could not be sent on it: %s", error)
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)  # both readers hear an end
        return True

    def queue_raw(self, data: bytes | memoryview) -> None:
        """Queue bytes that are (the rest of) a whole frame."""
        if self.messages:
            self._seal()
        self._outbox.append((memoryview(data), []))

    def _send_with(self, view: memoryview, fds: list[int]) -> int:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        return self._sock.sendmsg([view], [rights])

    def _seal(self) -> None:
        messages, self.messages = self.messages, []
        fds, self._pending_fds = self._pending_fds, []
        self._outbox.append((memoryview(frames.encode(messages)), fds))

    def _discard(self) -> None:
        for _, fds in self._outbox:
            for fd in fds:
                os.close(fd)
        self._outbox.clear()
        self.messages.clear()

    # -- receiving

    def receive(self) -> list[Any] | None:
        """Messages that have arrived, perhaps none yet; None at the end of the stream. Raises RemoteProtocolError."""
        data = self._read()
        if data is None:
            return []
        return self._decoder.feed(data) if data else None

    def drain(self) -> list[Any]:
        """All that a peer which is dead had still written, as far as it is whole.

        Until nothing is left, not until the end of the stream: a child that it forked may hold the socket open.
        """
        messages: list[Any] = []
        try:
            while data := self._read():
                messages += self._decoder.feed(data)
        except RemoteProtocolError:
            pass  # it died while it wrote
        return messages

    def _read(self) -> bytes | memoryview | None:
        """Bytes that have arrived, valid until this thread reads again; None if there are none yet; empty at the end of
        the stream."""
        try:
            if self._takes_fds:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    READ_BYTES, socket.CMSG_SPACE(4 * FDS_MAX), socket.MSG_CMSG_CLOEXEC
                )
                self._lost_fds = self._lost_fds or bool(flags & socket.MSG_CTRUNC)
                for level, kind, payload in ancillary:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                        fds = array.array("i")
                        fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                        self._inbox_fds.extend(fds)
            else:
                view = _memory.view
                return view[: self._sock.recv_into(view)]
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _SHORT:
                return None  # epoll says so again
            if error.errno not in _GONE and not self.closed:
                log.error("a connection is closed, since it could not be read: %s", error)
            return b""
        return data

    def take_fd(self) -> int:
        """The next descriptor that came with a message, in order; the caller owns it. Raises RemoteProtocolError."""
        if self._lost_fds:
            raise RemoteProtocolError(
                "a descriptor that came with a message was lost: this process has too many files open",
                do_next="raise its limit with `ulimit -n`, or have fewer actors and files open at a time",
            )
        if not self._inbox_fds:
            raise RemoteProtocolError("a message came without the descriptor that belongs to it")
        return self._inbox_fds.popleft()

    # -- the end

    def peer_credentials(self) -> tuple[int, int, int]:
        """(pid, uid, gid) of the process that connected (SO_PEERCRED)."""
        raw = array.array("i")
        raw.frombytes(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return raw[0], raw[1], raw[2]

    def close(self) -> None:
        """Close the socket and every descriptor still in the boxes."""
        if self.closed:
            return
        self.closed = True
        self._discard()
        while self._inbox_fds:
            os.close(self._inbox_fds.popleft())
        self._sock.close()

    def abandon(self) -> None:
        """In a forked child: close the descriptors without a word on the wire."""
        self.closed = True
        self._sock.close()
