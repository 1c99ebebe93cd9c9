"""The shell of port mappings: who the gateway is, a socket for each, the program that speaks UPnP, and timers.

Nothing is sent while there is no default gateway, nor before AFTER_S: a node that only starts and ends does not bother
it. The node waits for none of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lattica.mesh.mapping import pcp
from lattica.mesh.mapping.default_route import Gateway, default_gateways
from lattica.mesh.mapping.mapper import (
    IPV4_METHODS,
    IPV6_METHODS,
    AskUpnp,
    Changed,
    Effect,
    Mapper,
    Send,
    UpnpAnswer,
)
from lattica.mesh.mapping.pcp import Protocol
from lattica.mesh.nat.routes import Endpoint, is_private

log = logging.getLogger(__name__)
AFTER_S = 0.5  # from the node's start to the first question
LOOK_S = 20.0  # between looks whether the gateway is another; a look reads two small files
UPNP_S = 20.0  # for the program: a search, and eight requests at a slow router
RELEASE_S = 0.7  # for it at the node's end
URL_MAX_CHARS = 512  # of the description's place
OUTPUT_MAX_BYTES = 4096  # of it; it says a line of 200
READ_MAX = 32  # datagrams of a gateway in one turn


class Keeper:
    """Ports of the gateways that lead to one port of this node; see the package."""

    def __init__(
        self,
        port: int,
        secret: bytes,
        changed: Callable[[Keeper], None],
        *,
        host: str = "",
        gateways: Callable[[], Sequence[Gateway]] = default_gateways,
    ) -> None:
        """port: where the node listens, UDP and TCP. secret: see `Mapper`. changed: is told when `udp` and `tcp` are
        others. host: the only address at which it listens; "": all."""
        self.port, self._secret, self._changed, self._host = port, secret, changed, host
        self._find = gateways
        self._loop = asyncio.get_running_loop()
        self._asked: dict[Gateway, _Asked] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looked = False
        self._told: tuple[tuple[Endpoint, ...], ...] = ((), ())

    def __repr__(self) -> str:
        return f"<Keeper of port {self.port}: {', '.join(map(str, self._asked)) or 'no gateway'}>"

    @property
    def udp(self) -> tuple[Endpoint, ...]:
        """Where the gateways say that our UDP port is; behind a second NAT they say a private address."""
        found = (asked.mapper.told(Protocol.UDP) for asked in self._asked.values())
        return tuple(endpoint for endpoint in found if endpoint is not None)

    @property
    def addresses(self) -> tuple[Endpoint, ...]:
        """Where others reach our TCP port from outside, then our UDP port, each endpoint once."""
        order = (Protocol.TCP, Protocol.UDP)
        found = (asked.mapper.mapped(protocol) for protocol in order for asked in self._asked.values())
        return tuple(dict.fromkeys(endpoint for endpoint in found if endpoint is not None))

    def start(self) -> None:
        """Begin, soon."""
        self._timer = self._loop.call_later(AFTER_S, self._look)

    async def stop(self) -> None:
        """Give all back. Nobody is told: the node ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._changed = lambda keeper: None
        asked, self._asked = list(self._asked.values()), {}
        await asyncio.gather(*(each.stop() for each in asked))

    def status(self) -> dict[str, Any]:
        """Plain data, for `words`."""
        gateways = [{"gateway": str(gateway), **each.mapper.status()} for gateway, each in self._asked.items()]
        return {"looked": self._looked, "gateways": gateways}

    # -- who the gateway is

    def look(self) -> None:
        """The network may be another."""
        if self._timer is not None:
            self._timer.cancel()
            self._look()

    def _look(self) -> None:
        self._timer = self._loop.call_later(LOOK_S, self._look)
        self._looked = True
        there = {}
        for gateway in self._find():
            client = _client_of(gateway)
            if client and self._host in ("", client):
                there[gateway] = client
        for gateway, asked in list(self._asked.items()):
            if there.get(gateway) != asked.mapper.client:
                asked.close()  # what it gave is of no use here, and runs out
                del self._asked[gateway]
                self._tell()
        for gateway, client in there.items():
            if gateway not in self._asked:
                self._begin(gateway, client)

    def _begin(self, gateway: Gateway, client: str) -> None:
        methods = IPV6_METHODS if gateway.is_ipv6 else IPV4_METHODS
        mapper = Mapper(self.port, client, self._secret, methods)
        try:
            asked = self._asked[gateway] = _Asked(self._loop, gateway, mapper, self._tell)
        except OSError as error:  # no route to it, at this moment
            log.debug("the gateway %s cannot be asked: %s", gateway, error)
            return
        asked.begin()

    def _tell(self) -> None:
        if (self.udp, self.addresses) == self._told:
            return
        self._told = self.udp, self.addresses
        if self.addresses:
            log.info("reached from outside at %s, which the gateway maps here", ", ".join(map(str, self.addresses)))
        self._changed(self)


class _Asked:
    """One gateway: its mapper, a socket, a timer, at most one process."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, gateway: Gateway, mapper: Mapper, changed: Callable[[], None]
    ) -> None:
        """Raises OSError if it cannot be sent to."""
        self.mapper, self._gateway, self._loop, self._changed = mapper, gateway, loop, changed
        self._socket = _connected(gateway, mapper.client)
        loop.add_reader(self._socket.fileno(), self._readable)
        self._timer: asyncio.TimerHandle | None = None
        self._upnp: asyncio.Task[None] | None = None
        self._upnp_said: dict[str, Any] = {}
        self._closed = False

    def begin(self) -> None:
        self._carry_out(self.mapper.begin(self._loop.time()))

    async def stop(self) -> None:
        """Give back what it gave, and close."""
        if self._upnp is not None:
            self._upnp.cancel()
            await asyncio.wait([self._upnp])
        self._carry_out(self.mapper.release(self._loop.time()))
        if self._upnp is not None and not self._upnp.done():
            await asyncio.wait([self._upnp], timeout=RELEASE_S)
        self.close()

    def close(self) -> None:
        """Ask it nothing more."""
        if self._closed:
            return
        self._closed = True
        for cancelable in (self._timer, self._upnp):
            if cancelable is not None:
                cancelable.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _readable(self) -> None:
        for _ in range(READ_MAX):
            try:
                data = self._socket.recv(pcp.DATAGRAM_MAX_BYTES)
            except BlockingIOError:
                return
            except ConnectionRefusedError:
                self._carry_out(self.mapper.refused(self._loop.time()))
                return
            except OSError as error:
                log.debug("the gateway %s: %s", self._gateway, error)
                return
            self._carry_out(self.mapper.received(data, self._loop.time()))

    def _tick(self) -> None:
        self._timer = None
        self._carry_out(self.mapper.tick(self._loop.time()))

    def _carry_out(self, effects: list[Effect]) -> None:
        changed = False
        for effect in effects:
            match effect:
                case Send(data):
                    with contextlib.suppress(OSError):  # asked again; a refusal is heard by `_readable`, too
                        self._socket.send(data)
                case AskUpnp(lifetime_s):
                    self._upnp = self._loop.create_task(self._ask_upnp(lifetime_s))
                case Changed():
                    changed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.mapper.next_deadline()
        if due is not None and not self._closed:
            self._timer = self._loop.call_at(due, self._tick)
        if changed:
            self._changed()

    async def _ask_upnp(self, lifetime_s: int) -> None:
        asked = {
            "gateway": self._gateway.host,
            "client": self.mapper.client,
            "port": self.mapper.port,
            "lifetime_s": lifetime_s,
            **self._upnp_said,
        }
        line = await _run_igd(asked)
        answer = upnp_answer(line)
        if not answer.why:
            self._upnp_said = {"udp": answer.udp, "tcp": answer.tcp, "url": answer.url}
        if lifetime_s:
            self._carry_out(self.mapper.upnp_answered(answer, self._loop.time()))


async def _run_igd(asked: dict[str, Any]) -> bytes:
    """What the program says; a failure to run it is said in its words."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(Path(__file__).with_name("igd.py")), json.dumps(asked), env={},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        return json.dumps({"why": f"no process can be started: {error.strerror}"}).encode()
    assert process.stdout is not None, "it is a pipe"
    try:
        async with asyncio.timeout(UPNP_S):
            return await process.stdout.read(OUTPUT_MAX_BYTES)
    except TimeoutError:
        return json.dumps({"why": f"no answer within {UPNP_S:g} s"}).encode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def upnp_answer(line: bytes) -> UpnpAnswer:
    """What the program printed: it passes on what a router says, which may be anything."""
    try:
        said = json.loads(line)
        if not said.get("udp") and not said.get("tcp"):
            return UpnpAnswer(why=str(said.get("why") or "refused")[:200])
        host, url = str(said.get("host", "")), str(said.get("url", ""))[:URL_MAX_CHARS]
        is_private(host)  # an address at all
        udp, tcp, lifetime_s = (int(said.get(name, 0)) for name in ("udp", "tcp", "lifetime_s"))
        if ":" in host or not (0 <= udp <= 0xFFFF and 0 <= tcp <= 0xFFFF) or lifetime_s < 0:
            raise ValueError(line)
    except (ValueError, TypeError, AttributeError):
        return UpnpAnswer(why="it says what cannot be read")
    return UpnpAnswer(host, udp, tcp, lifetime_s, url=url)


def _client_of(gateway: Gateway) -> str:
    """Our address, as this gateway sees it; "" if there is no way to it, or none that others could use."""
    try:
        if gateway.is_ipv6:
            return _global_address(gateway.interface)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((gateway.host, pcp.PORT))  # sends nothing
            found: str = sock.getsockname()[0]
            return found
    except OSError:
        return ""


def _global_address(interface: str) -> str:
    """An address of IPv6 of this interface that means something elsewhere; "" if it has none."""
    import psutil

    for address in psutil.net_if_addrs().get(interface, ()):
        if address.family == socket.AF_INET6 and "%" not in address.address and not is_private(address.address):
            return str(address.address)
    return ""


def _connected(gateway: Gateway, client: str) -> socket.socket:
    """A socket that hears this gateway alone. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if gateway.is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.bind((client, 0))
        host, _, zone = gateway.host.partition("%")
        where = (host, pcp.PORT, 0, socket.if_nametoindex(zone)) if zone else (host, pcp.PORT)
        sock.connect(where)
    except OSError:
        sock.close()
        raise
    return sock
