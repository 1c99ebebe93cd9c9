"""Six peers that call each other and stream, while connections, networks and processes break.

Each call runs at most once and is answered at most once, with its own answer; calls of one peer to another start in the
order in which they were made; streams arrive whole, in order; no honest frame is ever refused. When everything is
healed, every call has an answer or an error, and a call between any two peers succeeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

from lattica.mesh.identity import PeerId
from lattica.mesh.rpc import INLINE_MAX_BYTES, STREAMS_IN, STREAMS_OUT
from lattica.mesh.sessions import KEEP_S
from lattica.testing.connections import mesh_frames
from lattica.testing.links import Link
from lattica.testing.mesh import History, MeshPeer
from lattica.testing.world import World

NAMES = ("ann", "bob", "cyd", "dan", "eve", "fay")
BUSY_S = 120.0
CALLS = 150
SIZES = (10, 100, 2000, INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1, 90_000)


def play(seed: int, long: bool = False) -> World:
    """Two busy minutes, five times as long if `long`; then all is healed, and every call is answered."""
    world = World(seed, link=Link(delay_s=(0.005, 0.08)))
    world.connections.decode = mesh_frames()
    history = History()
    ids = {name: PeerId(world.rng.randbytes(32)) for name in NAMES}
    for name in NAMES:
        _join(world, ids, history, name)
    weather = Weather(world, history)
    busy_s = BUSY_S * (5 if long else 1)
    weather.plan(busy_s, times=5 if long else 1)
    world.run(until=busy_s)

    world.heal()
    for name in NAMES:
        weather.restart(name)
    world.run_until(
        lambda: not history.open,
        within_s=150,
        missing=lambda: f"{[(tag, *history.asked[tag], history.runs.get(tag)) for tag in history.open][:5]}",
    )
    world.run(until=world.now + KEEP_S + 30)  # sessions with processes that are no more are given up by then
    _call_all(world, history)
    world.tally["calls"] = len(history.asked)
    world.tally["answered"] = sum(how == "value" for how in history.answers.values())
    return world


def _join(world: World, ids: dict[str, PeerId], history: History, name: str) -> None:
    rng = world.rng
    world.add_host(
        name,
        lambda host: MeshPeer(host, ids, history),
        offset_s=rng.uniform(-600, 600),
        drift=rng.uniform(-2e-4, 2e-4),
        uptime_s=rng.uniform(0, 1e6),
    )
    world.listen(name, name)


@dataclass(slots=True)
class Weather:
    """Who calls whom, and what breaks meanwhile. Its dice are the world's."""

    world: World
    history: History

    def plan(self, busy_s: float, times: int) -> None:
        """What will happen in the next `busy_s`; `times` as much of it as usual."""
        world, rng = self.world, self.world.rng
        calls = CALLS * times
        for _ in range(calls):
            world.after(rng.uniform(0, busy_s), self.call)
        for _ in range(rng.randint(0, calls // 4)):
            world.after(rng.uniform(0, busy_s), self.sever)
        for _ in range(rng.randint(0, 3) * times):
            world.after(rng.uniform(0, busy_s), self.partition)
            world.after(rng.uniform(0, busy_s), self.pause)
            world.after(rng.uniform(0, busy_s), self.crash, rng.choice(NAMES))

    def call(self) -> None:
        """One calls another, once or five times, or streams."""
        world, rng = self.world, self.world.rng
        caller, callee = rng.sample(NAMES, 2)
        if not world.is_alive(caller):
            return
        if rng.random() < 0.15:
            world.tell(caller, "stream", callee, rng.choice((STREAMS_IN, STREAMS_OUT, STREAMS_IN | STREAMS_OUT)))
        else:
            timeout_s = rng.choice((None, None, 2.0, 20.0))
            for _ in range(rng.choice((1, 1, 5))):
                world.tell(caller, "call", callee, rng.choice(SIZES), timeout_s)

    def crash(self, name: str) -> None:
        """Its open calls end with it; it comes back within 30 s."""
        world, rng, history = self.world, self.world.rng, self.history
        if world.is_alive(name):
            mine = [tag for tag in history.open if history.asked[tag][0] == name]
            world.crash(name, power=rng.random() < 0.3)
            for tag in mine:
                history.answered(tag, "its caller crashed")
            world.after(rng.uniform(0.5, 30), self.restart, name)

    def restart(self, name: str) -> None:
        """Unless it lives."""
        if not self.world.is_alive(name):
            self.world.restart(name)

    def sever(self) -> None:
        """One connection breaks, is open at one end only, or carries nothing for a while."""
        world, rng = self.world, self.world.rng
        name = rng.choice(NAMES)
        numbers = world.connections.of(name) if world.is_alive(name) else []
        if numbers:
            number = rng.choice(numbers)
            how = rng.random()
            if how < 0.6:
                world.connections.sever(number)
            elif how < 0.8:
                world.connections.half_open(number, silent=rng.random() < 0.5)
            else:
                world.connections.clog(number, rng.uniform(0.5, 20))

    def partition(self) -> None:
        """For up to 40 s, in one direction or both."""
        world, rng = self.world, self.world.rng
        left = rng.sample(NAMES, rng.randint(1, 3))
        world.partition(left, [name for name in NAMES if name not in left], both=rng.random() < 0.7)
        world.after(rng.uniform(1, 40), world.heal)

    def pause(self) -> None:
        """One stands still for up to 12 s."""
        world, rng = self.world, self.world.rng
        name = rng.choice(NAMES)
        if world.is_alive(name) and not world.is_paused(name):
            world.pause(name)
            world.after(rng.uniform(0.1, 12), world.resume, name)


def _call_all(world: World, history: History) -> None:
    """In a whole network a call and a stream between any two succeed."""
    before = len(history.asked)
    for caller, callee in permutations(NAMES, 2):
        world.tell(caller, "call", callee, world.rng.choice(SIZES), None)
        world.tell(caller, "stream", callee, STREAMS_IN | STREAMS_OUT)
    fresh = range(before + 1, before + 1 + 2 * len(NAMES) * (len(NAMES) - 1))
    world.run_until(
        lambda: all(tag in history.answers for tag in fresh),
        within_s=90,
        missing=lambda: f"{[(tag, *history.asked[tag]) for tag in fresh if tag not in history.answers][:5]}",
    )
    failed = {tag: history.answers[tag] for tag in fresh if history.answers[tag] != "value"}
    assert not failed, f"in a whole network: {failed}"
