"""What is read back from disk is right, or an error says that it is not, whatever the disk does."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import OutOfDiskError
from lattica.objectstore import spill_files
from lattica.objectstore.spill_files import DiskFiles, Part, Record, SpillFileError, SpillFolder
from tests.conftest import examples


def part(number: int, data: bytes) -> Part:
    return Part(number.to_bytes(16, "big"), len(data), lambda at, size: data[at : at + size])


def read(folder: SpillFolder, record: Record) -> bytes:
    found = bytearray(record.size)

    def into(at: int, piece: bytes) -> None:
        found[at : at + len(piece)] = piece

    folder.read(record, into)
    return bytes(found)


@pytest.fixture
def folder(tmp_path: Path) -> SpillFolder:
    return SpillFolder(str(tmp_path), DiskFiles())


def test_objects_of_one_file_come_back_as_they_were(folder: SpillFolder, tmp_path: Path) -> None:
    noise = Random(1).randbytes(300_000)
    contents = [noise, b"", b"x" * 5_000_000, b"short"]
    records = folder.write([part(number, data) for number, data in enumerate(contents)])
    assert [read(folder, record) for record in records] == contents
    assert [record.packed for record in records] == [False, False, True, False]
    assert len(list(tmp_path.iterdir())) == 1 and folder.bytes == sum(
        file.stat().st_size for file in tmp_path.iterdir()
    )


def test_a_file_goes_with_the_last_object_in_it(folder: SpillFolder, tmp_path: Path) -> None:
    records = folder.write([part(1, b"a" * 100), part(2, b"b" * 100)])
    folder.drop(records[:1])
    assert read(folder, records[1]) == b"b" * 100
    folder.drop(records[1:])
    assert not list(tmp_path.iterdir()) and folder.bytes == 0


def test_an_object_that_is_not_needed_takes_no_room_beside_those_that_are(folder: SpillFolder) -> None:
    noise = [Random(seed).randbytes(400_000) for seed in range(3)]
    records = folder.write([part(number, data) for number, data in enumerate(noise)])
    blocks = os.stat(records[0].path).st_blocks
    folder.drop(records[1:2])
    assert folder.bytes < 900_000 and os.stat(records[0].path).st_blocks < blocks
    assert [read(folder, records[at]) for at in (0, 2)] == [noise[0], noise[2]]
    folder.drop([records[0], records[2]])
    assert folder.bytes == 0


def test_the_reserve_is_for_what_is_urgent(tmp_path: Path) -> None:
    folder = SpillFolder(str(tmp_path), DiskFiles(), limit_bytes=1000)
    data = Random(1).randbytes(2000)
    with pytest.raises(OutOfDiskError):
        folder.write([part(1, data)])
    assert read(folder, folder.write([part(1, data)], urgent=True)[0]) == data


@pytest.mark.parametrize("at", [0, 30, 63, 64, 100, -1])
def test_any_byte_that_is_another_is_an_error(folder: SpillFolder, at: int) -> None:
    (record,) = folder.write([part(1, bytes(range(200)))])
    with open(record.path, "r+b") as file:
        data = bytearray(file.read())
        data[at] ^= 1
        file.seek(0)
        file.write(data)
    with pytest.raises(SpillFileError, match="damaged"):
        read(folder, record)


def test_a_file_that_is_short_or_gone_is_an_error(folder: SpillFolder) -> None:
    (record,) = folder.write([part(1, Random(1).randbytes(9000))])
    with open(record.path, "r+b") as file:
        file.truncate(5000)
    with pytest.raises(SpillFileError, match="ends too early"):
        read(folder, record)
    Path(record.path).unlink()
    with pytest.raises(SpillFileError, match="cannot be read"):
        read(folder, record)


def test_no_more_is_spilled_than_the_user_allows(tmp_path: Path) -> None:
    folder = SpillFolder(str(tmp_path), DiskFiles(), limit_bytes=1000)
    (record,) = folder.write([part(1, Random(1).randbytes(600))])
    with pytest.raises(OutOfDiskError, match="may be spilled"):
        folder.write([part(2, Random(2).randbytes(600))])
    folder.drop([record])
    folder.write([part(3, Random(3).randbytes(600))])


def test_a_part_of_the_disk_is_left_free() -> None:
    disk = Disk(Random(1))
    disk.free, disk.total = 1060, 20_000
    folder = SpillFolder("/s", disk)
    with pytest.raises(OutOfDiskError, match="left"):
        folder.write([part(1, b"x" * 100)])


# -- a disk that fails


class PowerCut(Exception):
    pass


class Disk:
    """A file system in memory with two states: what programs see, and what is on the platter. Calls fail by dice."""

    def __init__(self, rng: Random, faults: float = 0.0) -> None:
        self.rng, self.faults = rng, faults
        self.names: dict[str, list[bytearray]] = {}  # name -> [seen, on the platter]
        self.platter: dict[str, list[bytearray]] = {}
        self.fds: dict[int, list[bytearray]] = {}
        self.left: int | None = None  # calls until the power is cut
        self.free, self.total = 1 << 40, 1 << 40

    def _call(self, may_fail: bool = True) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise PowerCut
        if may_fail and self.rng.random() < self.faults:
            raise OSError(self.rng.choice([errno.EIO, errno.ENOSPC]), "injected")

    def create(self, path: str) -> int:
        self._call()
        self.names[path] = [bytearray(), bytearray()]
        return self.open(path)

    def open(self, path: str) -> int:
        self._call()
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, path)
        fd = len(self.fds)
        self.fds[fd] = self.names[path]
        return fd

    def write_at(self, fd: int, data: bytes | memoryview, at: int) -> int:
        self._call()
        wrote = self.rng.randint(1, len(data)) if self.rng.random() < 0.3 else len(data)
        seen = self.fds[fd][0]
        seen.extend(bytes(max(at + wrote - len(seen), 0)))
        seen[at : at + wrote] = data[:wrote]
        return wrote

    def read_at(self, fd: int, size: int, at: int) -> bytes:
        self._call()
        found = bytes(self.fds[fd][0][at : at + size])
        return found[: self.rng.randint(1, len(found))] if found and self.rng.random() < 0.3 else found

    def sync(self, fd: int) -> None:
        self._call()
        self.fds[fd][1][:] = self.fds[fd][0]

    def close(self, fd: int) -> None:
        pass

    def rename(self, old: str, new: str) -> None:
        self._call()
        self.names[new] = self.names.pop(old)
        if self.rng.random() < 0.5:  # else it is lost if the power is
            self.platter[new] = self.names[new]

    def remove(self, path: str) -> None:
        self._call()
        if self.names.pop(path, None) is None:
            raise FileNotFoundError(errno.ENOENT, path)

    def punch(self, path: str, at: int, size: int) -> None:
        self._call()
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, path)
        for data in self.names[path]:
            data[at : at + size] = bytes(len(data[at : at + size]))

    def room(self, folder: str) -> tuple[int, int]:
        return self.free, self.total

    def come_back(self) -> None:
        """After a power cut: of what was not synced some pages are there, others are old or zeros."""
        self.left, self.faults, self.fds = None, 0.0, {}
        for name, file in list(self.names.items()):
            seen, kept = file
            kept.extend(bytes(len(seen) - len(kept)) if self.rng.random() < 0.5 else b"")
            for at in range(0, len(kept), 512):
                if self.rng.random() < 0.5:
                    kept[at : at + 512] = seen[at : at + 512][: len(kept) - at]
            file[0] = bytearray(kept)
            if name not in self.platter and self.rng.random() < 0.5:
                del self.names[name]


@examples(150, deadline=None)
@given(st.integers(0, 1 << 32))
def test_nothing_wrong_is_ever_read_from_a_disk_that_fails(seed: int) -> None:
    rng = Random(seed)
    disk = Disk(rng, faults=rng.choice([0.0, 0.02, 0.2]))
    folder = SpillFolder("/s", disk)
    disk.left = rng.randint(1, 60) if rng.random() < 0.7 else None
    kept: list[tuple[Record, bytes]] = []
    was_cut = False
    try:
        for round in range(rng.randint(1, 6)):
            contents = [
                rng.randbytes(rng.randint(0, 3000)) if rng.random() < 0.5 else b"z" * rng.randint(0, 9000)
                for _ in range(rng.randint(1, 4))
            ]
            try:
                records = folder.write([part(round * 10 + at, data) for at, data in enumerate(contents)])
            except (OutOfDiskError, SpillFileError):
                continue
            kept += zip(records, contents, strict=True)
            if kept and rng.random() < 0.3:
                folder.drop([kept.pop(rng.randrange(len(kept)))[0]])
            for record, data in kept:
                try:
                    assert read(folder, record) == data
                except SpillFileError:
                    pass
    except PowerCut:
        was_cut = True
        disk.come_back()
    disk.faults, disk.left = 0.0, None
    for record, data in kept:
        try:
            assert read(folder, record) == data
        except SpillFileError:
            assert was_cut, "only a power cut loses what was written"


def test_what_was_written_well_is_read_well_while_the_power_stays() -> None:
    disk = Disk(Random(3), faults=0.1)
    folder, kept = SpillFolder("/s", disk), list[tuple[Record, bytes]]()
    for round in range(100):
        data = disk.rng.randbytes(1000)
        try:
            kept += [(record, data) for record in folder.write([part(round, data)])]
        except (OutOfDiskError, SpillFileError):
            continue
    disk.faults = 0.0
    assert len(kept) > 20
    for record, data in kept:
        assert read(folder, record) == data


def test_a_write_that_fails_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SpillFolder(str(tmp_path), DiskFiles())

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DiskFiles, "sync", full)
    with pytest.raises(OutOfDiskError, match="No space left"):
        folder.write([part(1, b"x" * 100_000)])
    assert not list(tmp_path.iterdir()) and folder.bytes == 0


def test_a_header_with_its_checksum_is_as_long_as_readers_take_it_to_be() -> None:
    assert spill_files.HEADER.size + 8 == spill_files.HEADER_BYTES
