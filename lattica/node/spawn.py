"""Start a zygote: a new interpreter that holds one end of a socket pair.

A node that has secrets forks its zygote from itself instead, before it has them: that takes a third of the CPU time,
and much of the memory is shared. Imported by the node before anything else, so it imports next to nothing itself. Every
interpreter we start begins with `-P -c`: no module of the working directory can stand in for one of ours or of the
standard library.
"""

from __future__ import annotations

import _socket  # `socket` takes 4 ms, and the zygote's start is what `init` waits for
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # they are imported by others later
    from collections.abc import Mapping
    from typing import NoReturn

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The directory that holds the package: a child must run the same lattica as its parent."""
BOOT = """import json, sys
paths = json.loads(sys.argv[1])
sys.path[:0] = [path for path in paths[:1] if path and path not in sys.path]
sys.path += [path for path in paths[1:] if path not in sys.path]
"""
"""argv[1]: JSON list of import paths; the first goes in front (the package's root; "": none), the others behind."""
ZYGOTE_BOOT = BOOT + "from lattica.node.zygote import main; main(int(sys.argv[2]), sys.argv[3], sys.argv[4:])"
NODE_BOOT = BOOT + "from lattica.node.main import main; main(sys.argv[2:], sys.argv[1])"
CONFINED_BOOT = BOOT + "from lattica.node.spawn import become_confined; become_confined(*sys.argv[2:])"
INSTALL_BOOT = BOOT + "from lattica.node.installing import main; main(int(sys.argv[2]))"
NOTHING_HIDDEN = "[]"
HIDDEN_ALREADY = "!"
"""Begins what a zygote is told in place of folders, if these were hidden before its interpreter began; what came of it
follows as JSON."""
LATER = "LATTICA_LATER_"
"""Begins the names of environment variables that are not for our interpreter, but for the one that it becomes."""
SECRET_VARIABLES = ("LATTICA_TICKET",)
"""Environment variables that are the node's business alone."""


def spawn_zygote(
    python: str,
    paths: str,
    preload: list[str],
    hidden: str = NOTHING_HIDDEN,
    variables: Mapping[str, str] | None = None,
) -> tuple[int, int, int]:
    """(connection to it, its pid, a file in memory with what it prints). Raises OSError if it cannot be started.

    paths: JSON list as for BOOT. hidden: folders that its workers may not see, as of `confine.fingerprints`. Any other
    interpreter than ours is a file that a job names, perhaps one that a task has written, and so is what `variables`
    may have it load: it begins in a process from which they are hidden already.
    """
    variables = variables or {}
    if not os.access(python, os.X_OK):
        raise FileNotFoundError(2, "there is no such program", python)
    ours, theirs = _socket.socketpair()
    said = os.memfd_create("lattica-zygote-output", os.MFD_CLOEXEC)
    os.set_inheritable(theirs.fileno(), True)
    argv = ["-P", "-c", ZYGOTE_BOOT, paths, str(theirs.fileno()), hidden, *preload]
    program = python
    environ = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
    if (python != sys.executable or variables) and hidden != NOTHING_HIDDEN:
        program = sys.executable
        argv = ["-P", "-c", CONFINED_BOOT, f'["{ROOT}"]', hidden, python, *argv]
        environ.update({LATER + name: value for name, value in variables.items()})
    else:
        environ.update(variables)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, said, 1),
        (os.POSIX_SPAWN_DUP2, said, 2),
    ]
    try:
        pid = os.posix_spawn(program, [program, *argv], environ, file_actions=actions, setsigmask=[])
    except OSError:
        ours.close()
        os.close(said)
        raise
    finally:
        theirs.close()
    return ours.detach(), pid, said


def spawn_installer(wanted: bytes) -> tuple[int, int]:
    """(its pid, a pipe with what it prints), of a process that is a session of its own. wanted: as
    `installing.main` reads it, from memory: a command line is everybody's to read. Raises OSError."""
    spec = os.memfd_create("lattica-installer", os.MFD_CLOEXEC)
    ours, theirs = os.pipe()
    try:
        os.write(spec, wanted)
        os.lseek(spec, 0, os.SEEK_SET)
        os.set_inheritable(spec, True)
        argv = ["-P", "-c", INSTALL_BOOT, f'["{ROOT}"]', str(spec)]
        environ = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, theirs, 1),
            (os.POSIX_SPAWN_DUP2, theirs, 2),
        ]
        pid = os.posix_spawn(
            sys.executable, [sys.executable, *argv], environ, file_actions=actions, setsid=True, setsigmask=[]
        )
    except OSError:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
        os.close(spec)
    return pid, ours


def become_confined(hidden: str, python: str, *argv: str) -> None:
    """In a new process of our interpreter: hide the folders, and become a zygote of another.

    argv: as `spawn_zygote` makes it; where it has `hidden`, the zygote is told what came of that.
    """
    import json

    from lattica.node import confine

    found = confine.confine([(path, device, inode) for path, device, inode in json.loads(hidden)])
    words = [HIDDEN_ALREADY + json.dumps(found) if word == hidden else word for word in argv]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(LATER)}
    environ |= {name.removeprefix(LATER): value for name, value in os.environ.items() if name.startswith(LATER)}
    os.execve(python, [python, *words], environ)


def fork_zygote(preload: list[str], hidden: str) -> tuple[int, int, int]:
    """The same as `spawn_zygote` for this interpreter and its import paths, as a copy of this process.

    Nothing may be in its memory that workers must not see: call it before keys and tickets are read, and before there
    is a thread, a log or a limit of the node's own.
    """
    ours, theirs = _socket.socketpair()
    said = os.memfd_create("lattica-zygote-output", os.MFD_CLOEXEC)
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        os.close(said)
        raise
    if pid == 0:
        ours.detach()
        _become_zygote(theirs.detach(), said, preload, hidden)
    theirs.close()
    return ours.detach(), pid, said


def _become_zygote(fd: int, said: int, preload: list[str], hidden: str) -> NoReturn:
    """In the new process: let go of all that is the node's, and serve."""
    import signal
    import traceback

    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        nothing = os.open(os.devnull, os.O_RDONLY)
        connection = os.dup(fd)  # above the standard ones, whatever the node was started with
        for target, source in ((0, nothing), (1, said), (2, said), (3, connection)):
            os.dup2(source, target, inheritable=target < 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))  # the node's lock, its pipes: its end must be seen by others
        sys.argv = sys.argv[:1]

        from lattica.node.zygote import main

        main(3, hidden, preload)
        status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)
