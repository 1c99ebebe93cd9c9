"""The connections that nodes carry between processes of two machines: frames of any size, and readers that are slow."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

import lattica
from lattica.node.memory_readings import resident_bytes
from tests.e2e.conftest import Sessions
from tests.e2e.far import Mesh, far_mesh

MIB = 1 << 20
NODE_MAX_BYTES = 64 * MIB
"""What a node may take for a process that does not read: a window, and what waits for the session."""


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("far"), a=1, b=1) as mesh:
        yield mesh


@lattica.remote(num_cpus=0.1)
class Echo:
    def pid(self) -> int:
        return os.getpid()

    def echo(self, value: Any) -> Any:
        return value

    def size(self, value: Any) -> int:
        return len(value)

    def fail(self, size: int) -> None:
        raise ValueError("x" * size)


def test_frames_larger_than_a_window_arrive(mesh: Mesh) -> None:
    echo = Echo.options(scheduling_strategy=mesh.on("b")).remote()
    for size in (5 * MIB, 12 * MIB):
        with pytest.raises(ValueError) as caught:
            lattica.get(echo.fail.remote(size), timeout=20)
        assert len(caught.value.args[0]) == size
    many = [bytes(90 << 10)] * 200  # 18 MiB in frames of what fits into one
    assert lattica.get([echo.size.remote(value) for value in many], timeout=20) == [90 << 10] * 200
    assert all(len(value) == 90 << 10 for value in lattica.get([echo.echo.remote(value) for value in many], timeout=20))


def test_a_worker_that_reads_slowly_stops_its_caller_and_nobody_else(mesh: Mesh) -> None:
    slow, quick = (Echo.options(scheduling_strategy=mesh.on("b")).remote() for _ in range(2))
    pid, _ = lattica.get([slow.pid.remote(), quick.pid.remote()], timeout=20)
    nodes = [mesh.nodes[name].pid for name in "ab"]
    before = [resident_bytes(node) for node in nodes]
    os.kill(pid, signal.SIGSTOP)
    try:
        refs = [slow.size.remote(bytes(90 << 10)) for _ in range(1_500)]  # 132 MiB
        longest = 0.0
        for _ in range(50):
            began = time.monotonic()
            assert lattica.get(quick.size.remote(b"12345"), timeout=20) == 5
            longest = max(longest, time.monotonic() - began)
            time.sleep(0.02)
        more = [resident_bytes(node) - was for node, was in zip(nodes, before, strict=True)]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert lattica.get(refs, timeout=30) == [90 << 10] * 1_500
    print(f"\n  nodes +{[size // MIB for size in more]} MiB; another actor's slowest answer {longest * 1000:.0f} ms")
    assert max(more) < NODE_MAX_BYTES
    assert longest < 1.0
