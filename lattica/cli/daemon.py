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
from types import FrameType, TracebackType
from typing import Any, Self

from lattica.errors import ConfigError, LatticaError, NodeDiedError
from lattica.node.node_log import LOG_BYTES_MAX
from lattica.node.paths import NodeFile, process_birth
from lattica.node.spawn import NODE_BOOT, ROOT, SECRET_VARIABLES

READY_WAIT_S = 30.0
"""How long a node may take to serve, as for `init`. It takes 0.2 s; where ten others want each CPU it took more than
10."""
SAID_BYTES_MAX = 256 << 10  # who serves where and whom it has met, or the words of an error
FACTS_WAIT_S = 20.0
"""How long a node that serves may take to say what became of its mesh; it gives a first dial 6 s."""
KILL_WAIT_S = 5.0
"""How long the kernel may take to end a killed process: many GiB of memory, or a disk that hangs."""
TOLD_BY = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LOG_FILE = "node.log"
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


def await_ready(ready: int, pidfd: int, log: str, wait_s: float = READY_WAIT_S) -> bytes:
    """Return when the node serves: what it has said beyond that, for `facts`.

    ready: reads a line of JSON, with "error" if the node cannot serve. pidfd: readable when the process is dead; the
    end of `ready` alone may never come, since what the node starts can inherit its other side.
    Raises LatticaError with the node's own words, or NodeDiedError; `log` is named in it.
    """
    try:
        line, more = _line(ready, pidfd, b"", wait_s)
    except TimeoutError:
        raise NodeDiedError(
            f"the node did not serve within {wait_s:g} s, and was ended", do_next=f"read {log}, and try again"
        ) from None
    except EOFError:
        raise NodeDiedError("the node ended while it started", do_next=f"read {log}{last_words(log)}") from None
    _read(line)
    return more


def facts(ready: int, pidfd: int, log: str, said: bytes, wait_s: float = FACTS_WAIT_S) -> dict[str, Any]:
    """What a node that serves says of itself, in a second line, when it has met another of its mesh or nobody answers:
    "mesh", "resources" and "protection", as it would answer a command. {} if it says nothing in this time.

    said: what `await_ready` gave. Raises as that does: a node that has no place in its mesh ends.
    """
    try:
        line, _ = _line(ready, pidfd, said, wait_s)
    except TimeoutError:
        return {}  # it serves, which is what matters
    except EOFError:
        raise NodeDiedError("the node ended soon after its start", do_next=f"read {log}{last_words(log)}") from None
    return _read(line)


def _line(ready: int, pidfd: int, said: bytes, wait_s: float) -> tuple[bytes, bytes]:
    """A line, and what came after it. Raises TimeoutError, or EOFError if the process dies before it."""
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    while b"\n" not in said:
        events = dict(poll.poll(wait_s * 1000))
        if not events:
            raise TimeoutError
        data = os.read(ready, 4096) if ready in events else b""
        said += data
        if not data or len(said) > SAID_BYTES_MAX:
            raise EOFError
    line, _, more = said.partition(b"\n")
    return line, more


def _read(line: bytes) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(line)
    if error := said.get("error"):
        raise LatticaError(str(error))
    return said


def last_words(log: str) -> str:
    """The end of a log, for an error's next step: "; it ends with:" and some lines."""
    try:
        with open(log, "rb") as file:
            file.seek(max(os.path.getsize(log) - LOG_TAIL_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "; it ends with:" + "".join(f"\n    {line}" for line in lines[-10:]) if lines else ""


class Signals:
    """SIGTERM, SIGHUP and Ctrl-C of a command in the foreground, from before its node exists.

    The first asks the node to end, the second kills it.
    """

    def __init__(self) -> None:
        self.told = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._tell) for number in TOLD_BY}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hand_on_to(self, process: subprocess.Popen[bytes]) -> None:
        """This is the node."""
        self._process = process
        if self.told:
            process.send_signal(signal.SIGTERM)

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """Until the node has ended; its exit code, 0 if it was told to."""
        code = process.wait()
        return 0 if self.told else code

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self.told += 1
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM if self.told == 1 else signal.SIGKILL)


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
