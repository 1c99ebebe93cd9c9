"""`lattica list`, and `lattica logs` of actors and workers."""

from __future__ import annotations

import json

import pytest

from lattica.cli.list import COLUMNS, page
from lattica.errors import ConfigError
from tests.cli.conftest import Lattica
from tests.cli.fake_node import FakeNode

PEER = "k3f9a2bc" + "a" * 44


@pytest.mark.parametrize("what", COLUMNS)
def test_a_list_has_a_line_for_each_row_whatever_is_left_out(what: str) -> None:
    assert page(what, []) == [f"there are no {what}"]
    assert len(page(what, [{"node_name": "box", "node": PEER}, {}])) == 3


def test_who_did_not_answer_is_named(lattica: Lattica, node: FakeNode) -> None:
    silent = [{"peer_id": PEER, "name": "attic", "why": "no answer within 5 s"}]
    actor = {"node": PEER, "node_name": "box", "actor": "9f2c41d0" * 3, "class_name": "Learner", "state": "ALIVE"}
    node.mesh = {"list": {"rows": [actor], "silent": silent}, "job_list": []}
    result = lattica("list", "actors")
    assert "Learner" in result.output and "box" in result.output and "9f2c41d0 " in result.output
    assert "attic did not answer: no answer within 5 s" in result.output
    assert node.asked("list") == {"what": "actors"}
    node.mesh["list"] = {"rows": [actor], "silent": []}
    assert json.loads(lattica("list", "actors", "--json").output)["rows"] == [actor]
    assert "no job was submitted" in lattica("list", "jobs").output
    assert lattica("list", "dreams").exit_code == 2


def test_logs_of_an_actor_are_read_to_their_end(lattica: Lattica, node: FakeNode) -> None:
    answers = iter([b"one\n", b"", b"two\n", b""])
    node.mesh = {
        "job_logs": ConfigError("no job is called 'counter'"),
        "logs_find": [
            {"node": PEER, "node_name": "box", "file": name} for name in ("worker-1-2.err", "worker-1-2.out")
        ],
        "logs_read": lambda _: {"data": next(answers), "offset": 4},
    }
    assert lattica("logs", "counter").output == "one\ntwo\n"
    assert node.asked("logs_read") == {"node": PEER, "file": "worker-1-2.out", "offset": 4, "wait_s": 0.0}
