"""Bundles of placement groups that this node keeps, for owners here and elsewhere.

    Reserve, Commit, Abort of an owner ──► reservations.Reservations ──Kept──► ResourcePool.grow
                                                                     ──Ended──► shrink; workers end

When a bundle ends its workers are killed, and what waited for it goes back to who asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from time import time
from typing import TYPE_CHECKING

from lattica.codec import far
from lattica.ids import short
from lattica.mesh.identity import PeerId
from lattica.scheduler import groups, reservations
from lattica.scheduler.given import decode_within
from lattica.scheduler.resources import ResourceSet, in_bundle

if TYPE_CHECKING:
    from lattica.node.far_neighbours import Neighbour
    from lattica.node.server import Node

PRESS_S = 2 * groups.BUSY_PAUSE_S  # for which room is made; owners ask again within 1.5 of one
NOTHING = ResourceSet({})


class BundleDesk:
    """Bundles of placement groups that are kept here.

    answer: takes what an owner is to be told. came_back: of a client's request that waited in a bundle, whether it is
    taken back.
    """

    def __init__(
        self,
        node: Node,
        answer: Callable[[PeerId, reservations.ToNode | reservations.ToOwner], None],
        came_back: Callable[[int, int], bool],
    ) -> None:
        self._node, self._answer, self._came_back = node, answer, came_back
        first_token = int(time()) << 32
        self.kept = reservations.Reservations(node.resources, first_token)
        self._numbers = count(1)  # of bundles that are or were kept here
        self._here: dict[tuple[PeerId, bytes, int], int] = {}
        self._wanted: dict[tuple[PeerId, bytes, int], ResourceSet] = {}  # by attempts that are only reserved

    def number(self, owner: PeerId, group: bytes, index: int) -> int | None:
        """By which its resources are called in this node's pool; None: it is not kept here."""
        return self._here.get((owner, group, index))

    def asked(self, owner: PeerId, message: reservations.ToNode) -> None:
        """An owner wants something kept, or let go. What does not fit is asked for again: room is made meanwhile."""
        now, key = self._node.now(), (owner, message.group)
        effects = self.kept.receive(owner, message, now)
        self._node.book.relent(key)
        wanted = self._wanted.pop((*key, message.attempt), NOTHING)  # of one that was not committed
        if isinstance(message, reservations.Reserve):
            wanted = sum((resources for _, resources in message.bundles), NOTHING)
            said = [effect.message for effect in effects if isinstance(effect, reservations.Send)]
            if not any(isinstance(one, reservations.Denied) for one in said):
                self._wanted[(*key, message.attempt)] = wanted
                wanted = NOTHING
        if wanted and not isinstance(message, reservations.Commit):
            self._node.lease_desk.perform(self._node.book.press(key, wanted, now + PRESS_S, now))
        self._keep(effects)

    def _keep(self, effects: Iterable[reservations.Effect]) -> None:
        for effect in effects:
            match effect:
                case reservations.Send(to, message):
                    self._answer(to, message)
                case reservations.Kept(owner, group, bundles):
                    for index, allocation in bundles:
                        number = self._here[owner, group, index] = next(self._numbers)
                        self._node.resources.grow(number, allocation)
                case reservations.Ended(owner, group, bundles):
                    for index in bundles:
                        self._let_go(owner, group, index)
        self._node.lease_desk.perform(self._node.book.tick(self._node.now()))

    def _let_go(self, owner: PeerId, group: bytes, index: int) -> None:
        """A bundle has ended: so does what runs in it; what waits for it goes elsewhere."""
        node, number = self._node, self._here.pop((owner, group, index), None)
        if number is None:
            return
        place = in_bundle(number, "")
        node.resources.shrink(number)
        how = f"bundle {index} of placement group {short(group)} ended"
        for request in node.book.waiting_for(place):
            node.lease_desk.perform(node.book.cancel(request.holder, request.number, node.now()))
            if not self._came_back(request.holder, request.number) and node.far is not None:
                node.far.hosting.not_here(request.holder, request.number, how)
        for lease in node.book.leases_of(place):
            if lease.worker is not None:
                node.end_worker(lease.worker, how)

    def lend(self, neighbour: Neighbour, message: far.AskLease, job: int, resources: ResourceSet) -> str:
        """Another node asks for a worker in a bundle that is kept here: it is queued; or why it is not."""
        within = decode_within(message.within)
        number = self.number(PeerId(within.owner), within.group, within.bundle)
        if number is None:
            return f"bundle {within.bundle} of placement group {short(within.group)} is not kept here"
        wanted = resources.in_bundle(number)
        if lacking := self._node.resources.missing(wanted):
            return f"bundle {within.bundle} of placement group {short(within.group)} does not have {lacking}"
        neighbour.questions[message.number] = message.actor
        self._node.lease_desk.perform(
            self._node.book.request(
                neighbour.client.number, message.number, job, wanted, self._node.now(),
                retryable=message.retryable, name=message.name, within=message.within, lasting=message.actor,
            )
        )  # fmt: skip
        return ""

    def owner_gone(self, owner: PeerId, now: float) -> None:
        """It is dead, or has left: nothing is kept for it."""
        self._keep(self.kept.owner_gone(owner, now))

    def next_deadline(self) -> float | None:
        """When to call `tick`."""
        return self.kept.next_deadline()

    def tick(self, now: float) -> None:
        """Let go what was reserved and never wanted."""
        self._keep(self.kept.tick(now))
