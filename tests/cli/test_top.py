"""`lattica top`: what was done between two looks."""

from __future__ import annotations

import json
from typing import Any, cast

from lattica.cli.top import WORKERS_MAX, Looks
from tests.cli.conftest import Lattica
from tests.cli.fake_node import FakeNode

PEER = "k3f9a2bc" + "a" * 44


def machine(clock_s: float, cpu_s: float) -> dict[str, Any]:
    return {
        "node": PEER, "node_name": "box", "cpus": 2, "cpu_s": cpu_s, "clock_s": clock_s, "memory_bytes": 1 << 30,
        "memory_total": 4 << 30, "store_bytes": 0, "store_total": 1 << 30, "total": {"CPU": 2}, "available": {"CPU": 1},
        "waiting": 3,
    }  # fmt: skip


def worker(pid: int, cpu_s: float, ran: int) -> dict[str, Any]:
    return {"node": PEER, "node_name": "box", "pid": pid, "state": "leased", "rss_bytes": 1, "cpu_s": cpu_s, "ran": ran,
            "name": f"f{pid}"}  # fmt: skip


def looks() -> Looks:
    return Looks(cast(Any, None))


def test_shares_and_rates_are_of_the_time_between_two_looks() -> None:
    mine = looks()
    first = mine.compare([machine(100.0, 50.0)], [worker(7, 1.0, 100)], [])
    assert first["machines"][0]["cpu_share"] is None and first["workers"][0]["ends_per_s"] is None
    second = mine.compare([machine(102.0, 52.0)], [worker(7, 2.0, 300), worker(8, 9.0, 9)], [])
    assert second["machines"][0]["cpu_share"] == 0.5, "two seconds of CPU in two seconds on two CPUs"
    assert second["machines"][0]["ends_per_s"] == 100.0
    assert [(row["pid"], row["cpu_share"], row["ends_per_s"]) for row in second["workers"]] == [
        (7, 0.5, 100.0),
        (8, 0.0, 0.0),
    ]


def test_nothing_is_divided_by_a_clock_that_stands_still() -> None:
    mine = looks()
    mine.compare([machine(100.0, 50.0)], [], [])
    assert mine.compare([machine(100.0, 51.0)], [], [])["machines"][0]["cpu_share"] is None


def test_the_page_names_machines_the_busiest_workers_and_who_was_silent(lattica: Lattica, node: FakeNode) -> None:
    rows = [worker(pid, 0.0, 0) for pid in range(1, WORKERS_MAX + 4)]
    answers = {"machines": [machine(1.0, 0.0)], "workers": rows}
    silent = [{"peer_id": PEER, "name": "attic", "why": "no answer within 5 s"}]

    node.mesh = {"list": lambda data: {"rows": answers[data["what"]], "silent": silent}}
    text = lattica("top", "--once", "--interval", "0.2").output
    assert "box" in text and "1 of 2" in text and "25% of 4.0 GiB" in text
    assert "attic does not answer" in text and "... and 3 more" in text
    assert json.loads(lattica("top", "--json", "--interval", "0.2").output)["machines"][0]["waiting"] == 3
