"""Actors that do several things at once: threads, coroutines, groups of methods with limits of their own."""

import asyncio
import threading

import ray


@ray.remote(max_concurrency=3)
class Threads:
    def __init__(self):
        self.barrier = threading.Barrier(3, timeout=30)

    def meet(self):
        self.barrier.wait()
        return threading.current_thread() is not threading.main_thread()


@ray.remote
class Coroutines:
    def __init__(self):
        self.event, self.waiting = asyncio.Event(), 0

    async def wait(self):
        self.waiting += 1
        await self.event.wait()
        return "set"

    async def set(self):
        while self.waiting < 20:
            await asyncio.sleep(0.01)
        self.event.set()
        return self.waiting


@ray.remote(max_concurrency=2)
class Limited:
    def __init__(self):
        self.now, self.most = 0, 0

    async def work(self):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.02)
        self.now -= 1

    async def highest(self):
        return self.most


@ray.remote(concurrency_groups={"io": 2, "compute": 1})
class Groups:
    def __init__(self):
        self.io, self.most = 0, {"io": 0, "compute": 0}
        self.running = {"io": 0, "compute": 0}

    async def _run(self, group):
        self.running[group] += 1
        self.most[group] = max(self.most[group], self.running[group])
        await asyncio.sleep(0.02)
        self.running[group] -= 1

    @ray.method(concurrency_group="io")
    async def read(self):
        await self._run("io")

    @ray.method(concurrency_group="compute")
    async def compute(self):
        await self._run("compute")

    async def limits(self):
        return self.most


async def gather():
    actor = Coroutines.remote()
    waiting = [actor.wait.remote() for _ in range(20)]
    count = await actor.set.remote()
    return count, set(await asyncio.gather(*waiting))


if __name__ == "__main__":
    ray.init(num_cpus=2)
    threads = Threads.remote()
    print("threads meet", ray.get([threads.meet.remote() for _ in range(3)]))
    print("coroutines", asyncio.run(gather()))
    limited = Limited.remote()
    ray.get([limited.work.remote() for _ in range(8)])
    print("at most", ray.get(limited.highest.remote()))
    groups = Groups.remote()
    ray.get([groups.read.remote() for _ in range(6)] + [groups.compute.remote() for _ in range(3)])
    ray.get(groups.read.options(concurrency_group="compute").remote())
    print("groups", ray.get(groups.limits.remote()))
