"""Objects: put, get, wait, refs wherever they may lie, and bytes that stay as long as anybody looks at them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import errno
import gc
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.actors import current
from lattica.errors import GetTimeoutError, ObjectStoreFullError, OutOfBandRefError
from lattica.node.store_desk import PATIENCE_S
from tests.e2e.conftest import eventually

MIB = 1 << 20


@lattica.remote
def echo(value: Any) -> Any:
    return value


@lattica.remote
def sleep(seconds: float, value: Any = None) -> Any:
    time.sleep(seconds)
    return value


@lattica.remote
def fail(word: str) -> None:
    raise KeyError(word)


@lattica.remote
def array(value: int, mib: int) -> np.ndarray:
    return np.full(mib * MIB, value, np.uint8)


@lattica.remote
def total(numbers: np.ndarray) -> int:
    return int(numbers.sum())


VALUES = {
    "none": None, "number": 3.5, "text": "ä" * 10, "bytes": b"\x00\x80\x01", "bytes like a region": b"\x01" * 40,
    "large bytes": bytes(range(256)) * 1000, "large text": "x" * 300_000, "bytearray": bytearray(200_000),
    "containers": {"a": [1, (2, {3})], None: frozenset("x")}, "a class": dict, "a function": len,
    "many small arrays": [np.arange(10)] * 3, "empty array": np.empty(0), "strided": np.arange(100_000)[::3],
    "fortran": np.asfortranarray(np.ones((300, 300))), "objects": np.array([1, "a", None], dtype=object),
    "structured": np.zeros(9, [("a", "i4"), ("b", "f8")]), "bool": True, "int": 1 << 200, "complex": 1j,
}  # fmt: skip


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, list):
        return type(b) is list and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


# -- put, get, wait


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("kind", VALUES)
def test_a_value_comes_back_as_it_was_put_passed_and_returned(kind: str) -> None:
    value = VALUES[kind]
    ref = lattica.put(value)
    passed = echo.remote(ref)
    nested = echo.remote([ref])
    assert same(value, lattica.get(ref))
    assert same(value, lattica.get(echo.remote(value)))
    assert same(value, lattica.get(passed))
    assert same(value, lattica.get(lattica.get(nested)[0]))


@pytest.mark.usefixtures("two_cpus")
def test_get_answers_in_the_order_asked_duplicates_included() -> None:
    slow, quick = sleep.remote(0.1, "slow"), lattica.put("quick")
    assert lattica.get([quick, slow, quick, slow]) == ["quick", "slow", "quick", "slow"]
    assert lattica.get([]) == []
    assert lattica.get((quick,)) == ["quick"]


@pytest.mark.usefixtures("two_cpus")
def test_what_is_no_ref_is_refused_by_name() -> None:
    for wrong in (1, None, "ref", [1], {lattica.put(1)}, {"a": lattica.put(1)}):
        with pytest.raises((TypeError, ValueError)):
            lattica.get(wrong)
    with pytest.raises(TypeError, match="ObjectRef"):
        lattica.put(lattica.put(1))
    with pytest.raises(TypeError):
        lattica.wait(lattica.put(1))


@pytest.mark.usefixtures("two_cpus")
def test_get_gives_up_after_its_timeout_and_can_be_asked_again() -> None:
    ref = sleep.remote(1.0, "late")
    for timeout in (0, 0.05):
        began = time.monotonic()
        with pytest.raises(GetTimeoutError, match="1 of 2"):
            lattica.get([lattica.put(0), ref], timeout=timeout)
        assert time.monotonic() - began < timeout + 0.8
    with pytest.raises(TimeoutError):
        lattica.get(ref, timeout=0)
    assert lattica.get(ref) == "late"
    assert lattica.get(ref, timeout=0) == "late"


@pytest.mark.usefixtures("two_cpus")
def test_a_finished_task_is_seen_without_waiting() -> None:
    ref = echo.remote(1)
    assert eventually(lambda: lattica.wait([ref], timeout=0)[0]) == [ref]
    other = echo.remote(2)
    time.sleep(0.2)
    assert lattica.get(other, timeout=0) == 2


@pytest.mark.usefixtures("two_cpus")
def test_wait_parts_the_ready_from_the_rest_in_the_order_given() -> None:
    slow, quick, put = sleep.remote(1.5), sleep.remote(0.05), lattica.put(1)
    assert lattica.wait([slow, quick, put]) == ([put], [slow, quick])
    assert lattica.wait([slow, quick, put], num_returns=2) == ([quick, put], [slow])
    assert lattica.wait([slow], timeout=0) == ([], [slow])
    began = time.monotonic()
    assert lattica.wait([slow, put], num_returns=2, timeout=0.05) == ([put], [slow])
    assert time.monotonic() - began < 1.0
    assert lattica.wait([slow, quick, put], num_returns=3, fetch_local=False) == ([slow, quick, put], [])
    ready, rest = lattica.wait([put, quick, slow], num_returns=1)
    assert (ready, rest) == ([put], [quick, slow]), "no more are ready than were asked for"


@pytest.mark.usefixtures("two_cpus")
def test_wait_counts_a_failed_task_as_ready() -> None:
    failed = fail.remote("x")
    assert lattica.wait([failed], timeout=5) == ([failed], [])


@pytest.mark.usefixtures("two_cpus")
def test_wait_refuses_duplicates_and_numbers_that_cannot_be() -> None:
    a, b = lattica.put(1), lattica.put(2)
    for refs, number in (([a, a], 1), ([a, b], 3), ([a, b], 0)):
        with pytest.raises(ValueError):
            lattica.wait(refs, num_returns=number)
    assert lattica.wait([]) == ([], [])


@pytest.mark.usefixtures("two_cpus")
def test_a_task_waits_and_gets_as_the_driver_does() -> None:
    @lattica.remote
    def inside() -> Any:
        slow, quick = sleep.remote(0.3), echo.remote(1)
        ready, rest = lattica.wait([slow, quick])
        try:
            lattica.get(slow, timeout=0.01)
        except GetTimeoutError:
            return ready == [quick], rest == [slow]

    assert lattica.get(inside.remote()) == (True, True)


@pytest.mark.usefixtures("two_cpus")
def test_threads_wait_for_different_refs_at_once() -> None:
    refs = [sleep.remote(0.02 * (k % 3), k) for k in range(24)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(lattica.get, refs)) == list(range(24))


# -- await and futures


@pytest.mark.usefixtures("two_cpus")
async def test_a_ref_is_awaited_for_its_value_or_its_failure() -> None:
    assert await sleep.remote(0.05, "value") == "value"
    assert await lattica.put("there") == "there"
    with pytest.raises(KeyError):
        await fail.remote("x")
    late = sleep.remote(0.3, 1)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(late, 0.01)
    assert await late == 1


@pytest.mark.usefixtures("two_cpus")
def test_a_refs_future_has_its_value_or_its_failure() -> None:
    future = sleep.remote(0.05, "value").future()
    called = threading.Event()
    future.add_done_callback(lambda _: called.set())
    assert future.result(timeout=5) == "value"
    assert called.wait(5)
    assert isinstance(fail.remote("x").future().exception(timeout=5), KeyError)
    assert lattica.put(3).future().result(timeout=1) == 3
    done = [sleep.remote(0.01 * k, k).future() for k in range(3)]
    assert {f.result() for f in concurrent.futures.as_completed(done, timeout=5)} == {0, 1, 2}


# -- refs inside things


@pytest.mark.usefixtures("two_cpus")
def test_refs_inside_containers_results_and_puts_live_as_long_as_what_holds_them() -> None:
    @lattica.remote
    def wrap(depth: int, box: Any) -> Any:
        return {"depth": depth, "box": [box[0], lattica.put(np.full(200_000, depth))]}

    ref = lattica.put([echo.remote("core")])
    box = lattica.get(ref)
    del ref
    outer = lattica.put(box)
    del box
    gc.collect()
    got = lattica.get(wrap.remote(3, lattica.get(outer)))
    assert lattica.get(got["box"][0]) == "core"
    assert lattica.get(got["box"][1]).sum() == 600_000
    large = lattica.put([got["box"][1], np.zeros(100_000)])
    del got
    gc.collect()
    assert lattica.get(lattica.get(large)[0]).sum() == 600_000
    assert lattica.get(lattica.get(echo.remote([large]))[0])[1].sum() == 0


@pytest.mark.usefixtures("two_cpus")
def test_a_ref_that_comes_back_is_the_one_that_left() -> None:
    ref = lattica.put(1)
    assert lattica.get(echo.remote([ref, ref])) == [ref, ref]
    assert lattica.get(echo.remote([ref]))[0] is ref
    assert copy.deepcopy([ref])[0] is ref is copy.copy(ref)
    assert len({ref, lattica.put(1)}) == 2


@pytest.mark.usefixtures("two_cpus")
def test_a_promised_ref_inside_a_value_resolves_elsewhere_whenever_it_is_ready() -> None:
    @lattica.remote
    def get_inner(box: list[Any]) -> Any:
        return lattica.get(box[0])

    slow = sleep.remote(0.2, "late")
    assert lattica.get(get_inner.remote([slow])) == "late"
    with pytest.raises(KeyError):
        lattica.get(get_inner.remote([fail.remote("x")]))


@pytest.mark.usefixtures("two_cpus")
def test_another_pickler_cannot_take_a_ref_along_unseen() -> None:
    with pytest.raises(OutOfBandRefError, match="argument"):
        pickle.dumps(lattica.put(1))


@pytest.mark.usefixtures("two_cpus")
def test_equal_bytes_have_equal_content_ids_and_cid_waits_for_the_value() -> None:
    numbers = np.arange(100_000)
    large = [lattica.put(numbers), echo.remote(numbers), echo.remote(lattica.put(numbers))]
    assert len({ref.cid for ref in large}) == 1
    small = [lattica.put(b"bytes"), echo.remote(b"bytes"), sleep.remote(0.1, b"bytes")]
    assert len({ref.cid for ref in small}) == 1
    assert small[0].cid != large[0].cid != lattica.put(numbers + 1).cid
    assert small[0] != small[1], "equality of refs is that of ids"
    with pytest.raises(KeyError):
        fail.remote("x").cid


# -- views


@pytest.mark.usefixtures("two_cpus")
def test_large_arrays_are_read_only_views_here_and_there() -> None:
    @lattica.remote
    def look(numbers: np.ndarray) -> tuple[bool, bool, str]:
        try:
            numbers[0] = 1
        except ValueError as error:
            return numbers.flags.writeable, numbers.flags.owndata, str(error)
        return True, True, ""

    ref = lattica.put(np.arange(MIB))
    writeable, owned, words = lattica.get(look.remote(ref))
    assert not writeable and not owned and "read-only" in words
    here = lattica.get(ref)
    assert not here.flags.writeable and not here.flags.owndata
    again = lattica.get(ref)
    assert np.shares_memory(here, again), "both are views of the same bytes"
    assert lattica.get(array.remote(1, 1)).flags.writeable is False


def write_store_over(mib: int) -> None:
    """Put arrays into spans of `mib` MiB in all, twice: whatever was free has other bytes now."""
    for _ in range(2):
        keep = [lattica.put(np.full(8 * MIB - 1000, 255, np.uint8)) for _ in range(mib // 8)]
        del keep


def test_an_array_and_its_slices_keep_their_bytes_after_the_ref_is_gone(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=1, object_store_memory=64 * MIB)
    made = {"put": lattica.put(np.full(7 * MIB, 7, np.uint8)), "returned": array.remote(7, 7)}
    views = {}
    for name, ref in made.items():
        whole = lattica.get(ref)
        views[name] = whole[3 * MIB : 5 * MIB : 2]
    del whole, ref
    made.clear()
    gc.collect()
    write_store_over(40)
    assert all((view == 7).all() for view in views.values())
    views.clear()
    gc.collect()
    write_store_over(56)  # what the views held is free again


def test_a_worker_that_keeps_a_view_keeps_its_bytes(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=2, object_store_memory=64 * MIB)

    @lattica.remote
    class Keeper:
        def keep(self, numbers: np.ndarray) -> None:
            self.part = numbers[MIB : 2 * MIB]

        def look(self) -> set[int]:
            return set(np.unique(self.part).tolist())

    keeper = Keeper.remote()
    lattica.get(keeper.keep.remote(lattica.put(np.full(7 * MIB, 9, np.uint8))))
    gc.collect()
    write_store_over(48)
    assert lattica.get(keeper.look.remote()) == {9}


@lattica.remote
class Reader:
    def take(self, numbers: np.ndarray) -> int:
        self.numbers = numbers
        return os.getpid()

    def intact(self) -> bool:
        return bool((self.numbers == 5).all())


def stop_a_reader(seconds: float) -> None:
    """Stop a reader while everything else in the store is written over and over again."""
    reader = Reader.remote()
    pid = lattica.get(reader.take.remote(array.remote(5, 16)))
    gc.collect()
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            for _ in range(8):
                lattica.put(np.full(8 * MIB, 255, np.uint8))
            time.sleep(seconds / 20)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert lattica.get(reader.intact.remote(), timeout=10)


def test_a_stopped_reader_finds_its_array_intact(fresh: Callable[..., Any]) -> None:
    """Inside a machine a hold ends with the process, never with time."""
    fresh(num_cpus=2, object_store_memory=64 * MIB)
    stop_a_reader(1.0)


@pytest.mark.slow
def test_a_reader_stopped_for_ten_seconds_finds_its_array_intact(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=2, object_store_memory=64 * MIB)
    stop_a_reader(10.0)


# -- a full store


def test_a_full_store_is_an_error_after_its_patience_and_works_on_afterwards(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=1, object_store_memory=32 * MIB)
    keep = [lattica.get(lattica.put(np.ones(8 * MIB, np.uint8))) for _ in range(3)]  # what one looks at stays in memory
    too_much = (
        lambda: lattica.put(np.ones(16 * MIB, np.uint8)),
        lambda: lattica.get(array.remote(1, 16)),
        lambda: total.remote(np.ones(16 * MIB, np.uint8)),
    )
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        errors = [attempt.exception() for attempt in [pool.submit(each) for each in too_much]]
    assert PATIENCE_S < 5, "of what is promised, for the rest"
    assert time.monotonic() - began < PATIENCE_S + 5, "with what a busy machine takes"
    for error in errors:
        assert isinstance(error, ObjectStoreFullError)
        assert "30 of 32 MiB" in str(error) and "do next" in str(error)
        assert f"under arrays, which keep them in memory, lie 24 MiB of a program, pid {os.getpid()}" in str(error)
    assert all(array.all() for array in keep)
    assert lattica.get(echo.remote("small things go on")) == "small things go on"
    keep.clear()
    errors.clear()
    gc.collect()
    assert lattica.get(total.remote(np.ones(16 * MIB, np.uint8))) == 16 * MIB
    assert lattica.get(array.remote(1, 16)).sum() == 16 * MIB


def test_a_value_larger_than_the_whole_store_is_refused_at_once(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=1, object_store_memory=16 * MIB)
    began = time.monotonic()
    with pytest.raises(ObjectStoreFullError):
        lattica.put(np.zeros(20 * MIB, np.uint8))
    assert time.monotonic() - began < PATIENCE_S


def test_ten_times_the_store_goes_through_it_when_refs_are_let_go(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=2, object_store_memory=64 * MIB)
    for k in range(40):
        numbers = lattica.get(array.remote(k, 8))
        assert lattica.get(total.remote(lattica.put(numbers[: 4 * MIB]))) == 4 * MIB * k


def test_memory_that_cannot_be_mapped_is_a_full_store_and_not_the_end(
    fresh: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh(num_cpus=1)
    arena = current.get().objects.arena
    open_span = arena.open_span

    def refuse(offset: int, size: int) -> None:
        open_span(offset, size)
        raise OSError(errno.ENOMEM, "no memory for page tables")

    monkeypatch.setattr(arena, "open_span", refuse)
    with pytest.raises(ObjectStoreFullError, match="cannot be mapped"):
        lattica.put(bytes(1 << 20))
    monkeypatch.undo()
    assert lattica.get(lattica.put(bytes(1 << 20))) == bytes(1 << 20)
