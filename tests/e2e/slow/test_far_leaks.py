"""Thousands of tasks with large values on other nodes, and what is left of them (`make test-chaos`)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lattica
from tests.e2e.conftest import Sessions, eventually
from tests.e2e.far import Mesh, far_mesh, traces_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("far"), a=1, b=1, c=1) as mesh:
        yield mesh


@lattica.remote
def total(value: Any) -> Any:
    return value + 1


def test_2000_tasks_with_large_values_leave_nothing_on_any_node(mesh: Mesh) -> None:
    value = np.zeros(200 << 10, np.uint8)
    lattica.get([total.options(scheduling_strategy=mesh.on(name)).remote(value) for name in "bc"], timeout=20)
    nodes = mesh.nodes.values()

    def empty() -> bool:
        return all((busy, held, used) == (0, 0, 0) for _, busy, _, held, used in traces_of(nodes).values())

    assert eventually(empty, 12, 0.5), traces_of(nodes)
    before = traces_of(nodes)
    start = time.monotonic()
    for _ in range(20):
        refs = [total.options(scheduling_strategy=mesh.on("bc"[k % 2])).remote(value) for k in range(100)]
        for one in lattica.get(refs, timeout=60):
            assert one[0] == 1
        del one, refs
    began = time.monotonic()
    assert eventually(lambda: traces_of(nodes) == before, 12, 0.2), (before, traces_of(nodes))
    print(f"\n  2,000 tasks took {began - start:.1f} s, and nothing was left {time.monotonic() - began:.1f} s later")
