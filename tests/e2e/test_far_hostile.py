"""A hostile member at a real node, which it calls by hand; and programs that a job names, which nobody knows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

import lattica
from lattica.codec import far
from lattica.codec.messages import Confined, FromZygote
from lattica.ids import JobId
from lattica.local.stream import Stream
from lattica.mesh import credentials
from lattica.mesh.calls import Pipe
from lattica.mesh.identity import PeerId
from lattica.mesh.peer import Peer
from lattica.mesh.services import method, service
from lattica.mesh.tickets import parse_ticket
from lattica.mesh.tokens import sign_token
from lattica.node import confine
from lattica.node.spawn import spawn_zygote
from tests.codec.test_far import EXAMPLES
from tests.e2e.far import Mesh, far_mesh

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


# -- a member at a node


@service("node")
class Ear:
    """The other way of a link: what the node says to us."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    @method(role=None, pipe=True)
    async def link(self, *, pipe: Pipe) -> None:
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pipe.listen(lambda item: self.said.extend(far.decode(item)), lambda _: over.done() or over.set_result(None))
        await over


class Intruder:
    """A peer with a certificate, that speaks to the node by hand."""

    def __init__(self, peer: Peer, node: PeerId) -> None:
        self.peer, self.node, self.ear, self.pipe = peer, node, Ear(), None
        peer.serve(self.ear, offered=False)
        self.reason = ""

    async def say(self, *items: Any) -> None:
        """Messages, or bytes that are none; over a new link if the last one has ended."""
        if self.pipe is None or self.pipe.over is not None:
            self.pipe = await self.peer.pipe(self.node, "node.link", timeout_s=10)
            self.pipe.listen(lambda _: None, self._ended)
        for item in items:
            data = item if isinstance(item, bytes) else far.encode([item])
            self.pipe.send((data,), len(data))
        await asyncio.sleep(0.02)

    def _ended(self, reason: str) -> None:
        self.reason = reason

    async def hears(self, kind: type, within_s: float = 5.0) -> Any:
        """The next message of this kind."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            for message in self.ear.said:
                if isinstance(message, kind):
                    self.ear.said.remove(message)
                    return message
            await asyncio.sleep(0.02)
        return None

    def job(self, id: bytes = b"", **fields: Any) -> far.JobIs:
        """A job of ours, signed with our own key."""
        mine, now = self.peer.credentials, time.time()
        id = id or os.urandom(16)
        token = sign_token(JobId(id), {}, now, now + 600, signer=mine.identity, chain=mine.chain, mesh=mine.mesh)
        return far.JobIs(id, token, self.peer.id, **fields)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with far_mesh(tmp_path_factory.mktemp("far"), a=2) as mesh:
        yield mesh


@contextlib.asynccontextmanager
async def intruder(mesh: Mesh, folder: Path, roles: str) -> AsyncIterator[Intruder]:
    ticket = parse_ticket(mesh.nodes["a"].ticket(*(word for role in roles.split(",") for word in ("--role", role))))
    place = folder / roles
    place.mkdir(mode=0o700)
    peer = Peer(credentials.join(str(place), ticket, time.time()))
    node = PeerId(bytes.fromhex(mesh.ids["a"]))
    one = Intruder(peer, node)
    await peer.start()
    try:
        for known, addresses in ticket.peers:
            peer.know(known, addresses)
        yield one
    finally:
        await peer.stop()


@lattica.remote
class Counter:
    def add(self) -> int:
        self.count = getattr(self, "count", 0) + 1
        return self.count


@lattica.remote
def seven() -> int:
    return 7


CPU = {"CPU": 1.0}


@pytest.mark.parametrize("roles", ["relay", "store", "execute"])
async def test_who_may_not_submit_gets_no_worker_ends_no_actor_and_reads_no_checkpoint(
    mesh: Mesh, tmp_path: Path, roles: str
) -> None:
    actor = Counter.remote()
    assert lattica.get(actor.add.remote()) == 1
    id = actor._actor_id
    async with intruder(mesh, tmp_path, roles) as one:
        paper = one.job()
        await one.say(paper, far.AskLease(1, paper.job, CPU), far.ActorEnd(id), far.ActorWanted(id))
        await one.say(far.HoldActor(2, id), far.KeptWanted(b"c" * 36), far.JobOver(b"j" * 16), far.Stop(b"o" * 16))
        if roles == "relay":
            end = time.monotonic() + 5
            while one.pipe is not None and one.pipe.over is None and time.monotonic() < end:
                await asyncio.sleep(0.02)
            assert one.pipe is not None and one.pipe.over is not None and not one.ear.said
        elif roles == "store":
            await asyncio.sleep(0.5)
            assert not one.ear.said or {type(message) for message in one.ear.said} <= {far.Taken}
        else:
            refused = await one.hears(far.LeaseNot)
            assert refused is not None and refused.never and "refused" in refused.reason
            assert await one.hears(far.ActorIsDown) is not None, "it has no handle"
            held = await one.hears(far.ActorHeld)
            assert held is not None and held.reason, "this actor has no name"
            assert await one.hears(far.NotKept) is not None
        assert await one.hears(far.LeaseIs, 0.1) is None
    assert lattica.get(actor.add.remote()) == 2


async def test_a_member_without_a_handle_calls_no_actor_though_it_knows_id_and_incarnation(
    mesh: Mesh, tmp_path: Path
) -> None:
    """It tries all workers that there may be, with a job of its own, and whatever key."""
    actor = Counter.remote()
    assert lattica.get(actor.add.remote()) == 1
    async with intruder(mesh, tmp_path, "submit,execute") as one:
        paper = one.job()
        await one.say(paper, far.ActorWanted(actor._actor_id))
        assert await one.hears(far.ActorIsDown) is not None
        first = 1 if one.node < one.peer.id else 2
        for number in range(300):
            key = os.urandom(16) if number % 2 else b""
            for attempt in (0, 1):
                carrier = first + 2 * (2 * number + attempt)
                open = far.Open(carrier, number // 2, 1, paper.job, 1, actor._actor_id, 1, key=key)
                data = far.encode([open])
                assert one.pipe is not None
                one.pipe.send((data,), len(data))
        await asyncio.sleep(1.0)
        reasons = [message.reason for message in one.ear.said if isinstance(message, far.Closed)]
        assert len(reasons) == 600 and not any(isinstance(message, far.Opened) for message in one.ear.said)
        assert "you were given no handle of this actor" in reasons, "the right worker was among them"
    assert lattica.get(actor.add.remote()) == 2


async def test_a_member_that_guesses_ids_is_soon_answered_as_if_there_were_none(mesh: Mesh, tmp_path: Path) -> None:
    """It was told the id of one object, and tries those that follow; then even a known one is nowhere for it."""
    known = lattica.put(b"x" * 300_000)
    id = bytes.fromhex(known.hex())
    node = await asyncio.to_thread(lambda: lattica.get(lattica.remote(len).remote(known), timeout=20))
    assert node == 300_000
    number = int.from_bytes(id[8:], "big") >> 16
    async with intruder(mesh, tmp_path, "store") as one:
        await one.say(far.Want(id, now=True))
        before = await one.hears(far.Here | far.Nowhere)  # type: ignore[arg-type]
        for start in range(1, 20_001, 1000):
            guesses = [id[:8] + ((number + k) << 16).to_bytes(8, "big") for k in range(start, start + 1000)]
            ways = [
                far.Took(0, guess, 1, True) if k % 2 else far.Want(guess, now=True) for k, guess in enumerate(guesses)
            ]
            await one.say(far.encode(ways))
        await asyncio.sleep(0.5)
        one.ear.said.clear()
        more = [far.Want(id[:8] + bytes([k]) * 8, now=True) for k in range(1, 200)]  # what has come back meanwhile
        await one.say(far.encode([*more, far.Took(0, id, 1, True), far.Want(id, now=True)]))
        await asyncio.sleep(0.5)
        after = {type(message) for message in one.ear.said if getattr(message, "object", b"") == id}
    assert after == {far.Nowhere} and before is not None
    assert lattica.get(seven.remote(), timeout=20) == 7


async def test_a_member_that_submits_takes_over_no_job_of_others_and_ends_none(mesh: Mesh, tmp_path: Path) -> None:
    async with intruder(mesh, tmp_path, "submit") as victim:
        theirs = victim.job()
        await victim.say(theirs, far.AskLease(1, theirs.job, CPU))
        lease = await victim.hears(far.LeaseIs)
        assert lease is not None
        (tmp_path / "other").mkdir()
        async with intruder(mesh, tmp_path / "other", "submit") as thief:
            await thief.say(thief.job(theirs.job), far.JobOver(theirs.job), far.GiveBack(lease.lease))
            await thief.say(far.KillWorker(lease.lease), far.EndWorker(lease.worker, True), far.DropAsk(1))
            await thief.say(far.Open(1 if thief.peer.id < victim.peer.id else 2, lease.worker, 1, theirs.job, 1))
            await thief.say(far.Output(theirs.job, "it", 1, 1, ["a line of nobody's"]))
            await asyncio.sleep(0.5)
            assert await thief.hears(far.LeaseIs, 0.1) is None
        assert await victim.hears(far.WorkerOver, 0.5) is None, "its worker lives"
        await victim.say(far.JobOver(theirs.job))
        assert await victim.hears(far.WorkerOver) is not None, "and ends when it says so"


async def test_whatever_a_member_says_without_any_of_its_prerequisites_the_node_lives(
    mesh: Mesh, tmp_path: Path
) -> None:
    """Each message as it stands, after a job of its own, and bent."""
    rng = Random(7)
    async with intruder(mesh, tmp_path, "submit,execute,store") as one:
        mine = one.job()
        for _ in range(2):
            for example in EXAMPLES:
                changes = {name: mine.job for name in ("job",) if name in example.__struct_fields__}
                await one.say(example, msgspec.structs.replace(example, **changes))
            await one.say(mine)
        for _ in range(300):
            item = bytearray(far.encode(rng.sample(EXAMPLES, 3)))
            for _ in range(rng.randint(1, 4)):
                item[rng.randrange(len(item))] = rng.randrange(256)
            await one.say(bytes(item))
        await one.say(b"\xc1", os.urandom(1000))
        assert lattica.get(seven.remote(), timeout=20) == 7
        await one.say(mine, far.AskLease(9, mine.job, CPU))
        assert await one.hears(far.LeaseIs) is not None, "and serves it as before"
    assert lattica.get(seven.remote(), timeout=20) == 7
    mesh.require_quiet_logs()
