"""Generators on one machine: what is made is there at once, in order, and when something dies or is dropped."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.actors import current
from lattica.actors.producing import Producing
from lattica.codec import messages as m
from lattica.errors import ActorDiedError, StreamReplayError, TaskCancelledError, WorkerCrashedError
from tests.e2e.conftest import Sessions, eventually
from tests.e2e.footprint import books


@pytest.fixture(autouse=True)
def session(sessions: Sessions) -> None:
    sessions.share(num_cpus=2)


@lattica.remote
def count(to: int, pause_s: float = 0.0) -> Iterator[int]:
    for number in range(to):
        yield number
        time.sleep(pause_s)


@lattica.remote
def arrays(number: int, size: int = 300_000) -> Iterator[Any]:
    for at in range(number):
        yield np.full(size, at, np.uint8)


@lattica.remote
def fails_after(number: int) -> Iterator[int]:
    yield from range(number)
    raise ValueError("no more")


def mark(folder: str, name: str) -> None:
    Path(folder, name).touch()


@lattica.remote
def leaves_marks(folder: str, number: int) -> Iterator[int]:
    try:
        for at in range(number):
            mark(folder, str(at))
            yield at
    finally:
        mark(folder, "closed")


def marks(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def numbers(to: int) -> set[str]:
    return {str(at) for at in range(to)}


@lattica.remote
class Maker:
    """Generators of all kinds: its calls run one after the other."""

    def count(self, to: int) -> Iterator[int]:
        yield from range(to)

    def slow(self, folder: str, number: int) -> Iterator[int]:
        for at in range(number):
            mark(folder, str(at))
            yield at
            time.sleep(0.02)

    @lattica.method(_generator_backpressure_num_objects=1)
    def one_by_one(self, folder: str, number: int) -> Iterator[int]:
        for at in range(number):
            mark(folder, str(at))
            yield at

    def dies_after(self, number: int) -> Iterator[int]:
        yield from range(number)
        time.sleep(0.1)
        os._exit(1)

    @lattica.method(num_returns="dynamic")
    def at_once(self, to: int) -> Iterator[int]:
        yield from range(to)

    def fails(self) -> Iterator[int]:
        yield 1
        raise KeyError("2")

    def ping(self) -> str:
        return "pong"

    def kept(self) -> int:
        """Of generators that have run here."""
        return sum(len(one.runs) for one in gc.get_objects() if isinstance(one, Producing))


@lattica.remote
class AsyncMaker:
    async def count(self, to: int, pause_s: float = 0.0) -> AsyncIterator[int]:
        for number in range(to):
            yield number
            await asyncio.sleep(pause_s)

    def plain(self, to: int) -> Iterator[int]:
        yield from range(to)

    @lattica.method(_generator_backpressure_num_objects=2)
    async def held_back(self, folder: str, number: int) -> AsyncIterator[int]:
        try:
            for at in range(number):
                mark(folder, str(at))
                yield at
        finally:
            mark(folder, "closed")


def test_refs_come_while_the_task_still_makes_more() -> None:
    list(count.remote(1))  # its worker has started
    generator = count.remote(3, pause_s=1.0)
    assert isinstance(generator, lattica.ObjectRefGenerator)
    began = time.monotonic()
    assert lattica.get(next(generator)) == 0
    assert time.monotonic() - began < 1.0 and not generator.is_finished() and not generator.next_ready()
    ready, rest = lattica.wait([generator], timeout=0)
    assert not ready and rest == [generator]
    ready, _ = lattica.wait([generator, generator.completed()], timeout=5)
    assert ready == [generator] and generator.next_ready()
    assert [lattica.get(ref) for ref in generator] == [1, 2]
    assert generator.is_finished() and lattica.get(generator.completed()) is None
    assert lattica.wait([generator], timeout=0) == ([generator], [])


def test_thousands_of_items_come_in_order() -> None:
    assert lattica.get(list(count.remote(5_000))) == list(range(5_000))


def test_large_items_are_read_in_place_and_those_with_refs_keep_what_they_refer_to() -> None:
    assert [int(lattica.get(ref)[-1]) for ref in arrays.remote(5)] == list(range(5))

    @lattica.remote
    def boxes() -> Iterator[Any]:
        for at in range(3):
            yield [lattica.put(np.full(200_000, at, np.uint8))]

    refs = list(boxes.remote())
    assert [int(lattica.get(lattica.get(ref)[0])[-1]) for ref in refs] == [0, 1, 2]


def test_items_are_arguments_of_tasks_as_any_ref() -> None:
    @lattica.remote
    def total(*values: Any) -> int:
        return sum(int(value[0]) for value in values)

    assert lattica.get(total.remote(*arrays.remote(4))) == 6


def test_what_a_generator_raises_is_its_last_item() -> None:
    generator = fails_after.remote(2)
    assert [lattica.get(next(generator)) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="no more"):
        lattica.get(next(generator))
    with pytest.raises(StopIteration):
        next(generator)
    assert lattica.get(generator.completed()) is None, "as in Ray"


def test_all_items_of_a_dynamic_one_are_the_value_of_one_ref() -> None:
    ref = fails_after.options(num_returns="dynamic").remote(2)
    assert isinstance(ref, lattica.ObjectRef)
    first, second, error = lattica.get(ref)
    assert lattica.get([first, second]) == [0, 1]
    with pytest.raises(ValueError, match="no more"):
        lattica.get(error)
    assert len(lattica.get(arrays.options(num_returns="dynamic").remote(3))) == 3


def test_items_are_data_where_the_program_takes_data_alone() -> None:
    data = fails_after.options(results="data")
    assert [lattica.get(ref) for ref in list(data.remote(2))[:2]] == [0, 1]
    assert len(lattica.get(data.options(num_returns="dynamic").remote(2))) == 3
    assert [int(lattica.get(ref)[0]) for ref in arrays.options(results="data").remote(3)] == [0, 1, 2]

    @lattica.remote(results="data")
    def no_data() -> Iterator[object]:
        yield object()

    with pytest.raises(lattica.errors.SerializationError, match="item 0 of"):
        lattica.get(next(no_data.remote()))


def test_a_number_of_results_takes_so_many_items() -> None:
    assert lattica.get(count.options(num_returns=1).remote(3)) == 0
    assert lattica.get(count.options(num_returns=2).remote(3)) == [0, 1]
    first, second, third = count.options(num_returns=3).remote(2)
    assert lattica.get([first, second]) == [0, 1]
    with pytest.raises(ValueError, match="num_returns=3"):
        lattica.get(third)


def test_no_more_items_wait_than_the_window_allows(tmp_path: Path) -> None:
    generator = leaves_marks.options(_generator_backpressure_num_objects=2).remote(str(tmp_path), 9)
    assert eventually(lambda: marks(tmp_path) == numbers(2))
    next(generator)
    assert eventually(lambda: marks(tmp_path) == numbers(3))
    time.sleep(0.05)
    assert marks(tmp_path) == numbers(3)
    assert [lattica.get(ref) for ref in generator] == list(range(1, 9))


def test_a_generator_that_waits_for_its_consumer_lends_out_its_cpu(tmp_path: Path) -> None:
    """Whoever shall take the items may be a task."""

    @lattica.remote(num_cpus=2)
    def consume(value: int) -> int:
        return value

    generator = leaves_marks.options(num_cpus=2, _generator_backpressure_num_objects=1).remote(str(tmp_path), 3)
    assert [lattica.get(consume.remote(ref), timeout=10) for ref in generator] == [0, 1, 2]


def test_a_generator_that_nobody_wants_is_closed_and_its_items_are_freed(tmp_path: Path) -> None:
    generator = leaves_marks.options(_generator_backpressure_num_objects=4).remote(str(tmp_path), 1_000)
    next(generator)
    del generator
    assert eventually(lambda: "closed" in marks(tmp_path)) and len(marks(tmp_path)) < 10
    assert eventually(lambda: not books()), books()


def test_a_cancelled_generator_ends_where_it_is(tmp_path: Path) -> None:
    generator = count.remote(3, pause_s=30)
    assert lattica.get(next(generator)) == 0
    lattica.cancel(generator)
    with pytest.raises(TaskCancelledError):
        lattica.get(next(generator))
    with pytest.raises(StopIteration):
        next(generator)
    with pytest.raises(TaskCancelledError):
        lattica.get(generator.completed())
    waits = leaves_marks.options(_generator_backpressure_num_objects=1).remote(str(tmp_path), 3)
    assert eventually(lambda: marks(tmp_path) == numbers(1))
    lattica.cancel(waits)
    assert eventually(lambda: "closed" in marks(tmp_path)), "its finally clauses run"


@lattica.remote
def dies_once(folder: str, number: int) -> Iterator[Any]:
    """Dies at its third item, the first time."""
    for at in range(number):
        if at == 2 and not Path(folder, "died").exists():
            Path(folder, "died").touch()
            time.sleep(0.1)
            os._exit(1)
        yield np.full(200_000, at, np.uint8)


def test_after_its_worker_died_a_generator_goes_on_with_the_items_that_are_missing(tmp_path: Path) -> None:
    generator = dies_once.remote(str(tmp_path), 5)
    refs = list(generator)
    assert [int(lattica.get(ref)[0]) for ref in refs] == list(range(5))
    serials = [int(ref.hex(), 16) for ref in refs]
    assert serials == list(range(serials[0], serials[0] + 5)), "the ids are those of the first run"


def test_without_retries_the_last_ref_says_that_the_worker_died(tmp_path: Path) -> None:
    generator = dies_once.options(max_retries=0).remote(str(tmp_path), 5)
    assert [int(lattica.get(next(generator))[0]) for _ in range(2)] == [0, 1]
    with pytest.raises(WorkerCrashedError):
        lattica.get(next(generator))
    with pytest.raises(StopIteration):
        next(generator)
    with pytest.raises(WorkerCrashedError):
        lattica.get(generator.completed())


def lose(*refs: Any) -> None:
    """As if they had lain on a machine that is gone."""
    with current.get().lock:
        for ref in refs:
            current.get().objects.lost_elsewhere(m.Lost(ref.id, "the test says so"))


@lattica.remote
def shorter_each_time(folder: str) -> Iterator[Any]:
    Path(folder, str(len(marks(Path(folder))))).touch()
    for at in range(7 - len(marks(Path(folder)))):
        yield np.full(200_000, at, np.uint8)


def test_items_that_are_lost_are_made_again_by_another_run(tmp_path: Path) -> None:
    refs = list(arrays.remote(6))
    lose(refs[4], refs[2])
    assert [int(lattica.get(ref, timeout=10)[-1]) for ref in refs] == list(range(6))
    dynamic = list(lattica.get(arrays.options(num_returns="dynamic").remote(3)))
    lose(dynamic[1])
    assert int(lattica.get(dynamic[1], timeout=10)[-1]) == 1
    refs = list(shorter_each_time.remote(str(tmp_path)))
    lose(refs[4])
    assert int(lattica.get(refs[4], timeout=10)[-1]) == 4
    lose(refs[5])
    with pytest.raises(StreamReplayError):
        lattica.get(refs[5], timeout=10)


def test_a_generator_is_retried_after_what_it_raised_if_asked(tmp_path: Path) -> None:
    @lattica.remote(retry_exceptions=True)
    def fails_once(folder: str) -> Iterator[int]:
        yield 0
        if not Path(folder, "failed").exists():
            Path(folder, "failed").touch()
            raise OSError("again")
        yield 1

    assert lattica.get(list(fails_once.remote(str(tmp_path)))) == [0, 1]


def test_an_actors_generators_stream_and_its_other_calls_come_after() -> None:
    maker = Maker.remote()
    generator, ping = maker.count.remote(500), maker.ping.remote()
    assert lattica.get(list(generator)) == list(range(500)) and lattica.get(ping) == "pong"
    assert [lattica.get(ref) for ref in lattica.get(maker.at_once.remote(3))] == [0, 1, 2]
    failing = maker.fails.remote()
    assert lattica.get(next(failing)) == 1
    with pytest.raises(KeyError):
        lattica.get(next(failing))
    with pytest.raises(StopIteration):
        next(failing)


def test_an_actor_makes_the_next_item_when_the_last_was_taken(tmp_path: Path) -> None:
    maker = Maker.remote()
    generator = maker.one_by_one.remote(str(tmp_path), 3)
    for at in range(3):
        assert eventually(lambda at=at: marks(tmp_path) == numbers(at + 1))
        assert lattica.get(next(generator)) == at
    with pytest.raises(StopIteration):
        next(generator)


def test_one_that_is_dropped_before_it_begins_does_not_hold_up_its_actor(tmp_path: Path) -> None:
    maker = Maker.remote()
    begun = maker.one_by_one.remote(str(tmp_path), 3)
    assert eventually(lambda: marks(tmp_path) == numbers(1))
    behind = maker.one_by_one.remote(str(tmp_path), 3)
    del behind
    assert lattica.get(list(begun)) == [0, 1, 2]
    assert lattica.get(maker.ping.remote(), timeout=10) == "pong"


@pytest.mark.parametrize("threads", [1, 3])
def test_generators_of_actors_end_when_they_are_cancelled_or_dropped(tmp_path: Path, threads: int) -> None:
    maker = Maker.options(max_concurrency=threads).remote()
    generator = maker.slow.remote(str(tmp_path), 1_000)
    assert lattica.get(next(generator)) == 0
    lattica.cancel(generator)
    refs = list(generator)
    with pytest.raises(TaskCancelledError):
        lattica.get(refs[-1])
    other = maker.slow.remote(str(tmp_path), 1_000)
    next(other)
    del other
    assert lattica.get(maker.ping.remote(), timeout=5) == "pong"
    assert len(marks(tmp_path)) < 1_000


def test_async_generators_run_side_by_side(tmp_path: Path) -> None:
    maker = AsyncMaker.remote()

    async def take(generator: Any) -> list[int]:
        return [await ref async for ref in generator]

    async def both() -> list[list[int]]:
        return await asyncio.gather(*[take(maker.count.remote(20, 0.01)) for _ in range(5)])

    began = time.monotonic()
    assert asyncio.run(both()) == [list(range(20))] * 5
    assert time.monotonic() - began < 3
    assert lattica.get(list(maker.plain.remote(50))) == list(range(50))
    held = maker.held_back.remote(str(tmp_path), 100)
    assert eventually(lambda: marks(tmp_path) == numbers(2))
    next(held)
    assert eventually(lambda: marks(tmp_path) == numbers(3))
    lattica.cancel(held)
    assert eventually(lambda: "closed" in marks(tmp_path))
    with pytest.raises(TaskCancelledError):
        lattica.get(list(held)[-1])


def test_an_actor_forgets_a_generator_that_has_ended() -> None:
    maker = Maker.remote()
    list(maker.count.remote(700))
    next(maker.count.remote(700))
    assert eventually(lambda: lattica.get(maker.kept.remote()) == 0)


@lattica.remote
def dies_unheard(folder: str, number: int) -> Iterator[Any]:
    """Dies, the first time, before anybody has read what it has made."""
    yield np.zeros(1)
    for at in range(number):
        yield np.full(200_000, at, np.uint8)
    if not Path(folder, "died").exists():
        mark(folder, "died")
        os._exit(1)


@lattica.remote
def dies_at_a_seal(folder: str) -> Iterator[Any]:
    """Dies, the first time, when the node knows of its third large item, and the caller does not."""
    for at in range(5):
        if at == 2 and "died" not in marks(Path(folder)):
            mark(folder, "died")
            runtime = current.get()
            hand_over = runtime.objects.hand_over

            def and_die(*args: Any, hand_over: Any = hand_over, runtime: Any = runtime) -> Any:
                hand_over(*args)
                runtime.reactor.flush()
                os._exit(1)

            runtime.objects.hand_over = and_die  # type: ignore[method-assign]
        yield np.full(200_000, at, np.uint8)


def test_an_item_that_the_node_knew_and_its_caller_did_not_is_made_again_and_freed_once(tmp_path: Path) -> None:
    assert eventually(lambda: not books()), books()
    assert [int(lattica.get(ref)[-1]) for ref in dies_at_a_seal.remote(str(tmp_path))] == list(range(5))
    assert eventually(lambda: not books()), books()


def test_what_a_dead_worker_had_made_and_nobody_heard_of_is_freed(tmp_path: Path) -> None:
    assert eventually(lambda: not books()), books()
    generator = dies_unheard.remote(str(tmp_path), 20)
    next(generator)
    with current.get().lock:  # we read nothing meanwhile
        eventually(lambda: "died" in marks(tmp_path))
    assert len(list(generator)) == 20
    del generator
    assert eventually(lambda: not books()), books()


def test_when_its_actor_dies_a_generator_ends_in_that_error_and_with_retries_it_goes_on() -> None:
    maker = Maker.options(max_restarts=1).remote()
    generator = maker.dies_after.remote(3)
    assert [lattica.get(next(generator)) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(lattica.exceptions.ActorUnavailableError):
        lattica.get(next(generator))
    again = maker.dies_after.options(max_task_retries=1).remote(3)
    assert [lattica.get(next(again)) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ActorDiedError):
        lattica.get(next(again))


def test_generators_stay_where_they_were_called() -> None:
    generator = count.remote(1)
    for use in (lattica.put, count.remote):
        with pytest.raises(TypeError, match="pass the refs that it yields"):
            use(generator)
    assert lattica.get(generator) is generator, "as in Ray"


def test_generators_leave_nothing_behind() -> None:
    """Read to the end, half, and not at all; of tasks and actors; small items and large ones."""
    runtime = current.get()

    def story() -> None:
        maker, asyncs = Maker.remote(), AsyncMaker.remote()
        assert len(list(count.remote(2_000))) == 2_000
        assert len(list(maker.count.remote(2_000))) == 2_000
        assert len(list(asyncs.count.remote(500))) == 500
        for generator in [arrays.remote(20), *(arrays.remote(5) for _ in range(10))]:
            next(generator)
        lattica.get([count.options(num_returns="dynamic").remote(20) for _ in range(5)])
        [maker.count.remote(10) for _ in range(20)]
        list(fails_after.remote(3))

    story()
    gc.collect()

    def left() -> dict[str, int]:
        runtime.reactor.ring()
        tables = {"streams": runtime.objects.streams, "refs": runtime.objects.table, "peers": runtime.calls.peers,
                  "sealed": runtime.objects._sealed, "leases": runtime.tasks.leases}  # fmt: skip
        return {name: len(table) for name, table in tables.items() if len(table)}

    assert eventually(lambda: not books() and not left(), within_s=10), (books(), left())
