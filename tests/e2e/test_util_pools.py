"""ActorPool, Queue, as_completed and map_unordered behave as Ray's, over real processes."""

from __future__ import annotations

import asyncio
import queue as standard
import time
from typing import Any

import pytest

import lattica
from lattica.exceptions import ActorDiedError
from lattica.util import ActorPool, as_completed, map_unordered
from lattica.util.queue import Empty, Full, Queue

pytestmark = pytest.mark.usefixtures("four_cpus")


@lattica.remote
class Worker:
    def double(self, value: int) -> int:
        return 2 * value

    def slow(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def fail(self, value: int) -> int:
        raise KeyError(value)

    @lattica.method(num_returns=2)
    def both(self, value: int) -> tuple[int, int]:
        return value, -value

    def end(self, _: Any) -> None:
        import os

        os._exit(1)


@lattica.remote(num_cpus=0.5)
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def double(actor: Any, value: int) -> Any:
    return actor.double.remote(value)


def slow(actor: Any, value: float) -> Any:
    return actor.slow.remote(value)


# -- ActorPool -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workers(sessions: Any) -> list[Any]:
    sessions.share(num_cpus=4)
    return [Worker.remote(), Worker.remote()]


def test_a_pool_maps_in_order_and_out_of_order(workers: list[Any]) -> None:
    pool = ActorPool(workers)
    assert list(pool.map(double, range(20))) == [2 * n for n in range(20)]
    assert sorted(pool.map_unordered(double, range(20))) == [2 * n for n in range(20)]
    assert list(pool.map_unordered(slow, [0.3, 0.01])) == [0.01, 0.3]
    assert list(pool.map(lambda a, v: a.both.remote(v), [1, 2, 3])) == [[1, -1], [2, -2], [3, -3]]
    assert sorted(pool.map_unordered(lambda a, v: a.both.remote(v), [1, 2, 3])) == [[1, -1], [2, -2], [3, -3]]


def test_a_pool_hands_out_idle_actors_and_takes_no_actor_twice(workers: list[Any]) -> None:
    pool = ActorPool(workers[:1])
    pool.submit(double, 1)
    assert not pool.has_free() and pool.pop_idle() is None
    with pytest.raises(ValueError, match="already belongs"):
        pool.push(workers[0])
    assert pool.get_next() == 2 and pool.has_free() and not pool.has_next()
    pool.push(workers[1])
    assert {pool.pop_idle(), pool.pop_idle()} == set(workers) and pool.pop_idle() is None
    with pytest.raises(StopIteration):
        pool.get_next()
    with pytest.raises(StopIteration):
        pool.get_next_unordered()


def test_a_pool_gives_up_a_slow_call_only_when_it_is_told_to(workers: list[Any]) -> None:
    pool = ActorPool(workers)
    pool.submit(slow, 0.5)
    pool.submit(double, 4)
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.02)
    with pytest.raises(TimeoutError, match="no longer waited for"):
        pool.get_next(timeout=0.02, ignore_if_timedout=True)
    assert pool.get_next() == 8 and not pool.has_next()
    pool.submit(slow, 0.3)
    with pytest.raises(TimeoutError):
        pool.get_next_unordered(timeout=0)
    with pytest.raises(TimeoutError, match="no longer waited for"):
        pool.get_next_unordered(timeout=0, ignore_if_timedout=True)
    assert not pool.has_next()


def test_a_later_result_that_was_taken_forbids_the_order(workers: list[Any]) -> None:
    pool = ActorPool(workers)
    pool.submit(slow, 0.2)
    pool.submit(double, 4)
    assert pool.get_next_unordered() == 8
    with pytest.raises(ValueError, match="after get_next_unordered"):
        pool.get_next()
    assert pool.get_next_unordered() == 0.2


def test_a_new_map_drops_what_was_not_read(workers: list[Any]) -> None:
    pool = ActorPool(workers)
    for n in range(10):
        pool.submit(double, n)
    assert list(pool.map(double, [50])) == [100] and not pool.has_next()


def test_an_error_frees_the_actor_and_a_death_does_not() -> None:
    mortal, other = Worker.remote(), Worker.remote()
    pool = ActorPool([mortal])
    pool.submit(lambda actor, value: actor.fail.remote(value), 7)
    with pytest.raises(KeyError):
        pool.get_next()
    assert pool.has_free()
    pool.submit(lambda actor, value: actor.end.remote(value), 7)
    pool.submit(double, 1)
    with pytest.raises(ActorDiedError):
        pool.get_next()
    assert not pool.has_free() and not pool.has_next()
    pool.push(other)
    assert pool.get_next() == 2
    with pytest.raises(AttributeError):
        pool.submit(lambda actor, value: actor.nothing.remote(value), 7)
    assert pool.has_free()


# -- Queue -----------------------------------------------------------------------------------------------------------


def test_a_queue_is_first_in_first_out_and_says_when_it_is_full() -> None:
    queue = Queue(maxsize=2)
    queue.put("a")
    queue.put_nowait("b")
    assert len(queue) == queue.qsize() == queue.size() == 2 and queue.full() and not queue.empty()
    for put in (lambda: queue.put_nowait("c"), lambda: queue.put("c", timeout=0.02), lambda: queue.put("c", False)):
        with pytest.raises(Full) as raised:
            put()
        assert type(raised.value) is Full and isinstance(raised.value, standard.Full)
    assert [queue.get(), queue.get_nowait()] == ["a", "b"] and queue.empty()
    for get in (queue.get_nowait, lambda: queue.get(timeout=0.02), lambda: queue.get(False)):
        with pytest.raises(Empty) as raised:
            get()
        assert type(raised.value) is Empty and isinstance(raised.value, standard.Empty)
    with pytest.raises(ValueError):
        queue.put(1, timeout=-1)
    with pytest.raises(ValueError):
        queue.get(timeout=-1)
    queue.shutdown()
    assert queue.actor is None
    queue.shutdown()


def test_batches_go_in_whole_or_not_at_all() -> None:
    queue = Queue(5)
    queue.put_nowait_batch(n for n in range(4))
    with pytest.raises(Full, match="do not fit"):
        queue.put_nowait_batch([4, 5])
    with pytest.raises(Empty, match="4 items, not 5"):
        queue.get_nowait_batch(5)
    assert queue.get_nowait_batch(3) == [0, 1, 2] and queue.get_nowait_batch(0) == []
    for wrong, error in (("2", TypeError), (-1, ValueError)):
        with pytest.raises(error):
            queue.get_nowait_batch(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        queue.put_nowait_batch(3)  # type: ignore[arg-type]
    queue.shutdown(force=True)


def test_a_queue_travels_and_a_getter_waits_for_its_putter() -> None:
    queue = Queue(actor_options={"num_cpus": 0.5})

    @lattica.remote
    def produce(queue: Queue, count: int) -> None:
        for n in range(count):
            queue.put(n)

    ref = produce.remote(queue, 5)
    assert [queue.get(timeout=10) for _ in range(5)] == list(range(5))
    lattica.get(ref)

    async def talk() -> list[Any]:
        waiting = asyncio.create_task(queue.get_async())
        await asyncio.sleep(0.02)
        await queue.put_async("first")
        with pytest.raises(Empty):
            await queue.get_async(block=False)
        given_up = asyncio.create_task(queue.get_async())
        await asyncio.sleep(0.02)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await queue.put_async("second")
        return [await waiting, await queue.get_async(timeout=5)]

    assert asyncio.run(talk()) == ["first", "second"]
    queue.shutdown()


# -- as they come ----------------------------------------------------------------------------------------------------


def test_values_come_as_they_are_ready() -> None:
    refs = [nap.remote(seconds) for seconds in (0.4, 0.01, 0.02)]
    assert list(as_completed(refs, chunk_size=1))[-1] == 0.4
    assert set(as_completed(refs, yield_obj_refs=True)) == set(refs)
    assert list(as_completed([])) == []
    with pytest.raises(ValueError):
        as_completed(refs, chunk_size=0)
    with pytest.raises(ValueError):
        as_completed(refs, num_returns=2)


def test_no_more_items_are_taken_than_calls_may_be_on_their_way() -> None:
    taken = []

    def items() -> Any:
        for n in range(30):
            taken.append(n)
            yield 0.001 * n

    results = map_unordered(nap, items(), backpressure_size=4, chunk_size=2)
    assert not taken
    for count, _ in enumerate(results, 1):
        assert len(taken) <= count + 4
    assert count == 30
    assert len(list(map_unordered(nap, [0.0] * 10, backpressure_size=None))) == 10
    for wrong in ({"backpressure_size": 0}, {"chunk_size": 0}, {"num_returns": 1}):
        with pytest.raises(ValueError):
            map_unordered(nap, [], **wrong)
