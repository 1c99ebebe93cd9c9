"""A worker that has run a function `max_calls` times ends, and nobody loses anything by it."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lattica
from lattica.exceptions import RayTaskError

pytestmark = pytest.mark.usefixtures("two_cpus")


@lattica.remote(max_calls=2, max_retries=0)
def twice() -> int:
    return os.getpid()


def test_a_worker_runs_it_so_often_and_no_more() -> None:
    pids = [lattica.get(twice.remote(), timeout=30) for _ in range(6)]
    assert [pids.index(pid) for pid in pids] == [0, 0, 2, 2, 4, 4]


def test_many_at_once_cost_no_retry_and_lose_no_reply() -> None:
    ran = collections.Counter(lattica.get([twice.remote() for _ in range(30)], timeout=60))
    assert sum(ran.values()) == 30 and max(ran.values()) <= 2


def test_other_functions_have_workers_of_their_own_number_of_calls() -> None:
    @lattica.remote(max_retries=0)
    def pid() -> int:
        return os.getpid()

    refs = [f.remote() for _ in range(10) for f in (twice, pid)]
    ran = collections.Counter(lattica.get(refs, timeout=60)[::2])
    assert max(ran.values()) <= 2


def test_what_it_raised_put_and_returned_outlives_the_worker() -> None:
    @lattica.remote(max_calls=1, max_retries=0)
    def fails() -> None:
        raise ValueError("as asked")

    @lattica.remote(max_calls=1, max_retries=0)
    def makes() -> Any:
        return lattica.put("small"), lattica.put(np.ones(1 << 18)), np.full(1 << 18, 2.0)

    with pytest.raises(RayTaskError, match="as asked"):
        lattica.get(fails.remote(), timeout=30)
    small, large, result = lattica.get(makes.remote(), timeout=30)
    assert lattica.get(small, timeout=30) == "small"
    assert lattica.get(large, timeout=30).sum() == 1 << 18 and result.sum() == 2 << 18


def test_a_worker_whose_children_run_waits_for_them_before_it_ends() -> None:
    @lattica.remote(max_calls=1, max_retries=0)
    def parent(depth: int) -> Any:
        return (os.getpid(), parent.remote(depth - 1)) if depth else (os.getpid(), None)

    pids = []
    ref = parent.remote(3)
    while ref is not None:
        pid, ref = lattica.get(ref, timeout=30)
        pids.append(pid)
    assert len(set(pids)) == len(pids) == 4


def test_all_that_a_generator_has_yielded_arrives() -> None:
    @lattica.remote(max_calls=1, max_retries=0)
    def counts() -> Iterator[Any]:
        for number in range(50):
            yield number, os.getpid()

    first, second = ([lattica.get(ref, timeout=30) for ref in counts.remote()] for _ in range(2))
    assert [number for number, _ in first] == list(range(50)) == [number for number, _ in second]
    assert first[0][1] != second[0][1]
