"""A mesh that is cut apart in real kernels, and heals: detached actors follow the larger side (root, nft; slow).

Six nodes in network namespaces. Programs talk to their node over its unix socket, so that they run where the test runs.
LATTICA_PARTITION_S: how long each cut lasts; 60 s unless it says otherwise, 180 s is the long form.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lattica.testing.netlab import Lab
from lattica.testing.netlab.fixture import netlab
from tests.e2e.conftest import Script, Sessions, eventually
from tests.e2e.machines import COMMAND, Machine
from tests.e2e.test_far_names import COUNTER, SPACE

__all__ = ["netlab"]
pytestmark = pytest.mark.slow
CUT_S = float(os.environ.get("LATTICA_PARTITION_S", "60"))
NAMES = [f"n{number}" for number in range(6)]
STABLE_S = 30.0  # for all to be in the stable view: a founder alone takes in all who live after ten seconds
AGREE_S = 5.0
"""After a heal, until all nodes tell the same: promised."""
SETTLED_S = 30.0  # after a heal, for what is not promised in seconds


ACTOR = (
    COUNTER
    + """
    def life(self):
        if not hasattr(self, "born"):
            self.born = os.urandom(4).hex()
        return self.born
"""
)
TASKS = f"""
import time

@lattica.remote(scheduling_strategy="SPREAD")
def where():
    time.sleep(0.2)
    return lattica.get_runtime_context().get_node_id()

print(*lattica.get([where.remote() for _ in range({3 * len(NAMES)})], timeout=60), sep="\\n")
"""
CALLER = """
import time
roving = lattica.get_actor("roving")
while True:
    begun = time.time()
    try:
        print(begun, lattica.get(roving.life.remote(), timeout=5), flush=True)
    except errors.LatticaError as error:
        print(begun, type(error).__name__, flush=True)
    time.sleep(0.2)
"""
"""A program with a handle: when each call began, and who answered it, or the error."""


class LabMachine(Machine):
    """One that has a kernel's network of its own."""

    def __init__(self, folder: Path, lab: Lab, host: str) -> None:
        super().__init__(folder)
        self.lab, self.host = lab, host

    def run(self, *words: str, env: dict[str, str] | None = None, said: str | None = None
            ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        environ = os.environ | {"LATTICA_DATA_DIR": str(self.data_dir)} | (env or {})
        return self.lab.run(self.host, [*COMMAND, *words], check=False, timeout=60, env=environ, input=said)


class Cut:
    """A mesh of six, what programs on its nodes see, and what they do."""

    def __init__(self, lab: Lab, folder: Path, script: Script) -> None:
        self.lab, self.script = lab, script
        self.nodes = {name: LabMachine(folder / name, lab, name) for name in NAMES}

    def begin(self) -> None:
        """All of them are in the stable view."""
        lab, ticket = self.lab, ""
        for name, node in self.nodes.items():
            words = ("--num-cpus", "1", "--object-store-memory", "32MiB", "--listen", f"{lab.ip(name)}:7337")
            if ticket:
                node.start("join", "-", *words, said=ticket)
            else:
                node.start("start", *words)
                ticket = node.ticket("--role", "all")
        for node in self.nodes.values():
            assert eventually(lambda node=node: list(node.states().values()) == ["alive"] * 6, STABLE_S), node.states()
            assert eventually(
                lambda node=node: node.ask("side")["members"] == 6 and not node.ask("side")["island"], STABLE_S
            ), node.ask("side")

    def end(self) -> None:
        for node in self.nodes.values():
            node.run("stop", "--force")

    def program(self, node: str, text: str) -> str:
        """What a program of this node's prints."""
        process = self.start(node, text)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, f"exit code {process.returncode}\n{out}\n{err}"
        return str(out).strip()

    def start(self, node: str, text: str) -> Any:
        """A program on this node, under way."""
        text = f"{ACTOR}\nimport lattica.errors as errors\nlattica.init(address='auto', namespace='{SPACE}')\n{text}"
        env = {"LATTICA_DATA_DIR": str(self.nodes[node].data_dir)}
        return self.script.start(text, env=env, name=f"{node}.py")

    def make(self, node: str, name: str, **options: object) -> None:
        how = "".join(f", {key}={value!r}" for key, value in options.items())
        text = f"c = Counter.options(name={name!r}, lifetime='detached', max_restarts=-1{how}).remote(start=10)"
        assert self.program(node, f"{text}\nprint(lattica.get(c.add.remote(), timeout=60))") == "11"

    def call(self, node: str, name: str, timeout_s: float = 20.0) -> str:
        """A number, or the name of the error."""
        text = f"""
try:
    print(lattica.get(lattica.get_actor({name!r}).add.remote(), timeout={timeout_s}))
except (errors.LatticaError, ValueError) as error:
    print(type(error).__name__)
"""
        return self.program(node, text)

    def rows(self, node: str) -> Any:
        return self.nodes[node].ask("actors")

    def row(self, node: str, name: str) -> dict[str, Any]:
        return next(row for row in self.rows(node) if row["name"] == name)

    def peer_id(self, node: str) -> str:
        return str(self.nodes[node].ask("whoami")["peer_id"])

    def agree(self, healed: float) -> None:
        """`lattica list actors` says the same everywhere within AGREE_S of the heal."""

        def said() -> set[str]:
            return {json.dumps(self.nodes[name].ask("list", what="actors"), default=bytes.hex) for name in NAMES}

        assert eventually(lambda: len(said()) == 1, AGREE_S - (time.monotonic() - healed), every_s=0.1), said()
        print(f"all agree {time.monotonic() - healed:.1f} s after the heal")
        printed = {self.nodes[name].ok("list", "actors", "--json") for name in NAMES}
        assert len(printed) == 1, printed

    def works(self, side: Sequence[str]) -> None:
        """A program on each node of this side has tasks run, by nodes of this side alone."""
        ids = {_raw(self.peer_id(name)).hex() for name in side}
        for name in side:
            hosts = self.program(name, TASKS).split()
            assert len(hosts) == 3 * len(NAMES) and set(hosts) <= ids, f"{name} of {side}: {hosts}"
            assert len(set(hosts)) == len(side), f"tasks of {name} ran on {len(set(hosts))} of {len(side)} nodes"

    def side(self, nodes: Sequence[str], island: bool, within_s: float) -> None:
        for name in nodes:
            node = self.nodes[name]
            assert eventually(lambda node=node: node.ask("side")["island"] is island, within_s, every_s=0.5), (
                f"{name}: {node.ask('side')}"
            )


@pytest.fixture
def cut(
    sessions: Sessions, netlab: Callable[..., Lab], tmp_path: Path, script: Script
) -> Any:  # fmt: skip
    sessions.end()
    made = Cut(netlab(NAMES, probe=False), tmp_path, script)
    try:
        made.begin()
        yield made
    finally:
        made.end()


def test_the_larger_side_restarts_what_the_smaller_side_had(cut: Cut) -> None:
    """5+1: the one that is cut off has an actor; it goes on there until the heal, and there it is fenced."""
    alone, rest = "n5", NAMES[:5]
    cut.make(alone, "roving")
    cut.make(alone, "both", partition="available")
    cut.make("n1", "far")
    assert cut.call("n2", "roving") == "12"
    before = cut.row("n0", "roving")
    callers = [cut.start(node, CALLER) for node in (alone, "n4")]
    first = {caller.stdout.readline().split()[1] for caller in callers}
    assert len(first) == 1, f"one life before the cut, not {first}"
    cut.lab.partition([alone], rest)
    began = time.monotonic()
    cut.side([alone], True, 30.0)
    print(f"cut off alone is known after {time.monotonic() - began:.1f} s")
    assert eventually(lambda: cut.row("n0", "roving")["host"] != before["host"], 60.0, every_s=0.5)
    print(f"the larger side has restarted it after {time.monotonic() - began:.1f} s")
    assert cut.call("n3", "roving", 60.0) == "11", "a new life"
    cut.works([alone])
    cut.works(rest)
    assert cut.call(alone, "far") == "ActorUnavailableError", "on the smaller side, nobody restarts it"
    assert cut.row(alone, "far")["epoch"] == 1
    time.sleep(max(0.0, CUT_S - (time.monotonic() - began)))
    assert not [row for row in cut.rows("n0") if row["minority"]]
    cut.lab.unpartition()
    healed = time.monotonic()
    cut.agree(healed)
    agreed = time.time()
    cut.side([alone], False, SETTLED_S)
    row = cut.row(alone, "roving")
    assert row["epoch"] == before["epoch"] + 1 and row["host"] != cut.peer_id(alone)
    assert eventually(lambda: "ends here" in cut.nodes[alone].log(), 20.0), "the old life is ended"
    assert cut.call(alone, "roving", 60.0) == "12"
    assert cut.call(alone, "far", 60.0).isdigit()
    heard = [_heard(caller) for caller in callers]
    lives = {life for said in heard for _, life in said if not life.endswith("Error")}
    assert len(lives - first) == 1, "one new life, and it alone answers besides the old one"
    stale = [(begun, life) for said in heard for begun, life in said if life in first and begun > agreed]
    assert not stale, f"{len(stale)} calls were answered by a life that is fenced"
    for said in heard:
        assert said[-1][1] in lives - first, "who had a handle calls the new life with it"


def test_halves_keep_what_they_have_and_the_one_with_the_lowest_id_restarts(cut: Cut) -> None:
    """3+3. An actor of either half; partition="available" restarts on the smaller side too, and loses on the heal."""
    ids = {name: cut.peer_id(name) for name in NAMES}
    members = sorted(NAMES, key=lambda name: bytes(_raw(ids[name])))
    larger, smaller = members[::2], members[1::2]
    cut.make(smaller[0], "of_smaller")
    cut.make(larger[0], "of_larger")
    cut.make(larger[1], "open", partition="available")
    before = {row["name"]: row for row in cut.rows(NAMES[0])}
    cut.lab.partition(larger, smaller)
    began = time.monotonic()
    cut.side(smaller, True, 30.0)
    assert eventually(lambda: cut.row(larger[0], "of_smaller")["epoch"] == 2, 60.0, every_s=0.5)
    assert eventually(lambda: cut.row(smaller[0], "open")["minority"], 60.0, every_s=0.5)
    print(f"both sides have restarted what they may after {time.monotonic() - began:.1f} s")
    assert cut.call(smaller[1], "of_larger") == "ActorUnavailableError"
    assert cut.call(smaller[1], "of_smaller") == "12", "it lives on there"
    assert cut.call(larger[1], "of_smaller", 60.0) == "11", "and here anew"
    assert cut.call(smaller[2], "open", 60.0) == "11"
    assert cut.call(larger[2], "open", 60.0) == "12"
    cut.works(smaller)
    cut.works(larger)
    time.sleep(max(0.0, CUT_S - (time.monotonic() - began)))
    cut.lab.unpartition()
    healed = time.monotonic()
    cut.agree(healed)
    for side in (smaller, larger):
        cut.side(side, False, SETTLED_S)
    after = {row["name"]: row for row in cut.rows(NAMES[0])}
    assert not [row for row in after.values() if row["minority"]]
    assert after["open"]["host"] == before["open"]["host"], "the original wins over a minority restart"
    assert after["of_smaller"]["epoch"] == 2 and after["of_larger"]["epoch"] == 1
    for name in (smaller[0], larger[0]):
        assert cut.call(name, "open", 60.0).isdigit() and cut.call(name, "of_smaller", 60.0).isdigit()
    assert cut.call(smaller[0], "open", 60.0) == "15"


HOLDER = """
c = Counter.options(name="shared").remote(start=int(sys.argv[1]))
print(lattica.get(c.add.remote(), timeout=60), flush=True)
while input():
    try:
        print(lattica.get(c.add.remote(), timeout=30), flush=True)
    except errors.LatticaError as error:
        print(type(error).__name__, flush=True)
"""


def test_a_name_that_both_sides_gave_away_is_one_again_after_the_heal(cut: Cut) -> None:
    """Programs on either side make it while they cannot see each other; one of the two is fenced."""
    left, right = NAMES[:3], NAMES[3:]
    cut.lab.partition(left, right)
    for node in (*left, *right):
        assert eventually(lambda node=node: list(cut.nodes[node].states().values()).count("dead") == 3, 30.0)
    programs = []
    for node, start in ((left[0], 100), (right[0], 200)):
        head = f"{COUNTER}\nimport lattica.errors as errors\nlattica.init(address='auto', namespace='{SPACE}')\n"
        env = {"LATTICA_DATA_DIR": str(cut.nodes[node].data_dir)}
        programs.append(cut.script.start(head + HOLDER, str(start), env=env, name=f"{node}.py", stdin=-1))

    def say(process: Any) -> str:
        process.stdin.write("again\n")
        process.stdin.flush()
        return str(process.stdout.readline()).strip()

    firsts = [str(process.stdout.readline()).strip() for process in programs if process.stdout is not None]
    assert firsts == ["101", "201"]
    cut.lab.unpartition()
    for node in NAMES:
        assert eventually(lambda node=node: list(cut.nodes[node].states().values()) == ["alive"] * 6, SETTLED_S)
    assert eventually(lambda: "ActorFencedError" in [say(process) for process in programs], SETTLED_S)
    said = [say(process) for process in programs]
    assert said.count("ActorFencedError") == 1, said
    (winner,) = (word for word in said if word != "ActorFencedError")
    assert cut.call("n1", "shared") == str(int(winner) + 1), "all find the same one"
    for process in programs:
        process.kill()


def _heard(caller: Any) -> list[tuple[float, str]]:
    """(when a call began, the life that answered it or its error), of a program that is ended now."""
    caller.kill()
    out, _ = caller.communicate()
    lines = [line.split() for line in out.splitlines()]
    return [(float(line[0]), line[1]) for line in lines if len(line) == 2]


def _raw(peer_id: str) -> bytes:
    from lattica.mesh.identity import parse_peer

    return bytes(parse_peer(peer_id))
