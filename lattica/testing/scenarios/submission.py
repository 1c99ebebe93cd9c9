"""Drivers that ask `moves` no more often than they must, workers that keep finished replies back, and poisoned tasks.

As `leases`, but with the shells as lazy as the real ones are: a driver pumps only where `actors.tasks` does, a worker
sends its replies in batches, and those of a dead one are read from its page. In the end every task has ended once; the
neighbours of a task that kills its worker ran once, though they have no retries; nobody waited behind a long task while
a CPU was free, nor for ever for a task that was submitted later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from lattica.actors.submission import LEASE_IDLE_S, REQUESTS_MAX
from lattica.scheduler.resources import ResourceSet
from lattica.testing.machine import FORK_S, NODE, Blocked, Grant, Node, Plan, Reply, Run, Submitter, Task, Worker
from lattica.testing.world import Link, Send, World

REPLIES_MAX, REPLIES_S = 64, 0.000_5  # as in actors.worker
SOCKETS = Link(delay_s=(0.000_03, 0.000_4), connection=True)
TIMER_LATE_S = 0.001
POISON = b"poison"
DRIVER = "driver"


@dataclass(frozen=True, slots=True)
class Replies:
    """Several replies in one frame."""

    replies: tuple[Reply, ...]


@dataclass(eq=False, slots=True)
class Getter(Task):
    """A task that waits for another one of its driver."""

    sibling: Task | None = None


class Driver(Submitter):
    """Asks its lanes for moves exactly where `actors.tasks` does."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.waiting: dict[Task, list[str]] = {}  # task -> workers that wait for its result

    def submit(self, task: Task, now: float) -> list[object]:
        """A task, by the lane of its resources."""
        known = task.plan.resources in self.lanes
        if not known:
            return super().submit(task, now)
        key = task.plan.resources
        lane = self.lanes[key]
        lease = lane.submit(task, now)
        if lease is None:
            lacking = lane.requested < min(len(lane.pending), REQUESTS_MAX)
            return self._pump(key, now) if lacking else []
        pushed = [Send(str(lease.worker), Run(task.seq, task))]
        if len(lease.inflight) == 2 or not lane.settled():
            self._arm(key, lane.next_deadline())
        return [*pushed, *self._pump(key, now)] if lane.crowded(lease) else [*pushed]

    def receive(self, sender: str, message: object, now: float) -> Sequence[object]:
        if isinstance(message, Replies):
            return self._replied(sender, message.replies, now)
        return super().receive(sender, message, now)

    def _replied(self, worker: str, replies: Sequence[Reply], now: float) -> list[object]:
        if worker not in self.targets:
            return []
        key, lease = self.targets[worker]
        lane, effects = self.lanes[key], []
        for reply in replies:
            task = lane.replied(lease, reply.seq, reply.micros, now)
            if isinstance(task, Task):
                effects += self._ended(task, "done", now)
        if not lane.settled() or lease.yielding:
            effects += self._pump(key, now)
        elif not lease.inflight:
            self._arm(key, now + LEASE_IDLE_S)
        return effects

    def _bury(self, worker: str, now: float) -> list[object]:
        """What the dead worker's page holds for us is heard first."""
        effects: list[object] = []
        if worker in self.closed and worker in self.lost and worker in self.targets:
            dead: Runner = self.world.core(worker)
            effects = self._replied(worker, dead.unsent, now)
        return effects + super()._bury(worker, now)

    def withdraw(self, task: Task, now: float) -> list[object]:
        """`cancel` of a task that has not been sent; one that has is left alone here."""
        lane = self.lanes.get(task.plan.resources)
        if task.result or lane is None or not lane.withdraw(task):
            return []
        return self._ended(task, "canceled", now)

    def _arm(self, key: ResourceSet, due: float | None) -> None:
        if due is not None:
            self.timers[key] = min(due + TIMER_LATE_S, self.timers.get(key, float("inf")))

    def _ended(self, task: Task, result: str, now: float) -> list[object]:
        for worker in self.waiting.pop(task, []):
            self.world.after(self.world.rng.uniform(*SOCKETS.delay_s), self.world.tell, worker, "heard", task)
        return super()._ended(task, result, now)


class Runner(Worker):
    """A worker of the one driver: sends finished replies in batches, waits for siblings, and dies of poison."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__()
        self.world, self.name = world, name
        self.unsent: list[Reply] = []
        self.flush_due = 0.0

    def tick(self, now: float) -> list[object]:
        due = self.wakes_at is not None and self.wakes_at <= now
        task = self.running[1].task if due and self.running is not None else None
        sibling = task.sibling if isinstance(task, Getter) else None
        if sibling is not None and not sibling.result and self.waits_for is None:
            return self._wait_for(sibling)
        effects = [effect for effect in super().tick(now) if not self._keeps(effect)]
        if self.running is None or len(self.unsent) >= REPLIES_MAX or now >= self.flush_due:
            return [*self._flushed(), *effects]
        return effects

    def _wait_for(self, sibling: Task) -> list[object]:
        self.wakes_at, self.waits_for = None, [sibling]
        driver: Driver = self.world.core(DRIVER)
        driver.waiting.setdefault(sibling, []).append(self.name)
        returned = self._give_back(DRIVER, len(self.queue), blocked=True)
        return [*self._flushed(), Send(NODE, Blocked(True)), *returned]

    def heard(self, sibling: Task, now: float) -> list[object]:
        """The result that this worker waits for is there."""
        if self.waits_for != [sibling]:
            return []
        self.wakes_at = now + 1e-6
        return [Send(NODE, Blocked(False))]

    def _keeps(self, effect: object) -> bool:
        if not (isinstance(effect, Send) and isinstance(effect.message, Reply)):
            return False
        if not self.unsent:
            self.flush_due = self.world.now + REPLIES_S
        self.unsent.append(effect.message)
        return True

    def _flushed(self) -> list[object]:
        batch, self.unsent = tuple(self.unsent), []
        return [Send(DRIVER, Replies(batch))] if batch else []

    def _start(self, now: float) -> list[object]:
        idle = self.running is None
        started = super()._start(now)
        if idle and self.running is not None and self.running[1].task.function == POISON:
            self.world.after(self.running[1].task.plan.run_s / 2, self.world.crash, self.name)
        return started

    def next_deadline(self) -> float | None:
        guard = self.flush_due if self.unsent else None
        return min((due for due in (super().next_deadline(), guard) if due is not None), default=None)


class Machine(Node):
    """A node whose workers are `Runner`s."""

    def _fork(self, worker: int, holder: int, grant: Grant) -> None:
        name = self.names[worker]

        def started() -> None:
            self.world.add(name, lambda: Runner(self.world, name))
            self.world.connect(name, NODE)
            if worker in self.doomed:
                self.world.crash(name)
            else:
                self.world.tell(NODE, "forked", holder, grant)

        self.world.after(self.world.rng.uniform(*FORK_S), started)


class Scene:
    """A machine and one driver in a world, and all tasks that were submitted."""

    def __init__(self, seed: int, cpus: int) -> None:
        self.world = World(seed, link=SOCKETS)
        self.node = Machine(self.world, ResourceSet.of({"CPU": cpus}))
        self.tasks: list[Task] = []
        self.world.add(NODE, lambda: self.node)
        self.node.join(DRIVER, 0)
        self.world.add(DRIVER, lambda: Driver(self.world))
        self.world.connect(DRIVER, NODE)

    def submit(self, task: Task) -> Task:
        """A task of the driver."""
        self.tasks.append(task)
        self.world.tell(DRIVER, "submit", task)
        return task

    def run(self, function: bytes, run_s: float, times: int = 1) -> list[Task]:
        """Submit these, one after the other, now."""
        plan = Plan(function, run_s, retries=0)
        return [self.submit(Task(function, plan=plan)) for _ in range(times)]

    def await_all(self, tasks: Sequence[Task], within_s: float) -> None:
        """`get` of all of them takes no longer than this."""
        left = [task for task in tasks if not task.result]
        self.world.run_until(
            lambda: all(task.result for task in left),
            within_s=within_s,
            missing=lambda: f"{[task for task in left if not task.result][:5]} have no result; {self.node.book}",
        )


def four_sleeps_are_side_by_side(seed: int, warm: int) -> None:
    """Four calls of 1 s on 4 CPUs take under 2 s, although the function was quick `warm` times."""
    scene = Scene(seed, cpus=4)
    scene.await_all(scene.run(b"f", 0.000_05, warm), within_s=2)
    scene.world.run(until=scene.world.now + scene.world.rng.choice([0, 0.05, 0.3]))
    scene.await_all(scene.run(b"f", 1.0, 4), within_s=1.5)
    scene.await_all(scene.run(b"f", 1.0, 2), within_s=1.2)  # known to be slow by now


def a_quick_task_waits_for_no_long_one(seed: int, warm: int) -> None:
    """A function that nobody knows runs for 10 s; quick ones do not wait behind it while there is a second CPU."""
    scene = Scene(seed, cpus=2)
    scene.await_all(scene.run(b"quick", 0.000_05, warm), within_s=2)
    scene.world.run(until=scene.world.now + scene.world.rng.choice([0, 0.3]))
    scene.run(b"train", 10.0)
    scene.world.run(until=scene.world.now + scene.world.rng.choice([0, 0.001, 0.2]))
    for _ in range(5):
        scene.await_all(scene.run(b"quick", 0.000_05), within_s=0.05)


def a_task_may_wait_for_a_later_one(seed: int, warm: int) -> None:
    """On one CPU each of these tasks gets the next, and all were submitted at once."""
    scene = Scene(seed, cpus=1)
    scene.await_all(scene.run(b"link", 0.000_05, warm), within_s=2)
    links: list[Task] = [Getter(b"link", plan=Plan(b"link", 0.000_05, retries=0)) for _ in range(12)]
    for link, following in pairwise(links):
        assert isinstance(link, Getter)
        link.sibling = following
    for link in links:
        scene.submit(link)
    scene.await_all(links, within_s=2)


def random_task(rng: Random) -> Task:
    """Tiny, moody (quick but for once), long or poisoned; half of them may run only once."""
    kind = rng.choices([b"tiny", b"moody", b"long", POISON], [8, 6, 2, 0.4])[0]
    run_s = {b"tiny": 0.000_1, b"moody": rng.choice([0.000_02] * 20 + [0.03]), b"long": 0.02, POISON: 0.002}[kind]
    return Task(kind, plan=Plan(kind, run_s, retries=rng.choice([0, 0, 1, 3])))


def play(seed: int, long: bool = False) -> World:
    """Three short stories, then bursts of tasks that are withdrawn and killed; more of all if `long`."""
    for story in (four_sleeps_are_side_by_side, a_quick_task_waits_for_no_long_one, a_task_may_wait_for_a_later_one):
        story(seed, 1000 if long else 80)
    rng = Random(seed)
    scene = Scene(seed, cpus=rng.choice([1, 2, 4]))
    world, busy_s = scene.world, 3.0 if long else 0.3

    def burst() -> None:
        for _ in range(rng.randint(1, 60)):
            scene.submit(random_task(rng))

    def withdraw() -> None:
        world.tell(DRIVER, "withdraw", rng.choice(scene.tasks or [Task(b"none")]))

    def kill() -> None:
        if names := [name for name in world.living if name.startswith("worker")]:
            world.crash(rng.choice(names))

    killed = rng.random() < 0.5
    for _ in range(150 if long else 8):
        world.after(rng.uniform(0, busy_s), burst)
        world.after(rng.uniform(0, busy_s), withdraw)
        if killed:
            world.after(rng.uniform(0, busy_s), kill)
    world.run(until=busy_s)
    scene.await_all(scene.tasks, within_s=2 + 0.05 * len(scene.tasks))
    for task in scene.tasks:
        spent = task.charged > task.plan.retries
        if task.function == POISON:
            assert task.result == "canceled" or (task.result == "crashed" and spent), f"{task} is {task.result}"
        elif task.result == "done":
            assert killed or (task.starts, task.charged) == (1, 0), f"{task} started {task.starts} times"
        else:
            assert task.result == "canceled" or (killed and spent), f"{task} is {task.result}, and nobody killed it"
    world.run(until=world.now + 1)
    assert not scene.node.book.leases and not scene.node.book.waiting, f"idle, but {scene.node.book}"
    world.tally["tasks"] = len(scene.tasks)
    world.tally["poisoned"] = sum(task.function == POISON and task.result == "crashed" for task in scene.tasks)
    return world
