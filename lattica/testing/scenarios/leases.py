"""Drivers' task trees on one machine's leases, while workers are killed and stopped and a driver goes away.

In the end every task has its result, or has spent its retries on workers that were killed under it; every lease is
back, and no more workers are left than their jobs keep. On the way few workers wait for others, and a driver that comes
late gets its turn from a greedy one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from lattica.scheduler.resources import ResourceSet
from lattica.testing.machine import NODE, Node, Plan, Submitter, Task
from lattica.testing.world import Link, World


def random_plan(rng: Random, depth: int) -> Plan:
    """A tree of calls: mostly tiny functions, some long, some that wait for others."""
    kind = rng.choices([b"tiny", b"small", b"long", b"mixed"], [6, 3, 1, 2])[0]
    run_s = {b"tiny": 0.0001, b"small": 0.002, b"long": 0.05, b"mixed": rng.choice([0.0001, 0.03])}[kind]
    children: tuple[Plan, ...] = ()
    if depth and rng.random() < 0.3:
        kind = b"parent"
        children = tuple(random_plan(rng, depth - 1) for _ in range(rng.randint(1, 4)))
    cpus = rng.choice([1, 1, 1, 1, 0.5, 2])
    return Plan(kind, run_s, children, ResourceSet.of({"CPU": cpus}), rng.choice([0, 1, 3, 3]))


def chain(depth: int) -> Plan:
    """Tasks that each get the next: every one blocks a worker of its own."""
    plan = Plan(b"link", 0.0001, retries=50)
    for _ in range(depth):
        plan = Plan(b"link", 0.0001, (plan,), retries=50)
    return plan


def _workers(world: World) -> Iterator[str]:
    return (name for name in world.living if name.startswith("worker"))


@dataclass(slots=True)
class Drivers:
    """Programs on the machine, and the tasks that each has made."""

    world: World
    node: Node
    tasks: dict[str, list[Task]] = field(default_factory=dict)

    def begin(self, name: str, plans: list[Plan], within_s: float) -> None:
        """A new driver that submits all of `plans` within that time."""
        world = self.world
        self.node.join(name, 0)
        world.add(name, Submitter)
        world.connect(name, NODE)
        self.tasks[name] = [Task(plan.function, plan=plan) for plan in plans]
        for task in self.tasks[name]:
            world.after(world.rng.uniform(0, within_s), world.tell, name, "submit", task)

    def living(self) -> list[Task]:
        """Tasks of those that live."""
        return [task for name, tasks in self.tasks.items() if self.world.is_alive(name) for task in tasks]

    def unfinished(self, *names: str) -> list[Task]:
        """Tasks without a result, of these drivers or of all that live."""
        alive = self.world.is_alive
        return [task for name in names or self.tasks if alive(name) for task in self.tasks[name] if not task.result]


def play(seed: int, long: bool = False) -> World:
    """Up to a second of work and faults, five times as much if `long`; then all must end, and the machine idle."""
    world = World(seed, link=Link(delay_s=(0.000_03, 0.000_4), connection=True))
    rng = world.rng
    node = Node(world, ResourceSet.of({"CPU": rng.choice([2, 4])}))
    world.add(NODE, lambda: node)
    drivers = Drivers(world, node)
    busy_s = rng.uniform(0.2, 1.0) * (5 if long else 1)
    depth = 60 if long else 12

    def captives_are_few() -> None:
        """Workers that wait for others are served first, or each outermost task would take one captive."""
        captive = sum(lease.blocked for lease in node.book.leases.values())
        assert captive <= 3 * depth, f"{captive} workers wait for others: {node.book}"

    world.watch(captives_are_few)
    for name in ("driver 1", "driver 2"):
        plans = [random_plan(rng, 3) for _ in range(400 if long else 40)]
        plans += [chain(depth), Plan(b"vast", 0.1, resources=ResourceSet.of({"CPU": 100}))]
        drivers.begin(name, rng.sample(plans, len(plans)), busy_s)
    _break(world, busy_s)
    world.run(until=busy_s)
    world.heal()

    _finish(drivers)
    _let_the_late_in(drivers)
    world.run(until=world.now + 20)
    _check_idle(drivers)
    return world


def _break(world: World, busy_s: float) -> None:
    """In the next `busy_s` workers crash and stand still, and perhaps a driver ends."""
    rng = world.rng

    def fault(do: Callable[[str], object]) -> None:
        if names := list(_workers(world)):
            do(rng.choice(names))

    def stop_and_go(name: str) -> None:
        world.pause(name)
        world.after(rng.uniform(0.001, 0.1), world.resume, name)

    for _ in range(rng.randint(0, 30)):
        world.after(rng.uniform(0, busy_s), fault, world.crash)
        world.after(rng.uniform(0, busy_s), fault, stop_and_go)
    if rng.random() < 0.3:
        world.after(rng.uniform(0, busy_s), world.crash, "driver 2")


def _finish(drivers: Drivers) -> None:
    """Every task gets its result, or has spent its retries."""
    world, node = drivers.world, drivers.node
    work_s = sum(len(task.plan) for tasks in drivers.tasks.values() for task in tasks) * 0.1  # nothing runs longer
    world.run_until(
        lambda: not drivers.unfinished(),
        within_s=5 + work_s,
        missing=lambda: f"{drivers.unfinished()[:5]} are not done; {node.book}",
    )
    for task in drivers.living():
        assert (task.result == "denied") == (task.function == b"vast"), f"{task} is {task.result}"
        assert task.result != "crashed" or task.charged > task.plan.retries, f"{task} failed with retries left"


def _let_the_late_in(drivers: Drivers) -> None:
    """A driver that comes late is served before one has finished that had filled the machine."""
    world, node = drivers.world, drivers.node
    drivers.begin("greedy driver", [Plan(b"long", 0.05)] * 100, 0.1)
    world.run(until=world.now + 0.5)
    drivers.begin("late driver", [Plan(b"tiny", 0.0001)] * 3, 0.1)
    world.run_until(
        lambda: not drivers.unfinished("late driver"),
        within_s=1,
        missing=lambda: f"the greedy one keeps all of {node.book}",
    )
    world.run_until(
        lambda: not drivers.unfinished(),
        within_s=30,
        missing=lambda: f"{len(drivers.unfinished())} tasks; {node.book}",
    )


def _check_idle(drivers: Drivers) -> None:
    """No lease is left, few workers are, and tasks did not wander."""
    world, node = drivers.world, drivers.node
    assert not node.book.leases and not node.book.waiting, f"idle, but {node.book}"
    assert node.resources.available == node.resources.total.to_dict(), f"idle, but {node.resources}"
    assert len(list(_workers(world))) <= len(drivers.tasks) * node.pool.keep, "idle workers were not ended"
    world.tally["tasks"] = sum(len(task.plan) for tasks in drivers.tasks.values() for task in tasks)
    world.tally["runs lost"] = sum(task.charged for tasks in drivers.tasks.values() for task in tasks)
    assert world.tally["sent"] <= 12 * world.tally["tasks"], "tasks wander to and fro between workers"
