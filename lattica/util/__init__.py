"""What Ray has under `ray.util`, by the same names."""

from lattica.util.actor_pool import ActorPool
from lattica.util.helpers import as_completed, map_unordered
from lattica.util.placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,  # the function; its module of the same name is found by `from lattica.util.placement_group`
    placement_group_table,
    remove_placement_group,
)

__all__ = [
    "ActorPool", "as_completed", "map_unordered",
    "get_current_placement_group", "get_placement_group", "placement_group", "placement_group_table",
    "remove_placement_group",
]  # fmt: skip
