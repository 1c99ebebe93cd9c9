"""`lattica drain`: what the node is told."""

from __future__ import annotations

import json

from tests.cli.conftest import Lattica
from tests.cli.fake_node import FakeNode

PEER = "k3f9a2bc" + "a" * 44


def test_another_node_is_drained_until_it_has_left(lattica: Lattica, node: FakeNode) -> None:
    node.mesh = {"drain": {"peer_id": PEER, "this_node": False}, "peers": [{"peer_id": PEER, "state": "left"}]}
    result = lattica("drain", "k3f9", "--grace", "5min")
    assert (result.exit_code, result.output) == (0, "node k3f9a2bc has left\n")
    assert node.asked("drain") == {"peer": "k3f9", "grace_s": 300.0}


def test_without_waiting_it_returns_when_the_node_is_told(lattica: Lattica, node: FakeNode) -> None:
    node.mesh = {"drain": {"peer_id": PEER, "this_node": True}}
    assert lattica("drain", "--no-wait").output == "node k3f9a2bc drains\n"
    assert json.loads(lattica("drain", "--no-wait", "--json").output) == {"peer_id": PEER, "left": False}
    assert lattica("drain", "--grace", "soon").exit_code == 2
