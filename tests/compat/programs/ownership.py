"""Who keeps what: values that tasks put, refs in actors, actors without handles, order of calls, limits."""

import time

import ray


@ray.remote
def puts(n):
    return [ray.put(list(range(n))), ray.put("small")]


@ray.remote
def start(x):
    return add.remote(x, 1)


@ray.remote
def add(x, y):
    return x + y


@ray.remote
class Keeper:
    def __init__(self):
        self.kept, self.order = {}, []

    def keep(self, name, refs):
        self.kept[name] = refs
        return len(self.kept)

    def values(self, name):
        return ray.get(self.kept[name])

    def note(self, what):
        self.order.append(what)

    def noted(self):
        return self.order


@ray.remote
class Slow:
    def work(self, seconds):
        time.sleep(seconds)
        return seconds


@ray.remote
class Parent:
    def __init__(self):
        self.child = Keeper.options(num_cpus=0).remote()

    def child_of(self):
        return self.child


@ray.remote
def notes(keeper, name, count):
    ray.get([keeper.note.remote((name, index)) for index in range(count)])


def refused(call):
    try:
        call()
    except ray.exceptions.PendingCallsLimitExceeded:
        return True
    return False


if __name__ == "__main__":
    ray.init(num_cpus=4)
    large, small = ray.get(puts.remote(100_000))
    print(len(ray.get(large)), ray.get(small))
    print(ray.get(ray.get(start.remote(1))))
    keeper = Keeper.options(num_cpus=0).remote()
    print(ray.get([keeper.keep.remote("a", [ray.put(1), ray.put([2] * 50_000)]), keeper.keep.remote("b", [small])]))
    del small
    first, second = ray.get(keeper.values.remote("a"))
    print(first, len(second), ray.get(keeper.values.remote("b")))

    ray.get([notes.remote(keeper, name, 20) for name in ("x", "y")])
    noted = ray.get(keeper.noted.remote())
    print([[index for who, index in noted if who == name] == list(range(20)) for name in ("x", "y")])

    parent = Parent.options(num_cpus=0).remote()
    child = ray.get(parent.child_of.remote())
    print(ray.get(child.keep.remote("c", [])))

    slow = Slow.options(num_cpus=0, max_pending_calls=2).remote()
    calls = [slow.work.remote(0.5), slow.work.remote(0)]
    print("too many", refused(lambda: [slow.work.remote(0) for _ in range(3)]))
    print(ray.get(calls))

    print("chained", ray.get(add.remote(add.remote(1, 2), add.remote(3, add.remote(4, 5)))))
    failed = [add.remote(1, "a"), add.remote(1, 2)]
    try:
        ray.get(failed)
    except TypeError:
        print("one failed", ray.get(failed[1]))
    ray.kill(parent)
    try:
        ray.get(parent.child_of.remote())
    except ray.exceptions.RayActorError:
        print("parent is gone")
    phoenix = Slow.options(num_cpus=0, max_restarts=1, max_task_retries=-1).remote()
    ray.get(phoenix.work.remote(0))
    ray.kill(phoenix, no_restart=False)
    print("again", ray.get(phoenix.work.remote(0)))
    print("ended by itself", ray.get(Slow.options(num_cpus=0).remote().work.remote(0.1)))
