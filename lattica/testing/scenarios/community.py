"""Twelve peers keep one table and one list of members through partitions, crashes, lost disks, copies and a liar.

On the way: what is forged, replayed or written without its role is merged by nobody, and nobody but the liar is
quarantined. When everything is healed: within five seconds all tables are equal byte by byte, all honest peers are
alive for all, the liar is hidden, and the two things that it wrote under one number stand as evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lattica.mesh.community import Rows
from lattica.mesh.identity import PeerId
from lattica.mesh.membership import State
from lattica.mesh.table.kinds import ACTOR, EVIDENCE, NAME, SERVICE, SETTING
from lattica.mesh.table.rows import BOOT_BITS, Content, Row, write_row
from lattica.testing.community import Resident, Town
from lattica.testing.host import EPOCH_S, Disk
from lattica.testing.links import Link
from lattica.testing.world import World

NAMES = tuple(f"p{number}" for number in range(12))
LIAR = NAMES[-1]
BUSY_S = 60.0
HEAL_S = 5.0
WORDS = ("red", "green", "blue")


def play(seed: int, long: bool = False) -> World:
    """Sixty busy seconds, ten times as many if `long`; then all are healed, and must agree within HEAL_S."""
    world = World(seed, link=Link(delay_s=(0.02, 0.2), loss=0.1, duplicates=0.02))
    town = Town(NAMES, admins=NAMES[:2])
    rows = town.founding_rows(NAMES, EPOCH_S)
    for name in NAMES:
        world.add_host(
            name,
            lambda host: Resident(host, town, rows=rows),
            offset_s=world.rng.uniform(-20, 20),
            drift=world.rng.uniform(-1e-4, 1e-4),
            uptime_s=world.rng.uniform(0, 1e6),
        )
    mischief = Mischief(world, town, rows)
    busy_s = BUSY_S * (10 if long else 1)
    lies = mischief.plan(busy_s)
    world.run(until=busy_s)

    world.obstacles.clear()
    for name in NAMES:
        world.resume(name)
        mischief.restart(name, 1.0)
    world.run(until=world.now + 1.0)  # those that begin again have said so
    world.heal()
    honest = [name for name in NAMES if name != LIAR or not lies]
    _settle(world, town, honest)
    for name in honest:
        _check(world, town, name, lies=lies)
    world.tally["rows"] = len(world.core(NAMES[0]).community.replica)
    return world


@dataclass(slots=True)
class Mischief:
    """Writers, faults and forgers. Its dice are the world's."""

    world: World
    town: Town
    rows: Sequence[Row]  # of the founding, replayed now and then
    snapshots: dict[str, Disk] = field(default_factory=dict)

    def plan(self, busy_s: float) -> bool:
        """What will happen in the next `busy_s`; whether the liar lies."""
        world, rng = self.world, self.world.rng
        for _ in range(int(busy_s)):
            world.after(rng.uniform(0, busy_s), self.write)
        for _ in range(rng.randint(0, 3) * int(busy_s / BUSY_S)):
            for fault in (self.partition, self.stall, self.snapshot, self.forge, self.replay):
                world.after(rng.uniform(0, busy_s), fault)
            world.after(rng.uniform(0, busy_s), self.crash, rng.choice(NAMES))
        if rng.random() < 0.5:
            world.after(rng.uniform(5, busy_s - 10), self.copy)
        lies = rng.random() < 0.5
        if lies:
            world.after(rng.uniform(5, busy_s - 10), _lie, world, self.town)
        return lies

    def living(self) -> list[str]:
        """Those that run, and are not stalled."""
        return [name for name in NAMES if self.world.is_alive(name) and not self.world.is_paused(name)]

    def write(self) -> None:
        """Somebody writes a row of its own, or one that everybody may."""
        rng = self.world.rng
        name = rng.choice(self.living() or [NAMES[0]])
        if not self.world.is_alive(name):
            return
        kind = rng.choice((SERVICE, SERVICE, NAME, ACTOR))
        word = rng.choice(WORDS).encode()
        key = bytes(self.town.peer(name)) + word if kind is SERVICE else word
        self.world.tell(name, "try_to_write", kind, key, rng.randbytes(8), rng.random() < 0.2)

    def crash(self, name: str) -> None:
        """It comes back within 25 s."""
        world, rng = self.world, self.world.rng
        if world.is_alive(name):
            world.crash(name, power=rng.random() < 0.5)
            world.after(rng.uniform(1, 25), self.restart, name, rng.random())

    def restart(self, name: str, how: float) -> None:
        """how < 0.2: without its disk; < 0.4: with an old copy of it, if there is one; else as it was."""
        world = self.world
        if world.is_alive(name):
            return
        if how < 0.2:
            world.restart(name, disk=Disk())  # it was lost; its key is in the world's hands
        elif how < 0.4 and name in self.snapshots:
            world.restart(name, disk=self.snapshots[name])
        else:
            world.restart(name)
        if how < 0.4:  # what it knew of others is gone too: it comes back by a ticket
            others = [other for other in self.living() if other != name]
            if others:
                world.tell(name, "meet", world.rng.choice(others))

    def snapshot(self) -> None:
        """Keep a disk as it is now, for a later restart."""
        name = self.world.rng.choice(NAMES[:-1])
        self.snapshots[name] = self.world.snapshot(name)

    def partition(self) -> None:
        """For up to 30 s, in one direction or both."""
        world, rng = self.world, self.world.rng
        size = rng.choice((6, 6, 1, 1, 3))
        left = rng.sample(NAMES, size)
        right = [name for name in NAMES if name not in left]
        groups = (left, right) if rng.random() < 0.5 else (right, left)
        world.partition(*groups, both=rng.random() < 0.7)
        world.after(rng.uniform(5, 30), world.obstacles.clear)

    def stall(self) -> None:
        """One stands still for 5 s."""
        name = self.world.rng.choice(NAMES)
        if self.world.is_alive(name) and not self.world.is_paused(name):
            self.world.pause(name)
            self.world.after(5.0, self.world.resume, name)

    def copy(self) -> None:
        """A second process with the same key and disk, for some seconds."""
        world, rng = self.world, self.world.rng
        name = rng.choice(NAMES[:-1])
        twin = f"{name}#{len(world.events)}"
        if world.is_alive(name) and not world.has(twin):
            world.clone(name, twin)
            world.after(rng.uniform(1, 8), world.crash, twin)

    def forge(self) -> None:
        """The liar says rows that nobody may merge."""
        rng = self.world.rng
        for row in _forged(self.town, rng.choice(NAMES[:-1]), self.world.now):
            target = rng.choice(self.living() or [NAMES[0]])
            if self.world.is_alive(target):
                self.world.tell(target, "receive", LIAR, Rows((row,), True))

    def replay(self) -> None:
        """The liar says old rows again."""
        rng = self.world.rng
        target = rng.choice(self.living() or [NAMES[0]])
        if self.world.is_alive(target):
            self.world.tell(target, "receive", LIAR, Rows(tuple(rng.sample(self.rows, 4)), True))


def _settle(world: World, town: Town, honest: list[str]) -> None:
    """Wait until all tables are equal and all honest peers are alive for all of them."""

    def all_live() -> bool:
        return all(
            world.core(one).community.membership.state(town.peer(other)) is State.ALIVE
            for one in honest
            for other in honest
        )

    world.run_until(lambda: _are_equal(world), within_s=HEAL_S, missing=lambda: _difference(world))
    world.run_until(all_live, within_s=30, missing=lambda: _views(world, town, honest))
    world.run_until(lambda: _are_equal(world), within_s=HEAL_S, missing=lambda: _difference(world))


def _check(world: World, town: Town, name: str, *, lies: bool) -> None:
    """An honest peer has merged nothing forged, and distrusts the liar, with evidence, and nobody else."""
    community = world.core(name).community
    replica = community.replica
    assert not any(b"forged" in row.body for row in replica.all()), f"{name} has merged a forged row"
    distrusted = {other for other in NAMES if replica.distrusts(town.peer(other))}
    assert distrusted == ({LIAR} if lies else set()), f"{name} distrusts {distrusted}"
    assert not lies or any(row.writer == town.peer(LIAR) for row in replica.rows(EVIDENCE)), f"{name}: no evidence"
    assert community.membership.state(town.peer(name)) is State.ALIVE


def _are_equal(world: World) -> bool:
    return len({world.core(name).community.replica.root() for name in NAMES}) == 1


def _difference(world: World) -> str:
    tables = {name: {row.place: row for row in world.core(name).community.replica.all()} for name in NAMES}
    places = {place for table in tables.values() for place in table}
    for place in sorted(places):
        found = {name: table.get(place) for name, table in tables.items()}
        if len({row.hash if row else b"" for row in found.values()}) > 1:
            return f"not all hold the same: {found}"
    return "all tables are equal"


def _views(world: World, town: Town, names: list[str]) -> str:
    found = [
        f"{other} is {state} for {one}"
        for one in names
        for other in names
        if (state := world.core(one).community.membership.state(town.peer(other))) is not State.ALIVE
    ]
    return "; ".join(found[:8])


def _forged(town: Town, victim: str, now: float) -> Iterator[Row]:
    """Rows that nobody may merge."""
    liar, peer = town.keys[LIAR], town.peer(victim)
    unix_s = EPOCH_S + now

    def content(kind: int, key: bytes, writer: PeerId, expires: float) -> Content:
        epoch = 1 if kind in (SETTING.number, NAME.number) else 0
        stamp = int(unix_s * 1000) << 16
        return Content(kind, key, writer, (1 << 60), 1, stamp, int(expires), False, b"forged", epoch)

    soon = unix_s + 3600
    yield write_row(content(SERVICE.number, bytes(peer) + b"x", peer, soon), liar.sign, town.mesh)  # another's name
    yield write_row(content(SETTING.number, b"rule", liar.peer, soon), liar.sign, town.mesh)  # without the role
    yield write_row(content(SERVICE.number, bytes(liar.peer) + b"y", liar.peer, soon), liar.sign, b"another mesh")
    yield write_row(
        content(SERVICE.number, bytes(liar.peer) + b"z", liar.peer, unix_s + 1e8), liar.sign, town.mesh
    )  # for ever
    ahead = content(NAME.number, b"ahead", liar.peer, soon)
    yield write_row(ahead, town.keys[victim].sign, town.mesh)


def _lie(world: World, town: Town) -> None:
    """Two things under one number, to two different peers."""
    key = town.keys[LIAR]
    unix_s = EPOCH_S + world.now
    boot = int(unix_s) << BOOT_BITS
    listeners = [name for name in NAMES[:-1] if world.is_alive(name) and not world.is_paused(name)]
    while len(listeners) < 2:  # nobody to lie to: these will hear of it when they are back
        world.after(1.0, _lie, world, town)
        return
    for number, name in enumerate(world.rng.sample(listeners, 2)):
        content = Content(
            SERVICE.number, bytes(key.peer) + b"lie", key.peer, boot, 1 << 40, int(unix_s * 1000) << 16,
            int(unix_s + 3600), False, b"yes" if number else b"no",
        )  # fmt: skip
        world.tell(name, "receive", LIAR, Rows((write_row(content, key.sign, town.mesh),), True))
