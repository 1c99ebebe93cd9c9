"""The simulated world itself: equal seeds, equal worlds; links do what their dials say; failures can be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from lattica.testing.world import DATAGRAMS, SOCKET, Closed, Link, Send, World


@dataclass(frozen=True, slots=True)
class Heard:
    sender: str
    message: object


class Listener:
    """Reports what it hears; sends on request; may be told to be invalid."""

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.valid = True

    def receive(self, sender: str, message: object, now: float) -> Sequence[object]:
        return [Heard(sender, message)]

    def say(self, to: str, *messages: object) -> Sequence[object]:
        *sent, _now = messages
        return [Send(to, message) for message in sent]

    def wake_at(self, due: float, now: float) -> Sequence[object]:
        self.deadline = due
        return []

    def tick(self, now: float) -> Sequence[object]:
        self.deadline = None
        return [Heard("clock", now)]

    def break_now(self, now: float) -> Sequence[object]:
        self.valid = False
        return []

    def next_deadline(self) -> float | None:
        return self.deadline

    def validate(self) -> None:
        assert self.valid, "the listener is broken"


def world_of(link: Link, seed: int = 7) -> World:
    world = World(seed, link=link)
    for name in ("ann", "bob"):
        world.add(name, Listener)
    return world


def heard(world: World, by: str = "bob") -> list[object]:
    return [event.message for _, who, event in world.events if who == by and isinstance(event, Heard)]


def test_equal_seeds_give_equal_worlds_and_others_differ() -> None:
    def history(seed: int) -> list[tuple[float, str, object]]:
        world = world_of(DATAGRAMS, seed)
        world.tell("ann", "say", "bob", *range(50))
        world.run(until=10)
        return world.events

    assert history(1) == history(1) != history(2)


def test_a_connection_keeps_order_and_loses_nothing() -> None:
    world = world_of(SOCKET)
    for n in range(100):
        world.after(n / 10_000, world.tell, "ann", "say", "bob", n)
    world.run(until=1)
    assert heard(world) == list(range(100))


def test_datagrams_are_lost_doubled_and_overtake_each_other_as_their_dials_say() -> None:
    world = world_of(Link(delay_s=(0.01, 0.2), loss=0.3, duplicates=0.2))
    world.tell("ann", "say", "bob", *range(1000))
    world.run(until=1)
    got = heard(world)
    assert 650 <= len(set(got)) <= 750 and 100 <= len(got) - len(set(got)) <= 180
    assert got != sorted(got)  # type: ignore[type-var]
    assert world.tally["lost"] == 1000 - len(set(got)) and world.tally["duplicated"] == len(got) - len(set(got))


def test_what_a_crashed_process_had_written_arrives_and_then_its_end() -> None:
    world = world_of(SOCKET)
    world.tell("ann", "say", "bob", 1, 2)
    world.crash("ann")
    world.run(until=1)
    assert heard(world) == [1, 2, Closed()]


def test_a_restarted_process_gets_no_mail_over_its_predecessors_connections() -> None:
    world = world_of(SOCKET)
    world.tell("ann", "say", "bob", "for the first")
    world.crash("bob")
    world.restart("bob")
    world.run(until=1)
    assert heard(world) == []
    world.tell("ann", "say", "bob", "for the second")
    world.run(until=2)
    assert heard(world) == ["for the second"]


def test_a_datagram_finds_whoever_listens_when_it_arrives() -> None:
    world = world_of(Link())
    world.tell("ann", "say", "bob", "hello")
    world.crash("bob")
    world.restart("bob")
    world.run(until=1)
    assert heard(world) == ["hello"]


def test_the_timers_of_a_crashed_process_die_with_it() -> None:
    world = world_of(SOCKET)
    world.tell("bob", "wake_at", 0.5)
    world.crash("bob")
    world.restart("bob")
    world.run(until=1)
    assert heard(world) == []


def test_a_tick_comes_at_the_latest_deadline_only() -> None:
    world = world_of(SOCKET)
    world.tell("bob", "wake_at", 0.5)
    world.tell("bob", "wake_at", 0.7)
    world.run(until=1)
    assert heard(world) == [0.7]


def test_a_paused_process_finds_its_mail_and_its_timers_when_it_goes_on() -> None:
    world = world_of(SOCKET)
    world.tell("bob", "wake_at", 0.5)
    world.pause("bob")
    world.tell("ann", "say", "bob", 1, 2)
    world.run(until=10)
    assert heard(world) == []
    world.resume("bob")
    assert heard(world) == [1, 2, 10]


def test_a_cut_may_be_one_way_and_heals() -> None:
    world = world_of(Link())
    world.cut("ann", "bob", both=False)
    world.tell("ann", "say", "bob", "lost")
    world.tell("bob", "say", "ann", "heard")
    world.run(until=1)
    assert heard(world, "bob") == [] and heard(world, "ann") == ["heard"]
    world.heal()
    world.tell("ann", "say", "bob", "at last")
    world.run(until=2)
    assert heard(world, "bob") == ["at last"]


def test_healing_ends_loss_on_every_link() -> None:
    world = world_of(replace(DATAGRAMS, loss=1.0))
    world.links["bob", "ann"] = Link(loss=1.0)
    world.heal()
    world.tell("ann", "say", "bob", *range(20))
    world.tell("bob", "say", "ann", *range(20))
    world.run(until=1)
    assert len(heard(world, "bob")) == len(heard(world, "ann")) == 20


def test_a_broken_invariant_stops_the_world_and_says_how_to_replay_it() -> None:
    world = world_of(SOCKET, seed=41)
    world.after(0.25, world.tell, "bob", "break_now")
    with pytest.raises(AssertionError, match="the listener is broken") as caught:
        world.run(until=1)
    (note,) = caught.value.__notes__
    assert note.startswith("replay with seed 41") and "0.250000  bob.break_now()" in note


def test_an_invariant_of_the_whole_world_is_checked_after_each_step() -> None:
    world = world_of(SOCKET)

    def nobody_hears_three() -> None:
        assert 3 not in heard(world), "three was heard"

    world.watch(nobody_hears_three)
    world.tell("ann", "say", "bob", 1, 2)
    world.run(until=1)
    world.tell("ann", "say", "bob", 3)
    with pytest.raises(AssertionError, match="three was heard"):
        world.run(until=2)


def test_a_core_that_ticks_without_moving_its_deadline_is_found() -> None:
    class Stubborn(Listener):
        def tick(self, now: float) -> Sequence[object]:
            return []

    world = World(7)
    world.add("mule", Stubborn)
    world.tell("mule", "wake_at", 0.5)
    with pytest.raises(AssertionError, match=r"mule.tick at 0.5 left its deadline where it was"):
        world.run(until=1)


def test_liveness_that_fails_says_what_is_missing() -> None:
    world = world_of(SOCKET)
    with pytest.raises(AssertionError, match="not there 5 s after 0 s: bob heard nothing"):
        world.run_until(lambda: heard(world), within_s=5, missing=lambda: "bob heard nothing")


def test_liveness_that_holds_goes_on_at_once() -> None:
    world = world_of(SOCKET)
    world.tell("ann", "say", "bob", 1)
    world.run_until(lambda: heard(world), within_s=5, missing=lambda: "bob heard nothing")
    assert world.now < 0.1
