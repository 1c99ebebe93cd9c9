"""What a session takes of its machine, process by process, and what it still takes after work has come and gone."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lattica.actors import current

RSS_MAX_BYTES = 10 << 20
"""Python's allocator keeps some of what it once had; a leak of 100 bytes a task is as much after 100,000."""


@dataclass(frozen=True)
class Process:
    """One process: its descriptors, and its resident memory in bytes without the arena, which is everybody's."""

    name: str
    descriptors: int
    rss: int


@dataclass(frozen=True)
class Footprint:
    """A session: its processes by pid; bytes in spans of the arena; objects that the node knows; holds and actors."""

    processes: dict[int, Process]
    arena: int
    objects: int
    held: int
    actors: int

    def __str__(self) -> str:
        rows = [f"{p.name} {p.rss / 2**20:.1f} MiB, {p.descriptors} descriptors" for p in self.processes.values()]
        return f"{'; '.join(rows)}; arena {self.arena / 2**20:.0f} MiB, {self.objects} objects, {self.held} holds"


def _of(pid: int, name: str) -> Process:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    rss = sum(int(status[kind].split()[0]) << 10 for kind in ("RssAnon", "RssFile"))
    return Process(name, len(os.listdir(f"/proc/{pid}/fd")), rss)


def footprint() -> Footprint:
    """The present session's."""
    status: dict[str, Any] = current.get().state("status")
    node, memory = status["node"]["pid"], status["memory"]
    names = {os.getpid(): "driver", node: "node"}
    names |= {int(pid): "zygote" for pid in Path(f"/proc/{node}/task/{node}/children").read_text().split()}
    names |= {worker["pid"]: f"worker {worker['client']}" for worker in status["workers"]}
    processes = {}
    for pid, name in names.items():
        with contextlib.suppress(OSError, KeyError):  # it ends this moment
            processes[pid] = _of(pid, name)
    return Footprint(
        processes,
        memory["used_bytes"],
        memory["objects"],
        sum(client["held"] for client in memory["clients"]),
        len(status["actors"]),
    )


def grown(before: Footprint, after: Footprint) -> list[str]:
    """In words what is more than it was; idle workers may have ended, and others come in their place."""
    found = []
    if len(after.processes) > len(before.processes):
        found.append(f"{len(after.processes) - len(before.processes)} more processes")
    workers = [process for process in before.processes.values() if process.name.startswith("worker")]
    (zygote,) = [process for process in before.processes.values() if process.name == "zygote"]
    usual = Process("a new worker", max(worker.descriptors for worker in workers), zygote.rss)  # it is a copy of that
    roles = {process.name: process for process in before.processes.values() if process not in workers}
    for now in after.processes.values():
        was = roles.get(now.name) or next((worker for worker in workers if worker.name == now.name), usual)
        if now.descriptors > was.descriptors + len(after.processes):  # each may know each other one by now
            found.append(f"{now.name} has {now.descriptors - was.descriptors} more descriptors")
        if now.rss > was.rss + RSS_MAX_BYTES:
            found.append(f"{now.name} has {(now.rss - was.rss) / 2**20:.1f} MiB more")
    for name in ("arena", "objects", "held", "actors"):
        if getattr(after, name) > getattr(before, name):
            found.append(f"{name}: {getattr(before, name)} before, {getattr(after, name)} now")
    return found


def books() -> list[str]:
    """What the node has in its books, in words."""
    now = footprint()
    return [f"{name} {getattr(now, name)}" for name in ("objects", "held", "actors") if getattr(now, name)]


# -- one process -----------------------------------------------------------------------------------------------------


def pss_bytes(pid: int) -> int:
    """Its memory, with its share of what several processes have."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def cpu_s(pid: int) -> float:
    """CPU seconds that it has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
