"""Nodes that go on purpose: what runs there ends well, and what only they have is handed over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.node import paths
from lattica.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.e2e.conftest import Sessions, eventually
from tests.e2e.machines import Machine, see


@lattica.remote
def large(value: int) -> Any:
    return np.full(1 << 20, value, np.uint8)


@lattica.remote
def slow(seconds: float) -> str:
    time.sleep(seconds)
    return str(lattica.get_runtime_context().get_node_id())


@pytest.fixture
def pair(
    machine: Callable[[str], Machine], sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> tuple[Machine, Machine, Any]:
    """Two machines, this program at the first, and what places a task at the second."""
    one, two = machine("one"), machine("two")
    one.start()
    two.start("join", one.ticket(), "--num-cpus", "1")
    see((one, ["two"]), (two, ["one"]))
    monkeypatch.setenv("LATTICA_DATA_DIR", str(one.data_dir))
    lattica.init("auto")
    node = paths.running_node(str(two.data_dir))
    assert node is not None
    from lattica.mesh.identity import parse_peer

    there = NodeAffinitySchedulingStrategy(parse_peer(node.node).hex(), soft=False)
    return one, two, there


def gone(one: Machine, two: Machine) -> bool:
    return not two.pid and one.states()["two"] == "left"


def test_a_drained_node_finishes_tasks_hands_over_objects_and_leaves(pair: tuple[Machine, Machine, Any]) -> None:
    one, two, there = pair
    ref = large.options(scheduling_strategy=there).remote(7)
    lattica.wait([ref], timeout=10, fetch_local=False)
    running = slow.options(scheduling_strategy=there).remote(4)  # two commands take a second, on a busy machine more
    time.sleep(0.5)
    one.ok("drain", "--no-wait", "two")
    assert "drains already" in two.run("drain").stderr
    elsewhere = lattica.get(slow.options(scheduling_strategy="SPREAD").remote(0), timeout=10)
    assert elsewhere == lattica.get_runtime_context().get_node_id()
    assert lattica.get(running, timeout=10) != elsewhere
    assert eventually(lambda: gone(one, two), 10), one.states()
    assert int(lattica.get(ref, timeout=5).sum()) == 7 << 20, "its only copy was handed over"
    assert "goes; " in one.log()
    lattica.shutdown()


def test_sigterm_drains_and_a_second_one_ends_at_once(pair: tuple[Machine, Machine, Any]) -> None:
    one, two, there = pair
    ref = large.options(scheduling_strategy=there).remote(3)
    lattica.wait([ref], timeout=10, fetch_local=False)
    endless = slow.options(scheduling_strategy=there, max_retries=0).remote(60)
    time.sleep(0.5)
    os.kill(two.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert two.pid, "a task of another node runs here"
    os.kill(two.pid, signal.SIGTERM)
    assert eventually(lambda: gone(one, two)), one.states()
    with pytest.raises(lattica.exceptions.RayError):
        lattica.get(endless, timeout=5)
    lattica.shutdown()


def test_stop_hands_over_what_others_hold(pair: tuple[Machine, Machine, Any]) -> None:
    _, two, there = pair
    ref = large.options(scheduling_strategy=there).remote(5)
    lattica.wait([ref], timeout=10, fetch_local=False)
    two.ok("stop")
    assert int(lattica.get(ref, timeout=5).sum()) == 5 << 20
    lattica.shutdown()


def test_who_may_not_drain_another_node_is_told_who_may(pair: tuple[Machine, Machine, Any]) -> None:
    one, two, _ = pair
    refused = two.run("drain", "one", "--no-wait")
    assert refused.returncode == 1 and "lacks the role admin" in refused.stderr
    assert "run `lattica drain` on that machine, or this on an issuer" in refused.stderr and one.pid
