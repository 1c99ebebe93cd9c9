"""Replies that a socket has no room for: they wait, and nobody else has to, whoever calls whom."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lattica
from lattica.actors import current
from lattica.exceptions import WorkerCrashedError
from tests.e2e.conftest import Script, eventually

LARGE = 50_000
"""Bytes of a reply that still travels inside its message; a socket holds four of them, a worker's page three."""


@lattica.remote
def page(size: int) -> bytes:
    return b"x" * size


@pytest.mark.parametrize("cpus", [1, 2])
def test_workers_that_work_for_each_other_or_themselves_never_wait_for_their_own_reading(
    cpus: int, fresh: Callable[..., Any], tmp_path: Path
) -> None:
    """A thread that a task has left behind submits: its worker is leased to another one, and that one to it."""

    @lattica.remote
    def begin(name: str) -> None:
        def submit() -> None:
            for _ in range(3):
                assert all(len(got) == LARGE for got in lattica.get([page.remote(LARGE) for _ in range(300)]))
            (tmp_path / name).touch()

        threading.Thread(target=submit).start()

    fresh(num_cpus=cpus)
    lattica.get([begin.remote(str(k)) for k in range(cpus)])
    assert eventually(lambda: len(list(tmp_path.iterdir())) == cpus, within_s=20), "they wait for each other"


@pytest.mark.usefixtures("two_cpus")
def test_actors_that_call_each_other_with_more_than_their_sockets_hold_get_through() -> None:
    @lattica.remote(max_concurrency=2)
    class Twin:
        def page(self, given: bytes) -> bytes:
            return given

        def trade(self, other: Any, rounds: int) -> int:
            got = 0
            for _ in range(rounds):
                got += sum(map(len, lattica.get([other.page.remote(b"x" * LARGE) for _ in range(100)])))
            return got

    one, other = Twin.remote(), Twin.remote()
    traded = lattica.get([one.trade.remote(other, 5), other.trade.remote(one, 5)], timeout=30)
    assert traded == [5 * 100 * LARGE] * 2


@pytest.mark.usefixtures("two_cpus")
def test_the_last_replies_of_an_actor_that_ends_are_read_however_late() -> None:
    @lattica.remote
    class Giver:
        def page(self) -> bytes:
            return b"x" * LARGE

        def end(self) -> None:
            lattica.actor.exit_actor()

    giver = Giver.remote()
    lattica.get(giver.page.remote())
    with current.get().lock:  # nobody reads here meanwhile
        pages = [giver.page.remote() for _ in range(50)]
        end = giver.end.remote()
        current.get().reactor.flush()
        time.sleep(0.5)
    assert [len(got) for got in lattica.get(pages, timeout=10)] == [LARGE] * 50
    with pytest.raises(lattica.exceptions.RayActorError):
        lattica.get(end, timeout=10)


def test_no_task_runs_twice_whose_reply_waited_for_room_when_its_worker_died(
    fresh: Callable[..., Any], tmp_path: Path
) -> None:
    @lattica.remote(max_retries=0)
    def note(k: int) -> bytes:
        with open(tmp_path / "ran", "a") as ran:
            ran.write(f"{os.getpid()} {k}\n")
        return bytes(LARGE)

    fresh(num_cpus=1)
    lattica.get([note.remote(-1) for _ in range(50)])  # known to be quick: the next ones are sent all at once
    (tmp_path / "ran").write_text("")
    with current.get().lock:  # nobody reads here meanwhile
        refs = [note.remote(k) for k in range(60)]
        current.get().reactor.flush()
        time.sleep(0.5)
        ran = (tmp_path / "ran").read_text().split()
        assert 4 <= len(ran) // 2 < 60, "the worker filled its socket and its page, and then waited"
        os.kill(int(ran[0]), signal.SIGKILL)
        time.sleep(0.1)
    failed = 0
    for ref in refs:
        try:
            assert len(lattica.get(ref, timeout=10)) == LARGE
        except WorkerCrashedError:
            failed += 1
    numbers = [line.split()[1] for line in (tmp_path / "ran").read_text().splitlines()]
    assert len(numbers) == len(set(numbers)) and failed <= 1


MANY_ACTORS = """
import resource, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (32, hard))  # as a shell with a low `ulimit -n` does
import lattica
lattica.init(address="local", num_cpus=1)

@lattica.remote(num_cpus=0)
class Echo:
    def echo(self, k):
        return k

actors = [Echo.remote() for _ in range(40)]
assert lattica.get([actor.echo.remote(k) for k, actor in enumerate(actors)], timeout=20) == list(range(40))
"""


def test_a_program_may_talk_to_more_actors_than_its_shell_lets_it_open_files(script: Script) -> None:
    script(MANY_ACTORS)


NO_ROOM = """
import resource, time
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))  # the node's as well: ten workers or so
import lattica
lattica.init(address="local", num_cpus=1)

@lattica.remote(num_cpus=0)
class Echo:
    def echo(self, k):
        return k

actors, words = [], ""
for k in range(60):
    actor = Echo.remote()
    try:
        assert lattica.get(actor.echo.remote(k), timeout=10) == k
    except lattica.exceptions.ActorDiedError as error:
        words = str(error)
        break
    actors.append(actor)
assert "ulimit" in words, words
assert lattica.get([actor.echo.remote(1) for actor in actors], timeout=10) == [1] * len(actors)

waiting = [Echo.options(num_cpus=1).remote() for _ in range(2000)]  # each is refused when the one before it is
for actor in waiting:
    try:
        lattica.get(actor.echo.remote(1), timeout=10)
    except lattica.exceptions.ActorDiedError:
        pass
actors.clear()
del waiting, actor
deadline = time.monotonic() + 10
while True:  # until those have ended
    actor = Echo.remote()
    try:
        assert lattica.get(actor.echo.remote(7), timeout=10) == 7
        break
    except lattica.exceptions.ActorDiedError:
        assert time.monotonic() < deadline
"""


def test_a_node_that_may_open_no_more_files_refuses_one_worker_and_goes_on(script: Script) -> None:
    script(NO_ROOM)
