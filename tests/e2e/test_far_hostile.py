"""A hostile member at a real node, which it calls by hand; and programs that a job names, which nobody knows."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from lattica.codec.messages import Confined, FromZygote
from lattica.local.stream import Stream
from lattica.node import confine
from lattica.node.spawn import spawn_zygote

pytestmark = pytest.mark.e2e


def said_by(python: str, hidden: str) -> tuple[Confined, str]:
    """The first word of a zygote of this interpreter, and all that it printed."""
    fd, pid, said = spawn_zygote(python, "[]", [], hidden)
    stream = Stream(socket.socket(fileno=fd), FromZygote)
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            messages = stream.receive()
            if messages:
                assert isinstance(messages[0], Confined)
                return messages[0], ""
            if messages is None:
                break
            time.sleep(0.02)
        return Confined(False, False, "it said nothing"), os.pread(said, 1 << 16, 0).decode()
    finally:
        stream.close()
        os.waitpid(pid, 0)
        os.close(said)


@pytest.fixture
def hidden(tmp_path: Path) -> str:
    (tmp_path / "identity").mkdir(mode=0o700)
    (tmp_path / "identity" / "node.key").write_text("secret")
    return confine.fingerprints([str(tmp_path / "identity")])


def test_a_program_that_a_job_names_as_its_interpreter_begins_where_the_key_is_hidden(
    hidden: str, tmp_path: Path
) -> None:
    """A task, confined, writes a program; then its submitter's next job says that this is its Python."""
    protection, _ = said_by(sys.executable, hidden)
    if not protection.mounts:
        pytest.skip(f"this machine: {protection.reason}")
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/identity/node.key\necho ran\n")
    program.chmod(0o755)
    _, printed = said_by(str(program), hidden)
    assert "ran" in printed and "secret" not in printed


def test_another_interpreter_says_what_its_workers_cannot_see_as_ours_does(hidden: str) -> None:
    another = str(Path(sys.executable).with_name(f"python{sys.version_info[0]}.{sys.version_info[1]}"))
    if another == sys.executable or not os.path.exists(another):
        pytest.skip("there is no second name of this interpreter")
    assert said_by(another, hidden)[0] == said_by(sys.executable, hidden)[0]


def test_a_program_that_is_not_there_is_said_at_once(hidden: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        spawn_zygote(str(tmp_path / "nothing"), "[]", [], hidden)
