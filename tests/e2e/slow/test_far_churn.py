"""No node matters: every five seconds one is killed and another joins, and no result is lost (`make test-chaos`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.churn import storm
from tests.e2e.conftest import Sessions
from tests.e2e.far import far_mesh

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


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
