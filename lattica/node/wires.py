"""Streams on the node's event loop: what is sent during one turn of the loop goes out in one flush per stream."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.local.stream import Stream

log = logging.getLogger(__name__)
UNSENT_MAX = 1_000_000
"""Messages (of about 50 bytes) that may wait for a client that does not read; one that lets more pile up is dropped, for
the node's memory is everybody's."""


class Wires:
    """All streams of the node, and the one flush that is due for those with something to send."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._dirty: dict[Wire, None] = {}

    def flush(self) -> None:
        """Send what is queued on every stream."""
        dirty, self._dirty = self._dirty, {}
        for wire in dirty:
            wire.flush()

    def soon(self, wire: Wire) -> None:
        """Flush this one when the loop's present turn ends."""
        if not self._dirty:
            self.loop.call_soon(self.flush)
        self._dirty[wire] = None


class Wire:
    """One stream in the loop's care. `received` hears each batch of messages, `ended` hears once that it is over."""

    __slots__ = ("_ended", "_over", "_received", "_unsent", "_wires", "_writing", "name", "stream")

    def __init__(
        self,
        wires: Wires,
        sock: socket.socket,
        types: Any,
        received: Callable[[list[Any]], None],
        ended: Callable[[str], None],
        *,
        name: str,
    ) -> None:
        """types: union of the messages that may arrive. ended: is given words if the peer broke a rule, else ""."""
        self.stream = Stream(sock, types)
        self.name = name
        self._wires, self._received, self._ended = wires, received, ended
        self._writing = self._over = False
        self._unsent = 0
        wires.loop.add_reader(self.stream.fd, self._readable)

    def __repr__(self) -> str:
        return f"<Wire {self.name}: {self.stream!r}>"

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Queue a message; descriptors are closed here once sent. After the end it is a no-op."""
        if self._over:
            self.stream.queue(message, fds)
            self.stream.flush()  # closed: lets the descriptors go
            return
        self.stream.queue(message, fds)
        self._wires.soon(self)
        if self._writing:
            self._unsent += 1
            if self._unsent > UNSENT_MAX:
                self._over_with(f"{UNSENT_MAX} messages wait for it and it reads none")

    def flush(self) -> None:
        """Send what the socket takes; the rest goes when it is writable."""
        if self._over:
            return
        if self.stream.flush():
            self._unsent = 0
            if self._writing:
                self._writing = False
                self._wires.loop.remove_writer(self.stream.fd)
        elif not self._writing:
            self._writing = True
            self._wires.loop.add_writer(self.stream.fd, self.flush)

    def drain(self) -> None:
        """Read what a peer that has died left in the socket."""
        if self._over:
            return
        poll = select.poll()
        poll.register(self.stream.fd, select.POLLIN)
        while not self._over and poll.poll(0):
            self._readable()

    def finish(self) -> None:
        """Send what the socket takes, then end our half: the peer reads an end, and we still hear what it says."""
        if not self._over:
            self.flush()
            with socket.socket(fileno=os.dup(self.stream.fd)) as same:
                same.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Send what the socket takes at once, and close; `ended` is not called."""
        if self._over:
            return
        self.flush()
        self._over = True
        self._wires.loop.remove_reader(self.stream.fd)
        if self._writing:
            self._wires.loop.remove_writer(self.stream.fd)
        self.stream.close()

    def _readable(self) -> None:
        try:
            messages = self.stream.receive()
            if messages:
                self._received(messages)
        except RemoteProtocolError as error:
            self._over_with(str(error))
            return
        if messages is None:
            self._over_with("")

    def _over_with(self, reason: str) -> None:
        if self._over:
            return
        if reason:
            log.warning("%s is dropped: %s", self.name, reason)
        self.close()
        self._ended(reason)
