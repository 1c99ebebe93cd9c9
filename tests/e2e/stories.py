"""Stories of work that comes and goes, each of which leaves nothing: told in test_leaks, and longer in slow."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import numpy as np
import pytest

import lattica
from tests.e2e.sample_actors import Counter, Notes


@lattica.remote
def echo(value: Any) -> Any:
    return value


@lattica.remote
def ones(count: int) -> Any:
    return np.ones(count)


@lattica.remote
def boxed(value: Any) -> list[Any]:
    return [value]


@lattica.remote
def open_box(box: list[Any]) -> Any:
    return lattica.get(box[0])


@lattica.remote
def fail(words: str) -> None:
    raise ValueError(words)


def tasks_and_calls(tasks: int, calls: int, batch: int = 5_000) -> None:
    """Batches of tasks, a tenth of them nested or failing, and of calls."""
    counter = Counter.remote()
    for _ in range(tasks // batch):
        lattica.get([echo.remote(number) for number in range(batch * 9 // 10)])
        for ref in [fail.remote("no") for _ in range(batch // 20)]:
            with pytest.raises(ValueError):
                lattica.get(ref)
        lattica.get([open_box.remote([echo.remote(number)]) for number in range(batch // 20)])
    for _ in range(calls // batch):
        lattica.get([counter.add.remote() for _ in range(batch)])


def large_values(rounds: int) -> None:
    """Values of megabytes put, got, passed, returned, kept by actors and dropped."""
    notes = Notes.remote()
    for number in range(rounds):
        ref = lattica.put(np.full(300_000, number))
        values = lattica.get([ref, echo.remote(ref), ones.remote(100_000), open_box.remote([ref]), boxed.remote(ref)])
        assert values[1][0] == number
        slices = [value[10:20] for value in values[:3]]
        lattica.get([notes.add.remote(ref), notes.add.remote([ref]), notes.add.remote(values[0])])
        lattica.get(notes.drop.remote())
        assert slices[0][0] == number


def nested_refs(rounds: int) -> None:
    """Refs in values in refs, passed back and forth."""
    for number in range(rounds):
        inner = lattica.put([lattica.put(number), echo.remote(number)])
        (again,) = lattica.get(boxed.remote([inner]))
        deep = lattica.get(again[0])
        assert lattica.get(deep) == [number, number]
        (box,) = lattica.get(open_box.remote([boxed.remote([inner])]))
        assert lattica.get(lattica.get(box[0])[1]) == number


def promised_refs(rounds: int) -> None:
    """Refs given away before they have values, and dropped at once."""
    for _ in range(rounds):
        ref = echo.remote(1)
        boxed.remote([ref])
        box = boxed.remote([boxed.remote([ref])])
        lattica.put([box, ref])


def handles(rounds: int) -> None:
    """Five actors a round: used, given away, killed, crashed, never begun."""
    for number in range(rounds):
        one, two, three = Counter.remote(number), Counter.remote(), Notes.remote()
        four = Counter.options(name=f"four{number}", max_restarts=1).remote()
        five = Counter.options(resources={"moon": 1}).remote()
        lattica.get([one.add.remote(), three.add.remote([one, two]), four.add.remote()])
        lattica.get(boxed.remote([one, three]))
        two.crash.remote()
        lattica.kill(four)
        for gone in (two, five):
            with pytest.raises(lattica.exceptions.RayError):
                lattica.get(gone.add.remote())


def ways_of_waiting(count: int) -> None:
    """get, wait, await, futures, timeouts and cancels, from several threads."""

    async def gather() -> None:
        await asyncio.gather(*[echo.remote(number) for number in range(count)])

    def wait() -> None:
        refs = [echo.remote(number) for number in range(count)]
        while refs:
            _, refs = lattica.wait(refs, num_returns=min(50, len(refs)))

    asyncio.run(gather())
    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    futures = [echo.remote(number).future() for number in range(count)]
    assert [future.result(timeout=10) for future in futures] == list(range(count))
    for _ in range(count // 10):
        with contextlib.suppress(lattica.exceptions.GetTimeoutError):
            lattica.get(echo.remote(1), timeout=0)
        lattica.cancel(echo.remote(2))
