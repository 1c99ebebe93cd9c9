"""Session cores joined by connections that can be cut, silenced or held, without a clock: time moves when told."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from blake3 import blake3

from lattica.mesh import wire
from lattica.mesh.effects import Dial, Hangup, Transmit
from lattica.mesh.identity import PeerId
from lattica.mesh.links import STREAM_RANK, Delivered, Room, SessionUp
from lattica.mesh.sessions import Sessions
from lattica.mesh.wire import CONTROL, Decoder, Frame, Hello

Found = TypeVar("Found")
UNIX_S = 1_700_000_000.0


@dataclass(frozen=True)
class Paper:
    """Who is at the other end."""

    peer: PeerId
    expires: float = float("inf")


@dataclass
class Node:
    """One process. key: whose it is; two nodes may have the same."""

    name: str
    key: int
    sessions: Sessions
    paper: Paper
    events: list[Any] = field(default_factory=list)
    refuses: set[PeerId] = field(default_factory=set)
    alive: bool = True
    listens: bool = True
    got: list[bytes] = field(default_factory=list)

    @property
    def id(self) -> PeerId:
        return self.paper.peer

    def seen(self, kind: type[Found]) -> list[Found]:
        return [event for event in self.events if isinstance(event, kind)]


class End:
    """One end of a connection; what it writes arrives at `other`."""

    def __init__(self, node: Node, number: int) -> None:
        self.node, self.number = node, number
        self.other: End | None = None
        self.decoder = Decoder()
        self.open, self.silent = True, False
        self.written: list[Any] = []


class Ring:
    """See the module. Each step checks every core."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.nodes: dict[str, Node] = {}
        self.ends: dict[tuple[str, int], End] = {}
        self.dials: deque[tuple[Node, Dial]] = deque()
        self.hold_dials = False
        self.dialed_at: list[float] = []
        self.rank = STREAM_RANK  # of what is dialed from now on
        self._mail: deque[tuple[End, bytes | None]] = deque()
        self._numbers = 0

    def node(self, name: str, key: int, *, boot: int = 1, expires: float = float("inf"), **hello: Any) -> Node:
        """A process starts. A lower key is a lower PeerId."""
        id = PeerId(bytes([key]) * 32)
        rng = Random(f"{name}{boot}")
        me = Hello(boot=boot, instance=rng.randbytes(8), **hello)
        node: Node

        def objection(member: Any, unix_s: float) -> str:
            return "it is revoked" if member.peer in node.refuses else ""

        def sign(data: bytes) -> bytes:
            return bytes(blake3(id + data).digest(64))

        sessions = Sessions(me, id, rng, objection, sign=sign, wall_offset=UNIX_S - 1000.0)
        node = self.nodes[name] = Node(name, key, sessions, Paper(id, expires))
        return node

    # -- verbs

    def connect(self, one: Node, two: Node) -> None:
        self.perform(one, one.sessions.connect(two.id, [two.name], self.now))
        self.settle()

    def send(self, one: Node, two: Node, payload: bytes, plane: int = CONTROL) -> None:
        self.perform(one, one.sessions.send(two.id, plane, (payload,), len(payload), self.now))

    def say(self, one: Node, two: Node, payload: bytes, plane: int = CONTROL) -> None:
        """Send, and see it arrive."""
        self.send(one, two, payload, plane)
        self.settle()
        assert two.got[-1] == payload, f"{two.name} has {two.got[-3:]}"

    def perform(self, node: Node, effects: Sequence[Any]) -> None:
        for effect in effects:
            match effect:
                case Dial():
                    self.dials.append((node, effect))
                case Transmit(number, frame):
                    self.write(node, number, frame)
                case Hangup(number, _):
                    end = self.ends.get((node.name, number))
                    if end is not None:
                        self._close(end)
                case Delivered(_, _, payload):
                    node.got.append(bytes(payload))
                case Room():
                    pass
                case event:
                    node.events.append(event)
        if node.alive:
            node.sessions.validate()

    def write(self, node: Node, number: int, frame: Frame) -> None:
        end = self.ends.get((node.name, number))
        if end is not None and end.open:
            data = b"".join(frame)
            decoder = Decoder()
            decoder.trust()
            end.written += decoder.feed(data)
            assert end.other is not None
            self._mail.append((end.other, data))

    # -- the network

    def settle(self) -> None:
        """Deliver everything that is on its way, at this moment."""
        while True:
            if self.dials and not self.hold_dials:
                self._dial(*self.dials.popleft())
            elif self._mail:
                self._arrive(*self._mail.popleft())
            else:
                return

    def advance(self, seconds: float) -> None:
        """Let time pass; cores are told when they asked for it."""
        until = self.now + seconds
        while True:
            due = {
                node.name: at
                for node in self.nodes.values()
                if node.alive and (at := node.sessions.next_deadline()) is not None
            }
            name = min(due, key=due.__getitem__, default=None)
            if name is None or due[name] > until:
                break
            self.now = max(self.now, due[name])
            self.perform(self.nodes[name], self.nodes[name].sessions.tick(self.now))
            self.settle()
        self.now = until

    def pipes(self, node: Node) -> list[End]:
        """Open ends of this node, the oldest first."""
        return [end for (name, _), end in self.ends.items() if name == node.name and end.open]

    def carrier(self, one: Node, two: Node, plane: int = CONTROL) -> End:
        """The end at `one` of what carries this plane of its session with `two`."""
        number = one.sessions.connection(two.id, plane)
        assert number is not None
        return self.ends[one.name, number]

    def cut(self, end: End) -> None:
        """The connection breaks, and both ends hear of it."""
        for each in (end, end.other):
            assert each is not None
            if each.open:
                each.open = False
                self.perform(each.node, each.node.sessions.closed(each.number, "cut", self.now))

    def silence(self, end: End) -> None:
        """Nothing arrives any more either way, and nobody hears of it: a NAT forgot it."""
        assert end.other is not None
        end.silent = end.other.silent = True

    def kill(self, node: Node) -> None:
        """The process is gone; its machine resets what it had."""
        node.alive = node.listens = False
        for end in self.pipes(node):
            end.open = False
            other = end.other
            assert other is not None
            if other.open and not other.silent:
                other.open = False
                self.perform(other.node, other.node.sessions.closed(other.number, "reset", self.now))

    def join(self, dialer: Node, acceptor: Node) -> tuple[End, End]:
        """A connection of which no core knows yet."""
        ends = []
        for node in (dialer, acceptor):
            self._numbers += 1
            ends.append(End(node, self._numbers))
            self.ends[node.name, self._numbers] = ends[-1]
        ends[0].other, ends[1].other = ends[1], ends[0]
        return ends[0], ends[1]

    def _dial(self, node: Node, dial: Dial) -> None:
        self.dialed_at.append(self.now)
        there = self.nodes.get(dial.addresses[0])
        if there is None or not there.listens or not there.alive:
            self.perform(node, node.sessions.dial_failed(dial.attempt, "refused", self.now))
            return
        mine, theirs = self.join(node, there)
        self.perform(there, there.sessions.accepted(theirs.number, node.paper, self.now, self.rank))
        self.perform(node, node.sessions.dialed(dial.attempt, mine.number, there.paper, self.now, self.rank))

    def _arrive(self, end: End, data: bytes | None) -> None:
        if not end.open or end.silent or not end.node.alive:
            return
        if data is None:
            end.open = False
            self.perform(end.node, end.node.sessions.closed(end.number, "the other side closed it", self.now))
            return
        self.perform(end.node, end.node.sessions.received(end.number, end.decoder.feed(data), self.now))

    def _close(self, end: End) -> None:
        end.open = False
        assert end.other is not None
        self._mail.append((end.other, None))


def byes(end: End) -> list[str]:
    """Codes of the farewells that this end has written."""
    return [frame.code for frame in end.written if isinstance(frame, wire.Bye)]


def pair(low: int = 1, high: int = 2) -> tuple[Ring, Node, Node]:
    """ann has dialed bob, and they have a session."""
    ring = Ring()
    ann, bob = ring.node("ann", low), ring.node("bob", high)
    ring.connect(ann, bob)
    assert len(ann.seen(SessionUp)) == len(bob.seen(SessionUp)) == 1
    return ring, ann, bob


def session_of(one: Node, two: Node) -> int:
    session = one.sessions.session(two.id)
    assert session is not None
    return session.id
