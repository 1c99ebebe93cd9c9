"""What runs, by Ray's names: `list_actors(filters=[("state", "=", "ALIVE")])`.

    for actor in list_actors():
        print(actor.class_name, actor["state"])

Nodes are those of the mesh. Actors, workers and jobs are those of the program's own node, placement groups those that
it has to do with; `lattica list` asks all nodes. What Ray knows and lattica does not, rows do not have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lattica.actors import current
from lattica.errors import ConfigError
from lattica.util.placement_group import placement_group_table

LIMIT, TIMEOUT_S = 100, 30
"""Ray's defaults."""
STATES = {"PENDING": "PENDING_CREATION"}
Filters = Sequence[tuple[str, str, Any]] | None


class Row(dict[str, Any]):
    """A dict whose items are attributes, too: releases of Ray have had either."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"nothing is known of {name!r}; there are {', '.join(self)}") from None


def list_nodes(
    address: str | None = None,
    filters: Filters = None,
    limit: int = LIMIT,
    timeout: int = TIMEOUT_S,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[Row]:
    """Of the mesh, this one first."""
    return _chosen(_nodes(), filters, limit)


def list_actors(
    address: str | None = None,
    filters: Filters = None,
    limit: int = LIMIT,
    timeout: int = TIMEOUT_S,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[Row]:
    """Of this node, the dead too while somebody has a handle."""
    return _chosen(_actors(), filters, limit)


def list_workers(
    address: str | None = None,
    filters: Filters = None,
    limit: int = LIMIT,
    timeout: int = TIMEOUT_S,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[Row]:
    """Living processes of this node."""
    return _chosen(_workers(), filters, limit)


def list_jobs(
    address: str | None = None,
    filters: Filters = None,
    limit: int = LIMIT,
    timeout: int = TIMEOUT_S,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[Row]:
    """Programs that are attached to this node."""
    return _chosen(_jobs(), filters, limit)


def list_placement_groups(
    address: str | None = None,
    filters: Filters = None,
    limit: int = LIMIT,
    timeout: int = TIMEOUT_S,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[Row]:
    """Those that this node has to do with."""
    return _chosen(_groups(), filters, limit)


def get_node(id: str, address: str | None = None, timeout: int = TIMEOUT_S, _explain: bool = False) -> Row | None:
    """By its id, in hex; None if there is none."""
    return _one(_nodes(), "node_id", id)


def get_actor(id: str, address: str | None = None, timeout: int = TIMEOUT_S, _explain: bool = False) -> Row | None:
    """By its id, in hex; None if there is none on this node."""
    return _one(_actors(), "actor_id", id)


def get_worker(id: str, address: str | None = None, timeout: int = TIMEOUT_S, _explain: bool = False) -> Row | None:
    """By its id; None if there is none on this node."""
    return _one(_workers(), "worker_id", id)


def get_job(id: str, address: str | None = None, timeout: int = TIMEOUT_S, _explain: bool = False) -> Row | None:
    """By its id, as `get_runtime_context().get_job_id()` says it; None if there is none on this node."""
    return _one(_jobs(), "job_id", id)


def get_placement_group(
    id: str, address: str | None = None, timeout: int = TIMEOUT_S, _explain: bool = False
) -> Row | None:
    """By its id, in hex; None if this node knows none."""
    return _one(_groups(), "placement_group_id", id)


def summarize_actors(
    address: str | None = None, timeout: int = TIMEOUT_S, raise_on_missing_output: bool = True, _explain: bool = False
) -> dict[str, Any]:
    """How many actors of each class are in which state."""
    classes: dict[str, Counter[str]] = {}
    for actor in _actors():
        classes.setdefault(actor["class_name"], Counter())[actor["state"]] += 1
    summary = {name: {"class_name": name, "state_counts": dict(counts)} for name, counts in classes.items()}
    total = sum(counts.total() for counts in classes.values())
    return {"cluster": {"summary": summary, "total_actors": total, "summary_by": "class"}}


# -- inside


def _nodes() -> list[Row]:
    return [
        Row(
            node_id=node["NodeID"], node_ip=node["NodeManagerAddress"], is_head_node=False,
            state="ALIVE" if node["Alive"] else "DEAD", node_name=node["NodeName"],
            resources_total={name: float(amount) for name, amount in node["Resources"].items()}, labels=node["Labels"],
        )
        for node in current.get().state("nodes")
    ]  # fmt: skip


def _actors() -> list[Row]:
    runtime = current.get()
    return [
        Row(
            actor_id=actor["actor"], class_name=actor["class_name"], state=STATES.get(actor["state"], actor["state"]),
            job_id=_job_id(actor["job"]), name=actor["name"], node_id=runtime.node_id.hex(), pid=actor["pid"],
            ray_namespace=actor["namespace"], num_restarts=actor["restarts"], death_cause=actor["how"] or None,
        )
        for actor in runtime.state("actors")
    ]  # fmt: skip


def _workers() -> list[Row]:
    runtime = current.get()
    return [
        Row(
            worker_id=str(worker["client"]), is_alive=True, worker_type="WORKER", node_id=runtime.node_id.hex(),
            pid=worker["pid"], job_id=_job_id(worker["job"]), state=worker["state"], name=worker["name"],
        )
        for worker in runtime.state("workers")
    ]  # fmt: skip


def _jobs() -> list[Row]:
    return [
        Row(
            job_id=_job_id(job["job"]), type="DRIVER", status="SUCCEEDED" if job["ended"] else "RUNNING",
            entrypoint=job["script"], start_time=int(1000 * job["since"]), driver_info={"pid": str(job["pid"])},
        )
        for job in current.get().state("jobs")
    ]  # fmt: skip


def _groups() -> list[Row]:
    return [
        Row(
            placement_group_id=group["placement_group_id"], name=group["name"], state=group["state"],
            bundles=[
                {"bundle_id": {"bundle_index": index}, "unit_resources": unit,
                 "node_id": group["bundles_to_node_id"][index] or None}
                for index, unit in group["bundles"].items()
            ],
            stats=group["stats"],
        )
        for group in placement_group_table().values()
    ]  # fmt: skip


def _job_id(number: int) -> str:
    return f"{number:08x}"


def _one(rows: Iterable[Row], key: str, value: str) -> Row | None:
    return next((row for row in rows if row[key] == value), None)


def _chosen(rows: Iterable[Row], filters: Filters, limit: int) -> list[Row]:
    """Raises ConfigError for a filter that cannot be read."""
    if limit < 1:
        raise ConfigError(f"limit={limit} must be at least 1")
    return [row for row in rows if all(_passes(row, one) for one in filters or ())][:limit]


def _passes(row: Mapping[str, Any], one: tuple[str, str, Any]) -> bool:
    if len(one) != 3 or one[1] not in ("=", "!="):
        raise ConfigError(f"filter {one!r:.80} cannot be read", do_next='say it like ("state", "=", "ALIVE")')
    key, predicate, value = one
    if key not in row:
        raise ConfigError(f"nothing is known of {key!r:.80}", do_next=f"filter by one of {', '.join(row)}")
    return (str(row[key]).lower() == str(value).lower()) == (predicate == "=")


__all__ = [
    "get_actor", "get_job", "get_node", "get_placement_group", "get_worker", "list_actors", "list_jobs", "list_nodes",
    "list_placement_groups", "list_workers", "summarize_actors",
]  # fmt: skip
