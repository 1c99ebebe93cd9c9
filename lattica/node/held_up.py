"""A driver is told when its tasks or actors wait for what actors hold: those keep it for as long as they live.

A queue behind tasks moves on and is nobody's news. One behind actors does not, and a program that waits in it seems to
hang for no reason.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lattica.codec import messages as m
from lattica.node.clients import DRIVER
from lattica.node.proxies import Proxy
from lattica.scheduler.resources import ResourceSet

if TYPE_CHECKING:
    from lattica.node.server import Node
    from lattica.scheduler.leases import Request

NAMED = 3  # classes of actors


class HeldUp:
    """Looks at the queue, from time to time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._told: set[int] = set()  # drivers

    def look(self, said_after_s: float) -> None:
        """Tell those who have waited for so long, and have not been told."""
        node = self._node
        actors = [
            (lease.request.name, lease.request.resources)
            for lease in node.book.leases.values()
            if lease.worker is not None and node.actor_desk.supervisor.actor_of(lease.worker) is not None
        ]
        for request in node.book.queued() if actors else ():
            if node.now() - request.arrived >= said_after_s and not request.within:
                self._tell(request, actors)

    def _tell(self, request: Request, actors: Iterable[tuple[str, ResourceSet]]) -> None:
        job = self._node.jobs.get(request.job)
        driver = self._node.clients.get(job.driver) if job is not None else None
        if driver is None or driver.kind != DRIVER or isinstance(driver.wire, Proxy) or driver.number in self._told:
            return
        if words := why(request.name, request.resources, self._node.resources.total, actors):
            self._told.add(driver.number)
            driver.send(m.LogLines("lattica", os.getpid(), 2, [words]))


def why(name: str, wanted: ResourceSet, total: ResourceSet, actors: Iterable[tuple[str, ResourceSet]]) -> str:
    """Which amount cannot be had before an actor ends, since actors hold so much of it; "" if there is none."""
    actors = list(actors)
    for what, amount in wanted.plain().items():
        has = [(whose, resources.plain().get(what, 0.0)) for whose, resources in actors]
        held, there = sum(amount for _, amount in has), total.get(what, 0.0)
        if amount > there - held:
            holders = Counter(whose or "an actor" for whose, amount in has if amount)
            most = ", ".join(f"{count} {whose}" for whose, count in holders.most_common(NAMED))
            return (
                f"{name or 'a task'} waits for {amount:g} {what}: actors hold {held:g} of the {there:g} of this "
                f"machine for as long as they live ({most}). End some, have them ask for less, or offer more"
            )
    return ""
