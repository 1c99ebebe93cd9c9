"""One session: whatever happens to its connections, what is sent arrives once and in order."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattica.errors import RemoteProtocolError
from lattica.mesh.effects import Transmit
from lattica.mesh.session import (
    ACK_DELAY_S,
    ACK_EVERY_BYTES,
    FRAME_COST_BYTES,
    UNACKED_MAX_BYTES,
    Session,
)
from lattica.mesh.wire import BULK, CONTROL, Ack, Data, Decoder, Hello, encode


def read(effects: list[Transmit]) -> list[Any]:
    """The frames that were written."""
    decoder = Decoder()
    decoder.trust()
    return decoder.feed(b"".join(b"".join(effect.frame) for effect in effects))


def attached() -> Session:
    session = Session(7)
    assert session.attach(CONTROL, 1, 0) == []
    return session


def test_frames_are_numbered_from_one_and_carry_the_last_number_that_came() -> None:
    session = attached()
    assert session.receive(CONTROL, Data(1, 0, b"theirs"), 0.0)
    (first,) = read(session.send(CONTROL, (b"on", b"e"), 3))
    (second,) = read(session.send(CONTROL, (b"two",), 3))
    assert (first.seq, first.ack, bytes(first.payload)) == (1, 1, b"one") and (second.seq, second.ack) == (2, 1)


def test_planes_do_not_know_of_each_other() -> None:
    session = attached()
    session.attach(BULK, 2, 0)
    session.send(CONTROL, (b"a",), 1)
    (frame,) = read(session.send(BULK, (b"b",), 1))
    assert frame.seq == 1 and session.unacked_bytes(CONTROL) == session.unacked_bytes(BULK) == 1
    session.acknowledged(BULK, 1)
    assert (session.unacked_bytes(CONTROL), session.unacked_bytes(BULK)) == (1, 0)


def test_what_was_not_acknowledged_goes_again_over_the_next_connection() -> None:
    session = attached()
    for number in range(4):
        session.send(CONTROL, (b"%d" % number,), 1)
    session.acknowledged(CONTROL, 1)
    session.detach(1)
    assert session.send(CONTROL, (b"4",), 1) == [] and session.connection(CONTROL) is None
    again = session.attach(CONTROL, 9, 2)
    assert {effect.connection for effect in again} == {9}
    assert [(frame.seq, bytes(frame.payload)) for frame in read(again)] == [(3, b"2"), (4, b"3"), (5, b"4")]


def test_a_frame_that_comes_again_is_dropped_and_acknowledged_again() -> None:
    session = attached()
    assert session.receive(CONTROL, Data(1, 0, b"x"), 0.0)
    session.tick(ACK_DELAY_S)
    assert not session.receive(CONTROL, Data(1, 0, b"x"), 1.0)
    assert read(session.tick(1.0 + ACK_DELAY_S)) == [Ack(1)]


@pytest.mark.parametrize("seq", [0, 3, 1 << 63])
def test_a_gap_breaks_the_rules(seq: int) -> None:
    session = attached()
    session.receive(CONTROL, Data(1, 0, b"x"), 0.0)
    with pytest.raises(RemoteProtocolError, match=f"frame {seq} came after frame 1"):
        session.receive(CONTROL, Data(seq, 0, b"x"), 0.0)


def test_acknowledging_what_was_never_sent_breaks_the_rules() -> None:
    session = attached()
    session.send(CONTROL, (b"x",), 1)
    for breaks in (
        lambda: session.acknowledged(CONTROL, 2),
        lambda: session.receive(CONTROL, Data(1, 2, b"x"), 0.0),
        lambda: session.attach(CONTROL, 2, 2),
    ):
        with pytest.raises(RemoteProtocolError, match="the last one sent is 1"):
            breaks()
    session.validate()


def test_an_acknowledgement_waits_for_a_frame_that_goes_the_other_way() -> None:
    session = attached()
    assert session.next_deadline() is None
    session.receive(CONTROL, Data(1, 0, b"x"), 5.0)
    assert session.next_deadline() == 5.0 + ACK_DELAY_S and session.tick(5.0) == []
    session.send(CONTROL, (b"y",), 1)
    assert session.next_deadline() is None, "the frame carried it"
    session.receive(CONTROL, Data(2, 0, b"x"), 6.0)
    assert read(session.tick(6.0 + ACK_DELAY_S)) == [Ack(2)] and session.next_deadline() is None


def test_many_bytes_are_acknowledged_at_once() -> None:
    """The sender must never wait for an acknowledgement that waits for its next frame."""
    session = attached()
    session.receive(CONTROL, Data(1, 0, bytes(ACK_EVERY_BYTES)), 5.0)
    assert session.next_deadline() == 5.0 and read(session.tick(5.0)) == [Ack(1)]


def test_room_is_what_back_pressure_is_made_of() -> None:
    session = attached()
    session.send(CONTROL, (bytes(1 << 20),), 1 << 20)
    assert session.room(CONTROL) == UNACKED_MAX_BYTES - (1 << 20) - FRAME_COST_BYTES
    session.acknowledged(CONTROL, 1)
    assert session.room(CONTROL) == UNACKED_MAX_BYTES and session.acked_bytes(CONTROL) == 1 << 20


def test_tiny_frames_fill_the_room_as_well() -> None:
    """An adversary that acknowledges nothing and asks for one-byte answers must not fill memory with their heads."""
    session = attached()
    count = 0
    while session.room(CONTROL) > 0:
        session.send(CONTROL, (b"x",), 1)
        count += 1
    assert count <= UNACKED_MAX_BYTES // FRAME_COST_BYTES + 1


class Wire:
    """One direction of a connection: keeps order, and loses what is on the way when it dies."""

    def __init__(self) -> None:
        self.frames: deque[Any] = deque()


@given(st.data())
def test_everything_arrives_once_and_in_order_whatever_connections_do(data: st.DataObject) -> None:
    """Two sessions, connections that come and die with frames on the way, hellos that are old when they are read."""
    sessions = Session(1), Session(1)
    sent: tuple[list[bytes], ...] = ([], [])
    got: tuple[list[bytes], ...] = ([], [])
    wires: dict[int, tuple[Wire, Wire]] = {}
    now, last = 0.0, 0
    greeted: list[tuple[int, int]] = []  # what each had received when a connection was made

    def write(side: int, effects: list[Transmit]) -> None:
        for effect in effects:
            if effect.connection in wires:
                wires[effect.connection][side].frames.extend(read([effect]))

    def connect() -> None:
        nonlocal last
        last += 1
        wires[last] = Wire(), Wire()
        greeted.append((sessions[0].received(CONTROL), sessions[1].received(CONTROL)))

    def attach(side: int) -> None:
        if last in wires and sessions[side].connection(CONTROL) != last:
            write(side, sessions[side].attach(CONTROL, last, greeted[last - 1][1 - side]))

    def die() -> None:
        for number in list(wires):
            del wires[number]
            for session in sessions:
                session.detach(number)

    def deliver(side: int, count: int) -> None:
        connection = sessions[1 - side].connection(CONTROL)
        frames = wires[connection][side].frames if connection in wires else deque()
        for _ in range(min(count, len(frames))):
            take(1 - side, frames.popleft())

    def take(side: int, frame: Any) -> None:
        if isinstance(frame, Ack):
            sessions[side].acknowledged(CONTROL, frame.ack)
        elif sessions[side].receive(CONTROL, frame, now):
            got[side].append(bytes(frame.payload))

    for _ in range(data.draw(st.integers(0, 60))):
        side = data.draw(st.integers(0, 1))
        match data.draw(st.sampled_from(("send", "send", "send", "deliver", "deliver", "tick", "connect", "die"))):
            case "send":
                payload = b"%d" % len(sent[side])
                sent[side].append(payload)
                write(side, sessions[side].send(CONTROL, (payload,), len(payload)))
            case "deliver":
                deliver(side, data.draw(st.integers(1, 5)))
            case "tick":
                now += 0.015
                write(side, sessions[side].tick(now))
            case "connect":
                if last not in wires:
                    connect()
                attach(side)
            case "die":
                die()
        for session in sessions:
            session.validate()
        assert got[1] == sent[0][: len(got[1])] and got[0] == sent[1][: len(got[0])]

    die()
    connect()
    attach(0), attach(1)
    for _ in range(4):
        now += 1
        deliver(0, 1000), deliver(1, 1000)
        write(0, sessions[0].tick(now)), write(1, sessions[1].tick(now))
    assert got[1] == sent[0] and got[0] == sent[1]
    assert [session.unacked_bytes(CONTROL) for session in sessions] == [0, 0], "and both sides know it"


def test_a_session_says_whether_the_other_side_knows_it() -> None:
    session = attached()
    session.send(CONTROL, (b"x",), 1)
    assert not session.begun
    session.acknowledged(CONTROL, 1)
    assert session.begun and "1 sent, 0 received, 0 unacked" in repr(session)


def test_frames_of_a_session_are_read_by_the_decoder_of_the_wire() -> None:
    session = attached()
    decoder = Decoder()
    decoder.feed(b"".join(encode(Hello(boot=1, instance=b""))))
    (effect,) = session.send(CONTROL, (b"a" * 40_000, b"b"), 40_001)
    (frame,) = decoder.feed(b"".join(effect.frame))
    assert bytes(frame.payload) == b"a" * 40_000 + b"b"
