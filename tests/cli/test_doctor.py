"""`lattica doctor`: what it makes of the facts, of a node that runs and of a disk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from lattica.cli import checkup
from lattica.cli.checkup import BAD, DAY_S, OK, WARN, Finding
from lattica.errors import ConfigError
from lattica.mesh import credentials
from lattica.node import paths
from tests.cli.conftest import Lattica
from tests.cli.fake_node import FakeNode

NOW = 2e9
PEER, MESH = "k3f9a2bc" + "a" * 44, "7abc2def" + "b" * 44
STATE: dict[str, Any] = {
    "peer_id": PEER, "mesh": MESH, "roles": "execute", "expires": NOW + 25 * DAY_S, "via_invite": False,
    "addresses": ["10.0.0.2:7411"], "clock_measured_s": 0.2, "warnings": [], "notes": [], "recovery_file": "",
}  # fmt: skip
FACTS: dict[str, Any] = {
    "whoami": STATE, "peers": [{"peer_id": PEER}], "issuers": [{}, {}], "troubles": [], "refusals": [],
    "reached": [{"peer_id": PEER, "addresses": {"10.0.0.2:7411": ""}}],
}  # fmt: skip
PROTECTED = {"mounts": True, "landlock": True, "reason": ""}


def levels(found: Iterable[Finding]) -> list[str]:
    return [finding.level for finding in found]


def only(found: Iterable[Finding], level: str) -> Finding:
    """The one finding of this level."""
    [finding] = [finding for finding in found if finding.level == level]
    return finding


def test_a_healthy_node_is_ok_throughout(lattica: Lattica, node: FakeNode) -> None:
    node.states["protection"] = PROTECTED
    node.mesh["doctor"] = FACTS | {"whoami": STATE | {"expires": time.time() + 25 * DAY_S}}
    result = lattica("doctor")
    assert result.exit_code == 0, result.output
    assert all(line.startswith("ok    ") for line in result.output.splitlines())
    said = json.loads(lattica("doctor", "--json").output)
    assert said["ok"] and {check["level"] for check in said["checks"]} == {"ok"}
    assert set(said["checks"][0]) == {"level", "what", "do_next"}


def test_something_bad_is_exit_code_1_and_has_a_next_step(lattica: Lattica, node: FakeNode) -> None:
    node.states["protection"] = PROTECTED
    node.mesh["doctor"] = FACTS | {"whoami": STATE | {"expires": 1e9}}
    result = lattica("doctor")
    assert result.exit_code == 1 and "bad   peer k3f9a2bc of mesh 7abc2def" in result.output
    assert "      do next: " in result.output
    assert not json.loads(lattica("doctor", "--json").output)["ok"]


def test_a_node_that_does_not_answer_is_bad(lattica: Lattica, node: FakeNode) -> None:
    node.mesh["doctor"] = ConfigError("no", do_next="do something")
    result = lattica("doctor")
    assert result.exit_code == 1 and "bad   no\n      do next: do something\n" in result.output


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def founded(data_dir: Path) -> Path:
    """A machine that has founded a mesh: its data directory."""
    credentials.found(paths.identity_dir(str(data_dir)), time.time())
    return data_dir


def test_without_a_node_the_disk_is_asked(lattica: Lattica, founded: Path) -> None:
    result = lattica("doctor")
    assert result.exit_code == 0, result.output
    assert "warn  no node runs" in result.output and "with the roles execute,submit,store,relay,admin" in result.output
    assert "warn  the recovery file" in result.output and "fewer than two issuers" in result.output
    os.close(paths.lock_data_dir(str(founded)))  # it is free again


def test_a_machine_without_a_key_is_told_how_to_come_into_a_mesh(lattica: Lattica, data_dir: Path) -> None:
    result = lattica("doctor")
    assert result.exit_code == 0 and "lattica join TICKET" in result.output
    Path(paths.identity_dir(str(data_dir))).mkdir(mode=0o700)
    assert "is in no mesh" in lattica("doctor").output


def test_a_key_that_others_may_read_is_bad(lattica: Lattica, founded: Path) -> None:
    (founded / "identity/node.key").chmod(0o644)
    result = lattica("doctor")
    assert result.exit_code == 1
    assert f"bad   {founded}/identity/node.key: it is open to others (mode 644)" in result.output
    assert "chmod go=" in result.output


def test_files_of_the_mesh_are_looked_at_as_the_key_is(founded: Path) -> None:
    (founded / "identity/mesh/issuer.key").chmod(0o640)
    (founded / "identity").chmod(0o755)
    found = list(checkup.of_files(str(founded)))
    assert levels(found) == [BAD, BAD]
    assert "/identity: it is open" in found[0].what and "issuer.key: it is open" in found[1].what


def test_a_damaged_membership_is_bad(lattica: Lattica, founded: Path) -> None:
    (founded / "identity/mesh/membership").write_bytes(b"noise")
    result = lattica("doctor")
    assert result.exit_code == 1 and "membership is damaged" in result.output


def test_a_directory_that_is_in_use_is_said_to_be(lattica: Lattica, founded: Path) -> None:
    lock = paths.lock_data_dir(str(founded))
    result = lattica("doctor")
    os.close(lock)
    assert result.exit_code == 1 and "a node that starts or ends" in result.output


# -- facts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "level", "words"),
    [
        ({}, OK, "until "),
        ({"expires": NOW + 3 * DAY_S}, WARN, "ends in 3 d"),
        ({"via_invite": True}, WARN, "no issuer has certified it yet"),
        ({"via_invite": True, "expires": NOW - 1}, BAD, "join with a new ticket"),
        ({"expires": NOW - 40 * DAY_S}, BAD, "an issuer renews it"),
        ({"expires": NOW - 200 * DAY_S}, BAD, "join with a new ticket"),
        ({"warnings": ["this node is no member of its mesh any more: revoked"]}, BAD, "ask an admin"),
    ],
)
def test_a_membership_is_judged_by_its_end(state: dict[str, Any], level: str, words: str) -> None:
    [finding] = checkup.of_membership(STATE | state, NOW)
    assert finding.level == level and words in finding.what + finding.do_next


def test_a_recovery_file_on_the_machine_is_warned_of() -> None:
    found = checkup.of_membership(STATE | {"recovery_file": "/d/r.key"}, NOW)
    assert "/d/r.key" in only(found, WARN).what


@pytest.mark.parametrize(
    ("said", "level"),
    [
        (PROTECTED, OK),
        (PROTECTED | {"landlock": False, "reason": "none here"}, WARN),
        ({"mounts": False, "landlock": False, "reason": "none here"}, BAD),
    ],
)
def test_a_key_that_tasks_can_read_is_bad(said: dict[str, Any], level: str) -> None:
    [finding] = checkup.of_protection(said)
    assert finding.level == level


@pytest.mark.parametrize(("behind_s", "level"), [(0.0, OK), (12.0, OK), (120.0, WARN), (-120.0, WARN), (1200.0, BAD)])
def test_a_clock_is_judged_by_the_others(behind_s: float, level: str) -> None:
    [finding] = checkup.of_clock({"clock_measured_s": behind_s}, [{}])
    assert finding.level == level
    if level != OK:
        assert f"{-behind_s:+.0f} s off" in finding.what
    assert levels(checkup.of_clock({"clock_measured_s": 0.0}, [])) == [OK]


def test_what_the_router_maps_is_told_and_is_no_fault_if_it_maps_nothing() -> None:
    nothing = {"looked": True, "gateways": [{"gateway": "192.168.1.1", "tried": {"PCP": "no answer"}}]}
    [finding] = checkup.of_mapping(nothing, STATE)
    assert finding.level == OK and "maps no port" in finding.what and "router" in finding.do_next
    [public] = checkup.of_mapping(nothing, STATE | {"addresses": ["198.51.100.7:7411", "10.0.0.2:7411"]})
    assert not public.do_next, "it is reached without"
    assert list(checkup.of_mapping({}, STATE)) == [], "a node of an earlier release says nothing"


def test_a_nat_is_told_in_words_and_a_peer_that_is_relayed_for_it_is_a_warning() -> None:
    behind = {"behaviour": {"udp": False}, "words": "UDP is blocked"}
    peer = {"peer_id": "abc", "name": "gpu-1", "path": "relay/def", "rtt_ms": 40.0}
    first, second = checkup.of_nat(behind, [peer])
    assert first.level == checkup.OK and "UDP is blocked" in first.what and "direct to 0 of 1 peers" in first.what
    assert second.level == checkup.WARN and "gpu-1 is relayed" in second.what and "UDP" in second.do_next
    assert list(checkup.of_nat({}, [])) == [], "a node of an earlier release says nothing"


def test_a_port_that_a_peer_does_not_reach_is_warned_of() -> None:
    silent = [{"peer_id": PEER, "addresses": {"10.0.0.2:7411": "no answer within 2 s"}}]
    assert levels(checkup.of_port(STATE, FACTS["reached"])) == [OK]
    assert "no answer within 2 s" in only(checkup.of_port(STATE, silent), WARN).what
    assert "knows no address" in only(checkup.of_port(STATE, [{"peer_id": PEER}]), WARN).what
    relayed = STATE | {"addresses": [*STATE["addresses"], f"relay/{PEER}"]}
    assert "by way of the relay" in only(checkup.of_port(relayed, silent), OK).what
    assert levels(checkup.of_port(STATE, [])) == levels(checkup.of_port({"addresses": []}, silent)) == [OK]
    assert levels(checkup.of_port(STATE | {"notes": ["port 7411 is not to be had"]}, FACTS["reached"])) == [WARN, OK]


def test_peers_that_are_not_reached_are_warned_of_and_one_that_refuses_us_is_bad() -> None:
    troubles = [{"why": "nobody listens there"}, {"why": "k3f9 refuses this node: it was revoked"}]
    found = list(checkup.of_peers([{}, {}], troubles, STATE))
    assert levels(found) == [OK, WARN, BAD] and "2 other nodes" in found[0].what


def test_who_meets_nobody_is_told_where_it_looked_and_how_others_may_look_for_it() -> None:
    silent = [{"why": "peer wvrt3rjm did not answer", "addresses": ["10.0.0.3:7411", "127.0.0.1:7411"]}]
    public = STATE | {"addresses": ["198.51.100.7:7411"]}
    [finding] = checkup.of_peers([], silent, public)
    assert finding.what.endswith("; tried 10.0.0.3:7411, of a local network: no machine elsewhere reaches that")
    assert finding.do_next.endswith(f"; or run there: lattica dial {PEER} 198.51.100.7:7411")
    for peers, state in (([], STATE), ([{}], public)):
        *_, other = checkup.of_peers(peers, silent, state)
        assert "lattica dial" not in other.do_next, "it is reached nowhere, or was"


def test_refused_handshakes_of_late_are_shown_the_latest_first() -> None:
    refusals = [
        {"at": NOW - 60 * number, "from": f"10.0.0.{number}:1", "why": "stranger"} for number in range(99, -1, -1)
    ]
    found = list(checkup.of_refusals(refusals, NOW))
    assert levels(found) == [WARN] * checkup.REFUSALS_SHOWN and "10.0.0.0:1" in found[0].what
    assert not list(checkup.of_refusals(refusals[:10], NOW)), "these are older than an hour"


@pytest.mark.parametrize(
    ("counts", "level"), [({"alive": 3}, OK), ({"alive": 2, "left": 1}, OK), ({"alive": 2, "dead": 1}, WARN)]
)
def test_members_are_counted_and_who_watches_us_is_named(counts: dict[str, int], level: str) -> None:
    watchers = [{"peer_id": PEER, "name": "gpu-1"}, {"peer_id": PEER, "name": ""}]
    [finding] = checkup.of_members({"counts": counts, "watched_by": watchers})
    assert finding.level == level and "3 nodes" in finding.what and "watched by gpu-1, k3f9a2bc" in finding.what
    assert not list(checkup.of_members({"counts": {"alive": 1}})), "alone"


def test_a_table_is_judged_by_the_neighbours() -> None:
    same, other = {"name": "b", "same": True, "rows": 12}, {"name": "c", "same": False, "rows": 11}
    assert levels(checkup.of_table({"root": "ab", "rows": 12, "neighbours": [same]})) == [OK]
    [finding] = checkup.of_table({"root": "ab", "rows": 12, "neighbours": [same, other]})
    assert finding.level == WARN and "c differs (12 rows here, 11 there)" in finding.what
    assert "the same at 1 of 2" in finding.what and not list(checkup.of_table({"rows": 3, "neighbours": []}))


def test_writers_that_lied_or_are_refused_are_named_and_revoked_ones_are_not() -> None:
    table = {
        "rows": 1, "root": "ab", "neighbours": [{"same": True, "rows": 1}],
        "distrusted": [{"peer_id": PEER, "why": "it wrote two different things"}, {"why": "it was revoked"}],
        "refused": [{"peer_id": MESH, "why": "its signature is wrong"}],
    }  # fmt: skip
    _, liar, forger = checkup.of_table(table)
    assert liar.level == forger.level == WARN
    assert "k3f9a2bc" in liar.what and "two different" in liar.what and "signature is wrong" in forger.what


def test_what_a_node_of_another_release_leaves_out_is_tolerated() -> None:
    assert BAD not in levels(checkup.of_node({}, NOW))
