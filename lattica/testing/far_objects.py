"""Several machines whose processes give each other objects: the real ledgers and `node.far_objects`, and no sockets.

    process ──tells, in order──► its node ──Took, Returned, Want, Here, in order──► another node
       └───────────── carries a value to a process there, in order, and at its own pace ─────────►

Between channels there is no order. Bytes are the object's own id, written where the node says: whoever reads anything
else there reads what was freed too early. A node that dies takes its processes along; one that is merely told of it
lets go what it lent. `World.settle` ends with every process holding nothing, and no ledger may know anything then.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

from lattica.codec import far
from lattica.codec import messages as m
from lattica.mesh.identity import PeerId
from lattica.node.far_objects import FarObjects
from lattica.objectstore.ledger import Adopt, FreeRegion, Ledger, Tell, Unborrowed

DELAY_S = (0.004, 0.05)  # between machines
HERE_S = (0.0001, 0.001)  # on one: a node has read what was written to it before another machine can answer to that
NEXT_S = 1e-6  # timers of one time have no order
SEEN_S = (0.1, 0.3)  # from a node's death to when another knows
REGION_BYTES, SPAN_BYTES = 16, 1 << 12
HANDED_OVER_S = 8.0  # as in the desk
DEATHS = 0.01  # of processes, per step
PAST_S = 70.0  # after which nothing is on its way, and no lease of a node that is gone lasts
CID = b"cid "  # an object's is this and its id
NO_PATH_S = 1.0  # after which a link that cannot be had is given up


class Channel:
    """Messages in order, each some time after it was sent."""

    crowded = False

    def __init__(
        self,
        world: World,
        hear: Callable[[Any], None],
        over: Callable[[], bool],
        delay_s: tuple[float, float] = HERE_S,
    ) -> None:
        self._world, self._hear, self._over, self._at, self._delay_s = world, hear, over, 0.0, delay_s

    def send(self, message: Any, size: int = 0) -> None:
        self._at = max(self._at + NEXT_S, self._world.loop.time() + self._world.rng.uniform(*self._delay_s))
        self._world.loop.call_at(self._at, self._arrive, message)

    def _arrive(self, message: Any) -> None:
        if not self._over():
            self._hear(message)


class Store:
    """The node's store desk: it carries out what the ledger decides, on a dictionary of offsets."""

    def __init__(self, node: Machine) -> None:
        self.node, self.ledger, self.memory = node, Ledger(), dict[int, bytes]()
        self.arena = SimpleNamespace(write=self._write, fd=-1, size_bytes=1 << 40)
        self.spill = None  # there is room for everything
        self._next = 0
        self.made: set[int] = set()  # where processes have written

    def room(self, size: int) -> int:
        size = -(-size // SPAN_BYTES) * SPAN_BYTES
        self._next += size
        return self._next - size

    def free(self, object_: bytes) -> None:
        """A process has heard that nobody holds what it made: it writes something else there."""
        for offset, data in list(self.memory.items()):
            if data == object_ and offset in self.made:
                self.made.discard(offset)
                del self.memory[offset]

    def _write(self, offset: int, parts: Sequence[bytes]) -> None:
        self.memory[offset] = b"".join(parts)

    def joined(self, client: int, token: bytes) -> None:
        self.ledger.client_joined(client, token)

    def span(self, client: Any, message: m.SpanRequest) -> None:
        client.send(m.SpanGrant(message.request, self.room(SPAN_BYTES), SPAN_BYTES))

    def span_back(self, client: Any, message: Any) -> None:
        """Offsets are never used twice."""

    def perform(self, effects: Sequence[Any]) -> None:
        for effect in effects:
            match effect:
                case Tell(client, message):
                    self.node.tell(client, message)
                case FreeRegion(offset, _):
                    self.memory.pop(offset, None)
                case Unborrowed(lender, object_):
                    self.node.objects.unborrowed(lender, object_)
                case Adopt(_, _):
                    pass
        self.ledger.validate()


class Far(FarObjects):
    """With memory that is a dictionary."""

    def reading(self) -> Any:
        store: Any = self._node.store
        memory = store.memory
        return SimpleNamespace(read=lambda offset, size: memory[offset][:size])


class Machine:
    """One node: what `FarObjects` needs of its node and of its desk, and its processes."""

    def __init__(self, world: World, peer: bytes) -> None:
        self.world, self.loop, self.me, self.closing = world, world.loop, PeerId(peer), False
        self.node, self.clients, self.count = self, dict[int, Any](), 0
        self.store = Store(self)
        self.neighbours: dict[PeerId, Any] = {}
        self.proxies: dict[int, tuple[Any, int]] = {}
        self.far_names: dict[int, dict[int, int]] = {}
        self.processes: list[Process] = []
        self.peer = SimpleNamespace(
            id=self.me, serve=lambda *_, **__: None, has_session=lambda _: True, find_providers=world.providers
        )
        self.dead: set[PeerId] = set()  # as far as is known here
        self.objects = Far(self)  # type: ignore[arg-type]  # what it needs of a desk
        self.objects.blocks = SimpleNamespace(  # type: ignore[assignment]
            offer=lambda *_: None,
            withdraw=lambda _: None,
            cid_of=lambda object_: CID + object_ if self.store.ledger.place(object_) else b"",
        )

    def new_number(self) -> int:
        self.count += 1
        return self.count

    def lives(self, peer: PeerId) -> bool:
        """As `FarDesk.lives`."""
        return peer not in self.dead and peer != self.me

    def may_return(self, peer: PeerId) -> bool:
        """As `FarDesk.may_return`: a machine that is gone refuses."""
        gone = any(machine.me == peer and machine.closing for machine in self.world.machines)
        return peer in self.dead and not gone

    def neighbour(self, peer: PeerId) -> Any:
        """As `FarDesk.neighbour`."""
        if peer not in self.neighbours:
            self.meet(next(machine for machine in self.world.machines if machine.me == peer))
        return self.neighbours[peer]

    def by_client(self, number: int) -> Any:
        """As `FarDesk.by_client`."""
        return next((each for each in self.neighbours.values() if each.client.number == number), None)

    def tell(self, client: int, message: Any) -> None:
        entry = self.clients.get(client)
        if entry is not None:
            entry.send(message)

    def meet(self, other: Machine) -> None:
        """A link with it, this way."""
        number = self.new_number()
        cut = {self.me, other.me} in self.world.cut
        since = self.world.partings(self, other)
        channel = Channel(
            self.world,
            lambda message: other.hear(self, message),
            lambda: cut or self.closing or other.closing or self.world.partings(self, other) != since,
            DELAY_S,
        )
        if cut or other.closing:
            self.world.loop.call_later(NO_PATH_S, self.part, other)
        client = SimpleNamespace(number=number, name=f"node {other.me.hex()[:4]}")
        neighbour = SimpleNamespace(peer=other.me, client=client, link=channel, doubtful=False)
        client.send = lambda message: self._told(neighbour, message)
        self.clients[number] = client
        self.neighbours[other.me] = neighbour
        self.store.joined(number, b"")

    def _told(self, neighbour: Any, message: Any) -> None:
        match message:
            case m.Located():
                self.objects.serving.located(neighbour, message)
            case m.Lost():
                neighbour.link.send(far.Nowhere(message.object, message.owner, message.made_at))

    def hear(self, other: Machine, message: Any) -> None:
        """A message of another node."""
        if other.me in self.dead:
            return
        neighbour = self.neighbour(other.me)
        self.world.heard[type(message).__name__ + " away" * getattr(message, "away", False)] += 1
        match message:
            case far.Took():
                self.objects.lending.took(neighbour, message)
            case far.Returned():
                self.objects.lending.returned(neighbour, message)
            case far.Want():
                self.objects.serving.want(neighbour, message)
            case far.Here():
                self.objects.fetching.here(neighbour, message)
            case far.Nowhere():
                self.objects.fetching.nowhere(neighbour, message)
            case far.Has():
                self.objects.serving.has(neighbour, message)
            case int():  # a process there is gone, and all that it had said: what it was given is let go
                self.world.loop.call_later(HANDED_OVER_S, self.proxies.pop, message, None)
                self.clients.pop(message, None)
                self.store.perform(self.store.ledger.client_gone(message, "it is gone"))

    def client_gone(self, client: Any, how: str) -> None:
        """As `Node.client_gone`: what is kept of proxies is the desk's to let go."""
        self.clients.pop(client.number, None)

    def back(self, other: Machine) -> None:
        """That node lives after all: as `FarDesk._member_changed`."""
        if not other.closing and other.me in self.dead:
            self.dead.discard(other.me)
            self.objects.searching.member_changed(other.me)

    def part(self, other: Machine) -> None:
        """That node is dead, or has no path to us: as `FarDesk._link_ended`."""
        if other.closing:
            self.dead.add(other.me)
        neighbour = self.neighbours.pop(other.me, None)
        if neighbour is not None and not self.closing:
            self.objects.parting(neighbour, "its machine is gone")
            self.clients.pop(neighbour.client.number, None)
            self.store.perform(self.store.ledger.client_gone(neighbour.client.number, "its machine is gone"))
            self.objects.parted(neighbour, "its machine is gone")


class Process:
    """Holds objects, gives them on, reads and drops them."""

    def __init__(self, machine: Machine, token: bytes) -> None:
        self.machine, self.token, self.dead, self._made = machine, token, False, 0
        self.number = machine.new_number()
        self.counts: Counter[bytes] = Counter()
        self.asked: set[bytes] = set()
        self.numbers: dict[Process, tuple[int, int]] = {}  # other -> (its number here, ours there)
        machine.clients[self.number] = self._inbox = Channel(machine.world, self.hear, lambda: machine.closing)
        self._out = Channel(machine.world, lambda verb: verb(), lambda: machine.closing)
        self._wires: dict[Process, Channel] = {}
        machine.store.joined(self.number, token)
        machine.processes.append(self)

    def __repr__(self) -> str:
        return f"<Process {self.token!r} with {len(self.counts)} objects>"

    def tell(self, verb: Callable[..., Any], *args: Any) -> None:
        """Have the node do this when it reads it."""
        perform = self.machine.store.perform
        self._out.send(lambda: perform(verb(self.number, *args)))

    def put(self) -> bytes:
        """An object of ours, sealed."""
        self._made += 1
        object_ = self.token + self._made.to_bytes(8, "big")
        offset = self.machine.store.room(REGION_BYTES)
        self.machine.store.memory[offset] = object_
        self.machine.store.made.add(offset)
        self.counts[object_] += 1
        contains = [inner for inner in self.counts if inner != object_ and self.machine.world.rng.random() < 0.15]
        seal = self.machine.store.ledger.seal
        self.tell(lambda me, *_: seal(me, object_, offset, REGION_BYTES, 0, False, contains))
        return object_

    def promise(self) -> bytes:
        """An object of ours that somebody else makes."""
        self._made += 1
        object_ = self.token + self._made.to_bytes(8, "big")
        self.counts[object_] += 1
        self.tell(self.machine.store.ledger.promise, object_)
        return object_

    def make(self, object_: bytes, to: Process, attempt: int = 0) -> None:
        """An object of that process elsewhere, which hears that it lies here."""
        self.machine.world.attempts[object_] = attempt
        if to not in self.numbers:
            self._connect(to)
        offset, here = self.machine.store.room(REGION_BYTES), self.numbers[to][0]
        self.machine.store.memory[offset] = object_
        self.machine.store.made.add(offset)
        seal, there = self.machine.store.ledger.seal, self.numbers[to][1]
        self.tell(lambda me, *_: seal(me, object_, offset, REGION_BYTES, here, False, (), attempt))
        self._wire(to).send((object_, -there))

    def send(self, object_: bytes, to: Process) -> None:
        """Give it to a process of this machine or of another; both sides have a number for each other."""
        ledger, world = self.machine.store.ledger, self.machine.world
        if to.machine is self.machine:
            self.tell(ledger.give, object_, to.number)
            self._wire(to).send((object_, 0))
            return
        if to not in self.numbers:
            self._connect(to)
        here, there = self.numbers[to]
        assert world.loop.time() >= 0
        self.tell(ledger.give, object_, here)
        self._wire(to).send((object_, there))

    def reaches(self, to: Process) -> bool:
        """Whether there is a path to it."""
        here, there = self.machine, to.machine
        strangers = there.me in here.dead or here.me in there.dead
        return {here.me, there.me} not in here.world.cut and not strangers

    def _wire(self, to: Process) -> Channel:
        if to not in self._wires:
            here, there, world = self.machine, to.machine, self.machine.world
            since = world.partings(here, there)
            self._wires[to] = Channel(
                world,
                to.given,
                lambda: here.closing or there.closing or world.partings(here, there) != since,
                HERE_S if there is here else DELAY_S,
            )
        return self._wires[to]

    def disconnect(self, other: Process) -> None:
        """With the link between the two nodes, the connections of their processes have ended."""
        self.numbers.pop(other, None)
        self._wires.pop(other, None)

    def _connect(self, to: Process) -> None:
        ours, theirs = self.machine, to.machine
        here, there = ours.new_number(), theirs.new_number()
        for machine, number, other in ((ours, here, theirs), (theirs, there, ours)):
            machine.store.joined(number, b"")
            machine.clients[number] = SimpleNamespace(number=number, send=lambda _: None)
            if other.me not in machine.dead:
                machine.neighbour(other.me)
                machine.proxies[number] = machine.neighbours[other.me], there if machine is ours else here
        self.numbers[to], to.numbers[self] = (here, there), (there, here)

    def given(self, message: tuple[bytes, int]) -> None:
        """Another process gave us a hold. via: by what number our node knows it, if it is elsewhere; negative: it made
        what we had promised."""
        object_, via = message
        if self.dead:
            if via:  # as `Worker.discard` and the drain of what a dead process had not read: nobody took it
                return
            return
        self.counts[object_] += 1
        if via:
            value = via < 0 or (self.machine.world.rng.random() < 0.5 and object_[:8] != self.token)
            attempt = self.machine.world.attempts[object_] if via < 0 else 0
            word = m.FromAfar(object_, abs(via), value, attempt)
            self._out.send(lambda: self.machine.objects.lending.imported(self, word))  # type: ignore[arg-type]

    def read(self, object_: bytes) -> None:
        """Ask where it lies."""
        self.asked.add(object_)

        def resolve() -> None:
            self.machine.store.perform(self.machine.store.ledger.resolve(self.number, [object_]))
            self.machine.objects.fetching.resolve([object_])

        self._out.send(resolve)

    def drop(self, object_: bytes) -> None:
        """Let all our holds on it go."""
        count = self.counts.pop(object_, 0)
        self.asked.discard(object_)
        if count:
            self.tell(self.machine.store.ledger.drop, object_, count)

    def hear(self, message: Any) -> None:
        """A word of the node: safety is seen here."""
        if self.dead:
            return
        world = self.machine.world
        match message:
            case m.Located(object_, offset, size, _) if object_ in self.asked:
                self.asked.discard(object_)
                world.reads += 1
                found = self.machine.store.memory.get(offset)
                assert found is not None and found[:size] == object_, (
                    f"seed {world.seed}: {self} read {found!r} for {object_!r} at {world.loop.time():.4f}"
                )
            case m.Lost(doubtful=True):
                world.doubts += 1
            case m.Lost(object_) if object_.startswith(self.token):
                world.losses += object_ in self.asked
                self.asked.discard(object_)
                self._seal_failure(object_)
            case m.Lost(object_) if object_ in self.asked:
                self.asked.discard(object_)
                world.losses += 1
                assert world.deaths or world.silences, (
                    f"seed {world.seed}: {object_!r} is lost ({message.owner}), and no machine is"
                )
            case m.Freed(object_) if self.machine.store.memory:
                self.machine.store.free(object_)

    def _seal_failure(self, object_: bytes) -> None:
        """It is ours, and we cannot make it again: whoever asks for it shall hear that."""
        store = self.machine.store
        offset = store.room(REGION_BYTES)
        store.memory[offset] = object_
        store.made.add(offset)
        self.tell(lambda me, *_: store.ledger.seal(me, object_, offset, REGION_BYTES, 0, True, []))
        self.tell(store.ledger.drop, object_)

    def die(self) -> None:
        """All that it wrote is read, then the node sees its end, and tells those who know it."""
        self.dead = True

        def seen() -> None:
            machine = self.machine
            machine.clients.pop(self.number, None)
            machine.store.perform(machine.store.ledger.client_gone(self.number, "it ended"))
            for other, (_, there) in self.numbers.items():
                neighbour = machine.neighbours.get(other.machine.me)
                if neighbour is not None:
                    neighbour.link.send(there)

        self._out.send(seen)


class World:
    """Machines, from one seed."""

    def __init__(
        self, seed: int, machines: int = 3, processes: int = 3, cut: Sequence[tuple[int, int]] = (), met: bool = True
    ) -> None:
        """cut: pairs of machines, from 0, that have no path to each other. met: all have links from the start."""
        self.cut = [{PeerId(bytes([each + 1]) * 32) for each in pair} for pair in cut]
        self.heard: Counter[str] = Counter()  # messages between nodes, by kind
        self.seed, self.rng, self.loop = seed, Random(seed), asyncio.get_running_loop()
        self.attempts: Counter[bytes] = Counter()  # object -> by which run it was made last
        self._partings: Counter[frozenset[PeerId]] = Counter()
        self.reads = self.losses = self.deaths = self.silences = self.doubts = 0
        self.machines = [Machine(self, bytes([number]) * 32) for number in range(1, machines + 1)]
        for one in self.machines:
            for other in self.machines:
                if met and other is not one and {one.me, other.me} not in self.cut:
                    one.meet(other)
        self.processes = [
            Process(machine, bytes([number, each, 0, 0, 0, 0, 0, 0]))
            for number, machine in enumerate(self.machines)
            for each in range(processes)
        ]

    def partings(self, one: Machine, other: Machine) -> int:
        """How often their links have ended by a silence: what was said over one is not heard by the next."""
        return self._partings[frozenset({one.me, other.me})]

    async def providers(self, cid: bytes) -> dict[PeerId, tuple[str, ...]]:
        """The DHT."""
        self.heard["find_providers"] += 1
        have = [one for one in self.machines if not one.closing and one.store.ledger.place(cid.removeprefix(CID))]
        return {one.me: () for one in have}

    @property
    def living(self) -> list[Process]:
        return [process for process in self.processes if not process.dead and not process.machine.closing]

    def step(self) -> None:
        """Somebody does something."""
        if not self.living:
            return
        process = self.rng.choice(self.living)
        dice = self.rng.random()
        held = list(process.counts)
        if not held or dice < 0.15:
            process.put()
        elif dice < 0.5:
            others = [other for other in self.living if other is not process and process.reaches(other)]
            if others:
                process.send(self.rng.choice(held), self.rng.choice(others))
        elif dice < 0.5 + DEATHS and len(self.living) > 3:
            process.die()
        elif dice < 0.75:
            process.read(self.rng.choice(held))
        else:
            process.drop(self.rng.choice(held))

    def kill(self, victim: Machine | None = None) -> None:
        """A machine and all that is on it."""
        victim = victim or self.rng.choice([machine for machine in self.machines if not machine.closing])
        victim.closing = True
        self.deaths += 1
        for machine in self.machines:
            self.loop.call_later(self.rng.uniform(*SEEN_S), machine.part, victim)

    def silence(self, silent: Machine, others: Sequence[Machine], seconds: float, *, mutual: bool = True) -> None:
        """It is silent so long that the others believe it dead, and it them (`mutual`), or it only finds its links
        ended; then each hears that the other lives."""
        self.silences += 1
        for other in others:
            self._partings[frozenset({silent.me, other.me})] += 1
            for ours in silent.processes:
                for theirs in other.processes:
                    ours.disconnect(theirs)
                    theirs.disconnect(ours)
            for one, away in ((other, silent), (silent, other)):
                if mutual or one is other:
                    one.dead.add(away.me)
                    self.loop.call_later(seconds, one.back, away)
                one.part(away)

    async def run(self, steps: int, deaths: int, silences: int = 0) -> None:
        """Live for so many steps, with so many machines dying or falling silent, then let everything go."""
        fatal = set(self.rng.sample(range(steps), deaths))
        mute = set(self.rng.sample(range(steps), silences))
        for number in range(steps):
            if number in fatal:
                self.kill()
            living = [machine for machine in self.machines if not machine.closing]
            if number in mute and len(living) > 1:
                silent, other = self.rng.sample(living, 2)
                self.silence(silent, [other], self.rng.choice((0.3, 3.0, 10.0)))
            self.step()
            await asyncio.sleep(self.rng.uniform(0, 0.02))
        await asyncio.sleep(PAST_S)
        for process in self.living:
            assert not process.asked, f"seed {self.seed}: {process} waits for {process.asked}"
            for object_ in list(process.counts):
                process.drop(object_)
        await asyncio.sleep(PAST_S)
        for machine in self.machines:
            if not machine.closing:
                ledger = machine.store.ledger
                assert not ledger._entries, f"seed {self.seed}: {ledger!r} still knows {list(ledger._entries)[:3]}"
