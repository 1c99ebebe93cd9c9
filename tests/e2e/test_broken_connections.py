"""Connections that end though nobody died, or that live on though somebody did: nobody waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lattica
from lattica.actors import current
from lattica.actors.calls import ActorPeer
from lattica.actors.tasks import Target
from lattica.exceptions import ActorUnavailableError, WorkerCrashedError
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
    sent, later = actor.echo.remote(1), actor.echo.options(max_task_retries=1).remote(2)
    with pytest.raises(ActorUnavailableError, match=r"connection to it broke .*the test wants it so.*may have run"):
        lattica.get(sent, timeout=10)
    assert lattica.get(later, timeout=10) == 2
    assert lattica.get(actor.count.remote(), timeout=10) in (2, 3, 4), "it is the same one"


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
