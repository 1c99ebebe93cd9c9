"""Clogs hold and then deliver, partitions lie between groups, late datagrams are overtaken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lattica.testing import FOREVER, SOCKET, Link, Send, World
from lattica.testing.links import across


@dataclass(frozen=True, slots=True)
class Heard:
    message: object
    at: float


class Listener:
    def receive(self, sender: str, message: object, now: float) -> Sequence[object]:
        return [Heard(message, now)]

    def say(self, to: str, *messages: object) -> Sequence[object]:
        *sent, _now = messages
        return [Send(to, message) for message in sent]

    def tick(self, now: float) -> Sequence[object]:
        return []

    def next_deadline(self) -> float | None:
        return None

    def validate(self) -> None:
        pass


def world_of(link: Link, *names: str) -> World:
    world = World(7, link=link)
    for name in names or ("ann", "bob"):
        world.add(name, Listener)
    return world


def heard(world: World, by: str = "bob") -> list[object]:
    return [event.message for _, who, event in world.events if who == by and isinstance(event, Heard)]


def arrivals(world: World, by: str = "bob") -> list[float]:
    return [event.at for _, who, event in world.events if who == by and isinstance(event, Heard)]


def test_a_clogged_direction_delivers_everything_at_its_end_in_order() -> None:
    world = world_of(Link(delay_s=(0.01, 0.01)))
    world.clog("ann", "bob", 5)
    for n in range(10):
        world.after(n / 5, world.tell, "ann", "say", "bob", n)
    world.run(until=4.9)
    assert heard(world) == []
    world.run(until=6)
    assert heard(world) == list(range(10)) and set(arrivals(world)) == {5.0}


def test_a_clog_is_of_one_direction_unless_asked_for_both() -> None:
    world = world_of(Link())
    world.clog("ann", "bob", 5)
    world.tell("bob", "say", "ann", "free")
    world.run(until=1)
    assert heard(world, "ann") == ["free"]
    world.clog("ann", "bob", 5, both=True)
    world.tell("bob", "say", "ann", "held")
    world.run(until=2)
    assert heard(world, "ann") == ["free"]


def test_a_clog_that_is_made_longer_holds_until_the_later_end() -> None:
    world = world_of(Link(delay_s=(0.01, 0.01)))
    world.clog("ann", "bob", 5)
    world.tell("ann", "say", "bob", 1)
    world.run(until=3)
    world.clog("ann", "bob", 5)
    world.clog("ann", "bob", 0.1)
    world.run(until=10)
    assert arrivals(world) == [8.0]


def test_a_clog_without_end_holds_until_the_world_heals() -> None:
    world = world_of(SOCKET)
    world.clog("ann", "bob", FOREVER)
    world.tell("ann", "say", "bob", 1, 2, 3)
    world.run(until=1000)
    assert heard(world) == []
    world.heal()
    world.run(until=1001)
    assert heard(world) == [1, 2, 3]


def test_mail_held_by_a_clog_does_not_reach_a_successor_over_a_socket() -> None:
    world = world_of(SOCKET)
    world.clog("ann", "bob", 5)
    world.tell("ann", "say", "bob", "for the first")
    world.run(until=1)
    world.crash("bob")
    world.restart("bob")
    world.run(until=10)
    assert heard(world) == []


def test_a_partition_lies_between_groups_and_not_within_them() -> None:
    world = world_of(Link(), "ann", "bob", "cid", "dan")
    world.partition(["ann", "bob"], ["cid", "dan"])
    for sender in ("ann", "bob", "cid", "dan"):
        for receiver in ("ann", "bob", "cid", "dan"):
            world.tell(sender, "say", receiver, sender)
    world.run(until=1)
    assert sorted(heard(world, "ann")) == sorted(heard(world, "bob")) == ["ann", "bob"]  # type: ignore[type-var]
    assert sorted(heard(world, "cid")) == sorted(heard(world, "dan")) == ["cid", "dan"]  # type: ignore[type-var]


def test_a_one_way_partition_cuts_from_the_first_group_to_the_second() -> None:
    assert across([["a"], ["b", "c"]], both=False) == [("a", "b"), ("a", "c")]
    assert sorted(across([["a"], ["b"], ["c"]], both=True)) == sorted(
        (one, other) for one in "abc" for other in "abc" if one != other
    )
    world = world_of(Link())
    world.partition(["ann"], ["bob"], both=False)
    world.tell("ann", "say", "bob", "lost")
    world.tell("bob", "say", "ann", "heard")
    world.run(until=1)
    assert heard(world, "bob") == [] and heard(world, "ann") == ["heard"]


def test_one_cut_can_be_mended_while_others_stay() -> None:
    world = world_of(Link(), "ann", "bob", "cid")
    world.partition(["ann"], ["bob", "cid"])
    world.mend("ann", "bob")
    world.tell("ann", "say", "bob", "heard")
    world.tell("ann", "say", "cid", "lost")
    world.run(until=1)
    assert heard(world, "bob") == ["heard"] and heard(world, "cid") == []


def test_late_datagrams_are_overtaken_by_many() -> None:
    world = world_of(Link(delay_s=(0.01, 0.01), late=0.1, late_s=(1, 2)))
    for n in range(100):
        world.after(n / 1000, world.tell, "ann", "say", "bob", n)
    world.run(until=5)
    got = heard(world)
    late = [n for n, at in zip(got, arrivals(world)) if at > 1]
    assert sorted(got) == list(range(100)) and 3 <= len(late) <= 20  # type: ignore[type-var]
    assert got[: 100 - len(late)] == [n for n in range(100) if n not in late]


def test_healing_ends_lateness() -> None:
    world = world_of(Link(late=1.0))
    world.heal()
    world.tell("ann", "say", "bob", 1)
    world.run(until=0.5)
    assert heard(world) == [1]
