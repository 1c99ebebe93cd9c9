"""The desk of placement groups between real cores and nodes that only write down what they are told."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

from lattica.codec import far
from lattica.codec import messages as m
from lattica.mesh.identity import PeerId
from lattica.mesh.membership import State
from lattica.node.group_asks import AGAIN_S
from lattica.node.group_desk import GroupDesk
from lattica.scheduler.demand import NodeView
from lattica.scheduler.given import DemandGiven, StrategyGiven, encode
from lattica.scheduler.leases import Granted, Lease, LeaseBook
from lattica.scheduler.load import Load
from lattica.scheduler.reservations import KEEP_S
from lattica.scheduler.resources import ResourcePool, ResourceSet

DRIVER, JOB, GROUP = 1, 1, b"g" * 16
ONE = {"CPU": 1.0}


class World:
    """Nodes on one clock; what one says to another is heard a millisecond later, if the other is there."""

    def __init__(self, **cpus: float) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.gone: set[PeerId] = set()
        self.nodes = {name: FakeNode(self, PeerId(name.encode() * 32), amount) for name, amount in cpus.items()}
        self.by_peer = {node.me: node for node in self.nodes.values()}

    def at(self, when: float, do: Callable[[], None]) -> Any:
        entry = [do]
        heapq.heappush(self._due, (when, next(self._order), lambda: entry[0]()))
        return SimpleNamespace(cancel=lambda: entry.__setitem__(0, lambda: None))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            when, _, do = heapq.heappop(self._due)
            self.now = max(self.now, when)
            do()
            for node in self.by_peer.values():
                node.desk.bundles.kept.validate()
                node.book.validate()
        self.now = until


class FakeNode:
    """As much of a node, and of its desks, as the desk of groups speaks to."""

    def __init__(self, world: World, me: PeerId, cpus: float) -> None:
        self.world, self.me, self.closing, self.draining = world, me, False, False
        self.settings = SimpleNamespace(node=me, labels={})
        self.resources = ResourcePool(ResourceSet.of({"CPU": cpus}))
        self.book = LeaseBook(self.resources)
        self.loop = SimpleNamespace(
            call_at=world.at, call_later=lambda after, do, *args: world.at(world.now + after, lambda: do(*args))
        )
        self.jobs = {JOB: SimpleNamespace(number=JOB, family=JOB, driver=DRIVER, namespace="space", minor="")}
        self.job_desk = SimpleNamespace(is_leaving=lambda _: False)
        self.lease_desk = SimpleNamespace(perform=self.perform)
        self.told: list[Any] = []
        self.leases: list[Lease] = []
        self.ended: dict[int, str] = {}
        self.workers = count(100)
        self.client: Any = SimpleNamespace(number=DRIVER, job=JOB, send=self.told.append)
        self.wishes: dict[tuple[int, int], tuple[PeerId, bytes]] = {}
        membership = SimpleNamespace(state=self.state)
        self.far: Any = SimpleNamespace(
            jobs=self, placing=self, workers=self, hosting=self, neighbour=self.neighbour,
            placer=SimpleNamespace(views=self.views),
            peer=SimpleNamespace(gossip=SimpleNamespace(community=SimpleNamespace(membership=membership))),
        )  # fmt: skip
        self.desk = GroupDesk(self)  # type: ignore[arg-type]

    # as a node

    def now(self) -> float:
        return self.world.now

    def load(self) -> Load:
        return Load(self.resources.taken)

    def tell(self, _client: int, message: Any) -> None:
        self.told.append(message)

    def end_worker(self, worker: int, reason: str) -> None:
        self.ended[worker] = reason
        self.perform(self.book.worker_gone(worker, self.world.now))

    def perform(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Granted):
                worker = next(self.workers)
                self.book.placed(effect.lease.lease, worker)
                self.leases.append(effect.lease)
                self.asker(effect.lease.request.number).desk.granted(DRIVER, effect.lease.request.number)

    def asker(self, number: int) -> FakeNode:
        """Whose driver has asked for that of us, by a number that no other uses."""
        askers = (node for node in self.world.by_peer.values() if node.wishes.get((DRIVER, number), (0,))[0] == self.me)
        return next(askers, self)

    # as its far desk

    def views(self) -> dict[PeerId, NodeView]:
        alive = [node for node in self.world.by_peer.values() if node.me not in self.world.gone]
        return {
            node.me: NodeView(node.me, node.resources.total, node.settings.labels, load=node.load()) for node in alive
        }

    def state(self, peer: PeerId) -> State:
        return State.DEAD if peer in self.world.gone else State.ALIVE

    def neighbour(self, peer: PeerId) -> Any:
        def send(message: Any) -> None:
            if peer not in self.world.gone and self.me not in self.world.gone:
                other = self.world.by_peer[peer]
                here = SimpleNamespace(peer=self.me, questions={}, client=SimpleNamespace(number=50), link=back)
                self.world.at(self.world.now + 0.001, lambda: other.desk.hear(here, message))  # type: ignore[arg-type]

        back = SimpleNamespace(send=lambda message: self.world.by_peer[peer].neighbour(self.me).link.send(message))
        return SimpleNamespace(peer=peer, link=SimpleNamespace(send=send))

    def introduce(self, _neighbour: Any, _job: int) -> bytes:
        return b"j" * 16

    def origin(self, _job: int) -> PeerId:
        return self.me

    def objection(self, _job: bytes) -> str:
        return ""

    def ask_of_bundle(
        self, peer: PeerId, client: int, request: int, _job: int, demand: Any, within: bytes, **_: Any
    ) -> None:
        self.wishes[client, request] = peer, within
        ask = far.AskLease(request, b"j" * 16, demand.resources.to_dict(), within=within)
        other = self.world.by_peer[peer]
        here: Any = SimpleNamespace(peer=self.me, questions={}, client=SimpleNamespace(number=50))

        def lend() -> None:
            if peer not in self.world.gone and other.desk.lend(here, ask, JOB, demand.resources):
                self.desk.came_back(client, request)

        self.world.at(self.world.now + 0.001, lend)

    def canceled(self, client: int, request: int) -> bool:
        peer, _ = self.wishes.pop((client, request))
        other = self.world.by_peer[peer]
        other.perform(other.book.cancel(50, request, self.world.now))
        return True

    def leases_in(self, group: bytes, bundle: int) -> int:
        return 0

    def not_here(self, _client: int, number: int, _reason: str) -> None:
        asker = self.asker(number)
        self.world.at(self.world.now + 0.001, lambda: asker.desk.came_back(DRIVER, number))

    # as its driver

    def group(self, cpus: list[float], strategy: str) -> None:
        self.desk.create(self.client, m.GroupCreate(1, GROUP, [{"CPU": each} for each in cpus], strategy))

    def ask(self, number: int, bundle: int = -1, owner: PeerId | None = None) -> None:
        strategy = StrategyGiven(group=GROUP, bundle=bundle, owner=owner or self.me)
        request = m.LeaseRequest(number, ONE, given=encode(DemandGiven(strategy=strategy)))
        assert self.desk.wish(self.client, request, ResourceSet.of(ONE), JOB)

    @property
    def answers(self) -> list[dict[str, Any]]:
        return [message.data[0] for message in self.told if isinstance(message, m.State) and message.data]

    @property
    def denials(self) -> list[str]:
        return [message.reason for message in self.told if isinstance(message, m.LeaseDenied)]


def test_a_group_is_kept_on_two_nodes_and_let_go_by_both() -> None:
    world = World(a=2, b=2)
    a, b = world.nodes.values()
    a.group([2, 2], "STRICT_SPREAD")
    a.desk.want(a.client, m.GroupWanted(2, GROUP, ready=True))
    world.run(1)
    assert a.answers[0]["state"] == "CREATED" and sorted(a.answers[0]["nodes"]) == sorted([a.me.hex(), b.me.hex()])
    assert a.resources.available == b.resources.available == {"CPU": 0}
    a.desk.remove(a.client, m.GroupRemove(GROUP, a.me))
    world.run(1)
    assert a.resources.available == b.resources.available == {"CPU": 2}


def test_a_group_ends_with_its_job_unless_it_is_detached() -> None:
    for detached in (False, True):
        world = World(a=2)
        (a,) = world.nodes.values()
        made = m.GroupCreate(1, GROUP, [ONE], "PACK", "kept", detached=detached)
        a.desk.create(a.client, made)
        world.run(1)
        a.desk.client_gone(a.client, job_ended=True)
        world.run(1)
        assert a.resources.available == {"CPU": 1 if detached else 2}
        another: Any = SimpleNamespace(number=7, job=JOB, send=a.told.append)
        a.desk.want(another, m.GroupWanted(2, b"", name="kept"))
        assert [answer["name"] for answer in a.answers] == ["kept"] * detached
        a.desk.remove(another, m.GroupRemove(GROUP, a.me))
        world.run(1)
        assert a.resources.available == {"CPU": 2}


def test_bundles_are_kept_where_their_labels_are() -> None:
    world = World(a=2, b=2)
    a, b = world.nodes.values()
    a.desk.create(a.client, m.GroupCreate(1, GROUP, [ONE, ONE], "PACK", selectors=[{}, {"zone": "z"}]))
    world.run(1)
    assert a.resources.available == b.resources.available == {"CPU": 2}, "nobody has the label yet"
    b.settings.labels["zone"] = "z"
    world.run(20)
    assert b.resources.available == {"CPU": 0}
    a.desk.create(a.client, m.GroupCreate(2, b"h" * 16, [ONE], "PACK", selectors=[{}, {}]))
    refused = [one.data["error"] for one in a.told if one.data and "error" in one.data]
    assert refused == ["2 label selectors for 1 bundles"]


def test_bundles_of_an_owner_who_is_silent_end_and_so_do_their_workers() -> None:
    """The owner's node loses its power: nobody removes the group, and what was kept for it is free a minute later."""
    world = World(a=1, b=2)
    a, b = world.nodes.values()
    a.group([2], "PACK")
    world.run(1)
    a.ask(1, 0)
    world.run(1)
    (lease,) = b.leases
    assert lease.request.within and b.resources.available == {"CPU": 0}
    world.gone.add(a.me)
    world.run(KEEP_S / 2)
    assert not b.ended
    world.run(KEEP_S)
    assert "ended" in b.ended[lease.worker or 0] and b.resources.available == {"CPU": 2}


def test_what_waits_in_a_bundle_that_is_lost_runs_where_that_is_placed_anew() -> None:
    world = World(a=1, b=2, c=2)
    a, b, c = world.nodes.values()
    a.group([2], "PACK")
    world.run(1)
    first, second = (b, c) if b.resources.available == {"CPU": 0} else (c, b)
    for number in range(3):
        a.ask(number, 0)
    world.run(0.1)
    assert len(first.leases) == 2
    world.gone.add(first.me)
    a.desk.node_gone(first.me)
    world.run(5)
    assert len(second.leases) == 1 and second.leases[0].request.number == 2, (
        "the two that ran are their holders' to retry"
    )


def test_what_names_no_bundle_goes_on_to_the_next_until_one_has_room() -> None:
    world = World(a=1, b=1)
    a, b = world.nodes.values()
    a.group([1, 1], "STRICT_SPREAD")
    world.run(1)
    for number in range(3):
        a.ask(number)
    world.run(AGAIN_S / 2)
    assert len(a.leases) == len(b.leases) == 1
    world.run(3 * AGAIN_S)
    b.perform(b.book.returned(b.leases[0].lease, 50, world.now))
    world.run(2.5 * AGAIN_S)
    assert len(b.leases) == 2 and len(a.leases) == 1


def test_a_group_is_used_from_a_node_that_asks_its_owner_once() -> None:
    world = World(a=1, b=1)
    a, b = world.nodes.values()
    b.ask(1, 0, owner=a.me)  # before there is such a group: the owner says so
    world.run(1)
    assert "is removed" in b.denials[0]
    world = World(a=1, b=1)
    a, b = world.nodes.values()
    a.group([1, 1], "STRICT_SPREAD")
    b.ask(1, 0, owner=a.me)
    b.ask(2, 1, owner=a.me)
    world.run(1)
    assert {lease.request.number for lease in (*a.leases, *b.leases)} == {1, 2}
    a.desk.client_gone(a.client, job_ended=True)
    world.run(1)
    b.ask(3, 0, owner=a.me)
    assert "its job ended" in b.denials[0]
    assert a.resources.available == b.resources.available == {"CPU": 1}
