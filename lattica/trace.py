"""What ran when, on which machine and worker, as a trace that chrome://tracing and Perfetto (ui.perfetto.dev) show."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from lattica.actors import current
from lattica.local import events

MICROS = 1_000_000


def timeline(filename: str | None = None) -> list[dict[str, Any]] | None:
    """Tasks and actor calls that have ended, the newest thousands of each worker, of all programs and machines.

    filename: a file to write them to, as JSON; then the answer is None. Without it: a list of events in Chrome's trace
    format (a "X" event has ts and dur in microseconds; calls of asyncio actors, which overlap, are "b" and "e"). `args`
    tell the task's id, attempt, job and whether it raised. Raises GetTimeoutError if the node does not answer.
    """
    time.sleep(2 * events.STORE_S)  # for workers that have just become idle to say what they did
    found = current.get().state("timeline")
    trace = chrome_trace(found["rows"])
    if filename is None:
        return trace
    write(filename, trace)
    return None


def write(filename: str, trace: list[dict[str, Any]]) -> None:
    """Put a trace into a file, whole or not at all."""
    draft = f"{filename}.{os.getpid()}.new"
    with open(draft, "w") as file:
        json.dump(trace, file)
    os.replace(draft, filename)


def chrome_trace(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The trace of workers' rows, as of `node.history`: a process for each machine, a thread for each worker's."""
    trace: list[dict[str, Any]] = []
    processes: dict[str, int] = {}
    for row in rows:
        node = str(row["node"])
        pid = processes.get(node)
        if pid is None:
            pid = processes[node] = len(processes) + 1
            trace.append(_named("process_name", pid, 0, str(row.get("node_name") or node[:8])))
        threads: dict[int, int] = {}
        for event in events.parse(row["events"]):
            tid = threads.get(event.thread)
            if tid is None:
                tid = threads[event.thread] = (int(row["worker"]) << 8) + len(threads)
                which = f" thread {len(threads)}" if len(threads) > 1 else ""
                trace.append(_named("thread_name", pid, tid, f"worker {row['pid']}{which}"))
            trace += _shown(event, pid, tid, row)
    return trace


def _shown(event: events.Event, pid: int, tid: int, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    kind, failed = event.kind & ~events.FAILED, bool(event.kind & events.FAILED)
    began = event.began * MICROS
    shown: dict[str, Any] = {
        "cat": f"task::{event.name}",
        "name": event.name,
        "pid": pid,
        "tid": tid,
        "ts": began,
        "dur": float(event.micros),
        "ph": "X",
        "args": {
            "name": event.name,
            "task_id": event.object.hex(),
            "attempt": event.attempt,
            "job": row["job"],
            "failed": failed,
        },
    }
    if failed:
        shown["cname"] = "terrible"
    if kind != events.COROUTINE:
        return [shown]
    del shown["dur"]
    begin = shown | {"ph": "b", "id": event.object.hex()}
    return [begin, {**begin, "ph": "e", "ts": began + event.micros, "args": {}}]


def _named(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


__all__ = ["chrome_trace", "timeline", "write"]
