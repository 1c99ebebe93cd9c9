"""The driver of a submitted job: the user's script as a process that the node starts, hears, and ends.

    node ── exec ──► become()  hide the node's folders, as workers have it ── exec ──► python script.py ARGS
      ▲                                                                                     │ lattica.init()
      └──────────── a socket of the driver's own making, over the broker ◄──────────────────┘

The script may not see the node's socket: whoever reaches that may command the node. It inherits one end of a socket
pair instead, the *broker*, and sends over it one end of a connection that it has made; the node admits drivers there
and nobody else. It dies with its node: another node may be starting the job again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from lattica.node.loop import Loop
from lattica.node.spawn import BOOT, NOTHING_HIDDEN, ROOT, SECRET_VARIABLES
from lattica.node.workers import describe_status

BROKER_VARIABLE = "LATTICA_JOB_BROKER"
"""Environment variable of a job's script: descriptor and inode of its broker, "7:81234"."""
JOB_VARIABLE = "LATTICA_JOB_ID"
PR_SET_PDEATHSIG = 1
READ_BYTES = 64 << 10
OUTPUT_WAIT_S = 0.3
"""How long the end of a dead driver's output is waited for: what it started may hold the pipe open."""
TERM_S = 3.0  # between SIGTERM and SIGKILL, for a script that wants to write down what it has
FILES_SOFT = 1024  # what a shell gives; the node itself has more, and select() of others does not like it
JOB_BOOT = BOOT + "from lattica.node.job_process import become; become(sys.argv[2:])"


def attach_by_broker(environ: Mapping[str, str] = os.environ) -> socket.socket | None:
    """For a driver: a connection to the node that started it as a job; None if none did."""
    fd_text, _, inode = environ.get(BROKER_VARIABLE, "").partition(":")
    try:
        fd = int(fd_text)
        if os.fstat(fd).st_ino != int(inode):
            return None  # inherited by name only: the descriptor is another one here
    except (ValueError, OSError):
        return None
    ours, theirs = socket.socketpair()
    broker = socket.socket(fileno=os.dup(fd))
    try:
        with theirs:
            socket.send_fds(broker, [b"\0"], [theirs.fileno()])
    except OSError:
        ours.close()
        return None
    finally:
        broker.close()
    return ours


def become(argv: list[str]) -> None:
    """In the new process: hide what `hidden` says, go to the folder, and become the script.

    argv: pid of the node, hidden (as of `confine.fingerprints`), folder, words of the program.
    """
    import ctypes
    import resource

    node, hidden, folder, *words = argv
    if hidden != NOTHING_HIDDEN:
        import json

        from lattica.node import confine

        confine.confine([(path, device, inode) for path, device, inode in json.loads(hidden)])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # last: new rights would undo it
    if os.getppid() != int(node):
        sys.exit("the node ended")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES_SOFT, hard), hard))
    os.chdir(folder)
    os.execv(words[0], words)


class JobProcess:
    """One run of a job's script. Output of both streams comes together, as in a terminal."""

    def __init__(
        self,
        loop: Loop,
        words: Sequence[str],
        folder: str,
        hidden: str,
        environ: Mapping[str, str],
        *,
        admit: Callable[[socket.socket], None],
        printed: Callable[[bytes], None],
        ended: Callable[[int], None],
    ) -> None:
        """admit: a connection that the script has made. ended: hears the wait status, after all output."""
        self._loop, self._admit, self._printed, self._ended = loop, admit, printed, ended
        self._broker, theirs = socket.socketpair()
        self._broker.setblocking(False)
        read, write = os.pipe()
        os.set_blocking(read, False)
        inode = os.fstat(theirs.fileno()).st_ino
        env = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
        env |= {"PYTHONUNBUFFERED": "1", **environ, BROKER_VARIABLE: f"{theirs.fileno()}:{inode}"}
        if "site-packages" not in ROOT:  # the script shall find the lattica that runs the node
            env["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, env.get("PYTHONPATH", ""))))
        command = [sys.executable, "-P", "-c", JOB_BOOT, f'["{ROOT}"]', str(os.getpid()), hidden, folder, *words]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=write, stderr=write, pass_fds=(theirs.fileno(),), env=env,
                start_new_session=True, cwd="/",
            )  # fmt: skip
        except BaseException:
            os.close(read)
            self._broker.close()
            raise
        finally:
            os.close(write)
            theirs.close()
        self.pid = self._process.pid
        self._output: int | None = read
        self._pidfd: int | None = os.pidfd_open(self.pid)
        loop.add_reader(read, self._read)
        loop.add_reader(self._broker.fileno(), self._connect)
        loop.add_reader(self._pidfd, self._exited)

    def __repr__(self) -> str:
        return f"<JobProcess {self.pid}>"

    def end(self, *, kindly: bool) -> None:
        """Tell it and what it started to end. kindly: by SIGTERM, and TERM_S later by SIGKILL."""
        self._kill(signal.SIGTERM if kindly else signal.SIGKILL)
        if kindly:
            self._loop.call_later(TERM_S, self._kill, signal.SIGKILL)

    def _kill(self, number: int) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def close(self) -> None:
        """The node ends: so does it, and nobody is told."""
        self._kill(signal.SIGKILL)
        self._let_go()

    def _connect(self) -> None:
        try:
            said, fds, _, _ = socket.recv_fds(self._broker, 1, 4)
        except BlockingIOError:
            return
        except OSError:
            said, fds = b"", []
        for fd in fds:
            self._admit(socket.socket(fileno=fd))
        if not said:
            self._loop.remove_reader(self._broker.fileno())

    def _read(self) -> None:
        if self._output is None:
            return
        try:
            data = os.read(self._output, READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._printed(data)
            return
        self._close_output()

    def _close_output(self) -> None:
        if self._output is not None:
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._output = None

    def _exited(self) -> None:
        """It is dead; what it started goes with it, and its last output is still to be read."""
        if self._pidfd is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = None
        self._process.wait()
        self._last_look(self._loop.time() + OUTPUT_WAIT_S)

    def _last_look(self, until: float) -> None:
        if self._output is not None and self._loop.time() < until:
            self._loop.call_later(0.02, self._last_look, until)
            return
        code = self._process.returncode
        self._let_go()
        self._ended(-code if code < 0 else code << 8)

    def _let_go(self) -> None:
        self._close_output()
        if self._broker.fileno() >= 0:
            self._loop.remove_reader(self._broker.fileno())
            self._broker.close()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
            self._process.wait()


def words_for(status: int) -> tuple[int, str]:
    """(the exit code as a shell has it, words) of a wait status."""
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status), describe_status(status)
    return os.WEXITSTATUS(status), describe_status(status)
