"""Datagrams over TLS: `u16 length · datagram`, however the bytes are cut."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from lattica.mesh.nat.routes import Endpoint
from lattica.mesh.relay.channels import DATAGRAM_MAX_BYTES
from lattica.mesh.relay.framed import BACKLOG_MAX_BYTES, CLOSE_S, Framed
from tests.mesh.transport.test_quic import virtual


class StageConnection:
    """As much of a TLS connection as framing needs."""

    def __init__(self) -> None:
        self.remote = "192.0.2.7:443"
        self.reader: Framed | None = None
        self.drained: Callable[[], None] = lambda: None
        self.written = b""
        self.backlog = 0
        self.paused = self.aborted = self.finished = False

    def now(self) -> float:
        return 0.0

    def write_ahead(self, most: int) -> None: ...
    def flush(self) -> None: ...

    def write(self, frame: tuple[bytes, ...]) -> None:
        self.written += b"".join(frame)

    def abort(self) -> None:
        self.aborted = True

    def finish(self) -> None:
        self.finished = True


def framed() -> tuple[Framed, StageConnection, list[bytes]]:
    connection, came = StageConnection(), list[bytes]()
    return Framed(connection, lambda _, data: came.append(data)), connection, came  # type: ignore[arg-type]


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=20), st.lists(st.integers(1, 200), max_size=50))
def test_datagrams_come_out_as_they_went_in_however_the_bytes_are_cut(datagrams: list[bytes], cuts: list[int]) -> None:
    sender, sent, _ = framed()
    sender.send(datagrams)
    receiver, _, came = framed()
    stream = sent.written
    for cut in cuts:
        receiver.feed_data(stream[:cut])
        stream = stream[cut:]
    receiver.feed_data(stream)
    assert came == datagrams


@given(st.binary(max_size=5000))
def test_noise_is_read_as_short_datagrams_or_ends_the_connection(noise: bytes) -> None:
    receiver, connection, came = framed()
    receiver.feed_data(noise)
    assert all(0 < len(datagram) <= DATAGRAM_MAX_BYTES for datagram in came)
    assert connection.aborted or len(receiver._rest) <= DATAGRAM_MAX_BYTES + 2


def test_one_that_speaks_something_else_is_dropped() -> None:
    for begins in (b"\x00\x00", b"\xff\xff", (DATAGRAM_MAX_BYTES + 1).to_bytes(2, "big")):
        receiver, connection, came = framed()
        receiver.feed_data(begins + bytes(100))
        assert connection.aborted and not came


def test_what_the_other_side_does_not_read_is_lost_beyond_a_bound() -> None:
    sender, connection, _ = framed()
    connection.backlog = BACKLOG_MAX_BYTES + 1
    sender.send([b"x" * 100])
    assert not connection.written


@virtual
async def test_one_that_does_not_read_the_last_words_is_cut_off_after_a_moment() -> None:
    patient, connection, _ = framed()
    patient.close()
    assert connection.finished and not connection.aborted
    await asyncio.sleep(CLOSE_S + 0.1)
    assert connection.aborted


def test_at_the_end_of_the_node_one_that_does_not_read_is_cut_off_at_once_and_another_is_not() -> None:
    for backlog in (0, 1):
        sender, connection, _ = framed()
        connection.backlog = backlog
        sender.close(within_s=0.0)
        assert connection.finished and connection.aborted == bool(backlog)


def test_it_is_told_once_that_the_connection_has_ended() -> None:
    receiver, _, _ = framed()
    ends: list[Framed] = []
    receiver.ended = ends.append
    receiver.feed_eof()
    receiver.feed_eof()
    receiver.send([b"x"])
    assert ends == [receiver] and receiver.remote == Endpoint("192.0.2.7", 443)
