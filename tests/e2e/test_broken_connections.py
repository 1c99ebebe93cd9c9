"""Connections that end though nobody died, or that live on though somebody did: nobody waits for ever."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.actors import current
from lattica.actors.calls import ActorPeer
from lattica.actors.tasks import Target
from lattica.exceptions import ActorUnavailableError, TaskCancelledError, WorkerCrashedError
from tests.e2e.conftest import Script, Sessions, eventually


@lattica.remote
def echo(value: Any) -> Any:
    return value


@lattica.remote
class Echo:
    def __init__(self) -> None:
        self.calls = 0

    def echo(self, value: Any) -> Any:
        self.calls += 1
        return value

    def count(self) -> int:
        return self.calls


@pytest.fixture
def break_next(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    """The next message that a connection of this kind brings cannot be handled, so that it is closed."""

    def arm(kind: Any) -> None:
        received = kind.received

        def fail(self: Any, messages: list[Any]) -> None:
            monkeypatch.setattr(kind, "received", received)
            raise RuntimeError("the test wants it so")

        monkeypatch.setattr(kind, "received", fail)

    return arm


def test_a_task_whose_connection_breaks_is_charged_and_retried(
    fresh: Callable[..., Any], break_next: Callable[[type], None], caplog: pytest.LogCaptureFixture
) -> None:
    fresh(num_cpus=1)
    assert lattica.get(echo.remote(0)) == 0
    break_next(Target)
    assert lattica.get(echo.remote(1), timeout=10) == 1
    break_next(Target)
    with pytest.raises(WorkerCrashedError, match=r"connection to it broke.*the test wants it so"):
        lattica.get(echo.options(max_retries=0).remote(2), timeout=10)
    assert lattica.get(echo.remote(3), timeout=10) == 3


def test_an_actor_whose_connection_breaks_is_called_over_another_one(
    fresh: Callable[..., Any], break_next: Callable[[type], None], caplog: pytest.LogCaptureFixture
) -> None:
    fresh(num_cpus=1)
    actor = Echo.remote()
    assert lattica.get(actor.echo.remote(0)) == 0
    break_next(ActorPeer)
    assert lattica.get([actor.echo.remote(1), actor.echo.remote(2)], timeout=10) == [1, 2]
    assert lattica.get(actor.count.remote(), timeout=10) == 3, "it is the same one, and ran nothing twice"


def test_an_actor_whose_connections_all_break_is_unavailable_and_then_is_not(
    fresh: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fresh(num_cpus=1)
    actor = Echo.remote()
    assert lattica.get(actor.echo.remote(0)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(ActorPeer, "received", lambda *_: 1 / 0)
        with pytest.raises(ActorUnavailableError, match=r"broke 6 times in a row .*division by zero.*may have run"):
            lattica.get(actor.echo.remote(1), timeout=20)
    assert lattica.get(actor.count.remote(), timeout=10) == 2


def cut(stream: Any) -> None:
    """End this connection; what lies in it unread is lost. In this order: what the other side still sent behind what is
    lost would arrive, as over no connection that there is."""
    with suppress(OSError):
        stream._sock.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        while stream._sock.recv(1 << 20):
            pass


@lattica.remote
class Counter:
    def __init__(self) -> None:
        self.order: list[int] = []
        self.cutting = False
        self.cuts = 0

    def add(self, number: int, size: int) -> Any:
        self.order.append(number)
        return np.full(size // 2, len(self.order), np.uint16) if size else len(self.order)

    def ran(self) -> list[int]:
        return self.order

    def cut_now_and_then(self, pause_s: float) -> None:
        """From this end; `add` runs meanwhile."""
        runtime = current.get()
        worker = runtime.on_client_gone.__self__  # type: ignore[union-attr]
        self.cutting = True

        def work() -> None:
            ran = 0
            while self.cutting:
                time.sleep(pause_s)
                if len(self.order) == ran:
                    continue  # the last connection has brought nothing yet
                ran = len(self.order)
                with runtime.lock:
                    for caller in worker.callers.values():
                        if caller.link is not None:
                            cut(caller.link.stream)
                            self.cuts += 1

        threading.Thread(target=work, daemon=True).start()

    def stop_cutting(self) -> int:
        self.cutting = False
        return self.cuts


@pytest.fixture
def cuts(request: pytest.FixtureRequest) -> Iterator[Callable[[Any, float], list[float]]]:
    """Cuts the connection to an actor now and then, from this end, when it has brought a reply; the list grows with
    each."""
    over = threading.Event()
    threads: list[threading.Thread] = []

    def begin(actor: Any, pause_s: float) -> list[float]:
        done: list[float] = []
        runtime = current.get()

        def work() -> None:
            due = time.monotonic() + pause_s
            while not over.wait(0.0005):
                with runtime.lock:
                    peer = actor._peer
                    if (
                        time.monotonic() > due
                        and peer.link is not None
                        and peer.inflight
                        and not peer.unanswered.breaks
                    ):
                        cut(peer.link.stream)
                        done.append(time.monotonic())
                        due = done[-1] + pause_s

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return done

    yield begin
    over.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(("size", "whose"), [(0, "ours"), (0, "its"), (200 << 10, "ours"), (200 << 10, "its")])
def test_calls_run_once_in_order_however_often_their_connection_is_cut(
    fresh: Callable[..., Any], cuts: Callable[[Any, float], list[float]], size: int, whose: str
) -> None:
    fresh(num_cpus=2, object_store_memory=256 << 20)
    actor = Counter.remote()
    lattica.get(actor.ran.remote())
    done = cuts(actor, 0.07) if whose == "ours" else []
    if whose == "its":
        lattica.get(actor.cut_now_and_then.remote(0.07), timeout=20)
    count, at_once, had = (600, 60, 0) if size else (2000, 200, 0)
    began = time.monotonic()
    while had < count:
        numbers = range(had, had + at_once)
        results = lattica.get([actor.add.remote(n, size) for n in numbers], timeout=30)
        assert [int(each[-1]) if size else each for each in results] == [n + 1 for n in numbers]
        had += at_once
        time.sleep(max(0.0, had / count - (time.monotonic() - began)))  # over a second, so that several cuts meet it
    del results
    times = lattica.get(actor.stop_cutting.remote(), timeout=20) or len(done)
    assert lattica.get(actor.ran.remote(), timeout=20) == list(range(count))
    assert times >= 3, f"{times} cuts"
    memory = lambda: current.get().state("status")["memory"]  # noqa: E731
    assert eventually(lambda: not memory()["objects"]), f"something is left in the store: {memory()}"


def test_arguments_in_the_store_are_held_once_however_often_their_call_is_sent(
    fresh: Callable[..., Any], cuts: Callable[[Any, float], list[float]]
) -> None:
    fresh(num_cpus=1, object_store_memory=128 << 20)
    actor = Echo.remote()
    lattica.get(actor.count.remote())
    done = cuts(actor, 0.02)
    began = time.monotonic()
    while len(done) < 8 and time.monotonic() - began < 20:
        given = [np.full(200 << 10, n, np.uint8) for n in range(20)]
        results = lattica.get([actor.echo.remote(each) for each in given], timeout=30)
        assert [each[0] for each in results] == list(range(20))
    del given, results
    memory = lambda: current.get().state("status")["memory"]  # noqa: E731
    assert eventually(lambda: not memory()["objects"]), f"something is left in the store: {memory()}"


@lattica.remote
class Maker:
    def make(self, number: int, size: int) -> Iterator[Any]:
        for at in range(number):
            yield np.full(size // 2, at, np.uint16) if size else at
            time.sleep(0.0002)


@lattica.remote
class AsyncMaker:
    async def make(self, number: int, size: int) -> AsyncIterator[Any]:
        for at in range(number):
            yield np.full(size // 2, at, np.uint16) if size else at
            await asyncio.sleep(0.0002)


@pytest.mark.parametrize(("kind", "size"), [(Maker, 0), (AsyncMaker, 200 << 10)])
def test_items_of_generators_come_once_in_order_however_often_their_connection_is_cut(
    fresh: Callable[..., Any], cuts: Callable[[Any, float], list[float]], kind: Any, size: int
) -> None:
    fresh(num_cpus=1, object_store_memory=256 << 20)
    actor = kind.remote()
    list(actor.make.remote(1, size))
    done = cuts(actor, 0.02)
    for window, count in ((-1, 300), (3, 60)):
        generator = actor.make.options(_generator_backpressure_num_objects=window).remote(count, size)
        items = [lattica.get(ref, timeout=20) for ref in generator]
        assert [int(item[-1]) if size else item for item in items] == list(range(count))
        del items, generator
    assert len(done) >= 2, f"{len(done)} cuts"
    memory = lambda: current.get().state("status")["memory"]  # noqa: E731
    assert eventually(lambda: not memory()["objects"]), f"something is left in the store: {memory()}"


def test_of_more_results_than_are_kept_the_first_are_errors_and_nothing_is_left_in_the_store(
    fresh: Callable[..., Any],
) -> None:
    """A program reads nothing for a while; then its connection is cut, with 27 MiB of results under way."""
    fresh(num_cpus=1, object_store_memory=256 << 20)
    actor = Counter.remote()
    lattica.get(actor.ran.remote())
    runtime = current.get()
    with runtime.lock:
        refs = [actor.add.remote(n, size) for n in range(300) for size in (90 << 10, 200 << 10)]
        again = actor.add.options(max_task_retries=1).remote(600, 0)
        runtime.reactor.flush()
        time.sleep(2.0)  # it answers meanwhile, and we hear nothing
        cut(actor._peer.link.stream)
    ran, lost = [], []
    for n, ref in enumerate(refs):
        try:
            ran.append((n, int(lattica.get(ref, timeout=30)[-1])))
        except ActorUnavailableError as error:
            assert "has run" in str(error) and "16 MiB" in str(error)
            lost.append(n)
    assert lost == list(range(len(lost))) and 0 < len(lost) < 400
    assert ran == [(n, n + 1) for n in range(len(lost), 600)] and lattica.get(again, timeout=10) == 601
    assert len(lattica.get(actor.ran.remote(), timeout=10)) == 601, "none ran twice"
    del refs, ref
    memory = lambda: current.get().state("status")["memory"]  # noqa: E731
    assert eventually(lambda: not memory()["objects"]), f"something is left in the store: {memory()}"


def test_a_call_that_was_cancelled_while_its_connection_was_away_is_cancelled(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=1)

    @lattica.remote
    class Slow:
        def sleep(self) -> str:
            time.sleep(30)
            return "slept"

        def ping(self) -> str:
            return "pong"

    actor = Slow.remote()
    assert lattica.get(actor.ping.remote()) == "pong"
    ref = actor.sleep.remote()
    time.sleep(0.2)
    with current.get().lock:
        cut(actor._peer.link.stream)
    assert eventually(lambda: actor._peer.link is None, every_s=0.001)
    lattica.cancel(ref)
    with pytest.raises(TaskCancelledError):
        lattica.get(ref, timeout=10)
    assert lattica.get(actor.ping.remote(), timeout=10) == "pong"


@pytest.fixture
def node(sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A node begun by `lattica start`, to which the test's programs attach."""
    sessions.end()
    monkeypatch.setenv("LATTICA_DATA_DIR", str(tmp_path / "node"))
    command = [sys.executable, "-c", "import sys; from lattica.cli.main import main; sys.exit(main(sys.argv[1:]))"]
    subprocess.run([*command, "start", "--num-cpus", "1"], check=True, capture_output=True, timeout=20)
    yield
    sessions.end()
    subprocess.run([*command, "stop"], check=True, capture_output=True, timeout=20)


CALLER = """
import ctypes, os, sys, time
import lattica
lattica.init("auto", namespace="test")
actor = lattica.get_actor("busy")
calls = [actor.work.remote(k) for k in range(3)]
while not os.path.exists("0"):
    time.sleep(0.01)
child = ctypes.CDLL(None).fork()  # behind Python's back: it has our sockets open, and will never close them
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
lattica.get(calls)
"""


@pytest.mark.usefixtures("node")
def test_calls_of_a_dead_program_are_dropped_though_its_child_holds_the_connection(
    script: Script, tmp_path: Path
) -> None:
    lattica.init("auto", namespace="test")
    folder = str(tmp_path)

    @lattica.remote(num_cpus=0)
    class Busy:
        def work(self, number: int) -> None:
            Path(folder, str(number)).touch()
            while not Path(folder, "go").exists():
                time.sleep(0.01)

        def ping(self) -> str:
            return "pong"

    busy = Busy.options(name="busy").remote()
    assert lattica.get(busy.ping.remote(), timeout=10) == "pong"
    caller = script.start(CALLER)
    assert caller.stdout is not None
    child = int(caller.stdout.readline())
    try:
        caller.kill()
        caller.wait(5)
        assert eventually(lambda: len(current.get().state("jobs")) == 1), "the node sees the death"
        Path(folder, "go").touch()
        assert lattica.get(busy.ping.remote(), timeout=10) == "pong"
        assert Path(folder, "0").exists() and not Path(folder, "1").exists(), "a call of the dead has begun"
    finally:
        os.kill(child, signal.SIGKILL)
