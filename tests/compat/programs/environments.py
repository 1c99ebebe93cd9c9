"""Variables and folders around tasks: for all of them, and for single ones."""

import os
import sys
import tempfile

import ray


@ray.remote
def variables(*names):
    return [os.environ.get(name) for name in names]


@ray.remote
class Holder:
    def variable(self, name):
        return os.environ.get(name)


@ray.remote
def files():
    import compat_extra

    return sorted(name for name in os.listdir(".") if name.startswith("compat_")), compat_extra.ANSWER


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "compat_extra.py"), "w") as module:
            module.write("ANSWER = 42\n")
        with open(os.path.join(folder, "compat_data.txt"), "w") as data:
            data.write("data\n")
        ray.init(num_cpus=2, runtime_env={"env_vars": {"COMPAT_MODE": "fast"}, "working_dir": folder})
        print("for all", ray.get(variables.remote("COMPAT_MODE", "COMPAT_OTHER")))
        print("files", ray.get(files.remote()))
        special = variables.options(runtime_env={"env_vars": {"COMPAT_OTHER": "1"}})
        print("for one", ray.get(special.remote("COMPAT_MODE", "COMPAT_OTHER")))
        holder = Holder.options(runtime_env={"env_vars": {"COMPAT_MODE": "slow"}}).remote()
        print("for an actor", ray.get(holder.variable.remote("COMPAT_MODE")))
        print("the others", ray.get(variables.remote("COMPAT_MODE", "COMPAT_OTHER")))
        print("here", os.environ.get("COMPAT_MODE"), "compat_extra" in sys.modules)
