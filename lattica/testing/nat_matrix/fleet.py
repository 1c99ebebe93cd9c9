"""Agents in the hosts of a lab, and how a test or a benchmark tells them what to do.

with Lab(public=RELAYS, sites=...) as lab, Fleet(lab) as fleet:
    fleet.found()                                   the public hosts are a mesh now, and relay
    fleet.begin("a1", "b1")                         both join by the ticket alone
    fleet.ask("a1", "first_call", peer=fleet.ids["b1"], within_s=5)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lattica
from lattica.errors import LatticaError
from lattica.testing.netlab import Lab

RELAYS = ("relay1", "relay2")
"""Public hosts. The first founds; both relay, and are the peers that others ask what they are behind."""
RELAY_PORT = 443
"""Of the relays, TCP and UDP: what is let out where little is."""
BEGIN_S = 40.0  # of a peer, on a machine that others use
END_S = 10.0
COMMAND = [sys.executable, "-m", "lattica.testing.nat_matrix.agent"]


class Told(LatticaError):
    """An agent could not do what it was told; its words."""


class Process:
    """One agent."""

    def __init__(self, lab: Lab, host: str, log: Path) -> None:
        root = str(Path(lattica.__file__).parents[1])
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed lattica is compiled; compiling takes a second
        with log.open("ab") as errors:
            self._process = lab.popen(
                host, COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environ
            )
        self.log = log
        self._numbers = count(1)
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, name=f"agent {host}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def tell(self, verb: str, **given: Any) -> Future[dict[str, Any]]:
        """Its answer, when it comes; the future raises Told."""
        future: Future[dict[str, Any]] = Future()
        number = next(self._numbers)
        with self._lock:
            self._waiting[number] = future
            line = json.dumps({"id": number, "do": verb, **given}) + "\n"
            try:
                assert self._process.stdin is not None
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
            except OSError as error:
                self._waiting.pop(number)
                future.set_exception(Told(f"the agent has ended: {error}; see {self.log}"))
        return future

    def kill(self) -> None:
        """As if the machine had lost its power."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join(END_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            future = self._waiting.pop(said.pop("id"), None)
            if future is None:
                continue
            if "error" in said:
                future.set_exception(Told(said["error"]))
            else:
                future.set_result(said)
        with self._lock:
            left, self._waiting = self._waiting, {}
        for future in left.values():
            future.set_exception(Told(f"the agent has ended; see {self.log}"))


class Fleet:
    """See the module. logs: the folder for what agents log; None: a temporary one."""

    def __init__(self, lab: Lab, logs: Path | None = None) -> None:
        self.lab = lab
        self._temporary = tempfile.TemporaryDirectory(prefix="lattica-fleet-") if logs is None else None
        self.logs = logs or Path(self._temporary.name if self._temporary else ".")
        self.logs.mkdir(parents=True, exist_ok=True)
        self.ids: dict[str, str] = {}  # by host, of the peer that it has now
        self.ticket = ""
        self._processes: dict[str, Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every agent."""
        for process in self._processes.values():
            process.end()
        self._processes.clear()
        if self._temporary is not None:
            self._temporary.cleanup()

    def at(self, host: str) -> Process:
        """The agent of that host, started if there is none."""
        if host not in self._processes:
            self._processes[host] = Process(self.lab, host, self.logs / f"{host}.log")
        return self._processes[host]

    def tell(self, host: str, verb: str, **given: Any) -> Future[dict[str, Any]]:
        return self.at(host).tell(verb, **given)

    def ask(self, host: str, verb: str, *, timeout_s: float = 120.0, **given: Any) -> dict[str, Any]:
        """Raises Told, TimeoutError."""
        return self.tell(host, verb, **given).result(timeout_s)

    def found(self, hosts: Sequence[str] = RELAYS, port: int = RELAY_PORT) -> None:
        """A new mesh of public hosts that relay; `ticket` is for all others."""
        self.ticket = ""
        for host in hosts:
            self.begin(host, listen=f"0.0.0.0:{port}", relay=True)
            if not self.ticket:
                self.ticket = self.ask(host, "ticket")["ticket"]
        self.ticket = self.ask(hosts[0], "ticket")["ticket"]

    def begin(self, *hosts: str, **options: Any) -> float:
        """Fresh peers there, at once. When the last of them had joined (CLOCK_MONOTONIC)."""
        told = {host: self.tell(host, "begin", ticket=self.ticket, **options) for host in hosts}
        last = 0.0
        for host, future in told.items():
            said = future.result(BEGIN_S)
            self.ids[host] = said["peer"]
            last = max(last, said["at"])
        return last

    def kill(self, host: str) -> None:
        """Its process is gone, without a word; the next order there starts a new one."""
        process = self._processes.pop(host)
        process.kill()
        process.end()

    def finish(self, *hosts: str) -> None:
        """These are no peers any more."""
        for future in [self.tell(host, "end") for host in hosts]:
            future.result(BEGIN_S)
