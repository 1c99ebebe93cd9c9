"""Processes that put, share, nest, borrow and drop objects while some of them die: nothing held is freed, all else is.

Links delay each connection on its own, so the node reads the words of different processes in every order. On the way
whatever a living process holds, or is being sent, can be read, and so can what lies inside it; nobody is told that an
object is lost whose owner lives. In the end everybody who asked has been answered; when all refs are dropped nothing is
left but values that hold each other in a ring, and with the last process those go too.
"""

from __future__ import annotations

from itertools import count

from lattica.testing.objects import NODE, Arena, Node, Process
from lattica.testing.world import Link, World


def play(seed: int, long: bool = False) -> World:
    """Half a second of giving and dropping, five seconds if `long`; then all is let go."""
    world = World(seed, link=Link(delay_s=(0.000_03, 0.03), connection=True))
    rng, arena = world.rng, Arena()
    node = Node(world, arena)
    world.add(NODE, lambda: node)
    busy_s = 5.0 if long else 0.5
    serials = count(1)

    def start() -> str:
        name = f"process {next(serials)}"
        number = node.join(name)
        world.add(name, lambda: Process(world, arena, name, number, rng))
        world.connect(name, NODE)
        for _ in range(1000 if long else 60):
            world.after(rng.uniform(0, busy_s), world.tell, name, "act")
        return name

    def kill_one_and_start_another() -> None:
        world.crash(rng.choice(processes()))
        start()

    def processes() -> list[str]:
        return [name for name in world.living if name != NODE]

    for _ in range(rng.randint(2, 6)):
        start()
    for _ in range(rng.choice([0, 1, 3, 8])):
        world.after(rng.uniform(0, busy_s), kill_one_and_start_another)
    world.run(until=2 * busy_s)

    def owed() -> list[str]:
        waiting = [f"{name} waits for {object.hex()}" for name in processes() for object in world.core(name).asked]
        return waiting + [
            f"{name} wants its result {o.hex()}" for name in processes() for o in world.core(name).pending
        ]

    world.run_until(lambda: not owed(), within_s=10, missing=lambda: f"{owed()[:5]}; {node.ledger}")
    world.run(until=world.now + 1)  # refs on their way arrive
    for name in processes():
        world.tell(name, "drop_all")
    world.run(until=world.now + 1)
    inside = {inner for object, inner_ones in arena.regions.values() for inner in inner_ones}
    for object, _ in arena.regions.values():
        assert object in inside, f"{object.hex()} is left, and nobody holds it; {node.ledger}"
    for name in processes():
        world.crash(name)
    world.run(until=world.now + 1)
    assert not arena.regions and repr(node.ledger).startswith("<Ledger 0 ids of 0 clients"), f"left: {node.ledger}"
    return world
