"""LatticaExecutor is an executor of `concurrent.futures` over tasks. CPython's own tests: tests/foreign."""

from __future__ import annotations

import os
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

import lattica
from lattica.errors import ConfigError, SerializationError, TaskCancelledError, TaskError
from lattica.util.executor import LatticaExecutor

pytestmark = pytest.mark.usefixtures("four_cpus")


def capture(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def test_a_call_has_any_arguments_and_refs_arrive_as_values() -> None:
    with LatticaExecutor() as executor:
        assert executor.submit(capture, 1, self=2, fn=3, setup=4).result() == ((1,), {"self": 2, "fn": 3, "setup": 4})
        assert executor.submit(sum, lattica.put([1, 2, 3])).result() == 6
        assert executor.submit(lambda: os.getpid()).result() != os.getpid()
    assert lattica.get(lattica.remote(capture).remote(self=1)) == ((), {"self": 1})


def test_what_a_call_raises_is_what_the_future_raises() -> None:
    with LatticaExecutor(2) as executor:
        future = executor.submit(divmod, 1, 0)
        with pytest.raises(ZeroDivisionError) as raised:
            future.result()
        assert type(raised.value) is ZeroDivisionError and isinstance(raised.value.__cause__, TaskError)
        assert "divmod" in str(raised.value.__cause__)
        unsendable = [executor.submit(id, threading.Lock()) for _ in range(1500)]
        assert all(isinstance(call.exception(), SerializationError) for call in unsendable)
        assert executor.submit(pow, 2, 3).result() == 8


def test_no_more_run_at_a_time_than_was_said_and_the_rest_can_be_cancelled(tmp_path: Path) -> None:
    def alone(n: int) -> int:
        (tmp_path / "here").mkdir()
        time.sleep(0.01)
        (tmp_path / "here").rmdir()
        return n

    with LatticaExecutor(max_workers=1, remote_args={"num_cpus": 0.5}) as executor:
        calls = [executor.submit(alone, n) for n in range(6)]
        assert calls[0].running() and not calls[0].cancel()
        assert calls[5].cancel() and calls[5].cancelled()
        assert [call.result() for call in calls[:5]] == list(range(5))
        assert list(futures.as_completed(calls)) and futures.wait(calls).not_done == set()


def test_a_map_reads_ahead_no_further_than_it_was_told() -> None:
    taken: list[int] = []

    def items() -> Any:
        for n in range(20):
            taken.append(n)
            yield n

    with LatticaExecutor() as executor:
        results = executor.map(abs, items(), chunksize=2, buffersize=4)
        assert len(taken) == 4 and next(results) == 0 and len(taken) == 6
        assert list(results) == list(range(1, 20))
        assert list(executor.map(pow, [2, 3], [3, 2], timeout=10)) == [8, 9]
        with pytest.raises(TimeoutError):
            list(executor.map(time.sleep, [1.0], timeout=0.01))
        for wrong in ({"chunksize": 0}, {"buffersize": 0}):
            with pytest.raises(ValueError):
                executor.map(abs, [], **wrong)


def test_calls_within_calls_borrow_the_cpu_of_who_waits_for_them() -> None:
    def outer(n: int) -> list[int]:
        with LatticaExecutor(2) as inner:
            return [call.result() for call in [inner.submit(pow, n, k) for k in range(4)]]

    with LatticaExecutor(4) as executor:
        assert list(executor.map(outer, range(6))) == [[n**k for k in range(4)] for n in range(6)]


def test_workers_can_be_ended_with_what_they_run() -> None:
    executor = LatticaExecutor(1)
    runs, waits = executor.submit(time.sleep, 60), executor.submit(time.sleep, 60)
    time.sleep(0.1)
    executor.terminate_workers()
    with pytest.raises(TaskCancelledError):
        runs.result(timeout=10)
    assert waits.cancelled()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)


def test_wrong_arguments_are_refused() -> None:
    for wrong, error in (({"max_workers": 0}, ValueError), ({"initializer": 3}, TypeError)):
        with pytest.raises(error):
            LatticaExecutor(**wrong)
    with pytest.raises(ConfigError):
        LatticaExecutor(remote_args={"speed": 3}).submit(abs, 1).result()


def test_a_session_that_ends_ends_its_calls_and_no_new_one_begins(fresh: Any) -> None:
    fresh(num_cpus=1)
    executor = LatticaExecutor(1)
    calls = [executor.submit(time.sleep, 60), executor.submit(time.sleep, 60)]
    time.sleep(0.1)
    lattica.shutdown()
    for call in calls:
        with pytest.raises(Exception, match="shut down"):
            call.result(timeout=10)
    assert not lattica.is_initialized()
