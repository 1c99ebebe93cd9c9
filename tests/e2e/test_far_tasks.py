"""Tasks on other nodes of a mesh: where they run, what they are given and give back, and how they end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lattica
from tests.e2e.conftest import Sessions
from tests.e2e.far import Mesh, far_mesh, node_id


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("far"), a=1, b=1, c=1) as mesh:
        yield mesh


@lattica.remote
def where(seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return node_id()


@lattica.remote
def echo(value: Any) -> Any:
    return value


@lattica.remote
def deep(value: Any) -> Any:
    """The value of a ref in a list."""
    return lattica.get(value[0])


@lattica.remote
def put_here(size: int) -> list[Any]:
    """A ref to something that lies where this runs."""
    return [lattica.put(np.full(size, 7, np.uint8))]


@lattica.remote
def slow(value: Any, seconds: float) -> Any:
    time.sleep(seconds)
    return value


SIZES = (100, 200 << 10, 20 << 20)


def test_tasks_spread_when_the_local_cpu_is_busy(mesh: Mesh) -> None:
    counts = Counter(map(mesh.name_of, lattica.get([where.remote(0.2) for _ in range(12)], timeout=20)))
    assert len(counts) == 3, counts


def test_spread_uses_all(mesh: Mesh) -> None:
    refs = [where.options(scheduling_strategy="SPREAD").remote(0.1) for _ in range(9)]
    counts = Counter(map(mesh.name_of, lattica.get(refs, timeout=20)))
    assert len(counts) == 3, counts


def test_affinity(mesh: Mesh) -> None:
    for name in "abc":
        assert mesh.name_of(lattica.get(where.options(scheduling_strategy=mesh.on(name)).remote(), timeout=20)) == name


@pytest.mark.parametrize("size", SIZES)
def test_values_go_and_come(mesh: Mesh, size: int) -> None:
    value = np.arange(size, dtype=np.uint8)
    back = lattica.get(echo.options(scheduling_strategy=mesh.on("b")).remote(value), timeout=20)
    assert np.array_equal(back, value)
    back = lattica.get(echo.options(scheduling_strategy=mesh.on("b")).remote(lattica.put(value)), timeout=20)
    assert np.array_equal(back, value)
    back = lattica.get(deep.options(scheduling_strategy=mesh.on("b")).remote([lattica.put(value)]), timeout=20)
    assert np.array_equal(back, value)


@pytest.mark.parametrize("size", SIZES)
def test_refs_in_results(mesh: Mesh, size: int) -> None:
    (ref,) = lattica.get(put_here.options(scheduling_strategy=mesh.on("b")).remote(size), timeout=20)
    assert lattica.get(ref, timeout=20).sum() == 7 * size
    (ref,) = lattica.get(put_here.options(scheduling_strategy=mesh.on("b")).remote(size), timeout=20)
    assert lattica.get(echo.options(scheduling_strategy=mesh.on("c")).remote(ref), timeout=20).sum() == 7 * size
    held = put_here.options(scheduling_strategy=mesh.on("b")).remote(size)
    assert lattica.get(deep.options(scheduling_strategy=mesh.on("c")).remote(held), timeout=20).sum() == 7 * size


@pytest.mark.parametrize("size", SIZES)
def test_dep_elsewhere_and_promised(mesh: Mesh, size: int) -> None:
    value = np.full(size, 7, np.uint8)
    made = slow.options(scheduling_strategy=mesh.on("b")).remote(value, 0.3)
    assert lattica.get(echo.options(scheduling_strategy=mesh.on("c")).remote(made), timeout=20).sum() == 7 * size
    made = slow.options(scheduling_strategy=mesh.on("b")).remote(value, 0.3)
    assert lattica.get(deep.options(scheduling_strategy=mesh.on("c")).remote([made]), timeout=20).sum() == 7 * size
