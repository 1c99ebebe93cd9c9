"""A mesh of real nodes on loopback whose workers run a driver's tasks: begun, asked, killed, and seen to be empty."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lattica
from lattica.cli.client import NodeConnection
from lattica.node import paths
from lattica.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.e2e.communities import others_kept
from tests.e2e.conftest import eventually
from tests.e2e.machines import Machine

STORE = ("--object-store-memory", "256MiB")
SEEN_S = 20.0  # of all nodes, by all


class Mesh:
    """Nodes by name; the first one founds. `driver` is the one that the test's own session attaches to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[str, Machine] = {}
        self.ids: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self._ticket = ""
        self._dropped: list[Machine] = []

    def begin(self, name: str, cpus: float = 1, *words: str) -> Machine:
        """Start a node; it founds the mesh or joins it."""
        node = Machine(self.folder / name)
        words = ("--num-cpus", str(cpus), *STORE, *words)
        if self._ticket:
            node.start("join", "-", *words, said=self._ticket)
        else:
            node.start("start", *words)
            self._ticket = node.ticket()
        self.nodes[name] = node
        self.ids[name] = state_of(node, "nodes")[0]["NodeID"]
        self.names[self.ids[name]] = name
        return node

    def begin_all(self, **cpus: float) -> None:
        """Several, the first of them before the others if there is none yet."""
        names = list(cpus)
        if not self._ticket:
            self.begin(names[0], cpus[names.pop(0)])
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: self.begin(name, cpus[name]), names))
        self.all_see()
        assert eventually(lambda: all(others_kept(node) == len(cpus) - 1 for node in self.nodes.values()))
        self._ticket = next(iter(self.nodes.values())).ticket()  # it names all of them: whoever dies, others join

    def all_see(self) -> None:
        """Wait until each knows all."""
        names = sorted(self.nodes)
        for node in self.nodes.values():
            alive = [name for name, state in node.states().items() if state == "alive"]
            assert eventually(
                lambda node=node: {name for name, state in node.states().items() if state == "alive"} >= set(names),
                SEEN_S,
            ), f"{alive} for {names}"

    def attach(self, name: str) -> None:
        """This process becomes a driver on that node."""
        lattica.shutdown()
        os.environ["LATTICA_DATA_DIR"] = str(self.nodes[name].data_dir)
        try:
            lattica.init(address="auto")
        finally:
            del os.environ["LATTICA_DATA_DIR"]

    def on(self, name: str, *, soft: bool = False) -> NodeAffinitySchedulingStrategy:
        """The strategy for a task that runs there."""
        return NodeAffinitySchedulingStrategy(self.ids[name], soft)

    def name_of(self, node_id: str) -> str:
        """The name of the node that calls itself by this id."""
        return self.names[node_id]

    def kill(self, name: str) -> None:
        """kill -9, and it is no node of ours any more. Its workers die with it."""
        node = self.drop(name)
        os.kill(node.pid, signal.SIGKILL)
        assert eventually(lambda: not node.pid)

    def drop(self, name: str) -> Machine:
        """It is no node of ours any more, however it ends."""
        node = self.nodes.pop(name)
        self._dropped.append(node)
        return node

    def require_quiet_logs(self) -> None:
        """No bug of ours has come up: it would stand there with its traceback."""
        for name, node in self.nodes.items():
            log = node.log()
            assert "Traceback" not in log, f"{name}: " + log[max(log.find("Traceback") - 500, 0) :][:4000]

    def end(self) -> None:
        """All nodes that are left end."""
        lattica.shutdown()
        with ThreadPoolExecutor(8) as pool:
            for done in pool.map(lambda one: one.run("stop", "--force"), [*self.nodes.values(), *self._dropped]):
                assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def far_mesh(folder: Path, **cpus: float) -> Iterator[Mesh]:
    """A mesh of nodes with so many CPUs, and a driver on the first of them."""
    lattica.shutdown()
    mesh = Mesh(folder)
    try:
        mesh.begin_all(**cpus)
        mesh.attach(next(iter(cpus)))
        yield mesh
        mesh.require_quiet_logs()
    finally:
        mesh.end()


def node_id() -> str:
    """Where this runs."""
    return lattica.get_runtime_context().get_node_id()


def state_of(node: Machine, what: str) -> Any:
    """What a node says of itself: see `StateRequest`."""
    file = paths.running_node(str(node.data_dir))
    assert file is not None, f"no node runs on {node.data_dir}"
    with NodeConnection(file) as connection:
        return connection.state(what)


def traces_of(nodes: Iterable[Machine]) -> dict[str, tuple[int, int, int, int, int]]:
    """What work leaves on each node: (jobs, workers in use, clients of the ledger that are no workers, objects held,
    bytes of the arena in spans)."""
    found = {}
    for node in nodes:
        memory, workers = state_of(node, "memory"), state_of(node, "workers")
        held = sum(client["held"] for client in memory["clients"])
        busy = [worker for worker in workers if worker["state"] != "idle"]
        found[node.data_dir.name] = (
            len(state_of(node, "jobs")),
            len(busy),
            len(memory["clients"]) - len(workers),
            held,
            memory["used_bytes"],
        )
    return found
