"""Streams on the node's event loop: what is sent during one turn of the loop goes out in one flush per stream."""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from lattica.errors import RemoteProtocolError
from lattica.local.stream import RETRY_S, Stream
from lattica.node.loop import Loop, Timer

log = logging.getLogger(__name__)
UNSENT_MAX = 1_000_000
"""Messages (of about 50 bytes) that may wait for a client that does not read; one that lets more pile up is dropped,
for the node's memory is everybody's."""


class Wires:
    """All streams of the node, and the one flush that is due for those with something to send."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._dirty: dict[Wire, None] = {}

    def flush(self) -> None:
        """Send what is queued on every stream."""
        dirty, self._dirty = self._dirty, {}
        for wire in dirty:
            wire.flush()

    @staticmethod
    def pair() -> tuple[socket.socket, int]:
        """Two connected ends: ours, and the descriptor of the one that a process gets."""
        ours, theirs = socket.socketpair()
        return ours, theirs.detach()

    @staticmethod
    def pairs() -> tuple[int, int]:
        """Two connected descriptors, for two clients."""
        one, other = socket.socketpair()
        return one.detach(), other.detach()

    def soon(self, wire: Wire) -> None:
        """Flush this one when the loop's present turn ends."""
        if not self._dirty:
            self.loop.call_soon(self.flush)
        self._dirty[wire] = None


class Wire:
    """One stream in the loop's care. `received` hears each batch of messages, `ended` hears once that it is over."""

    __slots__ = (
        "_ended", "_held", "_last", "_over", "_received", "_retry", "_unsent", "_wires", "drained", "full", "last_word",
        "name", "stream",
    )  # fmt: skip

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
        self.full = False  # the socket takes no more, and what is sent waits here
        self.drained: Callable[[], None] | None = None  # called when it takes more again
        self.last_word: Callable[[str], msgspec.Struct] | None = None  # for a peer that is dropped: why
        self._over = self._last = False
        self._retry: Timer | None = None
        self._held: list[tuple[msgspec.Struct, Sequence[int]]] | None = None
        self._unsent = 0
        wires.loop.add_reader(self.stream.fd, self._readable)

    def __repr__(self) -> str:
        return f"<Wire {self.name}: {self.stream!r}>"

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Queue a message; descriptors are closed here once sent. After the end it is a no-op."""
        if self._held is not None:
            self._held.append((message, fds))
            return
        if self._over:
            self.stream.queue(message, fds)
            self.stream.flush()  # closed: lets the descriptors go
            return
        self.stream.queue(message, fds)
        self._wires.soon(self)
        if self.full:
            self._unsent += 1
            if self._unsent > UNSENT_MAX:
                reason = f"{UNSENT_MAX} messages wait for it and it reads none"
                self._wires.loop.call_soon(self.close_for, reason)

    def hold(self) -> None:
        """Keep what is sent from now on, until `release` says what goes before it."""
        self._held = []

    def release(self, first: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Send this, then what was kept."""
        held, self._held = self._held or [], None
        for message, descriptors in ((first, fds), *held):
            self.send(message, descriptors)

    def flush(self) -> None:
        """Send what the socket takes; the rest goes when it is writable."""
        if self._over:
            return
        was_short = self.stream.short
        if self.stream.flush():
            self._unsent = 0
            if self.full:
                self.full = False
                self._wires.loop.remove_writer(self.stream.fd)
                if self.drained is not None:
                    self.drained()
            if self._last and not self.full:
                self.close()
                self._ended("")
            return
        if self.stream.short:  # writable or not
            self._wires.loop.remove_writer(self.stream.fd)
            if self._retry is None:
                self._retry = self._wires.loop.call_later(RETRY_S, self._flush_again)
        elif not self.full or was_short:
            self._wires.loop.add_writer(self.stream.fd, self.flush)
        self.full = True

    def _flush_again(self) -> None:
        self._retry = None
        self.flush()

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

    def end(self) -> None:
        """Close once all is sent that is queued; `ended` is called then."""
        self._last = True
        self._wires.soon(self)

    def close(self) -> None:
        """Send what the socket takes at once, and close; `ended` is not called."""
        if self._over:
            return
        self.stream.flush()
        self._over = True
        self._wires.loop.remove_reader(self.stream.fd)
        if self.full:
            self._wires.loop.remove_writer(self.stream.fd)
        self.stream.close()
        held, self._held = self._held or [], None
        for message, descriptors in held:
            self.send(message, descriptors)  # which closes them

    def close_for(self, reason: str) -> None:
        """End it from this side, as if the peer had ended it. reason: words, if it broke a rule."""
        if self._over:
            return
        if reason:
            log.warning("%s is dropped: %s", self.name, reason)
        if self.last_word is not None:
            self.stream.queue(self.last_word(reason or "its connection had ended, as far as the node could see"))
        self.close()
        self._ended(reason)

    def _readable(self) -> None:
        try:
            messages = self.stream.receive()
            if messages:
                self._received(messages)
        except RemoteProtocolError as error:
            self.close_for(str(error))
            return
        if messages is None:
            self.close_for("")
