"""Names and detached actors for longer: a hundred rounds of six nodes, and a mesh that loses most of itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import lattica
from lattica.errors import ActorUnavailableError
from tests.e2e.conftest import Script, Sessions, eventually
from tests.e2e.far import far_mesh
from tests.e2e.test_far_names import SPACE, program, rounds_at_once

pytestmark = pytest.mark.slow


def test_a_hundred_times_six_nodes_make_one_name_at_once(sessions: Sessions, tmp_path: Path, script: Script) -> None:
    names = [f"n{number}" for number in range(6)]
    with far_mesh(tmp_path / "mesh", **dict.fromkeys(names, 1.0)) as mesh:
        rounds_at_once(mesh, script, tmp_path, names, rounds=100)


def test_when_more_than_half_are_lost_at_once_nothing_is_restarted_until_the_rest_is_adopted(
    sessions: Sessions, tmp_path: Path, script: Script
) -> None:
    names = [f"n{number}" for number in range(5)]
    with far_mesh(tmp_path / "mesh", **dict.fromkeys(names, 1.0)) as mesh:
        assert eventually(lambda: all(mesh.nodes[name].ask("side")["members"] == 5 for name in names), 40.0)
        made = "c = Counter.options(name='kept', lifetime='detached', max_restarts=-1).remote(start=1)"
        assert program(mesh, script, "n1", f"{made}\nprint(lattica.get(c.add.remote()))") == "2"
        counter = lattica.get_actor("kept", SPACE)
        assert lattica.get(counter.add.remote(), timeout=20) == 3
        time.sleep(1.0)
        for name in ("n1", "n2", "n3"):
            mesh.kill(name)
        with pytest.raises(ActorUnavailableError):
            lattica.get(counter.add.remote(), timeout=40)  # it was under way when its node died
        with pytest.raises(ActorUnavailableError, match="smaller side"):
            lattica.get(counter.add.remote(), timeout=40)
        time.sleep(20.0)
        (row,) = mesh.nodes["n4"].ask("actors")
        assert row["epoch"] == 1 and mesh.nodes["n4"].ask("side")["island"]
        assert "n" in mesh.nodes["n0"].ok("adopt", "--yes")
        began = time.monotonic()
        assert eventually(lambda: mesh.nodes["n4"].ask("actors")[0]["epoch"] == 2, 30.0)
        print(f"restarted {time.monotonic() - began:.1f} s after it was adopted")
        assert eventually(lambda: not mesh.nodes["n4"].ask("side")["island"], 10.0), "the other one heard of it"
        assert lattica.get(counter.add.remote(), timeout=30) == 2, "the same handle"
