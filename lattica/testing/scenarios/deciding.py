"""Six peers without a leader: one constructor per name, one life per actor, the larger side restarts, all agree after.

They claim the same names at once, their detached actors die with them and are restarted, while nodes crash, stall and
are cut apart, 3+3 or 5+1. On the way: while nothing is cut, a name has one constructor; a receiver that has met a life
refuses earlier ones; a node that is cut off alone restarts nobody else's actor. When everything is healed: all agree
who has each name, each actor lives once, minority lives are over, and everybody listens to those that go on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from math import inf

from lattica.ids import ActorId
from lattica.mesh.identity import PeerId
from lattica.mesh.table.kinds import ACTOR, NAME
from lattica.scheduler.claims import read_holder
from lattica.scheduler.fencing import Life
from lattica.scheduler.restarts import PROMOTE_S, RANK_S, Fenced, Record, Restart, read_record
from lattica.testing.checkers import attach
from lattica.testing.community import Town
from lattica.testing.deciding import Accepted, Constructed, Decider
from lattica.testing.host import EPOCH_S, Disk
from lattica.testing.links import Link
from lattica.testing.world import Gone, World

NAMES = tuple(f"p{number}" for number in range(6))
BUSY_S = 70.0
HEAL_S = 5.0
AGREE_S = 5.0
CLAIMED_S = 31.0  # a claim is decided by then, or given up
RESTARTED_S = 45.0  # a death is known after 10 s, settled 5 s later, and rank five waits 10 s; some of that twice
KNOWN_S = 11.5  # after a cut, until all know on which side they are
CALM_S = 8.0  # after a heal, until all see all again and tables are equal


@dataclass(slots=True)
class Judge:
    """Hears what the peers report."""

    world: World
    rounds: dict[bytes, list[float]] = field(default_factory=dict)  # name -> when it was claimed, when constructed
    calm_since: float = 0.0  # nothing is cut, and all see all; infinite while something is
    cut_at: float = 0.0
    alone: set[str] = field(default_factory=set)
    small: set[str] = field(default_factory=set)  # the side with less than half, or half without the lowest
    met: dict[tuple[str, ActorId], Life] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)  # one side of the cut
    ended_at: dict[str, float] = field(default_factory=dict)
    restarts: dict[tuple[ActorId, int, bool], tuple[str, float]] = field(default_factory=dict)
    """(actor, epoch, side) -> who has restarted it first since the last cut or its end, and when."""

    def cut(self, left: Collection[str], right: Collection[str], small: Collection[str]) -> None:
        """Two sides hear each other no more; `small` is the one that may not restart."""
        self.left, self.small, self.calm_since, self.cut_at = set(left), set(small), inf, self.world.now
        self.alone = next((set(side) for side in (left, right) if len(side) == 1), set())
        self.restarts.clear()

    def mended(self) -> None:
        """Nothing is cut any more."""
        self.left, self.small, self.alone, self.calm_since = set(), set(), set(), self.world.now + CALM_S
        self.restarts.clear()

    def saw(self, who: str, event: object) -> None:
        """Asserts that what a peer reports may be, as things stand."""
        world = self.world
        match event:
            case Gone():
                self.ended_at[who] = world.now
                self.met = {ends: life for ends, life in self.met.items() if ends[0] != who}  # memory ends with it
                self.restarts = {base: first for base, first in self.restarts.items() if first[0] != who}
            case Constructed(name, _):
                world.count("constructed")
                self.rounds[name].append(world.now)
                begun, *runs = self.rounds[name]
                calm = begun >= self.calm_since
                assert len(runs) == 1 or not calm, f"{who} runs constructor {len(runs)} of {name!r}, and nothing is cut"
            case Restart(actor, record):
                world.count("minority restarts" if record.life.minority else "restarts")
                knows = world.now - self.cut_at > KNOWN_S
                is_first_view = len(world.core(who).islands.members) == len(NAMES)
                stolen = who in self.small and is_first_view and not record.life.minority
                assert not stolen or not knows, f"{who} is on the smaller side and restarts {actor.hex()}"
                alone = who in self.alone and not record.available
                assert not alone or not knows, f"{who} is alone and restarts {actor.hex()}"
                base = actor, record.life.epoch, who in self.left
                other, at = self.restarts.setdefault(base, (who, world.now))
                began = max(self.ended_at.get(who, -inf), self.ended_at.get(other, -inf))
                late = world.now - began < 60  # who has just begun comes later than its turn
                views = [world.core(each).community.membership.living for each in (who, other)]
                in_turn = (
                    late or views[0] != views[1] or world.now - at > RANK_S / 2
                )  # or each copy of the row was lost
                assert in_turn or who == other, f"{other} and {who} restart {actor.hex()} at once, with the same view"
            case Fenced(actor, life, by):
                world.count("fenced")
                over = by is not None and by.life.minority and by.life.epoch == life.epoch and not life.minority
                assert not over, f"{who} runs the original of {actor.hex()}, and loses to the minority life {by}"
            case Accepted(actor, life) if not life.minority:
                world.count("calls")
                latest = self.met.get((who, actor), life)
                assert life >= latest, f"{who} listens to {life} of {actor.hex()} after {latest}"
                self.met[who, actor] = life


def play(seed: int, long: bool = False) -> World:
    """Seventy busy seconds, ten times as many if `long`; then all are healed, and must agree."""
    world = World(seed, link=Link(delay_s=(0.02, 0.2), loss=0.1, duplicates=0.02))
    town = Town(NAMES)
    rows, view = town.founding_rows(NAMES, EPOCH_S), [town.peer(name) for name in NAMES]
    judge = Judge(world)
    attach(world, judge)
    is_young = world.rng.random() < 0.25  # founded just now by the first; else they have one view for long

    def view_of(name: str) -> list[PeerId] | None:
        return view if not is_young else [] if name != NAMES[0] else None

    for name in NAMES:
        world.add_host(
            name,
            lambda host: Decider(host, town, rows=rows, view=view_of(host.name)),
            offset_s=world.rng.uniform(-20, 20),
            drift=world.rng.uniform(-1e-4, 1e-4),
            uptime_s=world.rng.uniform(0, 1e6),
        )
    trouble = Trouble(world, town, judge, long=long)
    busy_s = BUSY_S * (10 if long else 1)
    trouble.plan(busy_s)
    world.run(until=busy_s)

    trouble.mend()
    for name in NAMES:
        world.resume(name)
        trouble.restart(name)
    world.run(until=world.now + 1.0)
    world.heal()
    _agree(world, town)
    return world


@dataclass(slots=True)
class Trouble:
    """Who claims and stops what, and what breaks meanwhile. Its dice are the world's."""

    world: World
    town: Town
    judge: Judge
    long: bool

    def plan(self, busy_s: float) -> None:
        """What will happen in the next `busy_s`."""
        world, rng = self.world, self.world.rng
        for _ in range(int(busy_s / 10)):
            world.after(rng.uniform(5, busy_s), self.claim_at_once)
        for _ in range(int(busy_s / BUSY_S)):
            world.after(rng.uniform(10, busy_s / 2), self.partition)
            for fault, most in ((self.crash, 3), (self.stall, 2), (self.crash_actor, 2), (self.stop, 3)):
                for _ in range(rng.randint(0, most)):
                    world.after(rng.uniform(5, busy_s), fault)

    def living(self) -> list[str]:
        """Those that run, stalled ones too."""
        return [name for name in NAMES if self.world.is_alive(name)]

    def claim_at_once(self) -> None:
        """All want one new name."""
        world, rng = self.world, self.world.rng
        name, available = b"name %d" % len(self.judge.rounds), rng.random() < 0.4
        self.judge.rounds[name] = [world.now]
        for peer in self.living():
            world.after(rng.uniform(0, 0.3), self.claim, peer, name, available)

    def claim(self, peer: str, name: bytes, available: bool) -> None:
        """If it lives. available: its actor may be restarted by a minority."""
        if self.world.is_alive(peer):
            self.world.tell(peer, "claim", name, available)

    def stop(self) -> None:
        """The first that runs an actor stops it; often all want its name again."""
        world, rng = self.world, self.world.rng
        for peer in self.living():
            if running := sorted(world.core(peer).restarts.running.values(), key=lambda record: record.spec):
                name = rng.choice(running).spec
                world.tell(peer, "stop", name)
                if rng.random() < 0.7:  # and it is wanted again
                    self.judge.rounds[name] = [world.now]
                    for other in self.living():
                        world.after(rng.uniform(0, 2), self.claim, other, name, False)
                return

    def crash(self) -> None:
        """One that is not cut off alone; it comes back before it is known as dead, or long after."""
        world, rng = self.world, self.world.rng
        name = rng.choice(NAMES)
        if world.is_alive(name) and name not in self.judge.alone:
            world.crash(name, power=rng.random() < 0.5)
            world.after(rng.choice((rng.uniform(1, 9), rng.uniform(15, 40))), self.restart, name)

    def restart(self, name: str) -> None:
        """Unless it lives; now and then without its disk."""
        world, rng = self.world, self.world.rng
        if world.is_alive(name):
            return
        others = self.living()
        is_lost = bool(others) and rng.random() < 0.15  # its disk is
        world.restart(name, disk=Disk() if is_lost else None)
        if is_lost:
            world.tell(name, "meet", rng.choice(others))  # by a ticket

    def crash_actor(self) -> None:
        """One of somebody's actors ends by itself."""
        if names := self.living():
            self.world.tell(self.world.rng.choice(names), "crash_actor", self.world.rng.randrange(100))

    def partition(self) -> None:
        """Into 3+3, 5+1 or 4+2."""
        world, rng = self.world, self.world.rng
        if world.obstacles.cut_since:
            return  # one cut at a time, for the judge's sake
        left = rng.sample(NAMES, rng.choice((3, 3, 1, 1, 2)))
        right = [name for name in NAMES if name not in left]
        world.partition(left, right)
        has_lowest = min(map(self.town.peer, NAMES)) in map(self.town.peer, right)
        self.judge.cut(left, right, left if len(left) < 3 or has_lowest else right)
        world.after(rng.uniform(20, 40) * (1 if rng.random() < 0.7 or not self.long else 4), self.mend)

    def mend(self) -> None:
        """Nothing is cut any more."""
        self.world.obstacles.clear()
        self.judge.mended()

    def stall(self) -> None:
        """One stands still for up to 5 s."""
        world, rng = self.world, self.world.rng
        name = rng.choice(NAMES)
        if world.is_alive(name) and not world.is_paused(name):
            world.pause(name)
            world.after(rng.uniform(0.5, 5.0), world.resume, name)


def _agree(world: World, town: Town) -> None:
    """Wait until nobody contradicts another; and after claims and restarts have had their time, until all runs."""
    world.run_until(lambda: _are_equal(world), within_s=HEAL_S, missing=lambda: "tables differ")
    world.run_until(
        lambda: not _quarrels(world, town, lost=False), within_s=AGREE_S, missing=lambda: _first(world, town)
    )
    world.run(until=world.now + CLAIMED_S)
    world.run_until(
        lambda: not _quarrels(world, town, lost=True),
        within_s=RESTARTED_S + PROMOTE_S,
        missing=lambda: "; ".join(_quarrels(world, town, lost=True)),
    )


def _first(world: World, town: Town) -> str:
    return "; ".join(_quarrels(world, town, lost=False)[:8])


def _are_equal(world: World) -> bool:
    return len({world.core(name).community.replica.root() for name in NAMES}) == 1


def _quarrels(world: World, town: Town, *, lost: bool) -> list[str]:
    """About what they do not agree. lost: also which actors do not run, or are not heard by all."""
    found: list[str] = []
    cores: dict[str, Decider] = {name: world.core(name) for name in NAMES}
    rows: dict[ActorId, Record] = {
        ActorId(row.key): read_record(row.body) for row in cores[NAMES[0]].community.replica.rows(ACTOR)
    }
    names = {row.key: read_holder(row.body).claim for row in cores[NAMES[0]].community.replica.rows(NAME)}
    runs: dict[ActorId, list[str]] = {}
    for name, core in cores.items():
        for actor, record in core.restarts.running.items():
            runs.setdefault(actor, []).append(name)
            if rows.get(actor) != record:
                found.append(f"{name} runs {actor.hex()} as {record.life}, the table says {rows.get(actor)}")
    found += [f"{actor.hex()} runs on {hosts}" for actor, hosts in runs.items() if len(hosts) > 1]
    if lost:
        found += [f"{actor.hex()} does not run" for actor in rows if actor not in runs]
        found += [f"{record.spec!r} is minority still" for record in rows.values() if record.life.minority]
        found += [f"{actor.hex()} has lost its name" for actor, each in rows.items() if names.get(each.spec) != actor]
        found += [
            f"{name} waits for {latest} of {actor.hex()}, which is {record.life}"
            for name, core in cores.items()
            for actor, record in rows.items()
            if (latest := core.fencing.latest(actor)) is not None and latest.standing() > record.life.standing()
        ]
        found += [f"{name} is an island" for name, core in cores.items() if core.islands.is_island]
    return found
