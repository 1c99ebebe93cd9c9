"""What fails: exceptions of tasks with their classes, retries, actors that die and come back, cancelled tasks."""

import os
import tempfile
import time

import ray
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError, WorkerCrashedError

LINES = []


class Refused(Exception):
    pass


@ray.remote
def divide(a, b):
    return a / b


@ray.remote(max_retries=0)
def refuse():
    raise Refused("not today")


@ray.remote
def after(value):
    return value


@ray.remote
class Attempts:
    def __init__(self):
        self.count = 0

    def next(self):
        self.count += 1
        return self.count


@ray.remote(max_retries=3, retry_exceptions=[Refused])
def third_time(attempts):
    count = ray.get(attempts.next.remote())
    if count < 3:
        raise Refused(count)
    return count


@ray.remote(max_retries=2)
def crash_once(attempts):
    if ray.get(attempts.next.remote()) == 1:
        os._exit(1)
    return "came back"


@ray.remote(max_retries=0)
def crash():
    os._exit(1)


@ray.remote(max_restarts=1, max_task_retries=1)
class Phoenix:
    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1
        return self.count

    def die(self):
        os._exit(1)


@ray.remote
class Broken:
    def __init__(self):
        raise Refused("in the constructor")

    def call(self):
        return 1


@ray.remote
class Leaver:
    def leave(self):
        ray.actor.exit_actor()

    def call(self):
        return 1


@ray.remote
def sleep(begun=None):
    if begun is not None:
        open(begun, "w").close()
    for _ in range(1000):  # Ray interrupts between two steps, not within one
        time.sleep(0.05)


def caught(ref, *kinds):
    try:
        return ray.get(ref)
    except kinds as error:
        return [isinstance(error, kind) for kind in kinds]


def say(*words):
    LINES.append(" ".join(map(str, words)))


if __name__ == "__main__":
    ray.init(num_cpus=2)
    say("both", caught(divide.remote(1, 0), RayTaskError, ZeroDivisionError))
    say("own class", caught(refuse.remote(), RayTaskError, Refused))
    say("as an argument", caught(after.remote(refuse.remote()), RayTaskError, Refused))
    try:
        ray.get(refuse.remote())
    except RayTaskError as error:
        say("cause", type(error.cause).__name__, "said", "refuse" in str(error), "not today" in str(error))
    say("third time", ray.get(third_time.remote(Attempts.remote())))
    say("crashed once", ray.get(crash_once.remote(Attempts.remote())))
    say("crashed", caught(crash.remote(), WorkerCrashedError))

    phoenix = Phoenix.remote()
    say("before", ray.get([phoenix.add.remote(), phoenix.add.remote()]))
    say("dies", caught(phoenix.die.options(max_task_retries=0).remote(), RayActorError))
    say("from the start", ray.get(phoenix.add.remote()))
    say("constructor", caught(Broken.remote().call.remote(), RayActorError))
    leaver = Leaver.remote()
    say("leaves", caught(leaver.leave.remote(), RayActorError), caught(leaver.call.remote(), RayActorError))

    begun = os.path.join(tempfile.mkdtemp(), "begun")
    running = sleep.remote(begun)
    while not os.path.exists(begun):
        time.sleep(0.1)
    ray.cancel(running)
    say("cancelled", caught(running, TaskCancelledError))
    queued = [sleep.remote() for _ in range(4)]
    for ref in queued:
        ray.cancel(ref)
    say("cancelled in the queue", [caught(ref, TaskCancelledError) for ref in queued])
    ray.shutdown()
    print("report", *LINES, sep="\n")  # after what Ray says of retries, which goes to stdout as well
