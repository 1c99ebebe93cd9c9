"""When an address of one of this machine's interfaces changes: the kernel says so, which costs nothing while it does
not (rtnetlink(7)); where it cannot be asked, we look from time to time."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from lattica.mesh.addresses import reachable, split_host

log = logging.getLogger(__name__)
SETTLE_S = 0.3  # several changes come together
LOOK_S = 15.0  # where the kernel does not tell
_IPV4_ADDRESSES, _IPV6_ADDRESSES = 0x10, 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR of linux/rtnetlink.h
_READ_BYTES = 65_536


def own_hosts() -> list[str]:
    """Addresses of this machine's interfaces, those with a meaning elsewhere first."""
    return [split_host(address)[0] for address in reachable(["0.0.0.0:0", "[::]:0"])]


class NetworkWatch:
    """changed(hosts) is called when this machine's addresses are others than before."""

    def __init__(self, changed: Callable[[list[str]], None]) -> None:
        self.hosts = own_hosts()
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._socket = self._listen()
        if self._socket is None:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def __repr__(self) -> str:
        return f"<NetworkWatch: {', '.join(self.hosts)}>"

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _listen(self) -> socket.socket | None:
        family = getattr(socket, "AF_NETLINK", None)
        if family is None:
            return None
        try:
            sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)  # NETLINK_ROUTE
        except OSError as error:
            log.debug("the kernel does not tell when addresses change: %s", error)
            return None
        try:
            sock.setblocking(False)
            sock.bind((0, _IPV4_ADDRESSES | _IPV6_ADDRESSES))
        except OSError as error:
            log.debug("the kernel does not tell when addresses change: %s", error)
            sock.close()
            return None
        self._loop.add_reader(sock.fileno(), self._readable)
        return sock

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            while self._socket.recv(_READ_BYTES):
                pass
        except OSError:  # nothing more; or more than it could hold, which is news as well
            pass
        if self._timer is None:
            self._timer = self._loop.call_later(SETTLE_S, self._look)

    def _look(self) -> None:
        self._timer = None if self._socket is not None else self._loop.call_later(LOOK_S, self._look)
        hosts = own_hosts()
        if sorted(hosts) != sorted(self.hosts):
            self.hosts = hosts
            self._changed(hosts)
