"""TCP with mutual TLS 1.3 on asyncio or uvloop: connections, batched writes, and reading in place.

The server looks at the name in the ClientHello before it answers (`tls.server_name`): the name `renew` gets a context
that asks for no certificate and a handler of its own, every other name the mesh's, which requires one. A connection is
told to the owner only after the chain of the other end was verified by OpenSSL and read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import cast

from lattica.errors import ConfigError, LatticaError, RemoteProtocolError
from lattica.mesh import tls
from lattica.mesh.addresses import host_text, resolve, split_host
from lattica.mesh.effects import Dial
from lattica.mesh.identity import short_peer
from lattica.mesh.links import Member
from lattica.mesh.transport.interface import Owner
from lattica.mesh.wire import Buffer, Decoder, Frame, Received

log = logging.getLogger(__name__)
DIAL_S = 6.0
"""For TCP and TLS together: a far peer with a lost packet needs 3 s; more makes a dead address expensive."""
ACCEPT_S = 10.0  # from the first byte to a verified chain
BACKLOG = 256
PENDING_MAX = 128
"""Handshakes at once: each costs 2 ms of CPU, and is made with somebody who has proved nothing yet."""
HELLO_POLL_S = 0.005  # while a ClientHello that came in pieces is not whole
JOIN_BELOW_BYTES = 8 << 10  # buffers shorter than this are joined: a TLS record costs more than copying them
WRITE_AHEAD_BYTES = 1 << 20  # encrypted and not taken by the kernel; more waits here, as references
HAPPY_EYEBALLS_S = 0.25  # RFC 8305 §8: the pause between attempts at different addresses


class _Connection(asyncio.BufferedProtocol):
    """One connection after its handshake."""

    def __init__(self, owner: Tcp, number: int) -> None:
        self._owner, self.number = owner, number
        self.decoder = Decoder()
        self.transport: asyncio.Transport | None = None
        self.remote = ""
        self._queue: deque[Buffer] = deque()
        self._small: list[Buffer] = []
        self._paused = False
        self._ending = False
        self.told = False  # the owner knows it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast("asyncio.Transport", transport)  # uvloop's is of no class of asyncio's
        transport.set_write_buffer_limits(high=WRITE_AHEAD_BYTES)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.remote = host_text(*transport.get_extra_info("peername")[:2])

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.decoder.window()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            frames = self.decoder.advance(nbytes)
        except RemoteProtocolError as error:
            self._owner.broken(self, str(error).partition("\n")[0])
            return
        if frames:
            self._owner.received(self, frames)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.lost(self, tls.words(exc) if exc is not None else "the other side closed it")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send()

    def write(self, frame: Frame) -> None:
        for buffer in frame:
            if len(buffer) < JOIN_BELOW_BYTES:
                self._small.append(buffer)
            else:
                self._join()
                self._queue.append(buffer)

    def flush(self) -> None:
        self._join()
        self._send()

    def finish(self) -> None:
        """Close when everything is written."""
        self._ending = True
        self.flush()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _join(self) -> None:
        if self._small:
            self._queue.append(self._small[0] if len(self._small) == 1 else b"".join(self._small))
            self._small.clear()

    def _send(self) -> None:
        if self.transport is None or self.transport.is_closing():
            self._queue.clear()
            return
        while self._queue and not self._paused:
            self.transport.write(self._queue.popleft())
        if self._ending and not self._queue:
            self.transport.close()


class Tcp:
    """See the module; a `Transport`."""

    def __init__(
        self,
        owner: Owner,
        contexts: tls.Contexts,
        renew: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] | None = None,
    ) -> None:
        """contexts: of our own certificates, asked for at each handshake, since they are renewed.
        renew: serves a connection that was made under the name `renew`."""
        self._owner, self._contexts, self._renew = owner, contexts, renew
        self._loop = asyncio.get_running_loop()
        self._connections: dict[int, _Connection] = {}
        self._numbers = count(1)
        self._dirty: set[_Connection] = set()
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<Tcp: {len(self._connections)} connections, {len(self._listeners)} listeners>"

    # -- the interface

    async def listen(self, address: str) -> Sequence[str]:
        host, port = split_host(address)
        bound: list[str] = []
        for family, where in await resolve(self._loop, host, port, passive=True):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(where)
                sock.listen(BACKLOG)
            except OSError as error:
                sock.close()
                raise ConfigError(
                    f"cannot listen on {host_text(host, port)}: {error.strerror}",
                    do_next="choose another address with --listen HOST:PORT, or port 0 for any that is free",
                ) from error
            sock.setblocking(False)
            self._listeners.append(sock)
            port = sock.getsockname()[1]  # the same one for the other family
            bound.append(host_text(*sock.getsockname()[:2]))
            self._loop.add_reader(sock.fileno(), self._acceptable, sock)
        return bound

    def dial(self, dial: Dial) -> None:
        self._spawn(self._dial(dial))

    def write(self, number: int, frame: Frame) -> None:
        connection = self._connections.get(number)
        if connection is not None:
            connection.write(frame)
            self._dirty.add(connection)

    def flush(self) -> None:
        if self._dirty:
            dirty, self._dirty = self._dirty, set()
            for connection in dirty:
                connection.flush()

    def hang_up(self, number: int) -> None:
        connection = self._connections.pop(number, None)
        if connection is not None:
            connection.finish()
            self._loop.call_later(DIAL_S, connection.abort)

    def path(self, number: int) -> tuple[str, str]:
        connection = self._connections.get(number)
        return ("tcp+tls", connection.remote) if connection is not None else ("", "")

    async def close(self) -> None:
        self._closed = True
        for sock in self._listeners:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._listeners.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.flush()
        for connection in list(self._connections.values()):
            connection.finish()
        for _ in range(20):  # let TLS say goodbye, as far as the other side takes it
            if not self._connections:
                break
            await asyncio.sleep(0.01)
        for connection in list(self._connections.values()):
            connection.abort()
        await asyncio.sleep(0)

    # -- what connections say

    def received(self, connection: _Connection, frames: list[Received]) -> None:
        if connection.number in self._connections and connection.told:
            connection.decoder.trust()
            self._owner.received(connection.number, frames)

    def broken(self, connection: _Connection, reason: str) -> None:
        if connection.number in self._connections:
            self._owner.broken(connection.number, reason)
        else:
            connection.abort()

    def lost(self, connection: _Connection, reason: str) -> None:
        if self._connections.pop(connection.number, None) is not None and connection.told:
            self._owner.closed(connection.number, reason)

    # -- dialing

    async def _dial(self, dial: Dial) -> None:
        reasons: list[str] = []
        final = False
        try:
            async with asyncio.timeout(DIAL_S):
                for address in dial.addresses:
                    try:
                        connection, member = await self._connect(address)
                    except (OSError, LatticaError, ssl.SSLError) as error:
                        reasons.append(f"{address}: {tls.words(error)}")
                        final = final or tls.is_refusal(error)
                        continue
                    if member.peer != dial.peer:
                        reasons.append(f"{address}: it is {short_peer(member.peer)}, not {short_peer(dial.peer)}")
                        connection.abort()
                        continue
                    self._tell(connection)
                    self._owner.dialed(dial.attempt, connection.number, member)
                    return
        except TimeoutError:
            reasons.append(f"no answer within {DIAL_S:g} s")
        except Exception as error:  # a bug of ours: the owner must hear that this dial is over all the same
            log.exception("dialing %s", ", ".join(dial.addresses))
            reasons.append(repr(error))
        if not self._closed:
            self._owner.dial_failed(dial.attempt, "; ".join(reasons) or "no address is known", final)

    async def _connect(self, address: str) -> tuple[_Connection, Member]:
        from aiohappyeyeballs import start_connection

        host, port = split_host(address)
        infos = [
            (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where)
            for family, where in await resolve(self._loop, host, port)
        ]
        sock = await start_connection(infos, happy_eyeballs_delay=HAPPY_EYEBALLS_S, loop=self._loop)
        try:
            connection = _Connection(self, next(self._numbers))
            transport, _ = await self._loop.create_connection(
                lambda: connection, sock=sock, ssl=self._contexts.client(), server_hostname=tls.MESH_NAME
            )
        except BaseException:
            sock.close()
            raise
        return connection, self._contexts.member_of(transport.get_extra_info("ssl_object"))

    # -- accepting

    def _acceptable(self, listener: socket.socket) -> None:
        try:
            sock, where = listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as error:  # out of descriptors: say so, and leave the rest in the backlog for a moment
            log.error("a connection could not be accepted: %s", error)
            self._loop.remove_reader(listener.fileno())
            self._loop.call_later(1.0, self._listen_again, listener)
            return
        sock.setblocking(False)
        if self._pending >= PENDING_MAX:
            sock.close()
            return
        self._spawn(self._accept(sock, host_text(*where[:2])))

    def _listen_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._acceptable, listener)

    async def _accept(self, sock: socket.socket, remote: str) -> None:
        self._pending += 1
        try:
            async with asyncio.timeout(ACCEPT_S):
                name = await self._server_name(sock)
                if name == tls.RENEW_NAME and self._renew is not None:
                    await self._serve_renewal(sock)
                    return
                connection = _Connection(self, next(self._numbers))
                transport, _ = await self._loop.connect_accepted_socket(
                    lambda: connection, sock, ssl=self._contexts.server()
                )
                sock = None  # type: ignore[assignment]
                try:
                    member = self._contexts.member_of(transport.get_extra_info("ssl_object"))
                except LatticaError:
                    transport.abort()
                    raise
                self._tell(connection)
                self._owner.accepted(connection.number, member)
        except (OSError, LatticaError, ssl.SSLError, TimeoutError) as error:
            self._owner.refused(remote, tls.words(error))
        finally:
            self._pending -= 1
            if sock is not None:
                sock.close()

    async def _server_name(self, sock: socket.socket) -> str:
        """The name in the ClientHello, which stays unread."""
        while True:
            await self._readable(sock)
            data = sock.recv(tls.CLIENT_HELLO_MAX_BYTES, socket.MSG_PEEK)
            if not data:
                raise ConnectionResetError("it connected and said nothing")
            name = tls.server_name(data)
            if name is not None:
                return name
            await asyncio.sleep(HELLO_POLL_S)

    async def _readable(self, sock: socket.socket) -> None:
        readable = asyncio.Event()
        self._loop.add_reader(sock.fileno(), readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(sock.fileno())

    async def _serve_renewal(self, sock: socket.socket) -> None:
        assert self._renew is not None
        reader = asyncio.StreamReader(limit=tls.RENEWAL_MAX_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await self._loop.connect_accepted_socket(
            lambda: protocol, sock, ssl=self._contexts.renewal_server()
        )
        writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        try:
            await self._renew(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()

    def _tell(self, connection: _Connection) -> None:
        """The owner hears of it in this same turn: what it sends must not come before."""
        self._connections[connection.number] = connection
        connection.told = True

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a handshake failed in an unforeseen way", exc_info=task.exception())
