"""The page that a worker shares with its node: what it started, and the replies it has finished but not sent.

A worker that dies takes its memory along, but not this page. From it the node tells the lease's holder which task had
begun (only that one is charged a retry) and hands over the replies of those that had finished (they are not run again).
A store of eight aligned bytes is atomic enough here: the reader looks only after the writer is dead. (One by
`struct.pack_into` is not: it writes zeros first, and a kill in between would lose every reply kept here.) The reply's
bytes are written before `end` moves over them.

Layout, u64 in the machine's byte order: client, started, extent (end << 32 | count); the replies begin at byte 64.
Behind them lies what the worker ran and when (`local/events`).
"""

from __future__ import annotations

import mmap
import os

from lattica.local import events

PAGE_BYTES = 160 << 10
"""Room for one largest inline reply (100 KiB) and a batch of small ones; untouched pages cost nothing."""
_DATA = 64
_CLIENT, _STARTED, _EXTENT = 0, 1, 2


class Page:
    """One worker's page, mapped. The worker writes, the node reads after its death."""

    __slots__ = ("_end", "_map", "_taken", "_words", "count", "fresh")

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, PAGE_BYTES + events.EVENTS_BYTES)
        self._words = memoryview(self._map)[:_DATA].cast("Q")
        self.count = 0  # replies that lie here
        self.fresh = 0  # those of them that nobody has begun to send
        self._end = self._taken = _DATA

    @staticmethod
    def create() -> int:
        """The descriptor of a new page."""
        fd = os.memfd_create("lattica-page", os.MFD_CLOEXEC)
        os.ftruncate(fd, PAGE_BYTES + events.EVENTS_BYTES)
        return fd

    def event_writer(self) -> events.EventWriter:
        """Where the worker notes what it ran."""
        return events.EventWriter(self._map, PAGE_BYTES)

    def ran(self) -> bytes:
        """What the worker ran, the newest of it, for `events.parse`."""
        return events.stored(self._map, PAGE_BYTES)

    @property
    def total(self) -> int:
        """How many tasks and calls the worker has run, as far as it has said."""
        return events.total(self._map, PAGE_BYTES)

    def lease_to(self, client: int) -> None:
        """Tasks come from `client` now, and nothing of it has started."""
        self._clear()
        self.start(0)
        self._words[_CLIENT] = client

    def start(self, seq: int) -> None:
        """Task `seq` runs from now on."""
        self._words[_STARTED] = seq

    def finish(self, reply: bytes) -> bool:
        """Keep a finished reply until it is sent; False if there is no room until what is here is sent."""
        end = self._end + len(reply)
        if end > PAGE_BYTES:
            return False
        self._map[self._end : end] = reply
        self.count += 1
        self.fresh += 1
        self._end = end
        self._words[_EXTENT] = end << 32 | self.count
        return True

    def take(self) -> bytes:
        """The fresh replies, one message after another, which are being sent from now on. They stay here meanwhile."""
        items = self._map[self._taken : self._end]
        self._taken, self.fresh = self._end, 0
        return items

    def sent(self) -> None:
        """The kernel has taken all that was being sent. It is forgotten once nothing fresh lies behind it: to be told
        twice harms no reply."""
        if not self.fresh:
            self._clear()

    def _clear(self) -> None:
        self._words[_EXTENT] = 0
        self.count = self.fresh = 0
        self._end = self._taken = _DATA

    def post_mortem(self, client: int) -> tuple[int, int, bytes]:
        """(started, count, replies) as the dead worker left them for `client`; zeros if it had not begun its tasks."""
        whose, started, extent = self._words[_CLIENT], self._words[_STARTED], self._words[_EXTENT]
        end, count = extent >> 32, extent & 0xFFFFFFFF
        if whose != client:
            return 0, 0, b""
        if not _DATA < end <= PAGE_BYTES:
            return started, 0, b""
        return started, count, self._map[_DATA:end]

    def close(self) -> None:
        """Unmap it."""
        self._words.release()
        self._map.close()
