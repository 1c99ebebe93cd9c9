"""Objects on disk: files of one or more objects each, written whole or not at all, and verified when they are read.

    header (64 bytes) · bytes · header · bytes ...

The header of an object names it, its size, how it is packed and the xxh3 of its bytes, and has a checksum of its own;
it is written after the bytes. A file gets its name when it is on disk (`fsync`): a disk that is full or broken often
says so only then, and until then the objects are in memory. What is here ends with the node, so nothing is asked of the
disk beyond that. Whatever becomes of a file, `read` gives the right bytes, or raises.

`Files` is what is asked of the operating system: tests put one in its place that loses, tears and refuses.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import xxhash
import zstandard

from lattica.errors import LatticaError, OutOfDiskError

MAGIC = b"LATSPILL"
HEADER = struct.Struct("<8s16sQQQB7x")
HEADER_BYTES = 64  # with a checksum of 8 bytes
CHUNK_BYTES = 4 << 20
"""Read, hashed and written at once: memory of this size per thread; other threads get the interpreter in between."""
SAMPLE_BYTES = 64 << 10
SAMPLES = 3
PACKED_SHARE = 0.75
"""If samples shrink to this or less, zstd pays: at level 1 it packs 300 to 600 MB/s a core, as fast as many disks."""
PACK_FROM_BYTES = 4096
KEPT_FREE = 0.05
"""Part of the disk that is left free: a full disk stops more than us."""
RESERVE_BYTES = 64 << 20
"""So much more may be written, of what the user allows, or half of what is left free, to make room for what comes back
from disk: a store that is full beside a full disk could not be read else."""
PUNCH_FLAGS = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, linux/falloc.h
PUNCH_FROM_BYTES = 64 << 10
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Files(Protocol):
    """As much of a file system as is needed. Everything raises OSError."""

    def create(self, path: str) -> int: ...
    def open(self, path: str) -> int: ...
    def write_at(self, fd: int, data: bytes | memoryview, at: int) -> int: ...
    def read_at(self, fd: int, size: int, at: int) -> bytes: ...
    def sync(self, fd: int) -> None: ...
    def close(self, fd: int) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def remove(self, path: str) -> None: ...
    def punch(self, path: str, at: int, size: int) -> None: ...
    def room(self, folder: str) -> tuple[int, int]: ...


class DiskFiles:
    """The operating system's."""

    def create(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def write_at(self, fd: int, data: bytes | memoryview, at: int) -> int:
        return os.pwrite(fd, data, at)

    def read_at(self, fd: int, size: int, at: int) -> bytes:
        return os.pread(fd, size, at)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def punch(self, path: str, at: int, size: int) -> None:
        """These bytes need not be kept any more."""
        import ctypes

        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.fallocate(fd, PUNCH_FLAGS, ctypes.c_int64(at), ctypes.c_int64(size)):
                raise OSError(ctypes.get_errno(), "punching a hole")
        finally:
            os.close(fd)

    def room(self, folder: str) -> tuple[int, int]:
        """(bytes that this user may still write, bytes of the disk)."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


class SpillFileError(LatticaError):
    """What was spilled cannot be read back: its file is gone, damaged, or the disk does not answer."""


class Record(msgspec.Struct, frozen=True, eq=False):
    """Where an object lies on disk. stored: bytes there."""

    object: bytes
    path: str
    at: int
    size: int
    stored: int
    digest: int
    packed: bool


class Part(msgspec.Struct, frozen=True):
    """An object to be written: `read(at, size)` gives its bytes."""

    object: bytes
    size: int
    read: Callable[[int, int], bytes]


class SpillFolder:
    """The files of one node. Threads may use it at once."""

    def __init__(self, path: str, files: Files, limit_bytes: int = 0) -> None:
        """limit_bytes: of all files together; 0: as much as leaves KEPT_FREE of the disk."""
        self.path, self._files, self.limit_bytes = path, files, limit_bytes
        self._lock = threading.Lock()
        self._count = 0
        self._in: dict[str, int] = {}  # file -> objects in it
        self._sizes: dict[str, int] = {}  # bytes of it, without those that were punched out
        self._coming = 0  # bytes of the files that are being written, at most
        self.bytes = 0

    def __repr__(self) -> str:
        return f"<SpillFolder {self.path}: {len(self._in)} files, {self.bytes >> 20} MiB>"

    def write(self, parts: Sequence[Part], *, urgent: bool = False) -> list[Record]:
        """Put these into a new file. urgent: as much as there is room for in the reserve. Raises OutOfDiskError if
        there is none, SpillFileError if it cannot be written; then nothing of it is left."""
        most = sum(part.size + HEADER_BYTES for part in parts)
        with self._lock:
            self._check_room(most, urgent=urgent)
            self._coming += most
            self._count += 1
            path = os.path.join(self.path, f"{self._count:08}")
        try:
            records = self._write(path, parts)
        except OSError as error:
            self._tidy(path)
            if error.errno in FULL:
                raise OutOfDiskError(f"the disk of {self.path} is full: {error.strerror}") from error
            raise SpillFileError(f"{self.path} cannot be written: {error.strerror or error}") from error
        except BaseException:
            self._tidy(path)
            raise
        finally:
            with self._lock:
                self._coming -= most
        with self._lock:
            self._in[path] = len(records)
            self._sizes[path] = sum(record.stored + HEADER_BYTES for record in records)
            self.bytes += self._sizes[path]
        return records

    def read(self, record: Record, into: Callable[[int, bytes], None]) -> None:
        """Give the object's bytes to `into(at, bytes)`, piece by piece. Only once this has returned are they known to
        be right. Raises SpillFileError."""
        try:
            fd = self._files.open(record.path)
            try:
                self._read(fd, record, into)
            finally:
                self._files.close(fd)
        except OSError as error:
            raise SpillFileError(f"{record.path} cannot be read: {error}") from error
        except zstandard.ZstdError as error:
            raise SpillFileError(f"{record.path} is damaged: {error}") from error

    def drop(self, records: Sequence[Record]) -> None:
        """Nobody needs these any more: files of which nothing is needed go."""
        gone = []
        with self._lock:
            for record in records:
                left = self._in[record.path] = self._in[record.path] - 1
                if not left:
                    del self._in[record.path]
                    self.bytes -= self._sizes.pop(record.path)
                    gone.append(record.path)
        for path in gone:
            self._tidy(path)
        for record in records:
            if record.path in self._in and record.stored >= PUNCH_FROM_BYTES:
                self._punch(record)

    def _punch(self, record: Record) -> None:
        """Of a file with others in it."""
        try:
            self._files.punch(record.path, record.at + HEADER_BYTES, record.stored)
        except OSError:  # this file system cannot: it goes with the file
            return
        with self._lock:
            if record.path in self._sizes:
                self._sizes[record.path] -= record.stored
                self.bytes -= record.stored

    # -- inside

    def _check_room(self, more: int, *, urgent: bool) -> None:
        limit_bytes = self.limit_bytes + RESERVE_BYTES * urgent
        if self.limit_bytes and self.bytes + self._coming + more > limit_bytes:
            raise OutOfDiskError(
                f"{self.path} holds {self.bytes >> 20} MiB of the {self.limit_bytes >> 20} MiB that may be spilled"
            )
        try:
            free, total = self._files.room(self.path)
        except OSError as error:
            raise SpillFileError(f"{self.path} does not answer: {error.strerror or error}") from error
        if free - self._coming - more < total * (KEPT_FREE / 2 if urgent else KEPT_FREE):
            raise OutOfDiskError(f"the disk of {self.path} has {free >> 20} of {total >> 20} MiB left")

    def _tidy(self, path: str) -> None:
        for name in (path, f"{path}.new"):
            try:
                self._files.remove(name)
            except OSError:  # it was never there; or it goes with the folder
                continue

    def _write(self, path: str, parts: Sequence[Part]) -> list[Record]:
        draft, records, at = f"{path}.new", list[Record](), 0
        fd = self._files.create(draft)
        try:
            for part in parts:
                record = self._put(fd, path, at, part)
                records.append(record)
                at += HEADER_BYTES + record.stored
            self._files.sync(fd)
        finally:
            self._files.close(fd)
        self._files.rename(draft, path)
        return records

    def _put(self, fd: int, path: str, at: int, part: Part) -> Record:
        packer = zstandard.ZstdCompressor(level=1).compressobj(size=part.size) if _packs(part) else None
        hasher, stored = xxhash.xxh3_64(), 0
        for begin in range(0, part.size, CHUNK_BYTES):
            piece = part.read(begin, min(CHUNK_BYTES, part.size - begin))
            hasher.update(piece)
            if packer is not None:
                piece = packer.compress(piece)
            stored += self._write_all(fd, piece, at + HEADER_BYTES + stored)
        if packer is not None:
            stored += self._write_all(fd, packer.flush(), at + HEADER_BYTES + stored)
        record = Record(part.object, path, at, part.size, stored, hasher.intdigest(), packer is not None)
        self._write_all(fd, _header(record), at)
        return record

    def _write_all(self, fd: int, data: bytes, at: int) -> int:
        view, done = memoryview(data), 0
        while done < len(view):
            wrote = self._files.write_at(fd, view[done:], at + done)
            if wrote <= 0:
                raise OSError(errno.EIO, "the disk takes no more bytes")
            done += wrote
        return done

    def _read(self, fd: int, record: Record, into: Callable[[int, bytes], None]) -> None:
        head = b""
        while len(head) < HEADER_BYTES:
            piece = self._files.read_at(fd, HEADER_BYTES - len(head), record.at + len(head))
            if not piece:
                break
            head += piece
        if head != _header(record):
            raise SpillFileError(f"{record.path} is damaged: the header is another one")
        unpacker = zstandard.ZstdDecompressor().decompressobj() if record.packed else None
        hasher, at, came = xxhash.xxh3_64(), 0, 0
        while came < record.stored:
            size = min(CHUNK_BYTES, record.stored - came)
            piece = self._files.read_at(fd, size, record.at + HEADER_BYTES + came)
            if not piece:
                raise SpillFileError(f"{record.path} is damaged: it ends too early")
            came += len(piece)
            if unpacker is not None:
                piece = unpacker.decompress(piece)
            if at + len(piece) > record.size:
                raise SpillFileError(f"{record.path} is damaged: it has more bytes than it should")
            if piece:
                hasher.update(piece)
                into(at, piece)
                at += len(piece)
        if at != record.size or hasher.intdigest() != record.digest:
            raise SpillFileError(f"{record.path} is damaged: its bytes are other ones")


def _header(record: Record) -> bytes:
    data = HEADER.pack(MAGIC, record.object, record.size, record.stored, record.digest, record.packed)
    return data + xxhash.xxh3_64_digest(data)


def _packs(part: Part) -> bool:
    """Whether samples of it shrink enough."""
    if part.size < PACK_FROM_BYTES:
        return False
    size = min(SAMPLE_BYTES, part.size // SAMPLES)
    samples = [part.read((part.size - size) * each // (SAMPLES - 1), size) for each in range(SAMPLES)]
    packed = sum(len(zstandard.ZstdCompressor(level=1).compress(sample)) for sample in samples)
    return packed <= PACKED_SHARE * size * SAMPLES
