"""A stranger with a valid certificate that sends noise, or valid frames bent: it is dropped, and nobody else is."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import RemoteProtocolError
from lattica.mesh import rpc, values, wire
from lattica.mesh.effects import Dial
from lattica.mesh.identity import PeerId
from lattica.mesh.wire import Decoder
from lattica.testing.loop import run_virtually
from tests.mesh.conftest import Network, PlainMember, settle
from tests.mesh.test_peer import Shop

MEMORY_MAX_BYTES = 8 << 20
"""Of what one stranger's kilobytes make a decoder hold: a window, and one frame of its own memory."""


def valid_frames() -> bytes:
    """A hello, data with a call, an acknowledgement and a ping, as a peer sends them."""
    call = rpc.Conversation()
    parts, size = values.encode([["x"], {}])
    call.call("shop.echo", parts, size, None, 0, 0.0)
    (plane, frame, length), *_ = call.flush(lambda plane: 1 << 20)
    assert plane == wire.CONTROL
    out = [wire.encode(wire.Hello(boot=7, instance=b"12345678", proposal=9)), (wire.data_head(length, 1, 0), *frame)]
    out += [wire.encode(wire.Ack(0)), wire.encode(wire.Ping(3))]
    return b"".join(b"".join(each) for each in out)


VALID = valid_frames()
bent = st.builds(
    lambda places: bytes(places.get(at, byte) for at, byte in enumerate(VALID)),
    st.dictionaries(st.integers(0, len(VALID) - 1), st.integers(0, 255), min_size=1, max_size=6),
)
noise = st.one_of(st.binary(max_size=400), bent, bent.map(lambda data: data[: len(data) // 2]))


def refused_or_read(read: Callable[[bytes], object], data: bytes) -> None:
    try:
        read(data)
    except RemoteProtocolError:
        pass


class Deaf:
    """The owner of a transport that hears nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@given(noise)
def test_a_decoder_answers_noise_with_frames_or_a_protocol_error_in_bounded_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        refused_or_read(Decoder().feed, data)
        trusting = Decoder()
        trusting.trust()
        refused_or_read(trusting.feed, data)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX_BYTES
    finally:
        tracemalloc.stop()


@given(noise)
def test_a_conversation_answers_noise_with_events_or_a_protocol_error(data: bytes) -> None:
    for plane in wire.PLANES:
        refused_or_read(lambda payload, plane=plane: rpc.Conversation().receive(plane, payload, 0.0), data)
    refused_or_read(values.decode, data)


@given(st.lists(noise, min_size=1, max_size=4), st.booleans())
def test_a_peer_that_sends_noise_is_dropped_and_the_others_go_on(pieces: list[bytes], politely: bool) -> None:
    async def story() -> None:
        network = Network(0.001)
        one, two = await network.pair(Shop())
        stranger = await network.peer() if politely else None
        if stranger is not None:  # noise in the middle of a session
            await stranger.connect(two.id, two.listening)
            transport: Any = stranger._transport
        else:  # noise in place of a hello
            transport = network.memory.transport(Deaf(), PlainMember(PeerId(bytes([77]) * 32)))
            transport.dial(Dial(1, two.id, tuple(two.listening)))
            await settle(0.1)
        assert transport._ends
        for number in list(transport._ends):
            for piece in pieces:
                transport.write(number, (piece,))
        transport.flush()
        await settle(2)
        assert await one.call(two.id, "shop.echo", 5, timeout_s=5) == 5
        for each in (one, two, *([stranger] if stranger else [])):
            await each.stop()

    run_virtually(story())
