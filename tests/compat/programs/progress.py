"""Tasks report how far they are to an actor, which the driver asks until all is done."""

import time

import ray


@ray.remote
class Progress:
    def __init__(self, total):
        self.total, self.done = total, {}

    def report(self, task, count):
        self.done[task] = count

    def share(self):
        return sum(self.done.values()) / self.total


@ray.remote
def sample(task, steps, progress):
    inside = 0
    for step in range(steps):
        inside += (task * 7919 + step * 104729) % 100 < 50
        if step % 10 == 9:
            progress.report.remote(task, step + 1)
    return inside


if __name__ == "__main__":
    ray.init(num_cpus=3)
    tasks, steps = 6, 50
    progress = Progress.remote(tasks * steps)
    results = [sample.remote(task, steps, progress) for task in range(tasks)]
    shares = [0.0]
    while shares[-1] < 1:
        time.sleep(0.01)
        shares.append(ray.get(progress.share.remote()))
    print("never back", shares == sorted(shares), "last", shares[-1])
    print("inside", ray.get(results))
