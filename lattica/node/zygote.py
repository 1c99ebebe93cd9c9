"""The zygote: a process that has imported what every worker needs, and forks workers from itself.

    node -> zygote  Fork(client, name) + 4 descriptors · Import(modules)
    zygote -> node  Confined(...) · Forked(client, pid) · Exited(pid, status)

Rules of this file. It imports and never computes: one thread, no CUDA call, numeric libraries held at one thread, so
that a fork copies no thread's lock in mid-air. Between `fork` and the worker's `main` nothing is imported and nothing
collected: eight actors at once are eight passages through here. It ends when the node does, and kills nobody: workers
see that end for themselves. This is a process of its own; the node never imports this file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from lattica.codec.messages import Confined, Exited, Fork, Forked, Import, ToZygote
from lattica.local.stream import Stream
from lattica.node.spawn import HIDDEN_ALREADY, NOTHING_HIDDEN

if TYPE_CHECKING:
    from lattica.node.environment import Folder
    from lattica.scheduler.environments import Travels, Wanted

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SINGLE_THREADED = "LATTICA_SINGLE_THREADED"
"""Environment variable that names, separated by spaces, the THREAD_VARIABLES that were set here and not by the user;
a worker may set those to its task's `num_cpus`, and must leave the others alone."""
FORK_DESCRIPTORS = 4  # node connection, page, stdout, stderr
FRONT_DOOR = ("lattica.session", "lattica.actors.remote")
"""What a task needs that submits tasks itself (4 ms to import)."""
LATER = ("asyncio", "uvloop")
"""What async actors need (50 ms)."""
WAKE_BYTES = 4096  # one read empties any burst of SIGCHLD: a byte each, and the reaping loop takes all the dead anyway
WorkerMain = Callable[[int, int, int], None]
"""What the child becomes: (node connection, page descriptor, client number)."""


def main(fd: int, hidden: str, preload: Iterable[str] = ()) -> None:
    """Serve the node at the other end of `fd` until it is gone.

    hidden: folders that workers may not see, as of `confine.fingerprints`. preload: modules to import as soon as there
    is time.
    """
    stream = Stream(socket.socket(fileno=fd), ToZygote, takes_fds=True)
    _confine(hidden, stream)
    _hold_thread_pools()
    for standard in (sys.stdout, sys.stderr):  # a worker's lines go out one by one
        standard.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    from lattica.actors import worker  # after the environment is set: it may load numeric libraries

    gc.disable()
    gc.freeze()
    Zygote(stream, partial(worker.main, lay_out=_lay_out), [*preload, *FRONT_DOOR, *LATER]).serve()


def _lay_out(wanted: Wanted) -> tuple[list[Travels], Folder | None]:
    """For what a task asks its own tasks to have: imported when one does."""
    from lattica.node import environment

    return environment.lay_out(wanted)


def _confine(hidden: str, stream: Stream) -> None:
    """Before anything that is not ours is imported: hide these folders, and tell the node what came of it."""
    if hidden == NOTHING_HIDDEN:
        return
    import json

    if hidden.startswith(HIDDEN_ALREADY):
        stream.queue(Confined(*json.loads(hidden.removeprefix(HIDDEN_ALREADY))))
        stream.flush()
        return
    from lattica.node import confine  # 2 ms, which embedded nodes without secrets save

    stream.queue(Confined(*confine.confine([(path, device, inode) for path, device, inode in json.loads(hidden)])))
    stream.flush()


def _hold_thread_pools() -> None:
    ours = [name for name in THREAD_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(ours, "1"), **{SINGLE_THREADED: " ".join(ours)})


def import_quietly(modules: Iterable[str]) -> None:
    """Import what can be imported; what cannot fails again, with its traceback, in the worker that wants it."""
    for name in modules:
        with contextlib.suppress(Exception):
            __import__(name)


class Zygote:
    """The loop of the zygote: one connection, one pipe for SIGCHLD."""

    def __init__(self, stream: Stream, become_worker: WorkerMain, later: list[str]) -> None:
        """later: modules that are imported when the first fork is done: the first task waits for none of them."""
        self._later = later
        self._stream = stream
        self._become_worker = become_worker
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler of Python's is what writes to the wake-up descriptor
        signal.set_wakeup_fd(self._waker.fileno())

    def serve(self) -> None:
        """Until the node's end of the stream is closed."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        forked = False
        while True:
            sent = self._stream.flush()
            poll.register(self._stream.fd, select.POLLIN if sent else select.POLLIN | select.POLLOUT)
            ready = poll.poll(0 if forked and self._later else None)
            if not ready:
                self._import([self._later.pop(0)])
            if any(fd == self._wake.fileno() for fd, _ in ready):
                self._reap()
            if not any(fd == self._stream.fd and event & ~select.POLLOUT for fd, event in ready):
                continue
            messages = self._stream.receive()
            if messages is None:
                return
            for message in messages:
                match message:
                    case Fork(client):
                        self._fork(client, [self._stream.take_fd() for _ in range(FORK_DESCRIPTORS)])
                        forked = True
                    case Import(modules):
                        self._import(modules)

    def _import(self, modules: Iterable[str]) -> None:
        import_quietly(modules)
        gc.freeze()

    def _fork(self, client: int, fds: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            self._child(client, *fds)
        for fd in fds:
            os.close(fd)
        self._stream.queue(Forked(client, pid))
        self._stream.flush()  # the node can tell this worker's first caller while the next fork runs

    def _child(self, client: int, node: int, page: int, stdout: int, stderr: int) -> None:
        """In the new process: cut every tie with the zygote, become a worker, never return."""
        status = 1
        try:
            os.setsid()  # a session of its own: Ctrl-C does not reach it, and it is killed together with its children
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the user's shell ignores it
            self._stream.close()
            self._wake.close()
            self._waker.close()
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            os.close(stdout)
            os.close(stderr)
            gc.enable()
            self._become_worker(node, page, client)
            status = 0
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(WAKE_BYTES)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._stream.queue(Exited(pid, status))
