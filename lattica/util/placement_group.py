"""Placement groups: resources on one or several nodes, kept together for the tasks and actors of a program.

    group = placement_group([{"CPU": 2, "GPU": 1}, {"CPU": 2}], strategy="PACK")
    lattica.get(group.ready())
    there = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    learner = Learner.options(num_gpus=1, scheduling_strategy=there).remote()
    remove_placement_group(group)                       # or at the end of the program

Names, arguments and answers are Ray's. A group belongs to the node of the process that made it, and ends with that
process's job, unless it is detached.
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

NODE_LABEL = "ray.io/node-id"
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
    strategy: str | None = None,
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
    topology_strategy: dict[str, str] | None = None,
) -> PlacementGroup:
    """Have these bundles of resources kept; returns at once: wait for `.ready()`.

    strategy: "PACK" on few nodes, which is the default, "SPREAD" on many, "STRICT_PACK" on one, "STRICT_SPREAD" each on
    another.
    name: for `get_placement_group`, in this namespace.
    lifetime: "detached" for one that outlives the program; it ends with the node, or when it is removed.
    bundle_label_selector: of each bundle in order, what labels its node must have, as of the option `label_selector`.
    _soft_target_node_id: with STRICT_PACK, rather this node than others.
    topology_strategy: another way to give the strategy, {"ray.io/node-id": "STRICT_PACK"}; other labels are refused.

    Raises ConfigError (a ValueError) for what cannot be meant, or a name that is taken.
    """
    made, chosen = _checked(bundles), _strategy(strategy, topology_strategy)
    if not isinstance(name, str):
        raise ConfigError(f"name={name!r:.80} must be a string")
    if lifetime not in (None, "detached"):
        raise ConfigError(f"lifetime={lifetime!r:.80} must be None or 'detached'")
    selectors, target = _selectors(bundle_label_selector, len(made)), _target(_soft_target_node_id, chosen)
    runtime = current.get()
    group = PlacementGroup(os.urandom(ID_BYTES), made, runtime.node_id)
    request = runtime.next_request()
    message = m.GroupCreate(request, bytes(group.id), made, chosen, name, selectors, target, lifetime == "detached")
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


def _strategy(strategy: Any, topology: Any) -> str:
    from lattica.scheduler.bundles import Pattern

    if topology is not None:
        if strategy is not None or not isinstance(topology, dict) or set(topology) - {NODE_LABEL}:
            raise ConfigError(
                f"topology_strategy={topology!r:.80} cannot be had",
                do_next=f"give strategy alone, or a dict of {NODE_LABEL!r} alone; labels go to bundle_label_selector",
            )
        strategy = topology.get(NODE_LABEL)
    strategy = strategy or "PACK"
    if strategy not in Pattern.__members__:
        raise ConfigError(f"strategy={strategy!r:.80} is none", do_next=f"use one of {', '.join(Pattern.__members__)}")
    return str(strategy)


def _selectors(given: Any, count: int) -> list[dict[str, str]]:
    if not given:
        return []
    from lattica.scheduler import labels

    if not isinstance(given, list | tuple) or len(given) != count or not all(isinstance(one, dict) for one in given):
        raise ConfigError(
            f"bundle_label_selector={given!r:.80} must be a list of {count} dicts, one for each bundle",
            do_next='say it like [{"gpu": "in(A100, H100)"}, {}]',
        )
    for selector in given:
        labels.check(selector)
    return [dict(selector) for selector in given]


def _target(node: Any, strategy: str) -> bytes:
    if node is None:
        return b""
    from lattica.scheduler.given import read_node

    if strategy != "STRICT_PACK":
        raise ConfigError(
            f"_soft_target_node_id goes with STRICT_PACK alone, not with {strategy}", do_next="leave it out"
        )
    return read_node(node)


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
