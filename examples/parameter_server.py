"""A parameter server: workers compute gradients of their own share of the data, a server applies them.

    python examples/parameter_server.py
    python examples/parameter_server.py --mode async --workers 4

The model is softmax regression on digits made up of random prototypes, in numpy, so that the example needs nothing
else; what matters is who holds what. In `sync` mode all workers answer for the same weights, and the server takes the
mean. In `async` mode it applies each gradient as it comes, and sends that worker on with newer weights: quicker where
machines differ, with gradients that are a little old. Based on: Li et al., "Scaling Distributed Machine Learning with
the Parameter Server" (OSDI 2014).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from numpy.typing import NDArray

import lattica

Array = NDArray[np.float64]
CLASSES, PIXELS = 10, 64
NOISE = 4.0  # of a pixel, where prototypes differ by 1: many digits cannot be told apart
BATCH = 8


def digits(count: int, seed: int) -> tuple[Array, NDArray[np.int64]]:
    """Noisy copies of ten prototypes, (count, PIXELS), and which they are of."""
    prototypes = np.random.default_rng(0).normal(size=(CLASSES, PIXELS))
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    return prototypes[labels] + NOISE * rng.normal(size=(count, PIXELS)), labels


def probabilities(weights: Array, images: Array) -> Array:
    scores = images @ weights
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))


@lattica.remote
class Server:
    """Holds the weights. An actor's methods run one after the other, so no gradient is lost."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.weights: Array = np.zeros((PIXELS, CLASSES))

    def apply(self, *gradients: Array) -> Array:
        self.weights = self.weights - self.rate * np.mean(gradients, axis=0)
        return self.weights

    def read(self) -> Array:
        return self.weights


@lattica.remote
class Worker:
    """Has a share of the data, and never sends it anywhere."""

    def __init__(self, seed: int) -> None:
        self.images, self.labels = digits(2_000, seed)
        self.rng = np.random.default_rng(seed)

    def gradient(self, weights: Array) -> Array:
        """Of the loss over a random batch."""
        batch = self.rng.integers(len(self.labels), size=BATCH)
        images, labels = self.images[batch], self.labels[batch]
        errors = probabilities(weights, images)
        errors[np.arange(BATCH), labels] -= 1
        return np.asarray(images.T @ errors / BATCH)


def train_sync(server: lattica.actor.ActorHandle, workers: list[lattica.actor.ActorHandle], updates: int) -> None:
    """Every update waits for all. No array passes through this program: refs of gradients become the server's
    arguments, and the ref of new weights the workers'."""
    weights = server.read.remote()
    for _ in range(updates // len(workers)):
        weights = server.apply.remote(*(worker.gradient.remote(weights) for worker in workers))
    lattica.get(weights)


def train_async(server: lattica.actor.ActorHandle, workers: list[lattica.actor.ActorHandle], updates: int) -> None:
    """Nobody waits for anybody: whoever is ready has its gradient applied, and goes on with what came of it."""
    weights = server.read.remote()
    busy = {worker.gradient.remote(weights): worker for worker in workers}
    for _ in range(updates):
        [ready], _ = lattica.wait(list(busy))
        worker = busy.pop(ready)
        busy[worker.gradient.remote(server.apply.remote(ready))] = worker
    lattica.get(list(busy))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a classifier with a parameter server.")
    parser.add_argument("--mode", choices=("sync", "async"), default="sync", help="default sync")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="default 2")
    parser.add_argument("--updates", type=int, default=400, metavar="N", help="gradients to apply (default 400)")
    options = parser.parse_args()
    images, labels = digits(2_000, seed=99)
    with lattica.init():
        server = Server.remote(rate=0.02)
        workers = [Worker.remote(seed) for seed in range(1, options.workers + 1)]
        for part in range(4):
            weights = lattica.get(server.read.remote())
            right = (probabilities(weights, images).argmax(axis=1) == labels).mean()
            print(
                f"{part * options.updates // 4:5} gradients: {right:6.1%} of the test digits are told right", flush=True
            )
            began = time.monotonic()
            train = train_sync if options.mode == "sync" else train_async
            train(server, workers, options.updates // 4)
        weights = lattica.get(server.read.remote())
        right = (probabilities(weights, images).argmax(axis=1) == labels).mean()
        rate = options.updates / 4 / (time.monotonic() - began)
        print(f"{options.updates:5} gradients: {right:6.1%}, {rate:,.0f} gradients a second")


if __name__ == "__main__":
    main()
