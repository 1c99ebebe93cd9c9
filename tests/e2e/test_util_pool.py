"""lattica's multiprocessing.Pool is the standard one over actors. CPython's own tests: tests/foreign."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from multiprocessing.pool import RemoteTraceback
from typing import Any

import pytest

import lattica
from lattica.errors import ActorDiedError, ActorError, ConfigError, SerializationError
from lattica.util.multiprocessing import Pool, TimeoutError

pytestmark = pytest.mark.usefixtures("four_cpus")


@pytest.fixture(scope="module")
def pool(sessions: Any) -> Iterator[Pool]:
    sessions.share(num_cpus=4)
    with Pool(2) as pool:
        yield pool


def power(base: int, exponent: int = 2) -> int:
    return base**exponent


def fail_at_three(n: int) -> int:
    if n == 3:
        raise KeyError(n)
    return n


def process(_: Any = None) -> int:
    return os.getpid()


def test_calls_maps_and_their_callbacks(pool: Pool) -> None:
    said: list[Any] = []
    assert pool.apply(power, (3,), {"exponent": 3}) == pool.apply(power, (3,), kwds={"exponent": 3}) == 27
    assert pool.apply_async(power, (3,), callback=said.append).get() == 9
    assert pool.map(power, range(10), chunksize=3) == [n * n for n in range(10)]
    assert pool.starmap(power, [(2, 3), (3, 2)]) == [8, 9]
    assert pool.starmap_async(power, [(2, 3)], callback=said.append).get(timeout=10) == [8]
    assert pool.map_async(power, [], callback=said.append).get() == []
    failed = pool.map_async(fail_at_three, range(5), callback=said.append, error_callback=said.append)
    failed.wait()
    assert failed.ready() and not failed.successful()
    with pytest.raises(KeyError) as raised:
        failed.get()
    assert type(raised.value) is KeyError and isinstance(raised.value.__cause__, RemoteTraceback)
    assert said[:3] == [9, [8], []] and [type(error) for error in said[3:]] == [KeyError]


def test_a_result_that_is_late_is_a_timeout(pool: Pool) -> None:
    slow = pool.apply_async(time.sleep, (0.4,))
    with pytest.raises(TimeoutError):
        slow.get(timeout=0.02)
    with pytest.raises(ValueError, match="not ready"):
        slow.successful()
    with pytest.raises(TimeoutError):
        pool.imap(time.sleep, [0.4]).next(timeout=0.02)
    assert slow.get() is None and slow.successful()


def test_imap_reads_no_further_than_its_processes_need(pool: Pool) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(40):
            taken.append(n)
            yield n

    results = pool.imap(power, items(), chunksize=2)
    assert len(taken) == 2 * 2 * 2
    for count, value in enumerate(results, 1):
        assert value == (count - 1) ** 2 and len(taken) <= count + 1 + 8
    assert count == 40
    assert sorted(pool.imap_unordered(power, range(9), chunksize=None)) == [n * n for n in range(9)]


def test_imap_goes_on_behind_an_error(pool: Pool) -> None:
    results, seen = pool.imap(fail_at_three, range(6)), []
    while True:
        try:
            seen.append(next(results))
        except KeyError:
            seen.append("failed")
        except StopIteration:
            break
    assert seen == [0, 1, 2, "failed", 4, 5]


def test_a_process_begins_with_its_initializer_and_ends_after_its_last_batch() -> None:
    def begin(name: str) -> None:
        os.environ["POOL_TEST"] = name

    with Pool(1, begin, ["ready"], maxtasksperchild=2) as pool:
        assert pool.map(os.getenv, ["POOL_TEST"]) == ["ready"]
        pids = [pool.apply(process) for _ in range(5)]
        assert len(set(pids)) == 3 and pids[1] == pids[2] != pids[3]
    with pytest.raises(ActorError, match="ZeroDivisionError"):
        Pool(1, divmod, (1, 0))


def test_any_number_of_calls_that_cannot_travel_fail_and_harm_nothing(pool: Pool) -> None:
    locks = [threading.Lock() for _ in range(1500)]
    with pytest.raises(SerializationError):
        pool.map(id, locks, chunksize=1)
    results = [pool.apply_async(id, (lock,)) for lock in locks[:3]]
    assert not any(result.successful() for result in results) and pool.apply(power, (3,)) == 9


def test_a_process_that_dies_ends_its_call_and_is_replaced() -> None:
    with Pool(1) as pool:
        first = pool.apply(process)
        with pytest.raises(ActorDiedError):
            pool.apply(os._exit, (1,))
        assert pool.apply(process) != first


def test_a_closed_pool_does_what_it_was_given() -> None:
    pool = Pool(2)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    result, unread = pool.map_async(power, range(20), chunksize=1), pool.imap(power, iter(range(30)))
    pool.close()
    for call in (lambda: pool.apply(power, (1,)), lambda: pool.imap(power, [1]), pool.__enter__):
        with pytest.raises(ValueError, match="not running"):
            call()
    pool.join()
    assert result.ready() and result.get() == [n * n for n in range(20)] and list(unread) == [n * n for n in range(30)]


def test_a_terminated_pool_ends_what_runs_and_what_waits() -> None:
    pool = Pool(1)
    results = [pool.apply_async(time.sleep, (60,)) for _ in range(3)]
    pool.terminate()
    pool.join()
    for result in results:
        with pytest.raises(ActorDiedError):
            result.get(timeout=10)


def test_wrong_pools_are_refused(pool: Pool) -> None:
    for given, error in (
        ({"processes": 0}, ValueError),
        ({"processes": 99}, ValueError),
        ({"initializer": 3}, TypeError),
        ({"maxtasksperchild": 0}, ValueError),
        ({"processes": 1, "ray_remote_args": {"speed": 1}}, ConfigError),
    ):
        with pytest.raises(error):
            Pool(**given)
    for size in (0, -1):
        with pytest.raises(ValueError):
            pool.map(power, [1], chunksize=size)
        with pytest.raises(ValueError):
            pool.imap(power, [1], chunksize=size)
    with pytest.raises(SerializationError, match="cannot be passed between processes"):
        lattica.put(pool)
