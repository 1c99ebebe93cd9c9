"""What a node lends to others, and to which life of a detached actor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lattica.codec import far
from lattica.ids import ActorId
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
