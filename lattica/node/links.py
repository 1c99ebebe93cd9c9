"""A node's conversation with another node, and the connections that it carries.

    Link     messages (`codec.far`) of one turn of the loop in one item of a pipe, each way one pipe
    Carrier  one end of a process's connection with a worker elsewhere: bytes of a unix socket, not looked at

A link begins with the first message and ends with the mesh's session, or when either node gives the other up; then both
begin anew. Whatever a link says was said to one link of the other node, which names itself (`Begins`): what is on its
way from one that was given up is not heard by the next. What it carries is bounded twice: a carrier sends
at most WINDOW_BYTES that the other node has not handed on to its process, and a node stops reading from its own
processes while LINK_MAX_BYTES wait for a session that is slow. So a process that reads slowly stops the one that
writes to it, and nobody else.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lattica.codec import far
from lattica.errors import LatticaError, RemoteProtocolError
from lattica.mesh.identity import PeerId, peer_text
from lattica.node.attention import Attention

if TYPE_CHECKING:
    import asyncio

    from lattica.mesh.calls import Pipe
    from lattica.mesh.peer import Peer
    from lattica.mesh.wire import Buffer

log = logging.getLogger(__name__)
READ_BYTES = 256 << 10  # of a local socket, at once; as a worker reads
_space = memoryview(bytearray(READ_BYTES))
"""What sockets are read into, before as much as came is copied: `recv` takes memory for all that might come, and gives
it back to the kernel, a page fault for each message."""
WINDOW_BYTES = 4 << 20
"""Of one connection, sent and not handed on. Less: a long fat path is not filled (75 ms at 400 Mbit/s have 4 MB); more:
memory for each process that does not read."""
WAITING_MAX_BYTES = 2 * WINDOW_BYTES
"""Of one connection, come and not handed on: a window, and what a worker had in its socket when it died."""
TAKEN_FROM_BYTES = 64 << 10  # handed on before the sender is told
LINK_MAX_BYTES = 8 << 20
UNREAD_MAX_BYTES = 256 << 20
"""Of answers that wait for one node. Whoever asks and does not read would have all our memory; ours read, and what they
are sent unasked comes to less."""
CARRIERS_MAX = 16_384  # connections of processes with workers, between two nodes; each is two descriptors
ITEM_BYTES = 512 << 10  # of messages, after which the next item begins
OPEN_S = 10.0
"""For a session to come about before what was to be said is given up."""


class Link:
    """One other node, for as long as the session with it."""

    def __init__(
        self,
        peer: Peer,
        other: PeerId,
        received: Callable[[Link, list[Any]], None],
        ended: Callable[[Link, str], None],
        number: int,
        *,
        spins: bool = False,
    ) -> None:
        """received: hears each item's messages; ended: is told once that it is over, with why. number: as in
        `codec.far.Begins`. spins: as in `Attention`."""
        import asyncio

        self.other, self.name, self.number = other, peer_text(other)[:8], number
        self.partner = 0  # the other node's link that we have heard
        self.low = peer.id < other
        self.over: str | None = None
        self.carriers: dict[int, Carrier] = {}
        self.heard_at = self.said_at = 0.0
        self._peer, self._received, self._ended = peer, received, ended
        self._loop = asyncio.get_running_loop()
        self.there, self.here = Attention(self._loop, spins=spins), Attention(self._loop, spins=spins)
        self.since = self._loop.time()
        self._next_carrier = 2 if self.low else 1
        self._outbox: list[Any] = []
        self._outbox_bytes = 0
        self._flushing = False
        self._out: Pipe | None = None
        self._in: Pipe | None = None
        self._opening: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Link to {self.name}: {self.over or 'up'}, {len(self.carriers)} connections>"

    # -- out

    def send(self, message: Any, size: int = 0) -> None:
        """Say this with the others of this turn. size: of the data in it."""
        if self.over is not None:
            return
        self._outbox.append(message)
        self._outbox_bytes += size
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        elif self._outbox_bytes > ITEM_BYTES and self._out is not None:
            self._write()

    @property
    def crowded(self) -> bool:
        """Whether so much waits that nothing more should be read for it."""
        waiting = self._outbox_bytes + (self._out.waiting_bytes if self._out is not None else 0)
        return waiting > LINK_MAX_BYTES

    def _flush(self) -> None:
        self._flushing = False
        if self._out is not None:
            self._peer.at_once(self._write)
        elif self._opening is None and self.over is None:
            self._opening = self._loop.create_task(self._open())

    def _write(self) -> None:
        messages, self._outbox, self._outbox_bytes = self._outbox, [], 0
        if messages and self._out is not None:
            item = far.encode(messages)
            self.said_at = self._loop.time()
            self._out.send((item,), len(item))
            if self._out.waiting_bytes > UNREAD_MAX_BYTES:
                log.warning("the link with %s is ended: it does not read what it asks for", self.name)
                self.end(f"{self._out.waiting_bytes >> 20} MiB wait for it")

    async def _open(self) -> None:
        try:
            out = await self._peer.pipe(self.other, "node.link", timeout_s=OPEN_S)
        except (LatticaError, TimeoutError) as error:
            self.end(error.message if isinstance(error, LatticaError) else "it did not answer")
            return
        if self.over is not None:
            out.close()
            return
        self._out = out
        self._outbox.insert(0, far.Begins(self.number, self.partner))
        out.drained = self._room
        out.listen(lambda _: None, self.end)
        self._write()

    def _room(self) -> None:
        for carrier in list(self.carriers.values()):
            carrier.resume()

    # -- in

    def hear(self, pipe: Pipe) -> None:
        """The other node's pipe to us is here."""
        if self._in is not None:
            pipe.close("there is one already")
            return
        self._in = pipe

        def ended(reason: str) -> None:
            if self._in is pipe:
                self.end(reason)

        pipe.listen(lambda item: self._came(pipe, item), ended)

    def _came(self, pipe: Pipe, item: Buffer) -> None:
        if self._in is not pipe:
            return  # it was refused, and has not heard so yet
        self.heard_at = self._loop.time()
        try:
            messages = far.decode(item)
            if not self.partner and messages and isinstance(messages[0], far.Begins) and self._strange(messages[0]):
                self._in = None
                pipe.close("it answers a link that is over")
                return
            self._received(self, messages)
        except RemoteProtocolError as error:
            log.warning("the link with %s is ended: %s", self.name, error)
            self.end(str(error))
        except Exception as error:  # a bug of ours: it ends one link, not the node
            log.exception("a message of %s", self.name)
            self.end(f"a message could not be handled: {error!r}")

    def _strange(self, begins: far.Begins) -> bool:
        """Whether it was said to another link of ours, of which ours is the successor."""
        if begins.answers in (0, self.number):
            self.partner = begins.link
            return False
        return True

    # -- the end

    def end(self, reason: str) -> None:
        """It is over, from whichever side."""
        if self.over is not None:
            return
        self.over = reason
        for pipe in (self._out, self._in):
            if pipe is not None:
                pipe.close(reason)
        for carrier in list(self.carriers.values()):
            carrier.end(reason)
        self._outbox.clear()
        self._ended(self, reason)

    # -- connections

    def carrier(self, sock: socket.socket, ended: Callable[[str], None]) -> Carrier:
        """A connection that begins here. The number tells the other side who began it."""
        number, self._next_carrier = self._next_carrier, self._next_carrier + 2
        return Carrier(self, number, sock, ended)

    def check(self, number: int) -> None:
        """Raises RemoteProtocolError if no connection can begin there with this number."""
        if number in self.carriers or number <= 0 or (number % 2 == 0) == self.low:
            raise RemoteProtocolError(f"connection {number} cannot begin")
        if len(self.carriers) >= CARRIERS_MAX:
            raise RemoteProtocolError(f"{CARRIERS_MAX} connections are open")

    def accept(self, number: int, sock: socket.socket, ended: Callable[[str], None]) -> Carrier:
        """A connection that began there; `check` its number before."""
        return Carrier(self, number, sock, ended)

    def forget(self, carrier: Carrier) -> None:
        """It is closed."""
        self.carriers.pop(carrier.number, None)


class Carrier:
    """Our end of one connection: a socket whose other end one of our processes has."""

    __slots__ = (
        "_ended",
        "_fd",
        "_link",
        "_loop",
        "_owed",
        "_paused",
        "_sock",
        "_unsent",
        "_untaken",
        "_waiting",
        "_when_empty",
        "ended_here",
        "number",
        "over",
    )  # fmt: skip

    def __init__(self, link: Link, number: int, sock: socket.socket, ended: Callable[[str], None]) -> None:
        """ended: is told once that the connection is over, by this process or by the other side."""
        self.number = number
        self.over = False
        self.ended_here = False  # not because of the other side
        self._link, self._sock, self._ended = link, sock, ended
        self._loop = link._loop
        sock.setblocking(False)
        self._fd = sock.fileno()
        self._untaken = 0  # bytes sent, and not handed on there
        self._owed = 0  # bytes handed on here, and not told
        self._waiting = 0  # bytes that came, and are not handed on
        self._unsent: deque[memoryview] = deque()  # which the process does not take yet
        self._when_empty: list[Callable[[], None]] = []
        self._paused = False
        link.carriers[number] = self
        self._loop.add_reader(self._fd, self._readable)

    def __repr__(self) -> str:
        return f"<Carrier {self.number}: {self._untaken} bytes not handed on, {len(self._unsent)} wait here>"

    # -- from our process

    def _readable(self) -> None:
        try:
            data = bytes(_space[: self._sock.recv_into(_space)])
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close("the process has ended it")
            return
        self._link.here.came()
        self._link.there.expect()
        self._untaken += len(data)
        self._link.send(far.Carry(self.number, data), len(data))
        if self._untaken > WINDOW_BYTES or self._link.crowded:
            self._paused = True
            self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        """Read on, if there is room for it."""
        if self._paused and not self.over and self._untaken <= WINDOW_BYTES and not self._link.crowded:
            self._paused = False
            self._loop.add_reader(self._fd, self._readable)

    def taken(self, size: int) -> None:
        """So much was handed on there. Raises RemoteProtocolError for more than was sent."""
        if not 0 <= size <= self._untaken:
            raise RemoteProtocolError(f"{size} bytes were taken of {self._untaken} on connection {self.number}")
        self._untaken -= size
        self.resume()

    def drain(self) -> None:
        """Say all that a process which is dead had still written."""
        while not self.over:
            try:
                data = bytes(_space[: self._sock.recv_into(_space)])
            except (BlockingIOError, OSError):
                return
            if not data:
                return
            self._untaken += len(data)
            self._link.send(far.Carry(self.number, data), len(data))

    # -- to our process

    def carry(self, data: bytes) -> None:
        """Hand it on. Raises RemoteProtocolError if so much waits already that none of it should have been sent."""
        size = len(data)
        if self._waiting + size > WAITING_MAX_BYTES:
            raise RemoteProtocolError(f"{self._waiting + size} bytes wait on connection {self.number}")
        if self._unsent:
            self._waiting += size
            self._unsent.append(memoryview(data))
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the end is read
        if sent < size:
            self._waiting += size - sent
            self._unsent.append(memoryview(data)[sent:])
            self._loop.add_writer(self._fd, self._writable)
        self._owed += sent
        if self._owed >= TAKEN_FROM_BYTES:
            self._tell_taken()
        self._link.there.came()
        self._link.here.expect()

    def _writable(self) -> None:
        while self._unsent:
            view = self._unsent[0]
            try:
                sent = self._sock.send(view)
            except BlockingIOError:
                return
            except OSError:
                self._unsent.clear()
                break
            self._waiting -= sent
            self._owed += sent
            if self._owed >= TAKEN_FROM_BYTES:
                self._tell_taken()
            if sent < len(view):
                self._unsent[0] = view[sent:]
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._fd)
        self._emptied()

    def _tell_taken(self) -> None:
        self._link.send(far.Taken(self.number, self._owed))
        self._owed = 0

    def when_empty(self, then: Callable[[], None]) -> None:
        """Call `then` as soon as all that came has been handed on, or cannot be."""
        if self._unsent and not self.over:
            self._when_empty.append(then)
        else:
            then()

    def _emptied(self) -> None:
        waiting, self._when_empty = self._when_empty, []
        for then in waiting:
            then()

    # -- the end

    def close(self, reason: str = "", *, gone: bool = False) -> None:
        """End it from this side; the other one is told. gone: the process has ended, and all that it said is read."""
        if not self.over:
            self.ended_here = True
            self._link.send(far.Closed(self.number, reason, gone))
            self.end(reason)

    def finish(self, reason: str) -> None:
        """The other side has ended it: hand on what came, then end it here."""
        self.when_empty(lambda: self.end(reason))

    def end(self, reason: str) -> None:
        """It is over."""
        if self.over:
            return
        self.over = True
        self._link.forget(self)
        if not self._paused:
            self._loop.remove_reader(self._fd)
        if self._unsent:
            self._loop.remove_writer(self._fd)
            self._unsent.clear()
        self._sock.close()
        self._emptied()
        self._ended(reason)
