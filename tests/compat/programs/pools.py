"""Python's pool of processes, on the cluster."""

import os

import ray
from ray.util.multiprocessing import Pool


def square(x):
    return x * x


def add(a, b):
    return a + b


def fail(x):
    raise KeyError(x)


def begin(value):
    os.environ["COMPAT_BEGUN"] = str(value)


def begun(_):
    return os.environ.get("COMPAT_BEGUN")


if __name__ == "__main__":
    ray.init(num_cpus=3)
    with Pool(3) as pool:
        print("map", pool.map(square, range(8)))
        print("starmap", pool.starmap(add, [(1, 2), (3, 4)]))
        print("apply", pool.apply(add, (1, 2)), pool.apply(add, (), {"a": 3, "b": 4}))
        later = pool.apply_async(square, (9,))
        print("async", later.get(timeout=30), later.ready(), later.successful())
        print("imap", list(pool.imap(square, range(5), chunksize=2)))
        print("unordered", sorted(pool.imap_unordered(square, range(5))))
        heard = []
        pool.map_async(square, range(3), callback=heard.append).get(timeout=30)
        print("chunks", pool.map(square, range(7), chunksize=3))
        try:
            pool.map(fail, [1])
        except KeyError as error:
            print("raised", isinstance(error, KeyError))
    with Pool(2, initializer=begin, initargs=(7,)) as pool:
        print("begun", pool.map(begun, range(3)))
    pool = Pool(1)
    pool.close()
    try:
        pool.map(square, [1])
    except ValueError:
        print("closed")
    pool.join()
