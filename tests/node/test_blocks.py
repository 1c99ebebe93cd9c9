"""Objects between nodes in one process: peers in memory on a virtual clock, and real arenas."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from lattica.errors import (
    ObjectFetchTimedOutError,
    ObjectLostError,
    ObjectNotAvailableError,
    ObjectStoreFullError,
    PermissionDeniedError,
)
from lattica.mesh.identity import PeerId
from lattica.mesh.peer import Peer
from lattica.mesh.roles import EVERYTHING, Role
from lattica.mesh.services import Caller, caller
from lattica.node import blocks as blocks_module
from lattica.node.block_fetch import HURRY_S, STALL_S, WAIT_S, Fetched
from lattica.node.blocks import PROVIDE_AFTER_S, Blocks
from lattica.objectstore.arena import Arena
from lattica.objectstore.cid import cid_named, manifest_of
from lattica.objectstore.transfer import AHEAD_BLOCKS
from tests.mesh.conftest import Network, settle, virtual

MIB = 1 << 20
ARENA_BYTES = 64 * MIB
PERIOD_BYTES = 65_537
OBJECT = b"object 16 bytes!"
OTHER = b"another object.."


class Directory:
    """The DHT, as far as providers go: one for all."""

    def __init__(self) -> None:
        self.providers: dict[bytes, dict[PeerId, tuple[str, ...]]] = {}
        self.log: list[tuple[str, PeerId, bytes]] = []


class Node:
    """A peer with an arena; objects are put one after another, and pins are counted."""

    def __init__(self, peer: Peer, directory: Directory) -> None:
        self.peer, self.directory = peer, directory
        self.arena = Arena(ARENA_BYTES)
        self.pins: list[bytes] = []
        self.gone: set[bytes] = set()
        self.asked_to_pin = 0
        self.allocated: list[tuple[int, int]] = []
        self.freed: list[tuple[int, int]] = []
        self.end = 100  # regions lie anywhere
        peer.gossip.directory = self  # type: ignore[assignment]
        self.blocks = Blocks(peer, self.arena, asyncio.get_running_loop(), self.pin, self._free)

    def pin(self, object_id: bytes) -> Callable[[], None] | None:
        self.asked_to_pin += 1
        if object_id in self.gone:
            return None
        self.pins.append(object_id)
        return lambda: self.pins.remove(object_id)

    async def allocate(self, size: int) -> int:
        at = self._region(size)
        self.allocated.append((at, size))
        return at

    def _region(self, size: int) -> int:
        """Backed, as the store backs what it gives out: memory for a whole arena takes 50 ms."""
        at, self.end = self.end, self.end + size
        if size:
            self.arena.back(at, size)
        return at

    def _free(self, offset: int, size: int) -> None:
        self.freed.append((offset, size))

    def put(self, object_id: bytes, data: bytes, *, failed: bool = False) -> int:
        offset = self._region(len(data))
        self.arena.write(offset, [data])
        self.blocks.offer(object_id, offset, len(data), failed)
        return offset

    def bytes_of(self, fetched: Fetched) -> bytes:
        return self.arena.copy_out(fetched.offset, fetched.size)

    async def fetch(self, *sources: Any, object_id: bytes = OBJECT, size: int = 0, cid: bytes | None = None) -> Fetched:
        ids = [each.peer.id if isinstance(each, Node) else each for each in sources]
        return await self.blocks.fetch(object_id, ids, size, self.allocate, cid=cid)

    # -- as the DHT

    async def provide(self, what: bytes) -> int:
        self.directory.log.append(("provide", self.peer.id, what))
        self.directory.providers.setdefault(what, {})[self.peer.id] = tuple(self.peer.listening)
        return 1

    def withdraw(self, what: bytes) -> None:
        self.directory.log.append(("withdraw", self.peer.id, what))

    async def find_providers(self, what: bytes) -> dict[PeerId, tuple[str, ...]]:
        return dict(self.directory.providers.get(what, {}))


@asynccontextmanager
async def mesh(count: int, *, roles: Role = EVERYTHING, delay_s: float = 0.001) -> AsyncIterator[list[Node]]:
    """Nodes, each with a session with each."""
    network, directory = Network(delay_s), Directory()
    nodes = [Node(await network.peer(roles=roles if number == 0 else EVERYTHING), directory) for number in range(count)]
    for node in nodes:
        for other in nodes:
            if node is not other:
                await node.peer.connect(other.peer.id, other.peer.listening)
    yield nodes
    for node in nodes:
        await node.blocks.close()
    for node in nodes:
        await node.peer.stop()
    gc.collect()
    await settle()
    for node in nodes:
        assert node.pins == [], f"{node.peer!r} leaves pins"
        node.arena.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PeerId, int]]:
    """(who served it, block) for each block that was sent."""
    sent: list[tuple[PeerId, int]] = []
    until_here = Blocks._until_here

    async def noted(self: Blocks, held: Any, block: int) -> None:
        await until_here(self, held, block)
        sent.append((self._peer.id, block))

    monkeypatch.setattr(Blocks, "_until_here", noted)
    return sent


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Blocks of 40,000 bytes: many of them are few bytes."""
    for module in (
        "lattica.objectstore.cid",
        "lattica.objectstore.transfer",
        "lattica.node.blocks",
        "lattica.node.block_fetch",
    ):
        monkeypatch.setattr(f"{module}.BLOCK_BYTES", 40_000)
    return iter([40_000])


def data_of(size: int, seed: int = 1) -> bytes:
    """No two blocks of it are the same: it repeats after a prime number of bytes."""
    period = Random(seed).randbytes(PERIOD_BYTES)
    return (period * (size // PERIOD_BYTES + 1))[:size]


async def _all(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([item async for item in stream])


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 37 * MIB + 5])
@virtual
async def test_an_object_of_any_size_comes_whole_and_under_its_name(size: int) -> None:
    async with mesh(2) as (one, two):
        data = data_of(size)
        two.put(OBJECT, data, failed=size % 2 == 1)
        fetched = await one.fetch(two, size=size)
        assert one.bytes_of(fetched) == data
        assert fetched == Fetched(100, size, size % 2 == 1, cid_named(manifest_of(data)))
        assert one.allocated == [(100, size)] and not one.freed
        gc.collect()
        await settle()
        assert two.pins == [] and two.asked_to_pin <= 2, "it is pinned while it is read, and no longer"


@virtual
async def test_an_object_of_one_block_takes_one_round_trip() -> None:
    async with mesh(2, delay_s=1.0) as (one, two):
        two.put(OBJECT, data_of(MIB))
        two.put(OTHER, data_of(MIB))
        await one.fetch(two, object_id=OTHER)  # which dials the connection for bulk
        began = asyncio.get_running_loop().time()
        await one.fetch(two)
        assert asyncio.get_running_loop().time() - began < 2.5


@virtual
async def test_who_fetches_the_same_at_once_shares_one_transfer_and_whoever_comes_later_has_it(
    reads: list[tuple[PeerId, int]],
) -> None:
    async with mesh(2) as (one, two):
        data = data_of(5 * MIB)
        two.put(OBJECT, data)
        found = await asyncio.gather(*(one.fetch(two) for _ in range(10)))
        found.append(await one.fetch(two))
        assert len(set(found)) == 1 and one.bytes_of(found[0]) == data
        assert len(one.allocated) == 1 and sorted(reads) == [(two.peer.id, block) for block in range(5)]


@virtual
async def test_an_object_is_hashed_once_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    monkeypatch.setattr(blocks_module, "manifest_of", lambda data: hashed.append(1) or manifest_of(data))
    async with mesh(4) as (holder, *readers):
        holder.put(OBJECT, data_of(3 * MIB))
        await asyncio.gather(*(reader.fetch(holder) for reader in readers))
        assert hashed == [1]


@virtual
async def test_the_content_has_a_name_as_soon_as_somebody_has_read_of_it() -> None:
    async with mesh(2) as (one, two):
        data = data_of(3 * MIB)
        two.put(OBJECT, data)
        assert two.blocks.cid_of(OBJECT) == one.blocks.cid_of(OBJECT) == b""
        await one.fetch(two)
        assert two.blocks.cid_of(OBJECT) == one.blocks.cid_of(OBJECT) == cid_named(manifest_of(data))
        one.blocks.withdraw(OBJECT)
        assert one.blocks.cid_of(OBJECT) == b""


@virtual
async def test_several_sources_share_the_work(reads: list[tuple[PeerId, int]]) -> None:
    async with mesh(4) as (one, *holders):
        data = data_of(40 * MIB)
        for holder in holders:
            holder.put(OBJECT, data)
        assert one.bytes_of(await one.fetch(*holders)) == data
        each = [sum(who == holder.peer.id for who, _ in reads) for holder in holders]
        assert min(each) >= 8 and sum(each) <= 50, f"blocks of each: {each}"


@virtual
async def test_a_source_that_dies_halfway_is_replaced_by_another(small_blocks: Iterator[int]) -> None:
    async with mesh(3, delay_s=0.05) as (one, two, three):
        data = data_of(60 * 40_000)
        two.put(OBJECT, data)
        three.put(OBJECT, data)
        fetching = asyncio.ensure_future(one.fetch(two, three))
        await settle(0.4)
        transfer = one.blocks._objects[OBJECT].transfer
        assert transfer is not None and 0 < transfer.left < 60
        await two.peer.stop()
        assert one.bytes_of(await fetching) == data


@virtual
async def test_who_cannot_be_reached_or_has_nothing_is_passed_over() -> None:
    async with mesh(3) as (one, two, three):
        data = data_of(2 * MIB)
        three.put(OBJECT, data)
        fetched = await one.fetch(PeerId(b"?" * 32), two, three)
        assert one.bytes_of(fetched) == data


@virtual
async def test_a_source_that_does_not_answer_is_not_waited_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh(3) as (one, two, three):
        two.put(OBJECT, data_of(2 * MIB))
        three.put(OBJECT, data_of(2 * MIB))

        async def hashed(self: Blocks, held: Any, original: Any = Blocks._hashed) -> Any:
            if self is two.blocks:
                await settle(3600)
            return await original(self, held)

        monkeypatch.setattr(Blocks, "_hashed", hashed)
        began = asyncio.get_running_loop().time()
        await one.fetch(two, three)
        assert HURRY_S <= asyncio.get_running_loop().time() - began < HURRY_S + 0.5


@pytest.mark.parametrize(("size", "hint"), [(100, 0), (3 * MIB, 0), (3 * MIB, 3 * MIB)])
@virtual
async def test_a_source_that_lies_is_dropped_and_another_one_asked(size: int, hint: int) -> None:
    async with mesh(3) as (one, two, three):
        data = data_of(size)
        offset = two.put(OBJECT, data)
        three.put(OBJECT, data)
        await three.fetch(two)  # which hashes it
        await one.peer.call(two.peer.id, "blocks.manifest", OBJECT)
        two.arena.write(offset + size - 1, [bytes([data[-1] ^ 1])])
        assert one.bytes_of(await one.fetch(two, three, size=hint)) == data


@virtual
async def test_blocks_come_while_their_source_still_hashes_and_each_comes_once(
    monkeypatch: pytest.MonkeyPatch, reads: list[tuple[PeerId, int]]
) -> None:
    async with mesh(2) as (one, two):
        data = data_of(20 * MIB + 5)
        two.put(OBJECT, data)
        hashing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        hashed = Blocks._hashed

        async def slowly(self: Blocks, held: Any) -> Any:
            await hashing
            return await hashed(self, held)

        monkeypatch.setattr(Blocks, "_hashed", slowly)
        fetching = asyncio.ensure_future(one.fetch(two, size=len(data)))
        await settle(1)
        assert len(reads) == AHEAD_BLOCKS and not one.allocated, "no more than one source may owe"
        hashing.set_result(None)
        assert one.bytes_of(await fetching) == data and sorted(reads) == [(two.peer.id, block) for block in range(21)]


@pytest.mark.parametrize("hint", [2 * MIB, 5 * MIB - 1, 9 * MIB])
@virtual
async def test_what_came_early_of_an_object_of_another_size_than_was_said_is_thrown_away(hint: int) -> None:
    async with mesh(2) as (one, two):
        data = data_of(5 * MIB)
        two.put(OBJECT, data)
        assert one.bytes_of(await one.fetch(two, size=hint)) == data
        assert one.allocated == [(100, len(data))] and not one.freed


@virtual
async def test_a_source_that_lacks_blocks_is_not_waited_for_by_who_asked_it_for_all(
    small_blocks: Iterator[int],
) -> None:
    async with mesh(3, delay_s=0.05) as (holder, one, two):
        data = data_of(200 * 40_000)
        holder.put(OBJECT, data)
        first = asyncio.ensure_future(one.fetch(holder, size=len(data)))
        while OBJECT not in one.blocks._objects:
            await settle(0.01)
        began = asyncio.get_running_loop().time()
        found = await asyncio.gather(first, two.fetch(one, holder, size=len(data)))
        assert one.bytes_of(found[0]) == two.bytes_of(found[1]) == data
        assert asyncio.get_running_loop().time() - began < WAIT_S


@virtual
async def test_if_all_lie_nothing_is_accepted_and_the_error_says_who_did() -> None:
    async with mesh(3) as (one, two, three):
        data = data_of(3 * MIB)
        for node in (two, three):
            offset = node.put(OBJECT, data)
            await one.peer.call(node.peer.id, "blocks.manifest", OBJECT)
            node.arena.write(offset, [bytes(10)])
        with pytest.raises(ObjectLostError, match=r"object 6f62 could not be fetched: .*wrong block 0.*wrong block 0"):
            await one.fetch(two, three, cid=cid_named(manifest_of(data)))
        assert one.freed == one.allocated and len(one.freed) == 1
        assert OBJECT not in one.blocks._objects


@virtual
async def test_other_content_than_was_asked_for_is_refused() -> None:
    async with mesh(3) as (one, two, three):
        data = data_of(2 * MIB)
        two.put(OBJECT, data_of(2 * MIB, seed=2))
        three.put(OBJECT, data)
        cid = cid_named(manifest_of(data))
        assert one.bytes_of(await one.fetch(two, three, cid=cid)) == data
        two.put(OTHER, data_of(2 * MIB, seed=3))
        with pytest.raises(ObjectLostError, match="it sent a manifest of other content; the DHT knows no other"):
            await one.fetch(two, object_id=OTHER, cid=cid)


@virtual
async def test_an_object_that_is_withdrawn_in_the_middle_is_lost_and_its_region_free() -> None:
    async with mesh(2, delay_s=0.05) as (one, two):
        two.put(OBJECT, data_of(20 * MIB))
        fetching = asyncio.ensure_future(one.fetch(two))
        await settle(0.6)
        two.blocks.withdraw(OBJECT)
        with pytest.raises(ObjectLostError, match="object 6f62 is not, or no longer, at peer") as caught:
            await fetching
        assert not isinstance(caught.value, ObjectFetchTimedOutError)
        assert one.freed == one.allocated


@virtual
async def test_what_the_pin_says_is_gone_is_not_read() -> None:
    async with mesh(2) as (one, two):
        two.put(OBJECT, data_of(2 * MIB))
        two.gone.add(OBJECT)
        with pytest.raises(ObjectLostError, match="not, or no longer"):
            await one.fetch(two)
        assert one.allocated == []


@virtual
async def test_a_region_stays_pinned_until_what_was_sent_of_it_has_arrived() -> None:
    """The method has ended, and its last piece is on its way: if the connection breaks, it is sent again from where it
    lies."""
    async with mesh(2, delay_s=0.5) as (one, two):
        two.put(OBJECT, data_of(3 * MIB))
        await one.peer.call(two.peer.id, "blocks.manifest", OBJECT)
        await settle(2.0)
        assert two.pins == []
        readers = two.blocks._objects[OBJECT].readers
        async with await one.peer.stream(two.peer.id, "blocks.read", OBJECT, sends=True) as stream:
            await stream.send([1, 1])
            await stream.finish()
            reading = asyncio.ensure_future(_all(aiter(stream)))
            while not readers:
                await settle(0.01)
            while readers:
                await settle(0.01)
            gc.collect()
            assert two.pins == [OBJECT]
            two.blocks.withdraw(OBJECT)
            await settle(3.0)
            assert two.pins == []
            assert await reading == data_of(3 * MIB)[MIB : 2 * MIB]


@virtual
async def test_providers_of_the_content_are_asked_when_nobody_else_has_it() -> None:
    async with mesh(3) as (one, two, three):
        data = data_of(3 * MIB)
        two.put(OTHER, data)
        await three.fetch(two, object_id=OTHER)
        await settle(PROVIDE_AFTER_S + 0.5)
        cid = cid_named(manifest_of(data))
        assert sorted(one.directory.providers[cid]) == sorted([two.peer.id, three.peer.id])
        assert one.bytes_of(await one.fetch(PeerId(b"?" * 32), cid=cid)) == data


@virtual
async def test_only_what_is_large_and_lives_is_announced_and_what_goes_is_withdrawn() -> None:
    async with mesh(2) as (one, two):
        log = two.directory.log
        two.put(OBJECT, data_of(100))
        two.put(OTHER, data_of(2 * MIB))
        for each in (OBJECT, OTHER):
            await one.fetch(two, object_id=each)
            one.blocks.withdraw(each)
        two.blocks.withdraw(OTHER)
        await settle(10)
        assert log == []
        two.put(OTHER, data_of(2 * MIB))
        fetched = await one.fetch(two, object_id=OTHER)
        await settle(10)
        two.blocks.withdraw(OTHER)
        assert [(what, who) for what, who, _ in log[:2]] == [("provide", two.peer.id), ("provide", one.peer.id)]
        assert log[2:] == [("withdraw", two.peer.id, fetched.cid)]


@virtual
async def test_blocks_that_are_here_are_served_while_the_rest_still_comes(small_blocks: Iterator[int]) -> None:
    """The holder has a slow way to `one`, and `two` knows only `one`: it has every block soon after that."""
    async with mesh(3, delay_s=0.05) as (holder, one, two):
        data = data_of(200 * 40_000)
        holder.put(OBJECT, data)
        first = asyncio.ensure_future(one.fetch(holder))
        while OBJECT not in one.blocks._objects:
            await settle(0.01)
        second = asyncio.ensure_future(two.fetch(one))
        while OBJECT not in two.blocks._objects or not any(two.blocks._objects[OBJECT].transfer.held):  # type: ignore
            await settle(0.01)
        assert not first.done()
        assert one.bytes_of(await first) == two.bytes_of(await second) == data
        assert one.asked_to_pin == 0, "what nobody has offered yet is copied"


@virtual
async def test_readers_that_begin_at_once_find_each_other(
    small_blocks: Iterator[int], reads: list[tuple[PeerId, int]]
) -> None:
    """All hear what it consists of before any of them has begun; each asks the others again."""
    async with mesh(5, delay_s=0.05) as (holder, *readers):
        data = data_of(200 * 40_000)
        holder.put(OBJECT, data)
        for fetched in await asyncio.gather(*(reader.fetch(holder) for reader in readers)):
            assert fetched.size == len(data)
        from_holder = sum(who == holder.peer.id for who, _ in reads)
        assert from_holder < 4 * 200, f"the holder sent {from_holder} blocks to four readers of 200"


@virtual
async def test_readers_of_the_same_object_find_each_other(
    small_blocks: Iterator[int], reads: list[tuple[PeerId, int]]
) -> None:
    async with mesh(5, delay_s=0.05) as (holder, *readers):
        data = data_of(200 * 40_000)
        holder.put(OBJECT, data)
        fetching = []
        for reader in readers:
            fetching.append(asyncio.ensure_future(reader.fetch(holder)))
            await settle(0.3)
        for reader, fetched in zip(readers, await asyncio.gather(*fetching), strict=True):
            assert reader.bytes_of(fetched) == data
        from_holder = sum(who == holder.peer.id for who, _ in reads)
        assert from_holder < 3 * 200, f"the holder sent {from_holder} blocks to four readers of 200"


@virtual
async def test_a_block_that_does_not_come_is_waited_for_no_longer_than_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh(3) as (holder, one, two):
        until_here = Blocks._until_here

        async def stuck(self: Blocks, held: Any, block: int) -> None:
            await (settle(3600) if self is holder.blocks and block == 1 else until_here(self, held, block))

        monkeypatch.setattr(Blocks, "_until_here", stuck)
        holder.put(OBJECT, data_of(3 * MIB))
        first = asyncio.ensure_future(one.fetch(holder))
        await settle(1.0)
        began = asyncio.get_running_loop().time()
        async with await two.peer.stream(one.peer.id, "blocks.read", OBJECT, sends=True) as stream:
            await stream.send([0, 2])
            with pytest.raises(ObjectNotAvailableError):
                [item async for item in stream]
        assert WAIT_S <= asyncio.get_running_loop().time() - began < WAIT_S + 1
        with pytest.raises(ObjectFetchTimedOutError):
            await first


@virtual
async def test_a_source_that_stops_sending_is_lost_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh(2) as (one, two):
        two.put(OBJECT, data_of(3 * MIB))

        async def never(*_: object) -> None:
            await settle(3600)

        monkeypatch.setattr(Blocks, "_until_here", never)
        began = asyncio.get_running_loop().time()
        with pytest.raises(ObjectFetchTimedOutError, match="it sent nothing for 20 s"):
            await one.fetch(two)
        assert asyncio.get_running_loop().time() - began < STALL_S + 2


@virtual
async def test_what_allocate_raises_is_what_the_fetch_raises() -> None:
    async with mesh(2) as (one, two):
        two.put(OBJECT, data_of(2 * MIB))

        async def full(size: int) -> int:
            raise ObjectStoreFullError(f"{size} bytes do not fit")

        with pytest.raises(ObjectStoreFullError, match="2097152 bytes"):
            await one.blocks.fetch(OBJECT, [two.peer.id], 0, full)
        assert one.bytes_of(await one.fetch(two)) == data_of(2 * MIB), "and it can be tried again"


@virtual
async def test_a_fetch_goes_on_until_the_last_who_waits_for_it_gives_up() -> None:
    async with mesh(2, delay_s=0.2) as (one, two):
        data = data_of(4 * MIB)
        two.put(OBJECT, data)
        first, second = (asyncio.ensure_future(one.fetch(two)) for _ in range(2))
        await settle(1.0)
        first.cancel()
        assert one.bytes_of(await second) == data and first.cancelled() and not one.freed
        one.blocks.withdraw(OBJECT)
        third = asyncio.ensure_future(one.fetch(two))
        await settle(1.0)
        third.cancel()
        await settle(5.0)
        assert one.freed == one.allocated[1:] and OBJECT not in one.blocks._objects


@virtual
async def test_the_deadline_of_who_began_a_fetch_is_not_that_of_the_others() -> None:
    """A call with two seconds left begins the fetch, and another one joins, which has time."""
    async with mesh(2, delay_s=0.3) as (one, two):
        two.put(OBJECT, data_of(4 * MIB))
        token = caller.set(Caller(two.peer.id, EVERYTHING, asyncio.get_running_loop().time() + 2.0))
        first = asyncio.ensure_future(one.fetch(two))
        caller.reset(token)
        second = asyncio.ensure_future(one.fetch(two))
        await settle(3.0)
        assert not second.done()
        assert one.bytes_of(await second) == one.bytes_of(await first) == data_of(4 * MIB)


@virtual
async def test_without_a_role_for_it_nobody_reads_anything() -> None:
    async with mesh(2, roles=Role.RELAY) as (one, two):
        two.put(OBJECT, data_of(100))
        with pytest.raises(PermissionDeniedError, match=r"blocks\.manifest"):
            await one.peer.call(two.peer.id, "blocks.manifest", OBJECT)
        with pytest.raises(ObjectLostError, match="its certificate lacks the role"):
            await one.fetch(two)


@pytest.mark.parametrize("run", [1, [0], [0, 0], [0, 4], [-1, 1], [3, 1], ["0", 1], [True, 1]])
@virtual
async def test_a_run_that_is_none_ends_the_stream(run: Any) -> None:
    async with mesh(2) as (one, two):
        two.put(OBJECT, data_of(3 * MIB))
        async with await one.peer.stream(two.peer.id, "blocks.read", OBJECT, sends=True) as stream:
            await stream.send([0, 1])
            await stream.send(run)
            with pytest.raises(Exception, match="it asked for"):
                [item async for item in stream]
                await stream.result()


@virtual
async def test_what_went_to_disk_is_brought_back_for_whoever_reads_it_and_served_from_where_it_lies_then() -> None:
    async with mesh(3) as (holder, reader, other):
        data = data_of(3 * MIB, seed=5)
        holder.put(OBJECT, data)
        assert reader.bytes_of(await reader.fetch(holder, size=len(data))) == data
        brought: list[bytes] = []

        async def bring_back(object_id: bytes) -> int:
            brought.append(object_id)
            at = await holder.allocate(len(data))
            holder.arena.write(at, [data])
            return at

        old = holder.blocks._objects[OBJECT].offset
        holder.blocks.bring_back = bring_back
        holder.blocks.went_to_disk(OBJECT)
        holder.arena.write(old, [bytes(len(data))])  # another object lies there by now
        assert other.bytes_of(await other.fetch(holder, size=len(data))) == data
        assert brought == [OBJECT] and holder.blocks._objects[OBJECT].offset != old


@virtual
async def test_what_cannot_come_back_from_disk_is_not_here() -> None:
    async with mesh(2) as (holder, reader):
        holder.put(OBJECT, data_of(3 * MIB, seed=5))

        async def bring_back(object_id: bytes) -> None:
            return None

        holder.blocks.bring_back = bring_back
        holder.blocks.went_to_disk(OBJECT)
        with pytest.raises(ObjectLostError):
            await reader.fetch(holder, size=3 * MIB)
