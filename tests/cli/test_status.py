"""`lattica status`: the page for people and the object for machines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lattica.cli import status
from lattica.cli.sizes import duration_text, parse_size, size_text, table
from tests.cli.conftest import Lattica
from tests.cli.fake_node import FakeNode

NOW = 1_000_000.0
STATE: dict[str, Any] = {
    "node": {"id": "ab" * 16, "pid": 7, "version": "0.1.0", "uptime_s": 7_500.0, "data_dir": "/data", "python": "py"},
    "resources": {
        "total": {"CPU": 8, "GPU": 1, "memory": 16 << 30, "tpu": 2.5},
        "available": {"CPU": 4.5, "GPU": 1, "memory": 15 << 30, "tpu": 2.5},
    },
    "jobs": [
        {"job": 1, "pid": 70, "namespace": "a", "since": NOW - 65, "script": "train.py", "workers": 2, "actors": 1}
    ],
    "workers": [
        {"client": 2, "pid": 71, "state": "leased", "job": 1, "name": "step", "rss_bytes": 50 << 20},
        {"client": 3, "pid": 72, "state": "actor", "job": 1, "name": "", "rss_bytes": 300 << 20},
    ],
    "actors": [
        {
            "actor": b"\xcd" * 16, "class_name": "Learner", "name": "one", "namespace": "a", "state": "ALIVE",
            "incarnation": 1, "restarts": 0, "pid": 72, "job": 1,
        }
    ],
    "memory": {
        "arena_bytes": 4 << 30, "used_bytes": 1 << 20, "backed_bytes": 64 << 20, "objects": 12, "clients": [],
        "available_bytes": 4 << 30,
    },
}  # fmt: skip


def test_people_see_one_page() -> None:
    assert (
        "\n".join(status.page(STATE, NOW))
        == """\
node abababab  pid 7  up 2 h 5 min  lattica 0.1.0  /data

resources
          in use       total
  CPU     3.5      of  8
  GPU     0        of  1
  memory  1.0 GiB  of  16.0 GiB
  tpu     0        of  2.5

jobs (1)
  job  pid  state    for        workers  actors  namespace  script
    1   70  running  1 min 5 s        2       1  a          train.py

workers (2)
  pid  job  state   memory     runs
   71    1  leased  50.0 MiB   step
   72    1  actor   300.0 MiB

actors (1)
  actor     class    name  namespace  state  restarts  pid  job
  cdcdcdcd  Learner  one   a          ALIVE         0   72    1

memory
  objects   12 in 1.0 MiB of 4.0 GiB shared memory
            4.0 GiB free, 64.0 MiB backed by memory of the machine
  workers   350.0 MiB resident, shared pages counted in each

logs
  node      /data/node.log (not there); beyond 16.0 MiB a new one begins, and this is kept
  workers   ?/logs; at most 4 files of 16.0 MiB for each stream
  jobs      /data/jobs; read them by `lattica logs JOB`"""
    )


MESH = {
    "mesh": "7abc" * 4, "name": "box", "roles": "execute,submit", "addresses": ["127.0.0.1:7411"],
    "members": {"alive": 3, "dead": 1}, "issuers": [{"peer_id": "k3f9a2bc" * 4}], "metrics": "http://127.0.0.1:9/metrics",
    "side": {"island": True, "members": 4, "here": 1, "missing": ["aaaa", "bbbb"]},
}  # fmt: skip


def test_the_page_says_which_mesh_the_node_is_in_and_how_that_is() -> None:
    page = status.page({**STATE, "mesh": MESH}, NOW)
    begin = page.index("mesh")
    assert page[begin : begin + 7] == [
        "mesh",
        "  id        7abc7abc, this node is box (execute,submit)",
        "  members   3 alive, 1 dead (lattica peers)",
        "  issuers   k3f9a2bc: with it lost, nobody can join",
        "  listens   127.0.0.1:7411",
        "  metrics   http://127.0.0.1:9/metrics",
        "  warning   cut off with 1 of 4 members; missing: aaaa, bbbb",
    ]
    nobody = MESH | {"side": {"island": True, "members": 0, "here": 0, "missing": []}}
    assert "cut off" not in "\n".join(status.page({**STATE, "mesh": nobody}, NOW)), "it has met nobody yet"
    assert "mesh" not in status.page(STATE, NOW), "a node without one"


def test_a_node_that_does_nothing_has_a_short_page() -> None:
    page = status.page({**STATE, "jobs": [], "workers": [], "actors": []}, NOW)
    assert page[page.index("jobs (0)") :][:5] == ["jobs (0)", "", "workers (0)", "", "actors (0)"]


def test_what_a_node_of_another_release_leaves_out_is_no_error() -> None:
    assert status.page({}, NOW)
    rows = [{"pid": 1}]
    assert status.page({"jobs": rows, "workers": rows, "actors": rows}, NOW)


def test_a_long_list_is_cut_and_says_so() -> None:
    page = status.page({"workers": [STATE["workers"][0]] * (status.ROWS_MAX + 7)}, NOW)
    assert "  ... and 7 more, with --json" in page


def test_the_command_shows_the_page(lattica: Lattica, node: FakeNode) -> None:
    node.states["status"] = STATE
    result = lattica("status")
    assert result.exit_code == 0
    assert "Learner" in result.output


def test_machines_get_all_of_it_with_ids_in_hex(lattica: Lattica, node: FakeNode) -> None:
    node.states["status"] = STATE
    told = json.loads(lattica("status", "--json").output)
    assert told["actors"][0]["actor"] == "cd" * 16
    assert told["node"] == STATE["node"]


def test_without_a_node_the_exit_code_is_one_and_the_next_step_is_named(lattica: Lattica) -> None:
    result = lattica("status")
    assert result.exit_code == 1
    assert "no node runs" in result.output and "lattica start" in result.output


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", 1 << 20),
        ("4GiB", 4 << 30),
        ("4g", 4 << 30),
        ("1.5 K", 1536),
        ("2MB", 2_000_000),
        ("7b", 7),
    ],
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_sizes_and_times_are_written_for_people() -> None:
    assert [size_text(size) for size in (0, 1023, 1024, 5 << 30, 3 << 40)] == [
        "0 B", "1023 B", "1.0 KiB", "5.0 GiB", "3.0 TiB",
    ]  # fmt: skip
    assert [duration_text(time_s) for time_s in (-1, 0.9, 59, 3_600, 90_061)] == [
        "0 s", "0 s", "59 s", "1 h 0 min", "1 d 1 h",
    ]  # fmt: skip


def test_columns_are_aligned_and_numbers_stand_to_the_right() -> None:
    assert table(["name", "count"], [["a", 5], ["long name", 12]]) == [
        "  name       count",
        "  a              5",
        "  long name     12",
    ]
