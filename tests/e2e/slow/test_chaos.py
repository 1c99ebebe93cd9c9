"""The long form of the storms in test_crashes: `make test-chaos`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.chaos import storm_of_calls, storm_of_generators, storm_of_tasks
from tests.e2e.conftest import eventually
from tests.e2e.footprint import books

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def test_5000_tasks_of_10_ms_while_a_worker_is_killed_every_200_ms(fresh: Callable[..., Any], tmp_path: Path) -> None:
    fresh(num_cpus=2)
    print("\n" + storm_of_tasks(tmp_path / "runs", tasks=5_000, seconds=0.01, kill_every_s=0.2))


def test_200000_tiny_tasks_while_a_worker_is_killed_every_50_ms(fresh: Callable[..., Any], tmp_path: Path) -> None:
    fresh(num_cpus=2)
    print("\n" + storm_of_tasks(tmp_path / "runs", tasks=200_000, seconds=0.0, kill_every_s=0.05))


def test_calls_of_eight_actors_while_one_is_killed_every_500_ms(fresh: Callable[..., Any], tmp_path: Path) -> None:
    fresh(num_cpus=2)
    print("\n" + storm_of_calls(tmp_path, actors=8, calls=1_000, seconds=0.005, kill_every_s=0.5, kills=60))


def test_generators_while_a_worker_is_killed_every_second(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=4)
    print("\n" + storm_of_generators(rounds=40, kill_every_s=1.0, kills=30))
    assert eventually(lambda: not books(), within_s=20), books()
