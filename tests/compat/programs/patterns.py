"""Patterns: a tree of merges, signals, supervision, limits by resources, search, results as they come."""

import asyncio
import os
import time

import numpy as np
import ray
from ray.exceptions import RayActorError


@ray.remote
def leaf(seed):
    return np.random.default_rng(seed).integers(0, 10, 100)


@ray.remote
def merge(*parts):
    return np.sum(parts, axis=0)


def tree_reduce(refs, arity=3):
    while len(refs) > 1:
        refs = [merge.remote(*refs[start : start + arity]) for start in range(0, len(refs), arity)]
    return ray.get(refs[0])


@ray.remote(num_cpus=0)
class Signal:
    def __init__(self):
        self.event = asyncio.Event()

    def send(self, clear=False):
        self.event.set()
        if clear:
            self.event.clear()

    async def wait(self, should_wait=True):
        if should_wait:
            await self.event.wait()
        return "sent"


@ray.remote
def wait_for(signal, number):
    return ray.get(signal.wait.remote()), number


@ray.remote(num_cpus=0)
class Worker:
    def work(self, item):
        if item == 3:
            os._exit(1)
        return item * item


@ray.remote(num_cpus=0)
class Supervisor:
    """Begins a new worker where one is lost, and goes on with the next item."""

    def __init__(self):
        self.worker, self.lost = Worker.remote(), 0

    def run(self, items):
        results = []
        for item in items:
            try:
                results.append(ray.get(self.worker.work.remote(item)))
            except RayActorError:
                self.lost += 1
                self.worker = Worker.remote()
                results.append(None)
        return results, self.lost


@ray.remote(num_cpus=0)
class Gauge:
    def __init__(self):
        self.now, self.most = 0, 0

    def enter(self):
        self.now += 1
        self.most = max(self.most, self.now)

    def leave(self):
        self.now -= 1

    def highest(self):
        return self.most


@ray.remote(num_cpus=0, resources={"licence": 1})
def licensed(gauge):
    ray.get(gauge.enter.remote())
    time.sleep(0.05)
    ray.get(gauge.leave.remote())


@ray.remote
def evaluate(rate):
    return rate, -((rate - 0.3) ** 2)


def search(rates, at_once=3):
    """Random search, so many at a time."""
    rates, running, best = list(rates), [], (None, float("-inf"))
    while rates or running:
        while rates and len(running) < at_once:
            running.append(evaluate.remote(rates.pop()))
        [done], running = ray.wait(running)
        best = max(best, ray.get(done), key=lambda pair: pair[1])
    return best


@ray.remote(num_cpus=0)
class Checkpointed:
    def __init__(self, saved=None):
        self.total = saved or 0

    def add(self, value):
        self.total += value
        return self.total

    def save(self):
        return self.total


async def out_of_order(signal):
    slow = asyncio.ensure_future(asyncio.wrap_future(signal.wait.remote().future()))
    quick = [evaluate.remote(rate) for rate in (0.1, 0.3)]
    first = await asyncio.gather(*quick)
    pending = not slow.done()
    await signal.send.remote()
    return [rate for rate, _ in first], pending, await slow


LINES = []


def say(*words):
    LINES.append(" ".join(map(str, words)))


if __name__ == "__main__":
    ray.init(num_cpus=4, resources={"licence": 2}, log_to_driver=False)
    expected = sum(np.random.default_rng(seed).integers(0, 10, 100) for seed in range(20))
    say("tree", bool((tree_reduce([leaf.remote(seed) for seed in range(20)]) == expected).all()))

    signal = Signal.remote()
    waiting = [wait_for.remote(signal, number) for number in range(3)]
    say("none yet", ray.wait(waiting, num_returns=1, timeout=0.5)[0])
    ray.get(signal.send.remote())
    say("signal", ray.get(waiting))

    say("supervised", ray.get(Supervisor.remote().run.remote([1, 2, 3, 4])))
    gauge = Gauge.remote()
    ray.get([licensed.remote(gauge) for _ in range(6)])
    say("licences", ray.get(gauge.highest.remote()))
    say("search", search([0.0, 0.1, 0.2, 0.3, 0.4, 0.9]))
    first = Checkpointed.remote()
    ray.get([first.add.remote(value) for value in (1, 2, 3)])
    saved = ray.get(first.save.remote())
    ray.kill(first)
    say("goes on at", ray.get(Checkpointed.remote(saved).add.remote(4)))
    say("out of order", asyncio.run(out_of_order(Signal.remote())))
    ray.shutdown()
    print("report", *LINES, sep="\n")  # after what Ray says of workers and retries, which goes to stdout as well
