"""What processes here hear of a detached actor elsewhere, by what is known of its node: the real desk, and no mesh."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lattica.codec import far
from lattica.codec import messages as m
from lattica.mesh.identity import PeerId
from lattica.node.far_actors import FarActors
from lattica.scheduler.fencing import Life

ACTOR, HERE, HOST = b"a" * 12, PeerId(b"1" * 32), PeerId(b"2" * 32)
CALLER = 7


class World:
    """One node and what it knows: `living` nodes, those of them that are `silent`, the actor's row. `told`: what the
    caller has heard; `sent`: the actor's node; `buried`: actors whose rows were ended here."""

    def __init__(self, restarts_left: int) -> None:
        self.living, self.told, self.due, self.time = {HOST}, list[Any](), list[Any](), 100.0
        self.silent, self.sent, self.buried = set[PeerId](), list[Any](), list[bytes]()
        self.record = SimpleNamespace(host=HOST, restarts_left=restarts_left)
        self.caller = SimpleNamespace(number=CALLER, kind="driver", send=lambda message, *_: self.told.append(message))
        node = SimpleNamespace(
            clients={CALLER: self.caller},
            tell=lambda _, message: self.told.append(message),
            now=lambda: self.time,
            loop=SimpleNamespace(call_later=lambda _, verb: self.due.append(verb)),
        )
        deciding = SimpleNamespace(
            records={ACTOR: self.record},
            is_over=lambda record: record.restarts_left == 0 and record.host not in self.living,
            answers=lambda peer: peer in self.living - self.silent,
            is_island=False,
            is_cut_off=lambda: False,
            admit=lambda *_: "",
        )
        self.desk = SimpleNamespace(
            node=node,
            deciding=deciding,
            detached=SimpleNamespace(end_everywhere=self.buried.append),
            me=HERE,
            is_closing=False,
            neighbour=self._neighbour,
            lives=lambda peer: peer in self.living,
        )
        self.actors = FarActors(self.desk)  # type: ignore[arg-type]
        self.there = SimpleNamespace(peer=HOST, link=SimpleNamespace(send=self.sent.append), client=SimpleNamespace())
        self.actors._join = self._join  # type: ignore[assignment, method-assign]

    def _neighbour(self, peer: PeerId) -> Any:
        assert peer == HOST
        return self.there

    def _join(self, client: Any, found: Any, at: far.ActorAt) -> None:
        self.told.append(at)

    def past(self, seconds: float = 5.0) -> None:
        self.time += seconds
        due, self.due = self.due, []
        for verb in due:
            verb()

    def connect(self) -> None:
        self.actors.connect(self.caller, ACTOR)  # type: ignore[arg-type]
        self.past()
        assert self.sent[-1] == far.ActorWanted(ACTOR)
        self.actors.at(self.there, far.ActorAt(ACTOR, 1, b"", 3))  # type: ignore[arg-type]

    def heard(self) -> list[Any]:
        heard, self.told = self.told, []
        return heard


@pytest.fixture
def world() -> World:
    world = World(restarts_left=0)
    world.connect()
    assert [type(word) for word in world.heard()] == [far.ActorAt]
    return world


def test_who_was_told_that_an_actor_is_over_is_connected_with_it_when_its_node_is_back(world: World) -> None:
    """Its node was silent so long that it was believed dead; the actor lives on there, in the same life."""
    world.living.clear()
    world.actors.parted(world.there, "it is dead")  # type: ignore[arg-type]
    world.past()
    words = world.heard()
    assert [word.restarting for word in words] == [True, False] and "no restarts left" in words[-1].how
    world.past()
    assert not world.heard() and not world.due, "it is said once, and nobody looks for it again and again"
    world.living.add(HOST)
    world.actors.look()  # as when the members have changed
    world.past()
    assert [word.restarting for word in world.heard()] == [True]
    assert world.sent == [far.ActorWanted(ACTOR)] * 2
    world.actors.at(world.there, far.ActorAt(ACTOR, 1, b"", 3))  # type: ignore[arg-type]
    assert [type(word) for word in world.heard()] == [far.ActorAt]


def test_who_asks_while_its_node_is_believed_dead_hears_so_at_once(world: World) -> None:
    world.living.clear()
    world.actors.parted(world.there, "it is dead")  # type: ignore[arg-type]
    world.past()
    world.heard()
    world.actors.connect(world.caller, ACTOR)  # type: ignore[arg-type]
    (word,) = world.heard()
    assert not word.restarting and "no restarts left" in word.how


def test_an_actor_whose_row_is_gone_is_over_for_all(world: World) -> None:
    world.living.clear()
    world.actors.parted(world.there, "it is dead")  # type: ignore[arg-type]
    world.past()
    world.heard()
    world.desk.deciding.records.clear()
    world.actors.moved(ACTOR, None)
    (word,) = world.heard()
    assert not word.restarting and word.how == "it was ended"


def test_the_row_of_an_earlier_life_does_not_end_the_connection_with_the_one_that_won(world: World) -> None:
    """It was written on the other side of a cut, where the node of the earlier life is, and comes after the later life
    has been met: calls were repeated in the life in which they ran already (world `execution`, long seed 609)."""
    other, later, asked = PeerId(b"3" * 32), Life(2, 9), list[Any]()
    superseded = SimpleNamespace(host=other, life=Life(1, 5), restarts_left=0)
    world.actors._desk.deciding.admit = lambda *told: asked.append(told) or "it was superseded"  # type: ignore[method-assign, func-returns-value]
    world.actors.moved(ACTOR, superseded)  # type: ignore[arg-type]
    assert world.heard() == [] and asked == [(ACTOR, (1, 5, False))]
    world.actors._desk.deciding.admit = lambda *_: ""  # type: ignore[method-assign]
    world.actors.moved(ACTOR, SimpleNamespace(host=other, life=later, restarts_left=0))  # type: ignore[arg-type]
    assert [type(word) for word in world.heard()] == [m.ActorDown]


def test_an_actor_is_killed_on_a_node_that_is_silent_for_a_while(world: World) -> None:
    """The connection with it outlived the silence, and who had killed the actor sent it no call ever after (world
    `execution`, long seed 774)."""
    world.silent.add(HOST)
    assert world.actors.kill(m.ActorKill(ACTOR, False))
    assert world.sent[1:] == [far.ActorEnd(ACTOR, False)] and not world.buried, "it may be restarted"


@pytest.mark.parametrize("is_island", [False, True])
def test_on_the_larger_side_the_row_of_one_killed_for_good_on_a_silent_node_ends_at_once(
    world: World, is_island: bool
) -> None:
    """That node is told too: what it writes meanwhile may supersede the end of the row."""
    world.silent.add(HOST)
    world.desk.deciding.is_island = is_island
    assert world.actors.kill(m.ActorKill(ACTOR, True))
    assert world.sent[1:] == [far.ActorEnd(ACTOR, True)]
    assert world.buried == ([] if is_island else [ACTOR])


def test_of_an_actor_whose_node_is_dead_only_the_row_can_be_ended(world: World) -> None:
    world.living.clear()
    for no_restart in (False, True):
        assert world.actors.kill(m.ActorKill(ACTOR, no_restart))
    assert world.sent[1:] == [] and world.buried == [ACTOR]


def test_of_an_actor_whose_node_answers_only_that_node_is_told(world: World) -> None:
    assert world.actors.kill(m.ActorKill(ACTOR, True))
    assert world.sent[1:] == [far.ActorEnd(ACTOR, True)] and not world.buried
