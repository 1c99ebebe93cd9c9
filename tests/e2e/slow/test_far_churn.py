"""No node matters: every five seconds one is killed and another joins, and no result is lost (`make test-chaos`)."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lattica
from tests.e2e.churn import storm
from tests.e2e.conftest import Sessions
from tests.e2e.far import far_mesh

pytestmark = [pytest.mark.slow, pytest.mark.chaos]
CHAIN = 60


@lattica.remote
def first(number: int) -> Any:
    time.sleep(0.02)
    return np.full(400 << 10, number, np.uint8)


@lattica.remote(num_returns=2)
def second(one: Any, other: Any) -> tuple[int, Any]:
    time.sleep(0.02)
    return int(one[0]) + int(other[0]), np.zeros(300 << 10, np.uint8)


def test_arguments_and_results_that_are_lost_with_their_nodes_are_made_again(
    sessions: Sessions, tmp_path: Path
) -> None:
    with far_mesh(tmp_path, a=1, b=1, c=1, d=1) as mesh:
        firsts = [first.options(scheduling_strategy="SPREAD").remote(k) for k in range(CHAIN)]
        spread = second.options(scheduling_strategy="SPREAD")
        seconds = [spread.remote(firsts[k], firsts[(k + 1) % CHAIN]) for k in range(CHAIN)]
        timers = [threading.Timer(after_s, mesh.kill, [name]) for after_s, name in ((0.7, "d"), (1.4, "c"))]
        for timer in timers:
            timer.start()
        began = time.monotonic()
        assert lattica.get([sums for sums, _ in seconds], timeout=40) == [k + (k + 1) % CHAIN for k in range(CHAIN)]
        assert all(zeros.nbytes == 300 << 10 for zeros in lattica.get([zeros for _, zeros in seconds], timeout=40))
        print(f"\n  {2 * CHAIN} tasks in a chain while two of four nodes die: {time.monotonic() - began:.1f} s")
        for timer in timers:
            timer.join()


def test_2000_results_of_200_kib_that_lie_where_they_were_made_while_nodes_die(
    sessions: Sessions, tmp_path: Path
) -> None:
    with far_mesh(tmp_path, a=1, b=1, c=1, d=1, e=1, f=1) as mesh:
        print("\n  " + storm(mesh, "b", "a", tasks=2_000, seconds=0.05, every_s=5.0, size=200 << 10))


def test_2000_tasks_while_a_node_is_killed_every_five_seconds_and_another_joins(
    sessions: Sessions, tmp_path: Path
) -> None:
    with far_mesh(tmp_path, a=1, b=1, c=1, d=1, e=1, f=1) as mesh:
        print("\n  " + storm(mesh, "b", "a", tasks=2_000, seconds=0.05, every_s=5.0))
