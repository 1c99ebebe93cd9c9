"""A node as its clients meet it, message by message: whom it serves, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lattica.codec import messages as m
from lattica.local.stream import Stream
from lattica.node import paths

ANSWER_S = 10.0


class Client:
    """A driver or command by hand: sends messages, and waits for one of a kind."""

    def __init__(self, address: str, kind: str = "driver", **job: object) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address)
        self.stream = Stream(sock, m.FromNode, takes_fds=True)
        self.inbox: list[Any] = []
        self.fds: list[int] = []
        self.number = 0  # once it is welcome
        job = {"sys_path": sys.path, "cwd": os.getcwd(), **job}
        self.send(m.Hello(m.PROTOCOL, os.getpid(), kind, sys.executable, job))

    def send(self, *messages: Any) -> None:
        for message in messages:
            self.stream.queue(message)
        self.stream.flush()

    def expect(self, kind: type[Any], within_s: float = ANSWER_S) -> Any:
        """The next message of this kind. Raises EOFError when the node has closed the connection."""
        deadline = time.monotonic() + within_s
        poll = select.poll()
        poll.register(self.stream.fd, select.POLLIN)
        while not any(isinstance(message, kind) for message in self.inbox):
            assert poll.poll(max(0.0, deadline - time.monotonic()) * 1000), f"no {kind.__name__}; {self.inbox}"
            messages = self.stream.receive()
            if messages is None:
                raise EOFError
            for message in messages:
                if isinstance(message, m.Welcome | m.ActorConnected) or getattr(message, "connect", False):
                    self.fds.append(self.stream.take_fd())
            self.inbox += messages
        return self.inbox.pop(next(i for i, message in enumerate(self.inbox) if isinstance(message, kind)))

    def status(self) -> Any:
        self.send(m.StateRequest(1, "status"))
        return self.expect(m.State).data

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()
        self.stream.close()


def start(data_dir: Path, *options: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """A node process, and what it said when it was ready."""
    ready, theirs = os.pipe()
    command = [sys.executable, "-P", "-m", "lattica.node.main", "--data-dir", str(data_dir), *options]
    process = subprocess.Popen(
        [*command, "--ready-fd", str(theirs)], pass_fds=(theirs,), stderr=subprocess.DEVNULL, start_new_session=True
    )
    os.close(theirs)
    with os.fdopen(ready) as said:
        return process, json.loads(said.readline())


@pytest.fixture
def node(home: Path, tmp_path: Path) -> Iterator[str]:
    """The socket of a node with two CPUs, which must end cleanly after the test."""
    process, said = start(tmp_path / "data", "--num-cpus", "2", "--object-store-memory", str(64 << 20))
    yield said["socket"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0
    assert not os.path.exists(said["socket"]) and paths.running_node(str(tmp_path / "data")) is None


@pytest.fixture
def connect(node: str) -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def connect(*given: Any, **job: Any) -> Client:
        client = Client(node, *given, **job)
        clients.append(client)
        client.number = client.expect(m.Welcome).client
        return client

    yield connect
    for client in clients:
        client.close()


def eventually(fact: Callable[[], Any], within_s: float = 5.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (said := fact()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return said


def create(client: Client, actor: bytes, **given: Any) -> int:
    """An actor that never gets ready (its spec is noise); the pid of its worker."""
    client.send(m.ActorCreate(1, actor, b"", {}, "Noise", **given))
    return int(client.expect(m.ActorConnected).pid)


# -- who is served ---------------------------------------------------------------------------------------------------


def test_a_client_of_another_protocol_is_told_which_side_to_update(node: str) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(node)
    stream = Stream(sock, m.FromNode)
    stream.queue(m.Hello(m.PROTOCOL + 1, os.getpid(), "driver", sys.executable))
    stream.flush()
    assert eventually(
        lambda: next((x for x in stream.receive() or [] if isinstance(x, m.Refused)), None)
    ).reason.endswith("update the node's lattica")
    stream.close()


def test_noise_and_what_a_role_may_not_send_end_that_client_alone(node: str, connect: Callable[..., Client]) -> None:
    driver, command = connect(), connect("command")
    with socket.socket(socket.AF_UNIX) as noise:
        noise.connect(node)
        noise.sendall(b"\xff" * 4 + os.urandom(10_000))  # too long a frame
        assert noise.recv(1) == b""
    command.send(m.LeaseRequest(1, {"CPU": 1}))
    with pytest.raises(EOFError):
        command.expect(m.LeaseGranted)
    bold = connect()
    bold.send(m.Shutdown(node=True))
    with pytest.raises(EOFError):
        bold.expect(m.State)
    assert driver.status()["jobs"]


def test_a_second_node_on_one_directory_says_who_has_it(node: str, tmp_path: Path) -> None:
    process, said = start(tmp_path / "data")
    assert "runs on" in said["error"] and process.wait(5) == 1


def test_an_object_must_lie_in_a_span_of_its_maker(connect: Callable[..., Client]) -> None:
    owner, thief = connect(), connect()
    owner.send(m.SpanRequest(1, 8 << 20))
    span = owner.expect(m.SpanGrant)
    thief.send(m.Seal(b"t" * 16, span.offset, 100))
    with pytest.raises(EOFError):
        thief.expect(m.State)
    owner.send(m.Seal(b"o" * 16, span.offset, 100), m.Resolve([b"o" * 16]))
    assert owner.expect(m.Located).size == 100


def test_a_store_that_stays_full_says_who_holds_it(connect: Callable[..., Client]) -> None:
    greedy, late = connect(), connect()
    greedy.send(m.SpanRequest(1, 60 << 20))
    span = greedy.expect(m.SpanGrant)
    late.send(m.SpanRequest(1, 1 << 30), m.SpanRequest(2, 16 << 20), m.SpanRequest(3, 16 << 20))
    assert "larger than the whole object store" in late.expect(m.SpanDenied).detail
    greedy.expect(m.SpanWanted)
    denied = late.expect(m.SpanDenied)
    assert f"a program, pid {os.getpid()} (60 MiB)" in denied.detail
    late.expect(m.SpanDenied)  # the third, whose time may be over a moment later
    greedy.send(m.SpanReturn(span.offset, span.size))
    late.send(m.SpanRequest(4, 16 << 20))
    assert late.expect(m.SpanGrant).request == 4


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_a_holder_with_more_is_asked_and_the_other_driver_gets_its_turn(connect: Callable[..., Client]) -> None:
    greedy, late = connect(), connect()
    greedy.send(m.LeaseRequest(1, {"CPU": 1}), m.LeaseRequest(2, {"CPU": 1}))
    lease = greedy.expect(m.LeaseGranted)
    greedy.expect(m.LeaseGranted)
    late.send(m.LeaseRequest(1, {"CPU": 1}))
    greedy.expect(m.LeaseWanted)
    greedy.send(m.LeaseReturn(lease.lease))
    assert late.expect(m.LeaseGranted).client != lease.client  # a worker belongs to one job


def test_a_job_leaves_nothing_but_its_detached_actors_and_they_leave_nothing_either(
    connect: Callable[..., Client],
) -> None:
    watcher, driver = connect("command"), connect()
    detached, own = (os.urandom(16) for _ in range(2))
    create(driver, own, name="own", namespace="lab")
    create(driver, detached, name="stays", namespace="lab", detached=True, max_restarts=-1)
    driver.close()
    assert eventually(lambda: [job for job in watcher.status()["jobs"] if job["ended"] and job["workers"] == 1])
    other = connect()
    other.send(m.ActorLookup(1, "own", "lab"), m.ActorLookup(2, "stays", "lab"))
    assert other.expect(m.ActorRefused).kind == "not-found" and other.expect(m.ActorFound).actor == detached
    other.send(m.ActorKill(detached))
    assert eventually(lambda: not any(job["ended"] for job in watcher.status()["jobs"])), watcher.status()


def test_a_driver_that_dies_is_missed_even_if_its_child_keeps_the_socket(
    node: str, connect: Callable[..., Client]
) -> None:
    watcher = connect("command")
    child_ends, keeps = os.pipe()
    pid = os.fork()
    if pid == 0:  # the driver
        try:
            Client(node).expect(m.Welcome)
            if os.fork() == 0:
                os.close(keeps)
                os.read(child_ends, 1)  # until the test lets go
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    try:
        assert eventually(lambda: watcher.status()["jobs"] == [] and watcher.status()["workers"] == [])
    finally:
        os.close(keeps)
        os.close(child_ends)


def test_a_dead_zygote_is_replaced_and_its_workers_live_on(connect: Callable[..., Client]) -> None:
    driver = connect()
    first = create(driver, os.urandom(16))
    zygote = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(zygote, signal.SIGKILL)
    pids = [create(driver, os.urandom(16)) for _ in range(3)]
    assert len({first, *pids}) == 4 and os.path.exists(f"/proc/{first}")
