"""Bundles of resources, kept together: what runs in them, what its children get, what happens when they go."""

import time

import ray
from ray.util.placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


def where():
    group = get_current_placement_group()
    return None if group is None else group.id.hex()


@ray.remote(num_cpus=1)
def group_of_task():
    return where()


@ray.remote(num_cpus=1)
def with_child():
    return where(), ray.get(group_of_task.remote())


@ray.remote(num_cpus=1)
class Member:
    def group(self):
        return where()


def within(group, bundle=-1, capture=None):
    return PlacementGroupSchedulingStrategy(
        placement_group=group, placement_group_bundle_index=bundle, placement_group_capture_child_tasks=capture
    )


def outcome(ref):
    try:
        return ray.get(ref, timeout=30)
    except ray.exceptions.RayError as error:
        return type(error).__name__ != "GetTimeoutError"


if __name__ == "__main__":
    ray.init(num_cpus=4)
    group = placement_group([{"CPU": 1}, {"CPU": 2}], strategy="PACK", name="crew")
    print("ready", ray.get(group.ready()) is not None, group.wait(10), group.bundle_count, group.bundle_specs)
    table = placement_group_table(group)
    print("table", table["state"], table["strategy"], table["name"], len(table["bundles"]))
    print("by name", get_placement_group("crew") == group, group in {group})

    inside = group_of_task.options(scheduling_strategy=within(group, 0)).remote()
    print("in it", ray.get(inside) == group.id.hex(), "outside", ray.get(group_of_task.remote()))
    own, child = ray.get(with_child.options(scheduling_strategy=within(group, 1)).remote())
    print("child of one is", own == group.id.hex(), child)
    own, child = ray.get(with_child.options(scheduling_strategy=within(group, 1, True)).remote())
    print("child captured is", own == group.id.hex(), child == group.id.hex())
    member = Member.options(scheduling_strategy=within(group, 0)).remote()
    print("an actor", ray.get(member.group.remote()) == group.id.hex())
    for options in ({"bundle": 5}, {"bundle": -2}):
        try:
            group_of_task.options(scheduling_strategy=within(group, **options)).remote()
        except ValueError:
            print("no such bundle")

    print("free", ray.available_resources().get("CPU", 0.0) <= 1.0)
    remove_placement_group(group)
    while outcome(member.group.remote()) is not True:  # the group is gone at once, what runs in it a moment later
        time.sleep(0.1)
    print("its actor is gone")
    print("state", placement_group_table(group)["state"])
    for bundles, strategy in (([], "PACK"), ([{"CPU": 1}], "TIGHT"), ([{}], "PACK")):
        try:
            placement_group(bundles, strategy=strategy)
        except ValueError:
            print("refused", bundles, strategy)
