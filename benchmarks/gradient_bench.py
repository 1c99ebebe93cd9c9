"""Gradient's `lattica` (PyPI, 1.0.21), by the same lines; runs in the environment that `pairs.gradient` makes.

    python gradient_bench.py serve --listen 127.0.0.1:7000 --ticket-file /tmp/ticket
    python gradient_bench.py load --ticket-file /tmp/ticket

What is done in its favour: its log and its backtraces are off, which write to stdout and cost it a third of its rate;
only the listed address is used (no mDNS, UPnP or other bootstrap nodes); each line has a fresh process and connection,
so that one which overloads it does not harm the next; and its client's own three tries a call are left on. A call that
failed for good is counted and printed. Every wait has an end: a line that hangs is killed after LINE_TIMEOUT_S.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mesh_lines import (
    CALL_P50,
    CALL_P99,
    CHUNK,
    ERROR_MAX_CHARS,
    IN_FLIGHT,
    LARGE,
    SMALL,
    STREAM,
    Measure,
    arguments,
    large_requests,
    read_measures,
    show,
    small_calls,
    write_ticket,
)

os.environ |= {"RUST_LOG": "off", "RUST_BACKTRACE": "0", "RUST_LIB_BACKTRACE": "0"}  # read when the package is loaded

from lattica import ConnectionHandler, Lattica, rpc_method, rpc_stream, rpc_stream_iter

UPLOAD = "64 MiB as one request by rpc_stream"
UPLOAD_BYTES = 64 << 20
STREAM_BYTES = 128 << 20  # two or three seconds
CALLS = 1_000  # one at a time
WARM_S, MEASURE_S = 0.5, 3.0  # of a rate
CALL_TIMEOUT_S = 10  # whole seconds: its future takes no others
CONNECT_TIMEOUT_S = 20.0
LINE_TIMEOUT_S = 45.0


class Bench(ConnectionHandler):
    """What is called. Values are pickled by the package on both sides."""

    @rpc_method
    def echo(self, data: bytes) -> bytes:
        return data

    @rpc_method
    def take(self, data: bytes) -> int:
        return len(data)

    @rpc_stream
    def upload(self, data: bytes) -> int:
        return len(data)

    @rpc_stream_iter
    def flow(self, total: int) -> Iterator[bytes]:
        chunk = bytes(CHUNK)
        for _ in range(total // CHUNK):
            yield chunk


def node(listen: str, bootstraps: list[str]) -> Lattica:
    folder = tempfile.mkdtemp(prefix="gradient-")
    made = Lattica.builder().with_mdns(False).with_upnp(False).with_listen_addrs([listen])
    made = made.with_key_path(folder).with_storage_path(f"{folder}/blocks").with_dht_db_path(f"{folder}/dht")
    return (made.with_bootstraps(bootstraps) if bootstraps else made).build()


def connect(ticket: str) -> Any:
    """A stub whose calls arrive."""
    peer = ticket.rpartition("/")[2]
    stub = Bench(node("/ip4/0.0.0.0/tcp/0", [ticket])).get_stub(peer)
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            stub.echo(b"x").result(timeout=CALL_TIMEOUT_S)
            return stub
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def words_of(error: BaseException) -> str:
    """An error without its ids, so that the same ones are counted together."""
    text = str(error).partition("\\n\\nStack backtrace")[0]
    return re.sub(r"\b[0-9a-f]{8,}(-[0-9a-f-]+)?(/\d+)?\b", "…", text)[:ERROR_MAX_CHARS]


def one_by_one(stub: Any) -> Iterator[Measure]:
    took, payload, errors = [], bytes(SMALL), Counter[str]()
    for _ in range(CALLS + CALLS // 10):
        began = time.perf_counter()
        try:
            stub.echo(payload).result(timeout=CALL_TIMEOUT_S)
            took.append(time.perf_counter() - began)
        except RuntimeError as error:
            errors[words_of(error)] += 1
    took = sorted(took[CALLS // 10 :])
    yield Measure(CALL_P50, took[len(took) // 2] * 1e6, "us", errors)
    yield Measure(CALL_P99, took[len(took) * 99 // 100] * 1e6, "us", errors)


def in_flight(name: str, call: Callable[[], Any], window: int) -> Iterator[Measure]:
    """Calls that were answered, a second, while so many are under way. The oldest is waited for first."""
    calls = deque(call() for _ in range(window))
    errors: Counter[str] = Counter()
    began, from_s, answered = time.perf_counter(), 0.0, 0
    while True:
        try:
            calls.popleft().result(timeout=CALL_TIMEOUT_S)
            answered += 1
        except RuntimeError as error:
            errors[words_of(error)] += 1
        now = time.perf_counter() - began
        if not from_s and now >= WARM_S:
            from_s, answered = now, 0
            errors.clear()
        elif from_s and now - from_s >= MEASURE_S:
            break
        calls.append(call())
    yield Measure(name, answered / (now - from_s), "1/s", errors)


def stream(stub: Any) -> Iterator[Measure]:
    """From the server to us: its only stream of many messages."""
    began, received = time.perf_counter(), 0
    for chunk in stub.flow(STREAM_BYTES):
        received += len(chunk)
    took = time.perf_counter() - began
    short = {f"the stream ended after {received:,} of {STREAM_BYTES:,} bytes, without an error": 1}
    yield Measure(STREAM, received / took / 1e6, "MB/s", short if received < STREAM_BYTES else {})


def upload(stub: Any) -> Iterator[Measure]:
    payload = bytes(UPLOAD_BYTES)
    began = time.perf_counter()
    received = stub.upload(payload).result(timeout=int(LINE_TIMEOUT_S))
    yield Measure(UPLOAD, received / (time.perf_counter() - began) / 1e6, "MB/s")


def lines() -> Mapping[str, Callable[[Any], Iterator[Measure]]]:
    """Name of a line -> what measures it (and what belongs to it)."""
    small, large = bytes(SMALL), bytes(LARGE)

    def echoes(window: int) -> Callable[[Any], Iterator[Measure]]:
        return lambda stub: in_flight(small_calls(window), lambda: stub.echo(small), window)

    def requests(window: int) -> Callable[[Any], Iterator[Measure]]:
        return lambda stub: in_flight(large_requests(window), lambda: stub.take(large), window)

    return {
        CALL_P50: one_by_one,
        **{small_calls(window): echoes(window) for window in IN_FLIGHT},
        **{large_requests(window): requests(window) for window in IN_FLIGHT},
        STREAM: stream,
        UPLOAD: upload,
    }


def each_alone(ticket_file: Path) -> Iterator[Measure]:
    """Every line in a process of its own; what went wrong is the line's error."""
    for name in lines():
        words = [sys.executable, __file__, "load", "--ticket-file", str(ticket_file), "--json"]
        try:
            done = subprocess.run(
                words, env=os.environ | {LINE_VARIABLE: name}, timeout=LINE_TIMEOUT_S, capture_output=True, check=False
            )
        except subprocess.TimeoutExpired:
            yield Measure(name, None, "", {f"no end after {LINE_TIMEOUT_S:.0f} s": 1})
            continue
        yield from read_measures(done.stdout.decode(errors="replace"))
        if done.returncode:
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            yield Measure(name, None, "", {f"exit code {done.returncode}: {last[:ERROR_MAX_CHARS]}": 1})


LINE_VARIABLE = "GRADIENT_BENCH_LINE"
"""Set for the processes that `load` starts: the one line that each measures."""


def main() -> int:
    given = arguments(__doc__)
    if given.verb == "serve":
        host, port = given.listen
        address = f"/ip4/{host}/tcp/{port}"
        served = node(address, [])
        handler = Bench(served)
        write_ticket(given.ticket_file, f"{address}/p2p/{served.peer_id()}")
        signal.pause()  # until SIGTERM
        del handler
        return 0
    if name := os.environ.get(LINE_VARIABLE):
        show(lines()[name](connect(given.ticket_file.read_text())), as_json=True)
        sys.stdout.flush()
        os._exit(0)  # the package's own end may hang
    show(each_alone(given.ticket_file), given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
