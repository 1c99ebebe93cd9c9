"""Worker processes: forked by a zygote, watched by pidfd and by their connection, ended by process group.

    fork ──► Fork + 4 descriptors to the zygote ──► Forked(pid): `started`
                                                        │
    pidfd or end of connection, whichever is first ─────┤ wait for Exited (status), then for the end of its stderr
                                                        ▼
                                                    `died`: how it ended, its last lines, its page

A user's own fork inherits sockets and pipes, so neither the end of a connection nor that of a pipe is waited for long.
A worker is a session of its own: killing its group takes its subprocesses along.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from lattica.codec.messages import FromClient
from lattica.local.page import Page
from lattica.node.loop import Timer
from lattica.node.wires import Wire, Wires
from lattica.node.zygotes import Zygotes

log = logging.getLogger(__name__)
STATUS_WAIT_S = 1.0
"""How long an exit status is waited for after a connection's end: the zygote reaps in milliseconds, or imports."""
OUTPUT_WAIT_S = 0.2
"""How long the end of a dead worker's output is waited for: a subprocess in another session may hold the pipe open."""
DESCRIPTORS = 12
"""Files that a worker's beginning opens here; five stay open."""
PIPE_READ_BYTES = 64 << 10  # a pipe's whole capacity
SIGNAL_WORDS = {signal.SIGSEGV: " (segmentation fault)", signal.SIGABRT: " (abort)", signal.SIGBUS: " (bus error)"}


class Death(msgspec.Struct, frozen=True):
    """How a worker ended. `how` for people: "killed by SIGKILL", "exit code 3", "out of memory: ..."."""

    how: str
    stderr: str
    out_of_memory: bool = False


class Process(msgspec.Struct, eq=False):
    """One worker process as the node sees it."""

    client: int
    job: int
    wire: Wire
    page: Page
    output: dict[int, int]  # descriptor of the node's end -> stream number (1, 2)
    pid: int = 0  # 0: being forked
    pidfd: int = -1
    status: int | None = None  # as of waitpid
    ended: bool = False  # seen to be dead or cut off
    doomed: bool = False  # to be killed as soon as its pid is known
    reason: str = ""  # why the node killed it; goes before what the status says
    out_of_memory: bool = False
    timers: list[Timer] = []


class Output(Protocol):
    """Where what workers print goes: a seam to the log files."""

    def feed(self, client: int, stream: int, data: bytes) -> None:
        """Bytes that it printed on stream 1 (stdout) or 2 (stderr)."""

    def finish(self, client: int) -> str:
        """It has ended and prints no more; the last lines of its stderr."""


def describe_status(status: int | None) -> str:
    """The words for an exit status as of waitpid."""
    if status is None:
        return "ended, and nobody knows how"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
        return f"killed by {name}{SIGNAL_WORDS.get(signal.Signals(number), '')}"
    return f"exit code {os.WEXITSTATUS(status)}"


class Workers:
    """All worker processes of this node."""

    def __init__(
        self,
        wires: Wires,
        paths: str,
        output: Output,
        received: Callable[[int, list[Any]], None],
        started: Callable[[int], None],
        unborn: Callable[[int, str], None],
        died: Callable[[Process, Death], None],
        hidden: str,
    ) -> None:
        """hidden: folders that workers may not see, as of `confine.fingerprints`.

        Hears: received(client, messages), started(client), unborn(client, why no fork came about), died(...)."""
        self._wires, self._loop, self._output = wires, wires.loop, output
        self._received, self._started, self._unborn, self._died = received, started, unborn, died
        self.zygotes = Zygotes(wires, paths, self._forked, self._exited, self._not_forked, hidden)
        self.processes: dict[int, Process] = {}
        self._by_pid: dict[int, Process] = {}

    @staticmethod
    def room() -> bool:
        """Whether this process may open as many more files as a worker takes, for a while or for its life."""
        spare: list[int] = []
        try:
            for _ in range(DESCRIPTORS):
                spare.append(os.eventfd(0, os.EFD_CLOEXEC))
        except OSError:
            return False
        finally:
            for fd in spare:
                os.close(fd)
        return True

    def fork(
        self, client: int, job: int, python: str, sys_path: list[str], variables: Mapping[str, str] | None = None
    ) -> Wire:
        """Begin worker `client`: messages may be sent to it at once, it finds them when it is up.

        sys_path: the driver's, where another interpreter than ours finds what a worker is made of. variables: that its
        interpreter must have been loaded with.
        """
        ours, theirs = socket.socketpair()
        page_fd = Page.create()
        pipes = [os.pipe() for _ in range(2)]

        def received(messages: list[Any]) -> None:
            self._received(client, messages)

        def ended(broken: str) -> None:
            if broken:
                self.kill(client, f"it broke the protocol: {broken}")
            self._cut_off(process)

        wire = Wire(self._wires, ours, FromClient, received, ended, name=f"worker {client}")
        output = {read: stream for stream, (read, _) in enumerate(pipes, 1)}
        process = self.processes[client] = Process(client, job, wire, Page(page_fd), output)
        for read in output:
            os.set_blocking(read, False)
        fds = [theirs.detach(), page_fd, *(write for _, write in pipes)]
        self.zygotes.fork(python, sys_path, client, fds, variables or {})
        return wire

    def kill(self, client: int, reason: str = "", *, out_of_memory: bool = False, number: int = signal.SIGKILL) -> None:
        """End the worker and its subprocesses. reason: what `Death.how` shall say. number: SIGTERM for a kind end."""
        process = self.processes.get(client)
        if process is None:
            return
        if reason and not process.reason:
            process.reason, process.out_of_memory = reason, out_of_memory
        process.doomed = True
        if process.pid and process.status is None:
            kill_group(process.pid, number)

    def let_go(self, client: int, patience_s: float) -> None:
        """Close the connection of a worker that waits for that; kill it if it does not end in time."""
        process = self.processes.get(client)
        if process is not None:
            process.wire.finish()
            self._loop.call_later(patience_s, self.kill, client)

    # -- birth

    def _forked(self, client: int, pid: int) -> None:
        process = self.processes.get(client)
        if process is None:
            kill_group(pid)
            return
        process.pid = pid
        self._by_pid[pid] = process
        with contextlib.suppress(ProcessLookupError):  # dead and reaped already: Exited follows
            process.pidfd = os.pidfd_open(pid)
            self._loop.add_reader(process.pidfd, self._cut_off, process)
        self._started(client)
        for read in process.output:  # not before its pid is known, which its log files are named after
            self._loop.add_reader(read, self._printed, process, read)
        if process.doomed:
            kill_group(pid)
        if process.ended:
            self._await_status(process)

    def _not_forked(self, client: int, reason: str) -> None:
        process = self.processes.pop(client, None)
        if process is None:
            return
        process.ended = True
        process.wire.close()
        self._release(process)
        self._unborn(client, reason)

    # -- death

    def _cut_off(self, process: Process) -> None:
        """It is dead, or its connection is over, which comes to the same: await its status, then its last lines."""
        if process.pidfd >= 0:
            self._loop.remove_reader(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = -1
        if process.ended:
            return
        process.ended = True
        process.wire.drain()
        process.wire.close()
        if not process.pid:
            return  # its zygote will say that it was forked, and then that it ended, or end itself
        self._await_status(process)

    def _await_status(self, process: Process) -> None:
        if process.status is None:
            process.timers.append(self._loop.call_later(STATUS_WAIT_S, self._no_status, process))
        else:
            self._await_output(process)

    def _no_status(self, process: Process) -> None:
        kill_group(process.pid)  # it closed its connection and lives on; nobody could reach it any more
        process.timers.append(self._loop.call_later(OUTPUT_WAIT_S, self._await_output, process))

    def _exited(self, pid: int, status: int | None) -> None:
        process = self._by_pid.get(pid)
        if process is None or process.status is not None:
            return
        process.status = status
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it started goes with it
        if process.ended:
            self._await_output(process)
        else:
            self._cut_off(process)

    def _await_output(self, process: Process) -> None:
        for timer in process.timers:
            timer.cancel()
        process.timers.clear()
        if process.output:
            process.timers.append(self._loop.call_later(OUTPUT_WAIT_S, self._bury, process))
        else:
            self._bury(process)

    def _bury(self, process: Process) -> None:
        """All is known that will be: tell."""
        for timer in process.timers:
            timer.cancel()
        if self.processes.pop(process.client, None) is None:
            return
        self._by_pid.pop(process.pid, None)
        how = process.reason or describe_status(process.status)
        tail = self._output.finish(process.client)
        self._died(process, Death(how, tail, process.out_of_memory))
        self._release(process)

    def _release(self, process: Process) -> None:
        for fd in process.output:
            self._loop.remove_reader(fd)
            os.close(fd)
        process.output.clear()
        process.page.close()

    # -- output

    def _printed(self, process: Process, fd: int) -> None:
        try:
            data = os.read(fd, PIPE_READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._output.feed(process.client, process.output[fd], data)
            return
        self._loop.remove_reader(fd)
        os.close(fd)
        del process.output[fd]
        if process.ended and process.status is not None and not process.output:
            self._bury(process)


def kill_group(pid: int, number: int = signal.SIGKILL) -> None:
    """A signal for a worker and what it started. Between its fork and its `setsid` there is no group yet."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
