"""The UDP sockets of a node: one of each family, for listening and for dialing, shared by QUIC and by probes.

    UDP datagram, or what a relay's channel carried
        └─ bit 0x40 of the first byte? ── no ──► `on_datagram` (probes, relayed packets, punches)
             └─ a connection id that is known? ── yes ──► its connection, in batches
                  └─ an Initial? ── no ──► a reset: of a connection of ours, or said to one who takes us for another
                       └─ with a token of ours, from where it was sent to? ── yes ──► `on_stranger`
                            └─ no: a Retry, a tenth as long as the Initial

A stranger makes no state here, and is never sent more than it sent. Where a datagram came from is a `Route`, and so is
where one is sent to: who reads and writes packets need not know which of them are addresses and which relays.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lattica.errors import ConfigError
from lattica.mesh.addresses import host_text, resolve, split_host
from lattica.mesh.nat.datagrams import QUIC_BIT
from lattica.mesh.nat.routes import MAIN, Direct, Endpoint, Route, ViaRelay
from lattica.mesh.transport.quic_packets import (
    CID_BYTES,
    LONG,
    RESET_BYTES,
    TOKEN_BYTES,
    Initial,
    Resets,
    Retries,
    destination_of,
    initial_of,
)

log = logging.getLogger(__name__)
BUFFER_BYTES = 4 << 20
"""Of the kernel, each way: what comes while Python is busy for a tenth of a second. Twice what `net.core.rmem_max`
allows is all that one who is not root gets."""
BATCH_MAX = 64
"""Datagrams read in one turn of the loop: 3 ms of work, so that a flood does not keep timers waiting."""
DATAGRAM_MAX_BYTES = 65_536
ROUTES_MAX = 1024  # remembered, so that a packet makes no object
ROAMING = -1
"""The number of a socket for what the main one cannot reach, since it is bound to loopback."""
SAFE_BYTES = 1200  # of a datagram: what every path carries (RFC 9000 §14)
ETHERNET_BYTES = 1350  # what a path of 1,500 carries through a tunnel or two
LOCAL_BYTES = 8192
"""Within this machine. Sixteen of them, which QUIC sends in a burst, fit into the buffer of one who is not root."""
SEGMENTS_MAX = 64  # linux/udp.h, UDP_MAX_SEGMENTS
SEGMENTED_MAX_BYTES = 65_000  # of one piece: an IP packet, less its heads
_IP_MTU, _IPV6_MTU = 14, 24  # linux/in.h, linux/in6.h: not in `socket`
_UDP_SEGMENT, _UDP_GRO = 103, 104  # linux/udp.h
_EXTRA_BYTES = socket.CMSG_SPACE(4)


class Connected(Protocol):
    """Who has a connection id."""

    def arrived(self, route: Route, datagrams: list[bytes]) -> None:
        """Datagrams with its id, in order, of one turn of the loop."""

    def was_reset(self) -> None:
        """The other side has said that it knows nothing of it."""


class PathSocket:
    """See the module."""

    def __init__(self, on_stranger: Callable[[Initial, bytes, Route], Connected | None]) -> None:
        """on_stranger(initial, original, route): somebody who is at this route begins a connection; `original` is the
        id that its very first packet was for. None: not now."""
        self.on_stranger = on_stranger
        self.on_datagram: Callable[[Route, bytes], None] = lambda route, datagram: None
        self.is_proven: Callable[[Route], bool] = lambda route: False  # whoever sends by it is there: ask for no token
        self.to_relay: Callable[[ViaRelay, Sequence[bytes]], None] = lambda route, datagrams: None
        self.ids: dict[bytes, Connected] = {}
        self.tokens: dict[bytes, Connected] = {}  # that end a connection
        self.resets: Resets | None = None  # what is said of connections that nobody here has
        self._loop = asyncio.get_running_loop()
        self._retries = Retries(os.urandom(32))
        self._sockets: dict[tuple[int, bool], socket.socket] = {}  # (number, IPv6)
        self._loopback = False  # the main one is bound to it
        self._routes: dict[tuple[int, str, int], Direct] = {}
        self._space = memoryview(bytearray(DATAGRAM_MAX_BYTES))
        self._closed = False
        self._segments = True  # the kernel cuts what is sent in one piece

    def __repr__(self) -> str:
        return f"<PathSocket: {len(self._sockets)} sockets, {len(self.ids)} connection ids>"

    # -- sockets

    async def listen(self, address: str) -> list[str]:
        """Bind the main sockets at "host:port" (port 0: any); the addresses bound. Raises ConfigError if taken."""
        host, port = split_host(address)
        bound: list[str] = []
        missed: OSError | None = None
        for family, where in await resolve(self._loop, host, port, passive=True):
            try:
                sock = _bound(family, (where[0], port, *where[2:]))
            except OSError as error:
                missed = error  # IPv6 may be switched off on this machine; then IPv4 is enough
                continue
            at = self._add(MAIN, sock)
            port = at[1]  # the same one for the other family
            bound.append(host_text(*at))
            self._loopback = self._loopback or at[0] in ("127.0.0.1", "::1")
        if missed is not None and (not bound or missed.errno == errno.EADDRINUSE):
            self.close_socket(MAIN)
            raise ConfigError(
                f"cannot listen on UDP {host_text(host, port)}: {missed.strerror}",
                do_next="choose another address with --listen HOST:PORT, or port 0 for any that is free",
            ) from missed
        return bound

    @property
    def port(self) -> int:
        """Of the main socket, which one who only dials has from now on; 0 if there can be none, or it is bound to
        loopback."""
        if self._loopback:
            return 0
        found = self._sockets.get((MAIN, False)) or self._sockets.get((MAIN, True))
        try:
            found = found or self._socket_for(Direct(Endpoint("0.0.0.0", 0)))
        except OSError:
            return 0
        return int(found.getsockname()[1])

    def open(self, number: int) -> Endpoint:
        """A fresh socket of this number, for IPv4; where it is bound. Raises OSError."""
        return Endpoint(*self._add(number, _bound(socket.AF_INET, ("0.0.0.0", 0))))

    def close_socket(self, number: int) -> None:
        """This socket is of no use any more."""
        for key in [key for key in self._sockets if key[0] == number]:
            sock = self._sockets.pop(key)
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()

    def close(self) -> None:
        """Close all, for good."""
        self._closed = True
        for number in {number for number, _ in self._sockets}:
            self.close_socket(number)

    def _add(self, number: int, sock: socket.socket) -> tuple[str, int]:
        key = number, sock.family == socket.AF_INET6
        self._sockets[key] = sock
        self._loop.add_reader(sock.fileno(), self._readable, number, sock)
        at: tuple[str, int] = sock.getsockname()[:2]
        return at

    def _socket_for(self, route: Direct) -> socket.socket:
        """The socket that this route goes by; that of one who only dials is made when it is needed. Raises OSError."""
        number, ipv6 = route.socket, route.endpoint.is_ipv6
        if number == MAIN and self._loopback and route.endpoint.host not in ("127.0.0.1", "::1"):
            number = ROAMING
        found = self._sockets.get((number, ipv6))
        if found is None:
            if number not in (MAIN, ROAMING) or self._closed:
                raise OSError(errno.EBADF, f"socket {number} is closed")
            found = self._bound_beside(number, ipv6)
            self._add(number, found)
        return found

    def _bound_beside(self, number: int, ipv6: bool) -> socket.socket:
        """A socket for one family; at the port of that for the other, if that is free, as others expect. Raises
        OSError."""
        family, host = (socket.AF_INET6, "::") if ipv6 else (socket.AF_INET, "0.0.0.0")
        other = self._sockets.get((number, not ipv6))
        if other is not None:
            try:
                return _bound(family, (host, other.getsockname()[1]))
            except OSError:
                pass  # taken
        return _bound(family, (host, 0))

    # -- sending

    def send(self, route: Route, datagrams: Sequence[bytes], ttl: int = 0) -> None:
        """Send datagrams; what the kernel does not take is lost, as on any other link. ttl: hops; 0: as usual."""
        if isinstance(route, ViaRelay):
            self.to_relay(route, datagrams)
            return
        try:
            sock = self._socket_for(route)
            where = tuple(route.endpoint)
            if ttl:
                _set_ttl(sock, ttl)
            try:
                if len(datagrams) == 1:
                    sock.sendto(datagrams[0], where)
                else:
                    self._send_many(sock, where, datagrams)
            finally:
                if ttl:
                    _set_ttl(sock, 0)
        except OSError as error:  # no route, no buffer: whoever waits for an answer tries again, or gives up
            log.debug("a datagram to %s was not sent: %s", route, error)

    def offer(self, route: Direct, datagrams: Sequence[bytes]) -> int:
        """Send as many of them as the kernel has room for; how many. What it refuses for good is lost, as in `send`."""
        try:
            return self._send_many(self._socket_for(route), tuple(route.endpoint), datagrams)
        except OSError as error:
            log.debug("datagrams to %s were not sent: %s", route, error)
            return len(datagrams)

    def when_writable(self, route: Direct, call: Callable[[], None]) -> None:
        """Call this once, when the kernel has room for what is sent by this route."""
        try:
            fd = self._socket_for(route).fileno()
        except OSError:
            self._loop.call_soon(call)
            return

        def writable() -> None:
            self._loop.remove_writer(fd)
            call()

        self._loop.add_writer(fd, writable)

    def _send_many(self, sock: socket.socket, where: tuple[Any, ...], datagrams: Sequence[bytes]) -> int:
        """Hand runs of equally long datagrams to the kernel in one piece, which it cuts (UDP_SEGMENT): a call for each
        costs a third of what making it does. How many it had room for. Raises OSError."""
        start = 0
        while start < len(datagrams):
            size = len(datagrams[start])
            end = start + 1
            most = min(start + SEGMENTS_MAX, start + SEGMENTED_MAX_BYTES // size, len(datagrams))
            while self._segments and end < most and len(datagrams[end - 1]) == size >= len(datagrams[end]):
                end += 1  # the last of a run may be shorter
            try:
                if end == start + 1:
                    sock.sendto(datagrams[start], where)
                else:
                    cut = [(socket.SOL_UDP, _UDP_SEGMENT, size.to_bytes(2, sys.byteorder))]
                    sock.sendmsg(datagrams[start:end], cut, 0, where)
            except BlockingIOError:
                break
            except OSError as error:
                if end == start + 1 or error.errno not in (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT):
                    raise
                self._segments = False  # this machine, or its interface, does not cut
                continue
            start = end
        return start

    # -- receiving

    def arrived(self, route: Route, datagram: bytes) -> None:
        """A datagram that came by some route: a relay's channel, say."""
        if not datagram:
            return
        batch: dict[Connected, tuple[Route, list[bytes]]] = {}
        self._sort(route, datagram, batch)
        self._hand_on(batch)

    def arrived_together(self, route: Route, datagrams: Sequence[bytes]) -> None:
        """Several datagrams that came by one route."""
        batch: dict[Connected, tuple[Route, list[bytes]]] = {}
        for datagram in datagrams:
            if datagram:
                self._sort(route, datagram, batch)
        self._hand_on(batch)

    def _readable(self, number: int, sock: socket.socket) -> None:
        batch: dict[Connected, tuple[Route, list[bytes]]] = {}
        space, routes = self._space, self._routes
        spaces = [space]
        left = BATCH_MAX
        while left > 0:
            left -= 1
            try:
                size, extra, _, where = sock.recvmsg_into(spaces, _EXTRA_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:  # what an earlier datagram of ours met on its way
                log.debug("a socket says: %s", error)
                if sock.fileno() < 0:  # what came has had it closed
                    break
                continue
            if not size:
                continue
            key = number, where[0], where[1]
            route = routes.get(key)
            if route is None:
                if len(routes) >= ROUTES_MAX:
                    routes.clear()
                route = routes[key] = Direct(Endpoint(where[0], where[1]), max(number, MAIN))
            if extra:  # several of one length, joined (UDP_GRO)
                each = int.from_bytes(extra[0][2], sys.byteorder)
                for start in range(0, size, each):
                    self._sort(route, bytes(space[start : min(start + each, size)]), batch)
                    left -= 1
            else:
                self._sort(route, bytes(space[:size]), batch)
        self._hand_on(batch)

    def _sort(self, route: Route, datagram: bytes, batch: dict[Connected, tuple[Route, list[bytes]]]) -> None:
        if not datagram[0] & QUIC_BIT:
            self.on_datagram(route, datagram)
            return
        if datagram[0] & 0x80:
            id = destination_of(datagram)
        else:
            id = datagram[1 : 1 + CID_BYTES]
        connected = self.ids.get(id) if id is not None else None
        if connected is None:
            connected = self._stranger(route, datagram)
            if connected is None:
                return
        before = batch.get(connected)
        if before is not None and before[0] is route:
            before[1].append(datagram)
            return
        if before is not None:  # it comes by two routes at once
            connected.arrived(*before)
        batch[connected] = route, [datagram]

    def _hand_on(self, batch: dict[Connected, tuple[Route, list[bytes]]]) -> None:
        for connected, (route, datagrams) in batch.items():
            connected.arrived(route, datagrams)

    def _stranger(self, route: Route, datagram: bytes) -> Connected | None:
        """Whose connection begins with this datagram; None if it is a stranger's first, or nothing at all."""
        initial = initial_of(datagram)
        if initial is None:
            if not datagram[0] & LONG:
                self._unknown(route, datagram)
            return None
        if self.is_proven(route):
            return self.on_stranger(initial, initial.destination, route)
        source, now = str(route).encode(), self._loop.time()
        original = self._retries.original(initial, source, now)
        if original is not None:
            return self.on_stranger(initial, original, route)
        self.send(route, [self._retries.answer(initial, source, os.urandom(CID_BYTES), now)])
        return None

    def _unknown(self, route: Route, datagram: bytes) -> None:
        """Of a connection that was: the other side has forgotten it, or we have."""
        connected = self.tokens.get(datagram[-TOKEN_BYTES:])
        if connected is not None:
            connected.was_reset()
        elif self.resets is not None:
            answer = self.resets.answer(datagram, os.urandom(RESET_BYTES), self._loop.time())
            if answer is not None:
                self.send(route, [answer])


def datagram_bytes(route: Route) -> int:
    """How long datagrams may be on this route, by what the kernel knows of its first link."""
    if isinstance(route, ViaRelay):
        return SAFE_BYTES
    ipv6 = route.endpoint.is_ipv6
    level, option = (socket.IPPROTO_IPV6, _IPV6_MTU) if ipv6 else (socket.IPPROTO_IP, _IP_MTU)
    try:
        with socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(tuple(route.endpoint))  # sends nothing
            mtu = sock.getsockopt(level, option)
    except OSError:
        return SAFE_BYTES
    return LOCAL_BYTES if mtu > DATAGRAM_MAX_BYTES // 2 else ETHERNET_BYTES if mtu >= 1400 else SAFE_BYTES


def _bound(family: int, where: tuple[Any, ...]) -> socket.socket:
    """A UDP socket that is bound there. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for plain, forced in ((socket.SO_RCVBUF, 33), (socket.SO_SNDBUF, 32)):  # SO_RCVBUFFORCE, SO_SNDBUFFORCE
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
            except OSError:  # not root
                sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)
        try:
            sock.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)
        except OSError:
            pass  # a kernel before 5.0: each datagram is read by itself
        sock.setblocking(False)
        sock.bind(where)
    except OSError:
        sock.close()
        raise
    return sock


def _set_ttl(sock: socket.socket, ttl: int) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl or -1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl or 64)
