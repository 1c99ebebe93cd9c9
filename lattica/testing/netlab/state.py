"""What a running lab leaves on disk, so that another process can attach to it, or end it when its maker died.

    /run/netlab, or NETLAB_DIR
        linkem-<hash>               the compiled emulator
        <lab>/state.json            who made it, its namespaces and helper processes, the topology and what changed
        <lab>/<leaf>.ctl            the emulator's control socket
        <lab>/<site>.outer          the outer address that a gateway's NAT-PMP server tells

Nothing is kept of a lab that ended. One whose maker died is ended by the next lab that starts on this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import LabError
from .layout import PREFIX
from .namespaces import NETNS, Process, ip, kill, processes_in, start_time

STATE = Path(os.environ.get("NETLAB_DIR", "/run/netlab"))


@dataclass(slots=True)
class State:
    """state.json. owner: the process that made the lab; detached: the lab is meant to outlive it."""

    name: str
    owner: Process
    detached: bool
    seed: int
    namespaces: list[str]
    helpers: list[Process]
    public: dict[str, Any]
    sites: dict[str, Any]
    ips: dict[str, str]
    nats: dict[str, Any]
    partitions: dict[str, list[str]] = field(default_factory=dict)
    down: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        draft = folder / "state.new"
        draft.write_text(json.dumps(asdict(self), indent=1))
        draft.rename(folder / "state.json")

    @property
    def is_stale(self) -> bool:
        """Its maker is dead, and it was not meant to outlive it."""
        pid, start = self.owner
        return not self.detached and start_time(pid) != start


def read(folder: Path) -> State | None:
    """The state of the lab in this folder; None if there is none that can be read."""
    try:
        state = State(**json.loads((folder / "state.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    pid, start = state.owner  # JSON knows no tuples
    state.owner = (pid, start)
    state.helpers = [(pid, start) for pid, start in state.helpers]
    return state


def state_of(name: str) -> State:
    """What is written of a lab that is up. Raises LabError if there is none of that name."""
    state = read(STATE / name)
    if state is None:
        raise LabError(f"no lab {name!r} is up", do_next="`python -m lattica.testing.netlab list` shows those that are")
    return state


def labs() -> list[str]:
    """The names of the labs that are up."""
    return sorted(file.parent.name for file in STATE.glob("*/state.json"))


def tear_down(folder: Path) -> None:
    """End every process in a lab's namespaces, its helpers, the namespaces, and the folder."""
    if state := read(folder):
        namespaces = [ns for ns in state.namespaces if (NETNS / ns).exists()]
        kill([*state.helpers, *processes_in(namespaces)])
        for pid, _ in state.helpers:  # ours, if this process made them: nobody else waits for them
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)
        ip(None, [f"netns del {ns}" for ns in namespaces], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def end_stale() -> list[str]:
    """Tear down the labs whose maker has died; their names."""
    ended = []
    for name in labs():
        state = read(STATE / name)
        if state and state.is_stale:
            tear_down(STATE / name)
            ended.append(name)
    return ended


def end_all() -> list[str]:
    """Tear down every lab on this machine, whoever made it, and what an interrupted one left behind."""
    folders = [entry for entry in sorted(STATE.iterdir()) if entry.is_dir()] if STATE.is_dir() else []
    for folder in folders:
        tear_down(folder)
    left: Sequence[str] = [ns for ns in os.listdir(NETNS) if ns.startswith(PREFIX)] if NETNS.is_dir() else []
    kill(processes_in(left))
    ip(None, [f"netns del {ns}" for ns in left], check=False)
    return [folder.name for folder in folders] + list(left)
