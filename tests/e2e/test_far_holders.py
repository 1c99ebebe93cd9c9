"""Large values that lie on a third machine: who sends them to whom, and who has them when machines are gone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.errors import ObjectLostError
from tests.e2e.conftest import Script, Sessions, eventually
from tests.e2e.far import Mesh, far_mesh, state_of

SIZE = 20 << 20
LARGE = 64 << 20
MIB = 1 << 20


@pytest.fixture
def mesh(sessions: Sessions, tmp_path: Path) -> Iterator[Mesh]:
    with far_mesh(tmp_path, a=1, b=1, c=1) as mesh:
        yield mesh


@lattica.remote(num_cpus=0.1)
def big(size: int) -> Any:
    return np.full(size, 7, np.uint8)


@lattica.remote(num_cpus=0.1)
def put_here(size: int) -> list[Any]:
    return [lattica.put(np.random.default_rng(size).integers(0, 9, size, np.uint8))]


@lattica.remote(num_cpus=0.1)
def total(value: Any) -> int:
    return int(value.sum())


@lattica.remote(num_cpus=0.1)
def deep(refs: list[Any]) -> int:
    return int(lattica.get(refs[0]).sum())


@lattica.remote(num_cpus=0.1)
class Keeper:
    def keep(self, refs: list[Any]) -> None:
        self.refs = refs

    def read(self, number: int = 0) -> int:
        return int(lattica.get(self.refs[number]).sum())

    def fill(self, there: Any) -> None:
        """With what lies there."""
        make = put_here.options(scheduling_strategy=there)
        self.refs = [lattica.get(make.remote(SIZE + k))[0] for k in range(2)]

    def give_on(self, other: Any) -> int:
        """The first, which the other reads."""
        lattica.get(other.keep.remote(self.refs[:1]))
        return int(lattica.get(other.read.remote()))


def fetched(mesh: Mesh, name: str) -> int:
    """Bytes that lie on this node and came from others."""
    clients = state_of(mesh.nodes[name], "memory")["clients"]
    return sum(each["made_bytes"] for each in clients if each["name"] == "fetched objects")


DRIVER = """
import lattica, sys, time
import numpy as np
lattica.init(address="auto", namespace="test")
from lattica.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

@lattica.remote(num_cpus=0.1)
def big(size):
    return np.full(size, 7, np.uint8)
"""


def test_a_result_goes_straight_from_where_it_was_made_to_where_it_is_read(mesh: Mesh) -> None:
    """By a ref that was passed on, one in a list, and one whose value is still being made."""
    refs = [big.options(scheduling_strategy=mesh.on("b")).remote(SIZE)]
    lattica.wait(refs, timeout=20, fetch_local=False)
    refs += lattica.get(put_here.options(scheduling_strategy=mesh.on("b")).remote(SIZE), timeout=20)
    there = total.options(scheduling_strategy=mesh.on("c"))
    used = {name: state_of(node, "memory")["used_bytes"] for name, node in mesh.nodes.items()}
    began = time.monotonic()
    assert lattica.get(there.remote(refs[0]), timeout=20) == 7 * SIZE
    assert lattica.get(deep.options(scheduling_strategy=mesh.on("c")).remote([refs[1]]), timeout=20) > 0
    took = time.monotonic() - began
    refs.append(big.options(scheduling_strategy=mesh.on("b")).remote(SIZE + 1))
    assert lattica.get(there.remote(refs[2]), timeout=20) == 7 * (SIZE + 1)
    assert fetched(mesh, "a") < MIB, "they came by way of the driver's node"
    after = {name: state_of(node, "memory")["used_bytes"] for name, node in mesh.nodes.items()}
    grew = {name: (after[name] - used[name]) / MIB for name in after}
    print(f"\n  20 MiB twice, b -> c: {took:.2f} s; arenas grew by {grew} MiB; a fetched {fetched(mesh, 'a')}")
    assert grew["a"] < 1
    assert lattica.get(refs[0], timeout=20).sum() == 7 * SIZE, "and it is read here, too"


def test_what_an_actor_holds_outlives_the_node_that_lent_it(mesh: Mesh, script: Script) -> None:
    """The driver's node k lends what lies on b to an actor on c, which has read one of two. Then k is killed."""
    mesh.begin("k", 1)
    mesh.all_see()
    keeper = Keeper.options(scheduling_strategy=mesh.on("c"), name="keeper", namespace="test").remote()
    lattica.get(keeper.keep.remote([]), timeout=20)
    text = f"""{DRIVER}
refs = [big.options(scheduling_strategy=On({mesh.ids["b"]!r}, False)).remote({SIZE} + k) for k in range(2)]
lattica.wait(refs, num_returns=2, timeout=20, fetch_local=False)
keeper = lattica.get_actor("keeper")
lattica.get(keeper.keep.remote(refs), timeout=20)
print(lattica.get(keeper.read.remote(), timeout=20), flush=True)
time.sleep(60)
"""
    process = script.start(text, env={"LATTICA_DATA_DIR": str(mesh.nodes["k"].data_dir)})
    assert process.stdout is not None
    assert process.stdout.readline().strip() == str(7 * SIZE)
    assert fetched(mesh, "k") == 0
    mesh.kill("k")
    process.kill()
    process.communicate()
    began = time.monotonic()
    assert lattica.get(keeper.read.remote(0), timeout=20) == 7 * SIZE
    assert lattica.get(keeper.read.remote(1), timeout=30) == 7 * (SIZE + 1)
    print(f"\n  what c had not read came from b {time.monotonic() - began:.1f} s after their lender's death")


def test_a_holder_is_found_by_the_content_when_owner_and_lender_are_gone(mesh: Mesh) -> None:
    """Put on b; e lends it to c, which reads it from b and gives it to d, of which e has heard nothing."""
    for name in "de":
        mesh.begin(name, 1)
    mesh.all_see()
    e, c, d = (Keeper.options(scheduling_strategy=mesh.on(name)).remote() for name in "ecd")
    lattica.get(e.fill.remote(mesh.on("b")), timeout=20)
    expected = lattica.get(e.give_on.remote(c), timeout=20)
    assert lattica.get(c.give_on.remote(d), timeout=20) == expected
    time.sleep(4.0)  # what is short-lived is not announced
    assert fetched(mesh, "e") < MIB
    mesh.kill("b")
    mesh.kill("c")
    began = time.monotonic()
    assert lattica.get(e.read.remote(), timeout=40) == expected
    took = time.monotonic() - began
    found = re.findall(r"object \w+: (\d+) nodes are known to have its content", mesh.nodes["e"].log())
    print(f"\n  found {took:.1f} s after both deaths, at {found} nodes by the DHT")
    assert found, "e had a link with d, and needed no DHT"
    with pytest.raises(ObjectLostError, match=r"none of \d other nodes has a copy"):
        lattica.get(e.read.remote(1), timeout=20)


def test_readers_serve_each_other(mesh: Mesh) -> None:
    """64 MiB, read on four nodes at once: the more of it comes from other readers, the less its source sends."""
    for name in "de":
        mesh.begin(name, 1)
    mesh.all_see()
    refs = lattica.get(put_here.options(scheduling_strategy=mesh.on("b")).remote(LARGE), timeout=20)
    places = "acde"
    readers = [Keeper.options(scheduling_strategy=mesh.on(name)).remote() for name in places]
    lattica.get([reader.keep.remote(refs) for reader in readers], timeout=20)
    began = time.monotonic()
    found = lattica.get([reader.read.remote() for reader in readers], timeout=60)
    took = time.monotonic() - began
    assert len(set(found)) == 1
    here = {name: fetched(mesh, name) for name in places}
    assert all(size >= LARGE for size in here.values()), here
    del refs, readers
    served = dict.fromkeys(places, 0)

    def read_on(name: str) -> bool:
        lines = re.findall(r"of (\d+) bytes: others have read (\d+) here", mesh.nodes[name].log())
        served[name] = sum(int(read) for size, read in lines if int(size) >= LARGE)
        return fetched(mesh, name) == 0

    for name in places:
        assert eventually(lambda name=name: read_on(name), 20), name
    source = (len(places) * LARGE - sum(served.values())) / LARGE
    sizes = {name: size // MIB for name, size in served.items()}
    print(f"\n  64 MiB to 4 nodes in {took:.2f} s: the source sent {source:.2f} copies, the readers {sizes} MiB")
