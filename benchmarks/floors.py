"""The physical floor of each figure: what this machine takes for the part of the work that nobody can avoid.

Floors with a function are measured in the same sitting (they move with the machine's mood by half); the others are
constants, measured once with bare prototypes on two Xeon cores and Python 3.11, and their reason says of what.
"""

from __future__ import annotations

import os
import pickle
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Floor:
    """value: a constant in the case's unit, or the function that measures it."""

    value: float | Callable[[], float]
    unit: str
    reason: str

    def measure(self) -> float:
        return self.value() if callable(self.value) else self.value


def median_seconds(run: Callable[[], object], times: int) -> float:
    """Median duration of `times` runs after one that warms up."""
    run()
    samples = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        samples.append(time.perf_counter() - began)
    return statistics.median(samples)


def interpreter_start_s() -> float:
    return median_seconds(lambda: subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True), 7)


def round_trip_us() -> float:
    """One byte to another process over a unix socket and back, both ends blocking; the median of five pairs.

    Five, because the kernel puts a pair on one core or on two, and that alone changes it sixfold.
    """
    pairs = []
    for _ in range(5):
        here, there = socket.socketpair()
        child = os.fork()
        if child == 0:
            here.close()
            while byte := there.recv(1):
                there.send(byte)
            os._exit(0)
        there.close()

        def once(end: socket.socket = here) -> None:
            end.send(b"x")
            end.recv(1)

        pairs.append(median_seconds(once, 2_000))
        here.close()
        os.waitpid(child, 0)
    return statistics.median(pairs) * 1e6


def copy_gb_per_s(size: int) -> float:
    """One thread's copies of one array into fresh places of 200 MiB that this process has touched before."""
    source, target = np.ones(size, np.uint8), np.zeros(200 * MIB // size * size, np.uint8)
    places = np.split(target, len(target) // size)
    return len(target) / median_seconds(lambda: [np.copyto(place, source) for place in places], 9) / 1e9


def put_1_gib_ms() -> float:
    """Two threads copy a half each into touched pages; 512 MiB are measured, to spare the machine."""
    source, target = np.ones(GIB // 2, np.uint8), np.zeros(GIB // 2, np.uint8)
    halves = list(zip(np.split(target, 2), np.split(source, 2), strict=True))
    with ThreadPoolExecutor(2) as pool:
        return 2 * median_seconds(lambda: list(pool.map(lambda half: np.copyto(*half), halves)), 5) * 1e3


def echo_256_kib_per_s() -> float:
    """Four copies of 256 KiB: into shared memory and out of it, there and back."""
    return copy_gb_per_s(256 * KIB) * 1e9 / (4 * 256 * KIB)


def small_put_per_s() -> float:
    return 1e5 / median_seconds(lambda: [pickle.dumps(b"x", 5) for _ in range(100_000)], 5)


def small_get_per_s() -> float:
    data = pickle.dumps(b"x", 5)
    return 1e5 / median_seconds(lambda: [pickle.loads(data) for _ in range(100_000)], 5)


def load_array_us() -> float:
    buffers: list[pickle.PickleBuffer] = []
    header = pickle.dumps(np.zeros(MIB, np.uint8), 5, buffer_callback=buffers.append)
    view = memoryview(bytes(MIB))
    return median_seconds(lambda: pickle.loads(header, buffers=[view])[0], 5_000) * 1e6


def touch_1_gib_ms() -> float:
    """Read one byte of each page, pages mapped before: a quarter of it is measured, to spare the machine."""
    array = np.ones(GIB // 4, np.uint8)
    return 4 * median_seconds(lambda: int(array[:: 4 * KIB].sum()), 5) * 1e3


def plain_args_s() -> float:
    args = list(range(10_000))
    return median_seconds(lambda: pickle.loads(pickle.dumps(args, 5)), 50)


FLOORS = {
    "start": Floor(interpreter_start_s, "s", "one bare interpreter start, the node's; measured"),
    "idle memory": Floor(82, "MiB", "bare driver, node, zygote and two workers with numpy in driver and zygote"),
    "round trip": Floor(round_trip_us, "us", "one byte over a unix socket and back, five pairs of processes; measured"),
    "tasks in flight": Floor(350_000, "1/s", "prototype: 2-3 us of driver and 1.2-2 us of worker per task"),
    "calls in flight": Floor(360_000, "1/s", "prototype, one batch per wake-up"),
    "echo 128 B": Floor(225_000, "1/s", "prototype: frames over a unix socket between two uvloops"),
    "echo 256 KiB": Floor(echo_256_kib_per_s, "1/s", "four copies of 256 KiB by one core; measured"),
    "asyncio calls": Floor(200_000, "1/s", "prototype's low end: a call in flight and an asyncio task each"),
    "sleep": Floor(0.1, "s", "the sleep itself"),
    "actor creation": Floor(667, "1/s", "one fork of a warm zygote takes 1.5 ms"),
    "small put": Floor(small_put_per_s, "1/s", "pickling alone; measured"),
    "small get": Floor(small_get_per_s, "1/s", "unpickling alone; measured"),
    "wait": Floor(32_000, "refs/s", "31 us to look at 500 refs with identity hash, which is the mean length here"),
    "copy 1 MiB": Floor(lambda: copy_gb_per_s(MIB), "GB/s", "one thread's copy into touched pages; measured"),
    "copy 100 MiB": Floor(lambda: copy_gb_per_s(100 * MIB), "GB/s", "one thread's copy into touched pages; measured"),
    "load array": Floor(load_array_us, "us", "unpickling an array header over mapped bytes; measured"),
    "put 1 GiB": Floor(put_1_gib_ms, "ms", "two threads copy a half each into touched pages; measured"),
    "touch 1 GiB": Floor(touch_1_gib_ms, "ms", "a byte of each page, pages mapped before; measured"),
    "ref args": Floor(0.004, "s", "10,000 headers encoded and decoded (0.1 us each way) and values unpickled (0.2 us)"),
    "plain args": Floor(plain_args_s, "s", "pickling and unpickling the list; measured"),
}
