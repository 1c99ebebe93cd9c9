"""Machines of a mesh, each a data directory of its own with a real node, begun and asked by commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lattica.cli.client import NodeConnection
from lattica.node import paths
from tests.e2e.conftest import eventually

COMMAND = [sys.executable, "-c", "from lattica.cli.main import main; main()"]
SOON_S = 2.0
"""How soon peers see each other, and a revocation is felt."""
LIGHT = ("--num-cpus", "0", "--object-store-memory", "16MiB")
"""A node that runs no task."""


class Machine:
    """A data directory of its own, as if it were a machine."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = folder

    def run(self, *words: str, env: dict[str, str] | None = None, said: str | None = None
            ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """A command that means this machine's node."""
        environ = os.environ | {"LATTICA_DATA_DIR": str(self.data_dir)} | (env or {})
        return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60, env=environ, input=said)

    def ok(self, *words: str, **how: Any) -> str:
        """The same; it must end well."""
        done = self.run(*words, **how)
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}\n{self.log()[-4000:]}"
        return done.stdout

    def start(self, *words: str, **how: Any) -> Any:
        words = (*(words or ("start",)), "--name", self.data_dir.name, "--json")
        return json.loads(self.ok(*words, *(() if "--num-cpus" in words else ("--num-cpus", "1")), **how))

    def ticket(self, *words: str) -> str:
        lines = self.ok("ticket", *words).splitlines()
        assert len(lines) == 1 and lines[0].startswith("lat1")
        return lines[0]

    def whoami(self) -> Any:
        return json.loads(self.ok("whoami", "--json"))

    def peers(self) -> list[str]:
        """Names of those with whom it has a session that lives."""
        return sorted(row["name"] for row in self.members() if row["session"] and row["state"] == "alive")

    def members(self) -> list[dict[str, Any]]:
        """What `lattica peers --json` says, without a process for the question."""
        return list(self.ask("peers"))

    def states(self) -> dict[str, str]:
        """Name -> state, of all members."""
        return {row["name"]: row["state"] for row in self.members()}

    def ask(self, verb: str, **data: object) -> Any:
        """What its node answers to a command."""
        node = paths.running_node(str(self.data_dir))
        assert node is not None, f"no node runs on {self.data_dir}"
        with NodeConnection(node) as connection:
            return connection.mesh(verb, **data)

    def log(self) -> str:
        return (self.data_dir / "node.log").read_text()

    @property
    def pid(self) -> int:
        node = paths.running_node(str(self.data_dir))
        return node.pid if node else 0


def see(*both: tuple[Machine, list[str]], within_s: float = SOON_S) -> None:
    """Wait until each of these machines sees its peers."""
    for one, names in both:
        assert eventually(lambda one=one, names=names: one.peers() == names, within_s), f"{one.peers()} for {names}"
