"""What a node lends to others, and to which life of a detached actor."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from lattica.codec import far, frames
from lattica.codec import messages as m
from lattica.ids import ActorId
from lattica.node import far_hosting
from lattica.node.clients import WORKER
from lattica.node.deciding import Deciding
from lattica.node.far_hosting import FarHosting, Guest, Hosted
from lattica.node.far_neighbours import Neighbour
from lattica.scheduler.fencing import Fencing, Life

ACTOR, OTHER, JOB = b"a" * 12, b"b" * 12, b"j" * 16
FIRST, SECOND = (1, 100, False), (2, 200, False)
CPU = {"CPU": 1.0}


class Host:
    """A node that lends workers, as far as `FarHosting` asks it."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.ended: dict[int, str] = {}
        self.asked: list[int] = []
        self.fencing = Fencing()
        book = SimpleNamespace(request=lambda holder, number, *_, **__: self.asked.append(number) or [], leases={})
        node: Any = SimpleNamespace(
            book=book, now=lambda: 0.0, lease_desk=SimpleNamespace(perform=lambda _: None), clients={},
            workers=SimpleNamespace(processes={worker: SimpleNamespace(pid=1) for worker in range(10)}),
            tell=lambda *_: None, end_worker=self.ended.__setitem__,
        )  # fmt: skip
        admission = SimpleNamespace(ask=lambda *_: None, load=lambda: None)
        desk: Any = SimpleNamespace(
            node=node, deciding=self, placer=SimpleNamespace(admission=admission),
            environments=SimpleNamespace(holds=lambda *_: False), by_client=lambda _: self.neighbour,
            jobs=SimpleNamespace(objection_to_run=lambda _: "", number=lambda _: 1),
        )  # fmt: skip
        self.hosting = FarHosting(desk)
        self.hosting.load = lambda: b""  # type: ignore[method-assign]
        link: Any = SimpleNamespace(send=self.said.append, carriers={})
        client: Any = SimpleNamespace(number=7, name="node b")
        self.neighbour = Neighbour(b"p" * 32, client, link)  # type: ignore[arg-type]

    def admit(self, actor: bytes, life: far.Life | None) -> str:
        return Deciding.admit(self, actor, life)  # type: ignore[arg-type]

    def ask(self, number: int, by: bytes, life: far.Life | None) -> str:
        """Why the lease is refused; "" if it is asked of the book."""
        self.hosting.ask_lease(self.neighbour, far.AskLease(number, JOB, CPU, by=by, life=life))
        return "" if number in self.asked else self.said.pop().reason

    def lend(self, number: int, worker: int) -> None:
        request = SimpleNamespace(number=number, resources=SimpleNamespace(plain=lambda: SimpleNamespace(to_dict=dict)))
        lease: Any = SimpleNamespace(holder=7, lease=number, request=request, allocation=SimpleNamespace(gpus=[]))
        self.hosting.lent(lease, worker)


def test_an_earlier_life_of_a_detached_actor_gets_no_lease_once_a_later_one_is_known() -> None:
    """Another node restarted it while its first host was cut off; the first life asks for a worker before its own node
    has heard of the second, and this node has."""
    host = Host()
    assert not host.ask(1, ACTOR, FIRST)
    assert not host.ask(2, ACTOR, SECOND), "receivers keep the latest that they have met, by whichever message"
    assert "superseded" in host.ask(3, ACTOR, FIRST)
    assert not host.ask(4, OTHER, FIRST) and not host.ask(5, b"", None), "nobody else's"


def test_what_an_earlier_life_has_here_ends_when_a_later_one_is_known() -> None:
    host, closed = Host(), list[str]()
    for number, (by, life) in enumerate([(ACTOR, FIRST), (ACTOR, SECOND), (OTHER, FIRST), (b"", None)], start=1):
        host.ask(number, by, life)
        host.lend(number, worker=number)
    host.hosting.hosted[5] = Hosted(host.neighbour, 5, ACTOR, 1, FIRST)
    for worker, token in ((6, (ACTOR, FIRST)), (7, (ACTOR, SECOND)), (8, None)):
        carrier: Any = SimpleNamespace(close=lambda why, worker=worker: closed.append(f"{worker}: {why}"))
        client: Any = SimpleNamespace(number=worker)
        host.hosting.guests[worker] = Guest(host.neighbour, client, 1, worker, 1, carrier, token)
    host.hosting.fence(ActorId(ACTOR), Life(*SECOND))
    assert sorted(host.ended) == [1, 5] and len(closed) == 1 and closed[0].startswith("6: the caller was superseded")


class Door(Host):
    """A node with worker 5, which shall be an actor of node b. heard: what came over connections that were let in."""

    def __init__(self) -> None:
        super().__init__()
        node: Any = self.hosting._node
        desk: Any = self.hosting._desk
        link: Any = self.neighbour.link
        self.told: list[Any] = []
        self.heard: list[bytes] = []
        self.timers: list[Any] = []
        self.hosting.hosted[5] = self.shall_be = Hosted(self.neighbour, 5)
        self.client = SimpleNamespace(number=5, kind=WORKER, peers=set(), send=lambda *told: self.told.append(told))
        node.clients[5] = self.client
        node.workers.room = lambda: True
        node.wires = SimpleNamespace(pair=lambda: (1, 2))
        node.store = SimpleNamespace(joined=lambda *_: None)
        node.pool = SimpleNamespace(became_actor=lambda *_: None)
        node.loop = SimpleNamespace(call_later=lambda *timer: self.timers.append(timer))
        numbers = count(100)
        desk.new_number, desk.proxies = numbers.__next__, {}
        desk.hear = lambda neighbour, message: self.hosting.open(neighbour, message)
        desk.jobs.objection = lambda _: ""
        desk.actors = SimpleNamespace(
            lives_in=lambda _worker, actor, incarnation, hosted: (
                (hosted.actor, hosted.incarnation) == (actor, incarnation)
            ),
            may_call=lambda *_: True,
        )
        link.check = lambda _: None
        link.accept = lambda *_: SimpleNamespace(carry=self.heard.append, end=lambda why: None)
        self.gone: list[int] = []
        node.client_gone = lambda client, _: self.gone.append(client.number)

    def opens(self, carrier: int = 3, incarnation: int = 1, proxy: int = 9) -> None:
        self.hosting.open(self.neighbour, far.Open(carrier, 5, proxy, JOB, 4, ACTOR, incarnation))

    def becomes(self) -> None:
        told = m.BecomeActor(ACTOR, 1, b"spec", {})
        self.hosting.to_worker(self.neighbour, far.ToWorker(5, 9, frames.encode_one(told)))


def test_who_calls_an_actor_before_its_worker_has_heard_what_it_is_waits_for_that() -> None:
    """Its owner says where it lives to us and to the caller's node, by two links, and the caller was faster: refused,
    its calls were taken for sent to another life, and ended (world `execution`, long seed 329)."""
    door = Door()
    door.opens()
    door.hosting.carry(door.neighbour, far.Carry(3, b"call 1 "))
    door.hosting.carry(door.neighbour, far.Carry(3, b"call 2 "))
    assert (door.said, door.heard) == ([], [])
    door.becomes()
    assert [type(one) for one in door.said] == [far.Opened] and door.heard == [b"call 1 ", b"call 2 "]
    assert not door.neighbour.early and not door.neighbour.early_bytes


def test_who_waits_for_an_actor_and_means_another_life_or_a_dead_worker_is_refused() -> None:
    door = Door()
    door.opens(carrier=3, incarnation=2)
    door.becomes()
    assert [(one.carrier, one.reason) for one in door.said] == [(3, "it is not that incarnation of that actor")]
    door = Door()
    door.opens()
    del door.hosting.hosted[5], door.hosting._node.clients[5]
    for _, look, *args in door.timers:
        look(*args)
    assert [(one.carrier, one.reason) for one in door.said] == [(3, "there is no such worker")]


def test_who_closes_before_it_was_let_in_is_not_let_in() -> None:
    door = Door()
    door.opens()
    door.hosting.carry(door.neighbour, far.Carry(3, b"call"))
    door.hosting.closed(door.neighbour, far.Closed(3))
    door.becomes()
    assert (door.said, door.heard, door.neighbour.early, door.neighbour.early_bytes) == ([], [], {}, 0)


def test_what_comes_before_it_can_be_let_in_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far_hosting, "EARLY_MAX_BYTES", 10)
    monkeypatch.setattr(far_hosting, "UNBORN_MAX", 2)
    door = Door()
    for carrier in (3, 4, 5):
        door.opens(carrier)
    assert [one.carrier for one in door.said] == [5], "two wait, and the third is refused"
    for _ in range(3):
        door.hosting.carry(door.neighbour, far.Carry(3, b"12345"))
    assert [one.carrier for one in door.said] == [5, 3] and door.neighbour.early_bytes == 0
    door.becomes()
    assert [type(one) for one in door.said[2:]] == [far.Opened]


def test_a_caller_whose_node_believed_us_dead_comes_back_as_another_one() -> None:
    """It sends again what it had sent, under new numbers, to the life that it was sent to: calls ran twice, and out of
    order (world `execution`, long seed 260)."""
    door = Door()
    door.becomes()
    door.opens(carrier=3)
    door.opens(carrier=5)
    first, again = (one.proxy for one in door.said)
    assert first == again and not door.gone, "only its connection broke"
    door.opens(carrier=7, proxy=12)
    assert door.said[-1].proxy != first and door.gone == [first]
    door.opens(carrier=9, proxy=12)
    assert door.said[-1].proxy == door.said[-2].proxy and door.gone == [first]
