"""Calls and streams between peers in memory, on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from lattica.errors import (
    CallFailedError,
    ConfigError,
    GetTimeoutError,
    PeerUnreachableError,
    PermissionDeniedError,
    SerializationError,
)
from lattica.mesh.identity import PeerId, peer_text
from lattica.mesh.roles import Role
from lattica.mesh.rpc import STREAMS_IN
from lattica.mesh.services import caller, method, service
from lattica.mesh.transport.memory import MemoryTransport
from tests.mesh.conftest import Network, settle, virtual

Networks = Callable[..., Network]


@service("shop")
class Shop:
    def __init__(self) -> None:
        self.ran: list[Any] = []
        self.cancelled = 0
        self.taken = 0

    @method()
    def echo(self, value: Any = None, *, more: Any = None) -> Any:
        self.ran.append(value)
        return value if more is None else [value, more]

    @method(role=Role.ADMIN)
    def admin(self, value: Any) -> Any:
        self.ran.append(value)
        return value

    @method(role=None)
    def anybody(self) -> str:
        return peer_text(caller.get().peer)

    @method()
    async def slow(self, seconds: float) -> str:
        self.ran.append(seconds)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "done"

    @method()
    def fail(self) -> None:
        raise KeyError("no such shelf")

    @method()
    async def count(self, to: int, size: int = 8) -> AsyncIterator[bytes]:
        for number in range(to):
            self.taken = number
            yield number.to_bytes(8, "little") + bytes(size - 8)

    @method(takes_stream=True)
    async def total(self, *, incoming: AsyncIterator[bytes]) -> int:
        total = 0
        async for item in incoming:
            total += len(item)
        return total

    @method(takes_stream=True)
    async def double(self, *, incoming: AsyncIterator[int]) -> AsyncIterator[int]:
        async for item in incoming:
            yield 2 * item

    @method(takes_stream=True)
    async def first(self, *, incoming: AsyncIterator[Any]) -> Any:
        async for _ in incoming:
            self.taken += 1
            await asyncio.sleep(3600)
        return None


@virtual
async def test_a_call_returns_what_the_method_returned(network: Networks) -> None:
    one, two = await network().pair(Shop())
    assert await one.call(two.id, "shop.echo", [1, "a", None, {"k": 2.5}], more=b"x") == [
        [1, "a", None, {"k": 2.5}],
        b"x",
    ]
    assert await one.call(peer_text(two.id), "shop.anybody") == peer_text(one.id)
    await one.stop(), await two.stop()


@virtual
async def test_arrays_and_long_bytes_arrive_as_views_of_what_came(network: Networks) -> None:
    one, two = await network().pair(Shop())
    array = np.arange(1_000_000, dtype=np.float32).reshape(1000, 1000)
    answer = await one.call(two.id, "shop.echo", array)
    assert np.array_equal(answer, array) and answer.dtype == array.dtype and not answer.flags.writeable
    long = bytes(range(256)) * 40_000
    assert bytes(await one.call(two.id, "shop.echo", long)) == long
    await one.stop(), await two.stop()


@virtual
async def test_an_error_says_what_was_raised_there(network: Networks) -> None:
    one, two = await network().pair(Shop())
    with pytest.raises(CallFailedError) as caught:
        await one.call(two.id, "shop.fail")
    assert caught.value.type_name == "KeyError" and "no such shelf" in caught.value.remote_traceback
    with pytest.raises(ConfigError, match="no method"):
        await one.call(two.id, "shop.nothing")
    with pytest.raises(SerializationError, match="object cannot be sent"):
        await one.call(two.id, "shop.echo", object())
    await one.stop(), await two.stop()


@virtual
async def test_a_role_is_checked_before_the_arguments_are_looked_at(network: Networks) -> None:
    shop = Shop()
    one, two = await network().pair(shop, roles=Role.SUBMIT)
    with pytest.raises(PermissionDeniedError, match="role admin"):
        await one.call(two.id, "shop.admin", 1)
    talk = one._talks[two.id]
    talk.begin("shop.admin", ([b"\xff not a value"], 12), None, 0)
    await settle()
    assert shop.ran == [] and await one.call(two.id, "shop.echo", 1) == 1, "the peer was not dropped for it"
    await one.stop(), await two.stop()


@virtual
async def test_a_deadline_ends_the_call_here_and_there(network: Networks) -> None:
    shop = Shop()
    one, two = await network().pair(shop)
    with pytest.raises(GetTimeoutError):
        await one.call(two.id, "shop.slow", 60.0, timeout_s=2)
    await settle()
    assert shop.cancelled == 1
    await one.stop(), await two.stop()


@virtual
async def test_cancelling_the_caller_cancels_the_method(network: Networks) -> None:
    shop = Shop()
    one, two = await network().pair(shop)
    task = asyncio.ensure_future(one.call(two.id, "shop.slow", 60.0))
    await settle()
    task.cancel()
    await settle()
    assert shop.cancelled == 1 and task.cancelled()
    await one.stop(), await two.stop()


@virtual
async def test_a_call_made_inside_a_method_inherits_its_deadline(network: Networks) -> None:
    net = network()

    @service("front")
    class Front:
        @method()
        async def ask(self) -> Any:
            return await two.call(three.id, "shop.slow", 60.0)

    shop = Shop()
    three = await net.peer(shop)
    one, two = await net.pair(Front())
    await two.connect(three.id, three.listening)
    with pytest.raises(GetTimeoutError):
        await one.call(two.id, "front.ask", timeout_s=3)
    await settle()
    assert shop.cancelled == 1
    for each in (one, two, three):
        await each.stop()


@virtual
async def test_streams_go_both_ways(network: Networks) -> None:
    one, two = await network().pair(Shop())
    async with await one.stream(two.id, "shop.count", 500) as stream:
        got = [int.from_bytes(item, "little") async for item in stream]
        assert got == list(range(500)) and await stream.result() is None
    async with await one.stream(two.id, "shop.total", sends=True, receives=False) as stream:
        for _ in range(300):
            await stream.send(bytes(100_000))
        await stream.finish()
        assert await stream.result() == 30_000_000
    async with await one.stream(two.id, "shop.double", sends=True) as stream:
        for number in range(50):
            await stream.send(number)
        await stream.finish()
        assert [item async for item in stream] == [2 * number for number in range(50)]
    await one.stop(), await two.stop()


@virtual
async def test_a_slow_reader_stops_the_writer(network: Networks) -> None:
    shop = Shop()
    one, two = await network().pair(shop)
    async with await one.stream(two.id, "shop.count", 10_000, 100_000) as stream:
        await settle(30)
        assert shop.taken < 40, f"{shop.taken} items of 100 KB were made for a reader that took none"
        items = stream.__aiter__()
        for _ in range(100):
            await items.__anext__()
        await settle(30)
        assert 100 < shop.taken < 400
    await settle()
    assert not two._talks[one.id]._tasks, "leaving the block ends the method"
    stream = await one.stream(two.id, "shop.first", sends=True, receives=False)
    sent = 0

    async def send() -> None:
        nonlocal sent
        while True:
            await stream.send(bytes(100_000))
            sent += 1

    sender = asyncio.ensure_future(send())
    await settle(30)
    assert 0 < sent < 40 and shop.taken < 500
    sender.cancel()
    await stream.close()
    await one.stop(), await two.stop()


@virtual
async def test_a_broken_connection_loses_nothing(network: Networks) -> None:
    shop, net = Shop(), network(0.02)
    one, two = await net.pair(shop)
    calls = [asyncio.ensure_future(one.call(two.id, "shop.echo", number)) for number in range(2000)]
    for _ in range(20):
        await settle(0.011)
        net.memory.sever()
    assert await asyncio.gather(*calls) == list(range(2000))
    assert shop.ran == list(range(2000)), "once each, in order"
    await one.stop(), await two.stop()


@virtual
async def test_calls_to_a_peer_that_stops_end_and_say_that_they_may_have_run(network: Networks) -> None:
    one, two = await network().pair(Shop())
    call = asyncio.ensure_future(one.call(two.id, "shop.slow", 60.0))
    await settle()
    await two.stop("maintenance")
    with pytest.raises(PeerUnreachableError, match="may have run") as caught:
        await call
    assert caught.value.may_have_run and "maintenance" in str(caught.value)
    await one.stop()


@virtual
async def test_an_idempotent_call_goes_to_the_next_provider(network: Networks) -> None:
    net, last = network(), Shop()
    one, two = await net.pair(Shop())
    three = await net.peer(last)
    one.know(three.id, three.listening)
    call = asyncio.ensure_future(one.call([two.id, three.id], "shop.slow", 5.0, idempotent=True))
    await settle()
    await two.stop()
    assert await call == "done" and last.ran == [5.0]

    async def resolver(name: str) -> list[PeerId]:
        assert name == "shop"
        return [two.id, three.id]

    one.resolver = resolver
    assert await one.call(None, "shop.echo", 7) == 7, "two is gone, and nothing was sent to it"
    await one.stop(), await three.stop()


@virtual
async def test_a_peer_nobody_answers_for_is_unreachable_in_bounded_time(network: Networks) -> None:
    one = await network().peer()
    began = asyncio.get_running_loop().time()
    with pytest.raises(PeerUnreachableError, match="nobody answered"):
        await one.connect(PeerId(bytes(32)), ["memory:77"])
    assert asyncio.get_running_loop().time() - began < 12
    with pytest.raises(PeerUnreachableError, match="no address"):
        await one.call(PeerId(bytes(31) + b"1"), "shop.echo")
    await one.stop()


@virtual
async def test_a_deadline_that_passes_before_there_is_a_session_says_so_as_any_other(network: Networks) -> None:
    one = await network().peer()
    stranger = PeerId(b"s" * 32)
    one.know(stranger, ["memory:77"])
    with pytest.raises(GetTimeoutError, match="a session with peer"):
        await one.call(stranger, "shop.echo", 1, timeout_s=0.5)
    await one.stop()


@virtual
async def test_what_is_found_out_of_a_peer_s_addresses_is_told_with_them(network: Networks) -> None:
    """Each source speaks for itself: the gateway may map another port, or none, while a relay stays."""
    net = network()
    one, two = await net.peer(), await net.peer()
    bound = list(one.listening)
    one.advertise("mapped", ["192.0.2.7:7411"])
    one.advertise("relayed", ["relay/3ab7"])
    assert set(one.listening) == {*bound, "192.0.2.7:7411", "relay/3ab7"}
    one.advertise("mapped", [])
    assert set(one.listening) == {*bound, "relay/3ab7"}
    await one.connect(two.id, two.listening)
    assert set(two.addresses_of(one.id)) == {*bound, "relay/3ab7"}
    await one.stop(), await two.stop()


@virtual
async def test_a_restarted_peer_begins_a_new_session(network: Networks) -> None:
    net = network()
    one, two = await net.pair(Shop())
    call = asyncio.ensure_future(one.call(two.id, "shop.slow", 60.0))
    await settle()
    assert isinstance(two._transport, MemoryTransport)
    two._transport.vanish()
    again = await net.peer(Shop(), boot=2, number=2)
    one.know(again.id, again.listening)
    await again.connect(one.id, one.listening)
    with pytest.raises(PeerUnreachableError, match="restarted"):
        await call
    assert await one.call(again.id, "shop.echo", 1) == 1
    await one.stop(), await again.stop()


@virtual
async def test_of_two_live_nodes_with_one_key_the_later_one_stops(network: Networks) -> None:
    net = network()
    one, two = await net.pair(Shop())
    told: list[str] = []
    twin = await net.peer(Shop(), boot=2, number=2)
    twin.on_stop = told.append
    with pytest.raises(PeerUnreachableError):
        await twin.connect(one.id, one.listening, timeout_s=20)
    await settle(5)
    assert told and "two live nodes have the key" in told[0]
    assert await one.call(two.id, "shop.echo", 1) == 1, "the first one goes on"
    await one.stop(), await two.stop()


@virtual
async def test_more_calls_than_may_be_open_wait_their_turn(network: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lattica.mesh.rpc.CALLS_MAX", 10)
    shop = Shop()
    one, two = await network().pair(shop)
    assert await asyncio.gather(*[one.call(two.id, "shop.slow", 0.1) for _ in range(100)]) == ["done"] * 100
    await one.stop(), await two.stop()


@virtual
async def test_an_idempotent_call_to_a_peer_that_was_killed_goes_elsewhere_within_seconds(network: Networks) -> None:
    net, last = network(), Shop()
    one, two = await net.pair(Shop())
    three = await net.peer(last)
    one.know(three.id, three.listening)
    call = asyncio.ensure_future(one.call([two.id, three.id], "shop.slow", 1.0, idempotent=True))
    await settle(0.1)
    began = asyncio.get_running_loop().time()
    assert isinstance(two._transport, MemoryTransport)
    two._transport.vanish()
    assert await call == "done" and last.ran == [1.0]
    assert asyncio.get_running_loop().time() - began < 3
    await one.stop(), await three.stop()


@virtual
async def test_a_method_s_limit_is_of_all_callers_together_and_the_others_wait_in_order(network: Networks) -> None:
    net, order = network(), list[int]()

    @service("narrow")
    class Narrow:
        running = 0

        @method(limit=2)
        async def work(self, number: int) -> int:
            self.running += 1
            assert self.running <= 2
            order.append(number)
            await asyncio.sleep(1)
            self.running -= 1
            return number

    one, two = await net.pair(Narrow())
    three = await net.peer()
    await three.connect(two.id, two.listening)
    calls = [asyncio.ensure_future(one.call(two.id, "narrow.work", number)) for number in range(4)]
    await settle(0.1)
    calls += [asyncio.ensure_future(three.call(two.id, "narrow.work", number)) for number in range(4, 8)]
    await settle(0.1)
    calls[2].cancel()
    assert await asyncio.gather(*calls, return_exceptions=True) and order == [0, 1, 3, 4, 5, 6, 7]
    for each in (one, two, three):
        await each.stop()


@virtual
async def test_what_is_too_long_to_be_sent_is_an_error_and_no_breach(
    network: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lattica.mesh.rpc.BODY_MAX_BYTES", 100_000)

    @service("mint")
    class Mint:
        @method()
        def coins(self, count: int) -> bytes:
            return bytes(count)

    one, two = await network().pair(Shop(), Mint())
    with pytest.raises(ConfigError, match=r"an argument list for shop.echo has .* bytes; at most 100000"):
        await one.call(two.id, "shop.echo", bytes(100_001))
    with pytest.raises(ConfigError, match=r"the result of mint.coins has .* bytes; at most 100000"):
        await one.call(two.id, "mint.coins", 100_001)
    async with await one.stream(two.id, "shop.count", 3, 100_001) as stream:
        with pytest.raises(ConfigError, match="an item has"):
            await stream.result()
    assert await one.call(two.id, "shop.echo", 1) == 1
    await one.stop(), await two.stop()


@virtual
async def test_a_call_that_is_canceled_before_it_began_leaves_nothing(network: Networks) -> None:
    """Both messages come in one batch: the task is cancelled before its first step."""
    one, two = await network().pair(Shop())
    talk = one._talks[two.id]
    for flags, name, args in ((0, "shop.slow", [5.0]), (STREAMS_IN, "shop.total", [])):
        id = talk.begin(name, [args, {}], None, flags)
        talk.futures.pop(id)
        batch = talk.conversation.flush(lambda plane: 1 << 20)
        talk.conversation.cancel(id)
        batch += talk.conversation.flush(lambda plane: 1 << 20)
        for plane, frame, size in batch:
            one._perform(one.sessions.send(two.id, plane, frame, size, asyncio.get_running_loop().time()))
    await settle()
    theirs = two._talks[one.id]
    assert not theirs._tasks and not theirs.inboxes
    await one.stop(), await two.stop()


@virtual
async def test_a_stream_s_generator_is_closed_when_its_caller_leaves(network: Networks) -> None:
    closed: list[str] = []

    @service("river")
    class River:
        @method()
        async def flow(self) -> AsyncIterator[int]:
            try:
                while True:
                    yield 1
            finally:
                closed.append("closed")

    one, two = await network().pair(River())
    async with await one.stream(two.id, "river.flow") as stream:
        await stream.__aiter__().__anext__()
    await settle()
    assert closed == ["closed"]
    await one.stop(), await two.stop()


@virtual
async def test_who_waits_to_send_is_told_when_the_method_has_returned(network: Networks) -> None:
    @service("hasty")
    class Hasty:
        @method(takes_stream=True)
        async def first(self, *, incoming: AsyncIterator[Any]) -> str:
            async for _ in incoming:
                await asyncio.sleep(1)
                break
            return "enough"

    one, two = await network().pair(Hasty())
    async with await one.stream(two.id, "hasty.first", sends=True, receives=False) as stream:
        with pytest.raises(StopAsyncIteration):
            for _ in range(1000):
                await asyncio.wait_for(stream.send(bytes(10_000)), 5)
                if stream._answer.done():
                    raise StopAsyncIteration
        assert await stream.result() == "enough"
    await one.stop(), await two.stop()
