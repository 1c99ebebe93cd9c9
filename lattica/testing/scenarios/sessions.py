"""Six peers that call each other and stream, while connections, networks and processes break.

Each call runs at most once and is answered at most once, with its own answer; calls of one peer to another start in the
order in which they were made; streams arrive whole, in order; no honest frame is ever refused. When everything is
healed, every call has an answer or an error, and a call between any two peers succeeds.
"""

from __future__ import annotations

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
    world = World(seed, link=Link(delay_s=(0.005, 0.08)))
    world.connections.decode = mesh_frames()
    rng, history = world.rng, History()
    busy_s = BUSY_S * (5 if long else 1)
    ids = {name: PeerId(rng.randbytes(32)) for name in NAMES}

    def join(name: str) -> None:
        world.add_host(
            name,
            lambda host: MeshPeer(host, ids, history),
            offset_s=rng.uniform(-600, 600),
            drift=rng.uniform(-2e-4, 2e-4),
            uptime_s=rng.uniform(0, 1e6),
        )
        world.listen(name, name)

    for name in NAMES:
        join(name)

    def call() -> None:
        caller, callee = rng.sample(NAMES, 2)
        if not world.is_alive(caller):
            return
        if rng.random() < 0.15:
            world.tell(caller, "stream", callee, rng.choice((STREAMS_IN, STREAMS_OUT, STREAMS_IN | STREAMS_OUT)))
        else:
            timeout_s = rng.choice((None, None, 2.0, 20.0))
            for _ in range(rng.choice((1, 1, 5))):
                world.tell(caller, "call", callee, rng.choice(SIZES), timeout_s)

    def crash(name: str) -> None:
        if world.is_alive(name):
            mine = [tag for tag in history.open if history.asked[tag][0] == name]
            world.crash(name, power=rng.random() < 0.3)
            for tag in mine:
                history.answered(tag, "its caller crashed")
            world.after(rng.uniform(0.5, 30), restart, name)

    def restart(name: str) -> None:
        if not world.is_alive(name):
            world.restart(name)

    def sever() -> None:
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

    def partition() -> None:
        left = rng.sample(NAMES, rng.randint(1, 3))
        world.partition(left, [name for name in NAMES if name not in left], both=rng.random() < 0.7)
        world.after(rng.uniform(1, 40), world.heal)

    def pause() -> None:
        name = rng.choice(NAMES)
        if world.is_alive(name) and not world.is_paused(name):
            world.pause(name)
            world.after(rng.uniform(0.1, 12), world.resume, name)

    calls = CALLS * (5 if long else 1)
    for _ in range(calls):
        world.after(rng.uniform(0, busy_s), call)
    for _ in range(rng.randint(0, calls // 4)):
        world.after(rng.uniform(0, busy_s), sever)
    for _ in range(rng.randint(0, 3) * (5 if long else 1)):
        world.after(rng.uniform(0, busy_s), partition)
        world.after(rng.uniform(0, busy_s), pause)
        world.after(rng.uniform(0, busy_s), crash, rng.choice(NAMES))
    world.run(until=busy_s)

    world.heal()
    for name in NAMES:
        restart(name)
    world.run_until(
        lambda: not history.open,
        within_s=150,
        missing=lambda: f"{[(tag, *history.asked[tag], history.runs.get(tag)) for tag in history.open][:5]}",
    )
    world.run(until=world.now + KEEP_S + 30)  # sessions with processes that are no more are given up by then
    before = len(history.asked)
    for caller, callee in permutations(NAMES, 2):
        world.tell(caller, "call", callee, rng.choice(SIZES), None)
        world.tell(caller, "stream", callee, STREAMS_IN | STREAMS_OUT)
    fresh = range(before + 1, before + 1 + 2 * len(NAMES) * (len(NAMES) - 1))
    world.run_until(
        lambda: all(tag in history.answers for tag in fresh),
        within_s=90,
        missing=lambda: f"{[(tag, *history.asked[tag]) for tag in fresh if tag not in history.answers][:5]}",
    )
    failed = {tag: history.answers[tag] for tag in fresh if history.answers[tag] != "value"}
    assert not failed, f"in a whole network: {failed}"
    world.tally["calls"] = len(history.asked)
    world.tally["answered"] = sum(how == "value" for how in history.answers.values())
    return world
