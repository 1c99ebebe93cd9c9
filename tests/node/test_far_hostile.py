"""A member that keeps to no rule: what it sends ends its own link at most, shows it nothing, and fills no memory."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.codec import far
from lattica.codec import messages as m
from lattica.errors import RemoteProtocolError
from lattica.mesh.roles import Role
from lattica.node import far_hosting, far_lending, far_workers, links, look, packages, views
from lattica.node import kept as kept_module
from lattica.node.block_fetch import Fetched
from lattica.node.kept import COMING_EACH_MAX, CONTENT_MAX_BYTES, PIECE_BYTES
from lattica.node.links import Link
from lattica.node.logs import LogFiles
from lattica.node.package_desk import _unpack
from lattica.objectstore.cid import cid_named, manifest_of
from lattica.scheduler import claims
from lattica.scheduler import given as given_by
from lattica.scheduler import load as loads
from lattica.testing.far_objects import World
from lattica.testing.loop import run_virtually
from tests.conftest import examples
from tests.node.test_group_desk import ONE
from tests.node.test_group_desk import World as Groups
from tests.node.test_kept import Desk, Line
from tests.node.test_kept import run as run_kept

# -- packages


def packed(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry, data in entries:
            tar.addfile(entry, io.BytesIO(data))
    return gzip.compress(plain.getvalue())


def file(name: str, data: bytes = b"x", **pax: str) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size, entry.pax_headers = len(data), pax
    return entry, data


def test_a_file_with_holes_is_refused_before_they_are_written_as_zeros(tmp_path: Path) -> None:
    """A kilobyte says that it is a tebibyte, nearly all of it holes."""
    holes = b"1\n0\n1\n".ljust(512, b"\0") + b"x" * 512
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    for bomb in (
        packed(file("bomb", holes, **sparse, **{"GNU.sparse.name": "bomb"})),
        packed(file("bomb", b"x", **{"GNU.sparse.map": f"0,1,{1 << 40},0", "GNU.sparse.size": str(1 << 40)})),
        packed(file("bomb", b"x", size=str(1 << 40))),
    ):
        with pytest.raises(RemoteProtocolError):
            packages.unpack(bomb, str(tmp_path / "there"))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 4096


def test_a_package_of_thousands_of_folders_within_each_other_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RemoteProtocolError, match="named"):
        packages.unpack(packed(file("/".join(["d"] * (packages.DEPTH_MAX + 1)))), str(tmp_path / "there"))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"Z"])
def test_what_is_neither_file_nor_folder_nor_link_is_refused_and_nothing_of_it_stays(
    kind: bytes, tmp_path: Path
) -> None:
    entry = tarfile.TarInfo("strange")
    entry.type, entry.linkname = kind, "/etc/passwd"
    with pytest.raises((RemoteProtocolError, OSError)):
        _unpack(packed(file("first", b"1" * 1000), (entry, b"")), str(tmp_path / "there"))
    assert not list(tmp_path.iterdir()), "what had been unpacked before is gone"


# -- logs


def test_a_link_in_the_folder_of_logs_leads_nobody_to_the_key(tmp_path: Path) -> None:
    """Tasks write there as the node's user, and the node sees what is hidden from them."""
    key = tmp_path / "node.key"
    key.write_bytes(b"secret")
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "worker-1-2.out").symlink_to(key)
    assert views.read_at(str(logs / "worker-1-2.out"), 0) == b""
    assert views.size_of(str(logs / "worker-1-2.out")) != len(b"secret")
    os.mkfifo(logs / "worker-1-2.err")
    assert views.read_at(str(logs / "worker-1-2.err"), 0) == b"", "and a pipe stops nobody"
    (logs / "worker-3-4.out").symlink_to(key)
    LogFiles(str(logs)).append("worker-3-4.out", b"overwritten")
    assert key.read_bytes() == b"secret"


async def test_no_time_to_wait_is_for_ever(tmp_path: Path) -> None:
    one: Any = SimpleNamespace(views=SimpleNamespace(log=lambda name: str(tmp_path / name)))
    read = await look.Look.read(one, "worker-1-2.out", 0, float("nan"))
    assert read == {"data": b"", "offset": 0}


# -- placement groups


def test_a_bundle_that_is_reserved_twice_is_refused_and_one_of_two_attempts_ends_what_the_first_had() -> None:
    world = Groups(a=4, b=4)
    a, b = world.nodes["a"], world.nodes["b"]
    them: Any = SimpleNamespace(peer=b.me, link=SimpleNamespace(send=lambda _: None), client=b.client)
    a.objection = lambda _: ""  # type: ignore[attr-defined]
    with pytest.raises(RemoteProtocolError, match="twice"):
        a.desk.hear(them, far.GroupReserve(b"g" * 16, 1, b"j" * 16, [(0, ONE), (0, ONE)]))
    for attempt in (1, 2):  # without an Abort between them
        said: list[Any] = []
        them.link.send = said.append
        b.desk.hear = lambda _, message, said=said: said.append(message)  # type: ignore[method-assign]
        a.desk.hear(them, far.GroupReserve(b"g" * 16, attempt, b"j" * 16, [(0, ONE)]))
        world.run(0.1)
        [token] = [message.token for message in said if isinstance(message, far.GroupReserved)]
        a.desk.hear(them, far.GroupCommit(b"g" * 16, attempt, token))
    for attempt in (1, 2):
        a.desk.hear(them, far.GroupAbort(b"g" * 16, attempt))
    world.run(200)  # and no timer has stumbled over it
    assert not a.resources.taken and not a.desk.bundles._here


# -- what is kept for restarts


def test_a_row_tells_everybody_the_name_of_a_checkpoint_and_only_who_restarts_actors_gets_it(tmp_path: Path) -> None:
    async def story(town: Any) -> None:
        owner, thief = Desk("a", town, tmp_path), Desk("b", town, tmp_path, Role.EXECUTE | Role.STORE)
        content = owner.kept.put(b"checkpoint")
        assert await thief.kept.get(content, [owner.me]) is None
        thief.roles = Role.SUBMIT
        assert await thief.kept.get(content, [owner.me]) == b"checkpoint"

    run_kept(story)


def test_nobody_keeps_more_on_a_disk_than_it_says_or_has_all_that_arrives_at_once(tmp_path: Path) -> None:
    async def story(town: Any) -> None:
        victim, other = Desk("a", town, tmp_path), Desk("b", town, tmp_path)
        line: Any = Line(victim, other)
        data = b"x" * (2 * PIECE_BYTES)
        content = cid_named(manifest_of(data))
        victim.kept.keep(line, far.Keep(content, 0, 0, data))
        victim.kept.keep(line, far.Keep(content, CONTENT_MAX_BYTES, 0, data))
        victim.kept.keep(line, far.Keep(content, PIECE_BYTES, 0, data))
        victim.kept.keep(line, far.Keep(content, 2 * CONTENT_MAX_BYTES, 0, b"x"))
        for offset in (-1, 1 << 60):
            victim.kept.keep(line, far.Keep(content, CONTENT_MAX_BYTES, offset, b"x"))
        for number in range(100):
            victim.kept.keep(line, far.Keep(bytes([number]) * 36, CONTENT_MAX_BYTES, 0, b"x" * PIECE_BYTES))
        assert len(victim.kept._coming) == COMING_EACH_MAX and not victim.kept.disk.sizes
        await asyncio.sleep(2 * kept_module.ASK_S)
        assert not victim.kept._coming and not list((tmp_path / "a").iterdir()), "nothing more came"

    run_kept(story)


def test_one_who_asks_again_and_again_for_what_is_kept_is_read_to_a_little_at_a_time(tmp_path: Path) -> None:
    async def story(town: Any) -> None:
        victim, other = Desk("a", town, tmp_path), Desk("b", town, tmp_path)
        content, said = victim.kept.put(b"seed"), list[Any]()
        line: Any = Line(victim, other)
        line.send = lambda message, size=0: said.append(message)
        for _ in range(1000):
            victim.kept.wanted(line, far.KeptWanted(content))
        assert len(victim.kept._tasks) == kept_module.GIVES_MAX
        line.crowded = True
        await asyncio.gather(*victim.kept._tasks)
        await asyncio.sleep(0)
        assert not victim.kept._tasks and not victim.kept._giving
        assert not [message for message in said if isinstance(message, far.Keep)], "it reads none of it"

    run_kept(story)


# -- links


class Unread:
    """A pipe whose other end takes nothing."""

    def __init__(self) -> None:
        self.waiting_bytes, self.over = 0, ""

    def send(self, parts: Any, size: int) -> None:
        self.waiting_bytes += size

    def close(self, reason: str) -> None:
        self.over = reason


async def test_who_asks_and_does_not_read_loses_its_link() -> None:
    ends: list[str] = []
    peer: Any = SimpleNamespace(id=b"a" * 32)
    link = Link(peer, b"b" * 32, lambda *_: None, lambda _, reason: ends.append(reason), 1)  # type: ignore[arg-type]
    link._out = pipe = Unread()  # type: ignore[assignment]
    for _ in range(links.UNREAD_MAX_BYTES // (1 << 20) + 2):
        link.send(far.Here(b"o" * 16, 1 << 20, data=bytes(1 << 20)), 1 << 20)
    assert ends and "wait for it" in ends[0] and pipe.over == ends[0]


async def test_connections_of_one_node_are_counted_before_anything_is_made_for_them() -> None:
    peer: Any = SimpleNamespace(id=b"a" * 32)
    link = Link(peer, b"b" * 32, lambda *_: None, lambda *_: None, 1)  # type: ignore[arg-type]
    link.check(1)
    for number in (0, -1, 2):
        with pytest.raises(RemoteProtocolError, match="cannot begin"):
            link.check(number)
    link.carriers = dict.fromkeys(range(3, 3 + 2 * links.CARRIERS_MAX, 2))  # type: ignore[arg-type]
    with pytest.raises(RemoteProtocolError, match="are open"):
        link.check(1)


# -- objects


def test_an_object_that_is_said_to_be_larger_than_it_is_shows_nothing_that_lies_behind_it() -> None:
    """Whoever lends us something may say its size; sealed so, it would be served to the liar with all that follows."""

    async def story() -> None:
        world = World(7, machines=2)
        victim, liar = world.machines
        process, object_ = world.processes[0], b"\2\0\0\0\0\0\0\0" + bytes(8)
        neighbour, freed = victim.neighbours[liar.me], list[int]()

        async def fetch(_id: bytes, _sources: Any, _size: int, allocate: Any, **_: Any) -> Fetched:
            return Fetched(await allocate(1000), 1000, False, b"cid")

        blocks: Any = victim.objects.blocks
        blocks.fetch = fetch
        victim.objects.room.free = freed.append  # type: ignore[method-assign]
        said: list[Any] = []
        neighbour.link = SimpleNamespace(send=lambda message, size=0: said.append(message), crowded=False)
        ledger = victim.store.ledger
        effects, keep = ledger.borrow(process.number, object_, neighbour.client.number, value=True)
        assert keep and not effects
        victim.objects.fetching.fetch(object_)
        with pytest.raises(RemoteProtocolError):
            victim.objects.fetching.here(neighbour, far.Here(object_, -5))
        victim.objects.fetching.wanted[object_] = liar.me
        victim.objects.fetching.here(neighbour, far.Here(object_, 1 << 30))
        while victim.objects.fetching.tasks:
            await asyncio.sleep(0.001)
        assert ledger.place(object_) is None and len(freed) == 1

    run_virtually(story())


def test_nobody_cancels_drops_or_keeps_what_it_was_never_given() -> None:
    async def story() -> None:
        world = World(7, machines=2)
        victim, other = world.machines
        process, neighbour = world.processes[0], victim.neighbours[other.me]
        object_ = process.promise()
        await asyncio.sleep(0.1)
        told: list[Any] = []
        victim.tell = lambda client, message: told.append(message)  # type: ignore[method-assign]
        victim.objects.lending.stop(neighbour, far.Stop(object_))
        assert not told, "a guess"
        victim.objects.lending.returned(neighbour, far.Returned(object_))
        assert victim.store.ledger.kept_for(neighbour.client.number) == 0
        victim.objects.lending.took(neighbour, far.Took(process.number, object_, 1, False))
        assert victim.store.ledger.holds(process.number, object_), "that number is no process of theirs"
        victim.objects.lending.took(neighbour, far.Took(0, object_, 1, True))
        victim.objects.lending.stop(neighbour, far.Stop(object_))
        assert [type(message) for message in told] == [m.CancelWanted]
        with pytest.raises(RemoteProtocolError, match="an id of"):
            victim.objects.serving.want(neighbour, far.Want(b"no id"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(far_lending, "HELD_MAX", 100)
            with pytest.raises(RemoteProtocolError, match="it holds or waits for"):
                for number in range(101):
                    victim.objects.lending.took(neighbour, far.Took(0, number.to_bytes(16, "big"), 1, True))

    run_virtually(story())


# -- what is decoded


@pytest.mark.parametrize(
    "long",
    [
        far.AskLease(1, b"j" * 16, ONE, name="n" * (far.TEXT_MAX_CHARS + 1)),
        far.Closed(1, "r" * (far.TEXT_MAX_CHARS + 1)),
        far.ActorWanted(b"a" * (far.ID_MAX_BYTES + 1)),
        far.Here(b"o" * 16, 1, holders=[b"p" * 32] * (far.LIST_MAX + 1)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_that_says_too_much_is_a_protocol_error(long: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        far.decode(far.encode([long]))


decoders = {
    "for a worker": far_hosting._from_node.decode,
    "of a worker": far_workers._from_worker.decode,
    "a bundle": given_by.decode_within,
    "a claim": claims.decode,
    "a name": claims.read_holder,
    "a load": loads.decode,
}
allowed = (RemoteProtocolError, msgspec.DecodeError, UnicodeDecodeError)


@pytest.mark.parametrize("decode", decoders.values(), ids=decoders.keys())
@examples(80)
@given(noise=st.binary(max_size=200))
def test_noise_inside_a_message_is_refused_in_words(decode: Any, noise: bytes) -> None:
    with contextlib.suppress(*allowed):
        decode(noise)
