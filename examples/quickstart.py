"""Tasks, actors, objects and a failure, in a minute: read it from top to bottom, and run it.

    python examples/quickstart.py

It starts what it needs and ends it again. On a machine whose node is in a mesh (`lattica start`, `lattica join`), the
same program runs on all machines of the mesh.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np

import lattica


# A task: a function that runs in a process elsewhere. Calling it returns a ref at once, not the value.
@lattica.remote
def square(number: int) -> int:
    return number * number


# Refs are arguments like any other: `total` begins when what it sums up is there.
@lattica.remote
def total(*numbers: int) -> int:
    return sum(numbers)


# An actor: an object in a process of its own, whose methods run one after the other.
@lattica.remote
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self, number: int) -> int:
        self.count += number
        return self.count


# A large value is put once, and read in place by every process of the machine.
@lattica.remote
def column_mean(table: np.ndarray, column: int) -> float:
    return float(table[:, column].mean())


# A generator's results arrive while it still runs.
@lattica.remote(num_returns="streaming")
def countdown(start: int) -> Iterator[int]:
    yield from range(start, 0, -1)


# A process that dies costs a retry, not the program.
@lattica.remote(max_retries=3)
def shaky(marker: str) -> str:
    if not os.path.exists(marker):
        open(marker, "w").close()
        os._exit(1)
    return "finished by another worker"


def main() -> None:
    with lattica.init():
        squares = [square.remote(number) for number in range(5)]
        print("squares:", lattica.get(squares))
        print("their sum:", lattica.get(total.remote(*squares)))

        counter = Counter.remote()
        print("counted:", lattica.get([counter.add.remote(number) for number in (1, 2, 3)]))

        table = lattica.put(np.arange(3_000_000.0).reshape(1_000_000, 3))
        print("means:", lattica.get([column_mean.remote(table, column) for column in range(3)]))

        print("countdown:", *(lattica.get(ref) for ref in countdown.remote(3)))

        began = time.monotonic()
        ready, waiting = lattica.wait(
            [lattica.remote(time.sleep).remote(seconds) for seconds in (0.1, 5)], num_returns=1
        )
        print(f"the quicker one of {len(ready) + len(waiting)} came after {time.monotonic() - began:.1f} s")

        marker = f"/tmp/lattica-quickstart-{os.getpid()}"
        print("a worker died:", lattica.get(shaky.remote(marker)))
        os.remove(marker)


if __name__ == "__main__":
    main()
