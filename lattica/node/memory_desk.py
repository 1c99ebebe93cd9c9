"""Watches the machine's memory, and ends the worker that is cheapest to lose before the kernel ends another."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lattica.node.clients import Client
from lattica.node.loop import Timer
from lattica.node.memory_monitor import Candidate, MemoryMonitor, Reading, Work
from lattica.node.memory_readings import MemoryReader, private_bytes
from lattica.node.pool import Use

if TYPE_CHECKING:
    from lattica.node.server import Node

log = logging.getLogger(__name__)


class MemoryDesk:
    """Carries out what the monitor decides. It sleeps while there are no workers."""

    def __init__(self, node: Node, reader: MemoryReader, threshold: float) -> None:
        self._node, self._reader = node, reader
        self.monitor = MemoryMonitor(threshold)
        self._timer: Timer | None = None

    def reading(self) -> Reading:
        """How much of the machine's memory, or of what this container may use, is in use now."""
        return self._reader.read()

    def watch(self) -> None:
        """There is a worker."""
        if self._timer is None and not self._node.closing:
            self._timer = self._node.loop.call_later(self.monitor.interval_s(), self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if not self._node.pool.workers:
            return
        if self.monitor.over(self._reader.read(), self._node.now()):
            kill = self.monitor.kill(self._candidates(), self._node.now())
            if kill is not None:
                log.warning("worker %d is ended: %s", kill.client, kill.reason)
                self._node.end_worker(kill.client, kill.reason, out_of_memory=True)
        self.watch()

    def _candidates(self) -> list[Candidate]:
        found = []
        for worker in self._node.pool.workers.values():
            client = self._node.clients.get(worker.client)
            if client is not None and client.pid:
                name = client.name or f"worker {worker.client}"
                size = private_bytes(client.pid)
                found.append(
                    Candidate(worker.client, client.pid, name, self._work(client, worker.use), worker.since, size)
                )
        return found

    def _work(self, client: Client, use: Use) -> Work:
        if use is Use.ACTOR:
            return Work.ACTOR
        lease = self._node.book.lease_of(client.number)
        if lease is None:
            return Work.IDLE
        return Work.RETRYABLE_TASK if lease.request.retryable else Work.TASK
