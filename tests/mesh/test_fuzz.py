"""Messages that could be valid, in any order, with any numbers: harder to refuse than noise.

Whatever comes, a conversation answers with events or RemoteProtocolError, its books add up until then, and a whole peer
drops who sent it, goes on with the others, and takes bounded memory.
"""

from __future__ import annotations

import asyncio
import logging
import tracemalloc
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import LatticaError, RemoteProtocolError
from lattica.mesh import messages as m
from lattica.mesh import rpc, values
from lattica.mesh.messages import BODY_MAX_BYTES, INLINE_MAX_BYTES
from lattica.mesh.rpc import FROM_CALLEE, FROM_CALLER, STREAMS_IN, STREAMS_OUT, Conversation
from lattica.mesh.wire import BULK, CONTROL, PLANES
from lattica.testing.loop import run_virtually
from tests.mesh.conftest import Network, settle
from tests.mesh.pairs import Small
from tests.mesh.test_peer import Shop

MEMORY_MAX_BYTES = 4 << 20
"""Of what a few dozen messages of some kilobytes make a conversation hold."""

extremes = (-(1 << 63), -1, 0, 1, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
ids = st.one_of(st.integers(0, 6), st.sampled_from(extremes))
sides = st.one_of(st.sampled_from((0, 1)), st.sampled_from((0, 1)), st.sampled_from(extremes))
sizes = st.one_of(
    st.integers(0, 100),
    st.sampled_from((INLINE_MAX_BYTES, INLINE_MAX_BYTES + 1, 70_000, BODY_MAX_BYTES, BODY_MAX_BYTES + 1)),
    st.sampled_from(extremes),
)
bodies = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"".join(values.encode(value)[0]) for value in ([[], {}], [[5], {}], [5, 6], None, [[], []])]),
    st.builds(m.Packed, st.binary(max_size=40), sizes),
    st.builds(m.Large, ids, sizes),
    st.builds(m.Large, ids, st.just(INLINE_MAX_BYTES + 1)),
)
NAMES = ("shop.echo", "shop.slow", "shop.count", "shop.total", "shop.double", "shop.fail", "shop.admin", "no.such")
plain = st.recursive(
    st.one_of(st.none(), st.integers(-(1 << 63), 1 << 63), st.text(max_size=9), st.binary(max_size=9), st.floats()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)),
)
errors = st.one_of(
    st.dictionaries(st.sampled_from(("error", "message", "cause", "advice", "args", "type_name")), plain, max_size=5),
    st.fixed_dictionaries({"error": st.sampled_from(("ConfigError", "CallFailedError", "_Base", "list", "Any"))}),
)
messages = st.one_of(
    st.builds(m.Call, ids, st.sampled_from(NAMES), sizes, st.integers(-1, 5), bodies),
    st.builds(m.Result, ids, bodies),
    st.builds(m.Failure, ids, errors),
    st.builds(m.Cancel, ids),
    st.builds(m.Item, ids, sides, bodies),
    st.builds(m.End, ids, sides),
    st.builds(m.Credit, ids, sides, sizes),
    st.builds(m.Grant, sizes, sides),
)


def chunk(body: int, flags: int, size: int, payload: bytes) -> bytes:
    return (
        (body % (1 << 64)).to_bytes(8, "little") + bytes([flags]) + (size % (1 << 32)).to_bytes(4, "little") + payload
    )


chunks = st.one_of(
    st.builds(chunk, ids, st.integers(0, 255), sizes, st.binary(max_size=30)),
    st.builds(lambda id, n: chunk(id, 0, n, bytes(n)), ids, st.sampled_from((1, 4096, INLINE_MAX_BYTES + 1))),
    st.builds(lambda id: chunk(id, 2, 0, b""), ids),
)
payloads = st.one_of(
    st.tuples(st.just(CONTROL), st.lists(messages, min_size=1, max_size=5).map(m.encode)),
    st.tuples(st.just(BULK), chunks),
    st.tuples(st.sampled_from(PLANES), st.binary(max_size=60)),
)


@st.composite
def bent_messages(draw: st.DrawFn) -> bytes:
    """Valid messages with a few bytes changed, cut or doubled."""
    data = bytearray(m.encode(draw(st.lists(messages, min_size=1, max_size=4))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(("change", "cut", "double"))):
            case "change" if data:
                data[at] = draw(st.integers(0, 255))
            case "cut":
                del data[at : at + draw(st.integers(1, 8))]
            case "double":
                data[at:at] = data[at : at + 8]
    return bytes(data)


def user(conversation: Conversation, events: list[rpc.Event]) -> None:
    """A user that answers some calls, reads what comes, and looks at errors."""
    for event in events:
        match event:
            case rpc.Started(id):
                if id % 3 == 0:
                    conversation.result(id, [b"answer"], 6)
                elif id % 3 == 1:
                    conversation.fail(id, {"error": "ConfigError"})
                elif conversation.may_send(id, FROM_CALLEE, 5):
                    conversation.item(id, FROM_CALLEE, [b"item!"], 5)
            case rpc.Came(id, side, body):
                conversation.consumed(id, side, len(body))
            case rpc.Failed(_, error):
                assert isinstance(LatticaError.from_data(error), LatticaError)
            case rpc.Answered(_, body):
                try:
                    values.decode(body)
                except RemoteProtocolError:
                    pass


@given(st.lists(st.one_of(payloads, bent_messages().map(lambda data: (CONTROL, data))), max_size=30))
def test_whatever_messages_come_a_conversation_answers_or_refuses(sent: list[tuple[int, bytes]]) -> None:
    tracemalloc.start()
    try:
        conversation = Small()
        for flags in (0, STREAMS_IN, STREAMS_OUT, STREAMS_IN | STREAMS_OUT):
            id = conversation.call("m", [b"x" * 20_000], 20_000, 5.0, flags, 0.0)
            if flags & STREAMS_IN:
                conversation.item(id, FROM_CALLER, [b"item!"], 5)
        conversation.cancel(3)
        for step, (plane, payload) in enumerate(sent):
            try:
                events = conversation.receive(plane, payload, step)
            except RemoteProtocolError:
                break  # the peer is dropped, and its conversation with it
            user(conversation, events)
            user(conversation, conversation.tick(step))
            conversation.validate()
            if step % 3 == 0:
                conversation.flush(lambda plane: 1 << 30)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX_BYTES
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=200))
def test_noise_for_errors_is_an_error_or_refused(data: bytes) -> None:
    try:
        found = msgspec.msgpack.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return
    assert isinstance(LatticaError.from_data(found), LatticaError)


@given(
    st.lists(st.one_of(payloads, bent_messages().map(lambda data: (CONTROL, data))), min_size=1, max_size=12),
    st.lists(st.sampled_from(("echo", "slow", "count", "double")), max_size=3),
)
def test_whatever_messages_come_a_peer_goes_on_with_the_others(sent: list[tuple[int, bytes]], asked: list[str]) -> None:
    """eve has a session with bob, who also calls her; inside it she says what she likes. ann hears nothing of it."""

    async def story() -> None:
        unforeseen: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: unforeseen.append(context))
        bugs = logging.Handler(logging.ERROR)  # where a peer survives a bug of its own, it logs it
        bugs.emit = unforeseen.append  # type: ignore[method-assign]
        log = logging.getLogger("lattica")
        log.addHandler(bugs)
        network = Network(0.001)
        ann, bob = await network.pair(Shop())
        eve = await network.peer(Shop())
        await eve.connect(bob.id, bob.listening)
        asking = [asyncio.ensure_future(ask(bob, eve, name)) for name in asked]
        await settle(0.01)
        loop = asyncio.get_running_loop()
        for plane, payload in sent:
            if eve.sessions.session(bob.id) is not None:
                eve._perform(eve.sessions.send(bob.id, plane, (payload,), len(payload), loop.time()))
                eve._transport.flush()
            await settle(0.02)
            bob.sessions.validate()
        assert await ann.call(bob.id, "shop.echo", 5, timeout_s=5) == 5
        for each in (eve, ann, bob):
            await each.stop()
        await asyncio.gather(*asking, return_exceptions=True)
        log.removeHandler(bugs)
        assert not unforeseen, unforeseen

    run_virtually(story())


async def ask(bob: Any, eve: Any, name: str) -> None:
    """What bob asks of eve; she may answer anything, and he hears nothing but LatticaErrors."""
    try:
        match name:
            case "echo" | "slow":
                await bob.call(eve.id, f"shop.{name}", 1.0, timeout_s=3)
            case "count":
                async with await bob.stream(eve.id, "shop.count", 1_000, 2000, timeout_s=3) as stream:
                    async for _ in stream:
                        pass
            case "double":
                async with await bob.stream(eve.id, "shop.double", sends=True, timeout_s=3) as stream:
                    for number in range(500):
                        await stream.send([number] * 100)
                    await stream.finish()
                    async for _ in stream:
                        pass
    except LatticaError:
        pass
