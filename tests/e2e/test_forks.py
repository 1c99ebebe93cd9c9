"""What user code forks inside tasks and actors: children have nothing of their worker's, and disturb nobody."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

import pytest

import lattica
from lattica.actors import current


def ours_in_a_child() -> list[str]:
    """In a worker: which sockets and epoll sets a forked child has."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        names = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                names.append(os.readlink(f"/proc/self/fd/{fd}"))
            except OSError:  # that of the listing itself
                continue
        os.write(writer, repr([name for name in names if "socket" in name or "eventpoll" in name]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    found: list[str] = eval(os.read(reader, 10_000))
    os.close(reader)
    os.close(writer)
    return found


@lattica.remote
def look() -> list[str]:
    return ours_in_a_child()


@lattica.remote
def come_back(number: int) -> tuple[int, int]:
    """Both processes return from here."""
    os.fork()
    return number, os.getpid()


class Base:
    def come_back(self, number: int) -> tuple[int, int]:
        os.fork()
        return number, os.getpid()

    def pid(self) -> int:
        return os.getpid()


class Async(Base):
    async def wait(self) -> None:
        return None


@pytest.mark.usefixtures("two_cpus")
def test_a_child_of_a_task_has_no_connection_of_its_worker() -> None:
    assert lattica.get([look.remote() for _ in range(4)]) == [[]] * 4


@pytest.mark.usefixtures("two_cpus")
def test_a_child_that_comes_back_from_a_task_is_no_second_worker() -> None:
    answers = lattica.get([come_back.remote(number) for number in range(50)], timeout=20)
    assert [number for number, _ in answers] == list(range(50))
    workers = {worker["pid"] for worker in current.get().state("workers")}
    assert {pid for _, pid in answers} <= workers, "a child has answered"
    assert lattica.get([come_back.remote(number) for number in range(5)], timeout=20)


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize(
    ("cls", "options"), [(Base, {}), (Base, {"max_concurrency": 2}), (Async, {})], ids=["sync", "threaded", "async"]
)
def test_a_child_that_comes_back_from_a_call_is_no_second_actor(cls: type, options: dict[str, Any]) -> None:
    actor = lattica.remote(cls).options(**options).remote()
    pid = lattica.get(actor.pid.remote())
    answers = lattica.get([actor.come_back.remote(number) for number in range(20)], timeout=20)
    assert answers == [(number, pid) for number in range(20)]
    assert lattica.get(actor.pid.remote(), timeout=10) == pid


@pytest.mark.usefixtures("two_cpus")
def test_a_task_may_use_a_pool_of_forked_processes() -> None:
    @lattica.remote
    def pooled() -> list[int]:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, [-1, -2, -3])

    assert lattica.get([pooled.remote() for _ in range(3)], timeout=20) == [[1, 2, 3]] * 3
