"""What ssh is told, what its failures mean, and what a command's output becomes."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import sys

import pytest

from lattica.errors import ConfigError, PeerUnreachableError
from lattica.launch import nodes, shells
from lattica.launch.cluster import Host, Login, Start
from lattica.launch.shells import Done, LocalShell, SshShell, ssh_command


def test_ssh_never_asks_and_takes_the_users_options_first() -> None:
    words = ssh_command(Login("gpu-1", 2222, "you", "/k", {"ConnectTimeout": "3"}))
    assert words[:2] == ["ssh", "-T"] and words[-2:] == ["--", "gpu-1"]
    options = [word for word in words[2:-2] if word != "-o"]
    assert options[:5] == ["ConnectTimeout=3", "Port=2222", "User=you", "IdentityFile=/k", "IdentitiesOnly=yes"]
    assert "BatchMode=yes" in options
    assert not any("StrictHostKeyChecking" in word for word in words)


def test_the_command_survives_two_shells() -> None:
    """The login shell of the host and the `sh` that it starts: words arrive as they are, ~ is the home folder there."""
    host = Host("x", Start(), Login("x"), python="~/a b/bin/python", data_dir="~/it's here")
    shell = SshShell(host, Login("x"))
    code = 'import os, sys; print(os.environ["LATTICA_DATA_DIR"], os.environ["PATH"].split(":")[0], sys.argv[1:])'
    line = shell.command([sys.executable, "-c", code, "$HOME", "a  b", "it's", '"', "\n"])[-1]
    done = subprocess.run(["sh", "-c", line], env={"HOME": "/h"}, capture_output=True, text=True, check=True)
    assert done.stdout == "/h/it's here /h/a b/bin ['$HOME', 'a  b', \"it's\", '\"', '\\n']\n"
    assert shlex.split(line)[:3] == ["exec", "sh", "-c"]


@pytest.mark.parametrize(
    ("said", "message", "do_next"),
    [
        ("Host key verification failed.", "not in known_hosts", "compare the fingerprint: ssh -p 5 you@gpu"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "another",
            "ssh-keygen",
        ),
        ("you@gpu: Permission denied (publickey).", "does not let this user in", "ssh -p 5 you@gpu"),
        ("ssh: connect to host gpu port 5: Connection refused", "nobody listens", "`port`"),
        ("ssh: Could not resolve hostname gpu: Name or service not known", "not known", "`host`"),
        ("ssh: connect to host gpu port 5: Connection timed out", "does not answer", "firewalls"),
        ("", "said nothing", "ssh -p 5 you@gpu"),
    ],
)
def test_a_failure_of_ssh_says_what_to_do(said: str, message: str, do_next: str) -> None:
    login = Login("gpu", 5, "you")
    with pytest.raises(PeerUnreachableError) as raised:
        SshShell(Host("gpu", Start(), login), login).require(Done(255, "", said))
    assert message in raised.value.message and do_next in raised.value.do_next


def test_a_command_that_fails_there_speaks_for_itself() -> None:
    said = "Error: a node (pid 5) runs on /d already\n  do next   use it\n"
    error = nodes.failed(Done(1, "", said), "the node did not start")
    assert (error.message, error.do_next) == ("the node did not start: a node (pid 5) runs on /d already", "use it")


def test_json_is_found_behind_the_greeting_of_a_login_shell() -> None:
    done = Done(0, '[motd] Welcome {you}\n[a\n{\n  "node": "x"\n}\nbye\n', "")
    assert nodes._json_of(done, "what") == {"node": "x"}


def test_a_start_is_told_what_the_file_says() -> None:
    start = Start(0.5, 2, {"tpu": 1}, {"site": "home"}, "4GiB", "127.0.0.1:0")
    assert nodes.start_words(start, "lab", "gpu") == [
        "--labels", "site=home,lattica.cluster=lab,lattica.host=gpu", "--num-cpus", "0.5", "--num-gpus", "2",
        "--resources", '{"tpu": 1}', "--object-store-memory", "4GiB", "--listen", "127.0.0.1:0",
    ]  # fmt: skip


def test_another_release_on_the_host_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"it has lattica 99\.1\.0"):
        nodes.require_ready(nodes.Facts("x", "3.11.1", "99.1.0", {}))
    with pytest.raises(ConfigError, match="has no lattica"):
        nodes.require_ready(nodes.Facts("x", "3.11.1", "", {"trouble": "ModuleNotFoundError: lattica"}))


def test_lines_of_a_command_are_shown_as_they_come_and_its_code_is_a_shells() -> None:
    shell = LocalShell("/d")
    shown: list[str] = []
    argv = shell.command(["sh", "-c", "echo one; echo two >&2; printf 'no end'; kill -9 $$"])
    code = asyncio.run(shells.stream(shell, argv, shown.append, lambda line: shown.append(f"err {line}")))
    assert code == 137
    assert sorted(shown) == ["err two", "no end", "one"]


def test_a_command_that_hangs_is_ended() -> None:
    shell = LocalShell("/d")
    with pytest.raises(PeerUnreachableError, match=r"no answer within 0\.05 s"):
        asyncio.run(shells.run(shell, shell.command(["sleep", "60"]), timeout_s=0.05))
