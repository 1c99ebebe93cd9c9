"""Placement groups: kept on one machine and across three, used by tasks and actors, ended, and placed anew."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lattica
from lattica.errors import (
    ActorPlacementGroupRemovedError,
    ConfigError,
    LatticaError,
    TaskPlacementGroupRemovedError,
    TaskUnschedulableError,
)
from lattica.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from lattica.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.e2e.conftest import Sessions, eventually
from tests.e2e.far import Mesh, node_id, state_of

ALL = {"CPU": 4, "GPU": 2}


def within(group: PlacementGroup, index: int = -1, captures: bool | None = None) -> dict[str, Any]:
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, index, captures)}


@lattica.remote
def where(seconds: float = 0.0) -> tuple[str, PlacementGroup | None]:
    time.sleep(seconds)
    return node_id(), get_current_placement_group()


@lattica.remote
def assigned() -> tuple[list[Any], dict[str, float]]:
    return lattica.get_gpu_ids(), lattica.get_runtime_context().get_assigned_resources()


@lattica.remote
def parent(levels: int, options: dict[str, Any]) -> list[PlacementGroup | None]:
    """The group at each level: its own, its child's, and so on."""
    own = get_current_placement_group()
    return [own] if levels == 0 else [own, *lattica.get(parent.options(**options).remote(levels - 1, options))]


@lattica.remote
class Resident:
    def where(self) -> tuple[str, PlacementGroup | None]:
        return node_id(), get_current_placement_group()

    def child(self) -> PlacementGroup | None:
        return lattica.get(where.options(num_cpus=1).remote())[1]

    def pid(self) -> int:
        return os.getpid()


# -- one machine -----------------------------------------------------------------------------------------------------


@pytest.fixture
def machine_of_four(sessions: Sessions) -> Iterator[None]:
    sessions.share(num_cpus=4, num_gpus=2)
    yield
    for about in placement_group_table().values():
        remove_placement_group(PlacementGroup(bytes.fromhex(about["placement_group_id"])))
    assert eventually(lambda: free() == ALL), free()


def free() -> dict[str, float]:
    return {name: amount for name, amount in lattica.available_resources().items() if name in ALL}


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK"])
def test_a_group_takes_its_resources_and_gives_them_back(machine_of_four: None, strategy: str) -> None:
    group = placement_group([{"CPU": 1, "GPU": 1}, {"CPU": 2}], strategy)
    assert lattica.get(group.ready(), timeout=5) == group and group.wait(1)
    assert free() == {"CPU": 1, "GPU": 1}
    about = placement_group_table(group)
    assert about["state"] == "CREATED" and about["strategy"] == strategy
    assert about["bundles"] == {0: {"CPU": 1, "GPU": 1}, 1: {"CPU": 2}}
    assert set(about["bundles_to_node_id"].values()) == {node_id()}
    remove_placement_group(group)
    assert eventually(lambda: free() == ALL)
    assert placement_group_table(group)["state"] == "REMOVED"
    with pytest.raises(TaskPlacementGroupRemovedError):
        lattica.get(group.ready(), timeout=5)


def test_tasks_run_out_of_their_bundle(machine_of_four: None) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 2, "GPU": 1}])
    blocker = where.options(num_cpus=1).remote(0.0)
    lattica.get([blocker, group.ready()], timeout=5)
    gpus, resources = lattica.get(assigned.options(num_gpus=1, **within(group, 1)).remote(), timeout=5)
    assert len(gpus) == 1 and resources == {"CPU": 1, "GPU": 1}
    began = time.monotonic()
    lattica.get([where.options(**within(group, 1)).remote(0.3) for _ in range(4)], timeout=10)
    assert 0.6 <= time.monotonic() - began < 2.0, "two at a time"
    assert lattica.get(where.options(num_cpus=0, **within(group)).remote(), timeout=5)[1] == group
    assert lattica.get(where.remote(), timeout=5)[1] is None


def test_any_bundle_is_found_though_an_actor_fills_another(machine_of_four: None) -> None:
    """Two actors and a task, none of which names a bundle; the actors live on."""
    group = placement_group([{"CPU": 1}] * 3)
    actors = [Resident.options(num_cpus=1, **within(group)).remote() for _ in range(2)]
    assert [at for _, at in lattica.get([actor.where.remote() for actor in actors], timeout=10)] == [group, group]
    assert lattica.get([where.options(**within(group)).remote() for _ in range(3)], timeout=10)
    third = Resident.options(num_cpus=1, **within(group)).remote()
    assert lattica.get(third.where.remote(), timeout=10)[1] == group


def test_children_are_captured_where_that_was_said(machine_of_four: None) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 2}])
    free_of_it = {"scheduling_strategy": PlacementGroupSchedulingStrategy(None)}
    assert lattica.get(parent.options(**within(group, 0)).remote(2, {}), timeout=10) == [group, None, None]
    assert lattica.get(parent.options(**within(group, 1, True)).remote(2, {}), timeout=10) == [group] * 3
    found = lattica.get(parent.options(**within(group, 1, True)).remote(1, free_of_it), timeout=10)
    assert found == [group, None]
    captured = Resident.options(num_cpus=1, **within(group, 1, True)).remote()
    assert lattica.get(captured.child.remote(), timeout=10) == group
    assert get_current_placement_group() is None


def test_a_parent_that_waits_lends_its_cpu_to_its_group(machine_of_four: None) -> None:
    group = placement_group([{"CPU": 1}])
    assert lattica.get(parent.options(**within(group, 0, True)).remote(3, {}), timeout=20) == [group] * 4


def test_a_group_waits_for_what_others_have(machine_of_four: None) -> None:
    first = placement_group([{"CPU": 3}])
    assert first.wait(5)
    second = placement_group([{"CPU": 2}])
    assert not second.wait(0.3) and placement_group_table(second)["state"] == "PENDING"
    ref = where.options(**within(second)).remote()
    remove_placement_group(first)
    assert lattica.get(ref, timeout=10)[1] == second


def test_a_group_gets_its_turn_among_tasks_without_end(machine_of_four: None) -> None:
    tasks = [where.remote(0.05) for _ in range(400)]
    lattica.wait(tasks, num_returns=8, timeout=10)
    group = placement_group([{"CPU": 2}, {"CPU": 1}])
    assert group.wait(4), "five seconds of tasks"
    assert len(lattica.wait(tasks, num_returns=400, timeout=0)[0]) < 400
    assert lattica.get(where.options(**within(group, 0)).remote(), timeout=10)[1] == group
    for task in tasks:
        lattica.cancel(task)


@pytest.mark.parametrize(
    ("bundles", "strategy", "says"),
    [
        ([{"CPU": 5}], "PACK", "bundle 0 needs CPU 5"),
        ([{"CPU": 3}, {"CPU": 3}], "STRICT_PACK", "STRICT_PACK needs CPU 6"),
        ([{"CPU": 1}, {"CPU": 1}], "STRICT_SPREAD", "STRICT_SPREAD needs a node for each"),
    ],
)
def test_what_can_never_be_is_said(machine_of_four: None, bundles: Any, strategy: str, says: str) -> None:
    group = placement_group(bundles, strategy)
    with pytest.raises(TaskUnschedulableError, match=says):
        group.wait(5)
    with pytest.raises(TaskUnschedulableError, match=says):
        lattica.get(where.options(num_cpus=1, **within(group)).remote(), timeout=5)
    assert free() == ALL


def test_what_a_bundle_cannot_hold_is_said(machine_of_four: None) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 2}])
    for options, says in (
        (within(group, 0), "bundle 0 of .* does not have 2 CPU"),
        (within(PlacementGroup(group.id, [{"CPU": 1}] * 3, group._owner), 2), "none of number 2"),
    ):
        with pytest.raises(TaskUnschedulableError, match=says):
            lattica.get(where.options(num_cpus=2, **options).remote(), timeout=5)
    with pytest.raises(TaskUnschedulableError, match=r"no bundle of .* has 3 CPU"):
        lattica.get(where.options(num_cpus=3, **within(group)).remote(), timeout=5)


def test_removal_ends_what_runs_in_the_group(machine_of_four: None) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 1}])
    actor = Resident.options(num_cpus=0, max_restarts=-1, **within(group, 1)).remote()
    pid = lattica.get(actor.pid.remote(), timeout=5)
    running, queued = (where.options(**within(group, 0)).remote(60) for _ in range(2))
    lattica.wait([running], timeout=0.3)
    remove_placement_group(group)
    for ref in (running, queued):
        with pytest.raises(TaskPlacementGroupRemovedError, match="was removed"):
            lattica.get(ref, timeout=5)
    again = actor.where.options(max_task_retries=-1)  # else one that meets the process's end "may have run"
    with pytest.raises(ActorPlacementGroupRemovedError, match="was removed"):
        lattica.get(again.remote(), timeout=5)
    late = Resident.options(num_cpus=0, **within(group, 1)).remote()
    with pytest.raises(ActorPlacementGroupRemovedError, match="was removed"):
        lattica.get(late.where.remote(), timeout=5)
    assert eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    remove_placement_group(group)


def test_groups_have_names(machine_of_four: None) -> None:
    group = placement_group([{"CPU": 1}], name="trial")
    assert get_placement_group("trial") == group and get_placement_group("trial").bundle_specs == [{"CPU": 1}]
    with pytest.raises(ValueError, match="already"):
        placement_group([{"CPU": 1}], name="trial")
    remove_placement_group(group)
    assert eventually(lambda: placement_group_table(group)["state"] == "REMOVED")
    with pytest.raises(ConfigError, match="trial"):
        get_placement_group("trial")


def test_a_ready_ref_and_a_group_may_travel(machine_of_four: None) -> None:
    group = placement_group([{"CPU": 1}])

    @lattica.remote(num_cpus=0)
    def look(refs: list[Any], group: PlacementGroup, ready: PlacementGroup) -> tuple[bool, int, dict[str, Any]]:
        inside = lattica.get(where.options(**within(group)).remote())[1]
        return lattica.get(refs[0]) == group == ready == inside, group.bundle_count, placement_group_table(group)

    same, count, about = lattica.get(look.remote([group.ready()], group, group.ready()), timeout=10)
    assert same and count == 1 and about["state"] == "CREATED"


def test_groups_end_with_their_program(machine: Callable[[str], Any], script: Any) -> None:
    node = machine("a")
    node.start("start", "--num-cpus", "2", "--object-store-memory", "128MiB", "--listen", "none")
    text = """
import lattica
from lattica.util.placement_group import placement_group
lattica.init(address="auto")
assert placement_group([{"CPU": 2}]).wait(5)
print(lattica.available_resources().get("CPU"))
"""
    assert script(text, env={"LATTICA_DATA_DIR": str(node.data_dir)}).split() == ["0.0"]
    assert eventually(lambda: state_of(node, "resources")["available"]["CPU"] == 2)


# -- across machines -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mesh_of(folder: Path, **cpus: float) -> Iterator[Mesh]:
    lattica.shutdown()
    mesh = Mesh(folder)
    try:
        mesh.begin_all(**cpus)
        yield mesh
        lattica.shutdown()
        mesh.require_quiet_logs()
    finally:
        mesh.end()


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh_of(tmp_path_factory.mktemp("groups"), a=3, b=3, c=3) as mesh:
        yield mesh


@pytest.fixture
def three(mesh: Mesh) -> Iterator[Mesh]:
    if not lattica.is_initialized() or lattica.get_runtime_context().get_node_id() != mesh.ids["a"]:
        mesh.attach("a")
    yield mesh
    for about in placement_group_table().values():
        remove_placement_group(PlacementGroup(bytes.fromhex(about["placement_group_id"])))
    assert eventually(lambda: all(cpus == 3 for cpus in free_cpus(mesh).values()), 10), free_cpus(mesh)
    time.sleep(1.5)  # until all have heard it


def free_cpus(mesh: Mesh) -> dict[str, float]:
    return {name: state_of(node, "resources")["available"]["CPU"] for name, node in mesh.nodes.items()}


def places(group: PlacementGroup) -> list[str]:
    return list(placement_group_table(group)["bundles_to_node_id"].values())


def test_strict_spread_puts_three_bundles_on_three_nodes(three: Mesh) -> None:
    group = placement_group([{"CPU": 1}] * 3, "STRICT_SPREAD")
    assert group.wait(20)
    assert sorted(places(group)) == sorted(three.ids.values())
    assert set(free_cpus(three).values()) == {2}
    found = lattica.get([where.options(**within(group, index)).remote() for index in range(3)], timeout=20)
    assert found == [(there, group) for there in places(group)], "tasks run where their bundle is"
    residents = [Resident.options(num_cpus=1, **within(group)).remote() for _ in range(3)]
    at = Counter(there for there, _ in lattica.get([one.where.remote() for one in residents], timeout=20))
    assert at == Counter(three.ids.values()), "one actor in each"
    remove_placement_group(group)
    assert eventually(lambda: set(free_cpus(three).values()) == {3}, 10), free_cpus(three)
    with pytest.raises(LatticaError, match=r"placement group|removed"):
        lattica.get(residents[1].where.remote(), timeout=10)


def test_strict_pack_puts_three_bundles_on_one_node(three: Mesh) -> None:
    group = placement_group([{"CPU": 1}] * 3, "STRICT_PACK")
    assert group.wait(20) and len(set(places(group))) == 1
    found = lattica.get([where.options(**within(group)).remote(0.2) for _ in range(6)], timeout=20)
    assert {there for there, _ in found} == set(places(group))


def test_busy_nodes_make_room_for_a_group(three: Mesh) -> None:
    """Tasks for 13 s on nine CPUs; the group has its six within half of that."""
    tasks = [where.options(scheduling_strategy="SPREAD").remote(0.2) for _ in range(600)]
    lattica.wait(tasks, num_returns=20, timeout=20)
    group = placement_group([{"CPU": 2}] * 3, "STRICT_SPREAD")
    began = time.monotonic()
    assert group.wait(7)
    print(f"placed among tasks after {time.monotonic() - began:.1f} s")
    for task in tasks:
        lattica.cancel(task)
    assert lattica.get(where.options(num_cpus=2, **within(group, 1)).remote(), timeout=20)[1] == group


def test_children_of_a_far_task_are_captured(three: Mesh) -> None:
    group = placement_group([{"CPU": 1}] * 3, "STRICT_SPREAD")
    far = [index for index, there in enumerate(places_when_ready(group)) if there != three.ids["a"]]
    for index in far:
        found = lattica.get(parent.options(**within(group, index, True)).remote(2, {}), timeout=20)
        assert found == [group] * 3
    captured = Resident.options(num_cpus=1, **within(group, far[0], True)).remote()
    assert lattica.get(captured.child.remote(), timeout=20) == group


def test_names_are_found_where_the_driver_is(three: Mesh) -> None:
    @lattica.remote(num_cpus=0)
    def find(name: str) -> PlacementGroup:
        return get_placement_group(name)

    there = {"scheduling_strategy": three.on("b")}
    group = placement_group([{"CPU": 1}], name="afar")
    found = lattica.get(find.options(**there).remote("afar"), timeout=20)
    assert found == group and found.bundle_specs == [{"CPU": 1}]
    with pytest.raises(ConfigError, match="other"):
        lattica.get(find.options(**there).remote("other"), timeout=20)


def places_when_ready(group: PlacementGroup) -> list[str]:
    assert group.wait(20)
    return places(group)


def test_a_group_of_another_nodes_process(three: Mesh) -> None:
    """A task on another node makes a group, and its driver uses and removes it."""

    @lattica.remote(num_cpus=0)
    def make() -> PlacementGroup:
        made = placement_group([{"CPU": 2}, {"CPU": 2}], "SPREAD")
        assert made.wait(20)
        return made

    group = lattica.get(make.options(scheduling_strategy=three.on("b")).remote(), timeout=20)
    assert group.bundle_count == 2 and len(set(places(group))) == 2
    for index in range(2):
        assert lattica.get(where.options(**within(group, index)).remote(), timeout=20) == (places(group)[index], group)
    remove_placement_group(group)
    assert eventually(lambda: set(free_cpus(three).values()) == {3}, 10), free_cpus(three)
    with pytest.raises(TaskPlacementGroupRemovedError, match="removed"):
        lattica.get(where.options(**within(group, 1)).remote(), timeout=20)


def test_what_cannot_be_placed_waits_for_a_node(three: Mesh) -> None:
    group = placement_group([{"CPU": 2, "fresh": 1}, {"CPU": 2}], "STRICT_SPREAD")
    refs = [where.options(**within(group, index)).remote() for index in range(2)]
    assert not group.wait(1.0)
    three.begin("d", 3, "--resources", '{"fresh": 1}')
    try:
        found = lattica.get(refs, timeout=30)
        assert found[0] == (three.ids["d"], group) and found[1][0] != three.ids["d"]
    finally:
        remove_placement_group(group)
        three.drop("d").run("stop", "--force")


def test_the_bundles_of_a_killed_node_are_placed_anew(three: Mesh, tmp_path: Path) -> None:
    group = placement_group([{"CPU": 2}] * 3, "STRICT_SPREAD")
    there = places_when_ready(group)
    victim = next(index for index, at in enumerate(there) if at == three.ids["c"])
    actor = Resident.options(num_cpus=1, max_restarts=-1, max_task_retries=-1, **within(group, victim)).remote()
    assert lattica.get(actor.where.remote(), timeout=20)[0] == three.ids["c"]
    running = where.options(max_retries=-1, **within(group, victim)).remote(5)
    time.sleep(0.5)
    three.kill("c")
    try:
        three.begin("e", 3)
        began = time.monotonic()
        assert lattica.get(running, timeout=60)[0] == three.ids["e"]
        assert lattica.get(actor.where.remote(), timeout=30)[0] == three.ids["e"]
        print(f"placed anew and run within {time.monotonic() - began:.1f} s")
        assert lattica.get(where.options(**within(group, victim)).remote(), timeout=20)[0] == three.ids["e"]
        assert [at for index, at in enumerate(places(group)) if index != victim] == [
            at for index, at in enumerate(there) if index != victim
        ], "the others stayed"
    finally:
        remove_placement_group(group)
