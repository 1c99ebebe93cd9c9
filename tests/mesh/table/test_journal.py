"""A table on disk survives a crash at any byte and between any two system calls."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import ConfigError
from lattica.mesh.table import journal as journal_module
from lattica.mesh.table.boots import next_writer_boot, raised
from lattica.mesh.table.journal import COMPACT_MIN_BYTES, Journal
from lattica.mesh.table.rows import BOOT_BITS, ROW_MAX_BYTES, Row
from tests.mesh.table.some_rows import MESH, some_row, some_rows

HEADER_BYTES = 14 + 2 + 32 + 8
RECORD_BYTES = 12
JOURNAL, SNAPSHOT = "table.journal", "table.snapshot"


@pytest.fixture(scope="module", autouse=True)
def fast_disk() -> Iterator[None]:
    """What an fsync reaches is modelled (`Disk`); waiting for it would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


def stored(folder: Path) -> list[bytes]:
    """What a process that starts there finds."""
    journal = Journal(str(folder), MESH)
    try:
        return [row.data for row in journal.rows()]
    finally:
        journal.close()


def fill(folder: Path, rows: list[Row], name: str = JOURNAL) -> bytes:
    """The bytes of a journal, or a snapshot, of these rows, and nothing else there."""
    journal = Journal(str(folder), MESH)
    if name == JOURNAL:
        journal.append(rows, sync=False)
    else:
        journal.compact(rows)
    journal.close()
    return (folder / name).read_bytes()


def assert_usable(folder: Path) -> None:
    """What is appended now is there at the next start, after what is there already."""
    before = stored(folder)
    journal = Journal(str(folder), MESH)
    journal.append([some_row(999)], sync=True)
    journal.close()
    assert stored(folder) == [*before, some_row(999).data]


def data_of(rows: list[Row]) -> list[bytes]:
    return [row.data for row in rows]


# -- what is kept


def test_rows_come_back_in_the_order_in_which_they_were_appended(tmp_path: Path) -> None:
    rows = some_rows(20)
    fill(tmp_path, rows[:10])
    fill(tmp_path, rows[10:])
    assert stored(tmp_path) == data_of(rows)
    modes = {(tmp_path / name).stat().st_mode & 0o777 for name in os.listdir(tmp_path)}
    assert modes == {0o600}


def test_a_compaction_leaves_its_rows_and_an_empty_journal(tmp_path: Path) -> None:
    rows = some_rows(20)
    fill(tmp_path, rows)
    journal = Journal(str(tmp_path), MESH)
    journal.compact(rows[5:])
    journal.append([some_row(3, version=2)], sync=False)
    journal.close()
    assert stored(tmp_path) == [*data_of(rows[5:]), some_row(3, version=2).data]
    assert sorted(os.listdir(tmp_path)) == [JOURNAL, SNAPSHOT]


def test_a_journal_longer_than_the_snapshot_and_a_mebibyte_wants_to_be_compacted(tmp_path: Path) -> None:
    rows = some_rows(300, body_bytes=1000)
    size = len(rows[0].data) + RECORD_BYTES
    journal = Journal(str(tmp_path), MESH)
    journal.compact(rows * (2 * COMPACT_MIN_BYTES // (300 * size)))
    for snapshot_bytes in (2 * COMPACT_MIN_BYTES, 0):
        appended = 0
        while not journal.wants_compaction:
            journal.append(rows, sync=False)
            appended += 300 * size
        assert max(snapshot_bytes, COMPACT_MIN_BYTES) * 0.7 < appended < max(snapshot_bytes, COMPACT_MIN_BYTES) * 1.4
        journal.compact([])
    journal.close()


@given(st.lists(st.tuples(st.sampled_from("aAcr"), st.integers(0, 9), st.integers(1, 5)), max_size=12))
def test_whatever_is_done_in_whatever_order_nothing_is_missing(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    """a, A: append, and sync; c: compact; r: restart. The newest of each row is what a table keeps."""
    folder = tmp_path_factory.mktemp("table")
    newest: dict[int, Row] = {}
    journal = Journal(str(folder), MESH)
    for what, number, version in steps:
        if what in "aA":
            row = some_row(number, version, b"x" * 40 * version)
            newest[number] = max(newest.get(number, row), row, key=lambda each: each.order)
            journal.append([row], sync=what == "A")
        elif what == "c":
            journal.compact(newest.values())
        else:
            journal.close()
            journal = Journal(str(folder), MESH)
        found: dict[int, Row] = {}
        for row in journal.rows():
            found[row.place] = max(found.get(row.place, row), row, key=lambda each: each.order)
        assert {row.data for row in found.values()} == {row.data for row in newest.values()}
    journal.close()


def test_threads_take_turns(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), MESH)
    rows = some_rows(400)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda row: journal.append([row], sync=False), rows))
    journal.close()
    assert sorted(stored(tmp_path)) == sorted(data_of(rows))


# -- damage


def test_of_a_journal_cut_at_any_byte_all_whole_rows_are_kept(tmp_path: Path) -> None:
    rows = some_rows(4)
    whole = fill(tmp_path, rows)
    ends = list(itertools.accumulate((len(row.data) + RECORD_BYTES for row in rows), initial=HEADER_BYTES))
    assert ends[-1] == len(whole)
    for size in range(len(whole)):
        (tmp_path / JOURNAL).write_bytes(whole[:size])
        assert stored(tmp_path) == data_of(rows)[: sum(end <= size for end in ends[1:])], size
        assert_usable(tmp_path)


@pytest.mark.parametrize("name", [JOURNAL, SNAPSHOT])
def test_of_a_file_with_any_byte_changed_all_rows_before_are_kept(tmp_path: Path, name: str) -> None:
    rows = some_rows(3)
    whole = fill(tmp_path, rows, name)
    ends = list(itertools.accumulate((len(row.data) + RECORD_BYTES for row in rows), initial=HEADER_BYTES))
    for at in range(len(whole)):
        (tmp_path / JOURNAL).unlink()
        (tmp_path / name).write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        assert stored(tmp_path) == data_of(rows)[: sum(end <= at for end in ends[1:])], at
        assert_usable(tmp_path)


@given(st.binary(max_size=300))
def test_a_journal_that_ends_in_noise_loses_the_noise(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    folder = tmp_path_factory.mktemp("table")
    whole = fill(folder, some_rows(2))
    (folder / JOURNAL).write_bytes(whole + noise)
    assert stored(folder) == data_of(some_rows(2))
    assert (folder / JOURNAL).read_bytes() == whole


def test_what_is_cut_off_stands_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = fill(tmp_path, some_rows(2))
    (tmp_path / JOURNAL).write_bytes(whole[:-1])
    stored(tmp_path)
    assert f"the last {len(some_row(1).data) + RECORD_BYTES - 1} bytes" in caplog.text
    assert "cut off" in caplog.text


def test_a_length_that_no_row_has_is_not_read(tmp_path: Path) -> None:
    whole = fill(tmp_path, some_rows(1))
    with open(tmp_path / JOURNAL, "wb") as file:
        file.write(whole + (ROW_MAX_BYTES + 1).to_bytes(4, "little") + bytes(8))
        file.truncate(1 << 40)  # a hole: reading it whole would fail
    assert stored(tmp_path) == data_of(some_rows(1))
    assert (tmp_path / JOURNAL).stat().st_size == len(whole)


def test_a_damaged_snapshot_is_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = fill(tmp_path, some_rows(3), SNAPSHOT)
    (tmp_path / SNAPSHOT).write_bytes(whole[:-RECORD_BYTES])  # all rows, but it does not say that this was all
    journal = Journal(str(tmp_path), MESH)
    assert not journal.wants_compaction
    assert data_of(list(journal.rows())) == data_of(some_rows(3))
    assert journal.wants_compaction
    assert "table.snapshot is damaged" in caplog.text
    journal.compact(some_rows(3))
    assert not journal.wants_compaction
    journal.close()
    assert (tmp_path / SNAPSHOT).read_bytes() == whole


def test_files_of_another_mesh_are_set_aside_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, some_rows(3), SNAPSHOT)
    whole = fill(tmp_path, some_rows(2))
    other = Journal(str(tmp_path), b"o" * 32)
    assert list(other.rows()) == []
    other.close()
    assert (tmp_path / "table.journal.aside").read_bytes() == whole
    assert caplog.text.count("is of another mesh (6d6d6d6d); it is set aside as table.") == 2
    assert stored(tmp_path) == []


def test_a_file_of_a_later_release_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "_VERSION", 2)
        fill(tmp_path, some_rows(2))
    assert stored(tmp_path) == []
    assert "is written by another release (version 2)" in caplog.text


def test_rows_that_are_none_by_today_s_rules_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = fill(tmp_path, some_rows(1))
    (tmp_path / JOURNAL).write_bytes(whole + journal_module._record(b"no row") + whole[HEADER_BYTES:])
    assert stored(tmp_path) == data_of(some_rows(1)) * 2
    assert "1 rows in" in caplog.text


def test_a_folder_that_cannot_be_written_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)the table in .* cannot be read or written: No such file.*disk has room"
    ):
        Journal(str(tmp_path / "missing"), MESH)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / JOURNAL).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="symbolic links"):
        Journal(str(tmp_path / "link"), MESH)


# -- crashes


class CrashError(BaseException):
    """The machine stops."""


class Disk:
    """`os` for the journal: it counts calls that change something, stops at one, and knows what an fsync has reached.

    In the worst case a crash keeps of a file what its last fsync has written, and of a folder the names of its last.
    """

    def __init__(self, folder: Path, stop_at: int, stop: BaseException) -> None:
        self._folder, self._stop_at, self._stop = folder, stop_at, stop
        self.calls = 0
        self.durable: dict[int, bytes] = {}
        self.current: dict[int, bytes] = {}
        self.names: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _step(self) -> None:
        self.calls += 1
        if self.calls == self._stop_at:
            raise self._stop

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            self._step()
        fd = os.open(path, flags, mode)
        if flags & os.O_CREAT:
            self.current[os.fstat(fd).st_ino] = self.durable[os.fstat(fd).st_ino] = b""
        return fd

    def write(self, fd: int, data: memoryview) -> int:
        try:
            self._step()
        except BaseException:
            os.write(fd, data[: len(data) // 2])
            self._saw(fd)
            raise
        done = os.write(fd, data[: max(1, len(data) // 3)])  # as it may
        self._saw(fd)
        return done

    def ftruncate(self, fd: int, size: int) -> None:
        self._step()
        os.ftruncate(fd, size)
        self._saw(fd)

    def fsync(self, fd: int) -> None:
        self._step()
        os.fsync(fd)
        inode = os.fstat(fd).st_ino
        if inode == self._folder.stat().st_ino:
            self.names = self.names_now()
        else:
            self.durable[inode] = self.current[inode]

    def replace(self, source: str, target: str) -> None:
        self._step()
        os.replace(source, target)

    def names_now(self) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in self._folder.iterdir()}

    def _saw(self, fd: int) -> None:
        self.current[os.fstat(fd).st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()

    def after_a_crash(self, folder: Path) -> Iterator[Path]:
        """What a crash now may leave: each file under its old name or its new one, with its old bytes or new ones."""
        choices = [(self.names, self.names_now()), (self.names, self.names_now()), (self.durable, self.current)]
        for number, (journals, snapshots, bytes_of) in enumerate(itertools.product(*choices)):
            left = folder / str(number)
            left.mkdir(parents=True)
            for name, inodes in ((JOURNAL, journals), (SNAPSHOT, snapshots)):
                if name in inodes:
                    (left / name).write_bytes(bytes_of[inodes[name]])
            yield left


def story(folder: Path, durable: Callable[[list[Row]], None]) -> None:
    """A node's life with its table. durable: told of the rows that must survive from now on."""
    rows = some_rows(9)
    journal = Journal(str(folder), MESH)
    journal.append(rows[:2], sync=False)
    journal.append(rows[2:3], sync=True)
    durable(rows[:3])
    journal.append(rows[3:4], sync=False)
    journal.compact(rows[:4])
    durable(rows[:4])
    journal.append(rows[4:5], sync=True)
    durable(rows[:5])
    journal.compact(rows[:5])
    journal.append(rows[5:8], sync=True)
    durable(rows[:8])
    journal.append(rows[8:], sync=False)
    journal.close()
    durable(rows)


def test_a_crash_between_any_two_calls_loses_no_row_that_was_said_to_be_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stop_at in itertools.count(1):
        folder = tmp_path / str(stop_at)
        folder.mkdir()
        disk, promised = Disk(folder, stop_at, CrashError()), []
        crashed = False
        with monkeypatch.context() as patch:
            patch.setattr(journal_module, "os", disk)
            try:
                story(folder, lambda rows, promised=promised: promised.append(data_of(rows)))
            except CrashError:
                crashed = True
        for left in disk.after_a_crash(tmp_path / f"{stop_at} crashed"):
            found = stored(left)
            missing = [data for data in (promised or [[]])[-1] if data not in found]
            assert not missing, f"{len(missing)} rows are lost after {stop_at - 1} calls, in {left}"
            assert_usable(left)
        if not crashed:
            break
    assert disk.calls > 40


def test_after_any_failed_call_a_compaction_makes_everything_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for one call, whichever. The owner keeps its rows in memory and compacts when it is told."""
    rows = some_rows(8)
    for stop_at in itertools.count(1):
        folder = tmp_path / str(stop_at)
        folder.mkdir()
        disk, failures = Disk(folder, stop_at, OSError(28, "No space left on device")), 0
        with monkeypatch.context() as patch:
            patch.setattr(journal_module, "os", disk)
            try:
                journal = Journal(str(folder), MESH)
            except ConfigError:
                failures += 1
                journal = Journal(str(folder), MESH)
            for count in range(1, len(rows) + 1):
                try:
                    if count == 4:
                        journal.compact(rows[: count - 1])
                    journal.append(rows[count - 1 : count], sync=True)
                except ConfigError as error:
                    assert "No space left on device" in str(error)
                    failures += 1
                    wanted = journal.wants_compaction
                    try:
                        journal.append(rows[:count], sync=True)  # the former files may still be good
                    except ConfigError:
                        assert wanted
                        journal.compact(rows[:count])
                assert not journal.wants_compaction
        for left in disk.after_a_crash(tmp_path / f"{stop_at} crashed"):
            assert set(data_of(rows)) <= set(stored(left)), f"rows are lost, with call {stop_at} failed, in {left}"
        journal.close()
        if not failures:
            break
    assert disk.calls > 30


def test_after_a_failed_write_nothing_is_appended_until_a_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row behind a torn one could never be read, and Linux forgets that an fsync has failed."""
    for call in ("write", "fsync"):
        journal = Journal(str(tmp_path), MESH)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            with pytest.raises(ConfigError, match="Input/output error"):
                journal.append(some_rows(1), sync=True)
        with pytest.raises(ConfigError, match="an earlier write failed"):
            journal.append(some_rows(2), sync=True)
        assert journal.wants_compaction
        journal.compact(some_rows(2))
        journal.append(some_rows(3), sync=True)
        journal.close()
        assert stored(tmp_path) == data_of(some_rows(2) + some_rows(3))


# -- boots


def test_a_writer_s_boot_is_above_all_that_it_used_and_differs_between_two_copies() -> None:
    node = 1_800_000_000
    assert next_writer_boot(0, node, 5) == node << BOOT_BITS | 5
    before = next_writer_boot(0, node, 900_000)
    assert next_writer_boot(before, node + 1, 5) == node + 1 << BOOT_BITS | 5
    behind = {next_writer_boot(before, node - 100, bits) for bits in (5, 6)}  # its boot number was lost
    assert min(behind) > before and len(behind) == 2
    assert next_writer_boot(before, node, 900_001) == before + 1


def test_a_writer_that_sees_a_later_boot_of_its_own_goes_on_above_it() -> None:
    boot = next_writer_boot(0, 100, 7)
    assert raised(boot, boot, 3) == boot
    assert raised(boot, boot - 1, 3) == boot
    assert raised(boot, boot + 1, 3) == 101 << BOOT_BITS | 3
    with pytest.raises(ConfigError, match="new key"):
        raised(boot, (1 << 63) - 1, 3)
