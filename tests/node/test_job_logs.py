"""What scripts of jobs print: read on by number, whatever was dropped meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from lattica.node import job_logs
from lattica.node.job_logs import JobLogs


def test_a_reader_goes_on_where_it_was(tmp_path: Path) -> None:
    logs = JobLogs(str(tmp_path))
    logs.write("a-0", b"one\n")
    data, offset = logs.read("a-0", 0, 100)
    assert (data, offset, logs.size("a-0")) == (b"one\n", 4, 4)
    logs.write("a-0", b"two\n")
    assert logs.read("a-0", offset, 100) == (b"two\n", 8)
    assert logs.read("a-0", offset, 2) == (b"tw", 6)
    logs.end("a-0")
    assert logs.read("a-0", 8, 100) == (b"", 8) and logs.read("nobody", 0, 10) == (b"", 0)


def test_a_long_log_keeps_its_last_bytes_and_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_logs, "FILE_BYTES", 10)
    logs = JobLogs(str(tmp_path))
    for count in range(10):
        logs.write("a-0", f"line{count}".encode())
    assert logs.size("a-0") == 50
    whole, offset = b"", 0
    while (read := logs.read("a-0", offset, 7))[0]:
        whole, offset = whole + read[0], read[1]
    assert whole == b"line6line7line8line9" and offset == 50
    logs.end("a-0")
    assert logs.read("a-0", 45, 100) == (b"line9", 50)
    again = JobLogs(str(tmp_path))
    assert again.read("a-0", 0, 100)[0] + again.read("a-0", 10, 100)[0] == whole, "after a restart of the node, too"


def test_the_oldest_runs_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_logs, "RUNS_MAX", 3)
    logs = JobLogs(str(tmp_path))
    for count in range(5):
        logs.write(f"{count}-0", b"x")
        logs.end(f"{count}-0")
    assert len(list(tmp_path.glob("*.log"))) == 3
