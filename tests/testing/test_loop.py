"""Virtual time jumps, threads take real time, and who waits for ever is named."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from lattica.testing import loop as loop_module
from lattica.testing.loop import Deadlock, run_virtually


def test_an_hour_takes_a_moment_and_timers_fire_in_order() -> None:
    fired: list[tuple[float, str]] = []

    async def sleeper(name: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        fired.append((asyncio.get_running_loop().time(), name))

    async def main() -> None:
        await asyncio.gather(sleeper("late", 3600), sleeper("early", 0.25), sleeper("middle", 60))

    before = time.perf_counter()
    run_virtually(main())
    assert fired == [(0.25, "early"), (60, "middle"), (3600, "late")]
    assert time.perf_counter() - before < 5


def test_timeouts_count_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1000):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) == 1000


def test_when_nobody_can_wake_anybody_the_run_ends_and_names_who_waits_where() -> None:
    async def hold(mine: asyncio.Lock, others: asyncio.Lock) -> None:
        async with mine:
            await asyncio.sleep(1)
            async with others:
                pass

    async def main() -> None:
        a, b = asyncio.Lock(), asyncio.Lock()
        async with asyncio.TaskGroup() as group:
            group.create_task(hold(a, b), name="left")
            group.create_task(hold(b, a), name="right")

    with pytest.raises(Deadlock, match=r"deadlock at 1 s: nothing is ready, no timer is left") as caught:
        run_virtually(main())
    lines = str(caught.value).splitlines()
    assert any(line.startswith("  left at ") and "locks.py" in line for line in lines)
    assert len(lines) == 4, "both holders and main"


def test_a_timer_that_serves_nobody_ends_the_run_at_its_limit() -> None:
    async def heartbeat() -> None:
        while True:
            await asyncio.sleep(1)

    async def main() -> None:
        beating = asyncio.create_task(heartbeat(), name="heart")
        await asyncio.Event().wait()
        await beating

    with pytest.raises(Deadlock, match=r"at 100 s: its limit of time is reached, and timers still run"):
        run_virtually(main(), limit_s=100)


def test_virtual_time_stands_still_while_a_thread_works() -> None:
    async def main() -> tuple[int, float]:
        clock = asyncio.get_running_loop().time
        timer = asyncio.create_task(asyncio.sleep(10))
        answer = await asyncio.to_thread(sum, range(1_000_000))
        at = clock()
        await timer
        return answer, at

    assert run_virtually(main()) == (499999500000, 0)


def test_a_thread_that_waits_for_the_loop_is_named_instead_of_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "THREAD_WAIT_S", 0.01)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        sleeping = asyncio.run_coroutine_threadsafe(asyncio.sleep(5), loop)

        def wait_for_the_loop() -> None:
            with pytest.raises(TimeoutError):
                sleeping.result(timeout=0.2)

        await asyncio.to_thread(wait_for_the_loop)

    with pytest.raises(Deadlock, match="a thread has not come back"):
        run_virtually(main())


def test_sockets_with_both_ends_in_the_loop_work() -> None:
    async def main() -> tuple[bytes, float]:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        with left, right:
            left.setblocking(False)
            right.setblocking(False)
            reading = asyncio.create_task(loop.sock_recv(left, 100))
            await asyncio.sleep(3)
            await loop.sock_sendall(right, b"ping")
            return await reading, loop.time()

    assert run_virtually(main()) == (b"ping", 3)


def test_an_exception_of_main_comes_through() -> None:
    async def main() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_virtually(main())
