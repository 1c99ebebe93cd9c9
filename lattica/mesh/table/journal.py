"""The table on disk: a snapshot of its rows, and a journal of those that came since.

    table.snapshot, table.journal       a header, then records; in a snapshot an empty record says that this was all
    header      "lattica table\\0" | u16 version | mesh id (32) | 8 bytes of the BLAKE3 of all that
    record      u32 length | 8 bytes of the BLAKE3 of the row | the row                        little-endian

Rules of this file. Rows are merged by whoever reads them, so one that stands in both files, or twice, does no harm.
Both files are replaced by rename, when what replaces them is on disk, the snapshot first: whatever the journal holds is
in the new snapshot, or still in the journal. A file is only ever appended to, and a write that failed, or an fsync
(after which Linux may take lost pages for written), ends that: nothing is appended until a new snapshot and journal are
made. What cannot be read at the end of a journal was being written when the machine stopped; it is cut off.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import BinaryIO

from blake3 import blake3

from lattica.errors import ConfigError, RemoteProtocolError
from lattica.files import remove
from lattica.mesh.table.rows import ROW_MAX_BYTES, Row, read_row

log = logging.getLogger(__name__)

COMPACT_MIN_BYTES = 1 << 20
"""A journal shorter than this is read in some 20 ms, and is left alone."""
_MAGIC = b"lattica table\0"
_VERSION = 1
_HEADER = struct.Struct("<14sH32s")
_RECORD = struct.Struct("<I8s")
_HASH_BYTES = 8
_CHUNK_BYTES = 1 << 20  # written at once
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


class Journal:
    """The two files of one folder. Its methods block, may be called from any thread, and take turns.

    Merge a row before you append it: then whatever was appended when `compact` begins is among the rows given to it.
    """

    def __init__(self, folder: str, mesh: bytes) -> None:
        """Open or create them, and cut off what a crash has left at the end of the journal. mesh: its id; the files of
        another mesh, or in another format, are set aside as `table.*.aside`. The caller holds the folder's lock.

        Raises ConfigError if the files cannot be read or written.
        """
        self._folder = folder
        self._header = _header(mesh)
        self._snapshot = os.path.join(folder, "table.snapshot")
        self._journal = os.path.join(folder, "table.journal")
        self._turn = threading.Lock()
        self._fd = -1
        self._size = self._snapshot_size = 0
        self._is_sound = False  # whether what is appended now can be read again
        self._wants_snapshot = False
        with self._reported():
            remove(_draft(self._snapshot))
            remove(_draft(self._journal))
            if self._is_ours(self._snapshot):
                self._snapshot_size = os.stat(self._snapshot).st_size
            if self._is_ours(self._journal):
                self._fd = os.open(self._journal, os.O_RDWR | os.O_APPEND | _FLAGS)
                self._cut()
                self._is_sound = True
            else:
                self._new_journal()

    def __repr__(self) -> str:
        return f"<Journal {self._folder}: {self._size} bytes after a snapshot of {self._snapshot_size}>"

    @property
    def wants_compaction(self) -> bool:
        """Whether to call `compact` soon: the journal is longer than the snapshot, or one of them is broken."""
        is_long = self._size > max(self._snapshot_size, COMPACT_MIN_BYTES)
        return is_long or self._wants_snapshot or not self._is_sound

    def rows(self) -> Iterator[Row]:
        """All that is on disk, older ones first; to be merged, before anything is appended.

        Of a damaged snapshot come the rows before the damage. Signatures are not looked at: the files are ours.
        """
        refused = 0
        with self._reported():
            for data in self._stored():
                try:
                    row = read_row(data)
                except RemoteProtocolError:
                    refused += 1
                else:
                    yield row
        if refused:
            log.warning("%d rows in %s are none by the rules of this release; they are left out", refused, self._folder)

    def append(self, rows: Iterable[Row], sync: bool) -> None:
        """Add them. sync: they are durable when this returns, and all earlier ones too; for rows of our own, of which
        nobody may hear before. Raises ConfigError, and does so after any failure until `compact` has succeeded."""
        data = b"".join([_record(row.data) for row in rows])
        with self._turn, self._reported():
            if not self._is_sound:
                raise OSError(5, "an earlier write failed")
            self._is_sound = False
            _write(self._fd, data)
            if sync:
                os.fsync(self._fd)
            self._size += len(data)
            self._is_sound = True

    def compact(self, rows: Iterable[Row]) -> None:
        """Write a snapshot of `rows` and begin a new journal; both are durable when this returns.

        rows: all that were appended or read and that still count. Raises ConfigError; the old files count then, or the
        new snapshot and the old journal.
        """
        with self._turn, self._reported():
            size = self._replace(self._snapshot, rows)
            self._snapshot_size, self._wants_snapshot = size, False
            self._new_journal()

    def close(self) -> None:
        """Make what was appended durable, if it can be, and let go of the files."""
        with self._turn, self._reported():
            if self._fd < 0:
                return
            try:
                if self._is_sound:
                    os.fsync(self._fd)
            finally:
                os.close(self._fd)
                self._fd, self._is_sound = -1, False

    # -- reading

    def _stored(self) -> Iterator[bytes]:
        """The rows' bytes: of the snapshot, then of the journal."""
        if self._snapshot_size:
            with open(os.open(self._snapshot, os.O_RDONLY | _FLAGS), "rb") as file:
                file.seek(len(self._header))
                ended = False
                for data in _records(file):
                    if ended := not data:
                        break
                    yield data
            if not ended:
                self._wants_snapshot = True
                log.warning("%s is damaged; the rows before that are read, others come from peers", self._snapshot)
        with open(os.open(self._journal, os.O_RDONLY | _FLAGS), "rb") as file:
            file.seek(len(self._header))
            yield from takewhile(len, _records(file))

    def _is_ours(self, path: str) -> bool:
        """Whether there is such a file of this mesh and format. Any other is set aside, and the log says so."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _FLAGS)
        except FileNotFoundError:
            return False
        with open(fd, "rb") as file:
            os.fchmod(fd, 0o600)
            found = file.read(len(self._header))
        if found == self._header:
            return True
        os.replace(path, f"{path}.aside")
        log.warning("%s %s; it is set aside as %s.aside", path, _what(found), os.path.basename(path))
        return False

    def _cut(self) -> None:
        """Leave nothing after the last record of the journal that can be read."""
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(len(self._header))
            self._size = len(self._header) + sum(_RECORD.size + len(data) for data in takewhile(len, _records(file)))
        surplus = os.fstat(self._fd).st_size - self._size
        if surplus:
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
            log.warning("the last %d bytes of %s cannot be read, and are cut off", surplus, self._journal)

    # -- writing

    def _new_journal(self) -> None:
        """Replace the journal by an empty one. Until that is durable nothing may be appended to either."""
        self._is_sound = False
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._size = self._replace(self._journal, None)
        self._fd = os.open(self._journal, os.O_RDWR | os.O_APPEND | _FLAGS)
        self._is_sound = True

    def _replace(self, path: str, rows: Iterable[Row] | None) -> int:
        """Put a file there of these rows and an end, or of nothing but a header; its size. It is durable then."""
        draft = _draft(path)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o600)
        try:
            os.fchmod(fd, 0o600)
            size, chunk = 0, bytearray(self._header)
            for row in rows or ():
                chunk += _record(row.data)
                if len(chunk) >= _CHUNK_BYTES:
                    size += _write(fd, chunk)
                    chunk.clear()
            if rows is not None:
                chunk += _record(b"")
            size += _write(fd, chunk)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(draft, path)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # else the next rename may be on disk without this one
        finally:
            os.close(folder)
        return size

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"the table in {self._folder} cannot be read or written: {error.strerror}",
                do_next="see to it that you own that folder and that the disk has room",
            ) from error


def _draft(path: str) -> str:
    return f"{path}.new"


def _header(mesh: bytes) -> bytes:
    data = _HEADER.pack(_MAGIC, _VERSION, mesh)
    return data + blake3(data).digest(_HASH_BYTES)


def _what(header: bytes) -> str:
    """What is wrong with the file that begins like this."""
    data, hash = header[: _HEADER.size], header[_HEADER.size :]
    if len(data) < _HEADER.size or blake3(data).digest(_HASH_BYTES) != hash:
        return "is damaged at its beginning"
    magic, version, mesh = _HEADER.unpack(data)
    if (magic, version) != (_MAGIC, _VERSION):
        return f"is written by another release (version {version})"
    return f"is of another mesh ({mesh[:4].hex()})"


def _record(data: bytes) -> bytes:
    return _RECORD.pack(len(data), blake3(data).digest(_HASH_BYTES)) + data


def _records(file: BinaryIO) -> Iterator[bytes]:
    """The records from here on, until one that is not whole, or not what was written."""
    while len(head := file.read(_RECORD.size)) == _RECORD.size:
        length, hash = _RECORD.unpack(head)
        if length > ROW_MAX_BYTES:
            return
        data = file.read(length)
        if len(data) < length or blake3(data).digest(_HASH_BYTES) != hash:
            return
        yield data


def _write(fd: int, data: bytes | bytearray) -> int:
    """All of it, though `os.write` may write less. Its size."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])
        return done
