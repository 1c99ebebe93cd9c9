"""A node that is in no mesh, and what programs say of the place: it is the only one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lattica.mesh.identity import PeerId
from lattica.scheduler.demand import NodeView
from lattica.scheduler.given import objection

if TYPE_CHECKING:
    from lattica.node.server import Node


def why_not_here(node: Node, given: bytes) -> str:
    """Why it can never run here, whatever it takes: its labels, its site or the node that it names. "" if it can.

    Raises RemoteProtocolError for what cannot be read, ConfigError for what cannot be meant.
    """
    return objection(given, NodeView(PeerId(node.settings.node), node.resources.total, dict(node.settings.labels)))
