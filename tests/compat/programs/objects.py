"""Values in the store: large arrays are shared and not writable, refs travel in values, classes with a serializer."""

import numpy as np
import ray


class Handle:
    """Cannot be pickled."""

    def __init__(self, path):
        self.path, self.file = path, open(path)


@ray.remote
def total(array):
    return float(array.sum()), array.flags.writeable


@ray.remote
def add_one(array):
    array = array.copy()
    array += 1
    return array


@ray.remote
def path_of(handle):
    return handle.path


@ray.remote
class Store:
    def __init__(self):
        self.refs = {}

    def keep(self, name, refs):
        self.refs[name] = refs[0]

    def find(self, name):
        return self.refs[name]


if __name__ == "__main__":
    ray.init(num_cpus=2)
    array = np.arange(1_000_000, dtype=np.float64)
    ref = ray.put(array)
    print("total", ray.get([total.remote(ref) for _ in range(3)]))
    back = ray.get(ref)
    print("equal", bool((back == array).all()), "writable", back.flags.writeable)
    print("changed", ray.get(add_one.remote(ref))[:3])
    store = Store.remote()
    ray.get(store.keep.remote("array", [ref]))
    print("found", ray.get(ray.get(store.find.remote("array")))[-1])
    print("kinds", [ray.get(ray.put(value)) for value in (None, {1: (2, 3)}, {4}, "five", b"six", 7j)])
    print("one and many", ray.get(ray.put(1)), ray.get([]), ray.get([ray.put(2), ray.put(3)]))
    same = ray.put([1, 2])
    print("copies", ray.get(same) is not ray.get(same))
    try:
        ray.put(ref)
    except TypeError:
        print("a ref cannot be put")
    try:
        ray.get("no ref")
    except (TypeError, ValueError):
        print("only refs can be got")

    ray.util.register_serializer(Handle, serializer=lambda handle: handle.path, deserializer=Handle)
    handle = Handle("/dev/null")
    print("registered", ray.get(path_of.remote(handle)))
    ray.util.deregister_serializer(Handle)
    try:
        path_of.remote(handle)
    except TypeError:
        print("no more")
