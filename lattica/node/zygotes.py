"""The node's zygotes: one per interpreter, started when first needed, at most ZYGOTES_MAX.

A virtual environment has an interpreter of its own, and so a zygote of its own: what it has imported is the
environment's. Variables that act when an interpreter is loaded make it another one, too. One that is not ours ends when
it has had no workers for IDLE_S.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from lattica.codec.messages import Confined, Exited, Fork, Forked, FromZygote, Import
from lattica.node.loop import Timer
from lattica.node.paths import within
from lattica.node.spawn import NOTHING_HIDDEN, spawn_zygote
from lattica.node.wires import Wire, Wires

log = logging.getLogger(__name__)
ZYGOTES_MAX = 4
"""Interpreters that have a zygote at the same time (15 MiB each); beyond, the one unused for longest is ended."""
IDLE_S = 60.0
"""Of a zygote without workers. Shorter: the next worker waits for its start (0.2 s) more often."""
FAILURES_MAX = 3
"""Starts of a zygote in a row that bring no worker, after which its interpreter is given up."""
LAST_WORDS_BYTES = 2000  # of a zygote that died, in the reason why no worker came
PRELOAD_MAX = 64  # of one job's preload list
NO_VARIABLES: Mapping[str, str] = {}


class Zygote(msgspec.Struct, eq=False):
    """One zygote process."""

    python: str  # its interpreter, with what that was loaded with, as of `_key`
    wire: Wire
    pid: int
    pidfd: int
    said: int  # file in memory: what it printed
    forking: set[int] = msgspec.field(default_factory=set)  # clients whose Forked has not come yet
    workers: set[int] = msgspec.field(default_factory=set)  # pids
    idle: Timer | None = None  # when it ends for want of work
    confined: Confined | None = None  # what it said; None: nothing yet, or it has nothing to hide


class Zygotes:
    """Forks workers through the zygote of the right interpreter.

    It tells forked(client, pid), exited(pid, status), and unborn(client, reason) when a fork has come to nothing.
    """

    def __init__(
        self,
        wires: Wires,
        paths: str,
        forked: Callable[[int, int], None],
        exited: Callable[[int, int | None], None],
        unborn: Callable[[int, str], None],
        hidden: str = NOTHING_HIDDEN,
    ) -> None:
        """paths: JSON list of import paths for new interpreters, as `spawn.BOOT` takes it. hidden: folders that
        workers may not see, as of `confine.fingerprints`."""
        self._wires, self._paths, self._hidden = wires, paths, hidden
        self._forked, self._exited, self._unborn = forked, exited, unborn
        self._zygotes: dict[str, Zygote] = {}  # by interpreter; the most recently used last
        self._failures: dict[str, int] = {}
        self._last_reason = ""
        self._said_last: tuple[str, Confined | None] = sys.executable, None
        self._closed: Callable[[], None] | None = None
        self._confined: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Zygotes: {', '.join(f'{z.python} (pid {z.pid})' for z in self._zygotes.values()) or 'none'}>"

    def adopt(self, python: str, fd: int, pid: int, said: int) -> None:
        """Take over a zygote that was spawned already: the three that `spawn_zygote` gave."""

        def received(messages: list[Any]) -> None:
            self._received(zygote, messages)

        def ended(_: str) -> None:
            os.kill(pid, signal.SIGKILL)  # of no use without its connection; `_dead` follows

        wire = Wire(
            self._wires,
            socket.socket(fileno=fd),
            FromZygote,
            received,
            ended,
            name=f"the zygote of {python} (pid {pid})",
        )
        zygote = Zygote(python, wire, pid, os.pidfd_open(pid), said)
        self._zygotes[python] = zygote
        self._wires.loop.add_reader(zygote.pidfd, self._dead, zygote)

    def fork(
        self,
        python: str,
        sys_path: list[str],
        client: int,
        fds: Sequence[int],
        variables: Mapping[str, str] = NO_VARIABLES,
    ) -> None:
        """Fork worker `client` there; the descriptors are closed here once sent. variables: that the interpreter must
        have been loaded with. Ends in `forked` or `unborn`."""
        try:
            zygote = self._of(python, sys_path, variables)
        except OSError as error:
            for fd in fds:
                os.close(fd)
            self._wires.loop.call_soon(self._unborn, client, f"{python} cannot be started: {error}")
            return
        zygote.forking.add(client)
        zygote.wire.send(Fork(client, f"worker {client}"), fds)

    def preload(self, python: str, sys_path: list[str], modules: list[str]) -> None:
        """Let the zygote import these, so that workers have them already."""
        if modules:
            with contextlib.suppress(OSError):  # the first fork there says why
                self._of(python, sys_path).wire.send(Import(modules[:PRELOAD_MAX]))

    def when_confined(self, call: Callable[[], None]) -> None:
        """Call it once the zygotes that run have said what their workers cannot see, or have ended."""
        self._confined = call
        self._look_confined()

    def protection(self) -> dict[str, Any]:
        """What keeps tasks from the node's key: {"mounts", "landlock", "reason"}; that of the worst zygote, or of the
        last if none runs."""
        if self._hidden == NOTHING_HIDDEN:
            return {"mounts": False, "landlock": False, "reason": "this node has no key on disk"}
        said = [(zygote.python, zygote.confined) for zygote in self._zygotes.values()] or [self._said_last]
        reasons = [
            f"workers of {python}: {confined.reason}" if confined is not None else f"{python} has not said yet"
            for python, confined in said
            if confined is None or confined.reason
        ]
        return {
            "mounts": all(confined is not None and confined.mounts for _, confined in said),
            "landlock": all(confined is not None and confined.landlock for _, confined in said),
            "reason": "; ".join(reasons),
        }

    def hider_of(self, path: str) -> str:
        """The folder that hides this path from workers; "" if they see it."""
        said = [zygote.confined for zygote in self._zygotes.values()] or [self._said_last[1]]
        known = [confined.mounts for confined in said if confined is not None]  # not of those that only begin
        if not known or not all(known):
            return ""
        real = os.path.realpath(path)
        return next((folder for folder, *_ in json.loads(self._hidden) if within(real, folder)), "")

    def close(self, closed: Callable[[], None]) -> None:
        """End them all at once, and say when they are gone."""
        self._closed = closed
        for zygote in list(self._zygotes.values()):
            os.kill(zygote.pid, signal.SIGKILL)
        if not self._zygotes:
            closed()

    def _of(self, python: str, sys_path: list[str], variables: Mapping[str, str] = NO_VARIABLES) -> Zygote:
        """The zygote of this interpreter. One that is not ours finds lattica where its driver found it: our own paths
        would show it packages that were built for us."""
        key = _key(python, variables) if variables else python
        if self._failures.get(key, 0) >= FAILURES_MAX:
            raise OSError(f"it ended {FAILURES_MAX} times in a row before it forked a worker: {self._last_reason}")
        if key not in self._zygotes:
            unused_first = sorted(self._zygotes.values(), key=lambda each: bool(each.workers or each.forking))
            for oldest in unused_first[: max(len(self._zygotes) + 1 - ZYGOTES_MAX, 0)]:
                self._end(oldest, "in favour of another interpreter's")
            paths = self._paths if python == sys.executable else json.dumps(["", *sys_path])
            self.adopt(key, *spawn_zygote(python, paths, [], self._hidden, variables))
        zygote = self._zygotes[key] = self._zygotes.pop(key)
        if zygote.idle is not None:
            zygote.idle.cancel()
            zygote.idle = None
        return zygote

    def _received(self, zygote: Zygote, messages: list[Any]) -> None:
        for message in messages:
            match message:
                case Forked(client, pid):
                    self._failures.pop(zygote.python, None)
                    zygote.forking.discard(client)
                    zygote.workers.add(pid)
                    self._forked(client, pid)
                case Exited(pid, status):
                    zygote.workers.discard(pid)
                    self._exited(pid, status)
                    if not zygote.workers and not zygote.forking and zygote.python != sys.executable:
                        zygote.idle = self._wires.loop.call_later(IDLE_S, self._idle, zygote)
                case Confined():
                    zygote.confined = message
                    self._said_last = zygote.python, message
                    if message.reason:
                        log.warning("tasks of %s may read this node's key: %s", zygote.python, message.reason)
                    self._look_confined()

    def _look_confined(self) -> None:
        if self._confined is not None and all(zygote.confined is not None for zygote in self._zygotes.values()):
            call, self._confined = self._confined, None
            call()

    def _idle(self, zygote: Zygote) -> None:
        if self._zygotes.get(zygote.python) is zygote and not zygote.workers and not zygote.forking:
            self._end(zygote, "for want of work")

    def _end(self, zygote: Zygote, why: str) -> None:
        """Let it go: it ends when it reads the end of its connection, and `_dead` follows."""
        del self._zygotes[zygote.python]
        zygote.wire.close()
        self._orphan(zygote, f"the zygote was ended {why}")

    def _dead(self, zygote: Zygote) -> None:
        """It has ended, by itself or by us: who waited for a fork of it hears so, and the next one starts another."""
        self._wires.loop.remove_reader(zygote.pidfd)
        os.close(zygote.pidfd)
        zygote.wire.drain()
        zygote.wire.close()
        if zygote.idle is not None:
            zygote.idle.cancel()
        _, status = os.waitpid(zygote.pid, 0)
        words = os.pread(zygote.said, LAST_WORDS_BYTES, max(os.fstat(zygote.said).st_size - LAST_WORDS_BYTES, 0))
        os.close(zygote.said)
        reason = f"the zygote of {zygote.python} ended: {words.decode(errors='replace').strip() or status}"
        if self._closed is None and status:
            log.warning("pid %d, wait status %d: %s", zygote.pid, status, reason)
        if self._zygotes.get(zygote.python) is zygote:
            del self._zygotes[zygote.python]
        self._orphan(zygote, reason)
        self._look_confined()
        if self._closed is not None and not self._zygotes:
            self._closed()

    def _orphan(self, zygote: Zygote, reason: str) -> None:
        self._last_reason = reason
        if zygote.forking:
            self._failures[zygote.python] = self._failures.get(zygote.python, 0) + 1
        for client in zygote.forking:
            self._unborn(client, reason)
        zygote.forking.clear()


def _key(python: str, variables: Mapping[str, str]) -> str:
    """An interpreter that is loaded with these; their values are nobody's to read."""
    import hashlib

    values = json.dumps(sorted(variables.items())).encode()
    return f"{python} with {', '.join(sorted(variables))} ({hashlib.blake2b(values, digest_size=8).hexdigest()})"
