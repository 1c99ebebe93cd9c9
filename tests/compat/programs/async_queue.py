"""A queue between tasks, async actors and the driver: full and empty ones, batches, a word that ends it."""

import asyncio

import ray
from ray.util.queue import Empty, Full, Queue

END = "end"


@ray.remote
def produce(queue, numbers):
    for number in numbers:
        queue.put(number)
    return len(numbers)


@ray.remote
class Consumer:
    def __init__(self, queue):
        self.queue, self.got = queue, []

    async def consume(self):
        while (item := await self.queue.get_async()) != END:
            self.got.append(item)
            await asyncio.sleep(0)
        return sorted(self.got)

    async def seen(self):
        return len(self.got)


if __name__ == "__main__":
    ray.init(num_cpus=4)
    queue = Queue(maxsize=5)
    consumer = Consumer.remote(queue)
    answer = consumer.consume.remote()
    produced = ray.get([produce.remote(queue, list(range(start, start + 10))) for start in (0, 10, 20)])
    queue.put(END)
    print("produced", produced)
    print("consumed", ray.get(answer) == list(range(30)), ray.get(consumer.seen.remote()))

    print("empty", queue.empty(), queue.qsize(), queue.size())
    queue.put_nowait_batch([1, 2, 3])
    queue.put(4)
    queue.put_nowait(5)
    print("full", queue.full(), len(queue))
    for put in (lambda: queue.put_nowait(6), lambda: queue.put(6, timeout=0.05), lambda: queue.put(6, block=False)):
        try:
            put()
        except Full as error:
            print("Full", isinstance(error, Full))
    print("batch", queue.get_nowait_batch(3), queue.get(), queue.get(block=False))
    for get in (queue.get_nowait, lambda: queue.get(timeout=0.05), lambda: queue.get_nowait_batch(2)):
        try:
            get()
        except Empty as error:
            print("Empty", isinstance(error, Empty))
    actor = queue.actor
    queue.shutdown()
    try:
        ray.get(actor.qsize.remote())
    except ray.exceptions.RayActorError:
        print("its actor is gone")
