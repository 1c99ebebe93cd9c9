"""Generators of other nodes: as those of this one, and when their node is killed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from tests.e2e.conftest import Sessions, eventually
from tests.e2e.far import Mesh, far_mesh, node_id, traces_of


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("far"), a=1, b=1, c=1) as mesh:
        yield mesh


@lattica.remote
def make(folder: str, number: int, size: int = 0, pause_s: float = 0.0) -> Iterator[Any]:
    try:
        for at in range(number):
            Path(folder, str(at)).touch()
            yield np.full(size, at, np.uint8) if size else (at, node_id())
            time.sleep(pause_s)
    finally:
        Path(folder, "closed").touch()


@lattica.remote
class Maker:
    async def make(self, number: int) -> AsyncIterator[Any]:
        for at in range(number):
            yield at, node_id()
            await asyncio.sleep(0.001)

    def where(self) -> str:
        return node_id()


def test_items_of_tasks_and_actors_elsewhere_come_as_they_are_made(mesh: Mesh, tmp_path: Path) -> None:
    there = make.options(scheduling_strategy=mesh.on("b"))
    assert [lattica.get(ref)[1] for ref in there.remote(str(tmp_path), 500)] == [mesh.ids["b"]] * 500
    slow = there.remote(str(tmp_path), 2, pause_s=2.0)
    began = time.monotonic()
    assert lattica.get(next(slow))[0] == 0
    assert time.monotonic() - began < 2.0, "the second one is not waited for"
    maker = Maker.options(scheduling_strategy=mesh.on("c")).remote()
    assert [lattica.get(ref) for ref in maker.make.remote(300)] == [(at, mesh.ids["c"]) for at in range(300)]
    large = list(there.remote(str(tmp_path), 20, 300_000))
    assert [int(lattica.get(ref)[-1]) for ref in large] == list(range(20))


def test_a_generator_elsewhere_waits_for_its_user_and_stops_when_it_is_dropped(mesh: Mesh, tmp_path: Path) -> None:
    there = make.options(scheduling_strategy=mesh.on("b"), _generator_backpressure_num_objects=2)
    generator = there.remote(str(tmp_path), 1_000, 300_000)
    made = lambda: len(list(tmp_path.iterdir()))  # noqa: E731
    assert eventually(lambda: made() == 2)
    next(generator)
    assert eventually(lambda: made() == 3)
    del generator
    assert eventually(lambda: Path(tmp_path, "closed").exists()) and made() < 8
    held = lambda: {name: traces[3] for name, traces in traces_of(mesh.nodes.values()).items()}  # noqa: E731
    assert eventually(lambda: not any(held().values()), 10), held()


def test_when_its_node_is_killed_a_generator_goes_on_elsewhere(mesh: Mesh, tmp_path: Path) -> None:
    mesh.begin("z", 1)
    mesh.all_see()
    generator = make.options(scheduling_strategy=mesh.on("z", soft=True)).remote(str(tmp_path), 100, pause_s=0.05)
    first = [lattica.get(next(generator)) for _ in range(3)]
    assert first == [(at, mesh.ids["z"]) for at in range(3)]
    mesh.kill("z")
    rest = [lattica.get(ref, timeout=30) for ref in generator]
    assert [at for at, _ in rest] == list(range(3, 100)) and rest[-1][1] != first[0][1]


@pytest.mark.parametrize("midway", [True, False])
def test_items_that_are_lost_with_their_node_are_made_again(mesh: Mesh, tmp_path: Path, midway: bool) -> None:
    """Nobody had read them. midway: the generator still ran there."""
    name = f"y{midway}"
    mesh.begin(name, 1)
    mesh.all_see()
    there = make.options(scheduling_strategy=mesh.on(name, soft=True))
    number = 12 if midway else 6
    generator = there.remote(str(tmp_path), number, 300_000, pause_s=0.3 if midway else 0.0)
    refs = [next(generator) for _ in range(6)]
    if not midway:
        assert not list(generator)
    small = there.options(max_retries=0).remote(str(tmp_path), 1, 300_000) if not midway else None
    one = next(small) if small is not None else None
    lattica.get(refs[2])
    mesh.kill(name)
    assert [int(lattica.get(ref, timeout=30)[-1]) for ref in refs] == list(range(6))
    assert [int(lattica.get(ref, timeout=30)[-1]) for ref in generator] == list(range(6, number))
    if one is not None:
        with pytest.raises(lattica.exceptions.ObjectLostError, match="max_retries=0"):
            lattica.get(one, timeout=30)
