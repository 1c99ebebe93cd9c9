"""Exceptions of user code on their way: classes, arguments, causes, what does not pickle, and retries of a method."""

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError


class Simple(Exception):
    pass


class WithArguments(Exception):
    def __init__(self, code, text):
        super().__init__(code, text)
        self.code, self.text = code, text


class TwoNeeded(Exception):
    """Cannot be made again from its args."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")
        self.first = first


class Unpicklable(Exception):
    def __init__(self):
        super().__init__("holds a generator")
        self.held = (number for number in range(3))


@ray.remote(max_retries=0)
def fail(kind, *args):
    raise kind(*args)


@ray.remote(max_retries=0)
def chained():
    try:
        {}["missing"]
    except KeyError as error:
        raise Simple("outer") from error


@ray.remote(max_retries=0)
def nested(kind):
    return ray.get(fail.remote(kind, "inner"))


@ray.remote
def returned():
    return Simple("a value")


@ray.remote
class Actor:
    def __init__(self, fails=False):
        if fails:
            raise WithArguments(7, "constructor")
        self.count = 0

    def fail(self, kind):
        raise kind("of a method")

    @ray.method(max_task_retries=2, retry_exceptions=[Simple])
    def third(self):
        self.count += 1
        if self.count < 3:
            raise Simple(self.count)
        return self.count

    async def nothing(self):
        return None


@ray.remote
class Async:
    async def fail(self, kind):
        raise kind("of a coroutine")


def caught(ref):
    try:
        return f"no error: {ray.get(ref)!r}"
    except RayError as error:
        return error


LINES = []


def say(*words):
    LINES.append(" ".join(map(str, words)))


if __name__ == "__main__":
    ray.init(num_cpus=2, log_to_driver=False)
    error = caught(fail.remote(Simple, "text"))
    say(
        "simple",
        isinstance(error, Simple),
        isinstance(error, RayTaskError),
        isinstance(error.cause, Simple),
        error.cause.args,
    )
    error = caught(fail.remote(WithArguments, 3, "words"))
    say("arguments", isinstance(error, WithArguments), error.cause.code, error.cause.text)
    error = caught(fail.remote(TwoNeeded, 1, 2))
    say("two needed", isinstance(error, RayError), "1 and 2" in str(error))
    error = caught(fail.remote(Unpicklable))
    say("unpicklable", isinstance(error, RayTaskError), "holds a generator" in str(error))
    error = caught(chained.remote())
    say("chained", isinstance(error, Simple), "missing" in str(error), "outer" in str(error))
    error = caught(nested.remote(Simple))
    say("nested", isinstance(error, Simple), isinstance(error, RayTaskError), "inner" in str(error))
    say("in words", all(word in str(error) for word in ("nested", "fail", "exceptions.py", "raise kind")))
    value = ray.get(returned.remote())
    say("returned", type(value).__name__, value.args)
    for kind in (ValueError, KeyError, AssertionError, NotImplementedError, OSError, TimeoutError):
        error = caught(fail.remote(kind, "builtin"))
        say(kind.__name__, isinstance(error, kind), isinstance(error, RayTaskError))

    actor = Actor.remote()
    error = caught(actor.fail.remote(Simple))
    say("method", isinstance(error, Simple), isinstance(error, RayTaskError), isinstance(error, RayActorError))
    say("still there", caught(actor.nothing.remote()))
    say("third time", ray.get(Actor.remote().third.remote()))
    error = caught(Async.remote().fail.remote(Simple))
    say("coroutine", isinstance(error, Simple), isinstance(error, RayTaskError))
    error = caught(Actor.remote(fails=True).nothing.remote())
    say("constructor", isinstance(error, RayActorError), "constructor" in str(error))
    try:
        ray.get([fail.remote(Simple, 1), fail.remote(KeyError, 2)])
    except (Simple, KeyError):
        say("one of two")
    ref = fail.remote(Simple, "twice")
    say("twice", isinstance(caught(ref), Simple), isinstance(caught(ref), Simple), caught(ref) is not caught(ref))
    ray.shutdown()
    print("report", *LINES, sep="\n")  # after what Ray says of workers and retries, which goes to stdout as well
