"""node.log: what a node's process says and prints, bounded while it runs."""

from __future__ import annotations

import os
from collections.abc import Iterable

LOG_BYTES_MAX = 16 << 20
"""Of node.log; then it becomes node.log.1, and the one before that is gone."""
LOOK_S = 30.0  # between looks at its size
STDOUT_STDERR = (1, 2)


def write_to(path: str, fds: Iterable[int] = STDOUT_STDERR) -> None:
    """From now on these descriptors of this process are this file. Raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    for fd in fds:
        os.dup2(file, fd)
    os.close(file)


def rotate(path: str, fds: tuple[int, ...] = STDOUT_STDERR, bytes_max: int | None = None) -> bool:
    """Begin the file anew if it is full; whether it was. What the process has forked goes on in the old one, which has
    few words: a zygote's. Raises OSError: then it goes on as it is."""
    if os.fstat(fds[-1]).st_size <= (LOG_BYTES_MAX if bytes_max is None else bytes_max):
        return False
    os.replace(path, f"{path}.1")
    write_to(path, fds)
    return True
