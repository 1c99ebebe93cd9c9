"""Numbered sockets for the cores of `mesh/nat`: what `OpenSocket`, `CloseSocket` and `SendOver` ask for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import count

from lattica.mesh.nat.routes import MAIN, Direct, Endpoint, Route, SendOver
from lattica.mesh.transport.path_socket import PathSocket

log = logging.getLogger(__name__)
OTHER = 1
"""The number of the second socket, from which we answer where somebody asks whether strangers get through."""
FIRST_FRESH = 2
FRESH_MAX = 600
"""Open at once: two birthdays of 256, and room. A process may have 1,024 files open where nobody raised that."""


class Sockets:
    """See the module. numbers: of fresh ones, for whoever asks for some."""

    def __init__(self, socket: PathSocket) -> None:
        self.numbers: Iterator[int] = count(FIRST_FRESH)
        self._socket = socket
        self._open: set[int] = set()
        self._complained = False  # rounds ask for hundreds

    def __repr__(self) -> str:
        return f"<Sockets: {len(self._open)} beside the main ones>"

    def __len__(self) -> int:
        return len(self._open)

    def send(self, effect: SendOver) -> None:
        self._socket.send(effect.route, (effect.data,), effect.ttl)

    def open(self, number: int) -> Endpoint | None:
        """Open a fresh socket; where it is bound. None: it cannot be had."""
        if len(self._open) >= FRESH_MAX:
            self._complain(f"{FRESH_MAX} of them are open")
            return None
        try:
            where = self._socket.open(number)
        except OSError as error:
            self._complain(str(error))
            return None
        self._open.add(number)
        self._complained = False
        return where

    def _complain(self, why: str) -> None:
        if not self._complained:
            log.warning("no UDP socket for punching is to be had: %s", why)
        self._complained = True

    def close(self, number: int) -> None:
        """A fresh socket is of no use any more."""
        if number in self._open:
            self._open.discard(number)
            self._socket.close_socket(number)

    def close_all(self) -> None:
        for number in list(self._open):
            self.close(number)


def fresh_of(route: Route) -> int | None:
    """The number of the fresh socket on which this route lies; None: it lies on none."""
    is_fresh = isinstance(route, Direct) and route.socket not in (MAIN, OTHER) and route.socket >= FIRST_FRESH
    return route.socket if isinstance(route, Direct) and is_fresh else None
