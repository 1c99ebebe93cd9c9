"""What one node tells of the whole mesh: nodes and what they have, lists, logs of workers elsewhere."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.request import urlopen

import pytest

import lattica
from lattica.mesh.identity import parse_peer
from lattica.node import paths
from lattica.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.e2e.conftest import Sessions, eventually
from tests.e2e.machines import COMMAND, Machine, see


@lattica.remote
class Counter:
    def say(self, text: str) -> int:
        print(text, flush=True)
        return os.getpid()

    def keep(self, refs: list[Any]) -> None:
        self.refs = refs


@lattica.remote
def sleep(seconds: float) -> None:
    time.sleep(seconds)


def test_metrics_are_served_to_this_machine(machine: Callable[[str], Machine]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = machine("two").run("start", "--metrics-port", str(port))
        assert refused.returncode == 1 and "metrics cannot be served" in refused.stderr
    machine("one").start("start", "--metrics-port", str(port))
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    assert 'lattica_resource_total{resource="CPU"} 1\n' in text and 'lattica_members{state="alive"} 1\n' in text


def rows(machine: Machine, what: str) -> list[dict[str, Any]]:
    return list(json.loads(machine.ok("list", what, "--json"))["rows"])


def test_one_node_tells_of_all(
    machine: Callable[[str], Machine], sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = machine("one"), machine("two")
    one.start("start", "--num-cpus", "1", "--resources", '{"tpu": 2}')
    two.start("join", one.ticket(), "--num-cpus", "2", "--labels", "site=attic")
    see((one, ["two"]), (two, ["one"]))
    monkeypatch.setenv("LATTICA_DATA_DIR", str(one.data_dir))
    lattica.init("auto")
    node = paths.running_node(str(two.data_dir))
    assert node is not None
    there = NodeAffinitySchedulingStrategy(parse_peer(node.node).hex(), soft=False)
    try:
        mine, other = lattica.nodes()
        assert mine["NodeID"] == lattica.get_runtime_context().get_node_id() and mine["Resources"]["tpu"] == 2
        assert other["NodeID"] == there.node_id and other["Alive"] and other["Labels"] == {"site": "attic"}
        assert (mine["NodeName"], other["NodeName"]) == ("one", "two")
        total = lattica.cluster_resources()
        assert (total["CPU"], total["tpu"]) == (3, 2)
        counter = Counter.options(name="counter", num_cpus=1, scheduling_strategy=there).remote()
        pid = lattica.get(counter.say.remote("hello from the attic"), timeout=10)
        running, waiting = sleep.options(scheduling_strategy=there).remote(30), sleep.options(num_cpus=9).remote(1)
        assert eventually(lambda: lattica.available_resources()["CPU"] == 1), lattica.available_resources()
        tasks = {row["state"]: row for row in rows(two, "tasks")}
        assert tasks["running"]["node_name"] == "two" and "9" in tasks["waiting"]["why"], tasks
        [actor] = [row for row in rows(two, "actors") if row["name"] == "counter"]
        assert (actor["class_name"], actor["state"]) == ("Counter", "ALIVE")
        assert pid in [row["pid"] for row in rows(one, "workers") if row["node_name"] == "two"]
        large = lattica.put(bytes(1 << 20))
        lattica.get(counter.keep.remote([large]), timeout=10)  # it is borrowed there
        assert eventually(lambda: len([row for row in rows(one, "objects") if row["object"] == large.hex()]) == 2)
        [lies, lent] = [row for row in rows(two, "objects") if row["object"] == large.hex()]
        assert (lies["node_name"], lies["state"], lies["pid"]) == ("one", "here", os.getpid()) and lies[
            "size"
        ] > 1 << 20
        assert (lent["node_name"], lent["state"]) == ("two", "elsewhere") and lent["lender"], lent
        for what in ("objects", "memory", "drivers", "nodes", "jobs"):
            assert one.run("list", what).returncode == 0
        for word in ("counter", str(pid), actor["actor"][:8]):
            assert "hello from the attic" in one.ok("logs", word), word
        assert "hello from the attic" in two.ok("logs", "counter")
        trace = json.loads(one.ok("timeline", "-"))
        machines = {event["pid"]: event["args"]["name"] for event in trace if event["name"] == "process_name"}
        assert "two" in {machines[event["pid"]] for event in trace if event["name"] == "Counter.say"}, trace
        os.kill(two.pid, signal.SIGSTOP)
        try:
            asked = one.run("list", "workers")
        finally:
            os.kill(two.pid, signal.SIGCONT)
        assert asked.returncode == 0 and "two did not answer" in asked.stderr, asked
        del running, waiting
    finally:
        lattica.shutdown()


@lattica.remote(max_restarts=1, max_task_retries=1)
class Talker:
    def pid(self) -> int:
        return os.getpid()

    def say(self, text: str) -> None:
        print(text, flush=True)
        print(text.upper(), file=sys.stderr, flush=True)


def test_who_follows_an_actor_that_is_still_silent_hears_both_streams_and_its_next_life(
    machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine("one")
    one.start()
    monkeypatch.setenv("LATTICA_DATA_DIR", str(one.data_dir))
    lattica.init("auto")
    try:
        talker = Talker.options(name="talker").remote()
        first = lattica.get(talker.pid.remote(), timeout=10)
        assert one.ok("logs", "talker") == "", "it lives, and has said nothing"
        words = [*COMMAND, "logs", "-f", "talker"]
        following = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            time.sleep(1.0)
            lattica.get(talker.say.remote("first"), timeout=10)
            time.sleep(1.0)
            lattica.kill(talker, no_restart=False)
            assert lattica.get(talker.pid.remote(), timeout=10) != first
            lattica.get(talker.say.remote("second"), timeout=10)
            time.sleep(4.0)
            lattica.kill(talker)
            said, _ = following.communicate(timeout=20)
        finally:
            following.kill()
            following.wait()
        assert sorted(said.split()) == ["FIRST", "SECOND", "first", "second"]
    finally:
        lattica.shutdown()
