"""Objects, carried out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lattica.node.server import Node


class StoreDesk:
    def __init__(self, node: Node) -> None:
        self._node = node

    def count(self, client: int, object_: bytes) -> None: ...
    def give(self, object_: bytes, to: int) -> None: ...
    def let_go(self, objects: Iterable[bytes]) -> None: ...
