"""`Send` over links: datagrams, and sockets between processes of one machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lattica.testing.links import FOREVER, Ends, Link

if TYPE_CHECKING:
    from lattica.testing.world import World


@dataclass(frozen=True, slots=True)
class Send:
    """Effect: a message for another participant."""

    to: str
    message: object


@dataclass(frozen=True, slots=True)
class Closed:
    """Message from a participant that is no more, to all with whom it had a connection; the last one from it."""


class Messages:
    """What is under way, and how it gets there."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._arrives: dict[Ends, float] = {}  # socket links: when the last message sent so far is there
        self._held: dict[Ends, list[tuple[int | None, object]]] = {}  # what waits in a clogged direction
        world.perform_by(Send, self.send)

    def link(self, sender: str, receiver: str) -> Link:
        """The dials of this direction."""
        world = self._world
        return world.links.get((sender, receiver), world.link) if world.links else world.link

    def send(self, sender: str, effect: Send) -> None:
        """Carry it out: lose, double or transmit it."""
        world, receiver, message = self._world, effect.to, effect.message
        link, tally, random = self.link(sender, receiver), world.tally, world.rng.random
        tally["sent"] += 1
        if link.connection:
            self._transmit(sender, receiver, link, message)
            return
        cuts = world.obstacles.cut_since
        if (cuts and (sender, receiver) in cuts) or random() < link.loss:
            tally["lost"] += 1
            return
        copies = 2 if random() < link.duplicates else 1
        tally["duplicated"] += copies - 1
        for _ in range(copies):
            self._transmit(sender, receiver, link, message)

    def connect(self, one: str, other: str) -> None:
        """They have a socket: the end of one is told to the other, even if it is so already."""
        self._arrives.setdefault((one, other), 0.0)
        for dead, living in ((one, other), (other, one)):
            if not self._world.is_alive(dead):
                self._transmit(dead, living, self.link(dead, living), Closed())

    def crashed(self, name: str) -> None:
        """Its kernel closes its sockets."""
        for other in self._world.living:
            link = self.link(name, other)
            if link.connection and {(name, other), (other, name)} & self._arrives.keys():
                self._transmit(name, other, link, Closed())

    def release(self, ends: Ends) -> None:
        """This direction is not clogged any more."""
        for boot, message in self._held.pop(ends, ()):
            self._arrive(*ends, boot, message)

    def unclog(self, ends: Ends) -> None:
        """As `release`, if it was not clogged again for longer."""
        clogged_until = self._world.obstacles.clogged_until
        if clogged_until.get(ends, FOREVER) <= self._world.now:
            del clogged_until[ends]
            self.release(ends)
            self._world.connections.resume()

    def _transmit(self, sender: str, receiver: str, link: Link, message: object) -> None:
        world = self._world
        low, high = link.delay_s
        due = world.now + low + (high - low) * world.rng.random()
        boot: int | None = None  # datagrams find whoever listens when they arrive
        if link.connection:  # and a connection is to one process
            ends = sender, receiver
            due = self._arrives[ends] = max(due, self._arrives.get(ends, 0.0))
            boot = world.boot_of(receiver) if world.has(receiver) else 1
        elif link.late and world.rng.random() < link.late:
            due += world.rng.uniform(*link.late_s)
        world.at(due, self._arrive, sender, receiver, boot, message)

    def _arrive(self, sender: str, receiver: str, boot: int | None, message: object) -> None:
        world = self._world
        if world.obstacles.clogged_until and (sender, receiver) in world.obstacles.clogged_until:
            self._held.setdefault((sender, receiver), []).append((boot, message))
            return
        if boot is None:
            if not world.has(receiver) or not world.is_up(receiver):
                world.tally["lost"] += 1
                return
            boot = world.boot_of(receiver)
        elif not world.has(receiver):
            return
        world.deliver(receiver, boot, "receive", (sender, message))
