"""Six nodes make the same name at once, a hundred times: one constructor runs each time (`make test-chaos`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Script, Sessions
from tests.e2e.far import far_mesh
from tests.e2e.test_far_names import rounds_at_once

pytestmark = pytest.mark.slow


def test_a_hundred_times_six_nodes_make_one_name_at_once(sessions: Sessions, tmp_path: Path, script: Script) -> None:
    names = [f"n{number}" for number in range(6)]
    with far_mesh(tmp_path / "mesh", **dict.fromkeys(names, 1.0)) as mesh:
        rounds_at_once(mesh, script, tmp_path, names, rounds=100)
