"""Clusters whose hosts ssh reaches: a real OpenSSH server on this machine, two data directories as two hosts."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import RUN_VARIABLE, Sessions, eventually
from tests.e2e.machines import COMMAND

SSHD = shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))
pytestmark = pytest.mark.skipif(
    not (SSHD and shutil.which("ssh") and shutil.which("ssh-keygen")), reason="OpenSSH's server is not installed"
)
PRIVSEP = Path("/run/sshd")
"""Where a server begun by root wants to be: Debian makes it when its service starts."""


@dataclass
class Server:
    """An OpenSSH server, and the files of a user who may log in."""

    folder: Path
    port: int
    ports: dict[str, int]  # where the node of each host listens

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def file(self, *names: str, setup: str = "", extra: str = "", common: str = "", options: str = "") -> Path:
        """A cluster's file with these hosts, each a data directory. common: keys of the provider."""
        hosts = "".join(
            f"    - {{host: 127.0.0.1, name: {name}, data_dir: {self.folder}/{name}, "
            f'listen: "127.0.0.1:{self.ports[name]}"}}\n'
            for name in names
        )
        text = f"""
name: lab
provider:
  type: ssh
  user: {getpass.getuser()}
  port: {self.port}
  key: {self.folder}/key
  python: {sys.executable}
{common}
  options: {{UserKnownHostsFile: {self.known_hosts}, GlobalKnownHostsFile: none, {options}}}
  hosts:
{hosts}{extra}
start: {{num_cpus: 1, object_store_memory: 16MiB}}
{setup}
"""
        file = self.folder / "lab.yaml"
        file.write_text(text)
        return file


@pytest.fixture(scope="module")
def sshd(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves until the module's end. Its sessions have this run's folders, and its mark."""
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    port, *others = free_ports(3)
    handed = ("TMPDIR", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "PYTHONPATH", RUN_VARIABLE)
    variables = " ".join(f'"{name}={os.environ[name]}"' for name in handed)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
        f"KbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 50\nSetEnv {variables}\n"
    )
    made = os.geteuid() == 0 and not PRIVSEP.exists()
    if made:
        PRIVSEP.mkdir(mode=0o755)
    log = (folder / "sshd.log").open("wb")
    assert SSHD is not None
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        assert eventually(lambda: _answers(port)), (folder / "sshd.log").read_text()
        server = Server(folder, port, dict(zip("ab", others)))
        server.known_hosts.write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
        yield server
    finally:
        process.terminate()
        process.wait()
        log.close()
        if made:
            PRIVSEP.rmdir()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]


def _answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def server(sshd: Server, sessions: Sessions) -> Iterator[Server]:
    """With no cluster left after the test."""
    sessions.end()
    yield sshd
    done = run("down", str(sshd.file("a", "b")), "--force")
    assert done.returncode == 0, done.stderr
    for name in ("a", "b"):
        shutil.rmtree(sshd.folder / name, ignore_errors=True)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=100)


def ok(*words: str) -> str:
    done = run(*words)
    assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
    return done.stdout


def states(text: str) -> dict[str, str]:
    return {host["host"]: host["state"] for host in json.loads(text)["hosts"]}


def test_hosts_come_up_in_one_mesh_and_go_down(server: Server) -> None:
    file = str(server.file("a", "b"))
    first = ok("up", file, "--json")
    assert states(first) == {"a": "started", "b": "started"}
    assert states(ok("up", file, "--json")) == {"a": "runs already", "b": "runs already"}
    hosts: list[Any] = json.loads(ok("status", file, "--json"))["hosts"]
    assert {host["node"]["mesh"] for host in hosts} == {json.loads(first)["mesh"]}
    done = run("exec", file, "--", "sh", "-c", "lattica whoami --json | grep '\"name\"'; exit 4")
    assert done.returncode == 4
    lines = sorted(" ".join(line.split()) for line in done.stdout.splitlines())
    assert lines == ['a | "name": "a",', 'b | "name": "b",']
    ticket = ok("exec", file, "--host", "b", "--", "cat", f"{server.folder}/a/node.log")
    assert "lat1" not in ticket, "a ticket is in no log"
    assert "2 nodes stopped" in ok("down", file)
    assert "0 nodes stopped" in ok("down", file)
    assert run("status", file).returncode == 1
    assert states(ok("up", file, "--json")) == {"a": "started", "b": "started"}, "both return"


def test_a_host_that_cannot_be_reached_says_why_and_the_others_are_up(server: Server) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        bad = f"    - {{host: 127.0.0.1, name: dark, port: {closed.getsockname()[1]}}}\n"
        done = run("up", str(server.file("a", extra=bad)))
    assert done.returncode == 1 and "1 of 2 hosts are up" in done.stdout
    assert "dark: nobody listens for ssh there" in done.stderr and "do next" in done.stderr


def test_a_host_whose_key_is_not_known_is_refused(server: Server) -> None:
    known = server.known_hosts.read_text()
    try:
        server.known_hosts.write_text("")
        done = run("up", str(server.file("a")))
        assert done.returncode == 1
        assert "a: the key of the host is not in known_hosts" in done.stderr
        assert "compare the fingerprint: ssh -p" in done.stderr
        other = (server.folder / "key.pub").read_text()
        server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {other}")
        done = run("up", str(server.file("a")))
        assert done.returncode == 1 and "another than in known_hosts" in done.stderr
    finally:
        server.known_hosts.write_text(known)
    assert not (server.folder / "a").exists()


def test_the_set_up_runs_where_no_node_does_and_its_failure_is_quoted(server: Server) -> None:
    trace = server.folder / "trace"
    file = str(server.file("a", setup=f"setup:\n  - 'echo set-up >> {trace}'"))
    ok("up", file)
    ok("up", file)
    assert trace.read_text() == "set-up\n"
    done = run("up", str(server.file("a", "b", setup="setup: ['echo no disk >&2; exit 7']")))
    assert done.returncode == 1 and "1 of 2 hosts are up" in done.stdout
    assert "b: setup failed at `echo no disk >&2; exit 7`: no disk" in done.stderr


def test_a_host_without_such_a_python_says_what_to_write(server: Server) -> None:
    bad = "    - {host: 127.0.0.1, name: bare, python: /no/such/python}\n"
    done = run("up", str(server.file(extra=bad)))
    assert done.returncode == 1
    assert "bare: /no/such/python cannot be run there" in done.stderr and "`python:`" in done.stderr


def test_a_node_started_by_hand_is_left(server: Server) -> None:
    ok("start", "--data-dir", f"{server.folder}/a", "--num-cpus", "0", "--object-store-memory", "16MiB")
    try:
        assert "a  left: it is started by hand" in ok("down", str(server.file("a")))
    finally:
        ok("stop", "--data-dir", f"{server.folder}/a")


def test_a_host_taken_out_of_the_file_is_told_of_and_pruned_on_demand(server: Server) -> None:
    ok("up", str(server.file("a", "b")))
    report = json.loads(ok("up", str(server.file("a")), "--json"))
    assert report["left_over"] == ["b"]
    assert "recovery" not in str(report["notes"]), "that was said when the mesh was founded"
    # ssh knows the address of b by its name alone, as in a user's ~/.ssh/config.
    file = server.file("a", common=f"  data_dir: {server.folder}/b", options="HostName: 127.0.0.1, HostKeyAlias: lab")
    key = (server.folder / "host_key.pub").read_text()
    known = server.known_hosts.read_text()
    server.known_hosts.write_text(f"{known}lab {key}")
    try:
        assert states(ok("up", str(file), "--json", "--prune")) == {"a": "runs already", "b": "pruned"}
        assert json.loads(ok("up", str(file), "--json"))["left_over"] == []
    finally:
        server.known_hosts.write_text(known)
