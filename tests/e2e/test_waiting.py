"""A `get` that gives up says why what it wanted is not there."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

import lattica
from lattica.errors import GetTimeoutError
from lattica.util.placement_group import placement_group
from lattica.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tests.e2e.conftest import Sessions


@lattica.remote
def nap(seconds: float, *_: Any) -> float:
    time.sleep(seconds)
    return seconds


@lattica.remote
class Sleeper:
    def __init__(self, seconds: float = 0.0) -> None:
        time.sleep(seconds)

    def nap(self, seconds: float, *_: Any) -> float:
        time.sleep(seconds)
        return seconds


def said(ref: Any, timeout: float = 0.3) -> str:
    with pytest.raises(GetTimeoutError) as caught:
        lattica.get(ref, timeout=timeout)
    return str(caught.value)


@pytest.fixture
def one_cpu(sessions: Sessions) -> None:
    sessions.share(num_cpus=1)


def test_a_task_that_runs_is_named_and_one_that_waits_with_what_it_waits_for(one_cpu: object) -> None:
    runs = nap.remote(2.0)
    assert re.search(r"nap runs for 0\.\d s in pid \d+ of this machine", said(runs))
    assert "first" in said(runs, 0.0), "who only looks is told what we know here"
    queued = [nap.options(num_cpus=1, max_retries=0).remote(0.0) for _ in range(2)]
    words = said(queued[1])
    assert "nap waits for a worker, behind 1 of its kind" in words
    assert "queue" in words and "needs CPU (0 of 1 free)" in words
    words = said(nap.remote(0.0, nap.remote(0.0, runs)))
    assert words.count("nap waits for 1 of its arguments, first") == 2 and "(nap runs for" in words
    assert lattica.get(queued, timeout=10) == [0.0, 0.0]


def test_calls_say_whether_their_actor_is_started_or_busy_or_waits_for_a_cpu(one_cpu: object) -> None:
    slow = Sleeper.remote(1.0)
    assert "not answered: it is started, and its constructor runs" in said(slow.nap.remote(0.0))
    lattica.get(slow.nap.remote(0.0), timeout=10)
    first, second = slow.nap.remote(1.0), slow.nap.remote(0.0)
    assert "was sent to its actor, and is not answered, as are 1 calls of ours before it" in said(second)
    holds = Sleeper.options(num_cpus=1).remote()
    lattica.get([first, holds.nap.remote(0.0)], timeout=10)
    waits = Sleeper.options(num_cpus=1).remote()
    assert "it is started: it is the next in this node's queue, and needs CPU (0 of 1 free)" in said(
        waits.nap.remote(0.0)
    )
    for actor in (slow, holds, waits):
        lattica.kill(actor)


def test_a_task_in_a_pending_placement_group_names_it(one_cpu: object) -> None:
    holds = Sleeper.options(num_cpus=1).remote()
    lattica.get(holds.nap.remote(0.0), timeout=10)
    group = placement_group([{"CPU": 1}])
    strategy = PlacementGroupSchedulingStrategy(group)
    assert re.search(r"placement group \w+ is PENDING", said(nap.options(scheduling_strategy=strategy).remote(0.0)))
    lattica.kill(holds)


def test_what_another_process_makes_is_named_with_who_owes_it(one_cpu: object) -> None:
    @lattica.remote(num_cpus=0)
    def owes() -> list[Any]:
        return [nap.options(num_cpus=0).remote(5.0)]

    [ref] = lattica.get(owes.remote(), timeout=10)
    assert re.search(r"it is made by another process: worker .* \(pid \d+\) owes it", said(ref))
