"""How a node ended and what it last wrote to its log: for the error of a driver that did not expect it.

An embedded node's log goes with its session, so the node leaves the end of it in the file in memory that its driver
has; a node that was killed leaves its session. A driver imports this when its node is dead.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lattica.node.workers import describe_status

if TYPE_CHECKING:
    import subprocess

NODE_LOG = "node.log"
LAST_WORDS_BYTES = 4096
"""Some twenty lines, or a traceback and what came before it."""
END_WAIT_S = 0.25
"""A process that has closed its sockets is gone within milliseconds; one that goes on has closed them on purpose."""


def last_words(folder: str) -> bytes:
    """The end of the node's log in this folder, from the beginning of a line; nothing if there is no log."""
    try:
        log = os.open(os.path.join(folder, NODE_LOG), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return _end_of(log)
    finally:
        os.close(log)


def inquest(process: subprocess.Popen[bytes] | None, folder: str) -> tuple[str, str]:
    """(how it ended, its last words). process: ours, with its file in memory as `stderr`; None: a node that others
    began. folder: where its log lies, or lay."""
    from subprocess import TimeoutExpired  # 5 ms, which the node's start has not

    how, words = "", b""
    if process is not None:
        try:
            status = process.wait(END_WAIT_S)
            how = describe_status(-status if status < 0 else status << 8)
        except TimeoutExpired:
            how = "it lives on, and has closed our connection"
        if process.stderr is not None and not process.stderr.closed:
            words = _end_of(process.stderr.fileno())
    return how, (words or last_words(folder)).decode(errors="replace").strip()


def _end_of(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    data = os.pread(fd, LAST_WORDS_BYTES, max(size - LAST_WORDS_BYTES, 0))
    return data if size <= LAST_WORDS_BYTES else data.partition(b"\n")[2]
