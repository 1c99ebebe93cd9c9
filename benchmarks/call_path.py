"""Where the time of one call goes: the floor of two processes and a socket, a call one by one, and the CPU of a burst.

python benchmarks/call_path.py
"""

from __future__ import annotations

import os
import socket
import statistics
import time

import lattica

CALLS = 1000
BURST = 10_000


@lattica.remote
class Echo:
    """Answers, and says how much CPU it has used."""

    def noop(self) -> None:
        """Nothing."""

    def cpu_s(self) -> float:
        """CPU seconds of this worker so far."""
        return time.process_time()


@lattica.remote
def noop() -> None:
    """Nothing."""


def p50_us(call, calls: int = CALLS) -> float:
    """Median microseconds of one call, after a tenth of them for warming up."""
    took = []
    for _ in range(calls + calls // 10):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return statistics.median(took[calls // 10 :]) * 1e6


def socket_floor(*, spin: bool) -> float:
    """A byte there and back between two processes that do nothing else; `spin`: neither ever sleeps."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        theirs.setblocking(not spin)
        while True:
            try:
                data = theirs.recv(1)
            except BlockingIOError:
                continue
            if not data:
                os._exit(0)
            theirs.send(data)
    theirs.close()
    ours.setblocking(not spin)

    def trip() -> None:
        ours.send(b"x")
        while True:
            try:
                ours.recv(1)
                return
            except BlockingIOError:
                continue

    try:
        return p50_us(trip)
    finally:
        ours.close()
        os.waitpid(pid, 0)


def main() -> None:
    """Print the table."""
    rows = [
        ("a byte over a socket and back, both sides sleep", socket_floor(spin=False), "us"),
        ("the same, neither side sleeps", socket_floor(spin=True), "us"),
    ]
    lattica.init(num_cpus=2)
    echo = Echo.remote()
    lattica.get(echo.noop.remote())
    rows.append(("an actor call, one by one", p50_us(lambda: lattica.get(echo.noop.remote())), "us"))
    rows.append(("a task, one by one", p50_us(lambda: lattica.get(noop.remote())), "us"))
    worker, driver = lattica.get(echo.cpu_s.remote()), time.process_time()
    began = time.perf_counter()
    refs = [echo.noop.remote() for _ in range(BURST)]
    submitted = time.perf_counter() - began
    lattica.get(refs)
    took = time.perf_counter() - began
    driver, worker = time.process_time() - driver, lattica.get(echo.cpu_s.remote()) - worker
    rows += [
        (f"{BURST} actor calls at once, each", took / BURST * 1e6, "us"),
        ("  of which submitting", submitted / BURST * 1e6, "us"),
        ("  CPU of the driver", driver / BURST * 1e6, "us"),
        ("  CPU of the worker", worker / BURST * 1e6, "us"),
    ]
    lattica.shutdown()
    print("| step | p50 or mean |\n|---|---|")
    for name, value, unit in rows:
        print(f"| {name.strip()} | {value:.1f} {unit} |")


if __name__ == "__main__":
    main()
