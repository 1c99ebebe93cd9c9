"""Loops over `wait`: results as they come, no more than so many under way, timeouts."""

import time

import ray
from ray.exceptions import GetTimeoutError


@ray.remote
def work(index, seconds=0.0):
    time.sleep(seconds)
    return index


if __name__ == "__main__":
    ray.init(num_cpus=4)
    waiting = [work.remote(index) for index in range(20)]
    total, turns = 0, 0
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=min(3, len(waiting)))
        total += sum(ray.get(ready))
        turns += 1
    print("total", total, "turns", turns)

    limit, most, done, running = 4, 0, [], []
    for index in range(12):
        if len(running) >= limit:
            ready, running = ray.wait(running, num_returns=1)
            done += ray.get(ready)
        running.append(work.remote(index))
        most = max(most, len(running))
    done += ray.get(running)
    print("at most", most, "done", sorted(done))

    slow, quick = work.remote("slow", 30), work.remote("quick")
    ready, rest = ray.wait([slow, quick], num_returns=2, timeout=0.5)
    print("within the time", ray.get(ready), rest == [slow])
    print("nothing yet", ray.wait([slow], timeout=0) == ([], [slow]))
    try:
        ray.get(slow, timeout=0.1)
    except GetTimeoutError as error:
        print("too slow", isinstance(error, TimeoutError))
    ray.cancel(slow, force=True)
    try:
        ray.get(slow)
    except (ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError):
        print("cancelled")
    for wrong in ([quick, quick], [quick, "no ref"]):
        try:
            ray.wait(wrong)
        except (TypeError, ValueError) as error:
            print("refused", isinstance(error, TypeError))
