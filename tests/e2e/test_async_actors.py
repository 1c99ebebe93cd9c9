"""Actors with coroutine methods: many calls in flight, on an event loop of their own."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.exceptions import ActorDiedError, ActorUnavailableError, TaskCancelledError
from tests.e2e.conftest import eventually
from tests.e2e.sample_actors import Counter

pytestmark = pytest.mark.usefixtures("two_cpus")


@lattica.remote
class Door:
    """Callers wait in front of it until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.waiting = self.most = 0
        self.order: list[Any] = []
        self.ends: list[str] = []

    async def pass_through(self, name: Any = None) -> Any:
        self.order.append(name)
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        finally:
            self.waiting -= 1
        return name

    async def open(self) -> int:
        self.opened.set()
        return self.most

    async def inside(self) -> int:
        return self.waiting

    def seen(self) -> tuple[list[Any], list[str]]:
        return self.order, self.ends


def test_a_thousand_calls_are_in_flight_at_once_and_began_in_order() -> None:
    door = Door.options(max_concurrency=1_100).remote()
    refs = [door.pass_through.remote(number) for number in range(1_000)]
    assert eventually(lambda: lattica.get(door.inside.remote()) == 1_000)
    assert lattica.wait(refs, timeout=0)[0] == []
    assert lattica.get(door.open.remote()) == 1_000
    assert lattica.get(refs) == list(range(1_000))
    assert lattica.get(door.seen.remote())[0] == list(range(1_000))


def test_no_more_calls_run_at_once_than_the_actor_was_told() -> None:
    @lattica.remote(max_concurrency=5)
    class Few:
        def __init__(self) -> None:
            self.running = self.most = 0

        async def work(self) -> int:
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.001)
            self.running -= 1
            return self.most

    few = Few.remote()
    assert max(lattica.get([few.work.remote() for _ in range(100)])) == 5


def test_sync_methods_of_an_async_actor_run_on_its_loop() -> None:
    @lattica.remote
    class Mixed:
        def __init__(self) -> None:
            self.place = threading.get_ident()

        async def slow(self) -> int:
            await asyncio.sleep(0.01)
            return threading.get_ident()

        def quick(self) -> int:
            asyncio.get_running_loop()
            return threading.get_ident()

        def where(self) -> int:
            return self.place

    mixed = Mixed.remote()
    assert len(set(lattica.get([mixed.slow.remote(), mixed.quick.remote(), mixed.where.remote()]))) == 1


def test_calls_that_wait_do_not_hold_up_those_that_do_not() -> None:
    door = Door.remote()
    stuck = door.pass_through.remote()
    assert lattica.get([door.inside.remote() for _ in range(10)]) == [1] * 10
    door.open.remote()
    lattica.get(stuck)


def test_refs_and_other_actors_are_awaited_inside_methods() -> None:
    @lattica.remote
    def double(number: int) -> int:
        return 2 * number

    @lattica.remote
    class Gatherer:
        def __init__(self, counter: Any) -> None:
            self.counter = counter

        async def all(self, count: int, ref: Any) -> int:
            own = lattica.put(1)
            parts = await asyncio.gather(
                *[double.remote(number) for number in range(count)], self.counter.add.remote(), own
            )
            return sum(parts) + ref

        async def in_a_box(self, box: list[Any]) -> Any:
            return await box[0]

        async def fails(self) -> Any:
            return await self.counter.fail.remote("inside")

    gatherer = Gatherer.remote(Counter.remote(9))
    assert lattica.get(gatherer.all.remote(10, lattica.put(100))) == 90 + 10 + 1 + 100
    large = np.arange(50_000)
    assert np.array_equal(lattica.get(gatherer.in_a_box.remote([lattica.put(large)])), large)
    with pytest.raises(KeyError, match="inside"):
        lattica.get(gatherer.fails.remote())


def test_a_blocking_get_in_an_async_method_ends() -> None:
    @lattica.remote
    class Blocking:
        async def work(self, other: Any) -> int:
            return lattica.get(other.add.remote()) + sum(lattica.get([lattica.put(1), lattica.put(2)]))

        async def waits(self, other: Any) -> int:
            ready, rest = lattica.wait([other.add.remote() for _ in range(3)], num_returns=3)
            return len(ready) - len(rest)

    blocking, counter = Blocking.remote(), Counter.remote()
    answers = lattica.get([blocking.work.remote(counter) for _ in range(20)], timeout=20)
    assert answers == [number + 3 for number in range(1, 21)]
    assert lattica.get(blocking.waits.remote(counter), timeout=20) == 3


def test_a_waiting_call_is_cancelled_where_it_waits() -> None:
    door = Door.remote()
    refs = [door.pass_through.remote(number) for number in range(3)]
    assert eventually(lambda: lattica.get(door.inside.remote()) == 3)
    lattica.cancel(refs[1])
    with pytest.raises(TaskCancelledError):
        lattica.get(refs[1], timeout=5)
    assert lattica.get(door.seen.remote())[1] == ["cancelled"]
    door.open.remote()
    assert lattica.get([refs[0], refs[2]], timeout=5) == [0, 2]


def test_a_call_is_cancelled_wherever_it_is_on_its_way() -> None:
    door = Door.options(max_concurrency=20).remote()
    for _ in range(30):
        refs = [door.pass_through.remote() for _ in range(10)]
        for ref in refs:
            lattica.cancel(ref)
        for ref in refs:
            with pytest.raises(TaskCancelledError):
                lattica.get(ref, timeout=5)
    assert lattica.get(door.inside.remote()) == 0


def test_exceptions_of_coroutines_reach_their_callers_alone() -> None:
    @lattica.remote
    class Picky:
        async def work(self, number: int) -> int:
            await asyncio.sleep(0)
            if number % 2:
                raise ValueError(f"{number} is odd")
            return number

    picky = Picky.remote()
    refs = [picky.work.remote(number) for number in range(10)]
    for number, ref in enumerate(refs):
        if number % 2:
            with pytest.raises(ValueError, match=f"{number} is odd"):
                lattica.get(ref)
        else:
            assert lattica.get(ref) == number


def test_each_call_has_a_context_of_its_own() -> None:
    @lattica.remote
    class Contexts:
        def __init__(self) -> None:
            self.variable = contextvars.ContextVar("mine", default=0)

        async def work(self, number: int) -> tuple[int, str | None]:
            before = self.variable.get()
            self.variable.set(number)
            await asyncio.sleep(0.001)
            assert self.variable.get() == number
            return before, lattica.get_runtime_context().get_task_id()

    contexts = Contexts.remote()
    refs = [contexts.work.remote(number) for number in range(1, 20)]
    answers = lattica.get(refs)
    assert {before for before, _ in answers} == {0}
    assert [task for _, task in answers] == [ref.task_id() for ref in refs]


def test_what_a_method_left_running_goes_on_after_its_reply() -> None:
    @lattica.remote
    class Background:
        def __init__(self) -> None:
            self.ticks = 0

        async def begin(self) -> None:
            self.task = asyncio.create_task(self.tick())

        async def tick(self) -> None:
            while True:
                self.ticks += 1
                await asyncio.sleep(0.005)

        async def count(self) -> int:
            return self.ticks

    background = Background.remote()
    lattica.get(background.begin.remote())
    first = lattica.get(background.count.remote())
    assert eventually(lambda: lattica.get(background.count.remote()) > first)


def test_large_values_and_many_results_pass() -> None:
    @lattica.remote
    class Echo:
        async def back(self, value: Any) -> Any:
            await asyncio.sleep(0)
            return value

        @lattica.method(num_returns=2)
        async def twice(self, value: Any) -> tuple[Any, Any]:
            return value, value

    echo, array = Echo.remote(), np.ones(100_000)
    values = lattica.get([echo.back.remote(array * number) for number in range(20)])
    assert [value[0] for value in values] == list(range(20))
    left, right = echo.twice.remote("a")
    assert lattica.get([left, right]) == ["a", "a"]


def test_a_driver_awaits_its_calls_on_a_loop_of_its_own() -> None:
    counter = Counter.remote()

    async def main() -> list[int]:
        values = await asyncio.gather(*[counter.add.remote() for _ in range(50)])
        with pytest.raises(KeyError):
            await counter.fail.remote()
        return list(values)

    assert asyncio.run(main()) == list(range(1, 51))


def test_an_async_actor_that_dies_answers_every_call_with_an_error() -> None:
    door = Door.options(max_restarts=1).remote()
    refs = [door.pass_through.remote() for _ in range(50)]
    assert eventually(lambda: lattica.get(door.inside.remote()) == 50)
    lattica.kill(door, no_restart=False)
    for ref in refs:
        with pytest.raises(ActorUnavailableError):
            lattica.get(ref, timeout=5)
    assert lattica.get(door.inside.remote(), timeout=5) == 0
    stuck = door.pass_through.remote()
    lattica.kill(door)
    with pytest.raises(ActorDiedError):
        lattica.get(stuck, timeout=5)


def test_an_async_actor_ends_when_its_last_handle_goes_and_its_calls_have_ended() -> None:
    door = Door.remote()
    refs = [door.pass_through.remote(number) for number in range(5)]
    opened = door.open.remote()
    del door
    assert lattica.get(refs) == list(range(5)) and lattica.get(opened) == 5
    del refs, opened
    assert eventually(lambda: not lattica.session.current.get().state("actors"))


def test_exit_actor_ends_an_async_actor() -> None:
    @lattica.remote
    class Leaver:
        async def work(self) -> None:
            await asyncio.sleep(30)

        async def leave(self) -> None:
            lattica.actor.exit_actor()

    leaver = Leaver.remote()
    running = leaver.work.remote()
    with pytest.raises(ActorDiedError, match="exit_actor"):
        lattica.get(leaver.leave.remote(), timeout=5)
    with pytest.raises(ActorDiedError):
        lattica.get(running, timeout=5)


def test_a_constructor_of_an_async_actor_may_raise_or_wait() -> None:
    @lattica.remote
    class Late:
        def __init__(self, ref: list[Any]) -> None:
            self.value = lattica.get(ref[0])

        async def get(self) -> Any:
            return self.value

    assert lattica.get(Late.remote([lattica.put(5)]).get.remote(), timeout=5) == 5
    with pytest.raises(ActorDiedError, match="IndexError"):
        lattica.get(Late.remote([]).get.remote(), timeout=5)


def test_callers_of_an_async_actor_need_not_wait_for_each_other() -> None:
    door = Door.remote()

    @lattica.remote
    def knock(door: Any) -> Any:
        return lattica.get(door.pass_through.remote("task"))

    knocking = [knock.remote(door) for _ in range(4)]
    assert eventually(lambda: lattica.get(door.inside.remote()) == 4)
    began = time.monotonic()
    door.open.remote()
    assert lattica.get(knocking, timeout=5) == ["task"] * 4
    assert time.monotonic() - began < 2
