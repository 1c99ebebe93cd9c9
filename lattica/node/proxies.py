"""Clients on other machines: the node's desks tell them what they tell anybody, and it goes out by a link.

node     another machine's node, which holds what its processes hold
away     a worker of it that processes of ours call
guest    a process of it that calls a worker of ours
driver   of a job whose workers run here
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

from lattica.node.clients import Client
from lattica.node.wires import Wire


class Proxy:
    """Stands where a local client has its `Wire`."""

    full = False
    drained: Callable[[], None] | None = None
    last_word: None = None

    def __init__(self, name: str, hear: Callable[[Any], None]) -> None:
        """hear: is given what the client is told."""
        self.name, self._hear = name, hear
        self._over = False

    def __repr__(self) -> str:
        return f"<Proxy {self.name}>"

    def send(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Tell it. No descriptor goes to another machine."""
        for fd in fds:
            os.close(fd)
        if not self._over:
            self._hear(message)

    def flush(self) -> None:
        """What is told is on its way already."""

    def close(self) -> None:
        """It is told nothing more."""
        self._over = True

    end = close

    def close_for(self, reason: str) -> None:
        """It cannot be dropped for its manners: its node answers for them."""


def proxy(number: int, kind: str, job: int, since: float, name: str, hear: Callable[[Any], None]) -> Client:
    """A client of another machine."""
    return Client(number, kind, job, cast(Wire, Proxy(name, hear)), since, name=name)
