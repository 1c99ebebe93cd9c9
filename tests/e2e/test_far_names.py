"""Names and detached actors in a mesh: one constructor per name, handles from any node, lives that outlast machines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lattica
from lattica.errors import ActorAlreadyExistsError, ActorDiedError, ActorUnavailableError
from tests.e2e.conftest import Script, Sessions, eventually
from tests.e2e.far import Mesh, far_mesh

SPACE = "space"
RESTARTED_S = 60.0
"""A death is known after ten seconds; the restarter waits for five, and for two more per rank."""


@pytest.fixture(scope="module")
def mesh(sessions: Sessions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("names"), a=2, b=2, c=2) as mesh:
        yield mesh


COUNTER = """
import os, sys
import lattica

@lattica.remote(num_cpus=0)
class Counter:
    def __init__(self, path="", start=0):
        self.n = start
        if path:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, b"constructed\\n")
            os.close(fd)
    def add(self, by=1):
        self.n = self.n + by
        return self.n
    def where(self):
        return lattica.get_runtime_context().get_node_id()
"""


@lattica.remote(num_cpus=0)
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.n = start

    def add(self, by: int = 1) -> int:
        self.n += by
        return self.n

    def where(self) -> str:
        return lattica.get_runtime_context().get_node_id()


def program(mesh: Mesh, script: Script, node: str, text: str, *args: str, name: str = "program.py") -> str:
    """Run a program of that node's; what it prints."""
    text = f"{COUNTER}\nlattica.init(address='auto', namespace='{SPACE}')\n{text}"
    env = {"LATTICA_DATA_DIR": str(mesh.nodes[node].data_dir)}
    return script(text, *args, env=env, name=name, timeout_s=90).strip()


def test_an_actor_is_found_by_its_name_from_every_node(mesh: Mesh, script: Script) -> None:
    counter = Counter.options(name="one", namespace=SPACE).remote(10)
    assert lattica.get(counter.add.remote(), timeout=20) == 11
    for number, node in enumerate(("b", "c", "b")):
        said = program(mesh, script, node, "print(lattica.get(lattica.get_actor('one').add.remote(), timeout=20))")
        assert said == str(12 + number)
    del counter
    gone = "\n".join(["try:", "    lattica.get_actor('one')", "except ValueError:", "    print('gone')"])
    assert eventually(lambda: program(mesh, script, "c", gone) == "gone", 10.0)


def test_a_handle_by_name_keeps_its_actor(mesh: Mesh, script: Script) -> None:
    """The creator lets its handle go while another node's program has one."""
    counter = Counter.options(name="held", namespace=SPACE).remote()
    text = "c = lattica.get_actor('held')\nprint(lattica.get(c.add.remote()), flush=True)\ninput()\n"
    text += "print(lattica.get(c.add.remote(), timeout=20), flush=True)"
    env = {"LATTICA_DATA_DIR": str(mesh.nodes["b"].data_dir)}
    head = f"{COUNTER}\nlattica.init(address='auto', namespace='{SPACE}')\n"
    other = script.start(head + text, env=env, name="holder.py", stdin=-1)
    assert other.stdout is not None and other.stdin is not None
    assert other.stdout.readline() == "1\n"
    del counter
    time.sleep(1.0)
    other.stdin.write("\n")
    other.stdin.flush()
    assert other.stdout.readline() == "2\n"
    other.wait(20)


def test_a_name_that_is_taken_is_refused_on_other_nodes_and_shared_if_asked_for(mesh: Mesh, script: Script) -> None:
    counter = Counter.options(name="taken", namespace=SPACE).remote(5)
    lattica.get(counter.add.remote(), timeout=20)
    refused = "\n".join(
        ["try:", "    Counter.options(name='taken').remote()", "except lattica.errors.ActorAlreadyExistsError as e:",
         "    print(e)"]
    )  # fmt: skip
    assert "lives in namespace 'space' already" in program(mesh, script, "b", "import lattica.errors\n" + refused)
    shared = "print(lattica.get(Counter.options(name='taken', get_if_exists=True).remote().add.remote(), timeout=20))"
    assert program(mesh, script, "c", shared) == "7"
    with pytest.raises(ActorAlreadyExistsError):
        Counter.options(name="taken", namespace=SPACE).remote()
    lattica.kill(counter)
    again = Counter.options(name="taken", namespace=SPACE).remote(40)
    assert lattica.get(again.add.remote(), timeout=20) == 41


def test_a_name_that_nobody_has_is_said_so_at_once(mesh: Mesh) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match="no living actor is named 'nobody'"):
        lattica.get_actor("nobody", SPACE)
    assert time.monotonic() - began < 5.0


ROUNDS = """
import time
path, rounds = sys.argv[1], int(sys.argv[2])
found = []
print("ready", flush=True)
input()
for number in range(rounds):
    name = f"{path.rsplit('/', 1)[-1]}-{number}"
    counter = Counter.options(name=name, get_if_exists=True, lifetime="detached").remote(f"{path}-{number}")
    found.append(lattica.get(counter.add.remote(), timeout=60))
    print(found[-1], flush=True)
    input()
"""


def rounds_at_once(mesh: Mesh, script: Script, folder: Path, nodes: list[str], rounds: int) -> None:
    """Each round, a program on each node makes the same name with get_if_exists: one constructor runs."""
    head = f"{COUNTER}\nlattica.init(address='auto', namespace='{SPACE}')\n"
    path = str(folder / "round")
    programs = [
        script.start(head + ROUNDS, path, str(rounds), env={"LATTICA_DATA_DIR": str(mesh.nodes[node].data_dir)},
                     name=f"round_{number}.py", stdin=-1)
        for number, node in enumerate(nodes)
    ]  # fmt: skip

    def line(process: object) -> str:
        return str(process.stdout.readline()).strip()  # type: ignore[attr-defined]

    with ThreadPoolExecutor(len(programs)) as pool:
        assert list(pool.map(line, programs)) == ["ready"] * len(programs)
        for number in range(rounds):
            for process in programs:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            counts = sorted(pool.map(line, programs))
            assert counts == sorted(map(str, range(1, len(programs) + 1))), f"round {number}: {counts}"
            made = Path(f"{path}-{number}").read_text().splitlines()
            assert made == ["constructed"], f"round {number}: {len(made)} constructors ran"
            lattica.kill(lattica.get_actor(f"round-{number}", SPACE))
    for process in programs:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait(20)


def test_one_constructor_runs_however_many_nodes_make_the_same_name_at_once(
    mesh: Mesh, script: Script, tmp_path: Path
) -> None:
    rounds_at_once(mesh, script, tmp_path, ["a", "b", "c"], rounds=20)
    assert eventually(lambda: not any(mesh.nodes[name].ask("actors") for name in "abc"), 10.0), "each was killed"


def test_a_detached_actor_outlives_the_program_that_made_it(mesh: Mesh, script: Script) -> None:
    made = (
        "c = Counter.options(name='stays', lifetime='detached').remote(start=100)\nprint(lattica.get(c.add.remote()))"
    )
    assert program(mesh, script, "b", made) == "101"
    time.sleep(1.0)
    assert lattica.get(lattica.get_actor("stays", SPACE).add.remote(), timeout=20) == 102
    rows = mesh.nodes["c"].ask("actors")
    assert [(row["name"], row["state"]) for row in rows] == [("stays", "ALIVE")]
    assert all(json.dumps(mesh.nodes[name].ask("actors")) == json.dumps(rows) for name in "ab")
    lattica.kill(lattica.get_actor("stays", SPACE))
    assert eventually(lambda: not mesh.nodes["c"].ask("actors"), 10.0)
    with pytest.raises(ValueError, match="no living actor"):
        lattica.get_actor("stays", SPACE)


def test_a_detached_actor_goes_on_elsewhere_when_its_node_dies(
    sessions: Sessions, tmp_path: Path, script: Script
) -> None:
    """Made on b with an argument in shared memory; b is killed, and with it the actor and its state."""
    with far_mesh(tmp_path / "mesh", a=2, b=2, c=2) as mesh:
        text = (
            "import numpy as np\n"
            "c = Counter.options(name='phoenix', lifetime='detached', max_restarts=3, max_task_retries=-1)"
            ".remote(start=np.full(100_000, 5.0))\n"
            "print(lattica.get(c.add.remote())[0])"
        )
        assert program(mesh, script, "b", text) == "6.0"
        counter = lattica.get_actor("phoenix", SPACE)
        assert lattica.get(counter.add.remote(), timeout=20)[0] == 7.0
        time.sleep(1.0)  # its seed is on its way to its keepers
        before = mesh.nodes["a"].ask("actors")[0]
        mesh.kill("b")
        began = time.monotonic()
        assert lattica.get(counter.add.remote(), timeout=RESTARTED_S)[0] == 6.0, "a new life, from the constructor"
        print(f"restarted {time.monotonic() - began:.1f} s after its node was killed")
        (after,) = mesh.nodes["c"].ask("actors")
        assert after["epoch"] == before["epoch"] + 1 and after["incarnation"] == before["incarnation"] + 1
        assert after["restarts_left"] == 2 and after["host"] != before["host"]
        assert lattica.get(lattica.get_actor("phoenix", SPACE).add.remote(), timeout=20)[0] == 7.0
        found = "print(lattica.get(lattica.get_actor('phoenix').add.remote(), timeout=30)[0])"
        assert program(mesh, script, "c", found) == "8.0"
        lattica.kill(counter)
        with pytest.raises((ActorDiedError, ActorUnavailableError)):
            lattica.get(counter.add.remote(), timeout=20)
        assert eventually(lambda: not mesh.nodes["a"].ask("actors"), 10.0)


@pytest.mark.slow
def test_without_restarts_a_detached_actor_ends_with_its_node(
    sessions: Sessions, tmp_path: Path, script: Script
) -> None:
    with far_mesh(tmp_path / "mesh", a=1, b=1, c=1) as mesh:
        made = "c = Counter.options(name='mortal', lifetime='detached').remote()\nprint(lattica.get(c.add.remote()))"
        assert program(mesh, script, "b", made) == "1"
        counter = lattica.get_actor("mortal", SPACE)
        assert lattica.get(counter.add.remote(), timeout=20) == 2
        mesh.kill("b")
        with pytest.raises((ActorDiedError, ActorUnavailableError)):
            lattica.get(counter.add.remote(), timeout=RESTARTED_S)

        def free() -> bool:
            try:
                Counter.options(name="mortal", namespace=SPACE).remote()
                return True
            except ActorAlreadyExistsError:
                return False

        assert eventually(free, RESTARTED_S, every_s=0.5), "its name is free again"


def test_detached_actors_move_when_their_node_stops(sessions: Sessions, tmp_path: Path, script: Script) -> None:
    """Without a restart of its own: to be moved costs none."""
    with far_mesh(tmp_path / "mesh", a=1, b=1, c=1) as mesh:
        made = (
            "c = Counter.options(name='mover', lifetime='detached').remote(start=5)\nprint(lattica.get(c.add.remote()))"
        )
        assert program(mesh, script, "b", made) == "6"
        counter = lattica.get_actor("mover", SPACE)
        assert lattica.get(counter.add.remote(), timeout=20) == 7
        time.sleep(12.0)  # nodes restart nothing in their first ten seconds
        began = time.monotonic()
        mesh.nodes.pop("b").ok("stop")
        assert lattica.get(counter.add.remote(), timeout=20) == 6
        print(f"moved within {time.monotonic() - began:.1f} s, the stop included")
        (row,) = mesh.nodes["c"].ask("actors")
        assert (row["restarts_left"], row["epoch"]) == (0, 2)


KEEPER = """
@lattica.remote(num_cpus=0)
class Keeper:
    def __init__(self):
        self.seen = []
    def add(self, word):
        self.seen.append(word)
        return self.seen
    def __lattica_checkpoint__(self):
        return self.seen
    def __lattica_restore__(self, state):
        self.seen = [*state, "restored"]
"""


@pytest.mark.slow
def test_a_checkpoint_outlives_its_actor_and_its_node(sessions: Sessions, tmp_path: Path, script: Script) -> None:
    """Taken after each call; first the actor's process dies, then the machine, then the next one stops."""
    with far_mesh(tmp_path / "mesh", a=1, b=1, c=1) as mesh:
        made = (
            f"{KEEPER}\nimport os, signal, time\n"
            "k = Keeper.options(name='keeper', lifetime='detached', max_restarts=-1, max_task_retries=-1,"
            " checkpoint_every=0).remote()\n"
            "print(lattica.get(k.add.remote('one')))"
        )
        assert program(mesh, script, "b", made) == "['one']"
        keeper = lattica.get_actor("keeper", SPACE)
        lattica.kill(keeper, no_restart=False)
        assert lattica.get(keeper.add.remote("two"), timeout=30) == ["one", "restored", "two"]
        time.sleep(12.0)  # the checkpoint goes to its keepers, and nodes restart nothing in their first ten seconds
        mesh.kill("b")
        three = ["one", "restored", "two", "restored", "three"]
        assert lattica.get(keeper.add.remote("three"), timeout=RESTARTED_S) == three
        time.sleep(1.0)
        (row,) = mesh.nodes["a"].ask("actors")
        if row["host"] != mesh.nodes["a"].ask("whoami")["peer_id"]:
            mesh.nodes.pop("c").ok("stop")
            assert lattica.get(keeper.add.remote("four"), timeout=30) == [*three, "restored", "four"]


@pytest.mark.slow
def test_a_node_that_comes_back_has_its_detached_actors_and_no_other_names(
    sessions: Sessions, tmp_path: Path, script: Script
) -> None:
    """It is killed, and started before anybody believes it dead."""
    with far_mesh(tmp_path / "mesh", a=1, b=1, c=1) as mesh:
        made = (
            "c = Counter.options(name='back', lifetime='detached', max_restarts=1).remote(start=5)\n"
            "d = Counter.options(name='gone').remote()\n"
            "print(lattica.get(c.add.remote()), lattica.get(d.add.remote()), flush=True)\ninput()"
        )
        env = {"LATTICA_DATA_DIR": str(mesh.nodes["b"].data_dir)}
        head = f"{COUNTER}\nlattica.init(address='auto', namespace='{SPACE}')\n"
        owner = script.start(head + made, env=env, name="owner.py", stdin=-1)
        assert owner.stdout is not None and owner.stdout.readline() == "6 1\n"
        node = mesh.nodes["b"]
        assert eventually(lambda: mesh.nodes["a"].ask("actors"), 10.0)
        time.sleep(1.5)  # rows are on disk after a second
        mesh.kill("b")
        node.start("start", "--num-cpus", "1", "--object-store-memory", "64MiB")
        mesh.nodes["b"] = node
        assert eventually(lambda: mesh.nodes["a"].ask("actors")[0]["restarts_left"] == 0, RESTARTED_S, every_s=0.5)
        assert lattica.get(lattica.get_actor("back", SPACE).add.remote(), timeout=30) == 6
        with pytest.raises(ValueError, match="no living actor"):
            lattica.get_actor("gone", SPACE)
        (row,) = mesh.nodes["c"].ask("actors")
        assert row["epoch"] == 2 and row["host"] == node.ask("whoami")["peer_id"]


def test_a_detached_actor_of_one_node_only_waits_for_it_and_goes_on_when_it_is_back(
    sessions: Sessions, tmp_path: Path
) -> None:
    """Its supervisor lives; the only node where it may run is dead. It was ended, with restarts left."""
    with far_mesh(tmp_path, a=1, b=1) as mesh:
        there = mesh.on("b")
        made = Counter.options(lifetime="detached", name="bound", max_restarts=-1, scheduling_strategy=there).remote(5)
        assert lattica.get(made.add.remote(), timeout=20) == 6
        node = mesh.nodes["b"]
        mesh.kill("b")
        assert eventually(lambda: mesh.nodes["a"].states()["b"] == "dead", 30.0)
        waits = made.where.options(max_task_retries=-1).remote()
        assert lattica.wait([waits], timeout=4)[0] == [], "it is neither dead nor elsewhere"
        node.start()
        assert lattica.get(waits, timeout=30) == mesh.ids["b"]
        lattica.kill(made)
