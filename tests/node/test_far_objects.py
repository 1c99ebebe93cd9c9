"""Objects that three machines lend each other: nothing held is freed, and all is freed at the end, whoever dies."""

from __future__ import annotations

import pytest

from lattica.testing.far_objects import World
from lattica.testing.loop import run_virtually

SEEDS, SHARES = 240, 8


async def live(seed: int, deaths: int) -> tuple[int, int]:
    world = World(seed, machines=2 + seed % 2)
    await world.run(steps=150, deaths=deaths)
    return world.reads, world.losses


@pytest.mark.parametrize("share", range(SHARES))
def test_what_is_held_is_read_and_what_nobody_holds_is_freed(share: int) -> None:
    reads = sum(run_virtually(live(seed, deaths=0))[0] for seed in range(share, SEEDS, SHARES))
    assert reads > SEEDS


@pytest.mark.parametrize("share", range(SHARES))
def test_a_machine_that_dies_takes_only_what_lay_there_alone(share: int) -> None:
    told = [run_virtually(live(seed, deaths=1)) for seed in range(share, SEEDS, SHARES)]
    assert sum(reads for reads, _ in told) > SEEDS / 2
