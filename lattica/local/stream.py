"""One unix socket that carries frames of messages, and now and then descriptors (SCM_RIGHTS).

A stream decides nothing about threads: whoever calls `receive` is the reader, and whoever calls `flush` the writer; the
reactor (drivers, workers) or the event loop (node) sees to it that there is one of each at a time. Sending never
blocks: what the socket does not take stays in the outbox, and `flush` says so.
"""

from __future__ import annotations

import array
import os
import select
import socket
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


class Stream:
    """Frames of messages over one connected unix stream socket, which this object owns."""

    __slots__ = (
        "_decoder",
        "_inbox_fds",
        "_messages",
        "_outbox",
        "_pending_fds",
        "_sock",
        "_takes_fds",
        "closed",
        "fd",
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
        self._messages: list[msgspec.Struct] = []
        self._pending_fds: list[int] = []
        self._outbox: deque[tuple[memoryview, list[int]]] = deque()
        self.closed = False

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd {self.fd}"
        return f"<Stream {state}: {len(self._messages)} unsent messages, {len(self._outbox)} unsent frames>"

    # -- sending

    def queue(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> int:
        """Put a message into the next frame; returns how many it has now. `fds` are sent with it and closed here
        after."""
        if fds:  # descriptors ride on the first byte of a frame, so a message with descriptors begins one
            if self._messages:
                self._seal()
            self._pending_fds.extend(fds)
            self._messages.append(message)
            self._seal()
            return 0
        self._messages.append(message)
        return len(self._messages)

    @property
    def unsealed(self) -> int:
        """How many messages the next frame has now."""
        return len(self._messages)

    @property
    def unsent(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._messages or self._outbox)

    def flush(self) -> bool:
        """Send what is queued; False if the socket is full and the rest must wait until it is writable.

        A peer that is gone is not an error here: the reader sees the end of the stream, and says it once.
        """
        outbox = self._outbox
        if self._messages:
            if not outbox and not self.closed:
                messages, self._messages = self._messages, []
                frame = frames.encode(messages)
                try:
                    sent = self._sock.send(frame)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    return True
                if sent == len(frame):
                    return True
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
            except BlockingIOError:
                return False
            except OSError:
                self._discard()
                return True
            if fds:
                for fd in fds:
                    os.close(fd)
            if sent < len(view):
                outbox[0] = (view[sent:], [])
                return False
            outbox.popleft()
        return True

    def send_all(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send what is queued and then a whole frame, waiting while the socket is full. The peer reads, or is gone."""
        for part in parts:
            self.queue_raw(part)
        while not self.flush():
            poller = select.poll()
            poller.register(self.fd, select.POLLOUT)
            poller.poll()

    def queue_raw(self, data: bytes | memoryview) -> None:
        """Queue bytes that are (the rest of) a whole frame."""
        if self._messages:
            self._seal()
        self._outbox.append((memoryview(data), []))

    def _send_with(self, view: memoryview, fds: list[int]) -> int:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        return self._sock.sendmsg([view], [rights])

    def _seal(self) -> None:
        messages, self._messages = self._messages, []
        fds, self._pending_fds = self._pending_fds, []
        self._outbox.append((memoryview(frames.encode(messages)), fds))

    def _discard(self) -> None:
        for _, fds in self._outbox:
            for fd in fds:
                os.close(fd)
        self._outbox.clear()
        self._messages.clear()

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

    def _read(self) -> bytes | None:
        """Bytes that have arrived; None if there are none yet; empty at the end of the stream."""
        try:
            if self._takes_fds:
                data, ancillary, _, _ = self._sock.recvmsg(
                    READ_BYTES, socket.CMSG_SPACE(4 * FDS_MAX), socket.MSG_CMSG_CLOEXEC
                )
                for level, kind, payload in ancillary:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                        fds = array.array("i")
                        fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                        self._inbox_fds.extend(fds)
            else:
                data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        return data

    def take_fd(self) -> int:
        """The next descriptor that came with a message, in order; the caller owns it. Raises RemoteProtocolError."""
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
