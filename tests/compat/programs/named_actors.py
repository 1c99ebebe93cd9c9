"""Actors by name: found from tasks, made once, in namespaces, detached, and gone after kill."""

import ray


@ray.remote
class Counter:
    def __init__(self, start=0):
        self.count = start

    def add(self, amount=1):
        self.count += amount
        return self.count


@ray.remote
def add_by_name(name, amount):
    return ray.get(ray.get_actor(name).add.remote(amount))


def refused(call):
    try:
        call()
    except ValueError as error:
        return type(error).__name__ in ("ValueError", "ActorAlreadyExistsError", "ConfigError")
    return False


if __name__ == "__main__":
    ray.init(num_cpus=2, namespace="shop")
    counter = Counter.options(name="till", num_cpus=0).remote(10)
    print("by name", ray.get(ray.get_actor("till").add.remote()))
    print("from tasks", ray.get([add_by_name.remote("till", amount) for amount in (5,)]))
    print("taken", refused(lambda: Counter.options(name="till", num_cpus=0).remote()))
    same = Counter.options(name="till", get_if_exists=True).remote(999)
    print("the same", same == counter, ray.get(same.add.remote(0)))
    new = Counter.options(name="safe", get_if_exists=True, num_cpus=0).remote(100)
    print("a new one", ray.get(new.add.remote()))

    other = Counter.options(name="till", namespace="depot", lifetime="detached", num_cpus=0).remote(1000)
    print("elsewhere", ray.get(ray.get_actor("till", namespace="depot").add.remote()))
    del other
    print("still there", ray.get(ray.get_actor("till", "depot").add.remote()))
    print("listed", sorted(ray.util.list_named_actors()))
    everywhere = ray.util.list_named_actors(all_namespaces=True)
    print("everywhere", sorted((each["namespace"], each["name"]) for each in everywhere))

    ray.kill(ray.get_actor("till", namespace="depot"))
    ray.kill(counter)
    try:
        ray.get(counter.add.remote())
    except ray.exceptions.RayActorError as error:
        print("killed", isinstance(error, ray.exceptions.ActorDiedError))
    print("no such name", refused(lambda: ray.get_actor("nobody")))
    print("no empty name", refused(lambda: ray.get_actor("")))
