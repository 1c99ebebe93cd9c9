"""Where tasks and actors with large arguments run, those that trust few, and those that run long."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.mesh.identity import PeerId, peer_text
from tests.e2e.conftest import Sessions, eventually
from tests.e2e.far import Mesh, far_mesh, node_id, state_of

SIZE = 8 << 20


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("near"), a=1, b=1, c=1) as mesh:
        yield mesh


@lattica.remote(num_returns=2)
def make(size: int, seconds: float = 0.0) -> tuple[Any, str]:
    time.sleep(seconds)
    return np.full(size, 1, np.uint8), node_id()


@lattica.remote
def where_is(*arrays: Any) -> tuple[str, int]:
    return node_id(), sum(int(array[::64].sum()) for array in arrays)


@lattica.remote
def slow_where(_: Any = None, seconds: float = 0.3) -> str:
    time.sleep(seconds)
    return node_id()


@lattica.remote(num_cpus=0)
class Where:
    def __init__(self, array: Any = None) -> None:
        self.array = array

    def node(self) -> str:
        return node_id()


def fetched(mesh: Mesh) -> int:
    """Bytes that nodes have fetched from each other and keep."""
    clients = [each for node in mesh.nodes.values() for each in state_of(node, "memory")["clients"]]
    return sum(each["made_bytes"] for each in clients if each["name"] == "fetched objects")


def spread(mesh: Mesh, many: int, size: int = SIZE) -> tuple[list[Any], list[str]]:
    """(refs, where each lies) of as many arrays, made on all nodes in turn."""
    made = [make.options(scheduling_strategy="SPREAD").remote(size, 0.05) for _ in range(many)]
    return [array for array, _ in made], lattica.get([at for _, at in made], timeout=40)


def run_at(mesh: Mesh, arrays: list[Any], places: list[str], what: str) -> int:
    """How many of as many tasks ran where their input lies."""
    before = fetched(mesh)
    found = lattica.get([where_is.remote(array) for array in arrays], timeout=40)
    same = sum(ran == place for (ran, _), place in zip(found, places, strict=True))
    print(f"{what}: {same} of {len(found)} ran at their input, {(fetched(mesh) - before) >> 20} MiB crossed")
    assert all(size == SIZE // 64 for _, size in found)
    return same


def test_tasks_run_where_their_input_lies(mesh: Mesh) -> None:
    """In the order in which they were made, and those of one machine after those of another. Warm: the first task in a
    worker seems a long one, which is worth a journey. So do others on a busy machine: nine of ten are asked of the
    simulation (`lattica.testing.placement`), here two of three."""
    lattica.get([where_is.options(scheduling_strategy=mesh.on(name)).remote() for name in "abc" * 3], timeout=20)
    same = 0
    for what in ("mixed", "sorted"):
        arrays, places = spread(mesh, 20)
        if what == "sorted":
            pairs = sorted(zip(places, range(20), strict=True))
            arrays, places = [arrays[at] for _, at in pairs], [place for place, _ in pairs]
        assert len(Counter(places)) == 3
        same += run_at(mesh, arrays, places, what)
    assert same >= 27


def test_what_lies_here_is_used_here(mesh: Mesh) -> None:
    value = np.full(SIZE, 1, np.uint8)
    before = fetched(mesh)
    ref = lattica.put(value)
    found = [*lattica.get([where_is.remote(ref) for _ in range(6)], timeout=20)]
    found += lattica.get([where_is.remote(value) for _ in range(4)], timeout=20)
    here = sum(mesh.name_of(ran) == "a" for ran, _ in found)
    print(f"here: {here} of 10 ran at their input, {(fetched(mesh) - before) >> 20} MiB crossed")
    assert here >= 7


def test_the_larger_input_decides(mesh: Mesh) -> None:
    large, _ = make.options(scheduling_strategy=mesh.on("b")).remote(3 * SIZE)
    small, _ = make.options(scheduling_strategy=mesh.on("c")).remote(2 << 20)
    for _ in range(5):
        ran, _size = lattica.get(where_is.remote(small, large), timeout=20)
        assert mesh.name_of(ran) == "b"


def test_an_actor_lives_where_its_argument_lies(mesh: Mesh) -> None:
    for name in "bca":
        array, at = make.options(scheduling_strategy=mesh.on(name)).remote(SIZE)
        early = Where.remote(array)  # its argument is still being made
        lattica.get(at, timeout=20)
        late = Where.remote(array)
        assert [mesh.name_of(lattica.get(each.node.remote(), timeout=20)) for each in (early, late)] == [name, name]


def test_an_idle_machine_is_worth_the_journey_of_a_long_task(mesh: Mesh) -> None:
    array, _ = make.options(scheduling_strategy=mesh.on("b")).remote(SIZE)
    lattica.get(slow_where.remote(array), timeout=20)  # its run time is known from now on
    began = time.monotonic()
    found = Counter(map(mesh.name_of, lattica.get([slow_where.remote(array) for _ in range(6)], timeout=30)))
    print(f"6 tasks of 0.3 s, all with one input at b: {dict(found)}, {time.monotonic() - began:.2f} s")
    assert len(found) >= 2


def peer_of(mesh: Mesh, name: str) -> str:
    """The node's id as `trust=` takes it."""
    return peer_text(PeerId(bytes.fromhex(mesh.ids[name])))


def test_tasks_and_actors_run_on_trusted_nodes_alone(mesh: Mesh) -> None:
    for trusted in ("b", "c", "bc"):
        trust = [peer_of(mesh, name) for name in trusted]
        ran = lattica.get([slow_where.options(trust=trust).remote(None, 0.05) for _ in range(8)], timeout=40)
        assert set(map(mesh.name_of, ran)) <= set(trusted)
        actors = [Where.options(trust=trust).remote() for _ in range(3)]
        assert {mesh.name_of(lattica.get(actor.node.remote(), timeout=20)) for actor in actors} <= set(trusted)
    here = lattica.get(slow_where.options(trust=peer_of(mesh, "a")).remote(None, 0.0), timeout=20)
    assert mesh.name_of(here) == "a"


def test_what_trusts_an_issuer_runs_on_whom_that_has_certified(mesh: Mesh) -> None:
    said = mesh.nodes["a"].run("issuer", "--json")
    (issuer,) = json.loads(said.stdout)
    ran = lattica.get([slow_where.options(trust=issuer["issuer_id"]).remote(None, 0.1) for _ in range(8)], timeout=20)
    assert set(ran) <= set(mesh.ids.values())
    assert len(set(ran)) > 1


def test_a_task_whose_trusted_nodes_are_gone_waits_and_says_so(mesh: Mesh, capfd: pytest.CaptureFixture[str]) -> None:
    trust = [peer_of(mesh, "c")]
    assert mesh.name_of(lattica.get(slow_where.options(trust=trust).remote(None, 0.0), timeout=20)) == "c"
    mesh.kill("c")
    ref = slow_where.options(trust=trust).remote(None, 0.0)
    actor = Where.options(trust=trust).remote()
    call = actor.node.remote()
    said = ""

    def told() -> bool:
        nonlocal said
        said += "".join(capfd.readouterr())
        return said.count("waits for a node that can run it: trusts") >= 2

    assert eventually(told, 40), said
    assert lattica.wait([ref, call], timeout=0.5)[0] == []
    assert "no living node is one of these" in said
