"""Whole nodes in the hosts of a lab: begun by commands there, asked over their unix sockets from here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lattica.testing.netlab import Lab
from tests.e2e.machines import COMMAND, Machine

STARTED_S = 120.0  # by a command, on a machine that others use
LISTEN = ":7411"


class Located(Machine):
    """A node in one host of a lab. Its folder is named as the host."""

    def __init__(self, lab: Lab, host: str, folder: Path) -> None:
        super().__init__(folder / host)
        self.lab, self.host = lab, host

    def run(self, *words: str, env: dict[str, str] | None = None, said: str | None = None
            ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        environ = os.environ | {"LATTICA_DATA_DIR": str(self.data_dir), "LATTICA_LISTEN": LISTEN} | (env or {})
        done: subprocess.CompletedProcess[str] = self.lab.run(
            self.host, [*COMMAND, *words], check=False, timeout=STARTED_S, env=environ, input=said
        )
        return done

    def path_to(self, other: Machine) -> str:
        """The transport and the path of its session with that node; "" without one."""
        for row in self.members():
            if row["name"] == other.data_dir.name:
                return f"{row.get('transport', '')} {row.get('path', '')}".strip()
        return ""
