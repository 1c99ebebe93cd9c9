"""A parameter server: workers compute gradients of a linear regression, one actor applies them.

First all at a time, then each as it comes."""

import numpy as np
import ray

TRUE = np.array([2.0, -3.0, 0.5])
ROUNDS, WORKERS, RATE = 30, 4, 0.3


@ray.remote
class ParameterServer:
    def __init__(self, size, rate):
        self.weights, self.rate, self.version = np.zeros(size), rate, 0

    def apply(self, *gradients):
        self.weights = self.weights - self.rate * np.mean(gradients, axis=0)
        self.version += 1
        return self.weights

    def get(self):
        return self.weights

    def versions(self):
        return self.version


@ray.remote
class Worker:
    def __init__(self, index):
        rng = np.random.default_rng(index)
        self.inputs = rng.normal(size=(200, len(TRUE)))
        self.targets = self.inputs @ TRUE + 0.01 * rng.normal(size=200)

    def gradient(self, weights):
        return 2 * self.inputs.T @ (self.inputs @ weights - self.targets) / len(self.targets) / 2


def together():
    server = ParameterServer.remote(len(TRUE), RATE)
    workers = [Worker.remote(index) for index in range(WORKERS)]
    weights = server.get.remote()
    for number in range(ROUNDS):
        weights = server.apply.remote(*[worker.gradient.remote(weights) for worker in workers])
        if number % 10 == 9:
            print("round", number + 1, np.round(ray.get(weights), 2))
    print("versions", ray.get(server.versions.remote()))


def as_they_come():
    server = ParameterServer.remote(len(TRUE), RATE / 2)
    workers = {}
    for index in range(WORKERS):
        worker = Worker.remote(index)
        workers[worker.gradient.remote(server.get.remote())] = worker
    for _ in range(ROUNDS * WORKERS):
        [ready], _ = ray.wait(list(workers))
        worker = workers.pop(ready)
        workers[worker.gradient.remote(server.apply.remote(ready))] = worker
    error = np.abs(ray.get(server.get.remote()) - TRUE).max()
    print("as they come: close", bool(error < 0.05), "versions", ray.get(server.versions.remote()))


if __name__ == "__main__":
    ray.init(num_cpus=WORKERS)
    together()
    as_they_come()
