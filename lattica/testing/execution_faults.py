"""What breaks in the world `execution`, and when: machines, links, processes, disks; and nodes that are told to go.

faults = Faults(play, names, drivers)
faults.break_things(until)      faults.drain_some(until)       faults.heal()
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from lattica.codec import messages as m
from lattica.node.spill_desk import CENSUS, CENSUS_S, SpillDesk
from lattica.objectstore.spill_files import DiskFiles, SpillFolder

if TYPE_CHECKING:
    from lattica.testing.execution_nodes import SimNode
    from lattica.testing.scenarios.execution import Play

STORM_S = 30.0  # for which the numbers below are meant
LIVING_MIN = 5  # machines that are up at any time
GRACE_S = 30.0  # of a drain; tasks of this world end within seconds
DRAINED_S = 120.0  # from the word to the end: the grace, what actors and objects need to move, and a stall
LOOK_S = 0.5
SPILLING = 0.3  # of the plays in which things break have full stores
READ_S = 2.0  # for what is on a disk to be read, before that breaks


class Faults:
    """See the module. drivers: on these machines somebody always works; they are not drained."""

    def __init__(self, play: Play, names: Sequence[str], drivers: Sequence[str]) -> None:
        self.play, self.universe, self.land = play, play.universe, play.land
        self.names, self.drivers = names, drivers

    def break_things(self, until: float) -> None:
        """Anything may happen until then."""
        rng, universe = self.universe.rng, self.universe
        faults: list[tuple[Callable[[], None], int]] = [
            (self._crash, 2), (self._sever, 5), (self._cut, 3), (self._stall, 2), (self._kill_worker, 6),
            (self._slow, 2), (self._kill_driver, 1), (self._drain, 1),
        ]  # fmt: skip
        self.play.calm = False
        scale = max(1, round((until - universe.now) / STORM_S)) * rng.choice((1, 1, 1, 3))  # a storm, now and then
        for fault, most in faults:
            for _ in range(rng.randint(0, most * scale)):
                universe.at(rng.uniform(universe.now, until), None, fault)
        dice = Random(f"{universe.seed} disks")  # of its own: the plays without this go on as they did
        for _ in range(dice.randint(3, 8) * scale if dice.random() < SPILLING else 0):
            universe.at(dice.uniform(universe.now, until), None, self._fill, dice)

    def drain_some(self, until: float) -> None:
        """Nothing breaks; nodes go on purpose, and come again."""
        rng, universe = self.universe.rng, self.universe
        for _ in range(rng.randint(1, 3 * max(1, round((until - universe.now) / STORM_S)))):
            universe.at(rng.uniform(universe.now, until), None, self._drain)

    def _crash(self) -> None:
        name = self.universe.rng.choice(self.names)
        if name in self.land.living and len(self.land.living) > LIVING_MIN:
            self.universe.count("crashes")
            self.land.crash(name, power=self.universe.rng.random() < 0.4)
            self.universe.after(self.universe.rng.choice((1.0, 6.0, 20.0)), self._restart, name)

    def _restart(self, name: str) -> None:
        if name not in self.land.living:
            self.land.start(name)
            if name in self.drivers:
                self.play.drive(name)

    def _two(self) -> tuple[str, str]:
        one, other = self.universe.rng.sample(self.names, 2)
        return one, other

    def _sever(self) -> None:
        if self.land.wires.sever(*self._two()):
            self.universe.count("severed")

    def _cut(self) -> None:
        rng, wires = self.universe.rng, self.land.wires
        left = rng.sample(self.names, rng.choice((1, 1, 2, 3)))
        both = rng.random() < 0.7
        cut = [(one, other) for one in left for other in self.names if other not in left]
        if rng.random() < 0.4:
            cut = cut[:1]  # one pair
        if both:
            cut += [(other, one) for one, other in cut]
        elif rng.random() < 0.5:
            cut = [(other, one) for one, other in cut]
        self.universe.count("cuts")
        self.universe.note(",".join(left), f"is cut off: {cut}")
        wires.cut.update(dict.fromkeys(cut))
        self.universe.after(rng.choice((0.5, 2.0, 5.0, 12.0, 25.0)), self._mend, cut)

    def _mend(self, cut: list[tuple[str, str]]) -> None:
        for ends in cut:
            self.land.wires.cut.pop(ends, None)
        self.land.wires.mended()

    def _slow(self) -> None:
        ends = self._two()
        self.land.wires.slow[ends] = None
        self.universe.after(10.0, self.land.wires.slow.pop, ends, None)

    def _stall(self) -> None:
        rng = self.universe.rng
        name = rng.choice(self.names)
        if name in self.land.living:
            self.universe.count("stalls")
            self.land.units[name].stall(rng.choice((0.3, 2.0, 5.0, 5.0, 15.0)))

    def _kill_worker(self) -> None:
        workers = [
            unit
            for name in self.land.living
            for unit in self.land.units[name].processes
            if ".w" in unit.name and unit.alive and not unit.stalled
        ]
        if workers:
            self.universe.count("killed")
            unit = self.universe.rng.choice(workers)
            self.universe.note(unit.name, "is killed")
            unit.end()

    def _kill_driver(self) -> None:
        name = self.universe.rng.choice(self.drivers)
        script = self.play.scripts.get(name)
        if script is not None and script.driver.unit.alive and not script.driver.unit.stalled:
            self.universe.count("killed drivers")
            self.universe.note(script.driver.unit.name, "is killed")
            script.driver.unit.end()
            self.play.drive(name)

    # -- stores that are full, and disks that break

    def _fill(self, dice: Random) -> None:
        """A store is full: what is in it goes to disk."""
        name = dice.choice(self.names)
        node = self.land.node(name)
        if node is None or node.far is None or node.closing or self.land.units[name].stalled:
            return
        self.universe.count("full stores")
        self.universe.note(name, "has a full store")
        node.unit.loop.do(self._census, node)
        self.universe.at(self.universe.now + CENSUS_S, node.unit, node.unit.loop.do, self._spill, node, dice)

    def _census(self, node: SimNode) -> None:
        if node.store.spill is None:
            folder = os.path.join(self.universe.folder, node.unit.name, f"spilled {self.land.boots[node.unit.name]}")
            os.makedirs(folder)
            node.store.spill = SpillDesk(node, folder, 0)
            node.store.spill._folder = SpillFolder(folder, DiskFiles(), 0)
        for number, client in list(node.clients.items()):
            if node.store.spill._is_process(number):
                client.send(m.Evict(CENSUS, [], True))

    def _spill(self, node: SimNode, dice: Random) -> None:
        spill, spans = node.store.spill, node.store.spans
        assert spill is not None
        taken = [piece for piece in spans.pieces() if piece[2] is not None]
        size = sum(stop - start for start, stop, _ in taken)
        spill._perform(spill._core.make_room(1, dice.randrange(size + 1), taken, -1, node.now()))
        if dice.random() < 0.5:
            self.universe.at(self.universe.now + dice.uniform(0.0, READ_S), None, self._break_disk, node)

    def _break_disk(self, node: SimNode) -> None:
        """Whatever is on it is gone."""
        files = list(Path(self.universe.folder, node.unit.name).glob("spilled */*"))
        self.universe.count("lost files", len(files))
        for path in files:
            path.write_bytes(b"")

    def heal(self) -> None:
        """The last fault is over."""
        self.play.breaking = False
        self.land.wires.cut.clear()
        self.land.wires.slow.clear()
        self.land.wires.mended()
        for name in self.names:
            self._restart(name)

    # -- nodes that go

    def _drain(self) -> None:
        """One is told to go."""
        going = [name for name in self.land.living if name not in self.drivers and not self.land.units[name].stalled]
        if not going or len(self.land.living) <= LIVING_MIN:
            return
        name = self.universe.rng.choice(going)
        node = self.land.node(name)
        if node is None or node.drain is None or node.drain.draining or node.closing:
            return
        self.universe.count("drains")
        self.universe.note(name, "is told to go")
        self.play.drained = True
        node.unit.loop.do(node.drain.begin, GRACE_S, "the world wants it")
        self.universe.after(LOOK_S, self._is_gone, name, self.land.boots[name], self.universe.now + DRAINED_S)

    def _is_gone(self, name: str, boot: int, limit: float) -> None:
        """It goes in time, and comes again."""
        if self.land.boots[name] != boot:
            return  # it has crashed and is back
        if name in self.land.living:
            self.play.hold(self.universe.now < limit, f"{name} was told to go {DRAINED_S:g} s ago, and is still here")
            self.universe.after(LOOK_S, self._is_gone, name, boot, limit)
        else:
            self.universe.after(self.universe.rng.choice((1.0, 6.0)), self._restart, name)
