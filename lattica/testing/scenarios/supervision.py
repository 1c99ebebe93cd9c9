"""Actors by name and by handle, killed, restarted, cut off and dropped while calls are under way.

On the way an actor runs in one process at a time, calls start in their callers' order and not more often than they may.
In the end every call and every wish has been answered, and when nobody has a handle any more no actor is left.
"""

from __future__ import annotations

from collections import Counter

from lattica.testing.actors import NODE, Caller, Node, Worker
from lattica.testing.world import Link, World


def play(seed: int, long: bool = False) -> World:
    """A second of calls and kills, ten times as long if `long`; then every call is answered and no actor left."""
    world = World(seed, link=Link(delay_s=(0.000_03, 0.02), connection=True))
    rng = world.rng
    node = Node(world)
    world.add(NODE, lambda: node)
    busy_s = 10.0 if long else 1.0

    def drive(n: int) -> None:
        name = f"driver {n}"
        number = node.join(name)
        assert number == n
        world.add(name, lambda: Caller(world, name, number, rng))
        world.connect(name, NODE)
        for _ in range(3000 if long else 300):
            world.after(rng.uniform(0, busy_s), world.tell, name, "act")

    def of_kind(kind: type) -> list[str]:
        return [name for name in world.living if isinstance(world.core(name), kind)]

    def fault() -> None:
        if workers := of_kind(Worker):
            world.crash(rng.choice(workers))

    for n in range(1, rng.randint(3, 5)):
        drive(n)
    for _ in range(rng.choice([0, 3, 10, 30])):
        world.after(rng.uniform(0, busy_s), fault)
    if rng.random() < 0.5:
        world.after(rng.uniform(0, busy_s), world.crash, "driver 1")
    for _ in range(rng.choice([0, 10, 100])):
        world.after(rng.uniform(0, busy_s), node.cut)
    world.run(until=busy_s)

    def owed() -> list[str]:
        callers = [world.core(name) for name in of_kind(Caller)]
        calls = [repr(call) for caller in callers for call in caller.calls if not call.outcome]
        return calls + [f"{caller.name} waits for answer {request}" for caller in callers for request in caller.asked]

    world.run_until(lambda: not owed(), within_s=120, missing=lambda: f"{owed()[:5]}; {node.supervisor}")
    world.run(until=world.now + 1)  # handles on their way arrive
    for name in of_kind(Caller):
        world.tell(name, "drop_all")
    world.run(until=world.now + 10)
    left = [actor for actor in node.supervisor.actors.values() if not actor.plan.detached]
    assert not left, f"nobody has a handle of {left[:3]}"
    world.tell(NODE, "end_all")
    world.run(until=world.now + 10)
    assert not node.supervisor.actors, f"nobody has a handle, but {node.supervisor}"
    assert not of_kind(Worker), f"no actor is left, but {of_kind(Worker)}"
    world.tally |= Counter(f"calls {call.outcome}" for name in of_kind(Caller) for call in world.core(name).calls)
    return world
