"""A member that breaks the rules on purpose: each trick ends in its being dropped, or in memory that has a bound.

The bound of one session is `held_max_bytes` of bodies on their way and items not read (1,104 MiB, three quarters of it
overdrafts by bodies of 256 MiB), and RUNNING_MAX_BYTES of arguments of methods that run; what is kept besides bodies is
counted below. Peers are members, so there are few; whoever goes to the bound can be revoked.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from lattica.errors import RemoteProtocolError
from lattica.mesh import messages as m
from lattica.mesh import rpc, values
from lattica.mesh.bodies import CHUNK_LEAST_BYTES
from lattica.mesh.credit import (
    CALLS_WINDOW_BYTES,
    CREDIT_MAX_BYTES,
    OVERDRAFT_MAX_BYTES,
    RUNNING_MAX_BYTES,
    STREAM_WINDOW_BYTES,
    STREAMS_WINDOW_BYTES,
    held_max_bytes,
)
from lattica.mesh.messages import BODY_MAX_BYTES, INLINE_MAX_BYTES
from lattica.mesh.rpc import CALLS_MAX, FROM_CALLEE, FROM_CALLER, STREAMS_IN, STREAMS_OUT, Conversation
from lattica.mesh.transport.tls_connection import QUEUE_MAX_BYTES, TlsConnection
from lattica.mesh.wire import BULK, CONTROL, FRAME_MAX_BYTES
from tests.mesh.conftest import Network, settle, virtual
from tests.mesh.test_peer import Shop

MIB = 1 << 20
Networks = Callable[..., Network]


@contextmanager
def memory_below(bound_bytes: int) -> Iterator[None]:
    """The block may hold this much at any time."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
        held = tracemalloc.get_traced_memory()[1]
        assert held < bound_bytes, f"{held / MIB:.1f} MiB were held; {bound_bytes / MIB:.1f} are the bound"
    finally:
        tracemalloc.stop()


def say(victim: Conversation, *messages: m.Message) -> list[rpc.Event]:
    return victim.receive(CONTROL, m.encode(list(messages)), 0.0)


def chunk(body: int, data: bytes, flags: int = 0) -> bytes:
    return body.to_bytes(8, "little") + bytes([flags]) + len(data).to_bytes(4, "little") + data


def call(id: int, size: int = 8, flags: int = 0) -> m.Call:
    return m.Call(id, "m", 0, flags, bytes(size))


def until_refused(words: str, step: Callable[[int], object], at_most: int) -> int:
    """How many steps were taken until the victim refused, with these words."""
    for number in range(at_most):
        try:
            step(number)
        except RemoteProtocolError as error:
            assert words in str(error), error
            return number
    raise AssertionError(f"it took {at_most} steps and is not tired yet")


def test_the_bound_of_a_session_is_what_the_page_says() -> None:
    windows = CALLS_WINDOW_BYTES, STREAM_WINDOW_BYTES[0], STREAMS_WINDOW_BYTES
    bound = held_max_bytes(CALLS_MAX, *windows)
    assert bound == 2 * (16 + 256) * MIB + 4096 * (64 << 10) + 48 * MIB + OVERDRAFT_MAX_BYTES
    assert bound // MIB == 1104 and RUNNING_MAX_BYTES // MIB == 256


# -- credit


def test_calls_beyond_their_credit_are_refused() -> None:
    """1 body of 16 KiB less than the window, and one more, which may be of any size; then no more."""
    victim = Conversation()
    victim.running_max_bytes = 0  # nothing that runs gives credit back
    taken = until_refused("came without credit", lambda n: say(victim, call(n + 1, INLINE_MAX_BYTES)), 2000)
    assert taken == CALLS_WINDOW_BYTES // INLINE_MAX_BYTES


def test_methods_that_run_hold_bounded_arguments_however_many_are_called() -> None:
    class Narrow(Conversation):
        window_bytes = 64 << 10
        running_max_bytes = 256 << 10

    victim = Narrow()

    def step(number: int) -> None:
        say(victim, call(number + 1, INLINE_MAX_BYTES))
        victim.flush(lambda plane: 1 << 30)  # it takes what credit it is given

    assert until_refused("came without credit", step, 2000) == (64 + 256) // 16


def test_items_beyond_their_credit_are_refused() -> None:
    victim = Conversation()
    say(victim, call(1, 8, STREAMS_IN))
    item = m.Item(1, FROM_CALLER, bytes(1000))
    assert until_refused("came without credit", lambda n: say(victim, item), 100) == 62


def test_empty_items_cost_as_well() -> None:
    victim = Conversation()
    say(victim, call(1, 8, STREAMS_IN))
    with memory_below(MIB):
        taken = until_refused("came without credit", lambda n: say(victim, m.Item(1, FROM_CALLER, b"")), 10_000)
    assert taken == STREAM_WINDOW_BYTES[0] // 64


def test_many_streams_may_be_overdrawn_by_one_long_item_together() -> None:
    victim = Conversation()
    say(victim, *(call(id, 8, STREAMS_IN) for id in range(1, 101)))

    def step(number: int) -> None:
        say(victim, m.Item(number + 1, FROM_CALLER, m.Large(number, BODY_MAX_BYTES)))

    assert until_refused("are overdrawn by", step, 100) == 1


def test_answers_need_credit_too() -> None:
    """Whom we call may not send us more than we let come: only what we have taken gives credit back."""
    victim = Conversation()
    for _ in range(CALLS_MAX):
        victim.call("m", [b"x"], 1, None, 0, 0.0)

    def step(number: int) -> None:
        say(victim, m.Result(number + 1, m.Large(number + 1, INLINE_MAX_BYTES + 1)))

    assert until_refused("came without credit", step, 2000) == CALLS_WINDOW_BYTES // (INLINE_MAX_BYTES + 1) + 1


@pytest.mark.parametrize(
    "message",
    [
        m.Grant(CREDIT_MAX_BYTES, FROM_CALLEE),
        m.Grant(CREDIT_MAX_BYTES, FROM_CALLER),
        m.Grant(0, FROM_CALLER),
        m.Grant(-1, FROM_CALLER),
        m.Grant(1, 2),
        m.Credit(1, FROM_CALLEE, CREDIT_MAX_BYTES),
        m.Credit(1, FROM_CALLEE, 0),
        m.Credit(1, FROM_CALLEE, 1 << 63),
        m.Credit(2, FROM_CALLEE, 100),
        m.Credit(1, 7, 100),
    ],
)
def test_credit_that_nobody_could_have_to_give_is_refused(message: m.Message) -> None:
    """It would have us make answers and items faster than we can send them."""
    victim = Conversation()
    victim.call("m", [b"x"], 1, None, STREAMS_IN, 0.0)
    victim.call("m", [b"x"], 1, None, 0, 0.0)
    with pytest.raises(RemoteProtocolError):
        say(victim, message)


# -- bodies


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Conversation:
    """A conversation whose bodies are so short that its bound can be reached."""
    monkeypatch.setattr("lattica.mesh.credit.BODY_MAX_BYTES", MIB)
    monkeypatch.setattr("lattica.mesh.credit.OVERDRAFT_MAX_BYTES", MIB)
    monkeypatch.setattr("lattica.mesh.rpc.CALLS_MAX", 16)

    class Narrow(Conversation):
        window_bytes = MIB
        streams_window_bytes = MIB

    return Narrow()


NARROW_HELD_BYTES = 7 * MIB
"""What `narrow` lets come: 2 (1 + 1) MiB for calls and answers, 16 x 64 KiB and 1 MiB for streams, 1 MiB overdrawn."""


@pytest.mark.parametrize("size", [CHUNK_LEAST_BYTES, 64 << 10, 256 << 10])
def test_bodies_that_are_never_announced_hold_what_credit_could_pay_for(narrow: Conversation, size: int) -> None:
    with memory_below(NARROW_HELD_BYTES + 2 * MIB):
        taken = until_refused(
            "more bulk than it has credit for",
            lambda n: narrow.receive(BULK, chunk(n % 100, bytes(size)), 0.0),
            NARROW_HELD_BYTES // size + 2,
        )
    assert taken == NARROW_HELD_BYTES // size


def test_bodies_that_are_never_finished_hold_no_more(narrow: Conversation) -> None:
    def step(number: int) -> None:
        say(narrow, m.Item(number + 1, FROM_CALLER, m.Large(number, 1 << 17)))  # of calls that are over
        narrow.receive(BULK, chunk(number, bytes(65536)), 0.0)

    with memory_below(NARROW_HELD_BYTES + 2 * MIB):
        until_refused("more bulk than it has credit for", step, 200)


def test_bodies_that_are_only_announced_have_a_bound_too(narrow: Conversation) -> None:
    def step(number: int) -> None:
        say(narrow, m.Item(1, FROM_CALLER, m.Large(number, 1 << 17)))

    with memory_below(MIB):
        taken = until_refused("more bulk than it has credit for", step, 1000)
    assert taken == NARROW_HELD_BYTES // INLINE_MAX_BYTES


def test_chunks_of_one_byte_are_refused_since_each_is_an_object(narrow: Conversation) -> None:
    narrow.receive(BULK, chunk(1, b"x"), 0.0)
    with pytest.raises(RemoteProtocolError, match="goes on after a chunk of less than"):
        narrow.receive(BULK, chunk(1, b"x"), 0.0)


def test_one_short_chunk_of_each_of_many_bodies_has_a_bound(narrow: Conversation) -> None:
    with memory_below(2 * MIB):
        until_refused("more bulk than", lambda n: narrow.receive(BULK, chunk(n, b"x"), 0.0), 1000)


def test_giving_up_bodies_that_were_never_announced_has_a_bound(narrow: Conversation) -> None:
    with memory_below(MIB):
        until_refused("gave up more bodies", lambda n: narrow.receive(BULK, chunk(n, b"", 2), 0.0), 1000)


def test_a_body_announced_twice_is_refused() -> None:
    victim = Conversation()
    large = m.Large(1, 100_000)
    with pytest.raises(RemoteProtocolError, match="body 1 was announced twice"):
        say(victim, m.Call(1, "m", 0, 0, large), m.Call(2, "m", 0, 0, large))


@pytest.mark.parametrize("size", [-1, 0, INLINE_MAX_BYTES, BODY_MAX_BYTES + 1, (1 << 64) - 1])
def test_a_body_of_a_size_that_cannot_be_is_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match="was announced"):
        say(Conversation(), m.Call(1, "m", 0, 0, m.Large(1, size)))


def test_a_body_that_is_longer_than_announced_is_refused() -> None:
    victim = Conversation()
    say(victim, m.Call(1, "m", 0, 0, m.Large(1, 100_000)))
    victim.receive(BULK, chunk(1, bytes(70_000)), 0.0)
    with pytest.raises(RemoteProtocolError, match="140000 bytes, and 100000 were announced"):
        victim.receive(BULK, chunk(1, bytes(70_000)), 0.0)


@pytest.mark.parametrize(
    "data", [b"", bytes(12), chunk(1, b""), chunk(1, b"abc")[:-1], chunk(1, b"abc", 4), chunk(1, b"abc", 3),
             (1).to_bytes(8, "little") + b"\1" + (1 << 20).to_bytes(4, "little") + b"bomb"],
)  # fmt: skip
def test_a_chunk_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Conversation().receive(BULK, data, 0.0)


# -- counts and numbers


@pytest.mark.parametrize(
    "head", [b"\xdd", b"\x91\xdd", b"\x91\x93\x03\x01\xdf", b"\x91\x95\x01\x01\xdb", b"\x91\x93\x02\x01\xc6"]
)
def test_a_huge_count_takes_no_memory(head: bytes) -> None:
    with memory_below(MIB), pytest.raises(RemoteProtocolError):
        Conversation().receive(CONTROL, head + b"\xff\xff\xff\xff" + bytes(100), 0.0)


def test_an_error_that_fills_a_frame_is_read_and_forgotten() -> None:
    """A frame of empty lists takes 64 times its bytes while it is read; of an error only what it knows is kept."""
    victim = Conversation()
    victim.call("m", [b"x"], 1, None, 0, 0.0)
    deep = msgspec.msgpack.encode([[3, 1, {"error": "ConfigError", "message": [[]] * (FRAME_MAX_BYTES - 5000)}]])
    with memory_below(96 * MIB):
        (failed,) = victim.receive(CONTROL, deep, 0.0)
        assert isinstance(failed, rpc.Failed)


def test_a_value_of_empty_lists_is_refused_where_it_would_fill_memory() -> None:
    plain = b"\xdd" + (values.PLAIN_MAX_BYTES).to_bytes(4, "big") + b"\x90" * values.PLAIN_MAX_BYTES
    body = b"\0" + len(plain).to_bytes(4, "little") + plain
    with memory_below(MIB), pytest.raises(RemoteProtocolError, match="besides its arrays"):
        values.decode(body)


@pytest.mark.parametrize("flags", [0, STREAMS_IN | STREAMS_OUT])
def test_calls_beyond_the_maximum_are_refused_and_so_are_ten_thousand_tiny_streams(flags: int) -> None:
    victim = Conversation()
    with memory_below(8 * MIB):
        taken = until_refused("4096 are unanswered", lambda n: say(victim, call(n + 1, 0, flags)), 10_000)
    assert taken == CALLS_MAX


def test_ten_thousand_streams_one_after_the_other_leave_nothing() -> None:
    victim = Conversation()

    def one(id: int) -> None:
        say(victim, call(id, 8, STREAMS_IN), m.Item(id, FROM_CALLER, b"x" * 100), m.End(id, FROM_CALLER), m.Cancel(id))
        victim.flush(lambda plane: 1 << 30)

    for id in range(1, 100):
        one(id)
    with memory_below(MIB):
        for id in range(100, 10_000):
            one(id)
    victim.validate()
    assert repr(victim) == "<Conversation: 0 calls out, 0 in, 0 bodies going>"


def test_calling_and_canceling_while_no_answer_is_taken_fills_no_memory() -> None:
    """It acknowledges nothing, so nothing is flushed; what was to be said about calls that are over is dropped."""
    victim = Conversation()
    with memory_below(MIB):
        for id in range(1, 5_000):  # of which the items alone are 2.5 MB
            for event in say(victim, call(id, 8, STREAMS_OUT)):
                assert isinstance(event, rpc.Started)
                victim.item(id, FROM_CALLEE, [bytes(500)], 500)
                victim.fail(id, {"error": "ConfigError", "message": "no such method"})
            say(victim, m.Cancel(id))


def test_deadlines_of_a_century_take_no_memory_once_the_call_is_over() -> None:
    victim = Conversation()
    with memory_below(MIB // 2):
        for id in range(1, 10_000):
            say(victim, m.Call(id, "m", 1 << 50, 0, b"12345678"), m.Cancel(id))


@pytest.mark.parametrize(
    "messages",
    [
        (call(2), call(2)), (call(2), call(1)), (call(0),), (call(-1),), (m.Call(1, "n" * 257, 0, 0, b""),),
        (call(1, INLINE_MAX_BYTES + 1),), (m.Call(1, "m", 0, 0, m.Packed(b"noise", 10)),),
        (m.Call(1, "m", 0, 0, m.Packed(b"noise", INLINE_MAX_BYTES + 1)),),
        (m.Result(9, b"x"),), (m.Failure(9, {}),),
        (call(1), m.Item(1, FROM_CALLER, b"x")), (call(1), m.End(1, FROM_CALLER)),
        (call(1, 8, STREAMS_IN), m.End(1, FROM_CALLER), m.End(1, FROM_CALLER)),
        (call(1, 8, STREAMS_IN), m.End(1, FROM_CALLER), m.Item(1, FROM_CALLER, b"x")),
        (m.Item(1, 2, b"x"),), (m.End(1, -1),),
        (m.Result(1, m.Large(1, 100_000)), m.Result(1, b"x"), m.Result(1, b"x")),
        (m.Item(1, FROM_CALLEE, m.Large(7, 100_000)), m.Result(1, b"x"), m.Result(1, b"x")),
        (m.Item(1, FROM_CALLEE, m.Large(7, 100_000)), m.Failure(1, {}), m.Item(1, FROM_CALLEE, b"x")),
    ],
    ids=range(19),
)  # fmt: skip
def test_what_no_peer_that_keeps_the_rules_says_is_refused(messages: tuple[m.Message, ...]) -> None:
    victim = Conversation()
    victim.call("m", [b"x"], 1, None, STREAMS_OUT, 0.0)
    if messages[0] == m.Result(1, m.Large(1, 100_000)):
        say(victim, *messages[:2])  # the second answers: the first is still on its way, and then unknown
        return
    with pytest.raises(RemoteProtocolError):
        say(victim, *messages)


@pytest.mark.parametrize(
    "message",
    [
        m.Cancel(99), m.End(99, 0), m.Credit(99, 0, 5), m.Item(99, FROM_CALLER, b"late"),
        m.Item(99, FROM_CALLEE, b"late"),
    ],
)  # fmt: skip
def test_news_of_calls_that_are_over_are_normal_and_leave_nothing(message: m.Message) -> None:
    victim = Conversation()
    with memory_below(MIB // 4):
        for _ in range(1000):
            assert say(victim, message) == []


# -- whole peers


async def as_eve(network: Network) -> tuple[Any, Any, Any, Callable[..., None]]:
    """ann and bob talk; eve has a session with bob, and says in it what she likes."""
    ann, bob = await network.pair(Shop())
    eve: Any = await network.peer(Shop())
    await eve.connect(bob.id, bob.listening)

    def tell(*messages: m.Message, plane: int = CONTROL, payload: bytes | None = None) -> None:
        data = m.encode(list(messages)) if payload is None else payload
        loop = asyncio.get_running_loop()
        eve._perform(eve.sessions.send(bob.id, plane, (data,), len(data), loop.time()))

    return ann, bob, eve, tell


@virtual
async def test_who_breaks_a_rule_is_dropped_hears_why_and_nobody_else_notices(network: Networks) -> None:
    ann, bob, eve, tell = await as_eve(network())
    ended: list[str] = []
    eve._talks[bob.id].end = ended.append
    slow = asyncio.ensure_future(ann.call(bob.id, "shop.slow", 5.0))
    await settle(0.1)
    tell(m.Item(1, 9, b"x"))
    await settle(1)
    assert [peer["name"] for peer in bob.peers()] == [ann.name]
    assert eve.sessions.session(bob.id) is None and ended == ["a stream of side 9"]
    assert await slow == "done" and await ann.call(bob.id, "shop.echo", 1) == 1
    for each in (ann, bob, eve):
        await each.stop()


@virtual
async def test_methods_of_a_dropped_peer_are_cancelled(network: Networks) -> None:
    ann, bob, eve, tell = await as_eve(network())
    shop = bob._methods["shop.slow"].function.__self__
    call_ = asyncio.ensure_future(eve.call(bob.id, "shop.slow", 60.0))
    await settle(0.1)
    tell(m.Grant(0, 0))
    await settle(1)
    assert shop.cancelled == 1 and isinstance(await asyncio.gather(call_, return_exceptions=True), list)
    for each in (ann, bob, eve):
        await each.stop()


@virtual
async def test_arguments_that_are_none_are_an_error_for_their_sender_only(network: Networks) -> None:
    ann, bob, eve, _ = await as_eve(network())
    bodies = [b"".join(values.encode(value)[0]) for value in (5, [], [[], []], [[], {}, 3], [5, {}], [[], {"x": 1}])]
    bodies.append(b"\xffnoise")
    talk = eve._talks[bob.id]
    futures = []
    for name in ("shop.total", "shop.echo", "shop.slow"):
        for body in bodies:
            flags = STREAMS_IN if name == "shop.total" else 0
            id = talk.begin(name, ([body], len(body)), None, flags)
            futures.append(talk.futures[id])
    answers = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 5)
    assert sum(isinstance(answer, Exception) for answer in answers) == len(answers)
    assert await ann.call(bob.id, "shop.echo", 1) == 1 and bob.sessions.session(eve.id) is not None
    for each in (ann, bob, eve):
        await each.stop()


@virtual
async def test_a_caller_that_reads_nothing_of_its_streams_holds_bounded_memory_there(network: Networks) -> None:
    ann, bob, eve, tell = await as_eve(network())
    body, size = values.encode([[1 << 30, 1000], {}])
    data = b"".join(body)
    with memory_below(64 * MIB):  # 200 windows of 64 KiB at once: made, encoded and on their way
        tell(*(m.Call(id, "shop.count", 0, STREAMS_OUT, data) for id in range(1, 201)))
        await settle(30)
        assert len(bob._talks[eve.id]._tasks) == 200 and size == len(data)
        assert tracemalloc.get_traced_memory()[0] < 4 * MIB, "and then nothing more is made"
    assert await ann.call(bob.id, "shop.echo", 1) == 1
    for each in (eve, ann, bob):
        await each.stop()


async def test_a_connection_whose_other_side_does_not_read_is_given_up() -> None:
    """It acknowledges what it never read, so the session lets more go; the connection itself has a bound."""
    broken: list[str] = []
    connection: Any = TlsConnection(
        1,
        lambda name: None,
        lambda *_: None,
        lambda _, why: broken.append(why),
        lambda *_: None,  # type: ignore
    )

    class Stuck:
        def is_closing(self) -> bool:
            return False

    connection._transport, connection._tls, connection._paused = Stuck(), object(), True
    written = 0
    while not broken:
        connection.write((b"head", bytes(100_000)))
        connection.flush()
        written += 100_004
    assert QUEUE_MAX_BYTES < written < QUEUE_MAX_BYTES + 200_000 and "did not read" in broken[0]
    assert not connection._queue
    connection.up.cancel()
