"""`lattica memory`."""

from __future__ import annotations

import json

from lattica.cli.memory import page
from tests.cli.conftest import Lattica
from tests.cli.fake_node import FakeNode

MIB = 1 << 20
NODE = {"node": "k3f9a2bc" + "a" * 44, "node_name": "box"}
REF = NODE | {
    "object": "ab" * 16, "size": 3 * MIB, "state": "here", "by": "ref+array", "holder": "driver 1", "pid": 70,
    "copies": 2, "made_at": "/home/u/train.py:12 in main", "made_by": "driver 1",
}  # fmt: skip
ARGUMENT = REF | {"by": "argument", "holder": "step", "pid": 71, "made_at": ""}
SPILLED = REF | {"object": "cd" * 16, "size": 5 * MIB, "state": "spilled", "by": "ref", "made_at": ""}
STORE = NODE | {"used_bytes": 8 * MIB, "arena_bytes": 32 * MIB, "spilled_objects": 1, "spilled_bytes": 5 * MIB}


def lines(*, sort_by: str = "size", group_by: str | None = None, entries: int = 9) -> list[str]:
    return page([REF, ARGUMENT, SPILLED], [STORE], sort_by, group_by, entries)


def test_the_largest_come_first_with_who_holds_them_and_how() -> None:
    found = lines()
    assert "spilled" in found[1] and "5.0 MiB" in found[1] and "driver 1" in found[1]
    assert "ref+array" in found[2] and "train.py:12 in main" in found[2]
    assert "argument" in found[3] and "step" in found[3]
    assert found[-1].split() == ["box", "1", "8.0", "MiB", "32.0", "MiB", "1", "5.0", "MiB"]


def test_items_of_one_generator_are_told_apart_by_their_ids() -> None:
    items = [REF | {"object": "ab" * 14 + f"{number:04x}"} for number in range(2)]
    found = page(items, [STORE], "size", None, 9)
    assert len({line.split()[0] for line in found[1:3]}) == 2


def test_an_object_that_two_hold_counts_once_in_a_group() -> None:
    groups = [line.split() for line in lines(group_by="node")[:2]]
    assert groups == [["node", "objects", "size"], ["box", "2", "8.0", "MiB"]]
    assert any("step (pid 71, box)" in line for line in lines(group_by="pid"))


def test_a_long_list_is_cut_and_an_empty_one_says_so() -> None:
    assert any("2 more" in line for line in lines(entries=1))
    assert page([], [STORE], "size", None, 9)[0] == "nobody holds an object"
    assert len(page([{}], [{}], "pid", None, 9)) == 5


def test_the_node_is_asked_once_and_who_was_silent_is_named(lattica: Lattica, node: FakeNode) -> None:
    silent = [{"peer_id": NODE["node"], "name": "attic", "why": "no answer within 5 s"}]
    node.mesh = {"memory": {"rows": [REF], "stores": [STORE], "silent": silent}}
    result = lattica("memory", "--sort-by", "pid")
    assert "ref+array" in result.output and "attic did not answer" in result.output
    assert json.loads(lattica("memory", "--json").output.partition("warning")[0])["rows"] == [REF]
