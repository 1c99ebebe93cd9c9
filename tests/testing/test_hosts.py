"""Disks outlive processes, clocks are wrong as told, and a lid that closes stops one of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from lattica.testing import Disk, Host, HostClock, Link, Send, World
from lattica.testing.host import EPOCH_S


@dataclass(frozen=True, slots=True)
class Woke:
    now: float
    unix_s: float


class Sleeper:
    """Counts its starts on its disk; reports when it is ticked or spoken to."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.due: float | None = None
        self.starts = int(host.disk.read("starts") or b"0") + 1
        host.disk.write("starts", str(self.starts).encode())

    def sleep(self, for_s: float, now: float) -> Sequence[object]:
        self.due = now + for_s
        return []

    def say(self, to: str, now: float) -> Sequence[object]:
        return [Send(to, now)]

    def receive(self, sender: str, message: object, now: float) -> Sequence[object]:
        return self._report(now)

    def tick(self, now: float) -> Sequence[object]:
        assert self.due is not None and now >= self.due, "ticked too early by its own clock"
        self.due = None
        return self._report(now)

    def _report(self, now: float) -> Sequence[object]:
        return [Woke(now, self.host.clock.unix_s())]

    def next_deadline(self) -> float | None:
        return self.due

    def validate(self) -> None:
        pass


def world_of(*names: str, seed: int = 7, **clock: float) -> World:
    world = World(seed, link=Link(delay_s=(0.01, 0.01)))
    for name in names:
        world.add_host(name, Sleeper, **clock)
    return world


def woke(world: World, name: str = "ann") -> list[tuple[float, Woke]]:
    return [(when, event) for when, who, event in world.events if who == name and isinstance(event, Woke)]


def test_a_process_that_starts_again_finds_what_the_last_one_wrote() -> None:
    world = world_of("ann")
    world.crash("ann")
    world.restart("ann")
    assert world.core("ann").starts == 2


def test_a_host_without_its_disk_begins_anew() -> None:
    world = world_of("ann")
    world.crash("ann")
    world.restart("ann", disk=Disk())
    assert world.core("ann").starts == 1


def test_a_host_restored_from_a_snapshot_knows_nothing_of_what_came_after() -> None:
    world = world_of("ann")
    snapshot = world.snapshot("ann")
    for _ in range(3):
        world.crash("ann")
        world.restart("ann")
    assert world.core("ann").starts == 4
    world.crash("ann")
    world.restart("ann", disk=snapshot)
    assert world.core("ann").starts == 2
    assert snapshot.read("starts") == b"1", "what runs from a snapshot does not change it"


def test_a_copied_directory_is_a_second_participant_that_began_as_the_first() -> None:
    world = world_of("ann")
    world.clone("ann", "twin")
    assert world.core("twin").starts == 2 and world.core("twin").host.name == "twin"
    world.crash("ann")
    world.restart("ann")
    assert world.core("ann").starts == 2, "their disks are two"


def test_a_disk_keeps_named_bytes() -> None:
    disk = Disk({"b": b"2"})
    disk.write("a", bytearray(b"1"))
    assert list(disk) == ["a", "b"] and disk.read("a") == b"1" and disk.read("c") is None
    disk.delete("a")
    disk.delete("a")
    assert repr(disk) == "<Disk: 1 files, 1 bytes>"


def test_dice_of_a_host_depend_on_seed_name_and_boot_only() -> None:
    one, other = world_of("ann", "bob"), world_of("ann")
    assert one.host("ann").rng.random() == other.host("ann").rng.random() != one.host("bob").rng.random()
    other.crash("ann")
    other.restart("ann")
    assert other.host("ann").boot == 2
    assert other.host("ann").rng.random() != world_of("ann").host("ann").rng.random()


def test_a_wall_clock_that_is_ahead_says_so_and_timers_do_not_care() -> None:
    world = world_of("ann", offset_s=90)
    world.tell("ann", "sleep", 5)
    world.run(until=10)
    assert woke(world) == [(5, Woke(5, EPOCH_S + 95))]


def test_a_fast_clock_ticks_early_and_its_wall_clock_runs_ahead() -> None:
    world = world_of("ann", drift=0.01)
    world.tell("ann", "sleep", 101)
    world.run(until=200)
    ((when, event),) = woke(world)
    assert when == pytest.approx(100) and event.now >= 101
    assert event.unix_s - EPOCH_S == pytest.approx(101)


def test_monotonic_clocks_of_two_hosts_have_nothing_in_common() -> None:
    world = world_of("ann", uptime_s=1e6)
    world.run(until=3)
    assert world.host("ann").clock.now() == 1e6 + 3
    world.tell("ann", "sleep", 5)
    world.run(until=10)
    ((when, event),) = woke(world)
    assert when == pytest.approx(8) and event.now >= 1e6 + 8


def test_now_never_goes_back_whatever_is_done_to_the_clocks() -> None:
    world = world_of("ann")
    clock, last = world.host("ann").clock, 0.0
    for step in range(1, 200):
        world.run(until=step / 7)
        if step % 3 == 0:
            world.set_clock("ann", drift=world.rng.uniform(-0.5, 0.5), offset_s=world.rng.uniform(-100, 100))
        if step % 5 == 0:
            world.suspend("ann")
        if step % 5 == 2:
            world.wake("ann")
        assert clock.now() >= last
        last = clock.now()


def test_when_a_deadline_is_reached_the_clock_has_reached_it_by_its_own_arithmetic() -> None:
    world = world_of("ann")
    for uptime_s in (0.0, 0.3, 1e6, 1e9):
        for drift in (-0.3, -1e-5, 0.0, 1e-5, 0.3):
            world.now = 12.345678901
            clock = HostClock(world, drift=drift, uptime_s=uptime_s)
            for n in range(50):
                due = clock.now() + n / 7
                at = clock.reached_at(due)
                world.now = at
                assert clock.now() >= due and math.isclose(clock.now(), due, rel_tol=1e-12)
                world.now = 12.345678901


def test_a_clock_whose_speed_changes_moves_the_timers_that_run() -> None:
    world = world_of("ann")
    world.tell("ann", "sleep", 10)
    world.run(until=5)
    world.set_clock("ann", drift=1.0)
    world.run(until=20)
    assert woke(world)[0][0] == pytest.approx(7.5)


def test_a_laptop_asleep_for_forty_days_misses_datagrams_and_no_time_of_its_timers() -> None:
    """The lid closes two seconds before a timer is due; the timer comes two seconds after the lid opens."""
    world = world_of("ann", "bob")
    world.tell("ann", "sleep", 5)
    world.run(until=3)
    world.suspend("ann")
    world.tell("bob", "say", "ann")
    forty_days_s = 40 * 86400
    world.run(until=3 + forty_days_s)
    assert woke(world) == [] and world.tally["lost"] == 1
    world.wake("ann")
    world.run(until=4e6)
    ((when, event),) = woke(world)
    assert when == pytest.approx(5 + forty_days_s) and event.now == pytest.approx(5)
    assert event.unix_s == pytest.approx(EPOCH_S + when), "the wall clock has jumped"


def test_what_a_suspended_host_is_told_waits_until_it_wakes() -> None:
    world = world_of("ann")
    world.suspend("ann")
    world.tell("ann", "sleep", 1)
    assert world.core("ann").due is None
    world.wake("ann")
    assert world.core("ann").due == 1


def test_a_host_that_loses_power_while_suspended_starts_with_a_clock_that_runs() -> None:
    world = world_of("ann")
    world.suspend("ann")
    world.crash("ann", power=True)
    assert not world.is_up("ann")
    world.restart("ann")
    assert world.is_up("ann")
    world.tell("ann", "sleep", 1)
    world.run(until=2)
    assert len(woke(world)) == 1


def test_healing_wakes_and_resumes_everybody() -> None:
    world = world_of("ann", "bob")
    world.suspend("ann")
    world.pause("bob")
    world.heal()
    for name in ("ann", "bob"):
        world.tell(name, "sleep", 1)
    world.run(until=2)
    assert len(woke(world, "ann")) == len(woke(world, "bob")) == 1
