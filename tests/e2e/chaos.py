"""Workers killed at random while tasks and calls run, and a record of what ran how often.

Each run appends one line to a file before it does anything else; a line is written in one piece, whoever dies. From
that file and from the attempts that the runtime counted follows whom each death was charged to.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import lattica
from lattica.actors import context, current


class Killer:
    """A thread that kills a random worker every `every_s` seconds, from a seed. `killed`: how many it has."""

    def __init__(self, every_s: float, at_most: int = 1_000_000, seed: int = 7) -> None:
        self.every_s, self.at_most, self.rng = every_s, at_most, random.Random(seed)
        self.killed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        runtime = current.get()
        while self.killed < self.at_most and not self._stop.wait(self.every_s):
            pids = [worker["pid"] for worker in runtime.state("workers") if worker["pid"] and worker["state"] != "idle"]
            if pids:
                try:
                    os.kill(self.rng.choice(pids), signal.SIGKILL)
                    self.killed += 1
                except ProcessLookupError:
                    continue


def note(path: str, line: str) -> None:
    """Append a line, in one piece."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


@lattica.remote
def step(path: str, number: int, seconds: float) -> tuple[int, int]:
    """Takes `seconds`; (its number, how many deaths it was charged with before this run)."""
    note(path, str(number))
    time.sleep(seconds)
    now = context.running.get()
    assert now is not None
    return number, now.attempt


def storm_of_tasks(
    path: Path, tasks: int, seconds: float, kill_every_s: float, max_retries: int = 3, kills: int = 1_000_000
) -> str:
    """Run many tasks under fire; asserts what is promised, and says how it went. max_retries: the default, where a task
    is not the first of so many new workers in a row that the fire hits it more often. kills: at most so many; a machine
    that is busy would else do little but start workers."""
    retried = step.options(max_retries=max_retries)
    began = time.monotonic()
    with Killer(kill_every_s, kills) as killer:
        refs = [retried.remote(str(path), number, seconds) for number in range(tasks)]
        answers = lattica.get(refs, timeout=600)
    runs, charges = Counter(map(int, path.read_text().split())), dict(answers)
    assert [number for number, _ in answers] == list(range(tasks)), "a task was lost"
    for number in range(tasks):
        assert runs[number] >= 1, f"task {number} has a result and never ran"
        assert runs[number] <= 1 + charges[number], f"task {number} ran {runs[number]} times, charged {charges[number]}"
    assert max(charges.values()) <= max_retries, f"max_retries is {max_retries}"
    assert sum(charges.values()) <= killer.killed, "a death was charged to more than one task"
    again = sum(runs.values()) - tasks
    took = time.monotonic() - began
    return f"{tasks} tasks, {killer.killed} workers killed, {again} runs repeated, none lost, {took:.1f} s"


@lattica.remote(max_restarts=-1, max_task_retries=-1)
class Ledger:
    """Notes every call before it does it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def write(self, number: int, seconds: float) -> int:
        note(self.path, str(number))
        time.sleep(seconds)
        return number


def storm_of_calls(folder: Path, actors: int, calls: int, seconds: float, kill_every_s: float, kills: int) -> str:
    """Calls of restarting actors under fire: all answered, begun in order, repeated only after a death.

    kills: at most so many; an actor that dies again and again restarts after longer and longer pauses.
    """
    began = time.monotonic()
    handles: list[Any] = [Ledger.remote(str(folder / f"actor{number}")) for number in range(actors)]
    with Killer(kill_every_s, kills) as killer:
        refs = [[handle.write.remote(number, seconds) for number in range(calls)] for handle in handles]
        answers = [lattica.get(each, timeout=600) for each in refs]
    assert answers == [list(range(calls))] * actors
    repeated = 0
    for number in range(actors):
        lines = list(map(int, (folder / f"actor{number}").read_text().split()))
        firsts = list(dict.fromkeys(lines))
        assert firsts == list(range(calls)), "calls began out of order"
        repeated += len(lines) - calls
    assert repeated <= 2 * killer.killed, "a death repeats the call that ran, and the one whose reply had not left yet"
    took = time.monotonic() - began
    return f"{actors} actors with {calls} calls, {killer.killed} killed, {repeated} calls repeated, {took:.1f} s"


@lattica.remote(max_retries=-1)
def arrays(number: int, size: int, pause_s: float = 0.0) -> Iterator[Any]:
    for at in range(number):
        yield np.full(size, at % 200, np.uint8)
        time.sleep(pause_s)


@lattica.remote(max_restarts=-1, max_task_retries=-1)
class Maker:
    def arrays(self, number: int, size: int) -> Iterator[Any]:
        for at in range(number):
            yield np.full(size, at % 200, np.uint8)


@lattica.remote(max_restarts=-1, max_task_retries=-1)
class AsyncMaker:
    async def arrays(self, number: int, size: int) -> AsyncIterator[Any]:
        for at in range(number):
            yield np.full(size, at % 200, np.uint8)


def storm_of_generators(rounds: int, kill_every_s: float, kills: int, seed: int = 1) -> str:
    """Six at a time, of tasks and actors, some dropped midway, while workers die: items come once and in order."""
    rng, items = random.Random(seed), 0
    makers = [Maker.remote().arrays, AsyncMaker.remote().arrays, arrays]
    with Killer(kill_every_s, at_most=kills) as killer:
        for _ in range(rounds):
            begun = []
            for _ in range(6):
                number, size = rng.choice((1, 10, 60, 300)), rng.choice((10, 3_000, 200_000))
                maker = rng.choice(makers).options(_generator_backpressure_num_objects=rng.choice((-1, -1, 1, 4)))
                begun.append((maker.remote(number, size), number))
            while begun:
                generator, number = begun.pop(0)
                if rng.random() < 0.2:
                    next(generator)
                    continue
                firsts = []
                for ref in generator:
                    value = lattica.get(ref, timeout=60)
                    firsts.append(int(value[0]))
                    assert value[0] == value[-1]
                assert firsts == [at % 200 for at in range(number)]
                items += number
            del generator, ref, value
    return f"{items} items came, while {killer.killed} workers died"
