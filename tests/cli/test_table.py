"""`lattica table`: what it asks, and what it makes of the answer."""

from __future__ import annotations

import json
from typing import Any

from lattica.cli import table
from tests.cli.conftest import Lattica
from tests.cli.fake_node import FakeNode

SUMMARY: dict[str, Any] = {
    "root": "ab" * 16, "rows": 13,
    "kinds": [
        {"kind": "node", "rows": 12, "hidden": 1, "bytes": 6 << 10},
        {"kind": "statement", "rows": 1, "hidden": 0, "bytes": 900},
        {"kind": "job", "rows": 0, "hidden": 0, "bytes": 0},
    ],
    "distrusted": [{"peer_id": "wvrt3rjm" + "c" * 44, "why": "it was revoked"}],
}  # fmt: skip
ROW: dict[str, Any] = {
    "key": "wvrt3rjm", "writer": "wvrt3rjm" + "c" * 44, "boot": 1795700000, "counter": 3, "written": 1000.0,
    "expires": 1000 + 86_400, "gone": False, "hidden": "", "bytes": 400, "says": "gpu-1; lattica 0.1.0",
}  # fmt: skip


def test_without_a_kind_it_counts_rows_by_kind(lattica: Lattica, node: FakeNode) -> None:
    node.mesh["table"] = SUMMARY
    assert lattica("table").output.splitlines() == [
        "  kind       rows  hidden  size",
        "  node         12       1  6.0 KiB",
        "  statement     1       0  900 B",
        f"13 rows; fingerprint {'ab' * 16}, the same on all that agree",
        "hidden: what wvrt3rjm wrote: it was revoked",
    ]
    assert node.asked("table") == {"kind": ""}
    assert json.loads(lattica("table", "--json").output) == SUMMARY


def test_with_a_kind_it_shows_its_rows(lattica: Lattica, node: FakeNode) -> None:
    node.mesh["table"] = {"kind": "node", "rows": [ROW], "more": 0}
    assert "gpu-1; lattica 0.1.0" in lattica("table", "node").output and node.asked("table") == {"kind": "node"}
    assert json.loads(lattica("table", "node", "--json").output)["rows"] == [ROW]


def test_a_row_is_a_line_with_its_age_and_its_end_and_why_it_does_not_count() -> None:
    forever = ROW | {"expires": None, "written": None, "hidden": "a tombstone"}
    header, first, second = table.rows_page({"rows": [ROW, forever]}, 1060.0)
    assert header.split() == ["key", "writer", "dot", "age", "expires", "in", "says"]
    assert first.split()[:5] == ["wvrt3rjm", "wvrt3rjm", "1795700000.3", "1", "min"] and "23 h 59 min" in first
    assert "never" in second and second.endswith("(a tombstone)")


def test_many_rows_and_long_words_are_cut_and_what_is_left_out_is_tolerated() -> None:
    long = ROW | {"says": "x" * 200}
    lines = table.rows_page({"rows": [{}] + [long] * table.ROWS_MAX, "more": 7}, 2000.0)
    assert lines[-1] == "  ... and 8 more, with --json" and lines[2].endswith("x...") and len(lines[2]) < 160
    assert "there is no" in table.rows_page({}, 0.0)[0] and table.kinds_page({})
