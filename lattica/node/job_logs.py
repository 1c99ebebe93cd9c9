"""What the scripts of submitted jobs print, in files of the node: the last bytes of each run, by their number.

    write(name, data)           at the end
    read(name, offset, most)    (data, where it ends); what is too old to be there is passed over

A run keeps between one and two files of FILE_BYTES; its bytes are numbered from its beginning, so who reads on by a
number misses nothing but what was dropped. The oldest runs go first.
"""

from __future__ import annotations

import os
import re

from lattica.files import remove

FILE_BYTES = 16 << 20
RUNS_MAX = 100


class JobLogs:
    """See the module."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._open: dict[str, tuple[int, int, int]] = {}  # name -> descriptor, number of its first byte, bytes in it
        self._ended: dict[str, int] = {}  # name -> number of the first byte of its file

    def write(self, name: str, data: bytes) -> None:
        """Put it at the end; the disk may be full, which costs output alone."""
        if name not in self._open:
            self._begin(name)
        fd, base, size = self._open[name]
        if size + len(data) > FILE_BYTES and size:
            os.close(fd)
            os.replace(self.path(name), self.path(name) + ".1")
            fd, base, size = self._create(name), base + size, 0
        try:
            written = os.write(fd, data)
        except OSError:
            written = 0
        self._open[name] = fd, base, size + written

    def end(self, name: str) -> None:
        """It prints no more."""
        fd, base, _ = self._open.pop(name, (-1, 0, 0))
        if fd >= 0:
            os.close(fd)
            self._ended[name] = base

    def close(self) -> None:
        for name in list(self._open):
            self.end(name)

    def path(self, name: str) -> str:
        """Where it lies."""
        return os.path.join(self._folder, f"{name}.log")

    def read(self, name: str, offset: int, most: int) -> tuple[bytes, int]:
        """Bytes from this number on, and the number of the next one."""
        path = self.path(name)
        older = _size(path + ".1")
        base = self._open[name][1] if name in self._open else self._ended.get(name, older)
        if offset < base:
            offset = max(offset, base - older)
            data = _read(path + ".1", older - (base - offset), most)
        else:
            data = _read(path, offset - base, most)
        return data, offset + len(data)

    def size(self, name: str) -> int:
        """The number that the next byte will have."""
        if name in self._open:
            return self._open[name][1] + self._open[name][2]
        path = self.path(name)
        return self._ended.get(name, _size(path + ".1")) + _size(path)

    def _begin(self, name: str) -> None:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        with os.scandir(self._folder) as entries:
            runs = sorted((entry.stat().st_mtime, entry.path) for entry in entries if re.search(r"\.log$", entry.name))
        for _, path in runs[: max(len(runs) + 1 - RUNS_MAX, 0)]:
            remove(path)
            remove(path + ".1")
        self._open[name] = self._create(name), 0, 0

    def _create(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
        return os.open(self.path(name), flags, 0o600)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _read(path: str, at: int, most: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(max(at, 0))
            return file.read(most)
    except OSError:
        return b""
