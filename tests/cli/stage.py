"""The start of a node without a process: a thread plays the node."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lattica.cli.daemon import Daemon
from lattica.node import paths
from tests.cli.fake_node import FakeNode

READY = b'{"pid": 1}\n'


class Staged(Daemon):
    """A node that is no process of ours, so nobody is killed."""

    killed = False

    def kill(self) -> None:
        self.killed = True

    def close(self) -> None:
        os.close(self.ready)
        os.close(self.pidfd)


class Stage:
    """What `spawn` is replaced by: the node says `words`, and is dead if it said nothing."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.words = READY
        self.options: Sequence[str] = ()
        self.ticket = ""
        self.facts: dict[str, Any] = {
            "mesh": {},
            "resources": {"total": {"CPU": 8, "memory": 1e10, "object_store_memory": float(3 << 30), "tpu": 2}},
        }
        self.ends_soon = False  # when it has said that it serves
        self.node: FakeNode | None = None
        self.begun: Staged | None = None

    def spawn(self, options: Sequence[str], data_dir: str, ticket: str = "") -> Daemon:
        self.options, self.ticket = options, ticket
        ready, theirs = os.pipe()
        os.write(theirs, self.words)
        if self.words == READY:
            self.node = FakeNode(self.data_dir)
            paths.write_node_file(data_dir, self.node.file)
            if not self.ends_soon:
                os.write(theirs, json.dumps(self.facts).encode() + b"\n")
        os.close(theirs)
        self.begun = Staged(None, ready, os.dup(ready))  # type: ignore[arg-type]
        return self.begun
