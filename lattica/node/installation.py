"""One installer at work (`node.installing`), as the node sees it: a process, what it says, how long it may take.

It is a session of its own, and ends with all that it has started: by itself, at its time limit, or when it is closed.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

import msgspec

from lattica.node.loop import Loop
from lattica.node.spawn import spawn_installer

READ_BYTES = 64 << 10
LINE_MAX_BYTES = 1 << 20  # what it says at once: the end of pip's output, escaped
SAYS_MAX_BYTES = 8 << 20  # in all; more: it is none of ours
WORDS_BYTES = 4000  # of what it says otherwise, that is, of its own traceback


class Installation:
    """See the module. said: of each message, as a dict. ended: why, if it was ended by us, or has died; else ""."""

    def __init__(
        self,
        loop: Loop,
        wanted: bytes,
        timeout_s: float,
        said: Callable[[dict[str, Any]], None],
        ended: Callable[[str], None],
    ) -> None:
        """wanted: as `installing.main` reads it. timeout_s: -1 for any. Raises OSError if it cannot be started."""
        self._loop, self._said, self._ended = loop, said, ended
        self._left, self._bytes, self._words, self._reason = b"", 0, b"", ""
        self.pid, self._pipe = spawn_installer(wanted)
        os.set_blocking(self._pipe, False)
        self._pidfd = os.pidfd_open(self.pid)
        loop.add_reader(self._pipe, self._read)
        loop.add_reader(self._pidfd, self._over)
        late = f"it took longer than setup_timeout_seconds={timeout_s:g}"
        self._timer = None if timeout_s < 0 else loop.call_later(timeout_s, self.close, late)

    def __repr__(self) -> str:
        return f"<Installation by pid {self.pid}>"

    def close(self, reason: str = "it was stopped") -> None:
        """End it; `ended` follows."""
        if self._pidfd >= 0:
            self._reason = self._reason or reason
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _read(self) -> None:
        try:
            data = os.read(self._pipe, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._pipe)
            return
        self._bytes += len(data)
        if self._bytes > SAYS_MAX_BYTES:
            self.close("it says too much")
            return
        *lines, self._left = (self._left + data).split(b"\n")
        for line in lines:
            self._hear(line)
        if len(self._left) > LINE_MAX_BYTES:
            self.close("it says too much at once")

    def _hear(self, line: bytes) -> None:
        try:
            said = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._words = (self._words + line + b"\n")[-WORDS_BYTES:]
            return
        self._said(said)

    def _over(self) -> None:
        """It has ended; what it has started goes, too."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        if self._timer is not None:
            self._timer.cancel()
        before = -1
        while self._bytes != before:  # what it said last
            before = self._bytes
            self._read()
        self._loop.remove_reader(self._pipe)
        os.close(self._pipe)
        words = self._words.decode(errors="replace").strip()
        self._ended(self._reason or (words or f"wait status {status}" if status else ""))
