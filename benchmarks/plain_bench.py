"""What plain TCP reaches with the same traffic: one connection, blocking sockets, no security, no names, no objects.

    python plain_bench.py serve --listen 127.0.0.1:7000 --ticket-file /tmp/ticket
    python plain_bench.py load --ticket-file /tmp/ticket

The floor of everything that is built on one TCP stream: what it carries in a direction, and how many frames of a call's
size go there and are answered while so many are under way. Buffers are the kernel's, which grow as far as the
namespace's tcp_rmem and tcp_wmem allow: whoever runs this over a long link raises those to bandwidth × delay.
"""

from __future__ import annotations

import select
import socket
import statistics
import struct
import sys
import time
from collections.abc import Iterator

from mesh_lines import (
    CALL_P50,
    CALL_P99,
    CHUNK,
    IN_FLIGHT,
    LARGE,
    SMALL,
    STREAM,
    Measure,
    arguments,
    large_requests,
    show,
    small_calls,
    write_ticket,
)

HEAD = struct.Struct("!QQd")  # bytes of a request and of its answer, and for a stream (answer 0): seconds to skip
RESULT = struct.Struct("!d")  # of a stream: bytes/s
ANSWER = 8  # bytes back for a large request
READ_BYTES = 1 << 20
TIMEOUT_S = 30.0  # of one send or receive
CALLS_MAX, CALLS_S = 1_000, 5.0  # one at a time: as many as fit into the time, at least CALLS_MIN
CALLS_MIN = 20
WARM_S, WARM_ROUND_TRIPS = 0.5, 30  # TCP's window doubles each round trip: from 14 KB to 64 MiB in 13, losses aside
MEASURE_S, MEASURE_ROUND_TRIPS = 3.0, 30


def serve(listen: tuple[str, int]) -> socket.socket:
    listener = socket.create_server(listen)
    listener.settimeout(None)
    return listener


def answer(connection: socket.socket) -> None:
    """Serve one connection as its first bytes ask."""
    connection.settimeout(TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request, reply, skip_s = HEAD.unpack(receive(connection, HEAD.size))
    if reply:
        answer_frames(connection, request, reply)
    else:
        measure_stream(connection, skip_s)


def answer_frames(connection: socket.socket, request: int, reply: int) -> None:
    """One reply for each whole request that has come, those of one read together."""
    buffer, pending = bytearray(READ_BYTES), 0
    replies = bytes(reply * (READ_BYTES // request + 2))
    while got := connection.recv_into(buffer):
        whole, pending = divmod(pending + got, request)
        if whole:
            connection.sendall(memoryview(replies)[: whole * reply])


def measure_stream(connection: socket.socket, skip_s: float) -> None:
    """Read; after so many seconds, count for as long as is measured, and tell the rate."""
    buffer = bytearray(READ_BYTES)
    began = time.perf_counter()
    counted, from_s, told = 0, 0.0, False
    while got := connection.recv_into(buffer):
        now = time.perf_counter() - began
        if now >= skip_s and not from_s:
            from_s = now
        elif from_s:
            counted += got
        if from_s and now - from_s >= max(MEASURE_S, skip_s) and not told:
            connection.sendall(RESULT.pack(counted / (now - from_s)))
            told = True


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("the other side closed the connection")
        data += more
    return data


def connect(address: tuple[str, int], request: int, reply: int, skip_s: float = 0.0) -> socket.socket:
    connection = socket.create_connection(address, TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(HEAD.pack(request, reply, skip_s))
    return connection


def one_by_one(address: tuple[str, int]) -> list[float]:
    """Seconds of each call."""
    took: list[float] = []
    began = time.perf_counter()
    with connect(address, SMALL, SMALL) as connection:
        while len(took) < CALLS_MIN or (len(took) < CALLS_MAX and time.perf_counter() - began < CALLS_S):
            sent = time.perf_counter()
            connection.sendall(bytes(SMALL))
            receive(connection, SMALL)
            took.append(time.perf_counter() - sent)
    return took[len(took) // 10 :]


def in_flight(
    address: tuple[str, int], request: int, reply: int, frames: int, warm_s: float, measure_s: float
) -> float:
    """Answers a second while so many frames are under way. One thread: the server always reads, so a send never waits
    for an answer to be read here; answers that come meanwhile are small enough for the kernel to keep."""
    payload = memoryview(bytes(request))
    batch = memoryview(bytes(request * min(frames, max(READ_BYTES // request, 1))))

    def send(count: int) -> None:
        per_batch = len(batch) // request
        for _ in range(count // per_batch):
            connection.sendall(batch)
        for _ in range(count % per_batch):
            connection.sendall(payload)

    with connect(address, request, reply) as connection:
        send(frames)
        began, pending, counted, from_s = time.perf_counter(), 0, 0, 0.0
        while True:
            got = len(connection.recv(READ_BYTES))
            if not got:
                raise ConnectionError("the other side closed the connection")
            now = time.perf_counter() - began
            whole, pending = divmod(pending + got, reply)
            if from_s:
                counted += whole
            elif now >= warm_s:
                from_s = now
            if from_s and now - from_s >= measure_s:
                return counted / (now - from_s)
            send(whole)


def stream(address: tuple[str, int], warm_s: float) -> float:
    """Bytes a second that arrive, from us to the other side."""
    chunk = bytes(CHUNK)
    with connect(address, CHUNK, 0, warm_s) as connection:
        while not select.select([connection], [], [], 0)[0]:
            connection.sendall(chunk)
        rate: float = RESULT.unpack(receive(connection, RESULT.size))[0]
        return rate


def measures(address: tuple[str, int]) -> Iterator[Measure]:
    took = sorted(one_by_one(address))
    round_trip_s = statistics.median(took)
    yield Measure(CALL_P50, round_trip_s * 1e6, "us")
    yield Measure(CALL_P99, took[len(took) * 99 // 100] * 1e6, "us")
    warm_s = max(WARM_S, WARM_ROUND_TRIPS * round_trip_s)
    measure_s = max(MEASURE_S, MEASURE_ROUND_TRIPS * round_trip_s)
    for frames in IN_FLIGHT:
        yield Measure(small_calls(frames), in_flight(address, SMALL, SMALL, frames, warm_s, measure_s), "1/s")
    for frames in IN_FLIGHT:
        yield Measure(large_requests(frames), in_flight(address, LARGE, ANSWER, frames, warm_s, measure_s), "1/s")
    yield Measure(STREAM, stream(address, warm_s) / 1e6, "MB/s")


def main() -> int:
    given = arguments(__doc__)
    if given.verb == "load":
        host, _, port = given.ticket_file.read_text().rpartition(":")
        show(measures((host, int(port))), given.json)
        return 0
    with serve(given.listen) as listener:
        write_ticket(given.ticket_file, f"{given.listen[0]}:{listener.getsockname()[1]}")
        while True:
            connection, _ = listener.accept()
            with connection:
                try:
                    answer(connection)
                except (ConnectionError, TimeoutError):  # it has what it wanted, or its process was ended
                    continue


if __name__ == "__main__":
    sys.exit(main())
