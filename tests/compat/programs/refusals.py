"""Calls that cannot work, and what kind of error each is."""

import threading

import ray


@ray.remote
def identity(x):
    return x


@ray.remote
class Actor:
    def method(self, x=None):
        return x


def refused(call, kind):
    """Whether it raises an error of this kind."""
    try:
        call()
    except Exception as error:
        return isinstance(error, kind)
    return "no error"


if __name__ == "__main__":
    ray.init(num_cpus=2)
    ref, actor = ray.put(1), Actor.remote()
    cases = {
        "get of a number": (ValueError, lambda: ray.get(5)),
        "get of a list with a number": (TypeError, lambda: ray.get([ref, 5])),
        "get of a nested list": (TypeError, lambda: ray.get([[ref]])),
        "get of a set": (ValueError, lambda: ray.get({ref})),
        "get of None": (ValueError, lambda: ray.get(None)),
        "wait for one ref": (TypeError, lambda: ray.wait(ref)),
        "wait for a number": (TypeError, lambda: ray.wait([5])),
        "wait for the same": (ValueError, lambda: ray.wait([ref, ref])),
        "wait for two of one": (ValueError, lambda: ray.wait([ref], num_returns=2)),
        "wait for no one": (ValueError, lambda: ray.wait([ref], num_returns=0)),
        "wait a negative time": (ValueError, lambda: ray.wait([ref], timeout=-1)),
        "put of a ref": (TypeError, lambda: ray.put(ref)),
        "cancel of a number": (TypeError, lambda: ray.cancel(5)),
        "kill of a class": (ValueError, lambda: ray.kill(Actor)),
        "kill of a ref": (ValueError, lambda: ray.kill(ref)),
        "a call of a remote function": (TypeError, lambda: identity(1)),
        "a call of an actor class": (TypeError, lambda: Actor()),
        "a call of a method": (TypeError, lambda: actor.method(1)),
        "too few arguments": (TypeError, lambda: identity.remote()),
        "too many arguments": (TypeError, lambda: identity.remote(1, 2)),
        "an unknown argument": (TypeError, lambda: identity.remote(y=1)),
        "too many for a method": (TypeError, lambda: actor.method.remote(1, 2)),
        "too many for a constructor": (TypeError, lambda: Actor.remote(1)),
        "no such method": (AttributeError, lambda: actor.nothing),
        "a lock as an argument": (TypeError, lambda: identity.remote(threading.Lock())),
        "a lock put": (TypeError, lambda: ray.put(threading.Lock())),
        "an unknown option": (ValueError, lambda: identity.options(num_cpu=1)),
        "a negative option": (ValueError, lambda: identity.options(num_cpus=-1)),
        "CPU among resources": (ValueError, lambda: identity.options(resources={"CPU": 1})),
        "an option of actors": (ValueError, lambda: identity.options(max_restarts=1)),
        "an option of tasks": (ValueError, lambda: Actor.options(max_retries=1)),
        "a wrong lifetime": (ValueError, lambda: Actor.options(lifetime="long").remote()),
        "no name for get_if_exists": (ValueError, lambda: Actor.options(get_if_exists=True).remote()),
        "init twice": (RuntimeError, lambda: ray.init()),
        "an actor that is not there": (ValueError, lambda: ray.get_actor("nobody")),
    }
    for name, (kind, call) in cases.items():
        print(f"{name}: {refused(call, kind)}")
