"""`lattica start`, with a node that a thread plays."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from lattica.cli import daemon
from lattica.cli.begin import exit_text, options_of
from lattica.cli.daemon import await_ready
from lattica.errors import LatticaError, NodeDiedError
from lattica.node import paths
from tests.cli.conftest import Lattica
from tests.cli.fake_node import FakeNode
from tests.cli.stage import Stage


def test_a_node_that_serves_is_greeted_with_what_to_do_next(lattica: Lattica, stage: Stage) -> None:
    result = lattica("start")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        f"node abababab serves (pid {os.getpid()}, lattica 0.1.0) with 8 CPU, 3.0 GiB of shared memory, 2 tpu",
        "  attach    python my_program.py, which calls lattica.init()",
        "  look      lattica status",
        "  stop      lattica stop",
        f"  logs      {stage.data_dir}/node.log, {stage.data_dir}/sessions/1-1/logs (workers)",
    ]


def test_a_node_with_a_named_directory_is_named_in_every_next_step(lattica: Lattica, stage: Stage) -> None:
    result = lattica("start", "--data-dir", str(stage.data_dir))
    assert f"LATTICA_DATA_DIR={stage.data_dir} python" in result.output
    assert f"lattica stop --data-dir {stage.data_dir}" in result.output


def test_options_are_handed_on_and_those_not_given_are_the_nodes_to_decide(lattica: Lattica, stage: Stage) -> None:
    spill = str(stage.data_dir / "there")
    words = ["--object-store-memory", "4GiB", "--spill-dir", spill, "--spill-limit", "1GiB"]
    lattica("start", "--num-cpus", "3", "--resources", '{"tpu": 2}', *words)
    assert dict(zip(stage.options[::2], stage.options[1::2])) == {
        "--data-dir": str(stage.data_dir),
        "--num-cpus": "3.0",
        "--resources": '{"tpu": 2}',
        "--object-store-memory": str(4 << 30),
        "--spill-dir": spill,
        "--spill-limit": str(1 << 30),
    }
    assert options_of("/d", num_cpus=None, num_gpus=0) == ["--data-dir", "/d", "--num-gpus", "0"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num-cpus", "-1"], "0 or more CPU"),
        (["--num-cpus", "many"], "many"),
        (["--resources", "tpu=2"], "JSON object"),
        (["--resources", "[1]"], "JSON object"),
        (["--resources", '{"CPU": 1}'], "num_cpus"),
        (["--resources", '{"tpu": "x"}'], "no number"),
        (["--object-store-memory", "4 parsecs"], "4GiB"),
        (["--spill-dir", "/proc/no/such"], "--spill-dir /proc/no/such cannot be made"),
        (["--spill-limit", "much"], "4GiB"),
        (["--num-gpus", "1.5"], "whole number"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(
    lattica: Lattica, stage: Stage, words: list[str], said: str
) -> None:
    result = lattica("start", *words)
    assert result.exit_code in (1, 2)
    assert said in result.output and "Traceback" not in result.output
    assert not stage.options


def test_a_second_node_is_refused_with_the_pid_of_the_first(lattica: Lattica, stage: Stage, node: FakeNode) -> None:
    lock = paths.lock_data_dir(str(stage.data_dir))
    result = lattica("start")
    os.close(lock)
    assert result.exit_code == 1
    assert f"pid {node.file.pid}" in result.output and "lattica stop" in result.output
    assert not stage.options


def test_a_node_that_cannot_start_is_quoted(lattica: Lattica, stage: Stage) -> None:
    stage.words = b'{"error": "the data directory is locked\\n  do next   stop the other one"}\n'
    result = lattica("start")
    assert result.exit_code == 1
    assert result.output == "Error: the data directory is locked\n  do next   stop the other one\n"
    assert stage.begun is not None and stage.begun.killed


def test_a_node_that_dies_while_it_starts_is_told_with_the_end_of_its_log(lattica: Lattica, stage: Stage) -> None:
    stage.words = b""
    (stage.data_dir / "node.log").write_text("".join(f"line {number}\n" for number in range(50)) + "MemoryError\n")
    result = lattica("start")
    assert result.exit_code == 1
    assert "node.log" in result.output and "MemoryError" in result.output and "line 3\n" not in result.output


def test_a_node_that_says_nothing_in_time_is_given_up() -> None:
    ready, theirs = os.pipe()
    silent, death = os.pipe()
    with pytest.raises(NodeDiedError, match=r"within 0\.01 s"):
        await_ready(ready, silent, "/log", wait_s=0.01)
    for fd in (ready, theirs, silent, death):
        os.close(fd)


def test_a_death_is_seen_though_what_the_node_started_holds_its_pipe() -> None:
    ready, theirs = os.pipe()
    silent, death = os.pipe()
    os.close(death)
    with pytest.raises(NodeDiedError, match="ended while it started"):
        await_ready(ready, silent, "/log")
    for fd in (ready, theirs, silent):
        os.close(fd)


def test_an_error_in_pieces_is_read_to_its_end() -> None:
    ready, theirs = os.pipe()
    silent, death = os.pipe()
    os.write(theirs, b'{"error": "n')
    os.write(theirs, b'o"}\n')
    os.close(theirs)
    with pytest.raises(LatticaError, match=r"^no$"):
        await_ready(ready, silent, "/log")
    for fd in (ready, silent, death):
        os.close(fd)


def test_in_the_foreground_the_command_ends_with_the_node_and_says_how(
    lattica: Lattica, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.Signals, "wait", lambda *_: -9)
    result = lattica("start", "--block")
    assert result.exit_code == 1
    assert "Ctrl-C" in result.output and "killed by SIGKILL" in result.output


def test_a_node_that_was_told_to_end_ended_well(
    lattica: Lattica, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.Signals, "wait", lambda *_: 0)
    assert lattica("start", "--block").exit_code == 0
    assert exit_text(3) == "exit code 3"


class Told:
    """A node that is interrupted twice while it is waited for."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def send_signal(self, number: int) -> None:
        self.heard.append(number)

    def wait(self) -> int:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        return -9


def test_in_the_foreground_a_first_signal_asks_the_node_to_end_and_a_second_kills_it() -> None:
    before = signal.getsignal(signal.SIGINT)
    node: Any = Told()
    with daemon.Signals() as signals:
        signals.hand_on_to(node)
        assert signals.wait(node) == 0
    assert node.heard == [signal.SIGTERM, signal.SIGKILL]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_comes_before_there_is_a_node_is_handed_on_to_it() -> None:
    node: Any = Told()
    with daemon.Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signals.hand_on_to(node)
    assert node.heard == [signal.SIGTERM]


def test_a_node_that_was_told_to_end_while_it_started_is_no_error(lattica: Lattica, stage: Stage) -> None:
    spawn, ended = stage.spawn, list[Any]()

    def spawn_and_tell(*args: Any) -> daemon.Daemon:
        begun = spawn(*args)
        begun.process = type("Ending", (), {"send_signal": lambda *_: None, "wait": lambda _: ended.append(1) or 0})()
        signal.raise_signal(signal.SIGTERM)
        return begun

    stage.words = b'{"error": "the node ended"}\n'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daemon, "spawn", spawn_and_tell)
        result = lattica("start", "--block")
    assert result.exit_code == 0 and result.output == "" and ended
    assert stage.begun is not None and not stage.begun.killed, "it tidies up"


def test_a_long_log_is_put_aside_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "LOG_BYTES_MAX", 10)
    (tmp_path / "node.log").write_text("x" * 11)
    os.close(daemon._open_log(str(tmp_path)))
    assert (tmp_path / "node.log").read_text() == ""
    assert (tmp_path / "node.log.1").read_text() == "x" * 11
