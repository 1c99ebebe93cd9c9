"""A mesh that was in two comes together: the two sides find each other, and neither loses its own for a moment."""

from __future__ import annotations

import pytest

from lattica.mesh.membership import MemberChanged, State
from lattica.testing.community import Town, join_all
from lattica.testing.world import Link, World

NAMES = [f"n{number}" for number in range(8)]
LEFT, RIGHT = set(NAMES[:4]), set(NAMES[4:])


@pytest.mark.parametrize("seed", range(3))
def test_those_who_hear_each_other_believe_nobody_dead_when_a_partition_heals(seed: int) -> None:
    """Each side has accused the other. At the heal all these rows reach everybody some 50 ms before the refutations do:
    of each of these plays some twenty deaths came, of peers that had answered pings all the time."""
    world, town = World(seed, link=Link(delay_s=(0.01, 0.2), loss=0.02)), Town(NAMES)
    join_all(world, town, NAMES)
    world.run(10.0)
    world.partition(sorted(LEFT), sorted(RIGHT))
    world.run(45.0)
    died = [(name, town.names[event.peer]) for _, name, event in world.events if _is_death(event)]
    assert sorted(died) == sorted((one, other) for one in NAMES for other in (RIGHT if one in LEFT else LEFT))
    world.heal()
    world.run(90.0)
    later = [(name, town.names[event.peer]) for _, name, event in world.events if _is_death(event)][len(died) :]
    assert not [pair for pair in later if len(LEFT.intersection(pair)) != 1]
    assert all(len(world.core(name).community.membership.living) == len(NAMES) for name in NAMES)


def _is_death(event: object) -> bool:
    return isinstance(event, MemberChanged) and event.state is State.DEAD
