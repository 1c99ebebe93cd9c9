"""The processes of one machine as participants of a world, as far as actors go.

The node's `Supervisor` and `Ledger` (for handles) and each actor's `Mailbox` are the real cores. The shells do what
`node.actor_desk`, `actors.calls` and `actors.actor_host` do: callers queue calls in order, send what is owed again to
the next incarnation if it may be repeated, and hear a dead actor out before they believe that it is dead. A connection
that is cut swallows what is under way; over the next one callers send again what is owed. The shells assert what only
they can see: calls start in their callers' order, once in an incarnation, and not more often than they may.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

from lattica.actors.mailbox import KEPT_BYTES_MAX, Mailbox, Unanswered
from lattica.actors.supervision import (
    Accept,
    Become,
    CancelNeed,
    Connect,
    Down,
    Effect,
    End,
    EndWorker,
    Forget,
    Found,
    NeedWorker,
    Plan,
    Refuse,
    Release,
    Supervisor,
)  # fmt: skip
from lattica.objectstore.ledger import Effect as LedgerEffect
from lattica.objectstore.ledger import Ledger, Unreferenced
from lattica.testing.world import Closed, Send, World

NODE, NODE_CLIENT = "node", 0
FORK_S = (0.002, 0.01)
RUN_S = (0.0001, 0.02)
CUT_S = (0.0, 0.03)  # until an end hears of it
ARGUMENTS_S = (0.0, 0.3)  # until an announced actor can be begun
NAMES = ("", "", "", "learner", "buffer")  # few, so that callers meet; mostly anonymous


@dataclass(eq=False, slots=True)
class Call:
    """One method call, over all its attempts. `order`: its place among the calls of its caller to that actor."""

    actor: bytes
    order: int
    retries: int
    exits: bool = False  # the method calls exit_actor()
    seq: int = 0
    starts: int = 0
    hosts: set[str] = field(default_factory=set)  # where it has started
    outcome: str = ""  # "", "done", "died", "unavailable", "dropped"


@dataclass(frozen=True, slots=True)
class Wish:
    """Create, bring the arguments ("arguments", "no arguments"), look up, kill, give or drop, as a caller tells it."""

    verb: str
    request: int = 0
    actor: bytes = b""
    plan: Plan | None = None
    name: str = ""
    to: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """Of the node to a create or a look-up; `actor` is empty if it was refused."""

    request: int
    actor: bytes


@dataclass(frozen=True, slots=True)
class Connected:
    """From the node to both ends of a connection."""

    actor: bytes
    worker: str
    incarnation: int
    caller: str
    number: int


@dataclass(frozen=True, slots=True)
class Over:
    """A call, or a reply, over connection `number`."""

    number: int
    message: Run | Reply


@dataclass(frozen=True, slots=True)
class Broken:
    """To one end of a connection: it brings nothing more."""

    number: int


@dataclass(frozen=True, slots=True)
class Run:
    """To the actor: a call. From the node to a worker, with `plan`: be this actor."""

    call: Call | None = None
    plan: Plan | None = None
    seq: int = 0
    acked: int = 0
    object: bytes = b""
    group: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """From a worker to the node: "ready", "failed" or "leaving"; from the node to a worker: "release" or "close"."""

    what: str


@dataclass(frozen=True, slots=True)
class Reply:
    """From a worker to a caller: its call has been answered."""

    seq: int
    dropped: bool = False  # it ran, and the reply was not kept


@dataclass(frozen=True, slots=True)
class Handle:
    """A handle on its way, already given at the node."""

    actor: bytes


class Node:
    """The desk of actors."""

    def __init__(self, world: World) -> None:
        self.world, self.supervisor, self.ledger = world, Supervisor(), Ledger()
        self.names: dict[int, str] = {}
        self.numbers: dict[str, int] = {}
        self.cancelled: set[tuple[bytes, int]] = set()
        self.doomed: set[str] = set()
        self.lives: Counter[bytes] = Counter()  # processes that each actor has run in
        self.connections: list[tuple[str, str]] = []  # the ends of each, by number
        self.cuts: set[int] = set()

    def join(self, name: str) -> int:
        number = len(self.names) + 1
        self.names[number], self.numbers[name] = name, number
        self.ledger.client_joined(number, number.to_bytes(8, "big"))
        return number

    def receive(self, sender: str, message: object, now: float) -> Sequence[object]:
        client, desk = self.numbers[sender], self.supervisor
        actor = desk.actor_of(client)
        match message:
            case Wish("create", request, _, Plan() as plan):
                return self._perform(desk.create(client, request, plan))
            case Wish("arguments", actor=wanted):
                return self._perform(desk.arguments(client, wanted, b"", ()))
            case Wish("no arguments", actor=wanted):
                return self._perform(desk.argument_failed(client, wanted, b"error"))
            case Wish("lookup", request, name=name):
                return self._perform(desk.lookup(client, request, name, ""))
            case Wish("connect", actor=wanted):
                return self._perform(desk.connect(client, wanted))
            case Wish("kill" | "end", actor=wanted):
                return self._perform(desk.kill(wanted, no_restart=message.verb == "end"))
            case Wish("give", actor=given, to=to):
                return self._counted(self.ledger.give(client, given, to))
            case Wish("drop", actor=dropped):
                return self._counted(self.ledger.drop(client, dropped))
            case Said("ready") if actor is not None:
                return self._perform(desk.ready(client, actor.plan.actor))
            case Said("failed") if actor is not None:
                return self._perform(desk.failed(client, actor.plan.actor, b"error"))
            case Said("leaving") if actor is not None:
                return self._perform(desk.leaving(client, actor.plan.actor, ""))
            case Closed():
                effects = desk.worker_gone(client, End("killed"), now) + desk.client_gone(client)
                sends = self._perform(effects) + self._counted(self.ledger.client_gone(client, "killed"))
                outlive = [actor for actor in desk.living_in(client) if actor.plan.detached]
                sends += self._perform(desk.job_ended(client))
                assert desk.living_in(client) == outlive, "the detached actors, and no others, outlive their job"
                return sends
        return []

    def fork(self, actor: bytes, incarnation: int, job: int, now: float) -> Sequence[object]:
        """A worker for this incarnation has started, unless it is not wanted any more."""
        if (actor, incarnation) in self.cancelled:
            return []
        name = f"worker {len(self.names) + 1}"
        number = self.join(name)
        self.world.add(name, lambda: Worker(self.world, name))
        self.world.connect(name, NODE)
        effects = self.supervisor.assigned(actor, incarnation, number, now)
        if not effects:
            self.world.crash(name)  # it would be free again
        return self._perform(effects)

    def cut(self) -> None:
        """Break a connection of living ends: each hears so after a while, and what then is still under way is lost."""
        whole = [
            number
            for number, ends in enumerate(self.connections)
            if number not in self.cuts and all(self.world.is_alive(end) for end in ends)
        ]
        if whole:
            number = self.world.rng.choice(whole[-20:])
            self.cuts.add(number)
            self.world.note("the world", f"cuts connection {number}")
            for end in self.connections[number]:
                after_s = self.world.rng.uniform(*CUT_S)
                self.world.after(after_s, self.world.tell, end, "receive", NODE, Broken(number))

    def over(self, number: int, to: str, message: Run | Reply) -> list[object]:
        """Send it over this connection, if that is whole."""
        return [] if number in self.cuts else [Send(to, Over(number, message))]

    def end_all(self, now: float) -> Sequence[object]:
        """As an admin would: the detached actors of drivers that are gone have no other end."""
        return [
            sent for actor in list(self.supervisor.actors) for sent in self._perform(self.supervisor.kill(actor, True))
        ]

    def _counted(self, effects: Sequence[LedgerEffect]) -> list[object]:
        gone = [effect.actor for effect in effects if isinstance(effect, Unreferenced)]
        return [sent for actor in gone for sent in self._perform(self.supervisor.unreferenced(actor))]

    def _perform(self, effects: list[Effect]) -> list[object]:
        sends: list[object] = []
        for effect in effects:
            match effect:
                case Accept(client, request, actor, existing):
                    if existing:
                        self.ledger.give(NODE_CLIENT, actor, client)
                    else:
                        self.ledger.track(client, actor)
                        if self.supervisor.actors[actor].plan.detached:
                            self.ledger.give(NODE_CLIENT, actor, NODE_CLIENT)
                    sends.append(Send(self.names[client], Answer(request, actor)))
                case Refuse(client, request):
                    sends.append(Send(self.names[client], Answer(request, b"")))
                case Found(client, request, actor):
                    self.ledger.give(NODE_CLIENT, actor, client)
                    sends.append(Send(self.names[client], Answer(request, actor)))
                case NeedWorker(actor, incarnation, pause_s):
                    delay_s, job = pause_s + self.world.rng.uniform(*FORK_S), self.supervisor.actors[actor].plan.job
                    self.world.after(delay_s, self.world.tell, NODE, "fork", actor, incarnation, job)
                case CancelNeed(actor, incarnation):
                    self.cancelled.add((actor, incarnation))
                case Become(actor, _, worker):
                    plan = self.supervisor.actors[actor].plan
                    self.lives[actor] += 1
                    assert plan.max_restarts < 0 or self.lives[actor] <= 1 + plan.max_restarts, f"{plan} lives on"
                    sends.append(Send(self.names[worker], Run(plan=plan)))
                case Connect(client, actor, incarnation, worker):
                    ends = self.names[client], self.names[worker]
                    self.world.connect(*ends)
                    told = Connected(actor, ends[1], incarnation, ends[0], len(self.connections))
                    self.connections.append(ends)
                    sends += [Send(end, told) for end in ends]
                case Down(client):
                    sends.append(Send(self.names[client], effect))
                case EndWorker(worker, kill):
                    self.doomed.add(self.names[worker])
                    if kill:
                        self.world.after(0, self.world.crash, self.names[worker])
                    else:
                        sends.append(Send(self.names[worker], Said("close")))
                case Release(_, worker):
                    sends.append(Send(self.names[worker], Said("release")))
                case Forget(actor, _, detached):
                    sends += self._counted(self.ledger.drop(NODE_CLIENT, actor)) if detached else []
        return sends

    def tick(self, now: float) -> Sequence[object]:
        return []

    def next_deadline(self) -> float | None:
        return None

    def validate(self) -> None:
        self.supervisor.validate()
        self.ledger.validate()
        hosts: dict[bytes, str] = {}
        for name in self.world.living:
            worker = self.world.core(name)
            if isinstance(worker, Worker) and worker.plan is not None and name not in self.doomed:
                other = hosts.setdefault(worker.plan.actor, name)
                assert other == name, f"actor {worker.plan.actor.hex()} runs in {other} and in {name}"


class Worker:
    """Hosts one actor: runs its constructor, then its calls."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.plan: Plan | None = None
        self.reply_bytes = size_bytes = world.rng.choice([0] * 9 + [KEPT_BYTES_MAX // 3])
        self.mailbox: Mailbox[Run, Reply] = Mailbox(world.rng.choice([1, 1, 3]), lambda _: size_bytes)
        self.orders: dict[tuple[int, bytes], int] = {}  # caller -> order of the last call that started
        self.due: list[tuple[float, str, Run | None]] = []  # what runs until when; None: the constructor
        self.constructed = self.released = self.left = False
        self.callers: dict[int, str] = {}
        self.links: dict[int, int] = {}  # caller -> its connection; -1: it is broken
        self.early: dict[int, list[Run]] = {}  # connection -> what lies in it, while we have not got it yet
        self.ended: set[int] = set()  # connections

    def receive(self, sender: str, message: object, now: float) -> Sequence[object]:
        sends: list[object] = []
        match message:
            case Run(plan=Plan() as plan):
                self.plan = plan
                self.due.append((now + self.world.rng.uniform(*RUN_S), NODE, None))
            case Connected(caller=name, number=number):
                caller = int(name.split()[1])
                self.callers[caller], self.links[caller] = name, -1 if number in self.ended else number
                self.mailbox.reconnected(caller)
                for run in self.early.pop(number, []):
                    sends += self._arrived(caller, run)
            case Over(number, Run() as run):
                caller = int(sender.split()[1])
                if number == self.links.get(caller):
                    sends += self._arrived(caller, run)
                elif number > self.links.get(caller, -1) and number not in self.ended:
                    self.early.setdefault(number, []).append(run)
            case Broken(number):
                self.ended.add(number)
                self.links = {who: -1 if link == number else link for who, link in self.links.items()}
            case Said("release"):
                self.released = True
            case Said("close"):
                self.world.after(0, self.world.crash, self.name)
            case Closed():
                self.mailbox.forget(int(sender.split()[1]))
        return [*sends, *self._go_on(now)]

    @property
    def node(self) -> Node:
        node: Node = self.world.core(NODE)
        return node

    def _arrived(self, caller: int, run: Run) -> list[object]:
        if self.mailbox.arrived(caller, run):
            return []
        answered, reply = self.mailbox.repeat(caller, run.seq)
        assert reply or not answered or self.reply_bytes, f"the reply of {run.call} was dropped, and none is large"
        return self._say(caller, reply or Reply(run.seq, dropped=True)) if answered else []

    def _say(self, caller: int, reply: Reply) -> list[object]:
        number = self.links.get(caller, -1)
        return [] if number < 0 else self.node.over(number, self.callers[caller], reply)

    def tick(self, now: float) -> Sequence[object]:
        done = [entry for entry in self.due if entry[0] <= now]
        self.due = [entry for entry in self.due if entry[0] > now]
        sends: list[object] = []
        for _, caller, run in done:
            if run is None:
                assert self.plan is not None
                failed = self.plan.class_name == "Broken"
                self.constructed = not failed
                sends.append(Send(NODE, Said("failed" if failed else "ready")))
            elif run.call is not None and not self.left:
                number, reply = int(caller.split()[1]), Reply(run.seq)
                self.mailbox.finished(number, run.seq)
                self.mailbox.replied(number, reply.seq, reply)
                self.left = run.call.exits
                sends += [Send(NODE, Said("leaving"))] if self.left else self._say(number, reply)
        return [*sends, *self._go_on(now)]

    def _go_on(self, now: float) -> list[object]:
        while self.constructed and not self.left and (entry := self.mailbox.next()) is not None:
            caller, run = entry
            assert run.call is not None
            run.call.starts += 1
            assert run.call.starts <= 1 + run.call.retries, f"{run.call} started too often"
            assert self.name not in run.call.hosts, f"{run.call} started twice in one incarnation"
            run.call.hosts.add(self.name)
            last = self.orders.get((caller, run.call.actor), 0)
            assert run.call.order > last, f"{run.call} starts after call {last} of its caller"
            self.orders[caller, run.call.actor] = run.call.order
            self.due.append((now + self.world.rng.uniform(*RUN_S), self.callers[caller], run))
        if self.released and self.constructed and self.mailbox.drained and not self.left:
            self.left = True
            return [Send(NODE, Said("leaving"))]
        return []

    def next_deadline(self) -> float | None:
        return min((due for due, _, _ in self.due), default=None)

    def validate(self) -> None:
        self.mailbox.validate()


@dataclass(slots=True)
class Peer:
    """An actor as its caller sees it."""

    link: str = ""
    number: int = -1  # of the connection
    incarnation: int = 0
    broken: bool = False  # the connection has ended, and nobody has said why
    dead: bool = False
    handles: int = 0
    queue: deque[Call] = field(default_factory=deque)
    unanswered: Unanswered[Call] = field(default_factory=Unanswered)
    held_up: list[Connected | Down] = field(default_factory=list)  # told, but a dead actor's last words come first


class Caller:
    """A driver. `act` does one random thing."""

    def __init__(self, world: World, name: str, number: int, rng: Random) -> None:
        self.world, self.name, self.number, self.rng = world, name, number, rng
        self.peers: dict[bytes, Peer] = {}
        self.calls: list[Call] = []
        self.closed: set[str] = set()
        self.ended: set[int] = set()  # connections
        self.had: set[int] = set()  # connections that have come
        self.early: dict[int, list[Reply]] = {}  # connection -> what lies in it, while it has not come yet
        self.asked: dict[int, int] = {}  # requests not answered yet -> handles that our own new actor has then
        self._serials = count(1)

    # -- what it does by itself

    def act(self, now: float) -> Sequence[object]:
        doing = [self._create, self._look_up, self._call, self._share, self._drop, self._kill]
        return self.rng.choices(doing, [3, 1, 20, 3, 2, 0.5])[0]()

    def _create(self) -> list[object]:
        serial, name = next(self._serials), self.rng.choice(NAMES)
        plan = Plan(
            actor=self.number.to_bytes(8, "big") + serial.to_bytes(4, "big"),
            job=self.number,
            spec=b"",
            resources={},
            class_name=self.rng.choice(["Fine"] * 9 + ["Broken"]),
            name=name,
            get_if_exists=bool(name) and self.rng.random() < 0.7,
            detached=self.rng.random() < 0.2,
            max_restarts=self.rng.choice([0, 1, 3, -1]),
            announced=self.rng.random() < 0.2,
        )
        self.asked[serial] = 1 if name else 0
        self.peers[plan.actor] = Peer(handles=0 if name else 1)  # of an anonymous one calls may follow at once
        if plan.announced:
            self.world.after(self.rng.uniform(*ARGUMENTS_S), self.world.tell, self.name, "conclude", plan.actor)
        return [Send(NODE, Wish("create", serial, plan.actor, plan))]

    def conclude(self, actor: bytes, now: float) -> Sequence[object]:
        """The arguments of an announced actor are there, or one failed."""
        return [Send(NODE, Wish(self.rng.choice(["arguments"] * 4 + ["no arguments"]), actor=actor))]

    def _look_up(self) -> list[object]:
        serial = next(self._serials)
        self.asked[serial] = 0
        return [Send(NODE, Wish("lookup", serial, name=self.rng.choice(NAMES[-2:])))]

    def _call(self) -> list[object]:
        if not (actor := self._any()):
            return []
        serial = next(self._serials)
        self.calls.append(Call(actor, serial, self.rng.choice([0, 0, 2]), exits=self.rng.random() < 0.02))
        if self.peers[actor].dead:
            self.calls[-1].outcome = "died"
            return []
        self.peers[actor].queue.append(self.calls[-1])
        return self._pump(actor)

    def _share(self) -> list[object]:
        others = [name for name in self.world.living if name.startswith("driver") and name != self.name]
        if not others or not (actor := self._any()):
            return []
        to = self.rng.choice(others)
        return [Send(NODE, Wish("give", actor=actor, to=int(to.split()[1]))), Send(to, Handle(actor))]

    def _drop(self) -> list[object]:
        return self._let_go(actor) if (actor := self._any()) else []

    def _kill(self) -> list[object]:
        return [Send(NODE, Wish(self.rng.choice(["kill", "end"]), actor=actor))] if (actor := self._any()) else []

    def drop_all(self, now: float) -> Sequence[object]:
        return [sent for actor in self.peers for sent in self._let_go(actor)]

    def _let_go(self, actor: bytes) -> list[object]:
        """Calls that are under way hold the actor too, so it goes only when they are done."""
        peer = self.peers[actor]
        if peer.queue or peer.unanswered.calls:
            return []
        dropped, peer.handles = peer.handles, 0
        return [Send(NODE, Wish("drop", actor=actor)) for _ in range(dropped)]

    def _any(self) -> bytes:
        held = [actor for actor, peer in self.peers.items() if peer.handles]
        return self.rng.choice(held) if held else b""

    # -- what it hears

    def receive(self, sender: str, message: object, now: float) -> Sequence[object]:
        match message:
            case Answer(request, actor):
                return self._answered(request, actor)
            case Handle(actor):
                return self._got_handle(actor)
            case Connected(actor) | Down(_, actor):
                self.peers[actor].held_up.append(message)
                return self._catch_up(actor, now)
            case Over(number, Reply() as reply):
                if number not in self.had | self.ended:
                    self.early.setdefault(number, []).append(reply)
                for peer in self.peers.values():
                    if peer.number == number and not peer.broken:
                        self._replied(peer, reply)
            case Broken(number):
                self.ended.add(number)
                return [sent for actor, peer in self.peers.items() for sent in self._broke(actor, peer, number, now)]
            case Closed():
                self.closed.add(sender)
                return [
                    sent
                    for actor, peer in self.peers.items()
                    if peer.link == sender
                    for sent in self._catch_up(actor, now)
                ]
        return []

    def _replied(self, peer: Peer, reply: Reply) -> None:
        if reply.seq in peer.unanswered.calls:
            self._settle(peer.unanswered.calls.pop(reply.seq), "dropped" if reply.dropped else "done")
            peer.unanswered.heard(1)

    def _broke(self, actor: bytes, peer: Peer, number: int, now: float) -> list[object]:
        if peer.number != number or peer.broken:
            return []
        peer.broken = True
        self.world.after(peer.unanswered.broke(now), self.world.tell, self.name, "reconnect", actor, number)
        return self._catch_up(actor, now)

    def reconnect(self, actor: bytes, number: int, now: float) -> Sequence[object]:
        """The node has said nothing of a death: the actor lives."""
        peer = self.peers[actor]
        if peer.number != number or not peer.broken:
            return []
        if peer.unanswered.hopeless:
            for call in peer.unanswered.take_all():
                self._settle(call, "unavailable")
        return [Send(NODE, Wish("connect", actor=actor))]

    def _answered(self, request: int, actor: bytes) -> list[object]:
        handles = self.asked.pop(request)
        mine = self.number.to_bytes(8, "big") + request.to_bytes(4, "big")
        if actor == mine:
            self.peers[mine].handles += handles
            return []
        self.peers.pop(mine, None)  # another bears the name, or the name is taken; or it was a look-up
        return self._got_handle(actor) if actor else []

    def _got_handle(self, actor: bytes) -> list[object]:
        peer = self.peers.setdefault(actor, Peer())
        peer.handles += 1
        return [Send(NODE, Wish("connect", actor=actor))] if not peer.link and not peer.dead else []

    def _catch_up(self, actor: bytes, now: float) -> list[object]:
        """Believe what the node told of an actor, once the last words of its former process are read."""
        peer = self.peers[actor]
        sends: list[object] = []
        while peer.held_up:
            told = peer.held_up[0]
            same = isinstance(told, Connected) and told.incarnation == peer.incarnation
            if peer.link and peer.link not in self.closed and not peer.broken and not same:
                break
            peer.held_up.pop(0)
            if isinstance(told, Down):
                self._down(peer, told)
                continue
            assert same or not peer.unanswered.calls, "a new incarnation, and no word of the end of the old one"
            peer.link, peer.number, peer.incarnation, peer.broken = told.worker, told.number, told.incarnation, False
            peer.unanswered.connected(now)
            self.had.add(peer.number)
            for seq, call in peer.unanswered.calls.items():
                sends += self.node.over(peer.number, peer.link, Run(call=call, seq=seq))
            sends += self._pump(actor)
            for reply in self.early.pop(peer.number, []):
                self._replied(peer, reply)
            if peer.number in self.ended:  # before we had heard of it
                sends += self._broke(actor, peer, peer.number, now)
        return sends

    @property
    def node(self) -> Node:
        node: Node = self.world.core(NODE)
        return node

    def _down(self, peer: Peer, told: Down) -> None:
        owed, peer.link, peer.number, peer.broken = peer.unanswered.take_all(), "", -1, False
        peer.dead = not told.restarting
        for call in reversed(owed):
            if told.restarting and call.starts <= call.retries and call.retries:
                peer.queue.appendleft(call)
            else:
                self._settle(call, "unavailable" if told.restarting else "died")
        while peer.dead and peer.queue:
            self._settle(peer.queue.popleft(), "died")

    def _pump(self, actor: bytes) -> list[object]:
        peer = self.peers[actor]
        sends: list[object] = []
        while peer.queue and peer.link and peer.link not in self.closed and not peer.broken:
            call = peer.queue.popleft()
            seq = call.seq = next(self._serials)
            run = Run(call=call, seq=seq, acked=peer.unanswered.acked if peer.unanswered.calls else seq - 1)
            peer.unanswered.calls[seq] = call
            sends += self.node.over(peer.number, peer.link, run)
        return sends

    def _settle(self, call: Call, outcome: str) -> None:
        assert not call.outcome, f"{call} ended twice"
        assert outcome not in ("done", "dropped") or call.starts, f"{call} is done, and never ran"
        call.outcome = outcome

    def tick(self, now: float) -> Sequence[object]:
        return []

    def next_deadline(self) -> float | None:
        return None

    def validate(self) -> None:
        for peer in self.peers.values():
            peer.unanswered.validate()
        open_calls = sum(len(peer.queue) + len(peer.unanswered.calls) for peer in self.peers.values())
        assert open_calls == sum(not call.outcome for call in self.calls), "a call was forgotten"
