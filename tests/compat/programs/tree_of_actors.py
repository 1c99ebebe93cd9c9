"""A tree of actors: each node sums what its two children say, and handles are passed around."""

import ray


@ray.remote
class Node:
    def __init__(self, depth, value):
        self.value = value
        self.children = []
        if depth:
            self.children = [Node.options(num_cpus=0).remote(depth - 1, 2 * value + side) for side in (0, 1)]

    def total(self):
        below = ray.get([child.total.remote() for child in self.children])
        return self.value + sum(below)

    def path(self, turns):
        if not turns:
            return [self.value]
        return [self.value, *ray.get(self.children[turns[0]].path.remote(turns[1:]))]

    def child(self, side):
        return self.children[side]

    def add(self, amount):
        self.value += amount
        return [self.value]


@ray.remote
class Supervisor:
    def __init__(self, trees, depth):
        self.trees = [Node.options(num_cpus=0).remote(depth, value) for value in range(1, trees + 1)]

    def totals(self):
        return ray.get([tree.total.remote() for tree in self.trees])

    def tree(self, index):
        return self.trees[index]


if __name__ == "__main__":
    ray.init(num_cpus=4)
    supervisor = Supervisor.remote(2, 2)
    print("totals", ray.get(supervisor.totals.remote()))
    root = ray.get(supervisor.tree.remote(0))
    print("path", ray.get(root.path.remote([1, 0])))
    leaf = ray.get(ray.get(root.child.remote(1)).child.remote(0))
    print("leaf", ray.get(leaf.add.remote(100)))
    print("totals", ray.get(supervisor.totals.remote()))
