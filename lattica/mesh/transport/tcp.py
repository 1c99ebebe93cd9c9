"""TCP with mutual TLS 1.3 on asyncio or uvloop: connections, batched writes, and reading in place.

The server name `renew` gets a context that asks for no certificate and a handler of its own, every other name the
mesh's, which requires one. A connection is told to the owner only after the chain of the other end was verified by
OpenSSL and read.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any

from lattica.errors import ConfigError, LatticaError
from lattica.mesh import tls
from lattica.mesh.addresses import host_text, resolve, split_host
from lattica.mesh.effects import Dial
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.links import Member
from lattica.mesh.nat.routes import Endpoint
from lattica.mesh.transport import proxy as proxies
from lattica.mesh.transport.interface import Owner
from lattica.mesh.transport.proxy import Proxy, proxy_for
from lattica.mesh.transport.tls_connection import TlsConnection
from lattica.mesh.wire import Frame, Received

log = logging.getLogger(__name__)
DIAL_S = 6.0
"""For TCP and TLS together: a far peer with a lost packet needs 3 s; more makes a dead address expensive."""
ACCEPT_S = 10.0  # from the first byte to a verified chain
BACKLOG = 256
PENDING_MAX = 128
"""Handshakes at once: each costs 2 ms of CPU, and is made with somebody who has proved nothing yet."""
NEXT_ADDRESS_S = 0.25
PROXY_AFTER_S = 0.5  # for an answer without it
READY_S = 10.0  # for a dial to take a connection that somebody else has made
SEEN_MAX_BYTES = 64
HAPPY_EYEBALLS_S = 0.25  # RFC 8305 §8: the pause between attempts at different addresses


class Tcp:
    """See the module; a `Transport`."""

    def __init__(
        self,
        owner: Owner,
        contexts: tls.Contexts,
        renew: Callable[[asyncio.StreamReader, Callable[[bytes], None]], Awaitable[None]] | None = None,
    ) -> None:
        """contexts: of our own certificates, asked for at each handshake, since they are renewed.
        renew: serves a connection that was made under the name `renew`."""
        self._owner, self._contexts, self._renew = owner, contexts, renew
        self.doors: dict[str, Callable[[TlsConnection, Member], None]] = {}  # by application protocol
        self.doors[tls.SEEN_ALPN] = _tell_where_it_is_seen
        self.takes: Callable[[socket.socket, Endpoint], bool] = lambda sock, remote: False
        self._ready: dict[tuple[PeerId, int], tuple[TlsConnection, Member]] = {}  # (peer, plane)
        self._loop = asyncio.get_running_loop()
        self._connections: dict[int, TlsConnection] = {}
        self._numbers = count(1)
        self.dirty: set[TlsConnection] = set()
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepted: set[socket.socket] = set()  # whose task has not begun
        self._pending = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<Tcp: {len(self._connections)} connections, {len(self._listeners)} listeners>"

    # -- the interface

    async def listen(self, address: str) -> Sequence[str]:
        host, port = split_host(address)
        bound: list[str] = []
        missed: OSError | None = None
        for family, where in await resolve(self._loop, host, port, passive=True):
            try:
                sock = _listener(family, (where[0], port, *where[2:]))
            except OSError as error:
                missed = error  # IPv6 may be switched off on this machine; then IPv4 is enough
                continue
            self._listeners.append(sock)
            port = sock.getsockname()[1]  # the same one for the other family
            bound.append(host_text(*sock.getsockname()[:2]))
            self._loop.add_reader(sock.fileno(), self._acceptable, sock)
        if missed is not None and (not bound or missed.errno == errno.EADDRINUSE):
            raise ConfigError(
                f"cannot listen on {host_text(host, port)}: {missed.strerror}",
                do_next="choose another address with --listen HOST:PORT, or port 0 for any that is free",
            ) from missed
        return bound

    def dial(self, dial: Dial) -> None:
        ready = self._ready.pop((dial.peer, dial.plane), None)
        if ready is not None:
            self._loop.call_soon(self._dialed, dial, *ready)
        else:
            self._spawn(self._dial(dial))

    def write(self, number: int, frame: Frame) -> None:
        connection = self._connections.get(number)
        if connection is not None:
            connection.write(frame)
            self.dirty.add(connection)

    def flush(self) -> None:
        if self.dirty:
            dirty, self.dirty = self.dirty, set()
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
        for sock in self._accepted:
            sock.close()
        self._accepted.clear()
        for connection, _ in self._ready.values():
            connection.abort()
        self._ready.clear()
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

    def received(self, connection: TlsConnection, frames: list[Received]) -> None:
        if connection.number in self._connections:
            self._owner.received(connection.number, frames)

    def broken(self, connection: TlsConnection, reason: str) -> None:
        if connection.number in self._connections:
            self._owner.broken(connection.number, reason)
        else:
            connection.abort()

    def lost(self, connection: TlsConnection, reason: str) -> None:
        if self._connections.pop(connection.number, None) is not None:
            self._owner.closed(connection.number, reason)

    # -- dialing

    async def _dial(self, dial: Dial) -> None:
        failed = Failures()
        try:
            async with asyncio.timeout(DIAL_S):
                found = await self.race(dial.peer, dial.addresses, self._contexts.client(), failed)
            if found is not None:
                self._dialed(dial, *found)
                return
        except TimeoutError:
            failed.reasons.append(f"no answer within {DIAL_S:g} s")
        except Exception as error:  # a bug of ours: the owner must hear that this dial is over all the same
            log.exception("dialing %s", ", ".join(dial.addresses))
            failed.reasons.append(repr(error))
        if not self._closed:
            reason = "; ".join(failed.reasons) or "no address is known"
            self._owner.dial_failed(dial.attempt, reason, failed.final)

    def _dialed(self, dial: Dial, connection: TlsConnection, member: Member) -> None:
        self._tell(connection)
        self._owner.dialed(dial.attempt, connection.number, member)
        connection.decoder.trust()  # behind its hello may come what we lack
        connection.release()

    async def race(
        self, peer: PeerId, addresses: Sequence[str], context: ssl.SSLContext, failed: Failures
    ) -> tuple[TlsConnection, Member] | None:
        """A connection to that peer, by the first of its addresses where it is; None if there is none. The next is
        tried when the one before has failed, or was silent for NEXT_ADDRESS_S: a firewall that drops what is sent must
        not cost the dial. Whoever asked owns the connection."""
        left = deque(addresses)
        trying: dict[asyncio.Task[tuple[TlsConnection, Member]], str] = {}
        try:
            while left or trying:
                if left:
                    address = left.popleft()
                    trying[self._loop.create_task(self._connect(address, context))] = address
                done, _ = await asyncio.wait(
                    trying, timeout=NEXT_ADDRESS_S if left else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    address = trying.pop(task)
                    try:
                        connection, member = task.result()
                    except (OSError, LatticaError, ssl.SSLError) as error:
                        failed.reasons.append(f"{address}: {tls.words(error)}")
                        failed.final = failed.final or tls.is_refusal(error)
                        continue
                    if member.peer == peer:
                        return connection, member
                    failed.reasons.append(f"{address}: it is {short_peer(member.peer)}, not {short_peer(peer)}")
                    connection.abort()
            return None
        finally:
            for task in trying:
                task.add_done_callback(_not_needed)
                task.cancel()

    async def _connect(self, address: str, context: ssl.SSLContext) -> tuple[TlsConnection, Member]:
        sock, through = await self._socket_to(*split_host(address))
        connection = self._connection(context)
        try:
            await self._loop.create_connection(lambda: connection, sock=sock)
        except BaseException:
            sock.close()
            raise
        if through is not None:
            connection.remote = f"{address} through proxy {through}"
        return connection, await self._proved(connection)

    async def _socket_to(self, host: str, port: int) -> tuple[socket.socket, Proxy | None]:
        """Connected to that address; by way of the proxy of the environment, if there is one and nobody answers
        without it. Raises OSError."""
        proxy = proxy_for(host)
        if proxy is None:
            return await self._directly(host, port), None
        reasons: list[str] = []
        ways = {self._loop.create_task(self._directly(host, port)): ""}
        try:
            while ways:
                fresh = len(ways) == 1 and "" in ways.values() and not reasons
                done, _ = await asyncio.wait(
                    ways, timeout=PROXY_AFTER_S if fresh else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    name = ways.pop(task)
                    if task.exception() is None:
                        return task.result(), proxy if name else None
                    reasons.append(f"{name}{tls.words(task.exception() or OSError())}")
                if fresh:
                    task = self._loop.create_task(proxies.connect(self._loop, proxy, host, port))
                    ways[task] = f"by way of proxy {proxy}: "
            raise OSError("; ".join(reasons))
        finally:
            for task in ways:
                task.add_done_callback(_close_unneeded)
                task.cancel()

    async def _directly(self, host: str, port: int) -> socket.socket:
        from aiohappyeyeballs import start_connection

        infos = [
            (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where)
            for family, where in await resolve(self._loop, host, port)
        ]
        return await start_connection(infos, happy_eyeballs_delay=HAPPY_EYEBALLS_S, loop=self._loop)

    def _connection(self, context: Callable[[str], ssl.SSLContext] | ssl.SSLContext) -> TlsConnection:
        return TlsConnection(next(self._numbers), context, self.received, self.broken, self.lost)

    async def _proved(self, connection: TlsConnection) -> Member:
        """Who is at the other end, once the handshake is over. Raises what went wrong, and then it is closed."""
        try:
            return self._contexts.member_of(await connection.up)
        except BaseException:
            connection.finish()
            raise

    # -- connections that somebody else has made

    def is_ready(self, peer: PeerId, plane: int) -> bool:
        """Whether the next dial of this plane has its connection already."""
        return (peer, plane) in self._ready

    def adopt(self, sock: socket.socket, peer: PeerId, plane: int, *, client: bool) -> None:
        """Carry on with a TCP connection to this peer, as the side that dialed or as the other. `better` tells when a
        dial of the plane would have it."""
        try:
            remote = host_text(*sock.getpeername()[:2])
        except OSError:  # it has ended already
            sock.close()
            return
        self._accepted.add(sock)
        self._spawn(self._adopted(sock, peer, plane) if client else self._accept(sock, remote))

    async def _adopted(self, sock: socket.socket, peer: PeerId, plane: int) -> None:
        self._accepted.discard(sock)
        connection = self._connection(self._contexts.client())
        try:
            async with asyncio.timeout(DIAL_S):
                await self._loop.create_connection(lambda: connection, sock=sock)
                member = await self._proved(connection)
        except BaseException as error:
            connection.abort()
            sock.close()
            if not isinstance(error, (OSError, LatticaError, ssl.SSLError, TimeoutError)):
                raise
            log.info("a connection to %s came to nothing: %s", short_peer(peer), tls.words(error))
            return
        if member.peer != peer or (peer, plane) in self._ready:
            connection.abort()
            return
        self._ready[peer, plane] = connection, member
        self._loop.call_later(READY_S, self._not_wanted, peer, plane, connection)
        self._owner.better(peer, plane)

    def _not_wanted(self, peer: PeerId, plane: int, connection: TlsConnection) -> None:
        ready = self._ready.get((peer, plane))
        if ready is not None and ready[0] is connection:
            del self._ready[peer, plane]
            connection.finish()

    def cut(self, remote: str) -> None:
        """Connections to this address are dead: the owner hears so at once, and not when TCP gives up."""
        for connection in list(self._connections.values()):
            if connection.remote == remote:
                connection.abort()

    def share_port(self) -> int:
        """Let connections begin from the port on which we listen (SO_REUSEPORT, set after binding: no other process
        may listen there for that); the port, 0 if there is none."""
        for sock in self._listeners:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return int(self._listeners[0].getsockname()[1]) if self._listeners else 0

    async def ask_where_seen(self, sock: socket.socket, peer: PeerId) -> str:
        """How this peer sees a connection that was made to it: "host:port". Raises OSError, LatticaError, ssl.SSLError,
        TimeoutError."""
        connection = self._connection(self._contexts.seen_client())
        try:
            async with asyncio.timeout(DIAL_S):
                await self._loop.create_connection(lambda: connection, sock=sock)
                member = await self._proved(connection)
                if member.peer != peer or connection.alpn != tls.SEEN_ALPN:
                    raise ConnectionError("it tells nobody how it is seen")
                connection.reader = reader = asyncio.StreamReader(limit=SEEN_MAX_BYTES)
                connection.release()
                return (await reader.readuntil(b"\n")).decode().strip()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise ConnectionError("it did not tell how we are seen") from error
        finally:
            connection.abort()

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
        if self.takes(sock, Endpoint(*where[:2])):
            return
        self._accepted.add(sock)
        self._spawn(self._accept(sock, host_text(*where[:2])))

    def _listen_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._acceptable, listener)

    async def _accept(self, sock: socket.socket, remote: str) -> None:
        self._pending += 1
        self._accepted.discard(sock)
        connection: TlsConnection | None = None
        try:
            async with asyncio.timeout(ACCEPT_S):
                connection = self._connection(self._context_for)
                await self._loop.connect_accepted_socket(lambda: connection, sock)
                if await self._is_renewal(connection):
                    return
                member = await self._proved(connection)
                if connection.alpn:
                    self._other_protocol(connection, member)
                    return
                self._tell(connection)
                self._owner.accepted(connection.number, member)
                connection.release()
        except (OSError, LatticaError, ssl.SSLError, TimeoutError) as error:
            self._owner.refused(remote, tls.words(error))
            if connection is not None:
                connection.abort_soon()
        finally:
            self._pending -= 1

    def _context_for(self, name: str) -> ssl.SSLContext:
        wants_renewal = name == tls.RENEW_NAME and self._renew is not None
        return self._contexts.renewal_server() if wants_renewal else self._contexts.server()

    async def _is_renewal(self, connection: TlsConnection) -> bool:
        """Serve it, if it came by the name `renew`."""
        try:
            await connection.up
        except (OSError, ssl.SSLError):
            return False  # `_proved` says the same, with words
        if connection.server_name != tls.RENEW_NAME or self._renew is None:
            return False
        connection.reader = asyncio.StreamReader(limit=tls.RENEWAL_MAX_BYTES)
        connection.release()
        try:
            await self._renew(connection.reader, connection.say)
        finally:
            connection.finish()
        return True

    def _other_protocol(self, connection: TlsConnection, member: Member) -> None:
        """It is no session's: hand it to whoever speaks that."""
        serve = self.doors.get(connection.alpn)
        if serve is None:
            connection.finish()
        else:
            serve(connection, member)
            connection.release()

    def _tell(self, connection: TlsConnection) -> None:
        """The owner hears of it in this same turn: what it sends must not come before."""
        self._connections[connection.number] = connection

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a handshake failed in an unforeseen way", exc_info=task.exception())


def _tell_where_it_is_seen(connection: TlsConnection, member: Member) -> None:
    connection.say(f"{connection.remote}\n".encode())
    connection.finish()


class Failures:
    """What went wrong in one dial. final: one side does not accept the other's certificates."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.final = False


def _close_unneeded(task: asyncio.Task[socket.socket]) -> None:
    """The other way was faster."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _not_needed(task: asyncio.Task[tuple[TlsConnection, Member]]) -> None:
    """Another address was faster."""
    if not task.cancelled() and task.exception() is None:
        task.result()[0].abort()


def _listener(family: int, where: tuple[Any, ...]) -> socket.socket:
    """A socket that listens there. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
