"""Eight whole nodes run tasks and actors for each other while machines crash, links are cut and workers die.

Everything above I/O is the product's: peers, table and membership, desks, leases, ledgers, drivers' runtimes. On the
way: a call without retries and a task with `max_retries=0` begin at most once, calls of one caller begin in order and
never in a life older than one that it has heard of, and every value is read as it was made; items of generators come
each once and in order. In the end: every
wait is over, with a value or an error of ours, and when the refs are dropped nothing is held, leased, carried or asked
for anywhere. Where nothing is broken there is no error at all, but for what was cancelled; where nodes only go on
purpose, actors that may not restart are all that is lost. Detached actors are found by their names in the end, and no
two workers are one life; what runs in placement groups: `execution_groups`; what breaks: `execution_faults`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, cast

import msgspec

from lattica.actors.arguments import encode_arguments
from lattica.actors.calls import CallRecord
from lattica.actors.generators import ObjectRefGenerator, StreamCall, StreamTask
from lattica.actors.handles import ActorHandle, Meta, revive
from lattica.actors.refs import ObjectRef
from lattica.actors.streams import to_wire
from lattica.actors.tasks import TaskRecord
from lattica.codec import messages as m
from lattica.errors import LatticaError
from lattica.ids import ACTOR_ID_BYTES
from lattica.node.far_lending import LEASE_S
from lattica.scheduler.fencing import Life
from lattica.scheduler.given import DemandGiven, StrategyGiven, encode
from lattica.testing.execution import End, Unit, Universe
from lattica.testing.execution_faults import GRACE_S, Faults
from lattica.testing.execution_groups import Group, Groups
from lattica.testing.execution_nodes import Land, NodeUnit, SimNode
from lattica.testing.execution_processes import SPAN_BYTES, Body, Caller, SimDriver, SimProcess, SimWorker

NAMES = tuple(f"n{number}" for number in range(8))
BUSY_S, LONG_S = 30.0, 120.0
WARM_UP_S = 5.0  # for sessions and tables
DRIVERS = ("n0", "n3", "n5")
ACT_S = (0.25, 0.25, 0.25, 0.08)  # between two acts of one driver, on average
SIZES = (10, 10, 3_000, 120_000, 300_000)  # inside a message, in an arena, with `Here`, in blocks
ENDED_S = 90.0  # for every wait to end, after the last fault
EMPTY_S = LEASE_S + 30.0  # for every hold to be let go: what a node that seemed gone had borrowed is kept for a while
ACTS = {"submit": 10, "call": 12, "create": 1.5, "drop": 6, "look": 3, "drop_handle": 0.7, "kill": 0.2, "find": 0.3}
ACTS |= {"cancel": 1.0, "make_group": 2.0, "remove_group": 0.2, "stream": 1.5, "take": 6, "let_go": 0.5}
STREAMS_MAX = 4  # of one driver at a time
ITEMS, WINDOWS, PAUSES_S = (0, 1, 3, 10, 40), (0, 0, 1, 3), (0.001, 0.01, 0.1)  # of generators
OF_ACTORS_GONE = {"ActorDiedError", "ActorUnavailableError"}
OF_ACTORS_GONE |= {"TaskError", *(f"TaskError({kind})" for kind in OF_ACTORS_GONE)}
"""What a node that goes on purpose may cost: actors that live there and may not restart, or do so now."""
SHARES = tuple(ACTS.values())
SPREAD = encode(DemandGiven(strategy=StrategyGiven(spread=True)))
META = Meta("Model", {})
KIND = "KIND"  # the variable of the environments
LETTERS = b"abcdefg"
FUNCTION, CODE = b"function", b"code"

Lived = tuple[tuple[int, bool, int], int]
"""(standing, incarnation) of one worker that is an actor. Both sides of a cut may begin an incarnation of one number:
what tells them apart is the epoch of a detached actor's row, by which one of them wins when they meet."""
FIRST: Lived = (0, False, 0), 0


@dataclass(eq=False, slots=True)
class Plan:
    """One task or call, as the universe's judge knows it."""

    number: int
    retries: int
    run_s: float
    size: int
    deps: list[Plan] = field(default_factory=list)
    nested: list[Plan] = field(default_factory=list)
    children: int = 0
    calls: int = 0  # of the actor whose handle it is given
    boxed: Plan | None = None  # what its result has a ref of
    crashes: int = 0  # times that it kills its worker
    actor: Actor | None = None
    floor: Lived = FIRST  # of a call: its caller has heard of this life
    lived: Lived | None = None  # of a call: the life in which it began last
    began_in: Unit | None = None  # of a call: the worker in which it began last
    order: int = 0
    starts: int = 0
    began: float = 0.0  # when it started last
    made: list[Plan] = field(default_factory=list)  # by its body
    group: Group | None = None
    items: int = 0  # of a generator
    pause_s: float = 0.0
    canceled: bool = False
    withdrawn: bool = False  # cancelled before anybody had heard of it
    outcome: str = ""
    who: Unit | None = None  # that waits for it
    kind: str = ""  # of a task: what its worker must have around it

    def __repr__(self) -> str:
        kind = "call" if self.actor is not None else "task"
        return f"<{kind} {self.number}: {self.starts} starts, {self.retries} retries, {self.outcome or 'open'}>"

    @property
    def needed(self) -> tuple[Plan, ...]:
        """What it fails without."""
        return *self.deps, *self.nested, *self.made

    def groups(self) -> list[Group]:
        """Placement groups that it runs in, or what it needs."""
        mine = [self.group] if self.group is not None else []
        return mine + [group for plan in self.needed for group in plan.groups()]

    @property
    def may_be_canceled(self) -> bool:
        """Whether somebody has cancelled it, or what it needs."""
        return self.canceled or any(plan.may_be_canceled for plan in self.needed)

    def outlasts_a_drain(self, now: float) -> bool:
        """Whether it, or what it needs, has run so long that a node that goes need not have waited for it: it waits for
        an actor that is busy with a generator, say, whose items nobody takes."""
        mine = self.starts > 0 and self.outcome != "value" and now - self.began >= GRACE_S
        return mine or any(plan.outlasts_a_drain(now) for plan in self.needed)

    def value(self) -> tuple[str, int, bytes]:
        """What it returns, without the ref of its box."""
        return "value", self.number, _pad(self.number % len(LETTERS), self.size)

    def item(self, at: int) -> tuple[str, int, int, bytes]:
        """What a generator makes."""
        return "item", self.number, at, _pad(at % len(LETTERS), self.size)

    def is_value(self, value: Any) -> bool:
        """Whether it is what this plan returns; of a boxed ref, that there is one."""
        return tuple(value[:3]) == self.value() and len(value) == 3 + (self.boxed is not None)


@dataclass(eq=False, slots=True)
class Actor:
    """What the play knows of an actor: how often it may restart, and who has called it how far."""

    number: int
    restarts: int
    retries: int
    name: str = ""
    detached: bool = False
    accepted: bool = False
    ended: bool = False  # somebody has killed it for good
    found: bool = False  # in the end, by its name
    lives: dict[Lived, Unit] = field(default_factory=dict)  # -> the worker that took its calls
    last: dict[tuple[Unit, Unit], int] = field(default_factory=dict)  # (worker, caller) -> order of its last call
    heard: dict[Unit, Lived] = field(default_factory=dict)  # by caller


@cache
def _pad(letter: int, size: int) -> bytes:
    return LETTERS[letter : letter + 1] * size


class TaskBody:
    """What a task or call does."""

    def __init__(self, play: Play, plan: Plan, args: Any, deps: list[Any]) -> None:
        self.play, self.plan, self.run_s = play, plan, plan.run_s
        self.items, self.pause_s, self.item = plan.items, plan.pause_s, plan.item
        self.room = SPAN_BYTES if plan.group is None else 0
        self.nested: list[ObjectRef] = args[1]
        self.handle: ActorHandle | None = args[2]
        self.deps = deps
        self.children: list[tuple[Plan, ObjectRef]] = []
        self.worker: SimWorker | None = None

    def begin(self, worker: SimWorker) -> list[ObjectRef]:
        """Look whether it may run here, and at its arguments; crash, if that is planned. Returns the refs that it
        waits for."""
        play, plan, rng = self.play, self.plan, self.play.universe.rng
        self.worker = worker
        plan.starts, plan.began = plan.starts + 1, play.universe.now
        play.universe.count("starts")
        play.hold(plan.starts <= 1 + plan.retries, f"{plan} started {plan.starts} times")
        play.hold(not plan.withdrawn, f"{plan} begins, and was cancelled before it was handed out")
        around = worker.environment().env_vars.get(KIND, "")
        play.hold(plan.actor is not None or around == plan.kind, f"{plan} begins in {around!r}, not in {plan.kind!r}")
        for made, value in zip(plan.deps, self.deps, strict=True):
            if not made.is_value(value):
                play.hold(False, f"{plan} reads {str(value)[:60]} instead of {made}")
        self.deps = []
        if plan.crashes:
            plan.crashes -= 1
            play.universe.count("crashes of workers")
            worker.later(rng.uniform(0, plan.run_s + plan.items * plan.pause_s), worker.unit.end)
        for _ in range(plan.children):
            if (submitted := play.submit(worker, children=0)) is not None:
                self.children.append(submitted)
        for _ in range(plan.calls):
            if self.handle is not None and (called := play.call(worker, self.handle)) is not None:
                self.children.append(called)
        plan.made += [child for child, _ in self.children]
        return [*self.nested, *(ref for _, ref in self.children)]

    def submitted(self) -> list[ObjectRef]:
        """Refs of what it has submitted, which is cancelled with it."""
        for child, _ in self.children:
            child.canceled = True
        return [ref for _, ref in self.children]

    def broken(self) -> None:
        """It was interrupted: its refs and its handle go."""
        self.nested, self.children, self.handle = [], [], None

    def end(self) -> Any:
        """Read what it waited for. Returns its value."""
        plan, worker = self.plan, self.worker
        assert worker is not None
        wanted = [*zip(plan.nested, self.nested, strict=True), *self.children]
        self.nested, self.children, self.handle = [], [], None
        for made, ref in wanted:
            value = worker.read(ref)
            if not made.is_value(value):
                self.play.hold(False, f"{plan} gets {str(value)[:60]} instead of {made}")
        if plan.boxed is None:
            return plan.value()
        return *plan.value(), worker.runtime.put(plan.boxed.value())


class ActorBody:
    """What a constructor does: it takes its time."""

    def __init__(self, run_s: float) -> None:
        self.run_s, self.room, self.items, self.pause_s = run_s, 0, 0, 0.0

    def begin(self, worker: SimWorker) -> list[ObjectRef]:
        return []

    def end(self) -> Any:
        return None

    def submitted(self) -> list[ObjectRef]:
        return []

    def broken(self) -> None: ...

    def item(self, at: int) -> Any:
        raise AssertionError("a constructor is no generator")


class Stream:
    """One generator of a driver's, and its items that the driver has refs of."""

    def __init__(self, plan: Plan, generator: ObjectRefGenerator) -> None:
        self.plan, self.generator = plan, generator
        self.taken = 0
        self.refs: dict[int, ObjectRef] = {}

    def take(self, most: int) -> None:
        """Those that are there."""
        while most > 0 and self.generator.next_ready():
            self.refs[self.taken] = next(self.generator)
            self.taken, most = self.taken + 1, most - 1


class Script:
    """What one driver does."""

    def __init__(self, play: Play, driver: SimDriver) -> None:
        self.play, self.driver = play, driver
        self.refs: dict[Plan, ObjectRef] = {}
        self.handles: dict[ActorHandle, None] = {}
        self.groups: list[Group] = []
        self.streams: list[Stream] = []
        self.settled: set[Plan] = set()  # in the end: what need not be looked at again
        self.acting = True
        self.doing = [getattr(self, act) for act in ACTS]
        self._next()

    def _next(self) -> None:
        self.driver.later(self.play.universe.rng.expovariate(1 / self.play.act_s), self.act)

    def act(self) -> None:
        """Do one thing at random, and soon another."""
        if not self.acting:
            return
        rng = self.play.universe.rng
        rng.choices(self.doing, SHARES)[0]()
        self._next()

    def submit(self) -> None:
        """A task, on refs that are known, perhaps in a placement group; a few are cancelled at once."""
        play, rng = self.play, self.play.universe.rng
        known = list(self.refs.items())
        deps = rng.sample(known, min(len(known), rng.choice((0, 0, 1, 2))))
        nested = rng.sample(known, min(len(known), rng.choice((0, 0, 0, 1, 2))))
        handle = rng.choice(list(self.handles)) if self.handles and rng.random() < 0.25 else None
        children = rng.choice((0, 0, 0, 0, 1, 3))
        placed = play.groups.any_of(self.groups)
        if placed is None:
            made = play.submit(self.driver, deps, nested, handle, children=children)
        else:
            made = play.submit(self.driver, children=0, placed=placed)
        self._keep(made)
        if made is not None and rng.random() < 0.06:  # somebody thinks better of it at once
            play.cancel(self.driver, *made)

    def call(self) -> None:
        """A few calls of one actor, in order."""
        rng = self.play.universe.rng
        if self.handles:
            handle = rng.choice(list(self.handles))
            known = list(self.refs.items())
            for _ in range(rng.randint(1, 4)):
                deps = rng.sample(known, min(len(known), rng.choice((0, 0, 1))))
                self._keep(self.play.call(self.driver, handle, deps))

    def create(self) -> None:
        """An actor, while it has few."""
        if len(self.handles) < 4:
            self.play.create(self)

    def stream(self) -> None:
        """A generator: a task, or a call."""
        if len(self.streams) < STREAMS_MAX:
            rng = self.play.universe.rng
            handle = rng.choice(list(self.handles)) if self.handles and rng.random() < 0.4 else None
            if (made := self.play.stream(self.driver, handle)) is not None:
                self.streams.append(made)

    def take(self) -> None:
        """Items that are there, of some generator; some are read, and all but a few forgotten."""
        if not self.streams:
            return
        rng = self.play.universe.rng
        stream = rng.choice(self.streams)
        stream.take(rng.choice((1, 2, 10, 50)))
        for at in rng.sample(list(stream.refs), min(len(stream.refs), 2)):
            self.check_item(stream, at)
        while len(stream.refs) > 5:
            del stream.refs[rng.choice(list(stream.refs))]
        if stream.generator.is_finished() and rng.random() < 0.3:
            self.streams.remove(stream)

    def let_go(self) -> None:
        """Nobody wants more of it."""
        if self.streams:
            self.streams.remove(self.play.universe.rng.choice(self.streams))
            self.play.universe.count("generators let go")

    def check_item(self, stream: Stream, at: int) -> bool:
        """Whether it is here, and right; or an error of ours."""
        ref, plan = stream.refs[at], stream.plan
        if not self.driver.is_here(ref):
            return False
        try:
            value = self.driver.read(ref)
        except LatticaError as error:
            self.play.failed(plan, type(error).__name__, str(error))
        else:
            self.play.universe.count("items read")
            if value != plan.item(at):
                self.play.hold(False, f"item {at} of {plan} is {str(value)[:60]}")
        return True

    def stream_ended(self, stream: Stream) -> bool:
        """Whether all that is to come of it has come and was read."""
        stream.take(1 << 20)
        for at in [at for at in stream.refs if self.check_item(stream, at)]:
            del stream.refs[at]
        if stream.refs or not stream.generator.is_finished():
            return False
        came, plan = stream.taken, stream.plan
        whole = came == plan.items if plan.outcome == "value" else came <= plan.items + 1
        self.play.hold(whole, f"{plan} makes {plan.items} items, and {came} came")
        return True

    def _keep(self, made: tuple[Plan, ObjectRef] | None) -> None:
        if made is not None:
            self.refs[made[0]] = made[1]

    def look(self) -> None:
        """`get` of something that is there."""
        done = [plan for plan in self.refs if plan.outcome == "value"]
        if done:
            self.check(self.play.universe.rng.choice(done))

    def check(self, plan: Plan) -> bool:
        """Whether its value is here, and right; or an error of ours is."""
        ref = self.refs[plan]
        if not self.driver.is_here(ref):
            return False
        try:
            value = self.driver.read(ref)
        except LatticaError as error:
            self.play.failed(plan, type(error).__name__, str(error))
        else:
            if not plan.is_value(value):
                self.play.hold(False, f"{plan} is {str(value)[:60]}")
            if plan.boxed is not None and self.acting:
                self.refs[plan.boxed] = value[3]
        return True

    def drop(self) -> None:
        """Let some refs go."""
        rng = self.play.universe.rng
        for plan in rng.sample(list(self.refs), min(len(self.refs), rng.randint(1, 5))):
            if len(self.refs) > 3:
                del self.refs[plan]

    def drop_handle(self) -> None:
        """Let an actor go."""
        if self.handles:
            del self.handles[self.play.universe.rng.choice(list(self.handles))]

    def kill(self) -> None:
        """An actor, for good or to be restarted."""
        if self.handles and self.play.rough:
            handle, rng = self.play.universe.rng.choice(list(self.handles)), self.play.universe.rng
            self.play.calm = False
            for_good = rng.random() < 0.5
            self.play.actors[handle._actor_id].ended |= for_good
            handle._peer.kill(for_good)

    def cancel(self) -> None:
        """One of what is under way."""
        under_way = [plan for plan in self.refs if not plan.outcome]
        if under_way:
            plan = self.play.universe.rng.choice(under_way)
            self.play.cancel(self.driver, plan, self.refs[plan])

    def make_group(self) -> None:
        """A placement group, if it has none."""
        if len(self.groups) < 1:
            self.groups.append(self.play.groups.make(self.driver))

    def remove_group(self) -> None:
        """End its placement group, with all that runs there."""
        if self.groups:
            self.play.groups.remove(self.driver, self.groups.pop())

    def find(self) -> None:
        """An actor by its name."""
        self.play.find(self)

    def ended(self) -> list[str]:
        """What is still waited for."""
        open = [plan for plan in list(self.refs) if plan not in self.settled and not self.check(plan)]
        self.settled.update(self.refs.keys() - open)
        self.streams = [stream for stream in self.streams if not self.stream_ended(stream)]
        streams = [f"{self.driver.unit.name} has {one.taken} items of {one.plan}" for one in self.streams]
        return [f"{self.driver.unit.name} waits for {plan}" for plan in open] + streams


class Play:
    """The workload, its faults, and what is known of both."""

    def __init__(self, universe: Universe, long: bool) -> None:
        self.universe, self.long = universe, long
        self.land = Land(universe, NAMES, self._fork)
        self.scripts: dict[str, Script] = {}
        self.plans: dict[int, Plan] = {}
        self.actors: dict[bytes, Actor] = {}
        self.lived: dict[Unit, Lived] = {}
        self.calm = True  # nothing was broken
        self.drained = False  # nodes were told to go
        self.rough = False  # drivers kill actors, and cancel by force
        self.breaking = True
        self.faults = Faults(self, NAMES, DRIVERS)
        self.groups = Groups(self)
        self.act_s = universe.rng.choice(ACT_S)
        self.named = 0
        self._units = 0

    # -- processes

    def _fork(self, host: NodeUnit, client: int, node: End, page: Any) -> Unit:
        self._units += 1
        unit = Unit(self.universe, f"{host.name}.w{self._units}")
        SimWorker(unit, node, host, page, client, self)
        return unit

    def drive(self, name: str) -> None:
        """A driver begins on this machine, as soon as there is a node."""
        node = self.land.node(name)
        if node is None:
            self.universe.after(0.5, self.drive, name)
            return
        self._units += 1
        unit = Unit(self.universe, f"{name}.d{self._units}")
        ours, theirs = self.universe.pipe()
        theirs.belongs(unit)
        node.unit.processes[unit] = None
        driver = SimDriver(unit, theirs, node.unit, lambda driver: self._begun(name, driver))
        node.connect_driver(ours, driver.hello("space"))

    def _begun(self, name: str, driver: SimDriver) -> None:
        self.scripts[name] = Script(self, driver)

    def living(self) -> list[Script]:
        """The drivers that live."""
        return [script for script in self.scripts.values() if script.driver.unit.alive]

    # -- what processes ask for

    def plan(self, process: SimProcess, **more: Any) -> Plan:
        """A new task or call: how long it runs, and what it returns, at random."""
        rng = self.universe.rng
        plan = Plan(
            len(self.plans) + 1,
            more.pop("retries"),
            rng.choice((0.001, 0.01, 0.05, 0.3, 1.0)),
            rng.choice(SIZES),
            **more,
        )
        plan.who = process.unit
        self.plans[plan.number] = plan
        if rng.random() < 0.15:
            plan.boxed = Plan(-plan.number, 0, 0.0, rng.choice(SIZES[:-1]))
            plan.boxed.outcome, plan.boxed.starts = "value", 1
        return plan

    def submit(
        self,
        process: SimProcess,
        deps: Any = (),
        nested: Any = (),
        handle: ActorHandle | None = None,
        *,
        children: int,
        placed: tuple[Group, bytes] | None = None,
    ) -> tuple[Plan, ObjectRef] | None:
        """A task of this process; None if it has no room for its arguments."""
        runtime, rng = process.runtime, self.universe.rng
        if not runtime.has_room(SPAN_BYTES // 4):
            return None
        plan = self.plan(process, retries=rng.choice((0, 3, 3, 3)))
        plan.deps, plan.nested = [dep for dep, _ in deps], [inner for inner, _ in nested]
        plan.children, plan.calls = children, rng.randint(1, 3) if handle is not None else 0
        if self.breaking and not self.calm and rng.random() < 0.05:
            plan.crashes = rng.choice((1, 1, 2, 5))
        args = (plan.number, [ref for _, ref in nested], handle, *(ref for _, ref in deps))
        body, dep_refs, at = encode_arguments(runtime, args, {}, "a task")
        runtime.tasks.exports.setdefault(FUNCTION, CODE)
        given = SPREAD if rng.random() < 0.4 else b""
        if placed is not None:
            plan.group, given = placed
            plan.size, plan.boxed = SIZES[0], None  # it never waits: see `execution_groups`
        plan.kind, environment = process.environment().env_vars.get(KIND, ""), b""
        if not plan.number % 10:  # without the dice
            plan.kind = "ab"[plan.number // 10 % 2]
            environment = runtime.environments.key({"env_vars": {KIND: plan.kind}})
            self.universe.count("tasks with an environment")
        lane = runtime.tasks.lane({"CPU": 1.0}, plan.retries != 0, given, environment=environment)
        refs = runtime.new_refs(1)
        record = TaskRecord(body, dep_refs, at, refs, 1, plan.retries, False, lane, FUNCTION, "a task")
        self._watch(plan, record, refs[0])
        runtime.tasks.submit(record)
        self.universe.count("tasks")
        return plan, refs[0]

    def call(self, process: SimProcess, handle: ActorHandle, deps: Any = ()) -> tuple[Plan, ObjectRef] | None:
        """A call of this actor; None if there is no room for its arguments."""
        runtime = process.runtime
        if not runtime.has_room(SPAN_BYTES // 4):
            return None
        actor = self.actors[handle._actor_id]
        plan = self.plan(process, retries=actor.retries, actor=actor)
        plan.deps = [dep for dep, _ in deps]
        plan.order, plan.floor = plan.number, actor.heard.get(process.unit, FIRST)
        args = (plan.number, [], None, *(ref for _, ref in deps))
        body, dep_refs, at = encode_arguments(runtime, args, {}, "a call")
        refs = runtime.new_refs(1)
        record = CallRecord(body, dep_refs, at, refs, 1, plan.retries, False, handle._peer, handle._hold, "act")
        self._watch(plan, record, refs[0])
        handle._peer.submit(record)
        self.universe.count("calls")
        return plan, refs[0]

    def stream(self, process: SimProcess, handle: ActorHandle | None) -> Stream | None:
        """A generator, of an actor or as a task; None if there is no room for its arguments."""
        runtime, rng = process.runtime, self.universe.rng
        if not runtime.has_room(SPAN_BYTES // 4):
            return None
        actor = self.actors[handle._actor_id] if handle is not None else None
        plan = self.plan(process, retries=rng.choice((0, 3, 3, 3)) if actor is None else actor.retries, actor=actor)
        plan.items, plan.pause_s, plan.boxed = rng.choice(ITEMS), rng.choice(PAUSES_S), None
        if self.breaking and not self.calm and rng.random() < 0.1:
            plan.crashes = rng.choice((1, 1, 2))
        body, dep_refs, at = encode_arguments(runtime, (plan.number, [], None), {}, "a generator")
        returns = to_wire(rng.choice(WINDOWS))
        refs = runtime.new_refs(returns)
        record: StreamTask | StreamCall
        if handle is None:
            runtime.tasks.exports.setdefault(FUNCTION, CODE)
            lane = runtime.tasks.lane({"CPU": 1.0}, plan.retries != 0, SPREAD if rng.random() < 0.4 else b"")
            record = StreamTask(body, dep_refs, at, refs, 1, plan.retries, False, lane, FUNCTION, "a generator")
        else:
            assert actor is not None
            plan.order, plan.floor = plan.number, actor.heard.get(process.unit, FIRST)
            record = StreamCall(body, dep_refs, at, refs, 1, plan.retries, False, handle._peer, handle._hold, "act")
        generator = record.begin(runtime, sys._getframe(), returns)
        self._watch(plan, record, generator.completed())
        if handle is None:
            runtime.tasks.submit(cast(TaskRecord, record))
        else:
            handle._peer.submit(cast(CallRecord, record))
        self.universe.count("generators")
        return Stream(plan, generator)

    def _watch(self, plan: Plan, record: Any, ref: ObjectRef) -> None:
        ref._task = record
        runtime = ref._runtime

        def done(ref: ObjectRef) -> None:
            failed = runtime.objects.failure_of(ref._value)
            if failed is None:
                plan.outcome = "value"
                self.hold(plan.starts > 0, f"{plan} has a value and never began")
                if plan.actor is not None and plan.lived is not None and plan.who is not None:
                    heard = plan.actor.heard
                    heard[plan.who] = max(heard.get(plan.who, FIRST), plan.lived)
            else:
                error = runtime.load_failure(failed)
                self.failed(plan, type(error).__name__, str(error))

        runtime.when_done(ref, done)

    def failed(self, plan: Plan, kind: str, words: str) -> None:
        """It ended in an error."""
        plan.outcome = kind
        self.universe.count(kind)
        canceled = "TaskCancelledError" in kind
        self.hold(not canceled or plan.may_be_canceled, f"{plan}, and nobody had cancelled it: {words}")
        groups = plan.groups()
        late = plan.outlasts_a_drain(self.universe.now)
        gone = self.drained and (kind in OF_ACTORS_GONE or bool(groups) or late)
        gone = gone or any(group.removed for group in groups)
        self.hold(canceled or gone or not self.calm, f"{plan}, and nothing was broken: {words}")

    def cancel(self, process: SimProcess, plan: Plan, ref: ObjectRef) -> None:
        """Stop what makes this ref."""
        rng, record = self.universe.rng, ref._task
        if record is None:
            return
        kind, is_task = "cancels", plan.actor is None
        force = self.rough and is_task and rng.random() < 0.2
        unheard = plan.starts == 0 and record.retries_left == plan.retries
        unheard = unheard and (record.lease is None if is_task else not record.seq)
        if force:
            kind, self.calm = "forced cancels", False  # a worker is killed
        self.universe.count(kind)
        plan.canceled = True
        process.runtime.cancel(ref, force=force, recursive=rng.random() < 0.7)
        if unheard:
            plan.withdrawn = True
            self.universe.count("withdrawn")
            self.hold(plan.outcome == "TaskCancelledError", f"{plan} was cancelled, not yet handed out, and goes on")

    def create(self, script: Script) -> None:
        """An actor for this driver, perhaps with a name, and detached."""
        driver, rng = script.driver, self.universe.rng
        runtime = driver.runtime
        id = self.universe.urandom(ACTOR_ID_BYTES)
        actor = self.actors[id] = Actor(len(self.actors) + 1, rng.choice((0, 1, 3, -1)), rng.choice((0, 0, 2)))
        peer, hold = runtime.calls.created(id, "Model", -1)
        request = runtime.next_request()
        name = ""
        if rng.random() < 0.5:
            self.named += 1
            name = f"name {self.named}"
            actor.name, actor.detached = name, rng.random() < 0.7
            self.universe.count("detached actors", actor.detached)
        given = SPREAD if rng.random() < 0.6 else b""
        mine = [ActorHandle(runtime, peer, hold, META)]
        if not name:  # else `remote` waits for the answer
            script.handles[mine.pop()] = None

        def answered(answer: Any) -> None:
            actor.accepted = isinstance(answer, m.ActorAccepted)
            if mine and script.acting and actor.accepted:
                script.handles[mine[0]] = None
            if isinstance(answer, m.ActorRefused):
                self.hold(not self.calm, f"actor {actor.number} is refused: {answer.reason}")
                peer.held = 0
                script.handles = {handle: None for handle in script.handles if handle._actor_id != id}
                peer.down(m.ActorDown(id, 0, False, answer.reason))
            mine.clear()

        runtime.expect(request, answered)
        runtime.tell_node(
            m.ActorCreate(
                request, id, msgspec.msgpack.encode(actor.number), {"CPU": rng.choice((0.0, 0.5))}, "Model", name,
                "space", actor.detached, False, actor.restarts, [], msgspec.msgpack.encode(META), False, given,
            )
        )  # fmt: skip
        self.universe.count("actors")

    def find(self, script: Script) -> None:
        """Look an actor up by one of the names that were given."""
        if not self.named:
            return
        runtime = script.driver.runtime
        request = runtime.next_request()

        def found(answer: Any) -> None:
            if isinstance(answer, m.ActorFound) and not script.acting:
                runtime.tell_node(m.Drop(answer.actor))
            elif isinstance(answer, m.ActorFound):
                self.universe.count("found")
                hold = runtime.calls.adopt(answer.actor)
                script.handles[revive(runtime, runtime.calls.peers[answer.actor], hold, answer.meta)] = None

        runtime.expect(request, found)
        name = f"name {self.universe.rng.randint(max(1, self.named - 3), self.named)}"
        runtime.tell_node(m.ActorLookup(request, name, "space"))

    # -- what workers run

    def actor(self, worker: SimWorker, message: m.BecomeActor) -> Body:
        """The constructor of an actor, as its worker runs it."""
        lived = self._lived(worker, message)
        if lived is not None:
            self.lived[worker.unit] = lived
        return ActorBody(self.universe.rng.uniform(0.001, 0.3))

    def _lived(self, worker: SimWorker, message: m.BecomeActor) -> Lived | None:
        """None: its node knows a row of this actor, and not whether this worker is the life that it speaks of."""
        node = worker.host.node
        if node is None or node.far is None:
            return None
        deciding = node.far.deciding
        life = deciding.token_of(worker.runtime.client)[1]
        if life is not None:
            return Life(*life).standing(), message.incarnation
        return None if message.actor in deciding.records else (FIRST[0], message.incarnation)

    def body(self, worker: SimWorker, caller: Caller, task: m.Task | m.Call, args: Any, deps: list[Any]) -> Body:
        """What a worker runs; asserts that calls of one caller begin in order, and in one life of the actor."""
        plan = self.plans[args[0][0]]
        if isinstance(task, m.Call):
            assert plan.actor is not None and worker.actor is not None and plan.who is not None
            plan.lived = mine = self.lived.get(worker.unit)
            if mine is not None:
                self.hold(mine >= plan.floor, f"{plan} begins in life {mine}, and its caller knows {plan.floor}")
                unit = plan.actor.lives.setdefault(mine, worker.unit)
                self.hold(unit is worker.unit, f"{plan} begins in {worker.unit}, and {unit} was life {mine} before")
            last = plan.actor.last.get((worker.unit, plan.who), 0)
            # A generator with retries runs again where a node was believed dead and lives on: see docs/semantics.md.
            again = task.returns < 0 and plan.began_in is worker.unit
            self.hold(plan.order > last or again, f"{plan} begins after call {last} of its caller, in one life")
            plan.actor.last[worker.unit, plan.who], plan.began_in = max(plan.order, last), worker.unit
        if plan.group is not None:
            self.groups.begins(worker, plan)
        return TaskBody(self, plan, args[0], deps)

    def hold(self, true: bool, words: str) -> None:
        """Assert it, wherever an exception would go."""
        if not true:
            self.universe.troubles.append(words)

    # -- the end

    def end_detached(self) -> None:
        """Look each up by its name, and kill it."""
        scripts = self.living()
        if not scripts:
            return
        runtime = scripts[0].driver.runtime

        def ended(actor: Actor, answer: Any) -> None:
            if isinstance(answer, m.ActorFound):
                actor.found = True
                runtime.tell_node(m.ActorKill(answer.actor))
                runtime.tell_node(m.Drop(answer.actor))

        for actor in self.actors.values():
            if actor.detached:
                request = runtime.next_request()
                runtime.expect(request, partial(ended, actor))
                runtime.tell_node(m.ActorLookup(request, actor.name, "space"))

    def lost_detached(self) -> list[str]:
        """Detached actors that must live and were not found. Nodes that crash may take one that is only just made."""
        lasting = [
            actor for actor in self.actors.values() if actor.detached and actor.accepted and actor.restarts == -1
        ]
        self.universe.count("detached actors found", sum(actor.found for actor in lasting))
        return [] if self.rough else [f"{actor.name} is not found" for actor in lasting if not actor.found]

    def open_waits(self) -> list[str]:
        """What is not answered, in words."""
        found = [wait for script in self.living() for wait in script.ended()]
        alive = [plan for plan in self.plans.values() if not plan.outcome and plan.who is not None and plan.who.alive]
        return found + [f"{plan.who} waits for {plan}" for plan in alive]

    def left(self, *, drivers: bool) -> list[str]:
        """What is still held somewhere. drivers: they still live."""
        found: list[str] = []
        for name in NAMES:
            node = self.land.node(name)
            if node is None or node.far is None:
                found.append(f"{name} is down")
                continue
            far, ledger = node.far, node.store.ledger
            found += (
                [f"{name} was told to go, and is still here"] if node.drain is not None and node.drain.draining else []
            )
            found += [f"{name} keeps {self._about(node, object)}" for object in ledger._entries]
            found += self.groups.left(name, node)
            if node.resources.taken:
                found.append(f"{name}: {node.resources.taken} taken")
            found += [f"{name} lends {lease}" for lease in node.book.leases.values()]
            found += [f"{name}: {far.workers.leases} elsewhere"] if far.workers.leases else []
            found += [f"{name}: wishes {list(far.placing.wishes)}"] if far.placing.wishes else []
            found += [f"{name}: {node.actor_desk.supervisor}"] if node.actor_desk.supervisor.actors else []
            found += [f"{name}: {far.hosting.hosted} hosted"] if far.hosting.hosted else []
            found += [f"{name}: {far.objects.fetching.wanted} wanted"] if far.objects.fetching.wanted else []
            found += [f"{name}: {far.actors._foreign} foreign"] if far.actors._foreign else []
            if not drivers:
                found += [f"{name}: {len(far.workers.aways)} workers elsewhere"] if far.workers.aways else []
                found += [f"{name}: {len(far.hosting.guests)} guests"] if far.hosting.guests else []
                found += [f"{name}: {len(far.proxies)} proxies: {far.proxies}"] if far.proxies else []
                found += [
                    f"{name}: {len(n.link.carriers)} carriers" for n in far.neighbours.values() if n.link.carriers
                ]
                found += [f"{name}: jobs {list(node.jobs)}"] if node.jobs else []
                found += [f"{name}: {node.pool}"] if node.pool.workers else []
        return found

    def _about(self, node: SimNode, object: bytes) -> str:
        ledger, clients = node.store.ledger, node.clients
        entry = ledger._entries[object]
        holders = {
            f"{clients[number].kind} {number} {clients[number].name}" if number in clients else str(number): count
            for number, client in ledger._clients.items()
            if (count := client.counts.get(object, 0))
        }
        kind = "actor" if len(object) == ACTOR_ID_BYTES else "object"
        whose = f"{holders}, {entry.holders} in all"
        return f"{kind} {object.hex()} of {whose}, {entry.state}, lent by {ledger.lender(object)}"

    def validate(self) -> None:
        for name in self.land.living:
            node = self.land.node(name)
            if node is not None:
                node.book.validate()
                self.groups.validate(node, self.land.cpus[name])
                node.pool.validate()
                node.store.ledger.validate()
                node.actor_desk.supervisor.validate()
        for script in self.living():
            script.driver.runtime.objects.lineage.validate()
            for lane in script.driver.runtime.tasks.lanes.values():
                lane.core.validate()


def play(seed: int, long: bool = False, happens: str = "") -> Universe:
    """Busy for BUSY_S, for LONG_S if `long`; then all is healed, let go and ended.

    happens: "faults", "drains" (nodes go on purpose) or "nothing"; empty: one of them.
    """
    with Universe(seed) as universe:
        _play(universe, long, happens)
        return universe


def _play(universe: Universe, long: bool, happens: str = "") -> None:
    act = Play(universe, long)
    universe.invariants.append(act.validate)
    for name in NAMES:
        universe.after(universe.rng.uniform(0, 1.0), act.land.start, name)
    universe.run(until=WARM_UP_S)
    for name in DRIVERS:
        act.drive(name)
    until = universe.now + (LONG_S if long else BUSY_S)
    happens = happens or universe.rng.choices(("faults", "drains", "nothing"), (8, 1, 1))[0]
    act.rough = happens == "faults"
    if happens != "nothing":
        universe.run(until=universe.now + 3.0)
        (act.faults.break_things if act.rough else act.faults.drain_some)(until)
    universe.run(until=until)
    act.faults.heal()
    for script in act.scripts.values():
        script.acting = False
    universe.run(until=universe.now + 10.0)
    for script in act.scripts.values():
        script.acting = False
    universe.run_until(lambda: not act.open_waits(), within_s=ENDED_S, missing=lambda: "; ".join(act.open_waits()[:6]))
    for script in act.living():
        script.refs.clear()
        script.handles.clear()
        script.streams.clear()
        while script.groups:
            script.remove_group()
    for wait_s in range(0, 40, 5):
        universe.after(wait_s, act.end_detached)
    universe.run_until(
        lambda: not act.left(drivers=True),
        within_s=EMPTY_S,
        missing=lambda: "\n".join(act.left(drivers=True)[:12]),
    )
    if lost := act.lost_detached():
        universe.fail("; ".join(lost))
    for script in act.living():
        script.driver.unit.end()
    universe.run_until(
        lambda: not act.left(drivers=False),
        within_s=EMPTY_S,
        missing=lambda: "\n".join(act.left(drivers=False)[:12]),
    )
    act.validate()
