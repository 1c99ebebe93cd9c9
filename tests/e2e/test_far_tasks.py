"""Tasks on other nodes of a mesh: where they run, what they are given and give back, and how they end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.errors import ObjectLostError
from tests.e2e.churn import storm
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


def test_spread_uses_all_nodes(mesh: Mesh) -> None:
    refs = [where.options(scheduling_strategy="SPREAD").remote(0.1) for _ in range(9)]
    counts = Counter(map(mesh.name_of, lattica.get(refs, timeout=20)))
    assert len(counts) == 3, counts


def test_a_task_runs_on_the_node_that_it_names(mesh: Mesh) -> None:
    for name in "abc":
        assert mesh.name_of(lattica.get(where.options(scheduling_strategy=mesh.on(name)).remote(), timeout=20)) == name


@pytest.mark.parametrize("size", SIZES)
def test_values_of_any_size_go_there_and_come_back(mesh: Mesh, size: int) -> None:
    value = np.arange(size, dtype=np.uint8)
    back = lattica.get(echo.options(scheduling_strategy=mesh.on("b")).remote(value), timeout=20)
    assert np.array_equal(back, value)
    back = lattica.get(echo.options(scheduling_strategy=mesh.on("b")).remote(lattica.put(value)), timeout=20)
    assert np.array_equal(back, value)
    back = lattica.get(deep.options(scheduling_strategy=mesh.on("b")).remote([lattica.put(value)]), timeout=20)
    assert np.array_equal(back, value)


@pytest.mark.parametrize("size", SIZES)
def test_refs_in_results_are_read_here_and_on_a_third_node(mesh: Mesh, size: int) -> None:
    (ref,) = lattica.get(put_here.options(scheduling_strategy=mesh.on("b")).remote(size), timeout=20)
    assert lattica.get(ref, timeout=20).sum() == 7 * size
    (ref,) = lattica.get(put_here.options(scheduling_strategy=mesh.on("b")).remote(size), timeout=20)
    assert lattica.get(echo.options(scheduling_strategy=mesh.on("c")).remote(ref), timeout=20).sum() == 7 * size
    held = put_here.options(scheduling_strategy=mesh.on("b")).remote(size)
    assert lattica.get(deep.options(scheduling_strategy=mesh.on("c")).remote(held), timeout=20).sum() == 7 * size


@pytest.mark.parametrize("size", SIZES)
def test_an_argument_may_lie_elsewhere_or_still_be_made(mesh: Mesh, size: int) -> None:
    value = np.full(size, 7, np.uint8)
    made = slow.options(scheduling_strategy=mesh.on("b")).remote(value, 0.3)
    assert lattica.get(echo.options(scheduling_strategy=mesh.on("c")).remote(made), timeout=20).sum() == 7 * size
    made = slow.options(scheduling_strategy=mesh.on("b")).remote(value, 0.3)
    assert lattica.get(deep.options(scheduling_strategy=mesh.on("c")).remote([made]), timeout=20).sum() == 7 * size


def test_a_ref_that_went_round_comes_home(mesh: Mesh) -> None:
    """What b made goes by way of c and back to b, and then here."""
    made = put_here.options(scheduling_strategy=mesh.on("b")).remote(5 << 20)
    (ref,) = lattica.get(made, timeout=20)
    (again,) = lattica.get(echo.options(scheduling_strategy=mesh.on("c")).remote([ref]), timeout=20)
    assert again is ref
    assert lattica.get(deep.options(scheduling_strategy=mesh.on("b")).remote([ref]), timeout=20).sum() == 7 * (5 << 20)
    assert lattica.get(again, timeout=20).sum() == 7 * (5 << 20)


@lattica.remote(num_cpus=1)
class Sitter:
    """Takes a CPU for as long as it lives."""

    def where(self) -> str:
        return node_id()


def test_what_waits_behind_actors_goes_to_whichever_node_becomes_idle(mesh: Mesh) -> None:
    lattica.get([where.options(scheduling_strategy="SPREAD").remote() for _ in range(20)], timeout=20)
    sitting = [Sitter.remote() for _ in range(3)]
    places = lattica.get([sitter.where.remote() for sitter in sitting], timeout=10)
    assert len(set(places)) == 3, "an actor waited behind another while a node was idle"
    waiting = [Sitter.remote() for _ in range(2)]
    asked = [sitter.where.remote() for sitter in waiting]
    assert not lattica.wait(asked, timeout=2)[0]
    for sitter in sitting[:2]:
        lattica.kill(sitter)
    assert set(lattica.get(asked, timeout=10)) == set(places[:2])


@lattica.remote
class Keeper:
    def keep(self, refs: list[Any]) -> int:
        self.refs = refs
        return int(lattica.get(refs[0]).sum())

    def read(self) -> int:
        return int(lattica.get(self.refs[0]).sum())

    def give(self) -> list[Any]:
        return self.refs


def test_what_a_holder_has_fetched_outlives_its_owner(mesh: Mesh) -> None:
    owner = Keeper.options(scheduling_strategy=mesh.on("b"), num_cpus=0.1).remote()
    keeper = Keeper.options(scheduling_strategy=mesh.on("c"), num_cpus=0.1).remote()
    (ref,) = lattica.get(put_here.options(scheduling_strategy=mesh.on("b"), num_cpus=0.1).remote(3 << 20), timeout=20)
    assert lattica.get(keeper.keep.remote([ref]), timeout=20) == 7 * (3 << 20)
    lattica.kill(owner)
    del ref
    assert lattica.get(keeper.read.remote(), timeout=20) == 7 * (3 << 20)
    (ref,) = lattica.get(keeper.give.remote(), timeout=20)
    assert lattica.get(ref, timeout=20).sum() == 7 * (3 << 20)


def test_no_result_is_lost_when_a_node_is_killed(mesh: Mesh) -> None:
    """The short form of `slow/test_far_churn`."""
    print("\n  " + storm(mesh, "a", "c", tasks=150, seconds=0.05, every_s=1.5))


def test_a_copy_elsewhere_is_found_when_the_lender_is_killed(mesh: Mesh) -> None:
    """Made by put() on d, so that it cannot be made again; b has fetched it, and we have not."""
    mesh.begin("d", 1)
    mesh.all_see()
    keeper = Keeper.options(scheduling_strategy=mesh.on("b"), num_cpus=0.1).remote()
    refs = lattica.get(put_here.options(scheduling_strategy=mesh.on("d"), num_cpus=0.1).remote(3 << 20), timeout=20)
    lone = lattica.get(put_here.options(scheduling_strategy=mesh.on("d"), num_cpus=0.1).remote(3 << 20), timeout=20)
    assert lattica.get(keeper.keep.remote(refs), timeout=20) == 7 * (3 << 20)
    mesh.kill("d")
    with pytest.raises(ObjectLostError, match="the connection with node"):
        lattica.get(lone[0], timeout=20)
    assert lattica.get(keeper.read.remote(), timeout=20) == 7 * (3 << 20)
    assert lattica.get(refs[0], timeout=20).sum() == 7 * (3 << 20)
