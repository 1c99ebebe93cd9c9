"""Real shared memory in one process: what is written by one mapping is read by the others, and never by accident."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from lattica.objectstore import arena as arena_module
from lattica.objectstore.arena import Arena, ArenaMap
from lattica.objectstore.suballocator import GRANULE_BYTES

MIB = 1 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(32 * MIB)
    yield arena
    arena.close()


@pytest.fixture
def process(arena: Arena) -> Iterator[ArenaMap]:
    """A process with one span of 8 MiB at 2 MiB."""
    arena.back(2 * MIB, 8 * MIB)
    process = ArenaMap(os.dup(arena.fd), arena.size_bytes)
    process.open_span(2 * MIB, 8 * MIB)
    yield process
    process.close()


def test_the_arena_takes_memory_only_where_it_is_backed(arena: Arena) -> None:
    assert arena.backed_bytes == 0
    arena.back(2 * MIB, 8 * MIB)
    assert arena.backed_bytes == 8 * MIB
    arena.back(8 * MIB, 4 * MIB)
    assert arena.backed_bytes == 10 * MIB
    arena.punch(4 * MIB, 2 * MIB)
    assert arena.backed_bytes == 8 * MIB
    assert repr(arena) == "<Arena of 32 MiB, 8 MiB backed>"


def test_nobody_can_change_the_size_of_the_arena(arena: Arena) -> None:
    for size in (0, 64 * MIB):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, size)


def test_backing_that_fails_gives_back_what_it_had(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_module, "STEP_BYTES", 2 * MIB)
    back, calls = os.posix_fallocate, []

    def scarce(fd: int, offset: int, size: int) -> None:
        calls.append((offset, size))
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "no space")
        back(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", scarce)
    with pytest.raises(OSError, match="no space"):
        arena.back(0, 7 * MIB)
    assert calls == [(0, 2 * MIB), (2 * MIB, 2 * MIB), (4 * MIB, 2 * MIB)]
    assert arena.backed_bytes == 0


def test_what_one_process_writes_another_reads_in_place(arena: Arena, process: ArenaMap) -> None:
    other = ArenaMap(os.dup(arena.fd), arena.size_bytes)
    process.copy_in(2 * MIB + 64, [b"hello"])
    seen = other.read(2 * MIB + 64, 5)
    assert seen == b"hello" and seen.readonly
    process.write_view(2 * MIB + 64, 1)[0] = ord("j")
    assert seen == b"jello"
    other.close()
    assert seen == b"jello", "a view keeps the memory"


def test_parts_lie_at_aligned_places_one_after_another(process: ArenaMap) -> None:
    array = np.arange(20, dtype=np.int32).reshape(4, 5)
    process.copy_in(2 * MIB, [b"x" * 65, b"", memoryview(array), bytearray(b"end")])
    assert process.read(2 * MIB, 65) == b"x" * 65
    assert process.read(2 * MIB + 128, 80) == array.tobytes()
    assert process.read(2 * MIB + 256, 3) == b"end"


@pytest.mark.parametrize("numpy_is_there", [True, False])
@pytest.mark.parametrize("size", [1, 1000, 5 * MIB + 3])
def test_bytes_arrive_whole_whoever_copies_them(
    process: ArenaMap, monkeypatch: pytest.MonkeyPatch, size: int, numpy_is_there: bool
) -> None:
    monkeypatch.setattr(arena_module, "TWO_THREADS_FROM_BYTES", 4 * MIB)
    if not numpy_is_there:
        monkeypatch.delitem(sys.modules, "numpy")
    data = os.urandom(size)
    process.copy_in(3 * MIB, [data])
    assert process.read(3 * MIB, size) == data
    assert threading.active_count() == 1


def test_an_interrupted_copy_has_stopped_writing_when_it_raises(
    process: ArenaMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the second thread still copies: the region must not be free before that is done."""
    monkeypatch.setattr(arena_module, "TWO_THREADS_FROM_BYTES", 4 * MIB)
    released, writing = threading.Event(), threading.Event()
    copyto, join, main = np.copyto, threading.Thread.join, threading.current_thread()

    def slow(target: np.ndarray, source: np.ndarray) -> None:
        if threading.current_thread() is main:
            assert writing.wait(5)
            signal.raise_signal(signal.SIGINT)
        writing.set()
        assert released.wait(5)
        copyto(target, source)

    def joined(helper: threading.Thread) -> None:
        assert not released.is_set(), "the main thread has left copyto, the helper has not"
        released.set()
        join(helper)

    monkeypatch.setattr(np, "copyto", slow)
    monkeypatch.setattr(threading.Thread, "join", joined)
    data = os.urandom(5 * MIB)
    with pytest.raises(KeyboardInterrupt):
        process.copy_in(3 * MIB, [data])
    half = len(data) // 2
    came = [process.read(3 * MIB, half) == data[:half], process.read(3 * MIB + half, half) == data[half:]]
    assert sorted(came) == [False, True], "the helper has finished the piece that it took"


def test_a_private_view_is_written_without_anyone_seeing_it(process: ArenaMap) -> None:
    process.copy_in(2 * MIB + 4096 - 64, [b"a" * 10_000])
    mine, other = (process.private(2 * MIB + 4096 - 64, 10_000) for _ in range(2))
    mine[:5000] = b"b" * 5000
    assert mine == b"b" * 5000 + b"a" * 5000
    assert other == process.read(2 * MIB + 4096 - 64, 10_000) == b"a" * 10_000


def test_a_private_mapping_goes_with_its_last_view_and_costs_no_descriptor(process: ArenaMap) -> None:
    def mappings() -> int:
        with open("/proc/self/maps") as lines:
            return sum("lattica-arena" in line for line in lines)

    gc.collect()  # arenas of earlier tests, which would go in between
    maps, descriptors = mappings(), len(os.listdir("/proc/self/fd"))
    slices = [process.private(2 * MIB, 4096)[10:20] for _ in range(50)]
    assert mappings() > maps and len(os.listdir("/proc/self/fd")) == descriptors
    slices.clear()
    gc.collect()
    assert mappings() == maps


def test_numpys_address_of_a_reading_view_finds_its_private_bytes(process: ArenaMap) -> None:
    assert process.private_at(4096, 8) is None, "nothing was read yet"
    process.copy_in(2 * MIB, [bytes(range(100))])
    array = np.frombuffer(process.read(2 * MIB + 10, 20), dtype=np.uint8)
    private = process.private_at(array.__array_interface__["data"][0], 20)
    assert private == array.tobytes() and not private.readonly
    elsewhere = np.zeros(10, dtype=np.uint8)
    assert process.private_at(elsewhere.__array_interface__["data"][0], 10) is None


def resident(address: int, size: int) -> int:
    """Bytes of this process's page tables between two addresses, from /proc/self/pagemap."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // mmap.PAGESIZE * 8)
        entries = np.frombuffer(pagemap.read(size // mmap.PAGESIZE * 8), dtype="<u8")
    return int((entries >> 63).sum()) * mmap.PAGESIZE


def test_an_open_span_is_populated_and_a_closed_one_no_longer_counts(arena: Arena, process: ArenaMap) -> None:
    def address() -> int:
        return np.frombuffer(process.write_view(2 * MIB, 8 * MIB), dtype="u1").__array_interface__["data"][0]

    assert resident(address(), 8 * MIB) == 8 * MIB
    process.copy_in(2 * MIB, [b"kept"])
    process.close_span(2 * MIB)
    assert resident(address(), 8 * MIB) == 0
    assert arena.backed_bytes == 8 * MIB
    assert process.read(2 * MIB, 4) == b"kept", "the bytes are the machine's, not the process's"


def test_a_kernel_that_cannot_populate_is_served_all_the_same(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena_module, "MADV_POPULATE_WRITE", 9999)
    process = ArenaMap(os.dup(arena.fd), arena.size_bytes)
    arena.back(0, GRANULE_BYTES)
    process.open_span(0, GRANULE_BYTES)
    process.copy_in(0, [b"here"])
    assert process.read(0, 4) == b"here"
    process.close()


def test_a_punched_range_reads_as_zeros(arena: Arena, process: ArenaMap) -> None:
    process.copy_in(2 * MIB, [b"gone"])
    view = process.read(2 * MIB, 4)
    arena.punch(2 * MIB, 2 * MIB)
    assert view == bytes(4)


def test_numpy_is_not_imported_for_a_copy() -> None:
    import subprocess

    code = "import sys, lattica.objectstore.arena; assert not {'numpy', 'ctypes'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.getcwd())
