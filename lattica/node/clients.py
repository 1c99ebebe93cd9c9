"""Who is connected to the node, and for which job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from lattica.node.wires import Wire
from lattica.scheduler.environments import NOTHING, Environment

if TYPE_CHECKING:
    from lattica.node.environment_desk import Venv

DRIVER, WORKER, COMMAND = "driver", "worker", "command"
NODE, AWAY, GUEST, STORE = "node", "away", "guest", "store"
"""Of other machines: a node, a worker that ours call, a process that calls ours. STORE: this node, as it fetches."""


class Client(msgspec.Struct, eq=False):
    """A driver, a worker or a command, by its number, which is never used again."""

    number: int
    kind: str
    job: int  # 0: none (a command)
    wire: Wire
    since: float
    pid: int = 0
    name: str = ""  # what it runs, for people
    pidfd: int = -1  # of a driver: readable when it is dead
    peers: set[int] = msgspec.field(default_factory=set)  # clients that it has a connection with, either way
    callees: set[int] = msgspec.field(default_factory=set)  # workers that it can send tasks to

    def __repr__(self) -> str:
        return f"<{self.kind} {self.number}, pid {self.pid}, job {self.job}>"

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Queue a message for it; descriptors are closed once sent."""
        self.wire.send(message, fds)


class Job(msgspec.Struct, eq=False):
    """One driver's session: what its workers need to know, and what is left of it. Its driver may be elsewhere."""

    number: int
    driver: int  # client number
    pid: int
    python: str
    sys_path: list[str]
    cwd: str
    script: str
    namespace: str
    log_to_driver: bool
    since: float  # unix seconds
    preload: list[str]  # modules that its workers want imported already
    ended: bool = False  # its driver is gone or wants to go
    farewell: bool = False  # its driver waits for the last lines
    environment: Environment = NOTHING
    minor: str = ""  # of its Python, "3.11": its functions are bytecode of that version; "": not said
    root: int = 0  # of a variant, see `environment_desk`: the job that it is of; 0: it is no variant
    venv: Venv | None = None  # that its workers run in; None: none, or it is not ready

    @property
    def family(self) -> int:
        """The number of the job that people know: its own, or that of which it is a variant."""
        return self.root or self.number
