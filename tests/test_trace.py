"""The trace of `timeline()`: one process a machine, one thread a worker's thread, as viewers expect it."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

from lattica import trace
from lattica.local import events
from lattica.local.events import EVENTS_BYTES, EventWriter, stored

ID = b"0123456789abcdef"


def row(node: str, worker: int, *noted: events.Noted) -> dict[str, Any]:
    with mmap.mmap(-1, EVENTS_BYTES) as memory:
        writer = EventWriter(memory, 0)
        for one in noted:
            writer.note(one)
        writer.store()
        data = stored(memory, 0)
        writer.close()
    return {"node": node, "node_name": f"host {node}", "pid": 100 + worker, "job": 1, "worker": worker, "events": data}


def test_machines_are_processes_and_workers_threads_with_names() -> None:
    task = ("f", 1.0, 10, events.TASK, 0, ID, 0)
    shown = trace.chrome_trace([row("a", 1, task), row("b", 1, task), row("a", 2, task)])
    names = {(event["name"], event["pid"]): event["args"]["name"] for event in shown if event["ph"] == "M"}
    assert names["process_name", 1] == "host a"
    assert names["process_name", 2] == "host b"
    assert len({(event["pid"], event["tid"]) for event in shown if event["ph"] == "X"}) == 3


def test_a_call_that_raised_says_so_and_threads_of_an_actor_have_lanes_of_their_own() -> None:
    calls = [("A.m", 1.0, 10, events.CALL | events.FAILED, 3, ID, 55), ("A.m", 1.0, 10, events.CALL, 0, ID, 66)]
    failed, fine = (event for event in trace.chrome_trace([row("a", 1, *calls)]) if event["ph"] == "X")
    assert failed["args"] == {"name": "A.m", "task_id": ID.hex(), "attempt": 3, "job": 1, "failed": True}
    assert not fine["args"]["failed"]
    assert failed["tid"] != fine["tid"]


def test_calls_that_overlap_on_one_thread_are_a_beginning_and_an_end() -> None:
    begin, end = trace.chrome_trace([row("a", 1, ("A.m", 1.0, 500, events.COROUTINE, 0, ID, 0))])[2:]
    assert (begin["ph"], end["ph"], begin["id"]) == ("b", "e", end["id"])
    assert abs(end["ts"] - begin["ts"] - 500) < 1


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    shown = trace.chrome_trace([row("a", 1, ("f", 1.0, 10, events.TASK, 0, ID, 0))])
    trace.write(str(tmp_path / "trace.json"), shown)
    assert json.loads((tmp_path / "trace.json").read_text()) == shown
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
