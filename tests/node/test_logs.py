"""Workers' output: lines, files, tails and drivers that do not read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.codec.messages import LogLines
from lattica.node import logs
from lattica.node.logs import STDERR, STDOUT, Lines, LogCollector, LogFiles


class Memory:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ended: list[str] = []

    def append(self, name: str, data: bytes) -> None:
        self.files[name] = self.files.get(name, b"") + data

    def end(self, name: str) -> None:
        self.ended.append(name)

    def path(self, name: str) -> str:
        return f"/logs/{name}"


class Desk:
    """A collector, its sink, and a driver that reads when told to."""

    def __init__(self) -> None:
        self.sink = Memory()
        self.collector = LogCollector(self.sink)

    def worker(self, client: int, job: int | None = 1) -> None:
        self.collector.started(client, 100 + client, job)

    def read(self, job: int = 1) -> list[LogLines]:
        return list(iter(lambda: self.collector.take(job), None))


@pytest.fixture
def desk() -> Desk:
    return Desk()


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))), st.data())
def test_lines_are_the_same_however_their_bytes_arrive(lines: list[str], data: st.DataObject) -> None:
    raw = "".join(f"{line}\n" for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    splitter = Lines()
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)])]
    assert [line for piece in pieces for line in splitter.feed(piece)] == lines
    assert splitter.finish() == []


def test_a_line_without_an_end_comes_at_the_end() -> None:
    lines = Lines()
    assert lines.feed(b"one\ntw") == ["one"]
    assert lines.finish() == ["tw"]
    assert lines.finish() == []


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    assert Lines().feed(b"caf\xe9 \xff\n") == ["caf� �"]


@pytest.mark.parametrize("piece", [1 << 10, 1 << 20])
def test_a_line_without_end_is_cut_and_no_byte_of_it_waits_for_ever(piece: int) -> None:
    lines, text = Lines(), "é" * 100_000
    raw = b"x" + text.encode() + b"\nshort\n"
    got = [line for start in range(0, len(raw), piece) for line in lines.feed(raw[start : start + piece])]
    assert "".join(got[:-1]) == "x" + text, "cut between characters, not inside one"
    assert all(len(line.encode()) <= logs.LINE_BYTES_MAX for line in got)
    assert got[-1] == "short"


def test_a_line_of_bytes_that_are_no_text_is_cut_too() -> None:
    got = Lines().feed(b"\x80" * (logs.LINE_BYTES_MAX + 5) + b"\n")
    assert [len(line) for line in got] == [logs.LINE_BYTES_MAX, 5]


def test_lines_reach_the_driver_with_the_name_of_what_printed_them(desk: Desk) -> None:
    desk.worker(7)
    desk.collector.named(7, "train")
    assert desk.collector.feed(7, STDOUT, b"a\nb\n") == [1]
    assert desk.collector.feed(7, STDERR, b"oh") == []
    assert desk.collector.feed(7, STDERR, b"\n") == [1]
    assert desk.read() == [LogLines("train", 107, STDOUT, ["a", "b"]), LogLines("train", 107, STDERR, ["oh"])]


def test_two_workers_never_share_a_line(desk: Desk) -> None:
    desk.worker(1)
    desk.worker(2)
    desk.collector.feed(1, STDOUT, b"one ")
    desk.collector.feed(2, STDOUT, b"two\n")
    desk.collector.feed(1, STDOUT, b"whole\n")
    assert [line for message in desk.read() for line in message.lines] == ["two", "one whole"]


def test_files_hold_every_byte_as_it_was_printed(desk: Desk) -> None:
    desk.worker(7)
    for piece in (b"half a ", b"line\xff\n", b"unended"):
        desk.collector.feed(7, STDERR, piece)
    desk.collector.finish(7)
    assert desk.sink.files == {"worker-7-107.err": b"half a line\xff\nunended"}
    assert desk.sink.ended == ["worker-7-107.out", "worker-7-107.err"]


def test_what_was_printed_before_the_pid_was_known_comes_too(desk: Desk) -> None:
    """The zygote forks; the child prints, and the node reads the pipe before the zygote's message."""
    desk.collector.named(7, "train")
    assert desk.collector.feed(7, STDOUT, b"early\nand ") == []
    assert desk.collector.started(7, 107, 1) == [1]
    desk.collector.feed(7, STDOUT, b"late\n")
    assert desk.read() == [LogLines("train", 107, STDOUT, ["early", "and late"])]


def test_a_worker_that_dies_before_its_pid_is_known_says_why(desk: Desk) -> None:
    desk.collector.feed(7, STDERR, b"no memory")
    assert desk.collector.finish(7) == "no memory"


def test_the_tail_is_the_last_lines_of_stderr_and_ends_with_what_was_unended(desk: Desk) -> None:
    desk.worker(7)
    desk.collector.feed(7, STDOUT, b"not this\n")
    desk.collector.feed(7, STDERR, b"".join(b"line %d\n" % number for number in range(100)) + b"Fatal error")
    tail = desk.collector.finish(7).splitlines()
    assert (tail[0], tail[-1], len(tail)) == ("line 51", "Fatal error", logs.TAIL_LINES)
    assert desk.collector.tail(7) == "", "forgotten"


def test_the_tail_of_long_lines_is_short(desk: Desk) -> None:
    desk.worker(7)
    desk.collector.feed(7, STDERR, b"a" * 50_000 + b"\n" + b"b" * 50_000 + b" the end\n")
    assert len(desk.collector.tail(7)) == logs.TAIL_CHARS
    assert desk.collector.tail(7).endswith("bb the end")


def test_a_driver_that_wants_no_lines_gets_none_and_the_files_get_all(desk: Desk) -> None:
    desk.worker(7, job=None)
    assert desk.collector.feed(7, STDOUT, b"a\n") == []
    assert desk.read() == []
    assert desk.sink.files == {"worker-7-107.out": b"a\n"}


def test_lines_of_a_job_that_ended_are_let_go(desk: Desk) -> None:
    desk.worker(7)
    desk.collector.feed(7, STDOUT, b"a\n")
    desk.collector.job_ended(1)
    desk.collector.feed(7, STDOUT, b"b\n")
    assert desk.read() == []
    assert desk.sink.files == {"worker-7-107.out": b"a\nb\n"}


def test_a_driver_that_does_not_read_is_told_how_many_lines_it_lost_and_where_they_are(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "WAITING_CHARS_MAX", 10 * (logs.LINE_COST_CHARS + 6))
    desk.worker(7)
    desk.worker(8, job=2)
    for number in range(100):
        desk.collector.feed(7, STDOUT, b"line%02d\n" % number)
    desk.collector.feed(8, STDOUT, b"another job\n")
    read = [line for message in desk.read() for line in message.lines]
    assert read[:10] == [f"line{number:02d}" for number in range(10)]
    assert len(read) == 11
    assert read[10].startswith("... 90 lines dropped") and "/logs/worker-7-107.out" in read[10]
    assert len(desk.sink.files["worker-7-107.out"]) == 700, "the file is complete"
    assert [message.lines for message in desk.read(job=2)] == [["another job"]]
    desk.collector.feed(7, STDOUT, b"again\n")
    assert [message.lines for message in desk.read()] == [["again"]]


def test_a_flood_is_handed_on_in_messages_of_moderate_size(desk: Desk) -> None:
    desk.worker(7)
    for _ in range(20):
        desk.collector.feed(7, STDOUT, b"x" * 99 + b"\n" + b"\n" * 999)
    messages = desk.read()
    assert sum(len(message.lines) for message in messages) == 20_000
    assert 1 < len(messages) < 10
    assert repr(desk.collector) == "<LogCollector: 1 workers, 0 characters wait for drivers>"


def test_a_full_file_becomes_the_backup_and_the_oldest_backup_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES_MAX", 10)
    files = LogFiles(str(tmp_path))
    for number in range(7):
        files.append("w.out", b"chunk %d" % number)
    files.close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "w.out": b"chunk 6",
        "w.out.1": b"chunk 5",
        "w.out.2": b"chunk 4",
        "w.out.3": b"chunk 3",
    }


def test_a_worker_that_prints_nothing_leaves_no_file_and_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    files = LogFiles(str(tmp_path))
    files.end("silent.out")
    files.append("loud.out", b"x")
    files.end("loud.out")
    assert os.listdir(tmp_path) == ["loud.out"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_of_ended_workers_are_bounded_and_the_newest_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ENDED_FILES_MAX", 3)
    files = LogFiles(str(tmp_path))
    files.append("living.out", b"x")
    for number in range(10):
        files.append(f"w{number}.out", b"x")
        files.end(f"w{number}.out")
    files.close()
    assert sorted(os.listdir(tmp_path)) == ["living.out", "w7.out", "w8.out", "w9.out"]


def test_a_full_disk_is_said_once_and_hurts_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = LogFiles(str(tmp_path / "missing"))
    files.append("w.out", b"x")
    files.append("w.out", b"y")
    files.end("w.out")
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text
