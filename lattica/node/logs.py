"""What workers print: every byte in files, every line to the driver that asked for them, the last lines in memory.

    pipe ─ feed(client, stream, bytes) ─┬─ files      raw bytes, at once, rotated
                                        ├─ lines ──── waiting for the job's driver, bounded ── take(job) ─ LogLines
                                        └─ tail       of stderr, for the error that a death becomes

A print may arrive in any pieces; a line is handed on when it is complete, so two workers never share one. A driver that
does not read loses lines, is told how many and where they are, and slows nobody down.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from lattica.codec.messages import LogLines

log = logging.getLogger(__name__)
STDOUT, STDERR = 1, 2
SUFFIXES = {STDOUT: "out", STDERR: "err"}
LINE_BYTES_MAX = 64 << 10
"""A longer line is cut into pieces: a program that never ends a line must not fill the node's memory."""
TAIL_LINES = 50
"""A segmentation fault's own report takes some twenty, and the program's last words stand before it."""
TAIL_CHARS = 8 << 10  # what an error message can show; the file has the rest
FILE_BYTES_MAX = 16 << 20
FILE_BACKUPS = 3
"""With the file itself 64 MiB per worker and stream; the newest output is what somebody looks for."""
ENDED_FILES_MAX = 400
"""Files of workers that have ended; the oldest go first. A node that runs for months forks workers without end."""
WAITING_CHARS_MAX = 8 << 20
"""Lines that wait for one driver. More would let it sleep longer without loss, at the cost of the node's memory."""
LINE_COST_CHARS = 64  # what a line counts for beside its text: an empty one takes memory too
BATCH_CHARS = 256 << 10
"""Lines in one message: a driver's other messages do not wait long behind them."""


class Sink(Protocol):
    """Where the bytes are kept."""

    def append(self, name: str, data: bytes) -> None: ...

    def end(self, name: str) -> None: ...  # nothing more will come

    def path(self, name: str) -> str: ...  # for people


class Lines:
    """Bytes in, complete lines out, without their newline. Wrong UTF-8 becomes U+FFFD, a long line becomes several."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        self._rest += data
        whole, newline, rest = self._rest.rpartition(b"\n")
        lines = [piece for line in whole.split(b"\n") for piece in _pieces(line)] if newline else []
        self._rest = rest
        while len(rest) > LINE_BYTES_MAX:
            end = _cut(rest)
            lines.append(bytes(rest[:end]))
            del rest[:end]
        return [line.decode(errors="replace") for line in lines]

    def finish(self) -> list[str]:
        """The last line, if it was not ended."""
        lines, self._rest = [bytes(self._rest)] if self._rest else [], bytearray()
        return [line.decode(errors="replace") for line in lines]


def _pieces(line: bytearray) -> Iterator[bytes]:
    start = 0
    while len(line) - start > LINE_BYTES_MAX:
        end = start + _cut(line[start : start + LINE_BYTES_MAX + 1])
        yield bytes(line[start:end])
        start = end
    yield bytes(line[start:])


def _cut(line: bytearray) -> int:
    """Where to cut a line that is longer than LINE_BYTES_MAX: not inside a character, if it is text."""
    for end in range(LINE_BYTES_MAX, LINE_BYTES_MAX - 4, -1):
        if line[end] & 0xC0 != 0x80:  # the byte after the cut begins a character
            return end
    return LINE_BYTES_MAX


@dataclass(slots=True)
class _Worker:
    """What is known of one worker's output."""

    who: str
    pid: int = 0  # 0: being forked
    job: int | None = None  # whose driver wants its lines; None: nobody's
    early: list[tuple[int, bytes]] = field(default_factory=list)  # what it printed before its pid was known here
    lines: dict[int, Lines] = field(default_factory=lambda: {STDOUT: Lines(), STDERR: Lines()})
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))


@dataclass(slots=True)
class _Waiting:
    """Lines on their way to one driver."""

    batches: deque[tuple[LogLines, int]] = field(default_factory=deque)  # with its size
    size: int = 0
    dropped: int = 0
    dropped_at: tuple[str, int, int, str] = ("", 0, STDERR, "")  # who, pid, stream, file of the last dropped line

    def add(self, who: str, pid: int, stream: int, line: str) -> bool:
        """Put a line behind the others; False if there is no room."""
        size = len(line) + LINE_COST_CHARS
        if self.size + size > WAITING_CHARS_MAX:
            return False
        self.size += size
        if self.batches:
            last, last_size = self.batches[-1]
            if last_size < BATCH_CHARS and (last.who, last.pid, last.stream) == (who, pid, stream):
                last.lines.append(line)
                self.batches[-1] = last, last_size + size
                return True
        self.batches.append((LogLines(who, pid, stream, [line]), size))
        return True

    def notice(self) -> LogLines | None:
        """Words for the lines that were dropped, if any were."""
        if not self.dropped:
            return None
        who, pid, stream, path = self.dropped_at
        text = f"... {self.dropped} lines dropped, for this driver did not read them; they are in {path} and beside it"
        return LogLines(who, pid, stream, [text])


class LogCollector:
    """The output of all workers of the node."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._workers: dict[int, _Worker] = {}
        self._waiting: dict[int, _Waiting] = {}

    def __repr__(self) -> str:
        waiting = sum(waiting.size for waiting in self._waiting.values())
        return f"<LogCollector: {len(self._workers)} workers, {waiting} characters wait for drivers>"

    def started(self, client: int, pid: int, job: int | None) -> list[int]:
        """A worker runs. job: whose driver wants its lines; None: nobody does, only the files. Answers as `feed`."""
        worker = self._worker(client)
        worker.pid, worker.job = pid, job
        early, worker.early = worker.early, []
        return [ready for stream, data in early for ready in self.feed(client, stream, data)][:1]

    def named(self, client: int, who: str) -> None:
        """From now on it runs this task or actor."""
        self._worker(client).who = who

    def feed(self, client: int, stream: int, data: bytes) -> list[int]:
        """Bytes that it printed on `stream`, STDOUT or STDERR. The job whose driver may now `take` lines, if any."""
        worker = self._worker(client)
        if not worker.pid:
            worker.early.append((stream, data))
            return []
        self._sink.append(_file_name(client, worker.pid, stream), data)
        return self._hand_on(client, worker, stream, worker.lines[stream].feed(data))

    def came(self, job: int, who: str, pid: int, stream: int, lines: list[str]) -> None:
        """Lines of a worker of another machine, for the driver of this job. Call `take` for it."""
        waiting = self._waiting.setdefault(job, _Waiting())
        for count, line in enumerate(lines):
            if waiting.dropped or not waiting.add(who, pid, stream, line):
                waiting.dropped += len(lines) - count
                waiting.dropped_at = (who, pid, stream, "the files of its node")
                break

    def finish(self, client: int) -> str:
        """It has ended and all its bytes are here; the last lines of its stderr. Call `take` for its job."""
        worker = self._worker(client)
        if not worker.pid:
            self.started(client, -1, None)  # it died before anybody knew its pid, and may have said why
        for stream, lines in worker.lines.items():
            self._hand_on(client, worker, stream, lines.finish())
            self._sink.end(_file_name(client, worker.pid, stream))
        tail = self.tail(client)
        del self._workers[client]
        return tail

    def tail(self, client: int) -> str:
        """The last lines of its stderr so far; "" if it wrote none."""
        worker = self._workers.get(client)
        text = "\n".join(worker.tail) if worker else ""
        return text if len(text) <= TAIL_CHARS else "…" + text[1 - TAIL_CHARS :]

    def take(self, job: int) -> LogLines | None:
        """Lines for the job's driver, to be sent now; None: no more. Call it only while its connection takes bytes."""
        waiting = self._waiting.get(job)
        if waiting is None:
            return None
        if not waiting.batches:
            del self._waiting[job]
            return waiting.notice()
        batch, size = waiting.batches.popleft()
        waiting.size -= size
        return batch

    def job_ended(self, job: int) -> None:
        """Its driver is gone: nobody wants its lines any more; files go on."""
        self._waiting.pop(job, None)
        for worker in self._workers.values():
            if worker.job == job:
                worker.job = None

    def _worker(self, client: int) -> _Worker:
        """What is known of it; the pipe of a worker may be read before the message that it was forked."""
        if client not in self._workers:
            self._workers[client] = _Worker(f"worker {client}")
        return self._workers[client]

    def _hand_on(self, client: int, worker: _Worker, stream: int, lines: list[str]) -> list[int]:
        if stream == STDERR:
            worker.tail.extend(line[-TAIL_CHARS:] for line in lines[-TAIL_LINES:])
        if worker.job is None or not lines:
            return []
        waiting = self._waiting.setdefault(worker.job, _Waiting())
        for count, line in enumerate(lines):
            # Once lines are lost, more are lost until the driver has read all: one gap and one notice, not many.
            if waiting.dropped or not waiting.add(worker.who, worker.pid, stream, line):
                waiting.dropped += len(lines) - count
                path = self._sink.path(_file_name(client, worker.pid, stream))
                waiting.dropped_at = (worker.who, worker.pid, stream, path)
                break
        return [worker.job]


def _file_name(client: int, pid: int, stream: int) -> str:
    return f"worker-{client}-{pid}.{SUFFIXES[stream]}"


class LogFiles:
    """The files in a session's folder. A full disk loses output, and says so once; it never hurts the node."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._open: dict[str, tuple[int, int]] = {}  # name -> descriptor, size
        self._ended: deque[str] = deque()
        self._failed = False

    def path(self, name: str) -> str:
        """Where the file of this name lies."""
        return os.path.join(self._folder, name)

    def append(self, name: str, data: bytes) -> None:
        """Put it at the end of the file, in the next one if this is full."""
        try:
            fd, size = self._open.get(name) or self._create(name)
            if size and size + len(data) > FILE_BYTES_MAX:
                self._close(name)
                self._rotate(name)
                fd, size = self._create(name)
            self._open[name] = (fd, size + len(data))
            while data:
                data = data[os.write(fd, data) :]
        except OSError as error:
            if not self._failed:
                log.warning("output of workers is lost, for %s cannot be written: %s", self.path(name), error.strerror)
            self._failed = True

    def end(self, name: str) -> None:
        """Nothing more will come. Of files that nobody writes to any more the oldest are deleted."""
        if name not in self._open:
            return
        self._close(name)
        self._ended.append(name)
        if len(self._ended) > ENDED_FILES_MAX:
            oldest = self._ended.popleft()
            for suffix in ("", *(f".{number}" for number in range(1, FILE_BACKUPS + 1))):
                _unlink(self.path(oldest) + suffix)

    def close(self) -> None:
        """Close what is open."""
        for name in list(self._open):
            self._close(name)

    def _create(self, name: str) -> tuple[int, int]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW  # tasks may put links there
        self._open[name] = os.open(self.path(name), flags, 0o600), 0
        return self._open[name]

    def _close(self, name: str) -> None:
        fd, _ = self._open.pop(name)
        os.close(fd)

    def _rotate(self, name: str) -> None:
        """name -> name.1 -> name.2 -> name.3 -> gone."""
        names = [self.path(name), *(f"{self.path(name)}.{number}" for number in range(1, FILE_BACKUPS + 1))]
        for newer, older in reversed(list(pairwise(names))):
            if os.path.exists(newer):
                os.replace(newer, older)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
