"""What waits for a worker, and what gives up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lattica.codec import messages as m
from lattica.mesh.identity import PeerId
from lattica.node.far_placing import FarPlacing, Wish
from lattica.scheduler.demand import Affinity, Demand
from lattica.scheduler.environments import NOTHING
from lattica.scheduler.placement import Choice, Infeasible
from lattica.scheduler.resources import ResourceSet

THERE = PeerId(b"t" * 32)
DEAD = Infeasible("needs node there, which is dead", final=True)


class House:
    """A node whose placer always answers that the node which is named is dead. restarts: of a detached actor."""

    def __init__(self, *, restarts: bool, may_return: bool = True) -> None:
        self.denied: list[str] = []
        self.trouble: list[Any] = []
        desk_of_actors = SimpleNamespace(
            restarts_detached=lambda _: restarts, denied=lambda _, reason, **_how: self.denied.append(reason)
        )
        self.now = 0.0
        node = SimpleNamespace(
            actor_desk=desk_of_actors, now=lambda: self.now,
            jobs={1: SimpleNamespace(driver=2, minor="", environment=NOTHING)},
            loop=SimpleNamespace(call_at=lambda *_: None), tell=lambda _, said: self.trouble.append(said),
        )  # fmt: skip
        placer = SimpleNamespace(choose=lambda *_: DEAD, stays=lambda _: False, may_return=lambda _: may_return)
        desk: Any = SimpleNamespace(node=node, placer=placer, closing=False, me=PeerId(b"m" * 32))
        self.placing = FarPlacing(desk)

    def wish(self) -> None:
        demand = Demand(ResourceSet.of({"CPU": 1}), strategy=Affinity(THERE))
        self.placing.place(Wish(m.NODE, 1, 1, demand, False, "Learner", True, 0.0))


def test_a_detached_actor_that_may_live_on_one_node_only_waits_for_that_and_says_so() -> None:
    """Its node is dead, or silent for long: it was ended, with restarts left, and its callers were told that it had
    none."""
    house = House(restarts=True)
    house.wish()
    assert house.denied == [] and len(house.placing.wishes) == 1
    assert house.placing.why(m.NODE, 1) == f"no node can run it: {DEAD.reason}" and not house.placing.why(3, 1)
    house.now = 6.0
    house.placing._look()
    assert "Learner waits for a node that can run it: needs node there, which is dead" in house.trouble[0].lines


@pytest.mark.parametrize("house", [House(restarts=False), House(restarts=True, may_return=False)])
def test_what_is_new_or_needs_a_node_that_has_left_fails_and_says_why(house: House) -> None:
    house.wish()
    assert house.denied == [DEAD.reason] and not house.placing.wishes


def test_what_waits_in_our_own_book_is_asked_of_a_node_that_is_idle_when_it_has_waited_for_long() -> None:
    """Ours is full of actors and bundles, which last: whoever waits for them to end waits for ever."""
    me, asked, left = PeerId(b"m" * 32), list[PeerId](), list[int]()
    house = House(restarts=False)
    desk: Any = house.placing._desk
    desk.placer.choose = lambda *_: Choice(me, 0.02)
    desk.placer.idle_for = lambda demand, waits_at, waited_s: Choice(THERE, 0.02)
    desk.neighbour = lambda peer: peer
    desk.node.book = SimpleNamespace(
        request=lambda *_, **__: [], cancel=lambda client, number, now: left.append(number)
    )
    desk.node.lease_desk = SimpleNamespace(perform=lambda _: None)
    desk.node.resources = SimpleNamespace(missing=lambda _: "")
    house.placing._ask = lambda wish, neighbour, limit_s: asked.append(neighbour)  # type: ignore[method-assign]
    house.placing.place(Wish(2, 7, 1, Demand(ResourceSet.of({"CPU": 1})), True, "a task", False, 0.0))
    house.now = 0.6
    house.placing._look()
    assert not asked, "what is queued here may begin soon"
    house.now = 1.2
    house.placing._look()
    assert asked == [THERE] and left == [7]
