"""A full object store goes on: what nobody looks at goes to disk, and comes back when somebody does."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import lattica
from lattica.actors import current, refs_list
from lattica.errors import ObjectLostError, ObjectStoreFullError, OutOfDiskError

MIB = 1 << 20
QUOTA = 32 * MIB
LIMIT = 48 * MIB


@lattica.remote
def filled(value: int, mib: int) -> Any:
    return np.full(mib * MIB, value, np.uint8)


@lattica.remote
def checked(array: Any, value: int) -> int:
    assert (array == value).all()
    return int(array.nbytes)


@lattica.remote
def look_inside(refs: list[Any]) -> list[int]:
    return [int(array[-1]) for array in map(lattica.get, refs)]


def memory() -> dict[str, Any]:
    found: dict[str, Any] = current.get().state("memory")
    return found


def until(true: Callable[[], bool]) -> None:
    latest = time.monotonic() + 10.0
    while not true():
        assert time.monotonic() < latest, "it has not become so within 10 s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spill")


@pytest.fixture(scope="module")
def node(place: Path) -> Iterator[None]:
    """A small store, shared by the tests of this file; at most LIMIT bytes may be spilled."""
    os.environ["LATTICA_SPILL_LIMIT"], os.environ["LATTICA_RECORD_CALL_SITES"] = str(LIMIT), "1"
    try:
        lattica.init(address="local", num_cpus=2, object_store_memory=QUOTA, object_spilling_directory=str(place))
        yield
    finally:
        del os.environ["LATTICA_SPILL_LIMIT"], os.environ["LATTICA_RECORD_CALL_SITES"]
        lattica.shutdown()


def files(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file()]


def test_four_times_the_store_is_put_and_made_and_read_back_equal(node: None, place: Path) -> None:
    put = [lattica.put(np.full(4 * MIB, number, np.uint8)) for number in range(16)]
    made = [filled.remote(number, 4) for number in range(16)]
    for number, ref in enumerate(put):
        assert (lattica.get(ref) == number).all()
    assert lattica.get([checked.remote(ref, number) for number, ref in enumerate(made)]) == [4 * MIB] * 16
    assert lattica.get(look_inside.remote([*put, *made])) == [*range(16), *range(16)]
    first, last = lattica.get([made[0], made[-1]])
    assert first[0] == 0 and last[0] == 15
    found = memory()
    assert found["spilled_bytes"] >= 80 * MIB and found["spilled_total_bytes"] > found["spilled_bytes"] / 2
    assert files(place)
    del put, made, ref, first, last
    until(lambda: not files(place) and not memory()["spilled_bytes"])


def test_an_array_keeps_its_bytes_while_all_else_goes_to_disk(node: None) -> None:
    array = lattica.get(lattica.put(np.full(4 * MIB, 7, np.uint8)))
    part = array[1000:2000]
    del array
    refs = [lattica.put(np.full(4 * MIB, number, np.uint8)) for number in range(16)]
    assert (part == 7).all()
    assert all((lattica.get(ref) == number).all() for number, ref in enumerate(refs))
    assert (part == 7).all()


def test_arrays_that_fill_the_store_are_an_error_that_says_who_has_them(node: None) -> None:
    refs = [lattica.put(np.full(4 * MIB, number, np.uint8)) for number in range(8)]
    arrays = lattica.get(refs[:4])
    began = time.monotonic()
    with pytest.raises(ObjectStoreFullError, match=rf"after [4-9] s.* lie 16 MiB of a program, pid {os.getpid()}"):
        lattica.put(np.zeros(24 * MIB, np.uint8))
    assert time.monotonic() - began < 10, "with what a busy machine takes"
    more = refs.pop()
    del arrays
    assert lattica.get(more)[0] == 7


def test_an_error_about_a_value_that_does_not_fit_keeps_no_arrays_once_it_is_dropped(node: None) -> None:
    refs = [lattica.put(np.full(4 * MIB, number, np.uint8)) for number in range(8)]
    arrays = lattica.get(refs[:4])
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ObjectStoreFullError) as caught:
            lattica.get(refs)
        error = weakref.ref(caught.value)
        del caught
        assert error() is None, "only a collection would end it, and the arrays in the frames of its traceback"
    finally:
        gc.enable()
    del arrays
    assert lattica.get(refs.pop())[0] == 7


def test_a_large_value_gets_its_room_beside_many_small_ones(node: None) -> None:
    stop, small, errors = threading.Event(), deque[Any](maxlen=30), list[BaseException]()

    def put_small() -> None:
        try:
            while not stop.is_set():
                small.append(lattica.put(np.zeros(MIB, np.uint8)))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=put_small)
    thread.start()
    try:
        for value in range(3):
            assert (lattica.get(filled.remote(value, 14)) == value).all()
    finally:
        stop.set()
        thread.join()
    assert not errors


def test_one_reading_serves_all_who_wait(node: None) -> None:
    refs = [lattica.put(np.full(4 * MIB, number, np.uint8)) for number in range(12)]
    before = memory()["restored_total"]
    assert lattica.get([checked.remote(refs[0], 0) for _ in range(8)]) == [4 * MIB] * 8
    assert memory()["restored_total"] == before + 1


def test_a_full_disk_is_an_error_of_its_own_and_harms_nothing(node: None) -> None:
    rng = np.random.default_rng(5)
    kept: list[tuple[Any, int]] = []
    with pytest.raises(OutOfDiskError, match="may be spilled"):
        for _ in range(60):
            noise = rng.integers(0, 256, 4 * MIB, dtype=np.uint8)
            kept.append((lattica.put(noise), int(noise.sum(dtype=np.uint64))))
    assert len(kept) > 12
    for ref, total in kept:
        assert int(lattica.get(ref).sum(dtype=np.uint64)) == total


def test_a_damaged_file_is_a_lost_object_and_never_another_value(node: None, place: Path) -> None:
    refs = [lattica.put(np.full(4 * MIB, number, np.uint8)) for number in range(16)]
    until(lambda: memory()["spilled_bytes"] >= 30 * MIB)
    for path in [path for path in files(place) if path.suffix != ".new"]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    lost = 0
    for number, ref in enumerate(refs):
        try:
            assert (lattica.get(ref) == number).all()
        except ObjectLostError as error:
            assert "damaged" in str(error)
            lost += 1
    assert lost


def test_where_a_ref_was_made_is_remembered_if_one_wants_to_know(node: None) -> None:
    refs = [lattica.put(np.zeros(MIB, np.uint8)), filled.remote(1, 1)]
    runtime = current.get()
    with runtime.lock:
        rows = {row["object"]: row for row in msgspec.msgpack.decode(refs_list.rows(runtime))}
    for ref in refs:
        assert f"{__file__}:" in rows[ref.binary()]["made_at"] and rows[ref.binary()]["by"] == "ref"


def test_nothing_is_left_on_disk_by_a_node_that_ends_or_is_killed(fresh: Callable[..., Any], tmp_path: Path) -> None:
    def spill() -> None:
        refs = [lattica.put(np.full(4 * MIB, number, np.uint8)) for number in range(16)]
        assert files(tmp_path)
        del refs

    fresh(num_cpus=1, object_store_memory=QUOTA, object_spilling_directory=str(tmp_path))
    spill()
    os.kill(current.get().state("status")["node"]["pid"], signal.SIGKILL)
    until(lambda: current.get().gone)
    lattica.shutdown()
    fresh(num_cpus=1, object_store_memory=QUOTA, object_spilling_directory=str(tmp_path))
    assert not files(tmp_path), "the next node of this folder sweeps it"
    spill()
    lattica.shutdown()
    assert not files(tmp_path)
