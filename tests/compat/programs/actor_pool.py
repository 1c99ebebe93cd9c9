"""A pipeline of two pools: one prepares while the other works, with as much under way as there are actors."""

import ray
from ray.util import ActorPool


@ray.remote
class Loader:
    def load(self, index):
        return list(range(index, index + 3))


@ray.remote
class Model:
    def __init__(self, factor):
        self.factor = factor

    def predict(self, batch):
        return [self.factor * value for value in batch]


if __name__ == "__main__":
    ray.init(num_cpus=4)
    loaders = ActorPool([Loader.options(num_cpus=0.5).remote() for _ in range(2)])
    models = ActorPool([Model.remote(10), Model.remote(ray.put(10))])

    batches = loaders.map(lambda actor, index: actor.load.remote(index), range(6))
    print("in order", list(models.map(lambda actor, batch: actor.predict.remote(batch), batches)))
    found = models.map_unordered(lambda actor, batch: actor.predict.remote(batch), [[1], [2], [3], [4]])
    print("unordered", sorted(found))

    for index in range(3):
        loaders.submit(lambda actor, value: actor.load.remote(value), index)
    print("waiting", loaders.has_next(), loaders.has_free())
    print("first", loaders.get_next())
    print("next", loaders.get_next(timeout=30))
    print("any", loaders.get_next_unordered())
    print("waiting", loaders.has_next())
    try:
        loaders.get_next()
    except StopIteration as error:
        print("no more:", error)
    idle = loaders.pop_idle()
    print("idle", idle is not None, loaders.has_free())
    loaders.push(idle)
    print("again", list(loaders.map(lambda actor, value: actor.load.remote(value), [7])))
