"""The end of a node that nobody asked for: the error says how it came about, and what the node last wrote."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lattica
from lattica.actors import current
from lattica.codec import messages as m
from lattica.exceptions import LocalRayletDiedError, RayError
from lattica.node.paths import data_dir, running_node
from tests.e2e.conftest import Script, eventually


@lattica.remote(max_retries=0)
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@lattica.remote
def echo(value: Any) -> Any:
    return value


def node_pid() -> int:
    pid: int = current.get().state("status")["node"]["pid"]
    return pid


def what_is_said() -> str:
    with pytest.raises(LocalRayletDiedError) as caught:
        while True:
            lattica.get(echo.remote(1), timeout=5)
    return str(caught.value)


@pytest.mark.parametrize(
    ("signum", "how"),
    [
        (signal.SIGKILL, r"ended \(killed by SIGKILL\)"),
        (signal.SIGSEGV, r"ended \(killed by SIGSEGV \(segmentation fault\)\).*Fatal Python error"),
        (signal.SIGTERM, r"told to end.* SIGTERM"),
    ],
)
def test_a_node_that_a_signal_ends_is_said_to_be(fresh: Callable[..., Any], signum: int, how: str) -> None:
    fresh(num_cpus=1)
    with pytest.raises(RayError):
        lattica.get(die.remote())  # the node notes that in its log
    os.kill(node_pid(), signum)
    said = what_is_said()
    assert re.search(f"(?s){how}", said), said
    assert re.search(r"(?s)last lines of its log:\n.*worker \d+ \(pid \d+\) ended: killed by SIGKILL", said), said


def test_a_program_that_its_node_drops_hears_for_what(fresh: Callable[..., Any]) -> None:
    fresh(num_cpus=1)
    with current.get().lock:
        current.get().tell_node(m.ActorReady(b"a" * 12))
    said = what_is_said()
    assert "let this program go: a driver may not send ActorReady" in said and "is dropped" in said, said


def test_a_program_that_closes_the_connection_itself_says_so(
    fresh: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    fresh(num_cpus=1)
    current.get()._handlers[m.State] = lambda message: 1 / 0
    with pytest.raises(LocalRayletDiedError, match="closed here, for a message could not be handled: ZeroDivision"):
        lattica.nodes()
    assert "could not be handled" in caplog.text


MACHINES_NODE = """
import sys, lattica
lattica.init("auto")
print(lattica.nodes()[0]["NodeID"], flush=True)

@lattica.remote
def sleep():
    import time
    time.sleep(60)

lattica.get(sleep.remote())
"""


@pytest.mark.parametrize(("signum", "how"), [("-KILL", "ended; .*last lines of its log"), ("-TERM", "told to end")])
def test_the_end_of_a_machines_node_is_told_to_its_programs(script: Script, signum: str, how: str) -> None:
    lattica.shutdown()
    start = script("import sys\nfrom lattica.cli.main import main\nsys.exit(main(['start', '--num-cpus', '1']))")
    try:
        program = script.start(MACHINES_NODE)
        assert program.stdout is not None and program.stdout.readline(), start
        node = running_node(data_dir())
        assert node is not None
        os.kill(node.pid, getattr(signal, f"SIG{signum[1:]}"))
        _, said = program.communicate(timeout=10)
        assert program.returncode == 1 and re.search(f"(?s)LocalNodeDiedError.*{how}", said), said
    finally:
        script("import sys\nfrom lattica.cli.main import main\nmain(['stop'])")
        assert eventually(lambda: running_node(data_dir()) is None)


@pytest.mark.usefixtures("two_cpus")
def test_the_kernel_would_end_a_worker_before_the_node_or_the_program() -> None:
    @lattica.remote
    def score() -> int:
        return int(Path("/proc/self/oom_score_adj").read_text())

    mine, node = (int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in ("self", node_pid()))
    assert lattica.get(score.remote()) == 1000 > max(mine, node)
