"""Two sites behind NATs, a public machine, and nothing but the ticket: what Ray does in one room works between them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import lattica
from lattica.testing.netlab import Host, Lab, Site
from lattica.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.e2e.conftest import ROOT, eventually
from tests.e2e.far import state_of
from tests.nat.nodes import Located

PUBLIC = ("relay1", "relay2")
WAN = "10ms"
SEEN_S = 30.0
GET_S = 120.0
BIG_BYTES = 100 << 20
PPO_S = 60.0
LOOK_S = 0.3
STORE = ("--object-store-memory", "512MiB")
needs_rl = pytest.mark.skipif(
    not all(map(find_spec, ("torch", "gymnasium", "matplotlib"))), reason="needs torch, gymnasium and matplotlib"
)
MakeLab = Callable[..., Lab]


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders for sockets, sessions and data, in the environment of every process."""
    home = tmp_path_factory.mktemp("nat")
    for variable, name in (("TMPDIR", "tmp"), ("XDG_RUNTIME_DIR", "run"), ("XDG_DATA_HOME", "data")):
        home.joinpath(name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(home / name))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH")))))
    return home


class Sites:
    """Nodes a1 and b1 behind NATs, in the mesh of two public ones: one that founded it, and one that only relays."""

    def __init__(self, lab: Lab, home: Path) -> None:
        self.home = home
        self.nodes: dict[str, Located] = {host: Located(lab, host, home) for host in (*PUBLIC, "a1", "b1")}

    def begin(self) -> None:
        first, second, *others = self.nodes.values()
        first.start("start", "--num-cpus", "0", *STORE)
        ticket = first.ticket()
        second.ok("relay", "-", "--name", second.host, "--listen-tls", "443", said=ticket)
        for node in others:
            node.start("join", "-", "--num-cpus", "2", *STORE, said=ticket)
        names = sorted(self.nodes)
        for node in self.nodes.values():
            alive = lambda node=node: sorted(name for name, state in node.states().items() if state == "alive")  # noqa: E731
            assert eventually(lambda: alive() == names, SEEN_S), f"{node.host} sees {alive()}"  # noqa: B023

    def on(self, host: str) -> NodeAffinitySchedulingStrategy:
        """The strategy for what is to run there."""
        return NodeAffinitySchedulingStrategy(state_of(self.nodes[host], "nodes")[0]["NodeID"], soft=False)

    def attach(self, host: str) -> None:
        """This process becomes a driver on that node."""
        lattica.shutdown()
        os.environ["LATTICA_DATA_DIR"] = str(self.nodes[host].data_dir)
        try:
            lattica.init(address="auto")
        finally:
            del os.environ["LATTICA_DATA_DIR"]

    def end(self) -> None:
        lattica.shutdown()
        for node in reversed(self.nodes.values()):
            node.run("stop", "--force")

    def require_quiet_logs(self) -> None:
        for host, node in self.nodes.items():
            log = node.log()
            assert "Traceback" not in log, f"{host}: " + log[max(log.find("Traceback") - 500, 0) :][:4000]


@pytest.fixture(params=["port-restricted/port-restricted", "symmetric/symmetric"])
def sites(request: pytest.FixtureRequest, netlab: MakeLab, home: Path) -> Iterator[Sites]:
    """The first pair goes direct, the second is relayed."""
    a, b = request.param.split("/")
    lab = netlab(
        public={name: Host() for name in PUBLIC}, sites={"a": Site(a, wan=WAN), "b": Site(b, wan=WAN)}, probe=False
    )
    sites = Sites(lab, home)
    try:
        sites.begin()
        yield sites
        sites.require_quiet_logs()
    finally:
        sites.end()


@lattica.remote
def where() -> str:
    return str(lattica.get_runtime_context().get_node_id())


@lattica.remote
def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@lattica.remote
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self, number: int) -> int:
        self.count += number
        return self.count


@pytest.mark.slow
def test_a_task_an_actor_and_a_hundred_megabytes_go_between_two_sites(sites: Sites) -> None:
    sites.attach("a1")
    there = sites.on("b1")
    assert lattica.get(where.options(scheduling_strategy=there).remote(), timeout=GET_S) == there.node_id
    counter = Counter.options(scheduling_strategy=there).remote()
    assert lattica.get([counter.add.remote(1) for _ in range(50)], timeout=GET_S) == list(range(1, 51))
    big = os.urandom(BIG_BYTES)
    began = time.monotonic()
    far = lattica.get(digest.options(scheduling_strategy=there).remote(lattica.put(big)), timeout=GET_S)
    took_s = time.monotonic() - began
    assert far == hashlib.sha256(big).hexdigest()
    path = sites.nodes["a1"].path_to(sites.nodes["b1"])
    print(f"\n  100 MiB in {took_s:.1f} s, {BIG_BYTES / took_s / 1e6:.0f} MB/s; the path is {path}")
    assert path


@needs_rl
@pytest.mark.slow
def test_rollout_workers_on_both_sites_feed_one_learner(sites: Sites) -> None:
    script = [sys.executable, f"{ROOT}/examples/rl/ppo.py", "--workers", "5", "--time-limit", str(PPO_S)]
    environ = os.environ | {"LATTICA_DATA_DIR": str(sites.nodes["a1"].data_dir)}
    with subprocess.Popen(
        [*script, "--out", str(sites.home / "curve.png")],
        env=environ, cwd=sites.home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as program:  # fmt: skip
        most = {"a1": 0, "b1": 0}
        while program.poll() is None and not all(most.values()):
            most = {host: max(seen, rollouts(sites.nodes[host])) for host, seen in most.items()}
            time.sleep(LOOK_S)
        said, _ = program.communicate(timeout=PPO_S + 120)
    updates = [line for line in said.splitlines() if line.startswith("update")]
    print(f"\n  {updates[-1] if updates else said[-2000:]}")
    assert all(most.values()) and updates, f"rollout workers: {most}; {said[-3000:]}"


def rollouts(node: Located) -> int:
    """How many of the example's workers live on this node."""
    return sum("Rollout" in worker["name"] for worker in state_of(node, "workers"))
