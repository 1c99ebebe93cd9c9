"""What workers print, on its way to their driver, as fast as that reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lattica.node.clients import Client, Job
from lattica.node.logs import LogCollector, LogFiles

if TYPE_CHECKING:
    from lattica.node.server import Node


class LogDesk:
    """Feeds the collector, and sends its lines to drivers."""

    def __init__(self, node: Node, folder: str) -> None:
        self._node = node
        self._files = LogFiles(folder)
        self.collector = LogCollector(self._files)

    def started(self, client: Client, job: Job) -> None:
        """A worker runs."""
        self.collector.started(client.number, client.pid, job.family if job.log_to_driver and not job.ended else None)

    def feed(self, client: int, stream: int, data: bytes) -> None:
        """Bytes that a worker printed."""
        for job in self.collector.feed(client, stream, data):
            self.send(job)

    def finish(self, client: int) -> str:
        """A worker has ended; the end of its stderr."""
        tail = self.collector.finish(client)
        for job in self._node.jobs.values():
            self.send(job.number)
        return tail

    def send(self, job: int) -> None:
        """Send the driver of this job what waits for it, while its connection takes it."""
        entry = self._node.jobs.get(job)
        driver = None if entry is None else self._node.clients.get(entry.driver)
        if driver is None:
            return
        wire = driver.wire
        wire.drained = lambda: self.send(job)
        while not wire.full and (lines := self.collector.take(job)) is not None:
            driver.send(lines)
            wire.flush()

    def close(self) -> None:
        self._files.close()
