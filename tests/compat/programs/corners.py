"""Corners of the language: closures, defaults, classes of this program, handles of oneself, futures, threads."""

import asyncio
import collections
import concurrent.futures
import dataclasses
import enum
import functools
import threading

import ray

FACTOR = 3


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int
    y: int = 2


Pair = collections.namedtuple("Pair", "left right")


@ray.remote
def scaled(x, *more, by=FACTOR, **named):
    return x * by, more, sorted(named.items())


def outer(n):
    @ray.remote
    def inner(x):
        return x + n

    return inner


@ray.remote
def kinds_of(*values):
    return [type(value).__name__ for value in values], values[0] is Colour.RED, values[1] == Point(1)


def twice(function):
    @functools.wraps(function)
    def wrapped(*args):
        return 2 * function(*args)

    return wrapped


@ray.remote
@twice
def decorated(x):
    """Says so."""
    return x + 1


class Base:
    def __init__(self, start=0):
        self.value = start

    def name(self):
        return type(self).__name__

    @classmethod
    def made_by(cls):
        return cls.__name__

    @staticmethod
    def constant():
        return 7


@ray.remote
class Derived(Base):
    def __init__(self, *args, step=1):
        super().__init__(*args)
        self.step = step

    def add(self, times=1):
        self.value += times * self.step
        return self.value

    def me(self):
        return ray.get_runtime_context().current_actor

    def call(self, other, times):
        return ray.get(other.add.remote(times))

    def refs(self):
        return [ray.put(self.value), scaled.remote(2)]


@ray.remote
class Async:
    async def total(self, *refs):
        return sum(await asyncio.gather(*refs[0]))

    async def fail(self):
        raise KeyError("async")


async def awaited():
    first = await scaled.remote(1)
    both = await asyncio.gather(scaled.remote(2), decorated.remote(3))
    return first, both, await asyncio.wait_for(asyncio.wrap_future(decorated.remote(4).future()), 30)


if __name__ == "__main__":
    ray.init(num_cpus=4)
    print(ray.get([scaled.remote(2), scaled.remote(1, 2, 3, by=5, z=1, a=2), scaled.remote(x=4)]))
    print([ray.get(outer(n).remote(10)) for n in range(3)])
    print(ray.get(kinds_of.remote(Colour.RED, Point(1), Pair(1, 2), {1}, b"b", None, 1.5)))
    print(ray.get(decorated.remote(1)))

    actor, other = Derived.remote(10, step=2), Derived.options(num_cpus=0).remote()
    print(ray.get([actor.add.remote(), actor.add.remote(times=5), actor.call.remote(other, 3)]))
    print(ray.get([actor.name.remote(), actor.made_by.remote(), actor.constant.remote()]))
    itself = ray.get(actor.me.remote())
    print(itself == actor, ray.get(itself.add.remote(0)))
    print([ray.get(ref) for ref in ray.get(actor.refs.remote())])
    print(ray.get(actor.__ray_ready__.remote()), ray.get(actor.__ray_call__.remote(lambda self: self.value + 1)))

    many = Async.remote()
    print(ray.get(many.total.remote([ray.put(1), ray.put(2), actor.add.remote(0)])))
    try:
        ray.get(many.fail.remote())
    except KeyError as error:
        print("KeyError", isinstance(error, ray.exceptions.RayTaskError))
    print(asyncio.run(awaited()))
    futures = [decorated.remote(n).future() for n in range(4)]
    print(sorted(future.result() for future in concurrent.futures.as_completed(futures)))

    counted, lock = [], threading.Lock()

    def submit(n):
        for value in ray.get([decorated.remote(n) for _ in range(10)]):
            with lock:
                counted.append(value)

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sorted(set(counted)), len(counted))
    print(ray.get(scaled.options(num_returns=3).remote(5))[0], scaled.options(num_returns=0).remote(1))
    big = list(range(100_000))
    print(ray.get(outer(0).remote(sum(big))), ray.get(ray.remote(lambda: len(big)).remote()))
