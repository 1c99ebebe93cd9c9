"""Faults drawn from a seed: what breaks when, and for how long.

    faults = Faults(world, ["ann", "bob", "cid"], NETWORK | PROCESSES)
    faults.unleash(until=100)
    world.run(until=100)          # safety: the checkers watch
    faults.end()                  # heals, and starts the dead again
    world.run_until(...)          # liveness

A kind is a verb of `Faults` with a weight; to leave one out, leave it out of the dict. Kinds of DISKS break promises
that most protocols need (a peer that forgets its boot number lies), so they are asked for by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random

from lattica.testing.host import Disk
from lattica.testing.links import Ends
from lattica.testing.world import World

CONNECTIONS = {"sever": 6.0, "half_open": 2.0, "silence": 1.0, "swallow": 1.0, "clog_connection": 2.0}
"""Of one dialed connection."""
NETWORK = CONNECTIONS | {"clog": 1.0, "cut": 1.0, "cut_one_way": 1.0, "partition": 0.5, "worsen": 1.0}
PROCESSES = {"crash": 1.0, "lose_power": 0.5, "pause": 1.0, "suspend": 0.5}
CLOCKS = {"step_clock": 0.5, "drift": 0.5}
DISKS = {"lose_disk": 0.5, "restore_disk": 0.5}

EVERY_S = (0.1, 3.0)
LASTS_S = (0.05, 15.0)
"""Drawn so that short ones are as likely as long ones, by orders of magnitude."""
SNAPSHOTS_MAX = 4  # of each host, kept for `restore_disk`
OFFSET_MAX_S = 120.0
DRIFT_MAX = 0.001  # ten times what cheap quartz does
LOSS_MAX = 0.5
SLOWER_MAX = 20.0


class Faults:
    """Throws dice of its own, so that a world's delays do not change with the faults chosen."""

    def __init__(
        self,
        world: World,
        names: Sequence[str],
        kinds: Mapping[str, float] = NETWORK,
        *,
        every_s: tuple[float, float] = EVERY_S,
        lasts_s: tuple[float, float] = LASTS_S,
        down_max: int | None = None,
    ) -> None:
        """names: who may be hit. every_s: seconds from one fault to the next. down_max: how many may be dead, paused or
        suspended at once; all but one if not given."""
        self.world, self.names, self.every_s, self.lasts_s = world, list(names), every_s, lasts_s
        self.down_max = len(self.names) - 1 if down_max is None else down_max
        self._rng = Random(f"{world.seed} faults")
        self._kinds, self._weights = list(kinds), list(kinds.values())
        self._verbs: dict[str, Callable[[], None]] = {kind: getattr(self, kind) for kind in kinds}
        self._until = 0.0
        self._snapshots: dict[str, list[Disk]] = {name: [] for name in self.names}
        self._down: dict[str, int] = {}  # who was ended by us, and which process that was

    def unleash(self, until: float) -> None:
        """One fault after another, from now until then; each ends by itself."""
        self._until = until
        self._next()

    def end(self) -> None:
        """Heal the world and start again whom a fault has ended."""
        self._until = 0.0
        self.world.heal()
        for name in list(self._down):
            self._start(name)

    def _next(self) -> None:
        pause_s = self._rng.uniform(*self.every_s)
        if self.world.now + pause_s < self._until:
            self.world.after(pause_s, self._strike)

    def _strike(self) -> None:
        if self.world.now >= self._until:
            return
        kind = self._rng.choices(self._kinds, self._weights)[0]
        self.world.count("faults")
        self._verbs[kind]()
        self._next()

    # -- of one connection

    def sever(self) -> None:
        """A connection breaks, in the middle of what it carries."""
        for number in self._connection():
            self.world.connections.sever(number)

    def half_open(self) -> None:
        """One end of a connection is gone, the other hears so when it writes."""
        for number in self._connection():
            self.world.connections.half_open(number)

    def silence(self) -> None:
        """As `half_open`, and writing is not answered either."""
        for number in self._connection():
            self.world.connections.half_open(number, silent=True)

    def swallow(self) -> None:
        """A box in the middle forgets a connection."""
        for number in self._connection():
            self.world.connections.swallow(number)

    def clog_connection(self) -> None:
        """A connection carries nothing in one direction for a while."""
        for number in self._connection():
            self.world.connections.clog(number, self._lasting_s())

    # -- of the network

    def clog(self) -> None:
        """Nothing comes through in one direction for a while, then all."""
        self.world.clog(*self._pair(), self._lasting_s())

    def cut(self) -> None:
        """Two cannot hear each other for a while."""
        self._cut_for_a_while(both=True)

    def cut_one_way(self) -> None:
        """One cannot hear another for a while."""
        self._cut_for_a_while(both=False)

    def partition(self) -> None:
        """Two groups cannot hear each other for a while; sometimes only one of them."""
        names = self._rng.sample(self.names, len(self.names))
        middle = self._rng.randint(1, max(1, len(names) - 1))
        groups, both = (names[:middle], names[middle:]), self._rng.random() < 0.7
        self.world.partition(*groups, both=both)

        def mend() -> None:
            for one in groups[0]:
                for other in groups[1]:
                    self.world.mend(one, other, both=both)

        self._later(mend)

    def worsen(self) -> None:
        """One direction loses much and takes long, for a while."""
        ends, links, usual = self._pair(), self.world.links, self.world.link
        low, high = usual.delay_s
        slower = self._rng.uniform(1, SLOWER_MAX)
        worse = replace(
            usual, delay_s=(low, high * slower), loss=max(usual.loss, self._rng.uniform(0, LOSS_MAX)), late=0.1
        )
        links[ends] = worse

        def better() -> None:
            if links.get(ends) is worse:
                del links[ends]

        self._later(better)

    # -- of processes

    def crash(self) -> None:
        """A process is killed, and starts again after a while."""
        for name in self._victim():
            self._end(name, power=False)
            self._later(self._start, name)

    def lose_power(self) -> None:
        """A machine goes dark, and is back after a while."""
        for name in self._victim():
            self._end(name, power=True)
            self._later(self._start, name)

    def pause(self) -> None:
        """A process is stopped for a while."""
        for name in self._victim():
            self.world.pause(name)
            self._later(self.world.resume, name)

    def suspend(self) -> None:
        """A lid is closed for a while."""
        for name in self._victim():
            self.world.suspend(name)
            self._later(self.world.wake, name)

    # -- of clocks and disks

    def step_clock(self) -> None:
        """Somebody's wall clock is set, wrongly."""
        name = self._rng.choice(self.names)
        self.world.set_clock(name, offset_s=self._rng.uniform(-OFFSET_MAX_S, OFFSET_MAX_S))

    def drift(self) -> None:
        """Somebody's clocks run at another speed from now on."""
        self.world.set_clock(self._rng.choice(self.names), drift=self._rng.uniform(-DRIFT_MAX, DRIFT_MAX))

    def lose_disk(self) -> None:
        """A process is killed, and starts again with an empty disk."""
        for name in self._victim():
            self._end(name, power=True)
            self._later(self._start, name, Disk())

    def restore_disk(self) -> None:
        """A process is killed, and starts again with an older state of its disk; or a snapshot is taken for that."""
        for name in self._victim():
            kept = self._snapshots[name]
            if not kept or self._rng.random() < 0.5:
                kept.append(self.world.snapshot(name))
                del kept[:-SNAPSHOTS_MAX]
            else:
                self._end(name, power=False)
                self._later(self._start, name, self._rng.choice(kept))

    # -- dice

    def _later(self, do: Callable[..., object], *args: object) -> None:
        self.world.after(self._lasting_s(), do, *args)

    def _lasting_s(self) -> float:
        low, high = self.lasts_s
        return low * float((high / low) ** self._rng.random())

    def _pair(self) -> Ends:
        sender, receiver = self._rng.sample(self.names, 2)
        return sender, receiver

    def _connection(self) -> list[int]:
        """The number of one, if there is one."""
        numbers = [number for name in self.names for number in self.world.connections.of(name)]
        return [self._rng.choice(numbers)] if numbers else []

    def _victim(self) -> list[str]:
        """Somebody who is up, if enough of them are."""
        world = self.world
        up = [name for name in self.names if world.is_alive(name) and world.is_up(name) and not world.is_paused(name)]
        return [self._rng.choice(up)] if len(self.names) - len(up) < self.down_max else []

    def _cut_for_a_while(self, *, both: bool) -> None:
        sender, receiver = self._pair()
        self.world.cut(sender, receiver, both=both)
        self._later(lambda: self.world.mend(sender, receiver, both=both))

    def _end(self, name: str, *, power: bool) -> None:
        self.world.crash(name, power=power)
        self._down[name] = self.world.boot_of(name)

    def _start(self, name: str, disk: Disk | None = None) -> None:
        boot = self._down.get(name)
        if boot is not None and boot == self.world.boot_of(name) and not self.world.is_alive(name):
            self.world.restart(name, disk=disk)
        self._down.pop(name, None)
