"""What tasks and actors inherit around them from who calls them, and what they lay on top."""

import os

import ray
from ray.runtime_env import RuntimeEnv


@ray.remote(num_cpus=0)
def look():
    return [os.environ.get(f"COMPAT_{name}") for name in "ABCD"]


@ray.remote(num_cpus=0, runtime_env={"env_vars": {"COMPAT_B": "parent", "COMPAT_C": "${COMPAT_A}-c"}})
def parent():
    child = look.options(runtime_env={"env_vars": {"COMPAT_B": "child"}})
    empty = look.options(runtime_env={})
    return ray.get([look.remote(), child.remote(), empty.remote()])


@ray.remote(num_cpus=0, runtime_env=RuntimeEnv(env_vars={"COMPAT_D": "actor"}))
class Holder:
    def look(self):
        return ray.get(look.remote())

    def around(self):
        found = ray.get_runtime_context().runtime_env
        return isinstance(found, RuntimeEnv), sorted(found.env_vars().items())


def refused(call):
    try:
        call()
    except (ValueError, TypeError):
        return True
    return False


if __name__ == "__main__":
    ray.init(num_cpus=2, runtime_env={"env_vars": {"COMPAT_A": "job", "COMPAT_B": "job"}})
    print("of the job", ray.get(look.remote()))
    for words, found in zip(("inherits", "on top", "nothing said"), ray.get(parent.remote())):
        print(words, found)
    holder = Holder.remote()
    print("of an actor", ray.get(holder.look.remote()))
    print("around", *ray.get(holder.around.remote()))
    other = Holder.options(runtime_env={"env_vars": {"COMPAT_C": "options"}}).remote()
    print("options replace the decorator's", ray.get(other.look.remote()))
    print("no string", refused(lambda: look.options(runtime_env={"env_vars": {"A": 1}})))
    print("no dict", refused(lambda: look.options(runtime_env="x")))
    print("two installers", refused(lambda: RuntimeEnv(pip=["a"], uv=["b"])))
    made = RuntimeEnv(pip=["numpy", "numpy", "scipy"], env_vars={"A": "b"})
    print("requirements", made["pip"]["packages"], made.has_pip(), made.has_uv(), made.env_vars())
