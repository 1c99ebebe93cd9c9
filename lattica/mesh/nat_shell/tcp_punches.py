"""TCP connections from the port on which we listen: simultaneous open (RFC 9293 §3.5), and how others see that port.

Both sides connect from their listening ports, so either a SYN finds the other side's listener, or two of them cross.
Who has the lower PeerId is TLS client in both cases. A connection that comes in at the lower side's listener may be an
ordinary dial: it is one if the other side speaks first.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from lattica.errors import LatticaError
from lattica.mesh.identity import PeerId, short_peer
from lattica.mesh.nat.measuring import Witness
from lattica.mesh.nat.routes import ConnectTcp, Endpoint
from lattica.mesh.wire import BULK, CONTROL

if TYPE_CHECKING:
    from lattica.mesh.nat_shell.peer_paths import PeerPaths
    from lattica.mesh.transport.tcp import Tcp

log = logging.getLogger(__name__)
CONNECT_S = 2.8  # a SYN and a second one: as long as a round lasts
SEEN_S = 3.0
EXPECTED_S = 6.0  # after the last try, connections from there may be of this punch
EXPECTED_MAX = 64  # hosts
TRIED_MAX = 8  # ports of one of them
LOOKED_AT_MAX = 64  # connections that came in, to see who speaks: each holds a descriptor, for whoever is at that host
SPEAKS_S = 0.4  # who dialed as usual has said hello by then
LOOK_S = 0.05


class TcpPunches:
    """See the module. tcp: None where only UDP is spoken."""

    def __init__(
        self,
        tcp: Tcp | None,
        all_paths: Callable[[], Iterable[PeerPaths]],
        remotes: Callable[[PeerId], Collection[str]],
    ) -> None:
        """remotes(peer): where the TCP connections of its session lead."""
        self.punched: dict[PeerId, Endpoint] = {}  # where the last punched connection of a peer leads
        self._tcp, self._all_paths, self._remotes = tcp, all_paths, remotes
        self._loop = asyncio.get_running_loop()
        self._expected: dict[str, tuple[PeerPaths, set[Endpoint], float]] = {}  # host -> whose, tried, until
        self._connected: dict[PeerId, socket.socket] = {}  # what the puncher is being told of
        self._tasks: set[asyncio.Task[None]] = set()
        self._looked_at = 0
        if tcp is not None:
            tcp.takes = self._takes

    def __repr__(self) -> str:
        return f"<TcpPunches: {len(self._expected)} hosts expected, {len(self._tasks)} under way>"

    def stop(self) -> None:
        self._expected.clear()
        for task in self._tasks:
            task.cancel()

    # -- how we are seen

    async def seen(self, witnesses: Iterable[Witness], port: int) -> Endpoint | None:
        """Where a connection from this port of ours seems to come from, as the first of these tells that can."""
        if self._tcp is None or not port:
            return None
        for witness in witnesses:
            try:
                sock = await self._connect(self._tcp.share_port() or port, witness.endpoint, SEEN_S)
                host, _, seen_port = (await self._tcp.ask_where_seen(sock, witness.peer)).rpartition(":")
                return Endpoint(host.strip("[]"), int(seen_port))
            except (OSError, LatticaError, ssl.SSLError, TimeoutError, ValueError) as error:
                log.debug("%s does not tell how it sees us over TCP: %s", short_peer(witness.peer), error)
        return None

    # -- punching

    def connect(self, paths: PeerPaths, effect: ConnectTcp) -> None:
        """As `ConnectTcp` asks for; its puncher is told what comes of it."""
        if self._tcp is None:
            self._loop.call_soon(paths.step, paths.puncher.refused, effect.attempt)
            return
        self._expect(paths, effect.to, self._loop.time())
        self._spawn(self._try(paths, effect))

    def _expect(self, paths: PeerPaths, target: Endpoint, now: float) -> None:
        """A connection from there may be of this punch."""
        self._expected = {host: each for host, each in self._expected.items() if each[2] > now}
        _, tried, _ = self._expected.get(target.host, (paths, set(), 0.0))
        if len(tried) >= TRIED_MAX:
            tried = set()
        if len(self._expected) < EXPECTED_MAX or target.host in self._expected:
            self._expected[target.host] = paths, tried | {target}, now + EXPECTED_S

    def became_direct(self, paths: PeerPaths, over: Endpoint, *, bulk: bool) -> None:
        """The puncher counts the connection of which it was just told: carry on with it."""
        self.punched[paths.peer] = over
        sock = self._connected.pop(paths.peer, None)
        if sock is not None and self._tcp is not None:
            self._tcp.adopt(sock, paths.peer, BULK if bulk else CONTROL, client=paths.puncher.lower)

    def drop(self, peer: PeerId) -> None:
        """End the punched connection to this peer, if its session goes by one: the peer said where that leads, and it
        may be where another one is."""
        remote = self.punched.pop(peer, None)
        if remote is not None and self._tcp is not None and str(remote) in self._remotes(peer):
            self._tcp.cut(str(remote))

    async def _try(self, paths: PeerPaths, effect: ConnectTcp) -> None:
        assert self._tcp is not None
        try:
            sock = await self._connect(self._tcp.share_port() or effect.port, effect.to, CONNECT_S)
        except TimeoutError:
            return
        except OSError as error:
            if str(effect.to) in self._remotes(paths.peer):  # the other side's came before we expected it
                paths.step(paths.puncher.connected, effect.attempt, effect.to)
                return
            log.debug("a connection to %s came to nothing: %s", effect.to, error)
            paths.step(paths.puncher.refused, effect.attempt)
            return
        self._offer(paths, sock, lambda: paths.step(paths.puncher.connected, effect.attempt, effect.to))

    def _offer(self, paths: PeerPaths, sock: socket.socket, tell: Callable[[], None]) -> None:
        """Tell the puncher of a connection; what it does not count is closed."""
        if (before := self._connected.pop(paths.peer, None)) is not None:
            before.close()
        self._connected[paths.peer] = sock
        tell()
        if self._connected.pop(paths.peer, None) is not None:
            sock.close()

    async def _connect(self, port: int, to: Endpoint, within_s: float) -> socket.socket:
        """A connection from this port. Raises OSError, TimeoutError."""
        family = socket.AF_INET6 if to.is_ipv6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setblocking(False)
            sock.bind(("::" if to.is_ipv6 else "0.0.0.0", port))
            async with asyncio.timeout(within_s):
                await self._loop.sock_connect(sock, tuple(to))
        except BaseException:
            sock.close()
            raise
        return sock

    # -- what comes in

    def expects(self, host: str) -> bool:
        """Whether a connection from there may be of a punch: that it came says nothing of who else could come."""
        return host in self._expected and self._expected[host][2] > self._loop.time()

    def _takes(self, sock: socket.socket, remote: Endpoint) -> bool:
        """Whether this connection to our listener is of a punch, and we are to be its TLS client; else it is accepted
        as usual."""
        now = self._loop.time()
        for paths in self._all_paths():  # the other side may be sooner than we are
            for target in paths.puncher.tcp_targets:
                self._expect(paths, target, now)
        if not self._expected:
            return False
        self._expected = {host: each for host, each in self._expected.items() if each[2] > now}
        if remote.host not in self._expected:
            return False
        paths, tried, _ = self._expected[remote.host]
        if not paths.puncher.lower:
            if remote in tried:  # else it may be anybody's behind that gateway
                paths.step(paths.puncher.accepted, remote.port, remote)
            return False
        if self._looked_at >= LOOKED_AT_MAX:
            return False
        self._looked_at += 1
        task = self._spawn(self._look_who_speaks(paths, sock, remote))
        task.add_done_callback(lambda done: self._looked(done, sock))
        return True

    def _looked(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        self._looked_at -= 1
        if task.cancelled():
            sock.close()

    async def _look_who_speaks(self, paths: PeerPaths, sock: socket.socket, remote: Endpoint) -> None:
        """It is an ordinary dial if the other side begins."""
        assert self._tcp is not None
        end = self._loop.time() + SPEAKS_S
        try:
            while self._loop.time() < end:
                try:
                    sock.recv(1, socket.MSG_PEEK)
                    self._tcp.adopt(sock, paths.peer, CONTROL, client=False)
                    return
                except BlockingIOError:
                    await asyncio.sleep(LOOK_S)
        except OSError:
            sock.close()
            return
        self._offer(paths, sock, lambda: paths.step(paths.puncher.accepted, remote.port, remote))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a punched connection", exc_info=error)
