"""`lattica join`, and `lattica start` with a ticket: how the ticket reaches the node, and what is said of the mesh."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lattica.cli import daemon
from lattica.mesh.authority import make_root, public_key_of
from lattica.mesh.roles import MEMBER
from lattica.mesh.tickets import make_ticket
from lattica.node.run import parse_options
from tests.cli.conftest import Lattica
from tests.cli.stage import Stage

PEER, MESH = "k3f9a2bc" + "a" * 44, "7abc2def" + "b" * 44
MET = {
    "peer_id": PEER, "mesh": MESH, "how": "joined", "roles": "execute,submit", "addresses": ["10.0.0.2:7411"],
    "issuer": False, "recovery_file": "", "notes": [], "warnings": [], "peers": [], "troubles": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def ticket() -> str:
    now = time.time()
    root = make_root(now)
    secret = b"\7" * 32
    issuer = type(root)(secret, root.root, root.certify_issuer(public_key_of(secret), now))
    return make_ticket(issuer.invite(MEMBER, now), []).text()


def said_of(stage: Stage, lattica: Lattica, *words: str, **met: Any) -> str:
    stage.facts["mesh"] = MET | met
    result = lattica(*words)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_ticket_goes_to_the_node_by_a_pipe_and_into_no_argument(lattica: Lattica, stage: Stage, ticket: str) -> None:
    for words in (["join", ticket], ["start", "--ticket", ticket]):
        stage.ticket = ""
        said = said_of(stage, lattica, *words)
        assert stage.ticket == ticket and ticket not in " ".join(stage.options) and ticket not in said
        stage.node.close()  # type: ignore[union-attr]
        os.unlink(stage.data_dir / "node.sock")
        stage.node = None


@pytest.mark.parametrize("verb", ["join", "start"])
def test_a_ticket_is_read_from_the_environment(
    lattica: Lattica,
    stage: Stage,
    ticket: str,
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LATTICA_TICKET", f"\n {ticket[:100]}\n{ticket[100:]}\n")
    said_of(stage, lattica, verb)
    assert stage.ticket == ticket


def test_a_ticket_is_read_from_a_file(lattica: Lattica, stage: Stage, ticket: str, tmp_path: Path) -> None:
    (tmp_path / "ticket.txt").write_text(ticket + "\n")
    said_of(stage, lattica, "join", str(tmp_path / "ticket.txt"))
    assert stage.ticket == ticket


def test_a_join_without_a_ticket_asks_for_one(lattica: Lattica, stage: Stage) -> None:
    result = lattica("join")
    assert result.exit_code == 2 and "which ticket?" in result.output and not stage.options


@pytest.mark.parametrize(
    ("given", "why"), [("lat1abc", "checksum"), ("lat9abc", "version 9"), ("/nowhere/t", "No such file")]
)
def test_a_wrong_ticket_is_refused_before_anything_starts(
    lattica: Lattica,
    stage: Stage,
    given: str,
    why: str,
) -> None:
    result = lattica("join", given)
    assert result.exit_code == 1 and why in result.output and "do next" in result.output and not stage.options


def test_a_refusal_of_the_node_is_quoted(lattica: Lattica, stage: Stage, ticket: str) -> None:
    stage.words = b'{"error": "the ticket is for mesh a, and this node is in mesh b\\n  do next   `lattica leave`"}\n'
    result = lattica("join", ticket)
    assert result.exit_code == 1 and "`lattica leave`" in result.output


def test_a_node_that_joined_says_where_it_listens_and_whom_it_met(
    lattica: Lattica,
    stage: Stage,
    ticket: str,
) -> None:
    peers = [{"peer_id": "wvrt3rjm" + "c" * 44, "name": "gpu-2"}]
    said = said_of(stage, lattica, "join", ticket, peers=peers).splitlines()
    assert said[1:4] == [
        "  mesh      joined 7abc2def, with the roles execute,submit",
        "  listens   10.0.0.2:7411",
        "  peers     wvrt3rjm gpu-2",
    ]
    assert "  look      lattica status, lattica peers" in said
    assert not [line for line in said if "ticket" in line], "it is no issuer"


def test_a_founder_is_told_of_the_recovery_file_and_how_to_invite(lattica: Lattica, stage: Stage) -> None:
    said = said_of(
        stage, lattica, "start", how="founded", issuer=True, recovery_file="/d/lattica-recovery-7abc2def.key",
        warnings=["this mesh has fewer than two issuers"],
    )  # fmt: skip
    assert "  mesh      founded 7abc2def" in said
    assert "  invite    lattica ticket, and on another machine: lattica join TICKET" in said
    assert "  recovery  /d/lattica-recovery-7abc2def.key\n" in said and "move it off this machine" in said
    assert said.splitlines()[-1] == "  warning   this mesh has fewer than two issuers"


def test_a_port_that_was_taken_and_peers_that_do_not_answer_are_said(
    lattica: Lattica,
    stage: Stage,
    ticket: str,
) -> None:
    said = said_of(
        stage, lattica, "join", ticket, notes=["port 7411 is not to be had"], addresses=[],
        troubles=[{"peer_id": PEER, "why": "peer k3f9a2bc cannot be reached: nobody listens there"}],
    )  # fmt: skip
    assert "  listens   nowhere: it only dials\n            port 7411 is not to be had\n" in said
    assert "none has answered yet" in said and "            peer k3f9a2bc cannot be reached: nobody" in said
    assert "lattica dial" not in said


def test_who_meets_nobody_and_is_reached_itself_says_how(lattica: Lattica, stage: Stage, ticket: str) -> None:
    trouble = {"peer_id": PEER, "why": "peer k3f9a2bc has not answered yet", "addresses": ["10.0.0.3:7411"]}
    addresses = ["198.51.100.7:7411", "127.0.0.1:7411"]
    said = said_of(stage, lattica, "join", ticket, addresses=addresses, troubles=[trouble])
    assert "            peer k3f9a2bc has not answered yet; tried 10.0.0.3:7411, of a local network" in said
    assert f"run there: lattica dial {PEER} 198.51.100.7:7411\n" in said


def test_options_of_the_mesh_are_handed_on(lattica: Lattica, stage: Stage) -> None:
    said_of(
        stage, lattica, "start", "--listen", "10.0.0.2:99", "--name", "gpu-1", "--labels", "site=home, gpu=3090,spot="
    )
    given = dict(zip(stage.options[::2], stage.options[1::2]))
    assert given["--listen"] == "10.0.0.2:99" and given["--name"] == "gpu-1"
    assert json.loads(given["--labels"]) == {"site": "home", "gpu": "3090", "spot": ""}
    assert not {"--port-mapping", "--birthday"} & given.keys(), "the node's environment decides"


def test_ports_forwarded_by_hand_are_handed_on_one_or_several(lattica: Lattica, stage: Stage) -> None:
    said_of(stage, lattica, "start", "--advertise", "203.0.113.7:7411", "--advertise", "home.example.org:17411")
    given = dict(zip(stage.options[::2], stage.options[1::2]))
    assert given["--advertise"] == "203.0.113.7:7411,home.example.org:17411"
    assert parse_options(stage.options).advertise == ("203.0.113.7:7411", "home.example.org:17411")


@pytest.mark.parametrize("name", ["port-mapping", "birthday"])
@pytest.mark.parametrize(("word", "said"), [("--no-", "no"), ("--", "yes")])
def test_whether_the_router_is_asked_for_a_port_and_hundreds_are_tried_is_handed_on(
    lattica: Lattica, stage: Stage, name: str, word: str, said: str
) -> None:
    said_of(stage, lattica, "start", word + name)
    assert dict(zip(stage.options[::2], stage.options[1::2]))[f"--{name}"] == said


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--labels", "site"], "site=home"),
        (["--labels", "a b=c"], "site=home"),
        (["--listen", "7411"], "HOST:PORT"),
        (["--listen", "host:99999"], "HOST:PORT"),
        (["--advertise", "7411"], "no address"),
        (["--advertise", ":7411"], "from outside"),
        (["--advertise", "0.0.0.0:7411"], "from outside"),
    ],
)
def test_wrong_options_of_the_mesh_are_refused_before_anything_starts(
    lattica: Lattica,
    stage: Stage,
    words: list[str],
    why: str,
) -> None:
    result = lattica("start", *words)
    assert result.exit_code in (1, 2) and why in result.output and not stage.options


def test_json_is_one_object_with_the_mesh(lattica: Lattica, stage: Stage, ticket: str) -> None:
    said = json.loads(said_of(stage, lattica, "join", ticket, "--json"))
    assert said["pid"] == os.getpid() and said["mesh"]["mesh"] == MESH and ticket not in json.dumps(said)


def test_a_node_that_has_no_place_in_its_mesh_is_told_with_the_end_of_its_log(
    lattica: Lattica,
    stage: Stage,
) -> None:
    (stage.data_dir / "node.log").write_text("CRITICAL NodeDiedError: two live nodes have the key\n")
    stage.ends_soon = True
    result = lattica("start")
    assert result.exit_code == 1 and "two live nodes have the key" in result.output


def test_the_node_process_gets_the_ticket_alone_and_not_the_users_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is a program that writes down what it was given."""
    program = (
        "import json, os, sys; argv = sys.argv[2:]; fd = int(argv[argv.index('--ticket-fd') + 1])\n"
        "said = {'ticket': os.read(fd, 99).decode(), 'more': os.read(fd, 99).decode(), 'argv': argv,\n"
        "        'variable': os.environ.get('LATTICA_TICKET')}\n"
        "open('said', 'w').write(json.dumps(said))\n"
    )
    monkeypatch.setattr(daemon, "NODE_BOOT", program)
    monkeypatch.setenv("LATTICA_TICKET", "lat1other")
    begun = daemon.spawn(["--data-dir", str(tmp_path)], str(tmp_path), "lat1secret")
    assert begun.process.wait(20) == 0
    begun.close()
    said = json.loads((tmp_path / "said").read_text())
    assert (said["ticket"], said["more"], said["variable"]) == ("lat1secret", "", None)
    assert "lat1secret" not in said["argv"]
    assert stat.S_IMODE(os.stat(tmp_path / "node.log").st_mode) == 0o600


def test_a_start_imports_neither_cryptography_nor_what_talks_to_a_node(ticket: str) -> None:
    """12 machines' nodes join on one in 5 s; msgspec, sockets and cryptography are 0.08 s of CPU each time."""
    code = (
        "import sys; from lattica.cli import main, join; assert join.ticket_text(None)\n"
        "print(*({'cryptography', 'msgspec', 'socket', 'asyncio', 'lattica.mesh.tickets'} & sys.modules.keys()))"
    )
    environ = os.environ | {"LATTICA_TICKET": ticket}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert said.stdout == "\n"
