"""Nodes of one machine as peers of a mesh, begun and asked by commands: real processes, sockets and certificates."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import lattica
from lattica.codec import messages as m
from tests.e2e.conftest import eventually
from tests.e2e.machines import COMMAND, SOON_S, Machine, see
from tests.e2e.test_node import Client


def test_two_machines_meet_with_one_ticket_and_meet_again_after_a_restart(machine: Callable[[str], Machine]) -> None:
    one, two = machine("one"), machine("two")
    founded = one.start()
    assert (
        founded["mesh"]["how"] == "founded" and Path(founded["mesh"]["recovery_file"]).stat().st_mode & 0o777 == 0o600
    )
    joined = two.start("join", one.ticket())
    assert joined["mesh"]["how"] == "joined" and joined["mesh"]["mesh"] == founded["mesh"]["mesh"]
    see((one, ["two"]), (two, ["one"]))
    [row] = [row for row in json.loads(one.ok("peers", "--json")) if not row["this_node"]]
    assert row["peer_id"] == two.whoami()["peer_id"] == joined["node"] and row["version"] == lattica.__version__
    assert row["transport"] and row["path"] and row["addresses"] and row["roles"] == "execute,submit,store,relay"
    assert eventually(lambda: not two.whoami()["via_invite"]), "an issuer has certified it"
    table = one.run("peers")
    assert joined["node"][:8] in table.stdout and "fewer than two issuers" in table.stderr
    examined = {check["what"]: check["level"] for check in json.loads(one.run("doctor", "--json").stdout)["checks"]}
    assert [what for what in examined if f"peer {joined['node'][:8]} reaches it at 127.0.0.1:" in what]
    assert [what for what in examined if "the same at 1 of 1 neighbours" in what], examined
    assert "refused" not in one.log() + two.log(), "the doctor's question looks like no attack"
    assert not [what for what, level in examined.items() if level == "bad"], examined
    kept = [path for path in (one.data_dir / "identity").rglob("*") if path.is_file()]
    assert {path.name: path.stat().st_mode & 0o777 for path in kept} == {path.name: 0o600 for path in kept}

    two.ok("stop")
    assert eventually(lambda: one.peers() == [], SOON_S)
    back = two.start()
    assert back["mesh"]["how"] == "returned" and back["node"] == joined["node"]
    see((one, ["two"]), (two, ["one"]))
    one.ok("stop")
    one.start()
    see((one, ["two"]), (two, ["one"]))


def test_three_machines_of_which_one_is_revoked(machine: Callable[[str], Machine]) -> None:
    one, two, three = machine("one"), machine("two"), machine("three")
    one.start()
    ticket = one.ticket("--label", "for two and three")
    two.start("start", env={"LATTICA_TICKET": ticket})
    three.start("join", "-", said=ticket)
    see((one, ["three", "two"]), (two, ["one", "three"]), (three, ["one", "two"]))
    for node in (two, three):
        shown = Path(f"/proc/{node.pid}/cmdline").read_text() + node.log() + node.ok("status", "--json")
        assert "lat1" not in shown
    assert eventually(lambda: not two.whoami()["via_invite"] and not three.whoami()["via_invite"])
    denied = three.run("revoke", two.whoami()["peer_id"])
    assert denied.returncode == 1 and "admin" in denied.stderr
    one.ok("revoke", "two", "--reason", "it was stolen")
    see((one, ["three"]), (three, ["one"]), (two, []))
    assert eventually(lambda: three.whoami()["revoked"] == 1, SOON_S)
    assert eventually(lambda: "it was stolen" in two.run("doctor").stdout, 10.0)
    assert two.run("doctor").returncode == 1

    two.ok("stop")
    two.ok("leave", "--yes")
    shutil.rmtree(two.data_dir / "identity")  # a new key, with the old ticket
    again = two.run("join", ticket, "--name", "two")
    assert "the ticket it came by was closed" in again.stdout, again.stdout
    assert one.peers() == ["three"]


def test_a_second_issuer_takes_over_when_the_founder_is_gone(machine: Callable[[str], Machine]) -> None:
    one, two, three = machine("one"), machine("two"), machine("three")
    one.start()
    two.start("join", one.ticket())
    see((one, ["two"]), (two, ["one"]))
    assert eventually(lambda: not two.whoami()["via_invite"])
    refused = two.run("ticket")
    assert refused.returncode == 1 and "no issuer" in refused.stderr and not refused.stdout
    one.ok("issuer", "add", "two", "--label", "the second")
    assert eventually(lambda: len(json.loads(two.ok("issuer", "--json"))) == 2)
    assert "issuers" not in one.run("peers").stderr
    one.ok("stop")
    three.start("join", two.ticket())
    see((three, ["two"]), (two, ["three"]))
    assert eventually(lambda: not three.whoami()["via_invite"], 20.0), "it may ask the founder first, for 10 s"


def test_a_ticket_of_another_mesh_is_refused_until_leave(machine: Callable[[str], Machine]) -> None:
    one, two = machine("one"), machine("two")
    one.start()
    two.start()
    ticket = one.ticket()
    two.ok("stop")
    refused = two.run("start", "--ticket", ticket)
    assert refused.returncode == 1 and "lattica leave" in refused.stderr and not two.pid
    assert ticket not in refused.stderr + refused.stdout + two.log()
    assert "with the roles" in two.run("doctor").stdout, "it works while no node runs"
    two.ok("leave", "--yes")
    two.start("join", ticket)
    see((one, ["two"]), (two, ["one"]))
    short = one.ticket("--ttl", "1s")
    time.sleep(1.1)
    expired = machine("late").run("join", short)
    assert expired.returncode == 1 and "the ticket expired" in expired.stderr


def test_a_copied_directory_stops_the_later_node_which_says_why(machine: Callable[[str], Machine]) -> None:
    one, two, copy = machine("one"), machine("two"), machine("copy")
    one.start()
    two.start("join", one.ticket())
    see((one, ["two"]), (two, ["one"]))
    shutil.copytree(two.data_dir, copy.data_dir, ignore=shutil.ignore_patterns("*.new", "*.sock"))
    time.sleep(1.1)  # the later one has the higher boot number, which counts seconds
    done = copy.run("start", "--block", "--num-cpus", "1")
    assert done.returncode == 1 and not copy.pid
    assert "two live nodes have the key" in done.stderr and "delete the folder `identity`" in done.stderr
    assert "CRITICAL" in copy.log() and "NodeDiedError" in copy.log() and two.pid
    see((one, ["two"]), (two, ["one"]))


def test_a_node_that_is_killed_comes_back_and_is_met_again(machine: Callable[[str], Machine]) -> None:
    one, two = machine("one"), machine("two")
    one.start()
    two.start("join", one.ticket())
    see((one, ["two"]), (two, ["one"]))
    assert eventually((one.data_dir / "identity/mesh/peers").exists)
    os.kill(one.pid, signal.SIGKILL)
    assert eventually(lambda: not one.pid)
    one.start()
    see((one, ["two"]), (two, ["one"]), within_s=5.0)


def test_programs_run_on_a_node_of_a_mesh_as_before(
    machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine("one")
    one.start("start", "--labels", "site=here")
    monkeypatch.setenv("LATTICA_DATA_DIR", str(one.data_dir))
    with lattica.init("auto"):
        double = lattica.remote(lambda x: 2 * x)
        assert lattica.get([double.remote(number) for number in range(100)]) == [2 * number for number in range(100)]
        assert lattica.nodes()[0]["Labels"] == {"site": "here"}
    assert one.whoami()["labels"] == {"site": "here"}


def test_neither_a_driver_nor_a_task_gets_at_the_mesh(
    machine: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine("one")
    socket = one.start()["socket"]
    driver = Client(socket)
    driver.expect(m.Welcome)
    driver.send(m.MeshRequest(1, "ticket", {"roles": "all", "ttl_s": 60.0}))
    with pytest.raises(EOFError):
        driver.expect(m.MeshAnswer)
    driver.close()
    monkeypatch.setenv("LATTICA_DATA_DIR", str(one.data_dir))
    with lattica.init("auto"):
        with pytest.raises(lattica.exceptions.WorkerCrashedError):
            lattica.get(lattica.remote(max_retries=0)(ask_as_a_worker).remote(), timeout=20)
        assert "a worker may not send MeshRequest" in one.log() and "a driver may not send MeshRequest" in one.log()
        if is_protected(one):
            code, said = lattica.get(lattica.remote(run_a_command).remote([*COMMAND, "ticket"]))
            assert code != 0 and "lat1" not in said


def is_protected(machine: Machine) -> bool:
    protection = json.loads(machine.ok("status", "--json"))["key_protection"]
    return bool(protection["mounts"] and protection["landlock"])


def run_a_command(words: list[str]) -> tuple[int, str]:
    done = subprocess.run(words, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def ask_as_a_worker() -> None:
    """In a task: the request for a ticket, on the worker's own connection to its node."""
    from lattica.actors import current

    runtime = current.get()
    with runtime.lock:
        runtime.tell_node(m.MeshRequest(1, "ticket", {"roles": "all", "ttl_s": 60.0}))
        runtime.nudge_node()
    time.sleep(20)
