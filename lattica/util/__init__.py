"""What Ray has under `ray.util`, by the same names."""

from lattica.util import accelerators
from lattica.util.actor_pool import ActorPool
from lattica.util.check_serialize import inspect_serializability
from lattica.util.debug import disable_log_once_globally, enable_periodic_logging, log_once
from lattica.util.helpers import as_completed, map_unordered
from lattica.util.named_actors import list_named_actors
from lattica.util.node_address import get_node_ip_address
from lattica.util.placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,  # the function; its module of the same name is found by `from lattica.util.placement_group`
    placement_group_table,
    remove_placement_group,
)
from lattica.util.serialization import deregister_serializer, register_serializer

__all__ = [
    "ActorPool", "accelerators", "as_completed", "disable_log_once_globally", "enable_periodic_logging",
    "get_node_ip_address", "log_once", "map_unordered",
    "deregister_serializer", "inspect_serializability", "list_named_actors", "register_serializer",
    "get_current_placement_group", "get_placement_group", "placement_group", "placement_group_table",
    "remove_placement_group",
]  # fmt: skip
