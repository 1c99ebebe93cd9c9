"""The processes of one machine as participants of a world, as far as objects go: who holds what, and what is told.

The node's `Ledger` is the real core. The processes do what `actors.objects` does: they seal what they share, tell a
`Give` before they send a ref, take a `Hold` when they read a ref inside a value, promise results that they share before
these exist, and have a task run again when its worker died. What the second attempt makes may be small though the first
one sealed it, and the other way round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from lattica.codec import messages as m
from lattica.objectstore.ledger import Adopt, FreeRegion, Ledger, Tell, Unreferenced
from lattica.testing.world import Closed, Send, World

NODE = "node"
SPAN_BYTES = 1 << 20  # each process writes into one span of its own; a region is 64 bytes and never used twice
REGION_BYTES = 64
RUN_S = (0.0001, 0.02)


@dataclass(frozen=True, slots=True)
class Create:
    """An actor was created; its handle is counted like a ref."""

    actor: bytes


@dataclass(frozen=True, slots=True)
class Ref:
    """A ref on its way, already given at the node."""

    object: bytes


@dataclass(frozen=True, slots=True)
class Run:
    """A task: make `object` for me; the refs in `args` are given to you."""

    object: bytes
    args: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """Its value: at `offset` in the arena, sealed for the submitter; or small and inside this message."""

    object: bytes
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Died:
    """The node has seen this process end, and has read all that it wrote (as `LeaseLost` and `ActorDown` say)."""

    name: str


class Arena:
    """Shared memory as all see it: what lies where, and which refs are inside."""

    def __init__(self) -> None:
        self.regions: dict[int, tuple[bytes, tuple[bytes, ...]]] = {}
        self.flying: Counter[tuple[bytes, str]] = Counter()  # (object, receiver) of refs and replies on their way
        self.unreferenced: set[bytes] = set()


class Node:
    """The desk of the store: the ledger says what is free."""

    def __init__(self, world: World, arena: Arena) -> None:
        self.world, self.arena, self.ledger = world, arena, Ledger()
        self.names: dict[int, str] = {}
        self.numbers: dict[str, int] = {}

    def join(self, name: str) -> int:
        number = len(self.names) + 1
        self.names[number], self.numbers[name] = name, number
        self.ledger.client_joined(number, token(number))
        return number

    def receive(self, sender: str, message: object, now: float) -> Sequence[object]:
        client, ledger = self.numbers[sender], self.ledger
        sends: list[object] = []
        match message:
            case m.Seal():
                effects = ledger.seal(
                    client, message.object, message.offset, message.size, message.to, message.failed, message.contains
                )
            case m.Give():
                effects = ledger.give(client, message.object, message.to, message.count)
            case m.Hold():
                effects = ledger.hold(client, message.object)
            case m.Drop():
                effects = ledger.drop(client, message.object, message.count)
            case m.Promise():
                effects = ledger.promise(client, message.object)
            case m.Resolve():
                effects = ledger.resolve(client, message.objects)
            case m.Unheard():
                effects = ledger.unheard(client, message.objects, message.maker, message.attempt)
            case Create(actor):
                effects = ledger.track(client, actor)
            case Closed():
                effects = ledger.client_gone(client, "it was killed")
                sends += [Send(name, Died(sender)) for name in self.world.living if name != NODE]
            case _:
                raise AssertionError(f"the node does not expect {message}")
        for effect in effects:
            match effect:
                case Tell(to, told):
                    sends.append(Send(self.names[to], told))
                    if isinstance(told, m.Freed):
                        self._may_go(told.object)
                case FreeRegion(offset, _) if isinstance(message, m.Unheard):
                    self._nobody_reads(offset)
                    del self.arena.regions[offset]
                case FreeRegion(offset, _):
                    self._may_go(self.arena.regions.pop(offset)[0])
                case Adopt(gone, live):
                    kept = {offset for offset, _ in live}
                    span = range(gone * SPAN_BYTES, (gone + 1) * SPAN_BYTES)
                    for offset in [at for at in self.arena.regions if at in span and at not in kept]:
                        self._may_go(self.arena.regions.pop(offset)[0])
                case Unreferenced(actor):
                    self._may_go(actor)
                    self.arena.unreferenced.add(actor)
        return sends

    def _may_go(self, object: bytes) -> None:
        """Safety: nobody who lives has it, or will have it from a message on its way."""
        for name in self.world.living:
            if name != NODE:
                process: Process = self.world.core(name)
                assert object not in process.refs, f"{object.hex()} is freed, and {name} holds it"
                assert not self.arena.flying[object, name], f"{object.hex()} is freed, and is on its way to {name}"
        for other, inside in self.arena.regions.values():
            assert object not in inside or other == object or not self._is_held(other), (
                "a part of a held value is freed"
            )

    def _nobody_reads(self, offset: int) -> None:
        """Safety: the object lives, and is made or has been made anew; its bytes of an earlier attempt go."""
        object, _ = self.arena.regions[offset]
        for name in self.world.living:
            assert name == NODE or self.world.core(name).where.get(object) != offset, f"{name} reads {object.hex()}"

    def _is_held(self, object: bytes) -> bool:
        return any(object in self.world.core(name).refs for name in self.world.living if name != NODE)

    def tick(self, now: float) -> Sequence[object]:
        return []

    def next_deadline(self) -> float | None:
        return None

    def validate(self) -> None:
        self.ledger.validate()


def token(number: int) -> bytes:
    """What a process's ids begin with."""
    return number.to_bytes(8, "big")


class Process:
    """A driver or worker, as far as objects go. `act` does one random thing."""

    def __init__(self, world: World, arena: Arena, name: str, number: int, rng: Random) -> None:
        self.world, self.arena, self.name, self.number, self.rng = world, arena, name, number, rng
        self.refs: dict[bytes, int] = {}  # what this process has, and its count at the node (0: the node knows nothing)
        self.pending: dict[bytes, tuple[str, tuple[bytes, ...]]] = {}  # results that are being made: by whom, from what
        self.promised: set[bytes] = set()
        self.unwanted: set[bytes] = set()  # dropped by the program while they are pending
        self.where: dict[bytes, int] = {}  # offset of what it knows to lie in the arena
        self.asked: set[bytes] = set()
        self.closed: set[str] = set()
        self.dead: set[str] = set()
        self.work: list[tuple[float, str, Run | Reply]] = []
        self._serials = count(1)
        self._offsets = count(number * SPAN_BYTES, REGION_BYTES)

    # -- what it does by itself

    def act(self, now: float) -> Sequence[object]:
        doing = self.rng.choices(
            [self._put, self._create, self._share, self._call, self._ask, self._read, self._drop], [2, 1, 4, 4, 2, 3, 4]
        )
        return doing[0](now)

    def drop_all(self, now: float) -> Sequence[object]:
        return [effect for object in list(self.refs) for effect in self._let_go(object)]

    def _new_id(self) -> bytes:
        return token(self.number) + next(self._serials).to_bytes(8, "big")

    def _put(self, now: float) -> list[object]:
        object, inside = self._new_id(), self._some_known(2)
        self.refs[object] = 1
        return [*self._prepared(inside), self._seal(object, inside, 0)[0]]

    def _create(self, now: float) -> list[object]:
        actor = token(self.number) + b"act" + next(self._serials).to_bytes(5, "big")
        self.refs[actor] = 1
        return [Send(NODE, Create(actor))]

    def _share(self, now: float) -> list[object]:
        to, shared = self._peer(), self._some_known(1)
        return (
            []
            if to is None
            else [*self._prepared(shared), *self._give(shared, to), *(self._fly(o, to) for o in shared)]
        )

    def _call(self, now: float) -> list[object]:
        to, args = self._peer(), self._some_known(2)
        if to is None:
            return []
        object = self._new_id()
        self.refs[object] = 0
        return [*self._prepared(args), *self._submit(object, to, args)]

    def _submit(self, object: bytes, to: str, args: tuple[bytes, ...]) -> list[object]:
        self.pending[object] = to, args
        for arg in args:
            self.arena.flying[arg, to] += 1
        return [*self._give(args, to), Send(to, Run(object, args))]

    def _ask(self, now: float) -> list[object]:
        unknown = [o for o in self.refs if self._is_borrowed(o) and o not in self.where and o not in self.asked]
        asked = self.rng.sample(unknown, min(len(unknown), 3))
        self.asked.update(asked)
        return [Send(NODE, m.Resolve(asked))] if asked else []

    def _read(self, now: float) -> list[object]:
        """Look into a value: it must be there; the refs found in it are this process's own from now on."""
        held = [object for object in self.where if object in self.refs]
        if not held:
            return []
        outer = self.rng.choice(held)
        there = self.arena.regions.get(self.where[outer])
        assert there is not None and there[0] == outer, f"{self.name} reads {outer.hex()}, and it is not there"
        met = [inner for inner in there[1] if inner not in self.refs]
        self.refs.update(dict.fromkeys(met, 1))
        return [Send(NODE, m.Hold(inner)) for inner in met]

    def _drop(self, now: float) -> list[object]:
        return self._let_go(self.rng.choice(list(self.refs))) if self.refs else []

    def _let_go(self, object: bytes) -> list[object]:
        if object in self.pending:  # its task keeps the ref until it has ended
            self.unwanted.add(object)
            return []
        counted = self.refs.pop(object)
        self.where.pop(object, None)
        for known in (self.asked, self.promised, self.unwanted):
            known.discard(object)
        return [Send(NODE, m.Drop(object, counted))] if counted else []

    # -- what it hears

    def receive(self, sender: str, message: object, now: float) -> Sequence[object]:
        match message:
            case Ref(object):
                self._landed(object)
            case Run(object, args):
                for arg in args:
                    self._landed(arg)
                self.work.append((now + self.rng.uniform(*RUN_S), sender, message))
            case Reply(object, offset):
                return self._replied(object, offset)
            case m.Located(object, offset):
                self.asked.discard(object)
                if object in self.refs:
                    self.where[object] = offset
            case m.Lost(object):
                owner = f"process {int.from_bytes(object[:8], 'big')}"
                assert not self.world.is_alive(owner), f"{self.name} hears that {object.hex()} is lost; {owner} lives"
                self.asked.discard(object)
            case m.Freed(object):
                gone = [
                    at
                    for at, (who, _) in self.arena.regions.items()
                    if who == object and at // SPAN_BYTES == self.number
                ]
                for offset in gone:
                    del self.arena.regions[offset]
            case Closed():
                self.work = [entry for entry in self.work if entry[1] != sender]
                self.closed.add(sender)
                return self._mourn(sender)
            case Died(name):
                self.dead.add(name)
                return self._mourn(name)
        return []

    def _mourn(self, name: str) -> list[object]:
        """Once its last words are read, and the node has said that it is dead, its tasks run again."""
        if name not in self.closed & self.dead:
            return []
        again = [(object, args) for object, (to, args) in self.pending.items() if to == name]
        unheard = Send(NODE, m.Unheard([object for object, _ in again], int(name.split()[1])))
        return [unheard] * bool(again) + [effect for object, args in again for effect in self._run_again(object, args)]

    def _landed(self, object: bytes) -> None:
        self.refs[object] = self.refs.get(object, 0) + 1
        self.arena.flying[object, self.name] -= 1

    def _replied(self, object: bytes, offset: int | None) -> list[object]:
        if offset is not None:
            self._landed(object)
        if self.pending.pop(object, None) is None:
            return []
        effects = []
        if offset is not None:
            self.where[object] = offset
        elif object in self.promised:  # the seal's hold takes the place of the promise's
            effects = [self._seal(object, (), 0)[0], Send(NODE, m.Drop(object))]
        return effects + (self._let_go(object) if object in self.unwanted else [])

    def _run_again(self, object: bytes, args: tuple[bytes, ...]) -> list[object]:
        return self._submit(object, self._peer() or self.name, tuple(arg for arg in args if arg in self.refs))

    # -- what it runs for others

    def tick(self, now: float) -> Sequence[object]:
        due = [entry for entry in self.work if entry[0] <= now]
        self.work = [entry for entry in self.work if entry[0] > now]
        return [effect for _, submitter, step in due for effect in self._execute(submitter, step, now)]

    def _execute(self, submitter: str, step: Run | Reply, now: float) -> list[object]:
        """Seal the result, then reply; it may die in between, and the task runs again elsewhere."""
        match step:
            case Run(object) if self.rng.random() < 0.75:
                inside, to = self._some_known(2), int(submitter.split()[1])
                sealed, offset = self._seal(object, inside, to)
                self.work.append((now + self.rng.uniform(*RUN_S), submitter, Reply(object, offset)))
                return [*self._prepared(inside), sealed]
            case Run(object):
                return [Send(submitter, Reply(object))]
            case Reply(object):
                self.arena.flying[object, submitter] += 1
                return [Send(submitter, step)]

    # -- telling the node

    def _prepared(self, objects: tuple[bytes, ...]) -> list[object]:
        """The node is told of results that do not exist yet before they are shared; of small ones, by sealing them."""
        effects: list[object] = []
        for object in objects:
            if not self.refs[object]:
                self.refs[object] = 1
                if object in self.pending:
                    self.promised.add(object)
                    effects.append(Send(NODE, m.Promise(object)))
                else:
                    effects.append(self._seal(object, (), 0)[0])
        return effects

    def _give(self, objects: tuple[bytes, ...], to: str) -> list[object]:
        return [Send(NODE, m.Give(object, int(to.split()[1]))) for object in objects]

    def _fly(self, object: bytes, to: str) -> Send:
        self.arena.flying[object, to] += 1
        return Send(to, Ref(object))

    def _seal(self, object: bytes, inside: tuple[bytes, ...], to: int) -> tuple[Send, int]:
        """What tells the node, and the offset."""
        offset = next(self._offsets)
        self.arena.regions[offset] = object, inside
        if not to:
            self.where[object] = offset
        return Send(NODE, m.Seal(object, offset, REGION_BYTES, to=to, contains=list(inside))), offset

    def _is_borrowed(self, object: bytes) -> bool:
        return object[:8] != token(self.number) and object[8:11] != b"act"

    def _peer(self) -> str | None:
        others = [name for name in self.world.living if name not in (NODE, self.name, *self.closed)]
        return self.rng.choice(others) if others else None

    def _some_known(self, most: int) -> tuple[bytes, ...]:
        held = [object for object in self.refs if object not in self.unwanted]
        return tuple(self.rng.sample(held, min(len(held), self.rng.randint(1, most))))

    def next_deadline(self) -> float | None:
        return min((due for due, _, _ in self.work), default=None)

    def validate(self) -> None:
        assert all(counted >= 0 for counted in self.refs.values())
        assert self.pending.keys() | self.promised <= self.refs.keys(), "a result is being made for nobody"
