"""Tasks that call tasks: a sort that splits its work, refs inside values, more levels than there are CPUs."""

import ray


@ray.remote
def sort(values):
    if len(values) <= 8:
        return sorted(values)
    pivot = values[len(values) // 2]
    lower = sort.remote([value for value in values if value < pivot])
    upper = sort.remote([value for value in values if value > pivot])
    middle = [value for value in values if value == pivot]
    return ray.get(lower) + middle + ray.get(upper)


@ray.remote
def fibonacci(n):
    return n if n < 2 else sum(ray.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)]))


@ray.remote
def square(x):
    return x * x


@ray.remote
def refs_of(values):
    return {"squares": [square.remote(value) for value in values], "kept": ray.put("kept")}


@ray.remote
def look(nested, plain):
    return isinstance(nested[0], ray.ObjectRef), ray.get(nested[0]), plain


@ray.remote
def deep(levels):
    return [] if not levels else [levels, *ray.get(deep.remote(levels - 1))]


@ray.remote(num_returns=3)
def three():
    return 1, [2], {"three": 3}


if __name__ == "__main__":
    ray.init(num_cpus=2)
    numbers = [(value * 7919) % 101 for value in range(60)]
    print("sorted", ray.get(sort.remote(numbers)) == sorted(numbers))
    print("fibonacci", ray.get(fibonacci.remote(6)))
    answer = ray.get(refs_of.remote([1, 2, 3]))
    print("refs in a dict", ray.get(answer["squares"]), ray.get(answer["kept"]))
    ref = square.remote(5)
    print("a ref in a list, and as it is", ray.get(look.remote([ref], ref)))
    print("deep", ray.get(deep.remote(8)))
    first, second, third = three.remote()
    print("three", ray.get([third, second, first]))
    print("chain", ray.get(square.remote(square.remote(square.remote(2)))))
