"""A node process begun by a command: start it apart from this terminal, hear whether it serves, see it end."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lattica.errors import ConfigError, LatticaError, NodeDiedError
from lattica.node.launch import NODE_BOOT
from lattica.node.paths import NodeFile, process_birth
from lattica.node.spawn import ROOT, SECRET_VARIABLES

READY_WAIT_S = 10.0
"""How long a node may take to serve. It takes 0.2 s; a machine that swaps or has a cold disk takes seconds."""
SAID_BYTES_MAX = 64 << 10  # who serves where, or the words of an error
KILL_WAIT_S = 5.0
"""How long the kernel may take to end a killed process: many GiB of memory, or a disk that hangs."""
LOG_FILE = "node.log"
LOG_BYTES_MAX = 16 << 20
"""A longer log becomes `node.log.1` at the next start."""
LOG_TAIL_BYTES = 2048  # of the log, in the error of a node that died while it started


@dataclass(slots=True)
class Daemon:
    """A node process that we started. `ready`: what it says on --ready-fd; the descriptors are closed by `close`."""

    process: subprocess.Popen[bytes]
    ready: int
    pidfd: int

    def kill(self) -> None:
        """End it without ado; what it started ends with it."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        os.close(self.ready)
        os.close(self.pidfd)
        if self.process.returncode is None:
            self.process.returncode = 0  # it lives on, which Popen would warn of


def spawn(options: Sequence[str], data_dir: str, ticket: str = "") -> Daemon:
    """Start the node. options: of lattica.node.main, but --ready-fd and --ticket-fd. What it says goes to its log.

    ticket: handed over by a pipe, for arguments can be seen by everybody.
    """
    ready, theirs = os.pipe()
    passed = [theirs]
    paths = json.dumps([ROOT])
    command = [sys.executable, "-P", "-c", NODE_BOOT, paths, *options, "--ready-fd", str(theirs)]
    if ticket:
        passed.append(_pipe_with(ticket))
        command += ["--ticket-fd", str(passed[-1])]
    output = _open_log(data_dir)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=data_dir,  # not the user's: a folder that somebody stands in cannot be unmounted
            pass_fds=passed,
            env={name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES},
            start_new_session=True,  # neither Ctrl-C nor a closed terminal reaches it
        )
    finally:
        for fd in (*passed, output):
            os.close(fd)
    return Daemon(process, ready, os.pidfd_open(process.pid))


def _pipe_with(text: str) -> int:
    """The reading end of a pipe that holds this, and ends. A ticket is shorter than what a pipe takes."""
    read, write = os.pipe()
    with open(write, "wb") as file:
        file.write(text.encode())
    return read


def _open_log(data_dir: str) -> int:
    path = os.path.join(data_dir, LOG_FILE)
    if os.path.exists(path) and os.path.getsize(path) > LOG_BYTES_MAX:
        os.replace(path, f"{path}.1")
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)


def await_ready(ready: int, pidfd: int, log: str, wait_s: float = READY_WAIT_S) -> None:
    """Return when the node serves.

    ready: reads one line of JSON, with "error" if the node cannot serve. pidfd: readable when the process is dead; the
    end of `ready` alone may never come, since what the node starts can inherit its other side.
    Raises LatticaError with the node's own words, or NodeDiedError; `log` is named in it.
    """
    said = b""
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    while not said.endswith(b"\n"):
        events = dict(poll.poll(wait_s * 1000))
        if not events:
            raise NodeDiedError(
                f"the node did not serve within {wait_s:g} s, and was ended", do_next=f"read {log}, and try again"
            )
        data = os.read(ready, 4096) if ready in events else b""
        said += data
        if not data or len(said) > SAID_BYTES_MAX:
            raise NodeDiedError("the node ended while it started", do_next=f"read {log}{last_words(log)}")
    error = json.loads(said).get("error")
    if error:
        raise LatticaError(str(error))


def last_words(log: str) -> str:
    """The end of a log, for an error's next step: "; it ends with:" and some lines."""
    try:
        with open(log, "rb") as file:
            file.seek(max(os.path.getsize(log) - LOG_TAIL_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "; it ends with:" + "".join(f"\n    {line}" for line in lines[-10:]) if lines else ""


def serve_until_told(process: subprocess.Popen[bytes]) -> int:
    """Wait for the node to end, and hand SIGTERM and Ctrl-C on to it; its exit code. The second one kills it."""
    told = 0

    def tell(number: int, _: object) -> None:
        nonlocal told
        told += 1
        process.send_signal(signal.SIGTERM if told == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if told else code


def open_pidfd(node: NodeFile) -> int | None:
    """A descriptor of the node's process; None if it is gone. What it names cannot become another process any more."""
    try:
        pidfd = os.pidfd_open(node.pid)
    except ProcessLookupError:
        return None
    if process_birth(node.pid) == node.birth:
        return pidfd
    os.close(pidfd)
    return None


def ended_within(pidfd: int, wait_s: float) -> bool:
    """Whether the process ends in this time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(wait_s * 1000))


def end(node: NodeFile, ask: Callable[[], None], *, wait_s: float, force: bool) -> bool:
    """End the node by `ask`, by SIGTERM if that fails, and with `force` by SIGKILL after `wait_s`; whether it ended."""
    pidfd = open_pidfd(node)
    if pidfd is None:
        return True
    try:
        try:
            ask()
        except LatticaError:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if ended_within(pidfd, wait_s):
            return True
        if force:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return ended_within(pidfd, KILL_WAIT_S)
        return False
    except ProcessLookupError:
        return True
    except PermissionError as error:
        raise ConfigError(f"the node (pid {node.pid}) is another user's", do_next="ask that user to stop it") from error
    finally:
        os.close(pidfd)
