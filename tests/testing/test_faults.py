"""Faults come as their weights say, end by themselves, and leave a world that can be healed."""

from __future__ import annotations

from collections import Counter

import pytest

from lattica.testing import CLOCKS, CONNECTIONS, DISKS, NETWORK, PROCESSES, Faults, Host, Link, World
from tests.testing.talker import Talker

NAMES = ("ann", "bob", "cid", "dan")
EVERYTHING = NETWORK | PROCESSES | CLOCKS | DISKS


def world_of(seed: int = 7) -> World:
    """Participants that dial each other again and again, so that there are connections to break."""
    world = World(seed, link=Link(delay_s=(0.01, 0.1)))

    def start(host: Host) -> Talker:
        host.disk.write("boot", str(host.boot).encode())
        return Talker()

    def dial(one: str, other: str) -> None:
        if world.is_alive(one):
            world.tell(one, "dial", other)

    for name in NAMES:
        world.add_host(name, start)
        world.listen(name, name)
    for n in range(400):
        world.after(n * 0.25, dial, *world.rng.sample(NAMES, 2))
    return world


@pytest.mark.parametrize("kind", sorted(EVERYTHING))
def test_each_kind_of_fault_strikes_and_leaves_a_world_that_heals(kind: str) -> None:
    world = world_of()
    faults = Faults(world, NAMES, {kind: 1.0}, every_s=(0.5, 2.0))
    before = (world.link, dict(world.links))
    faults.unleash(until=90)
    world.run(until=100)
    assert world.tally["faults"] > 30
    faults.end()
    assert (world.link, world.links) == before
    assert world.living == list(NAMES) and all(map(world.is_up, NAMES)) and not any(map(world.is_paused, NAMES))
    assert not world.obstacles.cut_since and not world.obstacles.clogged_until
    if kind in CONNECTIONS:
        assert world.tally["connection faults"] > 10
    if kind in PROCESSES and kind not in ("pause", "suspend"):
        assert world.tally["crashes"] > 5


def test_faults_end_when_they_were_told_to() -> None:
    world = world_of()
    faults = Faults(world, NAMES, EVERYTHING)
    faults.unleash(until=50)
    world.run(until=50)
    struck = world.tally["faults"]
    world.run(until=100)
    assert world.tally["faults"] == struck


def test_faults_of_a_seed_are_always_the_same() -> None:
    def history(seed: int) -> str:
        world = world_of(seed)
        Faults(world, NAMES, EVERYTHING).unleash(until=100)
        world.run(until=100)
        return world.trace_hash()

    assert history(1) == history(1) != history(2)


def test_never_more_are_down_than_allowed() -> None:
    world = world_of()
    down: Counter[int] = Counter()

    def count() -> None:
        up = [name for name in world.living if world.is_up(name) and not world.is_paused(name)]
        down[len(NAMES) - len(up)] += 1

    world.watch(count)
    Faults(world, NAMES, PROCESSES, every_s=(0.1, 0.3), lasts_s=(5, 50), down_max=2).unleash(until=100)
    world.run(until=100)
    assert max(down) == 2


def test_one_whom_somebody_else_ended_stays_dead() -> None:
    world = world_of()
    faults = Faults(world, NAMES, {"crash": 1.0})
    faults.unleash(until=20)
    world.run(until=10)
    if world.is_alive("ann"):
        world.crash("ann")
    else:
        world.restart("ann")
        world.crash("ann")
    world.run(until=20)
    faults.end()
    assert world.living == ["bob", "cid", "dan"]


def test_a_lost_disk_is_empty_and_a_restored_one_is_older() -> None:
    def disks_at_start(kind: str) -> set[bytes | None]:
        world, found = world_of(), set()

        def start(host: Host) -> Talker:
            found.add(host.disk.read("boot"))
            host.disk.write("boot", b"%04d" % host.boot)
            return Talker()

        world.add_host("eve", start)
        Faults(world, ["eve"], {kind: 1.0}, every_s=(1, 2), lasts_s=(0.1, 1), down_max=1).unleash(until=100)
        world.run(until=110)
        assert world.boot_of("eve") > 10
        return found

    assert disks_at_start("lose_disk") == {None}
    restored = disks_at_start("restore_disk")
    assert None in restored and len(restored) > 3
