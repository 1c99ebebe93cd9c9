"""Placement groups: resources on one or several nodes, kept together for the tasks and actors of a program.

    group = placement_group([{"CPU": 2, "GPU": 1}, {"CPU": 2}], strategy="PACK")
    lattica.get(group.ready())
    there = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    learner = Learner.options(num_gpus=1, scheduling_strategy=there).remote()
    remove_placement_group(group)                       # or at the end of the program

Names, arguments and answers are Ray's. A group belongs to the node of the process that made it, and ends with its job.
"""

from __future__ import annotations

import os
from typing import Any

from lattica.actors import current, values
from lattica.actors.refs import ObjectRef
from lattica.codec import messages as m
from lattica.errors import ConfigError, LatticaError, TaskPlacementGroupRemovedError, TaskUnschedulableError
from lattica.ids import ID_BYTES
from lattica.scheduler.resources import ResourceSet

CREATED, UNSCHEDULABLE = "CREATED", "UNSCHEDULABLE"  # as of `node.known_groups`
ANSWER_S = 10.0
"""The node answers what it knows in milliseconds; a group of another node's takes a round trip there."""


class PlacementGroupID(bytes):
    """16 bytes. Ray programs say `.hex()` and `.binary()`."""

    def binary(self) -> bytes:
        """The plain bytes."""
        return bytes(self)

    def is_nil(self) -> bool:
        """Whether it names none."""
        return not self

    def __repr__(self) -> str:
        return f"PlacementGroupID({self.hex()})"


class PlacementGroup:
    """A handle of a group; equal by id, and may be sent to tasks and actors."""

    def __init__(self, id: bytes, bundle_cache: list[dict[str, float]] | None = None, owner: bytes = b"") -> None:
        """owner: the node of the process that made it."""
        self.id = PlacementGroupID(id)
        self.bundle_cache = bundle_cache
        self._owner = owner

    @staticmethod
    def empty() -> PlacementGroup:
        """No group."""
        return PlacementGroup(b"")

    @property
    def is_empty(self) -> bool:
        """Whether it stands for none."""
        return self.id.is_nil()

    def ready(self) -> ObjectRef:
        """A ref of this group that has its value once every bundle is kept by a node.

        `get` of it raises TaskPlacementGroupRemovedError if the group ends before, and TaskUnschedulableError where it
        can never be placed (on a machine that is alone; in a mesh it waits for nodes, and the driver is told).
        """
        runtime = current.get()
        value = values.dumps(self).join()

        def settled(answer: m.State) -> Any:
            about: Any = answer.data[0]  # type: ignore[index]  # what the node said of it
            error = _trouble(self, about)
            return value if error is None else runtime.failure(error)

        return runtime.promise(m.GroupWanted(runtime.next_request(), bytes(self.id), self._owner, ready=True), settled)

    def wait(self, timeout_seconds: float | int | None = 30) -> bool:
        """Whether all bundles are kept within that time. Raises what `ready` does for a group that never will be."""
        ref = self.ready()
        ready, _ = current.get().wait([ref], 1, timeout_seconds)
        if ready:
            current.get().get_one(ref, None)
        return bool(ready)

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """What each bundle has, in units."""
        if self.bundle_cache is None:
            about = _ask(bytes(self.id), self._owner) if not self.is_empty else []
            self.bundle_cache = about[0]["bundles"] if about else []
        return [{name: float(amount) for name, amount in bundle.items()} for bundle in self.bundle_cache]

    @property
    def bundle_count(self) -> int:
        """How many bundles it has."""
        return len(self.bundle_specs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementGroup, (bytes(self.id), self.bundle_cache, self._owner)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"


def placement_group(
    bundles: list[dict[str, float]],
    strategy: str = "PACK",
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
) -> PlacementGroup:
    """Have these bundles of resources kept; returns at once: wait for `.ready()`.

    strategy: "PACK" on few nodes, "SPREAD" on many, "STRICT_PACK" on one, "STRICT_SPREAD" each on another.
    name: for `get_placement_group`, in this namespace.

    Raises ConfigError (a ValueError) for what cannot be meant, or a name that is taken.
    """
    made = _checked(bundles)
    from lattica.scheduler.bundles import Pattern  # not with the module: workers that use any of lattica.util load it

    if strategy not in Pattern.__members__:
        raise ConfigError(f"strategy={strategy!r:.80} is none", do_next=f"use one of {', '.join(Pattern.__members__)}")
    if not isinstance(name, str):
        raise ConfigError(f"name={name!r:.80} must be a string")
    _refuse(lifetime, _soft_target_node_id, bundle_label_selector)
    runtime = current.get()
    group = PlacementGroup(os.urandom(ID_BYTES), made, runtime.node_id)
    request = runtime.next_request()
    message = m.GroupCreate(request, bytes(group.id), made, strategy, name)
    if name:
        said: Any = runtime.ask_node(message, ANSWER_S).data
        if said:
            raise ConfigError(said["error"])
        return group
    with runtime.lock:
        runtime.expect(request, lambda _: None)
        runtime.tell_node(message)
        runtime.reactor.flush()
    return group


def _checked(bundles: Any) -> list[dict[str, float]]:
    from lattica.scheduler.bundles import BUNDLES_MAX

    if not isinstance(bundles, list | tuple) or not 0 < len(bundles) <= BUNDLES_MAX:
        raise ConfigError(
            f"bundles={bundles!r:.80} must be a list of 1 to {BUNDLES_MAX} dicts",
            do_next='say it like [{"CPU": 1}, {"CPU": 1, "GPU": 1}]',
        )
    for bundle in bundles:
        if not isinstance(bundle, dict) or not ResourceSet.of(bundle):
            raise ConfigError(
                f"bundle {bundle!r:.80} asks for nothing", do_next='say what it has, like {"CPU": 1, "GPU": 1}'
            )
    return [ResourceSet.of(bundle).to_dict() for bundle in bundles]


def _refuse(lifetime: Any, target: Any, selectors: Any) -> None:
    if lifetime == "detached":
        raise ConfigError(
            "lifetime='detached' of placement groups is not supported by this release of lattica",
            do_next="make the group in a process that lives as long; see docs/limits.md",
        )
    if lifetime is not None:
        raise ConfigError(f"lifetime={lifetime!r:.80} must be None")
    if target is not None:
        raise ConfigError(
            "_soft_target_node_id is private to Ray, and not known here", do_next="leave it out, or use STRICT_PACK"
        )
    if selectors:
        raise ConfigError(
            "bundle_label_selector is not supported by this release of lattica",
            do_next="leave it out; see docs/limits.md",
        )


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """End the group: its resources are free, and what runs in it is ended. Twice is no error."""
    _require(placement_group)
    runtime = current.get()
    with runtime.lock:
        runtime.tell_node(m.GroupRemove(bytes(placement_group.id), placement_group._owner))
        runtime.reactor.flush()


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group of this name and of our namespace, if a process of this node made it, or one of our driver's node.

    Raises ConfigError, a ValueError.
    """
    if not placement_group_name:
        raise ConfigError("get_placement_group needs a name")
    found = _ask(name=placement_group_name)
    if not found:
        raise ConfigError(
            f"no placement group made on this node or our driver's is called {placement_group_name!r:.80}",
            do_next="pass the group itself along, or look at placement_group_table()",
        )
    return PlacementGroup(found[0]["group"], found[0]["bundles"], found[0]["owner"])


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """What is known of a group; without one, of every group that this node has to do with, by id in hex."""
    if placement_group is not None:
        _require(placement_group)
        return _in_rays_words(_ask(bytes(placement_group.id), placement_group._owner)[0])
    return {about["group"].hex(): _in_rays_words(about) for about in _ask()}


def get_current_placement_group() -> PlacementGroup | None:
    """The group that this task or actor runs in; None outside of one, and in a driver."""
    runtime = current.get()
    if not runtime.within:
        return None
    from lattica.scheduler.given import decode_within

    within = decode_within(runtime.within)
    return PlacementGroup(within.group, None, within.owner)


def _ask(group: bytes = b"", owner: bytes = b"", name: str = "") -> list[dict[str, Any]]:
    runtime = current.get()
    answer: list[dict[str, Any]] = runtime.ask_node(
        m.GroupWanted(runtime.next_request(), group, owner, name), ANSWER_S
    ).data
    return answer


def _in_rays_words(about: dict[str, Any]) -> dict[str, Any]:
    final = about["state"] == UNSCHEDULABLE
    scheduling = {CREATED: "FINISHED", UNSCHEDULABLE: "INFEASIBLE"}.get(about["state"], about["state"])
    return {
        "placement_group_id": about["group"].hex(),
        "name": about["name"],
        "bundles": dict(enumerate(about["bundles"])),
        "bundles_to_node_id": dict(enumerate(about["nodes"])),
        "strategy": about["strategy"],
        "state": "PENDING" if final else about["state"],
        "stats": {"scheduling_state": scheduling, "reason": about["reason"]},
    }


def _trouble(group: PlacementGroup, about: dict[str, Any]) -> LatticaError | None:
    if about["state"] == CREATED:
        return None
    if about["state"] == UNSCHEDULABLE:
        return TaskUnschedulableError(f"placement group {group.id.hex()[:4]} can never be placed: {about['reason']}")
    return TaskPlacementGroupRemovedError(f"placement group {group.id.hex()[:4]} is no more: {about['reason']}")


def _require(group: Any) -> None:
    if not isinstance(group, PlacementGroup) or group.is_empty:
        raise ConfigError(f"{group!r:.80} is no placement group", do_next="pass what placement_group() returned")
