"""Nodes of a mesh killed one after the other while tasks run on them, and new ones that join: what a driver sees."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import lattica
from tests.e2e.far import Mesh, node_id

STALL_MAX_S = 5.0


@lattica.remote
def step(number: int, seconds: float, size: int = 0) -> tuple[int, str, bytes]:
    """Takes so long, and gives so much back."""
    time.sleep(seconds)
    return number, node_id(), bytes(size)


def longest_stall(
    refs: list[Any], timeout_s: float = 60.0, keep: Callable[[Any], Any] = lambda result: result
) -> tuple[list[Any], float]:
    """What is kept of all results, and the longest time in which none came."""
    left, last, longest, found = refs, time.monotonic(), 0.0, list[Any]()
    del refs  # what has been read need not be held
    while left:
        ready, left = lattica.wait(left, num_returns=1, timeout=timeout_s)
        assert ready, f"{len(left)} results have not come for {timeout_s:g} s"
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        found += map(keep, lattica.get(ready))
    return found, longest


class Churn:
    """A thread that kills a random node but the driver's every `every_s` seconds, and has another join."""

    def __init__(self, mesh: Mesh, every_s: float, spared: str, founder: str, seed: int = 7) -> None:
        """founder: is the first to die."""
        self.mesh, self.every_s, self.spared, self.founder = mesh, every_s, spared, founder
        self.killed: list[str] = []
        self.error: BaseException | None = None
        self._rng = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="churn")

    def __enter__(self) -> Churn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        due = time.monotonic()
        try:
            while True:
                due += self.every_s
                if self._stop.wait(max(due - time.monotonic(), 0.0)):
                    return
                victims = sorted(name for name in self.mesh.nodes if name != self.spared)
                victim = self._rng.choice(victims) if self.killed else self.founder
                self.mesh.kill(victim)
                self.killed.append(victim)
                self.mesh.begin(f"new{len(self.killed)}", 1)
        except BaseException as error:
            self.error = error


def storm(
    mesh: Mesh, driver: str, founder: str, tasks: int, seconds: float, every_s: float, size: int = 0
) -> str:  # fmt: skip
    """Run many tasks from a driver while nodes die and join; asserts that no result is lost, and says how it went.

    size: bytes of each result; more than 100 KiB stay where they were made until they are read, and may be lost there.
    """
    mesh.attach(driver)
    began = time.monotonic()
    with Churn(mesh, every_s, driver, founder) as churn:
        found, stall = longest_stall(
            [step.remote(number, seconds, size) for number in range(tasks)],
            keep=lambda result: (result[0], result[1], len(result[2])),
        )
        took = time.monotonic() - began
    assert sorted(number for number, _, _ in found) == list(range(tasks)), "a result is lost, or came twice"
    assert all(length == size for _, _, length in found)
    where = Counter(mesh.names[id] for _, id, _ in found)
    words = (
        f"{tasks} tasks of {seconds * 1000:g} ms, {size >> 10} KiB each: {took:.1f} s; longest stall {stall:.2f} s; "
        f"killed {', '.join(churn.killed)}; {dict(where)}"
    )
    assert stall <= STALL_MAX_S, words
    assert churn.killed, words
    return words
