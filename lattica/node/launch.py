"""How a driver starts a node of its own. A driver imports this file while its user waits, so it imports little."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence

from lattica.node.spawn import NODE_BOOT, ROOT, SECRET_VARIABLES


def spawn_embedded(
    num_cpus: float | None,
    num_gpus: float | None,
    resources: Mapping[str, float],
    object_store_memory: int | None,
    preload: Iterable[str] = (),
    hide: Sequence[str] = (),
    ticket: str = "",
    spill_dir: str = "",
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start a node that serves this process alone and ends with it: (the connection to it, the process).

    None: let the node count or decide. preload: modules that this program has loaded and workers will want ("numpy").
    hide: folders that workers may not see, for a node that has secrets. ticket: of the mesh that the node joins.
    spill_dir: where objects go that do not fit into memory; "": the usual place.
    The process's `stderr` is a file in memory: it says why the node failed, should the connection end before `Welcome`.
    """
    ours, theirs = socket.socketpair()
    said = os.memfd_create("lattica-node-boot", os.MFD_CLOEXEC)
    paths = json.dumps([ROOT, *(path for path in sys.path if path)])
    command = [sys.executable, "-P", "-c", NODE_BOOT, paths, "--attach-fd", str(theirs.fileno())]
    for option, value in (
        ("--num-cpus", num_cpus),
        ("--num-gpus", num_gpus),
        ("--resources", json.dumps(dict(resources)) if resources else None),
        ("--object-store-memory", object_store_memory),
        ("--preload", ",".join(preload) or None),
        ("--hide", json.dumps(list(hide)) if hide else None),
        ("--spill-dir", spill_dir or None),
    ):
        if value is not None:
            command += [option, str(value)]
    passed = [theirs.fileno()]
    environ = None
    if ticket:  # by a pipe: arguments and variables can be seen
        read, write = os.pipe()
        with open(write, "wb") as pipe:
            pipe.write(ticket.encode())
        passed.append(read)
        command += ["--ticket-fd", str(read)]
        environ = {name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES}
    with theirs:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=passed,
            start_new_session=True,  # Ctrl-C in the user's terminal is the driver's alone
            env=environ,
        )
    for fd in passed[1:]:
        os.close(fd)
    process.stderr = os.fdopen(said, "rb")
    return ours, process
