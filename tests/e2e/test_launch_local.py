"""`lattica up`, `down`, `status FILE` and `exec` over real nodes of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lattica
from lattica.node import paths
from lattica.node.memory_readings import MemoryReader
from tests.e2e.conftest import Sessions, eventually
from tests.e2e.machines import COMMAND, LIGHT

TEXT = """
name: demo
provider: {{type: local, nodes: {nodes}, num_cpus: 1, object_store_memory: 16MiB, labels: {{site: here}}}}
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def file(sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cluster's file, in a home of its own; what is left of the cluster ends with the test."""
    sessions.end()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("LATTICA_DATA_DIR", raising=False)
    file = tmp_path / "demo.yaml"
    file.write_text(TEXT.format(nodes=3))
    yield file
    sessions.end()
    run("stop")
    done = run("down", str(file), "--purge", "--force")
    assert done.returncode == 0, done.stderr


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=100)


def ok(*words: str) -> str:
    done = run(*words)
    assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
    return done.stdout


def up(file: Path, *words: str) -> Any:
    return json.loads(ok("up", str(file), "--json", *words))


def states(report: Any) -> dict[str, str]:
    return {host["host"]: host["state"] for host in report["hosts"]}


def status(file: Path) -> dict[str, Any]:
    """Host -> its row."""
    return {host["host"]: host for host in json.loads(run("status", str(file), "--json").stdout)["hosts"]}


def test_a_cluster_comes_up_is_repaired_and_goes_down(file: Path, tmp_path: Path) -> None:
    names = ["node-0", "node-1", "node-2"]
    first = up(file)
    assert states(first) == dict.fromkeys(names, "started")
    assert first["data_dir"] == paths.data_dir()
    before = status(file)
    assert {row["state"] for row in before.values()} == {"up"}
    assert {row["node"]["mesh"] for row in before.values()} == {first["mesh"]}
    for row in before.values():
        assert os.stat(row["node"]["data_dir"]).st_mode & 0o777 == 0o700
        assert row["node"]["labels"] == {"site": "here", "lattica.cluster": "demo", "lattica.host": row["host"]}
        assert all(address.startswith("127.0.0.1:") for address in row["node"]["addresses"])
    assert before["node-2"]["node"]["data_dir"] == str(tmp_path / "data" / "lattica" / "clusters" / "demo" / "node-2")
    with lattica.init("auto"):  # a program with no variable set finds it
        assert lattica.get(lattica.remote(lambda: 7).remote()) == 7

    assert states(up(file)) == dict.fromkeys(names, "runs already")

    os.kill(before["node-1"]["node"]["pid"], signal.SIGKILL)
    assert eventually(lambda: status(file)["node-1"]["state"] == "down")
    assert run("status", str(file)).returncode == 1
    assert states(up(file)) == dict.fromkeys(names, "runs already") | {"node-1": "started"}
    after = status(file)
    words = ("exec", str(file), "--host", "node-1", "--", "lattica")
    assert len(json.loads(ok(*words, "issuer", "--json"))) == 2, "node-0 can be lost"
    assert json.loads(ok(*words, "ticket", "--json"))["ticket"]
    assert {name: row["node"]["peer_id"] for name, row in after.items()} == {
        name: row["node"]["peer_id"] for name, row in before.items()
    }, "a node that returns is the same peer"

    done = run(
        "exec", str(file), "--", "sh", "-c", 'echo "$LATTICA_DATA_DIR"; [ "$1" = "a  b" ] && exit 3', "x", "a  b"
    )
    assert done.returncode == 3, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"{name} | {after[name]['node']['data_dir']}" for name in names]
    assert (
        json.loads(ok("exec", str(file), "--host", "node-2", "--", "lattica", "whoami", "--json"))["name"] == "node-2"
    )
    assert run("exec", str(file), "--", "no-such-command").returncode == 127
    failed = run("exec", str(file), "--", "sh", "-c", 'case "$LATTICA_DATA_DIR" in *node-1) exit 4; esac')
    assert (failed.returncode, failed.stderr.strip()) == (4, "node-1 | exit code 4")
    offers = [row["node"]["resources"]["total"].get("memory", 0) for row in after.values()]
    assert sum(offers) <= MemoryReader().total, "they share the machine's memory"
    words = ("exec", str(file), "--host", "node-0", "--", "lattica", "status")
    assert "3 alive" in ok(*words) and "issuers" in ok(*words)

    assert "3 nodes stopped" in ok("down", str(file))
    assert {row["state"] for row in status(file).values()} == {"down"}
    assert "0 nodes stopped" in ok("down", str(file))

    again = up(file)
    assert again["mesh"] == first["mesh"] and states(again) == dict.fromkeys(names, "started")
    ok("down", str(file), "--purge")
    assert not (tmp_path / "data" / "lattica").exists()


def test_nodes_that_the_file_no_longer_names_are_told_of_and_pruned_on_demand(file: Path) -> None:
    file.write_text(TEXT.format(nodes=2))
    up(file)
    file.write_text(TEXT.format(nodes=1))
    report = up(file)
    assert report["left_over"] == ["node-1"] and states(report) == {"node-0": "runs already"}
    pruned = up(file, "--prune")
    assert states(pruned) == {"node-0": "runs already", "node-1": "stopped"}
    assert up(file)["left_over"] == []


def test_a_node_of_the_users_is_taken_in_and_left_as_it_was(file: Path) -> None:
    mine = json.loads(ok("start", "--json", *LIGHT))
    file.write_text(TEXT.format(nodes=2))
    report = up(file)
    assert states(report) == {"node-0": "runs already", "node-1": "started"}
    assert report["mesh"] == mine["mesh"]["mesh"]
    assert any("your own node" in note for note in report["notes"])
    assert "node-0  left: it is not the cluster's" in ok("down", str(file), "--purge")
    assert json.loads(ok("whoami", "--json"))["peer_id"] == mine["node"]


def test_two_clusters_of_one_machine_do_not_mix(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(TEXT.format(nodes=1).replace("demo", "other"))
    file.write_text(TEXT.format(nodes=1))
    first = up(file)
    try:
        second = up(other)
        assert second["mesh"] != first["mesh"]
        assert f"export LATTICA_DATA_DIR={second['data_dir']}" in ok("up", str(other))
    finally:
        ok("down", str(other), "--purge")
    assert status(file)["node-0"]["state"] == "up"


def test_a_host_that_fails_says_why_and_the_others_are_up(file: Path, tmp_path: Path) -> None:
    """The data directory of node-1 is open to others, which `lattica start` refuses."""
    place = tmp_path / "data" / "lattica" / "clusters" / "demo" / "node-1"
    place.mkdir(parents=True)
    place.chmod(0o777)
    file.write_text(TEXT.format(nodes=2))
    done = run("up", str(file))
    assert done.returncode == 1
    assert "1 of 2 hosts are up" in done.stdout
    assert "node-1: others may write in the data directory" in done.stderr and "chmod go-w" in done.stderr
    place.chmod(0o700)
    assert states(up(file))["node-1"] == "started"


def test_a_mistake_in_the_file_ends_with_its_line(file: Path) -> None:
    file.write_text("name: demo\nprovider:\n  type: local\n  node: 3\n")
    done = run("up", str(file))
    assert done.returncode == 1
    assert f"{file}:4:3: provider.node: there is no such key here" in done.stderr and "`nodes`" in done.stderr
    file.write_text(TEXT.format(nodes=1))
