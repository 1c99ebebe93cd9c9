"""All hosts of a cluster at work at once, at most so many; one that fails says why, and the others go on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from lattica.errors import LatticaError
from lattica.launch.cluster import Host
from lattica.launch.progress import BAD, BUSY, GOOD, Progress

T = TypeVar("T")
PARALLEL = 16
"""Hosts at work at once by default. More: a large cluster is up sooner; more connections that a bastion must carry."""


def room_for(provider: str, parallel: int) -> int:
    """How many at once: nodes of one machine share its cores, and a node that takes 10 s to start is given up."""
    return parallel if provider != "local" else min(parallel, max(4, os.cpu_count() or 1))


class Crew:
    """Hosts that have failed are remembered, and are not asked for more."""

    def __init__(self, progress: Progress, parallel: int = PARALLEL) -> None:
        self.progress = progress
        self.failed: dict[str, LatticaError] = {}
        self._room = asyncio.Semaphore(parallel)

    def __repr__(self) -> str:
        return f"<Crew: {len(self.failed)} failed>"

    async def each(self, hosts: Iterable[Host], doing: str, work: Callable[[Host], Awaitable[T]]) -> dict[str, T]:
        """Host -> what `work` returned, of those where it came to an end. doing: what people see meanwhile."""
        done: dict[str, T] = {}

        async def one(host: Host) -> None:
            async with self._room:
                self.busy(host, doing)
                try:
                    done[host.name] = await work(host)
                except LatticaError as error:
                    self.fail(host.name, error)

        chosen = [host for host in hosts if host.name not in self.failed]
        async with asyncio.TaskGroup() as group:
            for host in chosen:
                group.create_task(one(host))
        return {host.name: done[host.name] for host in chosen if host.name in done}

    def busy(self, host: Host, doing: str) -> None:
        self.progress.tell(host.name, BUSY, doing)

    def good(self, host: str, text: str) -> None:
        self.progress.tell(host, GOOD, text)

    def fail(self, host: str, error: LatticaError) -> None:
        """This host is out, and why."""
        self.failed[host] = error
        self.progress.tell(host, BAD, error.message.splitlines()[0])
