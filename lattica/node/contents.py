"""Contents on this node's disk: each a file that has the name of what is in it, whole or not there at all.

    put      bytes that are at hand: named at once, written by a thread
    Draft    bytes that come in pieces: written as they come, named at the end

Files are verified when they are read whole, so damage is noticed before anybody uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import mmap
import os
from collections.abc import Iterable
from itertools import count

from lattica.objectstore.cid import cid_named, cid_text, manifest_of

log = logging.getLogger(__name__)
DISK_LEFT_BYTES = 256 << 20
"""Of the disk's free space, for everybody else: a node whose disk is full writes no table and no log."""
_numbers = count(1)


class Draft:
    """A content that comes in pieces. Its methods are slow: call them in threads, one at a time."""

    def __init__(self, folder: str, size: int) -> None:
        """size: of all of it. Raises OSError, as the others do."""
        check_room(folder, size)
        self._folder = folder
        self._path = os.path.join(folder, f"{next(_numbers)}.draft.new")
        self._file = open(self._path, "wb")

    def write(self, pieces: Iterable[bytes]) -> None:
        """Some more of it."""
        self._file.writelines(pieces)

    def named(self) -> bytes:
        """The CID of what has been written."""
        self._file.flush()
        return _cid_of_file(self._path)

    def keep(self, content: bytes) -> None:
        """It is whole: from now on it is there, through a loss of power too."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._path, os.path.join(self._folder, cid_text(content)))

    def drop(self) -> None:
        """It is not wanted; nothing, if it was kept."""
        self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)


class Contents:
    """See the module."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._loop = asyncio.get_running_loop()
        self.sizes: dict[str, int] = {}  # file -> bytes
        self.total_bytes = 0
        self._unwritten: dict[bytes, bytes] = {}  # until they are on disk
        self._writes: dict[bytes, asyncio.Future[None]] = {}
        os.makedirs(folder, mode=0o700, exist_ok=True)
        for entry in os.scandir(folder):
            if entry.name.endswith(".new"):
                os.unlink(entry.path)
            else:
                self._added(entry.name, entry.stat().st_size)

    def __repr__(self) -> str:
        return f"<Contents: {len(self.sizes)}, {self.total_bytes} bytes>"

    def __contains__(self, content: bytes) -> bool:
        return cid_text(content) in self.sizes

    def size(self, content: bytes) -> int:
        """Of what is here; 0 for what is not."""
        return self.sizes.get(cid_text(content), 0) if content else 0

    # -- in

    def put(self, data: bytes) -> bytes:
        """It is here from now on. Its CID, binary."""
        content = cid_named(manifest_of(data))
        name = cid_text(content)
        if name not in self.sizes:
            self._added(name, len(data))
            self._unwritten[content] = data
            done = self._writes[content] = self._loop.run_in_executor(None, _write, self.folder, name, data)
            done.add_done_callback(lambda future: self._written(content, future))
        return content

    async def written(self, content: bytes) -> bool:
        """Wait until it is on disk; whether it is."""
        if (done := self._writes.get(content)) is not None:
            await asyncio.wait([done])
        return content in self

    def _written(self, content: bytes, done: asyncio.Future[None]) -> None:
        self._writes.pop(content, None)
        self._unwritten.pop(content, None)
        if not done.cancelled() and (error := done.exception()) is not None:
            log.warning("what a restart needs cannot be kept on disk: %s", error)
            self.forget(cid_text(content))

    async def take(self, draft: Draft, content: bytes, size: int) -> None:
        """A draft is whole, and has this name. Raises OSError."""
        await self._loop.run_in_executor(None, draft.keep, content)
        if cid_text(content) not in self.sizes:
            self._added(cid_text(content), size)

    def _added(self, name: str, size: int) -> None:
        self.sizes[name] = size
        self.total_bytes += size

    # -- out

    async def read(self, content: bytes) -> bytes | None:
        """All of it; None if it is not here, or damaged."""
        if (data := self._unwritten.get(content)) is not None:
            return data
        if content not in self:
            return None
        try:
            data = await self._loop.run_in_executor(None, _read, self._path(content), 0, -1)
        except OSError as error:
            log.warning("what a restart needs cannot be read: %s", error)
            return None
        return data if cid_named(manifest_of(data)) == content else None

    async def piece(self, content: bytes, offset: int, size: int) -> bytes | None:
        """At most `size` bytes from there on, not verified; None if it is not here."""
        if (data := self._unwritten.get(content)) is not None:
            return data[offset : offset + size]
        if content not in self:
            return None
        try:
            return await self._loop.run_in_executor(None, _read, self._path(content), offset, size)
        except OSError as error:
            log.warning("what a restart needs cannot be read: %s", error)
            return None

    async def whole(self, content: bytes) -> bool:
        """Whether it is on this disk, and undamaged; what is damaged is forgotten."""
        if not await self.written(content):
            return False
        try:
            if await self._loop.run_in_executor(None, _cid_of_file, self._path(content)) == content:
                return True
        except OSError as error:
            log.warning("what a restart needs cannot be read: %s", error)
        self.forget(cid_text(content))
        return False

    def open(self, content: bytes) -> int:
        """A descriptor to read it by, of what `whole` has found. Raises OSError."""
        return os.open(self._path(content), os.O_RDONLY | os.O_CLOEXEC)

    def forget(self, name: str) -> None:
        """Delete this file."""
        self.total_bytes -= self.sizes.pop(name, 0)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.folder, name))

    def _path(self, content: bytes) -> str:
        return os.path.join(self.folder, cid_text(content))


def check_room(folder: str, size: int) -> None:
    """Raises OSError if the disk would be too full with so much more."""
    found = os.statvfs(folder)
    left = found.f_bavail * found.f_frsize
    if left - size < DISK_LEFT_BYTES:
        raise OSError(
            errno.ENOSPC, f"the disk has {left >> 20} MiB left, and {DISK_LEFT_BYTES >> 20} stay free", folder
        )


def _write(folder: str, name: str, data: bytes) -> None:
    check_room(folder, len(data))
    path = os.path.join(folder, name)
    with open(f"{path}.new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


def _read(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def _cid_of_file(path: str) -> bytes:
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return cid_named(manifest_of(b""))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            return cid_named(manifest_of(view))
