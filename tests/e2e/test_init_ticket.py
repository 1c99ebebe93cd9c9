"""lattica.init(ticket): a program that joins a mesh for as long as it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lattica
from tests.e2e.conftest import Script, eventually
from tests.e2e.machines import Machine

GUEST = """
import os, sys, time
import lattica

lattica.init(sys.argv[1] if len(sys.argv) > 1 else None)

@lattica.remote(scheduling_strategy="SPREAD")
def where():
    time.sleep(0.3)
    return lattica.get_runtime_context().get_node_id()

print(len(set(lattica.get([where.remote() for _ in range(6)], timeout=20))))

@lattica.remote
def keys():
    import glob
    found = glob.glob(os.environ["TMPDIR"] + "/lattica-*/sessions/*/identity/*")
    return [*found, *glob.glob(os.environ["XDG_RUNTIME_DIR"] + "/lattica/*")]

print(lattica.get(keys.options(num_cpus=0).remote(), timeout=20))
"""


def run(script: Script, folder: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    path = folder / "guest.py"
    path.write_text(GUEST)
    env = os.environ | {"LATTICA_DATA_DIR": str(folder / "no node")} | environ
    return subprocess.run([sys.executable, str(path), *words], capture_output=True, text=True, timeout=40, env=env)


def test_a_program_joins_by_a_ticket_uses_the_mesh_and_leaves_with_a_word(
    machine: Callable[[str], Machine], script: Script, tmp_path: Path
) -> None:
    one = machine("one")
    one.start()
    ticket = tmp_path / "ticket.txt"
    ticket.write_text(one.ticket())
    for words, environ in (((ticket.read_text(),), {}), ((str(ticket),), {}), ((), {"LATTICA_TICKET": str(ticket)})):
        done = run(script, tmp_path, *words, **environ)
        assert (done.returncode, done.stdout) == (0, "2\n[]\n"), done.stderr
    states = [(row["state"], row["resources"]) for row in one.members() if not row["this_node"]]
    assert eventually(lambda: len([row for row in one.members() if row["state"] == "left"]) == 3), states
    assert all(resources == {} for _, resources in states), "it offers nothing to others"


def test_a_ticket_of_a_mesh_that_is_gone_says_so(
    machine: Callable[[str], Machine], script: Script, tmp_path: Path
) -> None:
    one = machine("one")
    one.start()
    ticket = one.ticket()
    one.ok("stop")
    done = run(script, tmp_path, ticket)
    assert done.returncode != 0 and "nobody of the ticket's mesh answers" in done.stderr
    cut = run(script, tmp_path, ticket[:-5])
    assert cut.returncode != 0 and "cut or mistyped" in cut.stderr


OTHER_PYTHON = """
import sys
import lattica
import lattica.session
from lattica.errors import LatticaError

lattica.session.PYTHON = "3.99"  # this interpreter, as if it were of a version that the mesh has not
lattica.init(sys.argv[1], num_cpus=int(sys.argv[2]))

@lattica.remote
def plus_one(x):
    return x + 1

@lattica.remote
class Counter:
    def plus_one(self, x):
        return x + 1

for call in (lambda: plus_one.remote(1), lambda: Counter.options(num_cpus=1).remote().plus_one.remote(1)):
    try:
        print(lattica.get(call(), timeout=20))
    except LatticaError as error:
        print("needs Python 3.99" in str(error) and "they run 3." in str(error) or error)
"""


def test_a_program_of_another_python_runs_on_nodes_that_have_it_or_is_told_that_none_has(
    machine: Callable[[str], Machine], script: Script, tmp_path: Path
) -> None:
    """Its functions are bytecode: in a worker of another version they would end in SIGSEGV."""
    one = machine("one")
    one.start()
    path = tmp_path / "other.py"
    path.write_text(OTHER_PYTHON)
    env = os.environ | {"LATTICA_DATA_DIR": str(tmp_path / "no node")}
    for cpus, says in (("0", "True\nTrue\n"), ("1", "2\n2\n")):
        words = [sys.executable, str(path), one.ticket(), cpus]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=env)
        assert (done.returncode, done.stdout) == (0, says), done.stderr


GIVER = """
import sys
import numpy as np
import lattica

lattica.init(sys.argv[1], namespace="shared")
keeper = lattica.get_actor("keeper")
print(lattica.get(keeper.keep.remote([lattica.put(np.full(1 << 20, 7, np.uint8))]), timeout=10))
"""


def test_what_others_hold_stays_when_the_program_that_made_it_has_left(
    machine: Callable[[str], Machine], script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine("one")
    one.start()
    monkeypatch.setenv("LATTICA_DATA_DIR", str(one.data_dir))

    @lattica.remote(num_cpus=0)
    class Keeper:
        def keep(self, refs: list[Any]) -> str:
            self.refs = refs
            return "kept"

        def total(self) -> int:
            return int(lattica.get(self.refs[0]).sum())

    with lattica.init("auto", namespace="shared"):
        keeper = Keeper.options(name="keeper").remote()
        program = script.start(GIVER, one.ticket(), env={"LATTICA_DATA_DIR": str(tmp_path / "no node")})
        out, err = program.communicate(timeout=40)
        assert (program.returncode, out) == (0, "kept\n"), err
        assert eventually(lambda: "left" in one.states().values()), one.states()
        assert lattica.get(keeper.total.remote(), timeout=10) == 7 << 20
