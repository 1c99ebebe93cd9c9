"""Any correct program, in any order of messages and deaths: what is held is never freed, and in the end all is.

Clients act at once and tell the node in streams of their own; the node reads them in any order between clients. What
clients send each other arrives whenever it likes. Beside the ledger stands the truth: who really holds what.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from random import Random

import pytest

from lattica.codec.messages import Freed, Located, Lost
from lattica.objectstore.ledger import Adopt, Effect, FreeRegion, Ledger, Tell, Unreferenced

CLIENTS = 4  # alive at a time
OBJECTS = 6  # held at a time: few, so that much happens to each
STEPS = 300
WEIGHTS = {
    "put": 3,
    "create_actor": 1,
    "submit": 3,
    "finish": 2,
    "give": 12,
    "arrive": 8,
    "drop": 8,
    "load": 5,
    "resolve": 8,
    "die": 1,
    "start": 1,
    "read": 16,
    "bury": 1,
    "settle": 1,
}


@dataclass
class Process:
    """One client: what it really holds, what it has told and the node has not read, and what it waits to be told."""

    token: bytes
    holds: Counter[bytes] = field(default_factory=Counter)
    told: deque[tuple[str, tuple[object, ...]]] = field(default_factory=deque)
    awaits: set[bytes] = field(default_factory=set)
    dying: bool = False


@dataclass
class Region:
    """Bytes of an object in a span of `maker`."""

    object: bytes
    maker: int
    contains: list[bytes]
    told: bool = False  # the node has read the Seal
    free: bool = False


class LedgerWorld:
    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.ledger = Ledger()
        self.clients: dict[int, Process] = {}
        self.regions: dict[int, Region] = {}  # by offset
        self.born: dict[bytes, int] = {}  # object -> when: values contain only older objects, so there are no rings
        self.tasks: dict[bytes, int] = {}  # results still to come -> submitter
        self.promised: set[bytes] = set()
        self.located: dict[tuple[int, bytes], int] = {}  # (client, object) -> where it was told that it lies
        self.rerun: set[bytes] = set()  # of these, sealed once by a worker that died before it replied
        self.unheard: dict[bytes, int] = {}  # where their first attempts lie
        self.mail: list[tuple[int, bytes]] = []  # (to, object): one hold each, on its way
        self.actors: dict[bytes, bool] = {}  # actor -> the node has heard that nobody holds it
        self.buried: set[int] = set()
        self.slow = 0
        for _ in range(CLIENTS):
            self.start()

    def step(self) -> None:
        verb = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        getattr(self, verb)()
        self.check()

    # -- what programs do

    def alive(self) -> list[int]:
        return [client for client, process in self.clients.items() if not process.dying]

    def held(self) -> list[tuple[int, bytes]]:
        return [(client, object) for client in self.alive() for object in sorted(self.clients[client].holds)]

    def tell(self, client: int, verb: str, *args: object) -> None:
        self.clients[client].told.append((verb, args))

    def new(self) -> tuple[int, bytes] | None:
        if len({object for _, object in self.held()}) >= OBJECTS:
            return None
        client = self.rng.choice(self.alive())
        object = self.clients[client].token + len(self.born).to_bytes(8, "big")
        self.born[object] = len(self.born)
        return client, object

    def seal(self, client: int, object: bytes, to: int) -> None:
        inside = [other for other in sorted(self.clients[client].holds) if self.born[other] < self.born[object]]
        contains = self.rng.choices(inside, k=self.rng.randrange(3)) if inside else []
        offset = len(self.regions)
        self.regions[offset] = Region(object, client, contains)
        self.tell(client, "seal", object, offset, 1, to, False, contains)

    def put(self) -> None:
        if made := self.new():
            client, object = made
            self.seal(client, object, 0)
            self.clients[client].holds[object] += 1

    def create_actor(self) -> None:
        if made := self.new():
            client, actor = made
            self.actors[actor] = False
            self.tell(client, "track", actor)
            self.clients[client].holds[actor] += 1

    def submit(self) -> None:
        if made := self.new():
            client, object = made
            self.tasks[object] = client
            if self.rng.random() < 0.7:  # the ref leaves the submitter before the result is there
                self.promised.add(object)
                self.tell(client, "promise", object, "program.py:1")
                self.clients[client].holds[object] += 1

    def finish(self) -> None:
        """A worker seals a result and replies, or dies between the two; then another will run the task again."""
        ready = [object for object in self.tasks if object not in self.rerun or self.first_attempt_is_over(object)]
        if not ready:
            return
        object = self.rng.choice(ready)
        submitter, worker = self.tasks[object], self.rng.choice(self.alive())
        if object in self.rerun:
            self.tell(submitter, "unheard", [object], self.regions[self.unheard[object]].maker)
            if self.rng.random() < 0.5:
                self.finish_small(submitter, object)
                return
        self.seal(worker, object, submitter)
        dies = self.rng.random() < 0.3 and worker != submitter and len(self.alive()) > 2 and object not in self.rerun
        if dies:
            self.rerun.add(object)
            self.unheard[object] = len(self.regions) - 1
            self.kill(worker)
        else:
            del self.tasks[object]
            self.mail.append((submitter, object))

    def finish_small(self, submitter: int, object: bytes) -> None:
        """The second attempt makes a small value, which the submitter seals itself if it has shared the ref."""
        del self.tasks[object]
        if object in self.promised:
            self.seal(submitter, object, 0)
            self.tell(submitter, "drop", object, 1)

    def first_attempt_is_over(self, object: bytes) -> bool:
        """The submitter hears that the worker is lost after the node has read its last word."""
        return all(region.maker in self.buried for region in self.regions.values() if region.object == object)

    def give(self) -> None:
        if held := self.held():
            client, object = self.rng.choice(held)
            to = self.rng.choice(self.alive())
            self.tell(client, "give", object, to)
            self.mail.append((to, object))

    def arrive(self) -> None:
        if self.mail:
            to, object = self.mail.pop(self.rng.randrange(len(self.mail)))
            if not self.clients[to].dying:
                self.clients[to].holds[object] += 1

    def drop(self) -> None:
        if held := self.held():
            client, object = self.rng.choice(held)
            self.let_go(client, object, self.rng.randint(1, self.clients[client].holds[object]))

    def let_go(self, client: int, object: bytes, count: int) -> None:
        process = self.clients[client]
        process.holds[object] -= count
        if not process.holds[object]:
            del process.holds[object]
            process.awaits.discard(object)  # nobody waits for what he has let go
            self.located.pop((client, object), None)
        self.tell(client, "drop", object, count)

    def load(self) -> None:
        """Read a value that the node has located, and take holds on what is inside."""
        if held := self.held():
            client, object = self.rng.choice(held)
            there = self.located.get((client, object))
            first = self.unheard.get(object)  # nobody knows of it but who was told
            regions = [
                region
                for offset, region in self.regions.items()
                if region.object == object and region.told and (offset != first or offset == there)
            ]
            for inner in regions[-1].contains if regions else []:
                self.tell(client, "hold", inner)
                self.clients[client].holds[inner] += 1

    def resolve(self) -> None:
        """Borrowers ask; an owner hears of its values from who makes them."""
        tokens = {client: process.token for client, process in self.clients.items()}
        held = [(client, o) for client, o in self.held() if o not in self.actors and o[:8] != tokens[client]]
        if held:
            client, object = self.rng.choice(held)
            self.tell(client, "resolve", [object])
            self.clients[client].awaits.add(object)

    def die(self) -> None:
        if len(self.alive()) > 2:
            self.kill(self.rng.choice(self.alive()))

    def kill(self, client: int) -> None:
        process = self.clients[client]
        process.dying = True
        process.holds.clear()
        process.awaits.clear()
        self.tasks = {object: submitter for object, submitter in self.tasks.items() if submitter != client}

    def start(self) -> None:
        if len(self.clients) < CLIENTS:
            client = 1 + len(self.clients) + len(self.buried)
            self.clients[client] = Process(b"token%03d" % client)
            self.ledger.client_joined(client, self.clients[client].token)

    # -- what the node does

    def read(self) -> None:
        """Some of what one client has told. One of them has a connection that is read much later than the others."""
        if waiting := [client for client, process in self.clients.items() if process.told]:
            client = self.rng.choice(waiting)
            if client % CLIENTS != self.slow or self.rng.random() < 0.1:
                self.read_from(client, self.rng.choice((1, 1, 3, 10)))

    def read_from(self, client: int, count: int = 1 << 30) -> None:
        told = self.clients[client].told
        for _ in range(min(count, len(told))):
            verb, args = told.popleft()
            if verb == "seal":
                self.regions[args[1]].told = True
            self.perform(getattr(self.ledger, verb)(client, *args))

    def bury(self) -> None:
        if dying := [client for client, process in self.clients.items() if process.dying]:
            self.end(self.rng.choice(dying))

    def end(self, client: int) -> None:
        self.read_from(client)
        self.buried.add(client)
        del self.clients[client]
        self.mail = [(to, object) for to, object in self.mail if to != client]
        effects = self.ledger.client_gone(client, f"client {client} was killed")
        assert isinstance(effects[0], Adopt) and effects[0].client == client
        self.perform(effects)

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Tell(client, Located(object, offset, size, failed)):
                    region = self.regions[offset]
                    assert region.object == object and not region.free and (size, failed) == (1, False)
                    self.clients[client].awaits.discard(object)
                    if object in self.clients[client].holds:
                        self.located[client, object] = offset
                case Tell(client, Lost(object)):
                    owners = [n for n, process in self.clients.items() if process.token == object[:8]]
                    assert not owners, "lost although its owner lives"
                    self.clients[client].awaits.discard(object)
                case Tell(client, Freed(object)):
                    key = (object, client, False)
                    self.free(next(r for r in self.regions.values() if (r.object, r.maker, r.free) == key))
                case FreeRegion(offset, _):
                    assert self.regions[offset].maker in self.buried
                    self.free(self.regions[offset])
                case Adopt(client, live):
                    for offset, region in self.regions.items():
                        if region.maker == client and not region.free and (offset, 1) not in live:
                            self.free(region)
                case Unreferenced(actor):
                    assert not self.actors[actor], "told twice"
                    self.actors[actor] = True

    def free(self, region: Region) -> None:
        assert not region.free, "freed twice"
        region.free = True

    # -- what must hold

    def really_held(self) -> set[bytes]:
        held = {object for process in self.clients.values() for object in process.holds}
        held |= {object for to, object in self.mail if not self.clients[to].dying}
        queue = list(held)
        while queue:
            object = queue.pop()
            for region in self.regions.values():
                if region.object == object and not region.free:
                    queue += [inner for inner in region.contains if inner not in held]
                    held.update(region.contains)
        return held

    def check(self) -> None:
        self.ledger.validate()
        held = self.really_held()
        newest = {region.object: region for region in self.regions.values()}  # of an earlier attempt's nobody may know
        assert not [region for region in newest.values() if region.free and region.object in held]
        for (client, object), offset in self.located.items():
            reads = client in self.clients and object in self.clients[client].holds
            assert not (reads and self.regions[offset].free), f"client {client} reads what is freed"
        assert not [actor for actor, unreferenced in self.actors.items() if unreferenced and actor in held]

    def settle(self) -> None:
        """All mail arrives, all is read, and the dead are buried: whoever waits now waits for a task."""
        self.slow = self.rng.randrange(CLIENTS)
        for client in [client for client, process in self.clients.items() if process.dying]:
            self.end(client)
        while self.mail:
            self.arrive()
        for client in self.clients:
            self.read_from(client)
        self.check()
        unanswered = {object for process in self.clients.values() for object in process.awaits}
        assert unanswered <= self.tasks.keys(), "an answer is missing"

    def finish_all(self) -> None:
        while self.tasks:
            self.finish()
            self.settle()

    def leave(self) -> None:
        """Every second client lets go of what it has, the others die."""
        leaving = self.alive()
        for client in leaving[::2]:
            for object, count in list(self.clients[client].holds.items()):
                self.let_go(client, object, count)
            self.read_from(client)
        for client in leaving[1::2]:
            self.kill(client)
            self.end(client)


@pytest.mark.parametrize("seed", range(150))
def test_what_is_held_stays_who_waits_is_answered_and_nothing_remains(seed: int) -> None:
    world = LedgerWorld(seed)
    for _ in range(STEPS):
        world.step()
    world.settle()
    world.finish_all()
    world.leave()
    world.ledger.validate()
    assert world.ledger.pending == 0
    assert not world.ledger._entries, "something is kept that nobody holds"
    assert all(region.free for region in world.regions.values()), "bytes have leaked"
    assert all(world.actors.values()), "an actor that nobody can call lives on"
