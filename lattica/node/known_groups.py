"""What a node knows of placement groups, its own and others'."""

from __future__ import annotations

import msgspec

from lattica.mesh.identity import PeerId
from lattica.scheduler import groups
from lattica.scheduler.resources import ResourceSet

PENDING, CREATED, RESCHEDULING, REMOVED = "PENDING", "CREATED", "RESCHEDULING", "REMOVED"  # Ray's words
UNSCHEDULABLE = "UNSCHEDULABLE"  # it never can be, on a machine that is alone
OVER = frozenset({REMOVED, UNSCHEDULABLE})


class Known(msgspec.Struct, eq=False):
    """A group, ours or another node's. state: "" until its owner has said something. places: bundle -> its node."""

    id: bytes
    owner: PeerId
    state: str = ""
    reason: str = ""
    name: str = ""
    strategy: str = ""
    bundles: list[ResourceSet] = []
    places: dict[int, PeerId] = {}
    core: groups.Group | None = None  # if it is ours, and not over
    job: int = 0
    namespace: str = ""
    detached: bool = False
    watchers: set[PeerId] = msgspec.field(default_factory=set)
    waiting: list[tuple[int, int, bool]] = msgspec.field(default_factory=list)  # (client, request, until it is ready)
    watch_at: float = float("inf")  # when its owner is to be asked again

    def to_data(self) -> dict[str, object]:
        """For a process, which makes Ray's table of it."""
        return {
            "group": self.id,
            "owner": self.owner,
            "state": self.state,
            "reason": self.reason,
            "name": self.name,
            "strategy": self.strategy,
            "bundles": [bundle.to_dict() for bundle in self.bundles],
            "nodes": [self.places.get(index, b"").hex() for index in range(len(self.bundles))],
        }
