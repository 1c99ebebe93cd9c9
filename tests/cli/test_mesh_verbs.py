"""Verbs that ask the node of its mesh: what they ask, and what they make of the answer."""

from __future__ import annotations

import json
import time

import click.testing
import pytest

from lattica.cli import peers, sizes
from lattica.errors import ConfigError, PermissionDeniedError
from tests.cli.conftest import Lattica
from tests.cli.fake_node import FakeNode

PEER, MESH = "k3f9a2bc" + "a" * 44, "7abc2def" + "b" * 44
WHOAMI = {
    "peer_id": PEER, "mesh": MESH, "name": "gpu-1", "roles": "execute,submit", "expires": 4e9, "via_invite": False,
    "issuer": True, "addresses": ["10.0.0.2:7411"], "labels": {"site": "home"}, "version": "0.1.0",
    "recovery_file": "/d/recovery.key", "warnings": ["fewer than two issuers"],
}  # fmt: skip
ROW = {
    "peer_id": "wvrt3rjm" + "c" * 44, "name": "gpu-2", "state": "alive", "addresses": ["10.0.0.3:7411"],
    "transport": "tcp+tls", "path": "direct 10.0.0.3:7411", "rtt_ms": 0.53, "roles": "execute,store",
    "version": "0.1.0",
}  # fmt: skip
ISSUERS = [
    {"issuer_id": "9f" * 32, "peer_id": PEER, "label": "founder", "since": 1e9, "alive": True, "this_node": True},
    {"issuer_id": "c0" * 32, "peer_id": ROW["peer_id"], "label": "cellar", "since": 2e9, "alive": False},
]


@pytest.fixture
def apart(data_dir: object) -> Lattica:
    """Run the command; stdout and stderr are apart."""
    from lattica.cli.main import main

    return lambda *words: click.testing.CliRunner().invoke(main, words, prog_name="lattica")


@pytest.mark.parametrize(
    "words",
    [
        ["ticket"],
        ["peers"],
        ["table"],
        ["whoami"],
        ["revoke", "x"],
        ["issuer"],
        ["issuer", "add", "x"],
        ["dial", "x", "y:1"],
    ],
)
def test_without_a_node_a_verb_says_how_to_start_one(lattica: Lattica, words: list[str]) -> None:
    result = lattica(*words)
    assert result.exit_code == 1 and "lattica start" in result.output


@pytest.mark.parametrize(
    ("words", "verb"),
    [
        (["ticket"], "ticket"), (["peers"], "peers"), (["table", "node"], "table"), (["whoami"], "whoami"),
        (["revoke", "x"], "revoke"), (["dial", "x", "y:1"], "dial"),
        (["revoke", "--issuer", "x"], "revoke_issuer"), (["issuer"], "issuers"),
        (["issuer", "add", "x"], "add_issuer"), (["issuer", "recover", "/dev/null"], "recover_issuer"),
    ],
)  # fmt: skip
def test_what_the_node_refuses_is_said_with_the_way_on(
    lattica: Lattica, node: FakeNode, words: list[str], verb: str
) -> None:
    node.mesh[verb] = ConfigError("this node is no issuer", do_next="run it on an issuer")
    result = lattica(*words) if verb != "recover_issuer" else lattica("issuer", "recover", __file__)
    assert result.exit_code == 1
    assert result.output.endswith("Error: this node is no issuer\n  do next   run it on an issuer\n")


# -- ticket ----------------------------------------------------------------------------------------------------------

MADE = {"ticket": "lat1" + "x" * 300, "roles": "execute", "expires": 4e9, "label": "spot", "addresses": ["10.0.0.2:1"]}


def test_a_ticket_stands_alone_on_stdout_and_words_about_it_on_stderr(apart: Lattica, node: FakeNode) -> None:
    node.mesh["ticket"] = MADE
    result = apart("ticket", "--role", "execute,store", "--role", "relay", "--ttl", "12h", "--label", "spot")
    assert result.stdout == f"{MADE['ticket']}\n"
    assert "joiners may: execute; until 2096-" in result.stderr and "10.0.0.2:1" in result.stderr
    assert "lat1" not in result.stderr
    assert node.asked("ticket") == {"roles": "execute,store,relay", "ttl_s": 43200.0, "label": "spot"}


def test_a_ticket_admits_for_a_week_to_all_but_administration_unless_said_otherwise(
    apart: Lattica, node: FakeNode
) -> None:
    node.mesh["ticket"] = MADE
    assert json.loads(apart("ticket", "--json").stdout) == MADE
    assert node.asked("ticket") == {"roles": "execute,submit,store,relay", "ttl_s": 7 * 86400.0, "label": ""}


def test_a_wrong_time_is_refused(lattica: Lattica, node: FakeNode) -> None:
    result = lattica("ticket", "--ttl", "fortnight")
    assert result.exit_code == 2 and "7d, 12h or 30min" in result.output


def test_a_ticket_that_leads_nowhere_from_outside_is_made_with_a_warning(apart: Lattica, node: FakeNode) -> None:
    said = {}
    for addresses in (["10.0.0.2:1", "127.0.0.1:1"], ["10.0.0.2:1", f"relay/{PEER}"], ["gpu.example.org:1"]):
        node.mesh["ticket"] = MADE | {"addresses": addresses}
        said[addresses[-1]] = apart("ticket").stderr
    assert "lattica relay TICKET" in said["127.0.0.1:1"] and "10.0.0.2:1\n" in said["127.0.0.1:1"]
    assert "at 10.0.0.2:1, relay/k3f9a2bc\n" in said[f"relay/{PEER}"]
    assert ["local network" in words for words in said.values()] == [True, False, False]


# -- dial ------------------------------------------------------------------------------------------------------------


def test_a_peer_is_dialed_where_it_says_it_is(lattica: Lattica, node: FakeNode) -> None:
    node.mesh["dial"] = {"peer_id": PEER, "name": "vps", "path": "direct 198.51.100.7:7411"}
    result = lattica("dial", PEER, "198.51.100.7:7411")
    assert result.output == "peer k3f9a2bc (vps) is connected: direct 198.51.100.7:7411\n"
    assert node.asked("dial") == {"peer": PEER, "address": "198.51.100.7:7411"}
    assert json.loads(lattica("dial", PEER, "vps:7411", "--json").output) == node.mesh["dial"]
    assert "is no address" in lattica("dial", PEER, "vps").output


# -- peers and whoami ------------------------------------------------------------------------------------------------


def test_peers_are_a_table_for_people_with_warnings_on_stderr(apart: Lattica, node: FakeNode) -> None:
    node.mesh |= {"peers": [ROW], "whoami": WHOAMI}
    result = apart("peers")
    assert result.stdout.splitlines() == [
        "  peer      name   state  path                          rtt     roles          lattica  address",
        "  wvrt3rjm  gpu-2  alive  tcp+tls direct 10.0.0.3:7411  0.5 ms  execute,store  0.1.0    10.0.0.3:7411",
    ]
    assert result.stderr == "warning: fewer than two issuers\n"


def test_of_a_path_it_is_said_by_which_method_it_came_to_be() -> None:
    punched = ROW | {"transport": "quic", "path": "direct 192.0.2.9:41000", "method": "birthday"}
    relayed = ROW | {"transport": "quic", "path": "relay/k3f9a2bc", "method": "", "addresses": [f"relay/{PEER}"]}
    lines = peers.page([punched, relayed], 0.0)
    assert lines[2].endswith("  relay/k3f9a2bc"), "the whole id is for machines"
    assert "  quic direct 192.0.2.9:41000 (birthday)  " in lines[1] and "  quic relay/k3f9a2bc  " in lines[2]


def test_who_is_alone_is_told_to_invite_if_it_can_and_else_where_it_looks() -> None:
    alone = [ROW | {"this_node": True}]
    assert "lattica ticket" in peers.page(alone, 0.0)[-1]
    assert "lattica doctor" in peers.page(alone, 0.0, is_issuer=False)[-1]


def test_peers_are_a_list_for_machines(apart: Lattica, node: FakeNode) -> None:
    node.mesh |= {"peers": [ROW], "whoami": WHOAMI}
    [row] = json.loads(apart("peers", "--json").stdout)
    assert row.keys() >= {
        "peer_id", "name", "state", "addresses", "transport", "path", "rtt_ms", "roles", "version"
    }  # fmt: skip


def test_the_living_come_first_and_since_when_others_are_gone_is_said() -> None:
    gone = [ROW | {"state": state, "since": 1000.0, "session": False} for state in ("dead", "left")]
    lines = peers.page([*gone, ROW, ROW | {"this_node": True}], 1090.0)
    assert [line.split()[2] for line in lines[1:]] == ["alive", "alive", "dead", "left"]
    assert "  this node  " in lines[2] and "dead for 1 min 30 s" in lines[3]


def test_without_a_peer_it_says_how_to_get_one() -> None:
    assert "lattica join" in peers.page([], 0.0)[0]
    assert "lattica join" in peers.page([ROW | {"this_node": True}], 0.0)[-1]


def test_many_peers_are_cut_and_what_a_node_of_another_release_leaves_out_is_tolerated() -> None:
    lines = peers.page([{}, {"peer_id": "abc", "rtt_ms": None}] + [ROW] * peers.ROWS_MAX, 0.0)
    assert lines[-1] == "  ... and 2 more, with --json" and len(lines) == peers.ROWS_MAX + 2


def test_whoami_shows_the_node(apart: Lattica, node: FakeNode) -> None:
    node.mesh["whoami"] = WHOAMI
    said = apart("whoami").stdout
    assert f"peer      {PEER}\n" in said and f"mesh      {MESH}\n" in said and "site=home" in said
    assert "issuer: it admits others" in said and "/d/recovery.key" in said and "warning: fewer" in said
    assert json.loads(apart("whoami", "--json").stdout) == WHOAMI


def test_whoami_says_that_no_issuer_has_certified_the_node_yet(apart: Lattica, node: FakeNode) -> None:
    node.mesh["whoami"] = {"via_invite": True, "expires": 4e9}
    assert "no issuer has certified this node yet" in apart("whoami").stdout


# -- revoke ----------------------------------------------------------------------------------------------------------


def test_a_peer_is_revoked_with_its_reason(lattica: Lattica, node: FakeNode) -> None:
    node.mesh["revoke"] = {"peer_id": PEER, "told": 2}
    result = lattica("revoke", "k3f9a2bc", "--reason", "stolen")
    assert result.output == f"peer {PEER} is out of the mesh; 2 nodes have been told, and will tell the others\n"
    assert node.asked("revoke") == {"peer": "k3f9a2bc", "reason": "stolen"}
    assert json.loads(lattica("revoke", "x", "--json").output) == {"peer_id": PEER, "told": 2}


def test_an_issuer_is_revoked_since_a_time(lattica: Lattica, node: FakeNode) -> None:
    node.mesh["revoke_issuer"] = {"issuer_id": "9f" * 32, "since": 1e9, "told": 0}
    result = lattica("revoke", "--issuer", "9f9f9f9f", "--since", "2001-09-09T01:46:40+00:00")
    assert result.output.startswith("what issuer 9f9f9f9f signed since 2001-09-")
    assert node.asked("revoke_issuer") == {"issuer": "9f9f9f9f", "since": 1e9, "reason": ""}
    lattica("revoke", "--issuer", "9f9f9f9f")
    assert time.time() - 60 < node.asked("revoke_issuer")["since"] <= time.time()


@pytest.mark.parametrize(
    "words", [[], ["x", "--issuer", "y"], ["x", "--since", "3d"], ["--issuer", "x", "--since", "!"]]
)
def test_a_revocation_that_cannot_be_meant_is_refused(lattica: Lattica, node: FakeNode, words: list[str]) -> None:
    assert lattica("revoke", *words).exit_code == 2
    assert not [one for one in node.heard if hasattr(one, "verb")]


def test_who_may_not_revoke_is_told_which_role_it_lacks(lattica: Lattica, node: FakeNode) -> None:
    node.mesh["revoke"] = PermissionDeniedError(role="admin", action="administer this mesh")
    result = lattica("revoke", PEER)
    assert result.exit_code == 1 and "admin" in result.output


# -- issuer ----------------------------------------------------------------------------------------------------------


def test_issuers_are_listed_with_who_lives(apart: Lattica, node: FakeNode) -> None:
    node.mesh["issuers"] = ISSUERS
    result = apart("issuer")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[1][:4] == ["9f9f9f9f", "k3f9a2bc", "this", "node"] and rows[2][2:4] == ["not", "connected"]
    assert not result.stderr and json.loads(apart("issuer", "--json").stdout) == ISSUERS
    node.mesh["issuers"] = ISSUERS[:1]
    assert "fewer than two issuers" in apart("issuer").stderr


def test_a_node_is_made_an_issuer(apart: Lattica, node: FakeNode) -> None:
    node.mesh["add_issuer"] = {"peer_id": ROW["peer_id"], "issuers": ISSUERS}
    result = apart("issuer", "add", "gpu-2", "--label", "cellar")
    assert result.stdout.startswith("peer wvrt3rjm is an issuer now\n")
    assert node.asked("add_issuer") == {"peer": "gpu-2", "label": "cellar"}


def test_an_issuer_is_recovered_by_a_file_that_the_node_reads(apart: Lattica, node: FakeNode) -> None:
    node.mesh["recover_issuer"] = {"peer_id": PEER, "issuers": ISSUERS}
    assert "move the recovery file away" in apart("issuer", "recover", __file__).stdout
    assert node.asked("recover_issuer") == {"file": __file__, "label": ""}
    assert apart("issuer", "recover", "/nowhere/at/all").exit_code == 2


@pytest.mark.parametrize("verb", ["add", "recover"])
def test_help_of_what_an_issuer_does_begins_with_an_example(lattica: Lattica, verb: str) -> None:
    output = lattica("issuer", verb, "--help").output
    assert output.splitlines()[2].strip().startswith(f"lattica issuer {verb}") and "returns" in output


# -- adopt -----------------------------------------------------------------------------------------------------------

SIDE = {"island": True, "members": 6, "here": 2, "missing": ["k3f9a2bc", "wvrt3rjm"]}


def test_adopt_says_who_is_missing_and_asks(lattica: Lattica, node: FakeNode) -> None:
    node.mesh |= {"side": SIDE, "adopt": {"island": False, "members": ["7abc2def", "x2y3z4w5"]}}
    refused = lattica("adopt")  # nobody answers
    assert refused.exit_code == 1 and "2 of 6 nodes are here" in refused.output and "wvrt3rjm" in refused.output
    result = lattica("adopt", "--yes")
    assert result.exit_code == 0 and "the mesh has 2 nodes from now on: 7abc2def, x2y3z4w5" in result.output
    assert json.loads(lattica("adopt", "--yes", "--json").output)["island"] is False


def test_adopt_does_nothing_on_the_larger_side(lattica: Lattica, node: FakeNode) -> None:
    node.mesh["side"] = SIDE | {"island": False, "missing": []}
    result = lattica("adopt", "--yes")
    assert result.exit_code == 1 and "larger side" in result.output


# -- times -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("7d", 604800), ("12h", 43200), ("30min", 1800), ("1.5 h", 5400), ("90", 90), ("2W", 1209600)]
)
def test_durations_are_read_with_their_units(text: str, seconds: float) -> None:
    assert sizes.parse_duration(text) == seconds


def test_moments_are_dates_or_how_long_ago() -> None:
    assert sizes.parse_moment("3d", 1e9) == 1e9 - 3 * 86400
    assert sizes.parse_moment("2001-09-09T01:46:40Z", 0.0) == 1e9
    assert sizes.moment_text(sizes.parse_moment("2026-03-01 12:00", 0.0)) == "2026-03-01 12:00"
    for text in ("", "soon", "-3d", "1.2.3"):
        with pytest.raises(click.BadParameter):
            sizes.parse_moment(text, 1e9)
