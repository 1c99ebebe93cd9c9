"""Folders as bytes: what a job's script needs, packed here, kept by the hash of its bytes, unpacked on another machine.

    pack(folder)            Packed(cid, data): equal folders give equal bytes, whoever packs them, and when
    unpack(data, folder)    the files again
    Shelf(folder)           packages on disk, by CID; those that nobody asked for in a long time go

A package is a tar of regular files, folders and links that stay inside, sorted, without times and owners, through gzip.
What is unpacked came from another machine: no name leads out of the folder, and no byte is written beyond the limit.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from lattica.errors import ConfigError, RemoteProtocolError
from lattica.files import remove
from lattica.objectstore.cid import cid_of

if TYPE_CHECKING:
    import tarfile

    from pathspec import GitIgnoreSpec

PACKAGE_MAX_BYTES = 100 << 20
"""Of the files in a folder. More: it takes seconds to reach each machine; data belongs into objects or on disks."""
PACKED_MAX_BYTES = PACKAGE_MAX_BYTES + (20 << 20)  # with a header of 512 bytes and more for each file
FILES_MAX = 20_000
DEPTH_MAX = 64  # folders within each other: each file of a stranger's could have made two thousand
SCRIPTS_MAX_BYTES, SCRIPTS_MAX = 10 << 20, 1000
"""Of what is taken along unasked: the modules beside a script."""
EXCLUDED = (
    ".git", ".hg", ".svn", ".venv", "venv", "__pycache__", "*.pyc", "node_modules", ".mypy_cache", ".pytest_cache",
    ".ruff_cache", ".ipynb_checkpoints", ".DS_Store",
)  # fmt: skip
"""Names that no package has: they are large, of one machine, or made again."""
IGNORE_FILES = (".gitignore", ".rayignore", ".latticaignore")
"""What they name in a folder, and below it, is left out of packages, as Ray does."""
INCLUDE_VARIABLE = "LATTICA_INCLUDE_GITIGNORED"
"""Environment variable; where it is 1, what .gitignore files name is packed nevertheless."""
IGNORE_FILE_MAX_BYTES = 1 << 20
SHELF_BYTES = 1 << 30  # of packages that one node keeps
CID_CHARS = r"[a-z2-7]{59,61}"
LARGEST_SHOWN = 3
LEVEL = 1  # of gzip: 100 MB/s


@dataclass(frozen=True, slots=True)
class Packed:
    """A folder's bytes, and their CID as text."""

    cid: str
    data: bytes


def pack(folder: str, excludes: Sequence[str] = (), *, scripts: bool = False) -> Packed:
    """The package of this folder, or zip file. excludes: patterns as in a .gitignore file, of what is left out beside
    EXCLUDED. scripts: only Python modules, and no folder that is none of theirs.

    Raises ConfigError if it is too large, or holds what cannot travel.
    """
    if folder.endswith(".zip") and os.path.isfile(folder):
        return _of_zip(folder)
    return _written(_found(folder, excludes, scripts=scripts))


def _of_zip(path: str) -> Packed:
    """What is in a zip file or a wheel, as a package."""
    import tempfile
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            if sum(entry.file_size for entry in archive.infolist()) > PACKAGE_MAX_BYTES:
                raise ConfigError(f"{path} holds more than {PACKAGE_MAX_BYTES >> 20} MiB")
            archive.extractall(folder)
            return _written(_found(folder, ()))
    except (zipfile.BadZipFile, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _found(folder: str, excludes: Sequence[str], *, scripts: bool = False) -> list[tuple[str, str, os.stat_result]]:
    if not os.path.isdir(folder):
        raise ConfigError(f"{folder} is no folder", do_next="name the folder that holds your script and its modules")
    limit, most = (SCRIPTS_MAX_BYTES, SCRIPTS_MAX) if scripts else (PACKAGE_MAX_BYTES, FILES_MAX)
    found, size = [], 0
    sizes: list[tuple[int, str]] = []
    for name, path, status in _walk(folder, "", _Left([*EXCLUDED, *excludes], ignore_files=not scripts), scripts):
        found.append((name, path, status))
        if stat.S_ISREG(status.st_mode):
            size += status.st_size
            sizes.append((status.st_size, name))
        if size > limit or len(found) > most:
            _too_large(folder, sizes, limit, most, size)
    return found


def pack_module(path: str, excludes: Sequence[str] = ()) -> Packed:
    """The package of a folder that holds this module alone: a file, or a folder that is imported by its name; or of
    what is in a wheel.

    Raises ConfigError as `pack` does.
    """
    if path.endswith(".whl") and os.path.isfile(path):
        return _of_zip(path)
    if os.path.isfile(path):
        return _written([(os.path.basename(path), path, os.stat(path))])
    name = os.path.basename(path.rstrip("/"))
    found = [(os.path.join(name, inner), inside, status) for inner, inside, status in _found(path, excludes)]
    return _written([(name, path, os.stat(path)), *found])


def _written(found: Sequence[tuple[str, str, os.stat_result]]) -> Packed:
    import gzip  # with tarfile 9 ms, which the start of a node has not
    import tarfile

    out = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=out, compresslevel=LEVEL, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path, status in found:
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755 if stat.S_ISDIR(status.st_mode) or status.st_mode & 0o100 else 0o644
            if stat.S_ISLNK(status.st_mode):
                entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path)
                tar.addfile(entry)
            elif stat.S_ISDIR(status.st_mode):
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            else:
                with open(path, "rb") as file:
                    data = file.read(PACKAGE_MAX_BYTES)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    data = out.getvalue()
    return Packed(cid_of(data), data)


class _Left:
    """What is left out: by patterns, and by the ignore files in the folders above, of which the deepest that says
    anything of a path decides."""

    def __init__(self, patterns: Sequence[str], *, ignore_files: bool) -> None:
        from pathspec import GitIgnoreSpec

        self._patterns = GitIgnoreSpec.from_lines(patterns)
        self._ignored: list[tuple[str, GitIgnoreSpec]] = []  # (folder below which it holds, what it says)
        skipped = {IGNORE_FILES[0]} if os.environ.get(INCLUDE_VARIABLE) == "1" else set()
        self._names = [name for name in IGNORE_FILES if name not in skipped] if ignore_files else []

    def enter(self, folder: str, below: str) -> None:
        """The walk enters this folder: read what it ignores."""
        from pathspec import GitIgnoreSpec

        while self._ignored and not f"{below}/".startswith(self._ignored[-1][0]):
            self._ignored.pop()
        for name in self._names:
            try:
                with open(os.path.join(folder, below, name), encoding="utf-8") as file:
                    lines = file.read(IGNORE_FILE_MAX_BYTES).splitlines()
            except (OSError, UnicodeDecodeError):
                continue
            self._ignored.append((f"{below}/" if below else "", GitIgnoreSpec.from_lines(lines)))

    def out(self, name: str) -> bool:
        """Whether this path is left out; a folder's ends in a slash."""
        if self._patterns.match_file(name):
            return True
        for prefix, spec in reversed(self._ignored):
            if name.startswith(prefix) and (said := spec.check_file(name[len(prefix) :]).include) is not None:
                return said
        return False


def _walk(folder: str, below: str, left: _Left, scripts: bool) -> Iterator[tuple[str, str, os.stat_result]]:
    """(name in the package, path, status) of all that is packed, sorted."""
    left.enter(folder, below)
    with os.scandir(os.path.join(folder, below)) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        name = os.path.join(below, entry.name)
        if left.out(f"{name}/" if entry.is_dir(follow_symlinks=False) else name):
            continue
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode) and not _stays_inside(folder, name):
            if scripts or not os.path.exists(entry.path):
                continue
            status = entry.stat()  # a file from elsewhere is copied
            if stat.S_ISDIR(status.st_mode):
                raise ConfigError(
                    f"{entry.path} is a link to a folder outside of {folder}, which does not travel",
                    do_next=f"exclude {name!r}, or put the folder itself there",
                )
        if stat.S_ISDIR(status.st_mode):
            if scripts and not _is_package(entry.path):
                continue
            yield name, entry.path, status
            yield from _walk(folder, name, left, scripts)
        elif (stat.S_ISREG(status.st_mode) and (not scripts or name.endswith(".py"))) or (
            stat.S_ISLNK(status.st_mode) and not scripts
        ):
            yield name, entry.path, status


def _is_package(path: str) -> bool:
    """Whether modules are imported from this folder: Python's own names, and one of its files is a module."""
    if not os.path.basename(path).isidentifier():
        return False
    try:
        return any(name.endswith(".py") for name in os.listdir(path))
    except OSError:
        return False


def _stays_inside(folder: str, name: str) -> bool:
    target = os.readlink(os.path.join(folder, name))
    whole = os.path.normpath(os.path.join(os.path.dirname(name), target))
    return not os.path.isabs(target) and whole != ".." and not whole.startswith("../")


def _too_large(folder: str, sizes: list[tuple[int, str]], limit: int, most: int, size: int) -> NoReturn:
    largest = ", ".join(
        f"{name} ({size / 2**20:.1f} MiB)" for size, name in sorted(sizes, reverse=True)[:LARGEST_SHOWN]
    )
    what = f"more than {most:,} files" if size <= limit else f"more than {limit >> 20} MiB"
    raise ConfigError(
        f"{folder} has {what}; the largest so far: {largest}",
        do_next="exclude what the script does not need, or keep data elsewhere and read it by its path",
    )


# -- back again ------------------------------------------------------------------------------------------------------


def unpack(data: bytes, folder: str) -> None:
    """Write the package's files into this folder, which is made. Raises RemoteProtocolError if it is none of ours."""
    import tarfile
    import zlib

    unzip = zlib.decompressobj(wbits=31)
    try:
        plain = unzip.decompress(data, PACKED_MAX_BYTES + 1)
        if len(plain) > PACKED_MAX_BYTES or not unzip.eof:
            raise RemoteProtocolError("a package is larger than any of ours")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
            for count, entry in enumerate(tar):
                if count > FILES_MAX:
                    raise RemoteProtocolError("a package has more files than any of ours")
                if entry.sparse is not None or entry.size > len(plain):  # its holes would be written as zeros
                    raise RemoteProtocolError("a package has a file that is larger than the package")
                _write(tar, entry, folder)
    except (zlib.error, tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise RemoteProtocolError(f"a package cannot be read: {error}") from error


def _write(tar: tarfile.TarFile, entry: tarfile.TarInfo, folder: str) -> None:
    parts = entry.name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in entry.name or len(parts) > DEPTH_MAX:
        raise RemoteProtocolError(f"a package has a file named {entry.name[:80]!r}")
    for depth in range(1, len(parts)):  # what lies below a link would be written elsewhere
        if os.path.islink(os.path.join(folder, *parts[:depth])):
            raise RemoteProtocolError("a package has a file below a link")
    path = os.path.join(folder, *parts)
    if entry.isdir():
        os.makedirs(path, mode=0o755, exist_ok=True)
    elif entry.issym():
        whole = os.path.normpath(os.path.join(os.path.dirname(entry.name), entry.linkname))
        if os.path.isabs(entry.linkname) or whole == ".." or whole.startswith("../"):
            raise RemoteProtocolError(f"a package has a link that leads out: {entry.name[:80]!r}")
        os.symlink(entry.linkname, path)
    elif entry.isreg():
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o755 if entry.mode & 0o100 else 0o644)
        file = tar.extractfile(entry)
        assert file is not None, "a regular file has bytes"
        with open(fd, "wb") as out:
            out.write(file.read())
    else:
        raise RemoteProtocolError(f"a package has {entry.name[:80]!r}, which is neither file, folder nor link")


class Shelf:
    """Packages in a folder, one file each, named by its CID. Bytes are compared with the name whenever they are read:
    others of this user may write there."""

    def __init__(self, folder: str, max_bytes: int = SHELF_BYTES) -> None:
        self.folder, self._max_bytes = folder, max_bytes

    def __repr__(self) -> str:
        return f"<Shelf {self.folder}: {len(self.cids())} packages>"

    def cids(self) -> list[str]:
        """What is there, the longest unread first."""
        try:
            with os.scandir(self.folder) as entries:
                found = [
                    (entry.stat().st_mtime, entry.name) for entry in entries if re.fullmatch(CID_CHARS, entry.name)
                ]
        except OSError:
            return []
        return [name for _, name in sorted(found)]

    def put(self, packed: Packed, keep: Sequence[str] = ()) -> None:
        """Keep it; others go if there is no room for all, but for those in `keep`."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        path = self._path(packed.cid)
        draft = f"{path}.{os.getpid()}.new"
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(packed.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        self._make_room({packed.cid, *keep})

    def get(self, cid: str) -> bytes | None:
        """Its bytes; None if it is not here, or is damaged."""
        path = self._path(cid)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return None
        with open(fd, "rb") as file:
            data = file.read(PACKED_MAX_BYTES + 1)
        if len(data) > PACKED_MAX_BYTES or cid_of(data) != cid:
            remove(path)
            return None
        os.utime(path)
        return data

    def _path(self, cid: str) -> str:
        if not re.fullmatch(CID_CHARS, cid):
            raise RemoteProtocolError(f"{cid[:80]!r} is no name of a package")
        return os.path.join(self.folder, cid)

    def _make_room(self, keep: set[str]) -> None:
        sizes = {}
        for cid in self.cids():
            try:
                sizes[cid] = os.stat(self._path(cid)).st_size
            except OSError:
                continue
        over = sum(sizes.values()) - self._max_bytes
        for cid, size in sizes.items():
            if over <= 0:
                return
            if cid not in keep:
                remove(self._path(cid))
                over -= size
