"""Tasks and actors that yield: results can be used while later ones are made."""

import ray
from ray import ObjectRefGenerator


@ray.remote
def numbers(count):
    for index in range(count):
        yield index * index


@ray.remote(num_returns="streaming")
def until(limit):
    for index in range(10):
        if index == limit:
            raise ValueError(f"no more than {limit}")
        yield index


@ray.remote(num_returns="dynamic")
def dynamic(count):
    for index in range(count):
        yield [index] * index


@ray.remote
class Source:
    def count(self, up_to):
        for index in range(up_to):  # Ray fails at `yield from range`, which has no `send`
            yield index + 0

    async def later(self, up_to):
        for index in range(up_to):
            yield -index


@ray.remote
def total(first, *others):
    return first + sum(others)


if __name__ == "__main__":
    ray.init(num_cpus=2)
    stream = numbers.remote(5)
    print("type", isinstance(stream, ObjectRefGenerator))
    print("values", [ray.get(ref) for ref in stream])
    try:
        next(stream)
    except StopIteration:
        print("at the end")

    refs = list(numbers.remote(4))
    print("as arguments", ray.get(total.remote(*refs)))

    seen = []
    try:
        for ref in until.remote(3):
            seen.append(ray.get(ref))
    except ValueError as error:
        print("raised", seen, str(error).splitlines()[-1].strip().endswith("no more than 3"))

    source = Source.remote()
    print("of an actor", [ray.get(ref) for ref in source.count.options(num_returns="streaming").remote(3)])
    print("of an async one", [ray.get(ref) for ref in source.later.options(num_returns="streaming").remote(3)])

    streams = [numbers.remote(3), numbers.remote(2)]
    got = []
    while streams:
        ready, streams = ray.wait(streams, num_returns=1)
        for stream in ready:
            try:
                got.append(ray.get(next(stream)))
                streams.append(stream)
            except StopIteration:
                pass
    print("by wait", sorted(got))
    print("dynamic", [ray.get(ref) for ref in ray.get(dynamic.remote(3))])
